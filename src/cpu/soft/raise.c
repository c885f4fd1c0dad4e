/* Where instructions are, and how they end in an exception. */
#include "cpu/soft/block.h"
#include "cpu/soft/outside.h"
#include "cpu/soft/run.h"

/* ---- Where instructions are ---- */

static uint64_t wrap_rip(const struct soft_cpu *cpu, uint64_t rip) {
    return cpu->mode == INSN_MODE_64 ? rip : (uint32_t)rip;
}

uint64_t insn_rip(const struct soft_cpu *cpu, const struct insn *insn) {
    return wrap_rip(cpu, cpu->rip + insn->offset);
}

uint64_t insn_next_rip(const struct soft_cpu *cpu, const struct insn *insn) {
    return wrap_rip(cpu, cpu->rip + insn->offset + insn->length);
}

/* ---- Raising ---- */

void soft_account(struct soft_cpu *cpu) {
    struct soft_run *run = run_of(cpu);
    cpu->counters.instructions += (uint64_t)(run->granted - cpu->budget);
    run->granted = cpu->budget;
}

/* RIP of the present instruction, and the budget without those that did not run. */
static void rewind_to_insn(struct soft_cpu *cpu) {
    const struct insn *insn = cpu->insn;
    if (insn == NULL)
        return;
    if (cpu->block != NULL && insn >= cpu->block->insns &&
        insn <= cpu->block->insns + cpu->block->run_count)
        cpu->budget += (int32_t)(cpu->block->run_count - (insn - cpu->block->insns));
    cpu->rip = insn_rip(cpu, insn);
    cpu->insn = NULL;
}

static _Noreturn void raise(struct soft_cpu *cpu, enum exception vector, bool has_error,
                            uint32_t error) {
    rewind_to_insn(cpu);
    cpu->bounce.size = 0;
    cpu->event.pending = true;
    cpu->event.vector = (uint8_t)vector;
    cpu->event.kind = EVENT_FAULT;
    cpu->event.has_error = has_error;
    cpu->event.error = error;
    outside_unwind(cpu);
}

void raise_exception(struct soft_cpu *cpu, enum exception vector) {
    raise(cpu, vector, false, 0);
}

void raise_error(struct soft_cpu *cpu, enum exception vector, uint32_t error) {
    raise(cpu, vector, true, error);
}

void raise_page_fault(struct soft_cpu *cpu, uint64_t linear, uint32_t error) {
    cpu->cr2 = linear;
    raise(cpu, EXC_PF, true, error);
}

void raise_exit(struct soft_cpu *cpu) {
    rewind_to_insn(cpu);
    cpu->bounce.size = 0;
    atomic_fetch_or(&cpu->request, REQUEST_STOP);
    outside_unwind(cpu);
}

void raise_fault(struct soft_cpu *cpu, const struct fault *fault) {
    if (fault->vector == FAULT_STOP)
        raise_exit(cpu);
    if (fault->vector == EXC_PF)
        raise_page_fault(cpu, fault->address, fault->error);
    if (fault->has_error)
        raise_error(cpu, fault->vector, fault->error);
    raise_exception(cpu, fault->vector);
}

void exit_trap(struct soft_cpu *cpu, uint64_t gpa, uint64_t gva, unsigned access) {
    cpu->exit.stop = VCPU_TRAP;
    cpu->exit.gpa = gpa;
    cpu->exit.gva = gva;
    cpu->exit.access = access;
    cpu->exit.text[0] = 0;
}
