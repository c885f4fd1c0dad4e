/*
 * The translator: blocks of decoded guest instructions become host code that
 * runs them directly. See docs/translator.md for the design.
 *
 * What the rest of the engine needs: make it, translate a block that is hot,
 * run it, forget it. The vCPU's own thread, all of it.
 */
#ifndef LODGE_CPU_SOFT_JIT_JIT_H
#define LODGE_CPU_SOFT_JIT_JIT_H

#include "cpu/soft/soft.h"

struct block;

/* Code memory in bytes. When it is full all translations are dropped and made anew. */
enum { JIT_CODE_SIZE = 48 << 20 };

/*
 * What translated code, all that is kept about it, and decoded blocks may take
 * together for one vCPU, and for each of several as far as soft_share allows. With
 * more, all its translations are dropped and made anew.
 */
enum { JIT_BUDGET = 58 << 20, JIT_BUDGET_LEAST = 12 << 20 };
/* What they take. May be asked from other threads; then it is roughly right. */
struct jit_memory {
    size_t code, metadata;
};
struct jit_memory jit_memory(const struct soft_cpu *cpu);
/* Bytes that decoded instructions may take beyond their least room: half of what all the rest
 * leaves of the budget, so that either can grow. */
size_t jit_room(const struct soft_cpu *cpu);

struct jit_config {
    uint32_t heat; /* runs of a block before it is translated */
    bool patient;  /* at first a multiple of that: the guest may end soon */
    uint32_t runs; /* and before it is extended then; 0: at once */
    size_t code;   /* bytes of code memory, JIT_CODE_SIZE at most */
    bool exact;    /* a fault shows even flags that no instruction would have read */
};

/* -ENOTSUP when the host's processor lacks what translated code uses (AVX2, BMI2). */
int jit_create(struct soft_cpu *cpu, const struct jit_config *config, struct error *err);
void jit_destroy(struct soft_cpu *cpu);

/* Once on the vCPU's thread before it runs translated code: GS points to the vCPU from then on. */
void jit_enter_thread(struct soft_cpu *cpu);

/* Whether the vCPU's present state lets translated code run at all: 64-bit mode, or 32-bit with
 * flat segments; all SIMD exceptions masked, no debugging. */
bool jit_usable(const struct soft_cpu *cpu);

/*
 * Whether jit_translate would do something for a block: it is not translated,
 * or was translated quickly and has run so often since that it is worth
 * translating well, extended (block_extend).
 */
bool jit_wants(const struct soft_cpu *cpu, const struct block *block);

/* Translates a block of at least one instruction and returns it, or the longer block that took its
 * place; its code is set unless it cannot be. */
struct block *jit_translate(struct soft_cpu *cpu, struct block *block);

/* Whether a translated block goes on behind this instruction although it may branch. */
bool jit_goes_on_behind(const struct insn *insn);

/*
 * Runs translated code from block->code until it leaves; cpu->rip is then
 * exact. Exceptions unwind through it like through handlers. Chains are made
 * on the way when the next block is translated.
 */
void jit_run(struct soft_cpu *cpu, struct block *block);

/* The block's instructions changed or its memory is about to be reused: nothing enters it again. */
void jit_forget(struct soft_cpu *cpu, struct block *block);

struct block_place;

/* A place's blocks have moved by `delta` bytes, from its linear address: their code follows. */
void jit_move_place(struct soft_cpu *cpu, struct block_place *place, uint64_t delta);
/* A place has no blocks left. */
void jit_leave_place(struct soft_cpu *cpu, struct block_place *place);

/* What level 1 of the TLB holds for writing changes: the stack windows, and all checks that
 * translated code has made so far, hold no more. */
void jit_drop_window(struct soft_cpu *cpu);

/* Privilege, mode or the choice of the TLB have changed (cpu->tlb): what translated code has
 * checked so far holds no more. */
void jit_mode_changed(struct soft_cpu *cpu);

/* Between blocks: empties code memory when it is full, or has decoded instructions make room. */
void jit_safe_point(struct soft_cpu *cpu);

#endif
