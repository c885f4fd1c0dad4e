/* Words that all disks of the command line have. */
#ifndef LODGE_CLI_LIMITS_H
#define LODGE_CLI_LIMITS_H

#include "base/error.h"
#include "block/meter.h"

/* Limits, "iops=500", "read-bps=10M", "burst=2".
 * -ENOENT: it is no such word; -EINVAL: its value. `given`, if any: which limits were said; bit
 * BLOCK_LIMITS: the burst. */
int parse_limit(struct block_limits *limits, const char *word, unsigned *given, struct error *err);

/* "on-full=pause" or "on-full=error": what follows when the host has no space. As above. */
int parse_on_full(bool *errors_when_full, const char *word, struct error *err);

#endif
