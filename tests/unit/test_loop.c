#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/loop.h"

struct record {
    struct loop *loop;
    int order[1024];
    int count, stop_at;
    struct loop_timer *other;
};

struct step {
    struct record *record;
    int number;
};

static void note(void *context) {
    struct step *step = context;
    struct record *record = step->record;
    record->order[record->count++] = step->number;
    if (record->count == record->stop_at)
        loop_stop(record->loop);
}

static int setup(void **state) {
    static struct record record;
    record = (struct record){0};
    *state = &record;
    return loop_create(&record.loop, NULL);
}

static int teardown(void **state) {
    loop_destroy(((struct record *)*state)->loop);
    return 0;
}

static void posts_run_in_order_and_stop_is_exact(void **state) {
    struct record *record = *state;
    struct step steps[5];
    record->stop_at = 3;
    for (int i = 0; i < 5; i++) {
        steps[i] = (struct step){record, i};
        assert_int_equal(loop_post(record->loop, note, &steps[i]), 0);
    }
    loop_run(record->loop);
    assert_int_equal(record->count, 3);
    record->stop_at = 5;
    loop_run(record->loop);
    for (int i = 0; i < 5; i++)
        assert_int_equal(record->order[i], i);
}

static void *post_many(void *context) {
    static struct step step;
    step = (struct step){context, 7};
    for (int i = 0; i < 1000; i++)
        assert_int_equal(loop_post(step.record->loop, note, &step), 0);
    return NULL;
}

static void posts_from_another_thread(void **state) {
    struct record *record = *state;
    record->stop_at = 1000;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, post_many, record), 0);
    loop_run(record->loop);
    pthread_join(thread, NULL);
    assert_int_equal(record->count, 1000);
}

static void timers_fire_in_order_of_deadline(void **state) {
    struct record *record = *state;
    static const int order[] = {3, 0, 4, 1, 2};
    struct step steps[5];
    struct loop_timer *timers[5];
    uint64_t now = host_clock_ns();
    record->stop_at = 5;
    for (int i = 0; i < 5; i++) {
        steps[i] = (struct step){record, order[i]};
        assert_int_equal(loop_timer_create(record->loop, note, &steps[i], &timers[i], NULL), 0);
        loop_timer_arm(timers[i], now + (uint64_t)order[i] * 2000000);
    }
    loop_run(record->loop);
    assert_true(host_clock_ns() >= now + 4 * 2000000);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(record->order[i], i);
        loop_timer_free(timers[i]);
    }
}

static void cancel_other(void *context) {
    struct step *step = context;
    loop_timer_cancel(step->record->other);
    note(context);
}

/* Both are due in the same turn; the first cancels the second, which must not run. */
static void cancel_of_a_due_timer_holds(void **state) {
    struct record *record = *state;
    struct step steps[3] = {{record, 0}, {record, 1}, {record, 2}};
    struct loop_timer *first, *last;
    loop_timer_create(record->loop, cancel_other, &steps[0], &first, NULL);
    loop_timer_create(record->loop, note, &steps[1], &record->other, NULL);
    loop_timer_create(record->loop, note, &steps[2], &last, NULL);
    loop_timer_arm(first, 0);
    loop_timer_arm(record->other, 1);
    loop_timer_arm(last, 2);
    record->stop_at = 2;
    loop_run(record->loop);
    assert_int_equal(record->order[0], 0);
    assert_int_equal(record->order[1], 2);
}

static void rearm_self(void *context) {
    struct step *step = context;
    loop_timer_arm(step->record->other, 0);
    note(context);
}

/* A timer that is always due must not starve posted calls. */
static void a_greedy_timer_starves_nobody(void **state) {
    struct record *record = *state;
    struct step steps[2] = {{record, 0}, {record, 1}};
    loop_timer_create(record->loop, rearm_self, &steps[0], &record->other, NULL);
    loop_timer_arm(record->other, 0);
    loop_post(record->loop, note, &steps[1]);
    record->stop_at = 100;
    loop_run(record->loop);
    bool posted = false;
    for (int i = 0; i < 100; i++)
        posted |= record->order[i] == 1;
    assert_true(posted);
}

