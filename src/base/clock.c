/*
 * The VM's clock has two halves. What it ought to show is a line over the
 * host's monotonic time (two of them, one behind the other, while it catches
 * up). What it does show is a line over the host's counter (clock_line.h),
 * which takes few instructions to read, translated code included, and is aimed
 * anew every second or sooner: from where it is to where it ought to be by
 * then. So it follows the host's clock with its discipline, and is never
 * turned back. Guest nanoseconds are worked out from the TSC by a fixed
 * multiplication: both are one clock.
 */
#include "base/clock.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock_line.h"
#include "base/host_clock.h"
#include "base/lock.h"
#include "base/loop.h"
#include "base/state.h"

typedef unsigned __int128 uint128;

#define NEVER UINT64_MAX

/* From the host's time `host` (NEVER: never) on it is guest + (now - host) * rate. */
struct line {
    _Atomic(uint64_t) host, guest, rate;
};

enum { RATE_SHIFT = 32, NS_SHIFT = 52 };
#define RATE_ONE (UINT64_C(1) << RATE_SHIFT)

struct vm_timer {
    struct vm_clock *clock;
    struct vm_timer *next, *previous; /* all timers of the clock */
    struct loop_timer *timer;
    vm_timer_handler *handler;
    void *context;
    uint64_t deadline; /* guest ns; NEVER: not armed */
};

/* Changed by who has begun a change of the line: any reader that comes behind its end. */
struct follower {
    struct clock_line line;
    /* Counts are compared with the host's clock since `base`, and from `middle` on later. */
    struct host_sample base, middle;
    double counts_a_ns;
    uint64_t since; /* host ns */
};

struct vm_clock {
    struct follower *follower;
    /* The line's sequence lock is theirs as well. */
    struct line lines[2];          /* the second from its own begin on */
    atomic_bool paused;            /* the line's rate is 0 then */
    _Atomic(uint64_t) wall_origin; /* real-time ns since 1970 at guest 0 */

    /* Changed with the lock held. */
    uint64_t rate;      /* the scale, RATE_ONE: 1 */
    bool catches_up;    /* after pauses */
    uint64_t lost;      /* guest ns that pauses have cost and that no line makes up for */
    uint64_t paused_at; /* host ns */

    uint64_t tsc_hz;
    uint64_t ns_a_tick; /* ns = TSC * this >> NS_SHIFT */

    struct lock lock; /* changes, and the list of timers */
    struct vm_timer *timers;
};

/* What the clock ought to show. */
struct line_view {
    uint64_t host, guest, rate;
};

struct clock_view {
    bool paused;
    struct line_view lines[2];
};

static uint64_t tsc_to_ns(const struct vm_clock *clock, uint64_t tsc) {
    return (uint64_t)((uint128)tsc * clock->ns_a_tick >> NS_SHIFT);
}

static uint64_t ns_to_tsc(const struct vm_clock *clock, uint64_t ns) {
    return (uint64_t)((uint128)ns * clock->tsc_hz / NS_PER_SECOND);
}

/* ---- Where it ought to be ---- */

static struct clock_view view_now(const struct vm_clock *clock) {
    struct clock_view view;
    for (int i = 0; i < 2; i++)
        view.lines[i] = (struct line_view){
            .host = atomic_load_explicit(&clock->lines[i].host, memory_order_acquire),
            .guest = atomic_load_explicit(&clock->lines[i].guest, memory_order_acquire),
            .rate = atomic_load_explicit(&clock->lines[i].rate, memory_order_acquire)};
    view.paused = atomic_load_explicit(&clock->paused, memory_order_acquire);
    return view;
}

static struct clock_view look(const struct vm_clock *clock) {
    const struct clock_line *line = &clock->follower->line;
    struct clock_view view;
    uint64_t begin;
    do {
        begin = clock_line_begin(line);
        view = view_now(clock);
    } while (atomic_load_explicit(&line->begun, memory_order_acquire) != begin);
    return view;
}

static uint64_t scale_by(uint64_t ns, uint64_t rate) {
    return (uint64_t)((uint128)ns * rate >> RATE_SHIFT);
}

static uint64_t ideal_ns(const struct clock_view *view, uint64_t host) {
    const struct line_view *line = &view->lines[host >= view->lines[1].host];
    return host > line->host ? line->guest + scale_by(host - line->host, line->rate) : line->guest;
}

/* What the first line has still to make up for. */
static uint64_t behind(const struct clock_view *view, uint64_t host) {
    const struct line_view *lines = view->lines;
    if (view->paused || host >= lines[1].host || lines[1].host == NEVER)
        return 0;
    return scale_by(lines[1].host - host, lines[0].rate - lines[1].rate);
}

