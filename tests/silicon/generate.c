/*
 * Whole cases: state, memory and one instruction or a few.
 */
#include <string.h>

#include "base/bytes.h"
#include "silicon.h"

static const uint16_t selectors[] = {0,    3,    4,    7,    0x08, 0x0b, 0x10,  0x13, 0x18,
                                     0x1b, 0x20, 0x23, 0x23, 0x28, 0x2b, 0x2b,  0x30, 0x33,
                                     0x33, 0x38, 0x3b, 0x40, 0x43, 0x88, 0xfff8};

static uint64_t random_selector(struct random *random) {
    return selectors[random_below(random, ARRAY_SIZE(selectors))];
}

static uint64_t random_code_address(struct random *random) {
    return CASE_CODE + 64 + random_below(random, 512);
}

/* ---- Memory ---- */

/* Mostly whole accesses at all alignments; then page ends, pages that refuse, and nothing at all.
 */
static uint64_t choose_target(struct random *random, bool mode32) {
    uint64_t inside = DATA_BASE + 64 + random_below(random, DATA_SIZE - 192);
    unsigned dice = random_below(random, 100);
    if (dice < 40)
        return inside & ~UINT64_C(63);
    if (dice < 65)
        return inside;
    if (dice < 80)
        return DATA_BASE + PAGE - 1 - random_below(random, 63);
    if (dice < 88)
        return DATA_BASE + DATA_SIZE - random_below(random, 70);
    if (dice < 90)
        return DATA_BASE - 1 - random_below(random, 64);
    if (dice < 95)
        return CONST_BASE + (random_below(random, CONST_SIZE - 64) & ~63u);
    if (dice < 97)
        return CONST_BASE + CONST_SIZE - random_below(random, 64);
    if (dice < 98)
        return random_below(random, 0x10000);
    if (mode32)
        return (uint32_t)-random_below(random, 256);
    return random_once_in(random, 2) ? UINT64_C(0x8000000000000000) + random_next(random) / 4
                                     : UINT64_C(0x7fffffffffc0) + random_below(random, 128);
}

static uint64_t data_target(struct random *random) {
    return DATA_BASE + 64 + random_below(random, DATA_SIZE - 192);
}

/* A patch that begins at `address`, or as near as the data or the stack allows. */
static struct patch *add_patch(struct test_case *test, uint64_t address) {
    uint64_t base = address >= STACK_BASE ? STACK_BASE : DATA_BASE;
    uint64_t offset = address - base;
    if (test->patch_count == PATCHES_MAX || address < DATA_BASE)
        return NULL;
    if (offset >= DATA_SIZE + PATCH_SIZE)
        return NULL;
    if (offset > DATA_SIZE - PATCH_SIZE)
        offset = DATA_SIZE - PATCH_SIZE;
    struct patch *patch = &test->patch[test->patch_count++];
    patch->offset = (uint32_t)(offset + (base == STACK_BASE ? DATA_SIZE : 0));
    return patch;
}

/* ---- State ---- */

static void choose_integers(struct random *random, struct user_state *state, bool mode32) {
    for (unsigned i = 0; i < 16; i++)
        state->gpr[i] = random_integer(random);
    /* Operands that are equal, or nearly. */
    if (random_once_in(random, 8))
        state->gpr[random_below(random, 8)] = state->gpr[random_below(random, 16)];
    state->gpr[RSP] = STACK_BASE + PAGE + (random_below(random, 2048) & ~7u) - 1024;
    if (random_once_in(random, 16))
        state->gpr[RSP] += random_below(random, 8);
    if (random_once_in(random, 32))
        state->gpr[RSP] =
            STACK_BASE + random_below(random, 2) * STACK_SIZE + random_below(random, 64) - 32;
    if (random_once_in(random, 2))
        state->gpr[RBP] = STACK_BASE + PAGE + (random_below(random, 2048) & ~7u) - 1024;
    for (unsigned i = 0; i < 16 && mode32; i++)
        state->gpr[i] = i < 8 ? (uint32_t)state->gpr[i] : 0;
}

static void choose_flags(struct random *random, struct user_state *state) {
    state->rflags = (random_next(random) & FLAGS_STATUS) | FLAGS_FIXED | FLAG_IF;
    if (random_once_in(random, 4))
        state->rflags |= FLAG_DF;
    if (random_once_in(random, 64))
        state->rflags |= FLAG_AC;
    if (random_once_in(random, 64))
        state->rflags |= FLAG_TF;
}