static void never_is_never(void **state) {
    struct record *record = *state;
    struct step steps[2] = {{record, 0}, {record, 1}};
    struct loop_timer *never, *soon;
    loop_timer_create(record->loop, note, &steps[0], &never, NULL);
    loop_timer_create(record->loop, note, &steps[1], &soon, NULL);
    loop_timer_arm(never, UINT64_MAX);
    loop_timer_arm(soon, host_clock_ns() + 1000000);
    record->stop_at = 1;
    loop_run(record->loop);
    assert_int_equal(record->order[0], 1);
}

struct pipe_watch {
    struct record *record;
    struct loop_fd *watch;
    int fd;
    unsigned seen;
    char text[8];
};

static void on_pipe(void *context, unsigned events) {
    struct pipe_watch *pw = context;
    pw->seen |= events;
    if (read(pw->fd, pw->text, sizeof pw->text) <= 0) {
        loop_fd_remove(pw->watch);
        loop_stop(pw->record->loop);
    }
}

static void file_descriptors(void **state) {
    struct record *record = *state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    struct pipe_watch pw = {.record = record, .fd = ends[0]};
    assert_int_equal(loop_fd_add(record->loop, ends[0], LOOP_READ, on_pipe, &pw, &pw.watch, NULL),
                     0);
    /* Others may share the description: it blocks as before. */
    assert_int_equal(fcntl(ends[0], F_GETFL) & O_NONBLOCK, 0);
    assert_int_equal(write(ends[1], "hello", 6), 6);
    close(ends[1]);
    loop_run(record->loop);
    assert_string_equal(pw.text, "hello");
    assert_true(pw.seen & LOOP_READ);
    close(ends[0]);
}

static void a_bad_descriptor_is_refused(void **state) {
    struct record *record = *state;
    struct loop_fd *watch;
    struct error err;
    assert_true(loop_fd_add(record->loop, 9999, LOOP_READ, on_pipe, NULL, &watch, &err) < 0);
    assert_non_null(strstr(err.text, "9999"));
}

static void on_signal(void *context, int number) {
    struct step step = {context, number};
    note(&step);
}

static void signals(void **state) {
    struct record *record = *state;
    struct loop_signal *watch;
    record->stop_at = 1;
    assert_int_equal(loop_signal_add(record->loop, SIGUSR1, on_signal, record, &watch, NULL), 0);
    raise(SIGUSR1);
    loop_run(record->loop);
    assert_int_equal(record->order[0], SIGUSR1);
    loop_signal_remove(watch);
}

static void check_here(void *context) {
    struct record *record = context;
    record->order[0] = loop_is_here(record->loop);
    loop_stop(record->loop);
}

static void here(void **state) {
    struct record *record = *state;
    assert_false(loop_is_here(record->loop));
    loop_post(record->loop, check_here, record);
    loop_run(record->loop);
    assert_true(record->order[0]);
}

static void destroy_frees_what_is_left(void **state) {
    struct record *record = *state;
    struct loop_timer *timer;
    struct loop_fd *watch;
    struct loop_signal *signal;
    struct step step = {record, 0};
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    loop_timer_create(record->loop, note, &step, &timer, NULL);
    loop_timer_arm(timer, host_clock_ns() + NS_PER_SECOND * 1000);
    loop_fd_add(record->loop, ends[0], LOOP_READ, on_pipe, NULL, &watch, NULL);
    loop_signal_add(record->loop, SIGUSR2, on_signal, record, &signal, NULL);
    loop_post(record->loop, note, &step);
    loop_destroy(record->loop);
    assert_int_equal(loop_create(&record->loop, NULL), 0);
    close(ends[0]);
    close(ends[1]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(posts_run_in_order_and_stop_is_exact),
        TEST(posts_from_another_thread),
        TEST(timers_fire_in_order_of_deadline),
        TEST(cancel_of_a_due_timer_holds),
        TEST(a_greedy_timer_starves_nobody),
        TEST(never_is_never),
        TEST(file_descriptors),
        TEST(a_bad_descriptor_is_refused),
        TEST(signals),
        TEST(here),
        TEST(destroy_frees_what_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
