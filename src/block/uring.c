#include "block/uring.h"

#include <liburing.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "base/lock.h"
#include "base/thread.h"

enum { ENTRIES = 256 };

struct uring {
    struct io_uring ring;
    struct lock lock;
    pthread_cond_t idle;
    pthread_t thread;
    int fd;
    uring_done *done;
    void *context;
    unsigned outstanding;                /* no more than ENTRIES: completions always have room */
    struct block_request *first, **last; /* of the outstanding ones: those for the ring's thread */
    bool ending;
};

/* ---- Submission; the lock is held ---- */

static void prepare(struct uring *uring, struct block_request *request) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    if (request->operation == BLOCK_READ)
        io_uring_prep_readv(sqe, uring->fd, request->vectors, request->vector_count,
                            request->offset);
    else
        io_uring_prep_writev2(sqe, uring->fd, request->vectors, request->vector_count,
                              request->offset, request->durable ? RWF_DSYNC : 0);
    io_uring_sqe_set_data(sqe, request);
}

/* Short of memory the kernel takes it a little later. */
static void hand_over(struct uring *uring) {
    while (io_uring_submit(&uring->ring) < 0)
        sched_yield();
}

/* The ring's thread looks round: what completes is no request. */
static void wake(struct uring *uring) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data(sqe, NULL);
    hand_over(uring);
}

/* To the ring's thread. */
static void leave(struct uring *uring, struct block_request *request) {
    bool first = uring->first == NULL;
    request->next = NULL;
    *uring->last = request;
    uring->last = &request->next;
    if (first)
        wake(uring);
}

/* ---- The ring's thread ---- */

/* False: it ends. */
static bool look_round(struct uring *uring) {
    lock_take(&uring->lock);
    struct block_request *request = uring->first;
    uring->first = NULL;
    uring->last = &uring->first;
    for (struct block_request *next; request != NULL; request = next) {
        next = request->next;
        prepare(uring, request);
    }
    hand_over(uring);
    bool goes_on = !uring->ending;
    lock_release(&uring->lock);
    return goes_on;
}

static void *reaper(void *argument) {
    struct uring *uring = argument;
    thread_begins(THREAD_IO, "io ring");
    thread_is_brief();
    for (;;) {
        struct io_uring_cqe *cqe;
        if (io_uring_wait_cqe(&uring->ring, &cqe) != 0)
            continue; /* interrupted */
        struct block_request *request = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&uring->ring, cqe);
        if (request == NULL) {
            if (!look_round(uring))
                return NULL;
            continue;
        }
        uring->done(uring->context, request, result);
        lock_take(&uring->lock);
        if (--uring->outstanding == 0)
            pthread_cond_broadcast(&uring->idle);
        if (io_uring_sq_ready(&uring->ring) > 0)
            hand_over(uring);
        lock_release(&uring->lock);
    }
}

/* ---- The interface ---- */

int uring_create(int fd, uring_done *done, void *context, struct uring **uring) {
    struct uring *made = calloc(1, sizeof *made);
    if (made == NULL)
        return -ENOMEM;
    made->fd = fd;
    made->last = &made->first;
    made->done = done;
    made->context = context;
    int result = io_uring_queue_init(ENTRIES, &made->ring, 0);
    if (result < 0) {
        free(made);
        return result;
    }
    lock_init(&made->lock, LOCK_BACKEND, "io_uring");
    pthread_cond_init(&made->idle, NULL);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    result = -pthread_create(&made->thread, NULL, reaper, made);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (result != 0) {
        io_uring_queue_exit(&made->ring);
        free(made);
        return result;
    }
    *uring = made;
    return 0;
}

int uring_submit(struct uring *uring, struct block_request *request) {
    int result = -EAGAIN;
    bool here = pthread_equal(pthread_self(), uring->thread);
    lock_take(&uring->lock);
    if (uring->outstanding < ENTRIES) {
        uring->outstanding++;
        if (request->background && !here) {
            leave(uring, request);
        } else {
            prepare(uring, request);
            if (!request->background)
                hand_over(uring); /* otherwise when `done` has returned, with the others */
        }
        result = 0;
    }
    lock_release(&uring->lock);
    return result;
}

void uring_drain(struct uring *uring) {
    lock_take(&uring->lock);
    while (uring->outstanding > 0)
        pthread_cond_wait(&uring->idle, &uring->lock.mutex);
    lock_release(&uring->lock);
}

void uring_destroy(struct uring *uring) {
    uring_drain(uring);
    lock_take(&uring->lock);
    uring->ending = true;
    wake(uring);
    lock_release(&uring->lock);
    pthread_join(uring->thread, NULL);
    io_uring_queue_exit(&uring->ring);
    pthread_cond_destroy(&uring->idle);
    lock_destroy(&uring->lock);
    free(uring);
}
