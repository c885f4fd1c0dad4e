/* The balloon: pages given up, reports of free pages, statistics, and drivers that break rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/log.h"
#include "device_rig.h"
#include "virtio/balloon.h"

enum { INFLATE, DEFLATE, STATISTICS, REPORTS };
enum { F_STATS = 1 << 1, F_DEFLATE_ON_OOM = 1 << 2, F_POISON = 1 << 4, F_REPORTING = 1 << 5 };
enum { ALL = F_STATS | F_DEFLATE_ON_OOM | F_POISON | F_REPORTING };
enum { TARGET = 0, ACTUAL = 4, POISON = 12 };
enum { LIST = RIG_DATA, PAGES = RIG_DATA + 0x100000 };

struct fixture {
    struct rig rig;
    struct rig_driver driver;
    struct device *device;
    unsigned changes, news;
};

static struct fixture fixture;

static void on_change(void *context, bool news) {
    struct fixture *f = context;
    f->changes++;
    f->news += news;
}

static int setup(void **state) {
    struct fixture *f = *state = &fixture;
    struct virtio_balloon_config config = {0};
    *f = (struct fixture){0};
    log_set_level(LOG_ERROR);
    rig_start(&f->rig);
    assert_int_equal(device_create(&virtio_balloon_class, "balloon0", &f->rig.platform, &config,
                                   &f->device, NULL),
                     0);
    virtio_balloon_listen(f->device, on_change, f);
    driver_find(&f->driver, &f->rig, VIRTIO_ID_BALLOON);
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    device_destroy(f->device);
    rig_stop(&f->rig);
    return 0;
}

static bool is_used(struct fixture *f, unsigned queue) {
    uint16_t id;
    uint32_t length;
    return ring_used(&f->driver.rings[queue], &id, &length);
}

static void send(struct fixture *f, unsigned queue, uint64_t address, uint32_t length, bool write) {
    const struct driver_buffer buffer = {address, length};
    ring_add(&f->driver.rings[queue], &buffer, !write, 1);
    driver_notify(&f->driver, queue);
}

static void fill(struct fixture *f, uint64_t address, unsigned pages) {
    static uint8_t ones[PAGE_SIZE];
    memset(ones, 1, sizeof ones);
    for (unsigned i = 0; i < pages; i++)
        rig_put(&f->rig, address + (uint64_t)i * PAGE_SIZE, ones, sizeof ones);
}

static bool is_zero(struct fixture *f, uint64_t address) {
    uint8_t byte;
    rig_get(&f->rig, address, &byte, 1);
    return byte == 0;
}

static uint64_t returned(struct fixture *f) {
    struct balloon_report report;
    virtio_balloon_report(f->device, &report);
    return report.returned;
}

static uint64_t config_read(struct fixture *f, unsigned offset) {
    return driver_read(&f->driver, VIRTIO_PCI_DEVICE + offset, 4);
}

static void config_write(struct fixture *f, unsigned offset, uint32_t value) {
    driver_write(&f->driver, VIRTIO_PCI_DEVICE + offset, value, 4);
}

/* ---- Ballooning ---- */

static void pages_are_given_up(void **state) {
    struct fixture *f = *state;
    uint32_t page = PAGES >> PAGE_SHIFT;
    const uint32_t pfns[] = {page + 3, page + 2, page + 1, page + 7, page + 7};
    driver_start(&f->driver, ALL, 4, 16);
    fill(f, PAGES, 9);
    rig_put(&f->rig, LIST, pfns, sizeof pfns);
    send(f, INFLATE, LIST, sizeof pfns, false);
    assert_true(is_used(f, INFLATE));
    for (unsigned i = 0; i < 9; i++)
        assert_int_equal(is_zero(f, PAGES + i * PAGE_SIZE), i == 7 || (i >= 1 && i <= 3));
    assert_true(returned(f) == 4 * PAGE_SIZE);
    send(f, DEFLATE, LIST, sizeof pfns, false);
    assert_true(is_used(f, DEFLATE));
    assert_true(returned(f) == 4 * PAGE_SIZE);
}

