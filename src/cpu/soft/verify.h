/*
 * Lock-step: the interpreter and the translator run the same guest code one
 * after the other, from the same state, and all that they leave behind is
 * compared. The first difference stops the guest with a report.
 *
 * A *unit* is what translated code runs from an entry until it leaves. It is
 * interpreted first; then registers and the pages that were written are put
 * back, and the translation runs. Where they end must be the same place with
 * the same state: registers, flags (but those that the architecture leaves
 * undefined, and those that nobody reads any more), vectors, MXCSR, system
 * registers, a raised exception, and all bytes of the pages written.
 *
 * What may happen just once (I/O, reading the time, writes to watched code)
 * ends a unit before it and is then interpreted for good: verify_once,
 * verify_may_access. It unwinds like a fault: with nothing done.
 *
 * Needs one vCPU: another's writes would be taken back. Devices wait
 * meanwhile (memory_freeze). docs/translator.md says what translated code has
 * to keep to.
 */
#ifndef LODGE_CPU_SOFT_VERIFY_H
#define LODGE_CPU_SOFT_VERIFY_H

#include "cpu/soft/soft.h"

struct mmu_page;

/* Why a run of a unit came to an end before its instruction. */
enum verify_stop { VERIFY_GOES_ON, VERIFY_ONCE, VERIFY_FULL, VERIFY_EXIT };

/* The translator is there. -ENOMEM. */
int verify_create(struct soft_cpu *cpu, struct error *err);
void verify_destroy(struct soft_cpu *cpu);

/* Runs a unit from cpu->rip, both ways. After a difference cpu->exit and REQUEST_STOP are set. */
void verify_run(struct soft_cpu *cpu);

/* engine_ops.report: the difference, if there was one. */
void verify_report(struct vcpu *vcpu, void (*line)(void *context, const char *text), void *context);

/* ---- For handlers and the MMU, while cpu->verifying ---- */

_Noreturn void verify_stop_at(struct soft_cpu *cpu, const struct insn *insn);

/* Before an effect that must not happen twice. Nothing of the instruction has been done. */
static inline void verify_once(struct soft_cpu *cpu, const struct insn *insn) {
    if (unlikely(cpu->verifying))
        verify_stop_at(cpu, insn);
}

/* Whether an access may go on; a page that is to be written is remembered as it is. */
enum verify_stop verify_note(struct soft_cpu *cpu, const struct mmu_page *page, bool write);
/* The same; false: the access ends with FAULT_STOP. */
bool verify_may_access(struct soft_cpu *cpu, const struct mmu_page *page, bool write);

/* A page walk has set bits in the entry at host. */
void verify_marked(struct soft_cpu *cpu, const void *host);

#endif
