/* The NVMe controller: registers, life cycle, queues, arbitration, doorbells, admin commands. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "nvme_rig.h"

static struct nvme_rig fixture;

static int setup(void **state) {
    *state = &fixture;
    nvme_rig_start(&fixture, false);
    return 0;
}

static int teardown(void **state) {
    nvme_rig_stop(*state);
    return 0;
}

static uint16_t admin(struct nvme_rig *n, uint8_t opcode, uint32_t nsid, uint32_t dword10,
                      uint32_t dword11) {
    return run_command(n, 0,
                       &(struct command){.opcode = opcode,
                                         .nsid = nsid,
                                         .prp1 = DATA,
                                         .dword = {[10] = dword10, [11] = dword11}});
}

static uint64_t data(struct nvme_rig *n, unsigned offset, unsigned size) {
    uint8_t bytes[8] = {0};
    rig_get(&n->rig, DATA + offset, bytes, size);
    return load_le64(bytes);
}

/* ---- Registers and life cycle ---- */

static void test_registers(void **state) {
    struct nvme_rig *n = *state;
    uint64_t cap = reg_read(n, NVME_REG_CAP, 8);
    assert_int_equal(cap & 0xffff, 1023);
    assert_int_equal(cap >> 32 & 15, 0); /* doorbells side by side */
    assert_int_equal(cap >> 37 & 1, 1);  /* the NVM command set */
    assert_int_equal(reg_read(n, NVME_REG_CAP + 4, 4), cap >> 32);
    assert_int_equal(reg_read(n, NVME_REG_VS, 4), 0x10400);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_RDY);
    assert_int_equal(reg_read(n, 0x38, 4), 0); /* no memory buffer */
    /* Bytes and words are no registers; what is beyond them is nothing. */
    reg_write(n, NVME_REG_CC, 0, 1);
    reg_write(n, NVME_REG_CC + 2, 0, 2);
    reg_write(n, NVME_REG_CC + 1, 0, 4);
    reg_write(n, 0xff8, UINT64_MAX, 8);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_RDY);
    assert_int_equal(reg_read(n, 0xff8, 8), 0);
    /* Settings stay while it is on. */
    uint64_t cc = reg_read(n, NVME_REG_CC, 4);
    reg_write(n, NVME_REG_CC, cc | 4 << 7 | 1 << 11, 4);
    assert_int_equal(reg_read(n, NVME_REG_CC, 4), cc);
}

static void test_enable(void **state) {
    struct nvme_rig *n = *state;
    static const uint32_t bad[] = {1 << 4, 5 << 7, 2 << 11, 7 << 11};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        nvme_disable(n);
        nvme_enable(n, bad[i]);
        assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_CFS);
    }
    nvme_disable(n);
    reg_write(n, NVME_REG_AQA, 0, 4);
    reg_write(n, NVME_REG_CC, 1, 4);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_CFS);
    nvme_disable(n);
    reg_write(n, NVME_REG_AQA, 0x000f000f, 4);
    reg_write(n, NVME_REG_ASQ, 0x800, 8);
    reg_write(n, NVME_REG_CC, 1, 4);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_CFS);
    /* Queues that are not in memory fail when they are used. */
    nvme_disable(n);
    nvme_enable(n, 0);
    nvme_disable(n);
    reg_write(n, NVME_REG_ASQ, 0x80000000, 8);
    reg_write(n, NVME_REG_CC, 1, 4);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_RDY);
    ring(n, 0, 1);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_RDY | NVME_CSTS_CFS);
    nvme_disable(n);
    nvme_enable(n, 0);
    reg_write(n, NVME_REG_CC, 0, 4);
    reg_write(n, NVME_REG_ACQ, UINT64_MAX - 4095, 8);
    reg_write(n, NVME_REG_CC, 1, 4);
    put_command(n, 0, &(struct command){.opcode = NVME_ADMIN_ABORT});
    ring(n, 0, 1);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_RDY | NVME_CSTS_CFS);
    nvme_disable(n);
    nvme_enable(n, 0);
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0, 1, 0), NVME_OK);
}

/* Writes that the back end has not been through with, from all namespaces. */
static void load(struct nvme_rig *n, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        struct command c =
            transfer(NVME_IO_WRITE, 1 + i % 2, 8 * i, 8, DATA + 4096 * (uint64_t)i, 0);
        put_command(n, 1, &c);
    }
    ring(n, 2, n->queues[1].tail);
}

static void test_reset_under_load(void **state) {
    struct nvme_rig *n = *state;
    for (unsigned round = 0; round < 20; round++) {
        load(n, 12);
        nvme_disable(n);
        assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), 0);
        nvme_enable(n, 0);
        assert_int_equal(create_cq(n, 1, ENTRIES, 1), NVME_OK);
        assert_int_equal(create_sq(n, 1, ENTRIES, 1, 0), NVME_OK);
    }
    /* On again before it was off. */
    load(n, 12);
    uint64_t cc = reg_read(n, NVME_REG_CC, 4);
    reg_write(n, NVME_REG_CC, 0, 4);
    queue_start(&n->queues[0], ADMIN_SQ, ADMIN_CQ, ENTRIES);
    fill_data(n, ADMIN_CQ, 0, ENTRIES * NVME_CQE);
    reg_write(n, NVME_REG_CC, cc, 4);
    block_drain(n->blocks[0]);
    block_drain(n->blocks[1]);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_RDY);
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0, 1, 0), NVME_OK);
    /* By the machine. */
    create_cq(n, 1, ENTRIES, 1);
    create_sq(n, 1, ENTRIES, 1, 0);
    load(n, 12);
    device_reset(n->device);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), 0);
    assert_int_equal(reg_read(n, NVME_REG_ASQ, 8), 0);
    nvme_enable(n, 0);
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0, 1, 0), NVME_OK);
}

