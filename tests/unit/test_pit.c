/* The i8254 through its ports. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/pit.h"
#include "platform_rig.h"

enum { COUNTER = 0x40, CONTROL = 0x43, CONTROL_B = 0x61, PIN = 2 };
#define HZ UINT64_C(1193182)

static struct device *pit;

static int setup(void **state) {
    (void)state;
    rig_start();
    pit = rig_device(&pit_class, NULL);
    rig_route(PIN, 0);
    rig_interrupts(PIN);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    device_destroy(pit);
    rig_stop();
    return 0;
}

static uint64_t ticks(uint64_t n) {
    return (n * NS_PER_SECOND + HZ - 1) / HZ;
}

static void start(unsigned channel, unsigned mode, unsigned count) {
    outb(CONTROL, channel << 6 | 0x30 | mode << 1);
    outb(COUNTER + channel, count & 0xff);
    outb(COUNTER + channel, count >> 8);
    rig_interrupts(PIN); /* the output may rise with the mode */
}

static unsigned latched(unsigned channel) {
    outb(CONTROL, channel << 6);
    unsigned low = inb(COUNTER + channel);
    return low | inb(COUNTER + channel) << 8;
}

static void rate_generator(void **state) {
    (void)state;
    start(0, 2, 1193);
    rig_advance(ticks(1193) * 10 + 5000);
    assert_int_equal(rig_interrupts(PIN), 10);
    fake_clock_leap(rig.platform.clock, ticks(1193) * 10);
    assert_int_equal(rig_interrupts(PIN), 1); /* late ones become one */
}

static void one_shot(void **state) {
    (void)state;
    start(0, 0, 1000);
    rig_advance(ticks(999));
    assert_int_equal(rig_interrupts(PIN), 0);
    rig_advance(ticks(2));
    assert_int_equal(rig_interrupts(PIN), 1);
    rig_advance(NS_PER_SECOND);
    assert_int_equal(rig_interrupts(PIN), 0);
}

/* Linux's one-shot mode: the count alone is written again and again. */
static void software_strobe(void **state) {
    (void)state;
    start(0, 4, 1000);
    for (unsigned i = 0; i < 5; i++) {
        rig_advance(ticks(1002));
        assert_int_equal(rig_interrupts(PIN), 1);
        rig_advance(NS_PER_SECOND);
        assert_int_equal(rig_interrupts(PIN), 0);
        outb(COUNTER, 1000 & 0xff);
        outb(COUNTER, 1000 >> 8);
        assert_int_equal(rig_interrupts(PIN), 0);
    }
}

static void short_periods_do_not_flood(void **state) {
    (void)state;
    start(0, 2, 1);
    fake_timer_runs = 0;
    rig_advance(NS_PER_SECOND / 100);
    assert_in_range(fake_timer_runs, 1, 200);
}

static void counts_down(void **state) {
    (void)state;
    start(0, 2, 0x4000);
    rig_advance(ticks(0x100));
    assert_in_range(latched(0), 0x3efe, 0x3f00);
    start(0, 3, 0x4000);
    rig_advance(ticks(0x100));
    assert_in_range(latched(0), 0x3dfc, 0x3e00);
    outb(CONTROL, 0x31); /* BCD, mode 0 */
    outb(COUNTER, 0x00);
    outb(COUNTER, 0x10);
    rig_advance(ticks(10));
    assert_in_range(latched(0), 0x989, 0x990);
}

/* As Linux calibrates its TSC: gate on, mode 0, wait for the output. */
static void calibration_by_port_61(void **state) {
    (void)state;
    outb(CONTROL_B, (inb(CONTROL_B) & ~2) | 1);
    outb(CONTROL, 0xb0);
    outb(0x42, 0x00);
    outb(0x42, 0x10);
    assert_false(inb(CONTROL_B) & 0x20);
    rig_advance(ticks(0xfff));
    assert_false(inb(CONTROL_B) & 0x20);
    rig_advance(ticks(2));
    assert_true(inb(CONTROL_B) & 0x20);
}

