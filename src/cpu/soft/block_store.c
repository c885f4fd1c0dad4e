/* Where blocks and their instructions are kept: an arena that is filled in segments (block.h). */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/pages.h"
#include "cpu/soft/block_private.h"
#include "cpu/soft/jit/jit.h"

static size_t chunk_size(uint64_t count) {
    return round_up(sizeof(struct block_chunk) + count * sizeof(struct insn), BLOCK_ALIGN);
}

uint16_t *block_heat(struct block_store *store, const struct block *block) {
    uint64_t mixed = (block->gpa[0] ^ block->rip << 20) * UINT64_C(0x9e3779b97f4a7c15);
    return &store->heat[mixed >> (64 - HEAT_BITS)];
}

void block_set_aside(struct soft_cpu *cpu, struct block *block) {
    *block_heat(cpu->blocks->store, block) =
        (uint16_t)(block->heat < UINT16_MAX ? block->heat : UINT16_MAX);
    block_drop(cpu, block);
}

void block_cool(struct soft_cpu *cpu) {
    struct block_store *store = cpu->blocks->store;
    memset(store->heat, 0, sizeof store->heat);
    for (unsigned i = 0; i < store->made; i++)
        store->blocks[i].heat = 0;
}

/* Forgets a segment's instructions, and their blocks unless they are translated. */
static void empty_segment(struct soft_cpu *cpu, unsigned n) {
    struct block_store *store = cpu->blocks->store;
    uint8_t *start = store->arena + n * store->segment_size;
    size_t at = 0;
    while (at < store->segments[n].used) {
        struct block_chunk *chunk = (struct block_chunk *)(void *)(start + at);
        at += chunk_size(chunk->count);
        if (chunk->owner == NULL)
            continue;
        if (chunk->owner->code == NULL) {
            block_set_aside(cpu, chunk->owner);
        } else {
            block_unlink(chunk->owner);
            chunk->owner->insns = NULL;
        }
    }
    store->segments[n].used = 0;
}

static void drop_all(struct soft_cpu *cpu) {
    struct block_store *store = cpu->blocks->store;
    for (unsigned bucket = 0; bucket < 1 << PAGE_HASH_BITS; bucket++)
        while (store->pages[bucket] != 0)
            block_drop(cpu, block_at(cpu->blocks, store->pages[bucket]));
    for (unsigned n = 0; n < store->count; n++)
        empty_segment(cpu, n);
}

void block_safe_point(struct soft_cpu *cpu) {
    struct block_store *store = cpu->blocks->store;
    atomic_fetch_and(&cpu->request, ~(unsigned)REQUEST_BLOCKS);
    if (!store->drop_all)
        return;
    store->drop_all = false;
    cpu->block = NULL;
    drop_all(cpu);
}

/* ---- Room ---- */

/* Gives up all but so many segments. */
static void shrink(struct soft_cpu *cpu, unsigned count) {
    struct block_store *store = cpu->blocks->store;
    if (store->count <= count)
        return;
    for (unsigned n = count; n < store->count; n++)
        empty_segment(cpu, n);
    madvise(store->arena + count * store->segment_size,
            (store->count - count) * store->segment_size, MADV_DONTNEED);
    store->count = count;
    if (store->current >= count)
        store->current = count - 1;
}

void block_shrink(struct soft_cpu *cpu) {
    cpu->block = NULL;
    shrink(cpu, SEGMENTS);
}

/* How many there may be now. */
static unsigned segments_allowed(const struct soft_cpu *cpu) {
    bool frugal = cpu->vcpu.engine != NULL && cpu->vcpu.engine->config.frugal;
    size_t more = frugal ? 0 : jit_room(cpu) / cpu->blocks->store->segment_size;
    return SEGMENTS + (unsigned)(more < SEGMENTS_MOST - SEGMENTS ? more : SEGMENTS_MOST - SEGMENTS);
}

/* A new segment behind the last, or the oldest, emptied. */
static void next_segment(struct soft_cpu *cpu) {
    struct block_store *store = cpu->blocks->store;
    unsigned allowed = segments_allowed(cpu);
    cpu->block = NULL;
    shrink(cpu, allowed);
    store->current++;
    if (store->current == store->count && store->count < allowed)
        store->count++;
    else if (store->current == store->count)
        store->current = 0;
    empty_segment(cpu, store->current);
}

