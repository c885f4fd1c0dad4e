/*
 * The network device while guest memory is away: frames arrive in order and
 * whole, and the device never stands still for memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <sched.h>

#include "away_rig.h"

#define MERGE  VIRTIO_FEATURE(15)
#define PACKED VIRTIO_FEATURE(VIRTIO_F_RING_PACKED)
#define EVENT  VIRTIO_FEATURE(VIRTIO_F_EVENT_IDX)

struct fixture {
    struct away_rig away;
    uint8_t *shadow; /* what the source has */
    pthread_mutex_t mutex;
    uint64_t wanted[AWAY_PAGES];
    unsigned wanted_count;
    atomic_bool in_device;
    atomic_uint stood_still; /* in the device */
    uint32_t seed;
    unsigned free_slots;
    uint16_t free[AWAY_RING]; /* places of buffers that are not posted */
};

static struct memory *memory_of(struct fixture *f) {
    return f->away.rig.platform.memory;
}

static uint32_t random_below(struct fixture *f, uint32_t limit) {
    f->seed = f->seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)f->seed * limit >> 32);
}

/* ---- The source: touches are answered at once, since they are the test's; the rest when asked. */

static void want(void *context, uint64_t gpa, bool waits) {
    struct fixture *f = context;
    if (waits) {
        f->stood_still += atomic_load(&f->in_device);
        memory_supply(memory_of(f), gpa, f->shadow + gpa, PAGE_SIZE);
        return;
    }
    pthread_mutex_lock(&f->mutex);
    assert_true(f->wanted_count < AWAY_PAGES);
    f->wanted[f->wanted_count++] = gpa;
    pthread_mutex_unlock(&f->mutex);
}

/* Supplies one of the pages that were asked for; which of them is up to chance. */
static bool supply_one(struct fixture *f) {
    uint64_t gpa = UINT64_MAX;
    pthread_mutex_lock(&f->mutex);
    if (f->wanted_count > 0) {
        unsigned n = random_below(f, f->wanted_count);
        gpa = f->wanted[n];
        f->wanted[n] = f->wanted[--f->wanted_count];
    }
    pthread_mutex_unlock(&f->mutex);
    if (gpa != UINT64_MAX)
        memory_supply(memory_of(f), gpa, f->shadow + gpa, PAGE_SIZE);
    return gpa != UINT64_MAX;
}

static void take(struct fixture *f, uint64_t gpa, uint64_t size) {
    for (uint64_t at = gpa; at < gpa + size; at += PAGE_SIZE) {
        if (!memory_is_here(memory_of(f), at, PAGE_SIZE))
            continue;
        assert_int_equal(memory_read(memory_of(f), at, f->shadow + at, PAGE_SIZE), 0);
        assert_int_equal(memory_take(memory_of(f), at, PAGE_SIZE), 0);
    }
}

/* ---- The device ---- */

static void kick(struct fixture *f, unsigned queue) {
    f->in_device = true;
    driver_notify(&f->away.driver, queue);
    f->in_device = false;
}

static void pump(struct fixture *f) {
    f->in_device = true;
    rig_pump(&f->away.rig);
    f->in_device = false;
}

static void frames_wait(struct fixture *f) {
    f->in_device = true;
    f->away.frames.ready(f->away.frames.context);
    f->in_device = false;
}

static void quiesce(struct fixture *f, bool quiet) {
    assert_true(f->away.device->class->quiesce(f->away.device, quiet));
}

static struct net_backup_counters counters(struct fixture *f) {
    struct net_backup_counters counters;
    virtio_net_count(f->away.device, &counters);
    return counters;
}

static int setup(void **state) {
    static struct fixture f;
    const struct missing_source source = {want, &f};
    f = (struct fixture){.seed = 7};
    *state = &f;
    pthread_mutex_init(&f.mutex, NULL);
    f.shadow = calloc(1, RIG_RAM);
    away_start(&f.away);
    return f.shadow == NULL ? -1 : memory_missing_begin(memory_of(&f), &source, false, NULL);
}

static int teardown(void **state) {
    struct fixture *f = *state;
    away_stop(&f->away);
    free(f->shadow);
    return 0;
}

/* ---- Buffers: place n is a page of its own, or (small) crosses into the next ---- */

static void start(struct fixture *f, uint64_t features) {
    driver_start(&f->away.driver, features, 2, AWAY_RING);
    f->away.expected = f->away.sequence;
    f->free_slots = 0;
    for (unsigned i = 0; i < AWAY_RING; i++)
        f->free[f->free_slots++] = (uint16_t)i;
}

static void post(struct fixture *f, unsigned count, uint32_t offset, uint32_t length) {
    for (unsigned i = 0; i < count && f->free_slots > 0; i++) {
        uint16_t place = f->free[f->free_slots - 1];
        uint64_t address = RIG_DATA + (uint64_t)place * 2 * PAGE_SIZE + offset;
        if (!away_post(&f->away, address, length))
            break;
        f->free_slots--;
    }
    kick(f, RX);
}