static void the_gate_holds_the_count(void **state) {
    (void)state;
    outb(CONTROL_B, 1);
    start(2, 0, 0x1000);
    rig_advance(ticks(0x100));
    outb(CONTROL_B, 0);
    unsigned held = latched(2);
    rig_advance(ticks(0x100));
    assert_int_equal(latched(2), held);
    outb(CONTROL_B, 1);
    rig_advance(ticks(0x100));
    assert_in_range(latched(2), held - 0x102, held - 0xfe);
}

static void a_rising_gate_triggers(void **state) {
    (void)state;
    outb(CONTROL_B, 0);
    start(2, 1, 100);
    assert_true(inb(CONTROL_B) & 0x20);
    outb(CONTROL_B, 1);
    assert_false(inb(CONTROL_B) & 0x20);
    rig_advance(ticks(101));
    assert_true(inb(CONTROL_B) & 0x20);
}

static void read_back_latches_status(void **state) {
    (void)state;
    outb(CONTROL, 0x34);
    outb(CONTROL, 0xe2);
    assert_int_equal(inb(COUNTER), 0x80 | 0x40 | 0x34);
    start(0, 2, 0x1000);
    outb(CONTROL, 0xc2); /* status and count */
    assert_int_equal(inb(COUNTER) & 0x7f, 0x34);
    assert_int_equal(inb(COUNTER), 0x00);
    assert_int_equal(inb(COUNTER), 0x10);
}

static void refresh_toggles(void **state) {
    (void)state;
    uint8_t before = inb(CONTROL_B) & 0x10;
    rig_advance(15085);
    assert_int_not_equal(inb(CONTROL_B) & 0x10, before);
}

static void disconnected_by_the_hpet(void **state) {
    (void)state;
    start(0, 2, 1193);
    pit_disconnect(pit, true);
    rig_advance(NS_PER_SECOND / 10);
    assert_int_equal(rig_interrupts(PIN), 0);
    pit_disconnect(pit, false);
    rig_advance(NS_PER_SECOND / 10);
    assert_in_range(rig_interrupts(PIN), 98, 102);
}

static void state_survives(void **state) {
    (void)state;
    struct state_buffer buffer = {0};
    size_t used;
    start(0, 2, 1193);
    assert_int_equal(state_save(pit_class.state, pit, &buffer, NULL), 0);
    device_reset(pit);
    rig_advance(NS_PER_SECOND / 100);
    assert_int_equal(rig_interrupts(PIN), 0);
    assert_int_equal(state_load(pit_class.state, pit, buffer.data, buffer.length, &used, NULL), 0);
    rig_advance(NS_PER_SECOND / 100);
    assert_in_range(rig_interrupts(PIN), 9, 11);
    state_buffer_free(&buffer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rate_generator, setup, teardown),
        cmocka_unit_test_setup_teardown(one_shot, setup, teardown),
        cmocka_unit_test_setup_teardown(software_strobe, setup, teardown),
        cmocka_unit_test_setup_teardown(short_periods_do_not_flood, setup, teardown),
        cmocka_unit_test_setup_teardown(counts_down, setup, teardown),
        cmocka_unit_test_setup_teardown(calibration_by_port_61, setup, teardown),
        cmocka_unit_test_setup_teardown(the_gate_holds_the_count, setup, teardown),
        cmocka_unit_test_setup_teardown(a_rising_gate_triggers, setup, teardown),
        cmocka_unit_test_setup_teardown(read_back_latches_status, setup, teardown),
        cmocka_unit_test_setup_teardown(refresh_toggles, setup, teardown),
        cmocka_unit_test_setup_teardown(disconnected_by_the_hpet, setup, teardown),
        cmocka_unit_test_setup_teardown(state_survives, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
