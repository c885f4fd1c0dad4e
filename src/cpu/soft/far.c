/*
 * Far jumps, calls and returns, and IRET. AMD64 APM vol. 3 and vol. 2,
 * 4.7 to 4.11 and 8.7 to 8.9. Hardware task switches are refused with #GP.
 */
#include "base/bytes.h"
#include "cpu/soft/outside.h"
#include "cpu/soft/system.h"

/* Where a far transfer goes, checked; nothing of it is in force yet. */
struct target {
    struct x86_segment cs;
    uint64_t rip;
    unsigned cpl;
};

static _Noreturn void raise_gp(struct soft_cpu *cpu, uint16_t selector) {
    raise_error(cpu, EXC_GP, selector & ~SELECTOR_RPL);
}

static void read_or_raise(struct soft_cpu *cpu, uint16_t selector, struct descriptor *d) {
    struct fault fault;
    if (selector_null(selector))
        raise_error(cpu, EXC_GP, 0);
    if (!descriptor_read(cpu, selector, d, &fault))
        raise_fault(cpu, &fault);
}

static void check_offset(struct soft_cpu *cpu, const struct target *target) {
    bool wide = cpu->long_mode && target->cs.attributes & SEG_L;
    if (wide ? !linear_canonical(target->rip) : target->rip > target->cs.limit)
        raise_error(cpu, EXC_GP, 0);
}

/* Last checks of a code segment whose privilege is right, and its cache for privilege level cpl. */
static void target_code(struct soft_cpu *cpu, struct descriptor *d, unsigned cpl, uint64_t rip,
                        struct target *target) {
    struct fault fault;
    if (!(d->attributes & SEG_P))
        raise_error(cpu, EXC_NP, d->selector & ~SELECTOR_RPL);
    if (cpu->long_mode && (d->attributes & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB))
        raise_gp(cpu, d->selector);
    if (!descriptor_set_type(cpu, d, TYPE_ACCESSED, &fault))
        raise_fault(cpu, &fault);
    descriptor_cache(d, &target->cs);
    target->cs.selector = (uint16_t)((d->selector & ~SELECTOR_RPL) | cpl);
    target->rip = rip;
    target->cpl = cpl;
    check_offset(cpu, target);
}

static void target_commit(struct soft_cpu *cpu, const struct target *target) {
    cpu->segment[SEG_CS] = target->cs;
    cpu->cpl = (uint8_t)target->cpl;
    mmu_mode_changed(cpu);
}

/* ---- Jumps and calls to a code segment ---- */

static void target_direct(struct soft_cpu *cpu, struct descriptor *d, uint64_t rip,
                          struct target *target) {
    unsigned dpl = attributes_dpl(d->attributes), rpl = d->selector & SELECTOR_RPL;
    bool conforming = d->attributes & TYPE_CONFORMING;
    if (conforming ? dpl > cpu->cpl : rpl > cpu->cpl || dpl != cpu->cpl)
        raise_gp(cpu, d->selector);
    target_code(cpu, d, cpu->cpl, rip, target);
}

static void jump_real(struct soft_cpu *cpu, uint16_t selector, uint64_t rip) {
    if (rip > cpu->segment[SEG_CS].limit)
        raise_error(cpu, EXC_GP, 0);
    segment_load_real(cpu, SEG_CS, selector);
    mmu_mode_changed(cpu);
    cpu->rip = rip;
}

/* ---- Call gates ---- */

struct gate {
    unsigned size; /* of pushes: 2, 4 or 8 */
    unsigned parameters;
    uint16_t selector;
    uint64_t offset;
};

static void gate_read(struct soft_cpu *cpu, struct descriptor *d, struct gate *gate) {
    struct fault fault;
    unsigned type = d->attributes & SEG_TYPE;
    bool is_gate = type == SYSTEM_CALL || (type == SYSTEM_CALL16 && !cpu->long_mode);
    if (!is_gate) {
        if (!cpu->long_mode && (type == SYSTEM_TASK_GATE || (type & 5) == SYSTEM_TSS16))
            outside_log(cpu, "the guest tried a hardware task switch (selector %#x): #GP",
                        d->selector);
        raise_gp(cpu, d->selector);
    }
    unsigned dpl = attributes_dpl(d->attributes);
    if (dpl < cpu->cpl || dpl < (d->selector & SELECTOR_RPL))
        raise_gp(cpu, d->selector);
    if (cpu->long_mode && !descriptor_read_system(cpu, d->selector, d, &fault))
        raise_fault(cpu, &fault);
    /* The upper half's type field must be zero: it is no descriptor of its own. */
    if (cpu->long_mode && d->high >> 40 & 0x1f)
        raise_gp(cpu, d->selector);
    if (!(d->attributes & SEG_P))
        raise_error(cpu, EXC_NP, d->selector & ~SELECTOR_RPL);
    *gate = (struct gate){.size = cpu->long_mode        ? 8
                                  : type == SYSTEM_CALL ? 4
                                                        : 2,
                          .parameters = cpu->long_mode ? 0 : d->low >> 32 & 31,
                          .selector = d->low >> 16 & 0xffff,
                          .offset = d->low & 0xffff};
    if (gate->size >= 4)
        gate->offset |= d->low >> 32 & 0xffff0000;
    if (gate->size == 8)
        gate->offset |= d->high << 32;
}

