/*
 * The default guest: Debian's packaged cloud kernel, busybox, the modules a
 * lodge machine has devices for, and lodge-agent as init. Fetched with apt and
 * put together on first use, without root, in a cache:
 *
 *     $LODGE_CACHE, or the source tree's .cache/lodge when lodge runs from its
 *     build directory, or $XDG_CACHE_HOME/lodge, or ~/.cache/lodge
 *         debs/           the packages
 *         default/KEY/    vmlinuz and initrd.cpio; KEY names all versions
 *         default/current a symbolic link to the one in use
 *
 * One assembly at a time: the cache directory is locked. A directory under default/ is complete or
 * not there at all: it is made under another name and renamed. Progress goes to standard error.
 *
 * Errors: -EINTR when SIGINT or SIGTERM came (nothing is left half-made),
 * -ENOSPC, -EROFS, -EACCES … of the cache, -ENOENT when apt does not know the
 * packages, -ECHILD when a program that it needs fails.
 *
 * One thread; not while a machine runs.
 */
#ifndef LODGE_IMAGE_IMAGE_H
#define LODGE_IMAGE_IMAGE_H

#include <limits.h>
#include <stdbool.h>

#include "base/error.h"

struct image_default {
    char kernel[PATH_MAX], initrd[PATH_MAX];
    char version[128]; /* of the kernel package */
};

/* Finds the default guest, assembling it if need be. refresh: asks apt for newer packages first. */
int image_default(bool refresh, struct image_default *image, struct error *err);

/* After -EINTR: the signal that came. */
int image_interrupted(void);

/* Where the cache is. The directory need not be there yet. */
int image_cache_path(char path[PATH_MAX], struct error *err);

#endif
