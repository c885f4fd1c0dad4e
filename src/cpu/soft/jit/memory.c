/*
 * Memory operands: the linear address, then the software TLB's check inline,
 * in the terms of access.h; or one check for a group of them; or, near RSP,
 * the check of the stack window.
 */
#include "base/bytes.h"
#include "cpu/soft/jit/translation.h"

/* ---- Addresses ---- */

/*
 * In 32-bit code STACK may have been moved beyond either end of the address
 * space: RSP is what it says modulo 2^32. It matches the stack window only
 * where the two are the same; whoever reads RSP wraps it (here, and stubs.c).
 */
void lower_load_rsp(struct translation *t, unsigned to) {
    emit_gs(&t->out, OP_MOV_LOAD, 8, to, CPU_AT(jit.stack_subtrahend));
    emit_lea(&t->out, t->word, to, (int)to, STACK, 0, 0);
}

void lower_store_rsp(struct translation *t, unsigned from) {
    emit_gs(&t->out, OP_MOV_LOAD, 8, STACK, CPU_AT(jit.stack_addend));
    emit_lea(&t->out, 8, STACK, STACK, (int)from, 0, 0);
}

/* A register usable as base or index: the guest's own, or TEMP with the homed one's value. */
static int address_part(struct translation *t, unsigned gpr, unsigned temp) {
    if (gpr == REG_ZERO)
        return -1;
    if (!is_homed(gpr))
        return (int)gpr;
    load_home(t, temp, gpr);
    return (int)temp;
}

/* RSP and an index. */
static void lower_address_rsp(struct translation *t, unsigned size, int32_t disp) {
    const struct insn *insn = t->insn;
    bool more = insn->index != REG_ZERO;
    emit_gs(&t->out, OP_MOV_LOAD, 8, TEMP_A, CPU_AT(jit.stack_subtrahend));
    emit_lea(&t->out, more ? 8 : size, TEMP_A, TEMP_A, STACK, 0, disp);
    if (!more)
        return;
    int index = address_part(t, insn->index, TEMP_B);
    emit_lea(&t->out, size, TEMP_A, TEMP_A, index, insn->scale, 0);
}

void lower_add_segment(struct translation *t, unsigned seg) {
    emit_gs(&t->out, OP_ADD_RM, 8, TEMP_A,
            (int32_t)(offsetof(struct soft_cpu, seg) + seg * sizeof(struct soft_segment) +
                      offsetof(struct soft_segment, read.base)));
}

void lower_address(struct translation *t, int32_t disp) {
    const struct insn *insn = t->insn;
    unsigned size = insn->address_size == 4 ? 4 : 8;
    t->temp_group = NO_GROUP;
    if (insn->base == REG_ZERO && insn->index == REG_ZERO) {
        uint64_t linear = size == 4 ? (uint32_t)insn->disp : (uint64_t)insn->disp;
        if (insn_is_rip_relative(insn))
            emit_mov_address(t, TEMP_A, linear);
        else
            emit_mov_imm(&t->out, TEMP_A, linear);
    } else if (insn->base == RSP) {
        lower_address_rsp(t, size, disp);
    } else {
        int base = address_part(t, insn->base, TEMP_A);
        int index = address_part(t, insn->index, TEMP_B);
        bool there = base == TEMP_A && index < 0 && disp == 0 && size == 8;
        if (!there)
            emit_lea(&t->out, size, TEMP_A, base, index, insn->scale, disp);
    }
    if ((insn->seg == SEG_FS || insn->seg == SEG_GS) && t->mode == INSN_MODE_64)
        lower_add_segment(t, insn->seg);
}

/* An operand that only its displacement names. */
static bool is_constant(const struct insn *insn) {
    return insn->base == REG_ZERO && insn->index == REG_ZERO;
}

/* ---- Sites and slow paths ---- */

static unsigned new_site(struct translation *t, enum site_kind kind) {
    if (t->site_count >= SITES_MAX) {
        t->out.full = true;
        return 0;
    }
    unsigned n = t->site_count++;
    t->sites[n] = (struct jit_site){
        .insn = t->source[t->index] & (BLOCK_INSNS_MAX - 1),
        .kind = kind & 7,
        .recipe =
            ((t->flags & (FLAGS_SAVED | FLAGS_STALE)) == FLAGS_SAVED ? RECIPE_NONE : t->recipe) & 7,
        .recipe_insn = t->source[t->recipe_insn] & (BLOCK_INSNS_MAX - 1),
        .offset = t->insn->offset & 1023,
    };
    return n;
}

