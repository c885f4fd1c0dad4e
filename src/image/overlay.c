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

void nameless_close(struct nameless *file) {
    if (file->path[0] != 0)
        close(file->fd);
    file->path[0] = 0;
}

static int format(const char *path, struct disk_create *create, struct error *err) {
    struct raw_config raw = {.growable = true};
    struct block *file;
    if (getrandom(create->uuid, sizeof create->uuid, 0) != (ssize_t)sizeof create->uuid)
        return error_set_errno(err, -errno, "getrandom");
    int result = block_open_file(path, &raw, &file, err);
    if (result != 0)
        return result;
    result = disk_format(file, create, err);
    if (result == 0 && (result = block_flush(file)) != 0)
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

int overlay_temporary(const char *base, const struct block_options *options, struct nameless *file,
                      struct error *err) {
    struct block_options look = *options;
    struct disk_create create = {.backing_path = base, .backing_snapshot = options->snapshot};
    char absolute[PATH_MAX];
    struct block *disk;
    look.readonly = true;
    int result = block_find_format(base, options->format, &look.format, err);
    if (result < 0)
        return result;
    result = block_open(base, &look, &disk, err);
    if (result < 0)
        return result;
    create.backing_format = block_formats[look.format];
    create.size = create.backing_size = disk->info.size;
    block_close(disk);
    /* The new disk has no directory from which a path could be seen. */
    if (look.format != BLOCK_FORMAT_NBD) {
        if (realpath(base, absolute) == NULL)
            return error_set_errno(err, -errno, "%s", base);
        create.backing_path = absolute;
    }
    result = nameless_create(file, err);
    return result == 0 ? format(file->path, &create, err) : result;
}

/* ---- In a VM's directory ---- */

static int copy(const char *from, const char *to, struct error *err) {
    const char *const argv[] = {"cp", "--reflink=auto", "--sparse=always", from, to, NULL};
    return program_run(&(struct program){.argv = argv}, err);
}

static int link_image(const struct disk_image *image, const char *directory, struct error *err) {
    static const char *const names[] = {"disk.raw", "vmlinuz", "initrd", "image.json"};
    char from[PATH_MAX], to[PATH_MAX], source[PATH_MAX];
    int result = images_path(image->name, source, err);
    for (size_t i = 0; i < sizeof names / sizeof names[0] && result == 0; i++) {
        result = path_join(from, source, names[i], err);
        if (result == 0)
            result = path_join(to, directory, names[i], err);
        if (result == 0 && link(from, to) < 0)
            result = errno == EXDEV || errno == EPERM || errno == EMLINK
                         ? copy(from, to, err)
                         : error_set_errno(err, -errno, "%s", to);
    }
    return result;
}

int overlay_keep(const struct disk_image *image, const char *directory, struct error *err) {
    char links[PATH_MAX], disk[PATH_MAX];
    int result = path_join(links, directory, "image", err);
    if (result == 0)
        result = make_directories(links, err);
    if (result == 0)
        result = link_image(image, links, err);
    if (result == 0)
        result = path_join(disk, directory, "disk.lodge", err);
    if (result < 0)
        return result;
    int fd = open(disk, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set_errno(err, -errno, "%s", disk);
    close(fd);
    struct disk_create create = {.size = image->size,
                                 .backing_path = "image/disk.raw",
                                 .backing_format = "raw",
                                 .backing_size = image->size};
    return format(disk, &create, err);
}

int overlay_find(const char *directory, struct disk_image *image, char disk[PATH_MAX],
                 struct error *err) {
    char links[PATH_MAX];
    int result = path_join(links, directory, "image", err);
    if (result == 0)
        result = path_join(disk, directory, "disk.lodge", err);
    return result == 0 ? image_open(links, image, err) : result;
}
