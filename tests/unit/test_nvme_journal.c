/* A controller whose process ends at the worst moments, and its successor on the same memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "nvme_rig.h"

enum { COMMANDS = 8, HELD_MAX = 64 };

/* A disk that answers when it is told to. */
struct held {
    struct block block;
    struct block_request *requests[HELD_MAX];
    unsigned count, started;
};

static int held_submit(struct block *block, struct block_request *request) {
    struct held *held = container_of(block, struct held, block);
    assert_true(held->count < HELD_MAX);
    held->requests[held->count++] = request;
    held->started++;
    return 0;
}

static void let_go(struct held *held, unsigned count) {
    while (held->count > 0 && count-- > 0) {
        struct block_request *request = held->requests[0];
        memmove(held->requests, held->requests + 1, --held->count * sizeof held->requests[0]);
        request->result = 0;
        request->done(request);
    }
}

static void held_drain(struct block *block) {
    let_go(container_of(block, struct held, block), HELD_MAX);
}

static const struct block_class held_class = {.submit = held_submit, .drain = held_drain};

struct test {
    struct nvme_rig rig;
    struct held held;
    struct nvme_journal *journal;
    uint8_t seen[1 << 10]; /* completions of each command's id */
};

static void create(struct test *t) {
    struct nvme_rig *n = &t->rig;
    struct nvme_config config = {
        .blocks = {&t->held.block}, .count = 1, .serial = "journal", .journal = t->journal};
    assert_int_equal(
        device_create(&nvme_class, "nvme0", &n->rig.platform, &config, &n->device, NULL), 0);
    n->bar = 0;
    find_controller(n);
    enable_msix(n);
}

static int setup(void **state) {
    struct test *t = calloc(1, sizeof *t);
    *state = t;
    log_set_level(LOG_ERROR);
    t->journal = calloc(1, nvme_journal_size());
    t->rig.next_id = 1;
    t->held.block = (struct block){
        .class = &held_class,
        .info = {.size = 1 << 20, .logical_block = 512, .physical_block = 512, .name = "held"}};
    rig_start(&t->rig.rig);
    create(t);
    nvme_enable(&t->rig, 0);
    assert_int_equal(create_cq(&t->rig, 1, ENTRIES, 1), NVME_OK);
    assert_int_equal(create_sq(&t->rig, 1, ENTRIES, 1, 0), NVME_OK);
    return 0;
}

static int teardown(void **state) {
    struct test *t = *state;
    device_destroy(t->rig.device);
    rig_stop(&t->rig.rig);
    free(t->journal);
    free(t);
    return 0;
}

/* The process ends: what is in flight never comes back to the driver. Its successor begins. */
static void crash(struct test *t) {
    device_destroy(t->rig.device);
    t->held.count = 0;
    create(t);
}

static void put_reads(struct test *t, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        struct command c = transfer(NVME_IO_READ, 1, i, 1, DATA + 4096ull * i, 0);
        put_command(&t->rig, 1, &c);
    }
    ring(&t->rig, 2, t->rig.queues[1].tail);
}

static unsigned take_all(struct test *t) {
    struct completion c;
    unsigned count = 0;
    for (; take_completion(&t->rig, 1, &c); count++) {
        assert_int_equal(c.status, NVME_OK);
        t->seen[c.id]++;
    }
    ring(&t->rig, 3, t->rig.queues[1].head);
    return count;
}

static void expect_each_once(const struct test *t, unsigned first) {
    for (unsigned id = first; id < t->rig.next_id; id++)
        assert_int_equal(t->seen[id], 1);
}

/* Every command is completed once, wherever the process ended. */
static void in_flight(void **state) {
    struct test *t = *state;
    unsigned first = t->rig.next_id;
    put_reads(t, COMMANDS);
    let_go(&t->held, 3);
    assert_int_equal(take_all(t), 3);
    crash(t);
    assert_int_equal(take_all(t), 0);
    nvme_resume(t->rig.device);
    assert_int_equal(t->held.count, COMMANDS - 3);
    let_go(&t->held, 2);
    crash(t); /* again, with two more completions that the driver has not seen yet */
    nvme_resume(t->rig.device);
    assert_int_equal(t->held.count, COMMANDS - 5);
    let_go(&t->held, COMMANDS);
    assert_int_equal(take_all(t), COMMANDS - 3);
    expect_each_once(t, first);
    /* And it goes on from there. */
    put_reads(t, COMMANDS);
    let_go(&t->held, COMMANDS);
    assert_int_equal(take_all(t), COMMANDS);
    expect_each_once(t, first);
}

