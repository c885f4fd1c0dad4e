/* The elements of random programs (program.h): each a handful of instructions that belong together.
 */
#include "base/bytes.h"
#include "program.h"

static unsigned below(struct program *p, unsigned n) {
    return random_below(p->random, n);
}

static bool once_in(struct program *p, unsigned n) {
    return random_once_in(p->random, n);
}

uint32_t piece_begin(const struct program *p) {
    return p->test->code_length;
}

void piece_end(struct program *p, uint32_t begin) {
    struct test_case *test = p->test;
    if (test->piece_count == PIECES_MAX || test->code_length == begin)
        return;
    test->piece[test->piece_count].at = (uint16_t)begin;
    test->piece[test->piece_count++].length = (uint16_t)(test->code_length - begin);
}

static unsigned any_register(struct program *p) {
    return below(p, p->mode32 ? 8 : 16);
}

unsigned free_register(struct program *p) {
    unsigned n;
    do
        n = any_register(p);
    while ((p->keep >> n & 1) || n == RSP || n == RBP);
    return n;
}

unsigned any_pointer(struct program *p) {
    return p->pointer[below(p, p->pointers)].reg;
}

/* Sizes of integer operands. Bytes of registers without REX may be AH to BH: of none with a role.
 */
unsigned any_size(struct program *p) {
    static const uint8_t sizes[] = {8, 8, 8, 4, 4, 2};
    unsigned size = sizes[below(p, ARRAY_SIZE(sizes))];
    return p->mode32 && size == 8 ? 4 : size;
}

int32_t any_disp(struct program *p) {
    int32_t disp = (int32_t)below(p, 256) - 128;
    if (once_in(p, 2))
        disp &= ~7;
    return once_in(p, 12) ? disp * 8 : disp;
}

void normalise(struct program *p) {
    put_group1(p, p->word, 7, any_register(p), (int32_t)random_integer(p->random));
    p->test->flags_unknown_any |= FLAGS_STATUS;
}

/* ---- Conditions ---- */

static unsigned condition_reads(unsigned condition) {
    static const uint16_t reads[8] = {
        FLAG_OF, FLAG_CF, FLAG_ZF,           FLAG_CF | FLAG_ZF,
        FLAG_SF, FLAG_PF, FLAG_SF | FLAG_OF, FLAG_ZF | FLAG_SF | FLAG_OF};
    return reads[condition >> 1];
}

unsigned any_condition(struct program *p) {
    unsigned condition;
    do
        condition = below(p, 16);
    while (condition_reads(condition) & p->unknown);
    return condition;
}

/* ---- Instructions from the tables ---- */

/* A place for the memory operand: what pointers are near, aligned where chance wants it. */
static void choose_operand(struct program *p, struct encoder *e, bool vector) {
    unsigned n = below(p, p->pointers);
    uint64_t base = p->pointer[n].value, target = base + (uint64_t)any_disp(p);
    if (vector ? !once_in(p, 8) : once_in(p, 4))
        target &= ~UINT64_C(31);
    e->based = true;
    e->base = p->pointer[n].reg;
    e->index = RSP;
    if (p->index >= 0 && once_in(p, 3)) {
        e->index = (unsigned)p->index;
        e->scale = below(p, 4);
        base += p->index_value << e->scale;
    }
    if (once_in(p, 12)) { /* the stack's own */
        e->base = RSP;
        e->index = RSP;
        base = target = 0;
        e->disp = (int32_t)(below(p, 32) * 16) - 128;
        return;
    }
    e->disp = (int32_t)(target - base);
    if (once_in(p, 12)) {
        e->based = false;
        e->fixed = true;
    }
}

