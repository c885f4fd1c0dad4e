/*
 * File system device (virtio 1.2, section 5.11): a directory of the host,
 * shared by fs/fs.h. `mount -t virtiofs TAG DIRECTORY` in the guest.
 *
 * Requests wait for the host's file system on workers, up to
 * VIRTIO_FS_WORKERS at a time. What the guest was told of the directory (its
 * nodes, what it has open) is not in the state table: it consists of
 * descriptors of this process. A machine with volumes can be reset, but not
 * saved and loaded elsewhere.
 */
#ifndef LODGE_VIRTIO_FS_H
#define LODGE_VIRTIO_FS_H

#include "fs/fs.h"
#include "virtio/virtio.h"

enum { VIRTIO_FS_TAG_MAX = 36, VIRTIO_FS_WORKERS = 4 };

struct virtio_fs_config {
    struct virtio_options options;
    struct fs *fs;   /* stays the caller's; closed after the device is destroyed */
    const char *tag; /* copied; up to VIRTIO_FS_TAG_MAX bytes */
};

/* config is struct virtio_fs_config. */
extern const struct device_class virtio_fs_class;

#endif
