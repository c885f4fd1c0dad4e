/*
 * The VM's clock: host monotonic time minus an origin while it runs, a fixed
 * value while it is paused. CLOCK_MONOTONIC through the vDSO costs about as
 * much as RDTSC, is the same on all processors and follows the host's time
 * discipline; the TSC is worked out from it by a fixed multiplication, so that
 * both are one function and convert exactly in both directions.
 */
#include "base/clock.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

#include "base/lock.h"
#include "base/loop.h"

typedef unsigned __int128 uint128;

enum { TSC_SHIFT = 32 };
#define TSC_HZ_DEFAULT UINT64_C(2000000000) /* for hosts without a TSC */
#define NEVER          UINT64_MAX

struct vm_timer {
    struct vm_clock *clock;
    struct vm_timer *next, *previous; /* all timers of the clock */
    struct loop_timer *timer;
    vm_timer_handler *handler;
    void *context;
    uint64_t deadline; /* guest ns; NEVER: not armed */
};

struct vm_clock {
    /* A sequence lock: odd while the fields below change. */
    atomic_uint sequence;
    _Atomic(uint64_t) origin;      /* host ns at guest 0, modulo 2^64; running */
    _Atomic(uint64_t) frozen;      /* guest ns; paused. NEVER: running */
    _Atomic(uint64_t) wall_origin; /* real-time ns since 1970 at guest 0 */

    uint64_t tsc_hz;
    uint64_t tsc_multiplier; /* TSC = ns * multiplier >> TSC_SHIFT */

    struct lock lock; /* changes, and the list of timers */
    struct vm_timer *timers;
};

struct clock_view {
    uint64_t host, origin, frozen, wall_origin;
};

static uint64_t clock_read(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

uint64_t host_clock_ns(void) {
    return clock_read(CLOCK_MONOTONIC);
}

/* ---- Frequency ---- */

#if defined(__x86_64__)
/* CPUID 15h: crystal frequency times ratio; only some Intel processors tell all three numbers. */
static uint64_t hz_from_cpuid(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(0x15, 0, &eax, &ebx, &ecx, &edx) || eax == 0 || ebx == 0 || ecx == 0)
        return 0;
    return (uint64_t)((uint128)ecx * ebx / eax);
}

struct sample {
    uint64_t tsc, ns, width;
};

/* The tightest of a few pairs of readings: being interrupted between the two would spoil one. */
static struct sample take_sample(void) {
    struct sample best = {.width = UINT64_MAX};
    for (int i = 0; i < 16; i++) {
        uint64_t before = __rdtsc();
        uint64_t ns = clock_read(CLOCK_MONOTONIC_RAW);
        uint64_t after = __rdtsc();
        if (after - before < best.width)
            best = (struct sample){
                .tsc = before + (after - before) / 2, .ns = ns, .width = after - before};
    }
    return best;
}

static uint64_t hz_measured(void) {
    const struct timespec wait = {.tv_nsec = 10 * 1000 * 1000};
    struct sample first = take_sample();
    nanosleep(&wait, NULL);
    struct sample second = take_sample();
    uint64_t ns = second.ns - first.ns;
    if (ns == 0 || second.tsc <= first.tsc)
        return 0;
    uint64_t hz = (uint64_t)((uint128)(second.tsc - first.tsc) * NS_PER_SECOND / ns);
    return (hz + 500) / 1000 * 1000;
}
#else
static uint64_t hz_from_cpuid(void) {
    return 0;
}

static uint64_t hz_measured(void) {
    return 0;
}
#endif

/* Once a process: all VMs of it agree, and only the first waits. */
static uint64_t host_tsc_hz(void) {
    static _Atomic(uint64_t) known;
    uint64_t hz = atomic_load(&known);
    if (hz != 0)
        return hz;
    hz = hz_from_cpuid();
    if (hz == 0)
        hz = hz_measured();
    if (hz < 1000 * 1000 || hz > 100 * NS_PER_SECOND)
        hz = TSC_HZ_DEFAULT;
    uint64_t none = 0;
    return atomic_compare_exchange_strong(&known, &none, hz) ? hz : none;
}

/* ---- Reading ---- */

static struct clock_view look(const struct vm_clock *clock) {
    struct clock_view view;
    unsigned before, after;
    do {
        before = atomic_load_explicit(&clock->sequence, memory_order_acquire);
        view.origin = atomic_load_explicit(&clock->origin, memory_order_acquire);
        view.frozen = atomic_load_explicit(&clock->frozen, memory_order_acquire);
        view.wall_origin = atomic_load_explicit(&clock->wall_origin, memory_order_acquire);
        view.host = host_clock_ns();
        after = atomic_load_explicit(&clock->sequence, memory_order_acquire);
    } while ((before & 1) || before != after);
    return view;
}

static uint64_t guest_ns(const struct clock_view *view) {
    return view->frozen != NEVER ? view->frozen : view->host - view->origin;
}

uint64_t vm_clock_ns(const struct vm_clock *clock) {
    struct clock_view view = look(clock);
    return guest_ns(&view);
}

uint64_t vm_clock_tsc(const struct vm_clock *clock) {
    return (uint64_t)((uint128)vm_clock_ns(clock) * clock->tsc_multiplier >> TSC_SHIFT);
}

uint64_t vm_clock_tsc_hz(const struct vm_clock *clock) {
    return clock->tsc_hz;
}