bool element_row(struct program *p) {
    unsigned dice = below(p, 100);
    enum program_row_kind kind = dice < 60 ? ROWS_INTEGER : dice < 92 ? ROWS_VECTOR : ROWS_X87;
    const struct row_list *list = &p->g->program_rows[kind];
    if (list->count == 0)
        return false;
    const struct insn_row *row = insn_row_at(list->rows[below(p, list->count)]);
    struct encoder e = {.test = p->test, .random = p->random, .row = row, .keep = p->keep};
    uint32_t begin = piece_begin(p);
    if ((row->flags_read & p->unknown) || ((row->properties & INSN_NO64) && !p->mode32))
        return false;
    e.target = DATA_BASE + PAGE - 64 + below(p, 4) * 32;
    choose_operand(p, &e, kind != ROWS_INTEGER || (row->properties & INSN_ALIGNED));
    if (!encode(&e))
        return false;
    if (row->flags_undefined & ~p->unknown)
        normalise(p);
    piece_end(p, begin);
    return true;
}

static void rows(struct program *p, unsigned most) {
    for (unsigned n = below(p, most + 1); n > 0; n--)
        element_row(p);
}

/* ---- Many accesses off one register: checks that could be shared ---- */

void put_access(struct program *p, unsigned base, int32_t disp) {
    static const uint8_t alu[] = {0x01, 0x03, 0x11, 0x13, 0x29, 0x2b, 0x39,
                                  0x3b, 0x89, 0x8b, 0x89, 0x8b, 0x89, 0x8b};
    unsigned opcode = alu[below(p, ARRAY_SIZE(alu))], size = any_size(p);
    if ((opcode == 0x11 || opcode == 0x13) && (p->unknown & FLAG_CF))
        opcode = 0x8b;
    bool loads = opcode & 2;
    switch (below(p, 8)) {
    case 0: put_opcode_mem(p, 4, once_in(p, 2) ? 0x0f10 : 0x0f11, below(p, 8), base, disp); break;
    case 1: /* MOVZX, MOVSX */
        put_opcode_mem(p, size == 2 ? 4 : size, once_in(p, 2) ? 0x0fb6 : 0x0fbf, free_register(p),
                       base, disp);
        break;
    case 2:
        put_opcode_mem(p, size, 0x83, below(p, 8) & ~2u, base, disp); /* no ADC, SBB */
        put_bytes(p, random_next(p->random), 1);
        break;
    default:
        put_opcode_mem(p, size, opcode,
                       loads && opcode != 0x3b ? free_register(p) : any_register(p), base, disp);
    }
}

static void cluster(struct program *p) {
    unsigned base = once_in(p, 4) ? RSP : any_pointer(p), size = any_size(p);
    int32_t start = any_disp(p), moved = 0;
    for (unsigned n = 2 + below(p, 6); n > 0; n--) {
        uint32_t begin = piece_begin(p);
        put_access(p, base, start + (int32_t)(below(p, 24) * size) - (once_in(p, 3) ? 3 : 0));
        if (p->unknown == 0)
            normalise(p); /* some of them leave AF undefined */
        piece_end(p, begin);
        if (once_in(p, 6) && moved == 0) {
            moved = base == RSP ? 8 : (int32_t)below(p, 64) - 32;
            put_group1(p, p->word, 0, base, moved);
        }
        if (once_in(p, 6))
            element_row(p);
    }
    if (moved != 0)
        put_group1(p, p->word, 5, base, moved);
}

/* ---- The stack ---- */

static void push_something(struct program *p) {
    switch (below(p, 6)) {
    case 0: put_push_imm(p, (int32_t)random_integer(p->random)); break;
    case 1: put_opcode_mem(p, 4, 0xff, 6, any_pointer(p), any_disp(p)); break;
    case 2:
        put_opcode_mem(p, 4, 0xff, 6, RSP, ((int32_t)below(p, 64) - 32) * (once_in(p, 3) ? 64 : 8));
        break;
    case 3: put_push(p, RSP); break;
    default: put_push(p, any_register(p)); break;
    }
}

static void pop_somewhere(struct program *p) {
    switch (below(p, 5)) {
    case 0: put_opcode_mem(p, 4, 0x8f, 0, any_pointer(p), any_disp(p)); break;
    case 1: put_opcode_mem(p, 4, 0x8f, 0, RSP, (int32_t)below(p, 64) * 8 - 256); break;
    default: put_pop(p, once_in(p, 12) ? RBP : free_register(p)); break;
    }
}

