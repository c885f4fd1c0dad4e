/*
 * Flags that nobody would have read. docs/translator.md: flags that no
 * instruction reads before they are overwritten are the one thing that a
 * fault's saved RFLAGS may show stale, unless LODGE_TRANSLATE says "exact".
 * Which ones these are is found here once more, from the code as it was when
 * the program faulted.
 */
#include <stdlib.h>
#include <string.h>

#include "silicon.h"

enum { FUEL = 400, RETURNS_MAX = 8 };

struct walk {
    const uint64_t *features;
    enum insn_mode mode;
    uint8_t mixed[MIXED_SIZE];
    unsigned fuel;
};

static void read_code(struct walk *walk, const struct test_case *test) {
    memset(walk->mixed, 0xcc, sizeof walk->mixed);
    memcpy(walk->mixed + (background_code(test->start) - ARENA_MIXED), test->code,
           test->code_length);
}

static void read_changes(struct walk *walk, const struct outcome *native) {
    for (uint32_t i = 0; i < native->diff_count && i < DIFFS_MAX; i++) {
        uint32_t offset = native->diff[i].offset;
        if (offset >= ARENA_MIXED)
            memcpy(walk->mixed + (offset - ARENA_MIXED), &native->diff[i].value, 8);
    }
}

static bool decode(const struct walk *walk, uint64_t rip, struct insn *insn) {
    uint32_t offset = background_code(rip);
    if (offset == ARENA_SIZE)
        return false;
    offset -= ARENA_MIXED;
    return insn_decode(insn, walk->mixed + offset, MIXED_SIZE - offset, rip, walk->mode,
                       walk->features) > 0;
}

static bool is(const struct insn_row *row, const char *name) {
    return strcmp(row->name, name) == 0;
}

static bool is_relative(const struct insn_row *row) {
    return row->operand[0] == OPERAND_Jb || row->operand[0] == OPERAND_Jz;
}

/*
 * A shift by 0 keeps the flags, which the table counts as reading them; what follows may still
 * overwrite them. Only rotates through carry do read.
 */
static unsigned flags_read(const struct insn_row *row) {
    if (!count_varies(row))
        return row->flags_read;
    return is(row, "rcl") || is(row, "rcr") ? FLAG_CF : 0;
}

static bool shift_may_be_0(const struct insn_row *row, const struct insn *insn) {
    for (unsigned i = 0; i < 4; i++) {
        if (row->operand[i] == OPERAND_Ib)
            return (insn->imm & 31) == 0;
        if (row->operand[i] == OPERAND_CL)
            return true;
    }
    return false;
}

/* Of `flags`, those that code at rip may read before it writes them. */
static unsigned live(struct walk *walk, uint64_t rip, unsigned flags, const uint64_t *returns,
                     unsigned depth) {
    uint64_t stack[RETURNS_MAX];
    unsigned found = 0;
    for (unsigned i = 0; i < depth; i++)
        stack[i] = returns[i];
    while (flags != 0) {
        struct insn insn;
        if (walk->fuel == 0 || !decode(walk, rip, &insn))
            return found | flags;
        walk->fuel--;
        const struct insn_row *row = insn_row_of(&insn);
        unsigned read = flags_read(row);
        found |= flags & read;
        flags &= ~read;
        if (!count_varies(row) || !shift_may_be_0(row, &insn))
            flags &= ~(unsigned)(row->flags_written | row->flags_undefined);
        rip += insn.length;
        if (is(row, "ret") && depth > 0) {
            rip = stack[--depth];
        } else if (row->properties & INSN_BRANCH) {
            if (!is_relative(row))
                return found | flags;
            uint64_t target = rip + insn.imm;
            if (is(row, "call") && depth < RETURNS_MAX)
                stack[depth++] = rip;
            else if (!is(row, "jmp"))
                found |= live(walk, rip, flags, stack, depth);
            rip = target;
        } else if (row->properties & INSN_END) {
            return found | flags;
        }
    }
    return found;
}

static bool may_be_stale(void) {
    const char *translate = getenv("LODGE_TRANSLATE");
    return translate == NULL ||
           (strstr(translate, "exact") == NULL && strcmp(translate, "off") != 0);
}

unsigned flags_dead(const struct test_case *test, const struct outcome *native,
                    const uint64_t *features) {
    static struct walk walk;
    if (!may_be_stale() || native->vector == EXC_BP || native->vector == EXC_DB)
        return 0;
    walk.features = features;
    walk.mode = test->mode32 ? INSN_MODE_32 : INSN_MODE_64;
    walk.fuel = FUEL;
    read_code(&walk, test);
    unsigned alive = live(&walk, native->state.rip, FLAGS_STATUS, NULL, 0);
    /* Code that changed since it was translated: by what it was then or by what it is now. */
    read_changes(&walk, native);
    walk.fuel = FUEL;
    alive &= live(&walk, native->state.rip, FLAGS_STATUS, NULL, 0);
    return FLAGS_STATUS & ~alive;
}