/* inner: a call, which may go to a more privileged nonconforming segment. */
static void gate_target(struct soft_cpu *cpu, const struct gate *gate, bool inner,
                        struct target *target) {
    struct descriptor d;
    read_or_raise(cpu, gate->selector, &d);
    if (!descriptor_is_code(&d) || (cpu->long_mode && (d.attributes & (SEG_L | SEG_DB)) != SEG_L))
        raise_gp(cpu, gate->selector);
    unsigned dpl = attributes_dpl(d.attributes);
    bool conforming = d.attributes & TYPE_CONFORMING;
    if (conforming || inner ? dpl > cpu->cpl : dpl != cpu->cpl)
        raise_gp(cpu, gate->selector);
    target_code(cpu, &d, conforming ? cpu->cpl : dpl, gate->offset, target);
}

/* Writes one item on a stack that is not the present one. */
static void stack_put(struct soft_cpu *cpu, const struct x86_segment *ss, uint64_t offset,
                      uint64_t value, unsigned size, unsigned access) {
    struct fault fault;
    uint64_t linear = offset;
    if (!cpu->long_mode) {
        if (offset > ss->limit || size - 1 > ss->limit - offset)
            raise_error(cpu, EXC_SS, ss->selector & ~SELECTOR_RPL);
        linear = (uint32_t)(ss->base + offset);
    }
    if (!linear_write(cpu, linear, &value, size, access, &fault))
        raise_fault(cpu, &fault);
}

static void call_gate_inner(struct soft_cpu *cpu, const struct insn *insn, const struct gate *gate,
                            const struct target *target) {
    struct fault fault;
    struct x86_segment ss = {.selector = (uint16_t)target->cpl};
    uint64_t rsp;
    uint16_t selector = 0;
    if (!tss_stack(cpu, target->cpl, 0, &rsp, &selector, &fault))
        raise_fault(cpu, &fault);
    if (!cpu->long_mode && !stack_segment_check(cpu, selector, target->cpl, EXC_TS, 0, &ss, &fault))
        raise_fault(cpu, &fault);
    uint64_t mask = cpu->long_mode ? UINT64_MAX : ss.attributes & SEG_DB ? UINT32_MAX : UINT16_MAX;
    uint64_t items[4 + 31];
    unsigned count = 0, size = gate->size;
    items[count++] = cpu->segment[SEG_SS].selector;
    items[count++] = cpu->gpr[RSP];
    for (unsigned i = gate->parameters; i-- != 0;)
        items[count++] = stack_peek(cpu, i * size, size);
    items[count++] = cpu->segment[SEG_CS].selector;
    items[count++] = insn_next_rip(cpu, insn);
    for (unsigned i = 0; i < count; i++)
        stack_put(cpu, &ss, (rsp - (i + 1) * size) & mask, items[i], size, 0);
    cpu->segment[SEG_SS] = ss;
    cpu->gpr[RSP] = (rsp & ~mask) | ((rsp - count * size) & mask);
    target_commit(cpu, target);
}

/* ---- JMP and CALL ---- */

static void push_return(struct soft_cpu *cpu, const struct insn *insn, unsigned size) {
    uint64_t top = cpu->gpr[RSP], mask = cpu->stack_mask;
    store_sized(cpu, SEG_SS, (top - size) & mask, cpu->segment[SEG_CS].selector, size);
    store_sized(cpu, SEG_SS, (top - 2 * size) & mask, insn_next_rip(cpu, insn), size);
    stack_move(cpu, -2 * (int64_t)size);
}

static void far_transfer(struct soft_cpu *cpu, const struct insn *insn, uint16_t selector,
                         uint64_t offset, bool call) {
    struct descriptor d;
    struct target target;
    if (!mode_protected(cpu)) {
        if (offset > cpu->segment[SEG_CS].limit)
            raise_error(cpu, EXC_GP, 0);
        if (call)
            push_return(cpu, insn, insn->size);
        jump_real(cpu, selector, offset);
        return;
    }
    read_or_raise(cpu, selector, &d);
    unsigned size = insn->size;
    if (descriptor_is_code(&d)) {
        target_direct(cpu, &d, offset, &target);
    } else {
        struct gate gate;
        if (d.attributes & SEG_S)
            raise_gp(cpu, selector);
        gate_read(cpu, &d, &gate);
        gate_target(cpu, &gate, call, &target);
        size = gate.size;
        if (target.cpl != cpu->cpl) {
            call_gate_inner(cpu, insn, &gate, &target);
            cpu->rip = target.rip;
            return;
        }
    }
    if (call)
        push_return(cpu, insn, size);
    target_commit(cpu, &target);
    cpu->rip = target.rip;
}