/* 66h: two bytes. */
static void push_pop_words(struct program *p) {
    put_bytes(p, 0x66, 1);
    put_push(p, any_register(p));
    put_bytes(p, 0x66, 1);
    put_pop(p, free_register(p));
}

static void flags_through_stack(struct program *p) {
    if (p->unknown == 0 && once_in(p, 2)) {
        put_bytes(p, 0x9c, 1);
        put_pop(p, free_register(p));
        return;
    }
    uint32_t flags = FLAGS_FIXED | (random_next(p->random) & FLAGS_STATUS);
    if (once_in(p, 6))
        flags |= FLAG_DF;
    if (once_in(p, 24))
        flags |= once_in(p, 2) ? FLAG_TF : FLAG_AC;
    put_push_imm(p, (int32_t)flags);
    put_bytes(p, 0x9d, 1);
}

static void pushes_and_pops(struct program *p, bool main) {
    uint32_t begin = piece_begin(p);
    unsigned n = 1 + below(p, 4), pops = main && once_in(p, 4) ? below(p, 5) : n;
    if (once_in(p, 6)) {
        push_pop_words(p);
    } else if (once_in(p, 6)) {
        flags_through_stack(p);
    } else {
        for (unsigned i = 0; i < n; i++)
            push_something(p);
        piece_end(p, begin);
        rows(p, 2);
        begin = piece_begin(p);
        for (unsigned i = 0; i < pops; i++)
            pop_somewhere(p);
    }
    piece_end(p, begin);
}

/* The stack is somewhere else for a while. */
static void switch_stack(struct program *p) {
    unsigned other = any_pointer(p);
    uint32_t begin = piece_begin(p);
    put_opcode_reg(p, p->word, 0x87, other, RSP);
    push_something(p);
    piece_end(p, begin);
    rows(p, 2);
    begin = piece_begin(p);
    if (!once_in(p, 4))
        pop_somewhere(p);
    put_opcode_reg(p, p->word, 0x87, RSP, other);
    piece_end(p, begin);
}

static void enter_leave(struct program *p) {
    uint32_t begin = piece_begin(p);
    put_bytes(p, 0xc8, 1);
    put_bytes(p, below(p, 12) * 8, 2);
    put_bytes(p, once_in(p, 3) ? below(p, 4) : 0, 1);
    piece_end(p, begin);
    rows(p, 3);
    begin = piece_begin(p);
    put_bytes(p, 0xc9, 1);
    piece_end(p, begin);
}

static void stack_pointer(struct program *p) {
    uint32_t begin = piece_begin(p);
    int32_t by = (int32_t)(1 + below(p, 24)) * 8 - (once_in(p, 8) ? 3 : 0);
    unsigned reg = free_register(p);
    switch (below(p, 5)) {
    case 0: /* SUB, ADD */
        put_group1(p, p->word, 5, RSP, by);
        piece_end(p, begin);
        rows(p, 3);
        begin = piece_begin(p);
        put_group1(p, p->word, 0, RSP, by);
        break;
    case 1: /* LEA both ways */
        put_opcode_mem(p, p->word, 0x8d, RSP, RSP, -by);
        push_something(p);
        put_opcode_mem(p, p->word, 0x8d, RSP, RSP, by + (int32_t)p->word);
        break;
    case 2: /* AND, and back */
        put_opcode_reg(p, p->word, 0x89, RSP, reg);
        put_group1(p, p->word, 4, RSP, -(16 << below(p, 3)));
        normalise(p);
        push_something(p);
        put_opcode_reg(p, p->word, 0x8b, RSP, reg);
        break;
    case 3: switch_stack(p); return;
    default: enter_leave(p); return;
    }
    piece_end(p, begin);
}

/* ---- Jumps forward ---- */

