/*
 * Delivery of exceptions and interrupts through the IDT. AMD64 APM vol. 2,
 * chapter 8. Nothing here raises: what goes wrong on the way is a further
 * event, and the rules of 8.2.9 say which.
 */
#include "base/bytes.h"
#include "cpu/soft/outside.h"
#include "cpu/soft/system.h"

struct event {
    uint8_t vector;
    enum event_kind kind;
    bool has_error;
    uint32_t error;
};

/* EXT in error codes: the event came from outside the program, or while delivering such a one. */
static unsigned ext_of(const struct event *event) {
    return event->kind != EVENT_SOFTWARE;
}

static uint32_t idt_error(const struct event *event) {
    enum { ERROR_IDT = 2 };
    return event->vector * 8u | ERROR_IDT | ext_of(event);
}

/* The RFLAGS that the handler's frame holds. Faults resume with RF set, so that an instruction
 * breakpoint on the instruction does not strike twice. */
static uint64_t frame_flags(const struct soft_cpu *cpu, const struct event *event) {
    uint64_t flags = flags_get(cpu);
    if (event->kind == EVENT_FAULT && event->vector != EXC_DB)
        flags |= FLAG_RF;
    return flags;
}

static void enter_flags(struct soft_cpu *cpu, bool interrupt_gate) {
    cpu->rflags &= ~(uint64_t)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM);
    if (interrupt_gate)
        cpu->rflags &= ~(uint64_t)FLAG_IF;
}

/* ---- Real mode ---- */

static bool deliver_real(struct soft_cpu *cpu, const struct event *event, struct fault *fault) {
    uint32_t entry = event->vector * 4u, vector;
    if (entry + 3 > cpu->idtr.limit)
        return fault_set(fault, EXC_GP, 0);
    if (!linear_read(cpu, (uint32_t)(cpu->idtr.base + entry), &vector, 4, ACCESS_IMPLICIT, fault))
        return false;
    uint16_t frame[3] = {(uint16_t)flags_get(cpu), cpu->segment[SEG_CS].selector,
                         (uint16_t)cpu->rip};
    for (unsigned i = 0; i < 3; i++) {
        uint64_t linear;
        uint64_t offset = (cpu->gpr[RSP] - 2 * (i + 1)) & cpu->stack_mask;
        if (!segment_check(cpu, SEG_SS, offset, 2, true, &linear, fault) ||
            !linear_write(cpu, linear, &frame[i], 2, 0, fault))
            return false;
    }
    stack_move(cpu, -6);
    cpu->rflags &= ~(uint64_t)(FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF);
    segment_load_real(cpu, SEG_CS, (uint16_t)(vector >> 16));
    cpu->rip = (uint16_t)vector;
    mmu_mode_changed(cpu);
    return true;
}

/* ---- What protected and long mode share ---- */

struct gate {
    unsigned type;
    unsigned ist;
    uint16_t selector;
    uint64_t offset;
};

static bool gate_read(struct soft_cpu *cpu, const struct event *event, struct gate *gate,
                      struct fault *fault) {
    unsigned size = cpu->long_mode ? 16 : 8;
    uint64_t entry = event->vector * size, raw[2] = {0};
    if (entry + size - 1 > cpu->idtr.limit)
        return fault_set(fault, EXC_GP, idt_error(event));
    uint64_t linear = cpu->idtr.base + entry;
    if (!linear_read(cpu, cpu->long_mode ? linear : (uint32_t)linear, raw, size, ACCESS_IMPLICIT,
                     fault))
        return false;
    gate->type = raw[0] >> 40 & 0x1f;
    gate->ist = raw[0] >> 32 & 7;
    gate->selector = raw[0] >> 16 & 0xffff;
    gate->offset = raw[0] & 0xffff;
    if (gate->type >= SYSTEM_INTERRUPT)
        gate->offset |= raw[0] >> 32 & 0xffff0000;
    gate->offset |= raw[1] << 32;
    bool interrupt_or_trap = gate->type == SYSTEM_INTERRUPT || gate->type == SYSTEM_TRAP;
    bool narrow = gate->type == SYSTEM_INTERRUPT16 || gate->type == SYSTEM_TRAP16;
    if (gate->type == SYSTEM_TASK_GATE && !cpu->long_mode)
        outside_log(cpu, "the guest has a task gate for vector %u: #GP", event->vector);
    if (!interrupt_or_trap && (!narrow || cpu->long_mode))
        return fault_set(fault, EXC_GP, idt_error(event));
    if (event->kind == EVENT_SOFTWARE && (raw[0] >> 45 & 3) < cpu->cpl)
        return fault_set(fault, EXC_GP, idt_error(event));
    if (!(raw[0] >> 47 & 1))
        return fault_set(fault, EXC_NP, idt_error(event));
    return true;
}

