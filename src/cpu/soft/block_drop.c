/* How blocks go: links between them, lists of a page's blocks, and what drops them. */
#include "cpu/soft/block_private.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/mmu.h"

/* ---- Links between blocks ---- */

static struct block *link_block(uintptr_t link) {
    return (struct block *)(link & ~(uintptr_t)1);
}

void block_link(struct block *from, unsigned slot, struct block *to) {
    bool one_page = from->gpa[0] >> PAGE_SHIFT == to->gpa[0] >> PAGE_SHIFT &&
                    to->gpa[0] - from->gpa[0] == to->rip - from->rip;
    if (!one_page || to->straddles || from->dead || to->dead || from->key != to->key ||
        from->insns == NULL || to->insns == NULL || block_chunk(from)->link[slot] != NULL)
        return;
    struct block_chunk *chunk = block_chunk(from);
    chunk->link[slot] = to;
    chunk->incoming_next[slot] = block_chunk(to)->incoming;
    block_chunk(to)->incoming = (uintptr_t)from | slot;
}

static void unlink_outgoing(struct block *from, unsigned slot) {
    struct block_chunk *chunk = block_chunk(from);
    struct block *to = chunk->link[slot];
    uintptr_t *at, wanted = (uintptr_t)from | slot;
    if (to == NULL)
        return;
    at = &block_chunk(to)->incoming;
    while (*at != wanted)
        at = &block_chunk(link_block(*at))->incoming_next[*at & 1];
    *at = chunk->incoming_next[slot];
    chunk->link[slot] = NULL;
}

static void unlink_incoming(struct block *to) {
    struct block_chunk *chunk = block_chunk(to);
    while (chunk->incoming != 0) {
        struct block_chunk *from = block_chunk(link_block(chunk->incoming));
        unsigned slot = chunk->incoming & 1;
        chunk->incoming = from->incoming_next[slot];
        from->link[slot] = NULL;
    }
}

void block_unlink(struct block *block) {
    unlink_incoming(block);
    unlink_outgoing(block, 0);
    unlink_outgoing(block, 1);
}

void block_chain_slow(struct soft_cpu *cpu, unsigned slot) {
    struct block *next = block_jump(cpu, cpu->block->key);
    if (next == NULL)
        return;
    block_link(cpu->block, slot, next);
    if (block_may_enter(cpu, next))
        BLOCK_ENTER(next);
}

/* ---- Lists of a page's blocks ---- */

/* Where both pages fall into one bucket, the block is listed there once. */
static unsigned lists_of(const struct block *block) {
    return block->straddles && block_page_hash(block->gpa[0]) != block_page_hash(block->gpa[1]) ? 2
                                                                                                : 1;
}

/* By which of its pages a block is listed in a bucket. */
static unsigned page_index(const struct block *block, unsigned bucket) {
    return !block->straddles || block_page_hash(block->gpa[0]) == bucket ? 0 : 1;
}

/* The list that a block is in by one of its pages, behind it. */
static uint32_t *next_on_page(struct block *block, unsigned bucket) {
    return &block->page_next[page_index(block, bucket)];
}

/* The block of this number, if there is one, comes behind that of number `before` (0: none). */
static void set_before(struct block_cache *cache, uint32_t number, unsigned bucket,
                       uint32_t before) {
    if (number == 0)
        return;
    struct block *block = block_at(cache, number);
    if (page_index(block, bucket) == 0)
        block->page_prev = before;
}

static void list_on_page(struct block_cache *cache, struct block *block, unsigned n) {
    unsigned bucket = block_page_hash(block->gpa[n]);
    uint32_t *head = &cache->store->pages[bucket], number = block_number(cache, block);
    block->page_next[n] = *head;
    set_before(cache, *head, bucket, number);
    if (n == 0)
        block->page_prev = 0;
    *head = number;
}

/* Few blocks have a second page: those look for what comes before them there. */
static uint32_t before_on_page(struct block_cache *cache, const struct block *block, unsigned n) {
    unsigned bucket = block_page_hash(block->gpa[n]);
    uint32_t before = 0, number = block_number(cache, block);
    if (n == 0)
        return block->page_prev;
    for (uint32_t at = cache->store->pages[bucket]; at != number;
         at = *next_on_page(block_at(cache, at), bucket))
        before = at;
    return before;
}

static void unlist_from_page(struct block_cache *cache, struct block *block, unsigned n) {
    unsigned bucket = block_page_hash(block->gpa[n]);
    uint32_t before = before_on_page(cache, block, n), next = block->page_next[n];
    if (before == 0)
        cache->store->pages[bucket] = next;
    else
        *next_on_page(block_at(cache, before), bucket) = next;
    set_before(cache, next, bucket, before);
}

static bool on_page(const struct block *block, uint64_t page) {
    return block->gpa[0] >> PAGE_SHIFT == page ||
           (block->straddles && block->gpa[1] >> PAGE_SHIFT == page);
}

bool block_page_has_some(const struct block_cache *cache, uint64_t gpa) {
    unsigned bucket = block_page_hash(gpa);
    uint32_t n = cache->store->pages[bucket];
    while (n != 0 && !on_page(block_at(cache, n), gpa >> PAGE_SHIFT))
        n = *next_on_page(block_at(cache, n), bucket);
    return n != 0;
}

