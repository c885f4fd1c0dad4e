/*
 * The path that an extended block's code takes: its instructions in sequence,
 * but where a conditional jump's condition is known (values.h) it is followed,
 * or is none. Short loops whose turns are known that way are unrolled: their
 * accesses are at known distances, so that one check covers those of all
 * turns (groups.c). Such a block looks at requests where it ends, as others do.
 */
#include "cpu/soft/jit/translation.h"

enum {
    NOWHERE = BLOCK_INSNS_MAX,
    LONG_TURN = 24, /* instructions */
    JUMPS_MAX = 24, /* on a path whose loops are unrolled */
};

/* The instruction of the block that a jump of it leads to; not the first, which is where loops
 * close (loops.c). */
static unsigned target_of(const struct block *block, const struct insn *jump) {
    uint64_t offset = jump->offset + jump->length + jump->imm;
    for (unsigned i = 1; i < block->count && offset < block->length; i++)
        if (block->insns[i].offset == offset)
            return i;
    return NOWHERE;
}

/* Whether a jump goes back into the block. */
static bool has_loop(const struct translation *t) {
    for (unsigned i = 0; i < t->block->count; i++) {
        const struct insn *insn = &t->block->insns[i];
        if (lowering_of(insn)->kind == LOWER_JCC && insn->size == t->word &&
            target_of(t->block, insn) <= i)
            return true;
    }
    return false;
}

static void follow_sequence(struct translation *t) {
    t->insns = t->block->insns;
    t->count = t->block->count;
    for (unsigned i = 0; i < t->count; i++) {
        t->kinds[i] = lower_kind(&t->insns[i], lowering_of(&t->insns[i]));
        t->source[i] = (uint8_t)i;
    }
}

/* Jumps that lead out of the present loops only after more turns than there is room for. */
struct refusals {
    uint64_t jumps; /* by their index in the block */
};
_Static_assert(BLOCK_INSNS_MAX <= 64, "a bit for each");

bool path_is_long_turn(const struct translation *t, unsigned first, unsigned count) {
    unsigned jumps = 0;
    for (unsigned i = first; i + 1 < count; i++) {
        jumps += t->kinds[i] == LOWER_JCC;
        if (t->kinds[i] == LOWER_JCC && (int64_t)t->insns[i].imm < 0)
            return false;
    }
    return count - first >= LONG_TURN && jumps <= 1;
}

/* A loop inside the path whose turns are long is a block of its own, with checks before it from its
 * first turn on: the path ends where it begins. */
static bool ends_before_loop(struct translation *t, const struct insn *jump) {
    unsigned target = target_of(t->block, jump), first = 0;
    while (first < t->count && t->source[first] != target)
        first++;
    if (first == 0 || !path_is_long_turn(t, first, t->count + 1))
        return false;
    t->count = first;
    return true;
}

/* False: the path is too long; the jump back that goes furthest is to be taken for one whose
 * condition is not known. */
static bool follow_values(struct translation *t, struct refusals *refused) {
    const struct block *block = t->block;
    unsigned furthest = NOWHERE, furthest_jump = 0, jumps = 0;
    struct values values;
    values_begin(&values, t->word);
    t->insns = t->path;
    t->count = 0;
    for (unsigned i = 0, next; i < block->count; i = next) {
        if (furthest != NOWHERE && (t->count == PATH_INSNS_MAX || jumps == JUMPS_MAX)) {
            refused->jumps |= UINT64_C(1) << furthest_jump;
            return false;
        }
        const struct insn *insn = &block->insns[i];
        uint8_t kind = lower_kind(insn, lowering_of(insn));
        int decision =
            kind == LOWER_JCC && !(refused->jumps >> i & 1) ? values_decide(&values, insn) : -1;
        unsigned target = decision == 1 ? target_of(block, insn) : NOWHERE;
        bool known = decision == 0 || target != NOWHERE;
        jumps += kind == LOWER_JCC && !known;
        next = known && decision == 1 ? target : i + 1;
        if (next <= i && next < furthest) {
            furthest = next;
            furthest_jump = i;
        }
        if (kind == LOWER_JCC && !known && ends_before_loop(t, insn))
            return true;
        values_step(&values, insn, kind);
        t->path[t->count] = *insn;
        t->source[t->count] = (uint8_t)i;
        t->kinds[t->count++] = known ? LOWER_NOP : kind;
    }
    return true;
}

void path_find(struct translation *t) {
    struct refusals refused = {0};
    if (!t->block->extended || !has_loop(t)) {
        follow_sequence(t);
        return;
    }
    while (!follow_values(t, &refused)) {
    }
}
