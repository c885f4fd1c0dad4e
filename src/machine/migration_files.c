#include "machine/migration_files.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "image/file.h"
#include "machine/migration_extents.h"

/* ---- The side that a VM leaves ---- */

int moved_file_find(const char *directory, const char *name, struct moved_file *file,
                    uint64_t *bytes, struct error *err) {
    struct stat status = {0};
    int result = path_join(file->path, directory, name, err);
    if (result == 0 && stat(file->path, &status) < 0)
        result = error_set_errno(err, -errno, "%s", file->path);
    if (result < 0)
        return result;
    file->size = (uint64_t)status.st_size;
    *bytes += (uint64_t)status.st_blocks * 512;
    return 0;
}

struct sending {
    const struct moved_files *files;
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
        return errno == ENXIO ? 0
                              : error_set_errno(sending->err, -errno, "%s", sending->files->what);
    ssize_t got = pread(fd, sending->buffer, sizeof sending->buffer, data);
    if (got <= 0)
        return got < 0 ? error_set_errno(sending->err, -errno, "%s", sending->files->what) : 0;
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

static int send_file(struct sending *sending, unsigned which) {
    const char *path = sending->files->files[which].path;
    int fd = open(path, O_RDONLY | O_CLOEXEC), result = 1;
    uint64_t offset = 0;
    if (fd < 0)
        return error_set_errno(sending->err, -errno, "%s", path);
    while (result > 0)
        result = send_piece(sending, which, fd, &offset);
    close(fd);
    return result;
}

int moved_files_send(const struct moved_files *files, uint64_t bytes, struct stream *stream,
                     bool compress, memory_sender_progress *progress, void *context,
                     struct error *err) {
    struct sending *sending = calloc(1, sizeof *sending);
    if (sending == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    *sending = (struct sending){.files = files,
                                .stream = stream,
                                .progress = progress,
                                .context = context,
                                .err = err,
                                .left = bytes};
    int result = extents_create(compress, &sending->extents, err);
    for (unsigned i = 0; i < files->count && result == 0; i++)
        result = send_file(sending, i);
    if (result == 0)
        result = stream_send(stream, STREAM_ROUND, NULL, 0, err);
    extents_destroy(sending->extents);
    free(sending);
    return result;
}

/* ---- The side that it comes to ---- */

/* The file that is just being filled: those before it are complete. */
struct receiving {
    const struct moved_files *files;
    unsigned at; /* one more than its number */
    int fd;
    struct error *err;
};

static int strange(const struct receiving *receiving) {
    return error_set(receiving->err, -EPROTO,
                     "what the other side sends of %s is not as lodge sends it",
                     receiving->files->what);
}

static int cannot_write(const struct receiving *receiving, int error) {
    return error_set_errno(receiving->err, error, "the target cannot write %s",
                           receiving->files->what);
}

static int finish_file(struct receiving *receiving) {
    int result = receiving->fd >= 0 && fsync(receiving->fd) < 0 ? -errno : 0;
    if (receiving->fd >= 0)
        close(receiving->fd);
    receiving->fd = -1;
    return result < 0 ? cannot_write(receiving, result) : 0;
}

/* All before this one are complete, then. */
static int go_to(struct receiving *receiving, unsigned which) {
    int result = 0;
    while (receiving->at <= which && result == 0) {
        const struct moved_file *file = &receiving->files->files[receiving->at];
        result = finish_file(receiving);
        if (result < 0)
            break;
        receiving->fd = open(file->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (receiving->fd < 0 || ftruncate(receiving->fd, (off_t)file->size) < 0)
            result = error_set_errno(receiving->err, -errno, "%s", file->path);
        receiving->at++;
    }
    return result;
}

static int take_extent(struct receiving *receiving, const struct extent *extent) {
    if (extent->which >= receiving->files->count || extent->which + 1 < receiving->at ||
        extent->kind != EXTENT_DATA)
        return strange(receiving);
    uint64_t size = receiving->files->files[extent->which].size;
    if (extent->offset > size || extent->length > size - extent->offset)
        return strange(receiving);
    int result = go_to(receiving, extent->which);
    for (uint64_t at = 0; at < extent->length && result == 0;) {
        ssize_t wrote = pwrite(receiving->fd, extent->bytes + at, extent->length - at,
                               (off_t)(extent->offset + at));
        if (wrote < 0)
            result = cannot_write(receiving, -errno);
        else
            at += (uint64_t)wrote;
    }
    return result;
}

static int take_extents(struct receiving *receiving, struct stream *stream,
                        struct extents *extents) {
    enum stream_type type;
    struct extent extent;
    for (;;) {
        int result = stream_receive(stream, &type, receiving->err);
        if (result == 0 && type == STREAM_ROUND)
            return receiving->files->count > 0 ? go_to(receiving, receiving->files->count - 1) : 0;
        if (result == 0 && type != STREAM_FILE)
            result = strange(receiving);
        if (result == 0)
            result = extent_read(extents, stream, &extent, receiving->err);
        if (result == 0)
            result = take_extent(receiving, &extent);
        if (result < 0)
            return result;
    }
}

int moved_files_receive(const struct moved_files *files, struct stream *stream, struct error *err) {
    struct receiving receiving = {.files = files, .fd = -1, .err = err};
    struct extents *extents = NULL;
    int result = extents_create(false, &extents, err);
    if (result == 0)
        result = take_extents(&receiving, stream, extents);
    if (result < 0 && receiving.fd >= 0)
        close(receiving.fd);
    else if (result == 0)
        result = finish_file(&receiving);
    extents_destroy(extents);
    return result;
}

int moved_files_check_room(const char *directory, uint64_t bytes, struct error *err) {
    struct statvfs room;
    if (statvfs(directory, &room) < 0)
        return error_set_errno(err, -errno, "%s", directory);
    if (bytes / room.f_frsize < room.f_bavail)
        return 0;
    return error_set(err, -ENOSPC, "the target has room for %llu MiB, the VM's files take %llu",
                     (unsigned long long)(room.f_bavail * room.f_frsize >> 20),
                     (unsigned long long)(bytes >> 20));
}
