/*
 * The VM's clock: a line over the host's monotonic time while it runs (two of
 * them, one behind the other, while it catches up), a fixed value while it is
 * paused. CLOCK_MONOTONIC through the vDSO costs about as
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

/* From the host's time `host` (NEVER: never) on it is guest + (now - host) * rate. */
struct line {
    _Atomic(uint64_t) host, guest, rate;
};

enum { RATE_SHIFT = 32 };
#define RATE_ONE (UINT64_C(1) << RATE_SHIFT)

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
    struct line lines[2];          /* the second from its own begin on */
    _Atomic(uint64_t) frozen;      /* guest ns; paused. NEVER: running */
    _Atomic(uint64_t) wall_origin; /* real-time ns since 1970 at guest 0 */

    /* Changed with the lock held. */
    uint64_t rate;      /* the scale, RATE_ONE: 1 */
    bool catches_up;    /* after pauses */
    uint64_t lost;      /* guest ns that pauses have cost and that no line makes up for */
    uint64_t paused_at; /* host ns */

    uint64_t tsc_hz;
    uint64_t tsc_multiplier; /* TSC = ns * multiplier >> TSC_SHIFT */

    struct lock lock; /* changes, and the list of timers */
    struct vm_timer *timers;
};

struct line_view {
    uint64_t host, guest, rate;
};

