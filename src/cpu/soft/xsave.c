/*
 * Saving and loading the x87, SSE and AVX state: FXSAVE, FXRSTOR, the XSAVE
 * family, MXCSR.
 *
 * Sources: APM vol. 2, 11.4 and 11.5; vol. 4. Three components: 0 x87, 1 SSE,
 * 2 AVX (upper halves of YMM), the latter at offset 576 in the standard and in
 * the compacted format.
 */
#include "base/bytes.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/vec.h"
#include "cpu/soft/x87.h"

enum {
    AREA_FOP = 6,
    AREA_FIP = 8,
    AREA_FDP = 16,
    AREA_MXCSR = 24,
    AREA_ST = 32,
    AREA_XMM = 160,
    AREA_FXSAVE_END = 416, /* what FXSAVE and FXRSTOR touch of their 512 bytes */
    AREA_HEADER = 512,
    AREA_XCOMP = AREA_HEADER + 8,
    AREA_YMM = 576,
    AREA_END = 832,
};
enum { COMPONENT_X87 = 1, COMPONENT_SSE = 2, COMPONENT_AVX = 4 };
#define XCOMP_COMPACT (UINT64_C(1) << 63)

/* ---- Images of the components ---- */

static unsigned register_count(const struct soft_cpu *cpu) {
    return cpu->mode == INSN_MODE_64 ? 16 : 8;
}

/* Error pointers are saved while an exception is pending, else zeros. */
static void put_pointers(const struct soft_cpu *cpu, const struct insn *insn, uint8_t *area) {
    bool pending = cpu->fsw & FSW_ES;
    store_le16(area + AREA_FOP, pending ? cpu->fop : 0);
    if (insn->flags & I_REX_W) {
        store_le64(area + AREA_FIP, pending ? cpu->fip : 0);
        store_le64(area + AREA_FDP, pending ? cpu->fdp : 0);
        return;
    }
    store_le32(area + AREA_FIP, pending ? (uint32_t)cpu->fip : 0);
    store_le32(area + AREA_FIP + 4, pending ? cpu->fcs : 0);
    store_le32(area + AREA_FDP, pending ? (uint32_t)cpu->fdp : 0);
    store_le32(area + AREA_FDP + 4, pending ? cpu->fds : 0);
}

static void put_x87(const struct soft_cpu *cpu, const struct insn *insn, uint8_t *area) {
    store_le16(area, cpu->fcw);
    store_le16(area + 2, cpu->fsw);
    store_le16(area + 4, cpu->ftw);
    put_pointers(cpu, insn, area);
    for (unsigned i = 0; i < 8; i++) {
        const struct x86_x87 *st = &cpu->x87[(x87_top(cpu) + i) & 7];
        memset(area + AREA_ST + 16 * i, 0, 16);
        store_le64(area + AREA_ST + 16 * i, st->significand);
        store_le16(area + AREA_ST + 16 * i + 8, st->sign_exponent);
    }
}

/* The pointers hold 57 bits, sign-extended. */
static uint64_t pointer(uint64_t value) {
    return (uint64_t)((int64_t)(value << 7) >> 7);
}

static void get_pointers(struct soft_cpu *cpu, const struct insn *insn, const uint8_t *area) {
    cpu->fop = load_le16(area + AREA_FOP) & 0x7ff;
    if (insn->flags & I_REX_W) {
        cpu->fip = pointer(load_le64(area + AREA_FIP));
        cpu->fdp = pointer(load_le64(area + AREA_FDP));
        return;
    }
    cpu->fip = load_le32(area + AREA_FIP);
    cpu->fcs = load_le16(area + AREA_FIP + 4);
    cpu->fdp = load_le32(area + AREA_FDP);
    cpu->fds = load_le16(area + AREA_FDP + 4);
}

static void get_x87(struct soft_cpu *cpu, const struct insn *insn, const uint8_t *area) {
    cpu->fcw = x87_control(load_le16(area));
    cpu->fsw = load_le16(area + 2);
    cpu->ftw = area[4];
    x87_update_pending(cpu);
    get_pointers(cpu, insn, area);
    for (unsigned i = 0; i < 8; i++) {
        struct x86_x87 *st = &cpu->x87[(x87_top(cpu) + i) & 7];
        st->significand = load_le64(area + AREA_ST + 16 * i);
        st->sign_exponent = load_le16(area + AREA_ST + 16 * i + 8);
    }
}

static void put_mxcsr(const struct soft_cpu *cpu, uint8_t *area) {
    store_le32(area + AREA_MXCSR, cpu->mxcsr);
    store_le32(area + AREA_MXCSR + 4, MXCSR_VALID);
}

