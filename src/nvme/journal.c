/*
 * What a successor needs to go on where this process ended, at whatever instruction: kept in
 * memory that outlives the process (a mapped file, nvme.h). Two records of all state that matters;
 * one store changes which of them is valid, so that there is always one, complete. Beside them the
 * commands in flight, a slot each, whose first use is committed with the queue's head that moves
 * past the command.
 *
 * A completion is committed before the guest can see it, entry included: the successor writes the
 * last entry again, which changes nothing if it was there. So a command has either been completed,
 * for good, or it is executed again, from its copy. That is safe: until its completion the driver
 * leaves the command's memory and blocks alone, and executing a read, write, flush, discard or
 * compare twice is executing it once. What the dead process had given to the kernel has ended when
 * the successor gets the disk's lock.
 *
 * A process that is killed loses no store it has made, so the compiler's order is all that counts.
 */
#include "base/clock.h"
#include "nvme/private.h"

enum { BUSY_WORDS = NVME_IN_FLIGHT_MAX / 64, FORGOTTEN = 0xffff };

struct record {
    uint32_t cc, csts, aqa;
    bool resetting, shutting_down, subsystem_reset;
    uint64_t asq, acq;
    struct nvme_live live;
    uint64_t busy[BUSY_WORDS];
    struct nvme_posted posted;
    uint64_t epoch_ns; /* the host's time when the controller's clock was 0 */
};

struct slot {
    uint16_t sq;
    uint8_t entry[NVME_SQE];
};

struct nvme_journal {
    _Atomic(uint32_t) current; /* 0: nothing is kept; n: records[n - 1] */
    struct record records[2];
    struct slot slots[NVME_IN_FLIGHT_MAX];
};

size_t nvme_journal_size(void) {
    return sizeof(struct nvme_journal);
}

static uint64_t epoch(const struct nvme *nvme) {
    uint64_t host_ns;
    uint64_t ns = vm_clock_both_ns(nvme->device.platform->clock, &host_ns);
    return host_ns - ns;
}

void nvme_journal_commit(struct nvme *nvme) {
    struct nvme_journal *journal = nvme->journal;
    if (journal == NULL)
        return;
    uint32_t current = atomic_load_explicit(&journal->current, memory_order_relaxed);
    struct record *record = &journal->records[current == 1];
    record->cc = nvme->cc;
    record->csts = nvme->csts;
    record->aqa = nvme->aqa;
    record->asq = nvme->asq;
    record->acq = nvme->acq;
    record->resetting = nvme->resetting;
    record->shutting_down = nvme->shutting_down;
    record->subsystem_reset = nvme->subsystem_reset;
    record->live = nvme->live;
    memcpy(record->busy, nvme->busy, sizeof record->busy);
    record->posted = nvme->posted;
    record->epoch_ns = nvme->epoch_ns;
    atomic_store_explicit(&journal->current, current == 1 ? 2 : 1, memory_order_release);
}

void nvme_journal_post(struct nvme *nvme, uint64_t address, const uint8_t *entry) {
    nvme->posted.there = true;
    nvme->posted.address = address;
    memcpy(nvme->posted.entry, entry, sizeof nvme->posted.entry);
    nvme_journal_commit(nvme);
}

void nvme_journal_fetched(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    if (nvme->journal == NULL)
        return;
    /* There is a free one: as many commands are in flight at most. */
    unsigned word = 0;
    while (nvme->busy[word] == UINT64_MAX)
        word++;
    command->slot = (uint16_t)(word * 64 + (unsigned)__builtin_ctzll(~nvme->busy[word]));
    struct slot *slot = &nvme->journal->slots[command->slot];
    slot->sq = command->sq;
    memcpy(slot->entry, command->entry, sizeof slot->entry);
    nvme->busy[word] |= UINT64_C(1) << command->slot % 64;
    nvme_journal_commit(nvme);
}

void nvme_journal_ended(const struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    if (nvme->journal != NULL)
        nvme->busy[command->slot / 64] &= ~(UINT64_C(1) << command->slot % 64);
}

/* ---- The successor ---- */

/* What is the dead process's own is forgotten: its counts, its pointers, what it told the driver.
 */
static void forget(struct nvme_live *live) {
    for (unsigned i = 0; i < NVME_QUEUES; i++) {
        live->sqs[i].in_flight = 0;
        live->sqs[i].deletion = NULL;
        live->cqs[i].promised = 0;
        live->sqs[i].told = live->cqs[i].told = FORGOTTEN;
        live->cqs[i].signal = live->cqs[i].valid;
    }
}

void nvme_journal_open(struct nvme *nvme, struct nvme_journal *journal) {
    nvme->journal = journal;
    nvme->epoch_ns = epoch(nvme);
    if (journal == NULL)
        return;
    uint32_t current = atomic_load(&journal->current);
    if (current == 0 || current > 2)
        return;
    const struct record *record = &journal->records[current - 1];
    nvme->cc = record->cc;
    nvme->csts = record->csts;
    nvme->aqa = record->aqa;
    nvme->asq = record->asq;
    nvme->acq = record->acq;
    nvme->resetting = record->resetting;
    nvme->shutting_down = record->shutting_down;
    nvme->subsystem_reset = record->subsystem_reset;
    nvme->live = record->live;
    nvme->live.timestamp_set_ns += record->epoch_ns - nvme->epoch_ns;
    memcpy(nvme->busy, record->busy, sizeof nvme->busy);
    nvme->posted = record->posted;
    forget(&nvme->live);
    nvme->paused = nvme->inherited = true;
}

/* Executes again what had no completion; I/O first, which the deletion of its queue waits for. */
static void repeat(struct nvme *nvme, bool admin) {
    uint64_t busy[BUSY_WORDS];
    memcpy(busy, nvme->busy, sizeof busy);
    for (unsigned i = 0; i < NVME_IN_FLIGHT_MAX; i++) {
        const struct slot *slot = &nvme->journal->slots[i];
        if (!(busy[i / 64] >> i % 64 & 1) || (slot->sq == 0) != admin)
            continue;
        if (slot->sq >= NVME_QUEUES || !nvme->live.sqs[slot->sq].valid ||
            !nvme_repeat(nvme, slot->sq, slot->entry, (uint16_t)i))
            nvme->busy[i / 64] &= ~(UINT64_C(1) << i % 64);
    }
}

static void post_again(struct nvme *nvme) {
    const struct nvme_posted *posted = &nvme->posted;
    if (posted->there && (dma_write(nvme->dma, posted->address, posted->entry, 8) != 0 ||
                          dma_write(nvme->dma, posted->address + 8, posted->entry + 8, 8) != 0))
        nvme_fatal(nvme, "a completion queue that is not in memory");
}

void nvme_journal_resume(struct nvme *nvme) {
    if (!nvme->inherited)
        return;
    nvme->inherited = false;
    if (nvme->resetting || nvme->csts & NVME_CSTS_CFS) {
        memset(nvme->busy, 0, sizeof nvme->busy);
    } else {
        post_again(nvme);
        repeat(nvme, false);
        repeat(nvme, true);
    }
    nvme_drained(nvme);
}
