/*
 * Segment registers and descriptors: loads with their checks, and the
 * instructions that look at descriptors. AMD64 APM vol. 2, chapter 4.
 */
#include "base/bytes.h"
#include "cpu/soft/system.h"

/* ---- Descriptors ---- */

bool descriptor_read(struct soft_cpu *cpu, uint16_t selector, struct descriptor *d,
                     struct fault *fault) {
    unsigned index = selector & ~7u;
    bool local = selector & SELECTOR_TI;
    uint64_t base = local ? cpu->ldtr.base : cpu->gdtr.base;
    uint64_t limit = local ? cpu->ldtr.limit : cpu->gdtr.limit;
    if ((local && !(cpu->ldtr.attributes & SEG_P)) || index + 7 > limit)
        return fault_set(fault, EXC_GP, selector & ~SELECTOR_RPL);
    *d = (struct descriptor){.selector = selector, .linear = base + index};
    if (!cpu->long_mode)
        d->linear = (uint32_t)d->linear;
    if (!linear_read(cpu, d->linear, &d->low, 8, ACCESS_IMPLICIT, fault))
        return false;
    d->attributes = (d->low >> 40) & 0xf0ff;
    return true;
}

bool descriptor_read_system(struct soft_cpu *cpu, uint16_t selector, struct descriptor *d,
                            struct fault *fault) {
    if (!descriptor_read(cpu, selector, d, fault))
        return false;
    if (!cpu->long_mode)
        return true;
    uint64_t limit = selector & SELECTOR_TI ? cpu->ldtr.limit : cpu->gdtr.limit;
    if ((selector & ~7u) + 15 > limit)
        return fault_set(fault, EXC_GP, selector & ~SELECTOR_RPL);
    return linear_read(cpu, d->linear + 8, &d->high, 8, ACCESS_IMPLICIT, fault);
}

bool descriptor_set_type(struct soft_cpu *cpu, struct descriptor *d, unsigned bits,
                         struct fault *fault) {
    if ((d->attributes & bits) == bits)
        return true;
    d->attributes |= bits;
    d->low |= (uint64_t)bits << 40;
    return linear_set_bits(cpu, d->linear + 5, (uint8_t)bits, fault);
}

void descriptor_cache(const struct descriptor *d, struct x86_segment *segment) {
    uint32_t limit = (d->low & 0xffff) | (d->low >> 32 & 0xf0000);
    segment->selector = d->selector;
    segment->base = (d->low >> 16 & 0xffffff) | (d->low >> 32 & 0xff000000) | d->high << 32;
    segment->limit = d->attributes & SEG_G ? limit << 12 | 0xfff : limit;
    segment->attributes = d->attributes;
}

struct x86_segment segment_flat_of(uint16_t selector, unsigned attributes) {
    return (struct x86_segment){
        .selector = selector, .limit = UINT32_MAX, .attributes = (uint16_t)attributes};
}

/* ---- Loads ---- */

void segment_load_real(struct soft_cpu *cpu, unsigned seg, uint16_t selector) {
    struct x86_segment *s = &cpu->segment[seg];
    s->selector = selector;
    s->base = (uint32_t)selector << 4;
    if (cpu->rflags & FLAG_VM) {
        s->limit = UINT16_MAX;
        s->attributes = SEG_P | SEG_DPL | SEG_S | TYPE_READ_WRITE | TYPE_ACCESSED;
    }
}

bool stack_segment_check(struct soft_cpu *cpu, uint16_t selector, unsigned cpl,
                         enum exception vector, unsigned ext, struct x86_segment *ss,
                         struct fault *fault) {
    struct descriptor d;
    uint32_t error = (selector & ~SELECTOR_RPL) | ext;
    if (selector_null(selector))
        return fault_set(fault, vector, ext);
    if (!descriptor_read(cpu, selector, &d, fault)) {
        if (fault->vector == EXC_GP)
            return fault_set(fault, vector, error);
        return false;
    }
    if ((selector & SELECTOR_RPL) != cpl || attributes_dpl(d.attributes) != cpl ||
        !descriptor_is_writable(&d))
        return fault_set(fault, vector, error);
    if (!(d.attributes & SEG_P))
        return fault_set(fault, EXC_SS, error);
    if (!descriptor_set_type(cpu, &d, TYPE_ACCESSED, fault))
        return false;
    descriptor_cache(&d, ss);
    return true;
}

