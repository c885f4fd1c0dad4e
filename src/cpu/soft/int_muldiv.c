/* MUL, IMUL, DIV, IDIV. APM volume 3. */
#include "cpu/soft/int.h"
#include "cpu/soft/operand.h"

/* 8-bit forms use AX whole; the wider ones rDX:rAX. */
#define DOUBLE_8  16
#define DOUBLE_16 32
#define DOUBLE_32 64

typedef __int128 int128_t;
typedef unsigned __int128 uint128_t;
#define DOUBLE_64 128

static inline uint128_t accumulator8(struct soft_cpu *cpu) {
    return get16(cpu, RAX);
}

static inline void set_accumulator8(struct soft_cpu *cpu, uint16_t value) {
    set16(cpu, RAX, value);
}

#define ACCUMULATOR(bits, wide)                                                                    \
    static inline uint128_t accumulator##bits(struct soft_cpu *cpu) {                              \
        return (uint128_t)get##bits(cpu, RDX) << bits | get##bits(cpu, RAX);                       \
    }                                                                                              \
    static inline void set_accumulator##bits(struct soft_cpu *cpu, uint##wide##_t value) {         \
        set##bits(cpu, RAX, (uint##bits##_t)value);                                                \
        set##bits(cpu, RDX, (uint##bits##_t)(value >> bits));                                      \
    }
ACCUMULATOR(16, 32)
ACCUMULATOR(32, 64)
ACCUMULATOR(64, 128)

/* SF, ZF, AF, PF are undefined after multiplication: they stay. */
#define MULTIPLY(bits, wide)                                                                       \
    static void mul##bits(struct soft_cpu *cpu, uint##bits##_t b) {                                \
        uint##wide##_t r = (uint##wide##_t)get##bits(cpu, RAX) * b;                                \
        bool over = r >> bits != 0;                                                                \
        set_accumulator##bits(cpu, r);                                                             \
        flags_set_cf_of(cpu, over, over);                                                          \
    }                                                                                              \
    static void imul##bits(struct soft_cpu *cpu, uint##bits##_t b) {                               \
        int##wide##_t r = (int##wide##_t)(int##bits##_t)get##bits(cpu, RAX) * (int##bits##_t)b;    \
        bool over = r != (int##bits##_t)r;                                                         \
        set_accumulator##bits(cpu, (uint##wide##_t)r);                                             \
        flags_set_cf_of(cpu, over, over);                                                          \
    }
MULTIPLY(8, 16)
MULTIPLY(16, 32)
MULTIPLY(32, 64)
MULTIPLY(64, 128)

/* The remainder goes where the upper half came from. */
#define DIVIDE(bits, wide)                                                                         \
    static void set_quotient##bits(struct soft_cpu *cpu, uint##bits##_t quotient,                  \
                                   uint##bits##_t remainder) {                                     \
        set_accumulator##bits(cpu, (uint##wide##_t)remainder << bits | quotient);                  \
    }                                                                                              \
    static void div##bits(struct soft_cpu *cpu, uint##bits##_t b) {                                \
        uint##wide##_t a = (uint##wide##_t)accumulator##bits(cpu);                                 \
        if (b == 0 || a >> bits >= b)                                                              \
            raise_exception(cpu, EXC_DE);                                                          \
        set_quotient##bits(cpu, (uint##bits##_t)(a / b), (uint##bits##_t)(a % b));                 \
    }                                                                                              \
    static void idiv##bits(struct soft_cpu *cpu, uint##bits##_t divisor) {                         \
        int##wide##_t a = (int##wide##_t)(uint##wide##_t)accumulator##bits(cpu);                   \
        int##bits##_t b = (int##bits##_t)divisor;                                                  \
        uint##wide##_t lowest = (uint##wide##_t)1 << (2 * bits - 1);                               \
        if (b == 0 || (b == -1 && (uint##wide##_t)a == lowest) || a / b != (int##bits##_t)(a / b)) \
            raise_exception(cpu, EXC_DE);                                                          \
        set_quotient##bits(cpu, (uint##bits##_t)(a / b), (uint##bits##_t)(a % b));                 \
    }
DIVIDE(8, 16)
DIVIDE(16, 32)
DIVIDE(32, 64)
DIVIDE(64, 128)

#define ONE_OPERAND(op, bits)                                                                      \
    void op##_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        cpu->insn = insn;                                                                          \
        op##bits(cpu, get##bits(cpu, insn->rm));                                                   \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void op##_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        op##bits(cpu, mem_load##bits(cpu, insn));                                                  \
        INSN_NEXT;                                                                                 \
    }
#define ONE_OPERANDS(bits)                                                                         \
    ONE_OPERAND(mul, bits)                                                                         \
    ONE_OPERAND(imul, bits)                                                                        \
    ONE_OPERAND(div, bits)                                                                         \
    ONE_OPERAND(idiv, bits)
FOR_EACH_SIZE(ONE_OPERANDS)

#define PRODUCTS(bits)                                                                             \
    static inline uint##bits##_t product##bits(struct soft_cpu *cpu, uint##bits##_t a,             \
                                               uint##bits##_t b) {                                 \
        int##bits##_t r;                                                                           \
        bool over = __builtin_mul_overflow((int##bits##_t)a, (int##bits##_t)b, &r);                \
        flags_set_cf_of(cpu, over, over);                                                          \
        return (uint##bits##_t)r;                                                                  \
    }                                                                                              \
    void imul_g_e_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        set##bits(cpu, insn->reg,                                                                  \
                  product##bits(cpu, get##bits(cpu, insn->reg), get##bits(cpu, insn->rm)));        \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void imul_g_e_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                         \
        uint##bits##_t b = mem_load##bits(cpu, insn);                                              \
        set##bits(cpu, insn->reg, product##bits(cpu, get##bits(cpu, insn->reg), b));               \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void imul_g_e_i_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                       \
        set##bits(cpu, insn->reg,                                                                  \
                  product##bits(cpu, get##bits(cpu, insn->rm), (uint##bits##_t)insn->imm));        \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void imul_g_e_i_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                       \
        uint##bits##_t a = mem_load##bits(cpu, insn);                                              \
        set##bits(cpu, insn->reg, product##bits(cpu, a, (uint##bits##_t)insn->imm));               \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_WIDE(PRODUCTS)