/* ---- Changing what it shows ---- */

/* A change is being made: now, and what the clock shows until the change is complete. */
struct moment {
    struct host_sample host;
    uint64_t tsc;
};

/* Nobody has read more than that by the line that there is. Beyond the line's end the clock is
 * where it ought to be, unless that is behind what may have been read. */
static uint64_t tsc_at(const struct vm_clock *clock, const struct host_sample *host) {
    const struct clock_line *line = &clock->follower->line;
    uint64_t counts = host->count - line->host, span = line->span, guest = line->guest;
    if (atomic_load(&clock->paused))
        return guest;
    if (counts <= span)
        return guest + clock_line_advance(counts, line->rate);
    bool before = counts >> 63; /* another processor's counter is behind, or it has begun anew */
    uint64_t least = before ? guest : guest + clock_line_advance(span, line->rate);
    struct clock_view view = view_now(clock);
    uint64_t ideal = ns_to_tsc(clock, ideal_ns(&view, host->ns));
    return ideal > least ? ideal : least;
}

/* Compares the counter with the host's clock, over some seconds once it can. */
static void calibrate(struct follower *follower, const struct host_sample *now) {
    enum { LEAST_NS = 5 * 1000 * 1000, WIDE = 4000 };
    const uint64_t half = 2 * NS_PER_SECOND;
    uint64_t ns = now->ns - follower->base.ns, counts = now->count - follower->base.count;
    double nominal = (double)host_count_hz() / (double)NS_PER_SECOND;
    if (now->width > WIDE || ns < LEAST_NS)
        return;
    double found = (double)counts / (double)ns;
    if (found < nominal * 0.99 || found > nominal * 1.01) { /* one of them has jumped */
        follower->base = follower->middle = *now;
        return;
    }
    follower->counts_a_ns = found;
    if (now->ns - follower->middle.ns < half)
        return;
    follower->base = follower->middle;
    follower->middle = *now;
}

static void begin_at(struct vm_clock *clock, struct moment *moment) {
    moment->host = host_sample();
    moment->tsc = tsc_at(clock, &moment->host);
    calibrate(clock->follower, &moment->host);
}

/* False: another thread is making one. */
static bool try_change_begin(struct vm_clock *clock, struct moment *moment) {
    struct clock_line *line = &clock->follower->line;
    uint64_t done = atomic_load(&line->done);
    if (!atomic_compare_exchange_strong(&line->begun, &done, done + 1))
        return false;
    begin_at(clock, moment);
    return true;
}

static struct moment change_begin(struct vm_clock *clock) {
    struct moment moment;
    while (!try_change_begin(clock, &moment))
        ;
    return moment;
}

/* How far the next line goes: to its second's end, less while little is known of the counter, and
 * not past the end of catching up. */
static uint64_t horizon_ns(const struct follower *follower, const struct clock_view *view,
                           uint64_t now) {
    enum { LEAST_NS = 10 * 1000 * 1000, TOO_NEAR_NS = 1000 };
    uint64_t known = now - follower->since, end = view->lines[1].host;
    uint64_t ns = known < LEAST_NS ? LEAST_NS : known < NS_PER_SECOND ? known : NS_PER_SECOND;
    return end != NEVER && end > now + TOO_NEAR_NS && end - now < ns ? end - now : ns;
}

/*
 * From where the clock is to where it ought to be. It is ahead of that by what its last line
 * missed, at most; then it goes more slowly, but at half its speed at least.
 */
static void aim(struct vm_clock *clock, const struct moment *from) {
    struct follower *follower = clock->follower;
    struct clock_view view = view_now(clock);
    uint64_t ns = horizon_ns(follower, &view, from->host.ns);
    uint64_t span = (uint64_t)((double)ns * follower->counts_a_ns), rate = 0;
    if (!view.paused) {
        uint64_t goal = ns_to_tsc(clock, ideal_ns(&view, from->host.ns + ns));
        uint64_t least = (goal - ns_to_tsc(clock, ideal_ns(&view, from->host.ns))) / 2;
        uint64_t ticks = goal > from->tsc ? goal - from->tsc : 0;
        rate = (uint64_t)(((uint128)(ticks > least ? ticks : least) << CLOCK_LINE_SHIFT) / span);
    }
    atomic_store(&follower->line.host, from->host.count);
    atomic_store(&follower->line.span, span);
    atomic_store(&follower->line.rate, rate);
    atomic_store(&follower->line.guest, from->tsc);
}

