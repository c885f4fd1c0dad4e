/* base/clock.c over long times, on a host's clock that the test moves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/clock_line.h"
#include "base/host_clock.h"

/* ---- The host: a counter that runs a little faster than it says ---- */

#define COUNT_HZ UINT64_C(2600000000)
#define MS       UINT64_C(1000000)

static uint64_t now_ns;
static double counter_is_fast; /* by so many millionths */
static uint64_t counter_at_0;

uint64_t host_clock_ns(void) {
    return now_ns;
}

bool host_counts_tsc(void) {
    return true;
}

uint64_t host_count(void) {
    return counter_at_0 + (uint64_t)((double)now_ns * 2.6 * (1 + counter_is_fast / 1e6));
}

uint64_t host_count_hz(void) {
    return COUNT_HZ;
}

uint64_t host_tsc_hz(void) {
    return COUNT_HZ;
}

struct host_sample host_sample(void) {
    return (struct host_sample){.count = host_count(), .ns = now_ns, .width = 100};
}

/* ---- What a guest sees ---- */

struct fixture {
    struct vm_clock *clock;
    uint64_t tsc, ns; /* last seen */
};

static int setup(void **state) {
    static struct fixture f;
    f = (struct fixture){0};
    now_ns = 77 * NS_PER_SECOND;
    counter_is_fast = 30;
    counter_at_0 = UINT64_C(1) << 50;
    *state = &f;
    return vm_clock_create(&f.clock, NULL);
}

static int teardown(void **state) {
    struct fixture *f = *state;
    vm_clock_destroy(f->clock);
    return 0;
}

/* Readings each `step`: none goes back, and none is further on than `most` times the host's. */
static void pass(struct fixture *f, uint64_t ns, uint64_t step, double most) {
    for (uint64_t end = now_ns + ns; now_ns < end;) {
        now_ns += step;
        uint64_t tsc = vm_clock_tsc(f->clock), at = vm_clock_ns(f->clock);
        assert_true(tsc >= f->tsc && at >= f->ns);
        if (f->ns != 0)
            assert_true((double)(at - f->ns) <= (double)step * most + 1000);
        f->tsc = tsc;
        f->ns = at;
    }
}

static void near(double value, double wanted, double by) {
    assert_true(value >= wanted - by && value <= wanted + by);
}

static void follows_the_hosts_clock(void **state) {
    struct fixture *f = *state;
    uint64_t from = now_ns;
    pass(f, 3 * NS_PER_SECOND, MS / 10, 1.0002);
    near((double)f->ns, (double)(now_ns - from), 2000);
    now_ns += 3600 * NS_PER_SECOND; /* nobody has looked for an hour */
    f->ns = vm_clock_ns(f->clock);
    near((double)f->ns, (double)(now_ns - from), 2000);
    pass(f, 3 * NS_PER_SECOND, MS / 10, 1.0002);
    near((double)f->ns, (double)(now_ns - from), 2000);
}

static void a_minutes_pause_is_caught_up(void **state) {
    static const double scales[] = {0.1, 1, 10, 60};
    struct fixture *f = *state;
    vm_clock_set_catch_up(f->clock, true);
    for (unsigned i = 0; i < sizeof scales / sizeof scales[0]; i++) {
        double scale = scales[i];
        vm_clock_set_scale(f->clock, scale);
        pass(f, NS_PER_SECOND, MS, scale * 1.001);
        uint64_t host = now_ns, guest = vm_clock_ns(f->clock), tsc = vm_clock_tsc(f->clock);
        vm_clock_pause(f->clock);
        now_ns += 60 * NS_PER_SECOND;
        assert_int_equal(vm_clock_tsc(f->clock), tsc);
        vm_clock_resume(f->clock);
        near((double)vm_clock_behind_ns(f->clock), 60e9 * scale, 1e6 * scale);
        /* Never more than twice as fast, without a step; there after a minute more. */
        pass(f, 59 * NS_PER_SECOND, MS, 2.001 * scale);
        assert_true(vm_clock_behind_ns(f->clock) != 0);
        pass(f, 2 * NS_PER_SECOND, MS, 2.001 * scale);
        assert_int_equal(vm_clock_behind_ns(f->clock), 0);
        near((double)(f->ns - guest), (double)(now_ns - host) * scale, 1e6 * scale);
        pass(f, 2 * NS_PER_SECOND, MS, 1.001 * scale);
        near((double)(f->ns - guest), (double)(now_ns - host) * scale, 1e6 * scale);
    }
}

/* Nobody looks while it catches up: it does not go on at twice its speed. */
static void nobody_looks(void **state) {
    struct fixture *f = *state;
    uint64_t from = now_ns;
    vm_clock_set_catch_up(f->clock, true);
    pass(f, NS_PER_SECOND, MS, 1.001);
    vm_clock_pause(f->clock);
    now_ns += 60 * NS_PER_SECOND;
    vm_clock_resume(f->clock);
    now_ns += 600 * NS_PER_SECOND;
    near((double)vm_clock_ns(f->clock), (double)(now_ns - from), 1e6);
}

/* The host was suspended: its counter has begun anew, or has gone on while its clock stood. Time
 * may step forward by what one line is long, not back. */
static void the_counter_jumps(void **state) {
    struct fixture *f = *state;
    uint64_t from = now_ns;
    const uint64_t counters[] = {0, UINT64_C(1) << 60, UINT64_C(1) << 50};
    for (unsigned i = 0; i < 3; i++) {
        pass(f, 5 * NS_PER_SECOND, MS, 1.001);
        near((double)f->ns, (double)(now_ns - from), 1e6);
        counter_at_0 = counters[i];
        pass(f, MS, MS, 1001);
        pass(f, 3 * NS_PER_SECOND, MS, 1.001);
    }
}

/* What quick readers do is what everybody sees; at its end they must ask. */
static void the_line_is_the_clock(void **state) {
    struct fixture *f = *state;
    const struct clock_line *line = vm_clock_line(f->clock);
    unsigned asked = 0;
    for (unsigned i = 0; i < 5000; i++) {
        uint64_t tsc;
        now_ns += MS;
        if (clock_line_at(line, clock_line_begin(line), host_count(), &tsc))
            assert_int_equal(tsc, vm_clock_tsc(f->clock));
        else
            asked++;
        vm_clock_tsc(f->clock);
    }
    assert_in_range(asked, 4, 100);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(follows_the_hosts_clock), TEST(a_minutes_pause_is_caught_up), TEST(nobody_looks),
        TEST(the_counter_jumps),       TEST(the_line_is_the_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
