#include "machine/acpi_dsdt.h"

#include <stdio.h>

#include "base/bytes.h"
#include "device/acpi_pm.h"
#include "device/identity.h"
#include "device/q35.h"
#include "machine/acpi_idle.h"
#include "machine/layout.h"
#include "pci/pci.h"

enum { HPET_LENGTH = 0x400, PM_PORTS = ACPI_PM_GPE0 + 4 };
enum { OP_ARG0 = 0x68, OP_ARG3 = 0x6b, OP_STORE = 0x70, OP_OR = 0x7d, OP_CREATE_DWORD = 0x8a };
enum { OP_NOTIFY = 0x86, OP_NOT = 0x92, OP_LOGICAL_EQUAL = 0x93, OP_LESS = 0x95 };
enum { OP_RETURN = 0xa4, OP_EXTENDED = 0x5b, OP_EXTENDED_REGION = 0x80 };
enum { OSC_UNRECOGNISED_UUID = 4 };

/* UUID 33db4d5b-1ff7-401c-9657-7441c03dd766 as a buffer: PCI host bridge capabilities. */
static const uint8_t osc_uuid[16] = {0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40,
                                     0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66};

/*
 * _OSC grants all that is asked for, since no firmware here wants to keep
 * any of it:
 *
 *     If (Arg0 == UUID) { Return (Arg3) }
 *     CreateDWordField (Arg3, 0, CDW1)
 *     CDW1 |= 4
 *     Return (Arg3)
 */
static void osc(struct aml *aml) {
    size_t method = aml_method(aml, "_OSC", 4);
    size_t branch = aml_if(aml);
    aml_byte(aml, OP_LOGICAL_EQUAL);
    aml_byte(aml, OP_ARG0);
    aml_buffer(aml, osc_uuid, sizeof osc_uuid);
    aml_byte(aml, OP_RETURN);
    aml_byte(aml, OP_ARG3);
    aml_close(aml, branch);

    aml_byte(aml, OP_CREATE_DWORD);
    aml_byte(aml, OP_ARG3);
    aml_integer(aml, 0);
    aml_path(aml, "CDW1");
    aml_byte(aml, OP_OR);
    aml_path(aml, "CDW1");
    aml_integer(aml, OSC_UNRECOGNISED_UUID);
    aml_path(aml, "CDW1");
    aml_byte(aml, OP_RETURN);
    aml_byte(aml, OP_ARG3);
    aml_close(aml, method);
}

/* Every slot's INTA#: { address, pin, no link device, GSI }. */
static void interrupt_routes(struct aml *aml, const char *name, bool apic) {
    aml_name(aml, name);
    size_t table = aml_package(aml, PCI_SLOTS);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        size_t route = aml_package(aml, 4);
        aml_integer(aml, slot << 16 | 0xffff);
        aml_integer(aml, 0);
        aml_integer(aml, 0);
        aml_integer(aml, apic ? pci_slot_gsi(slot) : q35_pirq_irq(pci_slot_pirq(slot)));
        aml_close(aml, route);
    }
    aml_close(aml, table);
}

/*
 * The I/O APIC's pins or the 8259s', as the operating system has said by _PIC:
 *
 *     If (\PICM) { Return (PRTA) }
 *     Return (PRTP)
 */
static void routing(struct aml *aml) {
    interrupt_routes(aml, "PRTA", true);
    interrupt_routes(aml, "PRTP", false);
    size_t method = aml_method(aml, "_PRT", 0);
    size_t branch = aml_if(aml);
    aml_path(aml, "\\PICM");
    aml_byte(aml, OP_RETURN);
    aml_path(aml, "PRTA");
    aml_close(aml, branch);
    aml_byte(aml, OP_RETURN);
    aml_path(aml, "PRTP");
    aml_close(aml, method);
}

static void interrupt_model(struct aml *aml) {
    aml_name_integer(aml, "\\PICM", 0);
    size_t method = aml_method(aml, "\\_PIC", 1);
    aml_byte(aml, OP_STORE);
    aml_byte(aml, OP_ARG0);
    aml_path(aml, "\\PICM");
    aml_close(aml, method);
}