static void change_end(struct vm_clock *clock, const struct moment *moment) {
    struct clock_line *line = &clock->follower->line;
    aim(clock, moment);
    atomic_store(&line->done, atomic_load(&line->begun));
}

/* ---- Reading ---- */

/* The line has come to its end; or somebody changes it. */
static void renew(struct vm_clock *clock) {
    struct moment moment;
    if (try_change_begin(clock, &moment))
        change_end(clock, &moment);
}

uint64_t vm_clock_tsc(struct vm_clock *clock) {
    const struct clock_line *line = &clock->follower->line;
    uint64_t tsc;
    for (;;) {
        uint64_t begin = clock_line_begin(line);
        if (clock_line_at(line, begin, host_count(), &tsc))
            return tsc;
        renew(clock);
    }
}

const struct clock_line *vm_clock_line(const struct vm_clock *clock) {
    return host_counts_tsc() ? &clock->follower->line : NULL;
}

uint64_t vm_clock_ns(struct vm_clock *clock) {
    return tsc_to_ns(clock, vm_clock_tsc(clock));
}

uint64_t vm_clock_both_ns(struct vm_clock *clock, uint64_t *host_ns) {
    *host_ns = host_clock_ns();
    return vm_clock_ns(clock);
}

uint64_t vm_clock_tsc_hz(const struct vm_clock *clock) {
    return clock->tsc_hz;
}

uint64_t vm_clock_tsc_to_ns(const struct vm_clock *clock, uint64_t tsc) {
    const uint128 almost_one = ((uint128)1 << NS_SHIFT) - 1;
    uint128 ns = ((uint128)tsc * clock->ns_a_tick + almost_one) >> NS_SHIFT;
    return ns > NEVER ? NEVER : (uint64_t)ns;
}

uint64_t vm_clock_wall_ns(const struct vm_clock *clock, uint64_t ns) {
    return atomic_load(&clock->wall_origin) + ns;
}

int64_t vm_clock_wall_seconds(const struct vm_clock *clock, uint64_t ns) {
    return (int64_t)vm_clock_wall_ns(clock, ns) / (int64_t)NS_PER_SECOND; /* moved before 1970? */
}

uint64_t vm_clock_to_host_ns(struct vm_clock *clock, uint64_t ns) {
    uint64_t now = vm_clock_ns(clock), host = host_clock_ns();
    struct clock_view view = look(clock);
    if (view.paused)
        return NEVER;
    if (ns <= now)
        return host - (now - ns < host ? now - ns : host);
    bool later = view.lines[1].host != NEVER && ns >= view.lines[1].guest;
    const struct line_view *line = &view.lines[later];
    /* What it shows may be a little behind what it ought to; and rounded up: then it is reached. */
    uint64_t ideal = ideal_ns(&view, host), lag = ideal > now ? ideal - now : 0;
    uint64_t from = ns > line->guest ? ns - line->guest : 0;
    uint128 more = ((((uint128)from + lag) << RATE_SHIFT) + line->rate - 1) / line->rate;
    return more < NEVER - line->host ? line->host + (uint64_t)more : NEVER;
}

uint64_t vm_clock_behind_ns(const struct vm_clock *clock) {
    struct clock_view view = look(clock);
    return behind(&view, host_clock_ns());
}

bool vm_clock_paused(const struct vm_clock *clock) {
    return atomic_load(&clock->paused);
}

/* ---- Changing what it ought to show. clock->lock is held. ---- */

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
        struct moment moment = change_begin(clock);
        struct clock_view view = view_now(clock);
        clock->paused_at = moment.host.ns;
        clock->lost += behind(&view, clock->paused_at);
        atomic_store(&clock->paused, true);
        change_end(clock, &moment);
        point_timers(clock);
    }
    lock_release(&clock->lock);
}

void vm_clock_resume(struct vm_clock *clock) {
    lock_take(&clock->lock);
    if (vm_clock_paused(clock)) {
        struct moment moment = change_begin(clock);
        uint64_t paused = moment.host.ns - clock->paused_at;
        if (clock->catches_up)
            clock->lost += scale_by(paused, clock->rate);
        else /* only the RTC, which nobody watches running, knows how late it is */
            atomic_fetch_add(&clock->wall_origin, paused);
        set_lines(clock, moment.host.ns, tsc_to_ns(clock, moment.tsc));
        atomic_store(&clock->paused, false);
        change_end(clock, &moment);
        point_timers(clock);
    }
    lock_release(&clock->lock);
}