static bool data_segment_check(struct soft_cpu *cpu, uint16_t selector, struct x86_segment *out,
                               struct fault *fault) {
    struct descriptor d;
    uint32_t error = selector & ~SELECTOR_RPL;
    if (!descriptor_read(cpu, selector, &d, fault))
        return false;
    bool code = d.attributes & TYPE_CODE;
    if (!(d.attributes & SEG_S) || (code && !(d.attributes & TYPE_READ_WRITE)))
        return fault_set(fault, EXC_GP, error);
    unsigned dpl = attributes_dpl(d.attributes);
    bool conforming = code && d.attributes & TYPE_CONFORMING;
    if (!conforming && (dpl < (selector & SELECTOR_RPL) || dpl < cpu->cpl))
        return fault_set(fault, EXC_GP, error);
    if (!(d.attributes & SEG_P))
        return fault_set(fault, EXC_NP, error);
    if (!descriptor_set_type(cpu, &d, TYPE_ACCESSED, fault))
        return false;
    descriptor_cache(&d, out);
    return true;
}

static bool null_load(struct soft_cpu *cpu, unsigned seg, uint16_t selector, struct fault *fault) {
    if (seg == SEG_SS &&
        (cpu->mode != INSN_MODE_64 || cpu->cpl == 3 || (selector & SELECTOR_RPL) != cpu->cpl))
        return fault_set(fault, EXC_GP, 0);
    /* The base goes, too: CPUID 80000021h EAX[6] promises it. */
    cpu->segment[seg] = (struct x86_segment){.selector = selector};
    return true;
}

bool segment_load(struct soft_cpu *cpu, unsigned seg, uint16_t selector, struct fault *fault) {
    if (!mode_protected(cpu)) {
        segment_load_real(cpu, seg, selector);
        return true;
    }
    if (selector_null(selector))
        return null_load(cpu, seg, selector, fault);
    if (seg == SEG_SS)
        return stack_segment_check(cpu, selector, cpu->cpl, EXC_GP, 0, &cpu->segment[SEG_SS],
                                   fault);
    return data_segment_check(cpu, selector, &cpu->segment[seg], fault);
}

static void segment_load_or_raise(struct soft_cpu *cpu, unsigned seg, uint16_t selector) {
    struct fault fault;
    if (!segment_load(cpu, seg, selector, &fault))
        raise_fault(cpu, &fault);
    mmu_mode_changed(cpu);
}

/* ---- The task state segment ---- */

bool tss_stack(struct soft_cpu *cpu, unsigned cpl, unsigned ext, uint64_t *rsp, uint16_t *ss,
               struct fault *fault) {
    bool wide = (cpu->tr.attributes & SEG_TYPE) >= SYSTEM_TSS;
    unsigned size = cpu->long_mode ? 8 : wide ? 4 : 2;
    unsigned offset = cpu->long_mode ? 4 + 8 * cpl : size + cpl * 2 * size;
    unsigned need = cpu->long_mode ? 8 : 2 * size;
    uint8_t bytes[8];
    if (!(cpu->tr.attributes & SEG_P) || offset + need - 1 > cpu->tr.limit)
        return fault_set(fault, EXC_TS, (cpu->tr.selector & ~SELECTOR_RPL) | ext);
    if (!linear_read(cpu, cpu->tr.base + offset, bytes, need, ACCESS_IMPLICIT, fault))
        return false;
    *rsp = load_le(bytes, size);
    if (!cpu->long_mode)
        *ss = load_le16(bytes + size);
    return true;
}

/* ---- Moves of segment registers ---- */

static void reg_write(struct soft_cpu *cpu, unsigned reg, uint64_t value, unsigned size) {
    if (size == 2)
        cpu->gpr[reg] = (cpu->gpr[reg] & ~UINT64_C(0xffff)) | (uint16_t)value;
    else
        cpu->gpr[reg] = size == 4 ? (uint32_t)value : value;
}

