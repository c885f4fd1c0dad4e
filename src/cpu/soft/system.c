/*
 * Control, debug and extended control registers, cache and TLB control, and
 * the time-stamp counter. AMD64 APM vol. 2, chapters 3, 5 and 13.
 */
#include "cpu/soft/system.h"
#include "cpu/soft/debug.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/outside.h"
#include "cpu/soft/verify.h"

/* ---- Control registers ---- */

enum {
    CR0_KNOWN_LOW =
        CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD,
    CR4_OFFERED = CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR |
                  CR4_OSXMMEXCPT | CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP |
                  CR4_SMAP,
    /* What translations or the rights that are cached with them depend on. */
    CR4_TRANSLATION = CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP,
    EFER_AUTOIBRS = 1 << 21,
    EFER_OFFERED = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_AUTOIBRS,
};
#define CR0_KNOWN (CR0_KNOWN_LOW | CR0_PG)
#define CR3_KEEP  (UINT64_C(1) << 63)

/* Paging goes on or off with EFER.LME set: long mode begins or ends. */
static bool switch_long_mode(struct soft_cpu *cpu, uint64_t value) {
    bool paging = value & CR0_PG, was = cpu->cr0 & CR0_PG;
    if (paging && !was && cpu->efer & EFER_LME) {
        if (!(cpu->cr4 & CR4_PAE) || cpu->segment[SEG_CS].attributes & SEG_L)
            return false;
        cpu->efer |= EFER_LMA;
    } else if (!paging && was) {
        if (cpu->mode == INSN_MODE_64 || cpu->cr4 & CR4_PCIDE)
            return false;
        cpu->efer &= ~(uint64_t)EFER_LMA;
    }
    return true;
}

bool system_set_cr0(struct soft_cpu *cpu, uint64_t value) {
    if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) ||
        ((value & CR0_NW) && !(value & CR0_CD)))
        return false;
    if (!switch_long_mode(cpu, value))
        return false;
    value = (value & CR0_KNOWN) | CR0_ET;
    uint64_t changed = cpu->cr0 ^ value;
    cpu->cr0 = value;
    if (changed & (CR0_PG | CR0_WP | CR0_PE))
        mmu_flush_all(cpu);
    mmu_mode_changed(cpu);
    return true;
}

bool system_set_cr3(struct soft_cpu *cpu, uint64_t value) {
    bool pcide = cpu->cr4 & CR4_PCIDE, keep = pcide && value & CR3_KEEP;
    if (pcide)
        value &= ~CR3_KEEP;
    if (value >> 52 || (value >> 48 && cpu->long_mode))
        return false;
    cpu->jit.spaces += (cpu->cr3 ^ value) >= PAGE_SIZE;
    cpu->cr3 = value;
    mmu_set_space(cpu, pcide ? value & (PCID_COUNT - 1) : 0, keep);
    return true;
}

bool system_set_cr4(struct soft_cpu *cpu, uint64_t value) {
    uint64_t changed = cpu->cr4 ^ value;
    if (value & ~(uint64_t)CR4_OFFERED || (cpu->long_mode && !(value & CR4_PAE)))
        return false;
    if ((changed & value & CR4_PCIDE) && (!cpu->long_mode || cpu->cr3 & 0xfff))
        return false;
    cpu->cr4 = value;
    if (changed & CR4_TRANSLATION)
        mmu_flush_all(cpu);
    mmu_mode_changed(cpu);
    return true;
}

bool system_xcr0_legal(uint64_t value) {
    enum { X87 = 1, SSE = 2, AVX = 4 };
    return !(value & ~(uint64_t)(X87 | SSE | AVX)) && (value & X87) &&
           (!(value & AVX) || (value & SSE));
}

bool system_set_xcr0(struct soft_cpu *cpu, uint64_t value) {
    if (!system_xcr0_legal(value))
        return false;
    cpu->xcr0 = value;
    return true;
}

bool system_offers(uint64_t cr4, uint64_t efer) {
    return !(cr4 & ~(uint64_t)CR4_OFFERED) && !(efer & ~(uint64_t)EFER_OFFERED);
}

bool system_set_efer(struct soft_cpu *cpu, uint64_t value) {
    if (value & ~(uint64_t)EFER_OFFERED)
        return false;
    uint64_t changed = (cpu->efer ^ value) & ~(uint64_t)EFER_LMA;
    if (changed & EFER_LME && cpu->cr0 & CR0_PG)
        return false;
    cpu->efer ^= changed;
    if (changed & EFER_NXE)
        mmu_flush_all(cpu);
    return true;
}

static void check_privileged(struct soft_cpu *cpu) {
    if (cpu->cpl != 0)
        raise_error(cpu, EXC_GP, 0);
}

