/*
 * Block device (virtio 1.2, section 5.2): read, write, flush, discard, write
 * zeroes, serial number. Up to four queues: a request that the back end has
 * at once is answered by an interrupt to the processor that made it, where
 * one queue for all has to wake whichever its interrupt belongs to, and that
 * one the other.
 */
#ifndef LODGE_VIRTIO_BLK_H
#define LODGE_VIRTIO_BLK_H

#include "block/block.h"
#include "virtio/virtio.h"

enum { VIRTIO_BLK_SERIAL_MAX = 20 };

struct virtio_blk_config {
    struct virtio_options options;
    struct block *block; /* stays the caller's; closed after the device is destroyed */
    unsigned queues;     /* offered, as far as there are so many; 0: one */
    const char *serial;  /* copied, cut at 20 bytes; NULL: the device's name */
};

/* config is struct virtio_blk_config. */
extern const struct device_class virtio_blk_class;

#endif
