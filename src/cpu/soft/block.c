#include "cpu/soft/block.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/mmu.h"

enum {
    PAGE_HASH_BITS = 14,
    HEAT_BITS = 18,
    SEGMENTS = 8,
    BLOCK_ALIGN = 16,
    BREAKPOINTS_MAX = 32,
    INSN_BYTES_MAX = 15,
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
    unsigned current; /* the segment that is being filled */
    struct segment segments[SEGMENTS];
    uint32_t pages[1 << PAGE_HASH_BITS];           /* numbers of blocks */
    uint64_t changing[(1 << PAGE_HASH_BITS) / 64]; /* bits, by page_hash */
    uint64_t breakpoints[BREAKPOINTS_MAX];
    unsigned breakpoint_count;
    bool drop_all; /* at the next safe point */
    /* How often blocks ran that lost their place in the arena, by hash of where they are. */
    uint16_t heat[1 << HEAT_BITS];
};

static unsigned page_hash(uint64_t gpa) {
    return (unsigned)(((gpa >> PAGE_SHIFT) * UINT64_C(0x9e3779b97f4a7c15)) >>
                      (64 - PAGE_HASH_BITS));
}

/* ---- Pseudo-instructions ---- */

/* Ends a block that has no branch. */
static void block_fall(struct soft_cpu *cpu, const struct insn *insn) {
    BLOCK_CHAIN(0, insn_rip(cpu, insn));
}

/* In place of the instructions of a running block that was dropped. */
static void block_leave(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->rip = insn_rip(cpu, insn);
}

static void refuse_ud(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    raise_exception(cpu, EXC_UD);
}

static void refuse_gp(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    raise_error(cpu, EXC_GP, 0);
}

static void stop_at_breakpoint(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    cpu->exit = (struct vcpu_exit){.stop = VCPU_BREAKPOINT, .gva = block_linear(cpu, cpu->rip)};
    raise_exit(cpu);
}

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

/* Before a block loses its instructions. */
static void unlink_block(struct block *block) {
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
    return block->straddles && page_hash(block->gpa[0]) != page_hash(block->gpa[1]) ? 2 : 1;
}

/* By which of its pages a block is listed in a bucket. */
static unsigned page_index(const struct block *block, unsigned bucket) {
    return !block->straddles || page_hash(block->gpa[0]) == bucket ? 0 : 1;
}

/* The list that a block is in by one of its pages, behind it. */
static uint32_t *next_on_page(struct block *block, unsigned bucket) {
    return &block->page_next[page_index(block, bucket)];
}

static void list_on_page(struct block_cache *cache, struct block *block, unsigned n) {
    uint32_t *head = &cache->store->pages[page_hash(block->gpa[n])];
    block->page_next[n] = *head;
    *head = block_number(cache, block);
}

static void unlist_from_page(struct block_cache *cache, struct block *block, unsigned n) {
    unsigned bucket = page_hash(block->gpa[n]);
    uint32_t *at = &cache->store->pages[bucket], number = block_number(cache, block);
    while (*at != number)
        at = next_on_page(block_at(cache, *at), bucket);
    *at = block->page_next[n];
}

static bool on_page(const struct block *block, uint64_t page) {
    return block->gpa[0] >> PAGE_SHIFT == page ||
           (block->straddles && block->gpa[1] >> PAGE_SHIFT == page);
}

