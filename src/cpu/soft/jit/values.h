/*
 * What is known of the general registers along a path of instructions: each
 * holds a constant, or what some register held somewhere on the path and a
 * constant. Outside 64-bit mode all is modulo 2^32, and sign-extended.
 */
#ifndef LODGE_CPU_SOFT_JIT_VALUES_H
#define LODGE_CPU_SOFT_JIT_VALUES_H

#include "cpu/soft/jit/rows.h"

struct value {
    uint32_t version; /* of what was held then; 0: nothing is added to the constant */
    int64_t constant;
};

/* EFLAGS, as CMP of the two makes them. */
struct compared {
    bool known, zero_only; /* only ZF is so */
    uint8_t size;
    struct value left, right;
};

struct values {
    unsigned word; /* 8 in 64-bit mode, else 4 */
    uint32_t last; /* version */
    struct value gpr[16];
    struct compared flags;
};

/* Nothing is known: each register holds what it holds. */
void values_begin(struct values *v, unsigned word);
/* The version of what a register held at the beginning. */
static inline uint32_t values_first(unsigned reg) {
    return reg + 1;
}
/* After an instruction that is lowered as `kind` (enum lower_kind). */
void values_step(struct values *v, const struct insn *insn, uint8_t kind);
/* Of a register, or REG_ZERO. */
struct value values_of(const struct values *v, unsigned reg);
/* The address of the memory operand, segments and what REG_ZERO stands for aside; *index is the
 * version of an index that is scaled. Addresses of less than 64 bits are sign-extended. */
struct value values_address(const struct values *v, const struct insn *insn, uint32_t *index);
/* Whether the conditional jump jumps: 1 or 0; -1: nobody knows. */
int values_decide(const struct values *v, const struct insn *jcc);

#endif
