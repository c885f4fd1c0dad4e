#include "block/histogram.h"

enum { FIRST = 10 }; /* the first bucket holds all below 2^10 ns and an eighth more */

static unsigned bucket_of(uint64_t ns) {
    if (ns < UINT64_C(1) << FIRST)
        return 0;
    unsigned power = 63 - (unsigned)__builtin_clzll(ns);
    unsigned bucket = (power - FIRST) * 8 + (unsigned)(ns >> (power - 3) & 7);
    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

uint64_t histogram_end_ns(unsigned bucket) {
    unsigned power = bucket / 8 + FIRST;
    return (UINT64_C(9) + bucket % 8) << (power - 3);
}

void histogram_add(struct histogram *histogram, uint64_t ns) {
    histogram->count++;
    histogram->buckets[bucket_of(ns)]++;
}

uint64_t histogram_quantile_ns(const struct histogram *histogram, unsigned per_mille) {
    uint64_t wanted = (histogram->count * per_mille + 999) / 1000, seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS && wanted > 0; i++) {
        seen += histogram->buckets[i];
        if (seen >= wanted)
            return histogram_end_ns(i);
    }
    return 0;
}
