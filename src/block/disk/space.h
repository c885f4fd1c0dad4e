/*
 * Which blocks of a disk's file are in use: one bit each. Never stored: it
 * follows from the trees and is worked out when the disk is opened, so that
 * it cannot disagree with them. Not locked; the owner's lock guards it.
 */
#ifndef LODGE_BLOCK_DISK_SPACE_H
#define LODGE_BLOCK_DISK_SPACE_H

#include "block/disk/format.h"

struct disk_space {
    uint64_t *used;  /* bits */
    uint64_t blocks; /* of the file so far */
    uint64_t limit;  /* that the file may have */
    uint64_t free;   /* of `blocks` */
    uint64_t cursor; /* where to look next */
};

int disk_space_create(struct disk_space *space, uint64_t blocks, uint64_t limit, struct error *err);
void disk_space_destroy(struct disk_space *space);

/* Marks a block used. False: it was already, or lies behind the end. */
bool disk_space_mark(struct disk_space *space, uint64_t block);
bool disk_space_used(const struct disk_space *space, uint64_t block);

/* Takes up to `want` blocks in a row: their number, or -ENOSPC, -ENOMEM. */
int64_t disk_space_take(struct disk_space *space, uint64_t want, uint64_t *first);
void disk_space_release(struct disk_space *space, uint64_t first, uint64_t count);

/* The next run of blocks from `*from` on that nothing uses: its length, 0 at the end. */
uint64_t disk_space_next_free(const struct disk_space *space, uint64_t *from);
/* Likewise of blocks in use. */
uint64_t disk_space_next_used(const struct disk_space *space, uint64_t *from);

#endif
