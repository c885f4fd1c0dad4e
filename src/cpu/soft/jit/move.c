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
    struct block_place *place = t->block->place;
    t->moves = place != NULL && !place->pinned && block_place_moves(place->linear);
}

void relocate(struct translation *t, const uint8_t *field, unsigned kind) {
    enum { OFFSET_MAX = UINT16_MAX >> 1 };
    size_t offset = (size_t)(field - t->start);
    if (!t->moves)
        return;
    if (offset > OFFSET_MAX || t->relocation_count == RELOCATIONS_MAX)
        t->moves = false;
    else
        t->relocations[t->relocation_count++] = (uint16_t)(offset << 1 | kind);
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
    made->place = block_place_number(t->cpu->blocks->places, place);
    made->place_next = place->made != NULL ? jit_number(jit, place->made) : 0;
    place->made = made;
}

void relocations_forget(struct soft_cpu *cpu, struct jit_block *made) {
    if (made->place == 0)
        return;
    struct block_place *place = block_place_at(cpu->blocks->places, made->place);
    place->made = NULL;
    place->pinned = false;
}

static struct jit_block *next_of_place(const struct jit *jit, const struct jit_block *made) {
    return made->place_next != 0 ? jit_at(jit, made->place_next) : NULL;
}

/* Links to what was there do not hold. */
static void forget_mapping(struct soft_cpu *cpu, uint64_t linear) {
    ((uint32_t *)cpu->jit.code_map)[jit_map_slot(linear)] = 0;
}

void jit_leave_place(struct soft_cpu *cpu, struct block_place *place) {
    const struct jit *jit = cpu->jit.jit;
    for (struct jit_block *made = place->made; made != NULL; made = next_of_place(jit, made))
        made->place = 0;
    place->made = NULL;
    forget_mapping(cpu, place->linear);
}

/* ---- Moving ---- */

static void change_relocations(const struct jit *jit, const struct jit_block *made,
                               uint64_t delta) {
    uint64_t address = 0;
    const uint16_t *relocations =
        (const uint16_t *)(const void *)((const uint8_t *)made + made->relocations);
    for (unsigned i = 0; i < made->relocation_count; i++) {
        uint8_t *field = jit_code_writable(jit, made, relocations[i] >> 1);
        if ((relocations[i] & 1) == RELOCATE_ADDRESS) {
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
static void change_exits(struct soft_cpu *cpu, struct jit_block *made) {
    struct jit *jit = cpu->jit.jit;
    struct jit_exit *exit = jit_exits(made);
    for (unsigned i = 0; i < made->exit_count; i++, exit = jit_exit_next(exit)) {
        if (!exit->guarded)
            continue;
        struct block_place *target =
            exit->target != 0 ? block_place_at(cpu->blocks->places, exit->target) : NULL;
        bool linked = target != NULL && target->life == exit->target_life;
        uint64_t rip = jit_exit_rip(made, exit);
        change_check(jit_guard_number(jit, made, exit), rip,
                     linked ? number_at(jit, target, rip) : NOWHERE);
    }
}

/* Where its number is not known it is filled in when it is entered by way of C (jit_entry). */
static void change_second_page(struct soft_cpu *cpu, struct jit_block *made,
                               const struct block_place *place, uint64_t delta) {
    const struct block *block = made->block;
    uint64_t linear = (block->rip & PAGE_MASK) + PAGE_SIZE;
    struct block_place *second =
        block_place_find(cpu->blocks->places, block->gpa[1] & PAGE_MASK, linear, place->key);
    change_check(jit_code_writable(cpu->jit.jit, made, made->second_page), linear + delta,
                 second != NULL ? number_at(cpu->jit.jit, second, linear + delta) : NOWHERE);
}

static void move_code(struct soft_cpu *cpu, struct jit_block *made, const struct block_place *place,
                      uint64_t delta) {
    uint64_t rip = made->rip;
    made->rip += delta;
    change_relocations(cpu->jit.jit, made, delta);
    change_exits(cpu, made);
    if (made->dead)
        return;
    jit_forget_jump(cpu, rip);
    if (made->second_page != 0)
        change_second_page(cpu, made, place, delta);
}

void jit_move_place(struct soft_cpu *cpu, struct block_place *place, uint64_t delta) {
    const struct jit *jit = cpu->jit.jit;
    if (jit == NULL)
        return;
    for (struct jit_block *made = place->made; made != NULL; made = next_of_place(jit, made))
        move_code(cpu, made, place, delta);
    forget_mapping(cpu, place->linear);
    place->number = place->next_linear == place->linear + delta ? place->next_number : 0;
    place->next_number = 0;
    /* Return points in it compare with addresses that are others now. */
    jit_empty_shadows(&cpu->jit);
}
