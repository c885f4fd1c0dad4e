/*
 * What memory tells a vCPU's translations (listeners), what they tell memory
 * of written code, and their life.
 */
#include <stdlib.h>

#include "base/log.h"
#include "cpu/soft/mmu.h"

/* ---- Watched code ---- */

/* Which MMU the present thread is in, while it tells listeners of a change of its own. */
static _Thread_local struct mmu *mmu_here;

static pthread_mutex_t all_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct mmu *all_mmus;

static void want(struct mmu *mmu, unsigned what) {
    atomic_fetch_or(&mmu->wanted, what);
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

void mmu_watch_code(struct soft_cpu *cpu, const void *host_page) {
    level1_drop_host_writes(cpu, host_page);
    if (cpu->vcpu.engine == NULL || cpu->vcpu.engine->config.vcpus <= 1)
        return;
    /* Other processors drop theirs at their next block's end. What they wrote in between they
     * report then, as if written just now: cross-modified code needs their synchronisation
     * anyway. */
    pthread_mutex_lock(&all_mutex);
    for (struct mmu *mmu = all_mmus; mmu != NULL; mmu = mmu->next)
        if (mmu->cpu != cpu && mmu->cpu->memory == cpu->memory)
            want(mmu, WANT_DROP_WRITES);
    pthread_mutex_unlock(&all_mutex);
}

/* ---- What memory tells ---- */

static void listen_changed(void *context, const struct view *view, uint64_t gpa, uint64_t size) {
    struct mmu *mmu = context;
    if (mmu == mmu_here)
        mmu_flush_all(mmu->cpu);
    else
        want(mmu, WANT_FLUSH);
}

static void listen_code_written(void *context, uint64_t gpa, size_t length) {
    struct mmu *mmu = context;
    if (mmu == mmu_here) {
        block_invalidate(mmu->cpu, gpa, length);
        return;
    }
    lock_take(&mmu->lock);
    if (mmu->change_count < MMU_CODE_QUEUE)
        mmu->changes[mmu->change_count++] = (struct code_change){gpa, length};
    else
        mmu->changes_lost = true;
    lock_release(&mmu->lock);
    want(mmu, WANT_CODE);
}

static void listen_dirty_cleared(void *context) {
    want(context, WANT_DROP_WRITES);
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

/* Pages that others watch as code by now may have been written through entries of ours. */
static void report_code_behind_writes(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    for (unsigned i = 0; i < MMU_PAGES; i++) {
        const struct mmu_page *page = &mmu->pages[i];
        if (page->tag != MMU_EMPTY && page->host != NULL && page->rights & PAGE_DIRTY &&
            atomic_load_explicit(page->flags, memory_order_relaxed) & MEM_PAGE_CODE)
            mmu_code_written(cpu, page->gpa, PAGE_SIZE);
    }
}

void mmu_serve_requests(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    atomic_fetch_and(&cpu->request, ~(unsigned)REQUEST_FLUSH);
    unsigned wanted = atomic_exchange(&mmu->wanted, 0);
    if (wanted & WANT_CODE)
        serve_code_changes(mmu);
    if (wanted & WANT_DROP_WRITES) {
        mmu_drop_writes(cpu);
        if (cpu->vcpu.engine != NULL && cpu->vcpu.engine->config.vcpus > 1)
            report_code_behind_writes(cpu);
    }
    if (wanted & WANT_FLUSH)
        mmu_flush_all(cpu);
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
    mmu_restart(cpu);
    mmu_flush_all(cpu);
    struct memory_listener listener = listener_of(mmu);
    int r = memory_add_listener(cpu->memory, &listener);
    if (r < 0) {
        lock_destroy(&mmu->lock);
        free(mmu);
        cpu->mmu = NULL;
        return error_set_errno(err, r, "cannot watch guest memory");
    }
    pthread_mutex_lock(&all_mutex);
    mmu->next = all_mmus;
    all_mmus = mmu;
    pthread_mutex_unlock(&all_mutex);
    return 0;
}

void mmu_destroy(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    if (mmu == NULL)
        return;
    pthread_mutex_lock(&all_mutex);
    struct mmu **link = &all_mmus;
    while (*link != mmu)
        link = &(*link)->next;
    *link = mmu->next;
    pthread_mutex_unlock(&all_mutex);
    struct memory_listener listener = listener_of(mmu);
    memory_remove_listener(cpu->memory, &listener);
    lock_destroy(&mmu->lock);
    free(mmu);
    cpu->mmu = NULL;
}