static void far_immediate(struct soft_cpu *cpu, const struct insn *insn, bool call) {
    cpu->insn = insn;
    far_transfer(cpu, insn, (uint16_t)(insn->imm >> 32), (uint32_t)insn->imm, call);
}

static void far_memory(struct soft_cpu *cpu, const struct insn *insn, bool call) {
    cpu->insn = insn;
    struct far_pointer far = far_pointer_read(cpu, insn);
    far_transfer(cpu, insn, far.selector, far.offset, call);
}

void jmp_far_a(struct soft_cpu *cpu, const struct insn *insn) {
    far_immediate(cpu, insn, false);
}

void jmp_far_m(struct soft_cpu *cpu, const struct insn *insn) {
    far_memory(cpu, insn, false);
}

void call_far_a(struct soft_cpu *cpu, const struct insn *insn) {
    far_immediate(cpu, insn, true);
}

void call_far_m(struct soft_cpu *cpu, const struct insn *insn) {
    far_memory(cpu, insn, true);
}

/* ---- Returns ----
 *
 * Frames are read from the top down, so that of several faults AMD's is reported. */

/* The code segment that RETF and IRET go back to: never a more privileged one. */
static void target_return(struct soft_cpu *cpu, uint16_t selector, uint64_t rip,
                          struct target *target) {
    struct descriptor d;
    read_or_raise(cpu, selector, &d);
    unsigned rpl = selector & SELECTOR_RPL, dpl = attributes_dpl(d.attributes);
    bool conforming = d.attributes & TYPE_CONFORMING;
    if (!descriptor_is_code(&d) || rpl < cpu->cpl || (conforming ? dpl > rpl : dpl != rpl))
        raise_gp(cpu, selector);
    target_code(cpu, &d, rpl, rip, target);
}

static void stack_return(struct soft_cpu *cpu, uint16_t selector, const struct target *target,
                         struct x86_segment *ss) {
    struct fault fault;
    bool to_64 = cpu->long_mode && target->cs.attributes & SEG_L;
    if (selector_null(selector) && to_64 && target->cpl != 3 &&
        (selector & SELECTOR_RPL) == target->cpl)
        *ss = (struct x86_segment){.selector = selector};
    else if (!stack_segment_check(cpu, selector, target->cpl, EXC_GP, 0, ss, &fault))
        raise_fault(cpu, &fault);
}

/* Segments that the outer level must not keep become null. */
static void drop_inner_segments(struct soft_cpu *cpu, unsigned cpl) {
    static const uint8_t segments[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < ARRAY_SIZE(segments); i++) {
        struct x86_segment *s = &cpu->segment[segments[i]];
        bool conforming_code =
            (s->attributes & (TYPE_CODE | TYPE_CONFORMING)) == (TYPE_CODE | TYPE_CONFORMING);
        if (s->attributes & SEG_P && !conforming_code && attributes_dpl(s->attributes) < cpl)
            *s = (struct x86_segment){.selector = 0};
    }
}

static void return_outer(struct soft_cpu *cpu, const struct target *target,
                         const struct x86_segment *ss, uint64_t rsp) {
    cpu->segment[SEG_SS] = *ss;
    drop_inner_segments(cpu, target->cpl);
    target_commit(cpu, target);
    /* To a 16-bit stack, hardware lets bits 31:16 of the inner ESP shine through. */
    if (cpu->stack_mask == UINT16_MAX)
        rsp = (cpu->gpr[RSP] & 0xffff0000) | (uint16_t)rsp;
    cpu->gpr[RSP] = rsp & (cpu->mode == INSN_MODE_64 ? UINT64_MAX : UINT32_MAX);
}

static void ret_far_by(struct soft_cpu *cpu, const struct insn *insn, unsigned extra) {
    cpu->insn = insn;
    unsigned size = insn->size;
    uint16_t selector = (uint16_t)stack_peek(cpu, size, size);
    uint64_t rip = stack_peek(cpu, 0, size);
    if (!mode_protected(cpu)) {
        jump_real(cpu, selector, rip);
        stack_move(cpu, 2 * size + extra);
        return;
    }
    struct target target;
    if ((selector & SELECTOR_RPL) == cpu->cpl) {
        target_return(cpu, selector, rip, &target);
        stack_move(cpu, 2 * size + extra);
        target_commit(cpu, &target);
    } else {
        struct x86_segment ss;
        uint16_t stack = (uint16_t)stack_peek(cpu, 3 * size + extra, size);
        uint64_t rsp = stack_peek(cpu, 2 * size + extra, size);
        target_return(cpu, selector, rip, &target);
        stack_return(cpu, stack, &target, &ss);
        return_outer(cpu, &target, &ss, rsp + extra);
    }
    cpu->rip = target.rip;
}

