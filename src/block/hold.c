#include "block/hold.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/lock.h"
#include "base/loop.h"
#include "block/written.h"

struct hold {
    struct block block;
    struct block *target;
    struct hold_config config;
    struct lock lock;
    pthread_cond_t idle;
    struct kept *first, **last; /* kept, in the order in which they failed */
    struct kept *cancelled;
    bool cancel_posted;
    unsigned outstanding;
    struct hold_failures failures;
    _Atomic(struct written_log *) log; /* used below the lock */
    atomic_bool blind;                 /* a change has passed unseen */
};

/* A request that may have to be kept; what it has of the device's is its own copy. */
struct kept {
    struct block_request io;
    struct block_request *request;
    struct hold *hold;
    struct kept *next;
};

static struct hold *hold_of(struct block *block) {
    return container_of(block, struct hold, block);
}

static bool is_full(int result) {
    return result == -ENOSPC || result == -EDQUOT;
}

/* ---- Ending ---- */

/* A request has its result; true: it is kept. */
static bool keep(struct kept *kept) {
    struct hold *hold = kept->hold;
    bool keeps = hold->config.keep && is_full(kept->io.result);
    if (kept->io.result == 0 || kept->io.result == -ECANCELED)
        return false;
    lock_take(&hold->lock);
    hold->failures = (struct hold_failures){.count = hold->failures.count + 1,
                                            .operation = kept->io.operation,
                                            .offset = kept->io.offset,
                                            .length = kept->io.length,
                                            .error = kept->io.result,
                                            .kept = hold->failures.kept + keeps};
    if (keeps) {
        kept->next = NULL;
        *hold->last = kept;
        hold->last = &kept->next;
    }
    lock_release(&hold->lock);
    hold->config.told(hold->config.context);
    return keeps;
}

static void release(struct kept *kept) {
    struct hold *hold = kept->hold;
    lock_take(&hold->lock);
    if (--hold->outstanding == 0)
        pthread_cond_broadcast(&hold->idle);
    lock_release(&hold->lock);
    free(kept);
}

/* The request is as it came: the back end has had a copy. */
static void mark(struct hold *hold, const struct block_request *request) {
    if (atomic_load(&hold->log) == NULL)
        return;
    lock_take(&hold->lock);
    struct written_log *log = atomic_load(&hold->log);
    if (log != NULL)
        written_log_mark(log, request->offset, request->length);
    lock_release(&hold->lock);
}

static void answer(struct kept *kept) {
    mark(kept->hold, kept->request);
    kept->request->result = kept->io.result;
    kept->request->done(kept->request);
    release(kept);
}

static void io_done(struct block_request *io) {
    struct kept *kept = container_of(io, struct kept, io);
    if (!keep(kept))
        answer(kept);
}

/* Takes all that is kept. The lock is held. */
static struct kept *take_all(struct hold *hold) {
    struct kept *all = hold->first;
    hold->first = NULL;
    hold->last = &hold->first;
    hold->failures.kept = 0;
    return all;
}

void hold_retry(struct block *block) {
    struct hold *hold = hold_of(block);
    lock_take(&hold->lock);
    struct kept *kept = take_all(hold);
    lock_release(&hold->lock);
    while (kept != NULL) {
        struct kept *next = kept->next;
        if (block_submit(hold->target, &kept->io) == 1)
            io_done(&kept->io);
        kept = next;
    }
}

/* ---- Giving up ---- */

static void give_up(struct hold *hold) {
    struct kept **last = &hold->cancelled;
    while (*last != NULL)
        last = &(*last)->next;
    *last = take_all(hold);
}

static void answer_cancelled(void *context) {
    struct hold *hold = context;
    lock_take(&hold->lock);
    struct kept *kept = hold->cancelled;
    hold->cancelled = NULL;
    hold->cancel_posted = false;
    lock_release(&hold->lock);
    while (kept != NULL) {
        struct kept *next = kept->next;
        answer(kept);
        kept = next;
    }
}

