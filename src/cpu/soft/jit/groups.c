/*
 * Which accesses of a block are checked together: those off what the same
 * registers held, wherever it has been moved or had a constant added (values.h),
 * and those near RSP, as long as its movement is known. The check of the first covers the bytes of
 * all, which then have to lie in one page; where they do not, the block is run plainly (KEY_PLAIN),
 * each access with its own check.
 *
 * Nothing between the check and an access can make it wrong: whatever changes
 * translations leaves translated code (jit_state.epoch).
 */
#include "cpu/soft/jit/translation.h"

#include <string.h>

enum { SPAN_MAX = 1024, MOVE_MAX = 65536 };

/* What one instruction does to memory. */
struct use {
    bool operand, operand_writes;
    unsigned operand_size;
    bool stack, stack_writes;
    int32_t stack_disp;
};

static struct use use_of(const struct insn *insn, const struct lowering *l, uint8_t kind,
                         unsigned word) {
    struct use use = {0};
    switch (kind) {
    case LOWER_NATIVE:
        use.operand_size = lowering_memory_bytes(l, insn);
        use.operand_writes = l->memory_written;
        break;
    case LOWER_DIV:
    case LOWER_IDIV: use.operand_size = insn->size; break;
    case LOWER_PUSH_MEMORY:
    case LOWER_CALL_INDIRECT:
    case LOWER_JMP_INDIRECT: use.operand_size = word; break;
    default: break;
    }
    use.operand = (insn->flags & I_MEMORY) && use.operand_size != 0;
    switch (kind) {
    case LOWER_PUSH:
    case LOWER_PUSH_MEMORY:
    case LOWER_PUSHF:
    case LOWER_CALL:
    case LOWER_CALL_INDIRECT:
        use.stack = use.stack_writes = true;
        use.stack_disp = -(int32_t)word;
        break;
    case LOWER_POP:
    case LOWER_POPF:
    case LOWER_RET: use.stack = true; break;
    default: break;
    }
    return use;
}

/* By how much the instruction moves RSP; false: nobody knows. */
static bool rsp_movement(const struct insn *insn, uint8_t kind, unsigned word, int64_t *by) {
    const struct insn_row *row = insn_row_of(insn);
    *by = 0;
    if (kind == LOWER_CALLOUT || kind == LOWER_CALL || kind == LOWER_CALL_INDIRECT ||
        (kind >= LOWER_SYSCALL && kind <= LOWER_SET_AC))
        return false;
    if (kind == LOWER_PUSHF || kind == LOWER_POPF) {
        *by = kind == LOWER_POPF ? 8 : -8;
        return true;
    }
    if (kind == LOWER_PUSH || kind == LOWER_PUSH_MEMORY || kind == LOWER_POP) {
        *by = kind == LOWER_POP ? (int64_t)word : -(int64_t)word;
        return kind != LOWER_POP || insn->rm != RSP;
    }
    if (kind == LOWER_LEA) {
        *by = insn->disp;
        return insn->base == RSP && insn->index == REG_ZERO && insn->address_size == word &&
               insn->size == word;
    }
    bool immediate = row->operand[1] == OPERAND_Iz || row->operand[1] == OPERAND_Ibs;
    bool add = row->name[0] == 'a' && row->name[1] == 'd' && row->name[2] == 'd' && !row->name[3];
    bool sub = row->name[0] == 's' && row->name[1] == 'u' && row->name[2] == 'b' && !row->name[3];
    *by = sub ? -(int64_t)insn->imm : (int64_t)insn->imm;
    return kind == LOWER_NATIVE && immediate && (add || sub) && insn->size == word;
}

/* ---- Joining ---- */

/* True: the range takes [low, high) in, too. */
static bool widen(struct group *group, int64_t low, int64_t high) {
    int64_t first = low < group->low ? low : group->low;
    int64_t end = high > group->high ? high : group->high;
    if (group->count != 0 && end - first > SPAN_MAX)
        return false;
    if (group->count == 0)
        first = low, end = high;
    group->low = first;
    group->high = end;
    return true;
}

static unsigned new_group(struct translation *t, const struct group *like) {
    if (t->group_count == GROUPS_MAX)
        return NO_GROUP;
    t->groups[t->group_count] = *like;
    t->groups[t->group_count].open = true;
    return t->group_count++;
}

static bool same_registers(const struct group *a, const struct group *b) {
    return a->open && !a->stack && a->base == b->base && a->index == b->index &&
           a->scale == b->scale && a->seg == b->seg && a->address_size == b->address_size;
}

static unsigned join(struct translation *t, unsigned g, int64_t low, unsigned size, bool write) {
    if (g == NO_GROUP || !widen(&t->groups[g], low, low + size))
        return NO_GROUP;
    t->groups[g].count++;
    t->groups[g].write |= write;
    return g;
}

