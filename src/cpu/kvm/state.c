/*
 * struct x86_state to and from the kernel.
 *
 * Not carried by struct x86_state: an event that is being delivered when
 * state is read (saved.c has it). Setting state on the same vCPU leaves such an event where it
 * is; a reset drops it.
 */
#include <sys/ioctl.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cpu/kvm/kvm.h"

/* ---- General registers and segments ---- */

static void load_regs(const struct kvm_regs *from, struct x86_state *to) {
    uint64_t gpr[16] = {from->rax, from->rcx, from->rdx, from->rbx, from->rsp, from->rbp,
                        from->rsi, from->rdi, from->r8,  from->r9,  from->r10, from->r11,
                        from->r12, from->r13, from->r14, from->r15};
    memcpy(to->gpr, gpr, sizeof gpr);
    to->rip = from->rip;
    to->rflags = from->rflags;
}

static struct kvm_regs store_regs(const struct x86_state *from) {
    const uint64_t *gpr = from->gpr;
    return (struct kvm_regs){
        .rax = gpr[RAX],
        .rbx = gpr[RBX],
        .rcx = gpr[RCX],
        .rdx = gpr[RDX],
        .rsi = gpr[RSI],
        .rdi = gpr[RDI],
        .rsp = gpr[RSP],
        .rbp = gpr[RBP],
        .r8 = gpr[R8],
        .r9 = gpr[R9],
        .r10 = gpr[R10],
        .r11 = gpr[R11],
        .r12 = gpr[R12],
        .r13 = gpr[R13],
        .r14 = gpr[R14],
        .r15 = gpr[R15],
        .rip = from->rip,
        .rflags = from->rflags | FLAGS_FIXED,
    };
}

static struct x86_segment load_segment(const struct kvm_segment *from) {
    struct x86_segment to = {from->base, from->limit, from->selector, 0};
    if (!from->unusable)
        to.attributes =
            (uint16_t)(from->type | from->s << 4 | from->dpl << 5 | from->present << 7 |
                       from->avl << 12 | from->l << 13 | from->db << 14 | from->g << 15);
    return to;
}

static struct kvm_segment store_segment(const struct x86_segment *from) {
    unsigned attributes = from->attributes;
    return (struct kvm_segment){
        .base = from->base,
        .limit = from->limit,
        .selector = from->selector,
        .type = attributes & SEG_TYPE,
        .s = (attributes & SEG_S) != 0,
        .dpl = (attributes & SEG_DPL) >> 5,
        .present = (attributes & SEG_P) != 0,
        .avl = (attributes & SEG_AVL) != 0,
        .l = (attributes & SEG_L) != 0,
        .db = (attributes & SEG_DB) != 0,
        .g = (attributes & SEG_G) != 0,
        .unusable = attributes == 0,
    };
}

static void load_sregs(const struct kvm_sregs *from, struct x86_state *to) {
    const struct kvm_segment *segments[SEG_COUNT] = {
        [SEG_ES] = &from->es, [SEG_CS] = &from->cs, [SEG_SS] = &from->ss,
        [SEG_DS] = &from->ds, [SEG_FS] = &from->fs, [SEG_GS] = &from->gs,
    };
    for (unsigned i = 0; i < SEG_COUNT; i++)
        to->segment[i] = load_segment(segments[i]);
    to->ldtr = load_segment(&from->ldt);
    to->tr = load_segment(&from->tr);
    to->gdtr = (struct x86_table){from->gdt.base, from->gdt.limit};
    to->idtr = (struct x86_table){from->idt.base, from->idt.limit};
    to->cr0 = from->cr0;
    to->cr2 = from->cr2;
    to->cr3 = from->cr3;
    to->cr4 = from->cr4;
    to->cr8 = from->cr8;
    to->efer = from->efer;
    to->apic_base = from->apic_base;
}

static struct kvm_sregs store_sregs(const struct x86_state *from) {
    return (struct kvm_sregs){
        .es = store_segment(&from->segment[SEG_ES]),
        .cs = store_segment(&from->segment[SEG_CS]),
        .ss = store_segment(&from->segment[SEG_SS]),
        .ds = store_segment(&from->segment[SEG_DS]),
        .fs = store_segment(&from->segment[SEG_FS]),
        .gs = store_segment(&from->segment[SEG_GS]),
        .ldt = store_segment(&from->ldtr),
        .tr = store_segment(&from->tr),
        .gdt = {.base = from->gdtr.base, .limit = from->gdtr.limit},
        .idt = {.base = from->idtr.base, .limit = from->idtr.limit},
        .cr0 = from->cr0,
        .cr2 = from->cr2,
        .cr3 = from->cr3,
        .cr4 = from->cr4,
        .cr8 = from->cr8,
        .efer = from->efer,
        .apic_base = from->apic_base,
    };
}

