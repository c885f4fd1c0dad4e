/*
 * KVM's paravirtual clock, as Linux knows it (CPUID leaves 40000100h and
 * 40000101h offer it). The MSRs are held in soft_cpu; these write the guest's
 * memory after they have changed, or the TSC's offset has. The vCPU's thread.
 */
#ifndef LODGE_CPU_SOFT_KVMCLOCK_H
#define LODGE_CPU_SOFT_KVMCLOCK_H

#include "cpu/soft/soft.h"

enum { KVM_SYSTEM_TIME_ON = 1 }; /* of MSR_KVM_SYSTEM_TIME; the rest is an address */

/* Bits of leaf 40000101h: no delays at I/O, this clock, which is the same on all processors. */
enum { KVM_FEATURES = 1 << 1 | 1 << 3 | 1 << 24 };

void kvmclock_write_system_time(struct soft_cpu *cpu);
void kvmclock_write_wall_clock(struct soft_cpu *cpu);

#endif
