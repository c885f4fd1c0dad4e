/*
 * A node that keeps what the host has no space for. A request that changes
 * the disk and fails with -ENOSPC or -EDQUOT is kept instead of answered,
 * until hold_retry submits what is left of it again; whoever asked is told
 * and does something about it (pauses the guest). Other failures, and these
 * too when nothing is to be kept, are answered and told.
 *
 * Reads pass as they are. Cancelled or drained, what is kept ends with the
 * error that it failed with.
 */
#ifndef LODGE_BLOCK_HOLD_H
#define LODGE_BLOCK_HOLD_H

#include "block/block.h"

struct loop;
struct written_log;

struct hold_config {
    struct loop *loop;
    bool keep;
    /* There is something to take (hold_take). Any thread; locks may be held that come before
     * LOCK_BACKEND: what it does it does elsewhere. */
    void (*told)(void *context);
    void *context;
};

/* Failures since the last look: the newest, and how many. */
struct hold_failures {
    unsigned count;
    enum block_operation operation;
    uint64_t offset, length;
    int error;     /* a negative errno */
    unsigned kept; /* requests that are kept now, new or not */
};

/* Puts the node before `target`, which becomes the node's: closed with it. */
int hold_add(struct block *target, const struct hold_config *config, struct block **block,
             struct error *err);

/* The block must be one that hold_add made. */
void hold_take(struct block *block, struct hold_failures *failures);
unsigned hold_kept(struct block *block);
/* Submits what is kept again. No lock held. */
void hold_retry(struct block *block);
/*
 * Whatever changes the disk from now on is marked once it is done, before it is answered; what is
 * under way now, too. The log stays the caller's; NULL: no longer, and nobody uses the last one any
 * more. Any thread. -ENOMEM: the host had none for a request that passed unseen.
 */
int hold_log(struct block *block, struct written_log *log);

#endif
