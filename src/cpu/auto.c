/*
 * Which engine is faster here? A /dev/kvm that exists may still be slow: some
 * clouds emulate what a guest's kernel does, instruction by instruction. So a
 * loop of kernel-mode code runs for a moment on both engines, and what it got
 * done decides.
 *
 * A /dev/kvm may also hang. Each trial therefore runs on a thread of its own,
 * which is left behind with all it owns when it does not answer in time.
 */
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/host_note.h"
#include "base/thread.h"
#include "cpu/engine.h"

enum {
    TRIAL_RUN_MS = 20,       /* how long the loop runs */
    TRIAL_PATIENCE_MS = 100, /* for making the VM, and again for stopping it */
    TRIAL_RAM = 1 << 21,
    SOFT_RATE_LEAST = 100000000, /* what is taken for soft's when it had no time to show it */
    FAR_AHEAD = 8,               /* so many times as fast needs no second measurement */
    PML4_AT = 0x1000,
    PDPT_AT = 0x2000,
    PD_AT = 0x5000,
    CODE_AT = 0x3000,
    COUNT_AT = 0x4000,
    STACK_AT = 0x7000,
    ROUNDS_ENOUGH = 20,
    ROUND_INSTRUCTIONS = 1 + 50 * 7 + 5,
};

/* One round: fifty times arithmetic on registers and memory, then the interrupt flag. */
static const uint8_t loop_code[] = {
    0xb9, 50,   0,    0,    0,    /*     mov $50, %ecx */
    0x48, 0x01, 0xc8,             /* 1:  add %rcx, %rax */
    0x48, 0x89, 0x06,             /*     mov %rax, (%rsi) */
    0x48, 0x33, 0x1e,             /*     xor (%rsi), %rbx */
    0x48, 0x8d, 0x5c, 0x03, 0x01, /*     lea 1(%rbx,%rax), %rbx */
    0x48, 0xc1, 0xc0, 0x03,       /*     rol $3, %rax */
    0xff, 0xc9,                   /*     dec %ecx */
    0x75, 0xea,                   /*     jnz 1b */
    0x9c, 0xfa, 0x9d,             /*     pushf; cli; popf */
    0x48, 0xff, 0x07,             /*     incq (%rdi) */
    0xeb, 0xdd,                   /*     jmp to the start */
};

struct trial {
    const struct engine_ops *ops;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned owners; /* the trial's thread and who waits for it */
    bool started, done;
    bool given_up;         /* nobody is going to kick it any more */
    struct vcpu *vcpu;     /* while it may be kicked */
    struct memory *memory; /* while there is a vCPU: COUNT_AT holds the rounds */
    double rate;           /* instructions a second; 0: it did not run */
    struct error err;
};

struct trial_vm {
    struct memory *memory;
    struct ports *ports;
    struct vm_clock *clock;
    struct irqchip *irqchip;
    struct engine *engine;
    struct vcpu *vcpu;
};

static void destroy_vm(struct trial_vm *vm) {
    if (vm->vcpu != NULL)
        vcpu_destroy(vm->vcpu);
    if (vm->engine != NULL)
        engine_destroy(vm->engine);
    if (vm->irqchip != NULL)
        irqchip_destroy(vm->irqchip);
    if (vm->ports != NULL)
        ports_destroy(vm->ports);
    if (vm->memory != NULL)
        memory_destroy(vm->memory);
    if (vm->clock != NULL)
        vm_clock_destroy(vm->clock);
}

static int create_vm(const struct engine_ops *ops, struct trial_vm *vm, struct error *err) {
    int code = vm_clock_create(&vm->clock, err);
    if (code == 0)
        code = memory_create(&vm->memory, err);
    if (code == 0)
        code = memory_add_ram(vm->memory, "trial", 0, TRIAL_RAM, err);
    if (code == 0)
        code = ports_create(&vm->ports, err);
    if (code == 0)
        code = irqchip_create(vm->memory, vm->ports, vm->clock, &vm->irqchip, err);
    struct engine_config config = {vm->memory, vm->ports, vm->irqchip, vm->clock, 1};
    if (code == 0)
        code = ops->create(&config, &vm->engine, err);
    if (code == 0)
        code = vcpu_create(vm->engine, 0, &vm->vcpu, err);
    return code;
}

