/*
 * Requests that are waited for: for opening images, for tools, for threads
 * that may wait. Buffers are the caller's. 0 or a negative errno.
 */
#ifndef LODGE_BLOCK_SYNC_H
#define LODGE_BLOCK_SYNC_H

#include "block/block.h"

int block_read(struct block *block, uint64_t offset, void *to, size_t length);
int block_write(struct block *block, uint64_t offset, const void *from, size_t length);
int block_flush(struct block *block);
int block_discard(struct block *block, uint64_t offset, uint64_t length);
int block_write_zeroes(struct block *block, uint64_t offset, uint64_t length, bool may_unmap);

#endif