static void put_xmm(const struct soft_cpu *cpu, uint8_t *area) {
    EACH(register_count(cpu), memcpy(area + AREA_XMM + 16 * i, cpu->vec[i].b, 16))
}

static void get_xmm(struct soft_cpu *cpu, const uint8_t *area) {
    EACH(register_count(cpu), memcpy(cpu->vec[i].b, area + AREA_XMM + 16 * i, 16))
}

static void put_ymm(const struct soft_cpu *cpu, uint8_t *area) {
    EACH(register_count(cpu), memcpy(area + AREA_YMM + 16 * i, cpu->vec[i].b + 16, 16))
}

static void get_ymm(struct soft_cpu *cpu, const uint8_t *area) {
    EACH(register_count(cpu), memcpy(cpu->vec[i].b + 16, area + AREA_YMM + 16 * i, 16))
}

/* ---- Guest memory, in pieces that one access may have ---- */

static void write_area(struct soft_cpu *cpu, const struct insn *insn, const uint8_t *area,
                       unsigned from, unsigned to) {
    uint64_t offset = insn_offset(cpu, insn);
    for (unsigned at = from; at < to; at += 32)
        access_write(cpu, insn->seg, wrap_offset(insn, offset + at), area + at,
                     to - at < 32 ? to - at : 32);
}

static void read_area(struct soft_cpu *cpu, const struct insn *insn, uint8_t *area, unsigned from,
                      unsigned to) {
    uint64_t offset = insn_offset(cpu, insn);
    for (unsigned at = from; at < to; at += 32)
        access_read(cpu, insn->seg, wrap_offset(insn, offset + at), area + at,
                    to - at < 32 ? to - at : 32);
}

/* ---- FXSAVE and FXRSTOR ---- */

static bool fast_fxsave(const struct soft_cpu *cpu) {
    return (cpu->efer & EFER_FFXSR) && cpu->mode == INSN_MODE_64 && cpu->cpl == 0;
}

static bool alignment_checked(const struct soft_cpu *cpu) {
    return (cpu->rflags & FLAG_AC) && (cpu->cr0 & CR0_AM) && cpu->cpl == 3;
}

/* In the processor's order: canonical form, #AC as for doublewords, alignment, and then the last of
 * the 512 bytes, so that most faults leave no partial image. */
static void fx_check(struct soft_cpu *cpu, const struct insn *insn, bool write) {
    uint64_t offset = insn_offset(cpu, insn), linear;
    uint64_t last = wrap_offset(insn, offset + AREA_HEADER - 1);
    struct fault fault;
    cpu->insn = insn;
    if (cpu->cr0 & CR0_EM)
        raise_exception(cpu, EXC_UD);
    if (cpu->cr0 & CR0_TS)
        raise_exception(cpu, EXC_NM);
    if (!segment_check(cpu, insn->seg, offset, 1, write, &linear, &fault))
        raise_fault(cpu, &fault);
    if (alignment_checked(cpu) && linear & 3)
        raise_error(cpu, EXC_AC, 0);
    check_aligned(cpu, insn, offset, 16);
    if (!write) {
        load8(cpu, insn->seg, last);
        return;
    }
    rmw_begin(cpu, insn->seg, last, 1);
    rmw_end(cpu);
}

HANDLER(fxsave) {
    uint8_t area[AREA_FXSAVE_END];
    fx_check(cpu, insn, true);
    put_x87(cpu, insn, area);
    put_mxcsr(cpu, area);
    put_xmm(cpu, area);
    write_area(cpu, insn, area, 0,
               fast_fxsave(cpu) ? AREA_XMM : AREA_XMM + 16 * register_count(cpu));
    INSN_NEXT;
}

static void check_mxcsr(struct soft_cpu *cpu, uint32_t value) {
    if (value & ~(uint32_t)MXCSR_VALID)
        raise_error(cpu, EXC_GP, 0);
}

HANDLER(fxrstor) {
    uint8_t area[AREA_FXSAVE_END];
    fx_check(cpu, insn, false);
    read_area(cpu, insn, area, 0, AREA_XMM + 16 * register_count(cpu));
    check_mxcsr(cpu, load_le32(area + AREA_MXCSR));
    get_x87(cpu, insn, area);
    cpu->mxcsr = load_le32(area + AREA_MXCSR);
    if (!fast_fxsave(cpu))
        get_xmm(cpu, area);
    INSN_NEXT;
}

/* ---- MXCSR ---- */

