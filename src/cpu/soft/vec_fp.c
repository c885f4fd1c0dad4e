/*
 * Floating-point arithmetic, comparisons and rounding. The kernels are the
 * host's instructions (hostfp.h).
 */
#include "cpu/soft/vec.h"

#define PACKED(op)       HOSTFP_KERNEL(op) PACKED_FP_FRAMES(op)
#define SCALAR(op, size) HOSTFP_KERNEL(op) SCALAR_FP_FRAMES(op, size)
#define FOUR(op)         PACKED(op##ps) PACKED(op##pd) SCALAR(op##ss, 4) SCALAR(op##sd, 8)

FOUR(add)
FOUR(sub)
FOUR(mul)
FOUR(div)
FOUR(min)
FOUR(max)
FOUR(sqrt)
PACKED(addsubps)
PACKED(addsubpd)
PACKED(haddps)
PACKED(haddpd)
PACKED(hsubps)
PACKED(hsubpd)
/* Approximations: no exceptions, but the host's own tables. */
PACKED(rcpps)
PACKED(rsqrtps)
SCALAR(rcpss, 4)
SCALAR(rsqrtss, 4)

/* ---- With an immediate ---- */

HOSTFP_KERNEL_IMM(roundps, "roundps", HOSTFP_CASE_LEGACY, 16)
HOSTFP_KERNEL_IMM(roundpd, "roundpd", HOSTFP_CASE_LEGACY, 16)
HOSTFP_KERNEL_IMM(roundss, "roundss", HOSTFP_CASE_LEGACY, 16)
HOSTFP_KERNEL_IMM(roundsd, "roundsd", HOSTFP_CASE_LEGACY, 16)
PACKED_FP_FRAMES(roundps)
PACKED_FP_FRAMES(roundpd)
SCALAR_FP_FRAMES(roundss, 4)
SCALAR_FP_FRAMES(roundsd, 8)

/* Eight predicates in legacy encodings, 32 in VEX. */
#define COMPARE(op, SSE, V128, V256)                                                               \
    HOSTFP_KERNEL_IMM(op, #op, HOSTFP_CASE_LEGACY, 8)                                              \
    HOSTFP_KERNEL_IMM(v##op, "v" #op, HOSTFP_CASE_VEX, 32)                                         \
    SSE V128 V256
COMPARE(cmpps, SSE_FP_FRAME(cmpps, 16), V128_FP_FRAME_AS(cmpps, vcmpps, 16),
        V256_FP_FRAME_AS(cmpps, vcmpps))
COMPARE(cmppd, SSE_FP_FRAME(cmppd, 16), V128_FP_FRAME_AS(cmppd, vcmppd, 16),
        V256_FP_FRAME_AS(cmppd, vcmppd))
COMPARE(cmpss, SSE_FP_FRAME(cmpss, 4), V128_FP_FRAME_AS(cmpss, vcmpss, 4), )
COMPARE(cmpsd, SSE_FP_FRAME(cmpsd, 8), V128_FP_FRAME_AS(cmpsd, vcmpsd, 8), )

/* ---- Dot products ---- */

HOSTFP_KERNEL_IMM(dpps, "dpps", HOSTFP_CASE_LEGACY, 256)
HOSTFP_KERNEL_IMM(dppd, "dppd", HOSTFP_CASE_LEGACY, 256)
XMM_FP_FRAMES(dpps)

/* Multiplies in all lanes, then additions in all lanes: which exceptions come together with an
 * unmasked one cannot be told from the lanes apart. */
HOSTFP_KERNEL_256(dot_256, "vdpps")

static void dpps_256(struct soft_cpu *cpu, const struct insn *insn, const struct vec2 *b) {
    struct vec2 a = {xmm(cpu, insn->vvvv), ymm_high(cpu, insn->vvvv)};
    if (likely(fp_plain(cpu))) {
        dot_256(&a, b, (unsigned)insn->imm, &cpu->mxcsr);
    } else {
        uint32_t mx = fp_slow_begin(cpu);
        dot_256(&a, b, (unsigned)insn->imm, &mx);
        fp_slow_end(cpu, mx);
        fp_commit(cpu);
    }
    set_ymm(cpu, insn->reg, a.low, a.high);
}

HANDLER(v256_dpps_r) {
    AVX_BEGIN;
    struct vec2 b = {xmm(cpu, insn->rm), ymm_high(cpu, insn->rm)};
    dpps_256(cpu, insn, &b);
    INSN_NEXT;
}

HANDLER(v256_dpps_m) {
    AVX_BEGIN;
    struct vec2 b = load_vec2(cpu, insn);
    dpps_256(cpu, insn, &b);
    INSN_NEXT;
}

SSE_FP_FRAME(dppd, 16)
V128_FP_FRAME(dppd, 16)

/* ---- Comparisons into RFLAGS ---- */

typedef unsigned compare_kernel(vec a, vec b, uint32_t *mx);

static unsigned compare_slow(struct soft_cpu *cpu, compare_kernel *kernel, vec a, vec b) {
    uint32_t mx = fp_slow_begin(cpu);
    unsigned flags = kernel(a, b, &mx);
    fp_slow_end(cpu, mx);
    fp_commit(cpu);
    return flags;
}

#define COMPARE_FLAGS(op, size)                                                                    \
    HOSTFP_COMPARE(op)                                                                             \
    static inline void by_##op(struct soft_cpu *cpu, vec a, vec b) {                               \
        unsigned flags =                                                                           \
            likely(fp_plain(cpu)) ? op_##op(a, b, &cpu->mxcsr) : compare_slow(cpu, op_##op, a, b); \
        flags_set_status(cpu, flags);                                                              \
    }                                                                                              \
    HANDLER(sse_##op##_r) {                                                                        \
        SSE_BEGIN;                                                                                 \
        by_##op(cpu, xmm(cpu, insn->reg), xmm(cpu, insn->rm));                                     \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(sse_##op##_m) {                                                                        \
        SSE_BEGIN;                                                                                 \
        vec b = load_vec(cpu, insn, size);                                                         \
        by_##op(cpu, xmm(cpu, insn->reg), b);                                                      \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##op##_r) {                                                                       \
        AVX_BEGIN;                                                                                 \
        by_##op(cpu, xmm(cpu, insn->reg), xmm(cpu, insn->rm));                                     \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##op##_m) {                                                                       \
        AVX_BEGIN;                                                                                 \
        vec b = load_vec(cpu, insn, size);                                                         \
        by_##op(cpu, xmm(cpu, insn->reg), b);                                                      \
        INSN_NEXT;                                                                                 \
    }
COMPARE_FLAGS(ucomiss, 4)
COMPARE_FLAGS(ucomisd, 8)
COMPARE_FLAGS(comiss, 4)
COMPARE_FLAGS(comisd, 8)