/* The control register that MOV names: #UD where there is none, whatever the privilege. */
static unsigned control_register(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned n = insn->reg + (insn->flags & I_LOCK ? 8 : 0);
    cpu->insn = insn;
    if (n == 1 || n == 5 || n == 6 || n == 7 || n > 8)
        raise_exception(cpu, EXC_UD);
    check_privileged(cpu);
    return n;
}

static uint64_t control_read(struct soft_cpu *cpu, unsigned n) {
    switch (n) {
    case 0: return cpu->cr0;
    case 2: return cpu->cr2;
    case 3: return cpu->cr3;
    case 4: return cpu->cr4;
    default: return cpu->lapic != NULL ? lapic_cr8(cpu->lapic) : 0;
    }
}

static bool control_write(struct soft_cpu *cpu, unsigned n, uint64_t value) {
    switch (n) {
    case 0: return system_set_cr0(cpu, value);
    case 2: cpu->cr2 = value; return true;
    case 3: return system_set_cr3(cpu, value);
    case 4: return system_set_cr4(cpu, value);
    default:
        if (value > 15)
            return false;
        if (cpu->lapic != NULL)
            lapic_set_cr8(cpu->lapic, (uint8_t)value);
        return true;
    }
}

/* These move 64 bits in 64-bit mode and 32 elsewhere, whatever the prefixes. */
static uint64_t width_value(const struct soft_cpu *cpu, uint64_t value) {
    return cpu->mode == INSN_MODE_64 ? value : (uint32_t)value;
}

void mov_r_c(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned n = control_register(cpu, insn);
    if (n == 8)
        verify_once(cpu, insn);
    cpu->gpr[insn->rm] = width_value(cpu, control_read(cpu, n));
    INSN_NEXT;
}

void mov_c_r(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned n = control_register(cpu, insn);
    uint64_t next = insn_next_rip(cpu, insn);
    if (n == 8)
        verify_once(cpu, insn);
    if (!control_write(cpu, n, width_value(cpu, cpu->gpr[insn->rm])))
        raise_error(cpu, EXC_GP, 0);
    soft_serialise(cpu);
    INSN_JUMP(next);
}

void clts(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->cr0 &= ~(uint64_t)CR0_TS;
    INSN_END_BLOCK;
}

static void check_umip(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (cpu->cr4 & CR4_UMIP && cpu->cpl != 0)
        raise_error(cpu, EXC_GP, 0);
}

void smsw_r(struct soft_cpu *cpu, const struct insn *insn) {
    check_umip(cpu, insn);
    uint64_t *reg = &cpu->gpr[insn->rm];
    if (insn->size == 2)
        *reg = (*reg & ~UINT64_C(0xffff)) | (uint16_t)cpu->cr0;
    else
        *reg = insn->size == 4 ? (uint32_t)cpu->cr0 : cpu->cr0;
    INSN_NEXT;
}

void smsw_m(struct soft_cpu *cpu, const struct insn *insn) {
    check_umip(cpu, insn);
    store16(cpu, insn->seg, insn_offset(cpu, insn), (uint16_t)cpu->cr0);
    INSN_NEXT;
}

/* LMSW sets PE but never clears it. */
static void lmsw(struct soft_cpu *cpu, const struct insn *insn, uint16_t value) {
    enum { LMSW_BITS = CR0_PE | CR0_MP | CR0_EM | CR0_TS };
    uint64_t kept = cpu->cr0 & ~(uint64_t)(LMSW_BITS & ~CR0_PE);
    if (!system_set_cr0(cpu, kept | (value & LMSW_BITS)))
        raise_error(cpu, EXC_GP, 0);
}

void lmsw_r(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    lmsw(cpu, insn, (uint16_t)cpu->gpr[insn->rm]);
    INSN_END_BLOCK;
}

void lmsw_m(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    lmsw(cpu, insn, load16(cpu, insn->seg, insn_offset(cpu, insn)));
    INSN_END_BLOCK;
}

/* ---- Debug registers ---- */

/* The register meant: 4 and 5 are other names of 6 and 7 unless CR4.DE makes them #UD. */
static unsigned debug_register(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned n = insn->reg;
    cpu->insn = insn;
    if (n > 7 || ((n == 4 || n == 5) && cpu->cr4 & CR4_DE))
        raise_exception(cpu, EXC_UD);
    check_privileged(cpu);
    if (cpu->dr[7] & DR7_GD) {
        debug_enter(cpu, DR6_BD);
        raise_exception(cpu, EXC_DB);
    }
    return n < 4 ? n : n | 2;
}

void mov_r_d(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned n = debug_register(cpu, insn);
    cpu->gpr[insn->rm] = width_value(cpu, cpu->dr[n]);
    INSN_NEXT;
}