static inline void load_mxcsr(struct soft_cpu *cpu, const struct insn *insn) {
    uint32_t value = load32(cpu, insn->seg, insn_offset(cpu, insn));
    check_mxcsr(cpu, value);
    cpu->mxcsr = value;
}

HANDLER(ldmxcsr) {
    SSE_BEGIN;
    load_mxcsr(cpu, insn);
    INSN_NEXT;
}

HANDLER(vldmxcsr) {
    AVX_BEGIN;
    load_mxcsr(cpu, insn);
    INSN_NEXT;
}

HANDLER(stmxcsr) {
    SSE_BEGIN;
    store32(cpu, insn->seg, insn_offset(cpu, insn), cpu->mxcsr);
    INSN_NEXT;
}

HANDLER(vstmxcsr) {
    AVX_BEGIN;
    store32(cpu, insn->seg, insn_offset(cpu, insn), cpu->mxcsr);
    INSN_NEXT;
}

/* ---- XSAVE ---- */

static bool x87_in_use(const struct soft_cpu *cpu) {
    uint64_t any = cpu->fsw | cpu->ftw | cpu->fop | cpu->fip | cpu->fdp;
    EACH(8, any |= cpu->x87[i].significand | cpu->x87[i].sign_exponent)
    return any != 0 || cpu->fcw != 0x37f;
}

uint64_t xsave_in_use(const struct soft_cpu *cpu) {
    vec sse = VEC_ZERO, avx = VEC_ZERO;
    EACH(16, sse |= xmm(cpu, i); avx |= ymm_high(cpu, i))
    return (x87_in_use(cpu) ? COMPONENT_X87 : 0) | (sse[0] | sse[1] ? COMPONENT_SSE : 0) |
           (avx[0] | avx[1] ? COMPONENT_AVX : 0);
}

static void xsave_check(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (!(cpu->cr4 & CR4_OSXSAVE))
        raise_exception(cpu, EXC_UD);
    if (cpu->cr0 & CR0_TS)
        raise_exception(cpu, EXC_NM);
    check_aligned(cpu, insn, insn_offset(cpu, insn), 64);
}

static uint64_t requested(const struct soft_cpu *cpu) {
    return (cpu->gpr[RAX] & UINT32_MAX) | cpu->gpr[RDX] << 32;
}

/* Writes the components in `which`, and MXCSR when asked for. */
static void save_components(struct soft_cpu *cpu, const struct insn *insn, uint8_t *area,
                            uint64_t which, bool mxcsr) {
    if (which & COMPONENT_X87) {
        put_x87(cpu, insn, area);
        write_area(cpu, insn, area, 0, AREA_MXCSR);
        write_area(cpu, insn, area, AREA_ST, AREA_XMM);
    }
    if (mxcsr) {
        put_mxcsr(cpu, area);
        write_area(cpu, insn, area, AREA_MXCSR, AREA_ST);
    }
    if (which & COMPONENT_SSE) {
        put_xmm(cpu, area);
        write_area(cpu, insn, area, AREA_XMM, AREA_XMM + 16 * register_count(cpu));
    }
    if (which & COMPONENT_AVX) {
        put_ymm(cpu, area);
        write_area(cpu, insn, area, AREA_YMM, AREA_YMM + 16 * register_count(cpu));
    }
}

/* XSAVE writes all that is asked for; XSAVEOPT may leave out what is in its initial state. */
static void save_standard(struct soft_cpu *cpu, const struct insn *insn, bool optimise) {
    uint8_t area[AREA_END];
    uint64_t mask = requested(cpu) & cpu->xcr0, in_use = xsave_in_use(cpu);
    uint64_t old;
    xsave_check(cpu, insn);
    old = load64(cpu, insn->seg, insn_offset(cpu, insn) + AREA_HEADER);
    save_components(cpu, insn, area, optimise ? mask & in_use : mask,
                    mask & (COMPONENT_SSE | COMPONENT_AVX));
    store64(cpu, insn->seg, insn_offset(cpu, insn) + AREA_HEADER, (old & ~mask) | (mask & in_use));
}

HANDLER(xsave) {
    save_standard(cpu, insn, false);
    INSN_NEXT;
}

HANDLER(xsaveopt) {
    save_standard(cpu, insn, true);
    INSN_NEXT;
}

