/* Random accesses to every port and register of the platform's devices, with time passing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "device/acpi_pm.h"
#include "device/hpet.h"
#include "device/i8042.h"
#include "device/pit.h"
#include "device/pvpanic.h"
#include "device/rtc.h"
#include "device/serial.h"
#include "device/watchdog.h"
#include "platform_rig.h"

enum { DEVICES = 8, ROUNDS = 200000, HPET = 0xfed00000 };

static const struct {
    uint16_t base, count;
} ranges[] = {
    {0x20, 2},  {0xa0, 2},     {0x4d0, 2}, {0x40, 4},   {0x61, 1},  {0x70, 2},
    {0x60, 1},  {0x64, 1},     {0x92, 1},  {0x3f8, 8},  {0x505, 1}, {0x600, 0x24},
    {0xcf8, 8}, {0x3f0, 0x20}, {0x1e, 8},  {0x630, 16},
};

static const struct {
    uint64_t base;
    unsigned size;
} regions[] = {{HPET, 0x400}, {IOAPIC_BASE, 0x60}, {HPET + 0x100, 0x60}};

static size_t fickle_write(struct chardev *chardev, const uint8_t *bytes, size_t length) {
    static uint64_t seed = 3;
    (void)chardev, (void)bytes;
    return rig_random(&seed) % (length + 1);
}

static void fickle_resume(struct chardev *chardev) {
    (void)chardev;
}

static const struct chardev_ops fickle_ops = {fickle_write, fickle_resume};

static void port_access(uint64_t *seed) {
    static const uint8_t sizes[] = {1, 1, 2, 4};
    uint64_t r = rig_random(seed);
    unsigned i = (unsigned)(r >> 8) % ARRAY_SIZE(ranges);
    uint16_t port = (uint16_t)(ranges[i].base + (r >> 24) % ranges[i].count);
    if (r & 4)
        port_write(rig.platform.ports, port, (uint32_t)rig_random(seed), sizes[r & 3]);
    else
        port_read(rig.platform.ports, port, sizes[r & 3]);
}

static void mmio_access(uint64_t *seed) {
    uint64_t r = rig_random(seed);
    unsigned i = (unsigned)(r >> 8) % ARRAY_SIZE(regions);
    uint64_t gpa = regions[i].base + (r >> 24) % regions[i].size;
    if (r & 16)
        gpa &= ~UINT64_C(7);
    if (r & 4)
        mmio_write(gpa, rig_random(seed) >> (r >> 58), 1u << (r & 3));
    else
        mmio_read(gpa, 1u << (r & 3));
}

static void garbage(uint64_t seed, struct chardev *chardev) {
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t r = rig_random(&seed);
        if (r & 1)
            port_access(&seed);
        else
            mmio_access(&seed);
        if ((r & 0x1f0) == 0)
            rig_advance(r >> 40 & 0xfffff);
        if ((r & 0xff00) == 0)
            chardev->front->receive(chardev->front_context, (const uint8_t *)&r, sizeof r);
        if ((r & 0xff00) == 0x100)
            chardev->front->writable(chardev->front_context);
    }
}

static void every_register(void **state) {
    (void)state;
    struct chardev chardev = {.ops = &fickle_ops};
    struct device *pit = rig_device(&pit_class, NULL), *rtc = rig_device(&rtc_class, NULL);
    struct device *devices[DEVICES] = {
        pit,
        rtc,
        rig_device(&hpet_class, &(struct hpet_config){.base = HPET, .pit = pit, .rtc = rtc}),
        rig_device(&acpi_pm_class, &(struct acpi_pm_config){.base = 0x600, .sci = 9}),
        rig_device(&i8042_class, NULL),
        rig_device(&watchdog_class, &(struct watchdog_config){.base = 0x630}),
        rig_device(&pvpanic_class, &(struct pvpanic_config){.port = 0x505}),
        rig_device(&serial_class,
                   &(struct serial_config){.port = 0x3f8, .gsi = 4, .chardev = &chardev}),
    };
    for (uint64_t seed = 1; seed <= 4; seed++) {
        garbage(seed, &chardev);
        for (unsigned i = 0; i < DEVICES; i++)
            device_reset(devices[i]);
        irqchip_reset(rig.platform.irqchip);
    }
    for (unsigned i = DEVICES; i-- > 0;)
        device_destroy(devices[i]);
}

/* Saved states with random bytes changed are refused or make a device that still works. */
static void every_state(void **state) {
    (void)state;
    uint64_t seed = 5;
    struct device *pit = rig_device(&pit_class, NULL), *rtc = rig_device(&rtc_class, NULL);
    struct device *devices[] = {
        pit,
        rtc,
        rig_device(&hpet_class, &(struct hpet_config){.base = HPET, .pit = pit, .rtc = rtc}),
        rig_device(&acpi_pm_class, &(struct acpi_pm_config){.base = 0x600, .sci = 9}),
        rig_device(&i8042_class, NULL),
        rig_device(&watchdog_class, &(struct watchdog_config){.base = 0x630}),
        rig_device(&serial_class, &(struct serial_config){.port = 0x3f8, .gsi = 4}),
    };
    for (unsigned round = 0; round < 2000; round++) {
        struct device *device = devices[round % ARRAY_SIZE(devices)];
        struct state_buffer buffer = {0};
        size_t used;
        assert_int_equal(state_save(device->class->state, device, &buffer, NULL), 0);
        for (unsigned i = 0; i < 4; i++)
            buffer.data[rig_random(&seed) % buffer.length] = (uint8_t)rig_random(&seed);
        state_load(device->class->state, device, buffer.data, buffer.length, &used, NULL);
        for (unsigned i = 0; i < 20; i++) {
            port_access(&seed);
            mmio_access(&seed);
        }
        state_buffer_free(&buffer);
    }
    for (unsigned i = ARRAY_SIZE(devices); i-- > 0;)
        device_destroy(devices[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_register, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(every_state, rig_setup, rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