static bool is_based(const struct insn *insn) {
    return insn->seg == SEG_FS || insn->seg == SEG_GS;
}

/* at: where it is, in values' terms. */
static unsigned join_operand(struct translation *t, const struct insn *insn, unsigned size,
                             bool write, const struct value *at, uint32_t index) {
    struct group wanted = {.base = at->version,
                           .index = index,
                           .scale = index != 0 ? insn->scale : 0,
                           .seg = is_based(insn) ? insn->seg : SEG_DS,
                           .address_size = insn->address_size};
    /* The check is made by the registers of whichever access is the first. */
    const int64_t sane = INT64_C(1) << 62;
    if (insn->disp > INT32_MAX - SPAN_MAX || insn->disp < INT32_MIN + SPAN_MAX ||
        at->constant > sane || at->constant < -sane)
        return NO_GROUP;
    for (unsigned g = 0; g < t->group_count; g++) {
        if (!same_registers(&t->groups[g], &wanted))
            continue;
        unsigned joined = join(t, g, at->constant, size, write);
        if (joined != NO_GROUP)
            return joined;
        t->groups[g].open = false;
    }
    return join(t, new_group(t, &wanted), at->constant, size, write);
}

/* *g: the present stack group. */
static unsigned join_stack(struct translation *t, unsigned *g, int64_t low, unsigned size,
                           bool write) {
    static const struct group stack = {.stack = true};
    const int64_t reach = (int64_t)MOVE_MAX + SPAN_MAX;
    if (low < INT32_MIN + reach || low > INT32_MAX - reach)
        return NO_GROUP;
    unsigned joined = *g == NO_GROUP ? NO_GROUP : join(t, *g, low, size, write);
    if (joined == NO_GROUP) {
        *g = new_group(t, &stack);
        joined = join(t, *g, low, size, write);
    }
    return joined;
}

static bool is_near_rsp(const struct insn *insn, unsigned word) {
    return insn->base == RSP && insn->index == REG_ZERO && insn->address_size == word &&
           !is_based(insn);
}

static bool is_constant(const struct insn *insn) {
    return insn->base == REG_ZERO && insn->index == REG_ZERO;
}

/* Alone in its group an access has the check that it would have anyway. */
static void drop_single(struct translation *t) {
    for (unsigned i = 0; i < t->count; i++) {
        unsigned g = t->operand_group[i];
        if (g != NO_GROUP && !t->groups[g].stack && t->groups[g].count < 2)
            t->operand_group[i] = NO_GROUP;
    }
}

void groups_find(struct translation *t) {
    unsigned stack = NO_GROUP;
    int64_t moved = 0;
    struct values values;
    if (t->block->key & KEY_PLAIN) {
        memset(t->operand_group, NO_GROUP, sizeof t->operand_group);
        memset(t->stack_group, NO_GROUP, sizeof t->stack_group);
        return;
    }
    values_begin(&values, t->word);
    for (unsigned i = 0; i < t->count; i++) {
        const struct insn *insn = &t->insns[i];
        const struct lowering *l = lowering_of(insn);
        uint8_t kind = t->kinds[i];
        struct use use = use_of(insn, l, kind, t->word);
        int64_t by = 0;
        t->operand_group[i] = t->stack_group[i] = NO_GROUP;
        t->rsp_moved[i] = (int32_t)moved;
        if (use.operand && is_near_rsp(insn, t->word)) {
            t->operand_group[i] = (uint8_t)join_stack(t, &stack, moved + insn->disp,
                                                      use.operand_size, use.operand_writes);
        } else if (use.operand && !t->dense && !is_constant(insn) &&
                   (t->word == 8 || !is_based(insn))) {
            uint32_t index;
            struct value at = values_address(&values, insn, &index);
            t->operand_at[i] = at.constant;
            t->operand_group[i] =
                (uint8_t)join_operand(t, insn, use.operand_size, use.operand_writes, &at, index);
        }
        if (use.stack)
            t->stack_group[i] =
                (uint8_t)join_stack(t, &stack, moved + use.stack_disp, t->word, use.stack_writes);
        /* There is one window: what the operand's group made of it would not hold for the push. */
        if (use.stack && is_near_rsp(insn, t->word) && t->operand_group[i] != t->stack_group[i])
            t->operand_group[i] = NO_GROUP;
        uint32_t changes = lower_changes(insn, l, kind);
        values_step(&values, insn, kind);
        bool known = !(changes >> RSP & 1) || rsp_movement(insn, kind, t->word, &by);
        moved += by;
        if (!known || moved < -MOVE_MAX || moved > MOVE_MAX) {
            stack = NO_GROUP;
            moved = 0;
        }
    }
    drop_single(t);
}
