/*
 * Quality of service before a simulated store whose time is simulated, too: the store, the fixture,
 * and jobs that keep it busy. A test is one thread, and nothing runs but what advance() lets
 * happen.
 */
#ifndef LODGE_TESTS_QOS_RIG_H
#define LODGE_TESTS_QOS_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/loop.h"
#include "block/qos.h"

enum { FLOWS = 4, STORE = 32 << 20, LATE_MAX = 4096, SAMPLES = 8192 };
enum { BYTES_PER_US = 500, CHANNELS_MAX = 32 };

static uint64_t now;

static inline uint64_t simulated_ns(void) {
    return now;
}

/*
 * ---- The store ----
 * Channels, each first come first served, a latency on top, and how late an end is noticed at
 * most: by a hundredth of the time, or one time of 128 by all of it.
 */

/* When the end of a request is told of; TELLS_BATCH, TELLS_IDLE: one channel. */
enum tells {
    TELLS_EACH,
    TELLS_BATCH, /* it takes all there is, and tells when all of it is done */
    TELLS_IDLE,  /* it takes what has come meanwhile, too, and tells when there is nothing left */
};

struct kind {
    const char *name;
    unsigned channels, bytes_per_us; /* of each */
    uint64_t latency_ns, late_ns;
    enum tells tells;
};

static const struct kind plain_kind = {"one channel", 1, BYTES_PER_US, 80000, 0, TELLS_EACH};

struct late {
    uint64_t at;
    struct block_request *request; /* NULL: call wake(context) */
    void (*wake)(void *context);
    void *context;
};

static struct store {
    uint8_t *bytes;
    struct kind kind;
    uint64_t channel_free[CHANNELS_MAX];
    unsigned seed;
    struct late late[LATE_MAX];
    unsigned late_count;
    struct block_request *batch, **last_of_batch; /* what it has not taken yet */
    struct block_request *through;                /* what it has not told of yet */
    bool taking;                                  /* it will, at the end of the one before it */
    unsigned fail_every, seen;
    uint64_t largest;                 /* bytes of the largest request seen */
    unsigned clearing, most_clearing; /* zeroes under way */
} store;

static inline void schedule(struct late late) {
    assert_true(store.late_count < LATE_MAX);
    store.late[store.late_count++] = late;
}

static inline void move_bytes(const struct block_request *request) {
    uint8_t *at = store.bytes + request->offset;
    if (request->operation == BLOCK_WRITE_ZEROES)
        memset(at, 0, request->length);
    for (unsigned i = 0; i < request->vector_count; i++) {
        const struct iovec *vector = &request->vectors[i];
        if (request->operation == BLOCK_READ)
            memcpy(vector->iov_base, at, vector->iov_len);
        else
            memcpy(at, vector->iov_base, vector->iov_len);
        at += vector->iov_len;
    }
}

static inline uint64_t lateness(void) {
    if (store.kind.late_ns == 0)
        return 0;
    uint64_t most = rand_r(&store.seed) % 128 == 0 ? store.kind.late_ns : store.kind.late_ns / 50;
    return (uint64_t)rand_r(&store.seed) % most;
}

static inline uint64_t moved(const struct block_request *request) {
    return request->operation == BLOCK_WRITE_ZEROES ? 0 : request->length;
}

static inline void tell_all(struct block_request *request, uint64_t end) {
    for (struct block_request *next; request != NULL; request = next) {
        next = request->next;
        schedule((struct late){.at = end + store.kind.latency_ns + lateness(), .request = request});
    }
}

/* The next request, one after the other; when there is none it tells of all of them. */
static inline void take_next(void *context) {
    struct block_request *request = store.batch;
    (void)context;
    store.taking = request != NULL;
    if (request == NULL) {
        tell_all(store.through, now);
        store.through = NULL;
        return;
    }
    store.batch = request->next;
    if (store.batch == NULL)
        store.last_of_batch = &store.batch;
    request->next = store.through;
    store.through = request;
    schedule((struct late){.at = now + moved(request) * 1000 / store.kind.bytes_per_us,
                           .wake = take_next});
}

