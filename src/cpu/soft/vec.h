/*
 * Vector handlers: what vec_*.c, x87.c and xsave.c share. Private to them.
 *
 * Nearly every vector instruction works on lanes of 128 bits apart. Its
 * *kernel* is one inline function on a lane,
 *
 *     static vec op_NAME(vec a, vec b, unsigned imm)
 *
 * and a *frame* (the macros at the end) makes the handlers of all its
 * encodings from that: sse_NAME_r, sse_NAME_m (legacy, register or memory),
 * v128_NAME_*, v256_NAME_* (VEX), mmx_NAME_*. `b` is ModRM.rm's operand; `a`
 * is the destination's old value (legacy) or VEX.vvvv; kernels of one source
 * ignore it. Floating-point kernels take `uint32_t *mx` besides (hostfp.h).
 * MMX operands are the low half of a lane whose high half is zero.
 *
 * Handlers check first (BEGIN macros), then read memory (may raise), then
 * compute (may raise #XM), then write registers.
 */
#ifndef LODGE_CPU_SOFT_VEC_H
#define LODGE_CPU_SOFT_VEC_H

#include "cpu/soft/access.h"
#include "cpu/soft/flags.h"
#include "cpu/soft/hostfp.h"
#include "cpu/soft/vec_rows.h"

#define HANDLER(name) void name(struct soft_cpu *cpu, const struct insn *insn)

/* Runs STATEMENT for i from 0 to n-1. */
#define EACH(n, ...)                                                                               \
    for (unsigned i = 0; i < (n); i++) {                                                           \
        __VA_ARGS__;                                                                               \
    }

/* ---- Availability ---- */

static inline bool sse_off(const struct soft_cpu *cpu) {
    return (cpu->cr0 & (CR0_EM | CR0_TS)) || !(cpu->cr4 & CR4_OSFXSR);
}

static inline bool avx_off(const struct soft_cpu *cpu) {
    return (cpu->cr0 & (CR0_TS | CR0_PE)) != CR0_PE || !(cpu->cr4 & CR4_OSXSAVE) ||
           (cpu->xcr0 & 6) != 6;
}

enum {
    FSW_ERRORS = 0x3f, /* IE, DE, ZE, OE, UE, PE */
    FSW_SF = 0x40,
    FSW_ES = 0x80,
    FSW_C1 = 0x200,
    FSW_TOP = 0x3800,
    FSW_TOP_SHIFT = 11,
    FSW_B = 0x8000,
};

static inline bool x87_off(const struct soft_cpu *cpu) {
    return (cpu->cr0 & (CR0_EM | CR0_TS)) || (cpu->fsw & FSW_ES);
}

#define BEGIN_(off, property)                                                                      \
    cpu->insn = insn;                                                                              \
    if (unlikely(off(cpu)))                                                                        \
    fp_check(cpu, property)
#define SSE_BEGIN BEGIN_(sse_off, INSN_SSE)
#define AVX_BEGIN BEGIN_(avx_off, INSN_AVX)
#define MMX_BEGIN BEGIN_(x87_off, INSN_MMX)

/* ---- Registers ---- */

static inline vec xmm(const struct soft_cpu *cpu, unsigned n) {
    return *(const vec *)&cpu->vec[n].q[0];
}

static inline vec ymm_high(const struct soft_cpu *cpu, unsigned n) {
    return *(const vec *)&cpu->vec[n].q[2];
}

static inline void set_xmm(struct soft_cpu *cpu, unsigned n, vec v) {
    *(vec *)&cpu->vec[n].q[0] = v;
}

static inline void set_ymm(struct soft_cpu *cpu, unsigned n, vec low, vec high) {
    *(vec *)&cpu->vec[n].q[0] = low;
    *(vec *)&cpu->vec[n].q[2] = high;
}

