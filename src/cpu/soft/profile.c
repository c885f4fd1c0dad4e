#include "cpu/soft/profile_private.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "cpu/soft/jit/jit.h"

static int profile_signal(void) {
    return SIGRTMIN + 4;
}

/* ---- The vCPU's thread ---- */

static uintptr_t stack_end(void) {
    pthread_attr_t attributes;
    void *start = NULL;
    size_t size = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0)
        return 0;
    pthread_attr_getstack(&attributes, &start, &size);
    pthread_attr_destroy(&attributes);
    return (uintptr_t)start + size;
}

static void timer_remove(struct soft_profile *profile) {
    if (profile->armed)
        timer_delete(profile->timer);
    profile->armed = false;
}

static int timer_make(struct soft_cpu *cpu) {
    struct soft_profile *profile = cpu->profile;
    struct sigaction action = {.sa_sigaction = profile_on_signal,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = profile_signal()};
    sigset_t one;
    sigfillset(&action.sa_mask);
    sigemptyset(&one);
    sigaddset(&one, profile_signal());
    event.sigev_value.sival_ptr = cpu;
    event._sigev_un._tid = profile->thread;
    if (sigaction(profile_signal(), &action, NULL) < 0 ||
        timer_create(CLOCK_MONOTONIC, &event, &profile->timer) < 0)
        return -errno;
    pthread_sigmask(SIG_UNBLOCK, &one, NULL);
    profile->armed = true;
    profile->stack_end = stack_end();
    profile->last_cpu_ns = profile_thread_ns();
    profile_arm(profile, 1);
    return 0;
}

void soft_profile_update(struct soft_cpu *cpu) {
    struct soft_profile *profile = cpu->profile;
    pid_t thread = (pid_t)syscall(SYS_gettid);
    bool on = atomic_load(&profile->on);
    if (profile->armed == on && (profile->thread == thread || !on))
        return;
    timer_remove(profile);
    if (!on)
        return;
    profile->thread = thread;
    if (timer_make(cpu) < 0) {
        log_warning("no timer for the profiler: %m");
        atomic_store(&profile->on, false);
    }
}

/* ---- Control ---- */

int soft_profile_start(struct vcpu *vcpu, const struct vcpu_profile_config *config,
                       struct error *err) {
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    if (cpu->profile == NULL)
        cpu->profile = calloc(1, sizeof *cpu->profile);
    struct soft_profile *profile = cpu->profile;
    if (profile == NULL)
        return error_set(err, -ENOMEM, "no memory for a profile");
    atomic_store(&profile->on, false);
    profile->config = *config;
    atomic_store(&profile->tail, atomic_load(&profile->head));
    atomic_store(&profile->lost, 0);
    atomic_store(&profile->on, true);
    return 0;
}

void soft_profile_stop(struct vcpu *vcpu) {
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    if (cpu->profile != NULL)
        atomic_store(&cpu->profile->on, false);
}

void soft_profile_destroy(struct soft_cpu *cpu) {
    if (cpu->profile == NULL)
        return;
    atomic_store(&cpu->profile->on, false);
    timer_remove(cpu->profile);
    free(cpu->profile);
    cpu->profile = NULL;
}

size_t soft_profile_take(struct vcpu *vcpu, struct vcpu_sample *samples, size_t room) {
    struct soft_profile *profile = soft_cpu_of(vcpu)->profile;
    if (profile == NULL)
        return 0;
    unsigned tail = atomic_load_explicit(&profile->tail, memory_order_relaxed);
    unsigned head = atomic_load_explicit(&profile->head, memory_order_acquire);
    size_t count = 0;
    for (; tail != head && count < room; tail++)
        samples[count++] = profile->ring[tail % PROFILE_RING];
    atomic_store_explicit(&profile->tail, tail, memory_order_release);
    return count;
}

uint64_t soft_profile_lost(struct vcpu *vcpu) {
    const struct soft_profile *profile = soft_cpu_of(vcpu)->profile;
    return profile != NULL ? atomic_load(&profile->lost) : 0;
}

const char *sample_insn_name(uint16_t insn) {
    const struct insn_row *row = insn == SAMPLE_NO_INSN ? NULL : insn_row_at(insn);
    return row != NULL ? row->name : NULL;
}

/* ---- Counters ---- */

/* Rows of one name follow each other mostly, but not always: each name is told once, with the sum
 * of its rows, at its first row. */
static void each_callout(const struct soft_counts *count, vcpu_counter_handler *handler,
                         void *context) {
    const struct insn_row *row;
    for (size_t n = 0; n < COUNT_ROWS_MAX && (row = insn_row_at(n)) != NULL; n++) {
        char name[64];
        uint64_t sum = 0;
        bool first = true;
        if (count->callouts_of[n] == 0)
            continue;
        for (size_t m = 0; m < COUNT_ROWS_MAX && insn_row_at(m) != NULL; m++) {
            if (count->callouts_of[m] == 0 || strcmp(insn_row_at(m)->name, row->name) != 0)
                continue;
            first = first && m >= n;
            sum += count->callouts_of[m];
        }
        snprintf(name, sizeof name, "callouts.%s", row->name);
        if (first)
            handler(context, name, sum);
    }
}

void soft_each_counter(struct vcpu *vcpu, vcpu_counter_handler *handler, void *context) {
    const struct soft_counts *count = &soft_cpu_of(vcpu)->count;
#define COUNTER(field, name) handler(context, name, count->field);
    SOFT_COUNTERS(COUNTER)
#undef COUNTER
    each_callout(count, handler, context);
    struct jit_memory memory = jit_memory(soft_cpu_of(vcpu));
    handler(context, "memory.code", memory.code);
    handler(context, "memory.metadata", memory.metadata);
}
