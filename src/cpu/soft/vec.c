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

/*
 * All exceptions are masked on the host. An unmasked underflow is raised by a
 * tiny result even when it is exact, which masked underflow does not report;
 * flushing to zero does, so a second run finds it.
 */
vec fp_run(struct soft_cpu *cpu, vec_fp_kernel *kernel, vec a, vec b, unsigned imm) {
    uint32_t mx = hostfp_masked(cpu->mxcsr);
    vec r;
    if (!(cpu->mxcsr & MXCSR_UM)) {
        uint32_t probe = mx | MXCSR_FTZ;
        mx &= ~MXCSR_FTZ; /* has no effect on unmasked underflow */
        kernel(a, b, imm, &probe);
        cpu->fp_raised |= probe & MXCSR_UE;
    }
    r = kernel(a, b, imm, &mx);
    hostfp_restore();
    cpu->fp_raised |= mx & MXCSR_FLAGS;
    return r;
}

/*
 * Invalid, denormal and zero-divide are found before anything is computed: when one of them is
 * unmasked, overflow, underflow and precision do not come up (of any element).
 */
void fp_commit(struct soft_cpu *cpu) {
    unsigned raised = cpu->fp_raised;
    unsigned unmasked = raised & ~(cpu->mxcsr >> MXCSR_MASK_SHIFT) & MXCSR_FLAGS;
    if (unmasked & (MXCSR_IE | MXCSR_DE | MXCSR_ZE))
        raised &= MXCSR_IE | MXCSR_DE | MXCSR_ZE;
    cpu->fp_raised = 0;
    cpu->mxcsr |= raised;
    if (unlikely(unmasked))
        raise_exception(cpu, cpu->cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
}