/* VEX.128: the rest of the register becomes zero. */
static inline void set_xmm_zero(struct soft_cpu *cpu, unsigned n, vec v) {
    set_ymm(cpu, n, v, VEC_ZERO);
}

static inline vec mmx(const struct soft_cpu *cpu, unsigned n) {
    return (vec){cpu->x87[n & 7].significand, 0};
}

/* What every MMX instruction but EMMS does to the x87 state. */
static inline void mmx_enter(struct soft_cpu *cpu) {
    cpu->fsw &= ~FSW_TOP;
    cpu->ftw = 0xff;
}

static inline void set_mmx(struct soft_cpu *cpu, unsigned n, uint64_t value) {
    cpu->x87[n & 7].significand = value;
    cpu->x87[n & 7].sign_exponent = 0xffff;
}

/* ---- Memory operands ---- */

enum { MXCSR_DAZ = 1 << 6, MXCSR_FTZ = 1 << 15, MXCSR_MM = 1 << 17, MXCSR_VALID = 0x2ffff };

_Noreturn void vec_misaligned(struct soft_cpu *cpu);

/* #GP(0) unless the linear address is a multiple of size (a power of two). */
static inline void check_aligned(struct soft_cpu *cpu, const struct insn *insn, uint64_t offset,
                                 unsigned size) {
    if (unlikely((cpu->seg[insn->seg].read.base + offset) & (size - 1)))
        vec_misaligned(cpu);
}

/* Operands of legacy SSE arithmetic: AMD's misaligned mode (MXCSR.MM) waives the rule. */
static inline void check_sse_aligned(struct soft_cpu *cpu, const struct insn *insn,
                                     uint64_t offset) {
    if (unlikely((cpu->seg[insn->seg].read.base + offset) & 15) && !(cpu->mxcsr & MXCSR_MM))
        vec_misaligned(cpu);
}

/* `size` (1, 2, 4, 8, 16) bytes at offset; the rest of the lane zero. Parts of a lane go through
 * general registers: the host cannot forward a short store to a wide load. */
static inline __attribute__((always_inline)) vec
load_vec_at(struct soft_cpu *cpu, const struct insn *insn, uint64_t offset, unsigned size) {
    vec v;
    switch (size) {
    case 1: return (vec){load8(cpu, insn->seg, offset), 0};
    case 2: return (vec){load16(cpu, insn->seg, offset), 0};
    case 4: return (vec){load32(cpu, insn->seg, offset), 0};
    case 8: return (vec){load64(cpu, insn->seg, offset), 0};
    default: access_read(cpu, insn->seg, offset, &v, 16); return v;
    }
}

static inline vec load_vec(struct soft_cpu *cpu, const struct insn *insn, unsigned size) {
    return load_vec_at(cpu, insn, insn_offset(cpu, insn), size);
}

/* A legacy SSE memory operand: aligned when it is a whole lane. */
static inline vec load_sse(struct soft_cpu *cpu, const struct insn *insn, unsigned size) {
    uint64_t offset = insn_offset(cpu, insn);
    if (size == 16)
        check_sse_aligned(cpu, insn, offset);
    return load_vec_at(cpu, insn, offset, size);
}

struct vec2 {
    vec low, high;
};

static inline struct vec2 load_vec2(struct soft_cpu *cpu, const struct insn *insn) {
    struct vec2 v;
    access_read(cpu, insn->seg, insn_offset(cpu, insn), &v, 32);
    return v;
}

static inline void store_vec(struct soft_cpu *cpu, const struct insn *insn, vec v, unsigned size) {
    access_write(cpu, insn->seg, insn_offset(cpu, insn), &v, size);
}

/*
 * Elements of masked and gathered operands are exempt from alignment checks
 * (#AC): with those in force they are accessed byte by byte.
 */
static inline unsigned element_unit(const struct soft_cpu *cpu, unsigned size) {
    return unlikely(cpu->rflags & FLAG_AC) ? 1 : size;
}

