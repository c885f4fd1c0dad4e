/* Requests under quality of service: bytes, errors, cancelling, reports; and a real file used by
 * several threads. */
#include <pthread.h>
#include <unistd.h>

#include "block/open.h"
#include "qos_rig.h"

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
/* A disk's own work is ordered like the rest, but cancelling what a device asks for leaves it
 * alone. */
static void test_upkeep(void **state) {
    (void)state;
    enum qos_class class[] = {QOS_LOW, QOS_URGENT};
    struct one writes[64] = {0}, own = {0};
    struct iovec vector = {memory, sizeof memory}, own_vector = {memory, 64 << 10};
    struct qos_report report;
    start(class, 2);
    struct block *upkeep = qos_upkeep(flows[0], &stores[0]);
    for (unsigned i = 0; i < ARRAY_SIZE(writes); i++) {
        writes[i].request = (struct block_request){.operation = BLOCK_WRITE,
                                                   .length = sizeof memory,
                                                   .vectors = &vector,
                                                   .vector_count = 1,
                                                   .done = one_done};
        assert_int_equal(block_submit(flows[0], &writes[i].request), 0);
    }
    own.request = (struct block_request){.operation = BLOCK_WRITE,
                                         .length = own_vector.iov_len,
                                         .vectors = &own_vector,
                                         .vector_count = 1,
                                         .done = one_done};
    const struct block_request again = own.request;
    assert_int_equal(block_submit(upkeep, &own.request), 0);
    block_cancel(flows[0]);
    while (store.late_count > 0)
        advance();
    assert_true(own.done);
    assert_int_equal(own.request.result, 0);
    assert_true(writes[63].done);
    assert_int_equal(writes[63].request.result, -ECANCELED);
    qos_report(qos, &report, 1);
    assert_int_equal(report.upkept, again.length);
    assert_int_equal(report.requests, ARRAY_SIZE(writes));
    /* All alike: nothing is ordered. */
    assert_int_equal(set_class("disk0", QOS_URGENT, NULL), 0);
    assert_int_equal(run_one(upkeep, again), 0);
    qos_report(qos, &report, 1);
    assert_int_equal(report.upkept, again.length);
    assert_int_equal(run_one(upkeep, (struct block_request){.operation = BLOCK_FLUSH}), 0);
}

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
    uint8_t *bytes = aligned_alloc(4096, LENGTH);
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
    qos_destroy(qos);
    assert_int_equal(qos_create(loop, NULL, &qos, NULL), 0);
    for (unsigned i = 0; i < FLOWS; i++) {
        struct block *target;
        struct error err;
        char name[8] = {'d', (char)('0' + i)};
        strcpy(paths[i], "/tmp/lodge-test-qos-XXXXXX");
        int fd = mkstemp(paths[i]);
        assert_int_equal(ftruncate(fd, 4 << 20), 0);
        close(fd);
        /* Half of them past the page cache, where that is possible. */
        const struct block_options past = {.format = BLOCK_FORMAT_RAW, .direct = true};
        if (i % 2 == 0 || block_open(paths[i], &past, &target, &err) != 0)
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
        TEST(test_bytes),  TEST(test_errors), TEST(test_cancel),
        TEST(test_upkeep), TEST(test_watch),  TEST(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
