/*
 * Blocks: runs of decoded instructions that end with a branch, a change of
 * processor state, their page's end or BLOCK_INSNS_MAX. An instruction that
 * straddles a page is the only one of its block, which is then listed on both
 * pages and looked up afresh each time (the second page may be remapped). For
 * the translator a block goes on behind conditional jumps and calls
 * (block_extend); interpreted, it ends at the first.
 *
 * Life: block_find decodes on demand; blocks are found again through links,
 * the jump cache (by rip) and a hash (by guest-physical address, rip and
 * key). Decoded instructions are kept in one arena, filled in segments. When
 * the last is full there is another as long as translations leave room for it
 * (jit_room); else the oldest is emptied, and those that have no room any more
 * are given up. A segment's blocks are dropped then, but for those that are
 * translated: they stay without their instructions, which block_decode brings
 * back. A dropped block's memory stays as it is for a while, so whoever runs
 * it may finish; it is only used again in block_find and block_decode, that is
 * between blocks.
 *
 * The vCPU's own thread.
 */
#ifndef LODGE_CPU_SOFT_BLOCK_H
#define LODGE_CPU_SOFT_BLOCK_H

#include "cpu/soft/soft.h"

enum { BLOCK_INSNS_MAX = 64, BLOCK_HASH_BITS = 17, JUMP_BITS = 14, JUMP_ENTRIES = 1 << JUMP_BITS };

/* cpu->request, beside those of soft.h: blocks were dropped, no chaining until the safe point. */
enum { REQUEST_BLOCKS = 16 };

/* What a block's decoding depends on besides its bytes and rip. Bits of block.key. */
enum {
    KEY_MODE = 3 << 0, /* enum insn_mode */
    KEY_CPL = 3 << 2,
    KEY_PROTECTED = 1 << 4,
    KEY_STEP = 1 << 5,        /* one instruction only */
    KEY_NO_BREAK = 1 << 6,    /* without breakpoints: passing one */
    KEY_TLB = 3 << 7,         /* enum tlb_index: whose rights translated accesses check */
    KEY_NO_FP = 1 << 9,       /* vector instructions raise: CR0.EM or TS, CR4 or XCR0 */
    KEY_PLAIN = 1 << 10,      /* translated without checks that several accesses share */
    KEY_X87_RAISES = 1 << 11, /* x87 exceptions are not all masked */
    KEY_LIMIT = 32,           /* the shift of the code segment's limit, outside 64-bit mode */
    KEYS_OF_PLACE = KEY_STEP | KEY_NO_BREAK | KEY_TLB | KEY_PLAIN,
};

/* A cache line for who looks for it or enters it, half of one more. Other blocks are named by their
 * numbers (block_at), 0 is none. */
struct block {
    uint64_t rip; /* offset in CS of the first byte */
    uint64_t key;
    const uint8_t *host;       /* of the first byte: what the fetch TLB must answer */
    struct insn *insns;        /* NULL: forgotten; only where there is code */
    struct jit_block *code;    /* its translation, or NULL */
    struct block_place *place; /* NULL: outside 64-bit mode */
    uint32_t hash_next;
    uint32_t heat;     /* runs so far, while it is not translated */
    uint16_t length;   /* bytes */
    uint8_t count;     /* instructions, without the ending pseudo-instruction */
    uint8_t run_count; /* those that run when it is interpreted: up to the first branch */
    uint8_t branches;  /* that it passes */
    bool dead : 1;
    bool straddles : 1;
    bool extended : 1;       /* by block_extend */
    bool relative : 1;       /* some operand is RIP-relative */
    bool untranslatable : 1; /* its translation would be too large */
    uint64_t gpa[2];         /* of the first byte; straddling: of the second page */
    uint32_t page_next[2];   /* lists of blocks on a page */
    uint32_t page_prev;      /* in the first page's list; 0: this is its first */
    /* Bytes of its page that the translation rests on besides the block's own. */
    uint16_t watch_start, watch_end;
};
_Static_assert(sizeof(struct block) == 96, "there are many");

/* A block's neighbours in its place's list, by their numbers: apart from the blocks, each of which
 * is a miss of the processor's caches, so that a block that joins or leaves touches no other. */
struct block_neighbours {
    uint32_t next, before;
};