static uint16_t operand_r(struct soft_cpu *cpu, const struct insn *insn) {
    return (uint16_t)cpu->gpr[insn->rm];
}

static uint16_t operand_m(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    return load16(cpu, insn->seg, insn_offset(cpu, insn));
}

/* ModRM.reg; REX.R does not matter. cpu->insn is set. */
static unsigned modrm_segment(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned seg = insn->reg & 7;
    if (seg > SEG_GS)
        raise_exception(cpu, EXC_UD);
    return seg;
}

void mov_e_s_r(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    reg_write(cpu, insn->rm, cpu->segment[modrm_segment(cpu, insn)].selector, insn->size);
    INSN_NEXT;
}

void mov_e_s_m(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    uint16_t selector = cpu->segment[modrm_segment(cpu, insn)].selector;
    store16(cpu, insn->seg, insn_offset(cpu, insn), selector);
    INSN_NEXT;
}

static unsigned modrm_segment_to_load(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned seg = modrm_segment(cpu, insn);
    if (seg == SEG_CS)
        raise_exception(cpu, EXC_UD);
    return seg;
}

static void mov_to_segment(struct soft_cpu *cpu, unsigned seg, uint16_t selector) {
    segment_load_or_raise(cpu, seg, selector);
    if (seg == SEG_SS)
        cpu->interrupt_shadow = true;
}

void mov_s_e_r(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    unsigned seg = modrm_segment_to_load(cpu, insn);
    mov_to_segment(cpu, seg, operand_r(cpu, insn));
    INSN_END_BLOCK;
}

void mov_s_e_m(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    unsigned seg = modrm_segment_to_load(cpu, insn);
    mov_to_segment(cpu, seg, operand_m(cpu, insn));
    INSN_END_BLOCK;
}

/* 06 0E 16 1E, 0F A0, 0F A8: which segment is in the opcode. */
static unsigned opcode_segment(const struct insn *insn) {
    return insn->opcode >> 3 & 7;
}

void push_seg(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    /* Zero-extended, as on AMD processors; Intel's write two bytes of four. */
    push(cpu, cpu->segment[opcode_segment(insn)].selector, insn->size);
    INSN_NEXT;
}

void pop_seg(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    unsigned seg = opcode_segment(insn);
    uint16_t selector = (uint16_t)stack_peek(cpu, 0, insn->size == 2 ? 2 : insn->size);
    uint64_t mask = cpu->stack_mask;
    struct fault fault;
    if (!segment_load(cpu, seg, selector, &fault))
        raise_fault(cpu, &fault);
    /* The width of the stack that was popped from, not of the one just loaded. */
    cpu->gpr[RSP] = (cpu->gpr[RSP] & ~mask) | ((cpu->gpr[RSP] + insn->size) & mask);
    mmu_mode_changed(cpu);
    if (seg == SEG_SS)
        cpu->interrupt_shadow = true;
    INSN_END_BLOCK;
}

static unsigned far_pointer_segment(const struct insn *insn) {
    switch (insn->opcode) {
    case 0xc4: return SEG_ES;
    case 0xc5: return SEG_DS;
    case 0xb2: return SEG_SS;
    case 0xb4: return SEG_FS;
    default: return SEG_GS;
    }
}

static uint64_t offset_add(const struct insn *insn, uint64_t offset, unsigned n) {
    return (offset + n) & (UINT64_MAX >> (64 - 8 * insn->address_size));
}

struct far_pointer far_pointer_read(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned size = insn->size == 2 ? 2 : 4;
    uint64_t offset = insn_offset(cpu, insn);
    struct far_pointer far;
    far.offset = load_sized(cpu, insn->seg, offset, size);
    far.selector = load16(cpu, insn->seg, offset_add(insn, offset, size));
    return far;
}

void load_far_pointer(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    struct far_pointer far = far_pointer_read(cpu, insn);
    segment_load_or_raise(cpu, far_pointer_segment(insn), far.selector);
    reg_write(cpu, insn->reg, far.offset, insn->size);
    INSN_END_BLOCK;
}

/* ---- Questions about descriptors ---- */

