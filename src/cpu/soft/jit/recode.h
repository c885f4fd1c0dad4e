/*
 * Recoding: an instruction of the guest written out again with other
 * operands. The guest's instruction set is the host's, so most instructions
 * run as themselves; what changes is where their memory operand is (a host
 * address in a register) and which registers stand in for those that the
 * translator keeps for itself.
 */
#ifndef LODGE_CPU_SOFT_JIT_RECODE_H
#define LODGE_CPU_SOFT_JIT_RECODE_H

#include "cpu/soft/insn.h"
#include "cpu/soft/jit/emit.h"

/* An instruction's bytes taken apart, as 64-bit mode has them. */
struct raw {
    uint8_t bytes[16]; /* one more than there can be: see make_modern */
    uint8_t length;
    bool operand_size; /* 66 */
    bool lock;         /* F0 */
    uint8_t repeat;    /* F2 or F3, or 0 */
    uint8_t rex;       /* 0: none */
    uint8_t vex[3];    /* as the three-byte form has it; vex[0] 0: none */
    uint8_t opcode_at, opcode_length;
    uint8_t modrm_at; /* 0: none */
    uint8_t tail_at;  /* immediates */
};

/* Instructions of 32-bit code become those that 64-bit mode knows them by. */
void raw_parse(struct raw *raw, const uint8_t *bytes, const struct insn *insn, enum insn_mode mode,
               bool has_modrm);

enum rm_kind {
    RM_REGISTER, /* rm is a register number */
    RM_ADDRESS,  /* [rm + disp], or [rm + index << scale + disp] */
    RM_STATE,    /* gs:[disp] */
};

struct recode {
    unsigned reg;  /* ModRM.reg; extensions (/n) as they are */
    unsigned vvvv; /* VEX.vvvv */
    enum rm_kind kind;
    unsigned rm; /* with an opcode register: that */
    int32_t disp;
    bool indexed;
    uint8_t index, scale;
};

/* What the instruction has now, for the caller to change. Memory operands: kind RM_ADDRESS. */
struct recode recode_of(const struct raw *raw);

void recode_emit(struct emitter *e, const struct raw *raw, const struct recode *operands);

#endif