void vm_clock_lose(struct vm_clock *clock, uint64_t host_ns) {
    lock_take(&clock->lock);
    struct moment moment = change_begin(clock);
    struct clock_view view = view_now(clock);
    clock->lost += behind(&view, moment.host.ns) + scale_by(host_ns, clock->rate);
    if (!view.paused)
        set_lines(clock, moment.host.ns, tsc_to_ns(clock, moment.tsc));
    change_end(clock, &moment);
    point_timers(clock);
    lock_release(&clock->lock);
}

void vm_clock_set_scale(struct vm_clock *clock, double scale) {
    lock_take(&clock->lock);
    struct moment moment = change_begin(clock);
    struct clock_view view = view_now(clock);
    clock->lost += behind(&view, moment.host.ns);
    clock->rate = (uint64_t)(scale * (double)RATE_ONE + 0.5);
    if (!view.paused)
        set_lines(clock, moment.host.ns, tsc_to_ns(clock, moment.tsc));
    change_end(clock, &moment);
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
    atomic_fetch_add(&clock->wall_origin, (uint64_t)seconds * NS_PER_SECOND);
}

/* ---- Going on from a saved time ---- */

static const struct state_field clock_fields[] = {
    STATE_FIELD(struct vm_clock_state, tsc, 1),
    STATE_FIELD(struct vm_clock_state, tsc_hz, 1),
    STATE_FIELD(struct vm_clock_state, rate, 1),
};
const struct state_table vm_clock_state_table =
    STATE_TABLE("clock", 1, struct vm_clock_state, clock_fields);

static void set_hz(struct vm_clock *clock, uint64_t hz) {
    clock->tsc_hz = hz;
    clock->ns_a_tick = (uint64_t)(((uint128)NS_PER_SECOND << NS_SHIFT) / hz);
}

void vm_clock_get_state(struct vm_clock *clock, struct vm_clock_state *state) {
    lock_take(&clock->lock);
    *state = (struct vm_clock_state){vm_clock_tsc(clock), clock->tsc_hz, clock->rate};
    lock_release(&clock->lock);
}

/* A frequency that a host may have, a scale that may be set, and no more than a century. */
static bool is_possible(const struct vm_clock_state *state) {
    const uint64_t century = 100 * 366 * UINT64_C(86400);
    double scale = (double)state->rate / (double)RATE_ONE;
    return state->tsc_hz >= 1000 * 1000 && state->tsc_hz <= 100 * NS_PER_SECOND &&
           state->tsc / state->tsc_hz < century && scale >= CLOCK_SCALE_MIN * 0.999 &&
           scale <= CLOCK_SCALE_MAX * 1.001;
}

int vm_clock_set_state(struct vm_clock *clock, const struct vm_clock_state *state,
                       struct error *err) {
    if (!is_possible(state))
        return error_set(err, -EINVAL, "the clock's saved time cannot be");
    lock_take(&clock->lock);
    struct moment moment = change_begin(clock);
    uint64_t before = tsc_to_ns(clock, moment.tsc);
    set_hz(clock, state->tsc_hz);
    moment.tsc = state->tsc;
    uint64_t now = tsc_to_ns(clock, moment.tsc);
    atomic_fetch_add(&clock->wall_origin, before - now);
    clock->rate = state->rate;
    clock->lost = 0;
    set_lines(clock, moment.host.ns, now);
    change_end(clock, &moment);
    point_timers(clock);
    lock_release(&clock->lock);
    return 0;
}

static struct follower *follower_create(void) {
    struct follower *made = aligned_alloc(_Alignof(struct follower), sizeof *made);
    if (made == NULL)
        return NULL;
    *made = (struct follower){.base = host_sample()};
    made->middle = made->base;
    made->since = made->base.ns;
    made->counts_a_ns = (double)host_count_hz() / (double)NS_PER_SECOND;
    return made;
}

int vm_clock_create(struct vm_clock **clock, struct error *err) {
    struct vm_clock *made = calloc(1, sizeof *made);
    struct timespec now;
    if (made == NULL || (made->follower = follower_create()) == NULL) {
        free(made);
        return error_set_errno(err, -ENOMEM, "cannot make the VM's clock");
    }
    lock_init(&made->lock, LOCK_CLOCK, "clock");
    set_hz(made, host_tsc_hz());
    made->rate = RATE_ONE;
    clock_gettime(CLOCK_REALTIME, &now);
    made->wall_origin = (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
    struct moment moment = {.host = made->follower->base};
    set_lines(made, moment.host.ns, 0);
    aim(made, &moment);
    *clock = made;
    return 0;
}

void vm_clock_destroy(struct vm_clock *clock) {
    if (clock == NULL)
        return;
    lock_destroy(&clock->lock);
    free(clock->follower);
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