unsigned lower_site(struct translation *t) {
    if (t->site == SITES_MAX)
        t->site = new_site(t, SITE_CALLOUT);
    return t->site;
}

void lower_retry_at(struct translation *t, unsigned site, const uint8_t *retry) {
    t->sites[site].retry = (uint16_t)(retry - t->start);
}

/* A site of its own for a check of memory. */
static unsigned check_site(struct translation *t, enum site_kind kind, const uint8_t *retry,
                           enum tlb_kind tlb, unsigned span) {
    unsigned n = new_site(t, kind);
    struct jit_site *site = &t->sites[n];
    lower_retry_at(t, n, retry);
    /* What goes on plainly does not need flags that nobody reads: saved or not is all the same. */
    if (kind != SITE_ACCESS && (t->flags & FLAGS_SAVED))
        site->recipe = RECIPE_NONE;
    site->tlb = tlb & 3;
    site->span = (uint16_t)span;
    /* A misaligned operand comes before a page fault, so does an offset to FS or GS that is not
     * canonical, and flags by a recipe are the full call-out's affair. */
    site->faults = kind == SITE_ACCESS && !lowering_of(t->insn)->aligned && t->insn->seg < SEG_FS &&
                   (t->flags & FLAGS_SAVED);
    return n;
}

static void slow_if(struct translation *t, unsigned condition, uint8_t *stub, unsigned site,
                    bool in_temp) {
    uint8_t *field = emit_jcc(&t->out, condition);
    if (t->slow_count >= ARRAY_SIZE(t->slow)) {
        t->out.full = true;
        return;
    }
    t->slow[t->slow_count].field = field;
    t->slow[t->slow_count].site = site;
    t->slow[t->slow_count].stub = stub;
    t->slow[t->slow_count++].in_temp = in_temp;
}

void lower_stub_if(struct translation *t, unsigned condition, uint8_t *stub, unsigned site) {
    slow_if(t, condition, stub, site, false);
}

void lower_slow_if(struct translation *t, unsigned condition) {
    slow_if(t, condition, t->jit->callout, lower_site(t), true);
}

/* The last four bytes are to hold the number of a site. */
static void use_site(struct translation *t, unsigned site) {
    if (t->site_use_count >= ARRAY_SIZE(t->site_uses)) {
        t->out.full = true;
        return;
    }
    t->site_uses[t->site_use_count].field = t->out.at - 4;
    t->site_uses[t->site_use_count++].site = site;
}

void lower_load_site(struct translation *t, unsigned site) {
    emit_mov_imm(&t->out, TEMP_B, 0);
    use_site(t, site);
}

static void push_site(struct translation *t, unsigned site) {
    emit8(&t->out, 0x68); /* PUSH imm32 */
    emit32(&t->out, 0);
    use_site(t, site);
}

void lower_to_stub(struct translation *t, unsigned site, const uint8_t *stub) {
    push_site(t, site);
    emit_aim(emit_jmp(&t->out), stub);
}

/* The check of a group in a hot block: where it found the page, but not all of the group on it, on
 * without C. TEMP_A is what differs from the tag. */
static void lower_plain_path(struct translation *t, const struct jit_site *site) {
    if (!t->block->extended || site->kind != SITE_GROUP || site->recipe != RECIPE_NONE)
        return;
    emit_group1(&t->out, 7, 8, TEMP_A, PAGE_SIZE);
    t->flags = FLAGS_SAVED;
    lower_plainly_if(t, COND_B, t->block->rip + site->offset);
}

void lower_slow_paths(struct translation *t) {
    for (unsigned i = 0; i < t->slow_count && emit_has_room(&t->out); i++) {
        emit_aim(t->slow[i].field, t->out.at);
        lower_plain_path(t, &t->sites[t->slow[i].site]);
        if (t->slow[i].in_temp)
            lower_load_site(t, t->slow[i].site);
        else
            push_site(t, t->slow[i].site);
        emit_aim(emit_jmp(&t->out), t->slow[i].stub);
    }
}

