/*
 * A machine without vCPUs for tests of PCI devices, and the driver's side of
 * a virtio device: configuration space through ECAM, registers through the
 * BAR, rings by driver_ring.h.
 */
#ifndef LODGE_TESTS_DEVICE_RIG_H
#define LODGE_TESTS_DEVICE_RIG_H

#include "device/device.h"
#include "driver_ring.h"
#include "pci/pci.h"
#include "virtio/pci.h"

enum { RIG_RAM = 32 << 20, RIG_RINGS = 0x400000, RIG_RING_STEP = 0x400000, RIG_DATA = 0x1800000 };
#define RIG_ECAM UINT64_C(0xe0000000)

struct rig {
    struct platform platform;
    unsigned messages;     /* MSIs sent */
    uint32_t last_message; /* data of the last one */
};

static inline void rig_on_message(void *context, struct msi_message message) {
    struct rig *rig = context;
    rig->messages++;
    rig->last_message = message.data;
}

static inline void rig_start(struct rig *rig) {
    static const struct pci_bus_config bus = {
        .mmio32_base = 0xc0000000,
        .mmio32_size = 0x20000000,
        .mmio64_base = UINT64_C(0x4000000000),
        .mmio64_size = UINT64_C(0x1000000000),
        .io_base = 0xc000,
        .io_size = 0x2f00,
    };
    struct platform *platform = &rig->platform;
    *rig = (struct rig){0};
    assert_int_equal(memory_create(&platform->memory, NULL), 0);
    assert_int_equal(memory_add_ram(platform->memory, "ram", 0, RIG_RAM, NULL), 0);
    assert_int_equal(ports_create(&platform->ports, NULL), 0);
    assert_int_equal(vm_clock_create(&platform->clock, NULL), 0);
    assert_int_equal(loop_create(&platform->loop, NULL), 0);
    assert_int_equal(irqchip_create(platform->memory, platform->ports, platform->clock,
                                    &platform->irqchip, NULL),
                     0);
    struct irq_delivery delivery = {.message = rig_on_message, .context = rig};
    irqchip_set_delivery(platform->irqchip, &delivery);
    assert_int_equal(pci_bus_create(platform, &bus, &platform->pci, NULL), 0);
    pci_bus_place_ecam(platform->pci, RIG_ECAM, true);
}

static inline void rig_stop(struct rig *rig) {
    struct platform *platform = &rig->platform;
    pci_bus_destroy(platform->pci);
    irqchip_destroy(platform->irqchip);
    loop_destroy(platform->loop);
    vm_clock_destroy(platform->clock);
    ports_destroy(platform->ports);
    memory_destroy(platform->memory);
}

static inline void rig_stop_loop(void *context) {
    loop_stop(context);
}

/* Runs what has been posted to the loop so far. */
static inline void rig_pump(struct rig *rig) {
    loop_post(rig->platform.loop, rig_stop_loop, rig->platform.loop);
    loop_run(rig->platform.loop);
}

/* Runs the loop until the condition holds; false after a minute. */
static inline bool rig_pump_until(struct rig *rig, bool (*condition)(void *context),
                                  void *context) {
    struct loop_timer *timer;
    struct loop *loop = rig->platform.loop;
    uint64_t limit = host_clock_ns() + 60 * NS_PER_SECOND;
    loop_timer_create(loop, rig_stop_loop, loop, &timer, NULL);
    bool met;
    while (!(met = condition(context)) && host_clock_ns() < limit) {
        loop_timer_arm(timer, host_clock_ns() + 1000000);
        loop_run(loop);
    }
    loop_timer_free(timer);
    return met;
}

/* ---- The driver ---- */

struct rig_driver {
    struct rig *rig;
    uint64_t config, bar; /* addresses */
    struct driver_ring rings[VIRTIO_QUEUES_MAX];
};

static inline uint64_t rig_read(struct rig *rig, uint64_t address, unsigned size) {
    return memory_io_read(rig->platform.memory, address, size);
}

static inline void rig_write(struct rig *rig, uint64_t address, uint64_t value, unsigned size) {
    memory_io_write(rig->platform.memory, address, value, size);
}

/* Finds the device with this virtio id, as firmware has placed it. */
static inline void driver_find(struct rig_driver *driver, struct rig *rig, uint16_t id) {
    driver->rig = rig;
    assert_int_equal(pci_bus_assign(rig->platform.pci, NULL), 0);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        uint64_t config = RIG_ECAM + ((uint64_t)slot << 15);
        if (rig_read(rig, config, 4) != (0x1af4u | (0x1040u + id) << 16))
            continue;
        driver->config = config;
        rig_write(rig, config + 4, rig_read(rig, config + 4, 2) | 6, 2);
        driver->bar = rig_read(rig, config + 0x10, 4) & ~UINT64_C(15);
        driver->bar |= rig_read(rig, config + 0x14, 4) << 32;
        return;
    }
    fail_msg("no such device on the bus");
}

