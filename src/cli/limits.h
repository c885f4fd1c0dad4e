/* A disk's limits as words of the command line: "iops=500", "read-bps=10M", "burst=2". */
#ifndef LODGE_CLI_LIMITS_H
#define LODGE_CLI_LIMITS_H

#include "base/error.h"
#include "block/meter.h"

/* -ENOENT: it is no such word; -EINVAL: its value. `given`, if any: which limits were said; bit
 * BLOCK_LIMITS: the burst. */
int parse_limit(struct block_limits *limits, const char *word, unsigned *given, struct error *err);

#endif
