/*
 * Memory made ready ahead: what a guest is about to touch for the first time.
 *
 * The first touch of a huge page behind RAM waits while the host finds and
 * clears 2 MiB, and much longer on a host that is a virtual machine itself
 * and has given its free memory back (docs/performance.md). Guests take fresh
 * memory in streaks. Once one does, a thread of low priority touches the
 * chunks (2 MiB) that come next, so that they are there when the guest comes.
 *
 * It touches by an atomic OR of nothing: no byte changes, whoever writes at
 * the same time. What is ready and has not been needed is bounded, by a share
 * of the VM's memory and by AHEAD_MOST: so much more of the host's memory a VM
 * can cost by this. Nothing is made ready while the host or its
 * control group is short of memory, nor where the host gives no huge pages.
 *
 * Only RAM of the VM's own takes part: not pluggable regions, the host's pool
 * of huge pages, or images that are mapped, whose pages many share.
 */
#ifndef LODGE_MEMORY_AHEAD_H
#define LODGE_MEMORY_AHEAD_H

#include "memory/memory.h"

#define AHEAD_MOST (UINT64_C(32) << 20)
enum { AHEAD_SHARE = 16 };

/* Begins, for the RAM that has been added; the thread comes with the first touch. Assembly only.
 * Quietly nothing where it cannot be: it is no more than speed. */
void memory_ahead_start(struct memory *memory);

/* No more for this memory; waits for the chunk that is being touched. Any thread that holds no
 * lock, any number of times, also before it began. */
void memory_ahead_stop(struct memory *memory);

/*
 * These bytes are sure to be touched soon, by a boot loader or the kernel that it starts: made
 * ready before all else, as far as AHEAD_EXPECTED_MOST and two such ranges go. They cost the host
 * nothing that it would not give anyway, so they count as touched. Any thread.
 */
#define AHEAD_EXPECTED_MOST (UINT64_C(64) << 20)
void memory_ahead_expect(struct memory *memory, uint64_t gpa, uint64_t size);

/* A vCPU or device is about to touch this chunk, which mem_page.fresh says is fresh. Any thread. */
void memory_ahead_touched(struct memory *memory, uint64_t gpa);

struct memory_ahead_counts {
    uint64_t made;    /* chunks touched ahead */
    uint64_t met;     /* of those, touched by the guest later */
    uint64_t refused; /* for which the host had no huge page */
    uint64_t fresh;   /* chunks that the guest touched first */
    uint64_t ready;   /* made, and not yet met or given back: now */
};
void memory_ahead_counts(struct memory *memory, struct memory_ahead_counts *counts);

#endif
