/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT as AMD's processors have them. AMD64
 * APM vol. 2, 6.1, and vol. 3. SYSENTER and, at CPL 0, SYSEXIT are #UD in long mode.
 */
#include "cpu/soft/system.h"

enum {
    CODE = SEG_P | SEG_S | TYPE_CODE | TYPE_READ_WRITE | TYPE_ACCESSED | SEG_G,
    DATA = SEG_P | SEG_S | TYPE_READ_WRITE | TYPE_ACCESSED | SEG_G | SEG_DB,
};

void syscall_segments(const struct soft_cpu *cpu, unsigned cpl, struct x86_segment *cs,
                      struct x86_segment *ss) {
    uint16_t base = cpl == 0 ? cpu->star >> 32 & 0xfffc : cpu->star >> 48 & 0xffff;
    uint16_t code = cpl == 0 ? base : (uint16_t)(base + 16) | 3;
    uint16_t data = cpl == 0 ? (uint16_t)(base + 8) : (uint16_t)(base + 8) | 3;
    *cs = segment_flat_of(code, CODE | SEG_L | cpl << 5);
    *ss = segment_flat_of(data, DATA | cpl << 5);
}

static void set_segments(struct soft_cpu *cpu, uint16_t cs, unsigned code, uint16_t ss,
                         unsigned cpl) {
    cpu->segment[SEG_CS] = segment_flat_of(cs, code | cpl << 5);
    cpu->segment[SEG_SS] = segment_flat_of(ss, DATA | cpl << 5);
    cpu->cpl = (uint8_t)cpl;
}

void syscall_enter(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (!(cpu->efer & EFER_SCE))
        raise_exception(cpu, EXC_UD);
    uint64_t next = insn_next_rip(cpu, insn);
    uint16_t cs = cpu->star >> 32 & 0xfffc;
    if (cpu->long_mode) {
        cpu->gpr[RCX] = next;
        cpu->gpr[R11] = flags_get(cpu) & ~(uint64_t)FLAG_RF;
        next = cpu->mode == INSN_MODE_64 ? cpu->lstar : cpu->cstar;
        flags_set(cpu, cpu->gpr[R11] & ~cpu->sfmask);
        set_segments(cpu, cs, CODE | SEG_L, cs + 8, 0);
    } else {
        cpu->gpr[RCX] = (uint32_t)next;
        next = (uint32_t)cpu->star;
        cpu->rflags &= ~(uint64_t)(FLAG_IF | FLAG_RF | FLAG_VM);
        set_segments(cpu, cs, CODE | SEG_DB, cs + 8, 0);
    }
    mmu_mode_changed(cpu);
    INSN_JUMP(next);
}

void sysret_leave(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (!(cpu->efer & EFER_SCE) || !mode_protected(cpu))
        raise_exception(cpu, EXC_UD);
    if (cpu->cpl != 0)
        raise_error(cpu, EXC_GP, 0);
    uint16_t selector = cpu->star >> 48 & 0xffff;
    uint64_t next = cpu->gpr[RCX];
    bool wide = insn->size == 8;
    if (wide) {
        set_segments(cpu, (uint16_t)(selector + 16) | 3, CODE | SEG_L, (uint16_t)(selector + 8) | 3,
                     3);
    } else {
        next = (uint32_t)next;
        set_segments(cpu, selector | 3, CODE | SEG_DB, (uint16_t)(selector + 8) | 3, 3);
    }
    if (cpu->long_mode)
        flags_set(cpu, cpu->gpr[R11] & ~(uint64_t)(FLAG_RF | FLAG_VM) & 0x3f7fd7);
    else
        cpu->rflags |= FLAG_IF;
    mmu_mode_changed(cpu);
    INSN_JUMP(next);
}

void sysenter(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (cpu->long_mode)
        raise_exception(cpu, EXC_UD);
    if (!(cpu->cr0 & CR0_PE) || selector_null((uint16_t)cpu->sysenter_cs))
        raise_error(cpu, EXC_GP, 0);
    uint16_t cs = cpu->sysenter_cs & 0xfffc;
    cpu->rflags &= ~(uint64_t)(FLAG_IF | FLAG_RF | FLAG_VM);
    set_segments(cpu, cs, CODE | SEG_DB, cs + 8, 0);
    cpu->gpr[RSP] = (uint32_t)cpu->sysenter_esp;
    mmu_mode_changed(cpu);
    INSN_JUMP((uint32_t)cpu->sysenter_eip);
}

void sysexit(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    /* Privilege comes before the mode: measured on Zen. */
    if (!mode_protected(cpu) || cpu->cpl != 0)
        raise_error(cpu, EXC_GP, 0);
    if (cpu->long_mode)
        raise_exception(cpu, EXC_UD);
    if (selector_null((uint16_t)cpu->sysenter_cs))
        raise_error(cpu, EXC_GP, 0);
    uint16_t base = (uint16_t)cpu->sysenter_cs;
    set_segments(cpu, (uint16_t)(base + 16) | 3, CODE | SEG_DB, (uint16_t)(base + 24) | 3, 3);
    cpu->gpr[RSP] = (uint32_t)cpu->gpr[RCX];
    mmu_mode_changed(cpu);
    INSN_JUMP((uint32_t)cpu->gpr[RDX]);
}
