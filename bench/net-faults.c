/*
 * virtio-net's receive while its buffers' memory is away: frames a second by
 * backup buffers (src/virtio/net_backup.h), and by standing still for each
 * page, which is what the device does when its queues may not wait
 * (owner.came == NULL). The same device, frames, pages and source; each page
 * takes LATENCY to come, however many are on their way.
 *
 * usage: net-faults [PERCENT...]: how many of the buffers are away (100 10 1 0)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <sched.h>

#include "../tests/unit/away_rig.h"
#include "base/clock.h"

#define LATENCY_NS (5 * NS_PER_SECOND / 1000)
#define LEAST_NS   (NS_PER_SECOND)
enum { FRAME = 1514, BUFFER = 2048, WINDOW = AWAY_RING };

struct bench {
    struct away_rig away;
    uint8_t *contents;
    /* Pages on their way, the oldest first. */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct {
        uint64_t gpa, due;
    } coming[2 * AWAY_PAGES];
    unsigned first, end;
    bool quit;
    pthread_t source;
    unsigned percent;
    uint32_t seed;
    unsigned free_count;
    uint64_t free[WINDOW]; /* addresses of buffers that are not posted */
};

static struct memory *memory_of(struct bench *b) {
    return b->away.rig.platform.memory;
}

/* ---- The source ---- */

static void want(void *context, uint64_t gpa, bool waits) {
    struct bench *b = context;
    (void)waits;
    pthread_mutex_lock(&b->mutex);
    b->coming[b->end % ARRAY_SIZE(b->coming)].gpa = gpa;
    b->coming[b->end % ARRAY_SIZE(b->coming)].due = host_clock_ns() + LATENCY_NS;
    b->end++;
    pthread_cond_signal(&b->changed);
    pthread_mutex_unlock(&b->mutex);
}

static void sleep_until(uint64_t due) {
    struct timespec at = {(time_t)(due / NS_PER_SECOND), (long)(due % NS_PER_SECOND)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

static void *bring(void *context) {
    struct bench *b = context;
    pthread_mutex_lock(&b->mutex);
    while (!b->quit) {
        if (b->first == b->end) {
            pthread_cond_wait(&b->changed, &b->mutex);
            continue;
        }
        uint64_t gpa = b->coming[b->first % ARRAY_SIZE(b->coming)].gpa;
        uint64_t due = b->coming[b->first++ % ARRAY_SIZE(b->coming)].due;
        pthread_mutex_unlock(&b->mutex);
        sleep_until(due);
        memory_supply(memory_of(b), gpa, b->contents, PAGE_SIZE);
        pthread_mutex_lock(&b->mutex);
    }
    pthread_mutex_unlock(&b->mutex);
    return NULL;
}

/* ---- The guest ---- */

static void used(void *context, uint16_t id) {
    struct bench *b = context;
    b->free[b->free_count++] = b->away.rx_of_id[id];
}

/* Posts what is free, after having so many of it paged out. */
static void post(struct bench *b) {
    while (b->free_count > 0) {
        uint64_t address = b->free[b->free_count - 1];
        b->seed = b->seed * 1664525u + 1013904223u;
        if ((uint64_t)b->seed * 100 >> 32 < b->percent)
            memory_take(memory_of(b), address, PAGE_SIZE);
        if (!away_post(&b->away, address, BUFFER))
            break;
        b->free_count--;
    }
    driver_notify(&b->away.driver, RX);
}

static double frames_a_second(unsigned percent, bool blocking) {
    static struct bench b;
    const struct missing_source source = {want, &b};
    b = (struct bench){.percent = percent, .seed = 3};
    pthread_mutex_init(&b.mutex, NULL);
    pthread_cond_init(&b.changed, NULL);
    b.contents = calloc(1, PAGE_SIZE);
    away_start(&b.away);
    assert_non_null(b.contents);
    assert_int_equal(memory_missing_begin(memory_of(&b), &source, false, NULL), 0);
    pthread_create(&b.source, NULL, bring, &b);
    if (blocking)
        container_of(b.away.device, struct virtio_device, device)->owner.came = NULL;
    driver_start(&b.away.driver, VIRTIO_FEATURE(15), 2, WINDOW);
    for (unsigned i = 0; i < WINDOW; i++)
        b.free[b.free_count++] = RIG_DATA + (uint64_t)i * PAGE_SIZE;
    uint64_t start = host_clock_ns(), now;
    while ((now = host_clock_ns()) - start < LEAST_NS) {
        post(&b);
        while (b.away.frames.queued < 2 * WINDOW)
            away_frame(&b.away, FRAME);
        b.away.frames.ready(b.away.frames.context);
        rig_pump(&b.away.rig);
        if (!away_take_frame(&b.away, used, &b))
            sched_yield();
        while (away_take_frame(&b.away, used, &b)) {
        }
    }
    double frames = b.away.expected;
    memory_missing_lose(memory_of(&b));
    pthread_mutex_lock(&b.mutex);
    b.quit = true;
    pthread_cond_signal(&b.changed);
    pthread_mutex_unlock(&b.mutex);
    pthread_join(b.source, NULL);
    memory_missing_end(memory_of(&b));
    away_stop(&b.away);
    free(b.contents);
    return frames * (double)NS_PER_SECOND / (double)(now - start);
}

static void measure(unsigned percent) {
    double blocking = frames_a_second(percent, true), backup = frames_a_second(percent, false);
    printf("%3u %% of buffers away: standing still %8.0f, backup buffers %8.0f frames/s: %.1f x\n",
           percent, blocking, backup, backup / blocking);
    fflush(stdout);
}

static void test_measure(void **state) {
    static const unsigned usual[] = {100, 10, 1, 0};
    char **arguments = *state;
    if (arguments[0] == NULL)
        for (unsigned i = 0; i < ARRAY_SIZE(usual); i++)
            measure(usual[i]);
    for (; *arguments != NULL; arguments++)
        measure((unsigned)strtoul(*arguments, NULL, 10));
}

int main(int argc, char **argv) {
    (void)argc;
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_measure, argv + 1)};
    return cmocka_run_group_tests_name("virtio-net receive, pages that take 5 ms", tests, NULL,
                                       NULL);
}