static void used(void *context, uint16_t id) {
    struct fixture *f = context;
    f->free[f->free_slots++] = (uint16_t)((f->away.rx_of_id[id] - RIG_DATA) / (2 * PAGE_SIZE));
}

static unsigned take_frames(struct fixture *f) {
    unsigned count = 0;
    while (away_take_frame(&f->away, used, f))
        count++;
    return count;
}

static void supply_until(struct fixture *f, uint32_t expected) {
    while (f->away.expected < expected) {
        if (!supply_one(f))
            sched_yield();
        pump(f);
        take_frames(f);
    }
}

/* ---- */

/* Pages come in any order, frames go to the guest in theirs. */
static void test_in_order(void **state) {
    struct fixture *f = *state;
    for (unsigned kind = 0; kind < 4; kind++) {
        start(f, (kind & 1 ? PACKED : 0) | (kind & 2 ? MERGE : 0));
        post(f, 200, PAGE_SIZE - 40, kind & 2 ? 100 : 1526);
        take(f, RIG_DATA, (uint64_t)AWAY_RING * 2 * PAGE_SIZE);
        for (unsigned i = 0; i < 10; i++)
            away_frame(&f->away, 60 + i * 100);
        frames_wait(f);
        assert_int_equal(take_frames(f), 0);
        assert_int_equal(f->away.frames.queued, 0);
        supply_until(f, f->away.sequence);
        assert_int_equal(f->stood_still, 0);
    }
    assert_int_equal(counters(f).frames, 40);
    assert_int_equal(counters(f).most, 10);
    assert_int_equal(counters(f).dropped, 0);
    assert_true(counters(f).faulty >= 40);
}

/* Once everything is there it goes the short way again. */
static void test_back_to_normal(void **state) {
    struct fixture *f = *state;
    start(f, MERGE);
    post(f, 64, 0, 1526);
    take(f, RIG_DATA, 2 * PAGE_SIZE * AWAY_RING);
    away_frame(&f->away, 1000);
    frames_wait(f);
    supply_until(f, f->away.sequence);
    memory_supply(memory_of(f), 0, f->shadow, RIG_RAM);
    struct net_backup_counters before = counters(f);
    away_frame(&f->away, 1000);
    frames_wait(f);
    assert_int_equal(take_frames(f), 1);
    assert_int_equal(counters(f).frames, before.frames);
}

/* Not even rings need to be there. */
static void test_rings_away(void **state) {
    struct fixture *f = *state;
    for (unsigned kind = 0; kind < 2; kind++) {
        start(f, kind ? PACKED | EVENT : EVENT);
        post(f, 20, 0, 1526);
        take(f, RIG_RINGS, 0x10000);
        take(f, RIG_DATA, 2 * PAGE_SIZE * AWAY_RING);
        away_frame(&f->away, 500);
        frames_wait(f);
        assert_int_equal(f->away.frames.queued, 1); /* still the back end's */
        while (f->away.frames.queued > 0) {
            if (!supply_one(f))
                sched_yield();
            pump(f);
        }
        supply_until(f, f->away.sequence);
        assert_int_equal(f->stood_still, 0);
    }
}

/* Sending waits without holding receiving up, and the other way round. */
static void test_both_directions(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffer = {RIG_DATA + 0x700000, 100};
    uint16_t id;
    uint32_t length;
    start(f, 0);
    post(f, 20, 0, 1526);
    take(f, buffer.address, PAGE_SIZE);
    ring_add(&f->away.driver.rings[TX], &buffer, 1, 1);
    kick(f, TX);
    assert_int_equal(f->away.frames.sent, 0);
    away_frame(&f->away, 500);
    frames_wait(f);
    assert_int_equal(take_frames(f), 1);
    while (f->away.frames.sent == 0) {
        if (!supply_one(f))
            sched_yield();
        pump(f);
    }
    assert_true(ring_used(&f->away.driver.rings[TX], &id, &length));
    assert_int_equal(f->stood_still, 0);
}

/* What is too much stays with the back end; all of it arrives later. */
static void test_bounded(void **state) {
    struct fixture *f = *state;
    start(f, MERGE);
    post(f, AWAY_RING, 0, 2000);
    take(f, RIG_DATA, 2 * PAGE_SIZE * AWAY_RING);
    for (unsigned i = 0; i < 2000; i++)
        away_frame(&f->away, 1400);
    frames_wait(f);
    pump(f);
    assert_int_equal(counters(f).most, BACKUP_FRAMES);
    assert_int_equal(f->away.frames.queued, 2000 - BACKUP_FRAMES);
    while (f->away.expected < f->away.sequence) {
        if (!supply_one(f))
            sched_yield();
        pump(f);
        take_frames(f);
        post(f, AWAY_RING, 0, 2000);
    }
    assert_int_equal(f->stood_still, 0);
    assert_int_equal(counters(f).most, BACKUP_FRAMES);
    assert_int_equal(counters(f).dropped, 0);
}

