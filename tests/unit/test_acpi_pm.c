/* ACPI fixed hardware, reset ports, pvpanic and the watchdog. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/acpi_pm.h"
#include "device/i8042.h"
#include "device/pvpanic.h"
#include "device/watchdog.h"
#include "platform_rig.h"

enum { BASE = 0x600, SCI = 9, DOG = 0x630, POWER_BUTTON = 1 << 8, WAKE = 1 << 15, SLEEP = 1 << 13 };

static struct device *pm, *i8042, *pvpanic, *watchdog;

static int setup(void **state) {
    (void)state;
    rig_start();
    pm = rig_device(&acpi_pm_class, &(struct acpi_pm_config){.base = BASE, .sci = SCI});
    i8042 = rig_device(&i8042_class, NULL);
    pvpanic = rig_device(&pvpanic_class, &(struct pvpanic_config){.port = 0x505});
    watchdog = rig_device(&watchdog_class, &(struct watchdog_config){.base = DOG});
    rig_route(SCI, RIG_LEVEL);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    device_destroy(watchdog);
    device_destroy(pvpanic);
    device_destroy(i8042);
    device_destroy(pm);
    rig_stop();
    return 0;
}

static uint16_t inw(uint16_t port) {
    return (uint16_t)port_read(rig.platform.ports, port, 2);
}

static void outw(uint16_t port, uint16_t value) {
    port_write(rig.platform.ports, port, value, 2);
}

static void timer_counts(void **state) {
    (void)state;
    uint32_t before = port_read(rig.platform.ports, BASE + 8, 4);
    rig_advance(NS_PER_SECOND);
    uint32_t after = port_read(rig.platform.ports, BASE + 8, 4);
    assert_in_range(after - before, 3579544, 3579546);
}

static void power_button_raises_the_sci(void **state) {
    (void)state;
    acpi_pm_power_button(pm);
    assert_int_equal(rig_interrupts(SCI), 0);
    outw(BASE + 2, POWER_BUTTON);
    assert_int_equal(rig_interrupts(SCI), 1);
    assert_int_equal(inw(BASE), POWER_BUTTON);
    outw(BASE, POWER_BUTTON);
    assert_int_equal(inw(BASE), 0);
    rig_eoi(SCI);
    assert_int_equal(rig_interrupts(SCI), 0);
}

static void timer_carry_raises_the_sci(void **state) {
    (void)state;
    outw(BASE, 1);
    outw(BASE + 2, 1);
    rig_advance(601 * NS_PER_SECOND);
    assert_int_equal(rig_interrupts(SCI), 1);
    assert_int_equal(inw(BASE) & 1, 1);
}

static void general_purpose_events(void **state) {
    (void)state;
    outw(BASE + 0x22, 0x8000);
    acpi_pm_raise_gpe(pm, 15);
    assert_int_equal(rig_interrupts(SCI), 1);
    outw(BASE + 0x20, 0x8000);
    assert_int_equal(inw(BASE + 0x20), 0);
}

static void sleep_type_5_powers_off(void **state) {
    (void)state;
    assert_int_equal(inw(BASE + 4), 1);
    outw(BASE + 4, SLEEP | 1 << 10);
    assert_int_equal(rig.requests[PLATFORM_POWER_OFF], 0);
    assert_int_equal(inw(BASE), WAKE);
    outw(BASE, WAKE);
    assert_int_equal(inw(BASE), 0);
    outw(BASE + 4, ACPI_PM_S5 << 10);
    assert_int_equal(rig.requests[PLATFORM_POWER_OFF], 0);
    outw(BASE + 4, SLEEP | ACPI_PM_S5 << 10);
    assert_int_equal(rig.requests[PLATFORM_POWER_OFF], 1);
    assert_int_equal(inw(BASE + 4) & SLEEP, 0);
}

static void resets(void **state) {
    (void)state;
    unsigned *resets = &rig.requests[PLATFORM_RESET];
    outb(0xcf9, 0x02);
    assert_int_equal(*resets, 0);
    outb(0xcf9, 0x06);
    assert_int_equal(*resets, 1);
    outb(0x64, 0xfe);
    assert_int_equal(*resets, 2);
    outb(0x64, 0xff);
    assert_int_equal(*resets, 2);
    outb(0x92, 0x01);
    assert_int_equal(*resets, 3);
}

static void controller_answers_probes(void **state) {
    (void)state;
    assert_false(inb(0x64) & 1);
    outb(0x64, 0xaa);
    assert_true(inb(0x64) & 1);
    assert_int_equal(inb(0x60), 0x55);
    assert_false(inb(0x64) & 1);
    outb(0x64, 0x60);
    outb(0x60, 0x47);
    outb(0x64, 0x20);
    assert_int_equal(inb(0x60), 0x47);
}

static void keyboard_says(const char *answers, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        assert_true(inb(0x64) & 1);
        assert_int_equal(inb(0x60), (uint8_t)answers[i]);
    }
    assert_false(inb(0x64) & 1);
}

/* Firmware waits for seconds for one that does not answer. */
static void keyboard_answers(void **state) {
    (void)state;
    rig_route(1, 0);
    outb(0x60, 0xff);
    keyboard_says("\xfa\xaa", 2);
    assert_int_equal(rig_interrupts(1), 0);
    outb(0x64, 0x60);
    outb(0x60, 1); /* interrupt on */
    outb(0x60, 0xf2);
    assert_int_equal(rig_interrupts(1), 1);
    keyboard_says("\xfa\xab\x83", 3);
    assert_int_equal(rig_interrupts(1), 2); /* one for each byte */
    outb(0x60, 0xed);
    keyboard_says("\xfa", 1);
    outb(0x60, 7);
    keyboard_says("\xfa", 1);
    outb(0x60, 0xf0);
    keyboard_says("\xfa", 1);
    outb(0x60, 0);
    keyboard_says("\xfa\x02", 2);
    outb(0x60, 0x33);
    keyboard_says("\xfe", 1);
    for (unsigned i = 0; i < 20; i++)
        outb(0x60, 0xf4); /* what nobody reads is lost */
    keyboard_says("\xfa\xfa\xfa\xfa", 4);
}

