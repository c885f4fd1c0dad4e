/*
 * What memory tells a vCPU's translations (listeners), what they tell memory
 * of written code, and their life.
 */
#include <stdlib.h>

#include "base/log.h"
#include "cpu/soft/block.h"
#include "cpu/soft/others.h"
#include "cpu/soft/run.h"

/* ---- Watched code ---- */

/* Which MMU the present thread is in, while it tells listeners of a change of its own. */
static _Thread_local struct mmu *mmu_here;

void mmu_want(struct mmu *mmu, unsigned what) {
    atomic_fetch_or(&mmu->wanted, what);
    if (mmu->cpu->several)
        soft_request(mmu->cpu, REQUEST_FLUSH); /* others wait for it, even if it waits in HLT */
    else
        atomic_fetch_or(&mmu->cpu->request, REQUEST_FLUSH);
}

void mmu_code_written(struct soft_cpu *cpu, uint64_t gpa, size_t length) {
    struct mmu *before = mmu_here;
    mmu_here = mmu_of(cpu);
    memory_code_written(cpu->memory, gpa, length);
    mmu_here = before;
}

void mmu_io_write(struct soft_cpu *cpu, uint64_t gpa, uint64_t value, unsigned size) {
    struct mmu *before = mmu_here;
    mmu_here = mmu_of(cpu);
    memory_io_write(cpu->memory, gpa, value, size);
    mmu_here = before;
}

void mmu_port_write(struct soft_cpu *cpu, uint16_t port, uint32_t value, unsigned size) {
    struct mmu *before = mmu_here;
    mmu_here = mmu_of(cpu);
    port_write(cpu->vcpu.engine->config.ports, port, value, size);
    mmu_here = before;
}

void mmu_watch_code(struct soft_cpu *cpu, uint64_t gpa, const void *host_page) {
    others_watch(cpu, gpa);
    level1_drop_host_writes(cpu, host_page);
}

/* ---- What memory tells ---- */

static void listen_changed(void *context, const struct view *view, uint64_t gpa, uint64_t size) {
    struct mmu *mmu = context;
    if (mmu == mmu_here)
        mmu_flush_all(mmu->cpu);
    else
        mmu_want(mmu, WANT_FLUSH);
}

/* A change of a page that is in the queue already makes that entry longer. True: done. */
static bool queue_merge(struct mmu *mmu, uint64_t gpa, size_t length) {
    for (unsigned i = 0; i < mmu->change_count; i++) {
        struct code_change *change = &mmu->changes[i];
        if ((change->gpa ^ gpa) & PAGE_MASK)
            continue;
        uint64_t end = change->gpa + change->length;
        uint64_t first = gpa < change->gpa ? gpa : change->gpa;
        change->length = (size_t)((end > gpa + length ? end : gpa + length) - first);
        change->gpa = first;
        return true;
    }
    return false;
}

static void queue_change(struct mmu *mmu, uint64_t gpa, size_t length) {
    lock_take(&mmu->lock);
    if (!queue_merge(mmu, gpa, length)) {
        if (mmu->change_count < MMU_CODE_QUEUE)
            mmu->changes[mmu->change_count++] = (struct code_change){gpa, length};
        else
            mmu->changes_lost = true;
    }
    lock_release(&mmu->lock);
    mmu_want(mmu, WANT_CODE);
}

/* The bytes have changed, and all that follows is for those who had read the old ones. */
static void listen_code_written(void *context, uint64_t gpa, size_t length) {
    struct mmu *mmu = context;
    struct soft_cpu *cpu = mmu->cpu;
    if (mmu == mmu_here)
        block_invalidate(cpu, gpa, length);
    else if (memory_is_watched_by(cpu->memory, gpa, cpu->vcpu.id) &&
             !others_forget_code(cpu, gpa, length))
        queue_change(mmu, gpa, length);
}

static void listen_dirty_cleared(void *context) {
    mmu_want(context, WANT_DROP_WRITES);
}

