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

/* After each instruction: the shadow of STI has passed. */
void lower_end_shadow(struct translation *t);

/* Such an instruction must be called out after all: refused, or of another size. */
bool lower_system_calls_out(const struct insn *insn);

/* A block goes on behind the instruction although it ends blocks for the interpreter. */
bool lower_system_goes_on_behind(const struct insn *insn);

/* General registers that LOWER_SYSTEM may change; all, where what addresses mean may change. */
uint32_t lower_system_changes(const struct insn *insn);

#endif
