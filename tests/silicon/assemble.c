/* What random programs are put together with: a few instructions by hand, labels, fixups. */
#include <string.h>

#include "base/bytes.h"
#include "program.h"

void put_bytes(struct program *p, uint64_t value, unsigned size) {
    struct test_case *test = p->test;
    if (test->code_length + size > CODE_MAX) {
        p->failed = true;
        return;
    }
    store_le(test->code + test->code_length, value, size);
    test->code_length += size;
}

/* ---- Labels ---- */

uint16_t label_new(struct program *p) {
    if (p->labels == LABELS_MAX) {
        p->failed = true;
        return 0;
    }
    p->label[p->labels] = NOWHERE;
    return (uint16_t)p->labels++;
}

void label_here(struct program *p, uint16_t label) {
    p->label[label] = (uint16_t)p->test->code_length;
}

void fixup_add(struct program *p, enum fixup_kind kind, unsigned size, uint16_t label, int32_t add,
               unsigned tail) {
    if (p->fixups == FIXUPS_MAX) {
        p->failed = true;
        return;
    }
    p->fixup[p->fixups++] = (struct fixup){.at = (uint16_t)p->test->code_length,
                                           .size = (uint8_t)size,
                                           .kind = (uint8_t)kind,
                                           .tail = (uint8_t)tail,
                                           .label = label,
                                           .add = add};
    put_bytes(p, 0, size);
}

static bool resolve(struct program *p, const struct fixup *f) {
    struct test_case *test = p->test;
    if (p->label[f->label] == NOWHERE)
        return false;
    int64_t target = p->label[f->label] + f->add;
    int64_t relative = target - (f->at + f->size + f->tail);
    uint64_t value = (uint64_t)relative;
    if (f->kind == FIXUP_ABSOLUTE)
        value = test->start + (uint64_t)target;
    if (f->kind == FIXUP_ALIAS)
        value = ALIAS_BASE + background_code(test->start) + (uint64_t)target;
    if (f->kind == FIXUP_REL8 && (int8_t)relative != relative)
        return false;
    store_le(test->code + f->at, value, f->size);
    return true;
}

bool fixups_resolve(struct program *p) {
    for (unsigned i = 0; i < p->fixups; i++) {
        if (!resolve(p, &p->fixup[i]))
            return false;
    }
    return true;
}

/* ---- Instructions ---- */

static void put_prefixes_indexed(struct program *p, unsigned size, unsigned reg, unsigned base,
                                 unsigned index) {
    unsigned rex =
        (size == 8 ? 8 : 0) | (reg >= 8 ? 4 : 0) | (index >= 8 ? 2 : 0) | (base >= 8 ? 1 : 0);
    if (size == 2)
        put_bytes(p, 0x66, 1);
    if (!p->mode32 && (rex != 0 || random_once_in(p->random, 16)))
        put_bytes(p, 0x40 | rex, 1);
}

static void put_prefixes(struct program *p, unsigned size, unsigned reg, unsigned base) {
    put_prefixes_indexed(p, size, reg, base, 0);
}

static void put_opcode(struct program *p, uint32_t opcode) {
    if (opcode > 0xffff)
        put_bytes(p, opcode >> 16, 1);
    if (opcode > 0xff)
        put_bytes(p, opcode >> 8 & 0xff, 1);
    put_bytes(p, opcode & 0xff, 1);
}

void put_opcode_reg(struct program *p, unsigned size, uint32_t opcode, unsigned reg, unsigned rm) {
    put_prefixes(p, size, reg, rm);
    put_opcode(p, opcode);
    put_bytes(p, 0xc0 | (reg & 7) << 3 | (rm & 7), 1);
}

void put_opcode_mem(struct program *p, unsigned size, uint32_t opcode, unsigned reg, unsigned base,
                    int32_t disp) {
    bool small = (int8_t)disp == disp;
    put_prefixes(p, size, reg, base);
    put_opcode(p, opcode);
    put_bytes(p, (small ? 0x40 : 0x80) | (reg & 7) << 3 | (base & 7), 1);
    if ((base & 7) == RSP)
        put_bytes(p, 0x24, 1);
    put_bytes(p, (uint32_t)disp, small ? 1 : 4);
}

