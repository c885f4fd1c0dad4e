/*
 * Random programs: what a translator can get wrong beyond single
 * instructions. Blocks that jump, call, return and loop, stacks that move and
 * cross pages, strings, code that changes, faults in the middle of all that.
 *
 * Programs end by chance, as their main unit ends in INT3. Loops and recursion
 * count down one register, which nothing else writes.
 *
 * Nothing but what is meant to writes code: stores through another mapping are followed by a
 * serializing instruction, as the manuals want it (APM vol. 2, 7.6.1).
 *
 * A program has flags that may hold anything throughout (`unknown`), because
 * some instruction left them undefined; nothing reads those and they are not
 * compared. An instruction that leaves others undefined has a CMP behind it.
 */
#include <string.h>

#include "base/bytes.h"
#include "program.h"

/* ---- Which rows ---- */

static bool one_of(const struct insn_row *row, const char *const *names, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(row->name, names[i]) == 0)
            return true;
    }
    return false;
}

static bool in_table(const struct insn_row *row, const struct insn_table *table) {
    return row >= table->rows && row < table->rows + table->count;
}

bool row_fits_program(const struct insn_row *row) {
    /* Made by hand (elements.c), with memory operands that no register names, or loading control
     * words that end programs too soon. */
    static const char *const excluded[] = {
        "push",        "pop",        "pusha",  "popa",     "pushf",  "popf",   "enter",
        "leave",       "pushad",     "popad",  "pushfd",   "popfd",  "pushfq", "popfq",
        "xlat",        "xlatb",      "in",     "out",      "ins",    "outs",   "std",
        "maskmovq",    "maskmovdqu", "clzero", "ldmxcsr",  "fldcw",  "fldenv", "frstor",
        "fxrstor",     "fxrstor64",  "fxsave", "fxsave64", "fnsave", "fsave",  "vldmxcsr",
        "vmaskmovdqu", "wait",
    };
    return row_fits_sequence(row) && !in_table(row, &insn_table_system) &&
           !one_of(row, excluded, ARRAY_SIZE(excluded));
}

enum program_row_kind program_row_kind(const struct insn_row *row) {
    if (in_table(row, &insn_table_integer))
        return ROWS_INTEGER;
    return in_table(row, &insn_table_x87) || (row->properties & INSN_MMX) ? ROWS_X87 : ROWS_VECTOR;
}

/* ---- Registers ---- */

/* Addresses near ends of pages: what is behind them is mapped alike, otherwise or not at all. */
static uint64_t choose_pointer(struct random *random) {
    uint64_t at = (uint64_t)random_below(random, 128) - 64;
    if (random_once_in(random, 2))
        at &= ~UINT64_C(15);
    switch (random_below(random, 24)) {
    case 0: return CONST_BASE + 1024 + at;
    case 1: return DATA_BASE + DATA_SIZE - 96 + at; /* may run into the hole */
    case 2: return DATA_BASE + 96 + at;
    case 3: return MIXED_BASE + MIXED_SIZE - 400 + at;
    case 4: return MIXED_CODE + MIXED_SIZE - 400 + at; /* read-only, by this address */
    case 5:
        return random_once_in(random, 3) ? UINT64_C(0x800000000000) + at : DATA_BASE + PAGE + at;
    case 6: return STACK_BASE + PAGE + at;
    case 7: return ALIAS_BASE + ARENA_MIXED + MIXED_SIZE - 400 + at;
    case 8:
    case 9:
    case 10:
    case 11:
    case 12: return ALIAS_BASE + (1 + random_below(random, 3)) * PAGE + at;
    default: return DATA_BASE + PAGE + at;
    }
}

static uint64_t choose_stack(struct random *random, bool beside_code) {
    uint64_t at = random_below(random, 96) * 8;
    if (random_once_in(random, 16))
        at += random_below(random, 8);
    switch (random_below(random, 16) + (beside_code ? 0 : 1)) {
    case 0: return MIXED_BASE + MIXED_SIZE - 64 - at / 2;
    case 1: return DATA_BASE + PAGE + 64 - at / 8;
    case 2: return ALIAS_BASE + 3 * PAGE + 64 - at / 4;
    case 3: return STACK_BASE + STACK_SIZE - at / 8;
    case 4: return STACK_BASE + 64 + at;
    case 5:
    case 6:
    case 7:
    case 8: return STACK_BASE + PAGE + 32 - at / 8;
    default: return STACK_BASE + PAGE + 64 + at;
    }
}

/* A register for a role, R12 to R15 more often than others. */
static unsigned take_register(struct program *p) {
    static const uint8_t candidates[] = {RSI, RDI, R8,  R9,  R10, R11, R12,
                                         R13, R14, R15, R12, R13, R14, R15};
    unsigned n;
    do
        n = candidates[random_below(p->random, ARRAY_SIZE(candidates))];
    while (p->keep >> n & 1);
    p->keep |= 1u << n;
    return n;
}

static void choose_roles(struct program *p) {
    uint64_t *gpr = p->test->state.gpr;
    p->keep = 1u << RSP;
    p->word = p->mode32 ? 4 : 8;
    p->index = -1;
    p->pointers = p->mode32 ? 1 : POINTERS;
    for (unsigned i = 0; i < p->pointers; i++) {
        unsigned reg = p->mode32 ? RSI : take_register(p);
        uint64_t value = choose_pointer(p->random);
        if (p->mode32)
            value = (uint32_t)value;
        p->keep |= 1u << reg;
        p->pointer[i].reg = reg;
        gpr[reg] = p->pointer[i].value = value;
    }
    p->counter = p->mode32 ? RDI : take_register(p);
    p->keep |= 1u << p->counter;
    gpr[p->counter] = random_below(p->random, 40);
    if (!p->mode32) {
        p->index = (int)take_register(p);
        gpr[p->index] = p->index_value = random_below(p->random, 16);
    }
    gpr[RSP] = choose_stack(p->random, p->test->start - MIXED_BASE < MIXED_SIZE);
}

