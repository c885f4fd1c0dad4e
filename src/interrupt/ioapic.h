/*
 * The I/O APIC's redirection table: logic without locks; irqchip.c holds its
 * lock around every call. Source: 82093AA data sheet, with the EOI register of
 * version 20h.
 */
#ifndef LODGE_INTERRUPT_IOAPIC_H
#define LODGE_INTERRUPT_IOAPIC_H

#include "interrupt/interrupt.h"

enum { IOAPIC_PINS = IRQ_LINES, IOAPIC_VERSION = 0x20, IOAPIC_SIZE = 0x1000 };

/* A redirection entry. */
#define REDIRECT_STATUS   (UINT64_C(1) << 12)
#define REDIRECT_REMOTE   (UINT64_C(1) << 14)
#define REDIRECT_LEVEL    (UINT64_C(1) << 15)
#define REDIRECT_MASKED   (UINT64_C(1) << 16)
#define REDIRECT_WRITABLE UINT64_C(0xff0000000001afff)

struct ioapic {
    uint64_t redirect[IOAPIC_PINS];
    uint32_t lines; /* the pins' levels, a bit each */
    uint32_t id;    /* register 0 */
    uint8_t select; /* IOREGSEL */
};

extern const struct state_table ioapic_state;

/* Called with the message that a pin sends. */
typedef void ioapic_send(void *context, struct msi_message message);

struct ioapic_output {
    ioapic_send *send;
    void *context;
};

void ioapic_set_line(struct ioapic *apic, unsigned pin, bool level, struct ioapic_output out);
void ioapic_eoi(struct ioapic *apic, uint8_t vector, struct ioapic_output out);
bool ioapic_message(const struct ioapic *apic, unsigned pin, struct msi_message *message);

uint32_t ioapic_read(const struct ioapic *apic, unsigned offset);
/* True when the redirection table changed. */
bool ioapic_write(struct ioapic *apic, unsigned offset, uint32_t value, struct ioapic_output out);

#endif