/* An offset that has left the address size; each element wraps by itself. */
static inline uint64_t wrap_offset(const struct insn *insn, uint64_t offset) {
    if (likely(insn->address_size == 8))
        return offset;
    return insn->address_size == 4 ? (uint32_t)offset : (uint16_t)offset;
}

static inline void read_element(struct soft_cpu *cpu, const struct insn *insn, uint64_t offset,
                                uint8_t *to, unsigned size) {
    uint8_t bytes[8];
    unsigned unit = element_unit(cpu, size);
    for (unsigned at = 0; at < size; at += unit)
        access_read(cpu, insn->seg, wrap_offset(insn, offset + at), bytes + at, unit);
    memcpy(to, bytes, size);
}

/* ---- SIMD floating-point exceptions ---- */

enum {
    MXCSR_IE = 1 << 0,
    MXCSR_DE = 1 << 1,
    MXCSR_ZE = 1 << 2,
    MXCSR_OPERAND_FLAGS = MXCSR_IE | MXCSR_DE | MXCSR_ZE, /* found before computing */
    MXCSR_FLAGS = 0x3f,
    MXCSR_MASK_SHIFT = 7,
    MXCSR_MASKS = MXCSR_FLAGS << MXCSR_MASK_SHIFT,
    MXCSR_CONTROL = 0x2ffc0, /* with MM, which not every host would load */
    MXCSR_DEFAULT = 0x1f80,
};

typedef vec vec_fp_kernel(vec a, vec b, unsigned imm, uint32_t *mx);

/* All exceptions masked, round to nearest, no FTZ or DAZ: kernels may run on cpu->mxcsr itself. */
static inline bool fp_plain(const struct soft_cpu *cpu) {
    return (cpu->mxcsr & MXCSR_CONTROL) == MXCSR_DEFAULT;
}

/*
 * Around a kernel under any other MXCSR: what it raises is added to
 * cpu->fp_raised; shifted by FP_RAISED_SHIFT when an unmasked invalid,
 * denormal or zero-divide ended it, which keeps other lanes from computing.
 */
enum { FP_RAISED_SHIFT = 8 };
static inline uint32_t fp_slow_begin(const struct soft_cpu *cpu) {
    if ((cpu->mxcsr & MXCSR_MASKS) != MXCSR_MASKS)
        hostfp_trap_begin();
    return hostfp_control(cpu->mxcsr);
}

static inline void fp_slow_end(struct soft_cpu *cpu, uint32_t mx) {
    uint32_t trapped = 0, unmasked = ~(cpu->mxcsr >> MXCSR_MASK_SHIFT);
    hostfp_restore();
    if ((cpu->mxcsr & MXCSR_MASKS) != MXCSR_MASKS)
        trapped = hostfp_trap_end();
    if (trapped & unmasked & MXCSR_OPERAND_FLAGS)
        cpu->fp_raised |= trapped << FP_RAISED_SHIFT;
    else
        cpu->fp_raised |= trapped != 0 ? trapped : mx & MXCSR_FLAGS;
}

/* Runs a kernel so. */
vec fp_run(struct soft_cpu *cpu, vec_fp_kernel *kernel, vec a, vec b, unsigned imm);
/* Moves cpu->fp_raised to MXCSR; raises #XM (or #UD) when one of them is unmasked. cpu->insn is
 * exact. */
void fp_commit(struct soft_cpu *cpu);

/* Within a handler: FP_BEGIN, a lane or more, FP_END. */
#define FP_BEGIN bool plain = likely(fp_plain(cpu))
#define FP_LANE(k, a, b)                                                                           \
    (likely(plain) ? k(a, b, (unsigned)insn->imm, &cpu->mxcsr)                                     \
                   : fp_run(cpu, k, a, b, (unsigned)insn->imm))
#define FP_END                                                                                     \
    if (unlikely(!plain))                                                                          \
    fp_commit(cpu)

/* ---- Frames ---- */

