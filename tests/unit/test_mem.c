/* The memory device: blocks that come and go, and requests that break the rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/log.h"
#include "device_rig.h"
#include "virtio/mem.h"

enum { PLUG, UNPLUG, UNPLUG_ALL, STATE };
enum { ACK, NACK, BUSY, ERROR };
enum { BLOCK = 2 << 20, BLOCKS = 64 };
enum { USABLE = 32, PLUGGED = 40, REQUESTED = 48 };
enum { REQUEST = RIG_DATA, ANSWER = RIG_DATA + 0x100 };
#define REGION GIB(4)

struct fixture {
    struct rig rig;
    struct rig_driver driver;
    struct device *device;
    unsigned changes;
};

static struct fixture fixture;

static void on_change(void *context) {
    ((struct fixture *)context)->changes++;
}

static int setup(void **state) {
    struct fixture *f = *state = &fixture;
    struct virtio_mem_config config = {.gpa = REGION, .size = BLOCKS * (uint64_t)BLOCK};
    *f = (struct fixture){0};
    log_set_level(LOG_ERROR);
    rig_start(&f->rig);
    assert_int_equal(
        memory_add_pluggable(f->rig.platform.memory, "plug", config.gpa, config.size, NULL), 0);
    assert_int_equal(
        device_create(&virtio_mem_class, "mem0", &f->rig.platform, &config, &f->device, NULL), 0);
    virtio_mem_listen(f->device, on_change, f);
    driver_find(&f->driver, &f->rig, VIRTIO_ID_MEM);
    driver_start(&f->driver, 3, 1, 16);
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    device_destroy(f->device);
    rig_stop(&f->rig);
    return 0;
}

static uint16_t answer_word(struct fixture *f, unsigned at) {
    uint16_t value;
    rig_get(&f->rig, ANSWER + at, &value, sizeof value);
    return value;
}

/* Of blocks by number; the answer. */
static unsigned ask_at(struct fixture *f, uint16_t type, uint64_t address, uint16_t blocks) {
    const struct driver_buffer buffers[] = {{REQUEST, 24}, {ANSWER, 10}};
    uint8_t request[24] = {0};
    uint16_t id;
    uint32_t length;
    store_le16(request, type);
    store_le64(request + 8, address);
    store_le16(request + 16, blocks);
    rig_put(&f->rig, REQUEST, request, sizeof request);
    assert_true(ring_add(&f->driver.rings[0], buffers, 1, 2) >= 0);
    driver_notify(&f->driver, 0);
    assert_true(ring_used(&f->driver.rings[0], &id, &length));
    assert_int_equal(length, 10);
    return answer_word(f, 0);
}

static unsigned ask(struct fixture *f, uint16_t type, unsigned first, uint16_t blocks) {
    return ask_at(f, type, REGION + (uint64_t)first * BLOCK, blocks);
}

static uint64_t config(struct fixture *f, unsigned offset) {
    return driver_read(&f->driver, VIRTIO_PCI_DEVICE + offset, 4) |
           driver_read(&f->driver, VIRTIO_PCI_DEVICE + offset + 4, 4) << 32;
}

static bool is_there(struct fixture *f, unsigned block) {
    uint64_t word = 5, first = REGION + (uint64_t)block * BLOCK;
    bool low = memory_write(f->rig.platform.memory, first, &word, 8) == 0;
    bool high = memory_write(f->rig.platform.memory, first + BLOCK - 8, &word, 8) == 0;
    assert_int_equal(low, high);
    return low;
}

