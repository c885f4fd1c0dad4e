/*
 * Model-specific registers: what Linux touches on a processor of AMD's
 * family 19h. AMD64 APM vol. 2, appendix A. An unknown one is #GP, which
 * Linux copes with where it probes.
 */
#include "cpu/soft/outside.h"
#include "cpu/soft/system.h"

enum msr_kind {
    MSR_PLAIN,     /* held in soft_cpu; the mask says which bits may be set */
    MSR_CANONICAL, /* held in soft_cpu; an address */
    MSR_CONSTANT,  /* `mask` is what it reads; writes change nothing */
    MSR_READONLY,  /* `mask` is what it reads; a write is #GP */
};

struct msr_row {
    uint32_t msr;
    uint8_t kind;
    uint16_t offset;
    uint64_t mask;
};

#define HELD(member) offsetof(struct soft_cpu, member)

static const struct msr_row rows[] = {
    {MSR_STAR, MSR_PLAIN, HELD(star), UINT64_MAX},
    {MSR_LSTAR, MSR_CANONICAL, HELD(lstar), 0},
    {MSR_CSTAR, MSR_CANONICAL, HELD(cstar), 0},
    {MSR_SFMASK, MSR_PLAIN, HELD(sfmask), UINT32_MAX},
    {MSR_KERNEL_GS_BASE, MSR_CANONICAL, HELD(kernel_gs_base), 0},
    {MSR_TSC_AUX, MSR_PLAIN, HELD(tsc_aux), UINT32_MAX},
    {MSR_SYSENTER_CS, MSR_PLAIN, HELD(sysenter_cs), UINT32_MAX},
    {MSR_SYSENTER_ESP, MSR_CANONICAL, HELD(sysenter_esp), 0},
    {MSR_SYSENTER_EIP, MSR_CANONICAL, HELD(sysenter_eip), 0},
    {MSR_MTRRCAP, MSR_READONLY, 0, 0x508}, /* 8 variable, fixed, write-combining */
    {0x8b, MSR_CONSTANT, 0, 0x0a0011d5},   /* PATCH_LEVEL */
    {0x179, MSR_READONLY, 0, 0},           /* MCG_CAP: no banks */
    {0x17a, MSR_CONSTANT, 0, 0},           /* MCG_STAT */
    {0x1d9, MSR_CONSTANT, 0, 0},           /* DEBUGCTL */
    {0x1db, MSR_READONLY, 0, 0},           /* last branch and exception addresses */
    {0x1dc, MSR_READONLY, 0, 0},
    {0x1dd, MSR_READONLY, 0, 0},
    {0x1de, MSR_READONLY, 0, 0},
    {UINT32_C(0xc0010010), MSR_CONSTANT, 0, 0},       /* SYSCFG */
    {UINT32_C(0xc0010015), MSR_CONSTANT, 0, 1 << 24}, /* HWCR: the TSC counts at P0 */
    {UINT32_C(0xc001001a), MSR_CONSTANT, 0, 0},       /* TOP_MEM */
    {UINT32_C(0xc001001d), MSR_CONSTANT, 0, 0},       /* TOP_MEM2 */
    {UINT32_C(0xc001001f), MSR_CONSTANT, 0, 0},       /* NB_CFG */
    {UINT32_C(0xc0010055), MSR_CONSTANT, 0, 0},       /* INT_PENDING */
    {UINT32_C(0xc0010111), MSR_CONSTANT, 0, 0x30000}, /* SMM_BASE */
    {UINT32_C(0xc0010112), MSR_CONSTANT, 0, 0},       /* SMM_ADDR */
    {UINT32_C(0xc0010113), MSR_CONSTANT, 0, 0},       /* SMM_MASK */
    {UINT32_C(0xc0010114), MSR_CONSTANT, 0, 1 << 4},  /* VM_CR: SVM is disabled */
    {UINT32_C(0xc0011020), MSR_CONSTANT, 0, 0},       /* LS_CFG */
    {UINT32_C(0xc0011021), MSR_CONSTANT, 0, 0},       /* IC_CFG */
    {UINT32_C(0xc0011022), MSR_CONSTANT, 0, 0},       /* DC_CFG */
    {UINT32_C(0xc0011029), MSR_CONSTANT, 0, 1 << 1},  /* DE_CFG: LFENCE serialises */
    {UINT32_C(0xc001102a), MSR_CONSTANT, 0, 0},       /* BU_CFG2 */
};

static const struct msr_row *row_of(uint32_t msr) {
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].msr == msr)
            return &rows[i];
    return NULL;
}

