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

/* `base` as it stands in the new disk's header. */
static int format_on(const char *path, const char *base, uint64_t size, struct error *err) {
    struct raw_config raw = {.growable = true};
    struct disk_create create = {
        .size = size, .backing_path = base, .backing_format = "raw", .backing_size = size};
    struct block *file;
    if (getrandom(create.uuid, sizeof create.uuid, 0) != (ssize_t)sizeof create.uuid)
        return error_set_errno(err, -errno, "getrandom");
    int result = block_open_file(path, &raw, &file, err);
    if (result != 0)
        return result;
    result = disk_format(file, &create, err);
    if (result == 0 && (result = block_flush(file)) != 0)
        error_set_errno(err, result, "cannot write %s", path);
    block_close(file);
    return result;
}

int overlay_temporary(const struct disk_image *image, struct nameless *file, struct error *err) {
    char path[PATH_MAX];
    int result = images_path(".run-XXXXXX", path, err);
    if (result < 0)
        return result;
    file->fd = mkostemp(path, O_CLOEXEC);
    if (file->fd < 0)
        return error_set_errno(err, -errno, "%s", path);
    unlink(path);
    snprintf(file->path, sizeof file->path, "/proc/self/fd/%d", file->fd);
    return format_on(file->path, image->disk, image->size, err);
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
    return format_on(disk, "image/disk.raw", image->size, err);
}

int overlay_find(const char *directory, struct disk_image *image, char disk[PATH_MAX],
                 struct error *err) {
    char links[PATH_MAX];
    int result = path_join(links, directory, "image", err);
    if (result == 0)
        result = path_join(disk, directory, "disk.lodge", err);
    return result == 0 ? image_open(links, image, err) : result;
}
