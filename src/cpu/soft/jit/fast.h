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

/*
 * Enters the page of a linear address for fast accesses of this kind (enum
 * tlb_kind) by the present CPL, walking the page tables if need be. 1: the
 * entry is there, so the inline check now succeeds. 0: the access must go the
 * slow way (a fault, I/O, watched code, a breakpoint, a trap by the view).
 * Never raises. A read never sets the page's dirty bit; a write does, so it
 * must really happen now, unless FILL_MAYBE says that it may not: then the
 * answer is 0 where the bit would have to be set.
 */
enum { FILL_MAYBE = 4 };
uint64_t jit_fast_fill(struct soft_cpu *cpu, uint64_t linear, uint32_t kind);

/* The jump table's entry for a translated block. */
void jit_note_jump(struct soft_cpu *cpu, const struct block *block);

#endif
