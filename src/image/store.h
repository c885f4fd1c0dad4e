/*
 * Images: bootable disks under a name, made by `lodge image build`, in the cache (image.h):
 *
 *     images/NAME/        disk.raw, vmlinuz, initrd, image.json
 *     images/.base/KEY.tar  the packages of the last builds, unpacked and configured
 *     images/.work/       what is being made
 *
 * A directory without a dot is whole or not there: it is made in .work and renamed. Nothing
 * changes an image once it is made; machines write to disks on top of it (image/overlay.h).
 * A VM that lasts holds the disk by a link of its own, so that images can be replaced and removed
 * at any time.
 *
 * Builds take turns by a lock. Progress goes to standard error. SIGINT and SIGTERM end a build
 * with -EINTR (image_interrupted tells which).
 *
 * One thread; not while a machine runs.
 */
#ifndef LODGE_IMAGE_STORE_H
#define LODGE_IMAGE_STORE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { IMAGE_NAME_MAX = 32, IMAGE_INCLUDES_MAX = 64 };

#define IMAGE_SIZE_DEFAULT (UINT64_C(8) << 30)
#define IMAGE_SIZE_MIN     (UINT64_C(1) << 30)

struct disk_image {
    char name[IMAGE_NAME_MAX + 1];
    char disk[PATH_MAX], kernel[PATH_MAX], initrd[PATH_MAX];
    char suite[64], key[32], release[128]; /* Debian's; what it was made from; the kernel's */
    char root[48];                         /* the root file system's UUID */
    uint64_t size, used;                   /* bytes: of the disk, of the host's file system */
    int64_t made;                          /* seconds since 1970 */
};

/* Letters, digits, '.', '_' and '-', the first a letter or digit. -EINVAL. */
int image_name_check(const char *name, struct error *err);

/* -ENOENT, -EPROTO: not as lodge makes it. */
int image_find(const char *name, struct disk_image *image, struct error *err);
/* The image whose files are in a directory; its name is left as it is. */
int image_open(const char *directory, struct disk_image *image, struct error *err);
/* image_find; "debian" is built when it is not there. */
int image_find_or_build(const char *name, struct disk_image *image, struct error *err);
/* All, by name; to be freed. Broken ones are left out. */
int image_list(struct disk_image **images, size_t *count, struct error *err);
/* -ENOENT. */
int image_remove(const char *name, struct error *err);

struct image_recipe {
    const char *name;   /* NULL: "debian", with "-SUITE" for suites that are not the default */
    const char *suite;  /* NULL: the default */
    const char *mirror; /* an apt source's address; NULL: Debian's own */
    uint64_t size;      /* of the disk; 0: the default */
    const char *includes[IMAGE_INCLUDES_MAX]; /* more packages */
    unsigned include_count;
};

/*
 * Makes a Debian, unless one of that name is there that has been made from the same package
 * versions, size and lodge-agent. Prints the image's name when it is there.
 * -EINVAL: the recipe; -ENOENT: a program is not installed; -ENOSPC; -ECHILD: a step failed.
 */
int image_build(const struct image_recipe *recipe, struct disk_image *image, struct error *err);

#endif