/* It ended between keeping a completion and writing it to the queue. */
static void before_the_entry(void **state) {
    static const uint8_t nothing[NVME_CQE];
    struct test *t = *state;
    unsigned first = t->rig.next_id;
    put_reads(t, 2);
    let_go(&t->held, 1);
    rig_put(&t->rig.rig, t->rig.queues[1].cq, nothing, sizeof nothing);
    crash(t);
    assert_int_equal(take_all(t), 0);
    unsigned messages = t->rig.rig.messages;
    nvme_resume(t->rig.device);
    assert_int_equal(take_all(t), 1);
    assert_true(t->rig.rig.messages > messages); /* whose interrupt may be missing as well */
    let_go(&t->held, 1);
    assert_int_equal(take_all(t), 1);
    expect_each_once(t, first);
}

/* It ended while the controller was being reset: the driver finds it reset. */
static void resetting(void **state) {
    struct test *t = *state;
    put_reads(t, COMMANDS);
    reg_write(&t->rig, NVME_REG_CC, 0, 4);
    assert_true(rig_not_ready(&t->rig) == false);
    crash(t);
    nvme_resume(t->rig.device);
    assert_int_equal(t->held.count, 0);
    assert_true(rig_not_ready(&t->rig));
    nvme_enable(&t->rig, 0);
    assert_int_equal(create_cq(&t->rig, 1, ENTRIES, 1), NVME_OK);
    assert_int_equal(create_sq(&t->rig, 1, ENTRIES, 1, 0), NVME_OK);
    put_reads(t, 1);
    let_go(&t->held, 1);
    assert_int_equal(take_all(t), 1);
}

/* A queue that is being deleted: its commands end first, then the deletion. */
static void deletion(void **state) {
    struct test *t = *state;
    unsigned first = t->rig.next_id;
    put_reads(t, 2);
    struct command c = {.opcode = NVME_ADMIN_DELETE_SQ, .dword = {[10] = 1}};
    put_command(&t->rig, 0, &c);
    ring(&t->rig, 0, t->rig.queues[0].tail);
    crash(t);
    nvme_resume(t->rig.device);
    assert_int_equal(t->held.count, 2);
    let_go(&t->held, 2);
    struct completion done = {0};
    for (unsigned i = 0; i < 2; i++) {
        assert_true(take_completion(&t->rig, 1, &done));
        t->seen[done.id]++;
    }
    assert_int_equal(wait_command(&t->rig, 0), NVME_OK);
    t->seen[t->rig.last.id]++;
    expect_each_once(t, first);
}

/* A disk without write cache says so, and refuses to have it set. */
static void write_through(void **state) {
    struct test *t = *state;
    device_destroy(t->rig.device);
    memset(t->journal, 0, nvme_journal_size());
    struct nvme_config config = {.blocks = {&t->held.block}, .count = 1, .write_through = true};
    assert_int_equal(
        device_create(&nvme_class, "nvme0", &t->rig.rig.platform, &config, &t->rig.device, NULL),
        0);
    t->rig.bar = 0;
    find_controller(&t->rig);
    nvme_enable(&t->rig, 0);
    struct command identify = {.opcode = NVME_ADMIN_IDENTIFY, .prp1 = DATA, .dword = {[10] = 1}};
    assert_int_equal(run_command(&t->rig, 0, &identify), NVME_OK);
    uint8_t cache;
    rig_get(&t->rig.rig, DATA + 525, &cache, 1);
    assert_int_equal(cache & 1, 0);
    struct command set = {.opcode = NVME_ADMIN_SET_FEATURES,
                          .dword = {[10] = NVME_FEATURE_WRITE_CACHE, [11] = 1}};
    assert_int_equal(run_command(&t->rig, 0, &set), NVME_INVALID_FIELD);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(in_flight, setup, teardown),
        cmocka_unit_test_setup_teardown(before_the_entry, setup, teardown),
        cmocka_unit_test_setup_teardown(resetting, setup, teardown),
        cmocka_unit_test_setup_teardown(deletion, setup, teardown),
        cmocka_unit_test_setup_teardown(write_through, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
