/*
 * Finding blocks that are there already: what translated code asks for with
 * its vector registers alive, so compiled for general registers alone.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/outside.h"

uint32_t *block_hash(struct block_cache *cache, uint64_t gpa, uint64_t rip, uint64_t key) {
    /* What may move stays in its chain. */
    if (block_place_moves(rip))
        rip = 0;
    uint64_t mixed = (gpa ^ rip << 7 ^ key << 3) * UINT64_C(0x9e3779b97f4a7c15);
    return &cache->hash[mixed >> (64 - BLOCK_HASH_BITS)];
}

struct block_place **block_place_chain(struct block_places *places, uint64_t gpa, uint64_t key) {
    uint64_t mixed = (gpa ^ key) * UINT64_C(0x9e3779b97f4a7c15);
    return &places->hash[mixed >> (64 - PLACE_HASH_BITS)];
}

struct block_place *block_place_find(struct block_places *places, uint64_t gpa, uint64_t linear,
                                     uint64_t key) {
    struct block_place *place = *block_place_chain(places, gpa, key);
    while (place != NULL && (place->gpa != gpa || place->linear != linear || place->key != key))
        place = place->next;
    return place;
}

/* A straddling block holds as long as its second page is where it was. */
static bool second_page_holds(struct soft_cpu *cpu, const struct block *block, uint64_t linear,
                              unsigned first) {
    struct code_page second;
    struct fault fault;
    return mmu_fetch_or(cpu, linear + first, &second, &fault) && second.host != NULL &&
           second.gpa == block->gpa[1];
}

struct block *block_on_page(struct soft_cpu *cpu, uint64_t key, const struct code_page *page,
                            uint64_t linear) {
    uint32_t number = *block_hash(cpu->blocks, page->gpa, cpu->rip, key);
    while (number != 0) {
        struct block *block = block_at(cpu->blocks, number);
        number = block->hash_next;
        if (block->rip == cpu->rip && block->host == page->host && block->key == key &&
            block->gpa[0] == page->gpa &&
            (!block->straddles || second_page_holds(cpu, block, linear, page->available))) {
            block_place_note(cpu, block);
            return block;
        }
    }
    return NULL;
}

struct block *block_look(struct soft_cpu *cpu, uint64_t key) {
    struct block *block = block_jump(cpu, key);
    uint64_t linear = block_linear(cpu, cpu->rip);
    struct code_page page;
    struct fault fault;
    bool limited = cpu->mode != INSN_MODE_64 && cpu->segment[SEG_CS].limit != UINT32_MAX;
    if (block != NULL)
        block_place_note(cpu, block);
    if (block != NULL || limited)
        return block;
    if (!mmu_fetch_or(cpu, linear, &page, &fault) || page.host == NULL)
        return NULL;
    block = block_on_page(cpu, key, &page, linear);
    if (block != NULL)
        block_note(cpu, block);
    return block;
}
