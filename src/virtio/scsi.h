/*
 * SCSI host (virtio 1.2, section 5.6) with one target: a CD-ROM drive with a
 * disc in it, at target 0, unit 0. Linux shows it as /dev/sr0.
 */
#ifndef LODGE_VIRTIO_SCSI_H
#define LODGE_VIRTIO_SCSI_H

#include "block/block.h"
#include "virtio/virtio.h"

struct virtio_scsi_config {
    struct virtio_options options;
    struct block *disc; /* only read; stays the caller's, closed after the device is destroyed */
};

/* config is struct virtio_scsi_config. */
extern const struct device_class virtio_scsi_class;

#endif
