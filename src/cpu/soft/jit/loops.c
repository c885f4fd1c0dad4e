/*
 * Loops: blocks that branch back to their own start. After a few ordinary
 * turns, or at once where a turn is long, accesses whose registers stay, or
 * change by a constant each turn, are checked for several turns at once, and
 * made without checks in a second body. When its turns are used up the checks
 * are made again; when one of them fails (a page's end is near, or level 1
 * does not have the page), a few turns go the ordinary way, which fills level
 * 1. So none of these accesses is called out or faults. Requests are looked at
 * where checks have failed or are made again.
 *
 * What is known of a page holds for as long as no C has changed anything
 * (jit_state.epoch), as with groups.
 */
#include "cpu/soft/jit/translation.h"

#include <string.h>

#include "base/bytes.h"

enum {
    TURNS_MAX = 16,
    TURNS_MIN = 4,
    REACH = 512, /* bytes that a group may move in those turns */
    REACH_AT_ONCE = 384,
    SPAN_MAX = 1024, /* bytes of a group, all turns' */
    STEP_MAX = REACH / TURNS_MIN,
    ORDINARY_TURNS = 3, /* before the checks are tried: many loops are that short */
    COPIES = TURNS_MIN, /* of an unchecked body of few instructions, one behind the other */
    COPIED_INSNS = 16,
};

/* ---- What a loop does to its registers ---- */

/* Other code runs behind a call; C behind all but these, and before x87, may be for anything. */
static bool stays_inside(uint8_t kind) {
    switch (kind) {
    case LOWER_NATIVE:
    case LOWER_NOP:
    case LOWER_LEA:
    case LOWER_PUSH:
    case LOWER_PUSH_MEMORY:
    case LOWER_POP:
    case LOWER_DIV:
    case LOWER_IDIV:
    case LOWER_JCC: return true;
    default: return false;
    }
}

/* False: the block is not for loops. */
static bool find_steps(struct translation *t) {
    enum { STEP_SANE = 1 << 24 };
    struct loop *loop = &t->loop;
    struct values values;
    values_begin(&values, t->word);
    for (unsigned i = 0; i < loop->count; i++) {
        const struct insn *insn = &t->insns[i];
        if (!stays_inside(t->kinds[i]) || lowering_of(insn)->x87)
            return false;
        values_step(&values, insn, t->kinds[i]);
    }
    for (unsigned reg = 0; reg < 16; reg++) {
        struct value value = values_of(&values, reg);
        bool known = value.version == values_first(reg) && value.constant > -STEP_SANE &&
                     value.constant < STEP_SANE && (reg != RSP || value.constant == 0);
        loop->step[reg] = known ? value.constant : 0;
        loop->varying |= known ? 0 : 1u << reg;
    }
    return true;
}

static int64_t step_of(const struct loop *loop, unsigned reg) {
    return reg == REG_ZERO ? 0 : loop->step[reg];
}

static bool is_varying(const struct loop *loop, unsigned reg) {
    return reg != REG_ZERO && (loop->varying >> reg & 1);
}

/* ---- Groups ---- */

/* A displacement, with room for what a group makes of it. */
static bool fits(int64_t disp) {
    const int64_t most = INT32_MAX - 2 * SPAN_MAX;
    return disp <= most && disp >= -most;
}

static bool is_near_rsp(const struct insn *insn) {
    return insn->base == RSP && insn->index == REG_ZERO;
}

static bool joins(const struct loop_group *group, const struct loop_group *wanted) {
    int64_t low = wanted->low < group->low ? wanted->low : group->low;
    int64_t high = wanted->high > group->high ? wanted->high : group->high;
    return group->base == wanted->base && group->index == wanted->index &&
           group->scale == wanted->scale && group->seg == wanted->seg &&
           group->stack == wanted->stack && group->relative == wanted->relative &&
           high - low <= SPAN_MAX - REACH &&
           (group->alignment == 1 || wanted->alignment == 1 ||
            (group->alignment == wanted->alignment &&
             (group->aligned_at - wanted->aligned_at) % group->alignment == 0));
}

static void join(struct loop_group *group, const struct loop_group *wanted) {
    group->low = wanted->low < group->low ? wanted->low : group->low;
    group->high = wanted->high > group->high ? wanted->high : group->high;
    group->write |= wanted->write;
    if (wanted->alignment > 1) {
        group->alignment = wanted->alignment;
        group->aligned_at = wanted->aligned_at;
    }
}

