/*
 * CPUID: a processor of AMD's family 19h without the flaws that would make a
 * guest take detours. AMD64 APM vol. 3, appendix E; leaves 0Dh, 15h and 16h
 * as the Intel SDM has them. Features are told of only when the instruction
 * tables have rows for them.
 */
#include "base/bytes.h"
#include "cpu/soft/hostfp.h"
#include "cpu/soft/soft.h"

enum { EAX, EBX, ECX, EDX };
enum { PHYSICAL_BITS = 48, LINEAR_BITS = 48, CACHE_LINE = 64 };
enum { LEAF_MAX = 0x16 };
#define LEAF_HYPERVISOR     UINT32_C(0x40000000)
#define LEAF_HYPERVISOR_MAX UINT32_C(0x40000010)
#define LEAF_EXTENDED       UINT32_C(0x80000000)
#define LEAF_EXTENDED_MAX   UINT32_C(0x80000021)
/* The local APIC timer's frequency (interrupt.h's clock is in nanoseconds). */
#define APIC_HZ UINT32_C(1000000000)

/* ---- Features ---- */

/* A bit of a leaf's register that stands for a feature; FEAT_BASE: always set. */
struct feature_bit {
    uint32_t leaf;
    uint8_t subleaf, reg, bit, feature;
};

