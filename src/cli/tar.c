#include "cli/tar.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "image/libarchive.h"

static int failed(struct archive *archive, int code, struct error *err) {
    const char *text = la.archive_error_string(archive);
    return error_set(err, code, "%s", text != NULL ? text : "the stream of files is damaged");
}

/* ---- Packing ---- */

static int copy_data(struct archive *from, struct archive *to, struct error *err) {
    char bytes[64 << 10];
    la_ssize_t got;
    while ((got = la.archive_read_data(from, bytes, sizeof bytes)) > 0)
        if (la.archive_write_data(to, bytes, (size_t)got) < 0)
            return failed(to, -EPIPE, err);
    return got < 0 ? failed(from, -EIO, err) : 0;
}

/* The part of an entry's path behind the root's becomes the name's. */
static int pack_entry(struct archive *disk, struct archive_entry *entry, size_t root,
                      const char *name, struct archive *out, struct error *err) {
    char path[PATH_MAX];
    const char *own = la.archive_entry_pathname(entry);
    if (own == NULL || strlen(own) < root ||
        snprintf(path, sizeof path, "%s%s", name, own + root) >= (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "a path is too long, or no text");
    la.archive_entry_set_pathname(entry, path);
    la.archive_entry_set_uid(entry, 0);
    la.archive_entry_set_gid(entry, 0);
    la.archive_entry_set_uname(entry, "root");
    la.archive_entry_set_gname(entry, "root");
    if (la.archive_write_header(out, entry) < ARCHIVE_WARN)
        return failed(out, -EPIPE, err);
    return la.archive_entry_size(entry) > 0 ? copy_data(disk, out, err) : 0;
}

static int pack_all(struct archive *disk, const char *path, const char *name, struct archive *out,
                    struct error *err) {
    struct archive_entry *entry = la.archive_entry_new();
    int result = 0, step = ARCHIVE_OK;
    while (result == 0 && (step = la.archive_read_next_header2(disk, entry)) != ARCHIVE_EOF) {
        if (step < ARCHIVE_WARN)
            result = failed(disk, -EIO, err);
        else if (la.archive_entry_filetype(entry) != AE_IFSOCK) /* which has no place in a stream */
            result = pack_entry(disk, entry, strlen(path), name, out, err);
        if (result == 0)
            la.archive_read_disk_descend(disk);
    }
    la.archive_entry_free(entry);
    return result;
}

int tar_pack(const char *path, const char *name, int fd, struct error *err) {
    int result = libarchive_load(err);
    if (result < 0)
        return result;
    struct archive *disk = la.archive_read_disk_new(), *out = la.archive_write_new();
    la.archive_read_disk_set_symlink_physical(disk);
    la.archive_write_set_format_gnutar(out);
    la.archive_write_set_bytes_in_last_block(out, 1);
    if (la.archive_write_open_fd(out, fd) != ARCHIVE_OK)
        result = failed(out, -EIO, err);
    else if (la.archive_read_disk_open(disk, path) != ARCHIVE_OK)
        result = failed(disk, -EIO, err);
    if (result == 0)
        result = pack_all(disk, path, name, out, err);
    if (la.archive_write_close(out) != ARCHIVE_OK && result == 0)
        result = failed(out, -EPIPE, err);
    la.archive_write_free(out);
    la.archive_read_free(disk);
    return result;
}

/* ---- Unpacking ---- */

/* A member's name as it is to be here; false: it is neither `from` nor in it. */
static bool map_name(const char *name, const char *from, const char *to, char path[PATH_MAX]) {
    while (name[0] == '.' && name[1] == '/')
        name += 2;
    size_t length = strlen(from);
    bool all = strcmp(from, ".") == 0;
    if (all && (name[0] == 0 || strcmp(name, ".") == 0))
        name = "";
    else if (!all &&
             (strncmp(name, from, length) != 0 || (name[length] != '/' && name[length] != 0)))
        return false;
    else if (!all)
        name += length;
    if (all && name[0] != 0)
        return snprintf(path, PATH_MAX, "%s/%s", to, name) < PATH_MAX;
    return snprintf(path, PATH_MAX, "%s%s", to, name) < PATH_MAX;
}

static int refuse(const char *name, struct error *err) {
    return error_set(err, -EPERM, "the guest sent '%.200s', which was not asked for", name);
}

/* Names as they are to be, and rights: the guest's owners and special bits mean nothing here. */
static int prepare(struct archive_entry *entry, const char *from, const char *to,
                   struct error *err) {
    char path[PATH_MAX];
    const char *name = la.archive_entry_pathname(entry), *link = la.archive_entry_hardlink(entry);
    if (name == NULL || !map_name(name, from, to, path))
        return refuse(name != NULL ? name : "?", err);
    la.archive_entry_set_pathname(entry, path);
    if (link != NULL && !map_name(link, from, to, path))
        return refuse(link, err);
    if (link != NULL)
        la.archive_entry_set_hardlink(entry, path);
    la.archive_entry_set_perm(entry, la.archive_entry_perm(entry) & 0777);
    return 0;
}

static bool is_left_out(struct archive_entry *entry) {
    switch (la.archive_entry_filetype(entry)) {
    case AE_IFREG:
    case AE_IFDIR:
    case AE_IFLNK: return false;
    default: return la.archive_entry_hardlink(entry) == NULL;
    }
}

static int unpack_entry(struct archive *in, struct archive_entry *entry, struct archive *disk,
                        struct error *err) {
    if (la.archive_write_header(disk, entry) < ARCHIVE_WARN)
        return failed(disk, -EPERM, err);
    int result = la.archive_entry_size(entry) > 0 ? copy_data(in, disk, err) : 0;
    if (result == 0 && la.archive_write_finish_entry(disk) < ARCHIVE_WARN)
        result = failed(disk, -EIO, err);
    return result;
}

static int unpack_all(struct archive *in, const char *from, const char *to, struct archive *disk,
                      struct error *err) {
    struct archive_entry *entry;
    int result = 0, step = ARCHIVE_OK;
    while (result == 0 && (step = la.archive_read_next_header(in, &entry)) != ARCHIVE_EOF) {
        if (step < ARCHIVE_WARN)
            return failed(in, -EPROTO, err);
        if (is_left_out(entry)) {
            fprintf(stderr, "lodge: '%s' is a device or pipe: left out\n",
                    la.archive_entry_pathname(entry));
            continue;
        }
        result = prepare(entry, from, to, err);
        if (result == 0)
            result = unpack_entry(in, entry, disk, err);
    }
    return result;
}

int tar_unpack(int fd, const char *from, const char *to, struct error *err) {
    int result = libarchive_load(err);
    if (result < 0)
        return result;
    struct archive *in = la.archive_read_new(), *disk = la.archive_write_disk_new();
    la.archive_read_support_format_tar(in);
    la.archive_read_support_format_empty(in);
    la.archive_write_disk_set_options(
        disk, ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_SECURE_SYMLINKS |
                  ARCHIVE_EXTRACT_SECURE_NODOTDOT | ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS);
    if (la.archive_read_open_fd(in, fd, 10240) != ARCHIVE_OK)
        result = failed(in, -EPROTO, err);
    if (result == 0)
        result = unpack_all(in, from, to, disk, err);
    if (la.archive_write_close(disk) != ARCHIVE_OK && result == 0)
        result = failed(disk, -EIO, err);
    la.archive_write_free(disk);
    la.archive_read_free(in);
    return result;
}
