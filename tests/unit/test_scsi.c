/* The CD-ROM drive: what it answers, reads through its queue, requests that break the rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "device_rig.h"
#include "virtio/scsi.h"
#include "virtio/scsi_cd.h"

enum { BLOCKS = 40, CONTROL = 0, REQUESTS = 2 };
enum { REQUEST = RIG_DATA, RESPONSE = RIG_DATA + 0x100, DATA = RIG_DATA + 0x1000 };
enum { REQUEST_SIZE = 51, RESPONSE_SIZE = 108 };

struct fixture {
    struct rig rig;
    struct rig_driver driver;
    struct device *device;
    struct block *block;
    char path[64];
    uint32_t used;
};

static struct fixture fixture;

/* A disc whose block n is full of the byte n. */
static void make_disc(struct fixture *f) {
    uint8_t bytes[SCSI_CD_BLOCK];
    strcpy(f->path, "/tmp/lodge-test-cd-XXXXXX");
    int fd = mkstemp(f->path);
    assert_true(fd >= 0);
    for (unsigned i = 0; i < BLOCKS; i++) {
        memset(bytes, (int)i, sizeof bytes);
        assert_int_equal(write(fd, bytes, sizeof bytes), sizeof bytes);
    }
    close(fd);
}

static int setup(void **state) {
    struct fixture *f = *state = &fixture;
    *f = (struct fixture){0};
    log_set_level(LOG_ERROR);
    rig_start(&f->rig);
    make_disc(f);
    assert_int_equal(block_open_raw(f->path, true, &f->block, NULL), 0);
    struct virtio_scsi_config config = {.disc = f->block};
    assert_int_equal(
        device_create(&virtio_scsi_class, "cdrom0", &f->rig.platform, &config, &f->device, NULL),
        0);
    driver_find(&f->driver, &f->rig, VIRTIO_ID_SCSI);
    driver_start(&f->driver, 0, 3, 16);
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    device_destroy(f->device);
    block_close(f->block);
    rig_stop(&f->rig);
    unlink(f->path);
    return 0;
}

/* ---- Through the queue ---- */

static bool is_used(void *context) {
    struct fixture *f = context;
    uint16_t id;
    return ring_used(&f->driver.rings[REQUESTS], &id, &f->used);
}

/* Sends a command to a target; the response is at RESPONSE, the data at DATA. */
static void send(struct fixture *f, uint8_t target, const uint8_t *cdb, size_t cdb_length,
                 uint32_t room) {
    uint8_t request[REQUEST_SIZE] = {1, target, 0x40, 0};
    const struct driver_buffer buffers[] = {
        {REQUEST, REQUEST_SIZE}, {RESPONSE, RESPONSE_SIZE}, {DATA, room}};
    memcpy(request + 19, cdb, cdb_length);
    rig_put(&f->rig, REQUEST, request, sizeof request);
    ring_add(&f->driver.rings[REQUESTS], buffers, 1, room > 0 ? 3 : 2);
    driver_notify(&f->driver, REQUESTS);
    assert_true(rig_pump_until(&f->rig, is_used, f));
}

static uint8_t response_byte(struct fixture *f, unsigned at) {
    uint8_t value;
    rig_get(&f->rig, RESPONSE + at, &value, 1);
    return value;
}

static void blocks_are_read(void **state) {
    struct fixture *f = *state;
    static const uint8_t read_10[10] = {0x28, 0, 0, 0, 0, 7, 0, 0, 3};
    uint8_t bytes[SCSI_CD_BLOCK];
    send(f, 0, read_10, sizeof read_10, 3 * SCSI_CD_BLOCK);
    assert_int_equal(response_byte(f, 11), 0);
    assert_int_equal(response_byte(f, 10), 0);
    assert_int_equal(f->used, RESPONSE_SIZE + 3 * SCSI_CD_BLOCK);
    for (unsigned i = 0; i < 3; i++) {
        rig_get(&f->rig, DATA + i * SCSI_CD_BLOCK, bytes, sizeof bytes);
        assert_int_equal(bytes[0], 7 + i);
        assert_int_equal(bytes[sizeof bytes - 1], 7 + i);
    }
}

static void errors_have_sense_data(void **state) {
    struct fixture *f = *state;
    static const uint8_t beyond[10] = {0x28, 0, 0, 0, 0, BLOCKS - 1, 0, 0, 2};
    static const uint8_t write_10[10] = {0x2a, 0, 0, 0, 0, 0, 0, 0, 1};
    send(f, 0, beyond, sizeof beyond, 2 * SCSI_CD_BLOCK);
    assert_int_equal(response_byte(f, 10), SCSI_CHECK_CONDITION);
    assert_int_equal(response_byte(f, 12 + 2), 5);
    assert_int_equal(response_byte(f, 12 + 12), 0x21);
    send(f, 0, write_10, sizeof write_10, 0);
    assert_int_equal(response_byte(f, 12 + 2), 7);
}

