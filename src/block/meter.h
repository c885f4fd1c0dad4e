/*
 * Rate limits of a disk: requests and bytes a second, of all and of reads and
 * writes each. A request may start when none of its limits is used up by more
 * than the burst, and is charged whole then: a large one is paid for by those
 * behind it. No lock, no clock: the caller's.
 */
#ifndef LODGE_BLOCK_METER_H
#define LODGE_BLOCK_METER_H

#include <stdbool.h>
#include <stdint.h>

/* "iops" and so on in block_limit_names; writes are all that change the disk. */
enum block_limit {
    LIMIT_IOPS,
    LIMIT_READ_IOPS,
    LIMIT_WRITE_IOPS,
    LIMIT_BPS,
    LIMIT_READ_BPS,
    LIMIT_WRITE_BPS,
    BLOCK_LIMITS,
};

extern const char *const block_limit_names[BLOCK_LIMITS + 1]; /* NULL at the end */

enum { BLOCK_BURST_MS = 100, BLOCK_BURST_MS_MAX = 3600 * 1000 };

struct block_limits {
    uint64_t per_second[BLOCK_LIMITS]; /* 0: no limit */
    uint32_t burst_ms; /* what of so long a time may start at once; 0: BLOCK_BURST_MS */
};

struct block_meter {
    struct block_limits limits;
    uint64_t due_ns[BLOCK_LIMITS]; /* when all that was charged will have been paid for */
};

/* New limits; what was charged before is forgotten. */
void block_meter_set(struct block_meter *meter, const struct block_limits *limits);
bool block_meter_limits(const struct block_meter *meter); /* there are any */
/* When a request may start that is to leave so much of the burst (in thousandths) to others. */
uint64_t block_meter_when(const struct block_meter *meter, bool write, unsigned leave);
void block_meter_charge(struct block_meter *meter, bool write, uint64_t bytes, uint64_t now);

#endif
