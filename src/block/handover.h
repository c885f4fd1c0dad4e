/*
 * A node whose image can be let go and taken while the device above it stays: a VM that moves
 * (machine/migration.h) leaves its disks to another process, or gets them back when that comes to
 * nothing. Requests pass as they are; while there is no image they fail with -EIO.
 */
#ifndef LODGE_BLOCK_HANDOVER_H
#define LODGE_BLOCK_HANDOVER_H

#include "block/block.h"

/*
 * image: becomes the node's, closed with it; NULL: there is none yet, and `info` says what it
 * will be.
 */
int handover_add(struct block *image, const struct block_info *info, struct block **block,
                 struct error *err);

/* All below: blocks that handover_add made, nothing under way. */

/* Makes it durable and closes it, which gives its locks up. -EIO and so on: it is not durable; it
 * is closed all the same. */
int handover_release(struct block *block, struct error *err);
/* The image becomes the node's. -EINVAL: it is not what the device has been told; it stays the
 * caller's. */
int handover_take(struct block *block, struct block *image, struct error *err);

#endif