static struct memory_listener listener_of(struct mmu *mmu) {
    return (struct memory_listener){
        .changed = listen_changed,
        .code_written = listen_code_written,
        .dirty_cleared = listen_dirty_cleared,
        .context = mmu,
    };
}

static void serve_code_changes(struct mmu *mmu) {
    struct code_change changes[MMU_CODE_QUEUE];
    lock_take(&mmu->lock);
    unsigned count = mmu->change_count;
    bool lost = mmu->changes_lost;
    memcpy(changes, mmu->changes, count * sizeof changes[0]);
    mmu->change_count = 0;
    mmu->changes_lost = false;
    lock_release(&mmu->lock);
    if (lost)
        block_invalidate_all(mmu->cpu);
    else
        for (unsigned i = 0; i < count; i++)
            block_invalidate(mmu->cpu, changes[i].gpa, changes[i].length);
}

void mmu_serve_requests(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    atomic_fetch_and(&cpu->request, ~(unsigned)REQUEST_FLUSH);
    unsigned wanted = atomic_exchange(&mmu->wanted, 0);
    if (wanted & WANT_REST)
        others_let_alone(cpu);
    if (wanted & WANT_DROP_CODE)
        others_drop(cpu);
    if (wanted & WANT_SETTLE)
        others_settle(cpu);
    /* Behind both: they may have queued changes, and whoever has answered others_settle has. */
    if (wanted & (WANT_CODE | WANT_DROP_CODE | WANT_SETTLE))
        serve_code_changes(mmu);
    if (wanted & WANT_DROP_WRITES)
        mmu_drop_writes(cpu);
    if (wanted & WANT_FLUSH)
        mmu_flush_all(cpu);
    /* All blocks are to go: before the next one runs. */
    if (atomic_load(&cpu->request) & REQUEST_BLOCKS)
        block_safe_point(cpu);
}

void mmu_settle_writes(struct soft_cpu *cpu) {
    if (atomic_fetch_and(&mmu_of(cpu)->wanted, ~(unsigned)WANT_DROP_WRITES) & WANT_DROP_WRITES)
        mmu_drop_writes(cpu);
}

/* ---- Life ---- */

static void init_address_bits(struct soft_cpu *cpu) {
    unsigned wanted = cpu->vcpu.engine != NULL ? cpu->vcpu.engine->config.address_bits : 0;
    cpu->address_bits =
        (uint8_t)(wanted != 0 && wanted < ADDRESS_BITS_MOST ? wanted : ADDRESS_BITS_MOST);
    cpu->pte_beyond = ((UINT64_C(1) << 52) - 1) & ~((UINT64_C(1) << cpu->address_bits) - 1);
}

int mmu_init(struct soft_cpu *cpu, struct error *err) {
    struct mmu *mmu = calloc(1, sizeof *mmu);
    if (mmu == NULL)
        return error_set_errno(err, -ENOMEM, "no memory for a vCPU's translations");
    init_address_bits(cpu);
    mmu->cpu = cpu;
    cpu->mmu = mmu;
    cpu->tlb = cpu->tlbs[TLB_SUPERVISOR];
    lock_init(&mmu->lock, LOCK_VCPU, "soft mmu");
    pthread_mutex_init(&mmu->busy, NULL);
    mmu_restart(cpu);
    mmu_flush_all(cpu);
    struct memory_listener listener = listener_of(mmu);
    int r = memory_add_listener(cpu->memory, &listener);
    if (r < 0) {
        pthread_mutex_destroy(&mmu->busy);
        lock_destroy(&mmu->lock);
        free(mmu);
        cpu->mmu = NULL;
        return error_set_errno(err, r, "cannot watch guest memory");
    }
    others_join(cpu);
    return 0;
}

void mmu_destroy(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    if (mmu == NULL)
        return;
    others_part(cpu);
    struct memory_listener listener = listener_of(mmu);
    memory_remove_listener(cpu->memory, &listener);
    pthread_mutex_destroy(&mmu->busy);
    lock_destroy(&mmu->lock);
    free(mmu);
    cpu->mmu = NULL;
}
