/*
 * Lazy status flags. An arithmetic instruction stores its result and its
 * carry-out vector; flags are worked out when somebody reads them.
 *
 * flags.result: the result, sign-extended from the operand size.
 *   ZF = result == 0        SF = result < 0        PF = even parity of bits 7:0,
 *   xor FLAGS_PF_FLIP in carries (so that any combination can be written).
 * flags.carries: the carry out of each bit, aligned so that the operand's top
 *   bit is bit 63: CF = bit 63, OF = bit 63 xor bit 62, and AF kept apart as
 *   bit 0 (FLAGS_AF); ZF can be forced by FLAGS_ZF_FORCE, PF flipped by
 *   FLAGS_PF_FLIP.
 *
 * Addition:    carries = (a & b) | ((a | b) & ~r)
 * Subtraction: borrows = (~a & b) | ((~a ^ b) & r), i.e. (~a & b) | (~(a ^ b) & r)
 */
#ifndef LODGE_CPU_SOFT_FLAGS_H
#define LODGE_CPU_SOFT_FLAGS_H

#include "cpu/soft/soft.h"

enum { FLAGS_AF = 1, FLAGS_PF_FLIP = 2, FLAGS_ZF_FORCE = 4 };

static inline bool flag_cf(const struct soft_cpu *cpu) {
    return cpu->flags.carries >> 63;
}

static inline bool flag_of(const struct soft_cpu *cpu) {
    return (cpu->flags.carries ^ (cpu->flags.carries << 1)) >> 63;
}

static inline bool flag_zf(const struct soft_cpu *cpu) {
    return cpu->flags.result == 0 || (cpu->flags.carries & FLAGS_ZF_FORCE);
}

static inline bool flag_sf(const struct soft_cpu *cpu) {
    return cpu->flags.result >> 63;
}

static inline bool flag_af(const struct soft_cpu *cpu) {
    return cpu->flags.carries & FLAGS_AF;
}

static inline bool flag_pf(const struct soft_cpu *cpu) {
    return !__builtin_parity(cpu->flags.result & 0xff) ^ !!(cpu->flags.carries & FLAGS_PF_FLIP);
}

/* All of RFLAGS. */
static inline uint64_t flags_get(const struct soft_cpu *cpu) {
    return cpu->rflags | (flag_cf(cpu) ? FLAG_CF : 0) | (flag_pf(cpu) ? FLAG_PF : 0) |
           (flag_af(cpu) ? FLAG_AF : 0) | (flag_zf(cpu) ? FLAG_ZF : 0) |
           (flag_sf(cpu) ? FLAG_SF : 0) | (flag_of(cpu) ? FLAG_OF : 0);
}

/* Sets the six status bits from a flags image and leaves the rest of RFLAGS alone. */
static inline void flags_set_status(struct soft_cpu *cpu, uint64_t image) {
    uint64_t cf = !!(image & FLAG_CF), of = !!(image & FLAG_OF);
    /* result 1 (odd parity) or the sign bit alone (even parity of a zero low byte), never zero. */
    uint64_t result = image & FLAG_SF ? UINT64_C(1) << 63 : 1;
    bool parity = image & FLAG_SF ? true : false;
    cpu->flags.result = result;
    cpu->flags.carries = cf << 63 | (cf ^ of) << 62 | (image & FLAG_AF ? FLAGS_AF : 0) |
                         (parity != !!(image & FLAG_PF) ? FLAGS_PF_FLIP : 0) |
                         (image & FLAG_ZF ? FLAGS_ZF_FORCE : 0);
}

/*
 * Sets all of RFLAGS. Callers mask what the privilege level may not change.
 * Changing TF, IF, AC, VM, NT needs the caller to end the block and, for AC
 * and VM, to call mmu_mode_changed.
 */
static inline void flags_set(struct soft_cpu *cpu, uint64_t image) {
    flags_set_status(cpu, image);
    cpu->rflags = (image & ~(uint64_t)FLAGS_STATUS) | FLAGS_FIXED;
}

#endif
