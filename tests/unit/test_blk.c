/* The block device over a raw image: requests good and bad, errors, reset under load, locks. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "device_rig.h"
#include "virtio/blk.h"

enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };
enum { OK = 0, IOERR = 1, UNSUPP = 2, PENDING = 0xff };
enum { QUEUES = 3 };
enum { SECTORS = 2048, IMAGE = SECTORS * 512 };
enum { HEADER = RIG_DATA, STATUS = RIG_DATA + 0x100, DATA = RIG_DATA + 0x1000 };
#define FEATURE_RO    VIRTIO_FEATURE(5)
#define FEATURE_FLUSH VIRTIO_FEATURE(9)
#define FEATURE_MQ    VIRTIO_FEATURE(12)

struct fixture {
    struct rig rig;
    struct rig_driver driver;
    struct device *device;
    struct block *block;
    char path[64];
    unsigned queue; /* of the next request */
    uint32_t used_length;
};

static struct fixture fixture;

/* An image whose sector n is full of the byte n. */
static void make_image(struct fixture *f, size_t size) {
    strcpy(f->path, "/tmp/lodge-test-blk-XXXXXX");
    int fd = mkstemp(f->path);
    assert_true(fd >= 0);
    uint8_t *bytes = malloc(size);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(i / 512);
    assert_int_equal(write(fd, bytes, size), size);
    free(bytes);
    close(fd);
}

static void attach(struct fixture *f, bool readonly, bool packed) {
    struct error err;
    assert_int_equal(block_open_raw(f->path, readonly, &f->block, &err), 0);
    struct virtio_blk_config config = {.options.packed = packed,
                                       .block = f->block,
                                       .queues = QUEUES,
                                       .serial = "a serial that is longer than 20"};
    assert_int_equal(
        device_create(&virtio_blk_class, "disk0", &f->rig.platform, &config, &f->device, NULL), 0);
    driver_find(&f->driver, &f->rig, VIRTIO_ID_BLOCK);
    uint64_t features = FEATURE_FLUSH | VIRTIO_FEATURE(VIRTIO_F_EVENT_IDX);
    driver_start(&f->driver, features | (packed ? VIRTIO_FEATURE(VIRTIO_F_RING_PACKED) : 0), QUEUES,
                 64);
}

static int setup_kind(void **state, bool readonly, bool packed) {
    struct fixture *f = *state = &fixture;
    *f = (struct fixture){0};
    log_set_level(LOG_ERROR);
    rig_start(&f->rig);
    make_image(f, IMAGE);
    attach(f, readonly, packed);
    return 0;
}

static int setup(void **state) {
    return setup_kind(state, false, false);
}

static int setup_packed(void **state) {
    return setup_kind(state, false, true);
}

static int setup_readonly(void **state) {
    return setup_kind(state, true, false);
}

static int teardown(void **state) {
    struct fixture *f = *state;
    device_destroy(f->device);
    block_close(f->block);
    rig_stop(&f->rig);
    unlink(f->path);
    return 0;
}

/* ---- Requests ---- */

static uint8_t status_of(struct fixture *f) {
    uint8_t status;
    rig_get(&f->rig, STATUS, &status, 1);
    return status;
}

static bool request_is_used(void *context) {
    struct fixture *f = context;
    uint16_t id;
    return ring_used(&f->driver.rings[f->queue], &id, &f->used_length);
}

static void put_header(struct fixture *f, uint32_t type, uint64_t sector) {
    uint8_t header[16] = {0}, pending = PENDING;
    store_le32(header, type);
    store_le64(header + 8, sector);
    rig_put(&f->rig, HEADER, header, sizeof header);
    rig_put(&f->rig, STATUS, &pending, 1);
}

/* A request with one data buffer; answers its status. */
static uint8_t request(struct fixture *f, uint32_t type, uint64_t sector, uint32_t length,
                       bool to_guest) {
    const struct driver_buffer buffers[] = {{HEADER, 16}, {DATA, length}, {STATUS, 1}};
    const struct driver_buffer plain[] = {{HEADER, 16}, {STATUS, 1}};
    bool done = false;
    put_header(f, type, sector);
    if (length == 0)
        ring_add(&f->driver.rings[f->queue], plain, 1, 2);
    else
        ring_add(&f->driver.rings[f->queue], buffers, to_guest ? 1 : 2, 3);
    driver_notify(&f->driver, f->queue);
    done = rig_pump_until(&f->rig, request_is_used, f);
    assert_true(done);
    return status_of(f);
}