void block_list(struct block_cache *cache, struct block *block) {
    for (unsigned n = 0; n < lists_of(block); n++)
        list_on_page(cache, block, n);
}

/* ---- Dropping ---- */

static void unhash(struct block_cache *cache, struct block *block) {
    uint32_t *at = block_hash(cache, block->gpa[0], block->rip, block->key);
    uint32_t number = block_number(cache, block);
    while (*at != number)
        at = &block_at(cache, *at)->hash_next;
    *at = block->hash_next;
}

/* A page without blocks need not be watched any more. */
static void unwatch_empty(struct soft_cpu *cpu, const struct block *block, unsigned n) {
    if (!block_page_has_some(cpu->blocks, block->gpa[n]))
        memory_unwatch(cpu->memory, block->gpa[n], cpu->vcpu.id);
}

/* It is the last to be used again. */
static void free_block(struct block_cache *cache, struct block *block) {
    struct block_store *store = cache->store;
    uint32_t number = block_number(cache, block);
    block->hash_next = 0;
    if (store->unused == 0)
        store->unused = number;
    else
        block_at(cache, store->unused_last)->hash_next = number;
    store->unused_last = number;
    store->unused_count++;
}

void block_drop(struct soft_cpu *cpu, struct block *block) {
    struct block_cache *cache = cpu->blocks;
    block->dead = true;
    jit_forget(cpu, block);
    unhash(cache, block);
    if (block->insns != NULL)
        block_unlink(block);
    if (cache->jump[jump_hash(block->rip)] == block)
        cache->jump[jump_hash(block->rip)] = NULL;
    for (unsigned n = 0; n < lists_of(block); n++)
        unlist_from_page(cache, block, n);
    block_place_leave(cpu, block);
    for (unsigned n = 0; n < (block->straddles ? 2 : 1); n++)
        unwatch_empty(cpu, block, n);
    if (block->insns != NULL)
        block_chunk(block)->owner = NULL;
    free_block(cache, block);
}

/* In place of the instructions of a running block that was dropped. */
static void block_leave(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->rip = insn_rip(cpu, insn);
}

void block_poison_running(struct soft_cpu *cpu) {
    if (cpu->block == NULL || cpu->block->insns == NULL)
        return;
    for (unsigned i = 0; i <= cpu->block->count; i++)
        cpu->block->insns[i].exec = block_leave;
}

static bool overlaps(const struct block *block, uint64_t gpa, size_t length) {
    uint64_t first = block->gpa[0], room = PAGE_SIZE - (first & (PAGE_SIZE - 1));
    uint64_t end = first + (block->straddles ? room : block->length);
    if (gpa < end && first - gpa < length)
        return true;
    if (first <= gpa && gpa < end)
        return true;
    uint64_t page = first & ~(uint64_t)(PAGE_SIZE - 1);
    if (block->watch_end != 0 && gpa < page + block->watch_end &&
        (gpa >= page + block->watch_start || page + block->watch_start - gpa < length))
        return true;
    if (!block->straddles)
        return false;
    first = block->gpa[1];
    end = first + (block->length - room);
    return gpa < end && (gpa >= first || first - gpa < length);
}

bool block_page_changes_itself(const struct soft_cpu *cpu, uint64_t gpa) {
    unsigned bucket = block_page_hash(gpa);
    return cpu->blocks->store->changing[bucket / 64] >> (bucket % 64) & 1;
}

/* The page's translations rest on code that is there to stay: they go, and come back without. */
static void note_change_of_itself(struct soft_cpu *cpu, uint64_t gpa) {
    struct block_store *store = cpu->blocks->store;
    unsigned bucket = block_page_hash(gpa);
    if (block_page_changes_itself(cpu, gpa))
        return;
    store->changing[bucket / 64] |= UINT64_C(1) << (bucket % 64);
    while (store->pages[bucket] != 0)
        block_drop(cpu, block_at(cpu->blocks, store->pages[bucket]));
}

static void invalidate_page_part(struct soft_cpu *cpu, uint64_t gpa, size_t length) {
    struct block_store *store = cpu->blocks->store;
    unsigned bucket = block_page_hash(gpa);
    bool by_itself = false;
    for (uint32_t n = store->pages[bucket]; n != 0;) {
        struct block *block = block_at(cpu->blocks, n);
        n = *next_on_page(block, bucket);
        if (!overlaps(block, gpa, length))
            continue;
        if (block == cpu->block) {
            block_poison_running(cpu);
            by_itself = true;
        }
        block_drop(cpu, block);
    }
    if (by_itself)
        note_change_of_itself(cpu, gpa);
}

void block_invalidate(struct soft_cpu *cpu, uint64_t gpa, size_t length) {
    if (cpu->blocks == NULL)
        return;
    while (length != 0) {
        size_t part = PAGE_SIZE - (gpa & (PAGE_SIZE - 1));
        if (part > length)
            part = length;
        invalidate_page_part(cpu, gpa, part);
        gpa += part;
        length -= part;
    }
}

void block_invalidate_all(struct soft_cpu *cpu) {
    if (cpu->blocks == NULL)
        return;
    cpu->blocks->store->drop_all = true;
    block_poison_running(cpu);
    atomic_fetch_or(&cpu->request, REQUEST_BLOCKS);
}