static void test_shutdown(void **state) {
    struct nvme_rig *n = *state;
    load(n, 12);
    uint64_t cc = reg_read(n, NVME_REG_CC, 4);
    reg_write(n, NVME_REG_CC, cc | 1 << 14, 4);
    assert_true(rig_pump_until(&n->rig, rig_shut_down, n));
    for (unsigned i = 0; i < 12; i++)
        assert_int_equal(wait_command(n, 1), NVME_OK);
    load(n, 1); /* too late */
    rig_pump(&n->rig);
    n->waiting = 1;
    assert_false(nvme_done(n));
    nvme_disable(n);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), 0);
    nvme_enable(n, 0);
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0, 1, 0), NVME_OK);
}

static void test_subsystem_reset(void **state) {
    struct nvme_rig *n = *state;
    reg_write(n, NVME_REG_NSSR, 1, 4);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_RDY);
    load(n, 12);
    reg_write(n, NVME_REG_NSSR, NVME_NSSR_RESET, 4);
    assert_true(rig_pump_until(&n->rig, rig_not_ready, n));
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_NSSRO);
    assert_int_equal(reg_read(n, NVME_REG_CC, 4), 0);
    reg_write(n, NVME_REG_CSTS, NVME_CSTS_NSSRO, 4);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), 0);
}

/* ---- Queues ---- */

static void test_create(void **state) {
    struct nvme_rig *n = *state;
    const uint8_t cq = NVME_ADMIN_CREATE_CQ, sq = NVME_ADMIN_CREATE_SQ;
    assert_int_equal(admin(n, cq, 0, 15 << 16 | 0, 3), NVME_INVALID_QUEUE);
    assert_int_equal(admin(n, cq, 0, 15 << 16 | 17, 3), NVME_INVALID_QUEUE);
    assert_int_equal(admin(n, cq, 0, 15 << 16 | 1, 3), NVME_INVALID_QUEUE); /* is there */
    assert_int_equal(admin(n, cq, 0, 0 << 16 | 2, 3), NVME_QUEUE_SIZE);
    assert_int_equal(admin(n, cq, 0, 1024u << 16 | 2, 3), NVME_QUEUE_SIZE);
    assert_int_equal(admin(n, cq, 0, 15 << 16 | 2, 2), NVME_INVALID_FIELD); /* not contiguous */
    assert_int_equal(admin(n, cq, 0, 15 << 16 | 2, 17 << 16 | 3), NVME_INVALID_VECTOR);
    assert_int_equal(create_cq(n, 2, 1024, 2), NVME_OK);
    assert_int_equal(admin(n, sq, 0, 15 << 16 | 2, 0 << 16 | 1), NVME_INVALID_CQ);
    assert_int_equal(admin(n, sq, 0, 15 << 16 | 2, 3 << 16 | 1), NVME_INVALID_CQ);
    assert_int_equal(admin(n, sq, 0, 15 << 16 | 2, 0xffff0001), NVME_INVALID_CQ);
    assert_int_equal(admin(n, sq, 0, 1024u << 16 | 2, 2 << 16 | 1), NVME_QUEUE_SIZE);
    assert_int_equal(create_sq(n, 2, 1024, 2, 0), NVME_OK);
    assert_int_equal(delete_queue(n, NVME_ADMIN_DELETE_CQ, 2), NVME_QUEUE_DELETION);
    assert_int_equal(delete_queue(n, NVME_ADMIN_DELETE_SQ, 2), NVME_OK);
    assert_int_equal(delete_queue(n, NVME_ADMIN_DELETE_SQ, 2), NVME_INVALID_QUEUE);
    assert_int_equal(delete_queue(n, NVME_ADMIN_DELETE_CQ, 2), NVME_OK);
    assert_int_equal(delete_queue(n, NVME_ADMIN_DELETE_CQ, 2), NVME_INVALID_QUEUE);
    assert_int_equal(delete_queue(n, NVME_ADMIN_DELETE_CQ, 0), NVME_INVALID_QUEUE);
    assert_int_equal(delete_queue(n, NVME_ADMIN_DELETE_SQ, 0), NVME_INVALID_QUEUE);
    assert_int_equal(delete_queue(n, NVME_ADMIN_DELETE_SQ, 0xffff), NVME_INVALID_QUEUE);
    assert_int_equal(admin(n, 0x7f, 0, 0, 0), NVME_INVALID_OPCODE);
}

