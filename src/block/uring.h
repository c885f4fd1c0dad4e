/*
 * Transfers through io_uring: a ring, and a thread that hands on what has
 * completed. Any thread submits.
 */
#ifndef LODGE_BLOCK_URING_H
#define LODGE_BLOCK_URING_H

#include "block/block.h"

struct uring;

/* On the ring's thread, no lock held: bytes transferred, or a negative errno. */
typedef void uring_done(void *context, struct block_request *request, int result);

/* -ENOSYS, -EPERM, -ENOMEM: the kernel has none, or not for us. */
int uring_create(int fd, uring_done *done, void *context, struct uring **uring);
/*
 * Starts a read or write. -EAGAIN: the ring is full. The kernel completes what a thread has
 * submitted when that thread next gets to run, so a `background` request is submitted by the
 * ring's own: it waits for nobody then. Several submitted within one call of `done` go together.
 */
int uring_submit(struct uring *uring, struct block_request *request);
/* Waits until all that was submitted is done. */
void uring_drain(struct uring *uring);
void uring_destroy(struct uring *uring);

#endif