enum { FSW_ES_B = 0x8080, FSW_TOP = 0x3800, FSW_CONDITION = 0x4700, FPU_EXCEPTIONS = 0x3f };

static void choose_x87(struct random *random, struct fp_state *fp, bool pending_wanted) {
    for (unsigned i = 0; i < 8; i++)
        fp->x87[i] = random_extended(random);
    fp->fcw = 0x37f;
    if (random_once_in(random, 2))
        fp->fcw = 0x07f | (random_next(random) & 0xf00);
    if (random_once_in(random, 4))
        fp->fcw = 0x040 | (random_next(random) & 0xf3f);
    fp->fsw = (uint16_t)random_next(random) & (FSW_TOP | FSW_CONDITION);
    if (random_once_in(random, 4))
        fp->fsw |= random_next(random) & 0x7f & (pending_wanted ? 0x7f : fp->fcw);
    if (fp->fsw & ~fp->fcw & FPU_EXCEPTIONS)
        fp->fsw |= FSW_ES_B;
    fp->ftw = 0xff;
    if (random_once_in(random, 4))
        fp->ftw = random_once_in(random, 2) ? 0 : (uint8_t)random_next(random);
}

enum { MXCSR_DAZ = 0x40, MXCSR_MASKS = 0x1f80, MXCSR_FTZ = 0x8000 };

static uint32_t random_mxcsr(struct random *random) {
    uint32_t mxcsr = MXCSR_MASKS | (random_next(random) & 0x6000);
    if (random_once_in(random, 2))
        mxcsr = MXCSR_MASKS;
    if (random_once_in(random, 4))
        mxcsr = random_next(random) & 0x7f80;
    if (random_once_in(random, 4))
        mxcsr |= random_next(random) & FPU_EXCEPTIONS;
    if (random_once_in(random, 6))
        mxcsr |= MXCSR_DAZ;
    if (random_once_in(random, 6))
        mxcsr |= MXCSR_FTZ;
    return mxcsr;
}

static void choose_vectors(struct random *random, struct fp_state *fp) {
    fp->mxcsr = random_mxcsr(random);
    for (unsigned i = 0; i < 16; i++)
        random_bytes(random, fp->ymm[i], 32);
    if (random_once_in(random, 8))
        memcpy(fp->ymm[random_below(random, 16)], fp->ymm[random_below(random, 16)], 32);
}

static void choose_state(struct generator *g, struct test_case *test, const struct insn_row *row) {
    struct random *random = &g->random;
    memset(&test->state, 0, sizeof test->state);
    choose_integers(random, &test->state, test->mode32);
    choose_flags(random, &test->state);
    choose_x87(random, &test->state.fp, random_once_in(random, 4));
    choose_vectors(random, &test->state.fp);
    test->state.fs_base = FS_BASE;
    test->state.gs_base = GS_BASE;
    (void)row;
}

/* ---- What single instructions need beyond chance ---- */

static bool named(const struct insn_row *row, const char *prefix) {
    return strncmp(row->name, prefix, strlen(prefix)) == 0;
}

static void set32(struct test_case *test, unsigned n, uint64_t value) {
    test->state.gpr[n] = test->mode32 ? (uint32_t)value : value;
}

/* Repeat counts that end, strings that meet, and now and then a run beyond the page. */
static void prepare_string(struct random *random, struct test_case *test) {
    uint64_t count = random_below(random, random_once_in(random, 8) ? 700 : 20);
    struct patch *patch;
    uint64_t source = choose_target(random, test->mode32);
    uint64_t destination = random_once_in(random, 4) ? source + random_below(random, 32) - 16
                                                     : choose_target(random, test->mode32);
    set32(test, RCX, count);
    set32(test, RSI, source);
    set32(test, RDI, destination);
    if (!random_once_in(random, 4)) {
        /* One byte over and over: comparisons and scans go on for a while. */
        uint8_t byte = (uint8_t)random_next(random);
        test->state.gpr[RAX] = byte * UINT64_C(0x0101010101010101);
        set32(test, RAX, test->state.gpr[RAX]);
        for (unsigned i = 0; i < 2; i++) {
            patch = add_patch(test, i == 0 ? source : destination);
            if (patch != NULL)
                memset(patch->bytes, byte, PATCH_SIZE);
        }
        if (test->patch_count != 0)
            test->patch[test->patch_count - 1].bytes[random_below(random, 16)]++;
    }
}

