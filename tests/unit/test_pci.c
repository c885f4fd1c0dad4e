/* The PCI bus: configuration space by both ways, BARs, MSI-X, INTx, bus mastering. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "platform_rig.h"

enum { COMMAND = 4, STATUS = 6, BAR0 = 0x10, LINE = 0x3c, VECTORS = 5 };
enum { MSIX_ENABLE = 0x8000, MSIX_MASK = 0x4000, MASTER = 4 };

struct thing {
    struct pci_function *function;
    uint64_t last_offset, last_value;
    unsigned reads, writes, config_writes, config_reads, changes;
};

static struct thing thing;

static uint64_t thing_read(void *context, uint64_t offset, unsigned size) {
    struct thing *t = context;
    t->reads++;
    t->last_offset = offset;
    return 0x1122334455667788 & bytes_mask(size);
}

static void thing_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct thing *t = context;
    (void)size;
    t->writes++;
    t->last_offset = offset;
    t->last_value = value;
}

static const struct io_ops ops = {thing_read, thing_write};

static void config_written(void *context, uint16_t offset, unsigned size) {
    (void)offset, (void)size;
    ((struct thing *)context)->config_writes++;
}

static void config_reading(void *context, uint16_t offset, unsigned size) {
    (void)offset, (void)size;
    ((struct thing *)context)->config_reads++;
}

static void msix_changed(void *context, uint16_t vector) {
    assert_true(vector < VECTORS);
    ((struct thing *)context)->changes++;
}

static int setup(void **state) {
    (void)state;
    rig_start();
    thing = (struct thing){0};
    struct pci_function_config config = {
        .vendor = 0x1af4,
        .device = 0x1041,
        .class_code = 0x020000,
        .interrupt_pin = true,
        .bars = {{PCI_BAR_MEM64, 0x4000, &ops}, {0}, {PCI_BAR_IO, 0x20, &ops}, {PCI_BAR_MEM32}},
        .msix_vectors = VECTORS,
        .msix_bar = 3,
        .slot = 9,
        .context = &thing,
        .config_written = config_written,
        .config_reading = config_reading,
        .msix_changed = msix_changed,
    };
    assert_int_equal(pci_function_create(rig.platform.pci, &config, &thing.function, NULL), 0);
    assert_int_equal(pci_bus_assign(rig.platform.pci, NULL), 0);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    pci_function_destroy(thing.function);
    rig_stop();
    return 0;
}

static uint32_t get(unsigned slot, unsigned offset, unsigned size) {
    return (uint32_t)mmio_read(RIG_ECAM + (slot << 15) + offset, size);
}

static void put(unsigned offset, uint32_t value, unsigned size) {
    mmio_write(RIG_ECAM + (9 << 15) + offset, value, size);
}

static unsigned find_capability(uint8_t id) {
    unsigned offset = get(9, 0x34, 1);
    while (offset && get(9, offset, 1) != id)
        offset = get(9, offset + 1, 1);
    return offset;
}

static uint64_t msix_bar(void) {
    return get(9, BAR0 + 12, 4) & ~15u;
}

static void set_vector(unsigned vector, uint8_t data, bool masked) {
    uint64_t entry = msix_bar() + vector * 16;
    mmio_write(entry, 0xfee00000, 8);
    mmio_write(entry + 8, data, 4);
    mmio_write(entry + 12, masked, 4);
}

static void enable_msix(uint16_t control) {
    put(COMMAND, 7, 2);
    put(find_capability(0x11) + 2, control, 2);
}

static void both_mechanisms_agree(void **state) {
    (void)state;
    struct ports *ports = rig.platform.ports;
    assert_int_equal(get(9, 0, 4), 0x10411af4);
    assert_int_equal(get(9, 9, 1), 0);
    assert_int_equal(get(9, 0xa, 2), 0x0200);
    port_write(ports, 0xcf8, 0x80004800, 4);
    assert_int_equal(port_read(ports, 0xcf8, 4), 0x80004800);
    assert_int_equal(port_read(ports, 0xcfc, 4), 0x10411af4);
    assert_int_equal(port_read(ports, 0xcfe, 2), 0x1041);
    assert_int_equal(port_read(ports, 0xcff, 1), 0x10);
    port_write(ports, 0xcf8, 0x00004800, 4);
    assert_int_equal(port_read(ports, 0xcfc, 4), 0xffffffff);
    port_write(ports, 0xcf8, 0x80014800, 4); /* bus 1 */
    assert_int_equal(port_read(ports, 0xcfc, 4), 0xffffffff);
    port_write(ports, 0xcf8, 0x80004900, 4); /* function 1 */
    assert_int_equal(port_read(ports, 0xcfc, 4), 0xffffffff);
    assert_int_equal(get(10, 0, 4), 0xffffffff);
    assert_int_equal(get(9, LINE, 2), 0x0100 | pci_slot_gsi(9));
}

