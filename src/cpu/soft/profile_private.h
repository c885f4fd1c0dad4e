/* The sampling of one vCPU: what profile.c and the signal handler share. See profile.h. */
#ifndef LODGE_CPU_SOFT_PROFILE_PRIVATE_H
#define LODGE_CPU_SOFT_PROFILE_PRIVATE_H

#include <signal.h>
#include <time.h>

#include "cpu/soft/profile.h"

enum { PROFILE_RING = 8192 };

struct soft_profile {
    atomic_bool on;
    struct vcpu_profile_config config;
    /* The vCPU's thread's own. */
    bool armed; /* the timer exists */
    pid_t thread;
    timer_t timer;
    uintptr_t stack_end; /* of the thread: callers are looked for below it */
    uint64_t last_cpu_ns, random;
    /* head: the handler; tail: who takes. Both only grow. */
    atomic_uint head, tail;
    atomic_ullong lost;
    struct vcpu_sample ring[PROFILE_RING];
};

void profile_on_signal(int number, siginfo_t *info, void *context);
/* Sets the timer to the next sample, `times` mean intervals away, more or less. */
void profile_arm(struct soft_profile *profile, unsigned times);
uint64_t profile_thread_ns(void);

#endif
