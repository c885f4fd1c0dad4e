/*
 * Random programs in the making: units (a main one and subroutines), each a
 * row of *elements* that follow each other or jump forward among themselves.
 *
 * Registers have roles, so that programs run for a while before chance ends
 * them: *pointers* hold addresses near the ends of pages, the *index* a small
 * number, the *counter* what loops and recursion count. Ordinary elements do
 * not write those. Everything else is clobbered at will.
 */
#ifndef LODGE_TESTS_SILICON_PROGRAM_H
#define LODGE_TESTS_SILICON_PROGRAM_H

#include "silicon.h"

enum { POINTERS = 3, UNITS_MAX = 4, ELEMENTS_MAX = 48, LABELS_MAX = 256, FIXUPS_MAX = 160 };
enum { NOWHERE = 0xffff };

/* What a field that names a label holds. */
enum fixup_kind {
    FIXUP_REL8,
    FIXUP_REL32,
    FIXUP_ABSOLUTE, /* the label's address */
    FIXUP_ALIAS,    /* its address where it can be written */
};

struct fixup {
    uint16_t at;
    uint8_t size;
    uint8_t kind;
    uint8_t tail; /* bytes of the instruction behind the field */
    uint16_t label;
    int32_t add;
};

struct program {
    struct generator *g;
    struct random *random;
    struct test_case *test;
    bool mode32, failed;
    unsigned word; /* 8 or 4 */
    struct {
        unsigned reg;
        uint64_t value;
    } pointer[POINTERS];
    unsigned pointers;
    unsigned counter;
    int index; /* register, or -1 */
    uint64_t index_value;
    uint32_t keep;    /* registers with roles */
    unsigned unknown; /* status flags that may hold anything */
    /* Labels: 0 to UNITS_MAX - 1 are the units; the others are made as they are needed. */
    uint16_t label[LABELS_MAX];
    unsigned labels;
    struct fixup fixup[FIXUPS_MAX];
    unsigned fixups;
    unsigned unit, units;
    uint16_t ends;    /* label of the present unit's end */
    uint16_t waiting; /* a label that an element behind this one is to bear, or NOWHERE */
    unsigned waiting_for;
    bool in_loop;
};

/* ---- assemble.c ---- */

void put_bytes(struct program *p, uint64_t value, unsigned size);
/* [66] [REX] opcode: up to three bytes, the first one highest. */
void put_opcode_reg(struct program *p, unsigned size, uint32_t opcode, unsigned reg, unsigned rm);
void put_opcode_mem(struct program *p, unsigned size, uint32_t opcode, unsigned reg, unsigned base,
                    int32_t disp);
/* The same off two registers. */
void put_opcode_indexed(struct program *p, unsigned size, uint32_t opcode, unsigned reg,
                        unsigned base, unsigned index, unsigned scale, int32_t disp);
/* The memory operand is a label plus a number; `tail` bytes follow in the instruction. */
void put_opcode_label(struct program *p, unsigned size, uint32_t opcode, unsigned reg,
                      uint16_t label, int32_t add, unsigned tail);
void put_push(struct program *p, unsigned reg);
void put_pop(struct program *p, unsigned reg);
void put_push_imm(struct program *p, int32_t value);
/* MOV reg, value in the machine's word; 32 bits when they do. */
void put_mov_imm(struct program *p, unsigned reg, uint64_t value);
/* ADD, OR, ADC, SBB, AND, SUB, XOR, CMP by n. */
void put_group1(struct program *p, unsigned size, unsigned n, unsigned reg, int32_t value);
void put_load_label(struct program *p, unsigned reg, uint16_t label, int32_t add);
/* The label's address where it can be written, if code is where it cannot. */
void put_load_alias(struct program *p, unsigned reg, uint16_t label, int32_t add);
void put_jmp(struct program *p, uint16_t label);
void put_jcc(struct program *p, unsigned condition, uint16_t label);
void put_call(struct program *p, uint16_t label);

uint16_t label_new(struct program *p);
void label_here(struct program *p, uint16_t label);
void fixup_add(struct program *p, enum fixup_kind kind, unsigned size, uint16_t label, int32_t add,
               unsigned tail);
/* Fills in what names labels. False: one is out of reach. */
bool fixups_resolve(struct program *p);

/* ---- elements.c ---- */

/* A random element of the present unit; the main one may do more. */
void element(struct program *p, bool main);
/* A condition whose flags are known. */
unsigned any_condition(struct program *p);
/* One instruction from the tables. False: none came about. */
bool element_row(struct program *p);
/* A register without a role. */
unsigned free_register(struct program *p);
/* A pointer's register; a displacement around the end of the page that it is near. */
unsigned any_pointer(struct program *p);
int32_t any_disp(struct program *p);
/* Of an integer operand. */
unsigned any_size(struct program *p);
/* An access off a register, by one of many instructions; status flags may be undefined then. */
void put_access(struct program *p, unsigned base, int32_t disp);
/* All status flags become known again. */
void normalise(struct program *p);
/* A piece is what shrinking may leave out: from here to the next piece_end. */
uint32_t piece_begin(const struct program *p);
void piece_end(struct program *p, uint32_t begin);

/* ---- nests.c ---- */

/* Loops in a loop, in the main unit. */
void element_nest(struct program *p);

#endif