/* ---- Checks ---- */

/* 32-bit code: from the offset in TEMP_A to the address in FS or GS, which wraps. Beyond the last
 * offset at which the access fits, to C; the segment's `mark` is in no address that the TLB has. */
static void add_narrow_base(struct translation *t, unsigned size) {
    const int32_t base =
        CPU_AT(jit.narrow) + (int32_t)sizeof t->cpu->jit.narrow[0] * (t->insn->seg == SEG_GS);
    uint32_t offset = (uint32_t)t->insn->disp;
    if (!is_constant(t->insn) || offset + (uint64_t)size - 1 > UINT32_MAX) {
        emit_group1(&t->out, 7, 4, TEMP_A, -(int32_t)size);
        lower_slow_if(t, COND_A);
    }
    emit_gs(&t->out, OP_ADD_RM, 4, TEMP_A, base);
    emit_gs(&t->out, OP_OR_RM, 8, TEMP_A,
            base + (int32_t)offsetof(__typeof__(t->cpu->jit.narrow[0]), mark));
}

static unsigned tlb_index_of(const struct translation *t) {
    const struct soft_cpu *cpu = t->cpu;
    return (unsigned)((struct tlb_entry(*)[TLB_KINDS][TLB_ENTRIES])cpu->tlb - cpu->tlbs);
}

/* The offset in struct soft_cpu of the TLB that the block's accesses use. */
static int32_t tlb_at(const struct translation *t, enum tlb_kind kind, size_t member) {
    const struct soft_cpu *cpu = t->cpu;
    size_t table = (size_t)((const char *)cpu->tlb[kind] - (const char *)cpu);
    return (int32_t)(table + member);
}

int32_t lower_tlb_table(const struct translation *t, enum tlb_kind kind) {
    return tlb_at(t, kind, 0);
}

/* What differs from the tag is the offset in the page, or more when the entry does not hold. What
 * straddles a page's end is beyond the last offset at which `span` bytes fit. */
void lower_look_up(struct translation *t, int32_t table, unsigned span) {
    struct emitter *e = &t->out;
    _Static_assert(sizeof(struct tlb_entry) == 16, "entries are found by address >> 8");
    t->temp_group = NO_GROUP;
    emit_rorx(e, TEMP_B, TEMP_A, PAGE_SHIFT - 4);
    emit_group1(e, 4, 4, TEMP_B, (TLB_ENTRIES - 1) << 4);
    emit_gs_at(e, OP_XOR_RM, 8, TEMP_A, TEMP_B, table + (int32_t)offsetof(struct tlb_entry, tag));
    emit_group1(e, 7, 8, TEMP_A, PAGE_SIZE - (int32_t)span);
}

static void emit_check(struct translation *t, enum tlb_kind kind, unsigned span, unsigned site) {
    lower_look_up(t, lower_tlb_table(t, kind), span);
    lower_stub_if(t, COND_A, t->jit->miss[tlb_index_of(t)][kind], site);
    emit_gs_at(&t->out, OP_ADD_RM, 8, TEMP_A, TEMP_B,
               tlb_at(t, kind, offsetof(struct tlb_entry, host)));
}

/* The first tier's checks are called (stubs.c). True: done. */
static bool call_check(struct translation *t, enum tlb_kind kind, unsigned size) {
    unsigned n = 0;
    while (n < CHECK_SIZES && 1u << n != size)
        n++;
    if (!t->dense || n == CHECK_SIZES)
        return false;
    emit_aim(emit_call(&t->out), t->jit->check[tlb_index_of(t)][kind][n]);
    check_site(t, SITE_ACCESS, t->out.at, kind, size);
    t->temp_group = NO_GROUP;
    return true;
}

void lower_check_single(struct translation *t, const uint8_t *retry, enum tlb_kind kind,
                        unsigned size) {
    if (call_check(t, kind, size))
        return;
    emit_check(t, kind, size, check_site(t, SITE_ACCESS, retry, kind, size));
}

void lower_check_rbp(struct translation *t) {
    const uint8_t *retry = t->out.at;
    emit_rr(&t->out, OP_MOV_LOAD, t->word, TEMP_A, RBP);
    lower_check_single(t, retry, TLB_READ, t->word);
}

