/* The local APIC's registers (APM vol. 2, chapter 16), by their offsets in its page. */
#ifndef BAREMETAL_APIC_H
#define BAREMETAL_APIC_H

#include "runtime.h"

#define APIC_BASE 0xfee00000ul
enum {
    APIC_ID = 0x20,
    APIC_TPR = 0x80,
    APIC_PPR = 0xa0,
    APIC_EOI = 0xb0,
    APIC_SVR = 0xf0,
    APIC_ISR = 0x100,
    APIC_TMR = 0x180,
    APIC_IRR = 0x200,
    APIC_ICR_LOW = 0x300,
    APIC_ICR_HIGH = 0x310,
    APIC_LVT_TIMER = 0x320,
    APIC_LVT_LINT0 = 0x350,
    APIC_LVT_LINT1 = 0x360,
    APIC_INITIAL = 0x380,
    APIC_CURRENT = 0x390,
    APIC_DIVIDE = 0x3e0,
    LVT_MASKED = 0x10000,
    TIMER_PERIODIC = 0x20000,
    TIMER_DEADLINE = 0x40000,
    ICR_SELF = 0x40000,
    ICR_NMI = 0x4400, /* level: assert */
};
#define MSR_APIC_BASE    0x1bu
#define MSR_TSC_DEADLINE 0x6e0u

static inline uint32_t apic_read(unsigned offset) {
    return *(volatile uint32_t *)(APIC_BASE + offset);
}
static inline void apic_write(unsigned offset, uint32_t v) {
    *(volatile uint32_t *)(APIC_BASE + offset) = v;
}

/* The bit of a vector in ISR, TMR or IRR. */
static inline unsigned apic_bit(unsigned base, unsigned vector) {
    return apic_read(base + vector / 32 * 16) >> vector % 32 & 1;
}

static inline void apic_enable(void) {
    apic_write(APIC_SVR, 0x1ff);
    apic_write(APIC_TPR, 0);
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
    apic_write(APIC_LVT_LINT0, LVT_MASKED);
}

static inline void send_self(unsigned vector) {
    apic_write(APIC_ICR_LOW, ICR_SELF | vector);
}

static inline void cli(void) {
    asm volatile("cli" ::: "memory");
}
/*
 * Lets waiting interrupts in. Most tests use open_window, whose port access makes also those
 * hypervisors look that emulate many instructions in one go; window is exact: one instruction.
 */
static inline void window(void) {
    asm volatile("sti; nop; cli" ::: "memory");
}
static inline void open_window(void) {
    for (unsigned i = 0; i < 4; i++)
        asm volatile("sti; nop; outb %%al, $0x80; nop; cli" ::: "memory");
}
/* Waits for an interrupt; it cannot slip in before the HLT. */
static inline void wait_for_interrupt(void) {
    asm volatile("sti; hlt; cli" ::: "memory");
}

#endif
