/*
 * The sampling signal's handler. See profile.h for what it may do. The kernel
 * keeps the interrupted code's vector registers, which may be the guest's.
 */
#include <errno.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "cpu/soft/jit/map.h"
#include "cpu/soft/jit/translation.h"
#include "cpu/soft/profile_private.h"
#include "cpu/soft/run.h"

/* From the linker: lodge's own code. */
extern const char __executable_start[], etext[];

/* An idle vCPU is woken less often. */
enum { IDLE_TIMES = 10, CALLER_WORDS = 96 };

uint64_t profile_thread_ns(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* Half an interval to one and a half. */
void profile_arm(struct soft_profile *profile, unsigned times) {
    uint64_t ns = (uint64_t)profile->config.interval_us * 1000 * times;
    profile->random = profile->random * UINT64_C(6364136223846793005) + 1442695040888963407;
    ns = ns / 2 + (profile->random >> 20) % ns;
    struct itimerspec at = {.it_value = {.tv_sec = (time_t)(ns / NS_PER_SECOND),
                                         .tv_nsec = (long)(ns % NS_PER_SECOND)}};
    syscall(SYS_timer_settime, profile->timer, 0, &at, NULL);
}

static bool is_ours(uintptr_t address) {
    return address - (uintptr_t)__executable_start <
           (uintptr_t)etext - (uintptr_t)__executable_start;
}

/* A library was interrupted: the first word on the stack that may be a way back to lodge. */
__attribute__((no_sanitize("address"))) static uintptr_t
find_caller(const struct soft_profile *profile, uintptr_t rsp) {
    const uintptr_t *word = (const uintptr_t *)(rsp & ~(uintptr_t)7);
    const uintptr_t *end = (const uintptr_t *)profile->stack_end;
    for (unsigned i = 0; i < CALLER_WORDS && word < end; i++, word++)
        if (is_ours(*word))
            return *word;
    return 0;
}

/* C code was interrupted: which instruction it runs. */
static void note_insn(const struct soft_cpu *cpu, struct vcpu_sample *sample) {
    const struct insn *insn = cpu->insn;
    const struct jit *jit = cpu->jit.jit;
    if (insn == NULL)
        return;
    sample->insn = insn->row;
    sample->guest_rip += insn->offset;
    sample->callout = jit != NULL && insn == &jit->scratch[0];
}

static void fill(const struct soft_cpu *cpu, const ucontext_t *context,
                 struct vcpu_sample *sample) {
    const struct soft_profile *profile = cpu->profile;
    const greg_t *registers = context->uc_mcontext.gregs;
    unsigned cpl = cpu->cpl;
    sample->host_rip = (uint64_t)registers[REG_RIP];
    sample->guest_rip = cpu->code_base + cpu->rip;
    sample->insn = SAMPLE_NO_INSN;
    switch (jit_find_host(cpu, sample->host_rip, &sample->guest_rip, &cpl)) {
    case JIT_WHERE_CODE: sample->place = SAMPLE_TRANSLATED; break;
    case JIT_WHERE_STUBS: sample->place = SAMPLE_SWITCH; break;
    case JIT_WHERE_OUTSIDE:
        sample->place = atomic_load(&run_of(cpu)->sleeping) ? SAMPLE_IDLE : SAMPLE_HOST;
        if (!is_ours(sample->host_rip))
            sample->host_caller = find_caller(profile, (uintptr_t)registers[REG_RSP]);
        note_insn(cpu, sample);
        break;
    }
    sample->cpl = (uint8_t)cpl;
    sample->watched = profile->config.watch != NULL ? *profile->config.watch : 0;
}

void profile_on_signal(int number, siginfo_t *info, void *context) {
    struct soft_cpu *cpu = info->si_value.sival_ptr;
    struct soft_profile *profile = cpu->profile;
    if (info->si_code != SI_TIMER || !atomic_load(&profile->on))
        return;
    int saved = errno;
    struct vcpu_sample sample = {0};
    uint64_t now = profile_thread_ns(), passed = now - profile->last_cpu_ns;
    unsigned head = atomic_load_explicit(&profile->head, memory_order_relaxed);
    profile->last_cpu_ns = now;
    sample.weight = passed < UINT32_MAX ? (uint32_t)passed : UINT32_MAX;
    fill(cpu, context, &sample);
    if (head - atomic_load_explicit(&profile->tail, memory_order_acquire) < PROFILE_RING) {
        profile->ring[head % PROFILE_RING] = sample;
        atomic_store_explicit(&profile->head, head + 1, memory_order_release);
    } else {
        atomic_fetch_add(&profile->lost, 1);
    }
    profile_arm(profile, sample.place == SAMPLE_IDLE ? IDLE_TIMES : 1);
    errno = saved;
}
