/* Whether so little memory is left that nobody should take any that is not needed. */
#ifndef LODGE_MEMORY_SCARCE_H
#define LODGE_MEMORY_SCARCE_H

#include <stdbool.h>
#include <stdint.h>

/* It is scarce when less than this is free or easily had, or less than this share of all: of the
 * host's memory, or of what a control group that holds this process may have. */
enum { SCARCE_LEFT = 256 << 20, SCARCE_SHARE = 8 };

/*
 * Reads some small files of the kernel's below `root` ("" but in tests): tens of microseconds. What
 * it cannot read does not limit. Any thread.
 */
bool memory_is_scarce(const char *root);

#endif