/* The handler's code segment and the level it runs at. */
static bool gate_code(struct soft_cpu *cpu, const struct event *event, const struct gate *gate,
                      struct x86_segment *cs, unsigned *cpl, struct fault *fault) {
    struct descriptor d;
    unsigned ext = ext_of(event);
    uint32_t error = (gate->selector & ~SELECTOR_RPL) | ext;
    if (selector_null(gate->selector))
        return fault_set(fault, EXC_GP, ext);
    if (!descriptor_read(cpu, gate->selector, &d, fault)) {
        fault->error |= fault->vector == EXC_GP ? ext : 0;
        return false;
    }
    unsigned dpl = attributes_dpl(d.attributes);
    if (!descriptor_is_code(&d) || dpl > cpu->cpl ||
        (cpu->long_mode && (d.attributes & (SEG_L | SEG_DB)) != SEG_L))
        return fault_set(fault, EXC_GP, error);
    if (!(d.attributes & SEG_P))
        return fault_set(fault, EXC_NP, error);
    *cpl = d.attributes & TYPE_CONFORMING ? cpu->cpl : dpl;
    if (cpu->rflags & FLAG_VM && *cpl != 0)
        return fault_set(fault, EXC_GP, error);
    if (!descriptor_set_type(cpu, &d, TYPE_ACCESSED, fault))
        return false;
    descriptor_cache(&d, cs);
    cs->selector = (uint16_t)((gate->selector & ~SELECTOR_RPL) | *cpl);
    return true;
}

/* ---- Long mode ---- */

static bool long_stack(struct soft_cpu *cpu, const struct event *event, const struct gate *gate,
                       unsigned cpl, uint64_t *rsp, struct fault *fault) {
    enum { TSS_IST1 = 0x24 };
    unsigned ext = ext_of(event);
    *rsp = cpu->gpr[RSP];
    if (gate->ist != 0) {
        unsigned offset = TSS_IST1 + (gate->ist - 1) * 8;
        if (offset + 7 > cpu->tr.limit)
            return fault_set(fault, EXC_TS, (cpu->tr.selector & ~SELECTOR_RPL) | ext);
        if (!linear_read(cpu, cpu->tr.base + offset, rsp, 8, ACCESS_IMPLICIT, fault))
            return false;
    } else if (cpl < cpu->cpl) {
        uint16_t unused;
        if (!tss_stack(cpu, cpl, ext, rsp, &unused, fault))
            return false;
    }
    *rsp &= ~UINT64_C(15);
    return true;
}

static bool deliver_long(struct soft_cpu *cpu, const struct event *event, struct fault *fault) {
    struct gate gate;
    struct x86_segment cs;
    unsigned cpl;
    uint64_t rsp;
    if (!gate_read(cpu, event, &gate, fault) || !gate_code(cpu, event, &gate, &cs, &cpl, fault) ||
        !long_stack(cpu, event, &gate, cpl, &rsp, fault))
        return false;
    if (!linear_canonical(gate.offset))
        return fault_set(fault, EXC_GP, ext_of(event));
    uint64_t frame[6] = {event->error,
                         cpu->rip,
                         cpu->segment[SEG_CS].selector,
                         frame_flags(cpu, event),
                         cpu->gpr[RSP],
                         cpu->segment[SEG_SS].selector};
    unsigned skip = event->has_error ? 0 : 1, size = (6 - skip) * 8;
    rsp -= size;
    if (!linear_canonical(rsp) || !linear_canonical(rsp + size - 1))
        return fault_set(fault, EXC_SS, ext_of(event));
    /* The frame is on the handler's stack: written with the handler's rights, 64 bits wide. */
    unsigned access = cpl == 3 ? ACCESS_USER : ACCESS_IMPLICIT;
    if (!linear_write(cpu, rsp, frame + skip, size, access, fault))
        return false;
    cpu->segment[SEG_CS] = cs;
    if (cpl != cpu->cpl)
        cpu->segment[SEG_SS] = (struct x86_segment){.selector = (uint16_t)cpl};
    cpu->cpl = (uint8_t)cpl;
    cpu->gpr[RSP] = rsp;
    cpu->rip = gate.offset;
    enter_flags(cpu, gate.type == SYSTEM_INTERRUPT);
    mmu_mode_changed(cpu);
    return true;
}

