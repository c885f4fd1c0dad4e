/*
 * Conversions between integers, singles, doubles and halves.
 */
#include "cpu/soft/vec.h"

#define PACKED(op)       HOSTFP_KERNEL(op) PACKED_FP_FRAMES(op)
#define SCALAR(op, size) HOSTFP_KERNEL(op) SCALAR_FP_FRAMES(op, size)

PACKED(cvtdq2ps)
PACKED(cvtps2dq)
PACKED(cvttps2dq)
SCALAR(cvtss2sd, 4)
SCALAR(cvtsd2ss, 8)

/* ---- Twice as wide: the upper lane's sources are the upper half of b ---- */

#define WIDEN_256(name, op)                                                                        \
    HANDLER(v256_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        FP_BEGIN;                                                                                  \
        vec b = xmm(cpu, insn->rm);                                                                \
        vec low = FP_LANE(op, VEC_ZERO, ((vec){b[0], 0}));                                         \
        vec high = FP_LANE(op, VEC_ZERO, ((vec){b[1], 0}));                                        \
        FP_END;                                                                                    \
        set_ymm(cpu, insn->reg, low, high);                                                        \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec b = load_vec(cpu, insn, 16);                                                           \
        FP_BEGIN;                                                                                  \
        vec low = FP_LANE(op, VEC_ZERO, ((vec){b[0], 0}));                                         \
        vec high = FP_LANE(op, VEC_ZERO, ((vec){b[1], 0}));                                        \
        FP_END;                                                                                    \
        set_ymm(cpu, insn->reg, low, high);                                                        \
        INSN_NEXT;                                                                                 \
    }
