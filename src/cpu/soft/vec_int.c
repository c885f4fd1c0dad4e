/*
 * Integer arithmetic, comparisons, logic and shifts on vectors.
 */
#include "cpu/soft/vec.h"

/* ---- Element by element, as vector expressions ---- */

#define ELEMENTWISE(name, expression)                                                              \
    KERNEL(name) {                                                                                 \
        return (vec)(expression);                                                                  \
    }
#define ELEMENTWISE_ALL(name, expression) ELEMENTWISE(name, expression) ALL_FRAMES(name)
#define ELEMENTWISE_YMM(name, expression) ELEMENTWISE(name, expression) YMM_FRAMES(name)

ELEMENTWISE_ALL(paddb, (u8x16)a + (u8x16)b)
ELEMENTWISE_ALL(paddw, (u16x8)a + (u16x8)b)
ELEMENTWISE_ALL(paddd, (u32x4)a + (u32x4)b)
ELEMENTWISE_ALL(paddq, a + b)
ELEMENTWISE_ALL(psubb, (u8x16)a - (u8x16)b)
ELEMENTWISE_ALL(psubw, (u16x8)a - (u16x8)b)
ELEMENTWISE_ALL(psubd, (u32x4)a - (u32x4)b)
ELEMENTWISE_ALL(psubq, a - b)
ELEMENTWISE_ALL(pand, a &b)
ELEMENTWISE_ALL(pandn, ~a &b)
ELEMENTWISE_ALL(por, a | b)
ELEMENTWISE_ALL(pxor, a ^ b)
ELEMENTWISE_ALL(pcmpeqb, (u8x16)a == (u8x16)b)
ELEMENTWISE_ALL(pcmpeqw, (u16x8)a == (u16x8)b)
ELEMENTWISE_ALL(pcmpeqd, (u32x4)a == (u32x4)b)
ELEMENTWISE_YMM(pcmpeqq, a == b)
ELEMENTWISE_ALL(pcmpgtb, (s8x16)a > (s8x16)b)
ELEMENTWISE_ALL(pcmpgtw, (s16x8)a > (s16x8)b)
ELEMENTWISE_ALL(pcmpgtd, (s32x4)a > (s32x4)b)
ELEMENTWISE_YMM(pcmpgtq, (s64x2)a > (s64x2)b)
ELEMENTWISE_ALL(pmullw, (u16x8)a *(u16x8)b)
ELEMENTWISE_YMM(pmulld, (u32x4)a *(u32x4)b)
ELEMENTWISE_ALL(pmuludq, (a & UINT32_MAX) * (b & UINT32_MAX))

/* Unsigned saturation: a wrapped sum is less than an operand. */
KERNEL(paddusb) {
    u8x16 sum = (u8x16)a + (u8x16)b;
    return (vec)(sum | (u8x16)(sum < (u8x16)a));
}
KERNEL(paddusw) {
    u16x8 sum = (u16x8)a + (u16x8)b;
    return (vec)(sum | (u16x8)(sum < (u16x8)a));
}
KERNEL(psubusb) {
    return (vec)(((u8x16)a - (u8x16)b) & (u8x16)((u8x16)a > (u8x16)b));
}
KERNEL(psubusw) {
    return (vec)(((u16x8)a - (u16x8)b) & (u16x8)((u16x8)a > (u16x8)b));
}
ALL_FRAMES(paddusb)
ALL_FRAMES(paddusw)
ALL_FRAMES(psubusb)
ALL_FRAMES(psubusw)

/* `mask` of a and b picks a, else b. */
#define PICK(name, type, operator, FRAMES)                                                         \
    KERNEL(name) {                                                                                 \
        vec mask = (vec)((type)a operator(type) b);                                                \
        return (a & mask) | (b & ~mask);                                                           \
    }                                                                                              \
    FRAMES(name)
PICK(pmaxub, u8x16, >, ALL_FRAMES)
PICK(pminub, u8x16, <, ALL_FRAMES)
PICK(pmaxsw, s16x8, >, ALL_FRAMES)
PICK(pminsw, s16x8, <, ALL_FRAMES)
PICK(pmaxsb, s8x16, >, YMM_FRAMES)
PICK(pminsb, s8x16, <, YMM_FRAMES)
PICK(pmaxuw, u16x8, >, YMM_FRAMES)
PICK(pminuw, u16x8, <, YMM_FRAMES)
PICK(pmaxsd, s32x4, >, YMM_FRAMES)
PICK(pminsd, s32x4, <, YMM_FRAMES)
PICK(pmaxud, u32x4, >, YMM_FRAMES)
PICK(pminud, u32x4, <, YMM_FRAMES)