/* Long mode, the RAM mapped as it is, interrupts off. */
static int load_loop(struct trial_vm *vm, struct error *err) {
    uint64_t pml4 = PDPT_AT | 0x23, pdpt = PD_AT | 0x23, pd = 0xe3;
    if (memory_write(vm->memory, PML4_AT, &pml4, sizeof pml4) < 0 ||
        memory_write(vm->memory, PDPT_AT, &pdpt, sizeof pdpt) < 0 ||
        memory_write(vm->memory, PD_AT, &pd, sizeof pd) < 0 ||
        memory_write(vm->memory, CODE_AT, loop_code, sizeof loop_code) < 0)
        return error_set(err, -EFAULT, "loading the measuring loop");
    struct x86_state state;
    vcpu_get_state(vm->vcpu, &state);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state.segment[i] =
            (struct x86_segment){0, UINT32_MAX, 0x10, SEG_G | SEG_DB | SEG_P | SEG_S | 3};
    state.segment[SEG_CS] =
        (struct x86_segment){0, UINT32_MAX, 0x08, SEG_G | SEG_L | SEG_P | SEG_S | 11};
    state.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    state.cr3 = PML4_AT;
    state.cr4 = CR4_PAE;
    state.efer = EFER_LME | EFER_LMA;
    state.rip = CODE_AT;
    state.gpr[RSP] = STACK_AT;
    state.gpr[RSI] = COUNT_AT + 64;
    state.gpr[RDI] = COUNT_AT;
    return vcpu_set_state(vm->vcpu, &state, err);
}

static uint64_t rounds_of(struct memory *memory) {
    uint64_t rounds = 0;
    memory_read(memory, COUNT_AT, &rounds, sizeof rounds);
    return rounds;
}

static void set_vcpu(struct trial *trial, struct vcpu *vcpu, struct memory *memory) {
    pthread_mutex_lock(&trial->mutex);
    trial->vcpu = vcpu;
    trial->memory = memory;
    trial->started = true;
    if (vcpu != NULL && trial->given_up)
        vcpu_kick(vcpu);
    pthread_cond_broadcast(&trial->changed);
    pthread_mutex_unlock(&trial->mutex);
}

static double run_loop(struct trial *trial, struct trial_vm *vm) {
    struct vcpu_exit exit;
    set_vcpu(trial, vm->vcpu, vm->memory);
    uint64_t start = host_clock_ns();
    vcpu_run(vm->vcpu, &exit);
    uint64_t end = host_clock_ns();
    set_vcpu(trial, NULL, NULL);
    uint64_t rounds = rounds_of(vm->memory);
    if (exit.stop == VCPU_KICKED && rounds == 0)
        error_set(&trial->err, -ETIMEDOUT, "no round of the measuring loop in %d ms",
                  TRIAL_PATIENCE_MS);
    if (exit.stop != VCPU_KICKED)
        error_set(&trial->err, -EIO, "%s", exit.text[0] ? exit.text : "the measuring loop ended");
    if (exit.stop != VCPU_KICKED || end == start)
        return 0;
    return (double)rounds * ROUND_INSTRUCTIONS * NS_PER_SECOND / (double)(end - start);
}

static void release(struct trial *trial) {
    pthread_mutex_lock(&trial->mutex);
    bool last = --trial->owners == 0;
    trial->started = trial->done = true;
    pthread_cond_broadcast(&trial->changed);
    pthread_mutex_unlock(&trial->mutex);
    if (!last)
        return;
    pthread_cond_destroy(&trial->changed);
    pthread_mutex_destroy(&trial->mutex);
    free(trial);
}

static void *trial_thread(void *context) {
    struct trial *trial = context;
    thread_begins(THREAD_OTHER, "trial");
    struct trial_vm vm = {0};
    double rate = 0;
    if (create_vm(trial->ops, &vm, &trial->err) == 0 && load_loop(&vm, &trial->err) == 0)
        rate = run_loop(trial, &vm);
    /* Nobody needs to wait for what destroying it takes on a busy host. */
    pthread_mutex_lock(&trial->mutex);
    trial->rate = rate;
    trial->started = trial->done = true;
    pthread_cond_broadcast(&trial->changed);
    pthread_mutex_unlock(&trial->mutex);
    destroy_vm(&vm);
    release(trial);
    return NULL;
}

/* Waits for *flag, at most so long. Called with the mutex held. */
static void wait_for(struct trial *trial, const bool *flag, unsigned milliseconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)milliseconds * 1000000;
    until.tv_sec += until.tv_nsec / (long)NS_PER_SECOND;
    until.tv_nsec %= (long)NS_PER_SECOND;
    while (!*flag && pthread_cond_timedwait(&trial->changed, &trial->mutex, &until) != ETIMEDOUT)
        ;
}