/* Registers and stack words that lead to code: targets, and frames for far returns. */
static void prepare_branch(struct random *random, struct test_case *test) {
    uint64_t frame[8] = {random_code_address(random), SEL_CS64, test->state.rflags,
                         test->state.gpr[RSP] + 64, SEL_DS};
    struct patch *patch = add_patch(test, test->state.gpr[RSP]);
    unsigned word = random_once_in(random, 2)                   ? 8
                    : test->mode32 || random_once_in(random, 2) ? 4
                                                                : 2;
    if (random_once_in(random, 3))
        frame[1] = random_once_in(random, 2) ? SEL_CS32 : random_selector(random);
    if (random_once_in(random, 3))
        frame[2] = random_next(random) & 0x257fd7;
    if (random_once_in(random, 8))
        frame[4] = random_selector(random);
    set32(test, RCX, random_below(random, 4));
    if (patch != NULL) {
        memset(patch->bytes, 0, PATCH_SIZE);
        for (unsigned i = 0; i < 8; i++)
            store_le(patch->bytes + word * i, frame[i], word);
    }
    for (unsigned i = 0; i < 16; i++) {
        if (i != RSP && i != RCX && !random_once_in(random, 4) && (i < 8 || !test->mode32))
            test->state.gpr[i] = random_code_address(random);
    }
}

static bool is_transfer(const struct insn_row *row) {
    return (row->properties & INSN_BRANCH) || named(row, "iret") || named(row, "ret") ||
           named(row, "jmp") || named(row, "call");
}

/* Far pointers, selectors, code addresses and control words as memory operands. */
static void shape_operand(struct random *random, const struct insn_row *row,
                          const struct test_case *test, uint8_t *bytes) {
    if (is_transfer(row)) {
        unsigned size = random_once_in(random, 2) ? 8 : test->mode32 ? 4 : 2;
        store_le64(bytes, random_code_address(random));
        if (row_has_operand(row, OPERAND_Mp, OPERAND_Mp))
            store_le16(bytes + size,
                       (uint16_t)(random_once_in(random, 2) ? SEL_CS64 : random_selector(random)));
    } else if (row_has_operand(row, OPERAND_Mp, OPERAND_Mp)) {
        static const uint8_t sizes[] = {2, 4, 8};
        store_le16(bytes + sizes[random_below(random, 3)], (uint16_t)random_selector(random));
    }
    if (named(row, "ldmxcsr") || named(row, "vldmxcsr"))
        store_le32(bytes, random_once_in(random, 8) ? (uint32_t)random_integer(random)
                                                    : random_mxcsr(random));
    if (named(row, "fxrstor"))
        store_le32(bytes + 24, random_mxcsr(random));
    if (named(row, "fldcw"))
        store_le16(bytes, (uint16_t)(0x40 | (random_next(random) & 0xf3f)));
    if (named(row, "fldenv") || named(row, "frstor"))
        store_le16(bytes, 0x37f);
}

static bool wants_selector(const struct insn_row *row) {
    static const char *const names[] = {"lar", "lsl", "verr", "verw", "arpl"};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(row->name, names[i]) == 0)
            return true;
    }
    return row_has_operand(row, OPERAND_Sw, OPERAND_Sw);
}

static void prepare_selectors(struct random *random, struct test_case *test) {
    for (unsigned i = 0; i < 16; i++) {
        if (i != RSP && (i < 8 || !test->mode32) && random_once_in(random, 2))
            test->state.gpr[i] = random_selector(random) |
                                 (random_once_in(random, 2) ? random_next(random) << 16 : 0);
        if (test->mode32)
            test->state.gpr[i] = (uint32_t)test->state.gpr[i];
    }
}

/* Bit strings: offsets that stay near, most of the time. */
static void prepare_bit_offsets(struct random *random, struct test_case *test) {
    for (unsigned i = 0; i < 16; i++) {
        if (i != RSP && !random_once_in(random, 16) && (i < 8 || !test->mode32))
            set32(test, i, (uint64_t)random_below(random, 16384) - 8192);
    }
}

