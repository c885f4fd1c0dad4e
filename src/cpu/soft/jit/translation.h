/*
 * What the translator's files share: the vCPU's translations, and the state
 * of one translation in the making.
 *
 * Registers of translated code: every guest register lives in the host
 * register of the same number, except
 *   RSP          in R12, as a host address: guest RSP + jit_state.stack_addend (by side: state.h)
 *   R12 R14 R15  in the vCPU's state ("homed"): R14 and R15 are temporary, R12 see above
 * The host's RSP points into the shadow stack, which holds the return points
 * of guest calls. GS points to the vCPU. C is entered only through the stubs,
 * which switch to the thread's own stack; signals come on an alternate one.
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
#include "cpu/soft/jit/values.h"

enum {
    TEMP_A = R15, /* addresses */
    TEMP_B = R14,
    STACK = R12,
    NO_GROUP = 0xff,
    GROUPS_MAX = 32,
    PATH_INSNS_MAX = 128, /* of a block with its short loops unrolled */
};

#define CPU_AT(member) ((int32_t)offsetof(struct soft_cpu, member))
#define GPR_AT(n)      ((int32_t)(offsetof(struct soft_cpu, gpr) + 8 * (n)))

/* What is tried in C at a site before the whole instruction is called out. */
enum site_kind {
    SITE_CALLOUT,
    SITE_ACCESS, /* a TLB miss: fill and retry */
    SITE_GROUP,  /* the same for a group; where its range needs more than one page, go on plainly */
    SITE_STACK,  /* the stack window: move it and retry, or go on plainly */
    SITE_RETURN, /* a RET whose target is looked for; RSP has not moved yet */
};

/*
 * What is noted about a translation, in code memory: this header, its sites, exits and
 * relocations. Notes of code that is made to be small (translation.dense) are behind it; all others
 * are at the end of code memory, so that they do not come between code that runs.
 *
 * Notes have numbers, their places in code memory in words of two bytes. Places in the code count
 * from its first byte.
 */
struct jit_block {
    struct block *block; /* which it was made of */
    uint64_t rip, key;   /* of the block, to find what has taken its place */
    uint32_t code;       /* its first byte in code memory */
    uint32_t next;       /* the number of the translation whose code is behind, or 0 */
    /* What moving it takes (move.c). */
    uint32_t place;      /* by block_place_number; 0: never moves, or its place is gone */
    uint32_t place_next; /* the number of the place's next translation, or 0 */
    /* Entries: with flags in EFLAGS; with flags in saved_flags. Where both are the same the block
     * does not care. */
    uint16_t entry_host, entry_saved;
    uint16_t second_page; /* the number in a straddling block's check, or 0 */
    uint16_t counter;     /* of its runs, in jit_state.runs_left */
    uint16_t site_count, relocation_count;
    uint16_t relocations; /* bytes from here */
    uint8_t exit_count;
    bool dead : 1;    /* the block was dropped, or translated anew */
    bool counted : 1; /* its runs are, until it is worth more (jit_wants) */
};
_Static_assert(sizeof(struct jit_block) == 56, "there are many");
enum { JIT_CODE_MAX = UINT16_MAX, JIT_NOTES_ALIGN = 8, JIT_WORD = 2 };

/* What an entry is aimed at once the block is dead, a call: the code's beginning, for flags in
 * EFLAGS first where there are two. */
enum { JIT_DEAD_ENTRY = 5 };
static inline unsigned jit_dead_entry(const struct jit_block *made, bool saved) {
    return made->entry_host != made->entry_saved && saved ? JIT_DEAD_ENTRY : 0;
}