static struct trial *trial_start(const struct engine_ops *ops) {
    struct trial *trial = calloc(1, sizeof *trial);
    if (trial == NULL)
        return NULL;
    trial->ops = ops;
    trial->owners = 2;
    pthread_mutex_init(&trial->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&trial->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_t thread;
    if (pthread_create(&thread, NULL, trial_thread, trial) != 0) {
        trial->owners = 1;
        release(trial);
        return NULL;
    }
    pthread_detach(thread);
    return trial;
}

/* Instructions a second, or 0 and the reason. */
static double measure(const struct engine_ops *ops, struct error *err) {
    struct trial *trial = trial_start(ops);
    if (trial == NULL) {
        error_set(err, -ENOMEM, "no thread to measure it");
        return 0;
    }
    pthread_mutex_lock(&trial->mutex);
    wait_for(trial, &trial->started, TRIAL_PATIENCE_MS);
    if (trial->started) {
        /* On a busy host the first slice may pass without a turn for the trial. */
        for (unsigned waited = 0; waited < TRIAL_PATIENCE_MS; waited += TRIAL_RUN_MS) {
            wait_for(trial, &trial->done, TRIAL_RUN_MS);
            if (trial->done || trial->vcpu == NULL || rounds_of(trial->memory) >= ROUNDS_ENOUGH)
                break;
        }
        if (trial->vcpu != NULL)
            vcpu_kick(trial->vcpu);
        wait_for(trial, &trial->done, TRIAL_PATIENCE_MS);
    }
    trial->given_up = true;
    double rate = trial->done ? trial->rate : 0;
    if (!trial->done)
        error_set(err, -ETIMEDOUT, "it does not answer");
    else if (rate == 0)
        *err = trial->err;
    pthread_mutex_unlock(&trial->mutex);
    release(trial);
    return rate;
}

/* Both in instructions a second. */
struct rates {
    double kvm, soft;
};

/* ---- What was measured before: "/dev/kvm's time of change, rates" (base/host_note.h) ---- */

static char kept_path[PATH_MAX];

void engine_choice_keep(const char *path) {
    if ((size_t)snprintf(kept_path, sizeof kept_path, "%s", path) >= sizeof kept_path)
        kept_path[0] = 0;
}

/* A device that was made anew may be of another module, or of one with other parameters. */
static struct timespec time_of_change(int kvm) {
    struct stat status = {0};
    fstat(kvm, &status);
    return status.st_ctim;
}

static bool is_clear(const struct rates *rates) {
    return rates->kvm > 0 && rates->soft >= FAR_AHEAD * rates->kvm;
}

static bool read_kept(int kvm, struct rates *rates) {
    char text[HOST_NOTE_MAX];
    long long seconds;
    long nanoseconds;
    struct timespec changed = time_of_change(kvm);
    if (kept_path[0] == 0 || !host_note_read(kept_path, text, sizeof text) ||
        sscanf(text, "%lld.%ld %lf %lf", &seconds, &nanoseconds, &rates->kvm, &rates->soft) != 4)
        return false;
    return seconds == changed.tv_sec && nanoseconds == changed.tv_nsec && is_clear(rates);
}

/* Not what a busy moment may have made: a KVM that is good for anything is measured each time. */
static void keep(int kvm, const struct rates *rates) {
    char text[HOST_NOTE_MAX];
    struct timespec changed = time_of_change(kvm);
    if (kept_path[0] == 0 || !is_clear(rates))
        return;
    if ((size_t)snprintf(text, sizeof text, "%lld.%09ld %.0f %.0f", (long long)changed.tv_sec,
                         changed.tv_nsec, rates->kvm, rates->soft) < sizeof text)
        host_note_write(kept_path, text);
}

/* ---- The choice ---- */

static enum engine_kind choose(int kvm, char *text, size_t size) {
    struct error err = {0};
    struct rates rates;
    bool known = read_kept(kvm, &rates);
    if (!known)
        rates.kvm = measure(&kvm_engine_ops, &err);
    if (rates.kvm == 0) {
        snprintf(text, size, "KVM is there but unusable: %s", err.text);
        return ENGINE_SOFT;
    }
    if (!known)
        rates.soft = measure(&soft_engine_ops, &err);
    if (rates.soft == 0) {
        snprintf(text, size, "measured %.1f million instructions a second on kvm; soft: %s",
                 rates.kvm / 1e6, err.text);
        return rates.kvm > SOFT_RATE_LEAST ? ENGINE_KVM : ENGINE_SOFT;
    }
    if (!known)
        keep(kvm, &rates);
    snprintf(text, size, "measured%s %.1f million instructions a second on kvm, %.1f on soft",
             known ? " since the host booted:" : "", rates.kvm / 1e6, rates.soft / 1e6);
    return rates.kvm > rates.soft ? ENGINE_KVM : ENGINE_SOFT;
}

enum engine_kind engine_choose(const char **why) {
    static char text[ERROR_TEXT_MAX + 64];
    *why = text;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) {
        snprintf(text, sizeof text, "no KVM: /dev/kvm: %s", strerror(errno));
        return ENGINE_SOFT;
    }
    enum engine_kind kind = choose(kvm, text, sizeof text);
    close(kvm);
    return kind;
}
