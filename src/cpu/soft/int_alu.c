/*
 * ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT, XADD, CMPXCHG, CMPXCHG8B/16B,
 * ADCX, ADOX. APM volume 3.
 */
#include "cpu/soft/int.h"
#include "cpu/soft/operand.h"

/* ---- The operations: the result, and flags ---- */

#define ALU_OPERATIONS(bits)                                                                       \
    static inline uint##bits##_t add##bits(struct soft_cpu *cpu, uint##bits##_t a,                 \
                                           uint##bits##_t b, bool carry) {                         \
        uint##bits##_t r = a + b;                                                                  \
        flags_add##bits(cpu, a, b, r);                                                             \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t adc##bits(struct soft_cpu *cpu, uint##bits##_t a,                 \
                                           uint##bits##_t b, bool carry) {                         \
        uint##bits##_t r = a + b + carry;                                                          \
        flags_add##bits(cpu, a, b, r);                                                             \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t sub##bits(struct soft_cpu *cpu, uint##bits##_t a,                 \
                                           uint##bits##_t b, bool carry) {                         \
        uint##bits##_t r = a - b;                                                                  \
        flags_sub##bits(cpu, a, b, r);                                                             \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t sbb##bits(struct soft_cpu *cpu, uint##bits##_t a,                 \
                                           uint##bits##_t b, bool carry) {                         \
        uint##bits##_t r = a - b - carry;                                                          \
        flags_sub##bits(cpu, a, b, r);                                                             \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t or                                                                \
        ##bits(struct soft_cpu *cpu, uint##bits##_t a, uint##bits##_t b, bool carry) {             \
        uint##bits##_t r = a | b;                                                                  \
        flags_logic##bits(cpu, r);                                                                 \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t and##bits(struct soft_cpu *cpu, uint##bits##_t a,                 \
                                           uint##bits##_t b, bool carry) {                         \
        uint##bits##_t r = a & b;                                                                  \
        flags_logic##bits(cpu, r);                                                                 \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t xor                                                               \
        ##bits(struct soft_cpu *cpu, uint##bits##_t a, uint##bits##_t b, bool carry) {             \
        uint##bits##_t r = a ^ b;                                                                  \
        flags_logic##bits(cpu, r);                                                                 \
        return r;                                                                                  \
    }                                                                                              \
    /* INC and DEC leave CF: `carry` is what it was. */                                            \
    static inline uint##bits##_t inc##bits(struct soft_cpu *cpu, uint##bits##_t a, bool carry) {   \
        uint##bits##_t r = a + 1;                                                                  \
        flags_add##bits(cpu, a, 1, r);                                                             \
        flags_set_cf(cpu, carry);                                                                  \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t dec##bits(struct soft_cpu *cpu, uint##bits##_t a, bool carry) {   \
        uint##bits##_t r = a - 1;                                                                  \
        flags_sub##bits(cpu, a, 1, r);                                                             \
        flags_set_cf(cpu, carry);                                                                  \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t neg##bits(struct soft_cpu *cpu, uint##bits##_t a, bool carry) {   \
        uint##bits##_t r = -a;                                                                     \
        flags_sub##bits(cpu, 0, a, r);                                                             \
        return r;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t not ##bits(struct soft_cpu * cpu, uint##bits##_t a, bool carry) { \
        return ~a;                                                                                 \
    }
FOR_EACH_SIZE(ALU_OPERATIONS)

/* ---- Two operands: Ev Gv, Gv Ev, Ev I ---- */

