/* The firmware configuration device: items, the directory, DMA, and requests made to break it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/bytes.h"
#include "device/fw_cfg.h"
#include "platform_rig.h"

enum { REQUEST = 0x1000, BUFFER = 0x2000 };
enum { ERROR = 1, READ = 2, SKIP = 4, SELECT = 8, WRITE = 16 };

static struct device *fw_cfg;

static int setup(void **state) {
    (void)state;
    rig_start();
    fw_cfg = rig_device(&fw_cfg_class, NULL);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    device_destroy(fw_cfg);
    rig_stop();
    return 0;
}

static void select_item(uint16_t key) {
    port_write(rig.platform.ports, 0x510, key, 2);
}

/* Starts a request; answers its control word after it. */
static uint32_t dma(uint32_t control, uint32_t length, uint64_t address) {
    uint8_t request[16];
    store_be32(request, control);
    store_be32(request + 4, length);
    store_be64(request + 8, address);
    assert_int_equal(memory_write(rig.platform.memory, REQUEST, request, sizeof request), 0);
    port_write(rig.platform.ports, 0x514, 0, 4);
    port_write(rig.platform.ports, 0x518, __builtin_bswap32(REQUEST), 4);
    assert_int_equal(memory_read(rig.platform.memory, REQUEST, request, 4), 0);
    return load_be32(request);
}

static void read_back(void *to, size_t length) {
    assert_int_equal(memory_read(rig.platform.memory, BUFFER, to, length), 0);
}

static void it_is_recognised(void **state) {
    (void)state;
    select_item(FW_CFG_SIGNATURE);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(inb(0x511), "QEMU"[i]);
    assert_int_equal(inb(0x511), 0); /* past the end */
    select_item(FW_CFG_ID);
    assert_int_equal(inb(0x511), 3);
    assert_int_equal(port_read(rig.platform.ports, 0x514, 4), __builtin_bswap32(0x51454d55));
    assert_int_equal(port_read(rig.platform.ports, 0x518, 4), __builtin_bswap32(0x20434647));
    select_item(0x1234); /* nothing there */
    assert_int_equal(inb(0x511), 0);
}

static void files_are_listed(void **state) {
    (void)state;
    uint8_t directory[4 + 2 * 64];
    char name[80];
    assert_int_equal(fw_cfg_add_file(fw_cfg, "etc/one", "1", 1, NULL), 0);
    assert_int_equal(fw_cfg_add_file(fw_cfg, "etc/two", "two", 3, NULL), 0);
    memset(name, 'x', sizeof name);
    name[56] = 0;
    assert_int_equal(fw_cfg_add_file(fw_cfg, name, "", 0, NULL), -ENAMETOOLONG);
    assert_int_equal(fw_cfg_add(fw_cfg, FW_CFG_ID, "", 0, NULL), -EEXIST);
    assert_int_equal(dma(SELECT | READ | FW_CFG_DIRECTORY << 16, sizeof directory, BUFFER), 0);
    read_back(directory, sizeof directory);
    assert_int_equal(load_be32(directory), 2);
    assert_int_equal(load_be32(directory + 4 + 64), 3);
    assert_string_equal((char *)directory + 4 + 64 + 8, "etc/two");
    select_item(load_be16(directory + 4 + 64 + 4));
    assert_int_equal(inb(0x511), 't');
    for (unsigned i = 0; fw_cfg_add_file(fw_cfg, "more", "", 0, NULL) == 0; i++)
        assert_true(i < FW_CFG_ITEMS_MAX);
}

static void dma_reads_skips_and_pads(void **state) {
    (void)state;
    char bytes[8];
    assert_int_equal(fw_cfg_add(fw_cfg, 0x100, "abcdef", 6, NULL), 0);
    assert_int_equal(dma(SELECT | SKIP | 0x100 << 16, 2, 0), 0);
    assert_int_equal(dma(READ, 2, BUFFER), 0);
    read_back(bytes, 2);
    assert_memory_equal(bytes, "cd", 2);
    assert_int_equal(memory_write(rig.platform.memory, BUFFER, "xxxxxxxx", 8), 0);
    assert_int_equal(dma(READ, 5, BUFFER), 0);
    read_back(bytes, 8);
    assert_memory_equal(bytes, "ef\0\0\0xxx", 8);
    assert_int_equal(dma(SKIP, UINT32_MAX, 0), 0);
    assert_int_equal(dma(SKIP, UINT32_MAX, 0), 0); /* far past the end: stays there */
    assert_int_equal(dma(READ, 1, BUFFER), 0);
    read_back(bytes, 1);
    assert_int_equal(bytes[0], 0);
}

static void bad_requests_are_refused(void **state) {
    (void)state;
    assert_int_equal(dma(SELECT | READ, 4, UINT64_C(1) << 40), ERROR);
    assert_int_equal(dma(SELECT | READ, UINT32_MAX, BUFFER), ERROR);
    assert_int_equal(dma(SELECT | READ, 0x200000, BUFFER), ERROR); /* runs out of RAM */
    assert_int_equal(dma(SELECT | WRITE, 4, BUFFER), ERROR);
    port_write(rig.platform.ports, 0x514, UINT32_MAX, 4); /* no request there */
    port_write(rig.platform.ports, 0x518, UINT32_MAX, 4);
    port_write(rig.platform.ports, 0x518, __builtin_bswap32((1 << 20) - 8), 4);
    select_item(0);
    assert_int_equal(port_read(rig.platform.ports, 0x511, 1), 'Q');
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_is_recognised, setup, teardown),
        cmocka_unit_test_setup_teardown(files_are_listed, setup, teardown),
        cmocka_unit_test_setup_teardown(dma_reads_skips_and_pads, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_requests_are_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
