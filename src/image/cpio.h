/*
 * Writes cpio archives in the "newc" format, as Linux's initramfs wants them
 * (Documentation/driver-api/early-userspace/buffer-format.rst). Owner is
 * always root, times are zero: the same contents give the same bytes.
 */
#ifndef LODGE_IMAGE_CPIO_H
#define LODGE_IMAGE_CPIO_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

struct cpio {
    FILE *file;
    uint64_t offset;
    uint32_t inode;
};

/* path is without a leading slash; modes hold permissions only. All: -EIO, -ENOSPC … of the file.
 */
int cpio_directory(struct cpio *cpio, const char *path, unsigned mode, struct error *err);
int cpio_symlink(struct cpio *cpio, const char *path, const char *target, struct error *err);
int cpio_device(struct cpio *cpio, const char *path, unsigned mode, unsigned major, unsigned minor,
                struct error *err);
int cpio_data(struct cpio *cpio, const char *path, unsigned mode, const void *data, size_t length,
              struct error *err);
/* A copy of the host's file `from`. */
int cpio_file(struct cpio *cpio, const char *path, unsigned mode, const char *from,
              struct error *err);
/* Writes the trailer and flushes; the file stays open. */
int cpio_finish(struct cpio *cpio, struct error *err);

#endif