static bool is_bit_test(const struct insn_row *row) {
    return (strcmp(row->name, "bt") == 0 || strcmp(row->name, "bts") == 0 ||
            strcmp(row->name, "btr") == 0 || strcmp(row->name, "btc") == 0) &&
           row_has_operand(row, OPERAND_Gv, OPERAND_Gv);
}

/* Dividends whose quotients fit, now and then. */
static void prepare_division(struct random *random, struct test_case *test) {
    if (random_once_in(random, 3))
        return;
    set32(test, RDX,
          random_once_in(random, 2) ? random_below(random, 4) : -(uint64_t)random_below(random, 4));
    if (random_once_in(random, 2))
        test->state.gpr[RAX] &= 0xff;
}

static void prepare(struct generator *g, struct test_case *test, const struct insn_row *row) {
    struct random *random = &g->random;
    if (row->properties & INSN_REP)
        prepare_string(random, test);
    if (is_transfer(row))
        prepare_branch(random, test);
    if (wants_selector(row))
        prepare_selectors(random, test);
    if (is_bit_test(row))
        prepare_bit_offsets(random, test);
    if (named(row, "div") || named(row, "idiv"))
        prepare_division(random, test);
    if (named(row, "pop") && random_once_in(random, 2)) {
        struct patch *patch = add_patch(test, test->state.gpr[RSP]);
        if (patch != NULL)
            random_bytes(random, patch->bytes, PATCH_SIZE);
        if (patch != NULL && random_once_in(random, 2))
            store_le64(patch->bytes, random_selector(random));
    }
}

/* ---- Where the code is ---- */

/* Now and then across the two code pages, or into the unmapped one behind them. */
static uint64_t choose_start(struct random *random) {
    unsigned dice = random_below(random, 64);
    if (dice < 6)
        return CODE_BASE + PAGE - 1 - random_below(random, 14);
    if (dice < 8)
        return CODE_BASE + CODE_SIZE - 1 - random_below(random, 14);
    return CASE_CODE + random_below(random, 16);
}

static void clip_code(struct test_case *test) {
    uint64_t room = CODE_BASE + CODE_SIZE - test->start;
    if (test->code_length > room)
        test->code_length = (uint32_t)room;
}

static void clear_case(struct test_case *test) {
    test->code_length = 0;
    test->row_count = 0;
    test->patch_count = 0;
    test->flags_unknown = test->flags_unknown_any = 0;
    test->is_twin = test->is_program = false;
    test->piece_count = 0;
}

/* Prefixes may have made something else of the row. */
static bool may_run(const struct generator *g, const struct test_case *test) {
    struct insn insn;
    enum insn_mode mode = test->mode32 ? INSN_MODE_32 : INSN_MODE_64;
    return insn_decode(&insn, test->code, test->code_length, test->start, mode, g->features) <= 0 ||
           row_excluded(insn_row_of(&insn)) == NULL;
}

static bool choose_mode32(struct random *random, const struct insn_row *row) {
    if (row->properties & INSN_NO64)
        return !random_once_in(random, 16);
    return !(row->properties & INSN_ONLY64) && random_once_in(random, 6);
}

bool generate_single(struct generator *g, unsigned n, struct test_case *test) {
    const struct insn_row *row = insn_row_at(n);
    struct random *random = &g->random;
    struct encoder encoder = {.test = test, .random = random, .row = row};
    clear_case(test);
    test->mode32 = choose_mode32(random, row);
    test->start = choose_start(random);
    choose_state(g, test, row);
    prepare(g, test, row);
    encoder.target = choose_target(random, test->mode32);
    if (row->properties & INSN_REP)
        encoder.target = test->state.gpr[row_has_operand(row, OPERAND_Xb, OPERAND_Xv) ? RSI : RDI];
    struct patch *patch = add_patch(test, encoder.target);
    if (patch != NULL) {
        random_bytes(random, patch->bytes, PATCH_SIZE);
        shape_operand(random, row, test, patch->bytes);
    }
    if (!encode(&encoder))
        return false;
    test->rows[test->row_count++] = (uint16_t)n;
    if (random_once_in(random, 32) && strncmp(row->name, "loop", 4) != 0)
        add_wild_prefixes(random, test);
    trim_to_one(g, test); /* a 66h among them shortens immediates */
    clip_code(test);
    return may_run(g, test);
}

void generate_state(struct generator *g, struct test_case *test) {
    clear_case(test);
    test->mode32 = g->mode != 0 ? g->mode == 32 : random_once_in(&g->random, 4);
    test->start = CASE_CODE + random_below(&g->random, 16);
    choose_state(g, test, NULL);
}