/* The group that an access is checked with, or NO_GROUP. */
static uint8_t group_for(struct loop *loop, const struct loop_group *wanted) {
    for (unsigned g = 0; g < loop->group_count; g++) {
        if (joins(&loop->groups[g], wanted)) {
            join(&loop->groups[g], wanted);
            return (uint8_t)g;
        }
    }
    if (loop->group_count == LOOP_GROUPS_MAX || wanted->high - wanted->low > SPAN_MAX - REACH)
        return NO_GROUP;
    loop->groups[loop->group_count] = *wanted;
    return (uint8_t)loop->group_count++;
}

static bool can_be_hoisted(const struct insn *insn, uint8_t kind) {
    const struct lowering *l = lowering_of(insn);
    /* AH to BH are turned into their register's low byte, which may be an address's, too. */
    return kind == LOWER_NATIVE && (insn->flags & I_MEMORY) && l->has_modrm &&
           !uses_high_byte(insn, l) && insn->address_size == 8 &&
           lowering_memory_bytes(l, insn) != 0;
}

/* The register that held a version when the turn began, REG_ZERO for none; -1: it does not come
 * back to that, or no register did. */
static int register_of(const struct loop *loop, uint32_t version) {
    if (version == 0)
        return REG_ZERO;
    for (unsigned reg = 0; reg < 16; reg++)
        if (version == values_first(reg))
            return is_varying(loop, reg) ? -1 : (int)reg;
    return -1;
}

/* A register that holds what another does that steps, and a constant: its place in addresses. */
static bool stands_for(unsigned reg, unsigned other) {
    return reg == other || (!is_elsewhere(reg) && !is_elsewhere(other));
}

/* Where it is in a turn, by what registers held when that began. *rest: by what the instruction's
 * own registers hold then, where they step. False: nobody knows. */
static bool find_place(const struct translation *t, const struct insn *insn,
                       const struct values *values, struct loop_group *wanted, int64_t *rest) {
    const struct loop *loop = &t->loop;
    uint32_t version;
    struct value at = values_address(values, insn, &version);
    int base = register_of(loop, at.version), index = register_of(loop, version);
    if (base < 0 || index < 0)
        return false;
    wanted->base = (uint8_t)base;
    wanted->index = (uint8_t)index;
    wanted->scale = index == REG_ZERO ? 0 : insn->scale;
    wanted->low = at.constant;
    wanted->base_steps = step_of(loop, (unsigned)base) != 0;
    wanted->index_steps = step_of(loop, (unsigned)index) != 0;
    bool steps = wanted->base_steps || wanted->index_steps;
    uint64_t moved = (uint64_t)values_of(values, insn->index).constant << insn->scale;
    *rest = steps ? at.constant : 0;
    if (wanted->base_steps)
        *rest -= values_of(values, insn->base).constant;
    if (wanted->index_steps)
        *rest -= (int64_t)moved;
    return (!wanted->base_steps || stands_for(insn->base, wanted->base)) &&
           (!wanted->index_steps || stands_for(insn->index, wanted->index)) && fits(*rest) &&
           (fits(at.constant) || insn_is_rip_relative(insn));
}

static void hoist(struct translation *t, unsigned i, const struct values *values) {
    const struct insn *insn = &t->insns[i];
    const struct lowering *l = lowering_of(insn);
    struct loop *loop = &t->loop;
    unsigned size = lowering_memory_bytes(l, insn);
    bool segment = insn->seg == SEG_FS || insn->seg == SEG_GS;
    struct loop_group wanted = {
        .seg = segment ? insn->seg : SEG_DS,
        .stack = is_near_rsp(insn) && !segment,
        .relative = insn_is_rip_relative(insn),
        .write = l->memory_written,
        .alignment = l->aligned ? (uint8_t)size : 1,
    };
    if (!find_place(t, insn, values, &wanted, &loop->rest[i]))
        return;
    int64_t step =
        step_of(loop, wanted.base) + step_of(loop, wanted.index) * ((int64_t)1 << wanted.scale);
    wanted.step = (int32_t)step;
    wanted.high = wanted.low + size;
    wanted.aligned_at = loop->disp[i] = wanted.low;
    if (step < -STEP_MAX || step > STEP_MAX || step % wanted.alignment != 0 ||
        (segment && wanted.base_steps && wanted.index_steps))
        return;
    loop->group_of[i] = group_for(loop, &wanted);
}