/* A label that comes later in this unit. */
static uint16_t later(struct program *p) {
    if (p->waiting == NOWHERE && !once_in(p, 4)) {
        p->waiting = label_new(p);
        p->waiting_for = 1 + below(p, 4);
        return p->waiting;
    }
    return p->waiting != NOWHERE ? p->waiting : p->ends;
}

/* MOV [pointer + disp], reg; JMP or CALL by it. `n`: 4 jumps, 2 calls. */
static void by_memory(struct program *p, unsigned reg, unsigned n) {
    unsigned base = any_pointer(p);
    int32_t disp = any_disp(p);
    put_opcode_mem(p, p->word, 0x89, reg, base, disp);
    put_opcode_mem(p, 4, 0xff, n, base, disp);
}

static void forward(struct program *p) {
    uint32_t begin = piece_begin(p);
    unsigned reg = free_register(p);
    uint16_t target = later(p);
    switch (below(p, 8)) {
    case 0: put_jmp(p, target); break;
    case 1:
        put_load_label(p, reg, target, 0);
        put_opcode_reg(p, 4, 0xff, 4, reg);
        break;
    case 2:
        put_load_label(p, reg, target, 0);
        by_memory(p, reg, 4);
        break;
    case 3: /* RET to where no CALL came from */
        put_load_label(p, reg, target, 0);
        put_push(p, reg);
        put_bytes(p, 0xc3, 1);
        break;
    default: put_jcc(p, any_condition(p), target); break;
    }
    piece_end(p, begin);
}

/* IRET: to the next instruction, and serializing. */
static void iret(struct program *p) {
    unsigned a = free_register(p), b = free_register(p);
    uint16_t next = label_new(p);
    put_opcode_reg(p, p->word, 0x89, RSP, a);
    if (!p->mode32) {
        put_push_imm(p, SEL_DS);
        put_push(p, a);
    }
    put_push_imm(p, (int32_t)(FLAGS_FIXED | (random_next(p->random) & FLAGS_STATUS)));
    put_push_imm(p, p->mode32 ? SEL_CS32 : SEL_CS64);
    put_load_label(p, b, next, 0);
    put_push(p, b);
    put_bytes(p, p->mode32 ? 0xcf : 0xcf48, p->mode32 ? 1 : 2);
    label_here(p, next);
}

/* ---- Calls ---- */

static void call_unit(struct program *p) {
    uint16_t target = (uint16_t)(p->unit + 1 + below(p, p->units - p->unit - 1));
    uint32_t begin = piece_begin(p);
    unsigned reg = free_register(p);
    switch (below(p, 4)) {
    case 0:
        put_load_label(p, reg, target, 0);
        put_opcode_reg(p, 4, 0xff, 2, reg);
        break;
    case 1:
        put_load_label(p, reg, target, 0);
        by_memory(p, reg, 2);
        break;
    default: put_call(p, target); break;
    }
    piece_end(p, begin);
}

/* Calls that return elsewhere or never. */
static void odd_call(struct program *p) {
    uint32_t begin = piece_begin(p);
    uint16_t a = label_new(p), b = label_new(p);
    unsigned reg = free_register(p), skipped = 1 + below(p, 9);
    put_call(p, a);
    switch (below(p, 3)) {
    case 0: /* where am I? */
        label_here(p, a);
        put_pop(p, reg);
        label_here(p, b);
        break;
    case 1: /* the callee steps over what stands behind the call */
        for (unsigned i = 0; i < skipped; i++)
            put_bytes(p, 0xcc, 1);
        put_jmp(p, b);
        label_here(p, a);
        put_opcode_mem(p, p->word, 0x83, 0, RSP, 0);
        put_bytes(p, skipped, 1);
        put_bytes(p, 0xc3, 1);
        label_here(p, b);
        break;
    default: /* the callee drops its return address */
        put_bytes(p, 0xcc, 1);
        label_here(p, a);
        put_opcode_mem(p, p->word, 0x8d, RSP, RSP, (int32_t)p->word);
        put_load_label(p, reg, b, 0);
        put_opcode_mem(p, p->word, 0x87, reg, RSP, -(int32_t)p->word);
        put_opcode_mem(p, 4, 0xff, 4, RSP, -(int32_t)p->word);
        label_here(p, b);
        break;
    }
    piece_end(p, begin);
}

