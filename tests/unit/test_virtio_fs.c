/* The file system device: requests through its queues, data straight to memory, broken drivers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/fuse.h>

#include "base/log.h"
#include "device_rig.h"
#include "virtio/fs.h"

enum { HIPRIO = 0, REQUESTS = 1, IN = RIG_DATA, OUT = RIG_DATA + 0x10000, BULK = OUT + 0x10000 };
enum { OUT_HEADER = sizeof(struct fuse_out_header), NEEDS_RESET = VIRTIO_NEEDS_RESET };

struct fixture {
    struct rig rig;
    struct rig_driver driver;
    struct device *device;
    struct fs *fs;
    char path[64];
    uint32_t used_length;
    uint32_t in_length;
};

static struct fixture fixture;

static void driver_begins(struct fixture *f, bool packed) {
    uint64_t features = VIRTIO_FEATURE(VIRTIO_F_EVENT_IDX);
    driver_start(&f->driver, features | (packed ? VIRTIO_FEATURE(VIRTIO_F_RING_PACKED) : 0), 2,
                 128);
}

static int setup_kind(void **state, bool packed) {
    struct fixture *f = *state = &fixture;
    *f = (struct fixture){0};
    char file[96];
    log_set_level(LOG_ERROR);
    strcpy(f->path, "/tmp/lodge-test-vfs-XXXXXX");
    assert_non_null(mkdtemp(f->path));
    snprintf(file, sizeof file, "%s/file", f->path);
    FILE *out = fopen(file, "w");
    fputs("contents of the file", out);
    fclose(out);
    rig_start(&f->rig);
    assert_int_equal(fs_open(f->path, false, 1, &f->fs, NULL), 0);
    struct virtio_fs_config config = {.options.packed = packed, .fs = f->fs, .tag = "volume0"};
    assert_int_equal(
        device_create(&virtio_fs_class, "volume0", &f->rig.platform, &config, &f->device, NULL), 0);
    driver_find(&f->driver, &f->rig, VIRTIO_ID_FS);
    driver_begins(f, packed);
    return 0;
}

static int setup(void **state) {
    return setup_kind(state, false);
}

static int setup_packed(void **state) {
    return setup_kind(state, true);
}

static int teardown(void **state) {
    struct fixture *f = *state;
    char command[96];
    device_destroy(f->device);
    fs_close(f->fs);
    rig_stop(&f->rig);
    snprintf(command, sizeof command, "rm -r %s", f->path);
    return system(command);
}

/* ---- Requests ---- */

static bool is_over(void *context) {
    struct fixture *f = context;
    uint16_t id;
    return ring_used(&f->driver.rings[REQUESTS], &id, &f->used_length) ||
           (driver_status(&f->driver) & NEEDS_RESET);
}

static void begin(struct fixture *f, uint32_t opcode, uint64_t node, const void *arguments,
                  uint32_t length, uint32_t data) {
    struct fuse_in_header header = {.len = (uint32_t)sizeof header + length + data,
                                    .opcode = opcode,
                                    .unique = 7,
                                    .nodeid = node};
    rig_put(&f->rig, IN, &header, sizeof header);
    rig_put(&f->rig, IN + sizeof header, arguments, length);
    f->in_length = (uint32_t)sizeof header + length;
}

/* Sends a chain and waits; false: the device needs reset. */
static bool send(struct fixture *f, const struct driver_buffer *buffers, unsigned readable,
                 unsigned count) {
    assert_true(ring_add(&f->driver.rings[REQUESTS], buffers, readable, count) >= 0);
    driver_notify(&f->driver, REQUESTS);
    assert_true(rig_pump_until(&f->rig, is_over, f));
    return !(driver_status(&f->driver) & NEEDS_RESET);
}

/* What was begun, with an answer in OUT. Its error. */
static int finish(struct fixture *f) {
    const struct driver_buffer buffers[] = {{IN, f->in_length}, {OUT, 0x1000}};
    struct fuse_out_header header;
    assert_true(send(f, buffers, 1, 2));
    rig_get(&f->rig, OUT, &header, sizeof header);
    assert_int_equal(header.len, f->used_length);
    assert_int_equal(header.unique, 7);
    return header.error;
}