void ret_far(struct soft_cpu *cpu, const struct insn *insn) {
    ret_far_by(cpu, insn, 0);
}

void ret_far_i(struct soft_cpu *cpu, const struct insn *insn) {
    ret_far_by(cpu, insn, insn->imm & 0xffff);
}

/* ---- IRET ---- */

/* What of a popped RFLAGS image takes effect, by the level that IRET runs at. */
static uint64_t iret_flags(const struct soft_cpu *cpu, uint64_t image, unsigned size) {
    uint64_t mask = FLAGS_STATUS | FLAG_TF | FLAG_DF | FLAG_NT | FLAG_RF | FLAG_AC | FLAG_ID;
    unsigned iopl = (cpu->rflags & FLAG_IOPL) >> 12;
    if (cpu->cpl <= iopl)
        mask |= FLAG_IF;
    if (cpu->cpl == 0)
        mask |= FLAG_IOPL | FLAG_VIF | FLAG_VIP;
    if (size == 2)
        mask &= 0xffff;
    return (flags_get(cpu) & ~mask) | (image & mask);
}

static void iret_real(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned size = insn->size;
    bool vm86 = cpu->rflags & FLAG_VM;
    if (vm86 && (cpu->rflags & FLAG_IOPL) != FLAG_IOPL)
        raise_error(cpu, EXC_GP, 0);
    uint64_t rip = stack_peek(cpu, 0, size);
    uint16_t selector = (uint16_t)stack_peek(cpu, size, size);
    uint64_t flags = iret_flags(cpu, stack_peek(cpu, 2 * size, size), size);
    jump_real(cpu, selector, rip);
    stack_move(cpu, 3 * size);
    flags_set(cpu, flags);
}

/* To virtual-8086 mode: EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS are on the stack. */
static void iret_vm86(struct soft_cpu *cpu, uint64_t rip, uint16_t cs, uint64_t flags) {
    static const uint8_t order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    uint64_t rsp = stack_peek(cpu, 12, 4);
    uint16_t selectors[ARRAY_SIZE(order)];
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        selectors[i] = (uint16_t)stack_peek(cpu, 16 + 4 * i, 4);
    if (rip > UINT16_MAX)
        raise_error(cpu, EXC_GP, 0);
    flags_set(cpu, flags | FLAG_VM);
    segment_load_real(cpu, SEG_CS, cs);
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        segment_load_real(cpu, order[i], selectors[i]);
    mmu_mode_changed(cpu);
    cpu->gpr[RSP] = (uint32_t)rsp;
    cpu->rip = rip;
}

static void iret_protected(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned size = insn->size;
    uint64_t image = stack_peek(cpu, 2 * size, size);
    uint16_t selector = (uint16_t)stack_peek(cpu, size, size);
    uint64_t rip = stack_peek(cpu, 0, size);
    uint64_t flags = iret_flags(cpu, image, size);
    if (image & FLAG_VM && size == 4 && cpu->cpl == 0 && !cpu->long_mode) {
        iret_vm86(cpu, rip, selector, flags);
        return;
    }
    struct target target;
    /* 64-bit mode always takes the stack from the frame. */
    if (cpu->mode != INSN_MODE_64 && (selector & SELECTOR_RPL) == cpu->cpl) {
        target_return(cpu, selector, rip, &target);
        stack_move(cpu, 3 * size);
        flags_set(cpu, flags);
        target_commit(cpu, &target);
    } else {
        struct x86_segment ss;
        uint16_t stack = (uint16_t)stack_peek(cpu, 4 * size, size);
        uint64_t rsp = stack_peek(cpu, 3 * size, size);
        target_return(cpu, selector, rip, &target);
        stack_return(cpu, stack, &target, &ss);
        flags_set(cpu, flags);
        return_outer(cpu, &target, &ss, rsp);
    }
    cpu->rip = target.rip;
}

void iret(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    if (!mode_protected(cpu)) {
        iret_real(cpu, insn);
    } else {
        if (cpu->rflags & FLAG_NT) {
            if (!cpu->long_mode)
                outside_log(cpu, "the guest tried to return from a hardware task: #GP");
            raise_error(cpu, EXC_GP, 0);
        }
        iret_protected(cpu, insn);
    }
    cpu->nmi_blocked = false;
    soft_serialise(cpu);
}