/* A place where translated code may go to C for one instruction. */
struct jit_site {
    uint16_t start;           /* words from the translation's start to here */
    uint16_t resume;          /* the next instruction's code */
    uint16_t retry;           /* the check that failed */
    uint16_t span;            /* bytes that the check covers */
    uint32_t offset : 10;     /* of the instruction, in bytes of the block */
    uint32_t insn : 6;        /* index in the block */
    uint32_t recipe_insn : 6; /* the instruction that made the flags */
    uint32_t recipe : 3; /* enum flags_recipe: flags come from it; RECIPE_NONE: from saved_flags */
    uint32_t kind : 3;   /* enum site_kind */
    uint32_t tlb : 2;    /* enum tlb_kind of the access */
    uint32_t faults : 1; /* a page fault of the access is what the instruction raises */
    uint32_t writes_now : 1; /* the access itself writes, not only a later one of its group */
};
_Static_assert(sizeof(struct jit_site) == 12 && BLOCK_INSNS_MAX <= 1 << 6, "as the fields have it");

/*
 * A place where translated code leaves for a known rip. As long as it is not linked it calls a
 * stub, and the exit is known by where that call would come back to. Between pages a *guard* is
 * before that: a compare of the target's mapping with a number, and a JE. Guards fail whenever
 * address spaces change, so what is behind them pushes the exit's number instead: that needs no
 * search, and the host's prediction of returns is left alone.
 */
struct __attribute__((packed, aligned(2))) jit_exit {
    uint16_t field;       /* of the jump or call to patch, the guard's where there is one */
    uint16_t back;        /* where the call comes back to */
    int32_t rip;          /* of the block that it leads to, from the translation's */
    uint8_t kind : 2;     /* enum exit_kind */
    uint8_t side : 2;     /* of the block that it leads to: KEY_TLB of its key */
    bool flags_saved : 1; /* taken with flags in saved_flags; else in the host's register */
    bool guarded : 1;
    bool polls : 1; /* taken for a request's sake */
    bool plain : 1; /* KEY_PLAIN of its key */
    uint8_t unused; /* sizes are even: they have numbers */
    /* Only where it is guarded: for which place, in its life; words from the notes' header to here.
     */
    uint32_t target, target_life;
    uint16_t start;
};
_Static_assert(sizeof(struct jit_exit) == 20, "whole words");
enum exit_kind {
    EXIT_JCC,
    EXIT_JMP, /* the jump is the call until it is linked */
    EXIT_CALL /* the same, and unless it is guarded it comes back to the return point */
};

/* A page of code as it is mapped: links between pages hold while the target's mapping does. */
struct jit_mapping {
    uint64_t linear, gpa; /* pages */
    uint64_t key;         /* block.key */
    uint32_t number;      /* 0: unused */
};
enum { JIT_MAPPINGS = 1 << 14 };

/* What depends on a block's linear address: its place << 1 | kind. */
enum {
    RELOCATE_ADDRESS, /* 8 bytes: a linear address */
    RELOCATE_SLOT,    /* 4 bytes: where the TLB has the page of the address relocated before */
};

/* Checks by a call: of 1 to 32 bytes; of the stack, of so many words of 4 bytes at most. */
enum { CHECK_SIZES = 6, CHECK_STACK_WORDS = 32 };

