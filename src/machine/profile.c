/* A profile's life, and the samples as they come: counted by where they were. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "machine/profile_private.h"

enum { DRAIN_MS = 50, BATCH = 256 };

/* ---- Spots ---- */

static uint64_t mix(uint64_t v) {
    v = (v ^ v >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    v = (v ^ v >> 27) * UINT64_C(0x94d049bb133111eb);
    return v ^ v >> 31;
}

static bool same_place(const struct spot *a, const struct spot *b) {
    return a->guest == b->guest && a->host == b->host && a->insn == b->insn &&
           a->process == b->process && a->kind == b->kind && a->named == b->named;
}

static void count(struct profile *profile, const struct spot *sample) {
    uint64_t hash = mix(sample->guest ^ mix((uint64_t)sample->host << 32 | sample->insn << 16 |
                                            sample->process << 5 | sample->kind));
    for (unsigned n = 0; n < SPOT_PROBES; n++) {
        struct spot *spot = &profile->spots[(hash + n) % SPOTS];
        if (spot->samples == 0)
            *spot = *sample;
        else if (same_place(spot, sample))
            spot->ns += sample->ns;
        else
            continue;
        spot->samples++;
        return;
    }
    profile->uncounted_ns += sample->ns; /* too many places: known as time only */
    profile->kind_ns[sample->kind] += sample->ns;
}

/* ---- Processes ---- */

/* The name of the task that the guest's `current` points to; the guest's word, made printable. */
static unsigned process_of(struct profile *profile, uint64_t task) {
    char name[PROCESS_NAME] = "";
    uint64_t gpa = task - profile->direct_map + profile->name_offset;
    if (task == 0 || memory_read(profile->machine->platform.memory, gpa, name, sizeof name) < 0)
        return 0;
    name[sizeof name - 1] = 0;
    for (char *c = name; *c != 0; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
    for (unsigned i = 1; i < profile->process_count; i++)
        if (strcmp(profile->processes[i], name) == 0)
            return i;
    if (profile->process_count == PROCESSES)
        return 0;
    memcpy(profile->processes[profile->process_count], name, sizeof name);
    return profile->process_count++;
}

static bool translate(struct machine *machine, uint64_t gva, uint64_t *gpa) {
    return vcpu_translate(machine->vcpus[0].vcpu, gva, gpa) == 0;
}

/* Where a task's name is: init_task is called "swapper". */
static bool find_name_offset(struct profile *profile, uint64_t init_task) {
    enum { TASK_SIZE = 12 << 10 };
    static const char first[] = "swapper";
    uint64_t gpa;
    char *task = malloc(TASK_SIZE);
    bool found = false;
    if (task != NULL && translate(profile->machine, init_task, &gpa) &&
        memory_read(profile->machine->platform.memory, gpa, task, TASK_SIZE) == 0) {
        const char *at = memmem(task, TASK_SIZE, first, sizeof first - 1);
        found = at != NULL;
        profile->name_offset = found ? (uint64_t)(at - task) : 0;
    }
    free(task);
    return found;
}

/*
 * Linux keeps the running task in a per-CPU variable, found by GS in the
 * kernel. It lies in the direct map of all memory, and so do tasks: one
 * translation tells the map's base. vCPUs parked.
 */
static const volatile uint64_t *find_current(struct profile *profile) {
    const struct guest_symbols *symbols = profile->symbols;
    struct machine *machine = profile->machine;
    struct x86_state state;
    if (symbols == NULL || !symbols->has_current_task || symbols->init_task == 0)
        return NULL;
    vcpu_get_state(machine->vcpus[0].vcpu, &state);
    uint64_t gs = state.segment[SEG_GS].base, gpa;
    size_t length = sizeof(uint64_t);
    if (gs >> 63 == 0)
        gs = state.kernel_gs_base;
    uint64_t variable = gs + symbols->current_task;
    if (gs >> 63 == 0 || variable % 8 != 0 || !translate(machine, variable, &gpa) ||
        !find_name_offset(profile, symbols->init_task))
        return NULL;
    profile->direct_map = variable - gpa;
    const void *host = memory_map(machine->platform.memory, gpa, &length, false);
    return host != NULL && length >= sizeof(uint64_t) ? host : NULL;
}

/* ---- Samples ---- */

static enum time_kind kind_of(const struct vcpu_sample *sample, const struct host_function *f) {
    switch (sample->place) {
    case SAMPLE_TRANSLATED: return sample->cpl == 3 ? TIME_GUEST_USER : TIME_GUEST_KERNEL;
    case SAMPLE_SWITCH: return TIME_SWITCH;
    case SAMPLE_IDLE: return TIME_IDLE;
    default: break;
    }
    if (f == NULL || f->kind == TIME_OTHER) /* handlers of instructions have all sorts of names */
        return sample->insn == SAMPLE_NO_INSN ? TIME_OTHER
               : sample->callout              ? TIME_CALLOUTS
                                              : TIME_INTERPRETER;
    if (f->kind == TIME_CALLOUTS && !sample->callout && strncmp(f->name, "jit_", 4) != 0)
        return TIME_INTERPRETER;
    return f->kind;
}

/* Whether the C code runs the instruction noted, rather than what comes between instructions. */
static bool runs_insn(enum time_kind kind) {
    return kind == TIME_CALLOUTS || kind == TIME_INTERPRETER || kind == TIME_MEMORY ||
           kind == TIME_DEVICES || kind == TIME_OTHER;
}

static void place_in_guest(const struct profile *profile, const struct vcpu_sample *sample,
                           struct spot *spot) {
    const struct guest_symbol *symbol = NULL;
    if (sample->cpl != 3 && profile->symbols != NULL)
        symbol = guest_symbols_find(profile->symbols, sample->guest_rip);
    spot->named = symbol != NULL;
    spot->user = sample->cpl == 3;
    spot->guest = symbol != NULL ? (uint64_t)(symbol - profile->symbols->code)
                                 : sample->guest_rip & ~(uint64_t)(NAMELESS - 1);
}

static void take_sample(struct profile *profile, const struct vcpu_sample *sample) {
    uint64_t host = sample->host_caller != 0 ? sample->host_caller : sample->host_rip;
    const struct host_function *function =
        sample->place == SAMPLE_HOST ? host_symbols_find(&profile->host, host) : NULL;
    enum time_kind kind = kind_of(sample, function);
    struct spot spot = {
        .host = function != NULL ? (uint32_t)(function - profile->host.functions) : HOST_UNKNOWN,
        .insn = runs_insn(kind) && sample->callout ? sample->insn : SAMPLE_NO_INSN,
        .kind = (uint8_t)kind,
        .ns = sample->weight,
    };
    profile->samples++;
    if (kind != TIME_IDLE) {
        place_in_guest(profile, sample, &spot);
        spot.process = (uint16_t)process_of(profile, sample->watched);
    }
    count(profile, &spot);
}

static void drain(struct profile *profile) {
    struct vcpu_sample samples[BATCH];
    for (unsigned v = 0; v < profile->machine->config.vcpus; v++) {
        struct vcpu *vcpu = profile->machine->vcpus[v].vcpu;
        size_t got;
        do {
            got = vcpu_profile_take(vcpu, samples, BATCH);
            for (size_t i = 0; i < got; i++)
                take_sample(profile, &samples[i]);
        } while (got == BATCH);
    }
}

static void on_timer(void *context) {
    struct profile *profile = context;
    drain(profile);
    loop_timer_arm(profile->timer, host_clock_ns() + DRAIN_MS * (NS_PER_SECOND / 1000));
}

/* ---- Life ---- */

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* Of all vCPUs' threads: "/proc/self/task/ID/schedstat" has nanoseconds run, and waited to run. */
static struct thread_times vcpu_times(const struct machine *machine) {
    struct thread_times sum = {0};
    for (unsigned i = 0; i < machine->config.vcpus; i++) {
        unsigned long long ran = 0, waited = 0;
        char path[64];
        snprintf(path, sizeof path, "/proc/self/task/%d/schedstat",
                 atomic_load(&machine->vcpus[i].thread_id));
        FILE *file = fopen(path, "re");
        if (file != NULL && fscanf(file, "%llu %llu", &ran, &waited) == 2) {
            sum.cpu_ns += ran;
            sum.waiting_ns += waited;
        }
        if (file != NULL)
            fclose(file);
    }
    return sum;
}

static void start_parked(void *context) {
    struct profile *profile = context;
    struct vcpu_profile_config config = {.interval_us = profile->interval_us,
                                         .watch = find_current(profile)};
    struct machine *machine = profile->machine;
    for (unsigned i = 0; i < machine->config.vcpus && profile->result == 0; i++)
        profile->result = vcpu_profile_start(machine->vcpus[i].vcpu, &config, &profile->error);
}

static void stop_sampling(struct profile *profile) {
    for (unsigned i = 0; i < profile->machine->config.vcpus; i++) {
        struct vcpu *vcpu = profile->machine->vcpus[i].vcpu;
        vcpu_profile_stop(vcpu);
        vcpu_kick(vcpu); /* its timer goes with the next vcpu_run */
        profile->lost += vcpu_profile_lost(vcpu);
    }
}

static void free_profile(struct profile *profile) {
    loop_timer_free(profile->timer);
    guest_symbols_free(profile->symbols);
    host_symbols_free(&profile->host);
    json_decref(profile->counters);
    free(profile);
}

int profile_start(struct machine *machine, unsigned interval_us, struct guest_symbols *symbols,
                  struct profile **profile, struct error *err) {
    struct profile *made = calloc(1, sizeof *made);
    if (made == NULL) {
        guest_symbols_free(symbols);
        return error_set(err, -ENOMEM, "out of memory");
    }
    made->machine = machine;
    made->interval_us = interval_us;
    made->symbols = symbols;
    made->process_count = 1; /* 0: not known */
    made->result = host_symbols_load(&made->host, err);
    if (made->result == 0)
        made->result = loop_timer_create(machine->config.loop, on_timer, made, &made->timer, err);
    if (made->result == 0) {
        machine_with_vcpus_parked(machine, start_parked, made);
        if (made->result < 0 && err != NULL)
            *err = made->error;
    }
    if (made->result < 0) {
        int result = made->result;
        stop_sampling(made);
        free_profile(made);
        return result;
    }
    made->counters = machine_counters_json(machine);
    made->began_ns = host_clock_ns();
    made->process_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    made->times = vcpu_times(machine);
    on_timer(made);
    *profile = made;
    return 0;
}

void profile_stop(struct profile *profile, unsigned top, json_t **report) {
    stop_sampling(profile);
    drain(profile);
    struct thread_times now = vcpu_times(profile->machine);
    profile->times.cpu_ns = now.cpu_ns - profile->times.cpu_ns;
    profile->times.waiting_ns = now.waiting_ns - profile->times.waiting_ns;
    profile->process_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - profile->process_ns;
    profile->took_ns = host_clock_ns() - profile->began_ns;
    if (report != NULL)
        *report = profile_report(profile, top);
    free_profile(profile);
}
