/*
 * Time is an object. Every timer and counter that a guest can read comes from
 * its VM's clock: guest time = offset + scale * host time while running, and
 * stands still while paused. After a pause it may run faster for a while, until
 * it is where it would be without. No device calls the host's clock.
 *
 * Guest nanoseconds start at 0 when the VM is made. The TSC is a function of
 * guest time (vm_clock_tsc_hz ticks a second), so that all clocks agree.
 * Reads: any thread; they wait for a change that is being made, which takes a
 * microsecond or two, never for a lock. Changes: the machine's control thread.
 */
#ifndef LODGE_BASE_CLOCK_H
#define LODGE_BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct clock_line;
struct loop;
struct state_table;
struct vm_clock;
struct vm_timer;

#define NS_PER_SECOND UINT64_C(1000000000)

/* The host's monotonic clock in nanoseconds. Back ends and the loop only. */
uint64_t host_clock_ns(void);

int vm_clock_create(struct vm_clock **clock, struct error *err);
void vm_clock_destroy(struct vm_clock *clock);

/* Guest nanoseconds now. Never goes backwards. */
uint64_t vm_clock_ns(struct vm_clock *clock);
/* The same, with the host's time at that moment. */
uint64_t vm_clock_both_ns(struct vm_clock *clock, uint64_t *host_ns);

/* The guest's time-stamp counter now, and its frequency in Hz (the host's where it is known). */
uint64_t vm_clock_tsc(struct vm_clock *clock);
uint64_t vm_clock_tsc_hz(const struct vm_clock *clock);

/* Where quick readers find the TSC (base/clock_line.h); NULL: the line is not over the host's TSC.
 */
const struct clock_line *vm_clock_line(const struct vm_clock *clock);

/* The guest time at which vm_clock_tsc() has reached tsc. */
uint64_t vm_clock_tsc_to_ns(const struct vm_clock *clock, uint64_t tsc);

/* The time since 1970 (UTC) that the guest should see at the guest time ns: for the RTC. */
uint64_t vm_clock_wall_ns(const struct vm_clock *clock, uint64_t ns);
int64_t vm_clock_wall_seconds(const struct vm_clock *clock, uint64_t ns);

/* The host monotonic time at which guest time reaches ns; UINT64_MAX while paused. */
uint64_t vm_clock_to_host_ns(struct vm_clock *clock, uint64_t ns);

void vm_clock_pause(struct vm_clock *clock);
void vm_clock_resume(struct vm_clock *clock);
bool vm_clock_paused(const struct vm_clock *clock);

/*
 * Guest seconds in a host second, CLOCK_SCALE_MIN to CLOCK_SCALE_MAX; 1 at first. Time goes on from
 * where it is. vCPUs that wait for a time must look again: their machine parks them meanwhile.
 */
#define CLOCK_SCALE_MIN 0.01
#define CLOCK_SCALE_MAX 100.0
void vm_clock_set_scale(struct vm_clock *clock, double scale);
double vm_clock_scale(struct vm_clock *clock);

/* Whether time lost by pauses is made up for; not at first. Then guest time runs up to twice as
 * fast after a pause; without, the guest's wall clock is late, and only its RTC is right. */
void vm_clock_set_catch_up(struct vm_clock *clock, bool on);
/* Guest nanoseconds that are still to be made up for. */
uint64_t vm_clock_behind_ns(const struct vm_clock *clock);

/*
 * Where the clock is, to go on from there in another process: guest time stands still in between,
 * and the wall clock (the RTC's) is the new host's. -EINVAL: a time that cannot be.
 */
struct vm_clock_state {
    uint64_t tsc, tsc_hz;
    uint64_t rate; /* the scale, 32 bits of it behind the point */
};
extern const struct state_table vm_clock_state_table;
void vm_clock_get_state(struct vm_clock *clock, struct vm_clock_state *state);
int vm_clock_set_state(struct vm_clock *clock, const struct vm_clock_state *state,
                       struct error *err);

/* As if it had been paused for so many nanoseconds of the host's before now. */
void vm_clock_lose(struct vm_clock *clock, uint64_t host_ns);

/* Moves the wall clock, which is the host's at first. Before the guest runs. */
void vm_clock_move_wall(struct vm_clock *clock, int64_t seconds);

/*
 * A one-shot timer on the VM's clock; the handler runs on the loop's thread.
 * Arm and cancel: any thread; the rules of loop_timer hold. A handler that
 * takes its device's lock must check there that its deadline still stands,
 * because a cancel from a vCPU thread may come while it waits for the lock.
 */
typedef void vm_timer_handler(void *context);
int vm_timer_create(struct vm_clock *clock, struct loop *loop, vm_timer_handler *handler,
                    void *context, struct vm_timer **timer, struct error *err);
void vm_timer_arm(struct vm_timer *timer, uint64_t deadline_ns);
void vm_timer_cancel(struct vm_timer *timer);
void vm_timer_free(struct vm_timer *timer);

#endif