struct jit {
    struct code_memory memory;
    size_t stubs_end;     /* code that survives a flush */
    const uint8_t *enter; /* executable: void (*)(struct soft_cpu *, const uint8_t *code) */
    /* In the writable mapping. TEMP_B: site */
    uint8_t *callout;
    /* TEMP_B: exit */
    uint8_t *leave_saved;
    /* With the number of a site, exit or block pushed; these go on where C says. */
    uint8_t *miss[TLB_INDEXES][TLB_KINDS]; /* TEMP_A: linear ^ tag, TEMP_B: slot */
    uint8_t *x87;                          /* the guest's x87 state is not in the host's */
    uint8_t *constant_miss;                /* a TLB miss at a known address */
    uint8_t *stack_miss;
    /*
     * The first tier's checks, called. TEMP_A: the linear address, then the host's. Of the stack:
     * what STACK and a displacement make. Their sites' `retry` is where they come back to.
     */
    uint8_t *check[TLB_INDEXES][TLB_WRITE + 1][CHECK_SIZES];
    uint8_t *check_stack[JIT_SIDES][CHECK_STACK_WORDS + 1];
    const uint8_t *checked; /* executable: comes back from one with jit_state.checked */
    uint8_t *string;
    uint8_t *light;     /* an instruction of the system */
    uint8_t *find;      /* TEMP_A: rip */
    uint8_t *find_slot; /* TEMP_B: the jump table's slot that has the rip */
    /* Called, by flags saved or in EFLAGS: an exit that is not linked; a block that is dead, or
     * whose second page is elsewhere, or that is worn. */
    uint8_t *exit, *exit_host, *gone, *gone_host;
    uint8_t *unguarded; /* an exit whose guard failed, its number pushed, flags saved */
    uint8_t *poll;      /* called; does not come back when there are requests */
    /* By side. TEMP_A: rip, TEMP_B: site of the RET: it met another's return point */
    uint8_t *returned[JIT_SIDES];
    const uint8_t *shadow_bottom[JIT_SIDES]; /* executable: where a RET without CALL goes on */
    const uint8_t *leave_here; /* executable; cpu->rip is set, flags saved: for light calls */
    const uint8_t *leave_now;  /* executable; cpu->rip is set, everything stored: for call-outs */
    struct jit_mapping *mappings;
    uint32_t first, last;   /* numbers of translations, or 0 */
    uint32_t made;          /* translations since code memory was emptied */
    uint32_t last_number;   /* of a mapping; 0 is none */
    uint32_t loop_hosts;    /* how many of jit_state.loop_host are given out */
    uint8_t *shadow;        /* the shadow stacks, a guard below each */
    pid_t alarm_thread;     /* that the alarm goes to; 0: there is none yet */
    size_t least;           /* bytes of jit_memory when there are no translations */
    size_t budget;          /* bytes of jit_memory, at which all is dropped */
    uint32_t heat;          /* of a block to be translated, while there is much room */
    bool patient;           /* and while many have not been translated; see run.c */
    uint32_t runs;          /* of a block until it is extended, while there is much room; */
    uint32_t runs_most;     /* and later. 0: at once */
    bool exact;             /* keep flags that only a fault could show */
    bool full;              /* flush at the next chance */
    bool crowded;           /* decoded instructions are to make room then */
    uint64_t random;        /* for stack windows that hold nothing */
    struct insn scratch[2]; /* the instruction of a call-out and what stops after it */
    bool completed;
    struct jit_map map;
};

/* What has a number, in the writable mapping. */
static inline void *jit_at(const struct jit *jit, uint32_t number) {
    return jit->memory.writable + (size_t)number * JIT_WORD;
}

static inline uint32_t jit_number(const struct jit *jit, const void *at) {
    return (uint32_t)(((const uint8_t *)at - jit->memory.writable) / JIT_WORD);
}

static inline struct jit_block *jit_block_of_site(const struct jit_site *site) {
    return (struct jit_block *)((uintptr_t)site - (uintptr_t)site->start * JIT_WORD);
}

/* A place in a translation's code, executable; writable. */
static inline const uint8_t *jit_code(const struct jit *jit, const struct jit_block *made,
                                      unsigned at) {
    return jit->memory.executable + made->code + at;
}
static inline uint8_t *jit_code_writable(const struct jit *jit, const struct jit_block *made,
                                         unsigned at) {
    return jit->memory.writable + made->code + at;
}

/* The first of its sites. */
static inline struct jit_site *jit_sites(struct jit_block *made) {
    return (struct jit_site *)(void *)(made + 1);
}

static inline uint64_t jit_exit_rip(const struct jit_block *made, const struct jit_exit *exit) {
    uint64_t rip = made->rip + (uint64_t)(int64_t)exit->rip;
    return (made->key & KEY_MODE) == INSN_MODE_64 ? rip : (uint32_t)rip;
}

static inline uint64_t jit_exit_key(const struct jit_block *made, const struct jit_exit *exit) {
    return (made->key & ~(uint64_t)(KEY_PLAIN | KEY_TLB)) | (uint64_t)exit->side << 7 |
           (exit->plain ? KEY_PLAIN : 0);
}

/* Of an exit that is guarded. */
static inline struct jit_block *jit_block_of_exit(const struct jit_exit *exit) {
    return (struct jit_block *)((uintptr_t)exit - (uintptr_t)exit->start * JIT_WORD);
}

