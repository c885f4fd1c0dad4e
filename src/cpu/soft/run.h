/* What the run loop keeps beside the processor's state, shared with engine.c. */
#ifndef LODGE_CPU_SOFT_RUN_H
#define LODGE_CPU_SOFT_RUN_H

#include "cpu/soft/soft.h"

struct block;

struct soft_run {
    atomic_bool sleeping;       /* in HLT's wait: wake_lock and wake matter */
    int32_t granted;            /* the budget that cpu->budget was set to */
    uint64_t late_ns;           /* of REQUEST_REST: how late it may end */
    bool stopped_at_breakpoint; /* of the engine: the next instruction passes it */
};

static inline struct soft_run *run_of(const struct soft_cpu *cpu) {
    return cpu->run;
}

/* engine_ops.run */
void soft_run(struct vcpu *vcpu, struct vcpu_exit *exit);

/* Any thread: sets bits of cpu->request and ends a wait in HLT. */
void soft_request(struct soft_cpu *cpu, unsigned request);

/* engine_ops.reset; also for INIT. */
void soft_reset(struct vcpu *vcpu, bool init);

/* The block at cpu->rip under a key. Raises what the fetch does. */
struct block *soft_block(struct soft_cpu *cpu, uint64_t key);

/* Interprets a block, and those that it is chained to. */
void soft_enter(struct soft_cpu *cpu, struct block *block);

/* Interprets one instruction, with all that single-step and breakpoints ask for. */
void soft_step(struct soft_cpu *cpu, uint64_t more_key);

/* ---- run_look.c ---- */

/* The next instruction must run alone: single-step, breakpoints, an interrupt behind a shadow. */
bool run_must_step(const struct soft_cpu *cpu);

/* Nothing is due before the next instruction, and it need not run alone. */
bool run_may_go_on(struct soft_cpu *cpu);

/* Brings counters.instructions up to date. */
void soft_account(struct soft_cpu *cpu);

#endif