/* ---- x87, SSE, AVX: the XSAVE area's standard form (APM vol. 2, 11.5) ---- */

enum {
    XSAVE_FCW = 0,
    XSAVE_FSW = 2,
    XSAVE_FTW = 4,
    XSAVE_FOP = 6,
    XSAVE_FIP = 8,
    XSAVE_FDP = 16,
    XSAVE_MXCSR = 24,
    XSAVE_ST = 32,
    XSAVE_XMM = 160,
    XSAVE_BV = 512,
    XSAVE_YMM_HIGH = 576,
    XSTATE_X87 = 1,
    XSTATE_SSE = 2,
    XSTATE_AVX = 4,
    FCW_INIT = 0x37f,
    MXCSR_INIT = 0x1f80,
};

/* ST(i) is physical register TOP + i. */
static unsigned physical(uint16_t fsw, unsigned i) {
    return ((fsw >> 11) + i) & 7;
}

static void load_x87(const uint8_t *area, struct x86_state *to) {
    to->fcw = load_le16(area + XSAVE_FCW);
    to->fsw = load_le16(area + XSAVE_FSW);
    to->ftw = area[XSAVE_FTW];
    to->fop = load_le16(area + XSAVE_FOP);
    to->fip = load_le64(area + XSAVE_FIP);
    to->fdp = load_le64(area + XSAVE_FDP);
    for (unsigned i = 0; i < 8; i++) {
        struct x86_x87 *reg = &to->x87[physical(to->fsw, i)];
        reg->significand = load_le64(area + XSAVE_ST + 16 * i);
        reg->sign_exponent = load_le16(area + XSAVE_ST + 16 * i + 8);
    }
}

static void load_xsave(const uint8_t *area, struct x86_state *to) {
    uint64_t present = load_le64(area + XSAVE_BV);
    to->fcw = FCW_INIT;
    to->mxcsr = MXCSR_INIT;
    if (present & XSTATE_X87)
        load_x87(area, to);
    if (present & (XSTATE_SSE | XSTATE_AVX))
        to->mxcsr = load_le32(area + XSAVE_MXCSR);
    for (unsigned i = 0; i < 16; i++) {
        if (present & XSTATE_SSE)
            memcpy(to->vector[i].b, area + XSAVE_XMM + 16 * i, 16);
        if (present & XSTATE_AVX)
            memcpy(to->vector[i].b + 16, area + XSAVE_YMM_HIGH + 16 * i, 16);
    }
}

static void store_xsave(const struct x86_state *from, uint64_t components, uint8_t *area) {
    store_le16(area + XSAVE_FCW, from->fcw);
    store_le16(area + XSAVE_FSW, from->fsw);
    area[XSAVE_FTW] = from->ftw;
    store_le16(area + XSAVE_FOP, from->fop);
    store_le64(area + XSAVE_FIP, from->fip);
    store_le64(area + XSAVE_FDP, from->fdp);
    store_le32(area + XSAVE_MXCSR, from->mxcsr);
    for (unsigned i = 0; i < 8; i++) {
        const struct x86_x87 *reg = &from->x87[physical(from->fsw, i)];
        store_le64(area + XSAVE_ST + 16 * i, reg->significand);
        store_le16(area + XSAVE_ST + 16 * i + 8, reg->sign_exponent);
    }
    for (unsigned i = 0; i < 16; i++) {
        memcpy(area + XSAVE_XMM + 16 * i, from->vector[i].b, 16);
        if (components & XSTATE_AVX)
            memcpy(area + XSAVE_YMM_HIGH + 16 * i, from->vector[i].b + 16, 16);
    }
    store_le64(area + XSAVE_BV, components);
}

/* ---- MSRs ---- */

struct msr_field {
    uint32_t msr;
    uint32_t offset; /* in struct x86_state */
};

#define MSR_FIELD(number, member)                                                                  \
    { (number), offsetof(struct x86_state, member) }