#define ALU_FORMS(op, bits)                                                                        \
    void op##_e_g_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        bool carry = flag_cf(cpu);                                                                 \
        set##bits(cpu, insn->rm,                                                                   \
                  op##bits(cpu, get##bits(cpu, insn->rm), get##bits(cpu, insn->reg), carry));      \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_e_g_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        uint##bits##_t *to = mem_rmw##bits(cpu, insn), from = get##bits(cpu, insn->reg), old;      \
        bool carry = flag_cf(cpu);                                                                 \
        RMW(insn, to, old, op##bits(cpu, old, from, carry));                                       \
        rmw_end(cpu);                                                                              \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_g_e_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        bool carry = flag_cf(cpu);                                                                 \
        set##bits(cpu, insn->reg,                                                                  \
                  op##bits(cpu, get##bits(cpu, insn->reg), get##bits(cpu, insn->rm), carry));      \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_g_e_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        uint##bits##_t from = mem_load##bits(cpu, insn);                                           \
        bool carry = flag_cf(cpu);                                                                 \
        set##bits(cpu, insn->reg, op##bits(cpu, get##bits(cpu, insn->reg), from, carry));          \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_e_i_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        bool carry = flag_cf(cpu);                                                                 \
        set##bits(cpu, insn->rm,                                                                   \
                  op##bits(cpu, get##bits(cpu, insn->rm), (uint##bits##_t)insn->imm, carry));      \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_e_i_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        uint##bits##_t *to = mem_rmw##bits(cpu, insn), from = (uint##bits##_t)insn->imm, old;      \
        bool carry = flag_cf(cpu);                                                                 \
        RMW(insn, to, old, op##bits(cpu, old, from, carry));                                       \
        rmw_end(cpu);                                                                              \
        INSN_NEXT;                                                                                 \
    }
#define ALU_SIZES(op) ALU_FORMS(op, 8) ALU_FORMS(op, 16) ALU_FORMS(op, 32) ALU_FORMS(op, 64)
ALU_SIZES(add)
ALU_SIZES(or)
ALU_SIZES(adc)
ALU_SIZES(sbb)
ALU_SIZES(and)
ALU_SIZES(sub)
ALU_SIZES(xor)

/* CMP is SUB, TEST is AND, without a destination. */
#define COMPARE_FORMS(name, op, bits)                                                              \
    void name##_e_g_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                       \
        op##bits(cpu, get##bits(cpu, insn->rm), get##bits(cpu, insn->reg), false);                 \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void name##_e_g_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                       \
        op##bits(cpu, mem_load##bits(cpu, insn), get##bits(cpu, insn->reg), false);                \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void name##_g_e_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                       \
        op##bits(cpu, get##bits(cpu, insn->reg), get##bits(cpu, insn->rm), false);                 \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void name##_g_e_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                       \
        uint##bits##_t from = mem_load##bits(cpu, insn);                                           \
        op##bits(cpu, get##bits(cpu, insn->reg), from, false);                                     \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void name##_e_i_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                       \
        op##bits(cpu, get##bits(cpu, insn->rm), (uint##bits##_t)insn->imm, false);                 \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void name##_e_i_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                       \
        op##bits(cpu, mem_load##bits(cpu, insn), (uint##bits##_t)insn->imm, false);                \
        INSN_NEXT;                                                                                 \
    }
#define CMP_FORMS(bits)  COMPARE_FORMS(cmp, sub, bits)
#define TEST_FORMS(bits) COMPARE_FORMS(test, and, bits)
FOR_EACH_SIZE(CMP_FORMS)
FOR_EACH_SIZE(TEST_FORMS)

/* ---- One operand ---- */

#define UNARY_FORMS(op, bits)                                                                      \
    void op##_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        set##bits(cpu, insn->rm, op##bits(cpu, get##bits(cpu, insn->rm), flag_cf(cpu)));           \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        uint##bits##_t *to = mem_rmw##bits(cpu, insn), old;                                        \
        bool carry = flag_cf(cpu);                                                                 \
        RMW(insn, to, old, op##bits(cpu, old, carry));                                             \
        rmw_end(cpu);                                                                              \
        INSN_NEXT;                                                                                 \
    }
#define UNARY_SIZES(op)                                                                            \
    UNARY_FORMS(op, 8) UNARY_FORMS(op, 16) UNARY_FORMS(op, 32) UNARY_FORMS(op, 64)
UNARY_SIZES(inc)
UNARY_SIZES(dec)
UNARY_SIZES(neg)
UNARY_SIZES(not )

/* ---- XADD, CMPXCHG ---- */

