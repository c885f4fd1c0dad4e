#include "machine/migration_image.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/bytes.h"
#include "image/file.h"
#include "image/overlay.h"
#include "image/transfer.h"
#include "machine/migration_extents.h"

/* What is no disk: a kernel, an initramfs, a note. */
enum { SMALL_FILE_MAX = 1 << 30 };

/* ---- The side that a VM leaves ---- */

int migration_image_describe(const char *directory, struct disk_image *image, json_t **about,
                             struct error *err) {
    char links[PATH_MAX], hash[IMAGE_HASH_TEXT];
    *image = (struct disk_image){0};
    int result = path_join(links, directory, "image", err);
    if (result == 0)
        result = image_open(links, image, err);
    if (result == 0)
        result = image_hash(image, hash, err);
    if (result == 0)
        *about = json_pack("{s:s, s:s, s:I, s:I}", "root", image->root, "hash", hash, "size",
                           (json_int_t)image->size, "bytes", (json_int_t)image->used);
    return result;
}

struct sending {
    struct stream *stream;
    struct extents *extents;
    memory_sender_progress *progress;
    void *context;
    struct error *err;
    uint64_t left, sent;
    uint8_t buffer[EXTENT_DATA_MAX];
};

/* From a piece's offset to its end; 0: that was all. */
static int send_piece(struct sending *sending, unsigned which, int fd, uint64_t *offset) {
    off_t data = lseek(fd, (off_t)*offset, SEEK_DATA);
    if (data < 0)
        return errno == ENXIO ? 0 : error_set_errno(sending->err, -errno, "the VM's image");
    ssize_t got = pread(fd, sending->buffer, sizeof sending->buffer, data);
    if (got <= 0)
        return got < 0 ? error_set_errno(sending->err, -errno, "the VM's image") : 0;
    *offset = (uint64_t)data + (uint64_t)got;
    sending->left -= sending->left < (uint64_t)got ? sending->left : (uint64_t)got;
    const struct extent extent = {.which = which,
                                  .offset = (uint64_t)data,
                                  .length = (uint64_t)got,
                                  .bytes = sending->buffer};
    int result = extent_send_split(sending->extents, sending->stream, STREAM_FILE, &extent, false,
                                   &sending->sent, sending->err);
    if (result == 0 && !sending->progress(sending->context, sending->left))
        result = error_set(sending->err, -ECANCELED, "cancelled");
    return result < 0 ? result : 1;
}

static int send_file(struct sending *sending, unsigned which, const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC), result = 1;
    uint64_t offset = 0;
    if (fd < 0)
        return error_set_errno(sending->err, -errno, "%s", path);
    while (result > 0)
        result = send_piece(sending, which, fd, &offset);
    close(fd);
    return result;
}

static int send_files(struct sending *sending, const struct disk_image *image) {
    char note[PATH_MAX];
    const int directory = (int)(strrchr(image->disk, '/') - image->disk);
    if (snprintf(note, sizeof note, "%.*s/image.json", directory, image->disk) >= (int)sizeof note)
        return error_set(sending->err, -ENAMETOOLONG, "%s: its name is too long", image->disk);
    const char *const paths[] = {image->disk, image->kernel, image->initrd, note};
    int result = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(paths) && result == 0; i++)
        result = send_file(sending, i, paths[i]);
    return result == 0 ? stream_send(sending->stream, STREAM_ROUND, NULL, 0, sending->err) : result;
}

