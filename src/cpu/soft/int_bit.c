/*
 * Single bits and bit fields: BT, BTS, BTR, BTC, BSF, BSR, LZCNT, TZCNT, POPCNT, BMI1, BMI2, CRC32.
 */
#include "cpu/soft/int.h"
#include "cpu/soft/operand.h"

/* ---- BT and its kin ---- */

static inline void flags_bit(struct soft_cpu *cpu, bool bit) {
    flags_set_cf(cpu, bit);
}

/*
 * With a register as the bit number, a memory operand is a bit string: the number, signed, selects
 * the element too.
 */
#define BIT_OFFSET(bits)                                                                           \
    static inline uint64_t bit_offset##bits(const struct soft_cpu *cpu, const struct insn *insn,   \
                                            uint##bits##_t number) {                               \
        int64_t element = (int64_t)(int##bits##_t)number >> (bits == 64 ? 6 : bits == 32 ? 5 : 4); \
        uint64_t offset = insn_offset(cpu, insn) + (uint64_t)element * (bits / 8);                 \
        if (insn->address_size != 8)                                                               \
            offset = insn->address_size == 4 ? (uint32_t)offset : (uint16_t)offset;                \
        return offset;                                                                             \
    }
FOR_EACH_WIDE(BIT_OFFSET)

#define BIT_TEST(bits)                                                                             \
    void bt_e_g_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                           \
        flags_bit(cpu, get##bits(cpu, insn->rm) >> (get##bits(cpu, insn->reg) & (bits - 1)) & 1);  \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void bt_e_g_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                           \
        uint##bits##_t n = get##bits(cpu, insn->reg), value;                                       \
        cpu->insn = insn;                                                                          \
        value = load##bits(cpu, insn->seg, bit_offset##bits(cpu, insn, n));                        \
        flags_bit(cpu, value >> (n & (bits - 1)) & 1);                                             \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void bt_e_i_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                           \
        flags_bit(cpu, get##bits(cpu, insn->rm) >> (insn->imm & (bits - 1)) & 1);                  \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void bt_e_i_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                           \
        flags_bit(cpu, mem_load##bits(cpu, insn) >> (insn->imm & (bits - 1)) & 1);                 \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_WIDE(BIT_TEST)

#define BIT_CHANGE(op, bits, expression)                                                           \
    void op##_e_g_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        unsigned n = get##bits(cpu, insn->reg) & (bits - 1);                                       \
        uint##bits##_t old = get##bits(cpu, insn->rm), mask = (uint##bits##_t)((uint64_t)1 << n);  \
        set##bits(cpu, insn->rm, expression);                                                      \
        flags_bit(cpu, old >> n & 1);                                                              \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_e_i_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        unsigned n = insn->imm & (bits - 1);                                                       \
        uint##bits##_t old = get##bits(cpu, insn->rm), mask = (uint##bits##_t)((uint64_t)1 << n);  \
        set##bits(cpu, insn->rm, expression);                                                      \
        flags_bit(cpu, old >> n & 1);                                                              \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_e_g_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        uint##bits##_t number = get##bits(cpu, insn->reg), old, *to;                               \
        unsigned n = number & (bits - 1);                                                          \
        uint##bits##_t mask = (uint##bits##_t)((uint64_t)1 << n);                                  \
        cpu->insn = insn;                                                                          \
        to = rmw_begin(cpu, insn->seg, bit_offset##bits(cpu, insn, number), bits / 8);             \
        RMW(insn, to, old, expression);                                                            \
        rmw_end(cpu);                                                                              \
        flags_bit(cpu, old >> n & 1);                                                              \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_e_i_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        unsigned n = insn->imm & (bits - 1);                                                       \
        uint##bits##_t *to = mem_rmw##bits(cpu, insn), old;                                        \
        uint##bits##_t mask = (uint##bits##_t)((uint64_t)1 << n);                                  \
        RMW(insn, to, old, expression);                                                            \
        rmw_end(cpu);                                                                              \
        flags_bit(cpu, old >> n & 1);                                                              \
        INSN_NEXT;                                                                                 \
    }
#define BIT_CHANGES(bits)                                                                          \
    BIT_CHANGE(bts, bits, old | mask)                                                              \
    BIT_CHANGE(btr, bits, old &(uint##bits##_t) ~mask)                                             \
    BIT_CHANGE(btc, bits, old ^ mask)
FOR_EACH_WIDE(BIT_CHANGES)

/* ---- Counting and scanning ---- */

static inline unsigned leading_zeros(uint64_t value, unsigned bits) {
    return value == 0 ? bits : (unsigned)__builtin_clzll(value) - (64 - bits);
}

static inline unsigned trailing_zeros(uint64_t value, unsigned bits) {
    return value == 0 ? bits : (unsigned)__builtin_ctzll(value);
}

/* Of zero: the destination stays (AMD says so; Intel's processors do it), ZF is set. */
#define SCAN_OPERATIONS(bits)                                                                      \
    static void bsf##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t value) {   \
        flags_set_zf(cpu, value == 0);                                                             \
        if (value != 0)                                                                            \
            set##bits(cpu, insn->reg, (uint##bits##_t)trailing_zeros(value, bits));                \
    }                                                                                              \
    static void bsr##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t value) {   \
        flags_set_zf(cpu, value == 0);                                                             \
        if (value != 0)                                                                            \
            set##bits(cpu, insn->reg, (uint##bits##_t)(bits - 1 - leading_zeros(value, bits)));    \
    }                                                                                              \
    static void count##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t value,   \
                            uint##bits##_t result) {                                               \
        flags_logic##bits(cpu, result);                                                            \
        flags_set_cf_of(cpu, value == 0, false);                                                   \
        set##bits(cpu, insn->reg, result);                                                         \
    }                                                                                              \
    static void tzcnt##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t value) { \
        count##bits(cpu, insn, value, (uint##bits##_t)trailing_zeros(value, bits));                \
    }                                                                                              \
    static void lzcnt##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t value) { \
        count##bits(cpu, insn, value, (uint##bits##_t)leading_zeros(value, bits));                 \
    }                                                                                              \
    static void popcnt##bits(struct soft_cpu *cpu, const struct insn *insn,                        \
                             uint##bits##_t value) {                                               \
        set##bits(cpu, insn->reg, (uint##bits##_t)__builtin_popcountll(value));                    \
        flags_set_status(cpu, value == 0 ? FLAG_ZF : 0);                                           \
    }
