/*
 * Which features CPUID tells of: those that the instruction tables have rows
 * for. AMD64 APM vol. 3, appendix E.
 */
#include "base/bytes.h"
#include "cpu/soft/hostfp.h"
#include "cpu/soft/soft.h"

enum { EAX, EBX, ECX, EDX };

/* A bit of a register that stands for a feature; FEAT_BASE: always set. */
struct feature_bit {
    uint8_t group, reg, bit, feature;
};

#define LEAF_1_C(bit, feature)                                                                     \
    { CPUID_1, ECX, bit, FEAT_##feature }
#define LEAF_1_D(bit, feature)                                                                     \
    { CPUID_1, EDX, bit, FEAT_##feature }
#define LEAF_7_B(bit, feature)                                                                     \
    { CPUID_7, EBX, bit, FEAT_##feature }
#define LEAF_7_C(bit, feature)                                                                     \
    { CPUID_7, ECX, bit, FEAT_##feature }
#define LEAF_7_D(bit, feature)                                                                     \
    { CPUID_7, EDX, bit, FEAT_##feature }
#define LEAF_D1_A(bit, feature)                                                                    \
    { CPUID_D1, EAX, bit, FEAT_##feature }
#define EXT_1_C(bit, feature)                                                                      \
    { CPUID_EXT_1, ECX, bit, FEAT_##feature }
#define EXT_1_D(bit, feature)                                                                      \
    { CPUID_EXT_1, EDX, bit, FEAT_##feature }
#define EXT_8_B(bit, feature)                                                                      \
    { CPUID_EXT_8, EBX, bit, FEAT_##feature }
#define EXT_21_A(bit, feature)                                                                     \
    { CPUID_EXT_21, EAX, bit, FEAT_##feature }
#define EXT_21_C(bit, feature)                                                                     \
    { CPUID_EXT_21, ECX, bit, FEAT_##feature }

static const struct feature_bit feature_bits[] = {
    LEAF_1_C(0, SSE3),         LEAF_1_C(1, PCLMUL),
    LEAF_1_C(9, SSSE3),        LEAF_1_C(12, FMA),
    LEAF_1_C(13, CX16),        LEAF_1_C(17, BASE), /* PCID */
    LEAF_1_C(19, SSE41),       LEAF_1_C(20, SSE42),
    LEAF_1_C(21, BASE), /* x2APIC */
    LEAF_1_C(22, MOVBE),       LEAF_1_C(23, POPCNT),
    LEAF_1_C(24, BASE), /* TSC deadline */
    LEAF_1_C(25, AES),         LEAF_1_C(26, XSAVE),
    LEAF_1_C(28, AVX),         LEAF_1_C(29, F16C),
    LEAF_1_C(30, RDRAND),      LEAF_1_C(31, BASE), /* a hypervisor is there */
    LEAF_1_D(0, X87),          LEAF_1_D(2, BASE),  /* debug extensions */
    LEAF_1_D(3, BASE),                             /* 4 MiB pages */
    LEAF_1_D(4, BASE),                             /* TSC */
    LEAF_1_D(5, BASE),                             /* MSRs */
    LEAF_1_D(6, BASE),                             /* PAE */
    LEAF_1_D(7, BASE),                             /* machine check */
    LEAF_1_D(8, BASE),                             /* CMPXCHG8B */
    LEAF_1_D(9, BASE),                             /* APIC */
    LEAF_1_D(11, BASE),                            /* SYSENTER */
    LEAF_1_D(12, BASE),                            /* MTRR */
    LEAF_1_D(13, BASE),                            /* global pages */
    LEAF_1_D(14, BASE),                            /* machine check architecture */
    LEAF_1_D(15, BASE),                            /* CMOV */
    LEAF_1_D(16, BASE),                            /* PAT */
    LEAF_1_D(17, BASE),                            /* PSE-36 */
    LEAF_1_D(19, BASE),                            /* CLFLUSH */
    LEAF_1_D(23, MMX),         LEAF_1_D(24, SSE),  /* FXSAVE */
    LEAF_1_D(25, SSE),         LEAF_1_D(26, SSE2),
    LEAF_7_B(0, FSGSBASE),     LEAF_7_B(1, BASE), /* TSC_ADJUST */
    LEAF_7_B(3, BMI1),         LEAF_7_B(5, AVX2),
    LEAF_7_B(7, BASE),                            /* SMEP */
    LEAF_7_B(8, BMI2),         LEAF_7_B(9, BASE), /* fast REP MOVSB */
    LEAF_7_B(10, INVPCID),     LEAF_7_B(18, RDSEED),
    LEAF_7_B(19, ADX),         LEAF_7_B(20, SMAP),
    LEAF_7_B(23, CLFLUSHOPT),  LEAF_7_B(24, CLWB),
    LEAF_7_B(29, SHA),         LEAF_7_C(2, BASE), /* UMIP */
    LEAF_7_C(8, GFNI),         LEAF_7_C(9, VAES),
    LEAF_7_C(10, VPCLMUL),     LEAF_7_C(22, RDPID),
    LEAF_7_D(4, BASE), /* fast short REP MOVSB */
    LEAF_D1_A(0, XSAVEOPT),    LEAF_D1_A(1, XSAVEC),
    LEAF_D1_A(2, XSAVE),                         /* XGETBV with ECX 1 */
    LEAF_D1_A(3, XSAVES),      EXT_1_C(0, BASE), /* LAHF in 64-bit mode */
    EXT_1_C(5, LZCNT),         EXT_1_C(6, SSE4A),
    EXT_1_C(8, 3DNOWPREFETCH), EXT_1_D(11, BASE), /* SYSCALL */
    EXT_1_D(20, BASE),                            /* NX */
    EXT_1_D(22, SSE),                             /* AMD's extensions to MMX */
    EXT_1_D(26, BASE),                            /* 1 GiB pages */
    EXT_1_D(27, RDTSCP),       EXT_1_D(29, BASE), /* long mode */
    EXT_8_B(0, CLZERO),        EXT_8_B(2, BASE),  /* FXSAVE always keeps the x87 error pointers */
    EXT_8_B(26, BASE),                            /* no speculative store bypass */
    EXT_8_B(29, BASE),                            /* no branch type confusion */
    EXT_21_A(0, BASE),                            /* no nested data breakpoints */
    EXT_21_A(2, BASE),                            /* LFENCE serialises */
    EXT_21_A(6, BASE),                            /* null selectors clear the base */
    EXT_21_A(8, BASE),  /* automatic IBRS: spares the guest its retpolines */
    EXT_21_A(29, BASE), /* no speculative return stack overflow */
    EXT_21_C(1, BASE),  /* no transient scheduler attack on the store queue */
    EXT_21_C(2, BASE),  /* nor on the L1 cache */
};

/* All that tables have rows for, as far as the host's vector unit can run them and the baseline has
 * them. */
static void find_features(struct soft_cpu *cpu) {
    enum cpu_baseline baseline = cpu->vcpu.engine->config.cpu;
    const struct insn_row *row;
    memset(cpu->features, 0, sizeof cpu->features);
    cpu->features[0] = 1 << FEAT_BASE;
    for (size_t n = 0; (row = insn_row_at(n)) != NULL; n++)
        if (vec_host_supports(row->feature) && cpu_baseline_has(baseline, row->feature))
            cpu->features[row->feature / 64] |= UINT64_C(1) << (row->feature % 64);
}

void cpuid_init_features(struct soft_cpu *cpu) {
    find_features(cpu);
    memset(cpu->cpuid_features, 0, sizeof cpu->cpuid_features);
    for (size_t i = 0; i < ARRAY_SIZE(feature_bits); i++) {
        const struct feature_bit *f = &feature_bits[i];
        if (soft_has(cpu, f->feature))
            cpu->cpuid_features[f->group][f->reg] |= UINT32_C(1) << f->bit;
    }
    cpu->tsc_khz = (uint32_t)(vm_clock_tsc_hz(cpu->vcpu.engine->config.clock) / 1000);
}
