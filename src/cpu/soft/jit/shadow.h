/*
 * The shadow stack: where the host's RSP points while translated code runs.
 * Guest calls leave their return points there, as host calls do. It holds as
 * many calls as fit; deeper ones run into the guard below, whose fault makes
 * it start anew, and their returns then find their targets by the jump table.
 */
#ifndef LODGE_CPU_SOFT_JIT_SHADOW_H
#define LODGE_CPU_SOFT_JIT_SHADOW_H

#include "cpu/soft/soft.h"

bool shadow_create(struct soft_cpu *cpu);
void shadow_destroy(struct soft_cpu *cpu);
/* Once the stubs are made: what a return without a call finds. */
void shadow_prepare(struct soft_cpu *cpu);
/* Faults of this thread in the guard belong to this vCPU from now on. */
void shadow_enter_thread(struct soft_cpu *cpu);

#endif
