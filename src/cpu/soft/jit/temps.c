/*
 * Which groups' host addresses the temporary registers hold. Checks and much
 * else need both; in between, where accesses of several groups alternate, each
 * register keeps the one that is needed next.
 */
#include "cpu/soft/jit/translation.h"

/* Flags that the instruction needs are in EFLAGS, or made there from registers in their places. */
static bool has_flags(const struct translation *t, const struct lowering *l) {
    bool keeps_some = l->writes_flags && (t->live[t->index + 1] & ~l->flags_killed) != 0;
    return (t->flags & FLAGS_HOST) || (l->flags_read == 0 && !keeps_some);
}

static bool operand_leaves_temporary(const struct translation *t) {
    if (t->loop.running && t->loop.group_of[t->index] != NO_GROUP)
        return loop_operand_is_simple(t);
    unsigned g = t->operand_group[t->index];
    return g != NO_GROUP && t->groups[g].checked;
}

bool temps_leave_second(const struct translation *t) {
    const struct insn *insn = t->insn;
    const struct lowering *l = lowering_of(insn);
    uint8_t kind = t->kinds[t->index];
    /* flags_registers_change */
    bool remakes_flags = t->recipe != RECIPE_NONE && t->flags == 0 && t->live[t->index] != 0 &&
                         (t->recipe_registers & lower_changes(insn, l, kind));
    if (remakes_flags)
        return false;
    switch (kind) {
    case LOWER_NOP: return true;
    case LOWER_JCC: return t->flags & FLAGS_HOST;
    case LOWER_LEA: return lower_lea_is_near(insn);
    case LOWER_NATIVE: break;
    default: return false;
    }
    bool memory = insn->flags & I_MEMORY;
    if (lower_elsewhere_count(insn, l) != 0 || uses_high_byte(insn, l) || l->x87 ||
        !has_flags(t, l))
        return false;
    return !memory || (!l->aligned && operand_leaves_temporary(t));
}

static unsigned group_at(const struct translation *t, unsigned i) {
    if (t->loop.running && t->loop.group_of[i] != NO_GROUP)
        return LOOP_TEMP_GROUP + t->loop.group_of[i];
    return t->operand_group[i];
}

static unsigned next_use(const struct translation *t, unsigned group) {
    unsigned count = t->loop.running ? t->loop.count : t->count;
    for (unsigned i = t->index + 1; group != NO_GROUP && i < count; i++)
        if (group_at(t, i) == group)
            return i;
    return PATH_INSNS_MAX;
}

unsigned temps_load(struct translation *t, uint8_t group, int32_t from) {
    if (t->temp_group == group)
        return TEMP_A;
    if (t->second_temp_group == group)
        return TEMP_B;
    bool second = t->leaves_second && t->temp_group != NO_GROUP &&
                  next_use(t, t->temp_group) <= next_use(t, t->second_temp_group);
    *(second ? &t->second_temp_group : &t->temp_group) = group;
    emit_gs(&t->out, OP_MOV_LOAD, 8, second ? TEMP_B : TEMP_A, from);
    return second ? TEMP_B : TEMP_A;
}
