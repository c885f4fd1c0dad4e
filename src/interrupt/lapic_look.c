/*
 * What waits at a local APIC, and how urgent it is (APM vol. 2, 16.6): the
 * vCPU's own thread. Translated code comes here with its vector registers
 * alive, so this file is compiled for general registers alone.
 */
#include "interrupt/apic.h"

int lapic_highest(const uint32_t bits[8]) {
    for (int word = 7; word >= 0; word--)
        if (bits[word])
            return word * 32 + 31 - __builtin_clz(bits[word]);
    return -1;
}

static int highest_request(const struct lapic *lapic) {
    for (int word = 7; word >= 0; word--) {
        uint32_t bits = atomic_load(&lapic->irr[word]);
        if (bits)
            return word * 32 + 31 - __builtin_clz(bits);
    }
    return -1;
}

uint8_t lapic_priority(const struct lapic *lapic) {
    uint8_t tpr = (uint8_t)peek(&lapic->tpr);
    int serving = lapic_highest(lapic->isr);
    if (serving < 0 || tpr >> 4 >= serving >> 4)
        return tpr;
    return serving & 0xf0;
}

/* The vector that the processor's priority lets through now, or -1. */
int lapic_deliverable(const struct lapic *lapic) {
    int vector = highest_request(lapic);
    bool enabled = lapic_enabled(lapic) && (peek(&lapic->svr) & SVR_ENABLED);
    if (vector < 0 || !enabled || vector >> 4 <= lapic_priority(lapic) >> 4)
        return -1;
    return vector;
}

bool lapic_external_waits(const struct lapic *lapic) {
    return atomic_load(&lapic->chip->intr) && lapic_takes_external(lapic);
}

void lapic_refresh(struct lapic *lapic) {
    atomic_fetch_and(&lapic->signals, ~(uint32_t)SIGNAL_POSTED);
    lapic->ready = lapic_external_waits(lapic) || lapic_deliverable(lapic) >= 0;
}

bool lapic_pending(struct lapic *lapic) {
    if (atomic_load_explicit(&lapic->signals, memory_order_acquire) & SIGNAL_POSTED)
        lapic_refresh(lapic);
    return lapic->ready;
}

bool lapic_attention(struct lapic *lapic) {
    uint32_t signals = atomic_load_explicit(&lapic->signals, memory_order_acquire);
    if (signals & SIGNAL_POSTED)
        lapic_refresh(lapic);
    return lapic->ready || (signals & SIGNAL_EVENTS);
}

struct lapic_look lapic_where_to_look(const struct lapic *lapic) {
    return (struct lapic_look){
        .signals = &lapic->signals, .ready = &lapic->ready, .mask = SIGNAL_POSTED | SIGNAL_EVENTS};
}

uint64_t lapic_base(const struct lapic *lapic) {
    return peek(&lapic->base);
}

uint64_t lapic_timer_deadline(const struct lapic *lapic) {
    return lapic->timer_deadline;
}

uint64_t lapic_tsc_deadline(const struct lapic *lapic) {
    return lapic->tsc_deadline;
}

void lapic_set_tpr(struct lapic *lapic, uint32_t value) {
    poke(&lapic->tpr, value & 0xff);
    lapic_refresh(lapic);
}

uint8_t lapic_cr8(const struct lapic *lapic) {
    return peek(&lapic->tpr) >> 4 & 15;
}

void lapic_set_cr8(struct lapic *lapic, uint8_t cr8) {
    lapic_set_tpr(lapic, (uint32_t)(cr8 & 15) << 4);
}