void mov_d_r(struct soft_cpu *cpu, const struct insn *insn) {
    enum { DR6_WRITABLE = 0xe00f, DR7_RESERVED = 0xd800 };
    unsigned n = debug_register(cpu, insn);
    uint64_t value = width_value(cpu, cpu->gpr[insn->rm]), next = insn_next_rip(cpu, insn);
    if (n >= 6 && value >> 32)
        raise_error(cpu, EXC_GP, 0);
    if (n >= 6)
        value = n == 6 ? (value & DR6_WRITABLE) | DR6_FIXED
                       : (value & ~(uint64_t)DR7_RESERVED) | DR7_FIXED;
    bool watches = debug_active(cpu);
    verify_once(cpu, insn);
    cpu->dr[n] = value;
    /* Watched pages are marked in the TLB, watched instructions in the blocks. */
    if (n != 6 && (watches || debug_active(cpu))) {
        mmu_flush_all(cpu);
        outside_invalidate_all(cpu);
    }
    soft_serialise(cpu);
    INSN_JUMP(next);
}

/* ---- TLB and caches ---- */

void invlpg(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t linear = insn_offset(cpu, insn);
    if (cpu->mode != INSN_MODE_64)
        linear = (uint32_t)(linear + cpu->segment[insn->seg].base);
    else if (insn->seg >= SEG_FS)
        linear += cpu->segment[insn->seg].base;
    if (linear_canonical(linear))
        mmu_flush_page(cpu, linear);
    soft_serialise(cpu);
    INSN_END_BLOCK;
}

void invpcid(struct soft_cpu *cpu, const struct insn *insn) {
    enum { ADDRESS, SINGLE, ALL, ALL_BUT_GLOBAL };
    uint64_t operand[2];
    cpu->insn = insn;
    access_read(cpu, insn->seg, insn_offset(cpu, insn), operand, sizeof operand);
    uint64_t type = width_value(cpu, cpu->gpr[insn->reg]), next = insn_next_rip(cpu, insn);
    bool pcide = cpu->cr4 & CR4_PCIDE;
    if (type > ALL_BUT_GLOBAL || operand[0] >> 12 || (type <= SINGLE && !pcide && operand[0]) ||
        (type == ADDRESS && !linear_canonical(operand[1])))
        raise_error(cpu, EXC_GP, 0);
    switch (type) {
    case ADDRESS: mmu_flush_page(cpu, operand[1]); break;
    case SINGLE: mmu_flush_space(cpu, (unsigned)operand[0]); break;
    case ALL: mmu_flush_all(cpu); break;
    default: mmu_flush_spaces(cpu); break;
    }
    soft_serialise(cpu);
    INSN_JUMP(next);
}

/* INVD, WBINVD: guest memory is coherent. INVD may keep what is cached. */
void cache_control(struct soft_cpu *cpu, const struct insn *insn) {
    INSN_NEXT_SERIALISED;
}

/* CLFLUSH, CLFLUSHOPT, CLWB: checked like a read of one byte. */
void clflush(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    load8(cpu, insn->seg, insn_offset(cpu, insn));
    INSN_NEXT;
}

/* What the guest does runs in order on the host, but for a store that a later load overtakes. */
void fence_full(struct soft_cpu *cpu, const struct insn *insn) {
    atomic_thread_fence(memory_order_seq_cst);
    INSN_NEXT;
}

/* SFENCE: non-temporal stores are the one kind that others may see late. */
void fence_stores(struct soft_cpu *cpu, const struct insn *insn) {
    atomic_thread_fence(memory_order_seq_cst);
    INSN_NEXT;
}

void fence_none(struct soft_cpu *cpu, const struct insn *insn) {
    atomic_signal_fence(memory_order_seq_cst);
    INSN_NEXT;
}

/* ---- Extended control register ---- */

static void check_osxsave(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (!(cpu->cr4 & CR4_OSXSAVE))
        raise_exception(cpu, EXC_UD);
}

static void result_edx_eax(struct soft_cpu *cpu, uint64_t value) {
    cpu->gpr[RAX] = (uint32_t)value;
    cpu->gpr[RDX] = value >> 32;
}

static uint64_t operand_edx_eax(const struct soft_cpu *cpu) {
    return cpu->gpr[RDX] << 32 | (uint32_t)cpu->gpr[RAX];
}

void xgetbv(struct soft_cpu *cpu, const struct insn *insn) {
    check_osxsave(cpu, insn);
    /* ECX 1 asks which of the enabled states are in use. */
    uint32_t which = (uint32_t)cpu->gpr[RCX];
    if (which > 1)
        raise_error(cpu, EXC_GP, 0);
    result_edx_eax(cpu, which == 0 ? cpu->xcr0 : cpu->xcr0 & outside_xsave_in_use(cpu));
    INSN_NEXT;
}