static void bars_tell_their_size(void **state) {
    (void)state;
    uint32_t low = get(9, BAR0, 4), high = get(9, BAR0 + 4, 4), io = get(9, BAR0 + 8, 4);
    assert_int_equal(low & 15, 4);
    assert_int_equal(high, 0x40);
    assert_int_equal(io & 3, 1);
    put(BAR0, 0xffffffff, 4);
    put(BAR0 + 4, 0xffffffff, 4);
    put(BAR0 + 8, 0xffffffff, 4);
    assert_int_equal(get(9, BAR0, 4), 0xffffc004);
    assert_int_equal(get(9, BAR0 + 4, 4), 0xffffffff);
    assert_int_equal(get(9, BAR0 + 8, 4), 0xffe1);
    put(BAR0, low, 4);
    put(BAR0 + 4, high, 4);
    put(BAR0 + 8, io, 4);
    mmio_read((uint64_t)high << 32 | (low & ~15u), 4);
    assert_int_equal(thing.reads, 1);
}

static void bars_move(void **state) {
    (void)state;
    put(BAR0, 0xd0000004, 4);
    put(BAR0 + 4, 0, 4);
    mmio_write(0xd0003ff8, 0x42, 8);
    assert_int_equal(thing.last_offset, 0x3ff8);
    assert_int_equal(thing.last_value, 0x42);
    put(COMMAND, 1, 2); /* memory decoding off */
    mmio_write(0xd0003ff8, 0x43, 8);
    assert_int_equal(thing.writes, 1);
    unsigned io = get(9, BAR0 + 8, 2) & ~3u;
    outb((uint16_t)(io + 5), 7);
    assert_int_equal(thing.last_offset, 5);
    put(COMMAND, 0, 2);
    outb((uint16_t)(io + 5), 7);
    assert_int_equal(thing.writes, 2);
}

static void bad_configurations_are_refused(void **state) {
    (void)state;
    struct pci_function *function;
    struct pci_function_config odd = {.bars = {{PCI_BAR_MEM32, 0x3000, &ops}}, .slot = -1};
    struct pci_function_config taken = {.slot = 9};
    struct pci_function_config many = {.slot = -1, .msix_vectors = PCI_MSIX_MAX + 1};
    assert_int_equal(pci_function_create(rig.platform.pci, &odd, &function, NULL), -EINVAL);
    assert_int_equal(pci_function_create(rig.platform.pci, &taken, &function, NULL), -ENOSPC);
    assert_int_equal(pci_function_create(rig.platform.pci, &many, &function, NULL), -EINVAL);
}

static void capabilities_chain(void **state) {
    (void)state;
    uint8_t body[14] = {16, 1}, writable[14] = {0, 0xf0};
    int first = pci_add_capability(thing.function, 9, body, writable, sizeof body + 2);
    int second = pci_add_capability(thing.function, 0x0d, body, NULL, 6);
    assert_true(first > 0 && second > first);
    assert_int_equal(find_capability(9), first);
    assert_int_equal(find_capability(0x0d), second);
    put((unsigned)first + 3, 0xff, 1);
    assert_int_equal(get(9, (unsigned)first + 3, 1), 0xf1);
    put((unsigned)second + 3, 0xff, 1);
    assert_int_equal(get(9, (unsigned)second + 3, 1), 1);
    assert_true(thing.config_writes > 0 && thing.config_reads > 0);
    while (pci_add_capability(thing.function, 9, body, NULL, sizeof body + 2) >= 0)
        ;
    assert_int_equal(get(9, STATUS, 2) & 0x10, 0x10);
}

