#include "cpu/soft/others.h"

#include "cpu/soft/run.h"

enum { FOUND_MAX = 64 };

static struct soft_engine *engine_of(const struct soft_cpu *cpu) {
    return (struct soft_engine *)cpu->vcpu.engine;
}

/* Calls for each vCPU but this one. */
#define FOR_EACH_OTHER(other, cpu)                                                                 \
    for (unsigned n_ = 0; n_ < MEM_WATCHERS_MAX; n_++)                                             \
        if ((other = atomic_load(&engine_of(cpu)->cpu[n_])) != NULL && other != (cpu))

/* ---- At rest ---- */

/*
 * What this processor has fetched ahead may be what another has overwritten meanwhile: translated
 * code of this vCPU. IRET to where it is serialises.
 */
static void serialise(void) {
#ifdef __x86_64__
    uint64_t scratch;
    __asm__ volatile("mov %%ss, %k0\n\t"
                     "push %q0\n\t"
                     "push %%rsp\n\t"
                     "addq $8, (%%rsp)\n\t"
                     "pushfq\n\t"
                     "mov %%cs, %k0\n\t"
                     "push %q0\n\t"
                     "lea 1f(%%rip), %q0\n\t"
                     "push %q0\n\t"
                     "iretq\n"
                     "1:"
                     : "=&r"(scratch)
                     :
                     : "cc", "memory");
#endif
}

