/* The bus: configuration mechanism #1, ECAM, interrupt lines, addresses for BARs, port CF9h. */
#include <stdlib.h>

#include "pci/private.h"

enum { CONFIG_PORT = 0xcf8, CONFIG_PORTS = 8, RESET_OFFSET = 1, DATA_OFFSET = 4 };
enum { ADDRESS_RESERVED = 0x7f000003 };
#define ADDRESS_ENABLE UINT32_C(0x80000000)
enum { RESET_CPU = 4, RESET_WRITABLE = 0x0e };
enum { BUS_SHIFT = 20 };
enum { PIRQ_SOURCE = 8 }; /* of a PIRQ among those that share a line of the 8259s */

/* ---- Configuration accesses ---- */

/* devfn: slot and function; functions 1 to 7 are not there. */
static struct pci_function *find(struct pci_bus *bus, unsigned bus_number, unsigned devfn) {
    return bus_number == 0 && (devfn & 7) == 0 ? bus->slots[devfn >> 3 & 31] : NULL;
}

/* The function and the offset that CF8h names; NULL: none. */
static struct pci_function *selected(struct pci_bus *bus, unsigned *offset) {
    lock_take(&bus->lock);
    uint32_t address = bus->address;
    lock_release(&bus->lock);
    if (!(address & ADDRESS_ENABLE))
        return NULL;
    *offset += address & 0xfc;
    return find(bus, address >> 16 & 0xff, address >> 8 & 0xff);
}

static uint32_t data_read(struct pci_bus *bus, unsigned offset, unsigned size) {
    struct pci_function *function = selected(bus, &offset);
    return function ? pci_config_read(function, offset, size) : (uint32_t)bytes_mask(size);
}

static void data_write(struct pci_bus *bus, unsigned offset, uint32_t value, unsigned size) {
    struct pci_function *function = selected(bus, &offset);
    if (function)
        pci_config_write(function, offset, value, size);
}

/* The reset control register shares its port with the second byte of CF8h, which takes only whole
 * words. The bit that starts the reset asks for one when it rises. */
static void reset_write(struct pci_bus *bus, uint8_t value) {
    lock_take(&bus->lock);
    bool rises = (value & ~bus->reset_control) & RESET_CPU;
    bus->reset_control = value & RESET_WRITABLE;
    lock_release(&bus->lock);
    if (rises)
        bus->platform->request(bus->platform, PLATFORM_RESET);
}

static uint64_t port_ops_read(void *context, uint64_t offset, unsigned size) {
    struct pci_bus *bus = context;
    uint64_t value = bytes_mask(size);

    if (offset >= DATA_OFFSET)
        return data_read(bus, (unsigned)offset - DATA_OFFSET, size);
    lock_take(&bus->lock);
    if (offset == 0 && size == 4)
        value = bus->address;
    else if (offset == RESET_OFFSET && size == 1)
        value = bus->reset_control;
    lock_release(&bus->lock);
    return value;
}

static void port_ops_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct pci_bus *bus = context;

    if (offset >= DATA_OFFSET) {
        data_write(bus, (unsigned)offset - DATA_OFFSET, (uint32_t)value, size);
    } else if (offset == 0 && size == 4) {
        lock_take(&bus->lock);
        bus->address = (uint32_t)value & ~(uint32_t)ADDRESS_RESERVED;
        lock_release(&bus->lock);
    } else if (offset == RESET_OFFSET && size == 1) {
        reset_write(bus, (uint8_t)value);
    }
}

static const struct io_ops port_ops = {port_ops_read, port_ops_write};

/* An access that would reach over a function's 4 KiB finds nobody. */
static struct pci_function *ecam_find(struct pci_bus *bus, uint64_t offset, unsigned size) {
    if (!range_within(offset % PCI_CONFIG_SIZE, size, PCI_CONFIG_SIZE))
        return NULL;
    return find(bus, (unsigned)(offset >> BUS_SHIFT), offset >> 12 & 0xff);
}

