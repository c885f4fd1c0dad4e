/*
 * The local APIC's timer: one-shot, periodic and TSC-deadline. One bus cycle
 * is one guest nanosecond. Runs on the vCPU's own thread, which asks for the
 * deadline and reports that it has passed.
 */
#include "interrupt/apic.h"

enum { MODE_SHIFT = 17, MODE_ONE_SHOT = 0, MODE_PERIODIC = 1, MODE_DEADLINE = 2 };

static unsigned mode_of(uint32_t lvt) {
    return lvt >> MODE_SHIFT & 3;
}

static unsigned mode(const struct lapic *lapic) {
    return mode_of(peek(&lapic->lvt[LVT_TIMER]));
}

/* Divide configuration: bits 3, 1, 0 name 2, 4 ... 128, and 111b names 1. */
static unsigned divide_shift(const struct lapic *lapic) {
    unsigned code = (lapic->divide >> 1 & 4) | (lapic->divide & 3);
    return (code + 1) & 7;
}

static uint64_t period(const struct lapic *lapic) {
    return (uint64_t)lapic->initial_count << divide_shift(lapic);
}

static void disarm(struct lapic *lapic) {
    lapic->timer_deadline = UINT64_MAX;
    lapic->tsc_deadline = 0;
}

void lapic_timer_lvt_changed(struct lapic *lapic, uint32_t before) {
    bool was_deadline = mode_of(before) == MODE_DEADLINE;
    if (was_deadline != (mode(lapic) == MODE_DEADLINE)) {
        disarm(lapic);
        lapic->initial_count = 0;
    }
}

void lapic_timer_set_initial(struct lapic *lapic, uint32_t count) {
    if (mode(lapic) == MODE_DEADLINE)
        return;
    lapic->initial_count = count;
    lapic->timer_deadline = count ? vm_clock_ns(lapic->chip->clock) + period(lapic) : UINT64_MAX;
}

/* The count that is left stays; only its speed changes. */
void lapic_timer_set_divide(struct lapic *lapic, uint32_t divide) {
    uint64_t left = lapic_timer_current(lapic);
    lapic->divide = divide & 0xb;
    if (lapic->timer_deadline != UINT64_MAX && mode(lapic) != MODE_DEADLINE)
        lapic->timer_deadline = vm_clock_ns(lapic->chip->clock) + (left << divide_shift(lapic));
}

uint32_t lapic_timer_current(const struct lapic *lapic) {
    uint64_t now = vm_clock_ns(lapic->chip->clock);
    if (lapic->timer_deadline == UINT64_MAX || mode(lapic) == MODE_DEADLINE)
        return 0;
    if (now < lapic->timer_deadline)
        return (uint32_t)((lapic->timer_deadline - now) >> divide_shift(lapic));
    if (mode(lapic) == MODE_ONE_SHOT || period(lapic) == 0)
        return 0;
    uint64_t into = (now - lapic->timer_deadline) % period(lapic);
    return (uint32_t)((period(lapic) - into) >> divide_shift(lapic));
}

/* Ticks of a period that nobody saw in time become one. */
static uint64_t next_period(const struct lapic *lapic, uint64_t now_ns) {
    uint64_t length = period(lapic);
    if (length == 0)
        return UINT64_MAX;
    return now_ns + length - (now_ns - lapic->timer_deadline) % length;
}

void lapic_timer_expire(struct lapic *lapic, uint64_t now_ns) {
    if (now_ns < lapic->timer_deadline)
        return;
    if (mode(lapic) == MODE_PERIODIC)
        lapic->timer_deadline = next_period(lapic, now_ns);
    else
        disarm(lapic);
    lapic_local(lapic, LVT_TIMER);
}

void lapic_set_tsc_deadline(struct lapic *lapic, uint64_t tsc) {
    if (mode(lapic) != MODE_DEADLINE)
        return;
    lapic->tsc_deadline = tsc;
    lapic->timer_deadline = tsc ? vm_clock_tsc_to_ns(lapic->chip->clock, tsc) : UINT64_MAX;
}