void xsetbv(struct soft_cpu *cpu, const struct insn *insn) {
    check_osxsave(cpu, insn);
    if (cpu->cpl != 0 || (uint32_t)cpu->gpr[RCX] != 0 ||
        !system_set_xcr0(cpu, operand_edx_eax(cpu)))
        raise_error(cpu, EXC_GP, 0);
    soft_serialise(cpu);
    INSN_END_BLOCK;
}

/* ---- Time, counters, identity ---- */

static bool tsc_by_line(const struct soft_cpu *cpu, uint64_t *tsc) {
#if defined(__x86_64__)
    if (cpu->clock_line == NULL)
        return false;
    uint64_t begin = clock_line_begin(cpu->clock_line);
    return clock_line_at(cpu->clock_line, begin, clock_line_host_tsc(), tsc);
#else
    return false;
#endif
}

uint64_t soft_tsc(struct soft_cpu *cpu) {
    uint64_t tsc;
    if (!tsc_by_line(cpu, &tsc))
        tsc = outside_clock_tsc(cpu);
    return tsc + cpu->tsc_offset;
}

static void check_tsc(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (cpu->cr4 & CR4_TSD && cpu->cpl != 0)
        raise_error(cpu, EXC_GP, 0);
    verify_once(cpu, insn);
}

void rdtsc(struct soft_cpu *cpu, const struct insn *insn) {
    check_tsc(cpu, insn);
    result_edx_eax(cpu, soft_tsc(cpu));
    INSN_NEXT;
}

void rdtscp(struct soft_cpu *cpu, const struct insn *insn) {
    check_tsc(cpu, insn);
    result_edx_eax(cpu, soft_tsc(cpu));
    cpu->gpr[RCX] = (uint32_t)cpu->tsc_aux;
    INSN_NEXT;
}

void rdpid(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->gpr[insn->rm] = cpu->tsc_aux;
    INSN_NEXT;
}

/* No performance counters are offered. */
void rdpmc(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    raise_error(cpu, EXC_GP, 0);
}

void cpuid(struct soft_cpu *cpu, const struct insn *insn) {
    uint32_t out[4];
    cpuid_query(cpu, (uint32_t)cpu->gpr[RAX], (uint32_t)cpu->gpr[RCX], out);
    cpu->gpr[RAX] = out[0];
    cpu->gpr[RBX] = out[1];
    cpu->gpr[RCX] = out[2];
    cpu->gpr[RDX] = out[3];
    INSN_NEXT_SERIALISED;
}

/* Not one of those that only the vCPU's own state holds. */
static bool msr_is_once(uint32_t msr) {
    switch (msr) {
    case MSR_STAR:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_SFMASK:
    case MSR_KERNEL_GS_BASE:
    case MSR_FS_BASE:
    case MSR_GS_BASE:
    case MSR_TSC_AUX: return false;
    default: return true;
    }
}

void rdmsr(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t value;
    cpu->insn = insn;
    if (msr_is_once((uint32_t)cpu->gpr[RCX]))
        verify_once(cpu, insn);
    if (!msr_read(cpu, (uint32_t)cpu->gpr[RCX], &value))
        raise_error(cpu, EXC_GP, 0);
    result_edx_eax(cpu, value);
    INSN_NEXT;
}

void wrmsr(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (msr_is_once((uint32_t)cpu->gpr[RCX]))
        verify_once(cpu, insn);
    if (!msr_write(cpu, (uint32_t)cpu->gpr[RCX], operand_edx_eax(cpu)))
        raise_error(cpu, EXC_GP, 0);
    soft_serialise(cpu);
    INSN_END_BLOCK;
}

/* ---- RFLAGS.AC ---- */

/* At CPL 0 AC matters to SMAP alone, so that the choice of TLB is all that follows. */
static void set_ac(struct soft_cpu *cpu, const struct insn *insn, bool on) {
    cpu->insn = insn;
    if (cpu->cpl != 0)
        raise_exception(cpu, EXC_UD);
    cpu->rflags = on ? cpu->rflags | FLAG_AC : cpu->rflags & ~(uint64_t)FLAG_AC;
    cpu->tlb = cpu->tlbs[cpu->cr4 & CR4_SMAP && !on ? TLB_SUPERVISOR_SMAP : TLB_SUPERVISOR];
    jit_mode_changed(cpu);
}

void clac(struct soft_cpu *cpu, const struct insn *insn) {
    set_ac(cpu, insn, false);
    INSN_NEXT;
}

void stac(struct soft_cpu *cpu, const struct insn *insn) {
    set_ac(cpu, insn, true);
    INSN_NEXT;
}
