#include <stdlib.h>

#include "base/log.h"
#include "interrupt/apic.h"
#include "memory/bytewise.h"

enum { PIC_ISA_LINES = 16, PIT_GSI = 0, PIT_PIN = 2 };

/* ---- Out: to the local APICs, or to an engine that has its own ---- */

static void send_message(void *context, struct msi_message message) {
    struct irqchip *chip = context;
    struct apic_message apic = {
        .destination = message.address >> 12 & 0xff,
        .logical = message.address >> 2 & 1,
        .mode = message.data >> 8 & 7,
        .vector = (uint8_t)message.data,
        .level = message.data >> 15 & 1,
    };
    apic.broadcast = apic.destination == LAPIC_BROADCAST;
    if (chip->delivery.message)
        chip->delivery.message(chip->delivery.context, message);
    else
        apic_deliver(chip, &apic, NULL);
}

static struct ioapic_output output(struct irqchip *chip) {
    return (struct ioapic_output){.send = send_message, .context = chip};
}

/* After anything that touched the 8259s, with the lock held. */
static void update_intr(struct irqchip *chip) {
    bool level = pic_output(&chip->pics);
    if (level == atomic_load(&chip->intr))
        return;
    atomic_store(&chip->intr, level);
    if (chip->delivery.external)
        chip->delivery.external(chip->delivery.context, level);
    for (unsigned id = 0; id < chip->lapic_limit; id++)
        if (chip->lapics[id])
            lapic_lint0(chip->lapics[id], level);
}

void msi_send(struct irqchip *chip, struct msi_message message) {
    if (message.address >> 20 != APIC_DEFAULT_BASE >> 20) {
        log_guest("message-signalled interrupt to address %#llx dropped",
                  (unsigned long long)message.address);
        return;
    }
    send_message(chip, message);
}

/* ---- In: lines ---- */

/* The pin's level is the OR of the lines that are wired to it. */
static void update_pin(struct irqchip *chip, unsigned pin) {
    bool level = chip->sources[pin] != 0;
    if (pin == PIT_GSI)
        return; /* on a PC with two 8259s, pin 0 belongs to them */
    if (pin == PIT_PIN)
        level |= chip->sources[PIT_GSI] != 0;
    ioapic_set_line(&chip->ioapic, pin, level, output(chip));
}

static void set_source(struct irqchip *chip, unsigned gsi, uint32_t bit, bool level) {
    uint32_t *sources = &chip->sources[gsi];
    bool before = *sources != 0;

    *sources = level ? *sources | bit : *sources & ~bit;
    if (before == (*sources != 0))
        return;
    if (gsi < PIC_ISA_LINES) {
        pic_set_line(&chip->pics, gsi, *sources != 0);
        update_intr(chip);
    }
    update_pin(chip, gsi == PIT_GSI ? PIT_PIN : gsi);
}

void irq_wire_set(const struct irq_wire *wire, bool level) {
    struct irqchip *chip = wire->chip;
    if (!chip || wire->gsi >= IRQ_LINES)
        return;
    lock_take(&chip->lock);
    set_source(chip, wire->gsi, UINT32_C(1) << (wire->source & 31), level);
    lock_release(&chip->lock);
}

void irq_set(struct irqchip *chip, unsigned gsi, bool level) {
    struct irq_wire wire = {.chip = chip, .gsi = (uint8_t)(gsi < IRQ_LINES ? gsi : IRQ_LINES)};
    irq_wire_set(&wire, level);
}

/* ---- Acknowledge, EOI, inspection ---- */

int irqchip_pic_ack(struct irqchip *chip) {
    int vector = -1;
    lock_take(&chip->lock);
    if (pic_output(&chip->pics))
        vector = pic_acknowledge(&chip->pics);
    update_intr(chip);
    lock_release(&chip->lock);
    return vector;
}

void irqchip_eoi(struct irqchip *chip, uint8_t vector) {
    lock_take(&chip->lock);
    ioapic_eoi(&chip->ioapic, vector, output(chip));
    lock_release(&chip->lock);
}

bool irqchip_pin_message(struct irqchip *chip, unsigned pin, struct msi_message *message) {
    lock_take(&chip->lock);
    bool open = ioapic_message(&chip->ioapic, pin, message);
    lock_release(&chip->lock);
    return open;
}

void irqchip_set_delivery(struct irqchip *chip, const struct irq_delivery *delivery) {
    lock_take(&chip->lock);
    chip->delivery = delivery ? *delivery : (struct irq_delivery){0};
    lock_release(&chip->lock);
}

/* ---- Ports and registers ---- */

static uint8_t pic_port_read(struct irqchip *chip, unsigned which, unsigned offset) {
    lock_take(&chip->lock);
    uint8_t value = pic_read(&chip->pics, which, offset & 1);
    update_intr(chip); /* a poll acknowledges */
    lock_release(&chip->lock);
    return value;
}

static void pic_port_write(struct irqchip *chip, unsigned which, unsigned offset, uint8_t value) {
    lock_take(&chip->lock);
    pic_write(&chip->pics, which, offset & 1, value);
    update_intr(chip);
    lock_release(&chip->lock);
}

static uint8_t master_read(void *context, unsigned offset) {
    return pic_port_read(context, PIC_MASTER, offset);
}

static void master_write(void *context, unsigned offset, uint8_t value) {
    pic_port_write(context, PIC_MASTER, offset, value);
}

static uint8_t slave_read(void *context, unsigned offset) {
    return pic_port_read(context, PIC_SLAVE, offset);
}

