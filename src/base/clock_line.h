/*
 * What a VM's clock shows, as a line over the host's counter: the guest's TSC
 * is `guest` at the count `host`, and goes on by `rate` for `span` counts.
 * Beyond (before, too: the difference has no sign) base/clock.c is asked,
 * which makes the next line. There is one for all readers, which are C and,
 * where the counter is the host's TSC, translated code (cpu/soft/jit).
 *
 * A sequence lock without odd numbers: who reads takes `done` first and
 * `begun` last; when they differ, the line was being changed. The counter is
 * read in between, and it is read for a new line after `begun` has changed:
 * what anybody has read by the old line is therefore not later than where
 * the new one begins.
 */
#ifndef LODGE_BASE_CLOCK_LINE_H
#define LODGE_BASE_CLOCK_LINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* rate: guest ticks per count, below 2^12; counts are below 2^CLOCK_LINE_SHIFT. */
enum { CLOCK_LINE_SHIFT = 52 };

struct clock_line {
    _Atomic(uint64_t) done; /* changes that are complete */
    _Atomic(uint64_t) host, span, rate, guest;
    _Atomic(uint64_t) begun; /* changes */
} __attribute__((aligned(64)));

/* Before the counter is read. */
static inline uint64_t clock_line_begin(const struct clock_line *line) {
    return atomic_load_explicit(&line->done, memory_order_acquire);
}

static inline uint64_t clock_line_advance(uint64_t counts, uint64_t rate) {
    return (uint64_t)((unsigned __int128)counts * rate >> CLOCK_LINE_SHIFT);
}

/* The guest's TSC at that count. False: the line does not hold there, or is being changed. */
static inline bool clock_line_at(const struct clock_line *line, uint64_t begin, uint64_t count,
                                 uint64_t *tsc) {
    uint64_t counts = count - atomic_load_explicit(&line->host, memory_order_acquire);
    uint64_t span = atomic_load_explicit(&line->span, memory_order_acquire);
    uint64_t rate = atomic_load_explicit(&line->rate, memory_order_acquire);
    uint64_t guest = atomic_load_explicit(&line->guest, memory_order_acquire);
    *tsc = guest + clock_line_advance(counts, rate);
    return counts < span && atomic_load_explicit(&line->begun, memory_order_acquire) == begin;
}

#if defined(__x86_64__)
/* The host's TSC, after all loads before it and before all behind it. */
static inline uint64_t clock_line_host_tsc(void) {
    uint32_t low, high;
    __asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}
#endif

#endif