struct clock_view {
    uint64_t host, frozen, wall_origin;
    struct line_view lines[2];
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

static struct clock_view view_at(const struct vm_clock *clock, uint64_t host) {
    struct clock_view view = {.host = host};
    for (int i = 0; i < 2; i++)
        view.lines[i] = (struct line_view){
            .host = atomic_load_explicit(&clock->lines[i].host, memory_order_acquire),
            .guest = atomic_load_explicit(&clock->lines[i].guest, memory_order_acquire),
            .rate = atomic_load_explicit(&clock->lines[i].rate, memory_order_acquire)};
    view.frozen = atomic_load_explicit(&clock->frozen, memory_order_acquire);
    view.wall_origin = atomic_load_explicit(&clock->wall_origin, memory_order_acquire);
    return view;
}

static struct clock_view look(const struct vm_clock *clock) {
    struct clock_view view;
    unsigned before, after;
    do {
        before = atomic_load_explicit(&clock->sequence, memory_order_acquire);
        view = view_at(clock, 0);
        view.host = host_clock_ns();
        after = atomic_load_explicit(&clock->sequence, memory_order_acquire);
    } while ((before & 1) || before != after);
    return view;
}

static uint64_t scale_by(uint64_t ns, uint64_t rate) {
    return (uint64_t)((uint128)ns * rate >> RATE_SHIFT);
}

static const struct line_view *line_at(const struct clock_view *view, uint64_t host) {
    return &view->lines[host >= view->lines[1].host];
}

static uint64_t guest_ns(const struct clock_view *view) {
    const struct line_view *line = line_at(view, view->host);
    return view->frozen != NEVER ? view->frozen
                                 : line->guest + scale_by(view->host - line->host, line->rate);
}

uint64_t vm_clock_ns(const struct vm_clock *clock) {
    struct clock_view view = look(clock);
    return guest_ns(&view);
}

uint64_t vm_clock_both_ns(const struct vm_clock *clock, uint64_t *host_ns) {
    struct clock_view view = look(clock);
    *host_ns = view.host;
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

uint64_t vm_clock_wall_ns(const struct vm_clock *clock, uint64_t ns) {
    struct clock_view view = look(clock);
    return view.wall_origin + ns;
}

int64_t vm_clock_wall_seconds(const struct vm_clock *clock, uint64_t ns) {
    return (int64_t)vm_clock_wall_ns(clock, ns) / (int64_t)NS_PER_SECOND; /* moved before 1970? */
}

uint64_t vm_clock_to_host_ns(const struct vm_clock *clock, uint64_t ns) {
    struct clock_view view = look(clock);
    if (view.frozen != NEVER)
        return NEVER;
    uint64_t now = guest_ns(&view);
    if (ns <= now)
        return view.host - (now - ns < view.host ? now - ns : view.host);
    bool later = view.lines[1].host != NEVER && ns >= view.lines[1].guest;
    const struct line_view *line = &view.lines[later];
    /* Rounded up: then it has been reached. */
    uint128 more = (((uint128)(ns - line->guest) << RATE_SHIFT) + line->rate - 1) / line->rate;
    return more < NEVER - line->host ? line->host + (uint64_t)more : NEVER;
}

/* What the first line has still to make up for. */
static uint64_t behind(const struct clock_view *view) {
    const struct line_view *lines = view->lines;
    if (view->frozen != NEVER || view->host >= lines[1].host || lines[1].host == NEVER)
        return 0;
    return scale_by(lines[1].host - view->host, lines[0].rate - lines[1].rate);
}

uint64_t vm_clock_behind_ns(const struct vm_clock *clock) {
    struct clock_view view = look(clock);
    return behind(&view);
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

static void set_line(struct line *line, uint64_t host, uint64_t guest, uint64_t rate) {
    atomic_store(&line->host, host);
    atomic_store(&line->guest, guest);
    atomic_store(&line->rate, rate);
}

/*
 * How much faster than its rate the clock runs to make up for what was lost: so that it takes about
 * CATCH_UP_SECONDS, but at most twice as fast, which guests bear without noticing, and at least by
 * a sixteenth, so that it ends.
 */
static uint64_t catch_up_rate(const struct vm_clock *clock) {
    enum { CATCH_UP_SECONDS = 10 };
    uint128 wanted = ((uint128)clock->lost << RATE_SHIFT) / (CATCH_UP_SECONDS * NS_PER_SECOND);
    if (wanted > clock->rate)
        return clock->rate;
    return wanted > clock->rate / 16 ? (uint64_t)wanted : clock->rate / 16;
}

/* The guest's time is `guest` at the host's time `host` and goes on from there. */
static void set_lines(struct vm_clock *clock, uint64_t host, uint64_t guest) {
    set_line(&clock->lines[1], NEVER, 0, clock->rate);
    set_line(&clock->lines[0], host, guest, clock->rate);
    if (!clock->catches_up || clock->lost == 0)
        return;
    uint64_t extra = catch_up_rate(clock);
    uint64_t takes = (uint64_t)(((uint128)clock->lost << RATE_SHIFT) / extra);
    uint64_t fast = clock->rate + extra;
    set_line(&clock->lines[0], host, guest, fast);
    set_line(&clock->lines[1], host + takes, guest + scale_by(takes, fast), clock->rate);
    clock->lost = 0;
}

static void point_timer(struct vm_timer *timer) {
    uint64_t host =
        timer->deadline == NEVER ? NEVER : vm_clock_to_host_ns(timer->clock, timer->deadline);
    if (host == NEVER)
        loop_timer_cancel(timer->timer);
    else
        loop_timer_arm(timer->timer, host);
}

static void point_timers(struct vm_clock *clock) {
    for (struct vm_timer *timer = clock->timers; timer != NULL; timer = timer->next)
        point_timer(timer);
}

void vm_clock_pause(struct vm_clock *clock) {
    lock_take(&clock->lock);
    if (!vm_clock_paused(clock)) {
        clock->paused_at = change_begin(clock);
        struct clock_view view = view_at(clock, clock->paused_at);
        clock->lost += behind(&view);
        atomic_store(&clock->frozen, guest_ns(&view));
        change_end(clock);
        point_timers(clock);
    }
    lock_release(&clock->lock);
}

void vm_clock_resume(struct vm_clock *clock) {
    lock_take(&clock->lock);
    if (vm_clock_paused(clock)) {
        uint64_t host = change_begin(clock), paused = host - clock->paused_at;
        if (clock->catches_up)
            clock->lost += scale_by(paused, clock->rate);
        else /* only the RTC, which nobody watches running, knows how late it is */
            atomic_fetch_add(&clock->wall_origin, paused);
        set_lines(clock, host, atomic_load(&clock->frozen));
        atomic_store(&clock->frozen, NEVER);
        change_end(clock);
        point_timers(clock);
    }
    lock_release(&clock->lock);
}

void vm_clock_set_scale(struct vm_clock *clock, double scale) {
    lock_take(&clock->lock);
    struct clock_view view = view_at(clock, change_begin(clock));
    clock->lost += behind(&view);
    clock->rate = (uint64_t)(scale * (double)RATE_ONE + 0.5);
    if (view.frozen == NEVER)
        set_lines(clock, view.host, guest_ns(&view));
    change_end(clock);
    point_timers(clock);
    lock_release(&clock->lock);
}

double vm_clock_scale(struct vm_clock *clock) {
    lock_take(&clock->lock);
    double scale = (double)clock->rate / (double)RATE_ONE;
    lock_release(&clock->lock);
    return scale;
}

void vm_clock_set_catch_up(struct vm_clock *clock, bool on) {
    lock_take(&clock->lock);
    clock->catches_up = on;
    lock_release(&clock->lock);
}

void vm_clock_move_wall(struct vm_clock *clock, int64_t seconds) {
    lock_take(&clock->lock);
    change_begin(clock);
    atomic_fetch_add(&clock->wall_origin, (uint64_t)seconds * NS_PER_SECOND);
    change_end(clock);
    lock_release(&clock->lock);
}

int vm_clock_create(struct vm_clock **clock, struct error *err) {
    struct vm_clock *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "cannot make the VM's clock");
    lock_init(&made->lock, LOCK_CLOCK, "clock");
    made->tsc_hz = host_tsc_hz();
    made->tsc_multiplier = (uint64_t)(((uint128)made->tsc_hz << TSC_SHIFT) / NS_PER_SECOND);
    made->rate = RATE_ONE;
    made->frozen = NEVER;
    made->wall_origin = clock_read(CLOCK_REALTIME);
    set_lines(made, host_clock_ns(), 0);
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