static void test_wrap(void **state) {
    struct nvme_rig *n = *state;
    for (unsigned i = 0; i < 5 * ENTRIES; i++) {
        assert_int_equal(run_transfer(n, NVME_IO_READ, i, 1, DATA, 0), NVME_OK);
        assert_int_equal(n->last.sq, 1);
        assert_int_equal(n->last.sq_head, n->queues[1].tail);
        expect_data(n, DATA, (uint8_t)i, 512);
    }
    assert_int_equal(n->rig.last_message, 1); /* the queue's vector */
}

/* More commands than the completion queue has entries: the rest waits for its head to move. */
static void test_full(void **state) {
    struct nvme_rig *n = *state;
    struct completion c = {0};
    assert_int_equal(create_cq(n, 2, 4, 2), NVME_OK);
    n->queues[2].cq_entries = 4;
    assert_int_equal(create_sq(n, 2, ENTRIES, 2, 0), NVME_OK);
    for (unsigned i = 0; i < 10; i++)
        put_command(n, 2, &(struct command){.opcode = 0x7f, .nsid = 1});
    ring(n, 4, n->queues[2].tail);
    for (unsigned taken = 0; taken < 10; taken++) {
        assert_true(take_completion(n, 2, &c));
        assert_int_equal(c.status & 0x7ff, NVME_INVALID_OPCODE);
        if (taken % 3 != 2)
            continue;
        assert_false(take_completion(n, 2, &c)); /* three are all that fit */
        ring(n, 5, n->queues[2].head);
    }
    assert_false(take_completion(n, 2, &c));
}

static void test_doorbells(void **state) {
    struct nvme_rig *n = *state;
    ring(n, 2, ENTRIES); /* beyond the queue */
    ring(n, 2, 0xffffffff);
    ring(n, 3, 1); /* an entry that was never written */
    ring(n, 3, ENTRIES + 1);
    ring(n, 4, 1); /* no such queue */
    ring(n, 33, 1);
    ring(n, 34, 1); /* no such number */
    ring(n, 2000, 1);
    reg_write(n, NVME_REG_DOORBELLS + 8, 1, 8);
    reg_write(n, NVME_REG_DOORBELLS + 8, 1, 2);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_RDY);
    /* Two kinds of mistake, told one at a time: the second when the first's log page was read. */
    put_command(n, 0, &(struct command){.opcode = NVME_ADMIN_ASYNC_EVENT});
    put_command(n, 0, &(struct command){.opcode = NVME_ADMIN_ASYNC_EVENT});
    ring(n, 0, n->queues[0].tail);
    assert_int_equal(wait_command(n, 0), NVME_OK);
    assert_int_equal(n->last.result, NVME_ERROR_DOORBELL_VALUE << 8 | NVME_LOG_ERROR << 16);
    n->waiting = 0;
    assert_false(nvme_done(n));
    put_command(n, 0,
                &(struct command){.opcode = NVME_ADMIN_GET_LOG_PAGE,
                                  .prp1 = DATA,
                                  .dword = {[10] = 15 << 16 | NVME_LOG_ERROR}});
    ring(n, 0, n->queues[0].tail);
    assert_int_equal(wait_command(n, 0), NVME_OK);
    assert_int_equal(n->last.result, NVME_ERROR_DOORBELL_REGISTER << 8 | NVME_LOG_ERROR << 16);
    assert_int_equal(wait_command(n, 0), NVME_OK);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 9, 1, DATA, 0), NVME_OK);
}

static void test_delete_under_load(void **state) {
    struct nvme_rig *n = *state;
    for (unsigned round = 0; round < 20; round++) {
        load(n, 12);
        assert_int_equal(delete_queue(n, NVME_ADMIN_DELETE_SQ, 1), NVME_OK);
        /* What was fetched is complete by now. */
        struct completion c;
        unsigned completed = 0;
        while (take_completion(n, 1, &c))
            completed++;
        assert_int_equal(completed, 12);
        assert_int_equal(delete_queue(n, NVME_ADMIN_DELETE_CQ, 1), NVME_OK);
        assert_int_equal(create_cq(n, 1, ENTRIES, 1), NVME_OK);
        assert_int_equal(create_sq(n, 1, ENTRIES, 1, 0), NVME_OK);
    }
}

/* Without MSI-X the pin follows what is unread. */
static void test_pin(void **state) {
    struct nvme_rig *n = *state;
    enum { INTERRUPT_STATUS = 8 };
    unsigned at = (unsigned)rig_read(&n->rig, n->config + 0x34, 1);
    while (rig_read(&n->rig, n->config + at, 1) != 0x11)
        at = (unsigned)rig_read(&n->rig, n->config + at + 1, 1);
    rig_write(&n->rig, n->config + at + 2, 0, 2);
    struct command c = transfer(NVME_IO_READ, 1, 0, 1, DATA, 0);
    put_command(n, 0, &(struct command){.opcode = NVME_ADMIN_ABORT});
    ring(n, 0, n->queues[0].tail);
    assert_true(rig_read(&n->rig, n->config + 6, 2) & INTERRUPT_STATUS);
    reg_write(n, NVME_REG_INTMS, 1, 4);
    assert_false(rig_read(&n->rig, n->config + 6, 2) & INTERRUPT_STATUS);
    reg_write(n, NVME_REG_INTMC, 1, 4);
    assert_true(rig_read(&n->rig, n->config + 6, 2) & INTERRUPT_STATUS);
    assert_int_equal(wait_command(n, 0), NVME_OK);
    assert_false(rig_read(&n->rig, n->config + 6, 2) & INTERRUPT_STATUS);
    assert_int_equal(run_command(n, 1, &c), NVME_OK);
    nvme_disable(n);
    assert_false(rig_read(&n->rig, n->config + 6, 2) & INTERRUPT_STATUS);
}

