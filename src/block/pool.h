/*
 * Worker threads for back ends whose system calls block. Threads start when
 * there is work for them, up to `threads`, and stay.
 */
#ifndef LODGE_BLOCK_POOL_H
#define LODGE_BLOCK_POOL_H

#include "base/error.h"

struct block_request;
struct pool;

/* work(context, request) runs on a worker, without any lock; it completes the request. */
typedef void pool_work(void *context, struct block_request *request);

int pool_create(unsigned threads, pool_work *work, void *context, struct pool **pool,
                struct error *err);

/* Any thread. -EAGAIN when not a single thread could be started. */
int pool_submit(struct pool *pool, struct block_request *request);

/* Waits until all that was submitted is through. */
void pool_drain(struct pool *pool);

/* Drains, ends the threads, frees. */
void pool_destroy(struct pool *pool);

#endif