#define MTRR_VARIABLE(n)                                                                           \
    MSR_FIELD(0x200 + 2 * (n), mtrr_base[n]), MSR_FIELD(0x201 + 2 * (n), mtrr_mask[n])

static const struct msr_field msr_fields[] = {
    MSR_FIELD(MSR_STAR, star),
    MSR_FIELD(MSR_LSTAR, lstar),
    MSR_FIELD(MSR_CSTAR, cstar),
    MSR_FIELD(MSR_SFMASK, sfmask),
    MSR_FIELD(MSR_KERNEL_GS_BASE, kernel_gs_base),
    MSR_FIELD(MSR_TSC_AUX, tsc_aux),
    MSR_FIELD(MSR_SYSENTER_CS, sysenter_cs),
    MSR_FIELD(MSR_SYSENTER_ESP, sysenter_esp),
    MSR_FIELD(MSR_SYSENTER_EIP, sysenter_eip),
    MSR_FIELD(MSR_PAT, pat),
    MSR_FIELD(0x250, mtrr_fixed[0]),
    MSR_FIELD(0x258, mtrr_fixed[1]),
    MSR_FIELD(0x259, mtrr_fixed[2]),
    MSR_FIELD(0x268, mtrr_fixed[3]),
    MSR_FIELD(0x269, mtrr_fixed[4]),
    MSR_FIELD(0x26a, mtrr_fixed[5]),
    MSR_FIELD(0x26b, mtrr_fixed[6]),
    MSR_FIELD(0x26c, mtrr_fixed[7]),
    MSR_FIELD(0x26d, mtrr_fixed[8]),
    MSR_FIELD(0x26e, mtrr_fixed[9]),
    MSR_FIELD(0x26f, mtrr_fixed[10]),
    MTRR_VARIABLE(0),
    MTRR_VARIABLE(1),
    MTRR_VARIABLE(2),
    MTRR_VARIABLE(3),
    MTRR_VARIABLE(4),
    MTRR_VARIABLE(5),
    MTRR_VARIABLE(6),
    MTRR_VARIABLE(7),
    MSR_FIELD(MSR_MTRR_DEF_TYPE, mtrr_def_type),
};

/* One MSR as KVM_GET_MSRS and KVM_SET_MSRS take it: a head and one entry behind it. */
union msr_request {
    struct kvm_msrs head;
    uint8_t room[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
};

bool kvm_get_msr(const struct kvm_vcpu *vcpu, uint32_t msr, uint64_t *value) {
    union msr_request request = {.head.nmsrs = 1};
    request.head.entries[0] = (struct kvm_msr_entry){.index = msr};
    if (kvm_ioctl(vcpu->fd, KVM_GET_MSRS, &request) != 1)
        return false;
    *value = request.head.entries[0].data;
    return true;
}

bool kvm_set_msr(const struct kvm_vcpu *vcpu, uint32_t msr, uint64_t value) {
    union msr_request request = {.head.nmsrs = 1};
    request.head.entries[0] = (struct kvm_msr_entry){.index = msr, .data = value};
    return kvm_ioctl(vcpu->fd, KVM_SET_MSRS, &request) == 1;
}

static void load_msrs(const struct kvm_vcpu *vcpu, struct x86_state *to) {
    for (size_t i = 0; i < ARRAY_SIZE(msr_fields); i++) {
        uint64_t value;
        if (kvm_get_msr(vcpu, msr_fields[i].msr, &value))
            memcpy((char *)to + msr_fields[i].offset, &value, sizeof value);
    }
}

/* An MSR that this processor lacks must be 0 in the state, or already hold what the state says. */
static int store_msrs(const struct kvm_vcpu *vcpu, const struct x86_state *from,
                      struct error *err) {
    for (size_t i = 0; i < ARRAY_SIZE(msr_fields); i++) {
        uint64_t value, now;
        memcpy(&value, (const char *)from + msr_fields[i].offset, sizeof value);
        if (kvm_set_msr(vcpu, msr_fields[i].msr, value) || value == 0)
            continue;
        if (!kvm_get_msr(vcpu, msr_fields[i].msr, &now) || now != value)
            return error_set(err, -EINVAL, "KVM refused %#lx for MSR %#x", value,
                             msr_fields[i].msr);
    }
    return 0;
}

/* ---- TSC ---- */

bool kvm_tsc_lead(struct kvm_vcpu *vcpu, int64_t *lead) {
    uint64_t tsc;
    if (!kvm_get_msr(vcpu, MSR_TSC, &tsc))
        return false;
    *lead = (int64_t)(tsc - vm_clock_tsc(vcpu->vcpu.engine->config.clock));
    return true;
}

/*
 * By offset where the kernel has it: a write of the TSC itself may be taken
 * for an attempt to synchronise vCPUs, and be replaced by another value.
 */
void kvm_set_tsc_lead(struct kvm_vcpu *vcpu, int64_t lead) {
    int64_t now;
    if (!kvm_tsc_lead(vcpu, &now))
        return;
    uint64_t offset = 0;
    struct kvm_device_attr attribute = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)&offset,
    };
    if (kvm_ioctl(vcpu->fd, KVM_GET_DEVICE_ATTR, &attribute) == 0) {
        offset += (uint64_t)(lead - now);
        if (kvm_ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &attribute) == 0)
            return;
    }
    kvm_set_msr(vcpu, MSR_TSC, vm_clock_tsc(vcpu->vcpu.engine->config.clock) + (uint64_t)lead);
}