/* ---- Protected mode ---- */

/* A frame that is being built downwards on a stack. */
struct frame {
    uint8_t bytes[11 * 4];
    unsigned used;
    unsigned item; /* size of one */
};

static void frame_push(struct frame *frame, uint32_t value) {
    frame->used += frame->item;
    store_le(frame->bytes + sizeof frame->bytes - frame->used, value, frame->item);
}

static bool frame_write(struct soft_cpu *cpu, const struct frame *frame,
                        const struct x86_segment *ss, uint64_t *rsp, bool inner, unsigned ext,
                        unsigned access, struct fault *fault) {
    uint32_t mask = ss->attributes & SEG_DB ? UINT32_MAX : UINT16_MAX;
    uint32_t top = (uint32_t)*rsp & mask, bottom = (top - frame->used) & mask;
    bool down = (ss->attributes & (TYPE_CODE | TYPE_CONFORMING)) == TYPE_CONFORMING;
    bool bad = bottom + (frame->used - 1) < bottom ||
               (down ? bottom <= ss->limit : bottom + (frame->used - 1) > ss->limit);
    if (bad)
        return fault_set(fault, EXC_SS, (inner ? ss->selector & ~SELECTOR_RPL : 0) | ext);
    const uint8_t *bytes = frame->bytes + sizeof frame->bytes - frame->used;
    if (!linear_write(cpu, (uint32_t)(ss->base + bottom), bytes, frame->used, access, fault))
        return false;
    *rsp = (*rsp & ~(uint64_t)mask) | bottom;
    return true;
}