static inline struct jit_exit *jit_exits(struct jit_block *made) {
    return (struct jit_exit *)(void *)(jit_sites(made) + made->site_count);
}

static inline unsigned jit_exit_size(bool guarded) {
    return guarded ? sizeof(struct jit_exit) : offsetof(struct jit_exit, target);
}

static inline struct jit_exit *jit_exit_next(struct jit_exit *exit) {
    return (struct jit_exit *)(void *)((uint8_t *)exit + jit_exit_size(exit->guarded));
}

/* STALE: nobody will read the flags; what saved_flags holds is as good as anything. */
enum { FLAGS_HOST = 1, FLAGS_SAVED = 2, FLAGS_STALE = 4 };

/* Accesses off what the same registers held, checked together where the first of them is. */
struct group {
    int64_t low, high;    /* of the first byte, behind the last: what is added to them */
    uint32_t base, index; /* versions (values.h) */
    uint8_t scale, seg, address_size;
    bool stack;
    bool open;    /* while groups are being found */
    bool write;   /* some access of it writes */
    bool checked; /* by now */
    bool aligned; /* found to be 16-byte aligned at disp `aligned_at` */
    uint16_t count;
    int64_t aligned_at;
};

/* The side (state.h) that the block's code is on. */
static inline unsigned side_of_block(const struct block *block) {
    return jit_side_of(block->key);
}

/* Where a memory operand is in this process. */
struct operand {
    unsigned base; /* host register */
    int32_t disp;
    bool indexed; /* index << scale is added: only where a native instruction uses it */
    uint8_t index, scale;
};

enum { LOOP_GROUPS_MAX = JIT_LOOP_GROUPS };

/* Accesses of a loop off the same registers, checked together before it (loops.c). */
struct loop_group {
    int64_t low, high; /* displacements of all turns' bytes, by what the registers hold before */
    int32_t step;      /* bytes a turn */
    uint8_t base, index, scale, seg;
    bool base_steps, index_steps;
    bool stack;    /* near RSP: in the stack window */
    bool relative; /* to RIP */
    bool write;
    uint8_t alignment; /* of what is at aligned_at; 1: none is asked for */
    int64_t aligned_at;
};

/* A block that branches back to its own start. */
struct loop {
    unsigned count; /* instructions, up to that branch */
    bool running;   /* its unchecked body is being made */
    unsigned group_count;
    struct loop_group groups[LOOP_GROUPS_MAX];
    uint8_t group_of[PATH_INSNS_MAX]; /* whose check covers an instruction's operand, or NO_GROUP */
    int64_t disp[PATH_INSNS_MAX];     /* of the operand, by what the registers hold before */
    int64_t rest[PATH_INSNS_MAX];     /* the same, but by what those hold then that step */
    int64_t step[16];                 /* by which a register changes each turn, */
    uint32_t varying;                 /* unless it changes otherwise */
    unsigned turns;                   /* between two checks */
    bool all;                         /* and as many more as there are on the page */
    unsigned copies, copies_left;     /* of the unchecked body; behind the one that is being made */
    int limit;                        /* the register that counts them, or -1 */
    unsigned resident;                /* groups that keep a temporary register: the first so many */
    unsigned hosts;                   /* where jit_state.loop_host has the first's */
    uint8_t *start, *ordinary;        /* the ordinary body: from outside, and its next turn */
    uint8_t *to_head;                 /* the jump from there to the checks */
    uint8_t *head, *body;             /* the checks; where an unchecked turn begins */
};

enum {
    SITES_MAX = 8 * PATH_INSNS_MAX,
    EXITS_MAX = 240, /* jit_block.exit_count */
    RELOCATIONS_MAX = 1024
};

