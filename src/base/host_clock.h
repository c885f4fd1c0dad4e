/*
 * The host's time, for base/clock.c: its monotonic clock, and a counter that
 * is quick to read. That is the TSC where the host's kernel itself keeps time
 * by it, which says that it runs evenly, never stops, and is the same on all
 * processors; elsewhere it is the monotonic clock. Any thread.
 */
#ifndef LODGE_BASE_HOST_CLOCK_H
#define LODGE_BASE_HOST_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

/* host_clock_ns is in base/clock.h. */

bool host_counts_tsc(void);
uint64_t host_count(void);
/* Counts a second, about. */
uint64_t host_count_hz(void);

/* The frequency of the host's TSC, whether or not it counts. Measured once a process where the
 * processor does not tell. */
uint64_t host_tsc_hz(void);
/* Before that is asked for the first time: measuring it takes 10 ms, so it is kept in this file for
 * other processes until the host boots again. */
void host_tsc_hz_keep(const char *path);

/* Both at one moment: `width` counts passed while they were read. */
struct host_sample {
    uint64_t count, ns, width;
};
struct host_sample host_sample(void);

#endif
