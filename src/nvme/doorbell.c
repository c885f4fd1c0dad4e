/*
 * Doorbells: registers (3.1.24, 3.1.25) and, for I/O queues, entries in memory (5.7, 7.13): there
 * the driver writes each new tail and head to its buffer, and rings the register only when it
 * passes the value that we keep in the event index.
 *
 * Who serves: a doorbell's register is served on the vCPU's thread, which is the quickest where
 * the driver waits for each command. Where it keeps several in flight, that exit for each is dear.
 * So when doorbells come fast, polling is tried: the event index is kept behind the tail, so that
 * none is rung, and the loop looks at the buffer from time to time, so that it finds a few commands
 * each time. It goes on as long as commands come about as fast as they did by doorbells. A trial
 * that fails doubles the number of doorbells until the next one.
 */
#include <stdatomic.h>

#include "base/log.h"
#include "nvme/private.h"

enum {
    INTERVAL_FIRST_NS = 60000, /* between looks */
    INTERVAL_MIN_NS = 20000,
    INTERVAL_MAX_NS = 250000,
    FEW = 4, /* commands of a look that make the next one come later, and sooner */
    MANY = 12,
    IDLE_NS = 2000000, /* without a command ends polling */
    FIRST = 4,         /* looks after which a trial ends that found one command each time */
    WINDOW = 16,       /* looks that found something, over which the rate is measured */
    PATIENCE_MIN = 32, /* doorbells that begin a trial, if they come within BUSY_NS each */
    PATIENCE_MAX = 1 << 12,
    BUSY_NS = 500000,
    ROUNDS = 4, /* looks again for what came while we served */
};

/* ---- Buffers in memory ---- */

static bool shared(const struct nvme *nvme, unsigned queue) {
    return queue != 0 && nvme->live.shadow != 0;
}

/* Reads doorbell n from the buffer. -1: not there. */
static int64_t read_shadow(struct nvme *nvme, unsigned n) {
    uint8_t bytes[4];
    if (dma_read(nvme->dma, nvme->live.shadow + 4u * n, bytes, sizeof bytes) != 0) {
        nvme_fatal(nvme, "doorbell buffers that are not in memory");
        return -1;
    }
    return load_le32(bytes);
}

static void write_buffer(struct nvme *nvme, uint64_t buffer, unsigned n, uint16_t value) {
    uint8_t bytes[4];
    store_le32(bytes, value);
    if (dma_write(nvme->dma, buffer + 4u * n, bytes, sizeof bytes) != 0)
        nvme_fatal(nvme, "doorbell buffers that are not in memory");
}

static void bad_doorbell(struct nvme *nvme, unsigned n, unsigned information) {
    log_guest("%s: doorbell %u: no such queue, or beyond its end", nvme->device.name, n);
    nvme_event(nvme, NVME_EVENT_ERROR, information, NVME_LOG_ERROR);
}

/* Takes over a head or tail that the driver has told; false when it cannot be. */
static bool take_over(struct nvme *nvme, unsigned n, uint32_t value) {
    struct nvme_sq *sq = &nvme->live.sqs[n / 2];
    struct nvme_cq *cq = &nvme->live.cqs[n / 2];
    if (!(n & 1)) {
        if (value >= sq->size)
            return false;
        sq->tail = (uint16_t)value;
        return true;
    }
    if (value >= cq->size || nvme_distance(cq->head, (uint16_t)value, cq->size) >
                                 nvme_distance(cq->head, cq->tail, cq->size))
        return false;
    cq->head = (uint16_t)value;
    return true;
}

/* True: the driver has moved it. */
static bool look_at(struct nvme *nvme, unsigned n, uint16_t known) {
    int64_t value = read_shadow(nvme, n);
    if (value < 0 || value == known)
        return false;
    bool possible = take_over(nvme, n, (uint32_t)value);
    if (!possible)
        bad_doorbell(nvme, n, NVME_ERROR_DOORBELL_VALUE);
    return possible;
}

/* Learns from the buffer how far the driver is. True: further than was known. */
static bool look(struct nvme *nvme) {
    bool moved = false;
    for (unsigned i = 1; i < NVME_QUEUES && nvme->live.shadow != 0; i++) {
        if (nvme->live.sqs[i].valid)
            moved |= look_at(nvme, 2 * i, nvme->live.sqs[i].tail);
        if (nvme->live.cqs[i].valid)
            moved |= look_at(nvme, 2 * i + 1, nvme->live.cqs[i].head);
    }
    return moved;
}

