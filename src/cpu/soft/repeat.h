/* What string instructions share: offsets and counts by address size, stepping by DF. */
#ifndef LODGE_CPU_SOFT_REPEAT_H
#define LODGE_CPU_SOFT_REPEAT_H

#include "cpu/soft/operand.h"

static inline uint64_t string_mask(const struct insn *insn) {
    return UINT64_MAX >> (64 - 8 * insn->address_size);
}

static inline uint64_t string_offset(const struct soft_cpu *cpu, const struct insn *insn,
                                     unsigned reg) {
    return cpu->gpr[reg] & string_mask(insn);
}

static inline uint64_t string_count(const struct soft_cpu *cpu, const struct insn *insn) {
    return cpu->gpr[RCX] & string_mask(insn);
}

/* Moves RSI or RDI by elements. */
static inline void string_advance(struct soft_cpu *cpu, const struct insn *insn, unsigned reg,
                                  uint64_t elements) {
    uint64_t bytes = elements * insn->size;
    add_address(cpu, reg, cpu->rflags & FLAG_DF ? -bytes : bytes, insn->address_size);
}

/* Between elements: false when the run loop must look up (or single-step is on). */
static inline bool string_may_go_on(struct soft_cpu *cpu, unsigned cost) {
    cpu->budget -= (int32_t)cost;
    return cpu->budget > 0 && !(cpu->rflags & FLAG_TF) && !soft_requested(cpu);
}

#endif
