/*
 * SSE4.2 string comparison: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM.
 * Source: APM vol. 4, 1.6 "String compare instructions".
 */
#include "cpu/soft/vec.h"

/* imm8 */
enum {
    STRING_WORDS = 1 << 0,
    STRING_SIGNED = 1 << 1,
    STRING_AGGREGATION = 3 << 2,
    STRING_NEGATE = 1 << 4,
    STRING_MASKED = 1 << 5, /* negate only within the second string */
    STRING_LAST = 1 << 6,   /* index of the last match; mask of whole elements */
};
enum { EQUAL_ANY = 0 << 2, RANGES = 1 << 2, EQUAL_EACH = 2 << 2, EQUAL_ORDERED = 3 << 2 };

struct string {
    int element[16];
    unsigned length;
};

static void string_elements(struct string *s, vec v, unsigned imm, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        if (imm & STRING_WORDS)
            s->element[i] = imm & STRING_SIGNED ? ((s16x8)v)[i] : ((u16x8)v)[i];
        else
            s->element[i] = imm & STRING_SIGNED ? ((s8x16)v)[i] : ((u8x16)v)[i];
    }
}

static unsigned length_implicit(const struct string *s, unsigned count) {
    unsigned length = 0;
    while (length < count && s->element[length] != 0)
        length++;
    return length;
}

/* The magnitude of a register, at most count. */
static unsigned length_explicit(uint64_t reg, bool wide, unsigned count) {
    int64_t value = wide ? (int64_t)reg : (int32_t)reg;
    uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    return magnitude < count ? (unsigned)magnitude : count;
}

static bool equal_any(const struct string *a, int value) {
    for (unsigned i = 0; i < a->length; i++) {
        if (a->element[i] == value)
            return true;
    }
    return false;
}

static bool in_ranges(const struct string *a, int value) {
    for (unsigned i = 0; i + 1 < a->length; i += 2) {
        if (a->element[i] <= value && value <= a->element[i + 1])
            return true;
    }
    return false;
}

/* Does `a` occur in b at j (as far as the register reaches)? */
static bool occurs(const struct string *a, const struct string *b, unsigned j, unsigned count) {
    for (unsigned i = 0; i < a->length && i + j < count; i++) {
        if (i + j >= b->length || a->element[i] != b->element[i + j])
            return false;
    }
    return true;
}

static bool match(const struct string *a, const struct string *b, unsigned j, unsigned imm,
                  unsigned count) {
    switch (imm & STRING_AGGREGATION) {
    case EQUAL_ANY: return j < b->length && equal_any(a, b->element[j]);
    case RANGES: return j < b->length && in_ranges(a, b->element[j]);
    case EQUAL_EACH:
        if (j >= a->length || j >= b->length)
            return j >= a->length && j >= b->length;
        return a->element[j] == b->element[j];
    default: return occurs(a, b, j, count);
    }
}

/* Returns the result bits, one an element, and sets the flags. */
static unsigned compare(struct soft_cpu *cpu, const struct string *a, const struct string *b,
                        unsigned imm, unsigned count) {
    unsigned bits = 0, all = (1u << count) - 1;
    for (unsigned j = 0; j < count; j++)
        bits |= (unsigned)match(a, b, j, imm, count) << j;
    if (imm & STRING_NEGATE)
        bits ^= imm & STRING_MASKED ? (1u << b->length) - 1 : all;
    flags_set_status(cpu, (bits != 0 ? FLAG_CF : 0) | (b->length < count ? FLAG_ZF : 0) |
                              (a->length < count ? FLAG_SF : 0) | (bits & 1 ? FLAG_OF : 0));
    return bits;
}

static unsigned string_compare(struct soft_cpu *cpu, const struct insn *insn, vec second,
                               bool explicit) {
    unsigned imm = (unsigned)insn->imm, count = imm & STRING_WORDS ? 8 : 16;
    bool wide = (insn->flags & I_REX_W) && cpu->mode == INSN_MODE_64;
    struct string a, b;
    string_elements(&a, xmm(cpu, insn->reg), imm, count);
    string_elements(&b, second, imm, count);
    a.length = explicit ? length_explicit(cpu->gpr[RAX], wide, count) : length_implicit(&a, count);
    b.length = explicit ? length_explicit(cpu->gpr[RDX], wide, count) : length_implicit(&b, count);
    return compare(cpu, &a, &b, imm, count);
}

static void write_index(struct soft_cpu *cpu, unsigned bits, unsigned imm) {
    unsigned count = imm & STRING_WORDS ? 8 : 16;
    if (bits == 0)
        cpu->gpr[RCX] = count;
    else
        cpu->gpr[RCX] =
            (unsigned)(imm & STRING_LAST ? 31 - __builtin_clz(bits) : __builtin_ctz(bits));
}

static vec mask_of(unsigned bits, unsigned imm) {
    u8x16 bytes = {0};
    if (!(imm & STRING_LAST))
        return (vec){bits, 0};
    EACH(16, bytes[i] = bits >> (imm & STRING_WORDS ? i / 2 : i) & 1 ? 0xff : 0)
    return (vec)bytes;
}

#define STRING_HANDLERS(prefix, BEGIN, set, name, explicit)                                        \
    HANDLER(prefix##_##name##i_r) {                                                                \
        BEGIN;                                                                                     \
        unsigned bits = string_compare(cpu, insn, xmm(cpu, insn->rm), explicit);                   \
        write_index(cpu, bits, (unsigned)insn->imm);                                               \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_##name##i_m) {                                                                \
        BEGIN;                                                                                     \
        unsigned bits = string_compare(cpu, insn, load_vec(cpu, insn, 16), explicit);              \
        write_index(cpu, bits, (unsigned)insn->imm);                                               \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_##name##m_r) {                                                                \
        BEGIN;                                                                                     \
        unsigned bits = string_compare(cpu, insn, xmm(cpu, insn->rm), explicit);                   \
        set(cpu, 0, mask_of(bits, (unsigned)insn->imm));                                           \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_##name##m_m) {                                                                \
        BEGIN;                                                                                     \
        unsigned bits = string_compare(cpu, insn, load_vec(cpu, insn, 16), explicit);              \
        set(cpu, 0, mask_of(bits, (unsigned)insn->imm));                                           \
        INSN_NEXT;                                                                                 \
    }
STRING_HANDLERS(sse, SSE_BEGIN, set_xmm, pcmpestr, true)
STRING_HANDLERS(sse, SSE_BEGIN, set_xmm, pcmpistr, false)
STRING_HANDLERS(v128, AVX_BEGIN, set_xmm_zero, pcmpestr, true)
STRING_HANDLERS(v128, AVX_BEGIN, set_xmm_zero, pcmpistr, false)
