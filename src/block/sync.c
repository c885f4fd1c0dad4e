#include "block/sync.h"

#include <pthread.h>

#include "base/bytes.h"

struct waiter {
    struct block_request request;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool done;
};

static void wake(struct block_request *request) {
    struct waiter *waiter = container_of(request, struct waiter, request);
    pthread_mutex_lock(&waiter->mutex);
    waiter->done = true;
    pthread_cond_signal(&waiter->cond);
    pthread_mutex_unlock(&waiter->mutex);
}

static int submit_and_wait(struct block *block, struct block_request request) {
    struct waiter waiter = {
        .request = request, .mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    waiter.request.done = wake;
    if (block_submit(block, &waiter.request) == 0) {
        pthread_mutex_lock(&waiter.mutex);
        while (!waiter.done)
            pthread_cond_wait(&waiter.cond, &waiter.mutex);
        pthread_mutex_unlock(&waiter.mutex);
    }
    pthread_cond_destroy(&waiter.cond);
    pthread_mutex_destroy(&waiter.mutex);
    return waiter.request.result;
}

static int transfer(struct block *block, enum block_operation operation, uint64_t offset,
                    void *bytes, size_t length) {
    struct iovec vector = {bytes, length};
    return submit_and_wait(block, (struct block_request){.operation = operation,
                                                         .offset = offset,
                                                         .length = length,
                                                         .vectors = &vector,
                                                         .vector_count = 1});
}

int block_read(struct block *block, uint64_t offset, void *to, size_t length) {
    return transfer(block, BLOCK_READ, offset, to, length);
}

int block_write(struct block *block, uint64_t offset, const void *from, size_t length) {
    return transfer(block, BLOCK_WRITE, offset, (void *)(uintptr_t)from, length);
}

int block_flush(struct block *block) {
    return submit_and_wait(block, (struct block_request){.operation = BLOCK_FLUSH});
}

int block_discard(struct block *block, uint64_t offset, uint64_t length) {
    return submit_and_wait(
        block,
        (struct block_request){.operation = BLOCK_DISCARD, .offset = offset, .length = length});
}

int block_write_zeroes(struct block *block, uint64_t offset, uint64_t length, bool may_unmap) {
    return submit_and_wait(block, (struct block_request){.operation = BLOCK_WRITE_ZEROES,
                                                         .offset = offset,
                                                         .length = length,
                                                         .may_unmap = may_unmap});
}
