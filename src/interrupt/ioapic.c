#include "interrupt/ioapic.h"

enum { IOREGSEL = 0x00, IOWIN = 0x10, IOEOI = 0x40 };
enum { REG_ID = 0, REG_VERSION = 1, REG_ARBITRATION = 2, REG_REDIRECT = 0x10 };
enum { MODE_LOWEST = 1 };

bool ioapic_message(const struct ioapic *apic, unsigned pin, struct msi_message *message) {
    if (pin >= IOAPIC_PINS || apic->redirect[pin] & REDIRECT_MASKED)
        return false;
    uint64_t entry = apic->redirect[pin];
    uint64_t destination = entry >> 56;
    uint64_t logical = (entry >> 11) & 1;
    uint64_t lowest = ((entry >> 8) & 7) == MODE_LOWEST;
    uint32_t trigger = entry & REDIRECT_LEVEL ? 0xc000 : 0; /* level, asserted */

    message->address = APIC_DEFAULT_BASE | destination << 12 | lowest << 3 | logical << 2;
    message->data = (entry & 0x7ff) | trigger;
    return true;
}

/* Sends a level pin's message if it is due: raised, open, and not waiting for an EOI. */
static void send_level(struct ioapic *apic, unsigned pin, struct ioapic_output out) {
    struct msi_message message;
    bool due = (apic->lines >> pin & 1) && (apic->redirect[pin] & REDIRECT_LEVEL) &&
               !(apic->redirect[pin] & REDIRECT_REMOTE);
    if (!due || !ioapic_message(apic, pin, &message))
        return;
    apic->redirect[pin] |= REDIRECT_REMOTE;
    out.send(out.context, message);
}

void ioapic_set_line(struct ioapic *apic, unsigned pin, bool level, struct ioapic_output out) {
    struct msi_message message;
    uint32_t bit = UINT32_C(1) << pin;
    bool rises = level && !(apic->lines & bit);

    apic->lines = level ? apic->lines | bit : apic->lines & ~bit;
    if (!rises)
        return;
    if (apic->redirect[pin] & REDIRECT_LEVEL)
        send_level(apic, pin, out);
    else if (ioapic_message(apic, pin, &message)) /* an edge at a masked pin is lost */
        out.send(out.context, message);
}

void ioapic_eoi(struct ioapic *apic, uint8_t vector, struct ioapic_output out) {
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        uint64_t entry = apic->redirect[pin];
        if (!(entry & REDIRECT_REMOTE) || (uint8_t)entry != vector)
            continue;
        apic->redirect[pin] &= ~REDIRECT_REMOTE;
        send_level(apic, pin, out);
    }
}

static uint32_t read_register(const struct ioapic *apic) {
    unsigned index = apic->select - REG_REDIRECT;
    switch (apic->select) {
    case REG_ID:
    case REG_ARBITRATION: return apic->id;
    case REG_VERSION: return (IOAPIC_PINS - 1) << 16 | IOAPIC_VERSION;
    default: break;
    }
    if (apic->select < REG_REDIRECT || index >= 2 * IOAPIC_PINS)
        return 0;
    return (uint32_t)(apic->redirect[index / 2] >> (index & 1 ? 32 : 0));
}

static void write_redirect(struct ioapic *apic, unsigned index, uint32_t value,
                           struct ioapic_output out) {
    uint64_t *entry = &apic->redirect[index / 2];
    unsigned shift = index & 1 ? 32 : 0;
    uint64_t mask = REDIRECT_WRITABLE & (UINT64_C(0xffffffff) << shift);

    *entry = (*entry & ~mask) | ((uint64_t)value << shift & mask);
    /* Turning a pin to edges forgets the wait for an EOI: how old kernels get out of a lost one. */
    if (!(*entry & REDIRECT_LEVEL))
        *entry &= ~REDIRECT_REMOTE;
    send_level(apic, index / 2, out);
}

static bool write_register(struct ioapic *apic, uint32_t value, struct ioapic_output out) {
    unsigned index = apic->select - REG_REDIRECT;
    if (apic->select == REG_ID)
        apic->id = value & 0x0f000000;
    if (apic->select < REG_REDIRECT || index >= 2 * IOAPIC_PINS)
        return false;
    write_redirect(apic, index, value, out);
    return true;
}

uint32_t ioapic_read(const struct ioapic *apic, unsigned offset) {
    if (offset == IOREGSEL)
        return apic->select;
    return offset == IOWIN ? read_register(apic) : 0;
}

bool ioapic_write(struct ioapic *apic, unsigned offset, uint32_t value, struct ioapic_output out) {
    switch (offset) {
    case IOREGSEL: apic->select = (uint8_t)value; return false;
    case IOWIN: return write_register(apic, value, out);
    case IOEOI: ioapic_eoi(apic, (uint8_t)value, out); return false;
    default: return false;
    }
}

static const struct state_field ioapic_fields[] = {
    STATE_ARRAY(struct ioapic, redirect, 1, .reset = REDIRECT_MASKED),
    STATE_FIELD(struct ioapic, lines, 1),
    STATE_FIELD(struct ioapic, id, 1),
    STATE_FIELD(struct ioapic, select, 1),
};
const struct state_table ioapic_state = STATE_TABLE("ioapic", 1, struct ioapic, ioapic_fields);