static void intx_is_gated(void **state) {
    (void)state;
    unsigned gsi = pci_slot_gsi(9);
    rig_route(gsi, RIG_LEVEL);
    pci_intx_set(thing.function, true);
    assert_int_equal(rig_interrupts(gsi), 1);
    assert_int_equal(get(9, STATUS, 2) & 8, 8);
    put(COMMAND, 0x400, 2);
    rig_eoi(gsi);
    assert_int_equal(rig_interrupts(gsi), 0);
    put(COMMAND, 0, 2);
    assert_int_equal(rig_interrupts(gsi), 1);
    pci_intx_set(thing.function, false);
    rig_eoi(gsi);
    assert_int_equal(rig_interrupts(gsi), 0);
    assert_int_equal(get(9, STATUS, 2) & 8, 0);
}

/* The 8259s see what the bus leads to them; a line of theirs that is left goes down. */
static void intx_reaches_the_8259s(void **state) {
    (void)state;
    unsigned pirq = pci_slot_pirq(9);
    static const uint8_t slave_at_70[] = {0x11, 0x70, 0x02, 0x01};
    static const uint8_t master_at_68[] = {0x11, 0x68, 0x04, 0x01};
    for (unsigned i = 0; i < 4; i++) {
        outb(i ? 0x21 : 0x20, master_at_68[i]);
        outb(i ? 0xa1 : 0xa0, slave_at_70[i]);
    }
    outb(0x4d1, 0x0c); /* 10 and 11 are level-triggered */
    outb(0x21, 0);
    outb(0xa1, 0);
    pci_intx_set(thing.function, true);
    assert_false(rig.intr);
    pci_bus_route(rig.platform.pci, pirq, 10);
    assert_true(rig.intr);
    assert_int_equal(irqchip_pic_ack(rig.platform.irqchip), 0x72);
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
    pci_bus_route(rig.platform.pci, pirq, 11);
    assert_int_equal(irqchip_pic_ack(rig.platform.irqchip), 0x73);
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
    assert_true(rig.intr);
    pci_intx_set(thing.function, false);
    assert_false(rig.intr);
}

static void msix_sends_and_holds_back(void **state) {
    (void)state;
    struct msi_message message;
    assert_false(pci_msix_notify(thing.function, 1));
    enable_msix(MSIX_ENABLE);
    assert_true(pci_msix_enabled(thing.function));
    assert_int_equal(get(9, find_capability(0x11) + 2, 2), MSIX_ENABLE | (VECTORS - 1));
    set_vector(1, 0x51, false);
    assert_true(pci_msix_notify(thing.function, 1));
    assert_int_equal(rig.interrupts[0x51], 1);
    assert_true(pci_msix_message(thing.function, 1, &message));
    assert_int_equal(message.data, 0x51);

    set_vector(1, 0x51, true);
    pci_msix_notify(thing.function, 1);
    pci_msix_notify(thing.function, 1);
    assert_int_equal(rig.interrupts[0x51], 1);
    assert_int_equal(mmio_read(msix_bar() + 0x800, 8), 2);
    assert_false(pci_msix_message(thing.function, 1, &message));
    set_vector(1, 0x51, false);
    assert_int_equal(rig.interrupts[0x51], 2);
    assert_int_equal(mmio_read(msix_bar() + 0x800, 8), 0);

    put(find_capability(0x11) + 2, MSIX_ENABLE | MSIX_MASK, 2);
    pci_msix_notify(thing.function, 1);
    assert_int_equal(rig.interrupts[0x51], 2);
    put(find_capability(0x11) + 2, MSIX_ENABLE, 2);
    assert_int_equal(rig.interrupts[0x51], 3);
    assert_true(pci_msix_notify(thing.function, VECTORS)); /* none such */
    assert_true(thing.changes >= 2 * VECTORS);
}

