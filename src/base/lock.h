/*
 * Locks with a declared order: the one place that says which lock may be
 * taken while which is held. A thread may only take a lock of a higher rank
 * than all it holds. Debug builds (LODGE_DEBUG) check it and end the process
 * with both names: that is a bug of lodge's, never something a guest causes.
 */
#ifndef LODGE_BASE_LOCK_H
#define LODGE_BASE_LOCK_H

#include <pthread.h>

/* Lowest first: taken first. */
enum lock_rank {
    LOCK_MACHINE, /* life cycle of a VM: run, pause, stop */
    LOCK_DEVICE,  /* one device's registers and queues */
    LOCK_PCI,     /* config space, BAR map, MSI-X tables */
    LOCK_BACKEND, /* a block, net or character back end */
    LOCK_IRQCHIP, /* 8259 pair and I/O APIC */
    LOCK_LAPIC,   /* one local APIC's timer and delivery state */
    LOCK_MEMORY,  /* the region table, views */
    LOCK_MISSING, /* which pages are away */
    LOCK_AHEAD,   /* memory made ready ahead */
    LOCK_VCPU,    /* a vCPU's wake-up condition */
    LOCK_CLOCK,   /* the VM's clock and its list of timers */
    LOCK_LOOP,    /* the event loop's list of posted calls, timers */
    LOCK_LOG,     /* the last: anybody may log */
};

struct lock {
    pthread_mutex_t mutex;
    enum lock_rank rank;
    const char *name;
};

void lock_init(struct lock *lock, enum lock_rank rank, const char *name);
void lock_destroy(struct lock *lock);
void lock_take(struct lock *lock);
void lock_release(struct lock *lock);

#endif