/* ---- Doorbells in memory, arbitration ---- */

static void set_shadow(struct nvme_rig *n, unsigned doorbell, uint32_t value) {
    uint8_t bytes[4];
    store_le32(bytes, value);
    rig_put(&n->rig, SHADOW + 4 * doorbell, bytes, sizeof bytes);
}

static uint32_t event_index(struct nvme_rig *n, unsigned doorbell) {
    uint8_t bytes[4];
    rig_get(&n->rig, EVENT + 4 * doorbell, bytes, sizeof bytes);
    return load_le32(bytes);
}

static uint16_t share_doorbells(struct nvme_rig *n, uint64_t shadow, uint64_t event) {
    return run_command(
        n, 0,
        &(struct command){.opcode = NVME_ADMIN_DOORBELL_BUFFER, .prp1 = shadow, .prp2 = event});
}

static void test_shadow_doorbells(void **state) {
    struct nvme_rig *n = *state;
    assert_int_equal(share_doorbells(n, SHADOW + 4, EVENT), NVME_INVALID_FIELD);
    assert_int_equal(share_doorbells(n, SHADOW, 0), NVME_INVALID_FIELD);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 1, 1, DATA, 0), NVME_OK);
    assert_int_equal(share_doorbells(n, SHADOW, EVENT), NVME_OK);
    assert_int_equal(event_index(n, 2), 1); /* where the queue is */
    /* A driver that only rings registers. */
    assert_int_equal(run_transfer(n, NVME_IO_READ, 2, 1, DATA, 0), NVME_OK);
    /* One that tells in memory and rings once, for all that is there. */
    for (unsigned i = 0; i < 5; i++) {
        struct command c = transfer(NVME_IO_READ, 1, i, 1, DATA + 512 * i, 0);
        put_command(n, 1, &c);
    }
    assert_int_equal(event_index(n, 2), 2);
    set_shadow(n, 2, n->queues[1].tail);
    ring(n, 2, n->queues[1].tail);
    assert_int_equal(event_index(n, 2), n->queues[1].tail);
    for (unsigned i = 0; i < 5; i++) {
        n->waiting = 1;
        assert_true(nvme_done(n));
    }
    set_shadow(n, 3, n->queues[1].head);
    /* Values that cannot be are told, and nothing else. */
    set_shadow(n, 2, 12345);
    set_shadow(n, 3, 0xffffffff);
    ring(n, 0, n->queues[0].tail);
    assert_int_equal(reg_read(n, NVME_REG_CSTS, 4), NVME_CSTS_RDY);
    set_shadow(n, 2, n->queues[1].tail);
    set_shadow(n, 3, n->queues[1].head);
    assert_int_equal(run_transfer(n, NVME_IO_READ, 3, 1, DATA, 0), NVME_OK);
    /* The buffers vanish: the controller fails, and comes back by a reset. */
    assert_int_equal(share_doorbells(n, 0x80000000, EVENT), NVME_OK);
    assert_true(reg_read(n, NVME_REG_CSTS, 4) & NVME_CSTS_CFS);
    nvme_disable(n);
    nvme_enable(n, 0);
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0, 1, 0), NVME_OK);
}

static bool is_armed(void *context) {
    struct nvme_rig *n = context;
    return event_index(n, 2) == n->queues[1].tail;
}

/* A driver that keeps several commands in flight and rings fast need not ring each time. */
static void test_polling(void **state) {
    struct nvme_rig *n = *state;
    struct nvme_counters before, after;
    unsigned rings = 0, commands = 0;
    assert_int_equal(share_doorbells(n, SHADOW, EVENT), NVME_OK);
    nvme_count(n->device, &before);
    for (unsigned round = 0; round < 200; round++) {
        for (unsigned i = 0; i < 8; i++, commands++) {
            uint16_t old = n->queues[1].tail;
            struct command c = transfer(NVME_IO_READ, 1, i, 1, DATA + 512 * i, 0);
            put_command(n, 1, &c);
            set_shadow(n, 2, n->queues[1].tail);
            uint16_t passed = (uint16_t)(n->queues[1].tail - event_index(n, 2) - 1);
            if (passed >= (uint16_t)(n->queues[1].tail - old))
                continue;
            ring(n, 2, n->queues[1].tail);
            rings++;
        }
        for (unsigned i = 0; i < 8; i++) {
            while (!take_completion(n, 1, &n->last))
                rig_pump(&n->rig);
            assert_int_equal(n->last.status, NVME_OK);
            set_shadow(n, 3, n->queues[1].head);
        }
    }
    nvme_count(n->device, &after);
    assert_int_equal(after.commands - before.commands, commands);
    assert_int_equal(after.doorbells - before.doorbells, rings);
    assert_true(after.polls > 0);
    assert_true(rings < commands); /* how many fewer is a matter of speed */
    /* And when it stops, the controller stops looking and asks to be rung again. */
    assert_true(rig_pump_until(&n->rig, is_armed, n));
}