/* Takes what there is; it is told all at once. The next batch begins then. */
static inline void take_batch(void *context) {
    struct block_request *request = store.batch;
    uint64_t bytes = 0;
    (void)context;
    store.taking = request != NULL;
    if (request == NULL)
        return;
    for (const struct block_request *r = request; r != NULL; r = r->next)
        bytes += moved(r);
    store.batch = NULL;
    store.last_of_batch = &store.batch;
    uint64_t end = now + bytes * 1000 / store.kind.bytes_per_us;
    tell_all(request, end);
    schedule((struct late){.at = end, .wake = take_batch});
}

static inline void join_batch(struct block_request *request) {
    request->next = NULL;
    *store.last_of_batch = request;
    store.last_of_batch = &request->next;
    if (!store.taking)
        schedule((struct late){.at = now + store.kind.latency_ns,
                               .wake = store.kind.tells == TELLS_IDLE ? take_next : take_batch});
    store.taking = true;
}

static inline int store_submit(struct block *block, struct block_request *request) {
    (void)block;
    assert_true(request->offset % 512 == 0 && request->length % 512 == 0);
    assert_true(range_within(request->offset, request->length, STORE));
    if (request->length > store.largest)
        store.largest = request->length;
    if (store.bytes != NULL)
        move_bytes(request);
    store.clearing += request->operation == BLOCK_WRITE_ZEROES;
    if (store.clearing > store.most_clearing)
        store.most_clearing = store.clearing;
    request->result = store.fail_every > 0 && ++store.seen % store.fail_every == 0 ? -EIO : 0;
    if (store.kind.tells != TELLS_EACH) {
        join_batch(request);
        return 0;
    }
    uint64_t *channel = &store.channel_free[0];
    for (unsigned i = 1; i < store.kind.channels; i++)
        if (store.channel_free[i] < *channel)
            channel = &store.channel_free[i];
    *channel = (*channel > now ? *channel : now) + moved(request) * 1000 / store.kind.bytes_per_us;
    schedule(
        (struct late){.at = *channel + store.kind.latency_ns + lateness(), .request = request});
    return 0;
}

/* Lets the next thing happen. */
static inline void advance(void) {
    unsigned first = 0;
    assert_true(store.late_count > 0);
    for (unsigned i = 1; i < store.late_count; i++)
        if (store.late[i].at < store.late[first].at)
            first = i;
    struct late late = store.late[first];
    store.late[first] = store.late[--store.late_count];
    now = late.at;
    if (late.request != NULL) {
        store.clearing -= late.request->operation == BLOCK_WRITE_ZEROES;
        late.request->done(late.request);
    } else {
        late.wake(late.context);
    }
}

static inline void store_drain(struct block *block) {
    (void)block;
}

static const struct block_class store_class = {
    .name = "store", .submit = store_submit, .drain = store_drain, .close = store_drain};
static struct block stores[FLOWS];

/* ---- Fixture ---- */

static struct loop *loop;
static struct qos *qos;
static struct block *flows[FLOWS];

static inline void start(const enum qos_class *class, unsigned count) {
    static const char *const names[FLOWS] = {"disk0", "disk1", "disk2", "disk3"};
    for (unsigned i = 0; i < count; i++) {
        stores[i] = (struct block){&store_class, {.size = STORE, .logical_block = 512}};
        struct qos_settings settings = {.class = class[i]};
        assert_int_equal(qos_add_flow(qos, &stores[i], names[i], &settings, &flows[i], NULL), 0);
    }
}

static inline int set_class(const char *name, enum qos_class class, struct error *err) {
    struct qos_settings settings;
    int result = qos_get(qos, name, &settings, err);
    settings.class = class;
    return result == 0 ? qos_set(qos, name, &settings, err) : result;
}

static inline void woken(void *context) {
    qos_wake(context);
}