static inline uint64_t driver_read(struct rig_driver *driver, unsigned offset, unsigned size) {
    return rig_read(driver->rig, driver->bar + offset, size);
}

static inline void driver_write(struct rig_driver *driver, unsigned offset, uint64_t value,
                                unsigned size) {
    rig_write(driver->rig, driver->bar + offset, value, size);
}

static inline uint8_t driver_status(struct rig_driver *driver) {
    return (uint8_t)driver_read(driver, VIRTIO_COMMON_STATUS, 1);
}

static inline uint64_t driver_offered(struct rig_driver *driver) {
    driver_write(driver, VIRTIO_COMMON_FEATURE_SELECT, 0, 4);
    uint64_t features = driver_read(driver, VIRTIO_COMMON_FEATURE, 4);
    driver_write(driver, VIRTIO_COMMON_FEATURE_SELECT, 1, 4);
    return features | driver_read(driver, VIRTIO_COMMON_FEATURE, 4) << 32;
}

/* Resets and negotiates; true when the device accepts the features. */
static inline bool driver_negotiate(struct rig_driver *driver, uint64_t features) {
    driver_write(driver, VIRTIO_COMMON_STATUS, 0, 1);
    assert_int_equal(driver_status(driver), 0);
    driver_write(driver, VIRTIO_COMMON_STATUS, VIRTIO_ACKNOWLEDGE, 1);
    driver_write(driver, VIRTIO_COMMON_STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER, 1);
    for (unsigned half = 0; half < 2; half++) {
        driver_write(driver, VIRTIO_COMMON_DRIVER_FEATURE_SELECT, half, 4);
        driver_write(driver, VIRTIO_COMMON_DRIVER_FEATURE, (uint32_t)(features >> 32 * half), 4);
    }
    driver_write(driver, VIRTIO_COMMON_STATUS,
                 VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK, 1);
    return driver_status(driver) & VIRTIO_FEATURES_OK;
}

static inline void driver_address(struct rig_driver *driver, unsigned offset, uint64_t address) {
    driver_write(driver, offset, (uint32_t)address, 4);
    driver_write(driver, offset + 4, address >> 32, 4);
}

static inline void driver_queue(struct rig_driver *driver, unsigned queue, uint16_t size,
                                bool packed) {
    struct driver_ring *ring = &driver->rings[queue];
    uint64_t base = RIG_RINGS + (uint64_t)queue * RIG_RING_STEP;
    ring_start(ring, driver->rig->platform.memory, base, size, packed);
    driver_write(driver, VIRTIO_COMMON_QUEUE_SELECT, queue, 2);
    driver_write(driver, VIRTIO_COMMON_QUEUE_SIZE, size, 2);
    driver_write(driver, VIRTIO_COMMON_QUEUE_VECTOR, queue, 2);
    driver_address(driver, VIRTIO_COMMON_QUEUE_DESCRIPTORS, base);
    driver_address(driver, VIRTIO_COMMON_QUEUE_DRIVER, base + RING_DRIVER);
    driver_address(driver, VIRTIO_COMMON_QUEUE_DEVICE, base + RING_DEVICE);
    driver_write(driver, VIRTIO_COMMON_QUEUE_ENABLE, 1, 2);
}

/* Everything up to DRIVER_OK, with all queues of this size. */
static inline void driver_start(struct rig_driver *driver, uint64_t features, unsigned queues,
                                uint16_t size) {
    bool packed = features & VIRTIO_FEATURE(VIRTIO_F_RING_PACKED);
    assert_true(driver_negotiate(driver, features | VIRTIO_FEATURE(VIRTIO_F_VERSION_1)));
    for (unsigned i = 0; i < queues; i++)
        driver_queue(driver, i, size, packed);
    driver_write(driver, VIRTIO_COMMON_STATUS, driver_status(driver) | VIRTIO_DRIVER_OK, 1);
}

static inline void driver_notify(struct rig_driver *driver, unsigned queue) {
    driver_write(driver, VIRTIO_PCI_NOTIFY + queue * VIRTIO_PCI_NOTIFY_STEP, queue, 2);
}

/* ---- Guest memory ---- */

static inline void rig_put(struct rig *rig, uint64_t address, const void *from, size_t length) {
    assert_int_equal(memory_write(rig->platform.memory, address, from, length), 0);
}

static inline void rig_get(struct rig *rig, uint64_t address, void *to, size_t length) {
    assert_int_equal(memory_read(rig->platform.memory, address, to, length), 0);
}

#endif