static void find_groups(struct translation *t) {
    struct values values;
    values_begin(&values, t->word);
    memset(t->loop.group_of, NO_GROUP, sizeof t->loop.group_of);
    for (unsigned i = 0; i < t->loop.count; i++) {
        if (can_be_hoisted(&t->insns[i], t->kinds[i]))
            hoist(t, i, &values);
        values_step(&values, &t->insns[i], t->kinds[i]);
    }
}

/* The stack's window stays where it is only when nothing in the loop looks whether it is there. */
static void keep_window(struct translation *t) {
    struct loop *loop = &t->loop;
    bool all = true;
    for (unsigned i = 0; i < t->loop.count; i++)
        all = all && (!is_near_rsp(&t->insns[i]) || !(t->insns[i].flags & I_MEMORY) ||
                      loop->group_of[i] != NO_GROUP);
    for (unsigned i = 0; i < t->loop.count; i++)
        if (!all && loop->group_of[i] != NO_GROUP && loop->groups[loop->group_of[i]].stack)
            loop->group_of[i] = NO_GROUP;
}

/* ---- Turns ---- */

/* A register in its place that counts them, one that counts up if there is one. */
static int limit_register(const struct loop *loop) {
    enum { SMALL = 4096 };
    int found = -1;
    for (unsigned reg = 0; reg < 16; reg++)
        if (!is_elsewhere(reg) && !is_varying(loop, reg) && loop->step[reg] != 0 &&
            loop->step[reg] >= -SMALL && loop->step[reg] <= SMALL &&
            (found < 0 || (loop->step[found] < 0 && loop->step[reg] > 0)))
            found = (int)reg;
    return found;
}

/* All groups that step do so by the same power of two, upwards, and so does what counts the turns,
 * or by a smaller one. */
static bool can_count(const struct loop *loop, int32_t step) {
    for (unsigned g = 0; g < loop->group_count; g++)
        if (loop->groups[g].step != 0 && loop->groups[g].step != step)
            return false;
    int64_t by = loop->limit >= 0 ? loop->step[loop->limit] : 0;
    return (step & (step - 1)) == 0 && by > 0 && by <= step && step % by == 0;
}

bool loop_at_once(const struct translation *t) {
    return path_is_long_turn(t, 0, t->loop.count);
}

/* The end of the turns is looked for behind the last copy only, so that there are as many turns, or
 * a multiple. */
static void choose_copies(struct translation *t) {
    struct loop *loop = &t->loop;
    loop->copies = loop->count <= COPIED_INSNS ? COPIES : 1;
    loop->turns -= loop->turns % loop->copies;
}

/* The groups' ranges become those of all turns. In lock-step units are kept short. */
static void choose_turns(struct translation *t) {
    struct loop *loop = &t->loop;
    int32_t most = 0;
    for (unsigned g = 0; g < loop->group_count; g++) {
        int32_t step = loop->groups[g].step;
        most = step > most ? step : -step > most ? -step : most;
    }
    loop->limit = most != 0 ? limit_register(loop) : -1;
    loop->all = most > 0 && t->cpu->verify == NULL && can_count(loop, most);
    unsigned room = loop_at_once(t) ? REACH_AT_ONCE : REACH;
    loop->turns = loop->all ? TURNS_MIN : most == 0 ? 0 : room / (unsigned)most;
    if (loop->turns > TURNS_MAX)
        loop->turns = TURNS_MAX;
    choose_copies(t);
    for (unsigned g = 0; g < loop->group_count; g++) {
        struct loop_group *group = &loop->groups[g];
        int64_t reach = group->step * ((int64_t)loop->turns - 1);
        if (group->step > 0)
            group->high += reach;
        else if (group->step < 0)
            group->low += reach;
        if (group->alignment > 1)
            group->low -= (group->low - group->aligned_at) & (group->alignment - 1);
    }
}

static bool wants_flags(const struct translation *t, unsigned i, const struct lowering *l) {
    return l->flags_read != 0 || (l->writes_flags && (t->live[i + 1] & ~l->flags_killed) != 0);
}

