/*
 * Breakpoints are the processor's own (DR0 to DR3, by KVM_SET_GUEST_DEBUG):
 * four, and while one is set the guest's own hardware breakpoints do not
 * fire.
 */
#include "base/bytes.h"
#include "cpu/kvm/kvm.h"

enum { DR7_FIXED = 1 << 10, DR7_GLOBAL_EXACT = 1 << 9 };

static int tell_kernel(struct kvm_vcpu *vcpu) {
    struct kvm_guest_debug debug = {0};
    if (vcpu->breakpoints != 0) {
        debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        debug.arch.debugreg[7] = DR7_FIXED | DR7_GLOBAL_EXACT;
    }
    for (unsigned i = 0; i < KVM_BREAKPOINTS; i++) {
        if (!(vcpu->breakpoints & 1u << i))
            continue;
        debug.arch.debugreg[i] = vcpu->breakpoint[i];
        debug.arch.debugreg[7] |= UINT64_C(2) << (2 * i); /* global, on execution, 1 byte */
    }
    return kvm_ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &debug);
}

static int find(const struct kvm_vcpu *vcpu, uint64_t gva) {
    for (int i = 0; i < KVM_BREAKPOINTS; i++) {
        if (vcpu->breakpoints & 1u << i && vcpu->breakpoint[i] == gva)
            return i;
    }
    return -1;
}

int kvm_set_breakpoint(struct vcpu *base, uint64_t gva, bool on, struct error *err) {
    struct kvm_vcpu *vcpu = kvm_vcpu_of(base);
    unsigned before = vcpu->breakpoints;
    int present = find(vcpu, gva);
    if (on == (present >= 0))
        return 0;
    if (!on) {
        vcpu->breakpoints &= ~(1u << present);
    } else {
        unsigned place = 0;
        while (place < KVM_BREAKPOINTS && vcpu->breakpoints & 1u << place)
            place++;
        if (place == KVM_BREAKPOINTS)
            return error_set(
                err, -ENOTSUP,
                "the kvm engine has %d breakpoints; --engine soft has as many as you like",
                KVM_BREAKPOINTS);
        vcpu->breakpoint[place] = gva;
        vcpu->breakpoints |= 1u << place;
    }
    int code = tell_kernel(vcpu);
    if (code < 0) {
        vcpu->breakpoints = before;
        return error_set(err, -ENOTSUP,
                         "this KVM refuses breakpoints (error %d); --engine soft has them", -code);
    }
    return 0;
}

bool kvm_debug_exit(struct kvm_vcpu *vcpu) {
    const struct kvm_debug_exit_arch *debug = &vcpu->run->debug.arch;
    if (debug->exception == EXC_DB && debug->dr6 & 15 && find(vcpu, debug->pc) >= 0) {
        vcpu->resume_flag = true;
        return true;
    }
    kvm_inject(&vcpu->vcpu, debug->exception, false, 0);
    return false;
}

/* RFLAGS.RF suppresses instruction breakpoints for one instruction (APM vol. 2, 13.1.1.3). */
void kvm_debug_resume(struct kvm_vcpu *vcpu) {
    if (!vcpu->resume_flag)
        return;
    vcpu->resume_flag = false;
    struct kvm_regs regs;
    if (kvm_ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0 || find(vcpu, regs.rip) < 0)
        return;
    regs.rflags |= FLAG_RF;
    kvm_ioctl(vcpu->fd, KVM_SET_REGS, &regs);
}

int kvm_set_view(struct vcpu *base, struct view *view, struct error *err) {
    if (view == memory_default_view(base->engine->config.memory))
        return 0;
    return error_set(err, -ENOTSUP,
                     "the kvm engine has one view of memory; --engine soft has many");
}