void others_rest(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    if (!cpu->several)
        return;
    /* Who asked before this sees all that was written; who asks later finds nobody writing. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&cpu->request) & REQUEST_FLUSH)
        mmu_serve_requests(cpu);
    cpu->block = NULL;
    pthread_mutex_unlock(&mmu->busy);
}

/* The vCPU's thread: at rest no more. */
static void take_busy(struct mmu *mmu) {
    pthread_mutex_lock(&mmu->busy);
    if (mmu->changed_at_rest) {
        mmu->changed_at_rest = false;
        serialise();
    }
}

void others_wake(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    if (!cpu->several)
        return;
    take_busy(mmu);
    if (atomic_load(&cpu->request) & REQUEST_FLUSH)
        mmu_serve_requests(cpu);
}

/* True: the vCPU is at rest, and stays so until let_go. */
static bool catch_at_rest(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    if (pthread_mutex_trylock(&mmu->busy) != 0)
        return false;
    mmu->changed_at_rest = true;
    return true;
}

static void let_go(struct soft_cpu *cpu) {
    pthread_mutex_unlock(&mmu_of(cpu)->busy);
}

bool others_forget_code(struct soft_cpu *cpu, uint64_t gpa, size_t length) {
    uint64_t first = gpa & PAGE_MASK, end = (gpa + length + PAGE_SIZE - 1) & PAGE_MASK;
    if (!cpu->several || !catch_at_rest(cpu))
        return false;
    /* All of the pages: else the next store to one would come here again. */
    block_invalidate(cpu, first, (size_t)(end - first));
    let_go(cpu);
    return true;
}

/* ---- A page's first watcher ---- */

void others_drop(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    uint64_t asked = atomic_load(&mmu->asked);
    _Atomic(uint8_t) *found[FOUND_MAX];
    unsigned count;
    if (atomic_load(&mmu->answered) == asked)
        return;
    do {
        count = level1_drop_code_writes(cpu, found, FOUND_MAX);
        for (unsigned i = 0; i < count; i++)
            memory_code_written(cpu->memory, memory_gpa_of_flags(cpu->memory, found[i]), PAGE_SIZE);
    } while (count == FOUND_MAX);
    atomic_store(&mmu->answered, asked);
}

/* What others that have not answered yet have answered, the least of them; at rest, they are made
 * to. `asking` is held. */
static uint64_t least_answer(struct soft_cpu *cpu) {
    uint64_t least = UINT64_MAX;
    struct soft_cpu *other;
    FOR_EACH_OTHER(other, cpu) {
        struct mmu *mmu = mmu_of(other);
        uint64_t answered = atomic_load(&mmu->answered);
        if (answered == atomic_load(&mmu->asked))
            continue;
        if (catch_at_rest(other)) {
            others_drop(other);
            let_go(other);
        } else if (answered < least) {
            least = answered;
        }
    }
    return least;
}

static void ask(struct soft_cpu *cpu) {
    struct soft_engine *engine = engine_of(cpu);
    struct soft_cpu *other;
    engine->asked++;
    FOR_EACH_OTHER(other, cpu) {
        atomic_store(&mmu_of(other)->asked, engine->asked);
        if (catch_at_rest(other)) {
            others_drop(other);
            let_go(other);
        } else {
            mmu_want(mmu_of(other), WANT_DROP_CODE);
        }
    }
}

static void note_unsettled(struct soft_cpu *cpu, uint64_t gpa, uint64_t asked) {
    struct mmu *mmu = mmu_of(cpu);
    cpu->unsettled = true;
    if (mmu->unsettled_count < MMU_UNSETTLED)
        mmu->unsettled[mmu->unsettled_count++] = (struct unsettled_page){gpa, asked};
    else
        mmu->unsettled_lost = true;
}

void others_watch(struct soft_cpu *cpu, uint64_t gpa) {
    struct soft_engine *engine = engine_of(cpu);
    if (!cpu->several) {
        memory_watch(cpu->memory, gpa, cpu->vcpu.id);
        return;
    }
    /* One step: who finds the page watched already, and no mark of writing, finds that all who may
     * write to it have been asked. */
    pthread_mutex_lock(&engine->asking);
    if (memory_watch(cpu->memory, gpa, cpu->vcpu.id) & MEM_PAGE_WRITTEN)
        ask(cpu);
    if (least_answer(cpu) < engine->asked)
        note_unsettled(cpu, gpa, engine->asked);
    pthread_mutex_unlock(&engine->asking);
}

void others_settle(struct soft_cpu *cpu) {
    struct soft_engine *engine = engine_of(cpu);
    struct mmu *mmu = mmu_of(cpu);
    pthread_mutex_lock(&engine->asking);
    uint64_t least = least_answer(cpu);
    pthread_mutex_unlock(&engine->asking);
    cpu->unsettled = false;
    cpu->block = NULL;
    if (mmu->unsettled_lost && least != UINT64_MAX)
        block_invalidate_all(cpu);
    mmu->unsettled_lost = false;
    for (unsigned i = 0; i < mmu->unsettled_count; i++)
        if (least < mmu->unsettled[i].asked)
            block_invalidate(cpu, mmu->unsettled[i].gpa, PAGE_SIZE);
    mmu->unsettled_count = 0;
}

/* ---- Alone ---- */

void others_let_alone(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    pthread_mutex_unlock(&mmu->busy);
    pthread_mutex_lock(&engine_of(cpu)->alone);
    pthread_mutex_unlock(&engine_of(cpu)->alone);
    take_busy(mmu);
}

void others_alone_begin(struct soft_cpu *cpu) {
    struct soft_cpu *other;
    if (!cpu->several)
        return;
    /* Whoever else wants the same counts as standing still: it has changed nothing yet. */
    pthread_mutex_unlock(&mmu_of(cpu)->busy);
    pthread_mutex_lock(&engine_of(cpu)->alone);
    take_busy(mmu_of(cpu));
    FOR_EACH_OTHER(other, cpu)
    mmu_want(mmu_of(other), WANT_REST);
    FOR_EACH_OTHER(other, cpu)
    pthread_mutex_lock(&mmu_of(other)->busy);
}

void others_alone_end(struct soft_cpu *cpu) {
    struct soft_cpu *other;
    if (!cpu->several)
        return;
    FOR_EACH_OTHER(other, cpu)
    let_go(other);
    pthread_mutex_unlock(&engine_of(cpu)->alone);
}

/* ---- Life ---- */

size_t soft_share(const struct engine *engine, size_t wanted, size_t least) {
    unsigned vcpus = engine != NULL && engine->config.vcpus != 0 ? engine->config.vcpus : 1;
    if (vcpus == 1)
        return wanted;
    uint64_t all = memory_ram_size(engine->config.memory) / 8;
    uint64_t share = (all > wanted ? all : wanted) / vcpus;
    if (share > wanted)
        return wanted;
    return share > least ? (size_t)share : least;
}

void others_init(struct soft_engine *engine) {
    pthread_mutex_init(&engine->asking, NULL);
    pthread_mutex_init(&engine->alone, NULL);
}

void others_destroy(struct soft_engine *engine) {
    pthread_mutex_destroy(&engine->asking);
    pthread_mutex_destroy(&engine->alone);
}

void others_join(struct soft_cpu *cpu) {
    if (cpu->several)
        atomic_store(&engine_of(cpu)->cpu[cpu->vcpu.id], cpu);
}

void others_part(struct soft_cpu *cpu) {
    if (cpu->several)
        atomic_store(&engine_of(cpu)->cpu[cpu->vcpu.id], NULL);
}