/*
 * How many temporary registers the body leaves to operands: both, or TEMP_A, or none. What else
 * uses TEMP_B is known (temps.c); but not between an operand and its instruction, where flags may
 * be made again from a homed register.
 */
static unsigned free_temporaries(const struct translation *t) {
    const struct loop *loop = &t->loop;
    bool wanted = false, uses_second = false;
    if (t->live[0] != 0)
        return 0;
    for (unsigned i = 0; i < t->loop.count; i++) {
        const struct insn *insn = &t->insns[i];
        const struct lowering *l = lowering_of(insn);
        uint8_t kind = t->kinds[i];
        unsigned elsewhere = kind == LOWER_NATIVE ? lower_elsewhere_count(insn, l) : 0;
        if (kind == LOWER_NATIVE && (insn->flags & I_MEMORY)) {
            if (elsewhere != 0 || loop->group_of[i] == NO_GROUP)
                return 0;
            wanted |= wants_flags(t, i, l);
        } else if (kind == LOWER_NATIVE) {
            if (elsewhere > 1 || (lower_changes(insn, l, kind) >> RSP & 1))
                return 0;
            uses_second |= elsewhere != 0;
        } else if (kind == LOWER_LEA ? !lower_lea_is_near(insn)
                                     : kind != LOWER_NOP && kind != LOWER_JCC) {
            return 0;
        }
    }
    return !uses_second ? 2 : wanted ? 0 : 1;
}

/* A group whose operands are one addressing mode off its host address. */
static bool is_simple(const struct loop_group *group) {
    return !(group->base_steps && group->index_steps) &&
           !(group->base_steps && is_elsewhere(group->base)) &&
           !(group->index_steps && is_elsewhere(group->index));
}

/* With two groups each keeps a temporary register, if both are free; else the first does. */
static void choose_resident(struct translation *t) {
    struct loop *loop = &t->loop;
    unsigned temporaries = free_temporaries(t);
    for (unsigned g = 0; g < loop->group_count; g++)
        if (!is_simple(&loop->groups[g]))
            temporaries = 0;
    loop->resident = temporaries == 2 && loop->group_count != 2 ? 1 : temporaries;
}

/* True: the instruction branches back to the block's start. */
static bool closes(const struct insn *insn, uint8_t kind) {
    return kind == LOWER_JCC && insn->size == 8 && insn->offset + insn->length + insn->imm == 0;
}

/* Instructions up to the branch back; 0: there is none. */
static unsigned find_end(const struct translation *t) {
    for (unsigned i = 0; i < t->count; i++)
        if (closes(&t->insns[i], t->kinds[i]))
            return i + 1;
    return 0;
}

/* Each loop has its own, as long as there are some: they seldom change then (keep_host). */
static void choose_hosts(struct translation *t) {
    uint32_t *next = &t->jit->loop_hosts;
    if (*next + t->loop.group_count > JIT_LOOP_HOSTS)
        *next = 0;
    t->loop.hosts = *next;
    *next += t->loop.group_count;
}

bool loop_find(struct translation *t) {
    struct loop *loop = &t->loop;
    const struct block *block = t->block;
    loop->count = find_end(t);
    if (t->mode != INSN_MODE_64 || block->straddles || (block->key & KEY_PLAIN) ||
        loop->count == 0 || !find_steps(t))
        return false;
    find_groups(t);
    keep_window(t);
    choose_turns(t);
    choose_resident(t);
    choose_hosts(t);
    t->loops = loop->group_count != 0 && (loop->turns == 0 || loop->limit >= 0);
    return t->loops;
}

/* ---- Entering ---- */

static uint8_t *check_alignment(struct translation *t, const struct loop_group *group) {
    emit8(&t->out, 0x41); /* TEST TEMP_A's low byte, alignment - 1 */
    emit8(&t->out, 0xf6);
    emit8(&t->out, 0xc0 | (TEMP_A & 7));
    emit8(&t->out, (uint8_t)(group->alignment - 1));
    return emit_jcc(&t->out, COND_NE);
}

/* Adds a register that stays to TEMP_A. Clobbers TEMP_B. */
static void add_register(struct translation *t, unsigned reg, unsigned scale) {
    if (reg == RSP)
        lower_load_rsp(t, TEMP_B);
    else if (is_homed(reg))
        load_home(t, TEMP_B, reg);
    emit_lea(&t->out, 8, TEMP_A, TEMP_A, is_elsewhere(reg) ? TEMP_B : (int)reg, scale, 0);
}

