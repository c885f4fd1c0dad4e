/*
 * What the run loop asks between two instructions. Translated code asks the
 * same in its light calls, so this is compiled for general registers alone.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/debug.h"
#include "cpu/soft/run.h"

bool run_must_step(const struct soft_cpu *cpu) {
    return (cpu->rflags & FLAG_TF) || debug_active(cpu) ||
           (cpu->interrupt_shadow && cpu->lapic != NULL && lapic_attention(cpu->lapic)) ||
           run_of(cpu)->stopped_at_breakpoint;
}

bool run_may_go_on(struct soft_cpu *cpu) {
    if (atomic_load_explicit(&cpu->request, memory_order_relaxed) != 0 || cpu->event.pending ||
        cpu->halted || cpu->waiting_for_sipi || cpu->nmi_pending)
        return false;
    return (cpu->lapic == NULL || !lapic_attention(cpu->lapic)) && !run_must_step(cpu);
}