static void expect_sectors(struct fixture *f, uint64_t sector, unsigned count, int value) {
    uint8_t bytes[512];
    assert_int_equal(request(f, IN, sector, count * 512, true), OK);
    assert_int_equal(f->used_length, count * 512 + 1);
    for (unsigned i = 0; i < count; i++) {
        rig_get(&f->rig, DATA + 512 * i, bytes, sizeof bytes);
        uint8_t expected = value >= 0 ? (uint8_t)value : (uint8_t)(sector + i);
        for (unsigned j = 0; j < sizeof bytes; j++)
            assert_int_equal(bytes[j], expected);
    }
}

static void fill(struct fixture *f, uint8_t value, unsigned sectors) {
    uint8_t bytes[512];
    memset(bytes, value, sizeof bytes);
    for (unsigned i = 0; i < sectors; i++)
        rig_put(&f->rig, DATA + 512 * i, bytes, sizeof bytes);
}

static void test_read_write(void **state) {
    struct fixture *f = *state;
    expect_sectors(f, 0, 8, -1);
    expect_sectors(f, SECTORS - 3, 3, -1);
    fill(f, 0xee, 5);
    assert_int_equal(request(f, OUT, 100, 5 * 512, false), OK);
    assert_int_equal(f->used_length, 1);
    assert_int_equal(request(f, FLUSH, 0, 0, false), OK);
    expect_sectors(f, 100, 5, 0xee);
    expect_sectors(f, 99, 1, -1);
    expect_sectors(f, 105, 1, -1);
}

static void test_large_request(void **state) {
    struct fixture *f = *state;
    fill(f, 0x5a, 1024);
    assert_int_equal(request(f, OUT, 1, 1024 * 512, false), OK);
    expect_sectors(f, 1, 1024, 0x5a);
    expect_sectors(f, 1025, 1, -1);
}

/* Header, data and status in odd pieces: no layout is assumed (2.7.4). */
static void test_framing(void **state) {
    struct fixture *f = *state;
    uint8_t bytes[1024];
    const struct driver_buffer buffers[] = {
        {HEADER, 3}, {HEADER + 3, 13}, {DATA, 1}, {DATA + 0x1000, 1000}, {DATA + 0x2000, 24}};
    put_header(f, IN, 7);
    ring_add(&f->driver.rings[0], buffers, 2, 5);
    driver_notify(&f->driver, 0);
    assert_true(rig_pump_until(&f->rig, request_is_used, f));
    rig_get(&f->rig, DATA + 0x2000, bytes, 24);
    /* The last writable byte is the status. */
    assert_int_equal(bytes[23], OK);
    assert_int_equal(bytes[22], 8);
    rig_get(&f->rig, DATA + 0x1000, bytes, 1000);
    assert_int_equal(bytes[0], 7);
    assert_int_equal(bytes[511], 8);
}

static void test_bad_requests(void **state) {
    struct fixture *f = *state;
    assert_int_equal(request(f, IN, SECTORS, 512, true), IOERR);
    assert_int_equal(request(f, IN, SECTORS - 1, 1024, true), IOERR);
    assert_int_equal(request(f, IN, UINT64_MAX, 512, true), IOERR);
    assert_int_equal(request(f, OUT, UINT64_MAX / 512, 512, false), IOERR);
    assert_int_equal(request(f, IN, 0, 511, true), IOERR);
    assert_int_equal(request(f, OUT, 0, 100, false), IOERR);
    assert_int_equal(request(f, IN, 0, 0, true), OK);
    assert_int_equal(request(f, 2, 0, 512, true), UNSUPP);
    assert_int_equal(request(f, 0xffffffff, 0, 0, true), UNSUPP);
    expect_sectors(f, 0, 4, -1);
}

