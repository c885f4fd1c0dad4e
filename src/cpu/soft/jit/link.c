/*
 * Links between translated blocks: patched jumps. Compiled for general
 * registers alone (fast.h), because translated code asks for them.
 *
 * Within a page a jump goes straight to the target. Between pages a check
 * comes first: that the target's page is mapped as it was when the link was
 * made. Mappings have numbers, alike in all address spaces, so that links
 * hold for all processes that share code at the same addresses. Numbers are
 * not used twice. A place has another wherever it is, so links to where it
 * was find theirs nowhere; but it gets to know the next one beforehand, from
 * code that has links to it and moves first, as libraries move as a whole.
 */
#include "base/general.h"
#include "cpu/soft/jit/fast.h"
#include "cpu/soft/mmu.h"

enum { NONE = 0 };

static uint32_t new_number(struct jit *jit) {
    if (jit->last_number == UINT32_MAX - 1) {
        jit->full = true;
        return NONE;
    }
    return ++jit->last_number;
}

uint32_t jit_number_at(struct jit *jit, struct block_place *place, uint64_t linear) {
    bool next = place->linear != linear;
    uint32_t *number = next ? &place->next_number : &place->number;
    if (*number == NONE || (next && place->next_linear != linear))
        *number = new_number(jit);
    if (next)
        place->next_linear = linear;
    return *number;
}

/* The number of a mapping without a place, from an open hash table. */
static uint32_t number_without_place(struct jit *jit, const struct jit_mapping *wanted) {
    uint64_t mixed =
        (wanted->linear ^ wanted->gpa << 20 ^ wanted->key) * UINT64_C(0x9e3779b97f4a7c15);
    struct jit_mapping *at = NULL;
    for (unsigned tries = 0; tries < 64; tries++) {
        at = &jit->mappings[((mixed >> 40) + tries) & (JIT_MAPPINGS - 1)];
        if (at->number == NONE)
            break;
        if (at->linear == wanted->linear && at->gpa == wanted->gpa && at->key == wanted->key)
            return at->number;
    }
    /* When it is full all get others. */
    if (at->number != NONE)
        general_fill(jit->mappings, 0, JIT_MAPPINGS * sizeof *jit->mappings);
    *at = *wanted;
    return at->number = new_number(jit);
}

static void aim(uint8_t *field, const uint8_t *target) {
    int32_t distance = (int32_t)(target - (field + 4));
    __builtin_memcpy(field, &distance, sizeof distance);
}

uint32_t jit_mapping_of(struct soft_cpu *cpu, const struct block *block, unsigned page) {
    uint64_t linear = (block->rip & PAGE_MASK) + page * (uint64_t)PAGE_SIZE;
    uint64_t gpa = block->gpa[page] & PAGE_MASK, key = block->key & ~(uint64_t)KEYS_OF_PLACE;
    struct block_place *place =
        page == 0 ? block->place : block_place_find(cpu->blocks->places, gpa, linear, key);
    if (place != NULL)
        return jit_number_at(cpu->jit.jit, place, linear);
    struct jit_mapping mapping = {
        .linear = linear >> PAGE_SHIFT, .gpa = gpa >> PAGE_SHIFT, .key = key};
    return number_without_place(cpu->jit.jit, &mapping);
}

/* The page, which holds code of the block, is mapped so now. */
static void note_mapping(struct soft_cpu *cpu, uint64_t rip, uint64_t key, uint32_t number) {
    jit_note_entered(cpu, rip, key);
    jit_set_map(&cpu->jit, rip, number);
    jit_note_fetch(&cpu->jit, rip);
}

/* ---- Exits ---- */

/* The guard is a compare, whose last field has the number, and JE rel32 (exits.c). */
enum { CALL_BYTES = 5, PUSH_JMP_BYTES = 10, JE_BYTES = 6, GUARD_BYTES = 12 + JE_BYTES };

struct jit_exit *jit_exit_behind(struct jit_block *made, unsigned back) {
    struct jit_exit *exit = jit_exits(made);
    while (exit->back != back)
        exit = jit_exit_next(exit);
    return exit;
}

/* The exit's jump or call, five bytes, comes next, or leads to its guard. */
struct jit_exit *jit_exit_polled(const struct jit *jit, struct jit_block *made, unsigned back) {
    struct jit_exit *exit = jit_exits(made);
    int32_t distance;
    unsigned behind = back + CALL_BYTES;
    __builtin_memcpy(&distance, jit_code(jit, made, behind - 4), sizeof distance);
    unsigned behind_guard = behind + (unsigned)distance + GUARD_BYTES + PUSH_JMP_BYTES;
    while (exit->guarded ? exit->back != behind_guard : exit->back != behind)
        exit = jit_exit_next(exit);
    return exit;
}