/* Where chance would end programs at once it is held back. */
static void tame_state(struct program *p) {
    struct user_state *state = &p->test->state;
    if (!random_once_in(p->random, 8))
        state->rflags &= ~(uint64_t)(FLAG_TF | FLAG_AC);
    if (!random_once_in(p->random, 8))
        state->fp.mxcsr |= 0x1f80;
    if (!random_once_in(p->random, 8)) {
        state->fp.fcw = 0x37f;
        state->fp.fsw &= 0x7f7f & ~0x8000;
    }
}

/* ---- Units ---- */

static void begin_unit(struct program *p, unsigned unit) {
    p->unit = unit;
    label_here(p, (uint16_t)unit);
    p->ends = label_new(p);
    p->waiting = NOWHERE;
}

static void end_unit(struct program *p) {
    if (p->waiting != NOWHERE)
        label_here(p, p->waiting);
    label_here(p, p->ends);
}

/* Back to the caller, in one of the ways there are. */
static void put_return(struct program *p) {
    unsigned reg = free_register(p);
    switch (random_below(p->random, 8)) {
    case 0: /* as functions do that others call by JMP */
        put_pop(p, reg);
        put_opcode_reg(p, 4, 0xff, 4, reg);
        break;
    case 1:
        put_bytes(p, 0xc2, 1);
        put_bytes(p, random_below(p->random, 3) * 8, 2);
        break;
    case 2:
        put_group1(p, p->word, 0, RSP, (int32_t)p->word);
        put_opcode_mem(p, 4, 0xff, 4, RSP, -(int32_t)p->word);
        break;
    case 3: /* REP RET */ put_bytes(p, 0xc3f3, 2); break;
    default: put_bytes(p, 0xc3, 1); break;
    }
}

/* Calls itself while the counter lasts. */
static void put_recursion(struct program *p) {
    uint16_t enough = label_new(p);
    put_group1(p, p->word, 5, p->counter, 1);
    put_bytes(p, 0x0f, 1);
    put_bytes(p, 0x8e, 1); /* JLE */
    fixup_add(p, FIXUP_REL32, 4, enough, 0, 0);
    put_call(p, (uint16_t)p->unit);
    label_here(p, enough);
}

static void put_subroutine(struct program *p, unsigned unit) {
    unsigned frame = random_below(p->random, 4), space = 8 * random_below(p->random, 6);
    begin_unit(p, unit);
    if (frame == 1) {
        put_push(p, RBP);
        put_opcode_reg(p, p->word, 0x89, RSP, RBP);
        put_group1(p, p->word, 5, RSP, (int32_t)space);
    } else if (frame == 2) {
        put_group1(p, p->word, 5, RSP, (int32_t)space);
    }
    for (unsigned n = random_below(p->random, 5); n > 0; n--)
        element(p, false);
    if (random_once_in(p->random, 4))
        put_recursion(p);
    end_unit(p);
    if (frame == 1)
        put_bytes(p, 0xc9, 1);
    else if (frame == 2)
        put_group1(p, p->word, 0, RSP, (int32_t)space);
    put_return(p);
}

/* INT3 up to somewhere else, now and then in the other page. */
static void put_gap(struct program *p) {
    unsigned room = CODE_MAX - p->test->code_length;
    unsigned gap = random_below(p->random, 24);
    unsigned to_page = PAGE - ((unsigned)p->test->start + p->test->code_length) % PAGE;
    if (random_once_in(p->random, 3) && to_page < room / 2)
        gap = to_page + random_below(p->random, 32);
    while (gap-- > 0)
        put_bytes(p, 0xcc, 1);
}

static uint64_t choose_start(struct random *random) {
    uint64_t base = random_once_in(random, 3) ? MIXED_CODE : MIXED_BASE;
    return base + PAGE - 1 - random_below(random, random_once_in(random, 3) ? PAGE - 64 : 700);
}

static unsigned choose_unknown(struct random *random) {
    switch (random_below(random, 6)) {
    case 0: return 0;
    case 1: return FLAG_AF | FLAG_SF | FLAG_ZF | FLAG_PF;
    default: return FLAG_AF;
    }
}

static bool try_program(struct generator *g, struct test_case *test) {
    struct program p = {.g = g, .random = &g->random, .test = test, .labels = UNITS_MAX};
    generate_state(g, test);
    test->is_program = true;
    test->start = choose_start(p.random);
    p.mode32 = test->mode32;
    p.unknown = choose_unknown(p.random);
    p.units = 1 + random_below(p.random, UNITS_MAX);
    for (unsigned i = 0; i < LABELS_MAX; i++)
        p.label[i] = NOWHERE;
    choose_roles(&p);
    tame_state(&p);
    begin_unit(&p, 0);
    for (unsigned n = 4 + random_below(p.random, 16); n > 0; n--)
        element(&p, true);
    end_unit(&p);
    put_bytes(&p, 0xcc, 1);
    for (unsigned unit = 1; unit < p.units; unit++) {
        put_gap(&p);
        put_subroutine(&p, unit);
    }
    test->flags_unknown = (uint16_t)p.unknown;
    test->flags_unknown_any |= test->flags_unknown;
    return !p.failed && fixups_resolve(&p);
}

void generate_program(struct generator *g, struct test_case *test) {
    while (!try_program(g, test))
        ;
}
