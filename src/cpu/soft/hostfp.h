/*
 * Floating point on the host's own units, and the vector types. The only
 * place (with hostfp.c and x87_run.c) that knows the host's architecture.
 *
 * On x86-64 a kernel runs the instruction of its name on one 128-bit lane
 * with *mx as MXCSR, and leaves MXCSR with the flags raised in *mx. So
 * results, NaN propagation, denormals, FTZ and DAZ are silicon's own. When
 * *mx's control bits are not the default, the caller restores the host's
 * MXCSR with hostfp_restore before anything else computes.
 *
 * Exceptions that *mx does not mask really happen on the host: SIGFPE's
 * handler notes the flags, masks, and lets the instruction run again. Such
 * kernels run between hostfp_trap_begin and hostfp_trap_end.
 *
 * Other hosts have no kernels: vec_host_supports() denies what needs them.
 */
#ifndef LODGE_CPU_SOFT_HOSTFP_H
#define LODGE_CPU_SOFT_HOSTFP_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/soft/insn.h"

/* A lane of 128 bits, and the views of it (casts between them keep the bits). */
typedef uint64_t vec __attribute__((vector_size(16)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int8_t s8x16 __attribute__((vector_size(16)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef int16_t s16x8 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef int32_t s32x4 __attribute__((vector_size(16)));
typedef int64_t s64x2 __attribute__((vector_size(16)));

#define VEC_ZERO ((vec){0, 0})

/* May a guest be offered this feature, as far as the host's units matter? Other features: true. */
bool vec_host_supports(enum insn_feature feature);

#if defined(__x86_64__)

static inline void hostfp_restore(void) {
    static const uint32_t host = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(host));
}

/* The guest's MXCSR as kernels take it: no flags; AMD's MM bit is not every host's. */
static inline uint32_t hostfp_control(uint32_t mxcsr) {
    return mxcsr & 0xffc0;
}

/* begin installs the SIGFPE handler (once a process) and unblocks the signal (once a thread). end
 * returns the flags of the last exception that came unmasked, 0 if none did. */
void hostfp_trap_begin(void);
uint32_t hostfp_trap_end(void);

#define HOSTFP_PARAMS vec a, vec b, unsigned imm, uint32_t *mx
#define HOSTFP_INLINE static inline __attribute__((always_inline)) vec

/* op b, a */
#define HOSTFP_KERNEL(op)                                                                          \
    HOSTFP_INLINE op_##op(HOSTFP_PARAMS) {                                                         \
        __asm__ volatile("ldmxcsr %1\n\t" #op " %2, %0\n\tstmxcsr %1"                              \
                         : "+x"(a), "+m"(*mx)                                                      \
                         : "x"(b));                                                                \
        return a;                                                                                  \
    }

/* op $imm, b, a; VEX encodings: op $imm, b, a, a. One case for each immediate. */
#define HOSTFP_CASE_LEGACY(n, op)                                                                  \
    case n:                                                                                        \
        __asm__ volatile("ldmxcsr %1\n\t" op " $" #n ", %2, %0\n\tstmxcsr %1"                      \
                         : "+x"(a), "+m"(*mx)                                                      \
                         : "x"(b));                                                                \
        break;
#define HOSTFP_CASE_VEX(n, op)                                                                     \
    case n:                                                                                        \
        __asm__ volatile("ldmxcsr %1\n\t" op " $" #n ", %2, %0, %0\n\tstmxcsr %1"                  \
                         : "+x"(a), "+m"(*mx)                                                      \
                         : "x"(b));                                                                \
        break;
#define HOSTFP_CASE_CONVERT(n, op)                                                                 \
    case n:                                                                                        \
        __asm__ volatile("ldmxcsr %1\n\t" op " $" #n ", %2, %0\n\tstmxcsr %1"                      \
                         : "=x"(a), "+m"(*mx)                                                      \
                         : "x"(b));                                                                \
        break;
/* The formatter never settles on these macros. */
/* clang-format off */
#define HOSTFP_8(CASE, op) \
    CASE(0, op) CASE(1, op) CASE(2, op) CASE(3, op) \
    CASE(4, op) CASE(5, op) CASE(6, op) CASE(7, op)
#define HOSTFP_16(CASE, op) \
    HOSTFP_8(CASE, op) \
    CASE(8, op) CASE(9, op) CASE(10, op) CASE(11, op) \
    CASE(12, op) CASE(13, op) CASE(14, op) CASE(15, op)
#define HOSTFP_32(CASE, op) \
    HOSTFP_16(CASE, op) \
    CASE(16, op) CASE(17, op) CASE(18, op) CASE(19, op) \
    CASE(20, op) CASE(21, op) CASE(22, op) CASE(23, op) \
    CASE(24, op) CASE(25, op) CASE(26, op) CASE(27, op) \
    CASE(28, op) CASE(29, op) CASE(30, op) CASE(31, op)
/* n is a hexadecimal prefix there: op(0xN0) to op(0xNf). */
#define HOSTFP_ROW(CASE, op, n) \
    CASE(n##0, op) CASE(n##1, op) CASE(n##2, op) CASE(n##3, op) \
    CASE(n##4, op) CASE(n##5, op) CASE(n##6, op) CASE(n##7, op) \
    CASE(n##8, op) CASE(n##9, op) CASE(n##a, op) CASE(n##b, op) \
    CASE(n##c, op) CASE(n##d, op) CASE(n##e, op) CASE(n##f, op)
#define HOSTFP_256(CASE, op) \
    HOSTFP_ROW(CASE, op, 0x0) HOSTFP_ROW(CASE, op, 0x1) \
    HOSTFP_ROW(CASE, op, 0x2) HOSTFP_ROW(CASE, op, 0x3) \
    HOSTFP_ROW(CASE, op, 0x4) HOSTFP_ROW(CASE, op, 0x5) \
    HOSTFP_ROW(CASE, op, 0x6) HOSTFP_ROW(CASE, op, 0x7) \
    HOSTFP_ROW(CASE, op, 0x8) HOSTFP_ROW(CASE, op, 0x9) \
    HOSTFP_ROW(CASE, op, 0xa) HOSTFP_ROW(CASE, op, 0xb) \
    HOSTFP_ROW(CASE, op, 0xc) HOSTFP_ROW(CASE, op, 0xd) \
    HOSTFP_ROW(CASE, op, 0xe) HOSTFP_ROW(CASE, op, 0xf)
/* clang-format on */
#define HOSTFP_KERNEL_IMM(name, op, CASE, COUNT)                                                   \
    static inline vec op_##name(HOSTFP_PARAMS) {                                                   \
        switch (imm & (COUNT - 1)) { HOSTFP_##COUNT(CASE, op) }                                    \
        return a;                                                                                  \
    }

/* On both lanes at once (each of a and b points to 32 bytes): op $imm, b, a, a. */
#define HOSTFP_CASE_256(n, op)                                                                     \
    case n:                                                                                        \
        __asm__ volatile("ldmxcsr %0\n\tvmovdqu (%1), %%ymm0\n\t" op " $" #n                       \
                         ", (%2), %%ymm0, %%ymm0\n\tvmovdqu %%ymm0, (%1)\n\tstmxcsr %0\n\t"        \
                         "vzeroupper"                                                              \
                         : "+m"(*mx)                                                               \
                         : "r"(a), "r"(b)                                                          \
                         : "xmm0", "memory");                                                      \
        break;
#define HOSTFP_KERNEL_256(name, op)                                                                \
    static void name(void *a, const void *b, unsigned imm, uint32_t *mx) {                         \
        switch (imm & 255) { HOSTFP_256(HOSTFP_CASE_256, op) }                                     \
    }

/* Fused multiply-add: vex-coded, d is the first operand (132, 213, 231 name the order). */
#define HOSTFP_FMA_KERNEL(op)                                                                      \
    HOSTFP_INLINE op_##op(vec d, vec a, vec b, uint32_t *mx) {                                     \
        __asm__ volatile("ldmxcsr %1\n\t" #op " %3, %2, %0\n\tstmxcsr %1"                          \
                         : "+x"(d), "+m"(*mx)                                                      \
                         : "x"(a), "x"(b));                                                        \
        return d;                                                                                  \
    }

/* To and from general registers: op b, r. */
#define HOSTFP_TO_INT(name, op, type)                                                              \
    static inline __attribute__((always_inline)) type name(vec b, uint32_t *mx) {                  \
        type r;                                                                                    \
        __asm__ volatile("ldmxcsr %1\n\t" op " %2, %0\n\tstmxcsr %1"                               \
                         : "=r"(r), "+m"(*mx)                                                      \
                         : "x"(b));                                                                \
        return r;                                                                                  \
    }
#define HOSTFP_FROM_INT(name, op, type)                                                            \
    HOSTFP_INLINE name(vec a, type b, uint32_t *mx) {                                              \
        __asm__ volatile("ldmxcsr %1\n\t" op " %2, %0\n\tstmxcsr %1"                               \
                         : "+x"(a), "+m"(*mx)                                                      \
                         : "r"(b));                                                                \
        return a;                                                                                  \
    }
/* Ordered and unordered compares: the host's ZF, PF, CF in their RFLAGS places. */
#define HOSTFP_COMPARE(op)                                                                         \
    static inline __attribute__((always_inline)) unsigned op_##op(vec a, vec b, uint32_t *mx) {    \
        bool zf, pf, cf;                                                                           \
        __asm__ volatile("ldmxcsr %3\n\t" #op " %5, %4\n\tstmxcsr %3"                              \
                         : "=@ccz"(zf), "=@ccp"(pf), "=@ccc"(cf), "+m"(*mx)                        \
                         : "x"(a), "x"(b));                                                        \
        return (unsigned)zf << 6 | (unsigned)pf << 2 | (unsigned)cf;                               \
    }

/* Integer instructions that the host does faster than C: op b, a. No MXCSR. */
#define HOSTFP_INTEGER(op)                                                                         \
    HOSTFP_INLINE host_##op(vec a, vec b) {                                                        \
        __asm__(#op " %1, %0" : "+x"(a) : "x"(b));                                                 \
        return a;                                                                                  \
    }

HOSTFP_INTEGER(pshufb)
HOSTFP_INTEGER(psadbw)
HOSTFP_INTEGER(pmaddwd)
HOSTFP_INTEGER(pmaddubsw)
HOSTFP_INTEGER(packsswb)
HOSTFP_INTEGER(packuswb)
HOSTFP_INTEGER(packssdw)
HOSTFP_INTEGER(packusdw)

/* By an immediate: one case for each. */
#define HOSTFP_CASE_SHIFT(n, op)                                                                   \
    case n:                                                                                        \
        __asm__(op " $" #n ", %0" : "+x"(a));                                                      \
        break;
#define HOSTFP_CASE_ALIGN(n, op)                                                                   \
    case n: __asm__(op " $" #n ", %1, %0" : "+x"(a) : "x"(b)); break;
static inline vec host_psrldq(vec a, unsigned n) {
    switch (n & 15) { HOSTFP_16(HOSTFP_CASE_SHIFT, "psrldq") }
    return a;
}
static inline vec host_pslldq(vec a, unsigned n) {
    switch (n & 15) { HOSTFP_16(HOSTFP_CASE_SHIFT, "pslldq") }
    return a;
}
static inline vec host_palignr(vec a, vec b, unsigned n) {
    switch (n & 31) { HOSTFP_32(HOSTFP_CASE_ALIGN, "palignr") }
    return a;
}

/* The same with an immediate of 0. */
#define HOSTFP_INTEGER_0(op)                                                                       \
    HOSTFP_INLINE host_##op##0(vec a, vec b) {                                                     \
        __asm__(#op " $0, %1, %0" : "+x"(a) : "x"(b));                                             \
        return a;                                                                                  \
    }
HOSTFP_INTEGER_0(pclmulqdq)
HOSTFP_INTEGER_0(gf2p8affineqb)
HOSTFP_INTEGER_0(gf2p8affineinvqb)

HOSTFP_INLINE host_aeskeygenassist0(vec b) {
    vec r;
    __asm__("aeskeygenassist $0, %1, %0" : "=x"(r) : "x"(b));
    return r;
}

HOSTFP_INLINE host_sha256rnds2(vec a, vec b, vec words) {
    __asm__("sha256rnds2 %2, %1, %0" : "+x"(a) : "x"(b), "Yz"(words));
    return a;
}

static inline vec host_sha1rnds4(vec a, vec b, unsigned imm) {
    switch (imm & 3) {
    case 0: __asm__("sha1rnds4 $0, %1, %0" : "+x"(a) : "x"(b)); break;
    case 1: __asm__("sha1rnds4 $1, %1, %0" : "+x"(a) : "x"(b)); break;
    case 2: __asm__("sha1rnds4 $2, %1, %0" : "+x"(a) : "x"(b)); break;
    default: __asm__("sha1rnds4 $3, %1, %0" : "+x"(a) : "x"(b)); break;
    }
    return a;
}

static inline unsigned host_pmovmskb(vec v) {
    unsigned mask;
    __asm__("pmovmskb %1, %0" : "=r"(mask) : "x"(v));
    return mask;
}

#else
#error "hostfp.h: this host needs portable floating-point kernels"
#endif

#endif