static void msix_needs_bus_mastering(void **state) {
    (void)state;
    enable_msix(MSIX_ENABLE);
    set_vector(0, 0x52, false);
    put(COMMAND, 3, 2);
    assert_true(pci_msix_notify(thing.function, 0));
    assert_int_equal(rig.interrupts[0x52], 0);
}

static void dma_needs_bus_mastering(void **state) {
    (void)state;
    const struct dma_context *dma = pci_dma(thing.function);
    uint32_t value = 0x12345678, back = 0;
    assert_int_equal(dma_write(dma, 0x1000, &value, 4), -EFAULT);
    put(COMMAND, MASTER, 2);
    assert_int_equal(dma_write(dma, 0x1000, &value, 4), 0);
    assert_int_equal(dma_read(dma, 0x1000, &back, 4), 0);
    assert_int_equal(back, value);
    assert_int_equal(dma_read(dma, 0x1000000, &back, 4), -EFAULT);
}

static void reset_and_state(void **state) {
    (void)state;
    struct state_buffer buffer = {0};
    size_t used;
    enable_msix(MSIX_ENABLE);
    set_vector(2, 0x53, false);
    put(BAR0, 0xd0000004, 4);
    put(BAR0 + 4, 0, 4);
    assert_int_equal(state_save(pci_function_state(), thing.function, &buffer, NULL), 0);
    pci_bus_reset(rig.platform.pci);
    assert_int_equal(get(9, COMMAND, 2), 0);
    assert_int_equal(get(9, BAR0, 4), 4);
    assert_int_equal(get(9, 0, 4), 0x10411af4);
    assert_true(find_capability(0x11) != 0);
    mmio_write(0xd0000000, 1, 4);
    assert_int_equal(thing.writes, 0);
    assert_int_equal(
        state_load(pci_function_state(), thing.function, buffer.data, buffer.length, &used, NULL),
        0);
    mmio_write(0xd0000000, 1, 4);
    assert_int_equal(thing.writes, 1);
    assert_true(pci_msix_notify(thing.function, 2));
    assert_int_equal(rig.interrupts[0x53], 1);
    assert_ptr_equal(pci_bus_next(rig.platform.pci, NULL), thing.function);
    assert_null(pci_bus_next(rig.platform.pci, thing.function));
    state_buffer_free(&buffer);
}

static void garbage_is_survived(void **state) {
    (void)state;
    uint64_t seed = 11;
    static const uint8_t sizes[] = {1, 2, 4, 8};
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t r = rig_random(&seed);
        unsigned size = sizes[r & 3];
        uint64_t offset = r >> 8 & 0xfff, slot = r >> 20 & 15;
        if (r & 4)
            mmio_write(RIG_ECAM + (slot << 15) + (offset >> (r >> 60)), rig_random(&seed), size);
        else if (r & 8)
            mmio_read(RIG_ECAM + (slot << 15) + offset, size);
        else
            port_write(rig.platform.ports, (uint16_t)(0xcf8 + (r >> 8 & 7)),
                       (uint32_t)rig_random(&seed), size == 8 ? 4 : size);
        if (r & 16)
            mmio_write(msix_bar() + offset, rig_random(&seed), size);
        pci_msix_notify(thing.function, (uint16_t)(r >> 40) % 300);
        pci_intx_set(thing.function, r & 32);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(both_mechanisms_agree, setup, teardown),
        cmocka_unit_test_setup_teardown(bars_tell_their_size, setup, teardown),
        cmocka_unit_test_setup_teardown(bars_move, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_configurations_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(capabilities_chain, setup, teardown),
        cmocka_unit_test_setup_teardown(intx_is_gated, setup, teardown),
        cmocka_unit_test_setup_teardown(intx_reaches_the_8259s, setup, teardown),
        cmocka_unit_test_setup_teardown(msix_sends_and_holds_back, setup, teardown),
        cmocka_unit_test_setup_teardown(msix_needs_bus_mastering, setup, teardown),
        cmocka_unit_test_setup_teardown(dma_needs_bus_mastering, setup, teardown),
        cmocka_unit_test_setup_teardown(reset_and_state, setup, teardown),
        cmocka_unit_test_setup_teardown(garbage_is_survived, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
