#include "block/uring.h"

#include <liburing.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "base/lock.h"

enum { ENTRIES = 256 };

struct uring {
    struct io_uring ring;
    struct lock lock;
    pthread_cond_t idle;
    pthread_t thread;
    uring_done *done;
    void *context;
    unsigned outstanding; /* no more than ENTRIES: completions always have room */
};

/* Ends at the completion of a request that is none. */
static void *reaper(void *argument) {
    struct uring *uring = argument;
    for (;;) {
        struct io_uring_cqe *cqe;
        if (io_uring_wait_cqe(&uring->ring, &cqe) != 0)
            continue; /* interrupted */
        struct block_request *request = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&uring->ring, cqe);
        if (request == NULL)
            return NULL;
        uring->done(uring->context, request, result);
        lock_take(&uring->lock);
        if (--uring->outstanding == 0)
            pthread_cond_broadcast(&uring->idle);
        lock_release(&uring->lock);
    }
}

int uring_create(uring_done *done, void *context, struct uring **uring) {
    struct uring *made = calloc(1, sizeof *made);
    if (made == NULL)
        return -ENOMEM;
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

int uring_submit(struct uring *uring, int fd, struct block_request *request) {
    int result = -EAGAIN;
    lock_take(&uring->lock);
    struct io_uring_sqe *sqe = uring->outstanding < ENTRIES ? io_uring_get_sqe(&uring->ring) : NULL;
    if (sqe != NULL) {
        if (request->operation == BLOCK_READ)
            io_uring_prep_readv(sqe, fd, request->vectors, request->vector_count, request->offset);
        else
            io_uring_prep_writev2(sqe, fd, request->vectors, request->vector_count, request->offset,
                                  request->durable ? RWF_DSYNC : 0);
        io_uring_sqe_set_data(sqe, request);
        uring->outstanding++;
        /* Short of memory the kernel takes it a little later. */
        while (io_uring_submit(&uring->ring) < 0)
            sched_yield();
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
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data(sqe, NULL);
    io_uring_submit(&uring->ring);
    lock_release(&uring->lock);
    pthread_join(uring->thread, NULL);
    io_uring_queue_exit(&uring->ring);
    pthread_cond_destroy(&uring->idle);
    lock_destroy(&uring->lock);
    free(uring);
}