static void test_malformed(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer no_status[] = {{HEADER, 16}};
    const struct driver_buffer short_header[] = {{HEADER, 15}, {STATUS, 1}};
    const struct driver_buffer nowhere[] = {
        {HEADER, 16}, {UINT64_C(0x9000000000), 512}, {STATUS, 1}};
    for (unsigned i = 0; i < 3; i++) {
        driver_start(&f->driver, FEATURE_FLUSH, 1, 64);
        put_header(f, IN, 0);
        if (i == 0)
            ring_add(&f->driver.rings[0], no_status, 1, 1);
        else if (i == 1)
            ring_add(&f->driver.rings[0], short_header, 1, 2);
        else
            ring_add(&f->driver.rings[0], nowhere, 1, 3);
        driver_notify(&f->driver, 0);
        assert_true(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
    }
    driver_start(&f->driver, FEATURE_FLUSH, 1, 64);
    expect_sectors(f, 0, 1, -1);
}

static void test_serial(void **state) {
    struct fixture *f = *state;
    char serial[21] = {0};
    assert_int_equal(request(f, GET_ID, 0, 20, true), OK);
    rig_get(&f->rig, DATA, serial, 20);
    assert_string_equal(serial, "a serial that is lon");
    assert_int_equal(f->used_length, 21);
    assert_int_equal(request(f, GET_ID, 0, 3, true), OK);
    assert_int_equal(f->used_length, 4);
}

static uint8_t range_request(struct fixture *f, uint32_t type, uint64_t sector, uint32_t sectors,
                             uint32_t flags) {
    uint8_t range[16];
    store_le64(range, sector);
    store_le32(range + 8, sectors);
    store_le32(range + 12, flags);
    rig_put(&f->rig, DATA, range, sizeof range);
    return request(f, type, 0, sizeof range, false);
}

static void test_zeroes(void **state) {
    struct fixture *f = *state;
    assert_int_equal(range_request(f, WRITE_ZEROES, 10, 5, 0), OK);
    assert_int_equal(range_request(f, WRITE_ZEROES, 200, 300, 1), OK);
    expect_sectors(f, 10, 5, 0);
    expect_sectors(f, 15, 1, -1);
    expect_sectors(f, 200, 300, 0);
    expect_sectors(f, 500, 1, -1);
    assert_int_equal(range_request(f, DISCARD, 600, 8, 0), OK);
    expect_sectors(f, 608, 1, -1);
    assert_int_equal(range_request(f, DISCARD, 600, 8, 1), UNSUPP);
    assert_int_equal(range_request(f, WRITE_ZEROES, 600, 8, 2), UNSUPP);
    assert_int_equal(range_request(f, WRITE_ZEROES, SECTORS - 1, 2, 0), IOERR);
    assert_int_equal(range_request(f, WRITE_ZEROES, UINT64_MAX, 1, 0), IOERR);
    assert_int_equal(range_request(f, WRITE_ZEROES, 0, UINT32_MAX, 0), IOERR);
    assert_int_equal(range_request(f, DISCARD, 0, 0, 0), OK);
    assert_int_equal(request(f, DISCARD, 0, 15, false), IOERR);
    assert_int_equal(request(f, WRITE_ZEROES, 0, 32, false), IOERR);
}

static void test_readonly(void **state) {
    struct fixture *f = *state;
    assert_true(driver_offered(&f->driver) & FEATURE_RO);
    expect_sectors(f, 3, 1, -1);
    assert_int_equal(request(f, OUT, 3, 512, false), IOERR);
    assert_int_equal(range_request(f, WRITE_ZEROES, 3, 1, 0), IOERR);
    expect_sectors(f, 3, 1, -1);
}

static void test_config(void **state) {
    struct fixture *f = *state;
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE, 8), SECTORS);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE + 20, 4), 512);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE + 24, 1), 3);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE + 56, 1), 1);
}