/* Order of completions of commands that end at once, put into queues 1 to 3 which share a
 * completion queue. */
static void start_queues(struct nvme_rig *n, uint32_t settings, const uint8_t *priorities) {
    nvme_disable(n);
    nvme_enable(n, settings);
    assert_int_equal(create_cq(n, 1, 64, 1), NVME_OK);
    n->queues[1].cq_entries = 64;
    for (unsigned q = 1; q < QUEUES; q++) {
        n->queues[q].sq = IO_SQ + (uint64_t)q * QUEUE_STEP;
        n->queues[q].tail = 0;
        assert_int_equal(create_sq(n, q, ENTRIES, 1, priorities[q]), NVME_OK);
    }
    assert_int_equal(share_doorbells(n, SHADOW, EVENT), NVME_OK);
}

static void order(struct nvme_rig *n, char *text, unsigned each) {
    struct completion c;
    for (unsigned q = QUEUES - 1; q >= 1; q--) {
        for (unsigned i = 0; i < each; i++)
            put_command(n, q, &(struct command){.opcode = 0x7f, .nsid = 1});
        set_shadow(n, 2 * q, n->queues[q].tail);
    }
    ring(n, 2, n->queues[1].tail);
    for (unsigned i = 0; take_completion(n, 1, &c); i++) {
        text[i] = (char)('0' + c.sq);
        text[i + 1] = 0;
    }
    set_shadow(n, 3, n->queues[1].head);
    ring(n, 3, n->queues[1].head);
}

static void test_arbitration(void **state) {
    struct nvme_rig *n = *state;
    char text[64];
    start_queues(n, 0, (const uint8_t[]){0, 3, 2, 0}); /* priorities mean nothing */
    order(n, text, 3);
    assert_string_equal(text, "231231231");
    assert_int_equal(admin(n, NVME_ADMIN_SET_FEATURES, 0, NVME_FEATURE_ARBITRATION, 1), NVME_OK);
    order(n, text, 4);
    assert_string_equal(text, "223311223311");
    /* Weighted: urgent first; then 3 high, 1 low a round. */
    start_queues(n, 1 << 11, (const uint8_t[]){0, 3, 1, 0});
    assert_int_equal(admin(n, NVME_ADMIN_SET_FEATURES, 0, NVME_FEATURE_ARBITRATION, 2 << 24),
                     NVME_OK);
    order(n, text, 6);
    assert_string_equal(text, "333333222122211111");
}

/* ---- Identify, logs, features, events ---- */

static void test_identify(void **state) {
    struct nvme_rig *n = *state;
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0, 1, 0), NVME_OK);
    expect_data(n, DATA + 4, 'a', 1);
    assert_int_equal(data(n, 80, 4), 0x10400);
    assert_int_equal(data(n, 516, 4), 2);
    assert_int_equal(data(n, 512, 2), 0x4466);
    for (uint32_t nsid = 1; nsid <= 2; nsid++) {
        assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, nsid, 0, 0), NVME_OK);
        assert_int_equal(data(n, 0, 8), DISK_SECTORS);
        assert_int_equal(data(n, 130, 1), 9);
        assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, nsid, 3, 0), NVME_OK);
        assert_int_equal(data(n, 0, 2), 0x1003);
        assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, nsid, 0x11, 0), NVME_OK);
        assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, nsid, 0x12, 0), NVME_OK);
        assert_int_equal(data(n, 0, 4), 0x10001);
    }
    static const uint8_t lists[] = {0x02, 0x10};
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0, lists[i], 0), NVME_OK);
        assert_int_equal(data(n, 0, 8), UINT64_C(0x200000001));
        assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 1, lists[i], 0), NVME_OK);
        assert_int_equal(data(n, 0, 8), 2);
        assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0xfffffffd, lists[i], 0), NVME_OK);
        assert_int_equal(data(n, 0, 8), 0);
        assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0xfffffffe, lists[i], 0),
                         NVME_INVALID_NAMESPACE);
    }
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0, 0x13, 0), NVME_OK);
    assert_int_equal(data(n, 0, 4), 0x10001);
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0, 0x20013, 0), NVME_OK);
    assert_int_equal(data(n, 0, 4), 0);
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 3, 0, 0), NVME_INVALID_NAMESPACE);
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 0, 0x40, 0), NVME_INVALID_FIELD);
    struct command c = {.opcode = NVME_ADMIN_IDENTIFY, .prp1 = 0x80000000, .dword = {[10] = 1}};
    assert_int_equal(run_command(n, 0, &c), NVME_DATA_TRANSFER);
    c.prp1 = DATA + 8; /* over two pages */
    c.prp2 = 0x80000000;
    assert_int_equal(run_command(n, 0, &c), NVME_DATA_TRANSFER);
    c.prp2 = DATA + 4096;
    assert_int_equal(run_command(n, 0, &c), NVME_OK);
    c.flags = 1 << 6;
    assert_int_equal(run_command(n, 0, &c), NVME_INVALID_FIELD);
}