#define WIDEN(name)                                                                                \
    HOSTFP_KERNEL(name) SSE_FP_FRAME(name, 8) V128_FP_FRAME(name, 8) WIDEN_256(name, op_##name)
WIDEN(cvtdq2pd)
WIDEN(cvtps2pd)
HOSTFP_KERNEL(vcvtph2ps)
V128_FP_FRAME_AS(cvtph2ps, vcvtph2ps, 8)
WIDEN_256(cvtph2ps, op_vcvtph2ps)

/* ---- Half as wide: a lane gives 64 bits ---- */

#define NARROW(name)                                                                               \
    HOSTFP_KERNEL(name)                                                                            \
    SSE_FP_FRAME(name, 16)                                                                         \
    V128_FP_FRAME(name, 16)                                                                        \
    HANDLER(v256_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        FP_BEGIN;                                                                                  \
        vec low = FP_LANE(op_##name, VEC_ZERO, xmm(cpu, insn->rm));                                \
        vec high = FP_LANE(op_##name, VEC_ZERO, ymm_high(cpu, insn->rm));                          \
        FP_END;                                                                                    \
        set_xmm_zero(cpu, insn->reg, (vec){low[0], high[0]});                                      \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        struct vec2 b = load_vec2(cpu, insn);                                                      \
        FP_BEGIN;                                                                                  \
        vec low = FP_LANE(op_##name, VEC_ZERO, b.low);                                             \
        vec high = FP_LANE(op_##name, VEC_ZERO, b.high);                                           \
        FP_END;                                                                                    \
        set_xmm_zero(cpu, insn->reg, (vec){low[0], high[0]});                                      \
        INSN_NEXT;                                                                                 \
    }
NARROW(cvtpd2ps)
NARROW(cvtpd2dq)
NARROW(cvttpd2dq)

/* Singles to halves, rounded by the immediate: its destination is ModRM.rm. */
HOSTFP_KERNEL_IMM(vcvtps2ph, "vcvtps2ph", HOSTFP_CASE_CONVERT, 8)

/* Faults of the destination come before anything else. */
static void probe_write(struct soft_cpu *cpu, const struct insn *insn, unsigned size) {
    rmw_begin(cpu, insn->seg, insn_offset(cpu, insn), size);
    rmw_end(cpu);
}

static inline vec to_halves(struct soft_cpu *cpu, const struct insn *insn, bool two_lanes) {
    FP_BEGIN;
    vec low = FP_LANE(op_vcvtps2ph, VEC_ZERO, xmm(cpu, insn->reg)), high = VEC_ZERO;
    if (two_lanes)
        high = FP_LANE(op_vcvtps2ph, VEC_ZERO, ymm_high(cpu, insn->reg));
    FP_END;
    return (vec){low[0], high[0]};
}

HANDLER(v128_cvtps2ph_r) {
    AVX_BEGIN;
    set_xmm_zero(cpu, insn->rm, to_halves(cpu, insn, false));
    INSN_NEXT;
}

HANDLER(v128_cvtps2ph_m) {
    AVX_BEGIN;
    probe_write(cpu, insn, 8);
    store_vec(cpu, insn, to_halves(cpu, insn, false), 8);
    INSN_NEXT;
}

HANDLER(v256_cvtps2ph_r) {
    AVX_BEGIN;
    set_xmm_zero(cpu, insn->rm, to_halves(cpu, insn, true));
    INSN_NEXT;
}

HANDLER(v256_cvtps2ph_m) {
    AVX_BEGIN;
    probe_write(cpu, insn, 16);
    store_vec(cpu, insn, to_halves(cpu, insn, true), 16);
    INSN_NEXT;
}

/* ---- From general registers ---- */

/* The integer comes in b's low half. */
#define FROM_INT(op, bits, suffix)                                                                 \
    HOSTFP_FROM_INT(by_##op##bits, #op suffix, uint##bits##_t)                                     \
    KERNEL_FP(op##bits) {                                                                          \
        return by_##op##bits(a, (uint##bits##_t)b[0], mx);                                         \
    }                                                                                              \
    FROM_INT_FRAMES(sse, SSE_BEGIN, set_xmm, op, bits, insn->reg)                                  \
    FROM_INT_FRAMES(v128, AVX_BEGIN, set_xmm_zero, op, bits, insn->vvvv)
#define KERNEL_FP(name)                                                                            \
    static inline __attribute__((always_inline))                                                   \
    vec op_##name(vec a, vec b, unsigned imm, uint32_t *mx)
#define FROM_INT_FRAMES(prefix, BEGIN, set, op, bits, source)                                      \
    HANDLER(prefix##_##op##_r##bits) {                                                             \
        BEGIN;                                                                                     \
        FP_BEGIN;                                                                                  \
        vec r = FP_LANE(op_##op##bits, xmm(cpu, source), ((vec){cpu->gpr[insn->rm], 0}));          \
        FP_END;                                                                                    \
        set(cpu, insn->reg, r);                                                                    \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_##op##_m##bits) {                                                             \
        BEGIN;                                                                                     \
        vec b = load_vec(cpu, insn, (bits) / 8);                                                   \
        FP_BEGIN;                                                                                  \
        vec r = FP_LANE(op_##op##bits, xmm(cpu, source), b);                                       \
        FP_END;                                                                                    \
        set(cpu, insn->reg, r);                                                                    \
        INSN_NEXT;                                                                                 \
    }
FROM_INT(cvtsi2ss, 32, "l")
FROM_INT(cvtsi2ss, 64, "q")
FROM_INT(cvtsi2sd, 32, "l")
FROM_INT(cvtsi2sd, 64, "q")

/* ---- To general registers ---- */

#define TO_INT(op, bits, size)                                                                     \
    HOSTFP_TO_INT(by_##op##bits, #op, uint##bits##_t)                                              \
    KERNEL_FP(op##bits) {                                                                          \
        return (vec){by_##op##bits(b, mx), 0};                                                     \
    }                                                                                              \
    TO_INT_FRAMES(sse, SSE_BEGIN, op, bits, size)                                                  \
    TO_INT_FRAMES(v128, AVX_BEGIN, op, bits, size)
#define TO_INT_FRAMES(prefix, BEGIN, op, bits, size)                                               \
    HANDLER(prefix##_##op##_r##bits) {                                                             \
        BEGIN;                                                                                     \
        FP_BEGIN;                                                                                  \
        vec r = FP_LANE(op_##op##bits, VEC_ZERO, xmm(cpu, insn->rm));                              \
        FP_END;                                                                                    \
        cpu->gpr[insn->reg] = r[0];                                                                \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_##op##_m##bits) {                                                             \
        BEGIN;                                                                                     \
        vec b = load_vec(cpu, insn, size);                                                         \
        FP_BEGIN;                                                                                  \
        vec r = FP_LANE(op_##op##bits, VEC_ZERO, b);                                               \
        FP_END;                                                                                    \
        cpu->gpr[insn->reg] = r[0];                                                                \
        INSN_NEXT;                                                                                 \
    }
TO_INT(cvtss2si, 32, 4)
TO_INT(cvtss2si, 64, 4)
TO_INT(cvtsd2si, 32, 8)
TO_INT(cvtsd2si, 64, 8)
TO_INT(cvttss2si, 32, 4)
TO_INT(cvttss2si, 64, 4)
TO_INT(cvttsd2si, 32, 8)
TO_INT(cvttsd2si, 64, 8)

/* ---- MMX: the same computations on 64 bits ---- */

#define BOTH_BEGIN                                                                                 \
    SSE_BEGIN;                                                                                     \
    MMX_BEGIN

/* From MMX, or from memory (which leaves x87 alone), into an SSE register. */
#define FROM_MMX(name, op, value)                                                                  \
    HANDLER(mmx_##name##_r) {                                                                      \
        BOTH_BEGIN;                                                                                \
        mmx_enter(cpu);                                                                            \
        FP_BEGIN;                                                                                  \
        vec a = xmm(cpu, insn->reg), r = FP_LANE(op, VEC_ZERO, mmx(cpu, insn->rm));                \
        (void)a;                                                                                   \
        FP_END;                                                                                    \
        set_xmm(cpu, insn->reg, value);                                                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(mmx_##name##_m) {                                                                      \
        SSE_BEGIN;                                                                                 \
        vec b = load_vec(cpu, insn, 8);                                                            \
        FP_BEGIN;                                                                                  \
        vec a = xmm(cpu, insn->reg), r = FP_LANE(op, VEC_ZERO, b);                                 \
        (void)a;                                                                                   \
        FP_END;                                                                                    \
        set_xmm(cpu, insn->reg, value);                                                            \
        INSN_NEXT;                                                                                 \
    }
FROM_MMX(cvtpi2ps, op_cvtdq2ps, ((vec){r[0], a[1]}))
FROM_MMX(cvtpi2pd, op_cvtdq2pd, r)

/* Into an MMX register; the x87 state changes even when an exception is raised. */
#define TO_MMX(name, op, source, load)                                                             \
    HANDLER(mmx_##name##_r) {                                                                      \
        BOTH_BEGIN;                                                                                \
        vec b = xmm(cpu, insn->rm);                                                                \
        mmx_enter(cpu);                                                                            \
        FP_BEGIN;                                                                                  \
        vec r = FP_LANE(op, VEC_ZERO, source);                                                     \
        FP_END;                                                                                    \
        set_mmx(cpu, insn->reg, r[0]);                                                             \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(mmx_##name##_m) {                                                                      \
        BOTH_BEGIN;                                                                                \
        vec b = load;                                                                              \
        mmx_enter(cpu);                                                                            \
        FP_BEGIN;                                                                                  \
        vec r = FP_LANE(op, VEC_ZERO, source);                                                     \
        FP_END;                                                                                    \
        set_mmx(cpu, insn->reg, r[0]);                                                             \
        INSN_NEXT;                                                                                 \
    }
TO_MMX(cvtps2pi, op_cvtps2dq, ((vec){b[0], 0}), load_vec(cpu, insn, 8))
TO_MMX(cvttps2pi, op_cvttps2dq, ((vec){b[0], 0}), load_vec(cpu, insn, 8))
TO_MMX(cvtpd2pi, op_cvtpd2dq, b, load_sse(cpu, insn, 16))
TO_MMX(cvttpd2pi, op_cvttpd2dq, b, load_sse(cpu, insn, 16))
