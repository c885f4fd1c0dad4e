/* Queues: fetching by arbitration (4.13), completions and phases (4.6), interrupts (7.5). */
#include <stdlib.h>

#include "base/log.h"
#include "nvme/private.h"

enum { ADMIN = 0, PRIORITIES = 4, URGENT = 0 };
#define COALESCING_NS UINT64_C(100000) /* the unit of its time */

static const struct state_field sq_fields[] = {
    STATE_FIELD(struct nvme_sq, valid, 1), STATE_FIELD(struct nvme_sq, priority, 1),
    STATE_FIELD(struct nvme_sq, size, 1),  STATE_FIELD(struct nvme_sq, head, 1),
    STATE_FIELD(struct nvme_sq, tail, 1),  STATE_FIELD(struct nvme_sq, cq, 1),
    STATE_FIELD(struct nvme_sq, base, 1),
};
const struct state_table nvme_sq_state =
    STATE_TABLE("nvme submission queue", 1, struct nvme_sq, sq_fields);

static const struct state_field cq_fields[] = {
    STATE_FIELD(struct nvme_cq, valid, 1),  STATE_FIELD(struct nvme_cq, interrupts, 1),
    STATE_FIELD(struct nvme_cq, phase, 1),  STATE_FIELD(struct nvme_cq, size, 1),
    STATE_FIELD(struct nvme_cq, head, 1),   STATE_FIELD(struct nvme_cq, tail, 1),
    STATE_FIELD(struct nvme_cq, vector, 1), STATE_FIELD(struct nvme_cq, queues, 1),
    STATE_FIELD(struct nvme_cq, base, 1),
};
const struct state_table nvme_cq_state =
    STATE_TABLE("nvme completion queue", 1, struct nvme_cq, cq_fields);

unsigned nvme_room(const struct nvme_cq *cq) {
    unsigned taken = nvme_distance(cq->head, cq->tail, cq->size) + cq->promised;
    return taken < cq->size - 1u ? cq->size - 1u - taken : 0;
}

/* ---- Interrupts ---- */

void nvme_update_intx(struct nvme *nvme) {
    bool level = false;
    for (unsigned i = 0; i < NVME_QUEUES && !level; i++) {
        const struct nvme_cq *cq = &nvme->live.cqs[i];
        level = cq->valid && cq->interrupts && cq->head != cq->tail &&
                !(nvme->live.interrupt_mask & UINT32_C(1) << (cq->vector & 31));
    }
    level = level && !pci_msix_enabled(nvme->function);
    if (level == nvme->intx)
        return;
    nvme->intx = level;
    nvme->counters.interrupts += level;
    pci_intx_set(nvme->function, level);
}

/*
 * Interrupt coalescing (5.21.1.8): an I/O queue's interrupt waits for so many entries, or so long
 * since the first. It is recommended, not exact, so one timer is enough for all queues.
 */
static bool held_back(struct nvme *nvme, unsigned i) {
    const struct nvme_cq *cq = &nvme->live.cqs[i];
    unsigned threshold = nvme->live.coalescing & 0xff, time = nvme->live.coalescing >> 8 & 0xff;
    struct vm_clock *clock = nvme->device.platform->clock;
    if (i == ADMIN || time == 0 || cq->posted > threshold || nvme->live.no_coalescing[cq->vector] ||
        !nvme_running(nvme))
        return false;
    if (!nvme->signal_armed)
        vm_timer_arm(nvme->signal_timer, vm_clock_ns(clock) + time * COALESCING_NS);
    nvme->signal_armed = true;
    return true;
}

static void signal_queues(struct nvme *nvme, bool hold) {
    bool message = pci_msix_enabled(nvme->function), pin = nvme->intx;
    for (unsigned i = 0; i < NVME_QUEUES; i++) {
        struct nvme_cq *cq = &nvme->live.cqs[i];
        if (!cq->signal || (message && cq->interrupts && hold && held_back(nvme, i)))
            continue;
        cq->signal = false;
        cq->posted = 0;
        if (cq->interrupts && pci_msix_notify(nvme->function, cq->vector))
            nvme->counters.interrupts++;
        else
            pin = true;
    }
    if (pin)
        nvme_update_intx(nvme);
}

void nvme_signal(struct nvme *nvme) {
    signal_queues(nvme, true);
}

static void on_signal_timer(void *context) {
    struct nvme *nvme = context;
    lock_take(&nvme->device.lock);
    nvme->signal_armed = false;
    signal_queues(nvme, false);
    lock_release(&nvme->device.lock);
}