/* Where lodge places BARs, or where firmware may: it takes what is left above the RAM. */
static void window_above_4g(struct aml *aml, const struct acpi_config *config) {
    uint64_t first = LAYOUT_FIRMWARE_MMIO64_BASE;
    if (!config->firmware) {
        aml_window_memory64(aml, LAYOUT_MMIO64_BASE, LAYOUT_MMIO64_BASE + LAYOUT_MMIO64_SIZE - 1);
        return;
    }
    if (first < config->memory_end)
        first = round_up(config->memory_end, GIB(1));
    aml_window_memory64(aml, first, (UINT64_C(1) << LAYOUT_FIRMWARE_ADDRESS_BITS) - 1);
}

static void pci_host(struct aml *aml, const struct acpi_config *config) {
    size_t device = aml_device(aml, "PCI0");
    aml_name_eisa_id(aml, "_HID", "PNP0A08");
    aml_name_eisa_id(aml, "_CID", "PNP0A03");
    aml_name_integer(aml, "_UID", 0);
    aml_name_integer(aml, "_SEG", 0);
    aml_name_integer(aml, "_BBN", 0);
    aml_name_integer(aml, "_CCA", 1);

    size_t resources = aml_resources(aml, "_CRS");
    aml_window_bus(aml, 0, 0);
    aml_io(aml, 0xcf8, 8);
    aml_window_io(aml, 0, 0xcf7); /* what the LPC bridge decodes: its PM registers above all */
    aml_window_io(aml, LAYOUT_PCI_IO_BASE, LAYOUT_PCI_IO_BASE + LAYOUT_PCI_IO_SIZE - 1);
    aml_window_memory32(aml, LAYOUT_MMIO32_BASE, LAYOUT_MMIO32_BASE + LAYOUT_MMIO32_SIZE - 1);
    window_above_4g(aml, config);
    aml_close_resources(aml, resources);

    routing(aml);
    osc(aml);
    aml_close(aml, device);
}

/* What nothing else lists and no driver may take: ECAM, the identity page, the ACPI registers, the
 * 8259s' ELCR. */
static void motherboard(struct aml *aml) {
    size_t device = aml_device(aml, "MBRD");
    aml_name_eisa_id(aml, "_HID", "PNP0C02");
    aml_name_integer(aml, "_UID", 0);
    size_t resources = aml_resources(aml, "_CRS");
    aml_memory32(aml, LAYOUT_ECAM_BASE, LAYOUT_ECAM_SIZE);
    aml_memory32(aml, LAYOUT_IDENTITY_BASE, PAGE_SIZE);
    aml_io(aml, LAYOUT_PM1_EVENT_PORT, PM_PORTS);
    aml_io(aml, 0x4d0, 2);
    aml_close_resources(aml, resources);
    aml_close(aml, device);
}

/* A device with ports and, unless irq is 0, an ISA interrupt. */
static void isa_device(struct aml *aml, const char *name, const char *id, unsigned uid,
                       uint16_t port, uint8_t ports, unsigned irq) {
    size_t device = aml_device(aml, name);
    aml_name_eisa_id(aml, "_HID", id);
    aml_name_integer(aml, "_UID", uid);
    size_t resources = aml_resources(aml, "_CRS");
    aml_io(aml, port, ports);
    if (irq)
        aml_irq(aml, irq);
    aml_close_resources(aml, resources);
    aml_close(aml, device);
}

static void hpet(struct aml *aml) {
    size_t device = aml_device(aml, "HPET");
    aml_name_eisa_id(aml, "_HID", "PNP0103");
    aml_name_integer(aml, "_UID", 0);
    size_t resources = aml_resources(aml, "_CRS");
    aml_memory32(aml, LAYOUT_HPET_BASE, HPET_LENGTH);
    aml_close_resources(aml, resources);
    aml_close(aml, device);
}