static bool page_has_blocks(const struct block_cache *cache, uint64_t gpa) {
    unsigned bucket = page_hash(gpa);
    uint32_t n = cache->store->pages[bucket];
    while (n != 0 && !on_page(block_at(cache, n), gpa >> PAGE_SHIFT))
        n = *next_on_page(block_at(cache, n), bucket);
    return n != 0;
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
    if (!page_has_blocks(cpu->blocks, block->gpa[n]))
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
        unlink_block(block);
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

/* The instruction that runs now completes; all others of its block leave it. */
static void poison_running(struct soft_cpu *cpu) {
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
    unsigned bucket = page_hash(gpa);
    return cpu->blocks->store->changing[bucket / 64] >> (bucket % 64) & 1;
}

/* The page's translations rest on code that is there to stay: they go, and come back without. */
static void note_change_of_itself(struct soft_cpu *cpu, uint64_t gpa) {
    struct block_store *store = cpu->blocks->store;
    unsigned bucket = page_hash(gpa);
    if (block_page_changes_itself(cpu, gpa))
        return;
    store->changing[bucket / 64] |= UINT64_C(1) << (bucket % 64);
    while (store->pages[bucket] != 0)
        block_drop(cpu, block_at(cpu->blocks, store->pages[bucket]));
}

static void invalidate_page_part(struct soft_cpu *cpu, uint64_t gpa, size_t length) {
    struct block_store *store = cpu->blocks->store;
    unsigned bucket = page_hash(gpa);
    bool by_itself = false;
    for (uint32_t n = store->pages[bucket]; n != 0;) {
        struct block *block = block_at(cpu->blocks, n);
        n = *next_on_page(block, bucket);
        if (!overlaps(block, gpa, length))
            continue;
        if (block == cpu->block) {
            poison_running(cpu);
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
    poison_running(cpu);
    atomic_fetch_or(&cpu->request, REQUEST_BLOCKS);
}

static size_t chunk_size(uint64_t count) {
    return round_up(sizeof(struct block_chunk) + count * sizeof(struct insn), BLOCK_ALIGN);
}

static uint16_t *heat_of(struct block_store *store, const struct block *block) {
    uint64_t mixed = (block->gpa[0] ^ block->rip << 20) * UINT64_C(0x9e3779b97f4a7c15);
    return &store->heat[mixed >> (64 - HEAT_BITS)];
}

void block_set_aside(struct soft_cpu *cpu, struct block *block) {
    *heat_of(cpu->blocks->store, block) =
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
            unlink_block(chunk->owner);
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

/* ---- Decoding ---- */

/* Room for the instructions of a block of the largest size, at the end of the current segment. */
static struct block_chunk *reserve_chunk(struct soft_cpu *cpu) {
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

static void commit_chunk(struct block_store *store, struct block *block) {
    struct block_chunk *chunk = block_chunk(block);
    *chunk = (struct block_chunk){.owner = block, .count = block->count + 1u};
    store->segments[store->current].used += chunk_size(chunk->count);
}

/* The oldest of those that were dropped last: whoever still runs one has left it long since. */
static struct block *reserve_block(struct soft_cpu *cpu) {
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

static void commit(struct soft_cpu *cpu, struct block *block) {
    struct block_store *store = cpu->blocks->store;
    if (block == &store->blocks[store->made]) {
        store->made++;
    } else {
        store->unused = block->hash_next;
        store->unused_count--;
    }
    uint32_t *head = block_hash(cpu->blocks, block->gpa[0], block->rip, block->key);
    commit_chunk(store, block);
    block->hash_next = *head;
    *head = block_number(cpu->blocks, block);
    for (unsigned n = 0; n < lists_of(block); n++)
        list_on_page(cpu->blocks, block, n);
    block_place_join(cpu, block);
}

/* From here on writes to the page are told: before its bytes are read. */
static void watch(struct soft_cpu *cpu, const struct code_page *page) {
    if (page->flags == NULL || page_has_blocks(cpu->blocks, page->gpa))
        return;
    mmu_watch_code(cpu, page->gpa & PAGE_MASK, page->host - (page->gpa & (PAGE_SIZE - 1)));
}

/* The same for a page whose flags are not at hand. */
static void watch_again(struct soft_cpu *cpu, struct code_page *page) {
    struct mem_page found;
    view_page(cpu->view, page->gpa, &found);
    page->flags = found.flags;
    watch(cpu, page);
}

static bool is_breakpoint(const struct soft_cpu *cpu, uint64_t linear) {
    const struct block_store *store = cpu->blocks->store;
    for (unsigned i = 0; i < store->breakpoint_count; i++) {
        if (store->breakpoints[i] == linear)
            return true;
    }
    return false;
}

/* What the row alone does not say: privilege and mode. */
static insn_exec *checked_exec(const struct insn *insn, uint64_t key) {
    const struct insn_row *row = insn_row_of(insn);
    if (!(key & KEY_PROTECTED) && ((row->properties & INSN_PROTECTED) || row->encoding == ENC_VEX))
        return refuse_ud;
    if ((row->properties & INSN_CPL0) && (key & KEY_CPL))
        return refuse_gp;
    return insn->exec;
}

/* An extended block passes a few branches. */
static bool goes_on_behind(struct block *block, const struct insn *insn) {
    enum { ENDS = INSN_BRANCH | INSN_END, BRANCHES_MAX = 6 };
    if (!(insn_row_of(insn)->properties & ENDS))
        return true;
    if (block->run_count == 0)
        block->run_count = block->count;
    return block->extended && ++block->branches < BRANCHES_MAX && jit_goes_on_behind(insn);
}

/*
 * Adds the instruction that `bytes` hold. True: the block goes on behind it. A length of 0 (more
 * bytes are needed) adds nothing.
 */
static bool add_insn(struct soft_cpu *cpu, struct block *block, const uint8_t *bytes,
                     size_t available, int *length) {
    struct insn *insn = &block->insns[block->count];
    *length = insn_decode(insn, bytes, available, block->rip + block->length,
                          (enum insn_mode)(block->key & KEY_MODE), cpu->features);
    if (*length == 0 || (*length < 0 && block->extended && block->count != 0))
        return false;
    insn->offset = block->length;
    block->count++;
    if (*length < 0) {
        insn->exec = *length == -EXC_GP ? refuse_gp : refuse_ud;
        block->length += insn->length;
        return false;
    }
    insn->exec = checked_exec(insn, block->key);
    block->relative |= insn_is_rip_relative(insn);
    block->length += insn->length;
    return goes_on_behind(block, insn);
}

/* The pseudo-instruction behind the last. */
static void seal(struct block *block) {
    struct insn *end = &block->insns[block->count];
    if (block->run_count == 0)
        block->run_count = block->count;
    memset(end, 0, sizeof *end);
    end->exec = block_fall;
    end->offset = block->length;
}

/* The one instruction that begins on `page` and ends on the next. False: no RAM there. */
static bool decode_straddling(struct soft_cpu *cpu, struct block *block,
                              const struct code_page *page, uint64_t linear, uint64_t limit) {
    uint8_t bytes[INSN_BYTES_MAX];
    struct code_page second;
    size_t first = page->available, rest = INSN_BYTES_MAX - first;
    int length;
    if (limit < first)
        raise_error(cpu, EXC_GP, 0);
    if (!mmu_fetch(cpu, linear + first, &second))
        return false;
    watch(cpu, &second);
    if (rest > limit - first + 1)
        rest = limit - first + 1;
    memcpy(bytes, page->host, first);
    memcpy(bytes + first, second.host, rest);
    block->straddles = true;
    block->gpa[1] = second.gpa;
    add_insn(cpu, block, bytes, first + rest, &length);
    if (length == 0) /* the segment ends within the instruction */
        raise_error(cpu, EXC_GP, 0);
    return true;
}

/* limit: the last byte, counted from the first, that the code segment lets be fetched. */
static bool decode_block(struct soft_cpu *cpu, struct block *block, const struct code_page *page,
                         uint64_t linear, uint64_t limit) {
    size_t available = page->available - 1 < limit ? page->available : limit + 1;
    unsigned most = block->key & KEY_STEP ? 1 : BLOCK_INSNS_MAX;
    bool breaks = !(block->key & KEY_NO_BREAK);
    int length = 1;
    while (block->count < most && available > block->length &&
           add_insn(cpu, block, page->host + block->length, available - block->length, &length)) {
        if (breaks && is_breakpoint(cpu, linear + block->length))
            break;
    }
    if (block->count != 0)
        return true;
    if (available < page->available)
        raise_error(cpu, EXC_GP, 0);
    return decode_straddling(cpu, block, page, linear, limit);
}

/* Bytes of code as a processor fetches them: a naturally aligned quadword is read at once, so that
 * a store of another processor to it is seen whole or not at all (APM vol. 2, 7.6.1). */
struct code_copy {
    uint64_t quads[BLOCK_BYTES_MAX / 8 + 1];
};

static const uint8_t *copy_code(struct code_copy *copy, const uint8_t *from, size_t length) {
    unsigned shift = (uintptr_t)from & 7;
    const uint64_t *at = (const uint64_t *)(const void *)(from - shift);
    for (size_t i = 0; i < (shift + length + 7) / 8; i++)
        copy->quads[i] = __atomic_load_n(&at[i], __ATOMIC_RELAXED);
    return (const uint8_t *)copy->quads + shift;
}

static struct block *make(struct soft_cpu *cpu, uint64_t key, const struct code_page *page,
                          uint64_t linear, uint64_t limit) {
    struct block *block;
    struct code_page source = *page;
    struct code_copy copy;
    watch(cpu, page);
    if (cpu->several) {
        if (source.available > BLOCK_BYTES_MAX)
            source.available = BLOCK_BYTES_MAX;
        source.host = copy_code(&copy, page->host, source.available);
    }
    block = reserve_block(cpu);
    *block = (struct block){.hash_next = block->hash_next, .dead = true};
    block->insns = reserve_chunk(cpu)->insns;
    block->rip = cpu->rip;
    block->key = key;
    block->host = page->host;
    block->gpa[0] = page->gpa;
    block->heat = *heat_of(cpu->blocks->store, block);
    if (!decode_block(cpu, block, &source, linear, limit))
        return NULL;
    seal(block);
    if (!(key & KEY_NO_BREAK) && is_breakpoint(cpu, linear))
        block->insns[0].exec = stop_at_breakpoint;
    block->dead = false;
    commit(cpu, block);
    return block;
}

bool block_may_extend(const struct soft_cpu *cpu, const struct block *block) {
    enum { NOT_FURTHER = KEY_STEP | KEY_NO_BREAK | KEY_PLAIN | KEY_NO_FP | KEY_X87_RAISES };
    const struct insn *last = &block->insns[block->count - 1];
    return !(block->extended || block->straddles || block->dead || block->key & NOT_FURTHER ||
             last->exec == refuse_ud || last->exec == refuse_gp || !jit_goes_on_behind(last) ||
             is_breakpoint(cpu, block->rip));
}

struct block *block_extend(struct soft_cpu *cpu, struct block *block,
                           uint8_t copy[BLOCK_BYTES_MAX]) {
    if (!block_may_extend(cpu, block))
        return NULL;
    struct block old = *block;
    struct block *longer = reserve_block(cpu);
    struct insn *insns = reserve_chunk(cpu)->insns;
    bool emptied = block->dead; /* its segment was */
    unsigned left = PAGE_SIZE - (old.gpa[0] & (PAGE_SIZE - 1));
    struct code_page page = {.host = old.host, .gpa = old.gpa[0], .available = left};
    if (emptied)
        watch_again(cpu, &page);
    page.available = left < BLOCK_BYTES_MAX ? left : BLOCK_BYTES_MAX;
    struct code_copy whole;
    memcpy(copy, copy_code(&whole, old.host, page.available), page.available);
    page.host = copy;
    *longer = (struct block){.hash_next = longer->hash_next,
                             .insns = insns,
                             .rip = old.rip,
                             .key = old.key,
                             .host = old.host,
                             .gpa = {old.gpa[0]},
                             .heat = old.heat,
                             .extended = true};
    decode_block(cpu, longer, &page, old.rip, UINT64_MAX - 1);
    seal(longer);
    commit(cpu, longer);
    if (!emptied)
        block_drop(cpu, block);
    cpu->blocks->jump[jump_hash(longer->rip)] = longer;
    return longer;
}

/* The bytes of a block as they are now. False: the second page is elsewhere. */
static bool copy_bytes(struct soft_cpu *cpu, const struct block *block,
                       uint8_t copy[BLOCK_BYTES_MAX]) {
    struct code_page second;
    struct fault fault;
    size_t first = PAGE_SIZE - (block->gpa[0] & (PAGE_SIZE - 1));
    if (!block->straddles) {
        memcpy(copy, block->host, block->length);
        return true;
    }
    if (!mmu_fetch_or(cpu, block_linear(cpu, block->rip) + first, &second, &fault) ||
        second.host == NULL || second.gpa != block->gpa[1])
        return false;
    memcpy(copy, block->host, first);
    memcpy(copy + first, second.host, block->length - first);
    return true;
}

bool block_decode(struct soft_cpu *cpu, struct block *block) {
    uint8_t bytes[BLOCK_BYTES_MAX];
    if (block->insns != NULL || block->dead)
        return !block->dead;
    uint16_t count = block->count, length = block->length;
    int last = 1;
    bool same = copy_bytes(cpu, block, bytes);
    block->insns = reserve_chunk(cpu)->insns;
    block->count = block->length = block->run_count = block->branches = 0;
    while (same && block->count < count && block->length < length &&
           add_insn(cpu, block, bytes + block->length, (size_t)(length - block->length), &last)) {
    }
    same = same && block->count == count && block->length == length;
    block->count = count;
    block->length = length;
    if (!same) {
        block->insns = NULL;
        block_drop(cpu, block);
        return false;
    }
    seal(block);
    commit_chunk(cpu->blocks->store, block);
    return true;
}

/* ---- Finding ---- */

static struct block *no_memory(struct soft_cpu *cpu, uint64_t linear) {
    cpu->exit = (struct vcpu_exit){.stop = VCPU_FAILED, .gva = linear};
    snprintf(cpu->exit.text, sizeof cpu->exit.text,
             "instruction fetch at %#llx, where there is no memory", (unsigned long long)linear);
    return NULL;
}

struct block *block_find(struct soft_cpu *cpu, uint64_t key) {
    uint64_t linear = block_linear(cpu, cpu->rip), limit = UINT64_MAX - 1;
    struct code_page page;
    struct block *block;
    if (cpu->mode != INSN_MODE_64) {
        if (cpu->rip > cpu->segment[SEG_CS].limit)
            raise_error(cpu, EXC_GP, 0);
        limit = cpu->segment[SEG_CS].limit - cpu->rip;
    }
    if (!mmu_fetch(cpu, linear, &page))
        return no_memory(cpu, linear);
    block = block_on_page(cpu, key, &page, linear);
    if (block == NULL && cpu->mode == INSN_MODE_64 && cpu->blocks->store->breakpoint_count == 0) {
        block_place_claim(cpu, key, page.gpa, linear);
        block = block_on_page(cpu, key, &page, linear);
    }
    if (block == NULL)
        block = make(cpu, key, &page, linear, limit);
    if (block == NULL)
        return no_memory(cpu, linear);
    block_note(cpu, block);
    return block;
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

int block_set_breakpoint(struct soft_cpu *cpu, uint64_t linear, bool on) {
    struct block_store *store = cpu->blocks->store;
    unsigned i = 0;
    while (i < store->breakpoint_count && store->breakpoints[i] != linear)
        i++;
    if (on && i == BREAKPOINTS_MAX)
        return -ENOSPC;
    if (on)
        store->breakpoints[i] = linear;
    else if (i < store->breakpoint_count)
        store->breakpoints[i] = store->breakpoints[store->breakpoint_count - 1];
    else
        return 0;
    store->breakpoint_count = on ? (i == store->breakpoint_count ? i + 1 : store->breakpoint_count)
                                 : store->breakpoint_count - 1;
    block_invalidate_all(cpu);
    return 0;
}