int nvme_signal_init(struct nvme *nvme, struct error *err) {
    const struct platform *platform = nvme->device.platform;
    return vm_timer_create(platform->clock, platform->loop, on_signal_timer, nvme,
                           &nvme->signal_timer, err);
}

void nvme_signal_reset(struct nvme *nvme) {
    nvme->signal_armed = false;
    vm_timer_cancel(nvme->signal_timer);
}

void nvme_signal_destroy(struct nvme *nvme) {
    vm_timer_free(nvme->signal_timer);
}

/* ---- Completions ---- */

bool nvme_post(struct nvme *nvme, unsigned sq, uint16_t id, uint16_t status, uint32_t result) {
    struct nvme_cq *cq = &nvme->live.cqs[nvme->live.sqs[sq].cq];
    uint8_t entry[NVME_CQE] = {0};
    uint64_t address = cq->base + (uint64_t)cq->tail * NVME_CQE;
    if (nvme_room(cq) == 0)
        return false;
    store_le32(entry, result);
    store_le16(entry + 8, nvme->live.sqs[sq].head);
    store_le16(entry + 10, (uint16_t)sq);
    store_le16(entry + 12, id);
    store_le16(entry + 14, (uint16_t)(status << 1 | cq->phase));
    cq->tail++;
    if (cq->tail == cq->size) {
        cq->tail = 0;
        cq->phase = !cq->phase;
    }
    cq->signal = true;
    cq->posted++;
    nvme_journal_post(nvme, address, entry);
    /* The half with the phase bit last: the driver may be looking. */
    if (dma_write(nvme->dma, address, entry, 8) != 0 ||
        dma_write(nvme->dma, address + 8, entry + 8, 8) != 0)
        nvme_fatal(nvme, "a completion queue that is not in memory");
    return true;
}

static struct nvme_command *take_command(struct nvme *nvme) {
    struct nvme_command *command = nvme->free;
    if (command != NULL) {
        nvme->free = command->next;
        return command;
    }
    command = calloc(1, sizeof *command);
    if (command != NULL)
        nvme->allocated++;
    return command;
}

static void give_command(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    nvme_data_free(command);
    free(command->bounce);
    free(command->ranges);
    command->bounce = NULL;
    command->ranges = NULL;
    command->next = nvme->free;
    nvme->free = command;
}

void nvme_free_commands(struct nvme *nvme) {
    while (nvme->free != NULL) {
        struct nvme_command *command = nvme->free;
        nvme->free = command->next;
        free(command);
    }
}

void nvme_withdraw(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    struct nvme_sq *sq = &nvme->live.sqs[command->sq];
    sq->in_flight--;
    nvme->live.cqs[command->cq].promised--;
    nvme->in_flight--;
    nvme_journal_ended(command);
    give_command(command);
}

void nvme_complete(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    unsigned queue = command->sq;
    uint16_t id = command->id, status = command->status;
    uint32_t result = command->result;
    if (status != NVME_OK && !nvme->resetting)
        status |= nvme_log_failure(command);
    nvme_withdraw(command);
    nvme->counters.commands += queue != ADMIN;
    if (!nvme->resetting)
        nvme_post(nvme, queue, id, status, result);
    if (nvme->live.sqs[queue].in_flight == 0 && nvme->live.sqs[queue].deletion != NULL)
        nvme_delete_ready(nvme, queue);
    nvme_drained(nvme);
}

/* ---- Arbitration: 4.13 ---- */

static bool waits(const struct nvme *nvme, unsigned i) {
    const struct nvme_sq *sq = &nvme->live.sqs[i];
    return sq->valid && sq->head != sq->tail && sq->deletion == NULL &&
           nvme_room(&nvme->live.cqs[sq->cq]) > 0;
}

/* The next I/O queue after the one served last, of one priority or (-1) of any; 0: none. */
static unsigned in_turn(const struct nvme *nvme, int priority) {
    for (unsigned n = 1; n <= NVME_IO_QUEUES; n++) {
        unsigned i = (nvme->last_queue + n) % NVME_IO_QUEUES + 1;
        if ((priority < 0 || nvme->live.sqs[i].priority == priority) && waits(nvme, i))
            return i;
    }
    return 0;
}

static bool weighted(const struct nvme *nvme) {
    return (nvme->cc >> 11 & 7) == 1;
}

