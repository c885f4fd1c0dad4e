/*
 * The KVM engine: vCPUs that the host's kernel runs (Linux,
 * Documentation/virt/kvm/api.rst). Private to the room; the world sees
 * kvm_engine_ops.
 *
 *   engine.c      the VM: creation, capabilities, the table of operations
 *   memory.c      memory slots that follow the default view
 *   dirty.c       the dirty log
 *   vcpu.c        a vCPU: creation, the run loop, kicks
 *   state.c       struct x86_state to and from the kernel, reset, injection
 *   saved.c       what a snapshot has beyond that
 *   cpuid.c       the processor that guests see
 *   interrupt.c   the split irqchip
 *   debug.c       breakpoints
 *   translate.c   guest-virtual addresses
 *
 * Split irqchip: the kernel has the local APICs, lodge the I/O APIC, the 8259s
 * and all timers but the APICs' own. Pins and MSIs go in as messages
 * (KVM_SIGNAL_MSI); ends of level-triggered interrupts come out as exits; the
 * 8259's vectors are injected into vCPU 0 when its interrupt window is open.
 *
 * Time: guests read the host's TSC with an offset. It is set to the VM's clock
 * when state is set, and again when vcpu_run finds that the clock stood still
 * since it last returned (a pause). A VM clock that is scaled, or that the
 * host's NTP slews, drifts against the guest's TSC; local APIC timers go on
 * counting through a pause. The soft engine has neither limit.
 *
 * Threads: vCPU file descriptors are used by the vCPU's thread (or by others
 * while vcpu_run is not running), the VM's by any.
 */
#ifndef LODGE_CPU_KVM_KVM_H
#define LODGE_CPU_KVM_KVM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "base/lock.h"
#include "cpu/engine.h"

enum { KVM_VCPUS_MAX = 255, KVM_SLOTS_MAX = 64, KVM_BREAKPOINTS = 4 };

/* Interrupts KVM_RUN. Its handler does nothing. */
#define KVM_KICK_SIGNAL (SIGRTMIN + 2)

struct kvm_vcpu;

/* One memory slot: a run of pages that the default view shows alike. */
struct kvm_slot {
    uint64_t gpa;
    uint64_t size; /* 0: the slot is free */
    uint8_t *host;
    bool readonly;
};

struct kvm_engine {
    struct engine engine; /* first */
    int kvm_fd;
    int vm_fd;
    size_t run_size; /* of the area shared with the kernel per vCPU */
    bool has_readonly_memory;
    bool has_tsc_deadline;
    bool has_xsave, has_xcrs, has_debugregs;
    struct kvm_cpuid2 *cpuid; /* what guests may see; vCPUs add their ids */
    uint64_t xcr0;            /* what guests may enable */

    /* memory.c */
    struct memory_listener listener;
    struct lock slot_lock; /* LOCK_MEMORY: the slots; one change at a time */
    struct kvm_slot slot[KVM_SLOTS_MAX];
    uint64_t ram_end; /* no RAM at or above */
    bool dirty_log;   /* the kernel keeps one */
    int slot_error;   /* negative errno of the first slot that the kernel refused */

    /* A change of slots that must not be seen half done holds vCPUs out of the guest. */
    atomic_bool hold;
    pthread_mutex_t hold_mutex;
    pthread_cond_t hold_changed;

    /* interrupt.c */
    atomic_bool routes_stale;
    struct lock route_lock; /* LOCK_BACKEND (the irqchip is asked with it held): the table below */
    struct kvm_irq_routing *routes; /* IRQ_LINES entries */

    struct lock vcpu_lock; /* LOCK_VCPU: the list below */
    struct kvm_vcpu *vcpu[KVM_VCPUS_MAX];
};

/* kvm_vcpu.request */
enum {
    KVM_REQUEST_KICK = 1,     /* leave vcpu_run */
    KVM_REQUEST_EXTERNAL = 2, /* look at the 8259's INTR */
};

struct kvm_vcpu {
    struct vcpu vcpu; /* first */
    int fd;
    struct kvm_run *run;
    atomic_uint request;
    atomic_bool in_guest;
    struct lock lock; /* LOCK_VCPU: thread, running */
    pthread_t thread; /* that is in vcpu_run */
    bool running;
    bool external_waits; /* INTR is raised and its vector not yet injected */
    bool tsc_known;
    int64_t tsc_lead;                   /* guest TSC - vm_clock_tsc() when vcpu_run last returned */
    struct kvm_lapic_state reset_lapic; /* as the kernel made it */
    uint64_t breakpoint[KVM_BREAKPOINTS];
    unsigned breakpoints; /* bit n: breakpoint[n] is set */
    bool resume_flag;     /* step over the breakpoint at RIP when going on */
    struct vcpu_counters counters;
    struct kvm_saved *saved; /* NULL: never asked for */
};

