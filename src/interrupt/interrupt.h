/*
 * Interrupt delivery of one VM: two 8259s, an I/O APIC with 24 pins, a local
 * APIC per vCPU, and MSI. Devices raise lines or send messages; engines ask
 * for the next vector or, when they have local APICs of their own (KVM),
 * take the messages.
 *
 * Sources: 8259A data sheet; 82093AA I/O APIC data sheet; AMD64 APM vol. 2
 * chapter 16 (local APIC, x2APIC).
 *
 * Any thread unless a call says otherwise.
 */
#ifndef LODGE_INTERRUPT_INTERRUPT_H
#define LODGE_INTERRUPT_INTERRUPT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/state.h"
#include "memory/memory.h"
#include "memory/ports.h"

struct irqchip;
struct lapic;

enum { IRQ_LINES = 24, APIC_DEFAULT_BASE = 0xfee00000, IOAPIC_BASE = 0xfec00000 };

/* A message as a device writes it: PCI MSI address and data. */
struct msi_message {
    uint64_t address;
    uint32_t data;
};

/* Makes the 8259 pair (ports 20h, A0h, 4D0h) and the I/O APIC and maps them. */
int irqchip_create(struct memory *memory, struct ports *ports, struct vm_clock *clock,
                   struct irqchip **chip, struct error *err);
void irqchip_destroy(struct irqchip *chip);
void irqchip_reset(struct irqchip *chip);
/* For snapshot and inspection: the chip's table and object. Local APICs have their own table
 * (lapic_state), saved with their vCPUs. */
const struct state_table *irqchip_state(const struct irqchip *chip, void **object);

/*
 * Sets a line (global system interrupt 0 to 23). Lines 0 to 15 reach the
 * 8259s and the I/O APIC, 16 to 23 the I/O APIC alone. ISA IRQ 0 is wired to
 * I/O APIC pin 2. Lines shared by several devices: use struct irq_wire below
 * (irq_set is its source 0).
 */
void irq_set(struct irqchip *chip, unsigned gsi, bool level);

/* One wire of a device; lines with several sources are the OR of them. Zero-initialise. */
struct irq_wire {
    struct irqchip *chip;
    uint8_t gsi;
    uint8_t source; /* 0 to 31, distinct among those that share the line */
};
void irq_wire_set(const struct irq_wire *wire, bool level);

/* Sends a message-signalled interrupt. A malformed message is dropped. */
void msi_send(struct irqchip *chip, struct msi_message message);

/* ---- For engines with local APICs of their own (KVM) ---- */

/*
 * message and external are called with the chip's lock held (rank
 * LOCK_IRQCHIP) and must not call the chip; routes_changed is called without.
 */
struct irq_delivery {
    void (*message)(void *context, struct msi_message message);
    /* The 8259's INTR output changed; fetch the vector with irqchip_pic_ack. */
    void (*external)(void *context, bool level);
    /* The I/O APIC's redirection table changed: routes for EOI broadcasts may need an update. */
    void (*routes_changed)(void *context);
    void *context;
};
/* NULL: none any more. */
void irqchip_set_delivery(struct irqchip *chip, const struct irq_delivery *delivery);

/* Acknowledges the 8259s: the vector to inject, or -1 when INTR is not raised. */
int irqchip_pic_ack(struct irqchip *chip);

/* A local APIC told of the end of a level-triggered interrupt. */
void irqchip_eoi(struct irqchip *chip, uint8_t vector);

/* The message that pin would send now; false when it is masked. */
bool irqchip_pin_message(struct irqchip *chip, unsigned pin, struct msi_message *message);

/* ---- Local APICs of lodge's own (soft engine) ---- */

/*
 * Makes the local APIC of vCPU `id` (also its initial APIC id; id 0 is the
 * bootstrap processor). wake(context) is called from any thread when
 * lapic_pending or lapic_take_event may have changed its answer.
 */
int lapic_create(struct irqchip *chip, unsigned id, void (*wake)(void *context), void *context,
                 struct lapic **lapic, struct error *err);
void lapic_destroy(struct lapic *lapic);
void lapic_reset(struct lapic *lapic, bool init); /* init: by INIT, keeps the APIC id and base */
const struct state_table *lapic_state(void);
/* That of vCPU `id`; NULL: the engine has local APICs of its own. No vCPU runs. */
struct lapic *irqchip_lapic(const struct irqchip *chip, unsigned id);

/* The vCPU's own thread only, all of these: */

/* Cheap (one or two loads): true when lapic_ack would answer a vector, an NMI/INIT/SIPI/SMI waits.
 */
bool lapic_attention(struct lapic *lapic);
/* For who looks without a call: lapic_attention answers false while the byte at `signals` has none
 * of the bits in `mask` and the byte at `ready` is 0. */
struct lapic_look {
    const void *signals;
    const void *ready;
    uint8_t mask;
};
struct lapic_look lapic_where_to_look(const struct lapic *lapic);
/* The vector to deliver now (taken: IRR to ISR), from the local APIC or the 8259s; -1 for none.
 * Only call with the CPU ready to take an interrupt. */
int lapic_ack(struct lapic *lapic);
/* True when lapic_ack would answer a vector: wakes HLT. */
bool lapic_pending(struct lapic *lapic);

enum lapic_event { LAPIC_NO_EVENT, LAPIC_NMI, LAPIC_INIT, LAPIC_SIPI };
/* Takes one waiting event; for SIPI *vector is its vector. */
enum lapic_event lapic_take_event(struct lapic *lapic, uint8_t *vector);

/*
 * The timer runs on the vCPU's own thread: nobody else wakes up for it. The
 * engine waits (HLT) no longer than until the deadline, looks at the clock
 * now and then while running, and calls lapic_timer_expire once the VM's
 * clock has passed it. UINT64_MAX: no timer armed.
 */
uint64_t lapic_timer_deadline(const struct lapic *lapic);
void lapic_timer_expire(struct lapic *lapic, uint64_t now_ns);

/* Registers: xAPIC by offset in its page (32-bit accesses, others per APM 16.3.1), x2APIC by MSR
 * 0x800 to 0x8ff (false: #GP). */
uint32_t lapic_mmio_read(struct lapic *lapic, unsigned offset);
void lapic_mmio_write(struct lapic *lapic, unsigned offset, uint32_t value);
bool lapic_msr_read(struct lapic *lapic, uint32_t msr, uint64_t *value);
bool lapic_msr_write(struct lapic *lapic, uint32_t msr, uint64_t value);

/* IA32_APIC_BASE (MSR 1Bh): address, enable, x2APIC mode. False: #GP. */
uint64_t lapic_base(const struct lapic *lapic);
bool lapic_set_base(struct lapic *lapic, uint64_t value);

/* IA32_TSC_DEADLINE (MSR 6E0h), in TSC ticks of the VM's clock. */
uint64_t lapic_tsc_deadline(const struct lapic *lapic);
void lapic_set_tsc_deadline(struct lapic *lapic, uint64_t tsc);

/* CR8 / task priority bits 7:4. */
uint8_t lapic_cr8(const struct lapic *lapic);
void lapic_set_cr8(struct lapic *lapic, uint8_t cr8);

#endif
