/*
 * C that translated code calls without handing over its vector registers:
 * fast.c is compiled for general registers alone. Called by the stubs with
 * the guest's general registers in cpu->gpr; nothing here raises.
 */
#ifndef LODGE_CPU_SOFT_JIT_FAST_H
#define LODGE_CPU_SOFT_JIT_FAST_H

#include "cpu/soft/jit/translation.h"

/* MOVS, STOS with or without REP. 0: not all of it could be done here; what was done stands. */
uint64_t jit_fast_string(struct soft_cpu *cpu, uint32_t site);

/* Enters the translation of the code at rip into the jump table. 0: there is none. */
uint64_t jit_fast_find(struct soft_cpu *cpu, uint64_t rip);

/* The jump table's entry for a translated block. */
void jit_note_jump(struct soft_cpu *cpu, const struct block *block);

#endif