static uint16_t get_log(struct nvme_rig *n, unsigned log, uint32_t dwords, uint64_t offset) {
    struct command c = {.opcode = NVME_ADMIN_GET_LOG_PAGE, .prp1 = DATA, .prp2 = LISTS};
    c.dword[10] = (dwords - 1) << 16 | log;
    c.dword[11] = (dwords - 1) >> 16;
    c.dword[12] = (uint32_t)offset;
    c.dword[13] = (uint32_t)(offset >> 32);
    return run_command(n, 0, &c);
}

static void test_logs(void **state) {
    struct nvme_rig *n = *state;
    assert_int_equal(run_transfer(n, NVME_IO_READ, 0, 8, DATA, 0), NVME_OK);
    assert_int_equal(run_transfer(n, NVME_IO_READ, DISK_SECTORS, 8, DATA, 0), NVME_LBA_RANGE);
    assert_int_equal(get_log(n, NVME_LOG_HEALTH, 128, 0), NVME_OK);
    assert_int_equal(data(n, 1, 2), 313);
    assert_int_equal(data(n, 32, 8), 1); /* thousands of sectors, rounded up */
    assert_int_equal(data(n, 64, 8), 1);
    assert_int_equal(data(n, 176, 8), 1);
    assert_int_equal(get_log(n, NVME_LOG_ERROR, 32, 0), NVME_OK);
    assert_int_equal(data(n, 0, 8), 1);
    assert_int_equal(data(n, 8, 2), 1);
    assert_int_equal(data(n, 16, 8), DISK_SECTORS);
    assert_int_equal(data(n, 24, 4), 1);
    assert_int_equal(data(n, 64, 8), 0);
    assert_int_equal(get_log(n, NVME_LOG_FIRMWARE, 128, 0), NVME_OK);
    assert_int_equal(data(n, 0, 1), 1);
    assert_int_equal(get_log(n, NVME_LOG_EFFECTS, 1024, 0), NVME_OK);
    assert_int_equal(data(n, 4 * NVME_ADMIN_IDENTIFY, 4), 1);
    assert_int_equal(data(n, 1024 + 4 * NVME_IO_READ, 4), 1);
    assert_int_equal(data(n, 1024 + 4 * 0x04, 4), 0); /* write uncorrectable */
    assert_int_equal(get_log(n, NVME_LOG_EFFECTS, 1, 1024 + 4 * NVME_IO_WRITE), NVME_OK);
    assert_int_equal(data(n, 0, 4), 3);
    /* To the end and beyond. */
    fill_data(n, DATA, 0xff, 4096);
    assert_int_equal(get_log(n, NVME_LOG_CHANGED, 1024, 0), NVME_OK);
    expect_data(n, DATA, 0, 4096);
    assert_int_equal(get_log(n, NVME_LOG_HEALTH, 128, 508), NVME_OK);
    expect_data(n, DATA, 0, 512);
    assert_int_equal(get_log(n, NVME_LOG_HEALTH, 1, 516), NVME_INVALID_FIELD);
    assert_int_equal(get_log(n, NVME_LOG_HEALTH, 1, 2), NVME_INVALID_FIELD);
    assert_int_equal(get_log(n, NVME_LOG_HEALTH, 1, UINT64_MAX - 3), NVME_INVALID_FIELD);
    assert_int_equal(get_log(n, NVME_LOG_HEALTH, 0x10000000, 0), NVME_INVALID_FIELD);
    assert_int_equal(get_log(n, 0x7f, 1, 0), NVME_INVALID_LOG);
}

