#include "image/overlay.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "block/disk/disk.h"
#include "block/raw.h"
#include "block/sync.h"
#include "image/build.h"
#include "image/file.h"
#include "image/transfer.h"

void nameless_close(struct nameless *file) {
    if (file->path[0] != 0)
        close(file->fd);
    file->path[0] = 0;
}

/* durable: it is to outlive this process. */
static int format(const char *path, struct disk_create *create, bool durable, struct error *err) {
    struct raw_config raw = {.growable = true};
    struct block *file;
    if (getrandom(create->uuid, sizeof create->uuid, 0) != (ssize_t)sizeof create->uuid)
        return error_set_errno(err, -errno, "getrandom");
    int result = block_open_file(path, &raw, &file, err);
    if (result != 0)
        return result;
    result = disk_format(file, create, err);
    if (result == 0 && durable && (result = block_flush(file)) != 0)
        error_set_errno(err, result, "cannot write %s", path);
    block_close(file);
    return result;
}

static int nameless_create(struct nameless *file, struct error *err) {
    char root[PATH_MAX], path[PATH_MAX];
    int result = images_path(".", root, err);
    if (result == 0)
        result = make_directories(root, err);
    if (result == 0)
        result = path_join(path, root, ".run-XXXXXX", err);
    if (result < 0)
        return result;
    file->fd = mkostemp(path, O_CLOEXEC);
    if (file->fd < 0)
        return error_set_errno(err, -errno, "%s", path);
    unlink(path);
    snprintf(file->path, sizeof file->path, "/proc/self/fd/%d", file->fd);
    return 0;
}

/* What a disk on top of base is to be, with base's absolute path. */
static int describe(const char *base, const struct block_options *options, char absolute[PATH_MAX],
                    struct disk_create *create, struct error *err) {
    struct block_options look = *options;
    struct block *disk;
    *create = (struct disk_create){.backing_path = base, .backing_snapshot = options->snapshot};
    look.readonly = true;
    int result = block_find_format(base, options->format, &look.format, err);
    if (result < 0)
        return result;
    result = block_open(base, &look, &disk, err);
    if (result < 0)
        return result;
    create->backing_format = block_formats[look.format];
    create->size = create->backing_size = disk->info.size;
    block_close(disk);
    /* The new disk has no directory from which a path could be seen. */
    if (look.format != BLOCK_FORMAT_NBD) {
        if (realpath(base, absolute) == NULL)
            return error_set_errno(err, -errno, "%s", base);
        create->backing_path = absolute;
    }
    return 0;
}

int overlay_temporary(const char *base, const struct block_options *options, struct nameless *file,
                      struct error *err) {
    struct disk_create create;
    char absolute[PATH_MAX];
    int result = describe(base, options, absolute, &create, err);
    if (result == 0)
        result = nameless_create(file, err);
    return result == 0 ? format(file->path, &create, false, err) : result;
}

static int create_file(const char *path, struct error *err) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set_errno(err, -errno, "%s", path);
    close(fd);
    return 0;
}

int overlay_create(const char *base, const char *snapshot, const char *path, struct error *err) {
    struct block_options options = {.format = BLOCK_FORMAT_LODGE, .snapshot = snapshot};
    struct disk_create create;
    char absolute[PATH_MAX];
    int result = describe(base, &options, absolute, &create, err);
    if (result == 0)
        result = create_file(path, err);
    return result == 0 ? format(path, &create, true, err) : result;
}

/* ---- In a VM's directory ---- */

static int copy(const char *from, const char *to, struct error *err) {
    const char *const argv[] = {"cp", "--reflink=auto", "--sparse=always", from, to, NULL};
    return program_run(&(struct program){.argv = argv}, err);
}

static int link_image(const char *source, const char *directory, struct error *err) {
    char from[PATH_MAX], to[PATH_MAX];
    int result = 0;
    for (size_t i = 0; image_files[i] != NULL && result == 0; i++) {
        result = path_join(from, source, image_files[i], err);
        if (result == 0)
            result = path_join(to, directory, image_files[i], err);
        if (result == 0 && link(from, to) < 0)
            result = errno == EXDEV || errno == EPERM || errno == EMLINK
                         ? copy(from, to, err)
                         : error_set_errno(err, -errno, "%s", to);
    }
    return result;
}

static int make_links(const char *source, const char *directory, struct error *err) {
    char links[PATH_MAX];
    int result = path_join(links, directory, "image", err);
    if (result == 0)
        result = make_directories(links, err);
    return result == 0 ? link_image(source, links, err) : result;
}

int overlay_share(const char *from, const char *directory, struct error *err) {
    char source[PATH_MAX];
    int result = path_join(source, from, "image", err);
    return result == 0 && access(source, F_OK) == 0 ? make_links(source, directory, err) : result;
}

int overlay_link(const struct disk_image *image, const char *directory, struct error *err) {
    char source[PATH_MAX];
    int result = images_path(image->name, source, err);
    return result == 0 ? make_links(source, directory, err) : result;
}

int overlay_empty(const char *path, uint64_t size, bool own, struct error *err) {
    struct disk_create create = {.size = size};
    if (!own) {
        create.backing_path = "image/disk.raw";
        create.backing_format = "raw";
        create.backing_size = size;
    }
    int result = create_file(path, err);
    return result == 0 ? format(path, &create, true, err) : result;
}

int overlay_keep(const struct disk_image *image, const char *directory, struct error *err) {
    char disk[PATH_MAX];
    int result = overlay_link(image, directory, err);
    if (result == 0)
        result = path_join(disk, directory, "disk.lodge", err);
    return result == 0 ? overlay_empty(disk, image->size, false, err) : result;
}

int overlay_find(const char *directory, struct disk_image *image, char disk[PATH_MAX],
                 struct error *err) {
    char links[PATH_MAX];
    int result = path_join(links, directory, "image", err);
    if (result == 0)
        result = path_join(disk, directory, "disk.lodge", err);
    return result == 0 ? image_open(links, image, err) : result;
}
