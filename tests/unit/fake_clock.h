/*
 * A VM's clock that stands still until the test moves it: defines all of
 * base/clock.h, so that clock.c is not linked. Timers run inside
 * fake_clock_advance, in order of their deadlines. Wall time at 0 is
 * FAKE_WALL. Include in one file of an executable.
 */
#ifndef LODGE_TESTS_FAKE_CLOCK_H
#define LODGE_TESTS_FAKE_CLOCK_H

#include <stdlib.h>
#include <time.h>

#include "base/clock.h"

/* 2024-02-29 23:59:50 UTC */
#define FAKE_WALL   INT64_C(1709251190)
#define FAKE_TSC_HZ UINT64_C(2000000000)

struct vm_clock {
    uint64_t ns;
};

struct vm_timer {
    vm_timer_handler *handler;
    void *context;
    uint64_t deadline;
    struct vm_timer *next;
};

static struct vm_timer *fake_timers;
static unsigned fake_timer_runs;

uint64_t host_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

int vm_clock_create(struct vm_clock **clock, struct error *err) {
    (void)err;
    *clock = calloc(1, sizeof **clock);
    (*clock)->ns = 1000000;
    return 0;
}

void vm_clock_destroy(struct vm_clock *clock) {
    free(clock);
}

uint64_t vm_clock_ns(struct vm_clock *clock) {
    return clock->ns;
}

uint64_t vm_clock_tsc(struct vm_clock *clock) {
    return clock->ns * 2;
}

uint64_t vm_clock_tsc_hz(const struct vm_clock *clock) {
    (void)clock;
    return FAKE_TSC_HZ;
}

uint64_t vm_clock_tsc_to_ns(const struct vm_clock *clock, uint64_t tsc) {
    (void)clock;
    return tsc / 2 + tsc % 2;
}

int64_t vm_clock_wall_seconds(const struct vm_clock *clock, uint64_t ns) {
    (void)clock;
    return FAKE_WALL + (int64_t)(ns / NS_PER_SECOND);
}

uint64_t vm_clock_to_host_ns(struct vm_clock *clock, uint64_t ns) {
    (void)clock;
    return ns;
}

void vm_clock_pause(struct vm_clock *clock) {
    (void)clock;
}

void vm_clock_resume(struct vm_clock *clock) {
    (void)clock;
}

bool vm_clock_paused(const struct vm_clock *clock) {
    (void)clock;
    return false;
}

int vm_timer_create(struct vm_clock *clock, struct loop *loop, vm_timer_handler *handler,
                    void *context, struct vm_timer **timer, struct error *err) {
    (void)clock, (void)loop, (void)err;
    *timer = calloc(1, sizeof **timer);
    **timer = (struct vm_timer){handler, context, UINT64_MAX, fake_timers};
    fake_timers = *timer;
    return 0;
}

void vm_timer_arm(struct vm_timer *timer, uint64_t deadline_ns) {
    timer->deadline = deadline_ns;
}

void vm_timer_cancel(struct vm_timer *timer) {
    timer->deadline = UINT64_MAX;
}

void vm_timer_free(struct vm_timer *timer) {
    struct vm_timer **at = &fake_timers;
    if (!timer)
        return;
    while (*at != timer)
        at = &(*at)->next;
    *at = timer->next;
    free(timer);
}

static inline struct vm_timer *fake_clock_next(void) {
    struct vm_timer *first = NULL;
    for (struct vm_timer *timer = fake_timers; timer; timer = timer->next)
        if (timer->deadline != UINT64_MAX && (!first || timer->deadline < first->deadline))
            first = timer;
    return first;
}

/* Moves time on and runs what falls due on the way. */
static inline void fake_clock_advance(struct vm_clock *clock, uint64_t ns) {
    uint64_t end = clock->ns + ns;
    struct vm_timer *timer;
    while ((timer = fake_clock_next()) && timer->deadline <= end) {
        if (timer->deadline > clock->ns)
            clock->ns = timer->deadline;
        timer->deadline = UINT64_MAX;
        fake_timer_runs++;
        timer->handler(timer->context);
    }
    clock->ns = end;
}

/* Moves time on with the loop asleep: what fell due runs late, at the end. */
static inline void fake_clock_leap(struct vm_clock *clock, uint64_t ns) {
    clock->ns += ns;
    fake_clock_advance(clock, 0);
}

#endif
