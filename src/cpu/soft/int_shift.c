/*
 * ROL, ROR, RCL, RCR, SHL, SHR, SAR, SHLD, SHRD. APM volume 3.
 *
 * A masked count of zero changes no flag. OF is architected for counts of one only; for others the
 * handlers give what processors give: the formula for one, applied to the last step.
 */
#include "cpu/soft/int.h"
#include "cpu/soft/operand.h"

static inline unsigned masked_count(uint64_t count, unsigned bits) {
    return count & (bits == 64 ? 63 : 31);
}

/* ---- The operations; count is masked and not zero ---- */

#define SHIFT_OPERATIONS(bits)                                                                     \
    static inline uint##bits##_t rol##bits(struct soft_cpu *cpu, uint##bits##_t a, unsigned n) {   \
        unsigned by = n & (bits - 1);                                                              \
        uint##bits##_t r = (uint##bits##_t)(a << by | a >> (-by & (bits - 1)));                    \
        flags_set_cf_of(cpu, r & 1, (r >> (bits - 1) ^ r) & 1);                                    \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t ror##bits(struct soft_cpu *cpu, uint##bits##_t a, unsigned n) {   \
        unsigned by = n & (bits - 1);                                                              \
        uint##bits##_t r = (uint##bits##_t)(a >> by | a << (-by & (bits - 1)));                    \
        flags_set_cf_of(cpu, r >> (bits - 1), (r >> (bits - 1) ^ r >> (bits - 2)) & 1);            \
        return r;                                                                                  \
    }                                                                                              \
    /* Through carry: a rotation of bits + 1 places; a step at a time where the count is small. */ \
    static inline uint##bits##_t rcl##bits(struct soft_cpu *cpu, uint##bits##_t a, unsigned n) {   \
        bool carry = flag_cf(cpu);                                                                 \
        for (n %= bits + 1; n != 0; n--) {                                                         \
            bool out = a >> (bits - 1);                                                            \
            a = (uint##bits##_t)(a << 1 | carry);                                                  \
            carry = out;                                                                           \
        }                                                                                          \
        flags_set_cf_of(cpu, carry, (a >> (bits - 1) & 1) ^ carry);                                \
        return a;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t rcr##bits(struct soft_cpu *cpu, uint##bits##_t a, unsigned n) {   \
        bool carry = flag_cf(cpu);                                                                 \
        for (n %= bits + 1; n != 0; n--) {                                                         \
            bool out = a & 1;                                                                      \
            a = (uint##bits##_t)(a >> 1 | (uint##bits##_t)carry << (bits - 1));                    \
            carry = out;                                                                           \
        }                                                                                          \
        flags_set_cf_of(cpu, carry, (a >> (bits - 1) ^ a >> (bits - 2)) & 1);                      \
        return a;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t shl##bits(struct soft_cpu *cpu, uint##bits##_t a, unsigned n) {   \
        uint##bits##_t last = (uint##bits##_t)((uint64_t)a << (n - 1));                            \
        uint##bits##_t r = (uint##bits##_t)(last << 1);                                            \
        bool carry = last >> (bits - 1);                                                           \
        flags_logic##bits(cpu, r);                                                                 \
        flags_set_cf_of(cpu, carry, (r >> (bits - 1)) ^ carry);                                    \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t shr##bits(struct soft_cpu *cpu, uint##bits##_t a, unsigned n) {   \
        uint##bits##_t last = (uint##bits##_t)((uint64_t)a >> (n - 1)), r = last >> 1;             \
        flags_logic##bits(cpu, r);                                                                 \
        flags_set_cf_of(cpu, last & 1, (last >> (bits - 1)) & 1);                                  \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t sar##bits(struct soft_cpu *cpu, uint##bits##_t a, unsigned n) {   \
        int64_t last = (int64_t)(int##bits##_t)a >> (n - 1);                                       \
        uint##bits##_t r = (uint##bits##_t)(last >> 1);                                            \
        flags_logic##bits(cpu, r);                                                                 \
        flags_set_cf_of(cpu, last & 1, false);                                                     \
        return r;                                                                                  \
    }
FOR_EACH_SIZE(SHIFT_OPERATIONS)

/* *pointer (at any alignment) = expression of `old`. */
#define UPDATE(pointer, expression)                                                                \
    do {                                                                                           \
        __typeof__(*(pointer)) old, new_;                                                          \
        memcpy(&old, pointer, sizeof old);                                                         \
        new_ = (expression);                                                                       \
        memcpy(pointer, &new_, sizeof new_);                                                       \
    } while (0)

/* ---- Forms: by 1, by imm8, by CL ---- */

#define SHIFT_FORM(op, suffix, count, bits)                                                        \
    void op##_##suffix##_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                  \
        unsigned n = masked_count(count, bits);                                                    \
        uint##bits##_t a = get##bits(cpu, insn->rm);                                               \
        set##bits(cpu, insn->rm, n != 0 ? op##bits(cpu, a, n) : a);                                \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_##suffix##_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                  \
        unsigned n = masked_count(count, bits);                                                    \
        uint##bits##_t *to = mem_rmw##bits(cpu, insn);                                             \
        if (n != 0)                                                                                \
            UPDATE(to, op##bits(cpu, old, n));                                                     \
        rmw_end(cpu);                                                                              \
        INSN_NEXT;                                                                                 \
    }
#define SHIFT_SIZES(op, bits)                                                                      \
    SHIFT_FORM(op, 1, 1, bits)                                                                     \
    SHIFT_FORM(op, i, insn->imm, bits)                                                             \
    SHIFT_FORM(op, cl, get8(cpu, RCX), bits)
#define SHIFTS(bits)                                                                               \
    SHIFT_SIZES(rol, bits)                                                                         \
    SHIFT_SIZES(ror, bits)                                                                         \
    SHIFT_SIZES(rcl, bits)                                                                         \
    SHIFT_SIZES(rcr, bits)                                                                         \
    SHIFT_SIZES(shl, bits)                                                                         \
    SHIFT_SIZES(shr, bits)                                                                         \
    SHIFT_SIZES(sar, bits)
FOR_EACH_SIZE(SHIFTS)

/* ---- Double shifts ---- */

/*
 * With 16-bit operands a count above 16 is undefined; the bits shifted in then come around again
 * from the destination.
 */
static inline uint16_t shld16(struct soft_cpu *cpu, uint16_t a, uint16_t b, unsigned n) {
    uint64_t wide = (uint64_t)a << 32 | (uint64_t)b << 16 | b;
    uint16_t r = (uint16_t)(wide << n >> 32);
    bool carry = wide << (n - 1) >> 47 & 1;
    flags_logic16(cpu, r);
    flags_set_cf_of(cpu, carry, ((r ^ a) >> 15) & 1);
    return r;
}

static inline uint16_t shrd16(struct soft_cpu *cpu, uint16_t a, uint16_t b, unsigned n) {
    uint64_t wide = (uint64_t)b << 32 | (uint64_t)b << 16 | a;
    uint16_t r = (uint16_t)(wide >> n);
    bool carry = wide >> (n - 1) & 1;
    flags_logic16(cpu, r);
    flags_set_cf_of(cpu, carry, ((r ^ a) >> 15) & 1);
    return r;
}

#define DOUBLE_OPERATIONS(bits)                                                                    \
    static inline uint##bits##_t shld##bits(struct soft_cpu *cpu, uint##bits##_t a,                \
                                            uint##bits##_t b, unsigned n) {                        \
        uint##bits##_t r = a << n | b >> (bits - n);                                               \
        bool carry = a >> (bits - n) & 1;                                                          \
        flags_logic##bits(cpu, r);                                                                 \
        flags_set_cf_of(cpu, carry, (r ^ a) >> (bits - 1));                                        \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t shrd##bits(struct soft_cpu *cpu, uint##bits##_t a,                \
                                            uint##bits##_t b, unsigned n) {                        \
        uint##bits##_t r = a >> n | b << (bits - n);                                               \
        bool carry = a >> (n - 1) & 1;                                                             \
        flags_logic##bits(cpu, r);                                                                 \
        flags_set_cf_of(cpu, carry, (r ^ a) >> (bits - 1));                                        \
        return r;                                                                                  \
    }
DOUBLE_OPERATIONS(32)
DOUBLE_OPERATIONS(64)

#define DOUBLE_FORM(op, suffix, count, bits)                                                       \
    void op##_##suffix##_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                  \
        unsigned n = masked_count(count, bits);                                                    \
        uint##bits##_t a = get##bits(cpu, insn->rm);                                               \
        set##bits(cpu, insn->rm, n != 0 ? op##bits(cpu, a, get##bits(cpu, insn->reg), n) : a);     \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_##suffix##_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                  \
        unsigned n = masked_count(count, bits);                                                    \
        uint##bits##_t *to = mem_rmw##bits(cpu, insn);                                             \
        if (n != 0)                                                                                \
            UPDATE(to, op##bits(cpu, old, get##bits(cpu, insn->reg), n));                          \
        rmw_end(cpu);                                                                              \
        INSN_NEXT;                                                                                 \
    }
#define DOUBLES(bits)                                                                              \
    DOUBLE_FORM(shld, i, insn->imm, bits)                                                          \
    DOUBLE_FORM(shld, cl, get8(cpu, RCX), bits)                                                    \
    DOUBLE_FORM(shrd, i, insn->imm, bits)                                                          \
    DOUBLE_FORM(shrd, cl, get8(cpu, RCX), bits)
FOR_EACH_WIDE(DOUBLES)