struct translation {
    struct emitter out;
    struct soft_cpu *cpu;
    struct jit *jit;
    struct block *block;
    uint8_t *start;         /* of the code */
    struct jit_block *made; /* `header` until it is done */
    struct jit_block header;
    enum insn_mode mode;
    unsigned word;            /* bytes of an address, and of what PUSH and CALL push: 8, or 4 */
    const struct insn *insns; /* the path through the block (path.c) */
    unsigned count;
    const struct insn *insn;
    struct raw raw;
    unsigned index; /* of insn on the path */
    /* Flags: where they are, and the recipe if there is one. */
    unsigned flags;
    uint8_t recipe;
    uint16_t recipe_insn;
    uint32_t recipe_registers; /* it needs these to stay */
    bool code_may_change;      /* by a store of its own page's code: liveness.c */
    struct {
        uint64_t rip;
        unsigned live;
    } looked[16]; /* what liveness_at found */
    unsigned group_count;
    int32_t rsp_pending; /* by which STACK has yet to move, after PUSHes and POPs */
    /* TEMP_A and TEMP_B hold these groups' host addresses, or NO_GROUP (temps.c). */
    uint8_t temp_group, second_temp_group;
    bool leaves_second; /* the present instruction leaves TEMP_B alone, but for its operand */
    unsigned slow_count, site_use_count, exit_count, constant_count, relocation_count;
    unsigned site_count, first_site; /* first_site: of the present instruction */
    unsigned site;              /* of the present instruction, or SITES_MAX before one is made */
    bool x87_ready;             /* the guest's x87 state is in the host's registers */
    uint64_t pages_rip;         /* linear rip's page of the block */
    bool loops;                 /* the block is a loop */
    bool in_shadow;             /* of an STI before the present instruction */
    bool moves;                 /* relocations are noted */
    bool counts;                /* the block's runs are to be counted */
    bool dense;                 /* little code matters more than fast code: checks are called */
    uint8_t *second_page_field; /* the jump when a straddling block's second page is elsewhere */
    struct loop loop;
    /* From here on not cleared beforehand. */
    uint8_t code[BLOCK_INSNS_MAX * 15]; /* a copy: guest memory may change meanwhile */
    struct insn path[PATH_INSNS_MAX];   /* where it is not the block's own sequence */
    uint8_t source[PATH_INSNS_MAX];     /* where in the block each instruction of the path is */
    uint8_t kinds[PATH_INSNS_MAX];      /* lower_kind of each */
    /* Status flags that somebody reads, before each instruction; [count]: after the last. */
    uint16_t live[PATH_INSNS_MAX + 1];
    /* Groups, and which an instruction's operand and its use of the stack belong to. */
    struct group groups[GROUPS_MAX];
    uint8_t operand_group[PATH_INSNS_MAX], stack_group[PATH_INSNS_MAX];
    int64_t operand_at[PATH_INSNS_MAX]; /* the operand, in its group's terms */
    int32_t rsp_moved[PATH_INSNS_MAX];  /* since the stack group's displacements began to count */
    struct jit_site sites[SITES_MAX];
    /* 32-bit fields that are to hold the number of a site. */
    struct {
        uint8_t *field;
        unsigned site;
    } site_uses[2 * SITES_MAX];
    /* Checks that failed go out of line: jump fields to resolve at the end. */
    struct {
        uint8_t *field;
        unsigned site;
        uint8_t *stub;
        bool in_temp; /* the number goes to TEMP_B, else it is pushed */
    } slow[SITES_MAX];
    struct exit {
        uint64_t rip;
        uint8_t *field, *back; /* as in struct jit_exit */
        uint8_t *number;       /* 32-bit field for it, or NULL */
        enum exit_kind kind;
        unsigned side;
        bool flags_saved, guarded, polls, plain;
    } exits[EXITS_MAX];
    struct {
        uint8_t *field;
        uint64_t value;
    } constants[PATH_INSNS_MAX];
    uint16_t relocations[RELOCATIONS_MAX];
};

/* ---- path.c ---- */

/* Fills t->insns, count, source and kinds. */
void path_find(struct translation *t);
/* Of a loop, the last of these instructions being the jump back: a turn is long, and is seldom left
 * in its midst, as far as one can see. Then checks before the loop pay from the first turn on. */
bool path_is_long_turn(const struct translation *t, unsigned first, unsigned count);

/* ---- groups.c ---- */

/* Which accesses are checked together. */
void groups_find(struct translation *t);

/* ---- loops.c ---- */