/* ---- Loops: in the main unit only, so that counters go down whatever is called ---- */

static void loop(struct program *p) {
    uint16_t start = label_new(p);
    uint32_t begin = piece_begin(p);
    put_mov_imm(p, p->counter, once_in(p, 6) ? 5 + below(p, 36) : 1 + below(p, 5));
    piece_end(p, begin);
    label_here(p, start);
    p->in_loop = true;
    for (unsigned n = 1 + below(p, 5); n > 0; n--)
        element(p, true);
    p->in_loop = false;
    begin = piece_begin(p);
    put_group1(p, p->word, 5, p->counter, 1);
    put_bytes(p, 0x0f, 1);
    put_bytes(p, 0x8f, 1); /* JG */
    fixup_add(p, FIXUP_REL32, 4, start, 0, 0);
    piece_end(p, begin);
}

/* ---- Loops over memory: one block, addresses that stay or step, across pages' ends ---- */

/* SSE moves ask for alignment in every other form. */
static void stream_access(struct program *p) {
    static const uint32_t vector[] = {0x0f10, 0x0f11, 0x0f28, 0x0f29, 0x0f57, 0x0f58};
    bool sse = once_in(p, 3);
    uint32_t opcode = vector[below(p, ARRAY_SIZE(vector))];
    int32_t disp = any_disp(p);
    if (sse)
        disp &= ~15;
    if (p->index >= 0 && once_in(p, 2)) {
        bool loads = once_in(p, 2);
        put_opcode_indexed(p, sse ? 4 : any_size(p),
                           sse     ? opcode
                           : loads ? 0x8b
                                   : 0x89,
                           sse ? below(p, 8) : free_register(p), any_pointer(p), (unsigned)p->index,
                           below(p, 4), disp);
    } else if (sse) {
        put_opcode_mem(p, 4, opcode, below(p, 8), any_pointer(p), disp);
    } else if (once_in(p, 6)) { /* bytes, BH among them, off RBX, which others may change */
        put_opcode_mem(p, 4, once_in(p, 2) ? 0x88 : 0x38, once_in(p, 2) ? 7 : below(p, 8), RBX,
                       disp);
    } else {
        put_access(p, once_in(p, 6) ? RSP : any_pointer(p), disp);
    }
}

static void stream_step(struct program *p) {
    static const int8_t steps[] = {1, 2, 4, 8, 8, 16, 16, 32, 64, 100, -1, -8, -16, -24};
    unsigned reg = p->index >= 0 && once_in(p, 2) ? (unsigned)p->index : any_pointer(p);
    int32_t step = steps[below(p, ARRAY_SIZE(steps))];
    if (once_in(p, 6))
        reg = RBX;
    switch (below(p, 6)) {
    case 0: put_opcode_reg(p, p->word, 0xff, 0, reg); break; /* INC */
    case 1: put_opcode_reg(p, p->word, 0xff, 1, reg); break;
    case 2: put_opcode_mem(p, once_in(p, 8) ? 4 : p->word, 0x8d, reg, reg, step); break; /* LEA */
    case 3: put_group1(p, p->word, 5, reg, step); break;
    default: put_group1(p, p->word, 0, reg, step); break;
    }
    if (p->unknown == 0 || once_in(p, 3))
        normalise(p);
}

static void stream_part(struct program *p) {
    uint32_t begin = piece_begin(p);
    if (once_in(p, 2))
        stream_access(p);
    else
        stream_step(p);
    if (p->unknown == 0)
        normalise(p);
    piece_end(p, begin);
    if (once_in(p, 6))
        element_row(p);
}

