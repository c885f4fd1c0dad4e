/*
 * A device in memory that remembers every write and flush, so that what a
 * crash at any moment may leave can be built: all that was flushed, and of
 * the rest any part.
 */
#ifndef LODGE_TESTS_SIMULATED_H
#define LODGE_TESTS_SIMULATED_H

#include "block/block.h"

struct simulated;

/* Grows as it is written, up to `limit` bytes. Aborts without memory. */
struct simulated *simulated_create(size_t limit);
/* One that begins with these bytes, copied. */
struct simulated *simulated_from(const uint8_t *bytes, size_t size, size_t limit);
void simulated_destroy(struct simulated *device);
struct block *simulated_block(struct simulated *device);

/* While it defers, writes are kept; simulated_release completes them in a random order. */
void simulated_defer(struct simulated *device);
void simulated_release(struct simulated *device, uint64_t *random);

/* Every write after the first `writes` fails with this error until it is 0. */
void simulated_fail(struct simulated *device, int error);

/* How many writes, discards and flushes there have been. */
size_t simulated_position(const struct simulated *device);

/*
 * What a crash after the first `position` of them may leave: a new device. Which part of what was
 * not flushed is there follows from *random, down to single sectors.
 */
struct simulated *simulated_crash(const struct simulated *device, size_t position,
                                  uint64_t *random);

uint64_t simulated_random(uint64_t *state);

#endif