static uint16_t before(uint16_t index, uint16_t size) {
    return (uint16_t)(index == 0 ? size - 1 : index - 1);
}

static void tell(struct nvme *nvme, unsigned n, uint16_t *told, uint16_t event) {
    if (*told == event)
        return;
    *told = event;
    write_buffer(nvme, nvme->live.event, n, event);
}

/*
 * Sets the event indices. The driver rings when it moves past the index: the index at its position
 * asks for the next move, the one before it for none until it has gone round. True when it has
 * moved meanwhile, without ringing.
 */
static bool arm(struct nvme *nvme) {
    bool pin = !pci_msix_enabled(nvme->function);
    for (unsigned i = 1; i < NVME_QUEUES && nvme->live.shadow != 0; i++) {
        struct nvme_sq *sq = &nvme->live.sqs[i];
        struct nvme_cq *cq = &nvme->live.cqs[i];
        if (sq->valid)
            tell(nvme, 2 * i, &sq->told, nvme->polling.on ? before(sq->tail, sq->size) : sq->tail);
        /* A full queue's head is waited for, and so is one that decides a pin's level. */
        if (cq->valid)
            tell(nvme, 2 * i + 1, &cq->told,
                 pin || nvme_room(cq) == 0 ? cq->head : before(cq->head, cq->size));
    }
    atomic_thread_fence(memory_order_seq_cst);
    return look(nvme);
}

/* What a queue's entries in the buffers begin with. */
static void share(struct nvme *nvme, unsigned n) {
    struct nvme_sq *sq = &nvme->live.sqs[n / 2];
    struct nvme_cq *cq = &nvme->live.cqs[n / 2];
    uint16_t value = n & 1 ? cq->head : sq->tail;
    *(n & 1 ? &cq->told : &sq->told) = value;
    write_buffer(nvme, nvme->live.shadow, n, value);
    write_buffer(nvme, nvme->live.event, n, value);
}

void nvme_share_doorbells(struct nvme *nvme) {
    for (unsigned n = 2; n < 2 * NVME_QUEUES && nvme->live.shadow != 0; n++)
        if (n & 1 ? nvme->live.cqs[n / 2].valid : nvme->live.sqs[n / 2].valid)
            share(nvme, n);
}

void nvme_queue_created(struct nvme *nvme, unsigned n) {
    if (shared(nvme, n / 2))
        share(nvme, n);
}

/* ---- Serving ---- */

static void continue_turn(void *context) {
    struct nvme *nvme = context;
    lock_take(&nvme->device.lock);
    nvme->turn_posted = false;
    nvme_serve(nvme);
    lock_release(&nvme->device.lock);
}

void nvme_serve_later(struct nvme *nvme) {
    if (!nvme->turn_posted)
        nvme->turn_posted = loop_post(nvme->device.platform->loop, continue_turn, nvme) == 0;
}

void nvme_serve(struct nvme *nvme) {
    bool more = true;
    for (unsigned round = 0; round < ROUNDS && more; round++) {
        if (!nvme_running(nvme))
            break;
        look(nvme);
        more = nvme_turn(nvme);
        if (more)
            break;
        more = nvme_running(nvme) && arm(nvme);
    }
    if (more && nvme_running(nvme))
        nvme_serve_later(nvme);
    nvme_signal(nvme);
}

/* ---- Polling ---- */

static uint64_t now(const struct nvme *nvme) {
    return vm_clock_ns(nvme->device.platform->clock);
}

/* direct_ns: how long a command took by doorbells. */
static void begin_polling(struct nvme *nvme, uint64_t direct_ns) {
    struct nvme_polling *polling = &nvme->polling;
    polling->on = true;
    polling->proven = false;
    polling->direct_ns = direct_ns;
    polling->interval_ns = INTERVAL_FIRST_NS;
    polling->looks = polling->found = 0;
    polling->since_ns = polling->busy_ns = now(nvme);
    vm_timer_arm(nvme->poll_timer, now(nvme) + polling->interval_ns);
}

static void end_polling(struct nvme *nvme) {
    struct nvme_polling *polling = &nvme->polling;
    unsigned doubled = polling->patience < PATIENCE_MAX ? polling->patience * 2 : PATIENCE_MAX;
    polling->on = false;
    polling->patience = polling->proven ? PATIENCE_MIN : doubled;
    polling->rung = 0;
    nvme_serve(nvme); /* the event indices ask for doorbells again */
}

