/*
 * What the vCPUs of one VM are to each other. Each has blocks, translations
 * and a TLB of its own; memory.h's flags and watchers say whose code a page
 * holds.
 *
 * Changed code. A store to a watched page tells those who watch it, before the
 * storing vCPU's next store: a change is in the other's queue and its request
 * up. It looks at the latest behind its next serialising instruction, all of
 * which C runs, and which look at requests. So much for pages that have been
 * watched for a while: no vCPU has such a page's address for writing. When the
 * first of a page's watchers comes, others may have it: they are asked to drop
 * it, do so at their next look, and tell what they may have written by then;
 * earlier where they would drop it anyway. What they keep stays marked as
 * written (MEM_PAGE_WRITTEN), so that a page's next first watcher asks again.
 * Until all have, the page is *unsettled* for the watcher: it drops the
 * page's blocks at each serialising instruction.
 *
 * Nobody waits for that. A vCPU whose thread the host does not run just now
 * may take long; one that waits in HLT, or is out of vcpu_run, lets go of its
 * caches (`busy`), and whoever asks does for it what it would have done.
 *
 * Alone: a locked instruction whose operand is on two pages that are not
 * neighbours in this process as well is run with all others at a halt.
 */
#ifndef LODGE_CPU_SOFT_OTHERS_H
#define LODGE_CPU_SOFT_OTHERS_H

#include "cpu/soft/mmu.h"

/* The soft engine's own part of struct engine. */
struct soft_engine {
    struct engine engine; /* first */
    _Atomic(struct soft_cpu *) cpu[MEM_WATCHERS_MAX];
    pthread_mutex_t asking; /* one asks at a time; taken before `busy` of others is tried */
    uint64_t asked;         /* how often pages' first watchers have asked the others */
    pthread_mutex_t alone;  /* held by who runs alone, from before it waits for the others */
};

/*
 * Bytes for a vCPU's cache of which a VM's only vCPU has `wanted`: each of several has as much,
 * while all of them together take no more than an eighth of guest RAM or what an only one has; at
 * least `least`. NULL: there are no others.
 */
size_t soft_share(const struct engine *engine, size_t wanted, size_t least);

void others_init(struct soft_engine *engine);
void others_destroy(struct soft_engine *engine);
/* A vCPU that others may see; it is, as long as it is not in vcpu_run, at rest. */
void others_join(struct soft_cpu *cpu);
void others_part(struct soft_cpu *cpu);

/* The vCPU's thread: goes to rest, between two instructions; and ends it. Neither does anything
 * with one vCPU. */
void others_rest(struct soft_cpu *cpu);
void others_wake(struct soft_cpu *cpu);

/* The vCPU's thread, between blocks: the page's code is about to be decoded. */
void others_watch(struct soft_cpu *cpu, uint64_t gpa);

/* Answers if the vCPU has been asked: drops addresses for writing of pages that are watched by now,
 * and tells of what may have been written through them. The vCPU's thread, or with it at rest. */
void others_drop(struct soft_cpu *cpu);
/* Before addresses for writing are dropped in any other way: whether others_drop must come first.
 * If not, whoever asks from now on sees what has been written through them. */
static inline bool others_have_asked(const struct soft_cpu *cpu) {
    const struct mmu *mmu = mmu_of(cpu);
    if (likely(!cpu->several))
        return false;
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&mmu->asked, memory_order_relaxed) !=
           atomic_load_explicit(&mmu->answered, memory_order_relaxed);
}
/* Serves WANT_SETTLE: a serialising instruction was run with unsettled pages. */
void others_settle(struct soft_cpu *cpu);
/* Serves WANT_REST: somebody is going to run alone. */
void others_let_alone(struct soft_cpu *cpu);

/*
 * Bytes of a watched page changed. True: the vCPU is at rest, and its blocks of
 * the page are gone. False: it must be told.
 */
bool others_forget_code(struct soft_cpu *cpu, uint64_t gpa, size_t length);

/* In the middle of an instruction that has changed nothing so far: all other vCPUs stand still
 * between the two. */
void others_alone_begin(struct soft_cpu *cpu);
void others_alone_end(struct soft_cpu *cpu);

#endif
