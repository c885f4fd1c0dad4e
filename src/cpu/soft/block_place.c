/*
 * Places: which blocks belong to one page at one linear address, and moving
 * them when the page turns up at another.
 *
 * A position-independent program and its libraries are at other addresses in
 * each process. What is made of a page's bytes is the same but for addresses,
 * so the blocks of a place that is no longer used follow the page. A page that
 * several processes run at the same time has a place for each, up to a limit.
 */
#include <stdlib.h>

#include "base/pages.h"
#include "cpu/soft/block_private.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/mmu.h"

enum { PLACES_EACH = 8 };

/* Each has a block at least, so there are never more than blocks. */
static struct block_place *make(struct block_places *places, uint64_t gpa, uint64_t linear,
                                uint64_t key, const uint8_t *host) {
    struct block_place **chain = block_place_chain(places, gpa, key), *place = places->unused;
    if (place != NULL)
        places->unused = place->next;
    else
        place = &places->all[places->made++];
    *place = (struct block_place){.linear = linear,
                                  .gpa = gpa,
                                  .key = key,
                                  .host = (uintptr_t)host & PAGE_MASK,
                                  .next = *chain,
                                  .life = place->life + 1};
    *chain = place;
    return place;
}

static void list_in_place(struct block_cache *cache, struct block_place *place, uint32_t number) {
    *block_neighbours_of(cache, number) = (struct block_neighbours){.next = place->first};
    if (place->first != 0)
        block_neighbours_of(cache, place->first)->before = number;
    place->first = number;
}

static void unlist_from_place(struct block_cache *cache, struct block_place *place,
                              uint32_t number) {
    const struct block_neighbours *of = block_neighbours_of(cache, number);
    if (of->before != 0)
        block_neighbours_of(cache, of->before)->next = of->next;
    else
        place->first = of->next;
    if (of->next != 0)
        block_neighbours_of(cache, of->next)->before = of->before;
}

void block_place_join(struct soft_cpu *cpu, struct block *block) {
    struct block_places *places = cpu->blocks->places;
    uint64_t gpa = block->gpa[0] & PAGE_MASK, linear = block->rip & PAGE_MASK;
    uint64_t key = block->key & ~(uint64_t)KEYS_OF_PLACE;
    if ((block->key & KEY_MODE) != INSN_MODE_64)
        return;
    struct block_place *place = block_place_find(places, gpa, linear, key);
    if (place == NULL)
        place = make(places, gpa, linear, key, block->host);
    else if (place->host != ((uintptr_t)block->host & PAGE_MASK))
        place->host = 0; /* the page has become another: no link is set again by it */
    place->used = cpu->jit.spaces;
    block->place = place;
    list_in_place(cpu->blocks, place, block_number(cpu->blocks, block));
}

void block_place_leave(struct soft_cpu *cpu, struct block *block) {
    struct block_places *places = cpu->blocks->places;
    struct block_place *place = block->place;
    if (place == NULL)
        return;
    block->place = NULL;
    unlist_from_place(cpu->blocks, place, block_number(cpu->blocks, block));
    if (place->first != 0)
        return;
    jit_leave_place(cpu, place);
    struct block_place **at = block_place_chain(places, place->gpa, place->key);
    while (*at != place)
        at = &(*at)->next;
    *at = place->next;
    place->next = places->unused;
    places->unused = place;
}

/* ---- Moving ---- */

static void move_block(struct block *block, uint64_t delta) {
    block->rip += delta;
    if (!block->relative || block->insns == NULL)
        return;
    for (unsigned i = 0; i < block->count; i++)
        if (insn_is_rip_relative(&block->insns[i]))
            block->insns[i].disp += (int64_t)delta;
}

/* Hash chains do not depend on it (block_hash), nor do links, which stay within the page. The jump
 * cache compares. */
static void move(struct soft_cpu *cpu, struct block_place *place, uint64_t linear) {
    uint64_t delta = linear - place->linear;
    jit_move_place(cpu, place, delta);
    struct block_cache *cache = cpu->blocks;
    for (uint32_t n = place->first; n != 0; n = block_neighbours_of(cache, n)->next)
        move_block(block_at(cache, n), delta);
    place->linear = linear;
    cpu->count.places_moved++;
}

/*
 * When n processes run a page in turn, each at its own address, the place that was used longest ago
 * was used n switches ago. A place that was not used for longer than that has been left.
 */
static bool seems_left(uint32_t age, unsigned count) {
    return age > count || count >= PLACES_EACH;
}

bool block_place_claim(struct soft_cpu *cpu, uint64_t key, uint64_t gpa, uint64_t linear) {
    struct block_place *oldest = NULL, *place;
    unsigned count = 0;
    key &= ~(uint64_t)KEYS_OF_PLACE;
    gpa &= PAGE_MASK;
    linear &= PAGE_MASK;
    if (!block_place_moves(linear))
        return false;
    for (place = *block_place_chain(cpu->blocks->places, gpa, key); place != NULL;
         place = place->next) {
        if (place->gpa != gpa || place->key != key)
            continue;
        if (place->linear == linear)
            return false;
        count++;
        if (!place->pinned && block_place_moves(place->linear) &&
            (oldest == NULL || cpu->jit.spaces - place->used > cpu->jit.spaces - oldest->used))
            oldest = place;
    }
    if (oldest == NULL || !seems_left(cpu->jit.spaces - oldest->used, count))
        return false;
    move(cpu, oldest, linear);
    return true;
}

/* ---- Life ---- */

void block_places_forget_numbers(struct block_places *places) {
    for (unsigned i = 0; i < places->made; i++)
        places->all[i].number = places->all[i].next_number = 0;
}

int block_places_create(struct block_cache *cache, struct error *err) {
    struct block_places *places = calloc(1, sizeof *places);
    if (places == NULL)
        return error_set_errno(err, -ENOMEM, "no memory for blocks' places");
    places->all = pages_take(BLOCKS_KEPT * sizeof *places->all);
    if (places->all == NULL) {
        free(places);
        return error_set_errno(err, -ENOMEM, "no memory for blocks' places");
    }
    cache->places = places;
    return 0;
}

size_t block_places_memory(const struct block_cache *cache) {
    return sizeof *cache->places + cache->places->made * sizeof *cache->places->all;
}

void block_places_destroy(struct block_cache *cache) {
    if (cache->places == NULL)
        return;
    pages_give_back(cache->places->all, BLOCKS_KEPT * sizeof *cache->places->all);
    free(cache->places);
    cache->places = NULL;
}
