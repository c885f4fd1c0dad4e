/*
 * What all vector handlers share: availability checks, SIMD floating-point
 * exceptions, misaligned operands.
 *
 * Sources: APM vol. 1, 4.10 (SIMD floating-point exceptions) and 5 (x87); vol. 4,
 * chapter 2 (exception classes).
 */
#include "cpu/soft/vec.h"

_Noreturn void vec_misaligned(struct soft_cpu *cpu) {
    raise_error(cpu, EXC_GP, 0);
}

static void check_available(struct soft_cpu *cpu, bool there) {
    if (!there)
        raise_exception(cpu, EXC_UD);
    if (cpu->cr0 & CR0_TS)
        raise_exception(cpu, EXC_NM);
}

void fp_check(struct soft_cpu *cpu, uint32_t properties) {
    bool emulate = cpu->cr0 & CR0_EM;
    if (properties & INSN_X87 && cpu->cr0 & (CR0_EM | CR0_TS))
        raise_exception(cpu, EXC_NM);
    if (properties & INSN_MMX)
        check_available(cpu, !emulate);
    if (properties & INSN_SSE)
        check_available(cpu, !emulate && (cpu->cr4 & CR4_OSFXSR));
    if (properties & INSN_AVX)
        check_available(cpu,
                        (cpu->cr4 & CR4_OSXSAVE) && (cpu->xcr0 & 6) == 6 && (cpu->cr0 & CR0_PE));
    if (properties & (INSN_X87 | INSN_MMX) && cpu->fsw & FSW_ES)
        raise_exception(cpu, EXC_MF);
}

vec fp_run(struct soft_cpu *cpu, vec_fp_kernel *kernel, vec a, vec b, unsigned imm) {
    uint32_t mx = fp_slow_begin(cpu);
    vec r = kernel(a, b, imm, &mx);
    fp_slow_end(cpu, mx);
    return r;
}

/* When a lane's operands have raised an unmasked exception, overflow, underflow and precision of
 * the other lane do not come up. */
void fp_commit(struct soft_cpu *cpu) {
    uint32_t ended = cpu->fp_raised >> FP_RAISED_SHIFT, raised = cpu->fp_raised & MXCSR_FLAGS;
    if (ended != 0)
        raised = ended | (raised & MXCSR_OPERAND_FLAGS);
    uint32_t unmasked = raised & ~(cpu->mxcsr >> MXCSR_MASK_SHIFT);
    cpu->fp_raised = 0;
    cpu->mxcsr |= raised;
    if (unlikely(unmasked & MXCSR_FLAGS))
        raise_exception(cpu, cpu->cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
}