static void stream(struct program *p) {
    uint16_t start = label_new(p), out = label_new(p);
    uint32_t begin = piece_begin(p);
    put_mov_imm(p, p->counter, 1 + below(p, once_in(p, 3) ? 80 : 12));
    put_opcode_reg(p, p->word, 0x89, any_pointer(p), RBX);
    piece_end(p, begin);
    label_here(p, start);
    for (unsigned n = 1 + below(p, 7); n > 0; n--)
        stream_part(p);
    begin = piece_begin(p);
    if (once_in(p, 4)) {
        put_group1(p, p->word, 7, p->counter, (int32_t)below(p, 20));
        put_jcc(p, 4, out);
    }
    put_group1(p, p->word, 5, p->counter, 1);
    put_bytes(p, 0x0f, 1);
    put_bytes(p, 0x8f, 1); /* JG */
    fixup_add(p, FIXUP_REL32, 4, start, 0, 0);
    label_here(p, out);
    for (unsigned n = 0; n < p->pointers; n++)
        put_mov_imm(p, p->pointer[n].reg, p->pointer[n].value);
    if (p->index >= 0)
        put_mov_imm(p, (unsigned)p->index, p->index_value);
    piece_end(p, begin);
}

/* ---- Strings ---- */

/* Whether the two may be one page, mapped twice. */
static bool may_be_alias(uint64_t a, uint64_t b) {
    enum { SHIFT = 26, ALIAS = ALIAS_BASE >> SHIFT, CODE = MIXED_CODE >> SHIFT };
    a >>= SHIFT;
    b >>= SHIFT;
    return a != b && (a == ALIAS || a == CODE || b == ALIAS || b == CODE);
}

/*
 * Where a string begins that goes with the one at pointer `to`. None is copied to another address
 * of its own page: how far a run of MOVS sees by then what it has written is the processor's
 * choice (family 19h sees it, family 1Ah moves more than an element at once).
 */
static unsigned source_pointer(struct program *p, unsigned to, bool copied) {
    unsigned n = below(p, p->pointers);
    return copied && may_be_alias(p->pointer[n].value, p->pointer[to].value) ? to : n;
}

static void put_string(struct program *p) {
    static const uint8_t opcodes[] = {0xa4, 0xa4, 0xaa, 0xaa, 0xa6, 0xac, 0xae};
    unsigned opcode = opcodes[below(p, ARRAY_SIZE(opcodes))], size = any_size(p);
    unsigned count = once_in(p, 8) ? below(p, 600) / size : below(p, 24);
    unsigned to = below(p, p->pointers), from = source_pointer(p, to, opcode == 0xa4);
    put_opcode_mem(p, p->word, 0x8d, RDI, p->pointer[to].reg, any_disp(p));
    if (p->mode32 || once_in(p, 3)) /* overlapping */
        put_opcode_mem(p, p->word, 0x8d, RSI, RDI, (int32_t)below(p, 64) - 32);
    else
        put_opcode_mem(p, p->word, 0x8d, RSI, p->pointer[from].reg, any_disp(p));
    put_mov_imm(p, RCX, count);
    if (once_in(p, 3))
        put_bytes(p, once_in(p, 3) ? 0xfd : 0xfc, 1);
    if (!once_in(p, 4))
        put_bytes(p, once_in(p, 4) ? 0xf2 : 0xf3, 1);
    if (once_in(p, 2)) {
        put_bytes(p, opcode, 1);
    } else {
        if (size != 4)
            put_bytes(p, size == 2 ? 0x66 : 0x48, 1);
        put_bytes(p, opcode | 1, 1);
    }
}

static void string(struct program *p) {
    static const uint8_t used[] = {RSI, RDI};
    uint32_t begin = piece_begin(p);
    for (unsigned i = 0; i < 2; i++)
        if (p->keep >> used[i] & 1)
            put_push(p, used[i]);
    put_string(p);
    for (unsigned i = 2; i-- > 0;)
        if (p->keep >> used[i] & 1)
            put_pop(p, used[i]);
    piece_end(p, begin);
}

/* ---- Code that changes ---- */