/* TEMP_A: offset in the page, TEMP_B: slot. What an operand adds to the registers that step. */
static void emit_host(struct translation *t, const struct loop_group *group, int32_t table) {
    struct emitter *e = &t->out;
    const int32_t tag = table + (int32_t)offsetof(struct tlb_entry, tag);
    const int32_t host = table + (int32_t)offsetof(struct tlb_entry, host);
    if (!group->base_steps && !group->index_steps) {
        emit_gs_at(e, OP_ADD_RM, 8, TEMP_A, TEMP_B, host);
        return;
    }
    emit_gs_at(e, OP_MOV_LOAD, 8, TEMP_A, TEMP_B, host);
    emit_gs_at(e, OP_SUB_RM, 8, TEMP_A, TEMP_B, tag);
    if (group->base != REG_ZERO && !group->base_steps)
        add_register(t, group->base, 0);
    if (group->index != REG_ZERO && !group->index_steps)
        add_register(t, group->index, group->scale);
    if (group->seg != SEG_DS)
        lower_add_segment(t, group->seg);
}

static unsigned check_stack(struct translation *t, const struct loop_group *group,
                            uint8_t **fails) {
    struct emitter *e = &t->out;
    unsigned count = 0;
    emit_lea(e, 8, TEMP_A, STACK, -1, 0, (int32_t)group->low);
    emit_gs(e, OP_SUB_RM, 8, TEMP_A, CPU_AT(jit.stack_host) + 8 * (int32_t)side_of_block(t->block));
    emit_group1(e, 7, 8, TEMP_A, PAGE_SIZE - (int32_t)(group->high - group->low));
    fails[count++] = emit_jcc(e, COND_A);
    if (group->alignment > 1)
        fails[count++] = check_alignment(t, group);
    return count;
}

/* Where a group's host address is kept, from the vCPU's start. */
static int32_t host_at(const struct translation *t, unsigned g) {
    return CPU_AT(jit.loop_host) + 8 * (int32_t)(t->loop.hosts + g);
}

/* From TEMP_A. What is there already is not stored again: the body's loads would wait for the
 * store, and so for all that the check loads. */
static void keep_host(struct translation *t, unsigned g) {
    struct emitter *e = &t->out;
    emit_gs(e, OP_CMP_RM, 8, TEMP_A, host_at(t, g));
    uint8_t *same = emit_jcc(e, COND_E);
    emit_gs(e, OP_MOV_STORE, 8, TEMP_A, host_at(t, g));
    emit_aim(same, e->at);
}

static unsigned check(struct translation *t, unsigned g, uint8_t **fails) {
    struct emitter *e = &t->out;
    const struct loop_group *group = &t->loop.groups[g];
    const int32_t table = lower_tlb_table(t, group->write ? TLB_WRITE : TLB_READ);
    struct insn access = {.base = group->base,
                          .index = group->index,
                          .scale = group->scale,
                          .seg = group->seg,
                          .flags = I_MEMORY,
                          .modrm = group->relative ? 5 : 0x80,
                          .address_size = 8,
                          .disp = group->low};
    unsigned count = 0;
    t->insn = &access;
    lower_address(t, (int32_t)group->low);
    lower_look_up(t, table, (unsigned)(group->high - group->low));
    fails[count++] = emit_jcc(e, COND_A);
    if (group->alignment > 1)
        fails[count++] = check_alignment(t, group);
    if (t->loop.all && group->step != 0)
        emit_gs(e, OP_MOV_STORE, 8, TEMP_A, CPU_AT(jit.loop_offset) + 8 * (int32_t)g);
    emit_host(t, group, table);
    keep_host(t, g);
    return count;
}

static void load_host(struct translation *t, unsigned temp, unsigned g) {
    emit_gs(&t->out, OP_MOV_LOAD, 8, temp, host_at(t, g));
}

/* By how much what counts may go up until the group that is nearest to its page's end has no
 * further turns there, for all copies of the body, beyond those that were checked: in TEMP_B. */
