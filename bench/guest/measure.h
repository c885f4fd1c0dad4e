/*
 * What one operation costs, in cycles of the time-stamp counter. For a reader on the other side of
 * a serial line that also reads the monitor's own counters:
 *
 *     < NAME
 *     > NAME CYCLES OPERATIONS
 *     = NAME CYCLES OPERATIONS
 *
 * Around what is counted nothing happens for a quarter of a second, on the same instructions again
 * and again: time to read the counters before (after "<") and after (">"). "=" is the best of
 * several further runs, and the result.
 *
 * The includer defines `static void say(const char *kind, const char *name, uint64_t cycles,
 * uint64_t operations)`.
 */
#ifndef BENCH_MEASURE_H
#define BENCH_MEASURE_H

#include <stdint.h>

struct cost {
    const char *name;
    void (*run)(uint64_t operations);
};

static inline uint64_t time_stamp(void) {
    uint32_t low, high;
    __asm__ volatile("rdtscp" : "=a"(low), "=d"(high)::"rcx", "memory");
    return (uint64_t)high << 32 | low;
}

static void say(const char *kind, const char *name, uint64_t cycles, uint64_t operations);

static void be_quiet(void) {
    enum { QUIET_CYCLES = 600 * 1000 * 1000, CHUNK = 4 * 1000 * 1000 };
    uint64_t start = time_stamp();
    while (time_stamp() - start < QUIET_CYCLES) {
        uint64_t n = CHUNK;
        __asm__ volatile("1: dec %0; jnz 1b" : "+r"(n)::"cc");
    }
}

static uint64_t cycles_of(const struct cost *cost, uint64_t n) {
    uint64_t start = time_stamp();
    cost->run(n);
    return time_stamp() - start;
}

/* How many operations take long enough: found by the shortest of runs, because others may have run
 * on this processor meanwhile. */
static uint64_t operations_wanted(const struct cost *cost) {
    enum { WANTED = 60 * 1000 * 1000, GROWTH = 8 };
    for (uint64_t n = 16;;) {
        uint64_t cycles = cycles_of(cost, n), again = cycles;
        if (cycles >= WANTED / 2)
            again = cycles_of(cost, n);
        if (again >= WANTED / 2)
            return n;
        uint64_t factor = WANTED / (again + 1);
        n *= factor < 2 ? 2 : factor > GROWTH ? GROWTH : factor;
    }
}

static void measure(const struct cost *cost) {
    enum { BEST_OF = 5 };
    uint64_t best = UINT64_MAX, n = operations_wanted(cost);
    say("<", cost->name, 0, 0);
    be_quiet();
    uint64_t cycles = cycles_of(cost, n);
    say(">", cost->name, cycles, n);
    be_quiet();
    for (int i = 0; i < BEST_OF; i++) {
        cycles = cycles_of(cost, n);
        best = cycles < best ? cycles : best;
    }
    say("=", cost->name, best, n);
}

#endif