/* One timer, as the loop's: the new time replaces the old one. */
static inline void wake_at(struct qos *woken_qos, uint64_t ns) {
    for (unsigned i = 0; i < store.late_count; i++)
        if (store.late[i].wake == woken) {
            store.late[i].at = ns;
            return;
        }
    schedule((struct late){.at = ns, .wake = woken, .context = woken_qos});
}

static const struct qos_time simulated = {simulated_ns, wake_at};

static inline int setup(void **state) {
    (void)state;
    store = (struct store){.kind = plain_kind, .seed = 11, .last_of_batch = &store.batch};
    now = 1000000;
    memset(flows, 0, sizeof flows);
    assert_int_equal(loop_create(&loop, NULL), 0);
    return qos_create(loop, &simulated, &qos, NULL);
}

static inline int teardown(void **state) {
    (void)state;
    while (store.late_count > 0)
        advance();
    for (unsigned i = 0; i < FLOWS; i++)
        block_close(flows[i]);
    qos_destroy(qos);
    loop_destroy(loop);
    free(store.bytes);
    return 0;
}

/* ---- Load ---- */

static bool stopped;
static uint8_t memory[1 << 20]; /* whose bytes nobody moves */

struct job {
    struct block_request request;
    struct block *flow;
    enum block_operation operation;
    uint32_t length;
    uint64_t pause_ns, began, done_bytes;
    uint64_t *samples;
    unsigned *sample_count;
    struct iovec vector;
};

static inline void job_ended(struct block_request *request);

static inline void job_begin(void *context) {
    struct job *job = context;
    job->vector = (struct iovec){memory, job->length};
    job->request = (struct block_request){.operation = job->operation,
                                          .length = job->length,
                                          .vectors = &job->vector,
                                          .vector_count = 1,
                                          .done = job_ended};
    job->began = now;
    assert_int_equal(block_submit(job->flow, &job->request), 0);
}

static inline void job_ended(struct block_request *request) {
    struct job *job = container_of(request, struct job, request);
    assert_int_equal(request->result, 0);
    job->done_bytes += job->length;
    if (job->samples != NULL && *job->sample_count < SAMPLES)
        job->samples[(*job->sample_count)++] = now - job->began;
    if (stopped)
        return;
    if (job->pause_ns == 0)
        job_begin(job);
    else
        schedule((struct late){.at = now + job->pause_ns, .wake = job_begin, .context = job});
}

static inline int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Reads (or writes) by 16 jobs for ten simulated seconds: requests and bytes a second. */
static inline void hammer(struct block *flow, enum block_operation operation, uint32_t length,
                          double *requests, double *bytes) {
    enum { JOBS = 16, SECONDS = 10 };
    static struct job jobs[JOBS];
    uint64_t end = now + SECONDS * NS_PER_SECOND;
    stopped = false;
    *requests = *bytes = 0;
    for (unsigned i = 0; i < JOBS; i++) {
        jobs[i] = (struct job){.flow = flow, .operation = operation, .length = length};
        job_begin(&jobs[i]);
    }
    while (now < end)
        advance();
    stopped = true;
    for (unsigned i = 0; i < JOBS; i++) {
        *bytes += (double)jobs[i].done_bytes / SECONDS;
        *requests += (double)jobs[i].done_bytes / length / SECONDS;
    }
    while (store.late_count > 0)
        advance();
}

/* ---- One request ---- */

struct one {
    struct block_request request;
    bool done;
};

static inline void one_done(struct block_request *request) {
    container_of(request, struct one, request)->done = true;
}

static inline int run_one(struct block *flow, struct block_request request) {
    struct one one = {.request = request};
    one.request.done = one_done;
    if (block_submit(flow, &one.request) == 1)
        return one.request.result;
    while (!one.done)
        advance();
    return one.request.result;
}

/* A limit of the first flow. */
static inline void limit(enum block_limit which, uint64_t per_second) {
    struct qos_settings settings;
    assert_int_equal(qos_get(qos, "disk0", &settings, NULL), 0);
    settings.limits.per_second[which] = per_second;
    assert_int_equal(qos_set(qos, "disk0", &settings, NULL), 0);
}

#endif