#define EXCHANGE_FORMS(bits)                                                                       \
    void xadd_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        uint##bits##_t a = get##bits(cpu, insn->rm), b = get##bits(cpu, insn->reg);                \
        set##bits(cpu, insn->reg, a);                                                              \
        set##bits(cpu, insn->rm, add##bits(cpu, a, b, false));                                     \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void xadd_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        uint##bits##_t *to = mem_rmw##bits(cpu, insn), b = get##bits(cpu, insn->reg), old;         \
        RMW(insn, to, old, add##bits(cpu, old, b, false));                                         \
        rmw_end(cpu);                                                                              \
        set##bits(cpu, insn->reg, old);                                                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void cmpxchg_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                          \
        uint##bits##_t a = get##bits(cpu, RAX), old = get##bits(cpu, insn->rm);                    \
        sub##bits(cpu, a, old, false);                                                             \
        if (a == old)                                                                              \
            set##bits(cpu, insn->rm, get##bits(cpu, insn->reg));                                   \
        else                                                                                       \
            set##bits(cpu, RAX, old);                                                              \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    /* The destination is written in any case; always atomic is simplest and right. */             \
    void cmpxchg_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                          \
        uint##bits##_t *to = mem_rmw##bits(cpu, insn), a = get##bits(cpu, RAX);                    \
        uint##bits##_t from = get##bits(cpu, insn->reg);                                           \
        uint##bits##_t old = __sync_val_compare_and_swap(to, a, from);                             \
        rmw_end(cpu);                                                                              \
        sub##bits(cpu, a, old, false);                                                             \
        if (a != old)                                                                              \
            set##bits(cpu, RAX, old);                                                              \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_SIZE(EXCHANGE_FORMS)

void cmpxchg8b(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t *to = mem_rmw64(cpu, insn);
    uint64_t expected = (uint64_t)get32(cpu, RDX) << 32 | get32(cpu, RAX);
    uint64_t from = (uint64_t)get32(cpu, RCX) << 32 | get32(cpu, RBX);
    uint64_t old = __sync_val_compare_and_swap(to, expected, from);
    rmw_end(cpu);
    flags_set_zf(cpu, old == expected);
    if (old != expected) {
        set32(cpu, RAX, (uint32_t)old);
        set32(cpu, RDX, (uint32_t)(old >> 32));
    }
    INSN_NEXT;
}

/* Sixteen bytes at once: with the host's own instruction where it has one. */
static bool compare_and_swap_16(uint64_t *to, uint64_t expected[2], const uint64_t from[2]) {
#ifdef __x86_64__
    bool done;
    __asm__ volatile("lock cmpxchg16b %1"
                     : "=@ccz"(done), "+m"(*(uint64_t(*)[2])to), "+a"(expected[0]),
                       "+d"(expected[1])
                     : "b"(from[0]), "c"(from[1])
                     : "memory");
    return done;
#else
    unsigned __int128 *wide = (unsigned __int128 *)to;
    unsigned __int128 old = (unsigned __int128)expected[1] << 64 | expected[0];
    bool done = __atomic_compare_exchange_n(wide, &old, (unsigned __int128)from[1] << 64 | from[0],
                                            false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    expected[0] = (uint64_t)old;
    expected[1] = (uint64_t)(old >> 64);
    return done;
#endif
}

void cmpxchg16b(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t expected[2] = {cpu->gpr[RAX], cpu->gpr[RDX]};
    const uint64_t from[2] = {cpu->gpr[RBX], cpu->gpr[RCX]};
    uint64_t offset = insn_offset(cpu, insn);
    bool done;
    cpu->insn = insn;
    if (((insn->seg >= SEG_FS ? cpu->segment[insn->seg].base : 0) + offset) & 15)
        raise_error(cpu, EXC_GP, 0);
    done = compare_and_swap_16(rmw_begin(cpu, insn->seg, offset, 16), expected, from);
    rmw_end(cpu);
    flags_set_zf(cpu, done);
    if (!done) {
        cpu->gpr[RAX] = expected[0];
        cpu->gpr[RDX] = expected[1];
    }
    INSN_NEXT;
}

/* ---- ADX: add with one flag as carry, the others untouched ---- */

#define ADX_FORMS(bits)                                                                            \
    static void adcx##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t b) {      \
        uint##bits##_t r, a = get##bits(cpu, insn->reg);                                           \
        bool c1 = __builtin_add_overflow(a, b, &r);                                                \
        bool c2 = __builtin_add_overflow(r, (uint##bits##_t)flag_cf(cpu), &r);                     \
        flags_set_cf(cpu, c1 || c2);                                                               \
        set##bits(cpu, insn->reg, r);                                                              \
    }                                                                                              \
    static void adox##bits(struct soft_cpu *cpu, const struct insn *insn, uint##bits##_t b) {      \
        uint##bits##_t r, a = get##bits(cpu, insn->reg);                                           \
        bool c1 = __builtin_add_overflow(a, b, &r);                                                \
        bool c2 = __builtin_add_overflow(r, (uint##bits##_t)flag_of(cpu), &r);                     \
        flags_set_cf_of(cpu, flag_cf(cpu), c1 || c2);                                              \
        set##bits(cpu, insn->reg, r);                                                              \
    }                                                                                              \
    void adcx_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        adcx##bits(cpu, insn, get##bits(cpu, insn->rm));                                           \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void adcx_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        adcx##bits(cpu, insn, mem_load##bits(cpu, insn));                                          \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void adox_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        adox##bits(cpu, insn, get##bits(cpu, insn->rm));                                           \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void adox_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        adox##bits(cpu, insn, mem_load##bits(cpu, insn));                                          \
        INSN_NEXT;                                                                                 \
    }
ADX_FORMS(32)
ADX_FORMS(64)
