/*
 * The part of a vCPU that translated code itself reads and writes. It is
 * embedded in struct soft_cpu, which GS points to while a vCPU's thread runs.
 */
#ifndef LODGE_CPU_SOFT_JIT_STATE_H
#define LODGE_CPU_SOFT_JIT_STATE_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

enum { JIT_JUMP_BITS = 16, JIT_JUMPS = 1 << JIT_JUMP_BITS, JIT_JUMP_FOLD = 13 };
enum { JIT_SIDES = 3 };
/* code_map: pages that share no entry when they are near each other, and entries listed as used. */
enum { JIT_MAP_PAGES = 4096, JIT_MAP_LISTED = 512 };
/* Counters of runs, which blocks share by their numbers. */
enum { JIT_COUNTERS = 1 << 15 };
/* Groups of all loops together, and of one. */
enum { JIT_LOOP_HOSTS = 256, JIT_LOOP_GROUPS = 8 };

/* Where an indirect jump, a return or a jump to another page goes on. */
struct jit_jump {
    uint64_t rip;
    uint64_t context; /* jit_state.context when it was entered */
    const uint8_t *code;
    uint64_t spare;
};

struct jit;

struct jit_state {
    uint64_t host_rsp;   /* the thread's own stack while translated code runs */
    uint64_t shadow_rsp; /* the shadow stack while C runs */
    uint64_t resume;     /* code address to go on at */
    uint64_t target;     /* scratch: the code address of an indirect call */
    uint64_t argument;   /* scratch of the stubs that call fast.c */
    uint64_t checked;    /* what a check that was called comes back with */
    /* What RSP can hold: all of it or its lower half. Not stack_mask: an instruction that loads a
     * 16-bit stack segment, with which translated code ends, leaves the upper half of ESP alone. */
    uint64_t rsp_bits;
    /*
     * What each *side* has of its own: code of another privilege, or of another choice of the TLB
     * (enum tlb_index, KEY_TLB of the key). The present side is jit_side(). Context names address
     * space, privilege and mode; unique in the vCPU's life: for targets in the lower half, and in
     * the upper, where pages are global. key_of is the key of the code on the shadow stack.
     */
    uint64_t key_of[JIT_SIDES];
    uint64_t shadow_top[JIT_SIDES], shadow_of[JIT_SIDES]; /* where it begins; while others run */
    uint64_t context[JIT_SIDES][2];
    /*
     * The stack window: a page that may be written, at host address stack_host, where the guest's
     * RSP + addend_of is a host address. While there is none stack_host is a random address that
     * no guest can know, and addend_of is 0.
     */
    uint64_t stack_host[JIT_SIDES], addend_of[JIT_SIDES];
    _Atomic(uint8_t) *stack_flags[JIT_SIDES]; /* of the window's page; NULL: there is none */
    uint64_t stack_addend, stack_subtrahend;  /* the present side's, and its negative */
    uint64_t group_host[32];                  /* where groups of accesses are (translation.h) */
    uint64_t loop_host[JIT_LOOP_HOSTS];       /* where those of loops are, less what steps */
    uint64_t loop_offset[JIT_LOOP_GROUPS];    /* where in their pages those are */
    uint32_t loop_turns;                      /* ordinary ones that are left */
    uint64_t loop_limit;                      /* what a loop's register is when it checks again */
    /* Changes whenever something cached by level 1 of the TLB, or the mode, may hold no more. */
    uint64_t epoch;
    uint64_t entered_epoch; /* what it was when translated code was entered */
    uint32_t saved_flags;   /* AH of LAHF in bits 15:8, OF in bit 0 */
    uint32_t host_mxcsr;
    /* Outside 64-bit mode: FS and GS where they are data of 4 GiB; else `mark` is set. */
    struct {
        uint64_t base, mark;
    } narrow[2];
    bool flat;          /* segments are as translated code takes them to be (mmu.c) */
    uint64_t word;      /* of the running code: what RET takes from the stack */
    uint32_t exit;      /* which exit was taken: its number, or JIT_EXIT_RIP */
    uint32_t exit_from; /* the number of its translation */
    /* Since jumps were forgotten, or space changed: some code in the upper half is not global.
     * Since jumps were forgotten: some privileged code was in the lower half. */
    bool upper_is_local, lower_is_privileged;
    uint32_t plain; /* KEY_PLAIN: the next block is to be run without groups */
    /* Which mapping (jit.mappings) a page of code has now, by half and page number; and which
     * entries are not 0, for as many as are listed. */
    uint32_t code_map[2][JIT_MAP_PAGES];
    uint16_t map_used[2][JIT_MAP_LISTED];
    uint32_t map_used_count[2];
    int32_t runs_left[JIT_COUNTERS]; /* until a block is worth extending */
    uint64_t key;                    /* the running blocks' block.key */
    uint64_t generation;  /* part of it: changes when code pages may be mapped differently */
    uint32_t spaces;      /* how often the address space has changed */
    uint64_t fetched[64]; /* which linear pages (hashed) the jump table has code of */
    uint64_t alarm_ns;    /* what the alarm is set to: the timer's deadline, or before it */
    timer_t alarm;
    uint32_t x87_live;     /* the guest's x87 state is in the host's registers (x87_live.h) */
    bool x87_spilled;      /* it was before a light call that spilled */
    bool light;            /* the vector registers are the guest's: outside.h */
    volatile bool alarmed; /* by the signal handler, on this thread */
    struct jit *jit;
    struct jit_jump jumps[JIT_JUMPS];
};

