/* Where blocks and their instructions are kept: an arena that is filled in segments (block.h). */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "cpu/soft/block_private.h"

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
    for (unsigned n = 0; n < SEGMENTS; n++)
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

struct block_chunk *block_reserve_chunk(struct soft_cpu *cpu) {
    struct block_store *store = cpu->blocks->store;
    size_t most = chunk_size(BLOCK_INSNS_MAX + 1);
    if (store->segment_size - store->segments[store->current].used < most) {
        store->current = (store->current + 1) % SEGMENTS;
        cpu->block = NULL;
        empty_segment(cpu, store->current);
    }
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

size_t block_memory(const struct soft_cpu *cpu) {
    const struct block_store *store = cpu->blocks->store;
    return sizeof *cpu->blocks + sizeof *store + SEGMENTS * store->segment_size +
           store->made * sizeof *store->blocks + block_places_memory(cpu->blocks);
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

int block_cache_create(struct soft_cpu *cpu, size_t budget, struct error *err) {
    struct block_cache *cache = calloc(1, sizeof *cache);
    struct block_store *store = calloc(1, sizeof *store);
    uint8_t *arena = aligned_alloc(BLOCK_ALIGN, round_up(budget, BLOCK_ALIGN));
    struct block *blocks = mmap(NULL, BLOCKS_KEPT * sizeof *blocks, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cache == NULL || store == NULL || arena == NULL || blocks == MAP_FAILED) {
        free(cache);
        free(store);
        free(arena);
        if (blocks != MAP_FAILED)
            munmap(blocks, BLOCKS_KEPT * sizeof *blocks);
        return error_set_errno(err, -ENOMEM, "no memory for decoded instructions");
    }
    store->blocks = blocks;
    store->arena = arena;
    store->segment_size = round_down(budget / SEGMENTS, BLOCK_ALIGN);
    cache->store = store;
    cache->all = blocks;
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
    munmap(cpu->blocks->store->blocks, BLOCKS_KEPT * sizeof(struct block));
    free(cpu->blocks->store->arena);
    free(cpu->blocks->store);
    free(cpu->blocks);
    cpu->blocks = NULL;
}