FOR_EACH_WIDE(SCAN_OPERATIONS)

/* Gv or Gy from Ev or Ey, by an operation on (cpu, insn, value). */
#define SOURCE_FORMS(op, bits)                                                                     \
    void op##_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        op##bits(cpu, insn, get##bits(cpu, insn->rm));                                             \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        op##bits(cpu, insn, mem_load##bits(cpu, insn));                                            \
        INSN_NEXT;                                                                                 \
    }
#define SCANS(bits)                                                                                \
    SOURCE_FORMS(bsf, bits)                                                                        \
    SOURCE_FORMS(bsr, bits)                                                                        \
    SOURCE_FORMS(tzcnt, bits)                                                                      \
    SOURCE_FORMS(lzcnt, bits)                                                                      \
    SOURCE_FORMS(popcnt, bits)
FOR_EACH_WIDE(SCANS)

/* ---- BMI1, BMI2 ---- */

static inline uint64_t deposit(uint64_t source, uint64_t mask) {
    uint64_t result = 0;
    for (; mask != 0; mask &= mask - 1, source >>= 1) {
        if (source & 1)
            result |= mask & -mask;
    }
    return result;
}

static inline uint64_t extract(uint64_t source, uint64_t mask) {
    uint64_t result = 0;
    for (unsigned n = 0; mask != 0; mask &= mask - 1, n++) {
        if (source & mask & -mask)
            result |= UINT64_C(1) << n;
    }
    return result;
}