/* ---- Element by element, as loops: x and y are elements, in int ---- */

static inline int clamp(int value, int low, int high) {
    return value < low ? low : value > high ? high : value;
}

#define LOOP(name, type, count, expression, FRAMES)                                                \
    KERNEL(name) {                                                                                 \
        type r = {0};                                                                              \
        for (unsigned i = 0; i < (count); i++) {                                                   \
            int x = ((type)a)[i], y = ((type)b)[i];                                                \
            (void)x;                                                                               \
            r[i] = expression;                                                                     \
        }                                                                                          \
        return (vec)r;                                                                             \
    }                                                                                              \
    FRAMES(name)
LOOP(paddsb, s8x16, 16, (int8_t)clamp(x + y, INT8_MIN, INT8_MAX), ALL_FRAMES)
LOOP(paddsw, s16x8, 8, (int16_t)clamp(x + y, INT16_MIN, INT16_MAX), ALL_FRAMES)
LOOP(psubsb, s8x16, 16, (int8_t)clamp(x - y, INT8_MIN, INT8_MAX), ALL_FRAMES)
LOOP(psubsw, s16x8, 8, (int16_t)clamp(x - y, INT16_MIN, INT16_MAX), ALL_FRAMES)
LOOP(pavgb, u8x16, 16, (uint8_t)((x + y + 1) >> 1), ALL_FRAMES)
LOOP(pavgw, u16x8, 8, (uint16_t)((x + y + 1) >> 1), ALL_FRAMES)
LOOP(pmulhw, s16x8, 8, (int16_t)((x * y) >> 16), ALL_FRAMES)
LOOP(pmulhuw, u16x8, 8, (uint16_t)(((unsigned)x * (unsigned)y) >> 16), ALL_FRAMES)
LOOP(pmulhrsw, s16x8, 8, (int16_t)((((x * y) >> 14) + 1) >> 1), ALL_FRAMES)
LOOP(psignb, s8x16, 16, (int8_t)(y < 0 ? -x : y == 0 ? 0 : x), ALL_FRAMES)
LOOP(psignw, s16x8, 8, (int16_t)(y < 0 ? -x : y == 0 ? 0 : x), ALL_FRAMES)
LOOP(psignd, s32x4, 4, y < 0 ? (int)(0 - (unsigned)x) : y == 0 ? 0 : x, ALL_FRAMES)
LOOP(pabsb, s8x16, 16, (int8_t)(y < 0 ? -y : y), ALL_FRAMES)
LOOP(pabsw, s16x8, 8, (int16_t)(y < 0 ? -y : y), ALL_FRAMES)
LOOP(pabsd, s32x4, 4, y < 0 ? (int)(0 - (unsigned)y) : y, ALL_FRAMES)

KERNEL(pmuldq) {
    s32x4 x = (s32x4)a, y = (s32x4)b;
    return (vec)(s64x2){(int64_t)x[0] * y[0], (int64_t)x[2] * y[2]};
}
YMM_FRAMES(pmuldq)

/* ---- Neighbours ---- */

/* The host does in one instruction what takes compilers twenty. */
#define HOST(name)                                                                                 \
    KERNEL(name) {                                                                                 \
        return host_##name(a, b);                                                                  \
    }                                                                                              \
    ALL_FRAMES(name)
HOST(pmaddwd)
HOST(pmaddubsw)
HOST(psadbw)

/* The lower half comes from a's pairs, the upper from b's. */
#define HORIZONTAL(name, type, count, expression)                                                  \
    KERNEL(name) {                                                                                 \
        type r = {0};                                                                              \
        for (unsigned i = 0; i < (count); i++) {                                                   \
            type from = i < (count) / 2 ? (type)a : (type)b;                                       \
            int x = (int)from[2 * i % (count)], y = (int)from[2 * i % (count) + 1];                \
            r[i] = expression;                                                                     \
        }                                                                                          \
        return (vec)r;                                                                             \
    }                                                                                              \
    FOLD_FRAMES(name)
HORIZONTAL(phaddw, s16x8, 8, (int16_t)(x + y))
HORIZONTAL(phaddd, u32x4, 4, (uint32_t)x + (uint32_t)y)
HORIZONTAL(phaddsw, s16x8, 8, (int16_t)clamp(x + y, INT16_MIN, INT16_MAX))
HORIZONTAL(phsubw, s16x8, 8, (int16_t)(x - y))
HORIZONTAL(phsubd, u32x4, 4, (uint32_t)x - (uint32_t)y)
HORIZONTAL(phsubsw, s16x8, 8, (int16_t)clamp(x - y, INT16_MIN, INT16_MAX))