/* Whether the block is a loop with accesses whose checks can be made before it: t->loops. */
bool loop_find(struct translation *t);
/* The checks are made before the first turn: the unchecked body comes before the ordinary one. */
bool loop_at_once(const struct translation *t);
/* Before the ordinary body. */
void loop_begin(struct translation *t);
/* temp_group, where TEMP_A has a loop's group 0; 1 follows, and so on. */
enum { LOOP_TEMP_GROUP = 0x80 };
/* The checks, and where its unchecked body begins. Fills `fails` (LOOP_FAILS_MAX) with the jumps
 * of those that fail; their number. Flags are saved, or nobody needs them. */
enum { LOOP_FAILS_MAX = 2 * LOOP_GROUPS_MAX };
unsigned loop_enter(struct translation *t, uint8_t **fails);
/* Behind it all: where those jumps go. */
void loop_fails(struct translation *t, uint8_t *const *fails, unsigned count);
/* In the unchecked body: the operand of the present instruction, where loop.group_of has one. */
struct operand loop_operand(struct translation *t);
/* Its operand is one addressing mode off the group's host address. */
bool loop_operand_is_simple(const struct translation *t);
/* True: the present branch is the one that goes to the next turn, and has been made. *goes_on: the
 * body goes on behind it. */
bool loop_back(struct translation *t, bool *goes_on);

/* ---- temps.c ---- */

/* Before the present instruction: t->leaves_second. */
bool temps_leave_second(const struct translation *t);
/* The temporary register that holds a group's host address, loaded from there if it is in none. */
unsigned temps_load(struct translation *t, uint8_t group, int32_t from);

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
/* The same in its place, for one that does nothing else; false: there is no recipe. */
bool flags_by_recipe_only(struct translation *t, const struct lowering *lowering);
void emit_save_flags(struct emitter *e);
void emit_restore_flags(struct emitter *e);

/* ---- memory.c ---- */

/* The check of the stack's group, if it is still to be made: before anything else of an instruction
 * that may be called out for its operand, because the call-out comes back behind all checks. */
void lower_check_stack(struct translation *t, bool write);
/* The linear address of the memory operand, plus `more`, in TEMP_A. Leaves flags alone. */
void lower_address(struct translation *t, int32_t more);
/* Adds the base of FS or GS to TEMP_A. Clobbers flags. */
void lower_add_segment(struct translation *t, unsigned seg);
/* Where the table of level 1 is that the block's accesses use, from the vCPU's start. */
int32_t lower_tlb_table(const struct translation *t, enum tlb_kind kind);
/* TEMP_A: a linear address. Looks for it in that table: TEMP_B is then its slot, TEMP_A its offset
 * in the page, and COND_A says that `span` bytes are not there. */
void lower_look_up(struct translation *t, int32_t table, unsigned span);
/* The memory operand, checked for an access of `size` bytes; aligned: to so many as well. */
struct operand lower_operand(struct translation *t, enum tlb_kind kind, unsigned size,
                             unsigned aligned);
/* A word at RSP + disp; RSP moves by what groups.c noted only when the caller moves it. */
struct operand lower_stack(struct translation *t, enum tlb_kind kind, int32_t disp);
/* A single access whose linear address the code from `retry` on puts into TEMP_A: where it is in
 * this process. Flags must be protected. */
void lower_check_single(struct translation *t, const uint8_t *retry, enum tlb_kind kind,
                        unsigned size);
/* A word at RBP, read: their host address in TEMP_A. Flags must be protected. */
void lower_check_rbp(struct translation *t);
/* The present instruction's site for call-outs; made on first use with the flags' present place. */
unsigned lower_site(struct translation *t);
/* The site's `retry`. */
void lower_retry_at(struct translation *t, unsigned site, const uint8_t *retry);
/* The present instruction is called out when `condition` holds. */
void lower_slow_if(struct translation *t, unsigned condition);
/* The stub gets the number of the site pushed when `condition` holds. */
void lower_stub_if(struct translation *t, unsigned condition, uint8_t *stub, unsigned site);
/* To a stub, with the number of a site pushed. */
void lower_to_stub(struct translation *t, unsigned site, const uint8_t *stub);
/* The number of a site to TEMP_B. */
void lower_load_site(struct translation *t, unsigned site);
/* Behind the body: where checks that failed go. */
void lower_slow_paths(struct translation *t);
/* Guest RSP in a register; the reverse. Leave flags alone. */
void lower_load_rsp(struct translation *t, unsigned to);
void lower_store_rsp(struct translation *t, unsigned from);

