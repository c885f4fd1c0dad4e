/* The I/O APIC through its registers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "platform_rig.h"

enum { REMOTE_IRR = 1 << 14 };

static void line(unsigned gsi, bool level) {
    irq_set(rig.platform.irqchip, gsi, level);
}

static void says_what_it_is(void **state) {
    (void)state;
    assert_int_equal(ioapic_get(1), 23 << 16 | 0x20);
    ioapic_put(0, 0x0f000000);
    assert_int_equal(ioapic_get(0), 0x0f000000);
    assert_int_equal(ioapic_get(0x10), RIG_MASKED);
    assert_int_equal(ioapic_get(0x40), 0);
}

static void edges_send_once(void **state) {
    (void)state;
    rig_route(5, 0);
    line(5, true);
    line(5, true);
    assert_int_equal(rig_interrupts(5), 1);
    line(5, false);
    line(5, true);
    assert_int_equal(rig_interrupts(5), 1);
    line(5, false);
    rig_route(5, RIG_MASKED);
    line(5, true);
    rig_route(5, 0);
    assert_int_equal(rig_interrupts(5), 0);
}

static void levels_wait_for_the_eoi(void **state) {
    (void)state;
    rig_route(17, RIG_LEVEL);
    line(17, true);
    assert_int_equal(rig_interrupts(17), 1);
    assert_true(ioapic_get(0x10 + 34) & REMOTE_IRR);
    line(17, false);
    line(17, true);
    assert_int_equal(rig_interrupts(17), 0);
    rig_eoi(17);
    assert_int_equal(rig_interrupts(17), 1);
    line(17, false);
    rig_eoi(17);
    assert_int_equal(rig_interrupts(17), 0);
    assert_false(ioapic_get(0x10 + 34) & REMOTE_IRR);
}

static void eoi_register_ends(void **state) {
    (void)state;
    rig_route(20, RIG_LEVEL);
    line(20, true);
    assert_int_equal(rig_interrupts(20), 1);
    mmio_write(IOAPIC_BASE + 0x40, RIG_VECTOR + 20, 4);
    assert_int_equal(rig_interrupts(20), 1);
}

static void unmasking_sends_a_raised_level(void **state) {
    (void)state;
    rig_route(18, RIG_LEVEL | RIG_MASKED);
    line(18, true);
    assert_int_equal(rig_interrupts(18), 0);
    rig_route(18, RIG_LEVEL);
    assert_int_equal(rig_interrupts(18), 1);
}

static void wires_share_a_line(void **state) {
    (void)state;
    struct irq_wire a = {rig.platform.irqchip, 19, 0}, b = {rig.platform.irqchip, 19, 1};
    rig_route(19, RIG_LEVEL);
    irq_wire_set(&a, true);
    irq_wire_set(&b, true);
    irq_wire_set(&a, false);
    rig_interrupts(19);
    rig_eoi(19);
    assert_int_equal(rig_interrupts(19), 1);
    irq_wire_set(&b, false);
    rig_eoi(19);
    assert_int_equal(rig_interrupts(19), 0);
}

static void isa_irq_0_is_pin_2(void **state) {
    (void)state;
    rig_route(0, 0);
    rig_route(2, 0);
    line(0, true);
    assert_int_equal(rig_interrupts(0), 0);
    assert_int_equal(rig_interrupts(2), 1);
}

static void messages_carry_the_entry(void **state) {
    (void)state;
    struct msi_message message;
    ioapic_put(0x11 + 2 * 22, 0x03000000);
    ioapic_put(0x10 + 2 * 22, 0x77 | 1 << 8 | 1 << 11 | RIG_LEVEL);
    assert_true(irqchip_pin_message(rig.platform.irqchip, 22, &message));
    assert_int_equal(message.address, 0xfee03000 | 1 << 3 | 1 << 2);
    assert_int_equal(message.data, 0x77 | 1 << 8 | 0xc000);
    assert_false(irqchip_pin_message(rig.platform.irqchip, 24, &message));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(says_what_it_is, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(edges_send_once, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(levels_wait_for_the_eoi, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(eoi_register_ends, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(unmasking_sends_a_raised_level, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(wires_share_a_line, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(isa_irq_0_is_pin_2, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(messages_carry_the_entry, rig_setup, rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
