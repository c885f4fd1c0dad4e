/*
 * Memory device (virtio 1.2, section 5.15): a region of the guest-physical
 * address space in which memory comes and goes by blocks of 2 MiB. lodge says
 * how much is to be there, the driver chooses which blocks. A block that is
 * not plugged is an address that nobody has: reads answer all-ones, writes go
 * nowhere (UNPLUGGED_INACCESSIBLE is offered), and no host memory is behind
 * it. A new block reads as zero.
 *
 * A reset of the device by its driver leaves the blocks, one of the machine
 * takes them all (5.15.5); what is to be there stays then.
 */
#ifndef LODGE_VIRTIO_MEM_H
#define LODGE_VIRTIO_MEM_H

#include "base/bytes.h"
#include "virtio/virtio.h"

#define VIRTIO_MEM_BLOCK      MIB(2)
#define VIRTIO_MEM_REGION_MAX GIB(256)

struct virtio_mem_config {
    struct virtio_options options;
    /* The region, which is pluggable in the machine's memory: multiples of VIRTIO_MEM_BLOCK. */
    uint64_t gpa, size;
};

/* config is struct virtio_mem_config. */
extern const struct device_class virtio_mem_class;

struct mem_report {
    bool driver;                 /* one is there */
    uint64_t requested, plugged; /* bytes */
};

/* Any thread; no lock of the device is held. */
void virtio_mem_report(struct device *device, struct mem_report *report);
/* Bytes, a multiple of VIRTIO_MEM_BLOCK, at most the region. The driver is told. */
void virtio_mem_request(struct device *device, uint64_t bytes);

/* As virtio_balloon_listen. */
void virtio_mem_listen(struct device *device, void (*changed)(void *context), void *context);

#endif