static void bad_pages_are_ignored(void **state) {
    struct fixture *f = *state;
    const uint32_t pfns[] = {UINT32_MAX, RIG_RAM >> PAGE_SHIFT, 0xe0000, UINT32_MAX - 1};
    driver_start(&f->driver, ALL, 4, 16);
    rig_put(&f->rig, LIST, pfns, sizeof pfns);
    send(f, INFLATE, LIST, sizeof pfns, false);
    assert_true(is_used(f, INFLATE));
    send(f, INFLATE, LIST, 3, false); /* no whole number */
    assert_true(is_used(f, INFLATE));
    send(f, INFLATE, LIST, 8, true); /* for the device to write: it has nothing to */
    assert_true(is_used(f, INFLATE));
    assert_true(returned(f) == 0);
    assert_false(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
    send(f, INFLATE, RIG_RAM - 4, 8, false); /* not all RAM */
    assert_true(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
}

static void too_many_pages_break_the_queue(void **state) {
    struct fixture *f = *state;
    driver_start(&f->driver, ALL, 4, 16);
    send(f, INFLATE, PAGES, 0x400000, false);
    assert_true(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
}

static void the_target_is_told(void **state) {
    struct fixture *f = *state;
    struct balloon_report report;
    virtio_balloon_report(f->device, &report);
    assert_false(report.driver);
    virtio_balloon_set_target(f->device, MIB(8) + 5);
    driver_start(&f->driver, ALL, 4, 16);
    assert_int_equal(config_read(f, TARGET), 2048);
    unsigned changes = f->changes;
    config_write(f, ACTUAL, 2000);
    config_write(f, ACTUAL, 2000);
    config_write(f, TARGET, 1);
    assert_int_equal(f->changes, changes + 1);
    virtio_balloon_report(f->device, &report);
    assert_true(report.driver && report.target == MIB(8) && report.actual == 2000 * PAGE_SIZE);
    uint64_t generation = driver_read(&f->driver, VIRTIO_COMMON_GENERATION, 1);
    virtio_balloon_set_target(f->device, UINT64_MAX);
    assert_true(driver_read(&f->driver, VIRTIO_COMMON_GENERATION, 1) != generation);
    assert_true(config_read(f, TARGET) == UINT32_MAX);
    device_reset(f->device); /* the guest starts anew: what it is to give up stays */
    virtio_balloon_report(f->device, &report);
    assert_true(!report.driver && report.actual == 0 && report.target > 0);
}

/* ---- Reports ---- */

static void free_pages_go_back(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffers[] = {
        {PAGES, 2 * PAGE_SIZE}, {PAGES + 4 * PAGE_SIZE + 8, 2 * PAGE_SIZE}, {RIG_RAM, MIB(1)}};
    driver_start(&f->driver, ALL, 4, 16);
    fill(f, PAGES, 8);
    ring_add(&f->driver.rings[REPORTS], buffers, 0, 3);
    driver_notify(&f->driver, REPORTS);
    assert_true(is_used(f, REPORTS));
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(is_zero(f, PAGES + i * PAGE_SIZE), i <= 1 || i == 5);
    send(f, REPORTS, PAGES, PAGE_SIZE, false); /* readable: no report */
    assert_true(is_used(f, REPORTS));
    assert_true(returned(f) == 3 * PAGE_SIZE);
}

static void poisoned_pages_stay(void **state) {
    struct fixture *f = *state;
    driver_start(&f->driver, ALL, 4, 16);
    fill(f, PAGES, 1);
    config_write(f, POISON, 0xaaaaaaaa);
    assert_true(config_read(f, POISON) == 0xaaaaaaaa);
    send(f, REPORTS, PAGES, PAGE_SIZE, true);
    assert_true(is_used(f, REPORTS));
    assert_false(is_zero(f, PAGES));
    config_write(f, POISON, 0);
    send(f, REPORTS, PAGES, PAGE_SIZE, true);
    assert_true(is_zero(f, PAGES));
}

/* Queues are counted by the features that the driver took. */
static void queues_move_up(void **state) {
    struct fixture *f = *state;
    driver_start(&f->driver, F_REPORTING, 3, 16);
    fill(f, PAGES, 1);
    send(f, 2, PAGES, PAGE_SIZE, true);
    assert_true(is_used(f, 2));
    assert_true(is_zero(f, PAGES));
    assert_false(virtio_balloon_ask(f->device));
}

/* ---- Statistics ---- */

static void put_statistic(uint8_t *at, uint16_t tag, uint64_t value) {
    store_le16(at, tag);
    store_le64(at + 2, value);
}

static void statistics_are_asked_for(void **state) {
    struct fixture *f = *state;
    struct balloon_report report;
    uint8_t bytes[35];
    driver_start(&f->driver, ALL, 4, 16);
    assert_false(virtio_balloon_ask(f->device));
    put_statistic(bytes, BALLOON_FREE, 1234);
    put_statistic(bytes + 10, 999, 1);
    put_statistic(bytes + 20, BALLOON_AVAILABLE, UINT64_MAX);
    rig_put(&f->rig, LIST, bytes, sizeof bytes);
    send(f, STATISTICS, LIST, sizeof bytes, false);
    assert_false(is_used(f, STATISTICS)); /* kept until it is wanted */
    assert_int_equal(f->news, 1);
    virtio_balloon_report(f->device, &report);
    assert_true(report.known);
    assert_int_equal(report.present, 1 << BALLOON_FREE | 1 << BALLOON_AVAILABLE);
    assert_int_equal(report.statistics[BALLOON_FREE], 1234);
    assert_true(virtio_balloon_ask(f->device));
    assert_true(is_used(f, STATISTICS));
    assert_false(virtio_balloon_ask(f->device)); /* no answer yet */
    send(f, STATISTICS, LIST, sizeof bytes, false);
    send(f, STATISTICS, LIST, sizeof bytes, false); /* one too many: the first goes back */
    assert_true(is_used(f, STATISTICS));
    assert_false(is_used(f, STATISTICS));
    driver_start(&f->driver, ALL, 4, 16);
    virtio_balloon_report(f->device, &report);
    assert_false(report.known);
    assert_false(virtio_balloon_ask(f->device));
}

static void state_is_kept(void **state) {
    struct fixture *f = *state;
    struct state_buffer saved = {0};
    uint8_t bytes[10];
    size_t used;
    driver_start(&f->driver, ALL, 4, 16);
    put_statistic(bytes, BALLOON_FREE, 1);
    rig_put(&f->rig, LIST, bytes, sizeof bytes);
    send(f, STATISTICS, LIST, sizeof bytes, false);
    config_write(f, ACTUAL, 77);
    assert_int_equal(state_save(virtio_balloon_class.state, f->device, &saved, NULL), 0);
    device_reset(f->device);
    assert_int_equal(config_read(f, ACTUAL), 0);
    assert_int_equal(
        state_load(virtio_balloon_class.state, f->device, saved.data, saved.length, &used, NULL),
        0);
    assert_int_equal(config_read(f, ACTUAL), 77);
    assert_true(virtio_balloon_ask(f->device));
    assert_true(is_used(f, STATISTICS));
    state_buffer_free(&saved);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(pages_are_given_up),
        TEST(bad_pages_are_ignored),
        TEST(too_many_pages_break_the_queue),
        TEST(the_target_is_told),
        TEST(free_pages_go_back),
        TEST(poisoned_pages_stay),
        TEST(queues_move_up),
        TEST(statistics_are_asked_for),
        TEST(state_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