void put_opcode_indexed(struct program *p, unsigned size, uint32_t opcode, unsigned reg,
                        unsigned base, unsigned index, unsigned scale, int32_t disp) {
    put_prefixes_indexed(p, size, reg, base, index);
    put_opcode(p, opcode);
    put_bytes(p, 0x84 | (reg & 7) << 3, 1);
    put_bytes(p, scale << 6 | (index & 7) << 3 | (base & 7), 1);
    put_bytes(p, (uint32_t)disp, 4);
}

void put_opcode_label(struct program *p, unsigned size, uint32_t opcode, unsigned reg,
                      uint16_t label, int32_t add, unsigned tail) {
    put_prefixes(p, size, reg, 0);
    put_opcode(p, opcode);
    put_bytes(p, (reg & 7) << 3 | 5, 1);
    fixup_add(p, p->mode32 ? FIXUP_ABSOLUTE : FIXUP_REL32, 4, label, add, tail);
}

static void put_short(struct program *p, unsigned opcode, unsigned reg) {
    if (reg >= 8)
        put_bytes(p, 0x41, 1);
    put_bytes(p, opcode | (reg & 7), 1);
}

void put_push(struct program *p, unsigned reg) {
    put_short(p, 0x50, reg);
}

void put_pop(struct program *p, unsigned reg) {
    put_short(p, 0x58, reg);
}

void put_push_imm(struct program *p, int32_t value) {
    bool small = (int8_t)value == value;
    put_bytes(p, small ? 0x6a : 0x68, 1);
    put_bytes(p, (uint32_t)value, small ? 1 : 4);
}

void put_mov_imm(struct program *p, unsigned reg, uint64_t value) {
    if (p->mode32 || value == (uint32_t)value) {
        put_short(p, 0xb8, reg);
        put_bytes(p, value, 4);
        return;
    }
    put_bytes(p, reg >= 8 ? 0x49 : 0x48, 1);
    put_bytes(p, 0xb8 | (reg & 7), 1);
    put_bytes(p, value, 8);
}

void put_group1(struct program *p, unsigned size, unsigned n, unsigned reg, int32_t value) {
    bool small = (int8_t)value == value && !random_once_in(p->random, 4);
    put_opcode_reg(p, size, small ? 0x83 : 0x81, n, reg);
    put_bytes(p, (uint32_t)value, small ? 1 : size == 2 ? 2 : 4);
}

void put_load_label(struct program *p, unsigned reg, uint16_t label, int32_t add) {
    if (!p->mode32 && random_once_in(p->random, 2)) {
        put_opcode_label(p, 8, 0x8d, reg, label, add, 0);
        return;
    }
    put_short(p, 0xb8, reg);
    fixup_add(p, FIXUP_ABSOLUTE, 4, label, add, 0);
}

void put_load_alias(struct program *p, unsigned reg, uint16_t label, int32_t add) {
    put_short(p, 0xb8, reg);
    fixup_add(p, FIXUP_ALIAS, 4, label, add, 0);
}

void put_jmp(struct program *p, uint16_t label) {
    put_bytes(p, 0xe9, 1);
    fixup_add(p, FIXUP_REL32, 4, label, 0, 0);
}

/* Short when chance says so: a program that does not fit is thrown away. */
void put_jcc(struct program *p, unsigned condition, uint16_t label) {
    bool small = random_once_in(p->random, 4);
    if (small) {
        put_bytes(p, 0x70 | condition, 1);
    } else {
        put_bytes(p, 0x0f, 1);
        put_bytes(p, 0x80 | condition, 1);
    }
    fixup_add(p, small ? FIXUP_REL8 : FIXUP_REL32, small ? 1 : 4, label, 0, 0);
}

void put_call(struct program *p, uint16_t label) {
    put_bytes(p, 0xe8, 1);
    fixup_add(p, FIXUP_REL32, 4, label, 0, 0);
}