static bool row_write(struct soft_cpu *cpu, const struct msr_row *row, uint64_t value) {
    uint64_t *held = (uint64_t *)(void *)((char *)cpu + row->offset);
    if (row->kind == MSR_CONSTANT)
        return true;
    if (row->kind == MSR_READONLY || (row->kind == MSR_PLAIN && value & ~row->mask) ||
        (row->kind == MSR_CANONICAL && !linear_canonical(value)))
        return false;
    *held = value;
    return true;
}

static uint64_t row_read(const struct soft_cpu *cpu, const struct msr_row *row) {
    if (row->kind == MSR_PLAIN || row->kind == MSR_CANONICAL)
        return *(const uint64_t *)(const void *)((const char *)cpu + row->offset);
    return row->mask;
}

/* ---- Memory types: kept for the guest, without effect ---- */

static bool memory_type_valid(unsigned type, bool pat) {
    return type <= 1 || (type >= 4 && type <= 6) || (pat && type == 7);
}

static bool types_valid(uint64_t value, bool pat) {
    for (unsigned i = 0; i < 64; i += 8)
        if (!memory_type_valid(value >> i & 0xff, pat))
            return false;
    return true;
}

/* Where a fixed-range MTRR is held, or -1. */
static int fixed_mtrr(uint32_t msr) {
    if (msr == 0x250)
        return 0;
    if (msr == 0x258 || msr == 0x259)
        return (int)(msr - 0x258) + 1;
    if (msr >= 0x268 && msr <= 0x26f)
        return (int)(msr - 0x268) + 3;
    return -1;
}

static uint64_t *mtrr_of(struct soft_cpu *cpu, uint32_t msr) {
    enum { VARIABLE_FIRST = 0x200, VARIABLE_LAST = 0x20f };
    if (msr >= VARIABLE_FIRST && msr <= VARIABLE_LAST) {
        unsigned n = (msr - VARIABLE_FIRST) / 2;
        return msr & 1 ? &cpu->mtrr_mask[n] : &cpu->mtrr_base[n];
    }
    int fixed = fixed_mtrr(msr);
    if (fixed >= 0)
        return &cpu->mtrr_fixed[fixed];
    return msr == MSR_MTRR_DEF_TYPE ? &cpu->mtrr_def_type : msr == MSR_PAT ? &cpu->pat : NULL;
}

static bool mtrr_write(struct soft_cpu *cpu, uint32_t msr, uint64_t *held, uint64_t value) {
    const uint64_t address = ((UINT64_C(1) << 48) - 1) & PAGE_MASK;
    bool valid;
    if (msr == MSR_PAT)
        valid = types_valid(value, true);
    else if (msr == MSR_MTRR_DEF_TYPE)
        valid = !(value & ~UINT64_C(0xcff)) && memory_type_valid(value & 0xff, false);
    else if (fixed_mtrr(msr) >= 0)
        valid = types_valid(value, false);
    else if (msr & 1)
        valid = !(value & ~(address | 0x800));
    else
        valid = !(value & ~(address | 0xff)) && memory_type_valid(value & 0xff, false);
    if (valid)
        *held = value;
    return valid;
}

/* ---- Time ---- */

/* The local APIC knows nothing of tsc_offset. */
static uint64_t tsc_deadline(const struct soft_cpu *cpu) {
    uint64_t deadline = cpu->lapic != NULL ? lapic_tsc_deadline(cpu->lapic) : 0;
    return deadline != 0 ? deadline + cpu->tsc_offset : 0;
}

/* One that is past is due now; one that is beyond 64 bits of what the local APIC counts, never. */
static void set_tsc_deadline(struct soft_cpu *cpu, uint64_t deadline) {
    uint64_t now = soft_tsc(cpu), base = now - cpu->tsc_offset;
    uint64_t left = deadline > now ? deadline - now : 0;
    if (cpu->lapic == NULL)
        return;
    if (deadline != 0)
        deadline = left < UINT64_MAX - base ? base + left : UINT64_MAX;
    outside_lapic_set_deadline(cpu, deadline);
}

/* ---- Reading and writing ---- */

static bool unknown(struct soft_cpu *cpu, const char *what, uint32_t msr, uint64_t value) {
    outside_log(cpu, "the guest %s MSR %#x, which is not there: #GP (RIP near %#llx, value %#llx)",
                what, msr, (unsigned long long)cpu->rip, (unsigned long long)value);
    return false;
}

static bool is_lapic_msr(const struct soft_cpu *cpu, uint32_t msr) {
    return cpu->lapic != NULL && msr >= MSR_X2APIC_FIRST && msr <= MSR_X2APIC_LAST;
}