/* ---- Sequences ---- */

bool row_fits_sequence(const struct insn_row *row) {
    const uint32_t excluded =
        INSN_BRANCH | INSN_END | INSN_CPL0 | INSN_REP | INSN_NO_TEST | INSN_UNDEFINED_REG;
    /* They show pointers that translated code does not keep (jit/x87_live.h). */
    if (named(row, "fnstenv") || named(row, "fnsave"))
        return false;
    return row_excluded(row) == NULL && !(row->properties & excluded) && !wants_selector(row) &&
           !is_bit_test(row) && !named(row, "div") && !named(row, "idiv") && !named(row, "leave") &&
           !row_has_operand(row, OPERAND_VSIB, OPERAND_VSIB);
}

/* After a shift the flags may be its own or, with a count of 0, the ones before. */
static void track_flags(struct test_case *test, const struct insn_row *row) {
    unsigned kept = count_varies(row) ? 0xffff : (unsigned)~row->flags_written;
    test->flags_unknown = (uint16_t)((test->flags_unknown & kept) | row->flags_undefined);
    test->flags_unknown_any |= test->flags_unknown;
}

void generate_sequence(struct generator *g, struct test_case *test) {
    struct random *random = &g->random;
    unsigned wanted = 2 + random_below(random, SEQUENCE_MAX - 1);
    clear_case(test);
    test->mode32 = random_once_in(random, 8);
    test->start = CASE_CODE + random_below(random, 16);
    choose_state(g, test, NULL);
    for (unsigned tries = 0; tries < 64 && test->row_count < wanted; tries++) {
        unsigned n = g->sequence_rows[random_below(random, g->sequence_row_count)];
        const struct insn_row *row = insn_row_at(n);
        struct encoder encoder = {.test = test, .random = random, .row = row, .fixed = true};
        if (row->flags_read & test->flags_unknown)
            continue;
        encoder.target = data_target(random) & ~UINT64_C(15);
        if (!encode(&encoder))
            continue;
        struct patch *patch = add_patch(test, encoder.target);
        if (patch != NULL)
            random_bytes(random, patch->bytes, PATCH_SIZE);
        test->rows[test->row_count++] = (uint16_t)n;
        track_flags(test, row);
    }
}

/* ---- Flags ---- */

enum shift_kind { NO_SHIFT, SHIFT, ROTATE, DOUBLE_SHIFT };

static enum shift_kind shift_kind(const struct insn_row *row) {
    static const char *const shifts[] = {"shl", "sal", "shr", "sar"};
    static const char *const rotates[] = {"rol", "ror", "rcl", "rcr"};
    for (unsigned i = 0; i < 4; i++) {
        if (strcmp(row->name, shifts[i]) == 0)
            return SHIFT;
        if (strcmp(row->name, rotates[i]) == 0)
            return ROTATE;
    }
    return strcmp(row->name, "shld") == 0 || strcmp(row->name, "shrd") == 0 ? DOUBLE_SHIFT
                                                                            : NO_SHIFT;
}

bool count_varies(const struct insn_row *row) {
    return shift_kind(row) != NO_SHIFT;
}

static unsigned shift_count(const struct insn_row *row, const struct insn *insn,
                            const struct user_state *before) {
    unsigned mask = insn->size == 8 ? 63 : 31;
    if (row_has_operand(row, OPERAND_CL, OPERAND_CL))
        return before->gpr[RCX] & mask;
    return row_has_operand(row, OPERAND_Ib, OPERAND_Ib) ? insn->imm & mask : 1;
}

/* A count of 0 changes no flag, and OF is defined for a count of 1 (APM vol. 3, SHL, ROL, SHLD).
 * SHLD and SHRD by more than the operand's width define none. */
unsigned flags_undefined(const struct insn_row *row, const struct insn *insn,
                         const struct user_state *before) {
    if (shift_kind(row) == NO_SHIFT)
        return row->flags_undefined;
    unsigned count = shift_count(row, insn, before);
    if (count == 0)
        return 0;
    if (shift_kind(row) == DOUBLE_SHIFT && count > 8u * insn->size)
        return FLAGS_STATUS;
    return count == 1 ? row->flags_undefined & ~(unsigned)FLAG_OF : row->flags_undefined;
}
