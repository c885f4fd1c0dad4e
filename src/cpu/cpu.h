/*
 * vCPUs behind one contract. An *engine* makes vCPUs for one VM; the rest of
 * lodge sees only this header. Two engines: "soft" is lodge's own processor,
 * "kvm" uses the kernel's.
 *
 * Each vCPU runs on a thread of its own, which calls vcpu_run in a loop. Port
 * and memory-mapped accesses, interrupts and the local APIC are served inside
 * vcpu_run on that thread; it returns only for what the machine must decide.
 */
#ifndef LODGE_CPU_CPU_H
#define LODGE_CPU_CPU_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/error.h"
#include "cpu/baseline.h"
#include "cpu/x86.h"
#include "interrupt/interrupt.h"
#include "memory/memory.h"
#include "memory/ports.h"

struct engine;
struct vcpu;

enum engine_kind { ENGINE_AUTO, ENGINE_SOFT, ENGINE_KVM };

struct engine_config {
    struct memory *memory;
    struct ports *ports;
    struct irqchip *irqchip;
    struct vm_clock *clock;
    unsigned vcpus;        /* how many will be made */
    enum cpu_baseline cpu; /* the soft engine's */
    /* Bits of a physical address, as CPUID tells; 0: as many as the engine has (soft: 48). */
    unsigned address_bits;
    bool frugal;  /* many such VMs are to fit on the host */
    bool resumed; /* goes on from a snapshot, and may end soon */
    bool verify;  /* soft, one vCPU: interpreter and translator in lock-step (VCPU_DIFFERENCE) */
};

/*
 * AUTO measures: a short bare-metal loop is timed on KVM (if /dev/kvm opens)
 * and the faster engine is taken. *why (static or engine-owned text, one
 * line, may be NULL on entry) says which and why. -ENODEV: asked for KVM and
 * there is none that works.
 */
int engine_create(enum engine_kind kind, const struct engine_config *config, struct engine **engine,
                  const char **why, struct error *err);
/* Before AUTO is asked for: measuring takes 40 ms, so where KVM is far behind that is kept in this
 * file for other processes, until the host boots again or has another /dev/kvm. */
void engine_choice_keep(const char *path);
void engine_destroy(struct engine *engine);           /* after its vCPUs */
const char *engine_name(const struct engine *engine); /* "soft", "kvm" */

/* id 0 is the bootstrap processor; the others wait for INIT/SIPI. Reset state (APM vol. 2, 14.1).
 */
int vcpu_create(struct engine *engine, unsigned id, struct vcpu **vcpu, struct error *err);
void vcpu_destroy(struct vcpu *vcpu); /* its thread no longer runs it */

enum vcpu_stop {
    VCPU_KICKED,     /* vcpu_kick was called */
    VCPU_SHUTDOWN,   /* triple fault: the machine resets or stops */
    VCPU_BREAKPOINT, /* an engine breakpoint was reached; the instruction has not run */
    VCPU_TRAP,       /* an access that the view does not allow; the instruction has not run */
    VCPU_FAILED,     /* the engine cannot go on (KVM internal error); text says why */
    VCPU_DIFFERENCE, /* config.verify: the two disagree; text in one line, vcpu_dump all of it */
};

struct vcpu_exit {
    enum vcpu_stop stop;
    uint64_t gpa;    /* VCPU_TRAP */
    uint64_t gva;    /* VCPU_TRAP */
    unsigned access; /* VCPU_TRAP: MEM_READ, MEM_WRITE or MEM_EXECUTE */
    char text[160];  /* VCPU_FAILED, VCPU_SHUTDOWN, VCPU_DIFFERENCE */
};

/* Runs guest instructions; waits in HLT. The vCPU's thread. */
void vcpu_run(struct vcpu *vcpu, struct vcpu_exit *exit);

/* Any thread: vcpu_run returns VCPU_KICKED soon, or at once when next called. */
void vcpu_kick(struct vcpu *vcpu);

/*
 * The vCPU's thread, in an access that it has made (struct io_ops): when that is done, it waits for
 * an interrupt, masked or not, or until vcpu_kick. It may be woken up to `late` ns late. The KVM
 * engine does not wait.
 */
void vcpu_rest(struct vcpu *vcpu, uint64_t late);

/* State: the vCPU's thread, or any while vcpu_run is not running. get: what the vCPU has written is
 * in the dirty log after it. set: -EINVAL when inconsistent. */
void vcpu_get_state(struct vcpu *vcpu, struct x86_state *state);
int vcpu_set_state(struct vcpu *vcpu, const struct x86_state *state, struct error *err);
/*
 * What an engine that has local APICs of its own (KVM) keeps of a vCPU beyond that, for snapshots:
 * its table, and in *object, which is the vCPU's, what it is now. NULL: why. vcpu_set_own_state
 * takes over what was loaded into the object, after vcpu_set_state. Same threads as state. -EINVAL,
 * -ENOTSUP.
 */
const struct state_table *vcpu_own_state(struct vcpu *vcpu, void **object, struct error *err);
int vcpu_set_own_state(struct vcpu *vcpu, struct error *err);
/* Back to the state after power-on (init false) or INIT. Resets the local APIC too. */
void vcpu_reset(struct vcpu *vcpu, bool init);

/* Injects an exception or NMI before the next instruction. Same threads as state. */
void vcpu_inject(struct vcpu *vcpu, enum exception vector, bool has_error, uint32_t error);

/*
 * Translates a guest-virtual address by the vCPU's present paging, without
 * side effects. 0, or -EFAULT. Same threads as state.
 */
int vcpu_translate(struct vcpu *vcpu, uint64_t gva, uint64_t *gpa);

/* Breakpoints invisible to the guest, by guest-virtual address. -ENOTSUP: the engine cannot. */
int vcpu_set_breakpoint(struct vcpu *vcpu, uint64_t gva, bool on, struct error *err);

/* Runs in another view from the next vcpu_run on. -ENOTSUP names the engine that can. */
int vcpu_set_view(struct vcpu *vcpu, struct view *view, struct error *err);

struct vcpu_counters {
    uint64_t instructions; /* retired; 0 when the engine does not count */
    uint64_t exits;        /* out of guest code: port, MMIO, HLT … */
    uint64_t interrupts;
    uint64_t exceptions;
};
void vcpu_get_counters(struct vcpu *vcpu, struct vcpu_counters *counters);

/*
 * Everything that the engine counts, those above included, by name: lower case
 * with dashes; what is counted for each of several things has it behind a dot
 * ("callouts.rdtsc"). Names and their number are the engine's own. Any thread:
 * values are read while the vCPU may change them.
 */
typedef void vcpu_counter_handler(void *context, const char *name, uint64_t value);
void vcpu_each_counter(struct vcpu *vcpu, vcpu_counter_handler *handler, void *context);

/* Prints registers and the code bytes at RIP, for the report of a stopped guest; after
 * VCPU_DIFFERENCE what differs. */
void vcpu_dump(struct vcpu *vcpu, void (*line)(void *context, const char *text), void *context);

#endif