static inline unsigned difference(unsigned x, unsigned y) {
    return x > y ? x - y : y - x;
}

KERNEL(mpsadbw) {
    u8x16 x = (u8x16)a, y = (u8x16)b;
    unsigned from = imm & 4, with = (imm & 3) * 4;
    u16x8 r = {0};
    for (unsigned j = 0; j < 4; j++)
        EACH(8, r[i] += (uint16_t)difference(x[from + i + j], y[with + j]))
    return (vec)r;
}
XMM_FRAMES(mpsadbw)
V256_FRAME_IMM(mpsadbw, 3)

KERNEL(phminposuw) {
    u16x8 y = (u16x8)b;
    unsigned least = 0;
    EACH(8, least = y[i] < y[least] ? i : least)
    return (vec){y[least] | (uint64_t)least << 16, 0};
}
XMM_FRAMES(phminposuw)

/* ---- Shifts ---- */

static inline u16x8 splat16(uint64_t n) {
    return (u16x8){0} + (uint16_t)n;
}

static inline u32x4 splat32(uint64_t n) {
    return (u32x4){0} + (uint32_t)n;
}

/* By one count for all elements: a count beyond the width gives zero, or the sign. */
static inline uint64_t at_most(uint64_t count, uint64_t limit) {
    return count < limit ? count : limit;
}

#define SHIFT_BY(name, limit, expression)                                                          \
    static inline vec by_##name(vec a, uint64_t n) {                                               \
        return n > (limit) ? VEC_ZERO : (vec)(expression);                                         \
    }                                                                                              \
    SHIFT_FRAMES(name) SHIFT_FRAME_MMX(name)
#define SHIFT_ARITHMETIC(name, limit, expression)                                                  \
    static inline vec by_##name(vec a, uint64_t count) {                                           \
        uint64_t n = at_most(count, limit);                                                        \
        return (vec)(expression);                                                                  \
    }                                                                                              \
    SHIFT_FRAMES(name) SHIFT_FRAME_MMX(name)

