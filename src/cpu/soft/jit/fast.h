/*
 * C that translated code calls without handing over its vector registers:
 * fast.c is compiled for general registers alone. Called by the stubs with
 * the guest's general registers in cpu->gpr; nothing here raises.
 */
#ifndef LODGE_CPU_SOFT_JIT_FAST_H
#define LODGE_CPU_SOFT_JIT_FAST_H

#include "cpu/soft/jit/translation.h"
#include "cpu/soft/mmu.h"

/*
 * The calls that stubs make: what is asked about and a site's or exit's
 * number; the answer is the code to go on at (executable), or NULL: the
 * instruction is called out, or the exit taken.
 */

/* MOVS, STOS with or without REP. NULL: not all of it could be done here; what was done stands. */
const uint8_t *jit_fast_string(struct soft_cpu *cpu, uint64_t unused, uint32_t site);
/* An instruction of table_system.c, wherever it leads (light.c). May raise. */
const uint8_t *jit_fast_light(struct soft_cpu *cpu, uint64_t unused, uint32_t site);
/* The check again, now that the guest's x87 state is in the host's registers. */
const uint8_t *jit_fast_x87(struct soft_cpu *cpu, uint64_t unused, uint32_t site);
/* Delivers the page fault that the instruction of a site with `faults` raises; goes on there. */
const uint8_t *jit_deliver(struct soft_cpu *cpu, const struct jit_site *site,
                           const struct fault *fault);
/* The code at rip, which the jump table has from now on. */
const uint8_t *jit_fast_find(struct soft_cpu *cpu, uint64_t rip, uint32_t site);
/* These are known by the call that is on the shadow stack, and take it off. */
/* The code that an exit leads to; linked from now on. NULL: jit_state.argument is its number. */
const uint8_t *jit_fast_exit(struct soft_cpu *cpu, uint64_t unused, uint32_t nothing);
/* The same of this number, whose guard failed; nothing is on the shadow stack. */
const uint8_t *jit_fast_unguarded(struct soft_cpu *cpu, uint64_t unused, uint32_t exit);
/* The code at a block's rip as it is mapped now: who came to the block's entry by a link that does
 * not hold. What has taken a dead block's place is gone to directly from now on. */
const uint8_t *jit_fast_gone(struct soft_cpu *cpu, uint64_t unused, uint32_t nothing);
/* There are requests: leaves for where the exit behind the poll leads. */
const uint8_t *jit_fast_poll(struct soft_cpu *cpu, uint64_t unused, uint32_t nothing);
/* The check again, now that the TLB has the page. */
const uint8_t *jit_fast_miss(struct soft_cpu *cpu, uint64_t linear, uint32_t site);
const uint8_t *jit_fast_constant_miss(struct soft_cpu *cpu, uint64_t unused, uint32_t site);
/* Behind a check that was called, now that the TLB has the page, or the stack window is at RSP.
 * What comes back from the call is on the shadow stack, and off it when the answer is another. */
const uint8_t *jit_fast_check(struct soft_cpu *cpu, uint64_t linear, uint32_t check);
const uint8_t *jit_fast_check_stack(struct soft_cpu *cpu, uint64_t offset, uint32_t unused);
static inline uint32_t jit_check_number(enum tlb_kind kind, unsigned size) {
    return size << 2 | kind;
}
/* The check again, now that the stack window is at RSP. `offset` is from the window. */
const uint8_t *jit_fast_stack_miss(struct soft_cpu *cpu, uint64_t offset, uint32_t site);

/* Names the present address space and modes for the jump table, by state.key_of. */
void jit_set_context(struct soft_cpu *cpu);

/* Code of this key runs from here on: its side's shadow stack and context. */
void jit_set_key(struct soft_cpu *cpu, uint64_t key);

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
/* Code there is entered, or may be by a link from now on: what jit_state.upper_is_local and
 * lower_is_privileged say. */
void jit_note_entered(struct soft_cpu *cpu, uint64_t rip, uint64_t key);

#endif