static void frame_push_vm86(const struct soft_cpu *cpu, struct frame *frame) {
    static const uint8_t order[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        frame_push(frame, cpu->segment[order[i]].selector);
}

static void leave_vm86(struct soft_cpu *cpu) {
    static const uint8_t dropped[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
    for (unsigned i = 0; i < ARRAY_SIZE(dropped); i++)
        cpu->segment[dropped[i]] = (struct x86_segment){.selector = 0};
}

static bool deliver_protected(struct soft_cpu *cpu, const struct event *event,
                              struct fault *fault) {
    struct gate gate;
    struct x86_segment cs, ss = cpu->segment[SEG_SS];
    unsigned cpl, ext = ext_of(event);
    uint64_t rsp = cpu->gpr[RSP];
    bool vm86 = cpu->rflags & FLAG_VM;
    if (!gate_read(cpu, event, &gate, fault) || !gate_code(cpu, event, &gate, &cs, &cpl, fault))
        return false;
    bool inner = cpl != cpu->cpl;
    uint16_t selector;
    if (inner && (!tss_stack(cpu, cpl, ext, &rsp, &selector, fault) ||
                  !stack_segment_check(cpu, selector, cpl, EXC_TS, ext, &ss, fault)))
        return false;
    if (gate.offset > cs.limit)
        return fault_set(fault, EXC_GP, ext);
    struct frame frame = {.item = gate.type >= SYSTEM_INTERRUPT ? 4 : 2};
    if (vm86)
        frame_push_vm86(cpu, &frame);
    if (inner) {
        frame_push(&frame, cpu->segment[SEG_SS].selector);
        frame_push(&frame, (uint32_t)cpu->gpr[RSP]);
    }
    frame_push(&frame, (uint32_t)frame_flags(cpu, event));
    frame_push(&frame, cpu->segment[SEG_CS].selector);
    frame_push(&frame, (uint32_t)cpu->rip);
    if (event->has_error)
        frame_push(&frame, event->error);
    if (!frame_write(cpu, &frame, &ss, &rsp, inner, ext, cpl == 3 ? ACCESS_USER : 0, fault))
        return false;
    if (vm86)
        leave_vm86(cpu);
    cpu->segment[SEG_CS] = cs;
    cpu->segment[SEG_SS] = ss;
    cpu->cpl = (uint8_t)cpl;
    cpu->gpr[RSP] = rsp;
    cpu->rip = gate.offset;
    enter_flags(cpu, !(gate.type & 1));
    mmu_mode_changed(cpu);
    return true;
}

static bool deliver_once(struct soft_cpu *cpu, const struct event *event, struct fault *fault) {
    if (cpu->long_mode)
        return deliver_long(cpu, event, fault);
    if (cpu->cr0 & CR0_PE)
        return deliver_protected(cpu, event, fault);
    return deliver_real(cpu, event, fault);
}

/* ---- A fault while delivering ---- */

enum severity { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum severity severity_of(const struct event *event) {
    if (event->kind != EVENT_FAULT)
        return BENIGN;
    switch (event->vector) {
    case EXC_DE:
    case EXC_TS:
    case EXC_NP:
    case EXC_SS:
    case EXC_GP: return CONTRIBUTORY;
    case EXC_PF: return PAGE_FAULT;
    case EXC_DF: return DOUBLE_FAULT;
    default: return BENIGN;
    }
}

static struct event event_of_fault(const struct fault *fault) {
    return (struct event){.vector = fault->vector,
                          .kind = EVENT_FAULT,
                          .has_error = fault->has_error,
                          .error = fault->error};
}

/* What a second event makes of a first that was being delivered. False: shutdown. */
static bool combine(struct event *event, const struct event *second) {
    enum severity a = severity_of(event), b = severity_of(second);
    if (a == DOUBLE_FAULT)
        return false;
    bool twice = (a == CONTRIBUTORY && b == CONTRIBUTORY) ||
                 (a == PAGE_FAULT && (b == CONTRIBUTORY || b == PAGE_FAULT));
    if (twice)
        *event = (struct event){.vector = EXC_DF, .kind = EVENT_FAULT, .has_error = true};
    else
        *event = *second;
    return true;
}

static bool shut_down(struct soft_cpu *cpu, const struct event *first, const struct fault *last) {
    cpu->exit.stop = VCPU_SHUTDOWN;
    cpu->exit.gpa = cpu->exit.gva = cpu->exit.access = 0;
    outside_print(cpu, cpu->exit.text, sizeof cpu->exit.text,
                  "triple fault: vector %u at RIP %#llx, at the end vector %u error %#x CR2 %#llx",
                  first->vector, (unsigned long long)cpu->rip, last->vector, last->error,
                  (unsigned long long)cpu->cr2);
    atomic_fetch_or(&cpu->request, REQUEST_STOP);
    return false;
}

/* A view trap on the way: the machine decides, and the event waits for the next run. */
static bool stop_here(struct soft_cpu *cpu, const struct event *event) {
    cpu->event.pending = true;
    cpu->event.vector = event->vector;
    cpu->event.kind = event->kind;
    cpu->event.has_error = event->has_error;
    cpu->event.error = event->error;
    atomic_fetch_or(&cpu->request, REQUEST_STOP);
    return false;
}

bool event_deliver(struct soft_cpu *cpu, uint8_t vector, enum event_kind kind, bool has_error,
                   uint32_t error) {
    const struct event first = {
        .vector = vector, .kind = kind, .has_error = has_error, .error = error};
    struct event event = first;
    struct fault fault = {0};
    if (kind == EVENT_INTERRUPT || kind == EVENT_NMI)
        cpu->counters.interrupts++;
    else
        cpu->counters.exceptions++;
    while (!deliver_once(cpu, &event, &fault)) {
        if (fault.vector == FAULT_STOP)
            return stop_here(cpu, &event);
        if (fault.vector == EXC_PF)
            cpu->cr2 = fault.address;
        struct event second = event_of_fault(&fault);
        if (!combine(&event, &second))
            return shut_down(cpu, &first, &fault);
    }
    cpu->interrupt_shadow = false;
    if (kind == EVENT_NMI)
        cpu->nmi_blocked = true;
    return true;
}

void event_software(struct soft_cpu *cpu, const struct insn *insn, uint8_t vector) {
    enum { INT_N = 0xcd };
    struct event event = {.vector = vector, .kind = EVENT_SOFTWARE};
    struct fault fault;
    cpu->insn = insn;
    if (cpu->rflags & FLAG_VM && insn->opcode == INT_N && (cpu->rflags & FLAG_IOPL) != FLAG_IOPL)
        raise_error(cpu, EXC_GP, 0);
    uint64_t before = cpu->rip;
    cpu->rip = insn_next_rip(cpu, insn);
    cpu->counters.exceptions++;
    if (deliver_once(cpu, &event, &fault))
        return;
    cpu->rip = before; /* insn_rip counts from the block's first byte */
    raise_fault(cpu, &fault);
}