static void init(struct fixture *f) {
    const struct fuse_init_in in = {.major = 7, .minor = 36, .flags = UINT32_MAX};
    begin(f, FUSE_INIT, 0, &in, sizeof in, 0);
    assert_int_equal(finish(f), 0);
}

static uint64_t open_file(struct fixture *f) {
    struct fuse_entry_out entry;
    struct fuse_open_out open;
    const struct fuse_open_in in = {.flags = 2};
    begin(f, FUSE_LOOKUP, FUSE_ROOT_ID, "file", 5, 0);
    assert_int_equal(finish(f), 0);
    rig_get(&f->rig, OUT + OUT_HEADER, &entry, sizeof entry);
    assert_int_equal(entry.attr.size, 20);
    begin(f, FUSE_OPEN, entry.nodeid, &in, sizeof in, 0);
    assert_int_equal(finish(f), 0);
    rig_get(&f->rig, OUT + OUT_HEADER, &open, sizeof open);
    return open.fh;
}

static void test_configuration(void **state) {
    struct fixture *f = *state;
    uint8_t tag[37] = {0};
    for (unsigned i = 0; i < 36; i++)
        tag[i] = (uint8_t)driver_read(&f->driver, VIRTIO_PCI_DEVICE + i, 1);
    assert_string_equal((char *)tag, "volume0");
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE + 36, 4), 1);
}

static void test_data(void **state) {
    struct fixture *f = *state;
    char bytes[32] = {0};
    init(f);
    uint64_t handle = open_file(f);
    const struct fuse_write_in write = {.fh = handle, .offset = 9, .size = 7};
    begin(f, FUSE_WRITE, 0, &write, sizeof write, 7);
    rig_put(&f->rig, BULK, "with ", 5);
    rig_put(&f->rig, BULK + 0x1000, "a!", 2);
    const struct driver_buffer out[] = {
        {IN, f->in_length}, {BULK, 5}, {BULK + 0x1000, 2}, {OUT, 0x1000}};
    assert_true(send(f, out, 3, 4));
    assert_int_equal(f->used_length, OUT_HEADER + sizeof(struct fuse_write_out));
    /* Read in pieces, more than there is. */
    const struct fuse_read_in read = {.fh = handle, .offset = 0, .size = 4096};
    begin(f, FUSE_READ, 0, &read, sizeof read, 0);
    const struct driver_buffer in[] = {
        {IN, f->in_length}, {OUT, OUT_HEADER}, {BULK + 0x2000, 10}, {BULK + 0x3000, 4086}};
    assert_true(send(f, in, 1, 4));
    assert_int_equal(f->used_length, OUT_HEADER + 20);
    rig_get(&f->rig, BULK + 0x2000, bytes, 10);
    rig_get(&f->rig, BULK + 0x3000, bytes + 10, 10);
    assert_string_equal(bytes, "contents with a!file");
}

static bool forget_is_over(void *context) {
    struct fixture *f = context;
    uint16_t id;
    return ring_used(&f->driver.rings[HIPRIO], &id, &f->used_length);
}

static void test_forget(void **state) {
    struct fixture *f = *state;
    const struct fuse_forget_in in = {.nlookup = 1};
    const struct fuse_getattr_in getattr = {0};
    struct fuse_entry_out entry;
    init(f);
    begin(f, FUSE_LOOKUP, FUSE_ROOT_ID, "file", 5, 0);
    assert_int_equal(finish(f), 0);
    rig_get(&f->rig, OUT + OUT_HEADER, &entry, sizeof entry);
    begin(f, FUSE_FORGET, entry.nodeid, &in, sizeof in, 0);
    const struct driver_buffer buffer = {IN, f->in_length};
    ring_add(&f->driver.rings[HIPRIO], &buffer, 1, 1);
    driver_notify(&f->driver, HIPRIO);
    assert_true(rig_pump_until(&f->rig, forget_is_over, f));
    assert_int_equal(f->used_length, 0);
    begin(f, FUSE_GETATTR, entry.nodeid, &getattr, sizeof getattr, 0);
    assert_int_equal(finish(f), -ESTALE);
}

