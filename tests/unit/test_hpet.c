/* The HPET through its registers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/hpet.h"
#include "device/pit.h"
#include "device/rtc.h"
#include "platform_rig.h"

#define BASE UINT64_C(0xfed00000)
enum { CONFIG = 0x10, STATUS = 0x20, COUNTER = 0xf0, TIMER0 = 0x100, TIMER2 = 0x140 };
enum { LEVEL = 2, ENABLED = 4, PERIODIC = 8, SET_VALUE = 64, ONLY_32 = 256, ROUTE = 9 };

static struct device *hpet, *pit, *rtc;

static int setup(void **state) {
    (void)state;
    rig_start();
    pit = rig_device(&pit_class, NULL);
    rtc = rig_device(&rtc_class, NULL);
    hpet = rig_device(&hpet_class, &(struct hpet_config){.base = BASE, .pit = pit, .rtc = rtc});
    rig_route(2, 0);
    rig_route(8, 0);
    rig_route(20, 0);
    rig_route(21, RIG_LEVEL);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    device_destroy(hpet);
    device_destroy(rtc);
    device_destroy(pit);
    rig_stop();
    return 0;
}

static uint64_t get(unsigned reg) {
    return mmio_read(BASE + reg, 8);
}

static void put(unsigned reg, uint64_t value) {
    mmio_write(BASE + reg, value, 8);
}

static void counts_while_enabled(void **state) {
    (void)state;
    assert_int_equal(get(0) >> 32, 10000000);
    assert_int_equal(get(0) >> 8 & 31, 2);
    rig_advance(1000);
    assert_int_equal(get(COUNTER), 0);
    put(CONFIG, 1);
    rig_advance(1000);
    assert_int_equal(get(COUNTER), 100);
    assert_int_equal(mmio_read(BASE + COUNTER, 4), 100);
    put(CONFIG, 0);
    rig_advance(1000);
    assert_int_equal(get(COUNTER), 100);
    put(COUNTER, UINT64_C(0x123456789));
    assert_int_equal(mmio_read(BASE + COUNTER + 4, 4), 1);
}

static void one_shot(void **state) {
    (void)state;
    put(CONFIG, 1);
    put(TIMER2, ENABLED | 20 << ROUTE);
    put(TIMER2 + 8, get(COUNTER) + 100000);
    rig_advance(999999);
    assert_int_equal(rig_interrupts(20), 0);
    rig_advance(2);
    assert_int_equal(rig_interrupts(20), 1);
    rig_advance(10 * NS_PER_SECOND);
    assert_int_equal(rig_interrupts(20), 0);
}

/* As Linux sets it up: value, then period. */
static void periodic(void **state) {
    (void)state;
    put(CONFIG, 1);
    put(TIMER0, ENABLED | PERIODIC | SET_VALUE | 20 << ROUTE);
    mmio_write(BASE + TIMER0 + 8, (uint32_t)get(COUNTER) + 100000, 4);
    mmio_write(BASE + TIMER0 + 8, 100000, 4);
    rig_advance(10000000);
    assert_int_equal(rig_interrupts(20), 10);
    fake_clock_leap(rig.platform.clock, 10000000);
    assert_int_equal(rig_interrupts(20), 1);
    rig_advance(1000000);
    assert_int_equal(rig_interrupts(20), 1);
}

static void short_periods_do_not_flood(void **state) {
    (void)state;
    put(CONFIG, 1);
    put(TIMER0, ENABLED | PERIODIC | SET_VALUE | 20 << ROUTE);
    put(TIMER0 + 8, 1);
    put(TIMER0 + 8, 1);
    fake_timer_runs = 0;
    rig_advance(NS_PER_SECOND / 100);
    assert_in_range(fake_timer_runs, 1, 200);
}

static void level_interrupts_stay(void **state) {
    (void)state;
    put(CONFIG, 1);
    put(TIMER2, ENABLED | LEVEL | 21 << ROUTE);
    put(TIMER2 + 8, get(COUNTER) + 1000);
    rig_advance(20000);
    assert_int_equal(get(STATUS), 4);
    assert_int_equal(rig_interrupts(21), 1);
    rig_eoi(21);
    assert_int_equal(rig_interrupts(21), 1);
    put(STATUS, 4);
    rig_eoi(21);
    assert_int_equal(rig_interrupts(21), 0);
    assert_int_equal(get(STATUS), 0);
}

static void narrow_timers_wrap(void **state) {
    (void)state;
    put(COUNTER, UINT64_C(0x1fffffff0));
    put(CONFIG, 1);
    put(TIMER2, ENABLED | ONLY_32 | 20 << ROUTE);
    put(TIMER2 + 8, 0x1000);
    rig_advance(0x1000 * 10 + 200);
    assert_int_equal(rig_interrupts(20), 1);
}

static void legacy_replacement(void **state) {
    (void)state;
    outb(0x43, 0x34);
    outb(0x40, 0xa9);
    outb(0x40, 0x04);
    put(CONFIG, 3);
    rig_interrupts(2);
    rig_advance(100000000);
    assert_int_equal(rig_interrupts(2), 0);
    put(TIMER0, ENABLED);
    put(TIMER0 + 8, get(COUNTER) + 1000);
    put(TIMER0 + 0x20, ENABLED);
    put(TIMER0 + 0x28, get(COUNTER) + 1000);
    rig_advance(20000);
    assert_int_equal(rig_interrupts(2), 1);
    assert_int_equal(rig_interrupts(8), 1);
    put(CONFIG, 1);
    rig_advance(10000000);
    assert_true(rig_interrupts(2) > 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(counts_while_enabled, setup, teardown),
        cmocka_unit_test_setup_teardown(one_shot, setup, teardown),
        cmocka_unit_test_setup_teardown(periodic, setup, teardown),
        cmocka_unit_test_setup_teardown(short_periods_do_not_flood, setup, teardown),
        cmocka_unit_test_setup_teardown(level_interrupts_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(narrow_timers_wrap, setup, teardown),
        cmocka_unit_test_setup_teardown(legacy_replacement, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