/* The same where little code matters more. */
static bool call_constant(struct translation *t, enum tlb_kind kind, unsigned size) {
    if (!t->dense || size > 1u << (CHECK_SIZES - 1) || (size & (size - 1)) != 0)
        return false;
    if (insn_is_rip_relative(t->insn))
        emit_mov_address(t, TEMP_A, lower_constant(t->insn));
    else
        emit_mov_imm(&t->out, TEMP_A, lower_constant(t->insn));
    return call_check(t, kind, size);
}

/* An address known now: its slot and page are, too. */
static struct operand constant_operand(struct translation *t, enum tlb_kind kind, unsigned size) {
    if (call_constant(t, kind, size))
        return (struct operand){.base = TEMP_A};
    struct emitter *e = &t->out;
    uint64_t linear = lower_constant(t->insn), page = linear & ~(uint64_t)(PAGE_SIZE - 1);
    int32_t slot = (int32_t)(tlb_slot(linear) * sizeof(struct tlb_entry));
    int32_t tag = tlb_at(t, kind, offsetof(struct tlb_entry, tag)) + slot;
    int32_t host = tlb_at(t, kind, offsetof(struct tlb_entry, host)) + slot;
    const uint8_t *retry = e->at;
    unsigned site = check_site(t, SITE_ACCESS, retry, kind, size);
    t->temp_group = NO_GROUP;
    bool relative = insn_is_rip_relative(t->insn);
    if ((int64_t)page == (int32_t)page) {
        emit_group1_gs(e, 7, 8, tag, (int32_t)page);
    } else {
        if (relative)
            emit_mov_address(t, TEMP_A, page);
        else
            emit_mov_imm(e, TEMP_A, page);
        emit_gs(e, OP_CMP_RM, 8, TEMP_A, tag);
        if (relative)
            relocate(t, e->at - 4, RELOCATE_SLOT);
    }
    lower_stub_if(t, COND_NE, t->jit->constant_miss, site);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_A, host);
    if (relative)
        relocate(t, e->at - 4, RELOCATE_SLOT);
    return (struct operand){.base = TEMP_A, .disp = (int32_t)(linear & (PAGE_SIZE - 1))};
}

/* ---- Groups ---- */

static void check_stack(struct translation *t, struct group *group, bool write) {
    struct emitter *e = &t->out;
    lower_settle_rsp(t);
    int32_t disp = (int32_t)(group->low - t->rsp_moved[t->index]);
    unsigned span = (unsigned)(group->high - group->low);
    bool called = t->dense && span % 4 == 0 && span / 4 <= CHECK_STACK_WORDS;
    unsigned side = side_of_block(t->block);
    flags_protect(t);
    const uint8_t *retry = e->at;
    t->temp_group = NO_GROUP;
    emit_lea(e, 8, TEMP_A, STACK, -1, 0, disp);
    if (called) {
        emit_aim(emit_call(e), t->jit->check_stack[side][span / 4]);
        retry = e->at;
    }
    unsigned site = check_site(t, SITE_STACK, retry, TLB_WRITE, span);
    t->sites[site].writes_now = write;
    group->checked = true;
    if (called)
        return;
    emit_gs(e, OP_SUB_RM, 8, TEMP_A, CPU_AT(jit.stack_host) + 8 * (int32_t)side);
    emit_group1(e, 7, 8, TEMP_A, PAGE_SIZE - (int32_t)span);
    lower_stub_if(t, COND_A, t->jit->stack_miss, site);
}

static void check_group(struct translation *t, unsigned g, bool write) {
    struct group *group = &t->groups[g];
    unsigned span = (unsigned)(group->high - group->low);
    enum tlb_kind kind = group->write ? TLB_WRITE : TLB_READ;
    flags_protect(t);
    unsigned site = check_site(t, SITE_GROUP, t->out.at, kind, span);
    t->sites[site].writes_now = write;
    lower_address(t, (int32_t)(t->insn->disp + (group->low - t->operand_at[t->index])));
    emit_check(t, kind, span, site);
    emit_gs(&t->out, OP_MOV_STORE, 8, TEMP_A, CPU_AT(jit.group_host) + 8 * (int32_t)g);
    group->checked = true;
}