/* Weighted round robin with urgent class: 4.13.2. Weights are commands a round. */
static unsigned weighted_turn(struct nvme *nvme) {
    unsigned queue = in_turn(nvme, URGENT);
    for (unsigned round = 0; round < 2 && queue == 0; round++) {
        for (int priority = 1; priority < PRIORITIES && queue == 0; priority++) {
            if (nvme->credits[priority] > 0)
                queue = in_turn(nvme, priority);
            if (queue != 0)
                nvme->credits[priority]--;
        }
        if (queue == 0) /* all have had theirs: the next round */
            for (unsigned priority = 1; priority < PRIORITIES; priority++) {
                unsigned weight = nvme->live.arbitration >> (32 - 8 * priority) & 0xff;
                nvme->credits[priority] = (uint8_t)(weight < 0xff ? weight + 1 : weight);
            }
    }
    return queue;
}

/* The queue whose command is fetched next; the admin queue first. NVME_QUEUES: none. */
static unsigned choose(struct nvme *nvme) {
    if (waits(nvme, ADMIN))
        return ADMIN;
    unsigned current = nvme->last_queue + 1u;
    if (nvme->burst > 0 && current < NVME_QUEUES && waits(nvme, current)) {
        nvme->burst--;
        return current;
    }
    unsigned queue = weighted(nvme) ? weighted_turn(nvme) : in_turn(nvme, -1);
    if (queue == 0)
        return NVME_QUEUES;
    unsigned burst = nvme->live.arbitration & 7;
    nvme->last_queue = (uint16_t)(queue - 1);
    nvme->burst = (uint8_t)(weighted(nvme) ? 0 : burst == 7 ? 127 : (1u << burst) - 1);
    return queue;
}

/* ---- Fetching ---- */

static void start(struct nvme_command *command, unsigned queue) {
    command->status = NVME_OK;
    command->result = 0;
    command->step = NULL;
    command->settled = NULL;
    command->ended = NULL;
    command->block.may_unmap = false;
    command->flush_after = false;
    /* Fused operations (4.2, FUSE) are not offered. */
    int status = command->entry[1] & 3 ? NVME_INVALID_FIELD | NVME_DO_NOT_RETRY
                 : queue == ADMIN      ? nvme_admin(command)
                                       : nvme_io(command);
    if (status == NVME_PENDING)
        return;
    command->status = (uint16_t)status;
    nvme_complete(command);
}

/* A command is in flight from now on. */
static void count_in(struct nvme_command *command, unsigned queue) {
    struct nvme *nvme = command->nvme;
    struct nvme_sq *sq = &nvme->live.sqs[queue];
    command->sq = (uint16_t)queue;
    command->cq = sq->cq;
    command->id = load_le16(command->entry + 2);
    sq->in_flight++;
    nvme->live.cqs[sq->cq].promised++;
    nvme->in_flight++;
}

bool nvme_repeat(struct nvme *nvme, unsigned queue, const uint8_t *entry, uint16_t slot) {
    struct nvme_command *command = take_command(nvme);
    if (command == NULL)
        return false;
    command->nvme = nvme;
    command->slot = slot;
    memcpy(command->entry, entry, NVME_SQE);
    count_in(command, queue);
    start(command, queue);
    return true;
}

/* Takes one command off the queue. False: no memory for it now. */
static bool fetch(struct nvme *nvme, unsigned queue) {
    struct nvme_sq *sq = &nvme->live.sqs[queue];
    struct nvme_command *command = take_command(nvme);
    if (command == NULL)
        return false;
    command->nvme = nvme;
    if (dma_read(nvme->dma, sq->base + (uint64_t)sq->head * NVME_SQE, command->entry, NVME_SQE)) {
        give_command(command);
        nvme_fatal(nvme, "a submission queue that is not in memory");
        return false;
    }
    sq->head = (uint16_t)(sq->head + 1 == sq->size ? 0 : sq->head + 1);
    count_in(command, queue);
    nvme->counters.fetched++;
    nvme_journal_fetched(command);
    start(command, queue);
    return true;
}

bool nvme_turn(struct nvme *nvme) {
    for (unsigned n = 0; n < NVME_TURN_MAX; n++) {
        unsigned queue =
            nvme_running(nvme) && nvme->in_flight < NVME_IN_FLIGHT_MAX ? choose(nvme) : NVME_QUEUES;
        if (queue == NVME_QUEUES || !fetch(nvme, queue))
            return false;
    }
    return true;
}
