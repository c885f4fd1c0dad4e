/*
 * Where a vCPU's time goes, by sampling: while a profile runs, the vCPU's
 * thread is interrupted at irregular moments and notes where it was, both in
 * lodge and in the guest. What the samples mean is worked out elsewhere
 * (machine/profile.h). Off, it costs one comparison a vcpu_run.
 *
 * Also perf maps: names for translated code that perf(1) understands.
 */
#ifndef LODGE_CPU_PROFILE_H
#define LODGE_CPU_PROFILE_H

#include "cpu/cpu.h"

/* What the thread was doing. */
enum sample_place {
    SAMPLE_TRANSLATED, /* guest code, translated: guest_rip is its block's */
    SAMPLE_SWITCH,     /* between translated code and C: registers change hands */
    SAMPLE_HOST,       /* C code of lodge or a library, or a system call */
    SAMPLE_IDLE,       /* the guest halts */
};

struct vcpu_sample {
    uint64_t host_rip;
    uint64_t host_caller; /* in lodge's own code, when host_rip is in a library; 0: unknown */
    uint64_t guest_rip;   /* the present block's or instruction's; linear */
    uint64_t watched;     /* what config.watch pointed to */
    uint32_t weight;      /* the thread's CPU time since the last sample, ns */
    uint16_t insn;        /* row of the instruction that C code runs (insn.h), or SAMPLE_NO_INSN */
    uint8_t place;        /* enum sample_place */
    uint8_t cpl;
    bool callout; /* the instruction runs on behalf of translated code */
};
#define SAMPLE_NO_INSN UINT16_MAX

struct vcpu_profile_config {
    uint32_t interval_us; /* mean, PROFILE_INTERVAL_MIN to _MAX */
    /* Recorded with every sample, or NULL. Memory of the guest's that stays mapped. */
    const volatile uint64_t *watch;
};
enum { PROFILE_INTERVAL_MIN = 100, PROFILE_INTERVAL_MAX = 1000000 };

/*
 * Starts or changes (also its config) sampling, which begins with the next
 * vcpu_run. -ENOTSUP: the engine cannot; -EINVAL: the interval; -ENOMEM. Same
 * threads as state (cpu.h). Stop: any thread; no sample is added after it but
 * one that is just being made.
 */
int vcpu_profile_start(struct vcpu *vcpu, const struct vcpu_profile_config *config,
                       struct error *err);
void vcpu_profile_stop(struct vcpu *vcpu);

/* Takes samples out of the vCPU's bounded store; one thread at a time. */
size_t vcpu_profile_take(struct vcpu *vcpu, struct vcpu_sample *samples, size_t room);
/* Samples that found the store full since the start. */
uint64_t vcpu_profile_lost(struct vcpu *vcpu);

/* The name of a sample's instruction; NULL for SAMPLE_NO_INSN. Static text. */
const char *sample_insn_name(uint16_t insn);

/* ---- Perf maps ---- */

/*
 * Told of translated code: [code, code+size) runs the guest's block at rip.
 * dropped: all code told of so far is gone. The vCPU's thread.
 */
struct code_listener {
    void (*made)(void *context, uintptr_t code, size_t size, uint64_t rip, unsigned cpl);
    void (*dropped)(void *context);
    void *context;
};

/*
 * One listener at a time, NULL takes it away; it is told at once of what is
 * there. It stays the caller's. Same threads as state. -ENOTSUP.
 */
int vcpu_listen_code(struct vcpu *vcpu, const struct code_listener *listener, struct error *err);

#endif