static void test_features(void **state) {
    struct nvme_rig *n = *state;
    const uint8_t get = NVME_ADMIN_GET_FEATURES, set = NVME_ADMIN_SET_FEATURES;
    static const struct {
        uint8_t feature;
        uint32_t value, kept, standard;
    } simple[] = {
        {NVME_FEATURE_ARBITRATION, 0x01020307, 0x01020307, 0},
        {NVME_FEATURE_POWER, 0x40, 0x40, 0},
        {NVME_FEATURE_ERROR_RECOVERY, 9, 9, 0},
        {NVME_FEATURE_WRITE_CACHE, 0, 0, 1},
        {NVME_FEATURE_COALESCING, 0x0102, 0x0102, 0},
        {NVME_FEATURE_ATOMICITY, 3, 1, 0},
        {NVME_FEATURE_EVENTS, 0xffffffff, 0x11f, 0},
        {NVME_FEATURE_TEMPERATURE, 350, 350, 343},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(simple); i++) {
        assert_int_equal(admin(n, get, 0, simple[i].feature, 0), NVME_OK);
        assert_int_equal(n->last.result, simple[i].standard);
        assert_int_equal(admin(n, set, 0, simple[i].feature, simple[i].value), NVME_OK);
        assert_int_equal(admin(n, get, 0, simple[i].feature, 0), NVME_OK);
        assert_int_equal(n->last.result, simple[i].kept);
        assert_int_equal(admin(n, get, 0, 1 << 8 | simple[i].feature, 0), NVME_OK);
        assert_int_equal(n->last.result, simple[i].standard);
        assert_int_equal(admin(n, get, 0, 3 << 8 | simple[i].feature, 0), NVME_OK);
        assert_int_equal(n->last.result, 4);
        assert_int_equal(admin(n, set, 0, 1u << 31 | simple[i].feature, 0), NVME_NOT_SAVEABLE);
    }
    /* Without the write cache, writes last when they complete. */
    fill_data(n, DATA, 0x42, 512);
    assert_int_equal(run_transfer(n, NVME_IO_WRITE, 0, 1, DATA, 0), NVME_OK);
    assert_int_equal(admin(n, get, 0, NVME_FEATURE_QUEUES, 0), NVME_OK);
    assert_int_equal(n->last.result, 15 << 16 | 15);
    assert_int_equal(admin(n, set, 0, NVME_FEATURE_QUEUES, 0), NVME_SEQUENCE);
    assert_int_equal(admin(n, set, 0, NVME_FEATURE_POWER, 1), NVME_INVALID_FIELD);
    assert_int_equal(admin(n, set, 0, NVME_FEATURE_VECTOR, 1 << 16 | 2), NVME_OK);
    assert_int_equal(admin(n, get, 0, NVME_FEATURE_VECTOR, 2), NVME_OK);
    assert_int_equal(n->last.result, 1 << 16 | 2);
    assert_int_equal(admin(n, get, 0, NVME_FEATURE_VECTOR, 17), NVME_INVALID_FIELD);
    assert_int_equal(admin(n, get, 0, 3, 0), NVME_INVALID_FIELD);
    assert_int_equal(admin(n, set, 0, 0xff, 0), NVME_INVALID_FIELD);
    assert_int_equal(admin(n, get, 0, 7 << 8 | NVME_FEATURE_POWER, 0), NVME_INVALID_FIELD);
    fill_data(n, DATA, 0x11, 8);
    assert_int_equal(admin(n, set, 0, NVME_FEATURE_TIMESTAMP, 0), NVME_OK);
    fill_data(n, DATA, 0, 8);
    assert_int_equal(admin(n, get, 0, NVME_FEATURE_TIMESTAMP, 0), NVME_OK);
    assert_true(data(n, 0, 6) - UINT64_C(0x111111111111) < 60000);
    assert_int_equal(data(n, 6, 1), 2);
    nvme_disable(n);
    nvme_enable(n, 0);
    assert_int_equal(admin(n, get, 0, NVME_FEATURE_WRITE_CACHE, 0), NVME_OK);
    assert_int_equal(n->last.result, 1);
    assert_int_equal(admin(n, set, 0, NVME_FEATURE_QUEUES, 0x00030003), NVME_OK);
    assert_int_equal(n->last.result, 15 << 16 | 15);
    assert_int_equal(admin(n, set, 0, NVME_FEATURE_QUEUES, 0xffff), NVME_INVALID_FIELD);
}

/* Interrupts since the last time. Timers run when the rig is pumped, not before. */
static uint64_t interrupts(struct nvme_rig *n) {
    static uint64_t before;
    struct nvme_counters counters;
    nvme_count(n->device, &counters);
    uint64_t since = counters.interrupts - before;
    before = counters.interrupts;
    return since;
}

static bool interrupted(void *context) {
    return interrupts(context) > 0;
}

static void end_some(struct nvme_rig *n, unsigned count) {
    struct completion c;
    while (count-- > 0) {
        put_command(n, 1, &(struct command){.opcode = 0x7f, .nsid = 1});
        ring(n, 2, n->queues[1].tail);
        assert_true(take_completion(n, 1, &c));
        ring(n, 3, n->queues[1].head);
    }
}

static void test_coalescing(void **state) {
    struct nvme_rig *n = *state;
    const uint8_t set = NVME_ADMIN_SET_FEATURES;
    assert_int_equal(admin(n, set, 0, NVME_FEATURE_COALESCING, 255 << 8 | 3), NVME_OK);
    interrupts(n);
    end_some(n, 3);
    assert_int_equal(interrupts(n), 0);
    end_some(n, 1);
    assert_int_equal(interrupts(n), 1);
    end_some(n, 1);
    assert_true(rig_pump_until(&n->rig, interrupted, n)); /* after so long */
    end_some(n, 1);
    nvme_class.quiesce(n->device, true);
    assert_int_equal(interrupts(n), 1); /* before it is saved */
    nvme_class.quiesce(n->device, false);
    assert_int_equal(admin(n, set, 0, NVME_FEATURE_VECTOR, 1 << 16 | 1), NVME_OK);
    interrupts(n);
    end_some(n, 2);
    assert_int_equal(interrupts(n), 2); /* not this vector */
    assert_int_equal(admin(n, set, 0, NVME_FEATURE_VECTOR, 1), NVME_OK);
    interrupts(n);
    end_some(n, 1);
    assert_int_equal(interrupts(n), 0);
    nvme_disable(n);
    nvme_enable(n, 0); /* forgets it, and what was held back */
    assert_int_equal(admin(n, NVME_ADMIN_GET_FEATURES, 0, NVME_FEATURE_COALESCING, 0), NVME_OK);
    assert_int_equal(n->last.result, 0);
}

