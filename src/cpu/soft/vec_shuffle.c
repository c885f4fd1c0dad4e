/*
 * Interleaving, packing, shuffles, blends, inserts, broadcasts, permutations.
 */
#include "cpu/soft/vec.h"

/* ---- Interleave ---- */

#define UNPACK(name, type, ...)                                                                    \
    KERNEL(name) {                                                                                 \
        return (vec)__builtin_shufflevector((type)a, (type)b, __VA_ARGS__);                        \
    }
UNPACK(punpcklbw, u8x16, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
UNPACK(punpckhbw, u8x16, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
UNPACK(punpcklwd, u16x8, 0, 8, 1, 9, 2, 10, 3, 11)
UNPACK(punpckhwd, u16x8, 4, 12, 5, 13, 6, 14, 7, 15)
UNPACK(punpckldq, u32x4, 0, 4, 1, 5)
UNPACK(punpckhdq, u32x4, 2, 6, 3, 7)
UNPACK(punpcklqdq, vec, 0, 2)
UNPACK(punpckhqdq, vec, 1, 3)
YMM_FRAMES(punpcklbw)
YMM_FRAMES(punpcklwd)
YMM_FRAMES(punpckldq)
YMM_FRAMES(punpcklqdq)
YMM_FRAMES(punpckhbw)
YMM_FRAMES(punpckhwd)
YMM_FRAMES(punpckhdq)
YMM_FRAMES(punpckhqdq)
/* Both halves of MMX registers lie in the lower half of a lane. */
MMX_FRAME_AS(punpcklbw, 4, op_punpcklbw(a, b, imm)[0])
MMX_FRAME_AS(punpcklwd, 4, op_punpcklwd(a, b, imm)[0])
MMX_FRAME_AS(punpckldq, 4, op_punpckldq(a, b, imm)[0])
MMX_FRAME_AS(punpckhbw, 8, op_punpcklbw(a, b, imm)[1])
MMX_FRAME_AS(punpckhwd, 8, op_punpcklwd(a, b, imm)[1])
MMX_FRAME_AS(punpckhdq, 8, op_punpckldq(a, b, imm)[1])

/* ---- Pack with saturation ---- */

#define PACK(name)                                                                                 \
    KERNEL(name) {                                                                                 \
        return host_##name(a, b);                                                                  \
    }
PACK(packsswb)
PACK(packuswb)
PACK(packssdw)
PACK(packusdw)
FOLD_FRAMES(packsswb)
FOLD_FRAMES(packuswb)
FOLD_FRAMES(packssdw)
YMM_FRAMES(packusdw)

/* ---- Shuffles within a lane ---- */

KERNEL(pshufb) {
    return host_pshufb(a, b);
}
YMM_FRAMES(pshufb)
MMX_FRAME_AS(pshufb, 8, host_pshufb(a, b &UINT64_C(0x8787878787878787))[0])

/* Four elements picked by two bits each. */
KERNEL(pshufd) {
    u32x4 s = (u32x4)b;
    return (vec)(u32x4){s[imm & 3], s[imm >> 2 & 3], s[imm >> 4 & 3], s[imm >> 6 & 3]};
}
YMM_FRAMES(pshufd)

static inline uint64_t shuffle_words(uint64_t from, unsigned imm) {
    uint64_t r = 0;
    EACH(4, r |= (from >> (imm >> 2 * i & 3) * 16 & 0xffff) << 16 * i)
    return r;
}

KERNEL(pshuflw) {
    return (vec){shuffle_words(b[0], imm), b[1]};
}

KERNEL(pshufhw) {
    return (vec){b[0], shuffle_words(b[1], imm)};
}
YMM_FRAMES(pshuflw)
YMM_FRAMES(pshufhw)
MMX_FRAME_AS(pshufw, 8, shuffle_words(b[0], imm))

KERNEL(shufps) {
    u32x4 x = (u32x4)a, y = (u32x4)b;
    return (vec)(u32x4){x[imm & 3], x[imm >> 2 & 3], y[imm >> 4 & 3], y[imm >> 6 & 3]};
}
YMM_FRAMES(shufps)

KERNEL(shufpd) {
    return (vec){a[imm & 1], b[imm >> 1 & 1]};
}
XMM_FRAMES(shufpd)
V256_FRAME_IMM(shufpd, 2)

/* A lane's width of bytes out of a (high) and b (low) side by side, from byte imm on. */
KERNEL(palignr) {
    return imm > 31 ? VEC_ZERO : host_palignr(a, b, imm);
}

/* The same for MMX: both fit in a lane. */
static inline uint64_t align_mmx(vec a, vec b, unsigned imm) {
    unsigned __int128 both = (unsigned __int128)a[0] << 64 | b[0];
    return imm >= 16 ? 0 : (uint64_t)(both >> 8 * imm);
}
YMM_FRAMES(palignr)
MMX_FRAME_AS(palignr, 8, align_mmx(a, b, imm))

KERNEL(permilps) {
    u32x4 x = (u32x4)a, y = (u32x4)b, r = {0};
    EACH(4, r[i] = x[y[i] & 3])
    return (vec)r;
}

KERNEL(permilpd) {
    return (vec){a[b[0] >> 1 & 1], a[b[1] >> 1 & 1]};
}

KERNEL(permilpd_i) {
    return (vec){b[imm & 1], b[imm >> 1 & 1]};
}
V128_FRAME(permilps)
V256_FRAME(permilps)
V128_FRAME(permilpd)
V256_FRAME(permilpd)
V128_FRAME(permilpd_i)
V256_FRAME_IMM(permilpd_i, 2)

KERNEL(movsldup) {
    u32x4 s = (u32x4)b;
    return (vec)(u32x4){s[0], s[0], s[2], s[2]};
}

KERNEL(movshdup) {
    u32x4 s = (u32x4)b;
    return (vec)(u32x4){s[1], s[1], s[3], s[3]};
}

KERNEL(movddup) {
    return (vec){b[0], b[0]};
}
YMM_FRAMES(movsldup)
YMM_FRAMES(movshdup)
SSE_FRAME_SIZED(movddup, 8)
V128_FRAME_SIZED(movddup, 8)
V256_FRAME(movddup)

/* ---- Blends ---- */

/* `bits`: which bit of the immediate is each element's. */
#define BLEND(name, type, element, ...)                                                            \
    KERNEL(name) {                                                                                 \
        type m = (type)((((type){0} + (element)imm) & (type)__VA_ARGS__) != 0);                    \
        return (a & ~(vec)m) | (b & (vec)m);                                                       \
    }
BLEND(pblendw, u16x8, uint16_t, {1, 2, 4, 8, 16, 32, 64, 128})
BLEND(blendps, u32x4, uint32_t, {1, 2, 4, 8})
BLEND(blendpd, vec, uint64_t, {1, 2})
YMM_FRAMES(pblendw)
XMM_FRAMES(blendps)
V256_FRAME_IMM(blendps, 4)
XMM_FRAMES(blendpd)
V256_FRAME_IMM(blendpd, 2)

/* By the sign of a mask's elements: XMM0, or the register in imm8[7:4]. */
static inline vec by_pblendvb(vec a, vec b, vec mask) {
    vec m = (vec)((s8x16)mask < (s8x16)VEC_ZERO);
    return (a & ~m) | (b & m);
}

static inline vec by_blendvps(vec a, vec b, vec mask) {
    vec m = (vec)((s32x4)mask < (s32x4)VEC_ZERO);
    return (a & ~m) | (b & m);
}

static inline vec by_blendvpd(vec a, vec b, vec mask) {
    vec m = (vec)((s64x2)mask < (s64x2)VEC_ZERO);
    return (a & ~m) | (b & m);
}

/* Outside 64-bit mode the highest bit of the register number is ignored. */
static inline unsigned is4(const struct soft_cpu *cpu, const struct insn *insn) {
    return insn->imm >> 4 & (cpu->mode == INSN_MODE_64 ? 15 : 7);
}

#define BLEND_VARIABLE(name)                                                                       \
    HANDLER(sse_##name##_r) {                                                                      \
        SSE_BEGIN;                                                                                 \
        set_xmm(cpu, insn->reg, by_##name(xmm(cpu, insn->reg), xmm(cpu, insn->rm), xmm(cpu, 0)));  \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(sse_##name##_m) {                                                                      \
        SSE_BEGIN;                                                                                 \
        vec b = load_sse(cpu, insn, 16);                                                           \
        set_xmm(cpu, insn->reg, by_##name(xmm(cpu, insn->reg), b, xmm(cpu, 0)));                   \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec mask = xmm(cpu, is4(cpu, insn));                                                       \
        set_xmm_zero(cpu, insn->reg, by_##name(xmm(cpu, insn->vvvv), xmm(cpu, insn->rm), mask));   \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec b = load_vec(cpu, insn, 16), mask = xmm(cpu, is4(cpu, insn));                          \
        set_xmm_zero(cpu, insn->reg, by_##name(xmm(cpu, insn->vvvv), b, mask));                    \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        unsigned n = insn->vvvv, m = insn->rm, mask = is4(cpu, insn);                              \
        vec high = by_##name(ymm_high(cpu, n), ymm_high(cpu, m), ymm_high(cpu, mask));             \
        set_ymm(cpu, insn->reg, by_##name(xmm(cpu, n), xmm(cpu, m), xmm(cpu, mask)), high);        \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        struct vec2 b = load_vec2(cpu, insn);                                                      \
        unsigned n = insn->vvvv, mask = is4(cpu, insn);                                            \
        vec high = by_##name(ymm_high(cpu, n), b.high, ymm_high(cpu, mask));                       \
        set_ymm(cpu, insn->reg, by_##name(xmm(cpu, n), b.low, xmm(cpu, mask)), high);              \
        INSN_NEXT;                                                                                 \
    }
BLEND_VARIABLE(pblendvb)
BLEND_VARIABLE(blendvps)
BLEND_VARIABLE(blendvpd)

/* ---- Sign and zero extension ---- */

/* size: bytes of the 128-bit form's memory operand. */
#define WIDEN(name, from, to, element, count, size)                                                \
    static inline vec part_##name(vec b, unsigned first) {                                         \
        to r = {0};                                                                                \
        EACH(count, r[i] = (element)((from)b)[first + i])                                          \
        return (vec)r;                                                                             \
    }                                                                                              \
    KERNEL(name) {                                                                                 \
        return part_##name(b, 0);                                                                  \
    }                                                                                              \
    SSE_FRAME_SIZED(name, size)                                                                    \
    V128_FRAME_SIZED(name, size)                                                                   \
    HANDLER(v256_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec b = xmm(cpu, insn->rm);                                                                \
        set_ymm(cpu, insn->reg, part_##name(b, 0), part_##name(b, count));                         \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec b = load_vec(cpu, insn, 2 * (size));                                                   \
        set_ymm(cpu, insn->reg, part_##name(b, 0), part_##name(b, count));                         \
        INSN_NEXT;                                                                                 \
    }
WIDEN(pmovsxbw, s8x16, s16x8, int16_t, 8, 8)
WIDEN(pmovsxbd, s8x16, s32x4, int32_t, 4, 4)
WIDEN(pmovsxbq, s8x16, s64x2, int64_t, 2, 2)
WIDEN(pmovsxwd, s16x8, s32x4, int32_t, 4, 8)
WIDEN(pmovsxwq, s16x8, s64x2, int64_t, 2, 4)
WIDEN(pmovsxdq, s32x4, s64x2, int64_t, 2, 8)
WIDEN(pmovzxbw, u8x16, u16x8, uint16_t, 8, 8)
WIDEN(pmovzxbd, u8x16, u32x4, uint32_t, 4, 4)
WIDEN(pmovzxbq, u8x16, vec, uint64_t, 2, 2)
WIDEN(pmovzxwd, u16x8, u32x4, uint32_t, 4, 8)
WIDEN(pmovzxwq, u16x8, vec, uint64_t, 2, 4)
WIDEN(pmovzxdq, u32x4, vec, uint64_t, 2, 8)

/* ---- Insert ---- */

static inline vec insert8(vec v, unsigned n, uint64_t value) {
    u8x16 r = (u8x16)v;
    r[n & 15] = (uint8_t)value;
    return (vec)r;
}

static inline vec insert16(vec v, unsigned n, uint64_t value) {
    u16x8 r = (u16x8)v;
    r[n & 7] = (uint16_t)value;
    return (vec)r;
}

static inline vec insert32(vec v, unsigned n, uint64_t value) {
    u32x4 r = (u32x4)v;
    r[n & 3] = (uint32_t)value;
    return (vec)r;
}

static inline vec insert64(vec v, unsigned n, uint64_t value) {
    return n & 1 ? (vec){v[0], value} : (vec){value, v[1]};
}

#define INSERT(name_r, name_m, bits)                                                               \
    HANDLER(sse_##name_r) {                                                                        \
        SSE_BEGIN;                                                                                 \
        set_xmm(cpu, insn->reg,                                                                    \
                insert##bits(xmm(cpu, insn->reg), (unsigned)insn->imm, cpu->gpr[insn->rm]));       \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(sse_##name_m) {                                                                        \
        SSE_BEGIN;                                                                                 \
        uint64_t value = load##bits(cpu, insn->seg, insn_offset(cpu, insn));                       \
        set_xmm(cpu, insn->reg, insert##bits(xmm(cpu, insn->reg), (unsigned)insn->imm, value));    \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name_r) {                                                                       \
        AVX_BEGIN;                                                                                 \
        set_xmm_zero(cpu, insn->reg,                                                               \
                     insert##bits(xmm(cpu, insn->vvvv), (unsigned)insn->imm, cpu->gpr[insn->rm])); \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name_m) {                                                                       \
        AVX_BEGIN;                                                                                 \
        uint64_t value = load##bits(cpu, insn->seg, insn_offset(cpu, insn));                       \
        set_xmm_zero(cpu, insn->reg,                                                               \
                     insert##bits(xmm(cpu, insn->vvvv), (unsigned)insn->imm, value));              \
        INSN_NEXT;                                                                                 \
    }
INSERT(pinsrb_r, pinsrb_m, 8)
INSERT(pinsrw_r, pinsrw_m, 16)
INSERT(pinsr_r32, pinsr_m32, 32)
INSERT(pinsr_r64, pinsr_m64, 64)

static inline uint64_t insert_word(uint64_t v, unsigned n, uint64_t value) {
    unsigned shift = (n & 3) * 16;
    return (v & ~(UINT64_C(0xffff) << shift)) | (value & 0xffff) << shift;
}

HANDLER(mmx_pinsrw_r) {
    MMX_BEGIN;
    mmx_enter(cpu);
    set_mmx(cpu, insn->reg,
            insert_word(mmx(cpu, insn->reg)[0], (unsigned)insn->imm, cpu->gpr[insn->rm]));
    INSN_NEXT;
}

HANDLER(mmx_pinsrw_m) {
    MMX_BEGIN;
    uint64_t value = load16(cpu, insn->seg, insn_offset(cpu, insn));
    mmx_enter(cpu);
    set_mmx(cpu, insn->reg, insert_word(mmx(cpu, insn->reg)[0], (unsigned)insn->imm, value));
    INSN_NEXT;
}

/* imm8: [7:6] which element of a register source, [5:4] where to, [3:0] what to clear. */
static inline vec insert_single(vec a, uint32_t value, unsigned imm) {
    u32x4 r = (u32x4)a;
    r[imm >> 4 & 3] = value;
    EACH(4, r[i] = imm >> i & 1 ? 0 : r[i])
    return (vec)r;
}

#define INSERTPS(prefix, BEGIN, set, source)                                                       \
    HANDLER(prefix##_insertps_r) {                                                                 \
        BEGIN;                                                                                     \
        uint32_t value = cpu->vec[insn->rm].d[insn->imm >> 6 & 3];                                 \
        set(cpu, insn->reg, insert_single(xmm(cpu, source), value, (unsigned)insn->imm));          \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_insertps_m) {                                                                 \
        BEGIN;                                                                                     \
        uint32_t value = load32(cpu, insn->seg, insn_offset(cpu, insn));                           \
        set(cpu, insn->reg, insert_single(xmm(cpu, source), value, (unsigned)insn->imm));          \
        INSN_NEXT;                                                                                 \
    }
INSERTPS(sse, SSE_BEGIN, set_xmm, insn->reg)
INSERTPS(v128, AVX_BEGIN, set_xmm_zero, insn->vvvv)

/* ---- Extract ---- */

#define EXTRACT(prefix, BEGIN, name_r, name_m, member, mask, bits)                                 \
    HANDLER(prefix##_##name_r) {                                                                   \
        BEGIN;                                                                                     \
        cpu->gpr[insn->rm] = cpu->vec[insn->reg].member[insn->imm & (mask)];                       \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_##name_m) {                                                                   \
        BEGIN;                                                                                     \
        store##bits(cpu, insn->seg, insn_offset(cpu, insn),                                        \
                    cpu->vec[insn->reg].member[insn->imm & (mask)]);                               \
        INSN_NEXT;                                                                                 \
    }
#define EXTRACT_BOTH(name_r, name_m, member, mask, bits)                                           \
    EXTRACT(sse, SSE_BEGIN, name_r, name_m, member, mask, bits)                                    \
    EXTRACT(v128, AVX_BEGIN, name_r, name_m, member, mask, bits)
EXTRACT_BOTH(pextrb_r, pextrb_m, b, 15, 8)
EXTRACT_BOTH(pextrw_r, pextrw_m, w, 7, 16)
EXTRACT_BOTH(pextr_r32, pextr_m32, d, 3, 32)
EXTRACT_BOTH(pextr_r64, pextr_m64, q, 1, 64)
EXTRACT_BOTH(extractps_r, extractps_m, d, 3, 32)

HANDLER(sse_pextrw) {
    SSE_BEGIN;
    cpu->gpr[insn->reg] = cpu->vec[insn->rm].w[insn->imm & 7];
    INSN_NEXT;
}

HANDLER(v128_pextrw) {
    AVX_BEGIN;
    cpu->gpr[insn->reg] = cpu->vec[insn->rm].w[insn->imm & 7];
    INSN_NEXT;
}

HANDLER(mmx_pextrw) {
    MMX_BEGIN;
    mmx_enter(cpu);
    cpu->gpr[insn->reg] = (uint16_t)(mmx(cpu, insn->rm)[0] >> (insn->imm & 3) * 16);
    INSN_NEXT;
}

/* ---- Broadcast ---- */

#define REPEAT(name, size, value)                                                                  \
    static inline vec by_broadcast##name(vec b) {                                                  \
        return (vec)(value);                                                                       \
    }                                                                                              \
    KERNEL(broadcast##name) {                                                                      \
        return by_broadcast##name(b);                                                              \
    }                                                                                              \
    V128_FRAME_SIZED(broadcast##name, size)                                                        \
    HANDLER(v256_broadcast##name##_r) {                                                            \
        AVX_BEGIN;                                                                                 \
        vec v = by_broadcast##name(xmm(cpu, insn->rm));                                            \
        set_ymm(cpu, insn->reg, v, v);                                                             \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_broadcast##name##_m) {                                                            \
        AVX_BEGIN;                                                                                 \
        vec v = by_broadcast##name(load_vec(cpu, insn, size));                                     \
        set_ymm(cpu, insn->reg, v, v);                                                             \
        INSN_NEXT;                                                                                 \
    }
REPEAT(b, 1, (u8x16){0} + ((u8x16)b)[0])
REPEAT(w, 2, (u16x8){0} + ((u16x8)b)[0])
REPEAT(d, 4, (u32x4){0} + ((u32x4)b)[0])
REPEAT(q, 8, ((vec){b[0], b[0]}))

HANDLER(v256_broadcast128) {
    AVX_BEGIN;
    vec v = load_vec(cpu, insn, 16);
    set_ymm(cpu, insn->reg, v, v);
    INSN_NEXT;
}

/* ---- Across lanes ---- */

/* A handler pair whose sources are whole registers: `a` is vvvv, `b` is rm or 32 bytes of memory,
 * r the result. */
#define ACROSS(name, ...)                                                                          \
    static inline void by_##name(union x86_vector *r, const union x86_vector *a,                   \
                                 const union x86_vector *b,                                        \
                                 unsigned imm){__VA_ARGS__} HANDLER(v256_##name##_r) {             \
        AVX_BEGIN;                                                                                 \
        union x86_vector r = {0};                                                                  \
        by_##name(&r, &cpu->vec[insn->vvvv], &cpu->vec[insn->rm], (unsigned)insn->imm);            \
        memcpy(&cpu->vec[insn->reg], &r, 32);                                                      \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        union x86_vector r = {0}, b;                                                               \
        access_read(cpu, insn->seg, insn_offset(cpu, insn), &b, 32);                               \
        by_##name(&r, &cpu->vec[insn->vvvv], &b, (unsigned)insn->imm);                             \
        memcpy(&cpu->vec[insn->reg], &r, 32);                                                      \
        INSN_NEXT;                                                                                 \
    }

ACROSS(permd, EACH(8, r->d[i] = b->d[a->d[i] & 7]))
ACROSS(permq, EACH(4, r->q[i] = b->q[imm >> 2 * i & 3]))
/* Two bits pick one of four lanes, a third clears. */
ACROSS(perm2, EACH(4, unsigned pick = imm >> (i < 2 ? 0 : 4) & 15;
                   const union x86_vector *from = pick & 2 ? b : a;
                   r->q[i] = pick & 8 ? 0 : from->q[(pick & 1) * 2 + i % 2]))

static inline void insert_lane(struct soft_cpu *cpu, const struct insn *insn, vec v) {
    vec low = xmm(cpu, insn->vvvv), high = ymm_high(cpu, insn->vvvv);
    if (insn->imm & 1)
        set_ymm(cpu, insn->reg, low, v);
    else
        set_ymm(cpu, insn->reg, v, high);
}

HANDLER(v256_insert128_r) {
    AVX_BEGIN;
    insert_lane(cpu, insn, xmm(cpu, insn->rm));
    INSN_NEXT;
}

HANDLER(v256_insert128_m) {
    AVX_BEGIN;
    insert_lane(cpu, insn, load_vec(cpu, insn, 16));
    INSN_NEXT;
}

HANDLER(v256_extract128_r) {
    AVX_BEGIN;
    vec v = insn->imm & 1 ? ymm_high(cpu, insn->reg) : xmm(cpu, insn->reg);
    set_xmm_zero(cpu, insn->rm, v);
    INSN_NEXT;
}

HANDLER(v256_extract128_m) {
    AVX_BEGIN;
    store_vec(cpu, insn, insn->imm & 1 ? ymm_high(cpu, insn->reg) : xmm(cpu, insn->reg), 16);
    INSN_NEXT;
}

/* ---- SSE4A bit fields ---- */

/* A length of 0 means 64. */
static inline uint64_t field_mask(unsigned length) {
    length &= 63;
    return length == 0 ? UINT64_MAX : (UINT64_C(1) << length) - 1;
}

static inline uint64_t extract_field(uint64_t v, unsigned length, unsigned index) {
    return v >> (index & 63) & field_mask(length);
}

static inline uint64_t insert_field(uint64_t v, uint64_t from, unsigned length, unsigned index) {
    uint64_t mask = field_mask(length) << (index & 63);
    return (v & ~mask) | (from << (index & 63) & mask);
}

/* Bits 127:64 of the result are undefined by the manual; processors clear them. */
HANDLER(sse_extrq_i) {
    SSE_BEGIN;
    uint64_t v = cpu->vec[insn->rm].q[0];
    v = extract_field(v, (unsigned)insn->imm, (unsigned)insn->imm >> 8);
    set_xmm(cpu, insn->rm, (vec){v, 0});
    INSN_NEXT;
}

HANDLER(sse_extrq) {
    SSE_BEGIN;
    uint64_t v = cpu->vec[insn->reg].q[0], control = cpu->vec[insn->rm].q[0];
    v = extract_field(v, (unsigned)control, (unsigned)control >> 8);
    set_xmm(cpu, insn->reg, (vec){v, 0});
    INSN_NEXT;
}

HANDLER(sse_insertq_i) {
    SSE_BEGIN;
    uint64_t v = cpu->vec[insn->reg].q[0], from = cpu->vec[insn->rm].q[0];
    v = insert_field(v, from, (unsigned)insn->imm, (unsigned)insn->imm >> 8);
    set_xmm(cpu, insn->reg, (vec){v, 0});
    INSN_NEXT;
}

HANDLER(sse_insertq) {
    SSE_BEGIN;
    uint64_t v = cpu->vec[insn->reg].q[0], control = cpu->vec[insn->rm].q[1];
    v = insert_field(v, cpu->vec[insn->rm].q[0], (unsigned)control, (unsigned)control >> 8);
    set_xmm(cpu, insn->reg, (vec){v, 0});
    INSN_NEXT;
}