#define LEAF_1_C(bit, feature)                                                                     \
    { 1, 0, ECX, bit, FEAT_##feature }
#define LEAF_1_D(bit, feature)                                                                     \
    { 1, 0, EDX, bit, FEAT_##feature }
#define LEAF_7_B(bit, feature)                                                                     \
    { 7, 0, EBX, bit, FEAT_##feature }
#define LEAF_7_C(bit, feature)                                                                     \
    { 7, 0, ECX, bit, FEAT_##feature }
#define LEAF_7_D(bit, feature)                                                                     \
    { 7, 0, EDX, bit, FEAT_##feature }
#define LEAF_D1_A(bit, feature)                                                                    \
    { 0xd, 1, EAX, bit, FEAT_##feature }
#define EXT_1_C(bit, feature)                                                                      \
    { LEAF_EXTENDED + 1, 0, ECX, bit, FEAT_##feature }
#define EXT_1_D(bit, feature)                                                                      \
    { LEAF_EXTENDED + 1, 0, EDX, bit, FEAT_##feature }
#define EXT_8_B(bit, feature)                                                                      \
    { LEAF_EXTENDED + 8, 0, EBX, bit, FEAT_##feature }
#define EXT_21_A(bit, feature)                                                                     \
    { LEAF_EXTENDED + 0x21, 0, EAX, bit, FEAT_##feature }
#define EXT_21_C(bit, feature)                                                                     \
    { LEAF_EXTENDED + 0x21, 0, ECX, bit, FEAT_##feature }

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

/* All that tables have rows for, as far as the host's vector unit can run them. */
void cpuid_init_features(struct soft_cpu *cpu) {
    const struct insn_row *row;
    memset(cpu->features, 0, sizeof cpu->features);
    cpu->features[0] = 1 << FEAT_BASE;
    for (size_t n = 0; (row = insn_row_at(n)) != NULL; n++)
        if (vec_host_supports(row->feature))
            cpu->features[row->feature / 64] |= UINT64_C(1) << (row->feature % 64);
}

static uint32_t features_of(const struct soft_cpu *cpu, uint32_t leaf, uint32_t subleaf,
                            unsigned reg) {
    uint32_t bits = 0;
    for (size_t i = 0; i < ARRAY_SIZE(feature_bits); i++) {
        const struct feature_bit *f = &feature_bits[i];
        if (f->leaf == leaf && f->subleaf == subleaf && f->reg == reg && soft_has(cpu, f->feature))
            bits |= UINT32_C(1) << f->bit;
    }
    return bits;
}

static void fill_features(const struct soft_cpu *cpu, uint32_t leaf, uint32_t subleaf,
                          uint32_t out[4]) {
    for (unsigned reg = EAX; reg <= EDX; reg++)
        out[reg] |= features_of(cpu, leaf, subleaf, reg);
}

/* ---- Leaves ---- */

static unsigned vcpu_count(const struct soft_cpu *cpu) {
    return cpu->vcpu.engine->config.vcpus;
}

/* Bits of an APIC id that tell processors apart. */
static unsigned id_bits(const struct soft_cpu *cpu) {
    unsigned bits = 0;
    while (1u << bits < vcpu_count(cpu))
        bits++;
    return bits;
}

static uint32_t tsc_khz(const struct soft_cpu *cpu) {
    return (uint32_t)(vm_clock_tsc_hz(cpu->vcpu.engine->config.clock) / 1000);
}

static void vendor(uint32_t max, uint32_t out[4]) {
    static const char name[] = "AuthenticAMD";
    out[EAX] = max;
    memcpy(&out[EBX], name, 4);
    memcpy(&out[EDX], name + 4, 4);
    memcpy(&out[ECX], name + 8, 4);
}

enum { SIGNATURE = 0xa00f11 }; /* family 19h, model 01h, stepping 1 */

static bool apic_enabled(const struct soft_cpu *cpu) {
    enum { APIC_ENABLED = 1 << 11 };
    return cpu->lapic == NULL || lapic_base(cpu->lapic) & APIC_ENABLED;
}

static void leaf_identity(const struct soft_cpu *cpu, uint32_t out[4]) {
    enum { C_OSXSAVE = 1 << 27, D_APIC = 1 << 9, D_HTT = 1 << 28 };
    unsigned count = vcpu_count(cpu);
    out[EAX] = SIGNATURE;
    out[EBX] = CACHE_LINE / 8 << 8 | count << 16 | cpu->vcpu.id << 24;
    fill_features(cpu, 1, 0, out);
    out[ECX] |= cpu->cr4 & CR4_OSXSAVE ? C_OSXSAVE : 0;
    out[EDX] |= count > 1 ? D_HTT : 0;
    if (!apic_enabled(cpu))
        out[EDX] &= ~(uint32_t)D_APIC;
}

static void leaf_topology(const struct soft_cpu *cpu, uint32_t subleaf, uint32_t out[4]) {
    enum { THREADS = 1, CORES = 2 };
    if (subleaf == 0) {
        out[EBX] = 1;
        out[ECX] = THREADS << 8;
    } else if (subleaf == 1) {
        out[EAX] = id_bits(cpu);
        out[EBX] = vcpu_count(cpu);
        out[ECX] = CORES << 8 | 1;
    } else {
        out[ECX] = subleaf;
    }
    out[EDX] = cpu->vcpu.id;
}

/* Areas of XSAVE: x87 and SSE in the legacy part and header, then AVX's upper halves. */
static void leaf_xsave(const struct soft_cpu *cpu, uint32_t subleaf, uint32_t out[4]) {
    enum { LEGACY = 512 + 64, AVX_SIZE = 256, AVX = 4, OFFERED = 7 };
    uint32_t now = LEGACY + (cpu->xcr0 & AVX ? AVX_SIZE : 0);
    switch (subleaf) {
    case 0:
        out[EAX] = OFFERED;
        out[EBX] = now;
        out[ECX] = LEGACY + AVX_SIZE;
        break;
    case 1:
        fill_features(cpu, 0xd, 1, out);
        out[EBX] = soft_has(cpu, FEAT_XSAVEC) || soft_has(cpu, FEAT_XSAVES) ? now : 0;
        break;
    case 2:
        out[EAX] = AVX_SIZE;
        out[EBX] = LEGACY;
        break;
    }
}

static void standard(const struct soft_cpu *cpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
    switch (leaf) {
    case 0: vendor(LEAF_MAX, out); break;
    case 1: leaf_identity(cpu, out); break;
    case 6:
        out[EAX] = 1 << 2; /* the local APIC's timer never stops */
        break;
    case 7: fill_features(cpu, 7, subleaf, out); break;
    case 0xb: leaf_topology(cpu, subleaf, out); break;
    case 0xd:
        if (soft_has(cpu, FEAT_XSAVE))
            leaf_xsave(cpu, subleaf, out);
        break;
    case 0x15: /* TSC = crystal * EBX / EAX */
        out[EAX] = APIC_HZ / 1000;
        out[EBX] = tsc_khz(cpu);
        out[ECX] = APIC_HZ;
        break;
    case 0x16:
        out[EAX] = out[EBX] = tsc_khz(cpu) / 1000;
        out[ECX] = 100;
        break;
    }
}

static void hypervisor(const struct soft_cpu *cpu, uint32_t leaf, uint32_t out[4]) {
    static const char name[] = "LodgeLodge  ";
    if (leaf == LEAF_HYPERVISOR) {
        out[EAX] = LEAF_HYPERVISOR_MAX;
        memcpy(&out[EBX], name, 12);
    } else if (leaf == LEAF_HYPERVISOR_MAX) {
        out[EAX] = tsc_khz(cpu);
        out[EBX] = APIC_HZ / 1000;
    }
}

static void brand(uint32_t part, uint32_t out[4]) {
    static const char name[48] = "lodge soft processor";
    memcpy(out, name + 16 * part, 16);
}

/* Caches and TLBs of a middling server core; the guest only looks at sizes and line length. */
static void leaf_caches(uint32_t leaf, uint32_t out[4]) {
    if (leaf == LEAF_EXTENDED + 5) {
        out[EAX] = out[EBX] = 0xff40ff40; /* 64 entries, fully associative */
        out[ECX] = out[EDX] = 32u << 24 | 8 << 16 | 1 << 8 | CACHE_LINE;
    } else {
        out[EBX] = 0x68006400; /* 1024 and 2048 entries of 4 KiB pages */
        out[ECX] = 512u << 16 | 6 << 12 | 1 << 8 | CACHE_LINE;
        out[EDX] = 16u << 18 | 9 << 12 | 1 << 8 | CACHE_LINE; /* 8 MiB */
    }
}

static void extended(const struct soft_cpu *cpu, uint32_t leaf, uint32_t out[4]) {
    fill_features(cpu, leaf, 0, out);
    switch (leaf - LEAF_EXTENDED) {
    case 0: vendor(LEAF_EXTENDED_MAX, out); break;
    case 1: {
        enum { SHARED_WITH_LEAF_1 = 0x183f3ff & ~(1 << 10 | 1 << 11) }; /* of EDX */
        out[EAX] = SIGNATURE;
        out[ECX] |= vcpu_count(cpu) > 1 ? 1 << 1 : 0; /* cores, not threads */
        out[EDX] |= features_of(cpu, 1, 0, EDX) & SHARED_WITH_LEAF_1;
        break;
    }
    case 2:
    case 3:
    case 4: brand(leaf - LEAF_EXTENDED - 2, out); break;
    case 5:
    case 6: leaf_caches(leaf, out); break;
    case 7:
        out[EDX] = 1 << 8; /* the TSC is invariant */
        break;
    case 8:
        out[EAX] = LINEAR_BITS << 8 | PHYSICAL_BITS;
        out[ECX] = id_bits(cpu) << 12 | (vcpu_count(cpu) - 1);
        break;
    case 0x1a:
        out[EAX] = 1 << 2; /* 256-bit vectors at full width */
        break;
    }
}

void cpuid_query(const struct soft_cpu *cpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
    memset(out, 0, 4 * sizeof out[0]);
    if (leaf <= LEAF_MAX)
        standard(cpu, leaf, subleaf, out);
    else if (leaf >= LEAF_HYPERVISOR && leaf <= LEAF_HYPERVISOR_MAX)
        hypervisor(cpu, leaf, out);
    else if (leaf >= LEAF_EXTENDED && leaf <= LEAF_EXTENDED_MAX)
        extended(cpu, leaf, out);
}
