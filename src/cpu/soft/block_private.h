/* What the files of decoded blocks share (block.h): where they are kept, and how they go. */
#ifndef LODGE_CPU_SOFT_BLOCK_PRIVATE_H
#define LODGE_CPU_SOFT_BLOCK_PRIVATE_H

#include "cpu/soft/block.h"

enum {
    PAGE_HASH_BITS = 14,
    HEAT_BITS = 18,
    SEGMENTS = 8,       /* there always are */
    SEGMENTS_MOST = 64, /* while translations leave room for them */
    BLOCK_ALIGN = 16,
    BREAKPOINTS_MAX = 32,
};

struct segment {
    size_t used; /* bytes */
};

struct block_store {
    struct block *blocks; /* BLOCKS_KEPT of them, the first `made` used before */
    unsigned made;
    uint32_t unused, unused_last; /* dropped ones, the oldest first, by hash_next */
    unsigned unused_count;
    uint8_t *arena;
    size_t segment_size;
    unsigned count;   /* of segments in use */
    unsigned current; /* the one that is being filled; the oldest comes next */
    struct segment segments[SEGMENTS_MOST];
    uint32_t pages[1 << PAGE_HASH_BITS];           /* numbers of blocks */
    uint64_t changing[(1 << PAGE_HASH_BITS) / 64]; /* bits, by block_page_hash */
    uint64_t breakpoints[BREAKPOINTS_MAX];
    unsigned breakpoint_count;
    bool drop_all; /* at the next safe point */
    /* How often blocks ran that lost their place in the arena, by hash of where they are. */
    uint16_t heat[1 << HEAT_BITS];
};

static inline unsigned block_page_hash(uint64_t gpa) {
    return (unsigned)(((gpa >> PAGE_SHIFT) * UINT64_C(0x9e3779b97f4a7c15)) >>
                      (64 - PAGE_HASH_BITS));
}

/* ---- block_drop.c ---- */

/* Before a block loses its instructions: no links from it and to it. */
void block_unlink(struct block *block);
/* Some block begins or ends on the page. */
bool block_page_has_some(const struct block_cache *cache, uint64_t gpa);
/* The block is on its pages' lists from now on. */
void block_list(struct block_cache *cache, struct block *block);
/* The instruction that runs now completes; all others of its block leave it. */
void block_poison_running(struct soft_cpu *cpu);

/* ---- block_store.c ---- */

/* How often blocks like this ran that lost their place. */
uint16_t *block_heat(struct block_store *store, const struct block *block);
/* Room for a block; and for the instructions of one of the largest size, at the end of the current
 * segment: the oldest may be emptied for it. Nobody has it before it is committed. */
struct block *block_reserve(struct soft_cpu *cpu);
struct block_chunk *block_reserve_chunk(struct soft_cpu *cpu);
/* The block is whole: it is found from now on. The same for instructions that came back. */
void block_commit(struct soft_cpu *cpu, struct block *block);
void block_commit_chunk(struct block_store *store, struct block *block);

#endif
