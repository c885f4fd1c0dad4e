/*
 * Sampling of a vCPU's thread (cpu/profile.h). A timer signal comes at
 * irregular moments, about config.interval_us apart in real time, and appends
 * one sample, weighted with the CPU time that the thread has used since the
 * one before; irregular, because guest and host have ticks of their own.
 *
 * profile.c: control, and the timer's life. profile_signal.c: the handler;
 * profile_private.h: what the two share. The handler interrupts translated code as well as C, so it
 * runs on the alternate stack and reads only what its own thread writes.
 */
#ifndef LODGE_CPU_SOFT_PROFILE_H
#define LODGE_CPU_SOFT_PROFILE_H

#include "cpu/profile.h"
#include "cpu/soft/soft.h"

/* Beginning of vcpu_run, on its thread: makes or deletes the timer as asked for. */
void soft_profile_update(struct soft_cpu *cpu);
static inline void soft_profile_enter(struct soft_cpu *cpu) {
    if (unlikely(cpu->profile != NULL))
        soft_profile_update(cpu);
}
void soft_profile_destroy(struct soft_cpu *cpu);

/* engine_ops. */
int soft_profile_start(struct vcpu *vcpu, const struct vcpu_profile_config *config,
                       struct error *err);
void soft_profile_stop(struct vcpu *vcpu);
size_t soft_profile_take(struct vcpu *vcpu, struct vcpu_sample *samples, size_t room);
uint64_t soft_profile_lost(struct vcpu *vcpu);
void soft_each_counter(struct vcpu *vcpu, vcpu_counter_handler *handler, void *context);

#endif
