/*
 * Memory that comes when it is touched. Pages of RAM may be *away*: dropped
 * here, their contents with a source (a file that they were paged out to, the
 * host that a VM is being moved from). Whoever touches one stands still,
 * in the kernel (userfaultfd, Linux's Documentation/admin-guide/mm/
 * userfaultfd.rst), until the source has supplied it.
 *
 * A thread of this room hears of the touches and asks the source. Nothing else
 * that lodge does is needed for that: not the loop, no lock of a device's or
 * machine's. A source keeps to the same, or it waits for itself.
 *
 * A thread that stands still is one in a fault: signals reach it, its guest's
 * vCPU is not parked before the page has come. Who must not stand still asks
 * first (memory_is_here) and has himself told (memory_await). virtio queues do
 * (virtio/queue.h); NVMe does not, the vCPU that rings its doorbell waits.
 *
 * Kernel accesses (read, io_uring, O_DIRECT into guest memory) may end with
 * EFAULT at a page that is away, where the host lets unprivileged users have
 * no more: memory_map therefore touches what it hands out, and pages go away
 * only while devices are quiet.
 *
 * Dirty flags, code watches and translations stay as they are when a page goes
 * and comes: its contents do not change. memory_discard and memory_plug of
 * pages that are away forget the source's copy; they read as zeros.
 */
#ifndef LODGE_MEMORY_MISSING_H
#define LODGE_MEMORY_MISSING_H

#include "memory/memory.h"

struct missing_source {
    /*
     * The page at gpa is wanted; `waits`: somebody stands still for it, else it is asked for ahead.
     * Called once for a page, perhaps again with `waits`. The source answers with memory_supply, at
     * once or later, on any thread; with more than was asked for if it likes. On this room's
     * thread, no lock held. It does not stay long: others' touches come after.
     */
    void (*want)(void *context, uint64_t gpa, bool waits);
    void *context;
};

/*
 * Pages may go away from now on; until memory_take nothing is. `kernel`: touches by the kernel
 * (KVM's guest) must stand still as well. Control thread, as are all calls below that do not say
 * otherwise. -EBUSY: a source is there already; -ENOTSUP: RAM that is shared with device servers,
 * mapped from a snapshot or in huge pages of the host's pool; -EPERM: `kernel`, and the host does
 * not let this user.
 */
int memory_missing_begin(struct memory *memory, const struct missing_source *source, bool kernel,
                         struct error *err);

/* Whether memory_missing_begin would go well: its errors but -EBUSY. */
int memory_missing_check(const struct memory *memory, bool kernel, struct error *err);

/*
 * Pages of RAM, in whole: dropped here, the source has them. No vCPU runs and devices are quiet,
 * or have never run. -EFAULT: not all of it RAM.
 */
int memory_take(struct memory *memory, uint64_t gpa, uint64_t size);

/*
 * Whole pages come: their bytes, or zeros (NULL). Those that are not away (any more) are left as
 * they are. Returns the bytes that came. Any thread, also within want().
 */
uint64_t memory_supply(struct memory *memory, uint64_t gpa, const void *bytes, uint64_t size);

/* The source cannot bring a page that it was asked for now. It is asked again in a second, or when
 * somebody else touches the page. Any thread, also within want(). */
void memory_supply_later(struct memory *memory, uint64_t gpa);

/* No page is away any more: touches need nobody from now on. -EBUSY: some are. */
int memory_missing_end(struct memory *memory);

/*
 * The VM ends, or its source is gone for good: who stands still goes on and sees zeros, and the
 * gate refuses everything from now on, so that nothing that a guest makes of them leaves the VM.
 * vCPUs have been kicked. Nothing happens when nothing is away. Any thread.
 */
void memory_missing_lose(struct memory *memory);

/* Asks for pages that are away by and by, `depth` at a time; 0: no longer. */
void memory_prefetch(struct memory *memory, unsigned depth);

struct missing_counters {
    uint64_t away;     /* bytes, now */
    uint64_t faults;   /* touches that stood still */
    uint64_t ahead;    /* pages asked for before they were touched */
    uint64_t supplied; /* pages that came */
};
/* Any thread; all 0 before memory_missing_begin. */
void memory_missing_count(const struct memory *memory, struct missing_counters *counters);

/* ---- Who must not stand still: any thread ---- */

/* True: no page of [gpa, gpa+length) is away. Cheap. What is no RAM is not away. False also for a
 * moment after one has come. */
bool memory_is_here(const struct memory *memory, uint64_t gpa, uint64_t length);

/* True: some page somewhere is. Cheaper. */
bool memory_any_away(const struct memory *memory);

/* Asks for what of it is away, without waiting. */
void memory_ask(struct memory *memory, uint64_t gpa, uint64_t length);

/*
 * One who wants to hear. The caller's object; zeroed before its first use.
 * here: the page has come (or memory was lost). On any thread, with this room's lock held: it posts
 * to a loop and does nothing else.
 */
struct memory_wait {
    void (*here)(void *context);
    void *context;
    /* The room's. */
    struct memory_wait *next;
    uint64_t page;
    bool armed;
};

/*
 * As memory_ask, and calls wait->here once, when the first page of the range that is away has come.
 * False: it is all here, nobody will be called. Armed already: it moves.
 */
bool memory_await(struct memory *memory, uint64_t gpa, uint64_t length, struct memory_wait *wait);
/* It is not called any more when this returns. */
void memory_await_cancel(struct memory *memory, struct memory_wait *wait);

#endif
