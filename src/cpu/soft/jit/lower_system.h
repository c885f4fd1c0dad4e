/*
 * Instructions of the system in translated code: the parts that the rest of
 * the lowering asks for (lower_system.c).
 */
#ifndef LODGE_CPU_SOFT_JIT_LOWER_SYSTEM_H
#define LODGE_CPU_SOFT_JIT_LOWER_SYSTEM_H

#include "cpu/soft/jit/translation.h"

/* LOWER_SYSTEM, LOWER_PUSHF, LOWER_POPF. */
void lower_system(struct translation *t);
void lower_pushf(struct translation *t);
void lower_popf(struct translation *t);

/* ---- lower_syscall.c ---- */

/* True: the block goes on behind the instruction. */
bool lower_syscall(struct translation *t);
bool lower_sysret(struct translation *t);
bool lower_set_ac(struct translation *t);

/* ---- lower_tsc.c ---- */

/* RDTSC and RDTSCP in translated code, where that is so. */
bool lower_tsc_is_inline(const struct translation *t);
void lower_rdtsc(struct translation *t);
void lower_lfence(struct translation *t);

/* ---- What inline forms are made of ---- */

enum { SHIFT_LEFT = 4, SHIFT_RIGHT = 5, SHIFT_SIGNED = 7 };
void emit_shift(struct emitter *e, unsigned which, unsigned size, unsigned reg, unsigned count);
/* TEST with an immediate. */
void emit_test_imm(struct emitter *e, unsigned size, unsigned reg, int32_t imm);
void emit_test_gs(struct emitter *e, int32_t disp, uint32_t imm);

static inline unsigned cpl_of(const struct translation *t) {
    return t->block->key >> 2 & 3;
}

/* Flags are saved, EFLAGS free from here on. */
void system_begin(struct translation *t);
/* The present instruction is left to a light call when `condition` holds: nothing is done yet. */
void system_light_if(struct translation *t, unsigned condition);
/* The same when the local APIC has something. Clobbers TEMP_B. */
void system_check_attention(struct translation *t);
/* RFLAGS, all of it. */
void system_load_rflags(struct translation *t, unsigned to, unsigned temp);
/* The status flags of the image in TEMP_B become the guest's. Clobbers both temporary registers. */
void system_save_status(struct translation *t);

/* ---- lower_system.c ---- */

/* After each instruction: the shadow of STI has passed. */
void lower_end_shadow(struct translation *t);

/* Such an instruction must be called out after all: refused, or of another size. */
bool lower_system_calls_out(const struct insn *insn);

/* A block goes on behind the instruction although it ends blocks for the interpreter. */
bool lower_system_goes_on_behind(const struct insn *insn);

/* General registers that LOWER_SYSTEM may change; all, where what addresses mean may change. */
uint32_t lower_system_changes(const struct insn *insn);

#endif