static void count_room(struct translation *t) {
    enum { CMOVG = 0x0f4f, SHIFT = 0xc1, SHR = 5 };
    struct emitter *e = &t->out;
    const struct loop *loop = &t->loop;
    const struct loop_group *first = NULL;
    for (unsigned g = 0; g < loop->group_count; g++) {
        const struct loop_group *group = &loop->groups[g];
        const int32_t offset = CPU_AT(jit.loop_offset) + 8 * (int32_t)g;
        if (group->step == 0)
            continue;
        emit_gs(e, OP_MOV_LOAD, 8, first == NULL ? TEMP_A : TEMP_B, offset);
        if (first == NULL) {
            first = group;
            continue;
        }
        emit_lea(e, 8, TEMP_B, TEMP_B, -1, 0,
                 (int32_t)((group->high - group->low) - (first->high - first->low)));
        emit_rr(e, OP_CMP_RM, 8, TEMP_B, TEMP_A);
        emit_rr(e, CMOVG, 8, TEMP_A, TEMP_B);
    }
    if (first == NULL) { /* nothing moves: loop->all says otherwise */
        emit_mov_imm(e, TEMP_B, 0);
        return;
    }
    unsigned shift = 0;
    while (loop->step[loop->limit] << shift < first->step)
        shift++;
    emit_mov_imm(e, TEMP_B, (uint64_t)(PAGE_SIZE - (first->high - first->low)));
    emit_rr(e, OP_SUB_RM, 8, TEMP_B, TEMP_A);
    emit_group1(e, 4, 8, TEMP_B, -first->step * (int32_t)loop->copies);
    if (shift != 0) {
        emit_rr(e, SHIFT, 8, SHR, TEMP_B);
        emit8(e, (uint8_t)shift);
    }
}

/* What the register that counts will hold when the turns are used up. */
static void set_limit(struct translation *t) {
    const struct loop *loop = &t->loop;
    if (loop->all)
        count_room(t);
    emit_lea(&t->out, 8, TEMP_A, loop->limit, loop->all ? TEMP_B : -1, 0,
             (int32_t)(loop->step[loop->limit] * loop->turns));
    emit_gs(&t->out, OP_MOV_STORE, 8, TEMP_A, CPU_AT(jit.loop_limit));
}

unsigned loop_enter(struct translation *t, uint8_t **fails) {
    struct loop *loop = &t->loop;
    unsigned count = 0, last = loop->group_count;
    loop->head = t->out.at;
    if (loop->to_head != NULL)
        emit_aim(loop->to_head, loop->head);
    /* The first is the last to be checked: then it is in TEMP_A, which keeps it. */
    while (last-- > 0 && emit_has_room(&t->out)) {
        if (last == 0 && loop->limit >= 0 && !loop->all)
            set_limit(t);
        count += loop->groups[last].stack ? check_stack(t, &loop->groups[last], fails + count)
                                          : check(t, last, fails + count);
    }
    if (loop->limit >= 0 && loop->all)
        set_limit(t);
    if (loop->resident != 0 && loop->all)
        load_host(t, TEMP_A, 0);
    if (loop->resident == 2)
        load_host(t, TEMP_B, 1);
    loop->body = t->out.at;
    return count;
}

/* ---- The body ---- */

/* The group's host address in a register. */
static unsigned host_register(struct translation *t, unsigned g) {
    uint8_t group = (uint8_t)(LOOP_TEMP_GROUP + g);
    if (g < t->loop.resident)
        return g == 0 ? TEMP_A : TEMP_B;
    if (t->loop.resident == 0)
        return temps_load(t, group, host_at(t, g));
    if (t->second_temp_group != group)
        load_host(t, TEMP_B, g);
    t->second_temp_group = group;
    return TEMP_B;
}

/* Two registers that step, or one that is not in its place: the address in TEMP_A. */
static struct operand added_up(struct translation *t, unsigned g) {
    struct emitter *e = &t->out;
    const struct loop_group *group = &t->loop.groups[g];
    if (group->base_steps && group->index_steps) {
        lower_address(t, (int32_t)t->insn->disp);
        load_host(t, TEMP_B, g);
        emit_lea(e, 8, TEMP_A, TEMP_A, TEMP_B, 0, 0);
    } else {
        load_home(t, TEMP_B, group->base_steps ? group->base : group->index);
        load_host(t, TEMP_A, g);
        emit_lea(e, 8, TEMP_A, TEMP_A, TEMP_B, group->base_steps ? 0 : group->scale,
                 (int32_t)t->loop.rest[t->index]);
    }
    t->temp_group = NO_GROUP;
    return (struct operand){.base = TEMP_A};
}