/* A block's instructions, and the links between blocks that have theirs. */
struct block_chunk {
    struct block *owner;   /* NULL: dropped */
    struct block *link[2]; /* same-page successors: [0] in sequence, [1] by branch; NULL: look up */
    uintptr_t incoming;    /* who links here: a list of block | slot */
    uintptr_t incoming_next[2]; /* the list that link[slot] is in */
    uint64_t count;             /* of instructions, with the ending pseudo-instruction */
    struct insn insns[];
};

/* Of a block that has its instructions. */
static inline struct block_chunk *block_chunk(const struct block *block) {
    return (struct block_chunk *)(void *)((char *)block->insns -
                                          offsetof(struct block_chunk, insns));
}

/*
 * A page of guest memory at one linear page, as 64-bit code: the blocks that begin there, under
 * keys that differ in KEYS_OF_PLACE alone. A library that is mapped elsewhere in the next process
 * is not decoded and translated again: its places move (block_place.c).
 */
struct block_place {
    uint64_t linear, gpa; /* of the page */
    uint64_t key;
    uintptr_t host;           /* the page all its blocks were made from; or 0 */
    uint32_t used;            /* jit_state.spaces when blocks of it were last looked for */
    bool pinned;              /* holds code that cannot be moved */
    uint32_t first;           /* the number of one of its blocks (block_neighbours); never 0 */
    struct jit_block *made;   /* their translations, those of dropped blocks too (jit/move.c) */
    struct block_place *next; /* of those with this page and key, and of others; or unused */
    uint32_t life;            /* which use of this struct: others may remember an earlier one */
    /* The mapping's number (jit/link.c), and that which it gets should it move to next_linear. 0:
     * none so far. */
    uint32_t number, next_number;
    uint64_t next_linear;
};

enum { PLACE_HASH_BITS = 13 };

struct block_places {
    struct block_place *all; /* BLOCKS_KEPT of them, the first `made` used before */
    struct block_place *unused;
    unsigned made;
    struct block_place *hash[1 << PLACE_HASH_BITS];
};

struct block_cache {
    struct block *jump[JUMP_ENTRIES];
    uint32_t hash[1 << BLOCK_HASH_BITS]; /* numbers of blocks */
    struct block *all;                   /* BLOCKS_KEPT of them */
    struct block_neighbours *neighbours; /* of each, by its number - 1 */
    struct block_store *store;
    struct block_places *places;
};

/* The block of a number that is not 0; its number. */
static inline struct block *block_at(const struct block_cache *cache, uint32_t number) {
    return &cache->all[number - 1];
}
static inline uint32_t block_number(const struct block_cache *cache, const struct block *block) {
    return (uint32_t)(block - cache->all) + 1;
}

static inline struct block_neighbours *block_neighbours_of(const struct block_cache *cache,
                                                           uint32_t number) {
    return &cache->neighbours[number - 1];
}

static inline unsigned block_tlb_index(const struct soft_cpu *cpu) {
    return (unsigned)((struct tlb_entry(*)[TLB_KINDS][TLB_ENTRIES])cpu->tlb - cpu->tlbs);
}

/* Whether some vector instruction that is offered would raise #UD or #NM. */
static inline bool block_fp_raises(const struct soft_cpu *cpu) {
    enum { XCR0_SSE_AVX = 6 };
    return (cpu->cr0 & (CR0_EM | CR0_TS)) || !(cpu->cr4 & CR4_OSFXSR) ||
           !(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & XCR0_SSE_AVX) != XCR0_SSE_AVX;
}

/* The same while translated code has the state in the host's registers: it masks all then. */
static inline bool block_x87_raises(const struct soft_cpu *cpu) {
    enum { FCW_MASKS = 0x3f };
    return (cpu->fcw & FCW_MASKS) != FCW_MASKS;
}

/* What code at the present rip would be decoded as, but for what a single run asks for. */
static inline uint64_t block_key(const struct soft_cpu *cpu) {
    bool protected_mode = (cpu->cr0 & CR0_PE) && !(cpu->rflags & FLAG_VM);
    uint64_t key = cpu->mode | (uint64_t)cpu->cpl << 2 | (protected_mode ? KEY_PROTECTED : 0);
    key |= (uint64_t)block_tlb_index(cpu) << 7 | (block_fp_raises(cpu) ? KEY_NO_FP : 0) |
           (block_x87_raises(cpu) ? KEY_X87_RAISES : 0);
    if (cpu->mode != INSN_MODE_64)
        key |= (uint64_t)cpu->segment[SEG_CS].limit << KEY_LIMIT;
    return key;
}