/* ---- Drivers that break rules: the device needs reset, and works after one ---- */

static void reset_and_work(struct fixture *f) {
    driver_begins(f, false);
    init(f);
    open_file(f);
}

static void test_no_room(void **state) {
    struct fixture *f = *state;
    init(f);
    begin(f, FUSE_LOOKUP, FUSE_ROOT_ID, "file", 5, 0);
    const struct driver_buffer none[] = {{IN, f->in_length}};
    assert_false(send(f, none, 1, 1));
    reset_and_work(f);
    const struct driver_buffer little[] = {{IN, f->in_length}, {OUT, OUT_HEADER - 1}};
    assert_false(send(f, little, 1, 2));
    reset_and_work(f);
    /* Room for the header alone: an error, which that holds. */
    begin(f, FUSE_LOOKUP, FUSE_ROOT_ID, "file", 5, 0);
    const struct driver_buffer header[] = {{IN, f->in_length}, {OUT, OUT_HEADER}};
    assert_true(send(f, header, 1, 2));
    assert_int_equal(f->used_length, OUT_HEADER);
}

static void test_no_memory(void **state) {
    struct fixture *f = *state;
    const uint64_t nowhere = UINT64_C(0x8000000000);
    init(f);
    uint64_t handle = open_file(f);
    const struct fuse_read_in read = {.fh = handle, .size = 4096};
    begin(f, FUSE_READ, 0, &read, sizeof read, 0);
    const struct driver_buffer in[] = {{IN, f->in_length}, {OUT, OUT_HEADER}, {nowhere, 4096}};
    assert_false(send(f, in, 1, 3));
    reset_and_work(f);
    const struct driver_buffer out[] = {{nowhere, 80}, {OUT, 64}};
    assert_false(send(f, out, 1, 2));
    reset_and_work(f);
    begin(f, FUSE_LOOKUP, FUSE_ROOT_ID, "file", 5, 0);
    const struct driver_buffer answer[] = {{IN, f->in_length}, {nowhere, 4096}};
    assert_false(send(f, answer, 1, 2));
    reset_and_work(f);
}

static void test_long_request(void **state) {
    struct fixture *f = *state;
    init(f);
    begin(f, FUSE_SETXATTR, FUSE_ROOT_ID, "", 0, 0);
    const struct driver_buffer buffers[] = {{IN, FS_IN_MAX + 1}, {OUT, 64}};
    assert_false(send(f, buffers, 1, 2));
    reset_and_work(f);
}

static bool is_reset(void *context) {
    return driver_status(&((struct fixture *)context)->driver) == 0;
}

/* A reset while requests are under way waits for them and forgets the session. */
static void test_reset_under_load(void **state) {
    struct fixture *f = *state;
    for (unsigned turn = 0; turn < 20; turn++) {
        init(f);
        uint64_t handle = open_file(f);
        const struct fuse_read_in read = {.fh = handle, .size = 4096};
        begin(f, FUSE_READ, 0, &read, sizeof read, 0);
        const struct driver_buffer in[] = {{IN, f->in_length}, {OUT, OUT_HEADER}, {BULK, 4096}};
        while (ring_add(&f->driver.rings[REQUESTS], in, 1, 3) >= 0)
            ;
        driver_notify(&f->driver, REQUESTS);
        driver_write(&f->driver, VIRTIO_COMMON_STATUS, 0, 1);
        assert_true(rig_pump_until(&f->rig, is_reset, f));
        driver_begins(f, false);
        begin(f, FUSE_LOOKUP, FUSE_ROOT_ID, "file", 5, 0);
        assert_int_equal(finish(f), -EIO);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_configuration, setup, teardown),
        cmocka_unit_test_setup_teardown(test_data, setup, teardown),
        cmocka_unit_test_setup_teardown(test_data, setup_packed, teardown),
        cmocka_unit_test_setup_teardown(test_forget, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_request, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reset_under_load, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
