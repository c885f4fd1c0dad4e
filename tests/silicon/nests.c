/*
 * Short loops in a loop over structs, as compilers make them of arrays of a few
 * elements: registers that are copies of others or constants, known numbers of
 * turns, accesses that are near each other whatever register names them, and
 * pages that end in some turn.
 */
#include "base/bytes.h"
#include "program.h"

struct nest {
    unsigned a, b, k; /* where the struct is, a copy of that, what counts the inner loop's turns */
    uint16_t out;     /* label behind it all */
};

static unsigned below(struct program *p, unsigned n) {
    return random_below(p->random, n);
}

static bool once_in(struct program *p, unsigned n) {
    return random_once_in(p->random, n);
}

static unsigned take(struct program *p) {
    unsigned reg = free_register(p);
    p->keep |= 1u << reg;
    return reg;
}

static void put_indexed(struct program *p, unsigned base, unsigned index) {
    static const uint32_t vector[] = {0x0f10, 0x0f11, 0x0f58, 0x0f5c};
    static const uint8_t with_carry[] = {0x11, 0x13, 0x19, 0x1b};
    unsigned scale = once_in(p, 3) ? below(p, 4) : 0;
    int32_t disp = once_in(p, 3) ? any_disp(p) : (int32_t)below(p, 6) * 8;
    if (once_in(p, 2))
        put_opcode_indexed(p, 4, vector[below(p, ARRAY_SIZE(vector))], below(p, 8), base, index,
                           scale, disp);
    else if (once_in(p, 4)) /* ADC, SBB: they read flags as well */
        put_opcode_indexed(p, p->word, with_carry[below(p, 4)], free_register(p), base, index,
                           scale, disp);
    else
        put_opcode_indexed(p, any_size(p), once_in(p, 2) ? 0x8b : 0x89, free_register(p), base,
                           index, scale, disp);
}

static void access(struct program *p, const struct nest *nest) {
    uint32_t begin = piece_begin(p);
    unsigned bases[] = {nest->a, nest->b, nest->a, nest->b, any_pointer(p), RSP};
    unsigned base = bases[below(p, ARRAY_SIZE(bases))];
    if (once_in(p, 2))
        put_indexed(p, base, nest->k);
    else if (once_in(p, 8)) /* a constant address, or none at all */
        put_opcode_mem(p, 4, 0x8b, free_register(p), nest->k, (int32_t)DATA_BASE + PAGE - 16);
    else
        put_access(p, base, any_disp(p));
    if (p->unknown == 0)
        normalise(p); /* some of them leave AF undefined */
    piece_end(p, begin);
}

/* A small number, in 32 or 64 bits, that is added to where the struct is: below zero it is only in
 * 64. The copy comes back. */
static void narrow(struct program *p, const struct nest *nest) {
    uint32_t begin = piece_begin(p);
    unsigned size = once_in(p, 2) ? 4 : p->word, n = 8 * below(p, 5);
    int32_t by = (int32_t)(8 * below(p, once_in(p, 6) ? 9 : 1 + n / 8));
    put_mov_imm(p, nest->b, n);
    if (once_in(p, 3))
        put_opcode_mem(p, size, 0x8d, nest->b, nest->b, -by);
    else
        put_group1(p, size, 5, nest->b, by);
    put_opcode_mem(p, 4, 0x8b, free_register(p), nest->a, 8 * (int32_t)below(p, 5));
    put_indexed(p, nest->a, nest->b);
    put_opcode_reg(p, p->word, 0x89, nest->a, nest->b);
    if (p->index >= 0 && once_in(p, 3)) { /* the same of something unknown */
        unsigned index = (unsigned)p->index;
        put_opcode_indexed(p, 4, 0x8b, free_register(p), nest->a, index, 0, 8);
        put_opcode_reg(p, p->word, 0x89, index, nest->b);
        put_group1(p, once_in(p, 8) ? 4 : p->word, 5, nest->b, 24);
        put_opcode_indexed(p, 4, 0x8b, free_register(p), nest->a, nest->b, 0, 24);
        put_opcode_reg(p, p->word, 0x89, nest->a, nest->b);
    }
    piece_end(p, begin);
}

/* The copy is another, or elsewhere. */
static void move(struct program *p, const struct nest *nest) {
    uint32_t begin = piece_begin(p);
    int32_t by = (int32_t)below(p, 9) * 8 - 32;
    switch (below(p, 8)) {
    case 0: put_opcode_reg(p, p->word, 0x89, nest->a, nest->b); break;
    case 1: put_opcode_mem(p, p->word, 0x8d, nest->b, nest->a, by); break;
    case 2: put_opcode_indexed(p, p->word, 0x8d, nest->b, nest->a, nest->k, 0, by); break;
    case 3: put_opcode_reg(p, p->word, 0x8b, nest->b, any_pointer(p)); break;
    case 4: put_opcode_reg(p, p->word, 0x01, nest->k, nest->b); break;
    case 5: put_opcode_reg(p, once_in(p, 8) ? 4 : p->word, 0xff, below(p, 2), nest->b); break;
    default: put_group1(p, p->word, once_in(p, 2) ? 0 : 5, nest->b, by); break;
    }
    piece_end(p, begin);
}

/* Registers alone: some are not in the host's registers. */
static void between(struct program *p, const struct nest *nest) {
    static const uint8_t opcodes[] = {0x01, 0x29, 0x39, 0x3b, 0x89, 0x8b, 0x11, 0x19};
    uint32_t begin = piece_begin(p);
    unsigned reg = once_in(p, 3) ? nest->k : free_register(p), rm = free_register(p);
    uint8_t opcode = opcodes[below(p, ARRAY_SIZE(opcodes))];
    bool to_reg = opcode == 0x8b;
    put_opcode_reg(p, once_in(p, 2) ? 4 : p->word, opcode, to_reg ? rm : reg, to_reg ? reg : rm);
    piece_end(p, begin);
}