/* By the stack: a push that ends at the label. */
static void store_by_push(struct program *p, uint16_t target) {
    unsigned reg = free_register(p);
    put_opcode_reg(p, p->word, 0x89, RSP, reg);
    put_load_label(p, RSP, target, (int32_t)p->word);
    put_push_imm(p, (int32_t)random_next(p->random));
    put_opcode_reg(p, p->word, 0x8b, RSP, reg);
}

/* Through another mapping; the processor wants a serializing instruction then. */
static void store_by_alias(struct program *p, uint16_t target) {
    unsigned reg = free_register(p);
    put_load_alias(p, reg, target, 0);
    put_opcode_mem(p, 4, once_in(p, 2) ? 0x89 : 0x01, any_register(p), reg, 0);
    iret(p);
}

/* Changes the 4 or 8 bytes at the label. */
static void store_to_code(struct program *p, uint16_t target) {
    unsigned reg = free_register(p);
    switch (below(p, 8)) {
    case 0: /* MOV imm */
        put_opcode_label(p, 4, 0xc7, 0, target, 0, 4);
        put_bytes(p, random_next(p->random), 4);
        break;
    case 1: /* ADD imm */
        put_opcode_label(p, 4, 0x83, 0, target, 0, 1);
        put_bytes(p, random_next(p->random), 1);
        break;
    case 2: /* INC byte, not the first */
        put_opcode_label(p, 1, 0xfe, 0, target, (int32_t)below(p, 4), 0);
        break;
    case 3: put_opcode_label(p, 4, 0x89, any_register(p), target, 0, 0); break;
    case 4: /* XADD, locked */
        put_bytes(p, 0xf0, 1);
        put_opcode_label(p, 4, 0x0fc1, reg, target, 0, 0);
        break;
    case 5: store_by_push(p, target); break;
    case 6: put_opcode_label(p, 4, 0x87, reg, target, 0, 0); break;
    default:
        put_load_label(p, reg, target, 0);
        put_opcode_mem(p, 4, 0x89, any_register(p), reg, 0);
        break;
    }
}

/* An instruction whose immediate is at the label. */
static void put_changing(struct program *p, uint16_t label) {
    unsigned reg = free_register(p);
    static const uint8_t operations[] = {0, 5, 7}; /* ADD, SUB, CMP */
    if (!p->mode32) { /* MOV r64, imm64 and, behind it, one with imm32 */
        put_bytes(p, reg >= 8 ? 0x49 : 0x48, 1);
        put_bytes(p, 0xb8 | (reg & 7), 1);
        label_here(p, label);
        put_bytes(p, random_next(p->random), 8);
        return;
    }
    put_opcode_reg(p, 4, 0x81, operations[below(p, 3)], reg);
    label_here(p, label);
    put_bytes(p, random_next(p->random), 4);
}

/* INC becomes DEC and back: one bit of ModRM. */
static void changing_opcode(struct program *p) {
    uint16_t target = label_new(p);
    uint32_t begin = piece_begin(p);
    put_opcode_label(p, 1, 0x80, 6, target, 0, 1); /* XOR byte [target], 8 */
    put_bytes(p, 8, 1);
    normalise(p);
    piece_end(p, begin);
    if (once_in(p, 2))
        forward(p);
    begin = piece_begin(p);
    put_bytes(p, 0xff, 1);
    label_here(p, target);
    unsigned reg;
    do
        reg = free_register(p);
    while (reg >= 8);
    put_bytes(p, 0xc0 | reg, 1);
    piece_end(p, begin);
}

static void changing_code(struct program *p) {
    bool writable = p->test->start - MIXED_BASE < MIXED_SIZE;
    if (writable && once_in(p, 4)) {
        changing_opcode(p);
        return;
    }
    uint16_t target = label_new(p);
    uint32_t begin = piece_begin(p);
    if (writable && !once_in(p, 4))
        store_to_code(p, target);
    else
        store_by_alias(p, target);
    piece_end(p, begin);
    rows(p, 2);
    if (once_in(p, 3))
        forward(p);
    begin = piece_begin(p);
    put_changing(p, target);
    piece_end(p, begin);
}