/* A doorbell of an I/O queue was rung: perhaps often enough to look on our own. */
static void consider_polling(struct nvme *nvme) {
    struct nvme_polling *polling = &nvme->polling;
    if (polling->on || nvme->live.shadow == 0)
        return;
    if (polling->rung++ == 0)
        polling->since_ns = now(nvme);
    if (polling->rung <= polling->patience)
        return;
    uint64_t each_ns = (now(nvme) - polling->since_ns) / polling->rung;
    polling->rung = 0;
    if (each_ns <= BUSY_NS)
        begin_polling(nvme, each_ns);
}

/* After a look that found so many commands. True: polling goes on. */
static bool pays(struct nvme *nvme, unsigned found) {
    struct nvme_polling *polling = &nvme->polling;
    uint64_t time = now(nvme), interval = polling->interval_ns;
    if (found == 0)
        return time - polling->busy_ns < IDLE_NS;
    if (found < FEW)
        polling->interval_ns =
            interval * 3 / 2 < INTERVAL_MAX_NS ? interval * 3 / 2 : INTERVAL_MAX_NS;
    else if (found > MANY)
        polling->interval_ns =
            interval * 2 / 3 > INTERVAL_MIN_NS ? interval * 2 / 3 : INTERVAL_MIN_NS;
    polling->busy_ns = time;
    polling->found += found;
    if (++polling->looks < WINDOW)
        return polling->proven || polling->looks != FIRST || polling->found > FIRST;
    uint64_t each_ns = (time - polling->since_ns) / polling->found;
    polling->proven = each_ns < polling->direct_ns * 9 / 8;
    polling->looks = polling->found = 0;
    polling->since_ns = time;
    return polling->proven;
}

static void on_poll(void *context) {
    struct nvme *nvme = context;
    lock_take(&nvme->device.lock);
    if (nvme->polling.on) {
        uint64_t before_turn = nvme->counters.fetched;
        nvme->counters.polls++;
        nvme_serve(nvme);
        unsigned found = (unsigned)(nvme->counters.fetched - before_turn);
        if (pays(nvme, found) && nvme->live.shadow != 0 && nvme_running(nvme))
            vm_timer_arm(nvme->poll_timer, now(nvme) + nvme->polling.interval_ns);
        else
            end_polling(nvme);
    }
    lock_release(&nvme->device.lock);
}

int nvme_doorbells_init(struct nvme *nvme, struct error *err) {
    const struct platform *platform = nvme->device.platform;
    nvme->polling.patience = PATIENCE_MIN;
    return vm_timer_create(platform->clock, platform->loop, on_poll, nvme, &nvme->poll_timer, err);
}

void nvme_doorbells_reset(struct nvme *nvme) {
    nvme->polling = (struct nvme_polling){.patience = PATIENCE_MIN};
    vm_timer_cancel(nvme->poll_timer);
}

void nvme_doorbells_destroy(struct nvme *nvme) {
    vm_timer_free(nvme->poll_timer);
}

/* ---- Registers ---- */

void nvme_doorbell(struct nvme *nvme, unsigned n, uint32_t value) {
    unsigned queue = n / 2;
    struct nvme_cq *cq = &nvme->live.cqs[queue];
    bool completion = n & 1, was_full = completion && nvme_room(cq) == 0;
    if (!(completion ? cq->valid : nvme->live.sqs[queue].valid)) {
        bad_doorbell(nvme, n, NVME_ERROR_DOORBELL_REGISTER);
        return;
    }
    bool late = nvme->late && shared(nvme, queue);
    if (late)
        look(nvme);
    else if (!take_over(nvme, n, value)) {
        bad_doorbell(nvme, n, NVME_ERROR_DOORBELL_VALUE);
        return;
    }
    /* The driver is in the middle of this write: its entry in the buffer is ours to set, in case
     * that it rings without having written there. */
    if (!late && shared(nvme, queue))
        write_buffer(nvme, nvme->live.shadow, n, (uint16_t)value);
    if (completion) {
        nvme_update_intx(nvme);
        if (!was_full)
            return;
        nvme_deliver_events(nvme);
    } else if (queue != 0) {
        consider_polling(nvme);
    }
    nvme_serve(nvme);
}
