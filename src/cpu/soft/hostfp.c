/*
 * What the host's units can do for a guest.
 */
#include "cpu/soft/hostfp.h"

#if defined(__x86_64__)

#include <cpuid.h>

static bool leaf7(unsigned ebx_bits, unsigned ecx_bits) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & ebx_bits) == ebx_bits &&
           (c & ecx_bits) == ecx_bits;
}

bool vec_host_supports(enum insn_feature feature) {
    switch (feature) {
    case FEAT_SSE3: return __builtin_cpu_supports("sse3");
    case FEAT_SSSE3: return __builtin_cpu_supports("ssse3");
    case FEAT_SSE41: return __builtin_cpu_supports("sse4.1");
    case FEAT_SSE42: return __builtin_cpu_supports("sse4.2");
    case FEAT_AVX: return __builtin_cpu_supports("avx");
    case FEAT_AVX2: return __builtin_cpu_supports("avx2");
    case FEAT_FMA: return __builtin_cpu_supports("fma");
    case FEAT_AES: return __builtin_cpu_supports("aes");
    case FEAT_VAES: return __builtin_cpu_supports("aes") && __builtin_cpu_supports("avx2");
    case FEAT_PCLMUL: return __builtin_cpu_supports("pclmul");
    case FEAT_VPCLMUL: return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("avx2");
    case FEAT_SHA: return leaf7(bit_SHA, 0);
    case FEAT_GFNI: return leaf7(0, bit_GFNI);
    case FEAT_F16C: {
        unsigned a, b, c, d;
        return __builtin_cpu_supports("avx") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    }
    default: return true; /* plain C */
    }
}

#endif
