/*
 * What the translator's files share: the vCPU's translations, and the state
 * of one translation in the making.
 *
 * Registers of translated code: every guest register lives in the host
 * register of the same number, except R13 to R15, which live in the vCPU's
 * state and leave their host registers to the translator. GS points to the
 * vCPU. RSP is the guest's: signals come on an alternate stack, and C is
 * entered only through the stubs, which switch stacks.
 *
 * Flags are in up to three places, and at every instruction the translator
 * knows in which: the host's EFLAGS, jit_state.saved_flags, or a recipe that
 * works them out again from registers that still hold what it needs.
 */
#ifndef LODGE_CPU_SOFT_JIT_TRANSLATION_H
#define LODGE_CPU_SOFT_JIT_TRANSLATION_H

#include <sys/types.h>

#include "cpu/soft/block.h"
#include "cpu/soft/jit/code_memory.h"
#include "cpu/soft/jit/emit.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/jit/map.h"
#include "cpu/soft/jit/recode.h"
#include "cpu/soft/jit/rows.h"

enum {
    TEMP_A = R15, /* addresses */
    TEMP_B = R14,
    TEMP_C = R13,
    FIRST_HOMED = R13,
    SITES_MAX = 1 << 20,
    EXITS_MAX = 1 << 18,
    BLOCKS_MAX = 1 << 17,
};

#define CPU_AT(member) ((int32_t)offsetof(struct soft_cpu, member))
#define GPR_AT(n)      ((int32_t)(offsetof(struct soft_cpu, gpr) + 8 * (n)))

/* A place where translated code may go to C for one instruction. */
struct jit_site {
    struct block *block;
    uint32_t resume; /* offset of the next instruction's code */
    uint16_t insn;   /* index in the block */
    uint8_t recipe;  /* enum flags_recipe: flags come from it; RECIPE_NONE: from saved_flags */
    uint8_t spare;
    uint16_t recipe_insn; /* the instruction that made the flags */
};

/* A place where translated code leaves for a known rip. */
struct jit_exit {
    uint64_t rip;
    struct block *from;
    uint8_t *field;   /* the jump to patch, or NULL: found by the jump table */
    bool flags_saved; /* taken with flags in saved_flags; else in the host's register */
};

struct jit_block {
    /* Entries, in the writable mapping: with flags in EFLAGS; with flags in saved_flags. Where both
     * are the same the block does not care. */
    uint8_t *entry_host, *entry_saved;
    /* What to aim the entries at once the block is dead. */
    uint8_t *dead_host, *dead_saved;
    struct block *block;
};

struct jit {
    struct code_memory memory;
    size_t stubs_end;     /* code that survives a flush */
    const uint8_t *enter; /* executable: void (*)(struct soft_cpu *, const uint8_t *code) */
    /* In the writable mapping: */
    uint8_t *callout;                          /* TEMP_B: site */
    uint8_t *leave_saved, *leave_host;         /* TEMP_B: exit */
    uint8_t *leave_rip_saved, *leave_rip_host; /* TEMP_A: rip */
    /* TEMP_C: code to go on at. TEMP_A: rip to find; TEMP_B: site or exit when it is not found. */
    uint8_t *find_or_callout, *find_or_leave;
    uint8_t *string;          /* TEMP_B: site, TEMP_C: code to go on at */
    const uint8_t *leave_now; /* executable; cpu->rip is set, everything stored: for call-outs */
    struct jit_site *sites;
    struct jit_exit *exits;
    struct jit_block *blocks;
    uint32_t site_count, exit_count, block_count;
    pid_t alarm_thread; /* that the alarm goes to; 0: there is none yet */
    bool exact;         /* keep flags that only a fault could show */
    bool full;          /* flush at the next chance */
    uint64_t next_context;
    struct insn scratch[2]; /* the instruction of a call-out and what stops after it */
    bool completed;
    struct jit_map map;
};

/* STALE: nobody will read the flags; what saved_flags holds is as good as anything. */
enum { FLAGS_HOST = 1, FLAGS_SAVED = 2, FLAGS_STALE = 4 };

struct translation {
    struct emitter out;
    struct soft_cpu *cpu;
    struct jit *jit;
    struct block *block;
    uint8_t code[BLOCK_INSNS_MAX * 15]; /* a copy: guest memory may change meanwhile */
    const struct insn *insn;
    struct raw raw;
    unsigned index; /* of insn */
    /* Flags: where they are, and the recipe if there is one. */
    unsigned flags;
    uint8_t recipe;
    uint16_t recipe_insn;
    uint32_t recipe_registers; /* it needs these to stay */
    /* Status flags that somebody reads, before each instruction; [count]: after the last. */
    uint16_t live[BLOCK_INSNS_MAX + 1];
    /* Checks that failed go out of line: jump fields to resolve at the end. */
    struct {
        uint8_t *field;
        uint32_t number;      /* of a site, or an exit */
        const uint8_t *retry; /* code to try again when the jump table could be filled, or NULL */
        bool leaves;          /* else: to leave by the exit; otherwise to call out */
    } slow[4 * BLOCK_INSNS_MAX];
    unsigned slow_count;
    uint32_t site;      /* of the present instruction, or SITES_MAX before one is made */
    uint64_t pages_rip; /* linear rip's page of the block */
    struct jit_block *made;
};

/* ---- liveness.c ---- */

/* Fills t->live. Notes in the block which bytes beyond its own that rests on. */
void liveness_find(struct translation *t);
/* The status flags that code at rip may read before it writes them; all when that is not known. */
unsigned liveness_at(struct translation *t, uint64_t rip);

/* ---- flags.c ---- */

/* Before EFLAGS are clobbered: sees to it that the flags can be had again. */
void flags_protect(struct translation *t);
/* Nobody reads the present flags: they count as saved. */
void flags_not_needed(struct translation *t);
void flags_to_host(struct translation *t);
void flags_to_saved(struct translation *t);
/* Before registers in `mask` change: a recipe that needs them is used now or dropped. */
void flags_registers_change(struct translation *t, uint32_t mask);
/* After the present instruction wrote all flags: notes the recipe for them. */
void flags_written(struct translation *t, const struct lowering *lowering);
void emit_save_flags(struct emitter *e);
void emit_restore_flags(struct emitter *e);

/* ---- memory.c ---- */

/* The linear address of the memory operand in TEMP_A. Flags must be protected. */
void lower_address(struct translation *t);
/* TEMP_A from linear to host address, or to the slow path. Flags must be protected. */
void lower_check(struct translation *t, enum tlb_kind kind, unsigned size);
void lower_alignment(struct translation *t, unsigned size);
/* The present instruction's site; made on first use with the flags' present place. */
uint32_t lower_site(struct translation *t);
/* The present instruction goes to the slow path when `condition` holds. */
void lower_slow_if(struct translation *t, unsigned condition);
/* TEMP_A's rip is looked for when `condition` holds, then `retry` is run again. */
void lower_find_if(struct translation *t, unsigned condition, const uint8_t *retry, uint32_t number,
                   bool leaves);

/* ---- stubs.c ---- */

void stubs_make(struct jit *jit, struct soft_cpu *cpu);

/* ---- run.c ---- */

const uint8_t *jit_callout(struct soft_cpu *cpu, uint32_t site);

static inline bool is_homed(unsigned reg) {
    return reg >= FIRST_HOMED && reg <= R15;
}

#endif