static void test_events(void **state) {
    struct nvme_rig *n = *state;
    const struct command ask = {.opcode = NVME_ADMIN_ASYNC_EVENT};
    uint16_t ids[5];
    for (unsigned i = 0; i < 5; i++)
        ids[i] = put_command(n, 0, &ask);
    ring(n, 0, n->queues[0].tail);
    assert_int_equal(wait_command(n, 0), NVME_EVENT_LIMIT);
    assert_int_equal(n->last.id, ids[4]);
    /* Taking one back: its completion comes first. */
    put_command(
        n, 0,
        &(struct command){.opcode = NVME_ADMIN_ABORT, .dword = {[10] = (uint32_t)ids[1] << 16}});
    ring(n, 0, n->queues[0].tail);
    assert_int_equal(wait_command(n, 0), NVME_ABORTED);
    assert_int_equal(n->last.id, ids[1]);
    assert_int_equal(wait_command(n, 0), NVME_OK);
    assert_int_equal(n->last.result, 0);
    assert_int_equal(admin(n, NVME_ADMIN_ABORT, 0, 0x12340001, 0), NVME_OK);
    assert_int_equal(n->last.result, 1);
    /* It is never warmer than 313 K; a threshold below makes that an event. */
    assert_int_equal(admin(n, NVME_ADMIN_SET_FEATURES, 0, NVME_FEATURE_EVENTS, 0x1f), NVME_OK);
    put_command(n, 0,
                &(struct command){.opcode = NVME_ADMIN_SET_FEATURES,
                                  .dword = {[10] = NVME_FEATURE_TEMPERATURE, [11] = 300}});
    ring(n, 0, n->queues[0].tail);
    assert_int_equal(wait_command(n, 0), NVME_OK);
    assert_int_equal(n->last.result,
                     NVME_EVENT_HEALTH | NVME_HEALTH_TEMPERATURE << 8 | NVME_LOG_HEALTH << 16);
    assert_int_equal(wait_command(n, 0), NVME_OK);
    assert_int_equal(get_log(n, NVME_LOG_HEALTH, 128, 0), NVME_OK);
    assert_int_equal(data(n, 0, 1), 2);
}

/* A namespace grows: an event, and the list says which. */
static void test_grow(void **state) {
    struct nvme_rig *n = *state;
    struct error err;
    assert_int_equal(admin(n, NVME_ADMIN_SET_FEATURES, 0, NVME_FEATURE_EVENTS, 0x100), NVME_OK);
    put_command(n, 0, &(struct command){.opcode = NVME_ADMIN_ASYNC_EVENT});
    ring(n, 0, n->queues[0].tail);
    assert_int_equal(block_resize(n->blocks[1], 2 * DISK_SECTORS * 512, &err), 0);
    assert_int_equal(wait_command(n, 0), NVME_OK);
    assert_int_equal(n->last.result, NVME_EVENT_NOTICE | NVME_LOG_CHANGED << 16);
    assert_int_equal(get_log(n, NVME_LOG_CHANGED, 1024, 0), NVME_OK);
    assert_int_equal(data(n, 0, 8), 2);
    assert_int_equal(get_log(n, NVME_LOG_CHANGED, 1024, 0), NVME_OK);
    assert_int_equal(data(n, 0, 8), 0);
    assert_int_equal(admin(n, NVME_ADMIN_IDENTIFY, 2, 0, 0), NVME_OK);
    assert_int_equal(data(n, 0, 8), 2 * DISK_SECTORS);
    struct command c = transfer(NVME_IO_WRITE, 2, 2 * DISK_SECTORS - 8, 8, DATA, 0);
    assert_int_equal(run_command(n, 1, &c), NVME_OK);
    assert_int_equal(block_resize(n->blocks[1], 512, &err), -EINVAL);
}

/* What is saved comes back: a queue goes on where it was. */
static void test_state(void **state) {
    struct nvme_rig *n = *state;
    struct state_buffer buffer = {0};
    struct error err;
    size_t used;
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(run_transfer(n, NVME_IO_READ, i, 1, DATA, 0), NVME_OK);
    assert_int_equal(state_save(nvme_class.state, n->device, &buffer, &err), 0);
    device_reset(n->device);
    assert_int_equal(
        state_load(nvme_class.state, n->device, buffer.data, buffer.length, &used, &err), 0);
    for (unsigned i = 0; i < 2 * ENTRIES; i++)
        assert_int_equal(run_transfer(n, NVME_IO_READ, i, 1, DATA, 0), NVME_OK);
    state_buffer_free(&buffer);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_registers),
        TEST(test_enable),
        TEST(test_reset_under_load),
        TEST(test_shutdown),
        TEST(test_subsystem_reset),
        TEST(test_create),
        TEST(test_wrap),
        TEST(test_full),
        TEST(test_doorbells),
        TEST(test_pin),
        TEST(test_shadow_doorbells),
        TEST(test_polling),
        TEST(test_identify),
        TEST(test_logs),
        TEST(test_features),
        TEST(test_coalescing),
        TEST(test_events),
        TEST(test_arbitration),
        TEST(test_delete_under_load),
        TEST(test_state),
        TEST(test_grow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