bool loop_operand_is_simple(const struct translation *t) {
    const struct loop_group *group = &t->loop.groups[t->loop.group_of[t->index]];
    return group->stack || is_simple(group);
}

struct operand loop_operand(struct translation *t) {
    const struct insn *insn = t->insn;
    unsigned g = t->loop.group_of[t->index];
    const struct loop_group *group = &t->loop.groups[g];
    if (group->stack)
        return (struct operand){.base = STACK, .disp = (int32_t)insn->disp};
    if (!is_simple(group))
        return added_up(t, g);
    struct operand operand = {.base = host_register(t, g)};
    if (!group->base_steps && !group->index_steps) {
        operand.disp = (int32_t)(t->loop.disp[t->index] - group->low);
        return operand;
    }
    operand.disp = (int32_t)t->loop.rest[t->index];
    operand.indexed = true;
    operand.index = group->base_steps ? insn->base : insn->index;
    operand.scale = group->base_steps ? 0 : group->scale;
    return operand;
}

/* ---- Around ---- */

/* SUB dword gs:[loop_turns], 1 */
static void count_turn(struct emitter *e) {
    emit_group1_gs(e, 5, 4, CPU_AT(jit.loop_turns), 1);
}

void loop_begin(struct translation *t) {
    t->loop.start = t->out.at;
    emit_store_imm_gs(&t->out, CPU_AT(jit.loop_turns), ORDINARY_TURNS);
    t->loop.ordinary = t->out.at;
}

/* Flags are where the next turn finds them. */
static void go_round(struct translation *t) {
    struct emitter *e = &t->out;
    struct loop *loop = &t->loop;
    if (!loop->running) {
        count_turn(e);
        emit_aim(emit_jcc(e, COND_NE), loop->ordinary);
        loop->to_head = emit_jmp(e);
        if (loop->head != NULL)
            emit_aim(loop->to_head, loop->head);
        return;
    }
    if (loop->limit >= 0) {
        emit_gs(e, OP_CMP_RM, 8, (unsigned)loop->limit, CPU_AT(jit.loop_limit));
        emit_aim(emit_jcc(e, COND_NE), loop->body);
    } else {
        emit_group1_gs(e, 7, 4, CPU_AT(request), 0);
        emit_aim(emit_jcc(e, COND_E), loop->body);
    }
    lower_poll(t, t->block->rip);
    emit_aim(emit_jmp(e), loop->head);
}

static void flags_for_next_turn(struct translation *t) {
    if (t->live[0] != 0)
        flags_to_saved(t);
    else
        flags_not_needed(t);
    t->flags &= ~(unsigned)FLAGS_HOST;
}

/* It is right behind. left: the jump out of the loop has been made. */
static void go_to_next_copy(struct translation *t, unsigned leaves, bool left) {
    if (!left) {
        uint8_t *stays = emit_jcc(&t->out, leaves ^ 1);
        lower_goto(t, lower_next_rip(t));
        emit_aim(stays, t->out.at);
    }
    flags_for_next_turn(t);
}

bool loop_back(struct translation *t, bool *goes_on) {
    struct emitter *e = &t->out;
    const struct loop *loop = &t->loop;
    if (!t->loops || t->index != loop->count - 1)
        return false;
    unsigned leaves = (t->insn->opcode & 15) ^ 1;
    flags_to_host(t);
    *goes_on = !loop->running || !lower_goto_if(t, leaves, lower_next_rip(t));
    if (loop->running && loop->copies_left != 0) {
        go_to_next_copy(t, leaves, !*goes_on);
        *goes_on = false;
        return true;
    }
    uint8_t *over = *goes_on ? emit_jcc(e, leaves) : NULL;
    unsigned flags = t->flags;
    uint8_t recipe = t->recipe;
    flags_for_next_turn(t);
    go_round(t);
    t->flags = flags;
    t->recipe = recipe;
    if (over != NULL)
        emit_aim(over, e->at);
    return true;
}

void loop_fails(struct translation *t, uint8_t *const *fails, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        emit_aim(fails[i], t->out.at);
    lower_poll(t, t->block->rip);
    emit_aim(emit_jmp(&t->out), t->loop.start);
}