#define JIT_EXIT_RIP UINT32_MAX

/* The page's translation was dropped: true when jumps to it may have been cached. */
static inline bool jit_fetched_page(const struct jit_state *state, uint64_t linear) {
    uint64_t page = linear >> 12;
    return state->fetched[page / 64 % 64] >> (page % 64) & 1;
}

/* The same of any page of the 2 MiB around it. */
static inline bool jit_fetched_region(const struct jit_state *state, uint64_t linear) {
    const uint64_t *words = &state->fetched[linear >> 12 >> 6 & 63 & ~7u];
    uint64_t any = 0;
    for (unsigned i = 0; i < 8; i++)
        any |= words[i];
    return any != 0;
}

static inline void jit_note_fetch(struct jit_state *state, uint64_t linear) {
    uint64_t page = linear >> 12;
    state->fetched[page / 64 % 64] |= UINT64_C(1) << (page % 64);
}

static inline unsigned jit_side_of(uint64_t key) {
    return key >> 7 & 3; /* KEY_TLB */
}

/* Returns to what is on a side's shadow stack must not happen any more. */
static inline void jit_empty_shadow(struct jit_state *state, unsigned side) {
    state->shadow_of[side] = state->shadow_top[side];
    if (jit_side_of(state->key) == side)
        state->shadow_rsp = state->shadow_top[side];
}

static inline void jit_empty_shadows(struct jit_state *state) {
    for (unsigned side = 0; side < JIT_SIDES; side++)
        jit_empty_shadow(state, side);
}

/* An index into code_map, as if it were one array. */
static inline unsigned jit_map_slot(uint64_t rip) {
    return (unsigned)(rip >> 63) * JIT_MAP_PAGES + (rip >> 12 & (JIT_MAP_PAGES - 1));
}

static inline void jit_set_map(struct jit_state *state, uint64_t rip, uint32_t number) {
    unsigned half = rip >> 63, page = jit_map_slot(rip) % JIT_MAP_PAGES;
    uint32_t *count = &state->map_used_count[half];
    if (state->code_map[half][page] == 0 && *count <= JIT_MAP_LISTED) {
        if (*count < JIT_MAP_LISTED)
            state->map_used[half][*count] = (uint16_t)page;
        ++*count;
    }
    state->code_map[half][page] = number;
}

static inline void jit_clear_map(struct jit_state *state, unsigned half) {
    uint32_t count = state->map_used_count[half];
    bool listed = count <= JIT_MAP_LISTED;
    for (uint32_t i = 0; i < (listed ? count : JIT_MAP_PAGES); i++)
        state->code_map[half][listed ? state->map_used[half][i] : i] = 0;
    state->map_used_count[half] = 0;
}

static inline void jit_forget_jumps(struct jit_state *state) {
    jit_empty_shadows(state);
    state->generation++;
    state->epoch++;
    for (unsigned i = 0; i < 64; i++)
        state->fetched[i] = 0;
    jit_clear_map(state, 0);
    jit_clear_map(state, 1);
    state->upper_is_local = state->lower_is_privileged = false;
}

/* Another address space: its code is mapped differently. That code of the upper half is not global
 * is noted anew when such code is met again: by jit_state.context nobody can enter it without C. */
static inline void jit_change_space(struct jit_state *state) {
    state->epoch++;
    if (state->upper_is_local || state->lower_is_privileged)
        jit_empty_shadows(state);
    else
        jit_empty_shadow(state, 0); /* TLB_USER */
    jit_clear_map(state, 0);
    if (state->upper_is_local)
        jit_clear_map(state, 1);
    state->upper_is_local = false;
}

static inline unsigned jit_jump_slot(uint64_t rip) {
    return (rip ^ rip >> JIT_JUMP_FOLD) >> 2 & (JIT_JUMPS - 1);
}

#endif
