#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "memory/ports.h"

struct chip {
    uint8_t bytes[16];
    int calls;
    unsigned size;
};

static uint64_t chip_read(void *context, uint64_t offset, unsigned size) {
    struct chip *chip = context;
    uint64_t value = 0;
    chip->calls++;
    chip->size = size;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)chip->bytes[offset + i] << (8 * i);
    return value;
}

static void chip_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct chip *chip = context;
    chip->calls++;
    chip->size = size;
    for (unsigned i = 0; i < size; i++)
        chip->bytes[offset + i] = (uint8_t)(value >> (8 * i));
}

static const struct io_ops ops = {chip_read, chip_write};

static int setup(void **state) {
    return ports_create((struct ports **)state, NULL);
}

static int teardown(void **state) {
    ports_destroy(*state);
    return 0;
}

static void reads_and_writes(void **state) {
    struct ports *ports = *state;
    struct chip chip = {{0}};
    assert_int_equal(ports_add(ports, "chip", 0x60, 8, &ops, &chip, NULL, NULL), 0);
    port_write(ports, 0x60, 0x11223344, 4);
    assert_int_equal(port_read(ports, 0x60, 4), 0x11223344);
    assert_int_equal(port_read(ports, 0x61, 2), 0x2233);
    assert_int_equal(port_read(ports, 0x63, 1), 0x11);
    assert_int_equal(chip.calls, 4);
    port_write(ports, 0x62, 0xabcdef, 1);
    assert_int_equal(chip.bytes[2], 0xef);
    assert_int_equal(chip.bytes[3], 0x11);
}

static void nobody_there(void **state) {
    struct ports *ports = *state;
    assert_int_equal(port_read(ports, 0x80, 1), 0xff);
    assert_int_equal(port_read(ports, 0x80, 2), 0xffff);
    assert_int_equal(port_read(ports, 0xffff, 4), 0xffffffff);
    port_write(ports, 0xffff, 0, 4);
}

static void straddling_accesses_are_split(void **state) {
    struct ports *ports = *state;
    struct chip a = {{1, 2, 3, 4}}, b = {{5, 6, 7, 8}};
    ports_add(ports, "a", 0x100, 4, &ops, &a, NULL, NULL);
    ports_add(ports, "b", 0x104, 4, &ops, &b, NULL, NULL);
    assert_int_equal(port_read(ports, 0x102, 4), 0x06050403);
    assert_int_equal(a.size, 1);
    assert_int_equal(port_read(ports, 0x106, 4), 0xffff0807);
    assert_int_equal(port_read(ports, 0xfe, 4), 0x0201ffff);
    port_write(ports, 0x102, 0xaabbccdd, 4);
    assert_int_equal(a.bytes[3], 0xcc);
    assert_int_equal(b.bytes[0], 0xbb);
}

static void the_latest_range_wins(void **state) {
    struct ports *ports = *state;
    struct chip a = {{1, 2, 3, 4}}, b = {{5, 6, 7, 8}};
    struct port_range *range;
    ports_add(ports, "a", 0x100, 4, &ops, &a, NULL, NULL);
    ports_add(ports, "b", 0x102, 2, &ops, &b, &range, NULL);
    assert_int_equal(port_read(ports, 0x102, 2), 0x0605);
    assert_int_equal(port_read(ports, 0x100, 4), 0x04030201);
    ports_move(range, 0x100, true);
    assert_int_equal(port_read(ports, 0x100, 1), 5);
    assert_int_equal(port_read(ports, 0x102, 1), 3);
    ports_move(range, 0xffff, true);
    assert_int_equal(port_read(ports, 0xffff, 1), 5);
    assert_int_equal(port_read(ports, 0xffff, 2), 0xff05);
    ports_move(range, 0x100, false);
    assert_int_equal(port_read(ports, 0x100, 1), 1);
    ports_remove(range);
    assert_int_equal(port_read(ports, 0x100, 1), 1);
}

static void bad_ranges_are_refused(void **state) {
    struct ports *ports = *state;
    struct chip chip = {{0}};
    struct error err;
    assert_int_equal(ports_add(ports, "x", 0xffff, 2, &ops, &chip, NULL, &err), -EINVAL);
    assert_int_equal(ports_add(ports, "x", 0, 0, &ops, &chip, NULL, &err), -EINVAL);
    assert_int_equal(ports_add(ports, "x", 0, 0x10001, &ops, &chip, NULL, &err), -EINVAL);
    assert_int_equal(ports_add(ports, "x", 0, 0x10000, &ops, &chip, NULL, &err), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(reads_and_writes),
        TEST(nobody_there),
        TEST(straddling_accesses_are_split),
        TEST(the_latest_range_wins),
        TEST(bad_ranges_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
