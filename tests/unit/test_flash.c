/* Flash: the command set as OVMF's driver and data sheets have it, the memory under it, the file.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <unistd.h>

#include "device/flash.h"
#include "platform_rig.h"

enum { SIZE = 4 * FLASH_BLOCK };
#define BASE UINT64_C(0xffc00000)

static struct device *flash;
static int fd = -1;

static int start(int file) {
    static uint8_t contents[SIZE];
    rig_start();
    memset(contents, 0xff, sizeof contents);
    contents[0] = 'f';
    flash = rig_device(&flash_class, &(struct flash_config){BASE, contents, SIZE, file});
    return 0;
}

static int setup(void **state) {
    (void)state;
    return start(-1);
}

static int setup_file(void **state) {
    char path[] = "/tmp/lodge-flash-XXXXXX";
    (void)state;
    fd = mkstemp(path);
    unlink(path);
    return fd < 0 || ftruncate(fd, SIZE) < 0 ? -1 : start(fd);
}

static int teardown(void **state) {
    (void)state;
    device_destroy(flash);
    rig_stop();
    return 0;
}

static void put(uint64_t offset, uint8_t value) {
    mmio_write(BASE + offset, value, 1);
}

static uint8_t get(uint64_t offset) {
    return (uint8_t)mmio_read(BASE + offset, 1);
}

/* What a processor's read or fetch would see as memory; false: it goes to the device. */
static bool as_memory(uint64_t offset, uint8_t *value) {
    return memory_read(rig.platform.memory, BASE + offset, value, 1) == 0;
}

static uint8_t array(uint64_t offset) {
    uint8_t value = 0;
    put(offset, 0xff);
    assert_true(as_memory(offset, &value));
    return value;
}

/* As OVMF finds out whether there is flash, ROM or RAM. */
static void ovmf_detects_it(void **state) {
    (void)state;
    uint8_t value;
    put(0, 0x50);
    assert_true(as_memory(0, &value));
    assert_int_equal(value, 'f');
    put(0, 0x70);
    assert_false(as_memory(0, &value));
    assert_int_equal(get(0), 0);
    put(0, 0xff);
    assert_true(as_memory(0, &value));
    assert_int_equal(value, 'f');
}

static void bytes_are_programmed(void **state) {
    (void)state;
    put(100, 0x10);
    put(100, 0x5a);
    assert_int_equal(get(100), 0x80);
    put(101, 0x40);
    put(101, 0xa5);
    assert_int_equal(array(100), 0x5a);
    assert_int_equal(array(101), 0xa5);
    put(100, 0x10);
    put(100, 0xf0);
    assert_int_equal(array(100), 0x50); /* bits are only cleared */
    assert_int_equal(array(99), 0xff);
}

static void blocks_are_erased(void **state) {
    (void)state;
    for (unsigned block = 0; block < 3; block++) {
        put(block * FLASH_BLOCK + 7, 0x10);
        put(block * FLASH_BLOCK + 7, 0);
    }
    put(FLASH_BLOCK + 9, 0x20);
    put(FLASH_BLOCK + 9, 0xd0);
    assert_int_equal(get(0), 0x80);
    assert_int_equal(array(7), 0);
    assert_int_equal(array(FLASH_BLOCK + 7), 0xff);
    assert_int_equal(array(2 * FLASH_BLOCK + 7), 0);
    put(7, 0x20);
    put(7, 0xff); /* no confirmation */
    assert_int_equal(get(0), 0xb0);
    put(0, 0x50);
    assert_int_equal(array(7), 0);
}

static void buffers_are_programmed(void **state) {
    (void)state;
    put(200, 0xe8);
    assert_int_equal(get(200), 0x80);
    put(200, 3);
    for (unsigned i = 0; i < 4; i++)
        put(200 + i, (uint8_t)(i + 1));
    put(200, 0xd0);
    assert_int_equal(array(200), 1);
    assert_int_equal(array(203), 4);
    put(300, 0xe8); /* not in sequence */
    put(300, 1);
    put(300, 0);
    put(302, 0);
    assert_int_equal(get(300), 0xb0);
    assert_int_equal(array(300), 0xff);
    put(SIZE - 1, 0xe8); /* past the end */
    put(SIZE - 1, 1);
    put(SIZE - 1, 0);
    mmio_write(BASE + SIZE - 2, 0, 2);
    put(0, 0xd0);
    assert_int_equal(array(SIZE - 1), 0xff);
}

