/* What the classes and limits of quality of service do, in simulated time. */
#include "qos_rig.h"

/* ---- Isolation ---- */

enum { ASK_AGAIN_NS = 300000 }; /* that a guest takes until it writes again: about what one did */

/* Small urgent reads beside `depth` large writes, for two simulated seconds: the 99th percentile
 * of the reads, and all bytes. */
static uint64_t mixed(unsigned depth, uint64_t *total) {
    static uint64_t samples[SAMPLES];
    static struct job jobs[257];
    unsigned count = 0;
    uint64_t end = now + 2 * NS_PER_SECOND;
    stopped = false;
    for (unsigned i = 0; i <= depth; i++) {
        jobs[i] = i == 0 ? (struct job){.flow = flows[0],
                                        .operation = BLOCK_READ,
                                        .length = 4096,
                                        .pause_ns = 200000,
                                        .samples = samples,
                                        .sample_count = &count}
                         : (struct job){.flow = flows[1],
                                        .operation = BLOCK_WRITE,
                                        .length = 1 << 20,
                                        .pause_ns = ASK_AGAIN_NS};
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
    {"one channel", 1, 500, 80000, 0, TELLS_EACH},
    {"a virtual disk in memory", 1, 3000, 25000, 0, TELLS_EACH},
    {"the same, noticed late", 1, 3000, 25000, 3000000, TELLS_EACH},
    {"the same, in batches", 1, 3500, 30000, 40000, TELLS_BATCH},
    {"one that tells when idle", 1, 3500, 40000, 20000, TELLS_IDLE},
    {"eight channels", 8, 400, 90000, 100000, TELLS_EACH},
    {"sixteen channels", 16, 150, 90000, 100000, TELLS_EACH},
    {"a slow one", 1, 100, 200000, 100000, TELLS_EACH},
    {"a far one", 1, 1000, 2000000, 100000, TELLS_EACH},
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
        print_message("%s, depth %u: p99 %.3f of %.3f ms, %.3f; %.1f of %.1f MB/s, %.3f\n",
                      kind->name, depth, (double)p99 / 1e6, (double)plain / 1e6,
                      (double)p99 / (double)plain, (double)bytes / 2e6, (double)plain_bytes / 2e6,
                      (double)bytes / (double)plain_bytes);
        assert_true(p99 * 5 <= plain);
        assert_true(bytes * 20 >= plain_bytes * 19);
    }
}

/* ---- Shares ---- */

enum { EACH = 32 };
static const unsigned weights[FLOWS] = {QOS_WEIGHT_HIGH, QOS_WEIGHT_MEDIUM, QOS_WEIGHT_LOW,
                                        QOS_WEIGHT_BACKGROUND};

/* Four flows of the classes below urgent that would each fill the store, small requests of the high
 * class against large ones of the background; the low one's disk clears as well, and each disk has
 * work of its own. */
static void start_all_classes(void) {
    static struct job jobs[FLOWS * EACH], upkeep[FLOWS];
    stopped = false;
    for (unsigned i = 0; i < FLOWS; i++) {
        upkeep[i] = (struct job){.flow = qos_upkeep(flows[i], &stores[i]),
                                 .operation = i % 2 ? BLOCK_READ : BLOCK_WRITE,
                                 .length = 64 << 10};
        job_begin(&upkeep[i]);
    }
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
static double shared_for(uint64_t ns, bool limited) {
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
        if (limited)
            continue;
        /* Upkeep is another background flow; limits are not its. */
        double upkept = (double)(after[i].upkept - before[i].upkept) / (double)total;
        print_message("upkeep: %.4f\n", upkept);
        assert_true(upkept > 0.5 / (double)all && upkept < 1.5 / (double)all);
    }
    return (double)total * 1e9 / (double)ns;
}

static void test_shares(void **state) {
    (void)state;
    enum qos_class class[] = {QOS_HIGH, QOS_MEDIUM, QOS_LOW, QOS_BACKGROUND};
    start(class, FLOWS);
    start_all_classes();
    assert_true(shared_for(8 * NS_PER_SECOND, false) > BYTES_PER_US * 1e6 * 0.95);
    /* A limit of them all is shared alike. */
    const struct block_limits limits = {.per_second[LIMIT_BPS] = 50 << 20};
    qos_limit(qos, &limits);
    double rate = shared_for(64 * NS_PER_SECOND, true);
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

/* ---- Limits ---- */

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

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_isolation),
        TEST(test_shares),
        TEST(test_background),
        TEST(test_limits),
        TEST(test_limits_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
