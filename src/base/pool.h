/*
 * Worker threads for back ends whose system calls block. Threads start when
 * there is work for them, up to `threads` (16 at most), and stay.
 */
#ifndef LODGE_BASE_POOL_H
#define LODGE_BASE_POOL_H

#include "base/error.h"
#include "base/thread.h"

struct pool;

/* A piece of work: part of the caller's own object, the pool's from pool_submit to `work`. */
struct pool_job {
    struct pool_job *next;
};

/* Runs on a worker, without any lock; may free what the job is part of. */
typedef void pool_work(void *context, struct pool_job *job);

int pool_create(enum thread_kind kind, unsigned threads, pool_work *work, void *context,
                struct pool **pool, struct error *err);

/* Any thread. -EAGAIN when not a single thread could be started. */
int pool_submit(struct pool *pool, struct pool_job *job);

/*
 * The same, on a worker of the pool that is about to return from `work` and takes the job itself
 * then, if no other has: nobody is woken. On other threads as pool_submit.
 */
int pool_go_on(struct pool *pool, struct pool_job *job);

/* Waits until all that was submitted is through. */
void pool_drain(struct pool *pool);

/* Drains, ends the threads, frees. */
void pool_destroy(struct pool *pool);

#endif