int migration_image_send(const struct disk_image *image, struct stream *stream, bool compress,
                         memory_sender_progress *progress, void *context, struct error *err) {
    json_t *answer = NULL;
    int result = stream_expect(stream, STREAM_IMAGE, err);
    if (result == 0)
        result = stream_json(stream, &answer, err);
    if (result < 0)
        return result;
    bool wanted = json_is_true(json_object_get(answer, "wanted"));
    json_decref(answer);
    if (!wanted)
        return 0;
    struct sending *sending = calloc(1, sizeof *sending);
    if (sending == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    *sending = (struct sending){.stream = stream,
                                .progress = progress,
                                .context = context,
                                .err = err,
                                .left = image->used};
    result = extents_create(compress, &sending->extents, err);
    if (result == 0)
        result = send_files(sending, image);
    extents_destroy(sending->extents);
    free(sending);
    return result;
}

/* ---- The side that it comes to ---- */

struct receiving {
    int files[4];
    uint64_t size; /* of the disk */
};

static int strange(struct error *err) {
    return error_set(err, -EPROTO,
                     "what the other side says of the VM's image is not as lodge "
                     "says it");
}

static int check_room(const char *directory, uint64_t bytes, struct error *err) {
    struct statvfs room;
    if (statvfs(directory, &room) < 0)
        return error_set_errno(err, -errno, "%s", directory);
    if (bytes / room.f_frsize < room.f_bavail)
        return 0;
    return error_set(err, -ENOSPC, "the target has room for %llu MiB, the VM's image takes %llu",
                     (unsigned long long)(room.f_bavail * room.f_frsize >> 20),
                     (unsigned long long)(bytes >> 20));
}

static int open_files(struct receiving *receiving, const char *directory, struct error *err) {
    char links[PATH_MAX], path[PATH_MAX];
    int result = path_join(links, directory, "image", err);
    if (result == 0)
        result = make_directories(links, err);
    for (unsigned i = 0; image_files[i] != NULL && result == 0; i++) {
        result = path_join(path, links, image_files[i], err);
        if (result == 0 &&
            (receiving->files[i] = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) < 0)
            result = error_set_errno(err, -errno, "%s", path);
    }
    if (result == 0 && ftruncate(receiving->files[0], (off_t)receiving->size) < 0)
        result = error_set_errno(err, -errno, "%s", path);
    return result;
}

static int take_extent(const struct receiving *receiving, const struct extent *extent,
                       struct error *err) {
    uint64_t size = extent->which == 0 ? receiving->size : SMALL_FILE_MAX;
    if (extent->which >= ARRAY_SIZE(receiving->files) || extent->kind != EXTENT_DATA ||
        extent->offset > size || extent->length > size - extent->offset)
        return strange(err);
    for (uint64_t at = 0; at < extent->length;) {
        ssize_t wrote = pwrite(receiving->files[extent->which], extent->bytes + at,
                               extent->length - at, (off_t)(extent->offset + at));
        if (wrote < 0)
            return error_set_errno(err, -errno, "the target cannot write the VM's image");
        at += (uint64_t)wrote;
    }
    return 0;
}

static int take_extents(const struct receiving *receiving, struct stream *stream,
                        struct extents *extents, struct error *err) {
    enum stream_type type;
    struct extent extent;
    for (;;) {
        int result = stream_receive(stream, &type, err);
        if (result == 0 && type == STREAM_ROUND)
            return 0;
        if (result == 0 && type != STREAM_FILE)
            result = strange(err);
        if (result == 0)
            result = extent_read(extents, stream, &extent, err);
        if (result == 0)
            result = take_extent(receiving, &extent, err);
        if (result < 0)
            return result;
    }
}

static int close_files(struct receiving *receiving, struct error *err) {
    int result = 0;
    for (size_t i = 0; i < ARRAY_SIZE(receiving->files); i++) {
        if (receiving->files[i] >= 0 && fsync(receiving->files[i]) < 0 && result == 0)
            result = error_set_errno(err, -errno, "the target cannot write the VM's image");
        if (receiving->files[i] >= 0)
            close(receiving->files[i]);
    }
    return result;
}

static int receive_files(uint64_t size, struct stream *stream, const char *directory,
                         struct error *err) {
    struct receiving receiving = {.files = {-1, -1, -1, -1}, .size = size};
    struct extents *extents = NULL;
    int result = extents_create(false, &extents, err);
    if (result == 0)
        result = open_files(&receiving, directory, err);
    if (result == 0)
        result = take_extents(&receiving, stream, extents, err);
    int closed = close_files(&receiving, result == 0 ? err : NULL);
    extents_destroy(extents);
    return result == 0 ? closed : result;
}

int migration_image_receive(const json_t *about, struct stream *stream, const char *directory,
                            struct error *err) {
    const char *root = json_string_value(json_object_get(about, "root"));
    const char *hash = json_string_value(json_object_get(about, "hash"));
    json_int_t size = json_integer_value(json_object_get(about, "size"));
    json_int_t bytes = json_integer_value(json_object_get(about, "bytes"));
    if (root == NULL || hash == NULL || size <= 0 || size > INT64_C(1) << 46 || bytes < 0)
        return strange(err);
    int found = image_link_same(root, hash, directory, err);
    if (found == 0 && check_room(directory, (uint64_t)bytes, err) < 0)
        found = -ENOSPC;
    if (found < 0)
        return found;
    int result =
        stream_send_json(stream, STREAM_IMAGE, json_pack("{s:b}", "wanted", found == 0), err);
    return result == 0 && found == 0 ? receive_files((uint64_t)size, stream, directory, err)
                                     : result;
}
