/* The soft engine behind cpu/engine.h: making vCPUs, their state in and out. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "cpu/soft/block.h"
#include "cpu/soft/flags.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/jit/map.h"
#include "cpu/soft/others.h"
#include "cpu/soft/profile.h"
#include "cpu/soft/run.h"
#include "cpu/soft/vec.h"
#include "cpu/soft/verify.h"
#include "memory/ahead.h"

/* Decoded instructions of a vCPU, at least; soft_share. */
enum { BLOCKS = 2 << 20, BLOCKS_LEAST = 1 << 20 };

static int soft_create(const struct engine_config *config, struct engine **engine,
                       struct error *err) {
    if (config->vcpus > MEM_WATCHERS_MAX)
        return error_set(err, -EINVAL, "%u vCPUs: the soft engine takes up to %d", config->vcpus,
                         MEM_WATCHERS_MAX);
    struct soft_engine *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "no memory for the engine");
    made->engine.ops = &soft_engine_ops;
    made->engine.config = *config;
    others_init(made);
    insn_index_init();
    memory_ahead_start(config->memory);
    *engine = &made->engine;
    return 0;
}

static void soft_destroy(struct engine *engine) {
    others_destroy((struct soft_engine *)engine);
    free(engine);
}

/* ---- vCPUs ---- */

static void wake(void *context) {
    soft_request(context, REQUEST_INTERRUPT);
}

static void soft_vcpu_destroy(struct vcpu *vcpu) {
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    if (cpu->lapic != NULL)
        lapic_destroy(cpu->lapic);
    soft_profile_destroy(cpu);
    block_cache_destroy(cpu);
    jit_destroy(cpu);
    verify_destroy(cpu);
    mmu_destroy(cpu);
    pthread_cond_destroy(&cpu->wake);
    lock_destroy(&cpu->wake_lock);
    free(cpu->run);
    munmap(cpu, sizeof *cpu);
}

static int init_waiting(struct soft_cpu *cpu, struct error *err) {
    pthread_condattr_t attributes;
    cpu->run = calloc(1, sizeof(struct soft_run));
    lock_init(&cpu->wake_lock, LOCK_VCPU, "vcpu");
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&cpu->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    return cpu->run != NULL ? 0 : error_set_errno(err, -ENOMEM, "no memory for a vCPU");
}

/* The number at *at, behind `mark` unless that is 0; else `otherwise`. */
static unsigned long wished(const char **at, char mark, unsigned long most,
                            unsigned long otherwise) {
    char *end;
    if (mark != 0 && **at != mark)
        return otherwise;
    unsigned long number = strtoul(*at + (mark != 0), &end, 10);
    bool any = end != *at + (mark != 0);
    *at = end;
    return !any ? otherwise : number < most ? number : most;
}

/*
 * LODGE_TRANSLATE=off leaves all to the interpreter, a number is how often a
 * block is interpreted before it is translated (0: at once), "/" and another how
 * often it runs then before it is extended (0: at once), "/" and a third how many
 * KiB of code memory there are. "exact" behind them keeps flags exact where only
 * a fault could show them; "verify" is as config.verify. For tests, and to tell
 * whose fault something is.
 */
static int init_translator(struct soft_cpu *cpu, struct error *err) {
    enum { HEAT = 8, RUNS = 16000, LEAST_KIB = 64 };
    const char *wish = getenv("LODGE_TRANSLATE");
    struct jit_config config = {.exact = wish != NULL && strstr(wish, "exact") != NULL};
    cpu->heat_limit = UINT32_MAX;
    config.patient = wish == NULL && cpu->vcpu.engine->config.resumed;
    if (wish == NULL)
        wish = "";
    if (strcmp(wish, "off") == 0)
        return 0;
    config.heat = (uint32_t)wished(&wish, 0, UINT32_MAX - 1, HEAT);
    config.runs = (uint32_t)wished(&wish, '/', INT32_MAX, config.heat == 0 ? 0 : RUNS);
    unsigned long kib = wished(&wish, '/', JIT_CODE_SIZE >> 10, JIT_CODE_SIZE >> 10);
    config.code = (size_t)(kib > LEAST_KIB ? kib : LEAST_KIB) << 10;
    int r = jit_create(cpu, &config, err);
    return r == -ENOTSUP ? 0 : r;
}

static int init_verify(struct soft_cpu *cpu, struct error *err) {
    const char *wish = getenv("LODGE_TRANSLATE");
    if (!cpu->vcpu.engine->config.verify && (wish == NULL || strstr(wish, "verify") == NULL))
        return 0;
    if (cpu->vcpu.engine->config.vcpus > 1)
        return error_set(err, -EINVAL, "lock-step verification is for one vCPU");
    if (cpu->jit.jit == NULL)
        return error_set(err, -ENOTSUP,
                         "there is no translator to verify: it is switched off, or "
                         "this processor lacks AVX2 or BMI2");
    return verify_create(cpu, err);
}

