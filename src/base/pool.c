#include "base/pool.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/lock.h"

enum { THREADS_MAX = 16, STACK_SIZE = 256 << 10 };

struct pool {
    struct lock lock;
    pthread_cond_t work_cond; /* work came, or the pool stops */
    pthread_cond_t idle_cond; /* nothing is outstanding */
    enum thread_kind kind;
    pool_work *work;
    void *context;
    struct pool_job *first, *last;
    unsigned waiting;     /* requests in the list */
    unsigned outstanding; /* with those being worked on */
    unsigned threads_max, threads, sleeping;
    bool stopping;
    pthread_t thread[THREADS_MAX];
};

/* Whose worker the thread is, and whether a job was left for it to take. */
static _Thread_local const struct pool *home;
static _Thread_local bool goes_on;

static struct pool_job *take(struct pool *pool) {
    while (pool->first == NULL && !pool->stopping) {
        pool->sleeping++;
        pthread_cond_wait(&pool->work_cond, &pool->lock.mutex);
        pool->sleeping--;
    }
    struct pool_job *job = pool->first;
    if (job != NULL) {
        pool->first = job->next;
        pool->waiting--;
    }
    return job;
}

static void *worker(void *argument) {
    struct pool *pool = argument;
    struct pool_job *job;
    thread_begins(pool->kind, pool->kind == THREAD_IO ? "io worker" : "worker");
    thread_is_brief();
    home = pool;
    lock_take(&pool->lock);
    while ((job = take(pool)) != NULL) {
        lock_release(&pool->lock);
        goes_on = false;
        pool->work(pool->context, job);
        lock_take(&pool->lock);
        if (--pool->outstanding == 0)
            pthread_cond_broadcast(&pool->idle_cond);
    }
    lock_release(&pool->lock);
    return NULL;
}

static int start_thread(struct pool *pool) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    int rc = thread_create(&pool->thread[pool->threads], &attributes, worker, pool);
    pthread_attr_destroy(&attributes);
    if (rc == 0)
        pool->threads++;
    return -rc;
}

int pool_create(enum thread_kind kind, unsigned threads, pool_work *work, void *context,
                struct pool **pool, struct error *err) {
    struct pool *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "no memory for a thread pool");
    lock_init(&made->lock, LOCK_BACKEND, "worker pool");
    pthread_cond_init(&made->work_cond, NULL);
    pthread_cond_init(&made->idle_cond, NULL);
    made->kind = kind;
    made->work = work;
    made->context = context;
    made->threads_max = threads < THREADS_MAX ? threads : THREADS_MAX;
    *pool = made;
    return 0;
}

static int submit(struct pool *pool, struct pool_job *job, bool wakes) {
    int rc = 0;
    lock_take(&pool->lock);
    if (wakes && pool->waiting >= pool->sleeping && pool->threads < pool->threads_max)
        rc = start_thread(pool);
    if (pool->threads > 0) {
        rc = 0;
        job->next = NULL;
        if (pool->first == NULL)
            pool->first = job;
        else
            pool->last->next = job;
        pool->last = job;
        pool->waiting++;
        pool->outstanding++;
        if (wakes)
            pthread_cond_signal(&pool->work_cond);
    }
    lock_release(&pool->lock);
    return rc;
}

int pool_submit(struct pool *pool, struct pool_job *job) {
    return submit(pool, job, true);
}

int pool_go_on(struct pool *pool, struct pool_job *job) {
    bool wakes = home != pool || goes_on;
    goes_on = true;
    return submit(pool, job, wakes);
}

void pool_drain(struct pool *pool) {
    lock_take(&pool->lock);
    while (pool->outstanding > 0)
        pthread_cond_wait(&pool->idle_cond, &pool->lock.mutex);
    lock_release(&pool->lock);
}

void pool_destroy(struct pool *pool) {
    pool_drain(pool);
    lock_take(&pool->lock);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work_cond);
    lock_release(&pool->lock);
    for (unsigned i = 0; i < pool->threads; i++)
        pthread_join(pool->thread[i], NULL);
    pthread_cond_destroy(&pool->work_cond);
    pthread_cond_destroy(&pool->idle_cond);
    lock_destroy(&pool->lock);
    free(pool);
}
