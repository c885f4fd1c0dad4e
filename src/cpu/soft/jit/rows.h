/*
 * What the translator does with an instruction, worked out once for each row
 * of the tables: run it as itself, treat it specially, or leave it to the
 * interpreter's handler (a call-out).
 */
#ifndef LODGE_CPU_SOFT_JIT_ROWS_H
#define LODGE_CPU_SOFT_JIT_ROWS_H

#include "cpu/soft/insn.h"

enum lower_kind {
    LOWER_CALLOUT, /* the interpreter's handler */
    LOWER_LIGHT,   /* the same in a light call */
    LOWER_NATIVE,  /* as itself, its memory operand through the TLB check */
    LOWER_BITS,    /* of those, BT and its like with a string of bits in memory */
    LOWER_NOP,
    LOWER_LEA,
    LOWER_PUSH,
    LOWER_PUSH_MEMORY,
    LOWER_POP,
    LOWER_LEAVE,
    LOWER_CALL,
    LOWER_CALL_INDIRECT,
    LOWER_RET,
    LOWER_JMP,
    LOWER_JMP_INDIRECT,
    LOWER_JCC,
    LOWER_DIV,
    LOWER_IDIV,
    LOWER_MOVS,
    LOWER_STOS,
    LOWER_SYSTEM, /* of the system, with inline forms (lower_system.c) */
    LOWER_PUSHF,
    LOWER_POPF,
    LOWER_SYSCALL,
    LOWER_SYSRET,
    LOWER_SET_AC, /* STAC, CLAC */
};

/* How much a memory operand covers. */
enum memory_size { MEMORY_NONE, MEMORY_BY_SIZE, MEMORY_BY_L, MEMORY_HALF_L, MEMORY_FIXED };

/* How the translator may work the flags out again from what registers hold after the instruction.
 */
enum flags_recipe {
    RECIPE_NONE,
    RECIPE_REPEAT,
    RECIPE_TEST_DEST,
    RECIPE_UNDO_ADD,
    RECIPE_UNDO_SUB
};

struct lowering {
    uint8_t kind;
    uint8_t memory;       /* enum memory_size */
    uint8_t memory_bytes; /* MEMORY_FIXED */
    bool memory_written;
    bool gpr_reg, gpr_rm, gpr_vvvv; /* these fields name general registers */
    bool second_written;            /* XCHG, XADD, MULX write their second operand too */
    bool first_read_only;
    bool first_read;     /* the first operand's old value matters (or its upper bits do) */
    bool writes_rax_rdx; /* implicitly */
    bool writes_rcx;     /* as well */
    bool has_modrm;
    bool full_flags; /* writes all status flags, reads none */
    /* Status flags: what the result depends on, and what is new after it whatever was before. */
    uint16_t flags_read, flags_killed;
    bool writes_flags;
    bool x87;     /* x87 or MMX: x87_live.h */
    bool aligned; /* its memory operand must be aligned */
    uint8_t recipe;
};

enum { LOWERINGS_MAX = 4096 };
extern struct lowering lowerings[LOWERINGS_MAX];

/* Fills the table, once, before anything else here; any thread. */
void lowerings_init(void);

static inline const struct lowering *lowering_of(const struct insn *insn) {
    return &lowerings[insn->row % LOWERINGS_MAX];
}

/* The memory operand's size in bytes. */
unsigned lowering_memory_bytes(const struct lowering *lowering, const struct insn *insn);

#endif