static inline unsigned jump_hash(uint64_t rip) {
    return (unsigned)(rip ^ rip >> JUMP_BITS) & (JUMP_ENTRIES - 1);
}

/* least: bytes of decoded instructions to keep in any case. */
int block_cache_create(struct soft_cpu *cpu, size_t least, struct error *err);
void block_cache_destroy(struct soft_cpu *cpu);

/*
 * The block at cpu->rip under `key`. Raises what the fetch raises, with
 * cpu->insn set so that the fault's rip is cpu->rip. NULL: no RAM there;
 * cpu->exit says so.
 */
struct block *block_find(struct soft_cpu *cpu, uint64_t key);

/*
 * The block decoded further, behind the branches that the translator follows,
 * from a copy of its bytes that it leaves in `copy`; the old one is dropped.
 * NULL where there is nothing to gain.
 */
enum { BLOCK_BYTES_MAX = BLOCK_INSNS_MAX * 15 };
bool block_may_extend(const struct soft_cpu *cpu, const struct block *block);
struct block *block_extend(struct soft_cpu *cpu, struct block *block,
                           uint8_t copy[BLOCK_BYTES_MAX]);

/*
 * The block at cpu->rip under `key` if it has been made and can be found
 * without raising (block_look.c): a page table walk at most. NULL: block_find
 * will tell.
 */
struct block *block_look(struct soft_cpu *cpu, uint64_t key);

/* The same where the page is known. `linear`: of cpu->rip. */
struct block *block_on_page(struct soft_cpu *cpu, uint64_t key, const struct code_page *page,
                            uint64_t linear);

/* ---- block_place.c ---- */

enum { BLOCKS_KEPT = 256 << 10 };

int block_places_create(struct block_cache *cache, struct error *err);
/* Bytes that they take. */
size_t block_places_memory(const struct block_cache *cache);
void block_places_destroy(struct block_cache *cache);
/* The chain that all places of a page under a key are in. */
struct block_place **block_place_chain(struct block_places *places, uint64_t gpa, uint64_t key);
/* NULL: no block begins on this page at this linear one. */
struct block_place *block_place_find(struct block_places *places, uint64_t gpa, uint64_t linear,
                                     uint64_t key);
/* A place's number, not 0; and the place. */
static inline uint32_t block_place_number(const struct block_places *places,
                                          const struct block_place *place) {
    return (uint32_t)(place - places->all) + 1;
}
static inline struct block_place *block_place_at(const struct block_places *places,
                                                 uint32_t number) {
    return &places->all[number - 1];
}
/* All mappings' numbers are void. */
void block_places_forget_numbers(struct block_places *places);
/* A new block, and one that is dropped. */
void block_place_join(struct soft_cpu *cpu, struct block *block);
void block_place_leave(struct soft_cpu *cpu, struct block *block);
/*
 * Blocks at `linear` are about to be made from the page: moves them there from another place where
 * that seems to be what the guest did. True: it has. Between blocks, without breakpoints.
 */
bool block_place_claim(struct soft_cpu *cpu, uint64_t key, uint64_t gpa, uint64_t linear);

/* Whether blocks at this address may move: where all addresses near it take 64 bits to write, and
 * are below the middle. */
static inline bool block_place_moves(uint64_t linear) {
    const uint64_t lowest = UINT64_C(1) << 33, middle = UINT64_C(1) << 47;
    return linear >= lowest && linear < middle;
}

static inline void block_place_note(const struct soft_cpu *cpu, const struct block *block) {
    if (block->place != NULL)
        block->place->used = cpu->jit.spaces;
}

/* The hash chain of blocks like this. */
uint32_t *block_hash(struct block_cache *cache, uint64_t gpa, uint64_t rip, uint64_t key);

/* Decodes the instructions of a translated block that has lost them. False: its bytes are not what
 * they were; the block is dropped. Not while an interpreted block runs. */
bool block_decode(struct soft_cpu *cpu, struct block *block);

/* Whether a block of the page has written code that it rests on itself (or one of a page that
 * shares the mark has). */
bool block_page_changes_itself(const struct soft_cpu *cpu, uint64_t gpa);

/* Bytes that decoded blocks take, and the tables that find them; how many of them block_shrink
 * gives back. */
