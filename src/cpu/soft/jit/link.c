/*
 * Links between translated blocks: patched jumps. Compiled for general
 * registers alone (fast.h), because translated code asks for them.
 *
 * Within a page a jump goes straight to the target. Between pages a check
 * comes first: that the target's page is mapped as it was when the link was
 * made. Mappings have numbers, alike in all address spaces, so that links
 * hold for all processes that share code at the same addresses. Numbers are
 * not used twice: when a page's code moves, links to where it was find their
 * number nowhere.
 */
#include "cpu/soft/jit/fast.h"
#include "cpu/soft/mmu.h"

enum { NONE = 0 };

/* The mapping's entry in an open hash table, or a free one for it; NULL: the table is full. */
static struct jit_mapping *mapping_entry(struct jit *jit, const struct jit_mapping *wanted) {
    uint64_t mixed =
        (wanted->linear ^ wanted->gpa << 20 ^ wanted->key) * UINT64_C(0x9e3779b97f4a7c15);
    struct jit_mapping *unused = NULL;
    for (unsigned tries = 0; tries < 64; tries++) {
        struct jit_mapping *at = &jit->mappings[((mixed >> 40) + tries) & (JIT_MAPPINGS - 1)];
        if (at->number == NONE) {
            unused = unused != NULL ? unused : at;
            if (!at->removed)
                break;
        } else if (at->linear == wanted->linear && at->gpa == wanted->gpa &&
                   at->key == wanted->key) {
            return at;
        }
    }
    return unused;
}

static void aim(uint8_t *field, const uint8_t *target) {
    int32_t distance = (int32_t)(target - (field + 4));
    __builtin_memcpy(field, &distance, sizeof distance);
}

uint32_t jit_mapping_of(struct jit *jit, const struct block *block, unsigned page) {
    struct jit_mapping mapping = {.linear = (block->rip >> PAGE_SHIFT) + page,
                                  .gpa = block->gpa[page] >> PAGE_SHIFT,
                                  .key = block->key & ~(uint64_t)(KEY_PLAIN | KEY_TLB)};
    struct jit_mapping *entry = mapping_entry(jit, &mapping);
    if (entry == NULL || jit->last_number == UINT32_MAX - 1) {
        jit->full = true;
        return NONE;
    }
    if (entry->number == NONE) {
        *entry = mapping;
        entry->number = ++jit->last_number;
    }
    return entry->number;
}

void jit_retire_mapping(struct soft_cpu *cpu, uint64_t linear, uint64_t gpa, uint64_t key) {
    struct jit_mapping wanted = {
        .linear = linear >> PAGE_SHIFT, .gpa = gpa >> PAGE_SHIFT, .key = key & ~(uint64_t)KEY_TLB};
    struct jit_mapping *entry = mapping_entry(cpu->jit.jit, &wanted);
    if (entry != NULL && entry->number != NONE)
        *entry = (struct jit_mapping){.removed = true};
    ((uint32_t *)cpu->jit.code_map)[jit_map_slot(linear)] = NONE;
}

/* The page, which holds code of the block, is mapped so now. */
static void note_mapping(struct soft_cpu *cpu, uint64_t rip, uint32_t number) {
    if (rip >> 63 && !mmu_is_global(cpu, rip))
        cpu->jit.upper_is_local = true;
    ((uint32_t *)cpu->jit.code_map)[jit_map_slot(rip)] = number;
    jit_note_fetch(&cpu->jit, rip);
}

static void link_guarded(struct soft_cpu *cpu, struct jit_exit *exit, const struct block *to) {
    uint32_t number = jit_mapping_of(cpu->jit.jit, to, 0);
    if (number == NONE)
        return;
    note_mapping(cpu, to->rip, number);
    __builtin_memcpy(exit->guard_id, &number, sizeof number);
    aim(exit->guard_field, to->code->entry_saved);
}

const uint8_t *jit_entry(struct soft_cpu *cpu, const struct block *block) {
    if (unlikely(block->straddles)) {
        uint32_t number = jit_mapping_of(cpu->jit.jit, block, 1);
        note_mapping(cpu, block->rip + PAGE_SIZE, number);
        if (number != NONE)
            __builtin_memcpy(block->code->second_page, &number, sizeof number);
    }
    return code_executable(&cpu->jit.jit->memory, block->code->entry_saved);
}

void jit_link(struct soft_cpu *cpu, struct jit_exit *exit, const struct block *to) {
    if (exit->polls || exit->from->dead || to->dead || to->code == NULL || exit->rip != to->rip ||
        exit->key != to->key)
        return;
    if (exit->guard_field != NULL)
        link_guarded(cpu, exit, to);
    else if (exit->from->place == to->place)
        aim(exit->field, exit->flags_saved ? to->code->entry_saved : to->code->entry_host);
}