static void blocks_come_and_go(void **state) {
    struct fixture *f = *state;
    uint64_t word;
    assert_true(config(f, 0) == BLOCK && config(f, 16) == REGION &&
                config(f, 24) == BLOCKS * (uint64_t)BLOCK && config(f, USABLE) == config(f, 24));
    assert_int_equal(ask(f, PLUG, 0, 1), NACK);
    virtio_mem_request(f->device, 8 * (uint64_t)BLOCK + 5);
    assert_true(config(f, REQUESTED) == 8 * (uint64_t)BLOCK);
    assert_int_equal(ask(f, PLUG, 2, 4), ACK);
    assert_true(config(f, PLUGGED) == 4 * (uint64_t)BLOCK);
    assert_true(!is_there(f, 1) && is_there(f, 2) && is_there(f, 5) && !is_there(f, 6));
    assert_int_equal(ask(f, PLUG, 6, 5), NACK);
    assert_int_equal(ask(f, PLUG, 5, 2), ERROR);
    assert_int_equal(ask(f, STATE, 2, 4), ACK);
    assert_int_equal(answer_word(f, 8), 0);
    assert_int_equal(ask(f, STATE, 6, 4), ACK);
    assert_int_equal(answer_word(f, 8), 1);
    assert_int_equal(ask(f, STATE, 1, 4), ACK);
    assert_int_equal(answer_word(f, 8), 2);
    assert_int_equal(ask(f, UNPLUG, 1, 2), ERROR);
    assert_int_equal(ask(f, UNPLUG, 3, 1), ACK);
    assert_true(is_there(f, 2) && !is_there(f, 3) && is_there(f, 4));
    assert_int_equal(ask(f, PLUG, 3, 1), ACK);
    rig_get(&f->rig, REGION + 3 * (uint64_t)BLOCK, &word, 8);
    assert_int_equal(word, 0); /* nothing of what was there */
    assert_int_equal(ask(f, UNPLUG_ALL, 0, 0), ACK);
    assert_false(is_there(f, 2) || is_there(f, 3));
    assert_true(config(f, PLUGGED) == 0 && f->changes >= 4);
}

static void bad_ranges_are_errors(void **state) {
    struct fixture *f = *state;
    virtio_mem_request(f->device, UINT64_MAX);
    assert_true(config(f, REQUESTED) == BLOCKS * (uint64_t)BLOCK);
    assert_int_equal(ask(f, PLUG, BLOCKS, 1), ERROR);
    assert_int_equal(ask(f, PLUG, BLOCKS - 1, 2), ERROR);
    assert_int_equal(ask(f, PLUG, 0, 0), ERROR);
    assert_int_equal(ask(f, PLUG, 0, UINT16_MAX), ERROR);
    assert_int_equal(ask_at(f, PLUG, REGION + 4096, 1), ERROR);
    assert_int_equal(ask_at(f, PLUG, REGION - BLOCK, 1), ERROR);
    assert_int_equal(ask_at(f, UNPLUG, UINT64_MAX - BLOCK + 1, 2), ERROR);
    assert_int_equal(ask(f, 4, 0, 1), ERROR);
    assert_int_equal(ask(f, UINT16_MAX, 0, 1), ERROR);
    assert_int_equal(ask(f, PLUG, 0, BLOCKS), ACK);
    assert_true(is_there(f, BLOCKS - 1));
}

static void short_requests_break_the_queue(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffers[] = {{REQUEST, 23}, {ANSWER, 10}};
    ring_add(&f->driver.rings[0], buffers, 1, 2);
    driver_notify(&f->driver, 0);
    assert_true(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
    driver_start(&f->driver, 3, 1, 16);
    const struct driver_buffer narrow[] = {{REQUEST, 24}, {ANSWER, 9}};
    ring_add(&f->driver.rings[0], narrow, 1, 2);
    driver_notify(&f->driver, 0);
    assert_true(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
}

/* 5.15.5: the driver's reset leaves the blocks, the machine's takes them. */
static void resets(void **state) {
    struct fixture *f = *state;
    struct mem_report report;
    virtio_mem_request(f->device, 4 * (uint64_t)BLOCK);
    assert_int_equal(ask(f, PLUG, 0, 4), ACK);
    driver_start(&f->driver, 3, 1, 16);
    assert_true(is_there(f, 3));
    device_reset(f->device);
    assert_false(is_there(f, 0) || is_there(f, 3));
    virtio_mem_report(f->device, &report);
    assert_true(!report.driver && report.plugged == 0 && report.requested == 4 * (uint64_t)BLOCK);
}

static void state_is_kept(void **state) {
    struct fixture *f = *state;
    struct state_buffer saved = {0};
    struct mem_report report;
    size_t used;
    virtio_mem_request(f->device, 4 * (uint64_t)BLOCK);
    assert_int_equal(ask(f, PLUG, 1, 2), ACK);
    assert_int_equal(state_save(virtio_mem_class.state, f->device, &saved, NULL), 0);
    device_reset(f->device);
    assert_int_equal(
        state_load(virtio_mem_class.state, f->device, saved.data, saved.length, &used, NULL), 0);
    assert_true(!is_there(f, 0) && is_there(f, 1) && is_there(f, 2) && !is_there(f, 3));
    virtio_mem_report(f->device, &report);
    assert_true(report.plugged == 2 * (uint64_t)BLOCK);
    state_buffer_free(&saved);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(blocks_come_and_go),
        TEST(bad_ranges_are_errors),
        TEST(short_requests_break_the_queue),
        TEST(resets),
        TEST(state_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
