/*
 * Inside the room: the interrupt chip's object, the local APIC's object, and
 * messages between them. Rules of the threads: struct irqchip is guarded by
 * its lock; of a local APIC, the _Atomic fields are read and written by any
 * thread and all others belong to the vCPU's thread.
 */
#ifndef LODGE_INTERRUPT_APIC_H
#define LODGE_INTERRUPT_APIC_H

#include <stdatomic.h>

#include "base/lock.h"
#include "interrupt/interrupt.h"
#include "interrupt/ioapic.h"
#include "interrupt/pic.h"

enum { LAPIC_MAX = 255, LAPIC_BROADCAST = 0xff };

struct irqchip {
    struct lock lock;
    struct memory *memory;
    struct ports *ports;
    struct vm_clock *clock;
    struct pic_pair pics;
    struct ioapic ioapic;
    uint32_t sources[IRQ_LINES]; /* which wires raise each line */
    _Atomic(bool) intr;          /* the 8259s' output */
    struct irq_delivery delivery;
    struct lapic *lapics[LAPIC_MAX]; /* by id; set while the machine is assembled */
    unsigned lapic_limit;            /* one more than the highest id */
    struct io_region *ioapic_region;
    struct port_range *pic_ports[3];
};

enum delivery_mode {
    DELIVER_FIXED,
    DELIVER_LOWEST,
    DELIVER_SMI,
    DELIVER_NMI = 4,
    DELIVER_INIT,
    DELIVER_SIPI,
    DELIVER_EXTINT,
};

/* An interrupt message on its way to local APICs. */
struct apic_message {
    uint32_t destination;
    bool broadcast; /* to all */
    bool logical;
    bool level; /* level-triggered */
    uint8_t mode;
    uint8_t vector;
};

/* lapic.signals */
enum {
    SIGNAL_POSTED = 1, /* something changed outside the vCPU's thread: look at the IRR again */
    SIGNAL_NMI = 2,
    SIGNAL_INIT = 4,
    SIGNAL_SIPI = 8,
    SIGNAL_EVENTS = SIGNAL_NMI | SIGNAL_INIT | SIGNAL_SIPI,
    SIGNAL_VECTOR_SHIFT = 8, /* the SIPI's vector */
};

enum { LVT_TIMER, LVT_THERMAL, LVT_COUNTERS, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };
enum { LVT_MASKED = 1 << 16, LVT_MODE = 7 << 8, LVT_EXTINT = 7 << 8 };
enum { SVR_ENABLED = 1 << 8, SVR_EOI_SUPPRESS = 1 << 12 };
enum { ESR_SEND_VECTOR = 1 << 5, ESR_RECEIVE_VECTOR = 1 << 6, ESR_REGISTER = 1 << 7 };
enum { BASE_BSP = 1 << 8, BASE_X2APIC = 1 << 10, BASE_ENABLED = 1 << 11 };

struct lapic {
    struct irqchip *chip;
    unsigned id;
    void (*wake)(void *context);
    void *wake_context;

    _Atomic(uint32_t) signals;
    _Atomic(uint32_t) irr[8];
    _Atomic(uint32_t) tmr[8];
    _Atomic(uint32_t) svr;
    _Atomic(uint32_t) ldr;
    _Atomic(uint32_t) dfr;
    _Atomic(uint32_t) tpr;
    _Atomic(uint32_t) lvt[LVT_COUNT];
    _Atomic(uint32_t) errors; /* since the ESR was last written */
    _Atomic(uint64_t) base;

    bool ready; /* lapic_ack would answer, as of the last SIGNAL_POSTED */
    uint32_t isr[8];
    uint32_t esr;
    uint64_t icr;
    /* Timer (lapic_timer.c), in guest nanoseconds. */
    uint32_t divide;
    uint32_t initial_count;
    uint64_t timer_deadline; /* UINT64_MAX: not armed */
    uint64_t tsc_deadline;
};

/* Fields that other threads read need no order among them. */
#define peek(field)        atomic_load_explicit(field, memory_order_relaxed)
#define poke(field, value) atomic_store_explicit(field, value, memory_order_relaxed)

/* ---- lapic_look.c: the vCPU's thread ---- */

int lapic_highest(const uint32_t bits[8]); /* the highest bit that is set, or -1 */
uint8_t lapic_priority(const struct lapic *lapic);
/* The vector that the processor's priority lets through now, or -1. */
int lapic_deliverable(const struct lapic *lapic);
bool lapic_external_waits(const struct lapic *lapic); /* the 8259s ask, and may */
void lapic_set_tpr(struct lapic *lapic, uint32_t value);
/* Something that `ready` depends on changed. */
void lapic_refresh(struct lapic *lapic);

/* ---- lapic_deliver.c ---- */

/* Any thread. Sends to those that the message names; `except` is left out (NULL: none). */
void apic_deliver(struct irqchip *chip, const struct apic_message *message,
                  const struct lapic *except);
/* Any thread: one local APIC takes a message, whatever its destination says. */
void lapic_accept(struct lapic *lapic, const struct apic_message *message);
/* Any thread: a local interrupt by its LVT entry. */
void lapic_local(struct lapic *lapic, unsigned lvt);
/* Any thread: the 8259s' output, wired to LINT0 of all, changed. */
void lapic_lint0(struct lapic *lapic, bool level);
/* Any thread: notes an error and raises the error interrupt. */
void lapic_error(struct lapic *lapic, uint32_t bits);
/* The vCPU's thread: the ICR was written. */
void lapic_send_icr(struct lapic *lapic);

/* ---- lapic_timer.c: the vCPU's thread ---- */

void lapic_timer_lvt_changed(struct lapic *lapic, uint32_t before);
void lapic_timer_set_initial(struct lapic *lapic, uint32_t count);
void lapic_timer_set_divide(struct lapic *lapic, uint32_t divide);
uint32_t lapic_timer_current(const struct lapic *lapic);

static inline bool lapic_enabled(const struct lapic *lapic) {
    return peek(&lapic->base) & BASE_ENABLED;
}

static inline bool lapic_x2apic(const struct lapic *lapic) {
    uint64_t both = BASE_ENABLED | BASE_X2APIC;
    return (peek(&lapic->base) & both) == both;
}

/* The 8259s' INTR goes through to the CPU: LINT0 is open in ExtINT mode, or there is no APIC. */
static inline bool lapic_takes_external(const struct lapic *lapic) {
    if (!lapic_enabled(lapic))
        return lapic->id == 0;
    return (peek(&lapic->lvt[LVT_LINT0]) & (LVT_MASKED | LVT_MODE)) == LVT_EXTINT;
}

#endif