/* For LAR, LSL, VERR, VERW: false when the selector is out of reach; a page fault raises. */
static bool query(struct soft_cpu *cpu, uint16_t selector, struct descriptor *d) {
    struct fault fault;
    if (selector_null(selector))
        return false;
    if (!descriptor_read(cpu, selector, d, &fault)) {
        if (fault.vector != EXC_GP)
            raise_fault(cpu, &fault);
        return false;
    }
    if (descriptor_is_code(d) && d->attributes & TYPE_CONFORMING)
        return true;
    unsigned dpl = attributes_dpl(d->attributes);
    return dpl >= cpu->cpl && dpl >= (selector & SELECTOR_RPL);
}

static void set_zf(struct soft_cpu *cpu, bool on) {
    uint64_t flags = flags_get(cpu) & ~(uint64_t)FLAG_ZF;
    flags_set_status(cpu, flags | (on ? FLAG_ZF : 0));
}

static bool system_type_is(const struct soft_cpu *cpu, const struct descriptor *d, unsigned legacy,
                           unsigned wide) {
    unsigned types = cpu->long_mode ? wide : legacy;
    return d->attributes & SEG_S || types >> (d->attributes & SEG_TYPE) & 1;
}

enum {
    /* Bitmaps of system types. LAR: TSS, LDT, call and task gates; LSL: TSS and LDT. */
    LAR_LEGACY = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11 | 1 << 12,
    LAR_LONG = 1 << 2 | 1 << 9 | 1 << 11 | 1 << 12,
    LSL_LEGACY = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 9 | 1 << 11,
    LSL_LONG = 1 << 2 | 1 << 9 | 1 << 11,
};

static void lar(struct soft_cpu *cpu, const struct insn *insn, uint16_t selector) {
    struct descriptor d;
    bool ok = query(cpu, selector, &d) && system_type_is(cpu, &d, LAR_LEGACY, LAR_LONG);
    if (ok)
        reg_write(cpu, insn->reg, d.low >> 32 & 0x00ffff00, insn->size);
    set_zf(cpu, ok);
}

static void lsl(struct soft_cpu *cpu, const struct insn *insn, uint16_t selector) {
    struct descriptor d;
    bool ok = query(cpu, selector, &d) && system_type_is(cpu, &d, LSL_LEGACY, LSL_LONG);
    if (ok) {
        struct x86_segment segment;
        descriptor_cache(&d, &segment);
        reg_write(cpu, insn->reg, segment.limit, insn->size);
    }
    set_zf(cpu, ok);
}

static void verr(struct soft_cpu *cpu, const struct insn *insn, uint16_t selector) {
    struct descriptor d;
    bool ok = query(cpu, selector, &d) && d.attributes & SEG_S &&
              (!(d.attributes & TYPE_CODE) || d.attributes & TYPE_READ_WRITE);
    set_zf(cpu, ok);
}

static void verw(struct soft_cpu *cpu, const struct insn *insn, uint16_t selector) {
    struct descriptor d;
    set_zf(cpu, query(cpu, selector, &d) && descriptor_is_writable(&d));
}

#define QUERY(name)                                                                                \
    void name##_r(struct soft_cpu *cpu, const struct insn *insn) {                                 \
        cpu->insn = insn;                                                                          \
        name(cpu, insn, operand_r(cpu, insn));                                                     \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void name##_m(struct soft_cpu *cpu, const struct insn *insn) {                                 \
        name(cpu, insn, operand_m(cpu, insn));                                                     \
        INSN_NEXT;                                                                                 \
    }
QUERY(lar)
QUERY(lsl)
QUERY(verr)
QUERY(verw)
#undef QUERY

static bool arpl(const struct soft_cpu *cpu, const struct insn *insn, uint16_t *selector) {
    unsigned rpl = cpu->gpr[insn->reg] & SELECTOR_RPL;
    if ((*selector & SELECTOR_RPL) >= rpl)
        return false;
    *selector = (uint16_t)((*selector & ~SELECTOR_RPL) | rpl);
    return true;
}

