/* What a full host means: requests are kept, tried again, given up; before a simulated store that
 * answers at once, or when told to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/loop.h"
#include "block/hold.h"
#include "block/written.h"

enum { SIZE = 1 << 20, MOST = 32 };

static struct store {
    struct block block;
    int error;  /* of all that changes something */
    bool later; /* requests wait for complete_all */
    struct block_request *waiting[MOST];
    unsigned waiting_count, tries;
    uint64_t takes; /* bytes that a write gets done before the error */
} store;

static void perform(struct block_request *request) {
    request->result = request->operation == BLOCK_READ ? 0 : store.error;
    if (request->operation == BLOCK_WRITE && store.error != 0 && request->length > store.takes) {
        request->offset += store.takes; /* as a file does it */
        request->length -= store.takes;
    }
}

static int store_submit(struct block *block, struct block_request *request) {
    store.tries++;
    if (!store.later) {
        perform(request);
        return 1;
    }
    assert_true(store.waiting_count < MOST);
    store.waiting[store.waiting_count++] = request;
    return 0;
}

static void complete_all(void) {
    unsigned count = store.waiting_count;
    store.waiting_count = 0;
    for (unsigned i = 0; i < count; i++) {
        perform(store.waiting[i]);
        store.waiting[i]->done(store.waiting[i]);
    }
}

static void store_drain(struct block *block) {
    complete_all();
}

static void store_close(struct block *block) {
}

static const struct block_class store_class = {
    .name = "store", .submit = store_submit, .drain = store_drain, .close = store_close};

static struct loop *loop;
static struct block *hold;
static unsigned told;

static void tell(void *context) {
    told++;
}

static void make(bool keep) {
    struct hold_config config = {.loop = loop, .keep = keep, .told = tell};
    assert_int_equal(hold_add(&store.block, &config, &hold, NULL), 0);
}

static int setup(void **state) {
    store = (struct store){.block = {&store_class, {.size = SIZE, .logical_block = 512}}};
    told = 0;
    assert_int_equal(loop_create(&loop, NULL), 0);
    make(true);
    return 0;
}

static int teardown(void **state) {
    block_close(hold);
    loop_destroy(loop);
    return 0;
}

struct one {
    struct block_request request;
    unsigned done;
};

static void one_done(struct block_request *request) {
    container_of(request, struct one, request)->done++;
}

static int submit(struct one *one, enum block_operation operation) {
    *one = (struct one){
        .request = {.operation = operation, .length = 65536, .result = 1, .done = one_done}};
    int result = block_submit(hold, &one->request);
    one->done += (unsigned)result;
    return result;
}

static void stop(void *context) {
    loop_stop(loop);
}

static void run_posted(void) {
    loop_post(loop, stop, NULL);
    loop_run(loop);
}

static void test_passes(void **state) {
    static const enum block_operation all[] = {BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD,
                                               BLOCK_WRITE_ZEROES};
    struct one one;
    for (unsigned later = 0; later < 2; later++) {
        store.later = later;
        for (unsigned i = 0; i < ARRAY_SIZE(all); i++) {
            assert_int_equal(submit(&one, all[i]), !later);
            complete_all();
            assert_int_equal(one.done, 1);
            assert_int_equal(one.request.result, 0);
        }
    }
    assert_int_equal(told, 0);
}

static void test_keeps(void **state) {
    struct hold_failures failures;
    struct one ones[3], read;
    store.error = -ENOSPC;
    store.takes = 4096;
    for (unsigned i = 0; i < 3; i++) {
        store.later = i == 1;
        assert_int_equal(submit(&ones[i], i == 2 ? BLOCK_FLUSH : BLOCK_WRITE), 0);
    }
    complete_all();
    store.later = false;
    assert_int_equal(told, 3);
    assert_int_equal(hold_kept(hold), 3);
    hold_take(hold, &failures);
    assert_int_equal(failures.count, 3);
    assert_int_equal(failures.kept, 3);
    assert_int_equal(failures.error, -ENOSPC);
    hold_take(hold, &failures);
    assert_int_equal(failures.count, 0);
    assert_int_equal(failures.kept, 3);
    assert_int_equal(submit(&read, BLOCK_READ), 1);
    assert_int_equal(read.request.result, 0);
    /* Again, in vain; then with space. */
    hold_retry(hold);
    assert_int_equal(hold_kept(hold), 3);
    assert_int_equal(told, 6);
    assert_int_equal(ones[0].done + ones[1].done + ones[2].done, 0);
    store.error = 0;
    store.tries = 0;
    hold_retry(hold);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(ones[i].done, 1);
        assert_int_equal(ones[i].request.result, 0);
    }
    assert_int_equal(store.tries, 3);
    assert_int_equal(hold_kept(hold), 0);
    hold_retry(hold);
    assert_int_equal(store.tries, 3);
}

