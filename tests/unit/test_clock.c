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
    /* ns is a time at which the counter shows tsc, and the time before does not show tsc + 1. */
    assert_true(vm_clock_tsc_to_ns(f->clock, tsc) <= ns);
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
    assert_true(later <= host + NS_PER_SECOND);
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
        TEST(a_timer_fires_at_its_time),
        TEST(timers_wait_while_paused),
        TEST(a_cancelled_timer_does_not_fire),
        TEST(never_backwards_across_pauses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