/* ---- What the vCPU waits for ---- */

static void load_events(const struct kvm_vcpu *vcpu, struct x86_state *to) {
    struct kvm_vcpu_events events = {0};
    struct kvm_mp_state mp = {0};
    kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
    kvm_ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp);
    to->interrupt_shadow = events.interrupt.shadow != 0;
    to->nmi_blocked = events.nmi.masked;
    to->nmi_pending = events.nmi.pending != 0;
    to->halted = mp.mp_state == KVM_MP_STATE_HALTED;
    to->waiting_for_sipi =
        mp.mp_state == KVM_MP_STATE_UNINITIALIZED || mp.mp_state == KVM_MP_STATE_INIT_RECEIVED;
}

static int store_events(const struct kvm_vcpu *vcpu, const struct x86_state *from,
                        struct error *err) {
    struct kvm_vcpu_events events;
    int code = kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
    events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    events.interrupt.shadow = from->interrupt_shadow ? KVM_X86_SHADOW_INT_STI : 0;
    events.nmi.masked = from->nmi_blocked;
    events.nmi.pending = from->nmi_pending;
    if (code == 0)
        code = kvm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events);
    struct kvm_mp_state mp = {from->waiting_for_sipi ? KVM_MP_STATE_INIT_RECEIVED
                              : from->halted         ? KVM_MP_STATE_HALTED
                                                     : KVM_MP_STATE_RUNNABLE};
    if (code == 0)
        code = kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp);
    return code < 0 ? error_set_errno(err, code, "setting the vCPU's pending events") : 0;
}

/* ---- All of it ---- */

static void load_debug(const struct kvm_vcpu *vcpu, struct x86_state *to) {
    struct kvm_debugregs debug = {0};
    kvm_ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &debug);
    memcpy(to->dr, debug.db, sizeof debug.db);
    to->dr[6] = debug.dr6;
    to->dr[7] = debug.dr7;
}

void kvm_get_state(struct vcpu *base, struct x86_state *state) {
    struct kvm_vcpu *vcpu = kvm_vcpu_of(base);
    const struct kvm_engine *engine = kvm_engine_of_vcpu(vcpu);
    memset(state, 0, sizeof *state);
    struct kvm_regs regs = {0};
    struct kvm_sregs sregs = {0};
    struct kvm_xsave xsave = {0};
    struct kvm_xcrs xcrs = {0};
    kvm_ioctl(vcpu->fd, KVM_GET_REGS, &regs);
    kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
    load_regs(&regs, state);
    load_sregs(&sregs, state);
    if (engine->has_xsave && kvm_ioctl(vcpu->fd, KVM_GET_XSAVE, &xsave) == 0)
        load_xsave((const uint8_t *)xsave.region, state);
    state->xcr0 = 1;
    if (engine->has_xcrs && kvm_ioctl(vcpu->fd, KVM_GET_XCRS, &xcrs) == 0 && xcrs.nr_xcrs > 0)
        state->xcr0 = xcrs.xcrs[0].value;
    if (engine->has_debugregs)
        load_debug(vcpu, state);
    load_msrs(vcpu, state);
    load_events(vcpu, state);
    int64_t lead;
    if (kvm_tsc_lead(vcpu, &lead))
        state->tsc_offset = (uint64_t)lead;
}

