#include "block/meter.h"

#include <stddef.h>

#include "base/clock.h"

const char *const block_limit_names[BLOCK_LIMITS + 1] = {
    "iops", "read-iops", "write-iops", "bps", "read-bps", "write-bps", NULL};

static bool applies(unsigned limit, bool write) {
    switch (limit) {
    case LIMIT_READ_IOPS:
    case LIMIT_READ_BPS: return !write;
    case LIMIT_WRITE_IOPS:
    case LIMIT_WRITE_BPS: return write;
    default: return true;
    }
}

void block_meter_set(struct block_meter *meter, const struct block_limits *limits) {
    *meter = (struct block_meter){.limits = *limits};
    if (meter->limits.burst_ms == 0)
        meter->limits.burst_ms = BLOCK_BURST_MS;
}

bool block_meter_limits(const struct block_meter *meter) {
    for (unsigned i = 0; i < BLOCK_LIMITS; i++)
        if (meter->limits.per_second[i] != 0)
            return true;
    return false;
}

uint64_t block_meter_when(const struct block_meter *meter, bool write, unsigned leave) {
    uint64_t latest = 0,
             burst = meter->limits.burst_ms * (NS_PER_SECOND / 1000000) * (1000 - leave);
    for (unsigned i = 0; i < BLOCK_LIMITS; i++)
        if (meter->limits.per_second[i] != 0 && applies(i, write) && meter->due_ns[i] > latest)
            latest = meter->due_ns[i];
    return latest > burst ? latest - burst : 0;
}

void block_meter_charge(struct block_meter *meter, bool write, uint64_t bytes, uint64_t now) {
    for (unsigned i = 0; i < BLOCK_LIMITS; i++) {
        uint64_t rate = meter->limits.per_second[i];
        if (rate == 0 || !applies(i, write))
            continue;
        /* No request is so large that this overflows; the limit may be one byte a second. */
        uint64_t cost = (i < LIMIT_BPS ? 1 : bytes) * NS_PER_SECOND / rate;
        meter->due_ns[i] = (meter->due_ns[i] > now ? meter->due_ns[i] : now) + cost;
    }
}