static void body(struct program *p, const struct nest *nest, unsigned most) {
    for (unsigned n = 1 + below(p, most); n > 0; n--) {
        if (once_in(p, 4))
            move(p, nest);
        else if (once_in(p, 6))
            narrow(p, nest);
        else if (once_in(p, 8))
            element_row(p);
        else if (once_in(p, 4))
            between(p, nest);
        else
            access(p, nest);
        if (once_in(p, 16))
            put_jcc(p, any_condition(p), nest->out);
    }
}

static void put_back(struct program *p, unsigned condition, uint16_t start) {
    put_bytes(p, 0x0f, 1);
    put_bytes(p, 0x80 | condition, 1);
    fixup_add(p, FIXUP_REL32, 4, start, 0, 0);
}

/* What counts the turns and how it ends is no piece: without it a program might not end. */
static void count_up(struct program *p, const struct nest *nest, unsigned turns) {
    static const uint8_t steps[] = {1, 2, 4, 8, 8, 8, 16}, conditions[] = {5, 5, 2, 12};
    unsigned step = steps[below(p, ARRAY_SIZE(steps))], first = below(p, 3) * step;
    unsigned size = once_in(p, 2) ? 4 : p->word;
    uint16_t start = label_new(p);
    uint32_t keep = p->keep;
    unsigned end = RSP; /* a register that holds what the other is compared with, if there is one */
    if (p->word == 8 && once_in(p, 3)) {
        end = take(p);
        put_mov_imm(p, end, first + step * turns);
    }
    if (first == 0 && once_in(p, 2)) {
        put_opcode_reg(p, 4, 0x31, nest->k, nest->k);
        normalise(p);
    } else {
        put_mov_imm(p, nest->k, first);
    }
    label_here(p, start);
    body(p, nest, 4);
    if (once_in(p, 4))
        put_opcode_mem(p, size, 0x8d, nest->k, nest->k, (int32_t)step);
    else
        put_group1(p, size, 0, nest->k, (int32_t)step);
    if (end == RSP)
        put_group1(p, size, 7, nest->k, (int32_t)(first + step * turns));
    else if (once_in(p, 2))
        put_opcode_reg(p, size, 0x39, end, nest->k);
    else
        put_opcode_reg(p, size, 0x3b, nest->k, end);
    put_back(p, conditions[below(p, ARRAY_SIZE(conditions))], start);
    p->keep = keep;
}

static void count_down(struct program *p, const struct nest *nest, unsigned turns) {
    uint16_t start = label_new(p);
    put_mov_imm(p, nest->k, turns);
    label_here(p, start);
    body(p, nest, 4);
    put_group1(p, p->word, 5, nest->k, 1);
    put_back(p, once_in(p, 2) ? 5 : 15, start);
}

/* The copy runs up to a bound that is known by its distance. */
static void run_up(struct program *p, const struct nest *nest, unsigned turns) {
    static const uint8_t steps[] = {4, 8, 8, 16, 24};
    unsigned step = steps[below(p, ARRAY_SIZE(steps))];
    uint16_t start = label_new(p);
    put_opcode_reg(p, p->word, 0x89, nest->a, nest->b);
    put_opcode_mem(p, p->word, 0x8d, nest->k, nest->b, (int32_t)(step * turns));
    label_here(p, start);
    for (unsigned n = 1 + below(p, 4); n > 0; n--) {
        uint32_t begin = piece_begin(p);
        put_access(p, once_in(p, 2) ? nest->a : nest->b, any_disp(p));
        if (p->unknown == 0)
            normalise(p);
        piece_end(p, begin);
    }
    put_group1(p, p->word, 0, nest->b, (int32_t)step);
    put_opcode_reg(p, p->word, 0x39, nest->k, nest->b);
    put_back(p, 5, start);
}

static void inner_loop(struct program *p, const struct nest *nest) {
    unsigned turns = once_in(p, 10) ? 12 + below(p, 40) : 1 + below(p, 4);
    switch (below(p, 4)) {
    case 0: count_down(p, nest, turns); break;
    case 1: run_up(p, nest, turns); break;
    default: count_up(p, nest, turns); break;
    }
    if (once_in(p, 3)) /* CMOV: who reads the flags behind it */
        put_opcode_reg(p, 4, 0x0f40 | any_condition(p), free_register(p), any_pointer(p));
}

void element_nest(struct program *p) {
    uint32_t keep = p->keep, begin = piece_begin(p);
    struct nest nest = {.a = take(p), .b = take(p), .k = take(p), .out = label_new(p)};
    uint16_t start = label_new(p);
    bool in_loop = p->in_loop;
    p->in_loop = true;
    put_opcode_reg(p, p->word, 0x89, any_pointer(p), nest.a);
    put_opcode_reg(p, p->word, 0x89, nest.a, nest.b);
    put_mov_imm(p, nest.k, 0);
    piece_end(p, begin);
    put_mov_imm(p, p->counter, once_in(p, 6) ? 5 + below(p, 20) : 1 + below(p, 5));
    label_here(p, start);
    for (unsigned n = 1 + below(p, 3); n > 0; n--) {
        if (once_in(p, 3))
            body(p, &nest, 3);
        else
            inner_loop(p, &nest);
    }
    begin = piece_begin(p);
    put_group1(p, p->word, once_in(p, 8) ? 5 : 0, nest.a, (int32_t)(1 + below(p, 8)) * 8);
    piece_end(p, begin);
    put_group1(p, p->word, 5, p->counter, 1);
    put_back(p, 15, start);
    label_here(p, nest.out);
    p->in_loop = in_loop;
    p->keep = keep;
}