/* XSAVEC and XSAVES: SSE counts as used when MXCSR is not in its initial state. */
static void save_compact(struct soft_cpu *cpu, const struct insn *insn, uint64_t enabled) {
    uint8_t area[AREA_END];
    uint64_t mask = requested(cpu) & enabled, in_use = xsave_in_use(cpu);
    xsave_check(cpu, insn);
    if (cpu->mxcsr != MXCSR_DEFAULT)
        in_use |= COMPONENT_SSE;
    save_components(cpu, insn, area, mask & in_use, mask & in_use & COMPONENT_SSE);
    store_le64(area + AREA_HEADER, mask & in_use);
    store_le64(area + AREA_XCOMP, mask | XCOMP_COMPACT);
    write_area(cpu, insn, area, AREA_HEADER, AREA_HEADER + 16);
}

HANDLER(xsavec) {
    save_compact(cpu, insn, cpu->xcr0);
    INSN_NEXT;
}

HANDLER(xsaves) {
    save_compact(cpu, insn, cpu->xcr0 | cpu->xss);
    INSN_NEXT;
}

/* ---- XRSTOR ---- */

static bool header_is_valid(const uint8_t *area, uint64_t enabled, bool compact) {
    uint64_t present = load_le64(area + AREA_HEADER);
    uint64_t layout = load_le64(area + AREA_XCOMP);
    unsigned reserved = compact ? 48 : 8;
    for (unsigned i = 0; i < reserved; i++) {
        if (area[AREA_HEADER + 16 + i] != 0)
            return false;
    }
    if (!compact)
        return layout == 0 && !(present & ~enabled);
    layout &= ~XCOMP_COMPACT;
    return !(layout & ~enabled) && !(present & ~layout);
}

static void init_x87(struct soft_cpu *cpu) {
    cpu->fcw = 0x37f;
    cpu->fsw = 0;
    cpu->ftw = 0;
    cpu->fop = cpu->fcs = cpu->fds = 0;
    cpu->fip = cpu->fdp = 0;
    memset(cpu->x87, 0, sizeof(cpu->x87));
}

/* Components in `mask` are loaded when the header has them, else set to their initial state. */
static void load_components(struct soft_cpu *cpu, const struct insn *insn, const uint8_t *area,
                            uint64_t mask) {
    static const uint8_t zeros[AREA_END];
    uint64_t present = load_le64(area + AREA_HEADER);
    if (mask & COMPONENT_X87 && present & COMPONENT_X87)
        get_x87(cpu, insn, area);
    else if (mask & COMPONENT_X87)
        init_x87(cpu);
    if (mask & COMPONENT_SSE)
        get_xmm(cpu, present & COMPONENT_SSE ? area : zeros);
    if (mask & COMPONENT_AVX)
        get_ymm(cpu, present & COMPONENT_AVX ? area : zeros);
}

static uint32_t mxcsr_to_load(const struct soft_cpu *cpu, const uint8_t *area, uint64_t mask,
                              bool compact) {
    uint64_t present = load_le64(area + AREA_HEADER);
    if (!compact)
        return mask & (COMPONENT_SSE | COMPONENT_AVX) ? load_le32(area + AREA_MXCSR) : cpu->mxcsr;
    if (!(mask & COMPONENT_SSE))
        return cpu->mxcsr;
    return present & COMPONENT_SSE ? load_le32(area + AREA_MXCSR) : MXCSR_DEFAULT;
}

static void restore(struct soft_cpu *cpu, const struct insn *insn, uint64_t enabled,
                    bool must_be_compact) {
    uint8_t area[AREA_END] = {0};
    uint64_t mask = requested(cpu) & enabled;
    uint32_t mxcsr;
    bool compact;
    xsave_check(cpu, insn);
    read_area(cpu, insn, area, AREA_HEADER, AREA_HEADER + 64);
    compact = load_le64(area + AREA_XCOMP) & XCOMP_COMPACT;
    if ((must_be_compact && !compact) || (compact && !soft_has(cpu, FEAT_XSAVEC)) ||
        !header_is_valid(area, enabled, compact))
        raise_error(cpu, EXC_GP, 0);
    read_area(cpu, insn, area, 0, AREA_XMM + 16 * register_count(cpu));
    if (mask & COMPONENT_AVX && load_le64(area + AREA_HEADER) & COMPONENT_AVX)
        read_area(cpu, insn, area, AREA_YMM, AREA_YMM + 16 * register_count(cpu));
    mxcsr = mxcsr_to_load(cpu, area, mask, compact);
    check_mxcsr(cpu, mxcsr);
    cpu->mxcsr = mxcsr;
    load_components(cpu, insn, area, mask);
}

HANDLER(xrstor) {
    restore(cpu, insn, cpu->xcr0, false);
    INSN_NEXT;
}

HANDLER(xrstors) {
    restore(cpu, insn, cpu->xcr0 | cpu->xss, true);
    INSN_NEXT;
}
