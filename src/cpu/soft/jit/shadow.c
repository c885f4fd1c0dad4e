#include "cpu/soft/jit/shadow.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <ucontext.h>

#include "cpu/soft/jit/translation.h"

/* One for each side: the guard, then the stack. */
enum { GUARD = 1 << 16, SHADOW = 1 << 16, ONE = GUARD + SHADOW, ABOVE = 64 };
enum { ALL = JIT_SIDES * ONE };

/* The vCPU that this thread runs. Read by the signal handler. */
static _Thread_local struct soft_cpu *cpu_here;

static struct sigaction before; /* what handled such faults before us */

static void pass_on(int number, siginfo_t *info, void *context) {
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(number, info, context);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
        before.sa_handler(number);
    else
        sigaction(number, &(struct sigaction){.sa_handler = SIG_DFL}, NULL); /* it faults again */
}

/* The instruction that met the guard is run again, at the top. */
static void on_fault(int number, siginfo_t *info, void *context) {
    const struct soft_cpu *cpu = cpu_here;
    uintptr_t address = (uintptr_t)info->si_addr;
    ucontext_t *user = context;
    bool ours = cpu != NULL && cpu->jit.jit != NULL;
    uintptr_t offset = ours ? address - (uintptr_t)cpu->jit.jit->shadow : ALL;
    if (offset >= ALL || offset % ONE >= GUARD) {
        pass_on(number, info, context);
        return;
    }
    user->uc_mcontext.gregs[REG_RSP] = (greg_t)cpu->jit.shadow_top[offset / ONE];
}

static void install(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &before);
}

bool shadow_create(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    void *memory = mmap(NULL, ALL, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return false;
    jit->shadow = memory;
    for (unsigned side = 0; side < JIT_SIDES; side++)
        if (mprotect(jit->shadow + side * ONE + GUARD, SHADOW, PROT_READ | PROT_WRITE) < 0)
            return false;
    return getrandom(&jit->random, sizeof jit->random, 0) == sizeof jit->random;
}

void shadow_destroy(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    if (jit->shadow != NULL)
        munmap(jit->shadow, ALL);
    jit->shadow = NULL;
    if (cpu_here == cpu)
        cpu_here = NULL;
}

void shadow_prepare(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    for (unsigned side = 0; side < JIT_SIDES; side++) {
        uint8_t *top = jit->shadow + (side + 1) * ONE - ABOVE;
        memcpy(top, &jit->shadow_bottom[side], sizeof jit->shadow_bottom[side]);
        cpu->jit.shadow_top[side] = (uintptr_t)top;
    }
    jit_empty_shadows(&cpu->jit);
    jit->random |= 1;
    jit_drop_window(cpu);
}

void shadow_enter_thread(struct soft_cpu *cpu) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
    cpu_here = cpu;
}