/* Where 16 bytes of the identity page are: { low half, high half }. */
static void identity_address(struct aml *aml, uint64_t address) {
    aml_name(aml, "ADDR");
    size_t package = aml_package(aml, 2);
    aml_integer(aml, address & UINT32_MAX);
    aml_integer(aml, address >> 32);
    aml_close(aml, package);
}

/* The generation id as Microsoft's document has it, and the host's id in the same way. */
static void identity(struct aml *aml) {
    size_t device = aml_device(aml, "VGEN");
    aml_name_string(aml, "_HID", "LODG0001");
    aml_name_string(aml, "_CID", "VM_Gen_Counter");
    aml_name_string(aml, "_DDN", "VM_Gen_Counter");
    identity_address(aml, LAYOUT_IDENTITY_BASE);
    aml_close(aml, device);
    device = aml_device(aml, "HOST");
    aml_name_string(aml, "_HID", "LODG0002");
    aml_name_string(aml, "_DDN", "Host id");
    identity_address(aml, LAYOUT_IDENTITY_BASE + IDENTITY_HOST_AT);
    aml_close(aml, device);
}

static void pvpanic(struct aml *aml) {
    size_t device = aml_device(aml, "PEVT");
    aml_name_string(aml, "_HID", "QEMU0001");
    size_t resources = aml_resources(aml, "_CRS");
    aml_io(aml, LAYOUT_PVPANIC_PORT, 1);
    aml_close_resources(aml, resources);
    aml_name_integer(aml, "_STA", 15);
    aml_close(aml, device);
}

static void processor_name(unsigned id, char name[8]) {
    snprintf(name, 8, "C%03X", id & 0xfff);
}

/* if (id < CPUN): the processor is plugged */
static size_t if_plugged(struct aml *aml, unsigned id) {
    size_t branch = aml_if(aml);
    aml_byte(aml, OP_LESS);
    aml_integer(aml, id);
    aml_path(aml, "CPUN");
    return branch;
}

/* What a processor that may come later has besides its id: whether it is there, and its entry of
 * the MADT, enabled. */
static void slot(struct aml *aml, unsigned id) {
    enum { PRESENT = 15, MADT_LAPIC = 0, ENABLED = 1 };
    const uint8_t entry[] = {MADT_LAPIC, 8, (uint8_t)id, (uint8_t)id, ENABLED, 0, 0, 0};
    size_t method = aml_method(aml, "_STA", 0);
    size_t branch = if_plugged(aml, id);
    aml_byte(aml, OP_RETURN);
    aml_integer(aml, PRESENT);
    aml_close(aml, branch);
    aml_byte(aml, OP_RETURN);
    aml_integer(aml, 0);
    aml_close(aml, method);
    aml_name(aml, "_MAT");
    aml_buffer(aml, entry, sizeof entry);
}

static void processors(struct aml *aml, const struct acpi_config *config) {
    for (unsigned id = 0; id < config->vcpus || id < config->vcpus_max; id++) {
        char name[8];
        processor_name(id, name);
        size_t device = aml_device(aml, name);
        aml_name_string(aml, "_HID", "ACPI0007");
        aml_name_integer(aml, "_UID", id);
        if (id >= config->vcpus)
            slot(aml, id);
        if (config->idle_states)
            acpi_idle_processor(aml, id);
        aml_close(aml, device);
    }
}

/* CPUN: how many are plugged (device/cpu_slots.h). CPUC: how many the guest has been told of. */
static void slots_register(struct aml *aml, const struct acpi_config *config) {
    enum { SYSTEM_IO = 1, BYTE_ACCESS = 1, BITS = 8 };
    aml_byte(aml, OP_EXTENDED);
    aml_byte(aml, OP_EXTENDED_REGION);
    aml_path(aml, "CPUR");
    aml_byte(aml, SYSTEM_IO);
    aml_integer(aml, LAYOUT_CPU_SLOTS_PORT);
    aml_integer(aml, 1);
    size_t field = aml_field(aml, "CPUR", BYTE_ACCESS);
    aml_path(aml, "CPUN");
    aml_byte(aml, BITS);
    aml_close(aml, field);
    aml_name_integer(aml, "CPUC", config->vcpus);
}

