/*
 * Moving translated code to another linear address: it stays where it is in
 * code memory, and what in it depends on the address is changed. That is what
 * was noted when it was translated (relocations), its exits, and the numbers
 * of mappings.
 *
 * Code of dropped blocks moves along as long as its place has blocks: jumps
 * within the page may lead to it, and then out of it to the address that it
 * was made for (jit_fast_gone).
 */
#include "cpu/soft/jit/translation.h"
#include "cpu/soft/mmu.h"

/* The number of no mapping. */
#define NOWHERE UINT32_MAX

/* ---- Notes ---- */

void relocations_begin(struct translation *t) {
    struct jit *jit = t->jit;
    struct block_place *place = t->block->place;
    t->moves = place != NULL && !place->pinned && block_place_moves(place->linear);
    t->made->code = t->out.at;
    t->made->first_exit = jit->exit_count;
    t->made->first_relocation = jit->relocation_count;
}

void relocate(struct translation *t, const uint8_t *field, unsigned kind) {
    enum { OFFSET_MAX = UINT16_MAX >> 1 };
    struct jit_block *made = t->made;
    size_t offset = (size_t)(field - made->code);
    uint32_t n = made->first_relocation + made->relocation_count;
    if (!t->moves)
        return;
    if (offset > OFFSET_MAX || made->relocation_count == UINT16_MAX) {
        t->moves = false;
    } else if (n >= RELOCATIONS_MAX) {
        t->out.full = true;
    } else {
        t->jit->relocations[n] = (uint16_t)(offset << 1 | kind);
        made->relocation_count++;
    }
}

void emit_mov_address(struct translation *t, unsigned reg, uint64_t linear) {
    bool wide = linear != (uint32_t)linear && (int64_t)linear != (int32_t)linear;
    emit_mov_imm(&t->out, reg, linear);
    if (wide)
        relocate(t, t->out.at - 8, RELOCATE_ADDRESS);
    else
        t->moves = false;
}

void relocations_end(struct translation *t) {
    struct jit *jit = t->jit;
    struct jit_block *made = t->made;
    struct block_place *place = t->block->place;
    if (place == NULL)
        return;
    place->pinned |= !t->moves;
    made->exit_count = jit->exit_count - made->first_exit;
    jit->relocation_count += made->relocation_count;
    made->place = place;
    made->place_next = place->made;
    place->made = made;
}

void relocations_clear(struct jit *jit) {
    for (uint32_t i = 0; i < jit->block_count; i++)
        if (jit->blocks[i].place != NULL) {
            jit->blocks[i].place->made = NULL;
            jit->blocks[i].place->pinned = false;
        }
    jit->relocation_count = 0;
}

/* Links to what was there do not hold. */
static void forget_mapping(struct soft_cpu *cpu, uint64_t linear) {
    ((uint32_t *)cpu->jit.code_map)[jit_map_slot(linear)] = 0;
}

void jit_leave_place(struct soft_cpu *cpu, struct block_place *place) {
    for (struct jit_block *made = place->made; made != NULL; made = made->place_next)
        made->place = NULL;
    place->made = NULL;
    forget_mapping(cpu, place->linear);
}

/* ---- Moving ---- */

static void change_relocations(const struct jit *jit, const struct jit_block *made,
                               uint64_t delta) {
    uint64_t address = 0;
    for (unsigned i = 0; i < made->relocation_count; i++) {
        uint16_t relocation = jit->relocations[made->first_relocation + i];
        uint8_t *field = made->code + (relocation >> 1);
        if ((relocation & 1) == RELOCATE_ADDRESS) {
            memcpy(&address, field, sizeof address);
            address += delta;
            memcpy(field, &address, sizeof address);
        } else {
            int32_t at, slots = (int32_t)(tlb_slot(address) - tlb_slot(address - delta));
            memcpy(&at, field, sizeof at);
            at += slots * (int32_t)sizeof(struct tlb_entry);
            memcpy(field, &at, sizeof at);
        }
    }
}

/* A check of the mapping at `linear`: cmp dword gs:[code_map + slot], number. */
static void change_check(uint8_t *field, uint64_t linear, uint32_t number) {
    int32_t at = CPU_AT(jit.code_map) +
                 (int32_t)(jit_map_slot(linear) * sizeof(((struct jit_state *)0)->code_map[0][0]));
    memcpy(field - sizeof at, &at, sizeof at);
    memcpy(field, &number, sizeof number);
}

/* What passes the check at `linear` if it is the place that is mapped there. */
static uint32_t number_at(struct jit *jit, struct block_place *place, uint64_t linear) {
    uint32_t number = jit_number_at(jit, place, linear & PAGE_MASK);
    return number != 0 ? number : NOWHERE;
}

/* Links to other places hold when these have moved along, or will have. */
static void change_exits(struct jit *jit, const struct jit_block *made, uint64_t delta) {
    for (uint32_t i = 0; i < made->exit_count; i++) {
        struct jit_exit *exit = &jit->exits[made->first_exit + i];
        exit->rip += delta;
        if (exit->guard_id == NULL)
            continue;
        bool linked = exit->target != NULL && exit->target->life == exit->target_life;
        change_check(exit->guard_id, exit->rip,
                     linked ? number_at(jit, exit->target, exit->rip) : NOWHERE);
    }
}

/* Where its number is not known it is filled in when it is entered by way of C (jit_entry). */
static void change_second_page(struct soft_cpu *cpu, const struct jit_block *made, uint64_t delta) {
    const struct block *block = made->block;
    uint64_t linear = (block->rip & PAGE_MASK) + PAGE_SIZE;
    struct block_place *second =
        block_place_find(cpu->blocks->places, block->gpa[1] & PAGE_MASK, linear, made->place->key);
    change_check(made->second_page, linear + delta,
                 second != NULL ? number_at(cpu->jit.jit, second, linear + delta) : NOWHERE);
}

static void move_code(struct soft_cpu *cpu, struct jit_block *made, uint64_t delta) {
    struct jit *jit = cpu->jit.jit;
    const struct block *block = made->block;
    made->rip += delta;
    change_relocations(jit, made, delta);
    change_exits(jit, made, delta);
    jit_map_move(cpu, made->map, delta);
    if (block == NULL)
        return;
    struct jit_jump *jump = &cpu->jit.jumps[jit_jump_slot(block->rip)];
    if (jump->rip == block->rip)
        jump->context = UINT64_MAX;
    if (made->second_page != NULL)
        change_second_page(cpu, made, delta);
}

void jit_move_place(struct soft_cpu *cpu, struct block_place *place, uint64_t delta) {
    if (cpu->jit.jit == NULL)
        return;
    for (struct jit_block *made = place->made; made != NULL; made = made->place_next)
        move_code(cpu, made, delta);
    forget_mapping(cpu, place->linear);
    place->number = place->next_linear == place->linear + delta ? place->next_number : 0;
    place->next_number = 0;
    /* Return points in it compare with addresses that are others now. */
    jit_empty_shadows(&cpu->jit);
}
