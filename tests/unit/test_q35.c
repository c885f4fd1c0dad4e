/* The chipset's registers: where they put ECAM, the PM ports, PIRQs, and what PAM lets be written.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/acpi_pm.h"
#include "device/q35.h"
#include "platform_rig.h"

enum { PCIEXBAR = 0x60, PAM = 0x90, PMBASE = 0x40, ACPI_CONTROL = 0x44, PIRQ_A = 0x60 };

static struct device *pm, *q35;

static int setup(void **state) {
    (void)state;
    rig_start();
    pm = rig_device(&acpi_pm_class, &(struct acpi_pm_config){.base = 0x600, .sci = 9});
    q35 = rig_device(&q35_class, &(struct q35_config){.acpi_pm = pm});
    return 0;
}

static int teardown(void **state) {
    (void)state;
    device_destroy(q35);
    device_destroy(pm);
    rig_stop();
    return 0;
}

static void put(unsigned slot, unsigned offset, uint32_t value) {
    port_write(rig.platform.ports, 0xcf8, 0x80000000 | slot << 11 | offset, 4);
    port_write(rig.platform.ports, 0xcfc, value, 4);
}

static uint32_t get(unsigned slot, unsigned offset) {
    port_write(rig.platform.ports, 0xcf8, 0x80000000 | slot << 11 | offset, 4);
    return port_read(rig.platform.ports, 0xcfc, 4);
}

static void firmware_knows_it(void **state) {
    (void)state;
    assert_int_equal(get(0, 0), 0x29c08086);
    assert_int_equal(get(0, 8) >> 8, 0x060000);
    assert_int_equal(get(Q35_LPC_SLOT, 0), 0x29188086);
    assert_int_equal(get(Q35_LPC_SLOT, 8) >> 8, 0x060100);
}

static void ecam_is_where_pciexbar_says(void **state) {
    (void)state;
    assert_int_equal(mmio_read(0xb0000000, 4), 0xffffffff);
    put(0, PCIEXBAR, 0xb0000001);
    assert_int_equal(mmio_read(0xb0000000, 4), 0x29c08086);
    assert_int_equal(mmio_read(0xb00f8000, 4), 0x29188086);
    assert_int_equal(mmio_read(0xb0100000, 4), 0xffffffff); /* bus 1 */
    put(0, PCIEXBAR + 4, 0xffffffff);
    assert_int_equal(get(0, PCIEXBAR + 4), 0xf);
    assert_int_equal(mmio_read(UINT64_C(0xfb0000000), 4), 0x29c08086);
    assert_int_equal(mmio_read(0xb0000000, 4), 0xffffffff);
    pci_bus_reset(rig.platform.pci);
    assert_int_equal(mmio_read(UINT64_C(0xfb0000000), 4), 0xffffffff);
}

/* Every segment's write enable is its own. */
static void pam_protects_segments(void **state) {
    (void)state;
    struct memory *memory = rig.platform.memory;
    uint8_t byte = 1;
    for (unsigned segment = 0; segment < 16; segment++)
        assert_int_equal(memory_write(memory, 0xc0000 + segment * 0x4000, &byte, 1), -EFAULT);
    assert_int_equal(memory_load(memory, 0xfffff, &byte, 1), 0);
    assert_int_equal(memory_write(memory, 0xbffff, &byte, 1), 0);
    for (unsigned half = 0; half < 12; half++) {
        uint64_t pam = UINT64_C(2) << (8 + 4 * half);
        put(0, PAM, (uint32_t)pam);
        put(0, PAM + 4, (uint32_t)(pam >> 32));
        for (unsigned segment = 0; segment < 16; segment++)
            assert_int_equal(memory_write(memory, 0xc3fff + segment * 0x4000, &byte, 1),
                             segment == half ? 0 : -EFAULT);
    }
    put(0, PAM, 0x30);
    put(0, PAM + 4, 0);
    assert_int_equal(memory_write(memory, 0xf0000, &byte, 1), 0);
    assert_int_equal(memory_write(memory, 0xffff0, &byte, 1), 0);
    assert_int_equal(memory_write(memory, 0xeffff, &byte, 2), -EFAULT);
    pci_bus_reset(rig.platform.pci);
    assert_int_equal(memory_write(memory, 0xf0000, &byte, 1), -EFAULT);
    assert_int_equal(memory_read(memory, 0xfffff, &byte, 1), 0);
    assert_int_equal(byte, 1);
}

static void pm_ports_are_where_pmbase_says(void **state) {
    (void)state;
    assert_int_equal(get(Q35_LPC_SLOT, PMBASE), 1);
    assert_int_equal(port_read(rig.platform.ports, 0x604, 2), 0xffff);
    put(Q35_LPC_SLOT, PMBASE, 0xb000);
    assert_int_equal(get(Q35_LPC_SLOT, PMBASE), 0xb001);
    assert_int_equal(port_read(rig.platform.ports, 0xb004, 2), 0xffff);
    put(Q35_LPC_SLOT, ACPI_CONTROL, 0x80);
    assert_int_equal(port_read(rig.platform.ports, 0xb004, 2), 1); /* SCI_EN */
    put(Q35_LPC_SLOT, PMBASE, 0xffffffff);                         /* the end of the port space */
    assert_int_equal(port_read(rig.platform.ports, 0xff84, 2), 1);
}

static void set_up_as_by_firmware(void **state) {
    (void)state;
    uint8_t byte = 1;
    q35_set_up(q35, 0xb0000000, 0x600);
    assert_int_equal(mmio_read(0xb0000000, 4), 0x29c08086);
    assert_int_equal(port_read(rig.platform.ports, 0x604, 2), 1);
    assert_int_equal(memory_write(rig.platform.memory, 0xfffff, &byte, 1), 0);
    assert_int_equal(memory_write(rig.platform.memory, 0xc0000, &byte, 1), 0);
    assert_int_equal(get(Q35_LPC_SLOT, PIRQ_A), 0x0b0b0a0a);
}

/* A saved chipset puts everything back where it was. */
static void state_comes_back(void **state) {
    (void)state;
    struct state_buffer buffer = {0};
    size_t used;
    struct pci_function *mch = pci_bus_next(rig.platform.pci, NULL);
    put(0, PCIEXBAR, 0xe0000001);
    assert_int_equal(state_save(pci_function_state(), mch, &buffer, NULL), 0);
    pci_bus_reset(rig.platform.pci);
    assert_int_equal(mmio_read(0xe0000000, 4), 0xffffffff);
    assert_int_equal(state_load(pci_function_state(), mch, buffer.data, buffer.length, &used, NULL),
                     0);
    assert_int_equal(mmio_read(0xe0000000, 4), 0x29c08086);
    state_buffer_free(&buffer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(firmware_knows_it, setup, teardown),
        cmocka_unit_test_setup_teardown(ecam_is_where_pciexbar_says, setup, teardown),
        cmocka_unit_test_setup_teardown(pam_protects_segments, setup, teardown),
        cmocka_unit_test_setup_teardown(pm_ports_are_where_pmbase_says, setup, teardown),
        cmocka_unit_test_setup_teardown(set_up_as_by_firmware, setup, teardown),
        cmocka_unit_test_setup_teardown(state_comes_back, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
