/*
 * Fused multiply-add: three sources, so frames of their own.
 */
#include "cpu/soft/vec.h"

typedef vec fma_kernel(vec d, vec a, vec b, uint32_t *mx);

/* As fp_run. */
static vec fma_run(struct soft_cpu *cpu, fma_kernel *kernel, vec d, vec a, vec b) {
    uint32_t mx = fp_slow_begin(cpu);
    vec r = kernel(d, a, b, &mx);
    fp_slow_end(cpu, mx);
    return r;
}

#define FMA_LANE(k, d, a, b) (likely(plain) ? k(d, a, b, &cpu->mxcsr) : fma_run(cpu, k, d, a, b))

#define FMA_128(name, op, size)                                                                    \
    HANDLER(v128_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        FP_BEGIN;                                                                                  \
        vec r = FMA_LANE(op, xmm(cpu, insn->reg), xmm(cpu, insn->vvvv), xmm(cpu, insn->rm));       \
        FP_END;                                                                                    \
        set_xmm_zero(cpu, insn->reg, r);                                                           \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec b = load_vec(cpu, insn, size);                                                         \
        FP_BEGIN;                                                                                  \
        vec r = FMA_LANE(op, xmm(cpu, insn->reg), xmm(cpu, insn->vvvv), b);                        \
        FP_END;                                                                                    \
        set_xmm_zero(cpu, insn->reg, r);                                                           \
        INSN_NEXT;                                                                                 \
    }

#define FMA_256(name, op)                                                                          \
    HANDLER(v256_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        FP_BEGIN;                                                                                  \
        unsigned d = insn->reg, a = insn->vvvv, b = insn->rm;                                      \
        vec low = FMA_LANE(op, xmm(cpu, d), xmm(cpu, a), xmm(cpu, b));                             \
        vec high = FMA_LANE(op, ymm_high(cpu, d), ymm_high(cpu, a), ymm_high(cpu, b));             \
        FP_END;                                                                                    \
        set_ymm(cpu, d, low, high);                                                                \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        struct vec2 b = load_vec2(cpu, insn);                                                      \
        FP_BEGIN;                                                                                  \
        unsigned d = insn->reg, a = insn->vvvv;                                                    \
        vec low = FMA_LANE(op, xmm(cpu, d), xmm(cpu, a), b.low);                                   \
        vec high = FMA_LANE(op, ymm_high(cpu, d), ymm_high(cpu, a), b.high);                       \
        FP_END;                                                                                    \
        set_ymm(cpu, d, low, high);                                                                \
        INSN_NEXT;                                                                                 \
    }

#define PACKED(name)                                                                               \
    HOSTFP_FMA_KERNEL(v##name)                                                                     \
    FMA_128(name, op_v##name, 16)                                                                  \
    FMA_256(name, op_v##name)
#define SCALAR(name, size) HOSTFP_FMA_KERNEL(v##name) FMA_128(name, op_v##name, size)
/* The three operand orders. */
#define PACKED_ORDERS(name)                                                                        \
    PACKED(name##132ps)                                                                            \
    PACKED(name##213ps)                                                                            \
    PACKED(name##231ps) PACKED(name##132pd) PACKED(name##213pd) PACKED(name##231pd)
#define SCALAR_ORDERS(name)                                                                        \
    SCALAR(name##132ss, 4)                                                                         \
    SCALAR(name##213ss, 4)                                                                         \
    SCALAR(name##231ss, 4) SCALAR(name##132sd, 8) SCALAR(name##213sd, 8) SCALAR(name##231sd, 8)

PACKED_ORDERS(fmadd)
PACKED_ORDERS(fmsub)
PACKED_ORDERS(fnmadd)
PACKED_ORDERS(fnmsub)
PACKED_ORDERS(fmaddsub)
PACKED_ORDERS(fmsubadd)
SCALAR_ORDERS(fmadd)
SCALAR_ORDERS(fmsub)
SCALAR_ORDERS(fnmadd)
SCALAR_ORDERS(fnmsub)
