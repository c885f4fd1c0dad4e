/*
 * Which blocks of a disk have been written, for who copies it meanwhile
 * (machine/migration_disks.h). A block is a power of two of bytes, 4096 or more for very large
 * disks.
 *
 * Marks come from any thread; fetching is one thread's.
 */
#ifndef LODGE_BLOCK_WRITTEN_H
#define LODGE_BLOCK_WRITTEN_H

#include <stddef.h>
#include <stdint.h>

struct written_log;

/* NULL: no memory. */
struct written_log *written_log_create(uint64_t size);
void written_log_destroy(struct written_log *log); /* NULL is fine */

unsigned written_log_shift(const struct written_log *log); /* of a block's size */
size_t written_log_words(const struct written_log *log);
/* What lies beyond the disk is left out. */
void written_log_mark(struct written_log *log, uint64_t offset, uint64_t length);
/* Adds what was marked since the last time to a map of that many words, bit n: block n. */
void written_log_fetch(struct written_log *log, uint64_t *map);

#endif