/* An access near RSP, or the present operand. */
static struct operand group_operand(struct translation *t, unsigned g, int32_t disp, bool write) {
    struct group *group = &t->groups[g];
    if (group->stack) {
        if (!group->checked)
            check_stack(t, group, write);
        return (struct operand){.base = STACK, .disp = disp + t->rsp_pending};
    }
    unsigned reg = TEMP_A;
    if (group->checked) {
        reg = temps_load(t, (uint8_t)g, CPU_AT(jit.group_host) + 8 * (int32_t)g);
    } else {
        check_group(t, g, write);
        t->temp_group = (uint8_t)g;
    }
    return (struct operand){.base = reg, .disp = (int32_t)(t->operand_at[t->index] - group->low)};
}

/* ---- Operands ---- */

static void check_alignment(struct translation *t, struct operand operand, unsigned to) {
    struct emitter *e = &t->out;
    bool in_place = operand.base == TEMP_A && operand.disp % (int32_t)to == 0;
    unsigned reg = in_place ? TEMP_A : TEMP_B;
    flags_protect(t);
    if (!in_place)
        emit_lea(e, 8, TEMP_B, (int)operand.base, -1, 0, operand.disp);
    emit8(e, 0x41); /* TEST reg's low byte, to - 1 */
    emit8(e, 0xf6);
    emit8(e, (uint8_t)(0xc0 | (reg & 7)));
    emit8(e, (uint8_t)(to - 1));
    lower_slow_if(t, COND_NE);
}

/* In a group, one test tells about all operands whose distance is a multiple. */
static void check_group_alignment(struct translation *t, struct operand operand, unsigned g,
                                  unsigned to) {
    struct group *group = &t->groups[g];
    int64_t disp = group->stack ? t->insn->disp + t->rsp_moved[t->index] : t->operand_at[t->index];
    if (group->aligned && to <= 16 && (disp - group->aligned_at) % (int64_t)to == 0)
        return;
    check_alignment(t, operand, to);
    group->aligned = to == 16;
    group->aligned_at = disp;
}

struct operand lower_operand(struct translation *t, enum tlb_kind kind, unsigned size,
                             unsigned aligned) {
    const struct insn *insn = t->insn;
    if (t->loop.running && t->loop.group_of[t->index] != NO_GROUP)
        return loop_operand(t);
    unsigned g = t->operand_group[t->index];
    struct operand operand = {.base = TEMP_A};
    if (g != NO_GROUP) {
        operand = group_operand(t, g, (int32_t)insn->disp, kind == TLB_WRITE);
        if (aligned > 1)
            check_group_alignment(t, operand, g, aligned);
        return operand;
    }
    flags_protect(t);
    bool based = insn->seg == SEG_FS || insn->seg == SEG_GS;
    if (is_constant(insn) && !based && insn->address_size == t->word &&
        (insn->disp & (PAGE_SIZE - 1)) + size <= PAGE_SIZE) {
        operand = constant_operand(t, kind, size);
    } else {
        const uint8_t *retry = t->out.at;
        lower_address(t, (int32_t)insn->disp);
        if (based && t->mode != INSN_MODE_64)
            add_narrow_base(t, size);
        lower_check_single(t, retry, kind, size);
    }
    if (aligned > 1)
        check_alignment(t, operand, aligned);
    return operand;
}

void lower_check_stack(struct translation *t, bool write) {
    unsigned g = t->stack_group[t->index];
    if (g != NO_GROUP && !t->groups[g].checked)
        check_stack(t, &t->groups[g], write);
}

struct operand lower_stack(struct translation *t, enum tlb_kind kind, int32_t disp) {
    unsigned g = t->stack_group[t->index];
    if (g != NO_GROUP)
        return group_operand(t, g, disp, kind == TLB_WRITE);
    lower_settle_rsp(t);
    flags_protect(t);
    const uint8_t *retry = t->out.at;
    emit_gs(&t->out, OP_MOV_LOAD, 8, TEMP_A, CPU_AT(jit.stack_subtrahend));
    emit_lea(&t->out, t->word, TEMP_A, TEMP_A, STACK, 0, disp);
    lower_check_single(t, retry, kind, t->word);
    return (struct operand){.base = TEMP_A};
}