/* What is asked in one queue is answered there, and nowhere else. */
static void test_queues(void **state) {
    struct fixture *f = *state;
    uint16_t id;
    uint32_t length;
    assert_true(driver_offered(&f->driver) & FEATURE_MQ);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE + 34, 2), QUEUES);
    for (f->queue = QUEUES; f->queue-- > 0;) {
        fill(f, (uint8_t)(0x50 + f->queue), 1);
        assert_int_equal(request(f, OUT, f->queue, 512, false), OK);
        assert_int_equal(request(f, FLUSH, 0, 0, false), OK);
        expect_sectors(f, f->queue, 1, (int)(0x50 + f->queue));
        for (unsigned other = 0; other < QUEUES; other++)
            assert_false(ring_used(&f->driver.rings[other], &id, &length));
    }
}

static bool all_used(void *context) {
    struct fixture *f = context;
    request_is_used(f);
    return f->driver.rings[0].free_count == f->driver.rings[0].size;
}

/* Many at once, completed in whatever order the workers finish. */
static void test_many(void **state) {
    struct fixture *f = *state;
    put_header(f, OUT, 0);
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 21; i++) {
            uint8_t header[16] = {OUT};
            store_le64(header + 8, 50 * i);
            rig_put(&f->rig, HEADER + 16 * i, header, sizeof header);
            const struct driver_buffer buffers[] = {
                {HEADER + 16 * i, 16}, {DATA, 20 * 512}, {DATA + 0x100000 + i, 1}};
            assert_true(ring_add(&f->driver.rings[0], buffers, 2, 3) >= 0);
        }
        driver_notify(&f->driver, 0);
        assert_true(rig_pump_until(&f->rig, all_used, f));
    }
}

static void submit_read(struct fixture *f, unsigned slot) {
    const struct driver_buffer buffers[] = {
        {HEADER, 16}, {DATA + 512 * slot, 512}, {DATA + 0x100000 + slot, 1}};
    assert_true(ring_add(&f->driver.rings[0], buffers, 1, 3) >= 0);
    driver_notify(&f->driver, 0);
}

static bool was_interrupted(void *context) {
    return driver_read(&((struct fixture *)context)->driver, VIRTIO_PCI_ISR, 1) & 1;
}

/*
 * Requests that come fast are interrupted for together; while the clock stands still nobody finds
 * that they fail to come. Where the host does them on other threads each has its interrupt.
 */
static void test_interrupts_together(void **state) {
    enum { FAST = 64, TOGETHER = 8, MORE = 2 * TOGETHER };
    struct fixture *f = *state;
    unsigned interrupts = 0;
    bool at_once = true;
    driver_start(&f->driver, FEATURE_FLUSH, 1, 64); /* without EVENT_IDX it wants every one */
    put_header(f, IN, 0);
    for (unsigned i = 0; i < FAST + MORE; i++) {
        submit_read(f, 0);
        at_once &= all_used(f);
        interrupts += was_interrupted(f);
        assert_true(rig_pump_until(&f->rig, all_used, f));
    }
    assert_true(!at_once || interrupts == FAST - 1 + MORE / TOGETHER);
}

/* An interrupt may be for several requests, yet none is without: whether the driver waits for each
 * request, keeps many in flight, or waits again. */
static void test_interrupts(void **state) {
    enum { ROUNDS = 100, DEPTH = 13 };
    struct fixture *f = *state;
    vm_clock_resume(f->rig.platform.clock);
    driver_start(&f->driver, FEATURE_FLUSH, 1, 64);
    put_header(f, IN, 0);
    for (unsigned round = 0; round < 3 * ROUNDS; round++) {
        unsigned depth = round / ROUNDS == 1 ? DEPTH : 1;
        bool after_last = was_interrupted(f);
        for (unsigned i = 0; i < depth; i++) {
            submit_read(f, i);
            after_last = was_interrupted(f);
        }
        assert_true(after_last || rig_pump_until(&f->rig, was_interrupted, f));
        assert_true(rig_pump_until(&f->rig, all_used, f));
    }
}

static bool reset_is_through(void *context) {
    return driver_status(&((struct fixture *)context)->driver) == 0;
}