/* ---- native.c ---- */

void lower_callout(struct translation *t);
/* How many different registers of the instruction have to be stood in for. */
unsigned lower_elsewhere_count(const struct insn *insn, const struct lowering *l);
void lower_native(struct translation *t, const struct lowering *l);
void lower_bits(struct translation *t, const struct lowering *l);
void lower_lea(struct translation *t);
/* It names registers that are in their places. */
bool lower_lea_is_near(const struct insn *insn);
void lower_divide(struct translation *t, bool is_signed);
void lower_string(struct translation *t);
void load_home(struct translation *t, unsigned temp, unsigned gpr);
void store_home(struct translation *t, unsigned temp, unsigned gpr);
bool uses_high_byte(const struct insn *insn, const struct lowering *l);
/* How the instruction is lowered (enum lower_kind): as its row says, or called out after all. */
uint8_t lower_kind(const struct insn *insn, const struct lowering *l);
/* Registers that an instruction lowered so may change. */
uint32_t lower_changes(const struct insn *insn, const struct lowering *l, uint8_t kind);

/* ---- stack.c ---- */

void lower_push(struct translation *t);
void lower_push_memory(struct translation *t);
void lower_pop(struct translation *t);
void lower_leave(struct translation *t);
void lower_move_rsp(struct translation *t, int32_t by);
/* STACK is moved now by what PUSHes and POPs in a row have left pending. */
void lower_settle_rsp(struct translation *t);
/* A CALL's return address. */
void lower_push_rip(struct translation *t, uint64_t rip);
/* PUSH or POP that takes no notice of RSP's value. */
bool lower_leaves_rsp_pending(const struct translation *t);
/* True: done. Arithmetic on RSP that needs no detour. */
bool lower_rsp_arithmetic(struct translation *t, const struct lowering *l);

/* ---- branch.c ---- */

uint64_t lower_next_rip(const struct translation *t);
/* `offset` from there, wrapped as the mode has it. */
uint64_t lower_target_rip(const struct translation *t, uint64_t offset);
void lower_goto(struct translation *t, uint64_t rip);
/* The same when `condition` of EFLAGS holds; false, and nothing done, unless that is ahead on the
 * block's page. */
bool lower_goto_if(struct translation *t, unsigned condition, uint64_t rip);
/* To code of another side; flags are saved. */
void lower_goto_side(struct translation *t, uint64_t rip, unsigned side);
/* Goes on there without shared checks (KEY_PLAIN) when `condition` holds; flags are saved. */
void lower_plainly_if(struct translation *t, unsigned condition, uint64_t rip);
/* Leaves for rip, if that is behind, when there are requests. Flags are saved. The exit to it
 * follows. */
void lower_poll(struct translation *t, uint64_t rip);
void lower_jmp_indirect(struct translation *t);
void lower_ret(struct translation *t);
void lower_call(struct translation *t);
void lower_call_indirect(struct translation *t);
/* True: the block goes on behind it. */
bool lower_jcc(struct translation *t);
bool lower_is_backward(const struct translation *t, uint64_t rip);
bool lower_is_same_page(const struct translation *t, uint64_t rip);

/* ---- notes.c ---- */

/* The code is whole: what is noted about it goes to code memory, and both are there to stay. False:
 * no room. */
bool notes_commit(struct translation *t);

/* ---- exits.c ---- */

/* Leaves for a known rip, by a jump that is made here; condition: of EXIT_JCC. */
void lower_exit(struct translation *t, uint64_t rip, enum exit_kind kind, unsigned condition);
/* What is behind the block: exits' code, constants. */
void lower_exits(struct translation *t);

/* ---- stubs.c ---- */

void stubs_make(struct jit *jit, struct soft_cpu *cpu);

/* ---- move.c ---- */