/* Resting gives the guest's buffers back, keeps the frames, and goes on as if nothing had been. */
static void test_rest(void **state) {
    struct fixture *f = *state;
    for (unsigned kind = 0; kind < 2; kind++) {
        start(f, MERGE | (kind ? PACKED : 0));
        post(f, 100, 0, 300);
        take(f, RIG_DATA, 2 * PAGE_SIZE * AWAY_RING);
        for (unsigned i = 0; i < 8; i++)
            away_frame(&f->away, 800);
        frames_wait(f);
        struct virtio_device *device = container_of(f->away.device, struct virtio_device, device);
        assert_int_equal(virtq_in_flight(&device->queues[RX]), 8 * 3);
        quiesce(f, true);
        quiesce(f, true);
        assert_int_equal(virtq_in_flight(&device->queues[RX]), 0);
        while (supply_one(f))
            pump(f);
        assert_int_equal(take_frames(f), 0);
        quiesce(f, false);
        supply_until(f, f->away.sequence);
        assert_int_equal(virtq_in_flight(&device->queues[RX]), 0);
    }
}

/* The guest resets while frames are kept, and destroys while it waits. */
static void test_reset(void **state) {
    struct fixture *f = *state;
    for (unsigned kind = 0; kind < 4; kind++) {
        start(f, kind & 1 ? PACKED : 0);
        post(f, 50, 0, 1526);
        take(f, RIG_DATA, 2 * PAGE_SIZE * AWAY_RING);
        for (unsigned i = 0; i < 5; i++)
            away_frame(&f->away, 800);
        frames_wait(f);
    }
    while (supply_one(f))
        pump(f);
    driver_write(&f->away.driver, VIRTIO_COMMON_STATUS, 0, 1);
    start(f, 0);
    post(f, 50, 0, 1526);
    take(f, RIG_DATA, 2 * PAGE_SIZE * AWAY_RING);
    away_frame(&f->away, 800);
    frames_wait(f);
}

/* Buffers that break the rules break the device, not the order of things. */
static void test_bad_buffers(void **state) {
    struct fixture *f = *state;
    start(f, 0);
    take(f, RIG_DATA, 2 * PAGE_SIZE * AWAY_RING);
    post(f, 1, 0, 100);
    away_frame(&f->away, 800); /* no merging: dropped */
    frames_wait(f);
    assert_int_equal(counters(f).dropped, 1);
    start(f, 0);
    post(f, 1, 0, VNET_HEADER);
    away_frame(&f->away, 800);
    frames_wait(f);
    assert_true(driver_status(&f->away.driver) & VIRTIO_NEEDS_RESET);
    start(f, 0);
    assert_true(away_post(&f->away, UINT64_C(0x7fff00000000), 1526));
    kick(f, RX);
    away_frame(&f->away, 800);
    frames_wait(f);
    assert_true(driver_status(&f->away.driver) & VIRTIO_NEEDS_RESET);
}

/* Everything at once, by chance. */
static void test_campaign(void **state) {
    struct fixture *f = *state;
    for (unsigned kind = 0; kind < 8; kind++) {
        bool merge = kind & 2;
        start(f, (kind & 1 ? PACKED : 0) | (merge ? MERGE : 0) | (kind & 4 ? EVENT : 0));
        for (unsigned step = 0; step < 4000; step++) {
            switch (random_below(f, 9)) {
            case 0:
                quiesce(f, true); /* as before pages go */
                take(f, RIG_DATA + (uint64_t)random_below(f, 2 * AWAY_RING) * PAGE_SIZE,
                     (uint64_t)(1 + random_below(f, 40)) * PAGE_SIZE);
                if (random_below(f, 4) == 0)
                    take(f, RIG_RINGS, 0x10000);
                quiesce(f, false);
                break;
            case 1:
            case 2: away_frame(&f->away, 60 + random_below(f, 1400)); break;
            case 3: frames_wait(f); break;
            case 4:
            case 5:
                post(f, 1 + random_below(f, 8), random_below(f, PAGE_SIZE),
                     merge ? 13 + random_below(f, 2000) : 1526);
                break;
            case 6: take_frames(f); break;
            case 7: supply_one(f); break;
            default: pump(f); break;
            }
        }
        while (f->away.expected < f->away.sequence) {
            post(f, AWAY_RING, 0, 1526);
            frames_wait(f);
            supply_one(f);
            pump(f);
            take_frames(f);
        }
        assert_int_equal(f->stood_still, 0);
    }
    assert_true(counters(f).frames > 0);
    assert_int_equal(counters(f).dropped, 0);
}

int main(void) {
#define DEVICE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        DEVICE(test_in_order),        DEVICE(test_back_to_normal), DEVICE(test_rings_away),
        DEVICE(test_both_directions), DEVICE(test_bounded),        DEVICE(test_rest),
        DEVICE(test_reset),           DEVICE(test_bad_buffers),    DEVICE(test_campaign),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
