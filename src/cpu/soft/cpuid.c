/*
 * CPUID: a processor of AMD's family 19h without the flaws that would make a
 * guest take detours. AMD64 APM vol. 3, appendix E; leaves 0Dh, 15h and 16h
 * as the Intel SDM has them. Which features there are: cpuid_features.c.
 */
#include "base/bytes.h"
#include "cpu/soft/kvmclock.h"
#include "cpu/soft/soft.h"

enum { EAX, EBX, ECX, EDX };
enum { LINEAR_BITS = 48, CACHE_LINE = 64 };
enum { LEAF_MAX = 0x16 };
#define LEAF_HYPERVISOR     UINT32_C(0x40000000)
#define LEAF_HYPERVISOR_MAX UINT32_C(0x40000010)
#define LEAF_KVM            UINT32_C(0x40000100) /* a second hypervisor, for its clock */
#define LEAF_KVM_MAX        UINT32_C(0x40000101)
#define LEAF_EXTENDED       UINT32_C(0x80000000)
#define LEAF_EXTENDED_MAX   UINT32_C(0x80000021)
/* The local APIC timer's frequency (interrupt.h's clock is in nanoseconds). */
#define APIC_HZ UINT32_C(1000000000)

/* ---- Leaves ---- */

static void fill_features(const struct soft_cpu *cpu, enum cpuid_group group, uint32_t out[4]) {
    for (unsigned reg = EAX; reg <= EDX; reg++)
        out[reg] |= cpu->cpuid_features[group][reg];
}

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
    fill_features(cpu, CPUID_1, out);
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
        fill_features(cpu, CPUID_D1, out);
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
    case 7:
        if (subleaf == 0)
            fill_features(cpu, CPUID_7, out);
        break;
    case 0xb: leaf_topology(cpu, subleaf, out); break;
    case 0xd:
        if (soft_has(cpu, FEAT_XSAVE))
            leaf_xsave(cpu, subleaf, out);
        break;
    case 0x15: /* TSC = crystal * EBX / EAX */
        out[EAX] = APIC_HZ / 1000;
        out[EBX] = cpu->tsc_khz;
        out[ECX] = APIC_HZ;
        break;
    case 0x16:
        out[EAX] = out[EBX] = cpu->tsc_khz / 1000;
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
        out[EAX] = cpu->tsc_khz;
        out[EBX] = APIC_HZ / 1000;
    }
}

static void kvm(uint32_t leaf, uint32_t out[4]) {
    if (leaf == LEAF_KVM) {
        out[EAX] = LEAF_KVM_MAX;
        memcpy(&out[EBX], "KVMKVMKVM\0\0", 12);
    } else {
        out[EAX] = KVM_FEATURES;
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

/* The same by level, with who shares each: the last is everybody's. */
static void leaf_cache_level(const struct soft_cpu *cpu, uint32_t index, uint32_t out[4]) {
    enum { DATA = 1, CODE = 2, UNIFIED = 3, INITIALISED = 1 << 8 };
    static const struct {
        uint8_t type, level, ways;
        uint32_t size;
    } caches[] = {{DATA, 1, 8, 32 << 10},
                  {CODE, 1, 8, 32 << 10},
                  {UNIFIED, 2, 8, 512 << 10},
                  {UNIFIED, 3, 16, 8 << 20}};
    if (index >= ARRAY_SIZE(caches))
        return;
    unsigned sharers = caches[index].level == 3 ? vcpu_count(cpu) : 1;
    out[EAX] = caches[index].type | caches[index].level << 5 | INITIALISED | (sharers - 1) << 14;
    out[EBX] = (CACHE_LINE - 1) | (uint32_t)(caches[index].ways - 1) << 22;
    out[ECX] = caches[index].size / caches[index].ways / CACHE_LINE - 1;
}

static void extended(const struct soft_cpu *cpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
    enum { CORES = 1 << 1, TOPOLOGY = 1 << 22 };
    switch (leaf - LEAF_EXTENDED) {
    case 0: vendor(LEAF_EXTENDED_MAX, out); break;
    case 1: {
        enum { SHARED_WITH_LEAF_1 = 0x183f3ff & ~(1 << 10 | 1 << 11) }; /* of EDX */
        out[EAX] = SIGNATURE;
        fill_features(cpu, CPUID_EXT_1, out);
        out[ECX] |= TOPOLOGY | (vcpu_count(cpu) > 1 ? CORES : 0); /* not threads */
        out[EDX] |= cpu->cpuid_features[CPUID_1][EDX] & SHARED_WITH_LEAF_1;
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
        fill_features(cpu, CPUID_EXT_8, out);
        out[EAX] = LINEAR_BITS << 8 | cpu->address_bits;
        out[ECX] = id_bits(cpu) << 12 | (vcpu_count(cpu) - 1);
        break;
    case 0x1d: leaf_cache_level(cpu, subleaf, out); break;
    case 0x1e: /* ids: of the APIC and the core; one thread each, one node */
        out[EAX] = out[EBX] = cpu->vcpu.id;
        break;
    case 0x21: fill_features(cpu, CPUID_EXT_21, out); break;
    case 0x1a:
        out[EAX] = 1 << 2; /* 256-bit vectors at full width */
        break;
    }
}

void cpuid_query(const struct soft_cpu *cpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
    for (unsigned reg = EAX; reg <= EDX; reg++)
        out[reg] = 0;
    if (leaf <= LEAF_MAX)
        standard(cpu, leaf, subleaf, out);
    else if (leaf >= LEAF_HYPERVISOR && leaf <= LEAF_HYPERVISOR_MAX)
        hypervisor(cpu, leaf, out);
    else if (leaf >= LEAF_KVM && leaf <= LEAF_KVM_MAX)
        kvm(leaf, out);
    else if (leaf >= LEAF_EXTENDED && leaf <= LEAF_EXTENDED_MAX)
        extended(cpu, leaf, subleaf, out);
}
