/*
 * NOPs and hints, single flags, CLI, STI, HLT, INT n, INT3, INTO, BOUND, UD, RDRAND, RDSEED.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/int.h"
#include "cpu/soft/operand.h"
#include "cpu/soft/outside.h"
#include "cpu/soft/verify.h"

void nop(struct soft_cpu *cpu, const struct insn *insn) {
    INSN_NEXT;
}

/* PAUSE. Who waits in a loop for another vCPU, which the host may not run now, makes way. */
void spin_hint(struct soft_cpu *cpu, const struct insn *insn) {
    enum { PATIENCE = 32 };
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
    if (cpu->several && ++cpu->pauses % PATIENCE == 0)
        outside_yield(cpu);
    INSN_NEXT;
}

void ud(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    raise_exception(cpu, EXC_UD);
}

/* ---- Flags ---- */

void clc(struct soft_cpu *cpu, const struct insn *insn) {
    flags_set_cf(cpu, false);
    INSN_NEXT;
}

void stc(struct soft_cpu *cpu, const struct insn *insn) {
    flags_set_cf(cpu, true);
    INSN_NEXT;
}

void cmc(struct soft_cpu *cpu, const struct insn *insn) {
    flags_set_cf(cpu, !flag_cf(cpu));
    INSN_NEXT;
}

void cld(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->rflags &= ~(uint64_t)FLAG_DF;
    INSN_NEXT;
}

void std(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->rflags |= FLAG_DF;
    INSN_NEXT;
}

static void check_iopl(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (cpu->cpl > (cpu->rflags >> 12 & 3))
        raise_error(cpu, EXC_GP, 0);
}

void cli(struct soft_cpu *cpu, const struct insn *insn) {
    check_iopl(cpu, insn);
    cpu->rflags &= ~(uint64_t)FLAG_IF;
    INSN_NEXT;
}

void sti(struct soft_cpu *cpu, const struct insn *insn) {
    check_iopl(cpu, insn);
    if (cpu->rflags & FLAG_IF)
        INSN_NEXT;
    cpu->rflags |= FLAG_IF;
    cpu->interrupt_shadow = true;
    INSN_END_BLOCK;
}

void hlt(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->halted = true;
    INSN_END_BLOCK;
}

/* ---- Software interrupts ---- */

void int_n(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if ((cpu->rflags & FLAG_VM) && (cpu->rflags & FLAG_IOPL) != FLAG_IOPL)
        raise_error(cpu, EXC_GP, 0);
    event_software(cpu, insn, (uint8_t)insn->imm);
}

void int3(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    event_software(cpu, insn, EXC_BP);
}

/* No INT n: the gate's DPL does not count, and DR6 stays as it is. */
void int1(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    verify_once(cpu, insn);
    cpu->rip = insn_next_rip(cpu, insn);
    event_deliver(cpu, EXC_DB, EVENT_TRAP, false, 0);
}

void into(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (!flag_of(cpu))
        INSN_NEXT;
    event_software(cpu, insn, EXC_OF);
}

#define BOUND_FORM(bits)                                                                           \
    void bound_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                            \
        int##bits##_t index = (int##bits##_t)get##bits(cpu, insn->reg), low, high;                 \
        uint64_t offset = insn_offset(cpu, insn);                                                  \
        cpu->insn = insn;                                                                          \
        low = (int##bits##_t)load##bits(cpu, insn->seg, offset);                                   \
        high = (int##bits##_t)load##bits(cpu, insn->seg, offset + bits / 8);                       \
        if (index < low || index > high)                                                           \
            raise_exception(cpu, EXC_BR);                                                          \
        INSN_NEXT;                                                                                 \
    }
BOUND_FORM(16)
BOUND_FORM(32)

/* ---- Random numbers: the host kernel's ---- */

/* CF tells whether the number is there; it is unless the host's generator cannot answer yet. */
static void random_number(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t value = 0;
    verify_once(cpu, insn);
    bool there = outside_random(cpu, &value);
    set_sized(cpu, insn->rm, there ? value : 0, insn->size);
    flags_set_status(cpu, there ? FLAG_CF : 0);
}

void rdrand(struct soft_cpu *cpu, const struct insn *insn) {
    random_number(cpu, insn);
    INSN_NEXT;
}
