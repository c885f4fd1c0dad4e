/*
 * What the host's units can do for a guest, and exceptions that a guest has
 * unmasked.
 */
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include "cpu/soft/hostfp.h"

#if defined(__x86_64__)

#include <cpuid.h>

static bool leaf7(unsigned ebx_bits, unsigned ecx_bits) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & ebx_bits) == ebx_bits &&
           (c & ecx_bits) == ecx_bits;
}

bool vec_host_supports(enum insn_feature feature) {
    switch (feature) {
    case FEAT_SSE3: return __builtin_cpu_supports("sse3");
    case FEAT_SSSE3: return __builtin_cpu_supports("ssse3");
    case FEAT_SSE41: return __builtin_cpu_supports("sse4.1");
    case FEAT_SSE42: return __builtin_cpu_supports("sse4.2");
    case FEAT_AVX: return __builtin_cpu_supports("avx");
    case FEAT_AVX2: return __builtin_cpu_supports("avx2");
    case FEAT_FMA: return __builtin_cpu_supports("fma");
    case FEAT_AES: return __builtin_cpu_supports("aes");
    case FEAT_VAES: return __builtin_cpu_supports("aes") && __builtin_cpu_supports("avx2");
    case FEAT_PCLMUL: return __builtin_cpu_supports("pclmul");
    case FEAT_VPCLMUL: return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("avx2");
    case FEAT_SHA: return leaf7(bit_SHA, 0);
    case FEAT_GFNI: return leaf7(0, bit_GFNI);
    case FEAT_F16C: {
        unsigned a, b, c, d;
        return __builtin_cpu_supports("avx") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    }
    default: return true; /* plain C */
    }
}

/* ---- Unmasked exceptions ---- */

enum { FLAGS = 0x3f, MASKS = 0x1f80 };

static _Thread_local volatile uint32_t trapped;
static _Thread_local bool unblocked;
static struct sigaction previous;

/* The instruction runs again with everything masked. What no kernel caused goes where it went
 * before. */
static void on_sigfpe(int signal, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    uint32_t mxcsr = uc->uc_mcontext.fpregs->mxcsr;
    uint32_t cause = mxcsr & ~(mxcsr >> 7) & FLAGS;
    if (info->si_code <= 0 || info->si_code == FPE_INTDIV || cause == 0) {
        sigaction(SIGFPE, &previous, NULL); /* a fault comes again at once */
        return;
    }
    trapped = mxcsr & FLAGS;
    uc->uc_mcontext.fpregs->mxcsr |= MASKS;
}

static void install(void) {
    struct sigaction action = {.sa_sigaction = on_sigfpe, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaction(SIGFPE, &action, &previous);
}

void hostfp_trap_begin(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    sigset_t set;
    trapped = 0;
    if (unblocked)
        return;
    pthread_once(&once, install);
    sigemptyset(&set);
    sigaddset(&set, SIGFPE);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    unblocked = true;
}

uint32_t hostfp_trap_end(void) {
    return trapped;
}

#endif
