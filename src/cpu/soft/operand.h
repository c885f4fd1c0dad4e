/*
 * What integer handlers are made of: registers by size, memory operands by
 * size, status flags after an operation. All inline.
 */
#ifndef LODGE_CPU_SOFT_OPERAND_H
#define LODGE_CPU_SOFT_OPERAND_H

#include "cpu/soft/access.h"
#include "cpu/soft/flags.h"
#include "cpu/soft/soft.h"

/* ---- Registers ---- */

/* Registers 20 to 23 are AH, CH, DH, BH: the second byte of registers 0 to 3. */
static inline uint8_t *reg8_at(struct soft_cpu *cpu, unsigned n) {
    return (uint8_t *)cpu->gpr + n * 8 - (n >> 4) * (20 * 8 - 1);
}

static inline uint8_t get8(struct soft_cpu *cpu, unsigned n) {
    return *reg8_at(cpu, n);
}

static inline uint16_t get16(struct soft_cpu *cpu, unsigned n) {
    return (uint16_t)cpu->gpr[n];
}

static inline uint32_t get32(struct soft_cpu *cpu, unsigned n) {
    return (uint32_t)cpu->gpr[n];
}

static inline uint64_t get64(struct soft_cpu *cpu, unsigned n) {
    return cpu->gpr[n];
}

static inline void set8(struct soft_cpu *cpu, unsigned n, uint8_t value) {
    *reg8_at(cpu, n) = value;
}

static inline void set16(struct soft_cpu *cpu, unsigned n, uint16_t value) {
    memcpy(&cpu->gpr[n], &value, sizeof value);
}

static inline void set32(struct soft_cpu *cpu, unsigned n, uint32_t value) {
    cpu->gpr[n] = value;
}

static inline void set64(struct soft_cpu *cpu, unsigned n, uint64_t value) {
    cpu->gpr[n] = value;
}

/* For handlers that are not made by size. */
static inline uint64_t get_sized(struct soft_cpu *cpu, unsigned n, unsigned size) {
    return size == 1 ? get8(cpu, n) : cpu->gpr[n] & (UINT64_MAX >> (64 - 8 * size));
}

static inline void set_sized(struct soft_cpu *cpu, unsigned n, uint64_t value, unsigned size) {
    switch (size) {
    case 1: set8(cpu, n, (uint8_t)value); break;
    case 2: set16(cpu, n, (uint16_t)value); break;
    case 4: set32(cpu, n, (uint32_t)value); break;
    default: set64(cpu, n, value); break;
    }
}

/* Addresses and counters of string and loop instructions: by address size, upper halves as for any
 * other write. */
static inline void add_address(struct soft_cpu *cpu, unsigned n, uint64_t delta, unsigned size) {
    set_sized(cpu, n, cpu->gpr[n] + delta, size);
}

/* ---- Memory operands ---- */

#define OPERAND_MEMORY(bits)                                                                       \
    static inline uint##bits##_t mem_load##bits(struct soft_cpu *cpu, const struct insn *insn) {   \
        cpu->insn = insn;                                                                          \
        return load##bits(cpu, insn->seg, insn_offset(cpu, insn));                                 \
    }                                                                                              \
    static inline void mem_store##bits(struct soft_cpu *cpu, const struct insn *insn,              \
                                       uint##bits##_t value) {                                     \
        cpu->insn = insn;                                                                          \
        store##bits(cpu, insn->seg, insn_offset(cpu, insn), value);                                \
    }                                                                                              \
    static inline uint##bits##_t *mem_rmw##bits(struct soft_cpu *cpu, const struct insn *insn) {   \
        cpu->insn = insn;                                                                          \
        return rmw_begin(cpu, insn->seg, insn_offset(cpu, insn), bits / 8);                        \
    }
OPERAND_MEMORY(8)
OPERAND_MEMORY(16)
OPERAND_MEMORY(32)
OPERAND_MEMORY(64)
#undef OPERAND_MEMORY

static inline bool is_locked(const struct insn *insn) {
    return unlikely(insn->flags & I_LOCK);
}

/*
 * *pointer = expression of `old`, with the host's atomics when the instruction is LOCKed. The
 * expression may run several times and must set flags the same way each time.
 */
#define RMW(insn, pointer, old, expression)                                                        \
    do {                                                                                           \
        __typeof__(*(pointer)) new_;                                                               \
        if (is_locked(insn)) {                                                                     \
            old = __atomic_load_n(pointer, __ATOMIC_RELAXED);                                      \
            do                                                                                     \
                new_ = (expression);                                                               \
            while (!__atomic_compare_exchange_n(pointer, &old, new_, false, __ATOMIC_SEQ_CST,      \
                                                __ATOMIC_SEQ_CST));                                \
        } else {                                                                                   \
            memcpy(&old, pointer, sizeof old);                                                     \
            new_ = (expression);                                                                   \
            memcpy(pointer, &new_, sizeof new_);                                                   \
        }                                                                                          \
    } while (0)

/* ---- Flags ---- */