/* Before a block is translated: notes of what depends on its address begin. */
void relocations_begin(struct translation *t);
/* Four (RELOCATE_SLOT) or eight bytes at field do. */
void relocate(struct translation *t, const uint8_t *field, unsigned kind);
/* A linear address that depends on the block's to a register. */
void emit_mov_address(struct translation *t, unsigned reg, uint64_t linear);
/* The block has been translated: its code belongs to its place. */
void relocations_end(struct translation *t);
/* Everything is dropped: called for each translation. */
void relocations_forget(struct soft_cpu *cpu, struct jit_block *made);

/* ---- link.c ---- */

/* Lets an exit go on at a translated block's entry, when both may be linked. The block is what the
 * present mapping holds at the exit's rip. */
void jit_link(struct soft_cpu *cpu, struct jit_block *made, struct jit_exit *exit,
              const struct block *to);
/* Where a guarded exit to `rip` is linked to, if that place is as it was then; else NULL. */
struct block_place *jit_linked_place(const struct soft_cpu *cpu, const struct jit_block *made,
                                     const struct jit_exit *exit, uint64_t rip);
/* The place is mapped where the exit leads: its guard passes from now on. The code behind it. */
const uint8_t *jit_link_again(struct soft_cpu *cpu, const struct jit_block *made,
                              const struct jit_exit *exit, struct block_place *place);
/* The exit whose call comes back to this place in its translation. */
struct jit_exit *jit_exit_behind(struct jit_block *made, unsigned back);
/* The number in a guard, four bytes. */
uint8_t *jit_guard_number(const struct jit *jit, const struct jit_block *made,
                          const struct jit_exit *exit);
/* The exit behind a poll that comes back there. */
struct jit_exit *jit_exit_polled(const struct jit *jit, struct jit_block *made, unsigned back);
/* The number of the mapping of a block's first (0) or, if it straddles, second page (1); 0 when
 * there are none left: everything is flushed then. */
uint32_t jit_mapping_of(struct soft_cpu *cpu, const struct block *block, unsigned page);
/* The number that the place's mapping has when it is at `linear`, now or next; 0 as before. */
uint32_t jit_number_at(struct jit *jit, struct block_place *place, uint64_t linear);
/* The jump table has no code of this rip any more. */
void jit_forget_jump(struct soft_cpu *cpu, uint64_t rip);
/* Whoever enters the old block goes on in the new one; NULL: in C. */
void jit_replace(const struct jit *jit, const struct jit_block *old, const struct jit_block *by);
/* A translated block that has run often enough to be extended. */
bool jit_is_worn(const struct soft_cpu *cpu, const struct jit_block *made);
/* Where to enter a translated block (executable), with flags saved, under the present mapping. A
 * straddling one checks its second page's mapping itself. */
const uint8_t *jit_entry(struct soft_cpu *cpu, const struct block *block);

/* ---- lower_system.c ---- */

/* The instruction's handler may run in a light call (light.c). */
bool is_light(const struct insn *insn);
void lower_light(struct translation *t);

/* ---- light.c ---- */

/* The handler behind a call-out's instruction: it completed. */
insn_exec jit_callout_done;

/* ---- run.c ---- */

/* Elements of a string instruction between two looks at requests. */
enum { JIT_CALLOUT_BUDGET = 4000 };

const uint8_t *jit_callout(struct soft_cpu *cpu, uint32_t site);
/* Before a translation: nothing is left of the budget, even if decoded instructions make room. Sets
 * cpu->heat_limit and jit.runs by how much of it is used: what is left is for the hottest. */
bool jit_is_over_budget(struct soft_cpu *cpu);

/* The address of an operand that only its displacement names, FS and GS aside. */
static inline uint64_t lower_constant(const struct insn *insn) {
    return insn->address_size == 8 ? (uint64_t)insn->disp : (uint32_t)insn->disp;
}

static inline bool is_homed(unsigned reg) {
    return reg == R12 || reg == R14 || reg == R15;
}

/* Not in the host register of its number. */
static inline bool is_elsewhere(unsigned reg) {
    return is_homed(reg) || reg == RSP;
}

#endif