/* Not here: the caller may hold what `done` takes. */
static void hold_cancel(struct block *block) {
    struct hold *hold = hold_of(block);
    lock_take(&hold->lock);
    if (!hold->cancel_posted)
        hold->cancel_posted = loop_post(hold->config.loop, answer_cancelled, hold) == 0;
    if (hold->cancel_posted)
        give_up(hold);
    lock_release(&hold->lock);
    block_cancel(hold->target);
}

/* Requests that fail while we wait here are given up as well. */
static void hold_drain(struct block *block) {
    struct hold *hold = hold_of(block);
    block_cancel(hold->target);
    block_drain(hold->target);
    lock_take(&hold->lock);
    give_up(hold);
    lock_release(&hold->lock);
    answer_cancelled(hold);
    lock_take(&hold->lock);
    while (hold->outstanding > 0)
        pthread_cond_wait(&hold->idle, &hold->lock.mutex);
    lock_release(&hold->lock);
}

/* ---- The node ---- */

static int hold_submit(struct block *block, struct block_request *request) {
    struct hold *hold = hold_of(block);
    struct kept *kept = request->operation != BLOCK_READ ? malloc(sizeof *kept) : NULL;
    if (kept == NULL && request->operation != BLOCK_READ)
        atomic_store(&hold->blind, true);
    if (kept == NULL)
        return block_submit(hold->target, request);
    *kept = (struct kept){.io = *request, .request = request, .hold = hold};
    kept->io.done = io_done;
    lock_take(&hold->lock);
    hold->outstanding++;
    lock_release(&hold->lock);
    if (block_submit(hold->target, &kept->io) == 0 || keep(kept))
        return 0;
    request->result = kept->io.result;
    mark(hold, request);
    release(kept);
    return 1;
}

static int hold_resize(struct block *block, uint64_t size, struct error *err) {
    struct hold *hold = hold_of(block);
    int result = block_resize(hold->target, size, err);
    hold->block.info.size = hold->target->info.size;
    return result;
}

static uint64_t hold_zero_run(struct block *block, uint64_t offset) {
    return block_zero_run(hold_of(block)->target, offset);
}

static void hold_close(struct block *block) {
    struct hold *hold = hold_of(block);
    hold_drain(block);
    block_close(hold->target);
    pthread_cond_destroy(&hold->idle);
    lock_destroy(&hold->lock);
    free(hold);
}

static const struct block_class hold_class = {
    .name = "hold",
    .submit = hold_submit,
    .cancel = hold_cancel,
    .drain = hold_drain,
    .close = hold_close,
    .resize = hold_resize,
    .zero_run = hold_zero_run,
};

int hold_add(struct block *target, const struct hold_config *config, struct block **block,
             struct error *err) {
    struct hold *hold = calloc(1, sizeof *hold);
    if (hold == NULL)
        return error_set(err, -ENOMEM, "no memory for disk %s", target->info.name);
    hold->block = (struct block){.class = &hold_class, .info = target->info};
    hold->target = target;
    hold->config = *config;
    hold->last = &hold->first;
    lock_init(&hold->lock, LOCK_BACKEND, "hold");
    pthread_cond_init(&hold->idle, NULL);
    *block = &hold->block;
    return 0;
}

void hold_take(struct block *block, struct hold_failures *failures) {
    struct hold *hold = hold_of(block);
    lock_take(&hold->lock);
    *failures = hold->failures;
    hold->failures = (struct hold_failures){.kept = failures->kept};
    lock_release(&hold->lock);
}

unsigned hold_kept(struct block *block) {
    struct hold *hold = hold_of(block);
    lock_take(&hold->lock);
    unsigned kept = hold->failures.kept;
    lock_release(&hold->lock);
    return kept;
}

int hold_log(struct block *block, struct written_log *log) {
    struct hold *hold = hold_of(block);
    lock_take(&hold->lock);
    atomic_store(&hold->log, log);
    lock_release(&hold->lock);
    return log != NULL && atomic_load(&hold->blind) ? -ENOMEM : 0;
}