static void identifiers(void **state) {
    (void)state;
    put(0, 0x90);
    assert_int_equal(get(0), 0x89);
    put(0, 0xff);
}

/* The file has what the array shows; a reset shows the array. */
static void changes_reach_the_file(void **state) {
    (void)state;
    uint8_t bytes[2] = {9, 9};
    put(50, 0x10);
    put(50, 0x12);
    put(51, 0x10);
    put(51, 0x34);
    assert_int_equal(pread(fd, bytes, 2, 50), 2);
    assert_int_equal(bytes[0], 0);
    device_reset(flash);
    assert_int_equal(pread(fd, bytes, 2, 50), 2);
    assert_int_equal(bytes[0], 0x12);
    assert_int_equal(bytes[1], 0x34);
    assert_true(as_memory(51, bytes));
    assert_int_equal(bytes[0], 0x34);
}

static struct state_buffer saved(void) {
    struct state_buffer out = {0};
    assert_int_equal(state_save(flash->class->state, flash, &out, NULL), 0);
    return out;
}

static void load(const struct state_buffer *from) {
    size_t used;
    assert_int_equal(state_load(flash->class->state, flash, from->data, from->length, &used, NULL),
                     0);
    assert_int_equal(used, from->length);
}

/* Contents and a command that is half given; memory and the file have what was saved. */
static void state_is_all_of_it(void **state) {
    (void)state;
    uint8_t bytes[2];
    put(50, 0x10);
    put(50, 0x12);
    struct state_buffer at_rest = saved();
    put(60, 0xe8);
    put(60, 1);
    put(60, 0x78);
    struct state_buffer amid = saved();
    put(61, 0x79);
    put(61, 0xd0);
    put(50, 0x20);
    put(50, 0xd0);
    assert_int_equal(array(50), 0xff);
    load(&at_rest);
    assert_int_equal(get(50), 0x80); /* the status, since that is what it answered */
    assert_int_equal(array(50), 0x12);
    assert_int_equal(array(60), 0xff);
    assert_int_equal(pread(fd, bytes, 2, 50), 2);
    assert_int_equal(bytes[0], 0x12);
    load(&amid);
    struct state_buffer again = saved();
    assert_int_equal(again.length, amid.length);
    assert_memory_equal(again.data, amid.data, amid.length);
    put(61, 0x79);
    put(61, 0xd0);
    assert_int_equal(array(60), 0x78);
    assert_int_equal(pread(fd, bytes, 2, 60), 2);
    assert_int_equal(bytes[1], 0x79);
    state_buffer_free(&at_rest);
    state_buffer_free(&amid);
    state_buffer_free(&again);
}

static void garbage_is_survived(void **state) {
    (void)state;
    static const uint8_t commands[] = {0xff, 0x70, 0x50, 0x10, 0x40, 0x20, 0xd0, 0xe8, 0x90, 0};
    uint64_t seed = 5;
    for (unsigned i = 0; i < 20000; i++) {
        uint64_t r = rig_random(&seed);
        unsigned size = 1u << (r & 3);
        uint64_t offset = (r >> 8) % (SIZE - 8);
        uint64_t value = r & 16 ? commands[(r >> 32) % sizeof commands] : r >> 40;
        if (r & 32)
            mmio_read(BASE + offset, size);
        else
            mmio_write(BASE + offset, value, size);
    }
    put(0, 0xd0); /* whatever it expected, */
    put(0, 0xff); /* this ends it */
    put(0, 0xff);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(ovmf_detects_it, setup, teardown),
        cmocka_unit_test_setup_teardown(bytes_are_programmed, setup, teardown),
        cmocka_unit_test_setup_teardown(blocks_are_erased, setup, teardown),
        cmocka_unit_test_setup_teardown(buffers_are_programmed, setup, teardown),
        cmocka_unit_test_setup_teardown(identifiers, setup, teardown),
        cmocka_unit_test_setup_teardown(changes_reach_the_file, setup_file, teardown),
        cmocka_unit_test_setup_teardown(state_is_all_of_it, setup_file, teardown),
        cmocka_unit_test_setup_teardown(garbage_is_survived, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
