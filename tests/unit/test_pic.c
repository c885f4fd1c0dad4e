/* The 8259 pair through its ports. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "platform_rig.h"

enum { MASTER = 0x20, SLAVE = 0xa0, ELCR = 0x4d0, EOI = 0x20, READ_IRR = 0x0a, READ_ISR = 0x0b };

static void init(uint8_t icw4) {
    outb(MASTER, 0x11);
    outb(MASTER + 1, 0x30);
    outb(MASTER + 1, 0x04);
    outb(MASTER + 1, icw4);
    outb(SLAVE, 0x11);
    outb(SLAVE + 1, 0x38);
    outb(SLAVE + 1, 0x02);
    outb(SLAVE + 1, icw4);
}

static void line(unsigned irq, bool level) {
    irq_set(rig.platform.irqchip, irq, level);
}

static int ack(void) {
    return irqchip_pic_ack(rig.platform.irqchip);
}

static uint8_t read_ocw3(uint16_t port, uint8_t command) {
    outb(port, command);
    return inb(port);
}

static void edges_are_latched(void **state) {
    (void)state;
    init(0x01);
    assert_int_equal(ack(), -1);
    line(4, true);
    line(4, false);
    assert_true(rig.intr);
    assert_int_equal(read_ocw3(MASTER, READ_IRR), 0x10);
    assert_int_equal(ack(), 0x34);
    assert_false(rig.intr);
    assert_int_equal(read_ocw3(MASTER, READ_ISR), 0x10);
    outb(MASTER, EOI);
    assert_int_equal(read_ocw3(MASTER, READ_ISR), 0);
    assert_int_equal(ack(), -1);
}

static void masks_hold_back(void **state) {
    (void)state;
    init(0x01);
    outb(MASTER + 1, 0xff);
    line(1, true);
    assert_false(rig.intr);
    outb(MASTER + 1, 0xfd);
    assert_true(rig.intr);
    assert_int_equal(ack(), 0x31);
}

static void lower_inputs_wait(void **state) {
    (void)state;
    init(0x01);
    line(5, true);
    assert_int_equal(ack(), 0x35);
    line(6, true);
    assert_false(rig.intr);
    line(1, true);
    assert_int_equal(ack(), 0x31);
    outb(MASTER, EOI); /* ends 1, the highest */
    assert_false(rig.intr);
    outb(MASTER, EOI);
    assert_int_equal(ack(), 0x36);
}

static void slave_cascades(void **state) {
    (void)state;
    init(0x01);
    line(10, true);
    line(12, true);
    assert_int_equal(ack(), 0x3a);
    assert_int_equal(read_ocw3(MASTER, READ_ISR), 0x04);
    outb(SLAVE, EOI);
    assert_false(rig.intr); /* the master still serves its input 2 */
    outb(MASTER, EOI);
    assert_int_equal(ack(), 0x3c);
}

static void levels_stay(void **state) {
    (void)state;
    init(0x01);
    outb(ELCR, 0xff);
    outb(ELCR + 1, 0xff);
    assert_int_equal(inb(ELCR), 0xf8);
    assert_int_equal(inb(ELCR + 1), 0xde);
    line(11, true);
    assert_int_equal(ack(), 0x3b);
    outb(SLAVE, EOI);
    outb(MASTER, EOI);
    assert_true(rig.intr); /* still raised */
    line(11, false);
    assert_false(rig.intr);
}

static void automatic_eoi_and_rotation(void **state) {
    (void)state;
    init(0x03);
    outb(MASTER, 0x80); /* rotate in automatic EOI mode */
    line(3, true);
    assert_int_equal(ack(), 0x33);
    assert_int_equal(read_ocw3(MASTER, READ_ISR), 0);
    line(3, false);
    line(3, true);
    line(4, true);
    assert_int_equal(ack(), 0x34); /* 4 is now the highest */
    assert_int_equal(ack(), 0x33);
}

static void special_mask_opens_lower_ones(void **state) {
    (void)state;
    init(0x01);
    line(1, true);
    assert_int_equal(ack(), 0x31);
    line(6, true);
    assert_false(rig.intr);
    outb(MASTER + 1, 0x02);
    outb(MASTER, 0x68);
    assert_int_equal(ack(), 0x36);
}

static void polling_acknowledges(void **state) {
    (void)state;
    init(0x01);
    line(7, true);
    assert_int_equal(read_ocw3(MASTER, 0x0c), 0x87);
    assert_int_equal(read_ocw3(MASTER, READ_ISR), 0x80);
    assert_int_equal(read_ocw3(MASTER, 0x0c) & 0x80, 0);
}

static void state_survives(void **state) {
    (void)state;
    void *object;
    struct state_buffer buffer = {0};
    size_t used;
    const struct state_table *table = irqchip_state(rig.platform.irqchip, &object);
    init(0x01);
    line(9, true);
    rig_route(9, RIG_LEVEL | RIG_MASKED);
    assert_int_equal(state_save(table, object, &buffer, NULL), 0);
    irqchip_reset(rig.platform.irqchip);
    assert_int_equal(state_load(table, object, buffer.data, buffer.length, &used, NULL), 0);
    assert_int_equal(ack(), 0x39);
    assert_int_equal(ioapic_get(0x10 + 18), (RIG_VECTOR + 9) | RIG_LEVEL | RIG_MASKED);
    state_buffer_free(&buffer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(edges_are_latched, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(masks_hold_back, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(lower_inputs_wait, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(slave_cascades, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(levels_stay, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(automatic_eoi_and_rotation, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(special_mask_opens_lower_ones, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(polling_acknowledges, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(state_survives, rig_setup, rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
