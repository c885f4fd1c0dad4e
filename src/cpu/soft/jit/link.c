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
static void note_mapping(struct soft_cpu *cpu, uint64_t rip, uint32_t number) {
    if (rip >> 63 && !mmu_is_global(cpu, rip))
        cpu->jit.upper_is_local = true;
    jit_set_map(&cpu->jit, rip, number);
    jit_note_fetch(&cpu->jit, rip);
}

static uint8_t *in_code(struct jit_block *made, unsigned at) {
    return (uint8_t *)made + at;
}

/* The guard is a compare, whose last field has the number, JNE rel32 and JMP rel32 (branch.c). */
static void link_guarded(struct soft_cpu *cpu, struct jit_exit *exit, const struct block *to) {
    enum { JMP_FIELD = 4 + 6 + 1 };
    uint8_t *guard = in_code(jit_block_of_exit(exit), exit->guard);
    uint32_t number = jit_mapping_of(cpu, to, 0);
    if (number == NONE)
        return;
    note_mapping(cpu, to->rip, number);
    __builtin_memcpy(guard, &number, sizeof number);
    aim(guard + JMP_FIELD, in_code(to->code, to->code->entry_saved));
    exit->target = to->place != NULL ? block_place_number(cpu->blocks->places, to->place) : 0;
    exit->target_life = to->place != NULL ? to->place->life : 0;
}

const uint8_t *jit_entry(struct soft_cpu *cpu, const struct block *block) {
    if (unlikely(block->straddles)) {
        uint32_t number = jit_mapping_of(cpu, block, 1);
        note_mapping(cpu, block->rip + PAGE_SIZE, number);
        if (number != NONE)
            __builtin_memcpy(in_code(block->code, block->code->second_page), &number,
                             sizeof number);
    }
    return jit_code(cpu->jit.jit, block->code, block->code->entry_saved);
}

void jit_link(struct soft_cpu *cpu, struct jit_exit *exit, const struct block *to) {
    struct jit_block *made = jit_block_of_exit(exit);
    const struct block *from = made->block;
    if (exit->polls || made->dead || to->dead || to->code == NULL ||
        jit_exit_rip(exit) != to->rip || jit_exit_key(exit) != to->key)
        return;
    if (exit->guard != 0)
        link_guarded(cpu, exit, to);
    else if (from->place == to->place && (from->gpa[0] ^ to->gpa[0]) < PAGE_SIZE)
        aim(in_code(made, exit->field),
            in_code(to->code, exit->flags_saved ? to->code->entry_saved : to->code->entry_host));
}

/* JMP rel32 over an entry. */
static void redirect(uint8_t *entry, const uint8_t *to) {
    entry[0] = 0xe9;
    aim(entry + 1, to);
}

void jit_replace(struct jit_block *old, struct jit_block *by) {
    if (old->entry_host != old->entry_saved)
        redirect(in_code(old, old->entry_host), by != NULL
                                                    ? in_code(by, by->entry_host)
                                                    : in_code(old, jit_dead_entry(old, false)));
    redirect(in_code(old, old->entry_saved),
             by != NULL ? in_code(by, by->entry_saved) : in_code(old, jit_dead_entry(old, true)));
}

bool jit_is_worn(const struct soft_cpu *cpu, const struct jit_block *made) {
    return made->counted && cpu->jit.runs_left[made->counter] < 0;
}