static uint64_t ecam_read(void *context, uint64_t offset, unsigned size) {
    struct pci_function *function = ecam_find(context, offset, size);
    unsigned at = offset % PCI_CONFIG_SIZE;
    if (!function)
        return bytes_mask(size);
    if (size <= 4)
        return pci_config_read(function, at, size);
    uint64_t low = pci_config_read(function, at, 4);
    return low | (uint64_t)pci_config_read(function, at + 4, 4) << 32;
}

static void ecam_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct pci_function *function = ecam_find(context, offset, size);
    unsigned at = offset % PCI_CONFIG_SIZE;
    if (!function)
        return;
    pci_config_write(function, at, (uint32_t)value, size <= 4 ? size : 4);
    if (size > 4)
        pci_config_write(function, at + 4, (uint32_t)(value >> 32), 4);
}

static const struct io_ops ecam_ops = {ecam_read, ecam_write};

void pci_bus_place_ecam(struct pci_bus *bus, uint64_t base, bool enabled) {
    memory_move_io(bus->ecam, base, enabled);
}

/* ---- Interrupt lines ---- */

static void drive_8259(struct pci_bus *bus, unsigned pirq, bool level) {
    const struct irq_wire wire = {.chip = bus->platform->irqchip,
                                  .gsi = bus->pirq_irq[pirq],
                                  .source = (uint8_t)(PIRQ_SOURCE + pirq)};
    if (bus->pirq_irq[pirq])
        irq_wire_set(&wire, level);
}

void bus_set_intx(struct pci_bus *bus, unsigned slot, bool level) {
    unsigned pirq = pci_slot_pirq(slot);
    const struct irq_wire wire = {.chip = bus->platform->irqchip, .gsi = (uint8_t)(16 + pirq)};
    uint32_t bit = UINT32_C(1) << slot, before = bus->pirq_slots[pirq];
    uint32_t after = level ? before | bit : before & ~bit;
    bus->pirq_slots[pirq] = after;
    if ((before != 0) == (after != 0))
        return;
    irq_wire_set(&wire, after != 0);
    drive_8259(bus, pirq, after != 0);
}

void pci_bus_route(struct pci_bus *bus, unsigned pirq, uint8_t irq) {
    lock_take(&bus->lock);
    if (bus->pirq_irq[pirq] != irq) {
        drive_8259(bus, pirq, false);
        bus->pirq_irq[pirq] = irq;
        drive_8259(bus, pirq, bus->pirq_slots[pirq] != 0);
    }
    lock_release(&bus->lock);
}

/* ---- Addresses, as firmware would give them ---- */

struct allocator {
    uint64_t next, end;
};

static int allocate(struct allocator *from, uint64_t size, uint64_t *address) {
    uint64_t start = round_up(from->next, size);
    if (start < from->next || start > from->end || size > from->end - start)
        return -ENOSPC;
    from->next = start + size;
    *address = start;
    return 0;
}

struct windows {
    struct allocator io, mem32, mem64;
};

static int assign_bar(struct pci_function *function, unsigned index, struct windows *windows) {
    const struct pci_bar *bar = &function->config.bars[index];
    uint8_t *at = function->space + CONFIG_BARS + 4 * index;
    struct allocator *from = bar->kind == PCI_BAR_IO      ? &windows->io
                             : bar->kind == PCI_BAR_MEM32 ? &windows->mem32
                                                          : &windows->mem64;
    uint64_t address;

    if (bar->kind == PCI_BAR_NONE)
        return 0;
    int rc = allocate(from, bar->size, &address);
    if (rc < 0)
        return rc;
    unsigned flags = at[0] & (bar->kind == PCI_BAR_IO ? 3 : 15);
    store_le(at, address | flags, bar->kind == PCI_BAR_MEM64 ? 8 : 4);
    return 0;
}