#define SHIFT_FRAMES(name)                                                                         \
    KERNEL(name) {                                                                                 \
        return by_##name(a, b[0]);                                                                 \
    }                                                                                              \
    XMM_FRAMES(name)                                                                               \
    HANDLER(v256_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        uint64_t n = cpu->vec[insn->rm].q[0];                                                      \
        vec high = by_##name(ymm_high(cpu, insn->vvvv), n);                                        \
        set_ymm(cpu, insn->reg, by_##name(xmm(cpu, insn->vvvv), n), high);                         \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        uint64_t n = load_vec(cpu, insn, 16)[0];                                                   \
        vec high = by_##name(ymm_high(cpu, insn->vvvv), n);                                        \
        set_ymm(cpu, insn->reg, by_##name(xmm(cpu, insn->vvvv), n), high);                         \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    SHIFT_FRAMES_IMM(name)
#define SHIFT_FRAMES_IMM(name)                                                                     \
    HANDLER(sse_##name##_i) {                                                                      \
        SSE_BEGIN;                                                                                 \
        set_xmm(cpu, insn->rm, by_##name(xmm(cpu, insn->rm), insn->imm & 0xff));                   \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_i) {                                                                     \
        AVX_BEGIN;                                                                                 \
        set_xmm_zero(cpu, insn->vvvv, by_##name(xmm(cpu, insn->rm), insn->imm & 0xff));            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_i) {                                                                     \
        AVX_BEGIN;                                                                                 \
        uint64_t n = insn->imm & 0xff;                                                             \
        set_ymm(cpu, insn->vvvv, by_##name(xmm(cpu, insn->rm), n),                                 \
                by_##name(ymm_high(cpu, insn->rm), n));                                            \
        INSN_NEXT;                                                                                 \
    }
#define SHIFT_FRAME_MMX(name)                                                                      \
    MMX_FRAME(name)                                                                                \
    HANDLER(mmx_##name##_i) {                                                                      \
        MMX_BEGIN;                                                                                 \
        mmx_enter(cpu);                                                                            \
        set_mmx(cpu, insn->rm, by_##name(mmx(cpu, insn->rm), insn->imm & 0xff)[0]);                \
        INSN_NEXT;                                                                                 \
    }
SHIFT_BY(psrlw, 15, (u16x8)a >> splat16(n))
SHIFT_BY(psrld, 31, (u32x4)a >> splat32(n))
SHIFT_BY(psrlq, 63, a >> ((vec){n, n}))
SHIFT_BY(psllw, 15, (u16x8)a << splat16(n))
SHIFT_BY(pslld, 31, (u32x4)a << splat32(n))
SHIFT_BY(psllq, 63, a << ((vec){n, n}))
SHIFT_ARITHMETIC(psraw, 15, (s16x8)a >> (s16x8)splat16(n))
SHIFT_ARITHMETIC(psrad, 31, (s32x4)a >> (s32x4)splat32(n))

/* By whole bytes. */
static inline vec by_psrldq(vec a, uint64_t n) {
    return n > 15 ? VEC_ZERO : host_psrldq(a, (unsigned)n);
}

static inline vec by_pslldq(vec a, uint64_t n) {
    return n > 15 ? VEC_ZERO : host_pslldq(a, (unsigned)n);
}
SHIFT_FRAMES_IMM(psrldq)
SHIFT_FRAMES_IMM(pslldq)

/* By a count for each element. */
#define SHIFT_EACH(name, type, count, expression)                                                  \
    KERNEL(name) {                                                                                 \
        type r = {0};                                                                              \
        for (unsigned i = 0; i < (count); i++) {                                                   \
            uint64_t n = (uint64_t)((type)b)[i] & (count == 4 ? UINT32_MAX : UINT64_MAX);          \
            r[i] = expression;                                                                     \
        }                                                                                          \
        return (vec)r;                                                                             \
    }                                                                                              \
    V128_FRAME(name) V256_FRAME(name)
SHIFT_EACH(psrlvd, u32x4, 4, n > 31 ? 0 : ((u32x4)a)[i] >> n)
SHIFT_EACH(psllvd, u32x4, 4, n > 31 ? 0 : ((u32x4)a)[i] << n)
SHIFT_EACH(psrlvq, vec, 2, n > 63 ? 0 : a[i] >> n)
SHIFT_EACH(psllvq, vec, 2, n > 63 ? 0 : a[i] << n)
SHIFT_EACH(psravd, s32x4, 4, ((s32x4)a)[i] >> at_most(n, 31))

/* ---- Tests ---- */

static inline bool none(vec v) {
    return (v[0] | v[1]) == 0;
}

/* ZF: no bit of a & b under the mask; CF: none of ~a & b. */
static inline void test(struct soft_cpu *cpu, vec and, vec andn) {
    flags_set_status(cpu, (none(and) ? FLAG_ZF : 0) | (none(andn) ? FLAG_CF : 0));
}

#define TEST_FRAMES(name, mask)                                                                    \
    HANDLER(v128_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec a = xmm(cpu, insn->reg), b = xmm(cpu, insn->rm);                                       \
        test(cpu, a &b &(mask), ~a &b &(mask));                                                    \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec a = xmm(cpu, insn->reg), b = load_vec(cpu, insn, 16);                                  \
        test(cpu, a &b &(mask), ~a &b &(mask));                                                    \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec a = xmm(cpu, insn->reg), b = xmm(cpu, insn->rm);                                       \
        vec c = ymm_high(cpu, insn->reg), d = ymm_high(cpu, insn->rm);                             \
        test(cpu, ((a & b) | (c & d)) & (mask), ((~a & b) | (~c & d)) & (mask));                   \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        struct vec2 m = load_vec2(cpu, insn);                                                      \
        vec a = xmm(cpu, insn->reg), c = ymm_high(cpu, insn->reg);                                 \
        test(cpu, ((a & m.low) | (c & m.high)) & (mask), ((~a & m.low) | (~c & m.high)) & (mask)); \
        INSN_NEXT;                                                                                 \
    }
TEST_FRAMES(ptest, ~VEC_ZERO)
TEST_FRAMES(testps, ((vec){UINT64_C(0x8000000080000000), UINT64_C(0x8000000080000000)}))
TEST_FRAMES(testpd, ((vec){UINT64_C(1) << 63, UINT64_C(1) << 63}))

HANDLER(sse_ptest_r) {
    SSE_BEGIN;
    vec a = xmm(cpu, insn->reg), b = xmm(cpu, insn->rm);
    test(cpu, a & b, ~a & b);
    INSN_NEXT;
}

HANDLER(sse_ptest_m) {
    SSE_BEGIN;
    vec a = xmm(cpu, insn->reg), b = load_sse(cpu, insn, 16);
    test(cpu, a & b, ~a & b);
    INSN_NEXT;
}