void arpl_r(struct soft_cpu *cpu, const struct insn *insn) {
    uint16_t selector = operand_r(cpu, insn);
    bool changed = arpl(cpu, insn, &selector);
    if (changed)
        reg_write(cpu, insn->rm, selector, 2);
    set_zf(cpu, changed);
    INSN_NEXT;
}

void arpl_m(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    uint16_t selector = operand_m(cpu, insn);
    bool changed = arpl(cpu, insn, &selector);
    if (changed)
        store16(cpu, insn->seg, insn_offset(cpu, insn), selector);
    set_zf(cpu, changed);
    INSN_NEXT;
}

/* ---- Descriptor tables ---- */

static void check_umip(struct soft_cpu *cpu) {
    if (cpu->cr4 & CR4_UMIP && cpu->cpl != 0)
        raise_error(cpu, EXC_GP, 0);
}

static void table_store(struct soft_cpu *cpu, const struct insn *insn,
                        const struct x86_table *table) {
    uint8_t bytes[10];
    cpu->insn = insn;
    check_umip(cpu);
    store_le16(bytes, table->limit);
    store_le64(bytes + 2, table->base);
    access_write(cpu, insn->seg, insn_offset(cpu, insn), bytes, cpu->mode == INSN_MODE_64 ? 10 : 6);
}

static void table_load(struct soft_cpu *cpu, const struct insn *insn, struct x86_table *table) {
    uint8_t bytes[10] = {0};
    bool wide = cpu->mode == INSN_MODE_64;
    cpu->insn = insn;
    access_read(cpu, insn->seg, insn_offset(cpu, insn), bytes, wide ? 10 : 6);
    uint64_t base = load_le64(bytes + 2);
    if (wide && !linear_canonical(base))
        raise_error(cpu, EXC_GP, 0);
    if (!wide && insn->size == 2)
        base &= 0xffffff;
    *table = (struct x86_table){.base = base, .limit = load_le16(bytes)};
}

void sgdt(struct soft_cpu *cpu, const struct insn *insn) {
    table_store(cpu, insn, &cpu->gdtr);
    INSN_NEXT;
}

void sidt(struct soft_cpu *cpu, const struct insn *insn) {
    table_store(cpu, insn, &cpu->idtr);
    INSN_NEXT;
}

void lgdt(struct soft_cpu *cpu, const struct insn *insn) {
    table_load(cpu, insn, &cpu->gdtr);
    INSN_NEXT_SERIALISED;
}

void lidt(struct soft_cpu *cpu, const struct insn *insn) {
    table_load(cpu, insn, &cpu->idtr);
    INSN_NEXT_SERIALISED;
}

static void selector_store_r(struct soft_cpu *cpu, const struct insn *insn, uint16_t selector) {
    cpu->insn = insn;
    check_umip(cpu);
    reg_write(cpu, insn->rm, selector, insn->size);
}

static void selector_store_m(struct soft_cpu *cpu, const struct insn *insn, uint16_t selector) {
    cpu->insn = insn;
    check_umip(cpu);
    store16(cpu, insn->seg, insn_offset(cpu, insn), selector);
}

void sldt_r(struct soft_cpu *cpu, const struct insn *insn) {
    selector_store_r(cpu, insn, cpu->ldtr.selector);
    INSN_NEXT;
}

void sldt_m(struct soft_cpu *cpu, const struct insn *insn) {
    selector_store_m(cpu, insn, cpu->ldtr.selector);
    INSN_NEXT;
}

void str_r(struct soft_cpu *cpu, const struct insn *insn) {
    selector_store_r(cpu, insn, cpu->tr.selector);
    INSN_NEXT;
}

void str_m(struct soft_cpu *cpu, const struct insn *insn) {
    selector_store_m(cpu, insn, cpu->tr.selector);
    INSN_NEXT;
}