static bool read_other(struct soft_cpu *cpu, uint32_t msr, uint64_t *value) {
    const struct msr_row *row = row_of(msr);
    const uint64_t *mtrr = mtrr_of(cpu, msr);
    if (row != NULL)
        *value = row_read(cpu, row);
    else if (mtrr != NULL)
        *value = *mtrr;
    else
        return unknown(cpu, "reads", msr, 0);
    return true;
}

bool msr_read(struct soft_cpu *cpu, uint32_t msr, uint64_t *value) {
    if (is_lapic_msr(cpu, msr))
        return outside_lapic_msr_read(cpu, msr, value);
    switch (msr) {
    case MSR_TSC: *value = soft_tsc(cpu); return true;
    case MSR_TSC_ADJUST: *value = cpu->tsc_offset; return true;
    case MSR_KVM_WALL_CLOCK: *value = cpu->kvm_wall_clock; return true;
    case MSR_KVM_SYSTEM_TIME: *value = cpu->kvm_system_time; return true;
    case MSR_APIC_BASE: *value = cpu->lapic != NULL ? lapic_base(cpu->lapic) : 0; return true;
    case MSR_TSC_DEADLINE: *value = tsc_deadline(cpu); return true;
    case MSR_EFER: *value = cpu->efer; return true;
    case MSR_FS_BASE: *value = cpu->segment[SEG_FS].base; return true;
    case MSR_GS_BASE: *value = cpu->segment[SEG_GS].base; return true;
    case MSR_XSS: *value = cpu->xss; return soft_has(cpu, FEAT_XSAVES);
    default: return read_other(cpu, msr, value);
    }
}

static bool base_write(struct soft_cpu *cpu, unsigned seg, uint64_t value) {
    if (!linear_canonical(value))
        return false;
    cpu->segment[seg].base = value;
    mmu_mode_changed(cpu);
    return true;
}

/* The local APIC's page may have moved: translations know it by its address. */
static bool apic_base_write(struct soft_cpu *cpu, uint64_t value) {
    if (cpu->lapic == NULL || !outside_lapic_set_base(cpu, value))
        return false;
    mmu_flush_all(cpu);
    return true;
}

static bool move_tsc(struct soft_cpu *cpu, uint64_t offset) {
    uint64_t deadline = tsc_deadline(cpu);
    cpu->tsc_offset = offset;
    if (deadline != 0)
        set_tsc_deadline(cpu, deadline);
    outside_kvmclock(cpu, false);
    return true;
}

/* An address in steps of four, in SYSTEM_TIME with a bit that says whether it counts. */
static bool kvm_clock_write(struct soft_cpu *cpu, uint64_t *held, uint64_t value) {
    bool wall = held == &cpu->kvm_wall_clock;
    if (value & (wall ? 3 : 2))
        return false;
    *held = value;
    outside_kvmclock(cpu, wall);
    return true;
}

static bool write_other(struct soft_cpu *cpu, uint32_t msr, uint64_t value) {
    const struct msr_row *row = row_of(msr);
    uint64_t *mtrr = mtrr_of(cpu, msr);
    if (row != NULL)
        return row_write(cpu, row, value);
    if (mtrr != NULL)
        return mtrr_write(cpu, msr, mtrr, value);
    return unknown(cpu, "writes", msr, value);
}

bool msr_write(struct soft_cpu *cpu, uint32_t msr, uint64_t value) {
    if (is_lapic_msr(cpu, msr))
        return outside_lapic_msr_write(cpu, msr, value);
    switch (msr) {
    case MSR_TSC: return move_tsc(cpu, cpu->tsc_offset + value - soft_tsc(cpu));
    case MSR_TSC_ADJUST: return move_tsc(cpu, value);
    case MSR_KVM_WALL_CLOCK: return kvm_clock_write(cpu, &cpu->kvm_wall_clock, value);
    case MSR_KVM_SYSTEM_TIME: return kvm_clock_write(cpu, &cpu->kvm_system_time, value);
    case MSR_APIC_BASE: return apic_base_write(cpu, value);
    case MSR_TSC_DEADLINE: set_tsc_deadline(cpu, value); return true;
    case MSR_EFER: return system_set_efer(cpu, value);
    case MSR_FS_BASE: return base_write(cpu, SEG_FS, value);
    case MSR_GS_BASE: return base_write(cpu, SEG_GS, value);
    case MSR_XSS: return soft_has(cpu, FEAT_XSAVES) && value == 0;
    default: return write_other(cpu, msr, value);
    }
}
