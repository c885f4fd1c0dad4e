/*
 * The processor that guests see: what KVM and the host's processor offer,
 * less what lodge's state (struct x86_state) cannot carry and what needs
 * state in the kernel that lodge does not save; with the VM's own topology.
 */
#include <stdlib.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cpu/kvm/kvm.h"

enum { CPUID_ENTRIES_MAX = 256 };

enum cpuid_register { EAX, EBX, ECX, EDX };

#define BIT(n) (UINT32_C(1) << (n))

/* Bits of a leaf that stay; leaves and registers not named stay whole. */
struct cpuid_mask {
    uint32_t leaf, index;
    enum cpuid_register reg;
    uint32_t keep;
};

/* Bits of leaf 7 (Intel SDM vol. 2, CPUID) that go: MPX, protection keys, AVX-512 and what builds
 * on its registers, AMX, CET, 57-bit addresses, user interrupts. */
enum {
    LEAF7_EBX_GO = 1 << 2 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 21 | 1 << 25 | 1 << 26 | 1 << 27 |
                   1 << 28 | 1 << 30,
    LEAF7_ECX_GO = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 12 | 1 << 14 |
                   1 << 16 | 1 << 23,
    LEAF7_EDX_GO =
        1 << 2 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 25,
};
#define LEAF7_EBX_AVX512VL BIT(31)

static const struct cpuid_mask masks[] = {
    /* MONITOR, debug store, VMX, SMX, thermal, performance capabilities, DCA. */
    {1, 0, ECX,
     ~(BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(15) | BIT(18))},
    {6, 0, EAX, BIT(2)}, /* the APIC timer never stops */
    {6, 0, EBX, 0},
    {6, 0, ECX, 0},
    {7, 0, EBX, ~((uint32_t)LEAF7_EBX_GO | LEAF7_EBX_AVX512VL)},
    {7, 0, ECX, ~(uint32_t)LEAF7_ECX_GO},
    {7, 0, EDX, ~(uint32_t)LEAF7_EDX_GO},
    {7, 1, EAX, BIT(10) | BIT(11) | BIT(12)}, /* fast string operations */
    {7, 1, EBX, 0},
    {7, 1, ECX, 0},
    {7, 1, EDX, 0},
    {0xd, 0, EAX, 7}, /* x87, SSE, AVX */
    {0xd, 0, EDX, 0},
    {0xd, 1, EAX, 7}, /* XSAVEOPT, XSAVEC, XGETBV(1); XSAVES has IA32_XSS */
    {0xd, 1, ECX, 0},
    {0xd, 1, EDX, 0},
    /* SVM, instruction sampling, watchdog, lightweight profiling, topology leaves, performance
     * counters, MONITORX. */
    {0x80000001, 0, ECX,
     ~(BIT(2) | BIT(10) | BIT(12) | BIT(13) | BIT(15) | BIT(19) | BIT(22) | BIT(23) | BIT(24) |
       BIT(26) | BIT(28) | BIT(29))},
    /* Of KVM's own: no I/O delays, unhalting, IPIs and yields by hypercall. The others keep state
     * in guest memory or MSRs. */
    {0x40000001, 0, EAX, BIT(1) | BIT(7) | BIT(11) | BIT(13)},
    {0x40000001, 0, EDX, 0},
};

/* Leaves that answer zeros: performance monitoring, resource control, SGX, tracing, tiles, SVM,
 * AMD's sampling, topology and encryption. */
static const uint32_t empty_leaves[] = {
    0xa,        0xf,        0x10,       0x12,       0x14,       0x18,       0x19,       0x1b,
    0x1c,       0x1d,       0x1e,       0x1f,       0x23,       0x24,       0x8000000a, 0x8000001b,
    0x8000001c, 0x8000001d, 0x8000001e, 0x8000001f, 0x80000022, 0x80000023, 0x80000026,
};

static uint32_t *entry_register(struct kvm_cpuid_entry2 *entry, enum cpuid_register reg) {
    uint32_t *registers[] = {&entry->eax, &entry->ebx, &entry->ecx, &entry->edx};
    return registers[reg];
}

static bool keep_entry(const struct kvm_cpuid_entry2 *entry) {
    for (size_t i = 0; i < ARRAY_SIZE(empty_leaves); i++) {
        if (entry->function == empty_leaves[i])
            return false;
    }
    if (entry->function == 0xb || entry->function == 4)
        return entry->function == 4; /* 0xb is made for each VM */
    return entry->function != 0xd || entry->index <= 2;
}

static void filter(struct kvm_cpuid2 *cpuid) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        if (!keep_entry(entry))
            continue;
        for (size_t m = 0; m < ARRAY_SIZE(masks); m++) {
            if (masks[m].leaf == entry->function && masks[m].index == entry->index)
                *entry_register(entry, masks[m].reg) &= masks[m].keep;
        }
        cpuid->entries[kept++] = *entry;
    }
    cpuid->nent = kept;
}

