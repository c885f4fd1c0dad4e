/* The MC146818 through its ports. The clock starts at 2024-02-29 23:59:50 UTC. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/rtc.h"
#include "platform_rig.h"

enum { PIN = 8, A = 10, B = 11, C = 12, D = 13, CENTURY = 0x32 };
enum { SET = 0x80, PIE = 0x40, AIE = 0x20, UIE = 0x10, BINARY = 4, HOURS_24 = 2 };

static struct device *rtc;

static int setup(void **state) {
    (void)state;
    struct rtc_config config = {.ram_below_4g = 512 << 20};
    rig_start();
    rtc = rig_device(&rtc_class, &config);
    rig_route(PIN, 0);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    device_destroy(rtc);
    rig_stop();
    return 0;
}

static uint8_t get(uint8_t reg) {
    outb(0x70, reg);
    return inb(0x71);
}

static void put(uint8_t reg, uint8_t value) {
    outb(0x70, reg);
    outb(0x71, value);
}

static void assert_time(unsigned hour, unsigned minute, unsigned second) {
    assert_int_equal(get(4), hour);
    assert_int_equal(get(2), minute);
    assert_int_equal(get(0), second);
}

static void tells_the_wall_time(void **state) {
    (void)state;
    assert_time(0x23, 0x59, 0x50);
    assert_int_equal(get(7), 0x29);
    assert_int_equal(get(8), 0x02);
    assert_int_equal(get(9), 0x24);
    assert_int_equal(get(CENTURY), 0x20);
    assert_int_equal(get(6), 5); /* a Thursday */
    assert_int_equal(get(D), 0x80);
    rig_advance(10 * NS_PER_SECOND);
    assert_time(0, 0, 0);
    assert_int_equal(get(7), 1);
    assert_int_equal(get(8), 3);
}

static void binary_and_12_hours(void **state) {
    (void)state;
    put(B, BINARY);
    assert_time(0x80 | 11, 59, 50);
    rig_advance(10 * NS_PER_SECOND);
    assert_time(12, 0, 0); /* midnight */
    put(B, 0);
    assert_time(0x12, 0, 0);
}

static void can_be_set(void **state) {
    (void)state;
    put(B, SET | HOURS_24);
    put(0, 0x30);
    put(2, 0x15);
    put(4, 0x08);
    put(7, 0x01);
    put(8, 0x01);
    put(9, 0x99);
    put(CENTURY, 0x19);
    rig_advance(5 * NS_PER_SECOND);
    assert_time(0x08, 0x15, 0x30);
    put(B, HOURS_24);
    rig_advance(31 * NS_PER_SECOND);
    assert_time(0x08, 0x16, 0x01);
    assert_int_equal(get(9), 0x99);
    assert_int_equal(get(CENTURY), 0x19);
}

static void announces_updates(void **state) {
    (void)state;
    assert_false(get(A) & 0x80);
    rig_advance(NS_PER_SECOND - rig_now() - 100000);
    assert_true(get(A) & 0x80);
    rig_advance(100000);
    assert_false(get(A) & 0x80);
}

static void update_interrupts(void **state) {
    (void)state;
    get(C);
    put(B, HOURS_24 | UIE);
    rig_advance(NS_PER_SECOND);
    assert_int_equal(rig_interrupts(PIN), 1);
    rig_advance(3 * NS_PER_SECOND);
    assert_int_equal(rig_interrupts(PIN), 0); /* the first one was not looked at */
    assert_int_equal(get(C) & 0xf0, 0x80 | 0x40 | UIE);
    rig_advance(NS_PER_SECOND);
    assert_int_equal(rig_interrupts(PIN), 1);
    assert_int_equal(get(C) & 0x90, 0x90);
    assert_int_equal(get(C), 0);
}

static void alarm_interrupts(void **state) {
    (void)state;
    put(1, 0x05);
    put(3, 0x01);
    put(5, 0xff); /* any hour */
    get(C);
    put(B, HOURS_24 | AIE);
    rig_advance(74 * NS_PER_SECOND);
    assert_int_equal(rig_interrupts(PIN), 0);
    rig_advance(NS_PER_SECOND);
    assert_int_equal(rig_interrupts(PIN), 1);
    assert_true(get(C) & AIE);
    rig_advance(3600 * NS_PER_SECOND);
    assert_int_equal(rig_interrupts(PIN), 1);
    get(C);
    put(3, 0x75); /* never */
    rig_advance(100000 * NS_PER_SECOND);
    assert_int_equal(rig_interrupts(PIN), 0);
}

static void periodic_interrupts(void **state) {
    (void)state;
    put(A, 0x26); /* 1024 Hz */
    get(C);
    put(B, HOURS_24 | PIE);
    for (unsigned i = 0; i < 1024; i++) {
        rig_advance(NS_PER_SECOND / 1024 + 1);
        get(C);
    }
    assert_in_range(rig_interrupts(PIN), 1022, 1026);
    fake_timer_runs = 0;
    rig_advance(NS_PER_SECOND);
    assert_int_equal(fake_timer_runs, 1); /* nobody looks: no flood */
}

static void cmos_is_kept_through_reset(void **state) {
    (void)state;
    put(0x40, 0xa5);
    device_reset(rtc);
    assert_int_equal(get(0x40), 0xa5);
    assert_int_equal(get(0x34) | get(0x35) << 8, (512 - 16) * 16);
    assert_time(0x23, 0x59, 0x50);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(tells_the_wall_time, setup, teardown),
        cmocka_unit_test_setup_teardown(binary_and_12_hours, setup, teardown),
        cmocka_unit_test_setup_teardown(can_be_set, setup, teardown),
        cmocka_unit_test_setup_teardown(announces_updates, setup, teardown),
        cmocka_unit_test_setup_teardown(update_interrupts, setup, teardown),
        cmocka_unit_test_setup_teardown(alarm_interrupts, setup, teardown),
        cmocka_unit_test_setup_teardown(periodic_interrupts, setup, teardown),
        cmocka_unit_test_setup_teardown(cmos_is_kept_through_reset, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