/* For who knows of no I/O APIC: the 8259s' interrupt, if the line is led to one. */
static uint8_t interrupt_line(const struct pci_function *function) {
    uint8_t irq = function->bus->pirq_irq[pci_slot_pirq(function->slot)];
    return irq ? irq : (uint8_t)pci_slot_gsi(function->slot);
}

static int assign_function(struct pci_function *function, struct windows *windows) {
    uint16_t command = function_command(function) | COMMAND_IO | COMMAND_MEMORY;
    for (unsigned i = 0; i < PCI_BARS; i++) {
        int rc = assign_bar(function, i, windows);
        if (rc < 0)
            return rc;
    }
    store_le16(function->space + CONFIG_COMMAND, command);
    if (function->config.interrupt_pin)
        function->space[CONFIG_INTERRUPT_LINE] = interrupt_line(function);
    function_update(function);
    return 0;
}

int pci_bus_assign(struct pci_bus *bus, struct error *err) {
    const struct pci_bus_config *config = &bus->config;
    struct windows windows = {
        .io = {config->io_base, (uint64_t)config->io_base + config->io_size},
        .mem32 = {config->mmio32_base, config->mmio32_base + config->mmio32_size},
        .mem64 = {config->mmio64_base, config->mmio64_base + config->mmio64_size},
    };
    int rc = 0;

    lock_take(&bus->lock);
    for (unsigned slot = 0; rc == 0 && slot < PCI_SLOTS; slot++)
        if (bus->slots[slot])
            rc = assign_function(bus->slots[slot], &windows);
    lock_release(&bus->lock);
    return rc < 0 ? error_set(err, rc, "the PCI windows are too small for all devices") : 0;
}

/* ---- Life ---- */

static int set_up(struct pci_bus *bus, struct error *err) {
    int rc = ports_add(bus->platform->ports, "PCI configuration", CONFIG_PORT, CONFIG_PORTS,
                       &port_ops, bus, &bus->ports, err);
    if (rc == 0)
        rc = memory_add_io(bus->platform->memory, "PCI ECAM", UINT32_MAX, PCI_ECAM_SIZE, &ecam_ops,
                           bus, &bus->ecam, err);
    if (rc == 0)
        pci_bus_place_ecam(bus, 0, false);
    return rc;
}

int pci_bus_create(struct platform *platform, const struct pci_bus_config *config,
                   struct pci_bus **bus_out, struct error *err) {
    struct pci_bus *bus = calloc(1, sizeof *bus);
    if (!bus)
        return error_set(err, -ENOMEM, "no memory for the PCI bus");
    bus->platform = platform;
    bus->config = *config;
    lock_init(&bus->lock, LOCK_PCI, "pci");
    int rc = set_up(bus, err);
    if (rc < 0) {
        pci_bus_destroy(bus);
        return rc;
    }
    *bus_out = bus;
    return 0;
}

void pci_bus_destroy(struct pci_bus *bus) {
    if (!bus)
        return;
    if (bus->ports)
        ports_remove(bus->ports);
    if (bus->ecam)
        memory_remove_io(bus->ecam);
    lock_destroy(&bus->lock);
    free(bus);
}

static const struct state_field bus_fields[] = {
    STATE_FIELD(struct pci_bus, address, 1),
    STATE_FIELD(struct pci_bus, reset_control, 1),
};
static const struct state_table bus_state = STATE_TABLE("pci bus", 1, struct pci_bus, bus_fields);

const struct state_table *pci_bus_state(void) {
    return &bus_state;
}

void pci_bus_reset(struct pci_bus *bus) {
    lock_take(&bus->lock);
    state_reset(&bus_state, bus);
    lock_release(&bus->lock);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
        if (bus->slots[slot])
            pci_function_reset(bus->slots[slot]);
}

struct pci_function *pci_bus_next(struct pci_bus *bus, const struct pci_function *function) {
    for (unsigned slot = function ? function->slot + 1u : 0; slot < PCI_SLOTS; slot++)
        if (bus->slots[slot])
            return bus->slots[slot];
    return NULL;
}
