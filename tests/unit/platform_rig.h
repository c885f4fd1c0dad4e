/*
 * A machine without vCPUs for tests of platform devices: memory, ports,
 * interrupt chip, PCI bus and a clock that the test moves. Interrupts are
 * counted by vector; rig_route makes a pin send vector RIG_VECTOR + pin.
 */
#ifndef LODGE_TESTS_PLATFORM_RIG_H
#define LODGE_TESTS_PLATFORM_RIG_H

#include "device/device.h"
#include "fake_clock.h"
#include "pci/pci.h"

enum { RIG_VECTOR = 0x40, RIG_MASKED = 1 << 16, RIG_LEVEL = 1 << 15 };
#define RIG_ECAM UINT64_C(0xe0000000)

struct rig {
    struct platform platform;
    unsigned interrupts[256];
    unsigned requests[PLATFORM_PANICKED + 1]; /* by enum platform_request */
    bool intr;                                /* the 8259s' output */
};

static struct rig rig;

static inline void rig_on_message(void *context, struct msi_message message) {
    (void)context;
    rig.interrupts[message.data & 0xff]++;
}

static inline void rig_on_external(void *context, bool level) {
    (void)context;
    rig.intr = level;
}

static inline void rig_on_request(struct platform *platform, enum platform_request request) {
    (void)platform;
    rig.requests[request]++;
}

static inline void rig_start(void) {
    static const struct pci_bus_config bus = {
        .mmio32_base = 0xc0000000,
        .mmio32_size = 0x20000000,
        .mmio64_base = UINT64_C(0x4000000000),
        .mmio64_size = UINT64_C(0x1000000000),
        .io_base = 0xc000,
        .io_size = 0x2f00,
    };
    static const struct irq_delivery delivery = {.message = rig_on_message,
                                                 .external = rig_on_external};
    struct platform *platform = &rig.platform;
    rig = (struct rig){.platform.request = rig_on_request};
    assert_int_equal(memory_create(&platform->memory, NULL), 0);
    assert_int_equal(memory_add_ram(platform->memory, "ram", 0, 1 << 20, NULL), 0);
    assert_int_equal(ports_create(&platform->ports, NULL), 0);
    assert_int_equal(vm_clock_create(&platform->clock, NULL), 0);
    assert_int_equal(loop_create(&platform->loop, NULL), 0);
    assert_int_equal(irqchip_create(platform->memory, platform->ports, platform->clock,
                                    &platform->irqchip, NULL),
                     0);
    irqchip_set_delivery(platform->irqchip, &delivery);
    assert_int_equal(pci_bus_create(platform, &bus, &platform->pci, NULL), 0);
    pci_bus_place_ecam(platform->pci, RIG_ECAM, true);
}

static inline void rig_stop(void) {
    struct platform *platform = &rig.platform;
    pci_bus_destroy(platform->pci);
    irqchip_destroy(platform->irqchip);
    loop_destroy(platform->loop);
    vm_clock_destroy(platform->clock);
    ports_destroy(platform->ports);
    memory_destroy(platform->memory);
}

static inline struct device *rig_device(const struct device_class *class, const void *config) {
    struct device *device;
    assert_int_equal(device_create(class, class->name, &rig.platform, config, &device, NULL), 0);
    return device;
}

static inline uint64_t rig_now(void) {
    return vm_clock_ns(rig.platform.clock);
}

static inline void rig_advance(uint64_t ns) {
    fake_clock_advance(rig.platform.clock, ns);
}

static inline uint8_t inb(uint16_t port) {
    return (uint8_t)port_read(rig.platform.ports, port, 1);
}

static inline void outb(uint16_t port, uint8_t value) {
    port_write(rig.platform.ports, port, value, 1);
}

static inline uint64_t mmio_read(uint64_t gpa, unsigned size) {
    return memory_io_read(rig.platform.memory, gpa, size);
}

static inline void mmio_write(uint64_t gpa, uint64_t value, unsigned size) {
    memory_io_write(rig.platform.memory, gpa, value, size);
}

static inline void ioapic_put(unsigned reg, uint32_t value) {
    mmio_write(IOAPIC_BASE, reg, 4);
    mmio_write(IOAPIC_BASE + 0x10, value, 4);
}

static inline uint32_t ioapic_get(unsigned reg) {
    mmio_write(IOAPIC_BASE, reg, 4);
    return (uint32_t)mmio_read(IOAPIC_BASE + 0x10, 4);
}

/* Opens an I/O APIC pin; flags: RIG_LEVEL, RIG_MASKED. */
static inline void rig_route(unsigned pin, uint32_t flags) {
    ioapic_put(0x11 + 2 * pin, 0);
    ioapic_put(0x10 + 2 * pin, (RIG_VECTOR + pin) | flags);
}

/* Interrupts of a pin since the last call. */
static inline unsigned rig_interrupts(unsigned pin) {
    unsigned count = rig.interrupts[RIG_VECTOR + pin];
    rig.interrupts[RIG_VECTOR + pin] = 0;
    return count;
}

static inline void rig_eoi(unsigned pin) {
    irqchip_eoi(rig.platform.irqchip, (uint8_t)(RIG_VECTOR + pin));
}

static inline int rig_setup(void **state) {
    (void)state;
    rig_start();
    return 0;
}

static inline int rig_teardown(void **state) {
    (void)state;
    rig_stop();
    return 0;
}

/* A fixed sequence of random numbers (splitmix64). */
static inline uint64_t rig_random(uint64_t *seed) {
    uint64_t z = *seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

#endif
