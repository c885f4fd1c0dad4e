#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/loop.h"

struct fixture {
    struct vm_clock *clock;
    struct loop *loop;
    int fired;
    uint64_t fired_at;
};

static int setup(void **state) {
    static struct fixture f;
    f = (struct fixture){0};
    *state = &f;
    return vm_clock_create(&f.clock, NULL) < 0 || loop_create(&f.loop, NULL) < 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    loop_destroy(f->loop);
    vm_clock_destroy(f->clock);
    return 0;
}

static void starts_near_zero_and_goes_on(void **state) {
    struct fixture *f = *state;
    uint64_t first = vm_clock_ns(f->clock);
    assert_true(first < 100 * NS_PER_SECOND);
    uint64_t last = first;
    for (int i = 0; i < 100000; i++) {
        uint64_t now = vm_clock_ns(f->clock);
        assert_true(now >= last);
        last = now;
    }
    assert_true(last > first);
}

static void pause_stops_all_clocks(void **state) {
    struct fixture *f = *state;
    vm_clock_pause(f->clock);
    assert_true(vm_clock_paused(f->clock));
    uint64_t ns = vm_clock_ns(f->clock), tsc = vm_clock_tsc(f->clock);
    uint64_t host = host_clock_ns();
    while (host_clock_ns() < host + 1000000)
        ;
    vm_clock_pause(f->clock);
    assert_int_equal(vm_clock_ns(f->clock), ns);
    assert_int_equal(vm_clock_tsc(f->clock), tsc);
    assert_true(vm_clock_to_host_ns(f->clock, ns + 5) == UINT64_MAX);
    vm_clock_resume(f->clock);
    assert_false(vm_clock_paused(f->clock));
    assert_true(vm_clock_ns(f->clock) >= ns);
}

static void tsc_converts_exactly(void **state) {
    struct fixture *f = *state;
    uint64_t hz = vm_clock_tsc_hz(f->clock);
    assert_true(hz >= 1000000);
    vm_clock_pause(f->clock);
    uint64_t ns = vm_clock_ns(f->clock), tsc = vm_clock_tsc(f->clock);
    /* At that time the counter shows tsc, surely; and the time before does not show tsc + 1. */
    assert_true(vm_clock_tsc_to_ns(f->clock, tsc) <= ns + 1);
    assert_true(vm_clock_tsc_to_ns(f->clock, tsc + 1 + hz / NS_PER_SECOND) > ns);
    assert_int_equal(vm_clock_tsc_to_ns(f->clock, 0), 0);
    uint64_t second = vm_clock_tsc_to_ns(f->clock, hz);
    assert_true(second >= NS_PER_SECOND && second <= NS_PER_SECOND + 2);
    /* 2^64 - 1 ticks are further away than 64 bits of ns when the TSC is slower than 1 GHz. */
    assert_true(vm_clock_tsc_to_ns(f->clock, UINT64_MAX) > UINT64_MAX / 100);
}

static void host_time_of_guest_time(void **state) {
    struct fixture *f = *state;
    uint64_t guest = vm_clock_ns(f->clock);
    uint64_t host = host_clock_ns();
    uint64_t later = vm_clock_to_host_ns(f->clock, guest + NS_PER_SECOND);
    /* The clock's line and the host's clock agree to microseconds. */
    assert_true(later <= host + NS_PER_SECOND + NS_PER_SECOND / 1000);
    assert_true(later + 60 * NS_PER_SECOND > host);
    assert_true(vm_clock_to_host_ns(f->clock, 0) <= host);
    assert_true(vm_clock_to_host_ns(f->clock, UINT64_MAX) > host);
}

static void wall_clock_is_a_function_of_guest_time(void **state) {
    struct fixture *f = *state;
    int64_t now = vm_clock_wall_seconds(f->clock, 0);
    assert_true(now > 1600000000);
    assert_int_equal(vm_clock_wall_seconds(f->clock, 10 * NS_PER_SECOND), now + 10);
}

static void wait_host(uint64_t ns) {
    uint64_t until = host_clock_ns() + ns;
    while (host_clock_ns() < until)
        ;
}

/* How far a clock over the host's counter may be from the host's clock, which it follows, after so
 * many guest nanoseconds: 200 millionths at first, and what readings take. */
static double slack(double ns) {
    return 100 + ns / 5000;
}

