/* How long things took: counts in buckets of an eighth of a power of two, from 1 µs to 1000 s. */
#ifndef LODGE_BLOCK_HISTOGRAM_H
#define LODGE_BLOCK_HISTOGRAM_H

#include <stdint.h>

enum { HISTOGRAM_BUCKETS = 240 };

struct histogram {
    uint64_t count;
    uint32_t buckets[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *histogram, uint64_t ns);
/* Where a bucket ends, in nanoseconds. */
uint64_t histogram_end_ns(unsigned bucket);
/* So many of a thousand took no longer; 0: there are none. */
uint64_t histogram_quantile_ns(const struct histogram *histogram, unsigned per_mille);

#endif
