/*
 * Memory operands: the linear address, then the software TLB's check inline,
 * in the terms of access.h.
 */
#include "cpu/soft/jit/translation.h"

static void load_gpr(struct translation *t, unsigned to, unsigned gpr) {
    if (is_homed(gpr))
        emit_gs(&t->out, OP_MOV_LOAD, 8, to, GPR_AT(gpr));
    else
        emit_mov(&t->out, to, gpr);
}

/* A register usable as base or index: the guest's own, or TEMP with the homed one's value. */
static int address_part(struct translation *t, unsigned gpr, unsigned temp) {
    if (gpr == REG_ZERO)
        return -1;
    if (!is_homed(gpr))
        return (int)gpr;
    load_gpr(t, temp, gpr);
    return (int)temp;
}

void lower_address(struct translation *t) {
    const struct insn *insn = t->insn;
    bool constant = insn->base == REG_ZERO && insn->index == REG_ZERO;
    unsigned size = insn->address_size == 4 ? 4 : 8;
    if (constant) {
        emit_mov_imm(&t->out, TEMP_A, size == 4 ? (uint32_t)insn->disp : (uint64_t)insn->disp);
    } else {
        int base = address_part(t, insn->base, TEMP_A);
        int index = address_part(t, insn->index, TEMP_B);
        emit_lea(&t->out, size, TEMP_A, base, index, insn->scale, (int32_t)insn->disp);
    }
    if (insn->seg == SEG_FS || insn->seg == SEG_GS)
        emit_gs(&t->out, OP_ADD_RM, 8, TEMP_A,
                (int32_t)(offsetof(struct soft_cpu, seg) + insn->seg * sizeof(struct soft_segment) +
                          offsetof(struct soft_segment, read.base)));
}

uint32_t lower_site(struct translation *t) {
    if (t->site != SITES_MAX)
        return t->site;
    struct jit *jit = t->jit;
    if (jit->site_count >= SITES_MAX - 1) {
        t->out.full = true;
        return 0;
    }
    t->site = jit->site_count++;
    jit->sites[t->site] = (struct jit_site){
        .block = t->block,
        .insn = (uint16_t)t->index,
        .recipe = (t->flags & (FLAGS_SAVED | FLAGS_STALE)) == FLAGS_SAVED ? RECIPE_NONE : t->recipe,
        .recipe_insn = t->recipe_insn,
    };
    return t->site;
}

void lower_find_if(struct translation *t, unsigned condition, const uint8_t *retry, uint32_t number,
                   bool leaves) {
    uint8_t *field = emit_jcc(&t->out, condition);
    if (t->slow_count >= sizeof t->slow / sizeof t->slow[0]) {
        t->out.full = true;
        return;
    }
    t->slow[t->slow_count].field = field;
    t->slow[t->slow_count].number = number;
    t->slow[t->slow_count].retry = retry;
    t->slow[t->slow_count++].leaves = leaves;
}

void lower_slow_if(struct translation *t, unsigned condition) {
    lower_find_if(t, condition, NULL, lower_site(t), false);
}

/* The offset in struct soft_cpu of the TLB that the block's accesses use. */
static int32_t tlb_at(const struct translation *t, enum tlb_kind kind, size_t member) {
    const struct soft_cpu *cpu = t->cpu;
    size_t table = (size_t)((const char *)cpu->tlb[kind] - (const char *)cpu);
    return (int32_t)(table + member);
}

void lower_check(struct translation *t, enum tlb_kind kind, unsigned size) {
    struct emitter *e = &t->out;
    const int32_t tag = tlb_at(t, kind, offsetof(struct tlb_entry, tag));
    const int32_t host = tlb_at(t, kind, offsetof(struct tlb_entry, host));
    _Static_assert(sizeof(struct tlb_entry) == 16, "entries are found by address >> 8");
    /* What differs from the tag is the offset in the page, or more when the entry does not hold.
     * What straddles a page's end is beyond the last offset at which `size` bytes fit. */
    emit_rorx(e, TEMP_B, TEMP_A, PAGE_SHIFT - 4);
    emit_group1(e, 4, 4, TEMP_B, (TLB_ENTRIES - 1) << 4);
    emit_gs_at(e, OP_XOR_RM, 8, TEMP_A, TEMP_B, tag);
    emit_group1(e, 7, 8, TEMP_A, PAGE_SIZE - (int32_t)size);
    lower_slow_if(t, COND_A);
    emit_gs_at(e, OP_ADD_RM, 8, TEMP_A, TEMP_B, host);
}

void lower_alignment(struct translation *t, unsigned size) {
    /* TEST TEMP_A's low byte, size - 1 */
    emit8(&t->out, 0x41);
    emit8(&t->out, 0xf6);
    emit8(&t->out, 0xc0 | (TEMP_A & 7));
    emit8(&t->out, (uint8_t)(size - 1));
    lower_slow_if(t, COND_NE);
}