static void slave_write(void *context, unsigned offset, uint8_t value) {
    pic_port_write(context, PIC_SLAVE, offset, value);
}

static uint8_t elcr_read(void *context, unsigned offset) {
    struct irqchip *chip = context;
    lock_take(&chip->lock);
    uint8_t value = pic_read_elcr(&chip->pics, offset & 1);
    lock_release(&chip->lock);
    return value;
}

static void elcr_write(void *context, unsigned offset, uint8_t value) {
    struct irqchip *chip = context;
    lock_take(&chip->lock);
    pic_write_elcr(&chip->pics, offset & 1, value);
    update_intr(chip);
    lock_release(&chip->lock);
}

#define BYTE_PORT(name)                                                                            \
    static uint64_t name##_port_read(void *context, uint64_t offset, unsigned size) {              \
        return bytewise_read(name##_read, context, offset, size);                                  \
    }                                                                                              \
    static void name##_port_write(void *context, uint64_t offset, uint64_t value, unsigned size) { \
        bytewise_write(name##_write, context, offset, value, size);                                \
    }                                                                                              \
    static const struct io_ops name##_ops = {name##_port_read, name##_port_write}
BYTE_PORT(master);
BYTE_PORT(slave);
BYTE_PORT(elcr);

/* Registers are 32 bits wide at multiples of 16; anything else of the page answers zero. */
static uint64_t ioapic_mmio_read(void *context, uint64_t offset, unsigned size) {
    struct irqchip *chip = context;
    lock_take(&chip->lock);
    uint64_t value = ioapic_read(&chip->ioapic, (unsigned)offset);
    lock_release(&chip->lock);
    return value & bytes_mask(size);
}

static void ioapic_mmio_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct irqchip *chip = context;
    lock_take(&chip->lock);
    bool changed = ioapic_write(&chip->ioapic, (unsigned)offset, (uint32_t)value, output(chip));
    struct irq_delivery delivery = chip->delivery;
    lock_release(&chip->lock);
    if (changed && delivery.routes_changed)
        delivery.routes_changed(delivery.context);
}

static const struct io_ops ioapic_ops = {ioapic_mmio_read, ioapic_mmio_write};

/* ---- Life ---- */

static int after_load(void *object, struct error *err) {
    struct irqchip *chip = object;
    (void)err;
    atomic_store(&chip->intr, pic_output(&chip->pics));
    return 0;
}

static const struct state_field irqchip_fields[] = {
    STATE_NESTED(struct irqchip, pics, &pic_pair_state, 1),
    STATE_NESTED(struct irqchip, ioapic, &ioapic_state, 1),
    STATE_ARRAY(struct irqchip, sources, 1),
};
static const struct state_table irqchip_table =
    STATE_TABLE("irqchip", 1, struct irqchip, irqchip_fields, .after_load = after_load);

const struct state_table *irqchip_state(const struct irqchip *chip, void **object) {
    *object = (void *)(uintptr_t)chip;
    return &irqchip_table;
}

struct lapic *irqchip_lapic(const struct irqchip *chip, unsigned id) {
    return id < LAPIC_MAX ? chip->lapics[id] : NULL;
}

static int map(struct irqchip *chip, struct error *err) {
    static const struct {
        const char *name;
        uint16_t base;
        const struct io_ops *ops;
    } ports[] = {
        {"8259 master", 0x20, &master_ops},
        {"8259 slave", 0xa0, &slave_ops},
        {"8259 ELCR", 0x4d0, &elcr_ops},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(ports); i++) {
        int rc = ports_add(chip->ports, ports[i].name, ports[i].base, 2, ports[i].ops, chip,
                           &chip->pic_ports[i], err);
        if (rc < 0)
            return rc;
    }
    return memory_add_io(chip->memory, "I/O APIC", IOAPIC_BASE, IOAPIC_SIZE, &ioapic_ops, chip,
                         &chip->ioapic_region, err);
}

int irqchip_create(struct memory *memory, struct ports *ports, struct vm_clock *clock,
                   struct irqchip **chip_out, struct error *err) {
    struct irqchip *chip = calloc(1, sizeof *chip);
    if (!chip)
        return error_set(err, -ENOMEM, "no memory for the interrupt chip");
    chip->memory = memory;
    chip->ports = ports;
    chip->clock = clock;
    lock_init(&chip->lock, LOCK_IRQCHIP, "irqchip");
    irqchip_reset(chip);
    int rc = map(chip, err);
    if (rc < 0) {
        irqchip_destroy(chip);
        return rc;
    }
    *chip_out = chip;
    return 0;
}

void irqchip_destroy(struct irqchip *chip) {
    if (!chip)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(chip->pic_ports); i++)
        if (chip->pic_ports[i])
            ports_remove(chip->pic_ports[i]);
    if (chip->ioapic_region)
        memory_remove_io(chip->ioapic_region);
    lock_destroy(&chip->lock);
    free(chip);
}

/* The wires' levels survive: the devices that hold them lower them in their own resets. */
void irqchip_reset(struct irqchip *chip) {
    uint32_t sources[IRQ_LINES];

    lock_take(&chip->lock);
    memcpy(sources, chip->sources, sizeof sources);
    state_reset(&irqchip_table, chip);
    for (unsigned gsi = 0; gsi < IRQ_LINES; gsi++)
        if (sources[gsi])
            set_source(chip, gsi, sources[gsi], true);
    update_intr(chip);
    struct irq_delivery delivery = chip->delivery;
    lock_release(&chip->lock);
    if (delivery.routes_changed)
        delivery.routes_changed(delivery.context);
}