size_t block_memory(const struct soft_cpu *cpu);
size_t block_spare_memory(const struct soft_cpu *cpu);

/* Decoded instructions keep to their least room. Between blocks. */
void block_shrink(struct soft_cpu *cpu);

/* Drops a block: nothing finds it any more. Between blocks. */
void block_drop(struct soft_cpu *cpu, struct block *block);

/* The same for want of room: how often it ran is kept for when it is made again. */
void block_set_aside(struct soft_cpu *cpu, struct block *block);

/* Forgets how often blocks ran: what is hot from now on counts. */
void block_cool(struct soft_cpu *cpu);

/* Links the block that just ended to its successor, when both are on one page. */
void block_link(struct block *from, unsigned slot, struct block *to);

/* Serves REQUEST_BLOCKS. Only between blocks. */
void block_safe_point(struct soft_cpu *cpu);

/* Breakpoints of the engine, by linear address: blocks end before one and stop on it. -ENOSPC. */
int block_set_breakpoint(struct soft_cpu *cpu, uint64_t linear, bool on);

/* ---- Chaining, for the handlers that end blocks ---- */

/* True when control may pass to the next block without a look by the run loop. */
static inline bool block_may_enter(struct soft_cpu *cpu, struct block *next) {
    /* Translated without heat (KEY_PLAIN), a block may have lost its instructions and look cold. */
    if (unlikely(next->insns == NULL) || unlikely(++next->heat >= cpu->heat_limit) ||
        unlikely(cpu->budget < next->run_count) ||
        unlikely(atomic_load_explicit(&cpu->request, memory_order_relaxed) != 0))
        return false;
    cpu->budget -= next->run_count;
    return true;
}

static inline uint64_t block_linear(const struct soft_cpu *cpu, uint64_t rip) {
    uint64_t linear = cpu->code_base + rip;
    return likely(cpu->mode == INSN_MODE_64) ? linear : (uint32_t)linear;
}

/* The block at cpu->rip when the jump cache has it and the present translation agrees, or NULL. */
static inline struct block *block_jump(struct soft_cpu *cpu, uint64_t key) {
    struct block *next = cpu->blocks->jump[jump_hash(cpu->rip)];
    uint64_t linear = block_linear(cpu, cpu->rip);
    const struct tlb_entry *e = &cpu->tlb[TLB_FETCH][tlb_slot(linear)];
    if (likely(next != NULL && next->rip == cpu->rip && next->key == key &&
               (linear & ~(uint64_t)(PAGE_SIZE - 1)) == e->tag &&
               (uintptr_t)next->host == e->host + (linear & (PAGE_SIZE - 1))))
        return next;
    return NULL;
}

/* The jump cache's entry. */
static inline void block_note(struct soft_cpu *cpu, struct block *block) {
    if (!block->straddles)
        cpu->blocks->jump[jump_hash(block->rip)] = block;
}

#define BLOCK_ENTER(next)                                                                          \
    do {                                                                                           \
        cpu->block = (next);                                                                       \
        return (next)->insns[0].exec(cpu, (next)->insns);                                          \
    } while (0)

/* Ends the block at `target`, which a direct branch names (slot 1) or the sequence (slot 0). */
#define BLOCK_CHAIN(slot, target)                                                                  \
    do {                                                                                           \
        struct block *next_ = block_chunk(cpu->block)->link[slot];                                 \
        cpu->rip = (target);                                                                       \
        if (likely(next_ != NULL)) {                                                               \
            if (likely(block_may_enter(cpu, next_)))                                               \
                BLOCK_ENTER(next_);                                                                \
            return;                                                                                \
        }                                                                                          \
        return block_chain_slow(cpu, slot);                                                        \
    } while (0)

/* Ends the block at a computed target. */
#define BLOCK_JUMP(target)                                                                         \
    do {                                                                                           \
        struct block *next_;                                                                       \
        cpu->rip = (target);                                                                       \
        next_ = block_jump(cpu, cpu->block->key);                                                  \
        if (likely(next_ != NULL && block_may_enter(cpu, next_)))                                  \
            BLOCK_ENTER(next_);                                                                    \
        return;                                                                                    \
    } while (0)

/* Goes on at cpu->rip by the jump cache, linking when it can. */
void block_chain_slow(struct soft_cpu *cpu, unsigned slot);

#endif
