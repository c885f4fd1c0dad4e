/*
 * Who the guest is and where: a page that guests only read, outside of RAM, so
 * that nothing of it is in a saved memory, and at the same place whoever
 * boots them.
 *
 *     0   the generation id, 16 bytes as a GUID (its first three numbers little-endian): another
 *         one whenever the guest goes on from something that may go on more than once: a snapshot
 *         that was restored, a clone. It stays over reboots, pauses and moves.
 *     16  the host's id, a GUID likewise: another one on another host
 *     32  how many events (below) there were, 64 bits
 *
 * ACPI tells where it is (machine/acpi_dsdt.c) and notifies of changes. Source of the first:
 * Microsoft, "Virtual Machine Generation ID" (2012).
 *
 * The last events are kept, so that an agent that was away when they came hears of each, once.
 */
#ifndef LODGE_DEVICE_IDENTITY_H
#define LODGE_DEVICE_IDENTITY_H

#include "base/uuid.h"
#include "device/device.h"

enum identity_kind { IDENTITY_RESTORED = 1, IDENTITY_CLONED, IDENTITY_MOVED };
enum { IDENTITY_HOST_AT = 16, IDENTITY_EVENTS_MAX = 16 };

struct identity_config {
    uint64_t base; /* a page */
    uint8_t generation[UUID_SIZE], host[UUID_SIZE];
};

extern const struct device_class identity_class;

/* What there was, with the ids from then on. */
struct identity_event {
    uint64_t number;       /* from 1, in the guest's own life: a restored one has counted so far */
    uint64_t wall_seconds; /* the guest's wall clock */
    uint32_t kind;
    uint8_t generation[UUID_SIZE], host[UUID_SIZE];
};

struct identity {
    uint8_t generation[UUID_SIZE], host[UUID_SIZE];
    uint64_t events; /* so many so far; the last IDENTITY_EVENTS_MAX are kept */
};

/* Any thread. */
void identity_get(struct device *device, struct identity *identity);
/* The nth event. False: it is not kept any more, or has not come. */
bool identity_get_event(struct device *device, uint64_t number, struct identity_event *event);
/* Something has happened: number is filled in. The general-purpose event is the caller's to raise.
 */
void identity_add_event(struct device *device, const struct identity_event *event);

#endif