static struct kvm_cpuid_entry2 *find(struct kvm_cpuid2 *cpuid, uint32_t leaf, uint32_t index) {
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        if (cpuid->entries[i].function == leaf && cpuid->entries[i].index == index)
            return &cpuid->entries[i];
    }
    return NULL;
}

/* The number of bits that hold an APIC id below count. */
static uint32_t id_bits(unsigned count) {
    uint32_t bits = 0;
    while ((1u << bits) < count)
        bits++;
    return bits;
}

/* Leaf 0Bh: a thread a core, all cores in one package. APIC ids go into EDX for each vCPU. */
static void add_topology(struct kvm_cpuid2 *cpuid, unsigned vcpus) {
    struct kvm_cpuid_entry2 levels[] = {
        {0xb, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 0, 1, 1 << 8 | 0, 0},
        {0xb, 1, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, id_bits(vcpus), vcpus, 2 << 8 | 1, 0},
        {0xb, 2, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 0, 0, 2, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(levels) && cpuid->nent < CPUID_ENTRIES_MAX; i++)
        cpuid->entries[cpuid->nent++] = levels[i];
}

static void describe_vm(struct kvm_engine *engine) {
    struct kvm_cpuid2 *cpuid = engine->cpuid;
    unsigned vcpus = engine->engine.config.vcpus, wanted = engine->engine.config.address_bits;
    struct kvm_cpuid_entry2 *entry = find(cpuid, 1, 0);
    if (entry != NULL) {
        entry->ecx |= BIT(21) | BIT(31); /* x2APIC, a hypervisor is present */
        if (engine->has_tsc_deadline)
            entry->ecx |= BIT(24);
        entry->edx = vcpus > 1 ? entry->edx | BIT(28) : entry->edx & ~BIT(28);
        entry->ebx = (entry->ebx & 0xff00) | vcpus << 16;
    }
    entry = find(cpuid, 0x80000001, 0);
    if (entry != NULL)
        entry->ecx = vcpus > 1 ? entry->ecx | BIT(1) : entry->ecx & ~BIT(1);
    entry = find(cpuid, 0x80000008, 0);
    if (entry != NULL) { /* AMD: bits of an APIC id, cores - 1 */
        entry->ecx = id_bits(vcpus) << 12 | (vcpus - 1);
        if (wanted != 0 && wanted < (entry->eax & 0xff))
            entry->eax = (entry->eax & ~UINT32_C(0xff)) | wanted;
    }
    for (uint32_t i = 0; (entry = find(cpuid, 4, i)) != NULL; i++) {
        if (entry->eax & 0x1f) /* Intel: who shares a cache; level 3 is everybody's */
            entry->eax = (entry->eax & 0x3fff) |
                         ((entry->eax >> 5 & 7) == 3 ? (vcpus - 1) << 14 : 0) | (vcpus - 1) << 26;
    }
    entry = find(cpuid, 0xd, 0);
    if (entry != NULL) /* the size of the whole area; KVM keeps EBX, for what is enabled */
        entry->ecx = entry->eax & 4 ? 832 : 576;
    entry = find(cpuid, 0, 0);
    if (entry != NULL && entry->eax < 0xb)
        entry->eax = 0xb;
    add_topology(cpuid, vcpus);
}

int kvm_cpuid_init(struct kvm_engine *engine, struct error *err) {
    struct kvm_cpuid2 *cpuid =
        calloc(1, sizeof *cpuid + CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2));
    if (cpuid == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    engine->cpuid = cpuid;
    cpuid->nent = CPUID_ENTRIES_MAX;
    int code = kvm_ioctl(engine->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid);
    if (code < 0)
        return error_set_errno(err, code, "asking KVM for the processor's features");
    filter(cpuid);
    describe_vm(engine);
    struct kvm_cpuid_entry2 *xsave = find(cpuid, 0xd, 0), *features = find(cpuid, 1, 0);
    engine->xcr0 = xsave != NULL && features != NULL && features->ecx & BIT(26) ? xsave->eax : 1;
    return 0;
}

int kvm_cpuid_set(struct kvm_vcpu *vcpu, struct error *err) {
    const struct kvm_engine *engine = kvm_engine_of_vcpu(vcpu);
    size_t size = sizeof *engine->cpuid + engine->cpuid->nent * sizeof(struct kvm_cpuid_entry2);
    struct kvm_cpuid2 *cpuid = malloc(size);
    if (cpuid == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    memcpy(cpuid, engine->cpuid, size);
    struct kvm_cpuid_entry2 *entry = find(cpuid, 1, 0);
    if (entry != NULL)
        entry->ebx |= vcpu->vcpu.id << 24;
    for (uint32_t i = 0; (entry = find(cpuid, 0xb, i)) != NULL; i++)
        entry->edx = vcpu->vcpu.id;
    int code = kvm_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);
    free(cpuid);
    return code < 0 ? error_set_errno(err, code, "telling KVM of the processor's features") : 0;
}
