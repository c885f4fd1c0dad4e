/*
 * Memory balloon (virtio 1.2, section 5.5): the guest gives memory up, and
 * gets it back.
 *
 * Ballooning: lodge sets how much the guest is to give up; the driver tells
 * which pages it took for that, and may take them back without asking: lodge
 * discards what is told and does nothing when it is taken back. Under pressure
 * the driver takes pages back by itself (DEFLATE_ON_OOM).
 *
 * Free page reporting: the driver tells of memory that lies idle, which is
 * discarded until the guest touches it. That costs nothing while nothing is
 * freed.
 *
 * Whatever the driver tells, at most guest RAM is lost to the guest: see
 * memory_discard. Free page hinting is not offered: it is for migration.
 */
#ifndef LODGE_VIRTIO_BALLOON_H
#define LODGE_VIRTIO_BALLOON_H

#include "virtio/virtio.h"

/* What the guest tells of itself: 5.5.6.4, by its tag. */
enum balloon_statistic {
    BALLOON_SWAP_IN, /* bytes */
    BALLOON_SWAP_OUT,
    BALLOON_MAJOR_FAULTS,
    BALLOON_MINOR_FAULTS,
    BALLOON_FREE, /* bytes, as the next three */
    BALLOON_TOTAL,
    BALLOON_AVAILABLE,
    BALLOON_CACHES,
    BALLOON_HUGETLB_ALLOCATED,
    BALLOON_HUGETLB_FAILED,
    BALLOON_STATISTICS
};

struct virtio_balloon_config {
    struct virtio_options options;
    bool no_reports; /* what is discarded stays the VM's: free page reporting is not offered */
};

/* config is struct virtio_balloon_config. */
extern const struct device_class virtio_balloon_class;

struct balloon_report {
    bool driver;       /* one is there */
    uint64_t target;   /* bytes that the guest is to give up, */
    uint64_t actual;   /* and has given up, as it says */
    uint64_t returned; /* bytes discarded since the machine was made */
    bool known;        /* the guest has sent statistics, */
    uint64_t known_ns; /* at this host time */
    unsigned present;  /* bit n: statistic n is among them */
    uint64_t statistics[BALLOON_STATISTICS];
};

/* Any thread; no lock of the device is held. */
void virtio_balloon_report(struct device *device, struct balloon_report *report);
/* Bytes, rounded down to 4 KiB. The driver is told. */
void virtio_balloon_set_target(struct device *device, uint64_t bytes);
/* Asks for statistics. False: no driver is there, or it has not answered the last time. */
bool virtio_balloon_ask(struct device *device);

/*
 * Who hears that the report has changed (news: statistics have come). One listener, NULL takes it
 * away. Called on a vCPU's thread or the loop's with the device's lock held.
 */
void virtio_balloon_listen(struct device *device, void (*changed)(void *context, bool news),
                           void *context);

#endif