/* Packs a carry vector of an operation of `bits` width. */
static inline uint64_t pack_carries(uint64_t carries, unsigned bits) {
    uint64_t top = bits == 64 ? carries & UINT64_C(3) << 62 : carries << (64 - bits);
    return top | (carries >> 3 & 1);
}

#define OPERAND_FLAGS(bits)                                                                        \
    static inline void flags_result##bits(struct soft_cpu *cpu, uint##bits##_t r) {                \
        cpu->flags.result = (uint64_t)(int64_t)(int##bits##_t)r;                                   \
    }                                                                                              \
    static inline void flags_logic##bits(struct soft_cpu *cpu, uint##bits##_t r) {                 \
        flags_result##bits(cpu, r);                                                                \
        cpu->flags.carries = 0;                                                                    \
    }                                                                                              \
    static inline void flags_add##bits(struct soft_cpu *cpu, uint##bits##_t a, uint##bits##_t b,   \
                                       uint##bits##_t r) {                                         \
        flags_result##bits(cpu, r);                                                                \
        cpu->flags.carries = pack_carries((uint##bits##_t)((a & b) | ((a | b) & ~r)), bits);       \
    }                                                                                              \
    static inline void flags_sub##bits(struct soft_cpu *cpu, uint##bits##_t a, uint##bits##_t b,   \
                                       uint##bits##_t r) {                                         \
        flags_result##bits(cpu, r);                                                                \
        cpu->flags.carries = pack_carries((uint##bits##_t)((~a & b) | (~(a ^ b) & r)), bits);      \
    }
OPERAND_FLAGS(8)
OPERAND_FLAGS(16)
OPERAND_FLAGS(32)
OPERAND_FLAGS(64)
#undef OPERAND_FLAGS

/* Sets CF and OF, leaves the other four. */
static inline void flags_set_cf_of(struct soft_cpu *cpu, bool cf, bool of) {
    cpu->flags.carries = (cpu->flags.carries & ~(UINT64_C(3) << 62)) | (uint64_t)cf << 63 |
                         (uint64_t)(cf ^ of) << 62;
}

static inline void flags_set_cf(struct soft_cpu *cpu, bool cf) {
    flags_set_cf_of(cpu, cf, flag_of(cpu));
}

/* Sets ZF alone: makes the other flags explicit first when ZF follows from the result. */
static inline void flags_set_zf(struct soft_cpu *cpu, bool zf) {
    uint64_t image = flags_get(cpu) & ~(uint64_t)FLAG_ZF;
    flags_set_status(cpu, image | (zf ? FLAG_ZF : 0));
}

/* ---- Conditions, by the low four bits of Jcc, SETcc, CMOVcc opcodes ---- */

#define COND_O(cpu)  flag_of(cpu)
#define COND_NO(cpu) !flag_of(cpu)
#define COND_B(cpu)  flag_cf(cpu)
#define COND_AE(cpu) !flag_cf(cpu)
#define COND_Z(cpu)  flag_zf(cpu)
#define COND_NZ(cpu) !flag_zf(cpu)
#define COND_BE(cpu) (flag_cf(cpu) || flag_zf(cpu))
#define COND_A(cpu)  (!flag_cf(cpu) && !flag_zf(cpu))
#define COND_S(cpu)  flag_sf(cpu)
#define COND_NS(cpu) !flag_sf(cpu)
#define COND_P(cpu)  flag_pf(cpu)
#define COND_NP(cpu) !flag_pf(cpu)
#define COND_L(cpu)  (flag_sf(cpu) != flag_of(cpu))
#define COND_GE(cpu) (flag_sf(cpu) == flag_of(cpu))
#define COND_LE(cpu) (flag_zf(cpu) || flag_sf(cpu) != flag_of(cpu))
#define COND_G(cpu)  (!flag_zf(cpu) && flag_sf(cpu) == flag_of(cpu))

/* Calls X(lower-case name, upper-case name, code, flags read) for each. */
#define FOR_EACH_CONDITION(X)                                                                      \
    X(o, O, 0, FL_O)                                                                               \
    X(no, NO, 1, FL_O)                                                                             \
    X(b, B, 2, FL_C)                                                                               \
    X(ae, AE, 3, FL_C)                                                                             \
    X(z, Z, 4, FL_Z)                                                                               \
    X(nz, NZ, 5, FL_Z)                                                                             \
    X(be, BE, 6, FL_C | FL_Z)                                                                      \
    X(a, A, 7, FL_C | FL_Z)                                                                        \
    X(s, S, 8, FL_S)                                                                               \
    X(ns, NS, 9, FL_S)                                                                             \
    X(p, P, 10, FL_P)                                                                              \
    X(np, NP, 11, FL_P)                                                                            \
    X(l, L, 12, FL_S | FL_O)                                                                       \
    X(ge, GE, 13, FL_S | FL_O)                                                                     \
    X(le, LE, 14, FL_S | FL_O | FL_Z)                                                              \
    X(g, G, 15, FL_S | FL_O | FL_Z)

#define FOR_EACH_SIZE(X) X(8) X(16) X(32) X(64)
#define FOR_EACH_WIDE(X) X(16) X(32) X(64)

#endif