/* Guest time over a span of the host's time, as a multiple of it; both ends taken between readings.
 */
static void expect_scale(struct vm_clock *clock, double scale) {
    uint64_t before = host_clock_ns(), first = vm_clock_ns(clock), tsc = vm_clock_tsc(clock);
    uint64_t after = host_clock_ns();
    wait_host(20000000);
    uint64_t begin = host_clock_ns(), last = vm_clock_ns(clock), tsc_last = vm_clock_tsc(clock);
    uint64_t end = host_clock_ns();
    double least = (double)(begin - after) * scale, most = (double)(end - before) * scale;
    assert_true((double)(last - first) >= least - slack(least));
    assert_true((double)(last - first) <= most + slack(most));
    double ticks = (double)(tsc_last - tsc) * 1e9 / (double)vm_clock_tsc_hz(clock);
    assert_true(ticks >= least * 0.999 - slack(least) && ticks <= most * 1.001 + slack(most));
}

static void scaled_time_is_a_multiple(void **state) {
    struct fixture *f = *state;
    static const double scales[] = {0.1, 1, 10, 60, 0.01, 100};
    uint64_t last = 0;
    for (unsigned i = 0; i < sizeof scales / sizeof scales[0]; i++) {
        vm_clock_set_scale(f->clock, scales[i]);
        assert_true(vm_clock_scale(f->clock) > scales[i] * 0.9999);
        assert_true(vm_clock_ns(f->clock) >= last);
        expect_scale(f->clock, scales[i]);
        last = vm_clock_ns(f->clock);
        /* A deadline is reached at the host's time that is told for it, and not long before. */
        uint64_t deadline = vm_clock_ns(f->clock) + 1000000;
        uint64_t host = vm_clock_to_host_ns(f->clock, deadline);
        assert_true(host <= host_clock_ns() + (uint64_t)(1000000 / scales[i]) + 10);
        if (host < host_clock_ns() + 50000000) {
            while (host_clock_ns() < host)
                ;
            assert_true(vm_clock_ns(f->clock) >= deadline);
        }
    }
}

/* Lost time comes back, faster than it passes but at most twice as fast, and then no more. */
static void a_pause_is_made_up_for(void **state) {
    struct fixture *f = *state;
    static const double scales[] = {1, 10};
    for (unsigned i = 0; i < 2; i++) {
        vm_clock_set_scale(f->clock, scales[i]);
        vm_clock_set_catch_up(f->clock, true);
        uint64_t host = host_clock_ns(), guest = vm_clock_ns(f->clock), after = host_clock_ns();
        vm_clock_pause(f->clock);
        wait_host(5000000);
        vm_clock_resume(f->clock);
        uint64_t behind = vm_clock_behind_ns(f->clock), last = vm_clock_ns(f->clock);
        uint64_t end = vm_clock_to_host_ns(f->clock, last + 100 * behind);
        while (host_clock_ns() < end) {
            uint64_t before = host_clock_ns(), now = vm_clock_ns(f->clock);
            assert_true(now >= last);
            last = now;
            (void)before;
        }
        assert_int_equal(vm_clock_behind_ns(f->clock), 0);
        uint64_t from = host_clock_ns(), ns = vm_clock_ns(f->clock), to = host_clock_ns();
        double least = (double)(from - after) * scales[i], most = (double)(to - host) * scales[i];
        assert_true((double)(ns - guest) >= least - slack(least));
        assert_true((double)(ns - guest) <= most + slack(most));
        expect_scale(f->clock, scales[i]);
    }
}

static void a_pause_can_stay_lost(void **state) {
    struct fixture *f = *state;
    vm_clock_pause(f->clock);
    uint64_t wall = vm_clock_wall_ns(f->clock, vm_clock_ns(f->clock));
    wait_host(5000000);
    vm_clock_resume(f->clock);
    assert_int_equal(vm_clock_behind_ns(f->clock), 0);
    assert_true(vm_clock_wall_ns(f->clock, vm_clock_ns(f->clock)) >= wall + 5000000);
    expect_scale(f->clock, 1);
    int64_t before = vm_clock_wall_seconds(f->clock, 0);
    vm_clock_move_wall(f->clock, -86400);
    assert_int_equal(vm_clock_wall_seconds(f->clock, 0), before - 86400);
}

