/* Quality of service before a simulated store whose time is simulated, too: isolation, shares,
 * bytes and errors; and before a real file from several threads. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/loop.h"
#include "block/qos.h"

enum { FLOWS = 4, STORE = 32 << 20, LATE_MAX = 4096, SAMPLES = 8192 };
enum { BYTES_PER_US = 500, CHANNELS_MAX = 8 };

static uint64_t now;

static uint64_t simulated_ns(void) {
    return now;
}

/*
 * ---- The store ----
 * Channels, each first come first served, a latency on top, and how late an end is noticed at
 * most: by a hundredth of the time, or one time of 128 by all of it.
 */

struct kind {
    const char *name;
    unsigned channels, bytes_per_us; /* of each */
    uint64_t latency_ns, late_ns;
};

static const struct kind plain_kind = {"one channel", 1, BYTES_PER_US, 80000, 0};

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
    unsigned fail_every, seen;
    uint64_t largest;                 /* bytes of the largest request seen */
    unsigned clearing, most_clearing; /* zeroes under way */
} store;

static void schedule(struct late late) {
    assert_true(store.late_count < LATE_MAX);
    store.late[store.late_count++] = late;
}

static void move_bytes(const struct block_request *request) {
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

static uint64_t lateness(void) {
    if (store.kind.late_ns == 0)
        return 0;
    uint64_t most = rand_r(&store.seed) % 128 == 0 ? store.kind.late_ns : store.kind.late_ns / 50;
    return (uint64_t)rand_r(&store.seed) % most;
}

static uint64_t moved(const struct block_request *request) {
    return request->operation == BLOCK_WRITE_ZEROES ? 0 : request->length;
}

static int store_submit(struct block *block, struct block_request *request) {
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
static void advance(void) {
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

static void store_drain(struct block *block) {
    (void)block;
}

static const struct block_class store_class = {
    .name = "store", .submit = store_submit, .drain = store_drain, .close = store_drain};
static struct block stores[FLOWS];

/* ---- Fixture ---- */

static struct loop *loop;
static struct qos *qos;
static struct block *flows[FLOWS];

static void start(const enum qos_class *class, unsigned count) {
    static const char *const names[FLOWS] = {"disk0", "disk1", "disk2", "disk3"};
    for (unsigned i = 0; i < count; i++) {
        stores[i] = (struct block){&store_class, {.size = STORE, .logical_block = 512}};
        struct qos_settings settings = {.class = class[i]};
        assert_int_equal(qos_add_flow(qos, &stores[i], names[i], &settings, &flows[i], NULL), 0);
    }
}

static int set_class(const char *name, enum qos_class class, struct error *err) {
    struct qos_settings settings;
    int result = qos_get(qos, name, &settings, err);
    settings.class = class;
    return result == 0 ? qos_set(qos, name, &settings, err) : result;
}

static void woken(void *context) {
    qos_wake(context);
}

static void wake_at(struct qos *woken_qos, uint64_t ns) {
    schedule((struct late){.at = ns, .wake = woken, .context = woken_qos});
}

static const struct qos_time simulated = {simulated_ns, wake_at};

static int setup(void **state) {
    (void)state;
    store = (struct store){.kind = plain_kind, .seed = 11};
    now = 1000000;
    memset(flows, 0, sizeof flows);
    assert_int_equal(loop_create(&loop, NULL), 0);
    return qos_create(loop, &simulated, &qos, NULL);
}

static int teardown(void **state) {
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

static void job_ended(struct block_request *request);

static void job_begin(void *context) {
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

static void job_ended(struct block_request *request) {
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

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Small urgent reads beside `depth` large writes, for two simulated seconds: the 99th percentile
 * of the reads, and all bytes. */
static uint64_t mixed(unsigned depth, uint64_t *total) {
    static uint64_t samples[SAMPLES];
    static struct job jobs[257];
    unsigned count = 0;
    uint64_t end = now + 2 * NS_PER_SECOND;
    stopped = false;
    for (unsigned i = 0; i <= depth; i++) {
        jobs[i] = i == 0
                      ? (struct job){.flow = flows[0],
                                     .operation = BLOCK_READ,
                                     .length = 4096,
                                     .pause_ns = 200000,
                                     .samples = samples,
                                     .sample_count = &count}
                      : (struct job){.flow = flows[1], .operation = BLOCK_WRITE, .length = 1 << 20};
        job_begin(&jobs[i]);
    }
    while (now < end)
        advance();
    stopped = true;
    *total = 0;
    for (unsigned i = 0; i <= depth; i++)
        *total += jobs[i].done_bytes;
    while (store.late_count > 0)
        advance();
    assert_true(count > 0);
    qsort(samples, count, sizeof samples[0], by_value);
    return samples[count * 99 / 100];
}

static const struct kind kinds[] = {
    {"one channel", 1, 500, 80000, 0},
    {"a virtual disk in memory", 1, 3000, 25000, 0},
    {"the same, noticed late", 1, 3000, 25000, 3000000},
    {"eight channels", 8, 400, 90000, 100000},
    {"a slow one", 1, 100, 200000, 100000},
    {"a far one", 1, 1000, 2000000, 100000},
};

static uint64_t measure(const struct kind *kind, enum qos_class a, enum qos_class b, unsigned depth,
                        uint64_t *bytes) {
    enum qos_class class[] = {a, b};
    setup(NULL);
    store.kind = *kind;
    start(class, 2);
    uint64_t p99 = mixed(depth, bytes);
    teardown(NULL);
    return p99;
}

static void test_isolation(void **state) {
    (void)state;
    static const unsigned depths[] = {16, 256};
    for (unsigned i = 0; i < ARRAY_SIZE(kinds) * ARRAY_SIZE(depths); i++) {
        const struct kind *kind = &kinds[i / ARRAY_SIZE(depths)];
        unsigned depth = depths[i % ARRAY_SIZE(depths)];
        uint64_t plain_bytes, bytes;
        uint64_t plain = measure(kind, QOS_MEDIUM, QOS_MEDIUM, depth, &plain_bytes);
        uint64_t p99 = measure(kind, QOS_URGENT, QOS_LOW, depth, &bytes);
        print_message("%s, depth %u: p99 %.3f of %.3f ms; %.1f of %.1f MB/s\n", kind->name, depth,
                      (double)p99 / 1e6, (double)plain / 1e6, (double)bytes / 2e6,
                      (double)plain_bytes / 2e6);
        assert_true(p99 * 5 <= plain);
        assert_true(bytes * 20 >= plain_bytes * 19);
    }
}

/* Reads (or writes) by 16 jobs for ten simulated seconds: requests and bytes a second. */
static void hammer(struct block *flow, enum block_operation operation, uint32_t length,
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

/* ---- Shares ---- */

enum { EACH = 32 };
static const unsigned weights[FLOWS] = {QOS_WEIGHT_HIGH, QOS_WEIGHT_MEDIUM, QOS_WEIGHT_LOW,
                                        QOS_WEIGHT_BACKGROUND};

/* Four flows of the classes below urgent that would each fill the store, small requests of the high
 * class against large ones of the background, and the low one's disk clears as well. */
static void start_all_classes(void) {
    static struct job jobs[FLOWS * EACH];
    stopped = false;
    for (unsigned i = 0; i < FLOWS * EACH; i++) {
        unsigned flow = i / EACH;
        jobs[i] = (struct job){.flow = flows[flow],
                               .operation = i % 2 ? BLOCK_READ : BLOCK_WRITE,
                               .length = 64u << 10 << (flow < 2 ? 2 * flow : 4)};
        if (flow == 2 && i % 8 == 0)
            jobs[i].operation = BLOCK_WRITE_ZEROES;
        job_begin(&jobs[i]);
    }
}

/* Bytes a second, once the flows have had them in proportion. */
static double shared_for(uint64_t ns) {
    struct qos_report before[FLOWS], after[FLOWS];
    uint64_t end = now + ns, total = 0, all = 0;
    assert_int_equal(qos_report(qos, before, FLOWS), FLOWS);
    while (now < end)
        advance();
    qos_report(qos, after, FLOWS);
    for (unsigned i = 0; i < FLOWS; i++) {
        total += after[i].bytes - before[i].bytes;
        all += weights[i];
    }
    for (unsigned i = 0; i < FLOWS; i++) {
        double share = (double)(after[i].bytes - before[i].bytes) / (double)total;
        double due = (double)weights[i] / (double)all;
        print_message("weight %u: %.4f of the bytes, due %.4f\n", weights[i], share, due);
        assert_true(share > due * 0.95 && share < due * 1.05);
    }
    return (double)total * 1e9 / (double)ns;
}

static void test_shares(void **state) {
    (void)state;
    enum qos_class class[] = {QOS_HIGH, QOS_MEDIUM, QOS_LOW, QOS_BACKGROUND};
    start(class, FLOWS);
    start_all_classes();
    assert_true(shared_for(8 * NS_PER_SECOND) > BYTES_PER_US * 1e6 * 0.95);
    /* A limit of them all is shared alike. */
    const struct block_limits limits = {.per_second[LIMIT_BPS] = 50 << 20};
    qos_limit(qos, &limits);
    double rate = shared_for(64 * NS_PER_SECOND);
    assert_true(rate > 0.98 * (50 << 20) && rate < 1.02 * (50 << 20));
    stopped = true;
}

/* What nobody else asks for is the background's; and so is clearing, of a disk of any class. */
static void test_background(void **state) {
    (void)state;
    enum qos_class class[] = {QOS_URGENT, QOS_BACKGROUND};
    double requests, bytes;
    start(class, 2);
    hammer(flows[1], BLOCK_WRITE, 1 << 20, &requests, &bytes);
    assert_true(bytes > BYTES_PER_US * 1e6 * 0.95);
    hammer(flows[0], BLOCK_WRITE_ZEROES, 1 << 20, &requests, &bytes);
    assert_true(requests > 1000);
    assert_true(store.most_clearing <= 2);
}

/* ---- Bytes ---- */

struct one {
    struct block_request request;
    bool done;
};

static void one_done(struct block_request *request) {
    container_of(request, struct one, request)->done = true;
}

static int run_one(struct block *flow, struct block_request request) {
    struct one one = {.request = request};
    one.request.done = one_done;
    if (block_submit(flow, &one.request) == 1)
        return one.request.result;
    while (!one.done)
        advance();
    return one.request.result;
}

/* Cuts a buffer into vectors of odd lengths. */
static unsigned cut_up(uint8_t *buffer, uint32_t length, struct iovec *vectors, unsigned *seed) {
    unsigned n = 0;
    while (length > 0) {
        uint32_t part = n == 200 ? length : 1 + (uint32_t)rand_r(seed) % 20000;
        part = part < length ? part : length;
        vectors[n++] = (struct iovec){buffer, part};
        buffer += part;
        length -= part;
    }
    return n;
}

static void test_bytes(void **state) {
    (void)state;
    enum { MOST = 2 << 20 };
    enum qos_class class[] = {QOS_LOW, QOS_URGENT};
    uint8_t *expected = calloc(1, STORE), *buffer = malloc(MOST);
    struct iovec vectors[256];
    unsigned seed = 5;
    store.bytes = calloc(1, STORE);
    start(class, 2);
    for (unsigned i = 0; i < 400; i++) {
        uint32_t length = (1 + (uint32_t)rand_r(&seed) % (MOST / 512)) * 512;
        uint64_t offset = (uint64_t)(rand_r(&seed) % ((STORE - MOST) / 512)) * 512;
        enum block_operation operation = i % 3 == 0   ? BLOCK_WRITE
                                         : i % 3 == 1 ? BLOCK_READ
                                                      : BLOCK_WRITE_ZEROES;
        struct block_request request = {
            .operation = operation, .offset = offset, .length = length, .vectors = vectors};
        if (operation != BLOCK_WRITE_ZEROES)
            request.vector_count = cut_up(buffer, length, vectors, &seed);
        for (uint32_t b = 0; b < length && operation == BLOCK_WRITE; b++)
            expected[offset + b] = buffer[b] = (uint8_t)(b * 7 + i);
        if (operation == BLOCK_WRITE_ZEROES)
            memset(expected + offset, 0, length);
        assert_int_equal(run_one(flows[i % 2], request), 0);
        if (operation == BLOCK_READ)
            assert_memory_equal(buffer, expected + offset, length);
        assert_int_equal(set_class("disk0", i % 5 ? QOS_LOW : QOS_HIGH, NULL), 0);
    }
    assert_memory_equal(store.bytes, expected, STORE);
    free(expected);
    free(buffer);
}

static void test_errors(void **state) {
    (void)state;
    enum qos_class class[] = {QOS_LOW, QOS_URGENT};
    struct iovec vector = {memory, sizeof memory};
    struct block_request request = {
        .operation = BLOCK_READ, .length = 1 << 20, .vectors = &vector, .vector_count = 1};
    struct error err;
    start(class, 2);
    assert_int_equal(run_one(flows[0], request), 0);
    assert_true(store.largest <= 256 << 10);
    store.fail_every = 2;
    assert_int_equal(run_one(flows[0], request), -EIO);
    store.fail_every = 0;
    assert_int_equal(run_one(flows[0], request), 0);
    request = (struct block_request){.operation = BLOCK_FLUSH};
    assert_int_equal(run_one(flows[0], request), 0);
    assert_int_equal(set_class("disk7", QOS_LOW, &err), -ENOENT);
    /* All alike: whole and uncounted. */
    struct qos_report before, after;
    qos_report(qos, &before, 1);
    assert_int_equal(before.requests, 3);
    assert_int_equal(set_class("disk0", QOS_URGENT, &err), 0);
    request = (struct block_request){
        .operation = BLOCK_READ, .length = 1 << 20, .vectors = &vector, .vector_count = 1};
    assert_int_equal(run_one(flows[0], request), 0);
    assert_int_equal(store.largest, 1 << 20);
    qos_report(qos, &after, 1);
    assert_int_equal(after.requests, before.requests);
}

/* ---- Limits ---- */

static void limit(enum block_limit which, uint64_t per_second) {
    struct qos_settings settings;
    assert_int_equal(qos_get(qos, "disk0", &settings, NULL), 0);
    settings.limits.per_second[which] = per_second;
    assert_int_equal(qos_set(qos, "disk0", &settings, NULL), 0);
}

#define ABOUT(value, wanted) assert_true((value) > (wanted)*0.97 && (value) < (wanted)*1.03)

static void test_limits(void **state) {
    (void)state;
    enum qos_class class[] = {QOS_MEDIUM, QOS_MEDIUM};
    double requests, bytes;
    start(class, 2);
    limit(LIMIT_IOPS, 500);
    hammer(flows[0], BLOCK_READ, 4096, &requests, &bytes);
    ABOUT(requests, 500 * 1.01); /* with the burst */
    hammer(flows[1], BLOCK_READ, 4096, &requests, &bytes);
    assert_true(requests > 50000); /* nobody else's limit */
    limit(LIMIT_IOPS, 0);
    limit(LIMIT_WRITE_BPS, 10 << 20);
    hammer(flows[0], BLOCK_WRITE, 256 << 10, &requests, &bytes);
    ABOUT(bytes, (10 << 20) * 1.01);
    hammer(flows[0], BLOCK_READ, 256 << 10, &requests, &bytes);
    assert_true(bytes > 400e6);
    limit(LIMIT_WRITE_IOPS, 20); /* the tighter one counts */
    hammer(flows[0], BLOCK_WRITE, 4096, &requests, &bytes);
    ABOUT(requests, 20 * 1.01);
    limit(LIMIT_WRITE_IOPS, 0);
    limit(LIMIT_WRITE_BPS, 1 << 20);
    /* Classes that differ: the limit still holds, though requests are cut. */
    assert_int_equal(set_class("disk0", QOS_LOW, NULL), 0);
    hammer(flows[0], BLOCK_WRITE, 1 << 20, &requests, &bytes);
    assert_true(bytes <= 2.7 * (1 << 20));
    assert_true(bytes >= 0.9 * (1 << 20));
}

/* A read goes past writes that their limit holds, and a limit that is lifted holds nothing. */
static void test_limits_pass(void **state) {
    (void)state;
    enum qos_class class[] = {QOS_MEDIUM};
    struct one writes[8] = {0};
    struct iovec vector = {memory, 4096};
    unsigned done = 0;
    start(class, 1);
    limit(LIMIT_WRITE_IOPS, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(writes); i++) {
        writes[i].request = (struct block_request){.operation = BLOCK_WRITE,
                                                   .length = 4096,
                                                   .vectors = &vector,
                                                   .vector_count = 1,
                                                   .done = one_done};
        assert_int_equal(block_submit(flows[0], &writes[i].request), 0);
    }
    struct block_request read = {
        .operation = BLOCK_READ, .length = 4096, .vectors = &vector, .vector_count = 1};
    uint64_t began = now;
    assert_int_equal(run_one(flows[0], read), 0);
    assert_true(now - began < NS_PER_SECOND / 10);
    limit(LIMIT_WRITE_IOPS, 0);
    while (now < began + NS_PER_SECOND / 10 && store.late_count > 0)
        advance();
    for (unsigned i = 0; i < ARRAY_SIZE(writes); i++)
        done += writes[i].done && writes[i].request.result == 0;
    assert_int_equal(done, ARRAY_SIZE(writes));
}

static void test_cancel(void **state) {
    (void)state;
    enum qos_class class[] = {QOS_MEDIUM};
    struct one ones[64] = {0};
    struct iovec vector = {memory, 4096};
    unsigned cancelled = 0, done = 0;
    start(class, 1);
    limit(LIMIT_IOPS, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(ones); i++) {
        ones[i].request = (struct block_request){.operation = BLOCK_READ,
                                                 .length = 4096,
                                                 .vectors = &vector,
                                                 .vector_count = 1,
                                                 .done = one_done};
        assert_int_equal(block_submit(flows[0], &ones[i].request), 0);
    }
    while (store.late_count > 1) /* what has started; the timer stays */
        advance();
    block_drain(flows[0]);
    for (unsigned i = 0; i < ARRAY_SIZE(ones); i++) {
        done += ones[i].done;
        cancelled += ones[i].done && ones[i].request.result == -ECANCELED;
    }
    assert_int_equal(done, ARRAY_SIZE(ones));
    assert_true(cancelled >= ARRAY_SIZE(ones) - 2);
}

/* Looked at, requests are counted though nothing orders them; some seconds later no more. */
static void test_watch(void **state) {
    (void)state;
    enum qos_class class[] = {QOS_MEDIUM, QOS_MEDIUM};
    struct qos_report report;
    double requests, bytes;
    start(class, 2);
    qos_watch(qos);
    hammer(flows[0], BLOCK_WRITE, 1 << 20, &requests, &bytes);
    qos_report(qos, &report, 1);
    assert_int_equal(store.largest, 1 << 20);
    assert_true(report.requests > 100 && report.latencies.count == report.requests);
    assert_true((double)report.requests < requests * 6);
}

/* ---- A real file, real threads ---- */

enum { THREADS = 4, ROUNDS = 300 };

struct worker {
    pthread_t thread;
    unsigned index;
    struct block *flow;
};

struct pending {
    struct block_request request;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool done;
};

static void pending_done(struct block_request *request) {
    struct pending *pending = container_of(request, struct pending, request);
    pthread_mutex_lock(&pending->mutex);
    pending->done = true;
    pthread_cond_signal(&pending->cond);
    pthread_mutex_unlock(&pending->mutex);
}

static int run_pending(struct block *flow, enum block_operation operation, uint64_t offset,
                       void *bytes, uint32_t length) {
    struct iovec vector = {bytes, length};
    struct pending pending = {.request = {.operation = operation,
                                          .offset = offset,
                                          .length = length,
                                          .vectors = &vector,
                                          .vector_count = 1,
                                          .done = pending_done}};
    pthread_mutex_init(&pending.mutex, NULL);
    pthread_cond_init(&pending.cond, NULL);
    int now_done = block_submit(flow, &pending.request);
    pthread_mutex_lock(&pending.mutex);
    while (now_done == 0 && !pending.done)
        pthread_cond_wait(&pending.cond, &pending.mutex);
    pthread_mutex_unlock(&pending.mutex);
    pthread_cond_destroy(&pending.cond);
    pthread_mutex_destroy(&pending.mutex);
    return pending.request.result;
}

static void *work(void *argument) {
    struct worker *worker = argument;
    enum { LENGTH = 512 << 10 };
    uint8_t *bytes = malloc(LENGTH);
    uint64_t offset = (uint64_t)worker->index * LENGTH;
    uintptr_t wrong = 0;
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint32_t length = i % 4 == 0 ? LENGTH : 4096;
        memset(bytes, (int)(i + worker->index), length);
        wrong += run_pending(worker->flow, BLOCK_WRITE, offset, bytes, length) != 0;
        memset(bytes, 0, length);
        wrong += run_pending(worker->flow, BLOCK_READ, offset, bytes, length) != 0;
        wrong += bytes[0] != (uint8_t)(i + worker->index) ||
                 bytes[length - 1] != (uint8_t)(i + worker->index);
    }
    free(bytes);
    return (void *)wrong;
}

static void stop_loop(void *context) {
    loop_stop(context);
}

static void *join_all(void *argument) {
    struct worker *workers = argument;
    uintptr_t wrong = 0;
    for (unsigned i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(workers[i].thread, &result);
        wrong += (uintptr_t)result;
    }
    loop_post(loop, stop_loop, loop);
    return (void *)wrong;
}

static void test_threads(void **state) {
    (void)state;
    enum qos_class class[] = {QOS_URGENT, QOS_HIGH, QOS_MEDIUM, QOS_LOW};
    char paths[FLOWS][40];
    struct worker workers[THREADS];
    pthread_t joiner;
    void *wrong;
    struct qos_report reports[FLOWS];
    for (unsigned i = 0; i < FLOWS; i++) {
        struct block *target;
        struct error err;
        char name[8] = {'d', (char)('0' + i)};
        strcpy(paths[i], "/tmp/lodge-test-qos-XXXXXX");
        int fd = mkstemp(paths[i]);
        assert_int_equal(ftruncate(fd, 4 << 20), 0);
        close(fd);
        assert_int_equal(block_open_raw(paths[i], false, &target, &err), 0);
        struct qos_settings settings = {.class = class[i]};
        assert_int_equal(qos_add_flow(qos, target, name, &settings, &flows[i], &err), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.index = i, .flow = flows[i]};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    assert_int_equal(pthread_create(&joiner, NULL, join_all, workers), 0);
    loop_run(loop);
    pthread_join(joiner, &wrong);
    assert_int_equal((uintptr_t)wrong, 0);
    assert_int_equal(qos_report(qos, reports, FLOWS), FLOWS);
    for (unsigned i = 0; i < FLOWS; i++) {
        assert_int_equal(reports[i].requests, 2 * ROUNDS);
        assert_int_equal(reports[i].in_flight + reports[i].waiting, 0);
        unlink(paths[i]);
    }
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_isolation),
        TEST(test_shares),
        TEST(test_background),
        TEST(test_bytes),
        TEST(test_errors),
        TEST(test_limits),
        TEST(test_limits_pass),
        TEST(test_cancel),
        TEST(test_watch),
        TEST(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