static int store_floating_point(const struct kvm_vcpu *vcpu, const struct x86_state *state,
                                struct error *err) {
    const struct kvm_engine *engine = kvm_engine_of_vcpu(vcpu);
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = state->xcr0}}};
    struct kvm_xsave xsave = {0};
    store_xsave(state, (XSTATE_X87 | XSTATE_SSE | XSTATE_AVX) & (engine->xcr0 | 3),
                (uint8_t *)xsave.region);
    if (engine->has_xcrs && kvm_ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs) < 0 && state->xcr0 != 1)
        return error_set(err, -EINVAL, "KVM refused XCR0 %#lx", state->xcr0);
    int code = engine->has_xsave ? kvm_ioctl(vcpu->fd, KVM_SET_XSAVE, &xsave) : 0;
    return code < 0 ? error_set_errno(err, -EINVAL, "KVM refused floating-point state") : 0;
}

static int store_registers(const struct kvm_vcpu *vcpu, const struct x86_state *state,
                           struct error *err) {
    struct kvm_sregs sregs = store_sregs(state);
    if (kvm_ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0)
        return error_set(err, -EINVAL,
                         "KVM refused control registers (CR0 %#lx CR4 %#lx EFER %#lx)", state->cr0,
                         state->cr4, state->efer);
    struct kvm_regs regs = store_regs(state);
    if (kvm_ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0)
        return error_set(err, -EINVAL, "KVM refused general registers");
    struct kvm_debugregs debug = {.dr6 = state->dr[6], .dr7 = state->dr[7]};
    memcpy(debug.db, state->dr, sizeof debug.db);
    if (kvm_engine_of_vcpu(vcpu)->has_debugregs &&
        kvm_ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &debug) < 0)
        return error_set(err, -EINVAL, "KVM refused debug registers");
    return 0;
}

int kvm_set_state(struct vcpu *base, const struct x86_state *state, struct error *err) {
    struct kvm_vcpu *vcpu = kvm_vcpu_of(base);
    int code = store_registers(vcpu, state, err);
    if (code == 0)
        code = store_floating_point(vcpu, state, err);
    if (code == 0)
        code = store_msrs(vcpu, state, err);
    if (code == 0)
        code = store_events(vcpu, state, err);
    if (code != 0)
        return code;
    kvm_set_tsc_lead(vcpu, (int64_t)state->tsc_offset);
    vcpu->tsc_known = kvm_tsc_lead(vcpu, &vcpu->tsc_lead);
    vcpu->resume_flag = false;
    return 0;
}

void kvm_reset(struct vcpu *base, bool init) {
    struct kvm_vcpu *vcpu = kvm_vcpu_of(base);
    struct x86_state state;
    kvm_get_state(base, &state);
    x86_reset_state(&state, base->id, init);
    struct kvm_vcpu_events none = {.flags = KVM_VCPUEVENT_VALID_NMI_PENDING |
                                            KVM_VCPUEVENT_VALID_SHADOW};
    kvm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &none);
    struct error err;
    if (kvm_set_state(base, &state, &err) < 0)
        log_error("resetting vCPU %u: %s", base->id, err.text);
    struct kvm_lapic_state lapic = vcpu->reset_lapic;
    if (kvm_ioctl(vcpu->fd, KVM_SET_LAPIC, &lapic) < 0)
        log_error("resetting vCPU %u: KVM refused the local APIC's state", base->id);
    vcpu->external_waits = base->id == 0; /* look at the 8259 anew */
}

void kvm_inject(struct vcpu *base, enum exception vector, bool has_error, uint32_t error) {
    struct kvm_vcpu *vcpu = kvm_vcpu_of(base);
    if (vector == EXC_NMI) {
        ioctl(vcpu->fd, KVM_NMI, 0L);
        return;
    }
    struct kvm_vcpu_events events;
    if (kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events) < 0)
        return;
    events.exception.injected = 1;
    events.exception.pending = 0;
    events.exception.nr = (uint8_t)vector;
    events.exception.has_error_code = has_error;
    events.exception.error_code = error;
    events.flags &= ~(uint32_t)KVM_VCPUEVENT_VALID_NMI_PENDING;
    kvm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events);
    vcpu->counters.exceptions++;
}