/* A reset with requests under way is over when they are, and they are never answered. */
static void test_reset_under_load(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffers[] = {{HEADER, 16}, {DATA, 20 * 512}, {STATUS, 1}};
    for (unsigned round = 0; round < 30; round++) {
        put_header(f, round & 1 ? OUT : FLUSH, 0);
        for (unsigned i = 0; i < 20; i++)
            ring_add(&f->driver.rings[0], buffers, 2, 3);
        driver_notify(&f->driver, 0);
        if (round % 3 == 0)
            device_reset(f->device);
        driver_write(&f->driver, VIRTIO_COMMON_STATUS, 0, 1);
        assert_true(rig_pump_until(&f->rig, reset_is_through, f));
        driver_start(&f->driver, FEATURE_FLUSH, 1, 64);
    }
    expect_sectors(f, SECTORS - 1, 1, -1);
}

/* ---- The raw back end ---- */

/* What a full disk or a lowered limit does: the guest sees an I/O error, nothing else. */
static void test_host_error(void **state) {
    struct fixture *f = *state;
    struct rlimit old, low;
    log_set_level(LOG_ERROR);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    low = old;
    low.rlim_cur = 4096;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    uint8_t status = request(f, OUT, 1000, 512, false);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(status, IOERR);
    assert_int_equal(request(f, OUT, 1000, 512, false), OK);
}

static void test_locks(void **state) {
    struct fixture *f = *state;
    struct block *other;
    struct error err;
    assert_int_equal(block_open_raw(f->path, false, &other, &err), -EBUSY);
    assert_non_null(strstr(err.text, "in use"));
    assert_int_equal(block_open_raw(f->path, true, &other, &err), -EBUSY);
}

static void test_shared_lock(void **state) {
    struct fixture *f = *state;
    struct block *other;
    assert_int_equal(block_open_raw(f->path, true, &other, NULL), 0);
    block_close(other);
    assert_int_equal(block_open_raw(f->path, false, &other, NULL), -EBUSY);
}

static void test_open_errors(void **state) {
    struct fixture *f = *state;
    struct block *other;
    struct error err;
    char path[80];
    assert_int_equal(block_open_raw("/nonexistent/disk", false, &other, &err), -ENOENT);
    assert_int_equal(block_open_raw("/tmp", true, &other, &err), -EINVAL);
    assert_int_equal(block_open_raw("/dev/null", false, &other, &err), -EINVAL);
    snprintf(path, sizeof path, "%s.empty", f->path);
    FILE *file = fopen(path, "w");
    fclose(file);
    assert_int_equal(block_open_raw(path, false, &other, &err), -EINVAL);
    unlink(path);
}

/* A file that ends inside a sector reads as zeroes behind its end. */
static void test_odd_size(void **state) {
    struct fixture *f = *state;
    device_destroy(f->device);
    block_close(f->block);
    assert_int_equal(truncate(f->path, 512 * 9 + 100), 0);
    attach(f, false, false);
    uint8_t bytes[512];
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE, 8), 10);
    fill(f, 0xcc, 2);
    assert_int_equal(request(f, IN, 8, 1024, true), OK);
    rig_get(&f->rig, DATA + 512, bytes, sizeof bytes);
    assert_int_equal(bytes[99], 9);
    assert_int_equal(bytes[100], 0);
    assert_int_equal(bytes[511], 0);
    fill(f, 0xcc, 1);
    assert_int_equal(request(f, OUT, 9, 512, false), OK);
    expect_sectors(f, 9, 1, 0xcc);
}

int main(void) {
#define TEST(name, start) cmocka_unit_test_setup_teardown(name, start, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_read_write, setup),
        TEST(test_read_write, setup_packed),
        TEST(test_large_request, setup),
        TEST(test_framing, setup),
        TEST(test_framing, setup_packed),
        TEST(test_bad_requests, setup),
        TEST(test_malformed, setup),
        TEST(test_serial, setup),
        TEST(test_zeroes, setup),
        TEST(test_readonly, setup_readonly),
        TEST(test_config, setup),
        TEST(test_queues, setup),
        TEST(test_queues, setup_packed),
        TEST(test_many, setup),
        TEST(test_many, setup_packed),
        TEST(test_interrupts_together, setup),
        TEST(test_interrupts, setup),
        TEST(test_reset_under_load, setup),
        TEST(test_host_error, setup),
        TEST(test_locks, setup),
        TEST(test_shared_lock, setup_readonly),
        TEST(test_open_errors, setup),
        TEST(test_odd_size, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
