/*
 * x87 and MMX in translated code: the guest's state is in the host's own
 * registers from the first such instruction until C needs it. C calls these
 * before it runs handlers, and translated code before it uses x87. Only while
 * the guest's control word masks all exceptions (KEY_X87_RAISES).
 *
 * The pointers to the last instruction and its operand are not kept: they are
 * those of the last instruction that was interpreted.
 */
#ifndef LODGE_CPU_SOFT_JIT_X87_LIVE_H
#define LODGE_CPU_SOFT_JIT_X87_LIVE_H

#include "cpu/soft/soft.h"

/* From the vCPU to the host's registers. */
void jit_x87_load(struct soft_cpu *cpu);
/* Back to the vCPU, if it is in the host's, which are as good as new then. True: it was. */
bool jit_x87_store(struct soft_cpu *cpu);

#endif