/* v is VEX.vvvv's register, the source s is ModRM.rm. */
#define BMI_OPERATIONS(bits)                                                                       \
    static void andn##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        uint##bits##_t r = ~get##bits(cpu, insn->vvvv) & s;                                        \
        flags_logic##bits(cpu, r);                                                                 \
        set##bits(cpu, insn->reg, r);                                                              \
    }                                                                                              \
    static void bextr##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {     \
        unsigned start = get64(cpu, insn->vvvv) & 0xff;                                            \
        unsigned length = get64(cpu, insn->vvvv) >> 8 & 0xff;                                      \
        uint##bits##_t r = start < bits ? s >> start : 0;                                          \
        if (length < bits)                                                                         \
            r &= ((uint##bits##_t)1 << length) - 1;                                                \
        flags_logic##bits(cpu, r);                                                                 \
        set##bits(cpu, insn->reg, r);                                                              \
    }                                                                                              \
    static void blsr##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        uint##bits##_t r = s & (s - 1);                                                            \
        flags_logic##bits(cpu, r);                                                                 \
        flags_set_cf_of(cpu, s == 0, false);                                                       \
        set##bits(cpu, insn->vvvv, r);                                                             \
    }                                                                                              \
    static void blsmsk##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {    \
        uint##bits##_t r = s ^ (s - 1);                                                            \
        flags_logic##bits(cpu, r);                                                                 \
        flags_set_cf_of(cpu, s == 0, false);                                                       \
        set##bits(cpu, insn->vvvv, r);                                                             \
    }                                                                                              \
    static void blsi##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        uint##bits##_t r = s & -s;                                                                 \
        flags_logic##bits(cpu, r);                                                                 \
        flags_set_cf_of(cpu, s != 0, false);                                                       \
        set##bits(cpu, insn->vvvv, r);                                                             \
    }                                                                                              \
    static void bzhi##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        unsigned n = get64(cpu, insn->vvvv) & 0xff;                                                \
        uint##bits##_t r = n < bits ? s & (((uint##bits##_t)1 << n) - 1) : s;                      \
        flags_logic##bits(cpu, r);                                                                 \
        flags_set_cf_of(cpu, n > bits - 1, false);                                                 \
        set##bits(cpu, insn->reg, r);                                                              \
    }                                                                                              \
    static void pdep##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        set##bits(cpu, insn->reg, (uint##bits##_t)deposit(get##bits(cpu, insn->vvvv), s));         \
    }                                                                                              \
    static void pext##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        set##bits(cpu, insn->reg, (uint##bits##_t)extract(get##bits(cpu, insn->vvvv), s));         \
    }                                                                                              \
    static void sarx##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        unsigned n = get64(cpu, insn->vvvv) & (bits - 1);                                          \
        set##bits(cpu, insn->reg, (uint##bits##_t)((int##bits##_t)s >> n));                        \
    }                                                                                              \
    static void shlx##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        set##bits(cpu, insn->reg, s << (get64(cpu, insn->vvvv) & (bits - 1)));                     \
    }                                                                                              \
    static void shrx##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        set##bits(cpu, insn->reg, s >> (get64(cpu, insn->vvvv) & (bits - 1)));                     \
    }                                                                                              \
    static void rorx##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        unsigned n = insn->imm & (bits - 1);                                                       \
        set##bits(cpu, insn->reg, s >> n | s << (-n & (bits - 1)));                                \
    }                                                                                              \
    static void mulx##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t s) {      \
        unsigned __int128 r = (unsigned __int128)get##bits(cpu, RDX) * s;                          \
        set##bits(cpu, insn->vvvv, (uint##bits##_t)r);                                             \
        set##bits(cpu, insn->reg, (uint##bits##_t)(r >> bits));                                    \
    }                                                                                              \
    SOURCE_FORMS(andn, bits)                                                                       \
    SOURCE_FORMS(bextr, bits)                                                                      \
    SOURCE_FORMS(blsr, bits)                                                                       \
    SOURCE_FORMS(blsmsk, bits)                                                                     \
    SOURCE_FORMS(blsi, bits)                                                                       \
    SOURCE_FORMS(bzhi, bits)                                                                       \
    SOURCE_FORMS(pdep, bits)                                                                       \
    SOURCE_FORMS(pext, bits)                                                                       \
    SOURCE_FORMS(sarx, bits)                                                                       \
    SOURCE_FORMS(shlx, bits)                                                                       \
    SOURCE_FORMS(shrx, bits)                                                                       \
    SOURCE_FORMS(rorx, bits)                                                                       \
    SOURCE_FORMS(mulx, bits)
BMI_OPERATIONS(32)
BMI_OPERATIONS(64)

/* ---- CRC32 (Castagnoli polynomial, bits reflected) ---- */

static uint32_t crc32c(uint32_t crc, uint64_t value, unsigned bytes) {
    crc ^= (uint32_t)value;
    for (unsigned i = 0; i < bytes * 8; i++) {
        bool low = crc & 1;
        crc = crc >> 1 ^ (low ? UINT32_C(0x82f63b78) : 0);
        if (bytes == 8 && i == 31)
            crc ^= (uint32_t)(value >> 32);
    }
    return crc;
}

void crc32_b_r(struct soft_cpu *cpu, const struct insn *insn) {
    set32(cpu, insn->reg, crc32c(get32(cpu, insn->reg), get8(cpu, insn->rm), 1));
    INSN_NEXT;
}

void crc32_b_m(struct soft_cpu *cpu, const struct insn *insn) {
    set32(cpu, insn->reg, crc32c(get32(cpu, insn->reg), mem_load8(cpu, insn), 1));
    INSN_NEXT;
}

#define CRC_FORMS(bits)                                                                            \
    void crc32_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                            \
        set32(cpu, insn->reg, crc32c(get32(cpu, insn->reg), get##bits(cpu, insn->rm), bits / 8));  \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void crc32_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                            \
        uint##bits##_t value = mem_load##bits(cpu, insn);                                          \
        set32(cpu, insn->reg, crc32c(get32(cpu, insn->reg), value, bits / 8));                     \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_WIDE(CRC_FORMS)