/* ---- Others ---- */

/* Dividends whose quotients fit most of the time; #DE otherwise. */
static void divide(struct program *p) {
    uint32_t begin = piece_begin(p);
    bool is_signed = once_in(p, 2);
    unsigned size = p->mode32 || once_in(p, 2) ? 4 : 8, reg = any_register(p);
    if (is_signed) {
        if (size == 8)
            put_bytes(p, 0x48, 1);
        put_bytes(p, 0x99, 1); /* CDQ, CQO */
    } else {
        put_mov_imm(p, RDX, once_in(p, 6) ? below(p, 4) : 0);
    }
    if (once_in(p, 3)) {
        put_opcode_mem(p, size, 0xf7, is_signed ? 7 : 6, any_pointer(p), any_disp(p));
    } else {
        if (!once_in(p, 4)) /* BTS reg, n: not zero */ {
            put_opcode_reg(p, 4, 0x0fba, 5, reg = free_register(p));
            put_bytes(p, below(p, 32), 1);
        }
        put_opcode_reg(p, size, 0xf7, is_signed ? 7 : 6, reg);
    }
    normalise(p);
    piece_end(p, begin);
}

/* BT and its kin with a bit offset beyond the operand. */
static void bit_string(struct program *p) {
    static const uint32_t opcodes[] = {0x0fa3, 0x0fab, 0x0fb3, 0x0fbb};
    uint32_t begin = piece_begin(p);
    unsigned reg = free_register(p);
    put_mov_imm(p, reg, (uint64_t)(int64_t)((int32_t)below(p, 4096) - 2048));
    put_opcode_mem(p, any_size(p), opcodes[below(p, 4)], reg, any_pointer(p), any_disp(p));
    normalise(p);
    piece_end(p, begin);
}

static void address(struct program *p) {
    uint32_t begin = piece_begin(p);
    put_opcode_mem(p, any_size(p), 0x8d, free_register(p), any_pointer(p), any_disp(p));
    piece_end(p, begin);
}

/* FLDCW: rounding and precision, and now and then exceptions that are not masked. */
static void control_word(struct program *p) {
    uint32_t begin = piece_begin(p);
    unsigned reg = any_pointer(p), masks = once_in(p, 8) ? below(p, 64) : 0x3f;
    int32_t disp = any_disp(p);
    put_opcode_mem(p, 2, 0xc7, 0, reg, disp); /* MOV word, imm16 */
    put_bytes(p, below(p, 16) << 8 | masks, 2);
    put_opcode_mem(p, 4, 0xd9, 5, reg, disp);
    piece_end(p, begin);
}

static void serialize(struct program *p) {
    uint32_t begin = piece_begin(p);
    iret(p);
    piece_end(p, begin);
}

/* ---- Choosing ---- */

static void place_waiting(struct program *p) {
    if (p->waiting == NOWHERE || p->waiting_for-- != 0)
        return;
    label_here(p, p->waiting);
    p->waiting = NOWHERE;
}

void element(struct program *p, bool main) {
    unsigned dice = below(p, 100);
    if (dice < 36)
        element_row(p);
    else if (dice < 47)
        cluster(p);
    else if (dice < 58)
        pushes_and_pops(p, main);
    else if (dice < 64)
        stack_pointer(p);
    else if (dice < 73)
        forward(p);
    else if (dice < 80 && p->unit + 1 < p->units)
        call_unit(p);
    else if (dice < 83)
        odd_call(p);
    else if (dice < 87 && main && !p->in_loop)
        (once_in(p, 3) ? loop : once_in(p, 2) ? stream : element_nest)(p);
    else if (dice < 91)
        string(p);
    else if (dice < 96)
        changing_code(p);
    else if (dice < 97)
        divide(p);
    else if (dice < 98)
        bit_string(p);
    else if (dice < 99 && once_in(p, 2))
        control_word(p);
    else if (dice < 99)
        address(p);
    else
        serialize(p);
    place_waiting(p);
}
