/*
 * An NVM Express 1.4 controller as a PCI function: an admin and 16 I/O queue
 * pairs, MSI-X or INTx, PRPs and SGLs, one namespace a disk, shadow doorbells.
 *
 * Threads: commands are fetched on the thread that rang the doorbell (short
 * work is done there), or, once the driver keeps several in flight and tells
 * of them in memory (shadow doorbells), on the loop; completions of what the
 * back end did not finish at once come on its threads. device.lock guards all.
 */
#ifndef LODGE_NVME_NVME_H
#define LODGE_NVME_NVME_H

#include "block/block.h"
#include "device/device.h"

enum { NVME_NAMESPACES_MAX = 16 };

struct nvme_config {
    /* Namespace n+1 is blocks[n]; they stay the caller's, closed after the device is destroyed. */
    struct block *blocks[NVME_NAMESPACES_MAX];
    unsigned count;
    const char *serial; /* copied, cut at 20 bytes; NULL: the device's name */
    int slot;           /* PCI slot + 1; 0: the next free one */
    /* Writes to registers arrive some time after the driver has made them: where it shares
     * doorbells in memory, only those count. */
    bool late;
    bool write_through; /* writes are on stable storage when they complete: no write cache */
    /* nvme_journal_size() bytes in which the controller keeps what it needs to go on in another
     * process, whenever this one ends (journal.c); NULL: none. All zero: it begins anew. Else it
     * begins, paused, where the predecessor was. */
    struct nvme_journal *journal;
};
size_t nvme_journal_size(void);

/* config is struct nvme_config. */
extern const struct device_class nvme_class;

/* Fetches nothing more, waits for what is in flight: guest memory can change hands. Not from a
 * completion; no lock held. */
void nvme_pause(struct device *device);
/* Goes on; after a predecessor's end with the commands that it had in flight. The guest's memory
 * and interrupts are there. */
void nvme_resume(struct device *device);

/* Counted since the device was made; any thread. */
struct nvme_counters {
    uint64_t doorbells;  /* exits: register writes by which the driver told of queue progress */
    uint64_t registers;  /* exits: accesses to all other registers */
    uint64_t fetched;    /* commands taken off their queues */
    uint64_t commands;   /* I/O commands completed */
    uint64_t bytes;      /* that they transferred */
    uint64_t interrupts; /* MSI-X messages, and INTx assertions */
    uint64_t polls;      /* times the loop looked at shadow doorbells */
};
void nvme_count(struct device *device, struct nvme_counters *counters);

#endif