uint64_t vm_clock_tsc_to_ns(const struct vm_clock *clock, uint64_t tsc) {
    uint128 ns = (((uint128)tsc << TSC_SHIFT) + clock->tsc_multiplier - 1) / clock->tsc_multiplier;
    return ns > NEVER ? NEVER : (uint64_t)ns;
}

int64_t vm_clock_wall_seconds(const struct vm_clock *clock, uint64_t ns) {
    struct clock_view view = look(clock);
    return (int64_t)(((uint128)view.wall_origin + ns) / NS_PER_SECOND);
}

uint64_t vm_clock_to_host_ns(const struct vm_clock *clock, uint64_t ns) {
    struct clock_view view = look(clock);
    if (view.frozen != NEVER)
        return NEVER;
    uint64_t now = view.host - view.origin;
    if (ns <= now)
        return view.host - (now - ns < view.host ? now - ns : view.host);
    return ns - now < NEVER - view.host ? view.host + (ns - now) : NEVER;
}

bool vm_clock_paused(const struct vm_clock *clock) {
    return atomic_load(&clock->frozen) != NEVER;
}

/* ---- Changing. clock->lock is held. ---- */

/* The host's clock is read after the sequence became odd: no reader can have answered a later time.
 */
static uint64_t change_begin(struct vm_clock *clock) {
    atomic_fetch_add(&clock->sequence, 1);
    return host_clock_ns();
}

static void change_end(struct vm_clock *clock) {
    atomic_fetch_add(&clock->sequence, 1);
}

static void set_running(struct vm_clock *clock, uint64_t ns) {
    uint64_t host = change_begin(clock);
    atomic_store(&clock->origin, host - ns);
    atomic_store(&clock->wall_origin, clock_read(CLOCK_REALTIME) - ns);
    atomic_store(&clock->frozen, NEVER);
    change_end(clock);
}

static void point_timer(struct vm_timer *timer) {
    uint64_t host =
        timer->deadline == NEVER ? NEVER : vm_clock_to_host_ns(timer->clock, timer->deadline);
    if (host == NEVER)
        loop_timer_cancel(timer->timer);
    else
        loop_timer_arm(timer->timer, host);
}

void vm_clock_pause(struct vm_clock *clock) {
    lock_take(&clock->lock);
    if (!vm_clock_paused(clock)) {
        uint64_t host = change_begin(clock);
        atomic_store(&clock->frozen, host - atomic_load(&clock->origin));
        change_end(clock);
        for (struct vm_timer *timer = clock->timers; timer != NULL; timer = timer->next)
            point_timer(timer);
    }
    lock_release(&clock->lock);
}

void vm_clock_resume(struct vm_clock *clock) {
    lock_take(&clock->lock);
    if (vm_clock_paused(clock)) {
        set_running(clock, atomic_load(&clock->frozen));
        for (struct vm_timer *timer = clock->timers; timer != NULL; timer = timer->next)
            point_timer(timer);
    }
    lock_release(&clock->lock);
}

int vm_clock_create(struct vm_clock **clock, struct error *err) {
    struct vm_clock *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "cannot make the VM's clock");
    lock_init(&made->lock, LOCK_CLOCK, "clock");
    made->tsc_hz = host_tsc_hz();
    made->tsc_multiplier = (uint64_t)(((uint128)made->tsc_hz << TSC_SHIFT) / NS_PER_SECOND);
    set_running(made, 0);
    *clock = made;
    return 0;
}

void vm_clock_destroy(struct vm_clock *clock) {
    if (clock == NULL)
        return;
    lock_destroy(&clock->lock);
    free(clock);
}

/* ---- Timers ---- */

/* The loop's thread. The host's timer may be early by rounding or stale after a change: ask the
 * clock. */
static void on_timer(void *context) {
    struct vm_timer *timer = context;
    lock_take(&timer->clock->lock);
    bool reached = timer->deadline != NEVER && vm_clock_ns(timer->clock) >= timer->deadline;
    if (reached)
        timer->deadline = NEVER;
    else
        point_timer(timer);
    lock_release(&timer->clock->lock);
    if (reached)
        timer->handler(timer->context);
}

int vm_timer_create(struct vm_clock *clock, struct loop *loop, vm_timer_handler *handler,
                    void *context, struct vm_timer **timer, struct error *err) {
    struct vm_timer *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "cannot make a timer");
    *made = (struct vm_timer){
        .clock = clock, .handler = handler, .context = context, .deadline = NEVER};
    int rc = loop_timer_create(loop, on_timer, made, &made->timer, err);
    if (rc < 0) {
        free(made);
        return rc;
    }
    lock_take(&clock->lock);
    made->next = clock->timers;
    if (made->next != NULL)
        made->next->previous = made;
    clock->timers = made;
    lock_release(&clock->lock);
    *timer = made;
    return 0;
}

void vm_timer_arm(struct vm_timer *timer, uint64_t deadline_ns) {
    lock_take(&timer->clock->lock);
    timer->deadline = deadline_ns;
    point_timer(timer);
    lock_release(&timer->clock->lock);
}

void vm_timer_cancel(struct vm_timer *timer) {
    vm_timer_arm(timer, NEVER);
}

void vm_timer_free(struct vm_timer *timer) {
    if (timer == NULL)
        return;
    lock_take(&timer->clock->lock);
    if (timer->next != NULL)
        timer->next->previous = timer->previous;
    if (timer->previous != NULL)
        timer->previous->next = timer->next;
    else
        timer->clock->timers = timer->next;
    lock_release(&timer->clock->lock);
    loop_timer_free(timer->timer);
    free(timer);
}
