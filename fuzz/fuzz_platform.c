/*
 * Platform devices and the PCI bus under accesses that the input spells out:
 * per step one byte that says what, then the address and the value. Time
 * passes by steps, too.
 */
#define assert_int_equal(a, b)                                                                     \
    do {                                                                                           \
        if ((a) != (b))                                                                            \
            __builtin_trap();                                                                      \
    } while (0)

#include "../tests/unit/platform_rig.h"
#include "device/acpi_pm.h"
#include "device/flash.h"
#include "device/fw_cfg.h"
#include "device/hpet.h"
#include "device/i8042.h"
#include "device/pit.h"
#include "device/pvpanic.h"
#include "device/q35.h"
#include "device/rtc.h"
#include "device/serial.h"
#include "device/watchdog.h"

enum { DEVICES = 11, STEP_MAX = 4096, HPET = 0xfed00000 };
enum { FLASH_SIZE = 2 * FLASH_BLOCK };
#define FLASH UINT64_C(0xffc00000)

struct input {
    const uint8_t *bytes;
    size_t length;
};

static uint64_t take(struct input *input, unsigned size) {
    size_t n = size < input->length ? size : input->length;
    uint64_t value = load_le(input->bytes, (unsigned)n);
    input->bytes += n;
    input->length -= n;
    return value;
}

static size_t swallow(struct chardev *chardev, const uint8_t *bytes, size_t length) {
    (void)chardev, (void)bytes;
    return length;
}

static void resume(struct chardev *chardev) {
    (void)chardev;
}

static const struct chardev_ops chardev_ops = {swallow, resume};

static uint64_t thing_read(void *context, uint64_t offset, unsigned size) {
    (void)context;
    if (!range_within(offset, size, 0x1000))
        __builtin_trap();
    return offset;
}

static void thing_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    (void)value;
    thing_read(context, offset, size);
}

static const struct io_ops thing_ops = {thing_read, thing_write};

static struct pci_function *make_function(void) {
    struct pci_function *function;
    struct pci_function_config config = {
        .vendor = 0x1af4,
        .device = 0x1041,
        .interrupt_pin = true,
        .bars = {{PCI_BAR_MEM64, 0x1000, &thing_ops}, {0}, {PCI_BAR_IO, 0x20, &thing_ops}},
        .msix_vectors = 3,
        .msix_bar = 3,
        .slot = 1,
    };
    assert_int_equal(pci_function_create(rig.platform.pci, &config, &function, NULL), 0);
    assert_int_equal(pci_bus_assign(rig.platform.pci, NULL), 0);
    return function;
}

/* Where memory-mapped steps go: chips, configuration space, and the windows of the BARs. */
static uint64_t address(struct input *input) {
    static const uint64_t bases[] = {IOAPIC_BASE,
                                     HPET,
                                     RIG_ECAM,
                                     RIG_ECAM + 0x8000,
                                     0xc0000000,
                                     0xc0001000,
                                     UINT64_C(0x4000000000),
                                     FLASH};
    uint64_t where = take(input, 2);
    return bases[where & 7] + (where >> 3 & 0x1fff);
}

static void step(struct input *input, struct pci_function *function, struct chardev *chardev) {
    static const uint8_t sizes[] = {1, 2, 4, 8};
    uint8_t what = (uint8_t)take(input, 1);
    unsigned size = sizes[what >> 6];
    uint16_t port;
    uint64_t gpa;

    switch (what & 7) {
    case 0: port_read(rig.platform.ports, (uint16_t)take(input, 2), size < 8 ? size : 4); break;
    case 1:
    case 2:
        port = (uint16_t)take(input, 2);
        port_write(rig.platform.ports, port, (uint32_t)take(input, 4), size < 8 ? size : 4);
        break;
    case 3: mmio_read(address(input), size); break;
    case 4:
    case 5:
        gpa = address(input);
        mmio_write(gpa, take(input, size), size);
        break;
    case 6: rig_advance(take(input, 3)); break;
    default:
        pci_intx_set(function, what & 8);
        pci_msix_notify(function, what >> 4 & 3);
        chardev->front->receive(chardev->front_context, &what, 1);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
    static const uint8_t erased[FLASH_SIZE];
    struct input input = {bytes, length};
    struct chardev chardev = {.ops = &chardev_ops};
    rig_start();
    struct pci_function *function = make_function();
    struct device *pit = rig_device(&pit_class, NULL), *rtc = rig_device(&rtc_class, NULL);
    struct device *pm =
        rig_device(&acpi_pm_class, &(struct acpi_pm_config){.base = 0x600, .sci = 9});
    struct device *devices[DEVICES] = {
        pit,
        rtc,
        rig_device(&hpet_class, &(struct hpet_config){.base = HPET, .pit = pit, .rtc = rtc}),
        pm,
        rig_device(&i8042_class, NULL),
        rig_device(&fw_cfg_class, NULL),
        rig_device(&flash_class, &(struct flash_config){FLASH, erased, FLASH_SIZE, -1}),
        rig_device(&q35_class, &(struct q35_config){.acpi_pm = pm}),
        rig_device(&watchdog_class, &(struct watchdog_config){.base = 0x630}),
        rig_device(&pvpanic_class, &(struct pvpanic_config){.port = 0x505}),
        rig_device(&serial_class,
                   &(struct serial_config){.port = 0x3f8, .gsi = 4, .chardev = &chardev}),
    };
    for (unsigned steps = 0; input.length > 0 && steps < STEP_MAX; steps++)
        step(&input, function, &chardev);
    for (unsigned i = DEVICES; i-- > 0;)
        device_destroy(devices[i]);
    pci_function_destroy(function);
    rig_stop();
    return 0;
}