struct block_chunk *block_reserve_chunk(struct soft_cpu *cpu) {
    struct block_store *store = cpu->blocks->store;
    size_t most = chunk_size(BLOCK_INSNS_MAX + 1);
    if (store->segment_size - store->segments[store->current].used < most)
        next_segment(cpu);
    return (struct block_chunk *)(void *)(store->arena + store->current * store->segment_size +
                                          store->segments[store->current].used);
}

void block_commit_chunk(struct block_store *store, struct block *block) {
    struct block_chunk *chunk = block_chunk(block);
    *chunk = (struct block_chunk){.owner = block, .count = block->count + 1u};
    store->segments[store->current].used += chunk_size(chunk->count);
}

/* The oldest of those that were dropped last: whoever still runs one has left it long since. */
struct block *block_reserve(struct soft_cpu *cpu) {
    enum { WAITING = 1024 };
    struct block_store *store = cpu->blocks->store;
    if (store->made < BLOCKS_KEPT && store->unused_count < WAITING)
        return &store->blocks[store->made];
    if (store->unused == 0) {
        cpu->block = NULL;
        drop_all(cpu);
    }
    return block_at(cpu->blocks, store->unused);
}

size_t block_spare_memory(const struct soft_cpu *cpu) {
    const struct block_store *store = cpu->blocks->store;
    return store->count > SEGMENTS ? (store->count - SEGMENTS) * store->segment_size : 0;
}

size_t block_memory(const struct soft_cpu *cpu) {
    const struct block_store *store = cpu->blocks->store;
    return sizeof *cpu->blocks + sizeof *store + SEGMENTS * store->segment_size +
           block_spare_memory(cpu) +
           store->made * (sizeof *store->blocks + sizeof *cpu->blocks->neighbours) +
           block_places_memory(cpu->blocks);
}

void block_commit(struct soft_cpu *cpu, struct block *block) {
    struct block_store *store = cpu->blocks->store;
    if (block == &store->blocks[store->made]) {
        store->made++;
    } else {
        store->unused = block->hash_next;
        store->unused_count--;
    }
    uint32_t *head = block_hash(cpu->blocks, block->gpa[0], block->rip, block->key);
    block_commit_chunk(store, block);
    block->hash_next = *head;
    *head = block_number(cpu->blocks, block);
    block_list(cpu->blocks, block);
    block_place_join(cpu, block);
}

/* ---- Life ---- */

int block_cache_create(struct soft_cpu *cpu, size_t least, struct error *err) {
    size_t segment_size = round_down(least / SEGMENTS, PAGE_SIZE);
    struct block_cache *cache = calloc(1, sizeof *cache);
    struct block_store *store = calloc(1, sizeof *store);
    uint8_t *arena = pages_take(SEGMENTS_MOST * segment_size);
    struct block *blocks = pages_take(BLOCKS_KEPT * sizeof *blocks);
    struct block_neighbours *neighbours = pages_take(BLOCKS_KEPT * sizeof *neighbours);
    if (cache == NULL || store == NULL || arena == NULL || blocks == NULL || neighbours == NULL) {
        pages_give_back(neighbours, BLOCKS_KEPT * sizeof *neighbours);
        free(cache);
        free(store);
        pages_give_back(arena, SEGMENTS_MOST * segment_size);
        pages_give_back(blocks, BLOCKS_KEPT * sizeof *blocks);
        return error_set_errno(err, -ENOMEM, "no memory for decoded instructions");
    }
    store->blocks = blocks;
    store->arena = arena;
    store->segment_size = segment_size;
    store->count = 1;
    cache->store = store;
    cache->all = blocks;
    cache->neighbours = neighbours;
    cpu->blocks = cache;
    if (block_places_create(cache, err) < 0) {
        block_cache_destroy(cpu);
        return -ENOMEM;
    }
    return 0;
}

void block_cache_destroy(struct soft_cpu *cpu) {
    if (cpu->blocks == NULL)
        return;
    block_places_destroy(cpu->blocks);
    struct block_store *store = cpu->blocks->store;
    pages_give_back(store->blocks, BLOCKS_KEPT * sizeof *store->blocks);
    pages_give_back(cpu->blocks->neighbours, BLOCKS_KEPT * sizeof *cpu->blocks->neighbours);
    pages_give_back(store->arena, SEGMENTS_MOST * store->segment_size);
    free(store);
    free(cpu->blocks);
    cpu->blocks = NULL;
}