static int init_parts(struct soft_cpu *cpu, struct error *err) {
    const struct engine_config *config = &cpu->vcpu.engine->config;
    int r = init_waiting(cpu, err);
    if (r == 0)
        r = mmu_init(cpu, err);
    if (r == 0)
        r = block_cache_create(cpu, soft_share(cpu->vcpu.engine, BLOCKS, BLOCKS_LEAST), err);
    if (r == 0)
        r = init_translator(cpu, err);
    if (r == 0)
        r = init_verify(cpu, err);
    if (r == 0 && config->irqchip != NULL)
        r = lapic_create(config->irqchip, cpu->vcpu.id, wake, cpu, &cpu->lapic, err);
    return r;
}

static int soft_vcpu_create(struct engine *engine, unsigned id, struct vcpu **vcpu,
                            struct error *err) {
    /* Zeroed by the kernel, page by page: most of its tables are never touched in a short life. */
    struct soft_cpu *cpu =
        mmap(NULL, sizeof *cpu, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int r;
    if (cpu == MAP_FAILED)
        return error_set_errno(err, -ENOMEM, "no memory for a vCPU");
    cpu->vcpu.engine = engine;
    cpu->vcpu.id = id;
    cpu->several = engine->config.vcpus > 1;
    cpu->memory = engine->config.memory;
    cpu->clock_line = vm_clock_line(engine->config.clock);
    cpu->view = memory_default_view(cpu->memory);
    cpuid_init_features(cpu);
    r = init_parts(cpu, err);
    if (r < 0) {
        soft_vcpu_destroy(&cpu->vcpu);
        return r;
    }
    soft_reset(&cpu->vcpu, false);
    *vcpu = &cpu->vcpu;
    return 0;
}

static void soft_kick(struct vcpu *vcpu) {
    soft_request(soft_cpu_of(vcpu), REQUEST_KICK);
}

static void soft_rest(struct vcpu *vcpu, uint64_t late) {
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    run_of(cpu)->late_ns = late;
    soft_request(cpu, REQUEST_REST);
}

/* ---- State ---- */

/* Fields that both structures name alike. COPY is state to cpu or back. */
/* The formatter never settles on this macro. */
/* clang-format off */
#define STATE_FIELDS(COPY) \
    COPY(rip) COPY(ldtr) COPY(tr) COPY(gdtr) COPY(idtr) COPY(cr0) COPY(cr2) COPY(cr3) COPY(cr4) \
    COPY(xcr0) COPY(efer) COPY(star) COPY(lstar) COPY(cstar) COPY(sfmask) COPY(kernel_gs_base) \
    COPY(tsc_aux) COPY(sysenter_cs) COPY(sysenter_esp) COPY(sysenter_eip) COPY(pat) \
    COPY(mtrr_def_type) COPY(tsc_offset) COPY(kvm_wall_clock) COPY(kvm_system_time) COPY(fcw) COPY(fsw) COPY(ftw) COPY(fop) COPY(fip) \
    COPY(fdp) COPY(fcs) COPY(fds) COPY(mxcsr) COPY(halted) COPY(interrupt_shadow) \
    COPY(nmi_blocked) COPY(nmi_pending) COPY(waiting_for_sipi)
/* clang-format on */
#define STATE_ARRAYS(COPY)                                                                         \
    COPY(segment) COPY(dr) COPY(mtrr_fixed) COPY(mtrr_base) COPY(mtrr_mask) COPY(x87)

static void soft_get_state(struct vcpu *vcpu, struct x86_state *state) {
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    memset(state, 0, sizeof *state);
    mmu_settle_writes(cpu);
#define COPY(field) state->field = cpu->field;
    STATE_FIELDS(COPY)
#undef COPY
#define COPY(field) memcpy(state->field, cpu->field, sizeof state->field);
    STATE_ARRAYS(COPY)
#undef COPY
    memcpy(state->gpr, cpu->gpr, sizeof state->gpr);
    memcpy(state->vector, cpu->vec, sizeof state->vector);
    state->rflags = flags_get(cpu);
    if (cpu->lapic != NULL) {
        state->cr8 = lapic_cr8(cpu->lapic);
        state->apic_base = lapic_base(cpu->lapic);
    }
}

static int check_state(const struct x86_state *state, struct error *err) {
    bool paging = state->cr0 & CR0_PG, lma = state->efer & EFER_LMA;
    if (paging && !(state->cr0 & CR0_PE))
        return error_set(err, -EINVAL, "vCPU state: paging without protected mode");
    if (lma != (paging && (state->efer & EFER_LME)))
        return error_set(err, -EINVAL, "vCPU state: EFER.LMA does not follow from LME and paging");
    if (lma && !(state->cr4 & CR4_PAE))
        return error_set(err, -EINVAL, "vCPU state: long mode without CR4.PAE");
    if (!system_offers(state->cr4, state->efer) || state->cr3 >> 52)
        return error_set(err, -EINVAL, "vCPU state: a bit of CR3, CR4 or EFER that is not offered");
    if (!system_xcr0_legal(state->xcr0) || (state->mxcsr & ~(uint32_t)MXCSR_VALID))
        return error_set(err, -EINVAL, "vCPU state: XCR0 or MXCSR cannot be");
    return 0;
}

/* What derives from the state is made anew. */
static void state_changed(struct soft_cpu *cpu) {
    cpu->gpr[REG_ZERO] = 0;
    cpu->event.pending = false;
    cpu->bounce.size = 0;
    cpu->debug_hits = 0;
    cpu->cpl = cpu->segment[SEG_SS].attributes >> 5 & 3;
    cpu->insn = NULL;
    mmu_mode_changed(cpu);
    mmu_flush_all(cpu);
    block_invalidate_all(cpu);
}

static int soft_set_state(struct vcpu *vcpu, const struct x86_state *state, struct error *err) {
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    int r = check_state(state, err);
    if (r < 0)
        return r;
    if (cpu->lapic != NULL && state->apic_base != lapic_base(cpu->lapic) &&
        !lapic_set_base(cpu->lapic, state->apic_base))
        return error_set(err, -EINVAL, "vCPU state: the local APIC's base is malformed");
#define COPY(field) cpu->field = state->field;
    STATE_FIELDS(COPY)
#undef COPY
#define COPY(field) memcpy(cpu->field, state->field, sizeof cpu->field);
    STATE_ARRAYS(COPY)
#undef COPY
    memcpy(cpu->gpr, state->gpr, sizeof state->gpr);
    memcpy(cpu->vec, state->vector, sizeof cpu->vec);
    flags_set(cpu, state->rflags);
    if (cpu->lapic != NULL)
        lapic_set_cr8(cpu->lapic, (uint8_t)state->cr8);
    state_changed(cpu);
    return 0;
}

void soft_reset(struct vcpu *vcpu, bool init) {
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    struct x86_state state;
    if (cpu->lapic != NULL)
        lapic_reset(cpu->lapic, init);
    soft_get_state(vcpu, &state);
    x86_reset_state(&state, vcpu->id, init);
    soft_set_state(vcpu, &state, NULL);
    cpu->xss = init ? cpu->xss : 0;
}

/* ---- The rest ---- */

static void soft_inject(struct vcpu *vcpu, enum exception vector, bool has_error, uint32_t error) {
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    if (vector == EXC_NMI) {
        cpu->nmi_pending = true;
        return;
    }
    cpu->event.pending = true;
    cpu->event.vector = (uint8_t)vector;
    cpu->event.kind = EVENT_FAULT;
    cpu->event.has_error = has_error;
    cpu->event.error = error;
}

static int soft_translate(struct vcpu *vcpu, uint64_t gva, uint64_t *gpa) {
    return mmu_probe(soft_cpu_of(vcpu), gva, gpa);
}

static int soft_set_breakpoint(struct vcpu *vcpu, uint64_t gva, bool on, struct error *err) {
    int r = block_set_breakpoint(soft_cpu_of(vcpu), gva, on);
    return r == 0 ? 0 : error_set_errno(err, r, "too many breakpoints");
}

static int soft_set_view(struct vcpu *vcpu, struct view *view, struct error *err) {
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    cpu->view = view;
    mmu_flush_all(cpu);
    block_invalidate_all(cpu);
    return 0;
}

static void soft_get_counters(struct vcpu *vcpu, struct vcpu_counters *counters) {
    *counters = soft_cpu_of(vcpu)->counters;
    if (soft_cpu_of(vcpu)->jit.jit != NULL)
        counters->instructions = 0; /* translated code does not count */
}

const struct engine_ops soft_engine_ops = {
    .name = "soft",
    .create = soft_create,
    .destroy = soft_destroy,
    .vcpu_create = soft_vcpu_create,
    .vcpu_destroy = soft_vcpu_destroy,
    .run = soft_run,
    .kick = soft_kick,
    .rest = soft_rest,
    .get_state = soft_get_state,
    .set_state = soft_set_state,
    .reset = soft_reset,
    .inject = soft_inject,
    .translate = soft_translate,
    .set_breakpoint = soft_set_breakpoint,
    .set_view = soft_set_view,
    .get_counters = soft_get_counters,
    .each_counter = soft_each_counter,
    .profile_start = soft_profile_start,
    .profile_stop = soft_profile_stop,
    .profile_take = soft_profile_take,
    .profile_lost = soft_profile_lost,
    .listen_code = soft_listen_code,
    .report = verify_report,
};