uint8_t *jit_guard_number(const struct jit *jit, const struct jit_block *made,
                          const struct jit_exit *exit) {
    return jit_code_writable(jit, made, exit->field - (JE_BYTES - 4u) - 4);
}

static void link_guarded(struct soft_cpu *cpu, struct jit_block *made, struct jit_exit *exit,
                         const struct block *to) {
    const struct jit *jit = cpu->jit.jit;
    uint32_t number = jit_mapping_of(cpu, to, 0);
    if (number == NONE)
        return;
    note_mapping(cpu, to->rip, to->key, number);
    __builtin_memcpy(jit_guard_number(jit, made, exit), &number, sizeof number);
    aim(jit_code_writable(jit, made, exit->field),
        jit_code_writable(jit, to->code, to->code->entry_saved));
    exit->target = to->place != NULL ? block_place_number(cpu->blocks->places, to->place) : 0;
    exit->target_life = to->place != NULL ? to->place->life : 0;
}

struct block_place *jit_linked_place(const struct soft_cpu *cpu, const struct jit_block *made,
                                     const struct jit_exit *exit, uint64_t rip) {
    uint32_t number;
    if (exit->target == 0)
        return NULL;
    struct block_place *place = block_place_at(cpu->blocks->places, exit->target);
    __builtin_memcpy(&number, jit_guard_number(cpu->jit.jit, made, exit), sizeof number);
    return place->life == exit->target_life && place->first != 0 && place->number == number &&
                   place->linear == (rip & PAGE_MASK)
               ? place
               : NULL;
}

const uint8_t *jit_link_again(struct soft_cpu *cpu, const struct jit_block *made,
                              const struct jit_exit *exit, struct block_place *place) {
    int32_t distance;
    const uint8_t *field = jit_code(cpu->jit.jit, made, exit->field);
    place->used = cpu->jit.spaces;
    note_mapping(cpu, jit_exit_rip(made, exit), jit_exit_key(made, exit), place->number);
    __builtin_memcpy(&distance, field, sizeof distance);
    return field + sizeof distance + distance;
}

/* ---- Links ---- */

const uint8_t *jit_entry(struct soft_cpu *cpu, const struct block *block) {
    if (unlikely(block->straddles)) {
        uint32_t number = jit_mapping_of(cpu, block, 1);
        note_mapping(cpu, block->rip + PAGE_SIZE, block->key, number);
        if (number != NONE)
            __builtin_memcpy(jit_code_writable(cpu->jit.jit, block->code, block->code->second_page),
                             &number, sizeof number);
    }
    return jit_code(cpu->jit.jit, block->code, block->code->entry_saved);
}

void jit_link(struct soft_cpu *cpu, struct jit_block *made, struct jit_exit *exit,
              const struct block *to) {
    enum { OP_JMP = 0xe9 };
    const struct jit *jit = cpu->jit.jit;
    const struct block *from = made->block;
    if (exit->polls || made->dead || to->dead || to->code == NULL ||
        jit_exit_rip(made, exit) != to->rip || jit_exit_key(made, exit) != to->key)
        return;
    if (exit->guarded) {
        link_guarded(cpu, made, exit, to);
    } else if (from->place == to->place && (from->gpa[0] ^ to->gpa[0]) < PAGE_SIZE) {
        unsigned entry = exit->flags_saved ? to->code->entry_saved : to->code->entry_host;
        if (exit->kind == EXIT_JMP)
            *jit_code_writable(jit, made, exit->field - 1u) = OP_JMP;
        aim(jit_code_writable(jit, made, exit->field), jit_code_writable(jit, to->code, entry));
    }
}

/* JMP rel32 over an entry. */
static void redirect(uint8_t *entry, const uint8_t *to) {
    entry[0] = 0xe9;
    aim(entry + 1, to);
}

void jit_replace(const struct jit *jit, const struct jit_block *old, const struct jit_block *by) {
    bool two = old->entry_host != old->entry_saved;
    for (unsigned saved = two ? 0 : 1; saved <= 1; saved++) {
        unsigned entry = saved ? old->entry_saved : old->entry_host;
        const uint8_t *to =
            by == NULL ? jit_code_writable(jit, old, jit_dead_entry(old, saved))
                       : jit_code_writable(jit, by, saved ? by->entry_saved : by->entry_host);
        redirect(jit_code_writable(jit, old, entry), to);
    }
}

struct jit_block *jit_map_find(const struct jit *jit, size_t offset) {
    struct jit_block *made = jit_at(jit, jit->map.starts[offset / JIT_MAP_GRAIN]);
    while (made->next != 0) {
        struct jit_block *next = jit_at(jit, made->next);
        if (next->code > offset)
            break;
        made = next;
    }
    return made;
}

bool jit_is_worn(const struct soft_cpu *cpu, const struct jit_block *made) {
    return made->counted && cpu->jit.runs_left[made->counter] < 0;
}