static void bad_requests_get_an_answer(void **state) {
    struct fixture *f = *state;
    static const uint8_t read_10[10] = {0x28, 0, 0, 0, 0, 7, 0, 0, 3}, ready[6] = {0};
    static const uint8_t read_12[12] = {0xa8, 0, 0, 0, 0, 0, 0, 0, 0, 1};
    send(f, 0, read_10, sizeof read_10, 2 * SCSI_CD_BLOCK); /* no room */
    assert_int_equal(response_byte(f, 11), 1);
    send(f, 3, ready, sizeof ready, 0); /* no such target */
    assert_int_equal(response_byte(f, 11), 3);
    send(f, 0, read_12, sizeof read_12, SCSI_CD_BLOCK);
    assert_int_equal(response_byte(f, 11), 0);
    const struct driver_buffer broken[] = {{REQUEST, 8}, {RESPONSE, 8}};
    ring_add(&f->driver.rings[REQUESTS], broken, 1, 2);
    driver_notify(&f->driver, REQUESTS);
    assert_true(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
}

static void control_requests_are_answered(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffers[] = {{REQUEST, 24}, {RESPONSE, 1}};
    uint8_t abort[24] = {0};
    uint16_t id;
    rig_put(&f->rig, REQUEST, abort, sizeof abort);
    ring_add(&f->driver.rings[CONTROL], buffers, 1, 2);
    driver_notify(&f->driver, CONTROL);
    assert_true(ring_used(&f->driver.rings[CONTROL], &id, &f->used));
    assert_int_equal(response_byte(f, 0), 11);
}

/* ---- The drive itself ---- */

static struct scsi_answer answer(const char *cdb, size_t length) {
    uint8_t bytes[SCSI_CDB_SIZE] = {0};
    struct scsi_answer made;
    memcpy(bytes, cdb, length);
    scsi_cd_command(BLOCKS, bytes, &made);
    return made;
}
#define ANSWER(cdb) answer((cdb), sizeof(cdb) - 1)

static void it_is_a_cd_drive(void **state) {
    (void)state;
    struct scsi_answer a = ANSWER("\x12\0\0\0\x60");
    assert_int_equal(a.length, 36);
    assert_int_equal(a.data[0], 5);
    assert_int_equal(a.data[1], 0x80);
    a = ANSWER("\x12\0\0\0\x05");
    assert_int_equal(a.length, 5);
    a = ANSWER("\x12\1\x83\0\x60");
    assert_int_equal(a.status, SCSI_CHECK_CONDITION);
    a = ANSWER("\x25");
    assert_int_equal(load_be32(a.data), BLOCKS - 1);
    assert_int_equal(load_be32(a.data + 4), SCSI_CD_BLOCK);
    a = ANSWER("\x43\0\0\0\0\0\0\0\xff");
    assert_int_equal(a.length, 20);
    assert_int_equal(load_be16(a.data), 18);
    assert_int_equal(load_be32(a.data + 16), BLOCKS);
    a = ANSWER("\x43\2\0\0\0\0\xaa\0\xff"); /* the lead-out, in minutes, seconds and frames */
    assert_int_equal(a.length, 12);
    assert_memory_equal(a.data + 8, "\0\0\2\x28", 4);
    a = ANSWER("\x46\0\0\0\0\0\0\0\xff");
    assert_int_equal(load_be16(a.data + 6), 8);
    assert_int_equal(load_be32(a.data), a.length - 4);
    a = ANSWER("\x4a\1\0\0\x10\0\0\0\x08");
    assert_int_equal(a.data[5], 2);
    a = ANSWER("\x5a\0\x2a\0\0\0\0\0\xff");
    assert_int_equal(a.data[8], 0x2a);
    a = ANSWER("\xff");
    assert_int_equal(a.code, 0x20);
}

/* Whatever comes, lengths hold and blocks are of the disc. */
static void any_command_gets_an_answer(void **state) {
    (void)state;
    uint64_t seed = 3;
    for (unsigned i = 0; i < 200000; i++) {
        uint8_t cdb[SCSI_CDB_SIZE];
        struct scsi_answer a;
        for (unsigned j = 0; j < sizeof cdb; j++) {
            seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
            cdb[j] = seed >> 60 & 1 ? (uint8_t)(seed >> 40) : 0;
        }
        cdb[0] = (uint8_t)i;
        scsi_cd_command(BLOCKS, cdb, &a);
        assert_true(a.length <= SCSI_DATA_MAX);
        assert_true(range_within(a.first_block, a.blocks, BLOCKS));
        assert_true(a.status == SCSI_GOOD || (a.length == 0 && a.blocks == 0));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(blocks_are_read, setup, teardown),
        cmocka_unit_test_setup_teardown(errors_have_sense_data, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_requests_get_an_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(control_requests_are_answered, setup, teardown),
        cmocka_unit_test(it_is_a_cd_drive),
        cmocka_unit_test(any_command_gets_an_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
