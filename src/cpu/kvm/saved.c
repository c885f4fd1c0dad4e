/*
 * What a snapshot has of a vCPU beyond struct x86_state: the local APIC, an
 * event that is being delivered, and all MSRs that the kernel says it keeps
 * (KVM_GET_MSR_INDEX_LIST: the guest's clock, its deadline timer, what KVM
 * writes into guest memory, and others by host). Of MSRs that differ from what
 * a new vCPU has, all must be taken; those that do not need not be written,
 * which the kernel refuses for some.
 */
#include <stdlib.h>
#include <sys/ioctl.h>

#include "base/bytes.h"
#include "cpu/kvm/kvm.h"

enum { MSRS_MAX = 512, TSC_DEADLINE = 0x6e0 };

struct kvm_saved {
    uint8_t lapic[sizeof(struct kvm_lapic_state)];
    uint8_t events[sizeof(struct kvm_vcpu_events)];
    uint32_t mp_state;
    uint64_t clock; /* the VM's kvmclock, ns */
    uint32_t msr_count;
    uint32_t msr[MSRS_MAX];
    uint64_t msr_value[MSRS_MAX];
};

static int after_load(void *object, struct error *err) {
    const struct kvm_saved *saved = object;
    return saved->msr_count <= MSRS_MAX ? 0 : error_set(err, -EINVAL, "it has too many MSRs");
}

static const struct state_field saved_fields[] = {
    STATE_ARRAY(struct kvm_saved, lapic, 1),     STATE_ARRAY(struct kvm_saved, events, 1),
    STATE_FIELD(struct kvm_saved, mp_state, 1),  STATE_FIELD(struct kvm_saved, clock, 1),
    STATE_FIELD(struct kvm_saved, msr_count, 1), STATE_ARRAY(struct kvm_saved, msr, 1),
    STATE_ARRAY(struct kvm_saved, msr_value, 1),
};
static const struct state_table saved_table =
    STATE_TABLE("kvm-vcpu", 1, struct kvm_saved, saved_fields, .after_load = after_load);

/* ---- From the kernel ---- */

union msr_list {
    struct kvm_msr_list head;
    uint8_t room[sizeof(struct kvm_msr_list) + MSRS_MAX * sizeof(uint32_t)];
};

/* The TSC is the state's, as a lead of the VM's clock. */
static int load_msrs(const struct kvm_vcpu *vcpu, struct kvm_saved *saved) {
    union msr_list list = {.head.nmsrs = MSRS_MAX};
    int code = kvm_ioctl(kvm_engine_of_vcpu(vcpu)->kvm_fd, KVM_GET_MSR_INDEX_LIST, &list);
    saved->msr_count = 0;
    for (uint32_t i = 0; code == 0 && i < list.head.nmsrs; i++) {
        uint32_t msr = list.head.indices[i];
        if (msr == MSR_TSC || !kvm_get_msr(vcpu, msr, &saved->msr_value[saved->msr_count]))
            continue;
        saved->msr[saved->msr_count++] = msr;
    }
    return code;
}

const struct state_table *kvm_own_state(struct vcpu *base, void **object, struct error *err) {
    struct kvm_vcpu *vcpu = kvm_vcpu_of(base);
    struct kvm_clock_data clock = {0};
    struct kvm_mp_state mp = {0};
    if (vcpu->saved == NULL)
        vcpu->saved = calloc(1, sizeof *vcpu->saved);
    if (vcpu->saved == NULL) {
        error_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    int code = kvm_ioctl(vcpu->fd, KVM_GET_LAPIC, vcpu->saved->lapic);
    if (code == 0)
        code = kvm_ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp); /* which settles INIT and SIPI */
    if (code == 0)
        code = kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, vcpu->saved->events);
    if (code == 0)
        code = kvm_ioctl(kvm_engine_of_vcpu(vcpu)->vm_fd, KVM_GET_CLOCK, &clock);
    if (code == 0)
        code = load_msrs(vcpu, vcpu->saved);
    if (code < 0) {
        error_set_errno(err, code, "asking KVM for the state of vCPU %u", base->id);
        return NULL;
    }
    vcpu->saved->mp_state = mp.mp_state;
    vcpu->saved->clock = clock.clock;
    *object = vcpu->saved;
    return &saved_table;
}

/* ---- To the kernel ---- */

static int store_msr(const struct kvm_vcpu *vcpu, uint32_t msr, uint64_t value, struct error *err) {
    uint64_t now;
    if ((kvm_get_msr(vcpu, msr, &now) && now == value) || kvm_set_msr(vcpu, msr, value))
        return 0;
    return error_set(err, -ENOTSUP, "this host's KVM refuses %#lx for MSR %#x", value, msr);
}

/* The deadline counts from what the others make the time. */
static int store_msrs(const struct kvm_vcpu *vcpu, const struct kvm_saved *saved,
                      struct error *err) {
    int code = 0;
    for (int deadline = 0; deadline < 2; deadline++)
        for (uint32_t i = 0; i < saved->msr_count && code == 0; i++)
            if (saved->msr[i] != MSR_TSC && (saved->msr[i] == TSC_DEADLINE) == deadline)
                code = store_msr(vcpu, saved->msr[i], saved->msr_value[i], err);
    return code;
}

int kvm_set_own_state(struct vcpu *base, struct error *err) {
    struct kvm_vcpu *vcpu = kvm_vcpu_of(base);
    struct kvm_engine *engine = kvm_engine_of_vcpu(vcpu);
    struct kvm_saved *saved = vcpu->saved;
    struct kvm_clock_data clock = {.clock = saved->clock};
    struct kvm_mp_state mp = {saved->mp_state};
    if (base->id == 0 && kvm_ioctl(engine->vm_fd, KVM_SET_CLOCK, &clock) < 0)
        return error_set(err, -EINVAL, "KVM refused the guest's clock");
    if (kvm_ioctl(vcpu->fd, KVM_SET_LAPIC, saved->lapic) < 0)
        return error_set(err, -EINVAL, "KVM refused the local APIC's state");
    int code = store_msrs(vcpu, saved, err);
    if (code < 0)
        return code;
    if (kvm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, saved->events) < 0 ||
        kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp) < 0)
        return error_set(err, -EINVAL, "KVM refused what vCPU %u waits for", base->id);
    vcpu->external_waits = base->id == 0; /* look at the 8259 anew */
    atomic_store(&engine->routes_stale, true);
    return 0;
}