static void notify(struct aml *aml, const char *path, unsigned value) {
    aml_byte(aml, OP_NOTIFY);
    aml_path(aml, path);
    aml_integer(aml, value);
}

/*
 * The event: for each that may come
 *     If (id < CPUN) { If (!(id < CPUC)) { Notify (Cxxx, 1) } }
 * and then CPUC = CPUN.
 */
static void slots_event(struct aml *aml, const struct acpi_config *config) {
    enum { DEVICE_CHECK = 1 };
    size_t method = aml_method(aml, "CPUE", 0);
    for (unsigned id = config->vcpus; id < config->vcpus_max; id++) {
        char name[8];
        processor_name(id, name);
        size_t plugged = if_plugged(aml, id);
        size_t untold = aml_if(aml);
        aml_byte(aml, OP_NOT);
        aml_byte(aml, OP_LESS);
        aml_integer(aml, id);
        aml_path(aml, "CPUC");
        notify(aml, name, DEVICE_CHECK);
        aml_close(aml, untold);
        aml_close(aml, plugged);
    }
    aml_byte(aml, OP_STORE);
    aml_path(aml, "CPUN");
    aml_path(aml, "CPUC");
    aml_close(aml, method);
}

/* A driver finds out by itself which of the ids is another. */
static void identity_event(struct aml *aml) {
    enum { CHANGED = 0x80 };
    _Static_assert(LAYOUT_IDENTITY_GPE == 2, "the method's name");
    size_t method = aml_method(aml, "_E02", 0);
    notify(aml, "\\_SB_.VGEN", CHANGED);
    notify(aml, "\\_SB_.HOST", CHANGED);
    aml_close(aml, method);
}

static void general_purpose_events(struct aml *aml, const struct acpi_config *config) {
    _Static_assert(LAYOUT_CPU_SLOTS_GPE == 1, "the method's name");
    size_t scope = aml_scope(aml, "\\_GPE");
    if (config->vcpus_max > config->vcpus) {
        size_t method = aml_method(aml, "_E01", 0);
        aml_path(aml, "\\_SB_.CPUE");
        aml_close(aml, method);
    }
    identity_event(aml);
    if (config->idle_states)
        acpi_idle_event(aml, config->vcpus > config->vcpus_max ? config->vcpus : config->vcpus_max,
                        processor_name);
    aml_close(aml, scope);
}

/* SLP_TYPa, SLP_TYPb, and two reserved numbers. */
static void soft_off(struct aml *aml) {
    aml_name(aml, "\\_S5_");
    size_t package = aml_package(aml, 4);
    aml_integer(aml, ACPI_PM_S5);
    aml_integer(aml, ACPI_PM_S5);
    aml_integer(aml, 0);
    aml_integer(aml, 0);
    aml_close(aml, package);
}

void acpi_dsdt(struct aml *aml, const struct acpi_config *config) {
    interrupt_model(aml);
    size_t scope = aml_scope(aml, "\\_SB_");
    if (config->vcpus_max > config->vcpus)
        slots_register(aml, config);
    if (config->idle_states)
        acpi_idle_method(aml);
    processors(aml, config);
    if (config->vcpus_max > config->vcpus)
        slots_event(aml, config);
    pci_host(aml, config);
    motherboard(aml);
    isa_device(aml, "COM1", "PNP0501", 1, LAYOUT_SERIAL_PORT, 8, LAYOUT_SERIAL_IRQ);
    isa_device(aml, "RTC_", "PNP0B00", 0, 0x70, 2, LAYOUT_RTC_IRQ);
    hpet(aml);
    pvpanic(aml);
    identity(aml);
    aml_close(aml, scope);
    general_purpose_events(aml, config);
    soft_off(aml);
}