#define KERNEL(name)                                                                               \
    static inline __attribute__((always_inline)) vec op_##name(vec a, vec b, unsigned imm)

/* `size`: bytes of the memory operand. */
#define SSE_FRAME_SIZED(name, size) SSE_FRAME_LOAD(name, load_sse(cpu, insn, size))
#define SSE_FRAME_LOAD(name, load)                                                                 \
    HANDLER(sse_##name##_r) {                                                                      \
        SSE_BEGIN;                                                                                 \
        set_xmm(cpu, insn->reg,                                                                    \
                op_##name(xmm(cpu, insn->reg), xmm(cpu, insn->rm), (unsigned)insn->imm));          \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(sse_##name##_m) {                                                                      \
        SSE_BEGIN;                                                                                 \
        vec b = load;                                                                              \
        set_xmm(cpu, insn->reg, op_##name(xmm(cpu, insn->reg), b, (unsigned)insn->imm));           \
        INSN_NEXT;                                                                                 \
    }

#define V128_FRAME_SIZED(name, size)                                                               \
    HANDLER(v128_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        set_xmm_zero(cpu, insn->reg,                                                               \
                     op_##name(xmm(cpu, insn->vvvv), xmm(cpu, insn->rm), (unsigned)insn->imm));    \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec b = load_vec(cpu, insn, size);                                                         \
        set_xmm_zero(cpu, insn->reg, op_##name(xmm(cpu, insn->vvvv), b, (unsigned)insn->imm));     \
        INSN_NEXT;                                                                                 \
    }

/* The upper lane's immediate is shifted right by `shift`. */
#define V256_FRAME_IMM(name, shift)                                                                \
    HANDLER(v256_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        unsigned n = insn->vvvv, m = insn->rm, imm = (unsigned)insn->imm;                          \
        vec high = op_##name(ymm_high(cpu, n), ymm_high(cpu, m), imm >> (shift));                  \
        set_ymm(cpu, insn->reg, op_##name(xmm(cpu, n), xmm(cpu, m), imm), high);                   \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        struct vec2 b = load_vec2(cpu, insn);                                                      \
        unsigned n = insn->vvvv, imm = (unsigned)insn->imm;                                        \
        vec high = op_##name(ymm_high(cpu, n), b.high, imm >> (shift));                            \
        set_ymm(cpu, insn->reg, op_##name(xmm(cpu, n), b.low, imm), high);                         \
        INSN_NEXT;                                                                                 \
    }

/* MMX: `value` of a, b and imm is the result's 64 bits. */
#define MMX_FRAME_AS(name, size, value)                                                            \
    HANDLER(mmx_##name##_r) {                                                                      \
        MMX_BEGIN;                                                                                 \
        mmx_enter(cpu);                                                                            \
        vec a = mmx(cpu, insn->reg), b = mmx(cpu, insn->rm);                                       \
        unsigned imm = (unsigned)insn->imm;                                                        \
        (void)a, (void)imm;                                                                        \
        set_mmx(cpu, insn->reg, value);                                                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(mmx_##name##_m) {                                                                      \
        MMX_BEGIN;                                                                                 \
        vec a = mmx(cpu, insn->reg), b = load_vec(cpu, insn, size);                                \
        unsigned imm = (unsigned)insn->imm;                                                        \
        (void)a, (void)imm;                                                                        \
        mmx_enter(cpu);                                                                            \
        set_mmx(cpu, insn->reg, value);                                                            \
        INSN_NEXT;                                                                                 \
    }

#define SSE_FRAME(name)  SSE_FRAME_SIZED(name, 16)
#define V128_FRAME(name) V128_FRAME_SIZED(name, 16)
#define MMX_FRAME(name)  MMX_FRAME_AS(name, 8, op_##name(a, b, imm)[0])
/* Kernels that compute one half from each source. */
#define MMX_FRAME_FOLD(name) MMX_FRAME_AS(name, 8, fold(op_##name(a, b, imm)))
#define V256_FRAME(name)     V256_FRAME_IMM(name, 0)
#define XMM_FRAMES(name)     SSE_FRAME(name) V128_FRAME(name)
#define YMM_FRAMES(name)     XMM_FRAMES(name) V256_FRAME(name)
#define ALL_FRAMES(name)     YMM_FRAMES(name) MMX_FRAME(name)
#define FOLD_FRAMES(name)    YMM_FRAMES(name) MMX_FRAME_FOLD(name)

static inline uint64_t fold(vec v) {
    return (uint32_t)v[0] | v[1] << 32;
}

/* The same for floating-point kernels. */
#define SSE_FP_FRAME(name, size)                                                                   \
    HANDLER(sse_##name##_r) {                                                                      \
        SSE_BEGIN;                                                                                 \
        FP_BEGIN;                                                                                  \
        vec r = FP_LANE(op_##name, xmm(cpu, insn->reg), xmm(cpu, insn->rm));                       \
        FP_END;                                                                                    \
        set_xmm(cpu, insn->reg, r);                                                                \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(sse_##name##_m) {                                                                      \
        SSE_BEGIN;                                                                                 \
        vec b = load_sse(cpu, insn, size);                                                         \
        FP_BEGIN;                                                                                  \
        vec r = FP_LANE(op_##name, xmm(cpu, insn->reg), b);                                        \
        FP_END;                                                                                    \
        set_xmm(cpu, insn->reg, r);                                                                \
        INSN_NEXT;                                                                                 \
    }

#define V128_FP_FRAME(name, size) V128_FP_FRAME_AS(name, name, size)
#define V128_FP_FRAME_AS(name, kernel, size)                                                       \
    HANDLER(v128_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        FP_BEGIN;                                                                                  \
        vec r = FP_LANE(op_##kernel, xmm(cpu, insn->vvvv), xmm(cpu, insn->rm));                    \
        FP_END;                                                                                    \
        set_xmm_zero(cpu, insn->reg, r);                                                           \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec b = load_vec(cpu, insn, size);                                                         \
        FP_BEGIN;                                                                                  \
        vec r = FP_LANE(op_##kernel, xmm(cpu, insn->vvvv), b);                                     \
        FP_END;                                                                                    \
        set_xmm_zero(cpu, insn->reg, r);                                                           \
        INSN_NEXT;                                                                                 \
    }

#define V256_FP_FRAME(name) V256_FP_FRAME_AS(name, name)
#define V256_FP_FRAME_AS(name, kernel)                                                             \
    HANDLER(v256_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        FP_BEGIN;                                                                                  \
        vec low = FP_LANE(op_##kernel, xmm(cpu, insn->vvvv), xmm(cpu, insn->rm));                  \
        vec high = FP_LANE(op_##kernel, ymm_high(cpu, insn->vvvv), ymm_high(cpu, insn->rm));       \
        FP_END;                                                                                    \
        set_ymm(cpu, insn->reg, low, high);                                                        \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        struct vec2 b = load_vec2(cpu, insn);                                                      \
        FP_BEGIN;                                                                                  \
        vec low = FP_LANE(op_##kernel, xmm(cpu, insn->vvvv), b.low);                               \
        vec high = FP_LANE(op_##kernel, ymm_high(cpu, insn->vvvv), b.high);                        \
        FP_END;                                                                                    \
        set_ymm(cpu, insn->reg, low, high);                                                        \
        INSN_NEXT;                                                                                 \
    }

#define SCALAR_FP_FRAMES(name, size) SSE_FP_FRAME(name, size) V128_FP_FRAME(name, size)
#define XMM_FP_FRAMES(name)          SSE_FP_FRAME(name, 16) V128_FP_FRAME(name, 16)
#define PACKED_FP_FRAMES(name)       XMM_FP_FRAMES(name) V256_FP_FRAME(name)

#endif