static void panics_are_told(void **state) {
    (void)state;
    assert_int_equal(inb(0x505), 1);
    outb(0x505, 2);
    assert_int_equal(rig.requests[PLATFORM_PANICKED], 0);
    outb(0x505, 1);
    assert_int_equal(rig.requests[PLATFORM_PANICKED], 1);
}

static uint32_t dog(unsigned offset) {
    return (uint32_t)port_read(rig.platform.ports, (uint16_t)(DOG + offset), 4);
}

static void set_dog(unsigned offset, uint32_t value) {
    port_write(rig.platform.ports, (uint16_t)(DOG + offset), value, 4);
}

/* In the guest's time, from the last reset on; once; not while it stands. */
static void watchdog_counts(void **state) {
    (void)state;
    const uint64_t tick = WATCHDOG_TICK_MS * UINT64_C(1000000);
    const unsigned *fired = &rig.requests[PLATFORM_WATCHDOG];
    set_dog(WATCHDOG_COUNT, 20);
    rig_advance(100 * tick);
    assert_int_equal(*fired, 0);
    set_dog(WATCHDOG_CONTROL, 1);
    rig_advance(15 * tick);
    assert_int_equal(dog(WATCHDOG_COUNT), 5);
    set_dog(WATCHDOG_RESET, 1);
    rig_advance(19 * tick);
    assert_int_equal(*fired, 0);
    assert_int_equal(dog(WATCHDOG_CONTROL), 1);
    rig_advance(tick);
    assert_int_equal(*fired, 1);
    assert_int_equal(dog(WATCHDOG_CONTROL), 0);
    assert_int_equal(dog(WATCHDOG_STATUS), 1);
    device_reset(watchdog);
    assert_int_equal(dog(WATCHDOG_STATUS), 1);
    set_dog(WATCHDOG_STATUS, 1);
    assert_int_equal(dog(WATCHDOG_STATUS), 0);
    rig_advance(1000 * tick);
    assert_int_equal(*fired, 1);
    set_dog(WATCHDOG_CONTROL, 1);
    set_dog(WATCHDOG_CONTROL, 0);
    rig_advance(1000 * tick);
    assert_int_equal(*fired, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(timer_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(power_button_raises_the_sci, setup, teardown),
        cmocka_unit_test_setup_teardown(timer_carry_raises_the_sci, setup, teardown),
        cmocka_unit_test_setup_teardown(general_purpose_events, setup, teardown),
        cmocka_unit_test_setup_teardown(sleep_type_5_powers_off, setup, teardown),
        cmocka_unit_test_setup_teardown(resets, setup, teardown),
        cmocka_unit_test_setup_teardown(controller_answers_probes, setup, teardown),
        cmocka_unit_test_setup_teardown(keyboard_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(panics_are_told, setup, teardown),
        cmocka_unit_test_setup_teardown(watchdog_counts, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