/* Other errors are told and answered; all are, when nothing is to be kept. */
static void test_answers(void **state) {
    struct hold_failures failures;
    struct one one;
    store.error = -EIO;
    assert_int_equal(submit(&one, BLOCK_WRITE), 1);
    assert_int_equal(one.request.result, -EIO);
    hold_take(hold, &failures);
    assert_int_equal(failures.error, -EIO);
    assert_int_equal(failures.kept, 0);
    block_close(hold);
    make(false);
    store.error = -ENOSPC;
    for (unsigned later = 0; later < 2; later++) {
        store.later = later;
        assert_int_equal(submit(&one, BLOCK_WRITE), !later);
        complete_all();
        assert_int_equal(one.done, 1);
        assert_int_equal(one.request.result, -ENOSPC);
    }
    assert_int_equal(told, 3);
}

/* Cancelled: not within the call, but soon, and with the error. */
static void test_cancel(void **state) {
    struct one ones[2];
    store.error = -EDQUOT;
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(submit(&ones[i], BLOCK_WRITE), 0);
    block_cancel(hold);
    assert_int_equal(ones[0].done + ones[1].done, 0);
    assert_int_equal(hold_kept(hold), 0);
    run_posted();
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(ones[i].done, 1);
        assert_int_equal(ones[i].request.result, -EDQUOT);
    }
}

/* Drained: what is kept, and what is going to be. */
static void test_drain(void **state) {
    struct one ones[4];
    store.error = -ENOSPC;
    for (unsigned i = 0; i < 4; i++) {
        store.later = i >= 2;
        assert_int_equal(submit(&ones[i], BLOCK_WRITE), 0);
    }
    block_drain(hold);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(ones[i].done, 1);
        assert_int_equal(ones[i].request.result, -ENOSPC);
    }
    assert_int_equal(hold_kept(hold), 0);
}

/* Which blocks have been changed: marked once that is done, and before it is answered. */
static void test_log(void **state) {
    struct written_log *log = written_log_create(SIZE);
    struct one ones[3];
    uint64_t map[SIZE / 4096 / 64] = {0};
    assert_non_null(log);
    assert_int_equal(written_log_words(log), ARRAY_SIZE(map));
    store.later = true;
    assert_int_equal(submit(&ones[0], BLOCK_WRITE), 0); /* under way already */
    assert_int_equal(hold_log(hold, log), 0);
    assert_int_equal(submit(&ones[1], BLOCK_READ), 0);
    written_log_fetch(log, map);
    assert_int_equal(map[0], 0);
    complete_all();
    written_log_fetch(log, map);
    assert_int_equal(map[0], 0xffff);
    store.later = false;
    struct block_request zeroes = {.operation = BLOCK_WRITE_ZEROES,
                                   .offset = 63 * 4096 + 512,
                                   .length = 2 * 4096,
                                   .done = ones[0].request.done};
    map[0] = 0;
    assert_int_equal(block_submit(hold, &zeroes), 1);
    written_log_fetch(log, map);
    assert_int_equal(map[0], UINT64_C(1) << 63);
    assert_int_equal(map[1], 3);
    assert_int_equal(hold_log(hold, NULL), 0);
    assert_int_equal(submit(&ones[2], BLOCK_WRITE), 1);
    map[0] = 0;
    written_log_fetch(log, map);
    assert_int_equal(map[0], 0);
    written_log_mark(log, SIZE - 512, UINT64_MAX);
    written_log_mark(log, SIZE, 512);
    written_log_fetch(log, map);
    assert_int_equal(map[ARRAY_SIZE(map) - 1], UINT64_C(1) << 63);
    written_log_destroy(log);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {TEST(test_passes), TEST(test_keeps), TEST(test_answers),
                                       TEST(test_cancel), TEST(test_drain), TEST(test_log)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