/* Pauses and changes of scale while an earlier pause is being made up for. */
static void changes_while_catching_up(void **state) {
    struct fixture *f = *state;
    uint64_t last = vm_clock_ns(f->clock);
    vm_clock_set_catch_up(f->clock, true);
    for (unsigned i = 0; i < 200; i++) {
        vm_clock_pause(f->clock);
        if (i % 3 == 0)
            vm_clock_set_scale(f->clock, 1 + i % 7);
        wait_host(20000);
        vm_clock_resume(f->clock);
        if (i % 5 == 0)
            vm_clock_set_scale(f->clock, 0.5 + i % 4);
        wait_host(20000);
        uint64_t now = vm_clock_ns(f->clock);
        assert_true(now > last);
        last = now;
    }
}

static void fire(void *context) {
    struct fixture *f = context;
    f->fired++;
    f->fired_at = vm_clock_ns(f->clock);
    loop_stop(f->loop);
}

static void a_timer_fires_at_its_time(void **state) {
    struct fixture *f = *state;
    struct vm_timer *timer;
    assert_int_equal(vm_timer_create(f->clock, f->loop, fire, f, &timer, NULL), 0);
    uint64_t deadline = vm_clock_ns(f->clock) + 3000000;
    vm_timer_arm(timer, deadline);
    loop_run(f->loop);
    assert_int_equal(f->fired, 1);
    assert_true(f->fired_at >= deadline);
    vm_timer_free(timer);
}

static void resume_clock(void *context) {
    struct fixture *f = context;
    assert_int_equal(f->fired, 0);
    vm_clock_resume(f->clock);
}

static void timers_wait_while_paused(void **state) {
    struct fixture *f = *state;
    struct vm_timer *timer;
    struct loop_timer *resumer;
    vm_timer_create(f->clock, f->loop, fire, f, &timer, NULL);
    loop_timer_create(f->loop, resume_clock, f, &resumer, NULL);
    vm_timer_arm(timer, vm_clock_ns(f->clock) + 1000000);
    vm_clock_pause(f->clock);
    loop_timer_arm(resumer, host_clock_ns() + 5000000);
    loop_run(f->loop);
    assert_int_equal(f->fired, 1);
    vm_timer_free(timer);
}

static void a_cancelled_timer_does_not_fire(void **state) {
    struct fixture *f = *state;
    struct vm_timer *first, *second;
    vm_timer_create(f->clock, f->loop, fire, f, &first, NULL);
    vm_timer_create(f->clock, f->loop, fire, f, &second, NULL);
    uint64_t now = vm_clock_ns(f->clock);
    vm_timer_arm(first, now + 1000000);
    vm_timer_arm(second, now + 3000000);
    vm_timer_cancel(first);
    loop_run(f->loop);
    assert_int_equal(f->fired, 1);
    assert_true(f->fired_at >= now + 3000000);
    vm_timer_free(first);
    vm_timer_free(second);
}

struct reader {
    struct vm_clock *clock;
    atomic_bool done;
    bool backwards;
};

static void *read_clock(void *context) {
    struct reader *reader = context;
    uint64_t last = 0;
    while (!atomic_load(&reader->done)) {
        uint64_t now = vm_clock_ns(reader->clock);
        reader->backwards |= now < last;
        last = now;
    }
    return NULL;
}

static void never_backwards_across_pauses(void **state) {
    struct fixture *f = *state;
    struct reader reader = {.clock = f->clock};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, read_clock, &reader), 0);
    for (int i = 0; i < 2000; i++) {
        vm_clock_pause(f->clock);
        vm_clock_resume(f->clock);
    }
    atomic_store(&reader.done, true);
    pthread_join(thread, NULL);
    assert_false(reader.backwards);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(starts_near_zero_and_goes_on),
        TEST(pause_stops_all_clocks),
        TEST(tsc_converts_exactly),
        TEST(host_time_of_guest_time),
        TEST(wall_clock_is_a_function_of_guest_time),
        TEST(scaled_time_is_a_multiple),
        TEST(a_pause_is_made_up_for),
        TEST(a_pause_can_stay_lost),
        TEST(changes_while_catching_up),
        TEST(a_timer_fires_at_its_time),
        TEST(timers_wait_while_paused),
        TEST(a_cancelled_timer_does_not_fire),
        TEST(never_backwards_across_pauses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