/* A system descriptor of the GDT, of one of the types, present; bits are set in its type. */
static void system_segment_load(struct soft_cpu *cpu, uint16_t selector, unsigned types,
                                unsigned bits, struct x86_segment *out) {
    struct descriptor d;
    struct fault fault;
    uint32_t error = selector & ~SELECTOR_RPL;
    if (selector & SELECTOR_TI)
        raise_error(cpu, EXC_GP, error);
    if (!descriptor_read_system(cpu, selector, &d, &fault))
        raise_fault(cpu, &fault);
    if (d.attributes & SEG_S || !(types >> (d.attributes & SEG_TYPE) & 1))
        raise_error(cpu, EXC_GP, error);
    if (!(d.attributes & SEG_P))
        raise_error(cpu, EXC_NP, error);
    struct x86_segment loaded;
    descriptor_cache(&d, &loaded);
    if (!linear_canonical(loaded.base))
        raise_error(cpu, EXC_GP, error);
    if (!descriptor_set_type(cpu, &d, bits, &fault))
        raise_fault(cpu, &fault);
    loaded.attributes |= bits;
    *out = loaded;
}

static void lldt(struct soft_cpu *cpu, uint16_t selector) {
    if (selector_null(selector))
        cpu->ldtr = (struct x86_segment){.selector = selector};
    else
        system_segment_load(cpu, selector, 1 << SYSTEM_LDT, 0, &cpu->ldtr);
}

static void ltr(struct soft_cpu *cpu, uint16_t selector) {
    enum { BUSY = 2 };
    if (selector_null(selector))
        raise_error(cpu, EXC_GP, 0);
    unsigned types = 1 << SYSTEM_TSS | (cpu->long_mode ? 0 : 1 << SYSTEM_TSS16);
    system_segment_load(cpu, selector, types, BUSY, &cpu->tr);
}

void lldt_r(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    lldt(cpu, operand_r(cpu, insn));
    INSN_NEXT_SERIALISED;
}

void lldt_m(struct soft_cpu *cpu, const struct insn *insn) {
    lldt(cpu, operand_m(cpu, insn));
    INSN_NEXT_SERIALISED;
}

void ltr_r(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    ltr(cpu, operand_r(cpu, insn));
    INSN_NEXT_SERIALISED;
}

void ltr_m(struct soft_cpu *cpu, const struct insn *insn) {
    ltr(cpu, operand_m(cpu, insn));
    INSN_NEXT_SERIALISED;
}

/* ---- Bases of FS and GS ---- */

static void base_changed(struct soft_cpu *cpu, unsigned seg, uint64_t base) {
    cpu->segment[seg].base = base;
    /* In 64-bit mode nothing else depends on it; with alignment checking the slow path looks. */
    if (cpu->seg[seg].read.base != SEGMENT_SLOW)
        cpu->seg[seg].read.base = cpu->seg[seg].write.base = base;
}

void swapgs(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    uint64_t base = cpu->segment[SEG_GS].base;
    base_changed(cpu, SEG_GS, cpu->kernel_gs_base);
    cpu->kernel_gs_base = base;
    INSN_NEXT;
}

static void check_fsgsbase(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (!(cpu->cr4 & CR4_FSGSBASE))
        raise_exception(cpu, EXC_UD);
}

static void write_base(struct soft_cpu *cpu, const struct insn *insn, unsigned seg) {
    check_fsgsbase(cpu, insn);
    uint64_t base = insn->size == 8 ? cpu->gpr[insn->rm] : (uint32_t)cpu->gpr[insn->rm];
    if (!linear_canonical(base))
        raise_error(cpu, EXC_GP, 0);
    base_changed(cpu, seg, base);
}

void rdfsbase(struct soft_cpu *cpu, const struct insn *insn) {
    check_fsgsbase(cpu, insn);
    reg_write(cpu, insn->rm, cpu->segment[SEG_FS].base, insn->size);
    INSN_NEXT;
}

void rdgsbase(struct soft_cpu *cpu, const struct insn *insn) {
    check_fsgsbase(cpu, insn);
    reg_write(cpu, insn->rm, cpu->segment[SEG_GS].base, insn->size);
    INSN_NEXT;
}

void wrfsbase(struct soft_cpu *cpu, const struct insn *insn) {
    write_base(cpu, insn, SEG_FS);
    INSN_NEXT;
}

void wrgsbase(struct soft_cpu *cpu, const struct insn *insn) {
    write_base(cpu, insn, SEG_GS);
    INSN_NEXT;
}