static inline struct kvm_engine *kvm_engine_of(struct engine *engine) {
    return (struct kvm_engine *)engine;
}

static inline struct kvm_vcpu *kvm_vcpu_of(struct vcpu *vcpu) {
    return (struct kvm_vcpu *)vcpu;
}

static inline struct kvm_engine *kvm_engine_of_vcpu(const struct kvm_vcpu *vcpu) {
    return (struct kvm_engine *)vcpu->vcpu.engine;
}

/* ioctl that answers -errno. */
int kvm_ioctl(int fd, unsigned long request, void *argument);
/* KVM_CHECK_EXTENSION: 0 when missing. */
int kvm_capability(const struct kvm_engine *engine, int capability);

/* memory.c */
int kvm_memory_init(struct kvm_engine *engine, struct error *err);
void kvm_memory_destroy(struct kvm_engine *engine);
/* Tells the kernel what engine->slot[number] says; with slot_lock held. */
int kvm_slot_tell(struct kvm_engine *engine, unsigned number);

/* dirty.c: struct memory_listener's dirty_wanted */
void kvm_dirty_wanted(void *context, uint64_t gpa, uint64_t size);
/* Moves what the kernel logged of a slot to the pages' flags; with slot_lock held. */
void kvm_dirty_collect(struct kvm_engine *engine, unsigned number);

/* cpuid.c: fills engine->cpuid; gives a vCPU its own copy. */
int kvm_cpuid_init(struct kvm_engine *engine, struct error *err);
int kvm_cpuid_set(struct kvm_vcpu *vcpu, struct error *err);

/* interrupt.c */
int kvm_interrupt_init(struct kvm_engine *engine, struct error *err);
void kvm_interrupt_destroy(struct kvm_engine *engine);
/* Before KVM_RUN: tells the kernel of changed routes, injects the 8259's vector if it can be taken.
 */
void kvm_interrupt_prepare(struct kvm_vcpu *vcpu);

/* saved.c: engine_ops */
const struct state_table *kvm_own_state(struct vcpu *vcpu, void **object, struct error *err);
int kvm_set_own_state(struct vcpu *vcpu, struct error *err);

/* vcpu.c */
int kvm_vcpu_create(struct engine *engine, unsigned id, struct vcpu **vcpu, struct error *err);
void kvm_vcpu_destroy(struct vcpu *vcpu);
void kvm_vcpu_run(struct vcpu *vcpu, struct vcpu_exit *exit);
void kvm_vcpu_kick(struct vcpu *vcpu);
/* Any thread: interrupts KVM_RUN and sets a KVM_REQUEST_ bit. */
void kvm_vcpu_request(struct kvm_vcpu *vcpu, unsigned request);
/* Nobody is in the guest between the two. Not nested. */
void kvm_hold(struct kvm_engine *engine);
void kvm_release(struct kvm_engine *engine);

/* state.c */
void kvm_get_state(struct vcpu *vcpu, struct x86_state *state);
int kvm_set_state(struct vcpu *vcpu, const struct x86_state *state, struct error *err);
void kvm_reset(struct vcpu *vcpu, bool init);
void kvm_inject(struct vcpu *vcpu, enum exception vector, bool has_error, uint32_t error);
/* False: this vCPU has no such MSR, or refuses the value. */
bool kvm_get_msr(const struct kvm_vcpu *vcpu, uint32_t msr, uint64_t *value);
bool kvm_set_msr(const struct kvm_vcpu *vcpu, uint32_t msr, uint64_t value);
/* The guest's TSC minus the VM clock's; false when the kernel does not tell. */
bool kvm_tsc_lead(struct kvm_vcpu *vcpu, int64_t *lead);
void kvm_set_tsc_lead(struct kvm_vcpu *vcpu, int64_t lead);

/* translate.c */
int kvm_translate(struct vcpu *vcpu, uint64_t gva, uint64_t *gpa);

/* debug.c */
int kvm_set_breakpoint(struct vcpu *vcpu, uint64_t gva, bool on, struct error *err);
int kvm_set_view(struct vcpu *vcpu, struct view *view, struct error *err);
/* KVM_EXIT_DEBUG: true when it was one of ours; else the guest has been given its #DB. */
bool kvm_debug_exit(struct kvm_vcpu *vcpu);
/* Before KVM_RUN: steps over the breakpoint that was reported last. */
void kvm_debug_resume(struct kvm_vcpu *vcpu);

#endif
