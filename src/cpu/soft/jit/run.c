/*
 * The translator's C side: entering translated code, what it calls, chaining,
 * and the life of translations.
 */
#include <asm/prctl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/pages.h"
#include "cpu/soft/flags.h"
#include "cpu/soft/jit/fast.h"
#include "cpu/soft/jit/saved_flags.h"
#include "cpu/soft/jit/shadow.h"
#include "cpu/soft/jit/x87_live.h"
#include "cpu/soft/others.h"
#include "cpu/soft/run.h"
#include <string.h>

/* ---- Call-outs ---- */

/* Runs one instruction by the interpreter's handler; true when it went on to the next. */
static bool run_handler(struct soft_cpu *cpu, const struct insn *insn) {
    struct jit *jit = cpu->jit.jit;
    jit->scratch[0] = *insn;
    jit->scratch[1] =
        (struct insn){.exec = jit_callout_done, .offset = insn->offset + insn->length};
    jit->completed = false;
    cpu->insn = &jit->scratch[0];
    jit->scratch[0].exec(cpu, &jit->scratch[0]);
    return jit->completed;
}

static void undo(struct soft_cpu *cpu, const struct insn *insn, bool add) {
    const struct insn_row *row = insn_row_of(insn);
    bool into_reg = row->operand[0] == OPERAND_Gv;
    unsigned dest = into_reg ? insn->reg : insn->rm;
    bool immediate = row->operand[1] == OPERAND_Iz || row->operand[1] == OPERAND_Ibs;
    uint64_t source = immediate ? insn->imm : cpu->gpr[into_reg ? insn->rm : insn->reg];
    uint64_t value = add ? cpu->gpr[dest] + source : cpu->gpr[dest] - source;
    cpu->gpr[dest] = insn->size == 4 ? (uint32_t)value : value;
}

/* Sets the lazy flags by doing again what made them. */
static void flags_by_recipe(struct soft_cpu *cpu, const struct jit_site *site) {
    const struct insn *insn = &jit_block_of_site(site)->block->insns[site->recipe_insn];
    if (site->recipe == RECIPE_TEST_DEST) {
        const struct insn_row *row = insn_row_of(insn);
        bool in_reg = row->operand[0] == OPERAND_Gb || row->operand[0] == OPERAND_Gv;
        uint64_t value = cpu->gpr[in_reg ? insn->reg : insn->rm];
        unsigned shift = 64 - 8 * insn->size;
        cpu->flags.result = (uint64_t)((int64_t)(value << shift) >> shift);
        cpu->flags.carries = 0;
        return;
    }
    if (site->recipe != RECIPE_REPEAT)
        undo(cpu, insn, site->recipe == RECIPE_UNDO_ADD);
    run_handler(cpu, insn);
}

static void set_alarm(struct soft_cpu *cpu);

/* What earlier checks found, or the code that follows, may not hold any more. */
static bool must_leave(const struct soft_cpu *cpu, const struct block *block) {
    bool x87_raises = block->key & KEY_X87_RAISES;
    return soft_requested(cpu) || block->dead || block_x87_raises(cpu) != x87_raises ||
           cpu->jit.epoch != cpu->jit.entered_epoch || !jit_usable(cpu);
}

/* A group's accesses are on more than one page, or not all allowed: each gets its own check. */
static const uint8_t *go_on_plainly(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->rip += insn->offset;
    cpu->jit.saved_flags = jit_pack_flags(cpu);
    cpu->jit.plain = KEY_PLAIN;
    cpu->jit.exit = JIT_EXIT_RIP;
    return cpu->jit.jit->leave_now;
}

const uint8_t *jit_callout(struct soft_cpu *cpu, uint32_t number) {
    struct jit *jit = cpu->jit.jit;
    const struct jit_site *site = jit_at(jit, number);
    const struct jit_block *made = jit_block_of_site(site);
    struct block *block = made->block;
    bool x87_live = jit_x87_store(cpu);
    if (unlikely(block->insns == NULL) && !block_decode(cpu, block)) {
        /* Another processor or a device has changed the bytes just now, and nobody has synchronised
         * yet: what flags a recipe would have made is undefined like the code. */
        cpu->rip = block->rip + site->offset;
        cpu->jit.exit = JIT_EXIT_RIP;
        return jit->leave_now;
    }
    const struct insn *insn = &block->insns[site->insn];
    cpu->block = block;
    cpu->rip = block->rip;
    uint64_t next = insn_next_rip(cpu, insn);
    if (cpu->budget < JIT_CALLOUT_BUDGET)
        cpu->budget = run_of(cpu)->granted = JIT_CALLOUT_BUDGET;
    if (site->recipe == RECIPE_NONE)
        jit_unpack_flags(cpu);
    else
        flags_by_recipe(cpu, site);
    if (site->kind == SITE_GROUP || site->kind == SITE_STACK)
        return go_on_plainly(cpu, insn);
    count_callout(&cpu->count, insn);
    cpu->interrupt_shadow = false; /* it ends behind this instruction */
    bool completed = run_handler(cpu, insn);
    cpu->jit.saved_flags = jit_pack_flags(cpu);
    /* The instruction may have armed the timer; linked code does not come by jit_run. */
    set_alarm(cpu);
    if (completed && !must_leave(cpu, block)) {
        if (x87_live)
            jit_x87_load(cpu);
        return jit_code(jit, made, site->resume);
    }
    if (completed)
        cpu->rip = next;
    cpu->jit.exit = JIT_EXIT_RIP;
    return jit->leave_now;
}

/* ---- The vCPU's thread ---- */

/*
 * The alarm: translated code does not count instructions, so a signal at the
 * local APIC timer's deadline makes it look up. The handler runs on its own
 * stack, because RSP is the guest's.
 */
enum { ALARM_STACK = 16384 };
static _Thread_local uint8_t alarm_stack[ALARM_STACK];

static int alarm_signal(void) {
    return SIGRTMIN + 3;
}

static void on_alarm(int number, siginfo_t *info, void *context) {
    struct soft_cpu *cpu = info->si_value.sival_ptr;
    cpu->jit.alarmed = true;
    cpu->jit.alarm_ns = UINT64_MAX;
    atomic_fetch_or(&cpu->request, REQUEST_INTERRUPT);
}

/* A sanitizer has given the thread such a stack already, and takes it away at the end. */
static int install_stack(void) {
    stack_t stack = {.ss_sp = alarm_stack, .ss_size = ALARM_STACK}, present;
    if (sigaltstack(NULL, &present) == 0 && !(present.ss_flags & SS_DISABLE))
        return 0;
    return sigaltstack(&stack, NULL);
}

static int alarm_create(struct soft_cpu *cpu) {
    struct sigaction action = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = alarm_signal()};
    sigset_t one;
    sigfillset(&action.sa_mask);
    sigemptyset(&one);
    sigaddset(&one, alarm_signal());
    event.sigev_value.sival_ptr = cpu;
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    if (install_stack() < 0 || sigaction(alarm_signal(), &action, NULL) < 0 ||
        timer_create(CLOCK_MONOTONIC, &event, &cpu->jit.alarm) < 0)
        return -errno;
    pthread_sigmask(SIG_UNBLOCK, &one, NULL);
    return 0;
}

static void set_alarm(struct soft_cpu *cpu) {
    uint64_t deadline = cpu->lapic != NULL ? lapic_timer_deadline(cpu->lapic) : UINT64_MAX;
    /* Setting it costs thousands of cycles; coming early, it makes the run loop look once. */
    if (cpu->jit.alarm_ns <= deadline)
        return;
    cpu->jit.alarm_ns = deadline;
    struct itimerspec at = {0};
    if (deadline != UINT64_MAX) {
        uint64_t ns = vm_clock_to_host_ns(cpu->vcpu.engine->config.clock, deadline);
        if (ns != UINT64_MAX) {
            at.it_value.tv_sec = (time_t)(ns / NS_PER_SECOND);
            at.it_value.tv_nsec = (long)(ns % NS_PER_SECOND) | 1; /* 0 would disarm */
        }
    }
    timer_settime(cpu->jit.alarm, TIMER_ABSTIME, &at, NULL);
}

static void block_signals(void) {
    static const int synchronous[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    sigset_t asynchronous;
    sigfillset(&asynchronous);
    for (unsigned i = 0; i < ARRAY_SIZE(synchronous); i++)
        sigdelset(&asynchronous, synchronous[i]);
    pthread_sigmask(SIG_BLOCK, &asynchronous, NULL);
}

static void alarm_delete(struct soft_cpu *cpu) {
    if (cpu->jit.jit->alarm_thread != 0)
        timer_delete(cpu->jit.alarm);
    cpu->jit.jit->alarm_thread = 0;
    cpu->jit.alarm_ns = UINT64_MAX;
}

void jit_enter_thread(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    if (jit == NULL)
        return;
    /* Another vCPU may have run on this thread meanwhile. */
    syscall(SYS_arch_prctl, ARCH_SET_GS, cpu);
    pid_t thread = (pid_t)syscall(SYS_gettid);
    shadow_enter_thread(cpu);
    if (jit->alarm_thread == thread)
        return;
    alarm_delete(cpu);
    block_signals();
    if (alarm_create(cpu) < 0)
        cpu->heat_limit = UINT32_MAX; /* the interpreter needs no alarm */
    else
        jit->alarm_thread = thread;
}

/* ---- Running ---- */

/* Those that the counters do not tell of unwound for an exception. */
static void count_leave(struct soft_cpu *cpu) {
    struct soft_counts *count = &cpu->count;
    if (cpu->jit.plain)
        count->leaves_plain++;
    else if (atomic_load_explicit(&cpu->request, memory_order_relaxed) != 0)
        count->leaves_request++;
    else if (cpu->jit.exit != JIT_EXIT_RIP)
        count->leaves_exit++;
    else
        count->leaves_state++;
}

void jit_run(struct soft_cpu *cpu, struct block *block) {
    struct jit *jit = cpu->jit.jit;
    struct jit_state *state = &cpu->jit;
    void (*enter)(struct soft_cpu *, const uint8_t *) =
        (void (*)(struct soft_cpu *, const uint8_t *))(uintptr_t)jit->enter;
    jit_set_key(cpu, block->key & ~(uint64_t)KEY_PLAIN);
    if (state->exit != JIT_EXIT_RIP) {
        jit_link(cpu, jit_at(jit, state->exit_from), jit_at(jit, state->exit), block);
        state->exit = JIT_EXIT_RIP;
    }
    if (block->key & KEY_PLAIN)
        jit_note_entered(cpu, block->rip, block->key);
    else
        jit_note_jump(cpu, block);
    set_alarm(cpu);
    state->saved_flags = jit_pack_flags(cpu);
    state->entered_epoch = state->epoch;
    state->x87_spilled = false;
    cpu->count.leaves++;
    enter(cpu, jit_entry(cpu, block));
    jit_x87_store(cpu);
    count_leave(cpu);
    jit_unpack_flags(cpu);
    cpu->insn = NULL;
    if (state->exit != JIT_EXIT_RIP) {
        const struct jit_exit *exit = jit_at(jit, state->exit);
        cpu->rip = jit_exit_rip(jit_at(jit, state->exit_from), exit);
        state->plain |= exit->plain ? KEY_PLAIN : 0;
    }
}

/* ---- Life ---- */

/*
 * How many times heat is doubled. A translation costs as much as some hundred runs of its block
 * gain: of what goes on from a snapshot for a short command, few do. The more translations there
 * are, the longer that guest runs.
 */
static unsigned patience(const struct soft_cpu *cpu) {
    enum { MOST = 6, STEP = 128 }; /* translations to the next */
    uint64_t steps = cpu->count.translations / STEP;
    return cpu->jit.jit->patient && steps < MOST ? MOST - (unsigned)steps : 0;
}

static void set_heat(struct soft_cpu *cpu, size_t used) {
    enum { SPARINGLY = 2, FREELY = 6 }; /* eighths of the room */
    enum { STEP_BITS = 1, HEAT_MAX = 1 << 14, SOON = 8 };
    struct jit *jit = cpu->jit.jit;
    if (cpu->heat_limit == 0 || cpu->heat_limit == UINT32_MAX)
        return;
    size_t filled = used > jit->least ? used - jit->least : 0;
    size_t eighths = jit->budget > jit->least ? filled * 8 / (jit->budget - jit->least) : 0;
    uint32_t heat = jit->heat << patience(cpu);
    jit->runs = eighths >= SPARINGLY ? jit->runs_most : (jit->runs_most + SOON - 1) / SOON;
    for (; eighths > FREELY && heat < HEAT_MAX; eighths--)
        heat <<= STEP_BITS;
    cpu->heat_limit = heat;
}

struct jit_memory jit_memory(const struct soft_cpu *cpu) {
    const struct jit *jit = cpu->jit.jit;
    struct jit_memory memory = {.metadata = block_memory(cpu)};
    if (jit == NULL)
        return memory;
    memory.code = jit->memory.used;
    memory.metadata +=
        jit->memory.at_end + sizeof *jit + JIT_MAPPINGS * sizeof *jit->mappings + sizeof cpu->jit;
    return memory;
}

/* All but what decoded blocks would give back. */
static size_t needed_memory(const struct soft_cpu *cpu) {
    struct jit_memory memory = jit_memory(cpu);
    return memory.code + memory.metadata - block_spare_memory(cpu);
}

size_t jit_room(const struct soft_cpu *cpu) {
    const struct jit *jit = cpu->jit.jit;
    size_t needed = jit != NULL ? needed_memory(cpu) : 0;
    return jit != NULL && needed < jit->budget ? (jit->budget - needed) / 2 : 0;
}

bool jit_is_over_budget(struct soft_cpu *cpu) {
    enum { LEAST = 12 << 20 }; /* for translations, whatever decoded blocks take */
    struct jit *jit = cpu->jit.jit;
    size_t needed = needed_memory(cpu), spare = block_spare_memory(cpu);
    set_heat(cpu, needed);
    jit->crowded = spare != 0 && needed + spare > jit->budget;
    return needed > jit->budget && needed + spare - block_memory(cpu) > LEAST;
}

static void forget_translations(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    for (uint32_t number = jit->first; number != 0;) {
        struct jit_block *made = jit_at(jit, number);
        struct block *block = made->block;
        number = made->next;
        relocations_forget(cpu, made);
        if (made->dead)
            continue;
        block->code = NULL;
        if (block->insns == NULL)
            block_drop(cpu, block);
    }
}

/* With tables that are zero: no jump's context is, since generations begin with 1. */
static void begin(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    code_memory_empty(&jit->memory, jit->stubs_end);
    jit->made = jit->first = jit->last = 0;
    jit->last_number = 0;
    if (cpu->blocks != NULL)
        block_places_forget_numbers(cpu->blocks->places);
    jit_clear_map(&cpu->jit, 0);
    jit_clear_map(&cpu->jit, 1);
    cpu->jit.exit = JIT_EXIT_RIP;
    jit_empty_shadows(&cpu->jit);
    jit->full = false;
    if (cpu->blocks != NULL) {
        jit->least = needed_memory(cpu);
        set_heat(cpu, jit->least);
    }
    cpu->count.flushes++;
    jit_map_clear(cpu);
}

static void flush(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    forget_translations(cpu);
    memset(cpu->jit.jumps, 0, sizeof cpu->jit.jumps);
    memset(jit->mappings, 0, JIT_MAPPINGS * sizeof *jit->mappings);
    if (cpu->blocks != NULL)
        block_cool(cpu);
    begin(cpu);
}

void jit_safe_point(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    if (jit == NULL)
        return;
    if (unlikely(jit->crowded))
        block_shrink(cpu);
    jit->crowded = false;
    if (unlikely(jit->full))
        flush(cpu);
}

void jit_forget(struct soft_cpu *cpu, struct block *block) {
    struct jit_block *made = block->code;
    if (made == NULL)
        return;
    jit_replace(cpu->jit.jit, made, NULL);
    jit_forget_jump(cpu, block->rip);
    if (cpu->jit.exit != JIT_EXIT_RIP && jit_at(cpu->jit.jit, cpu->jit.exit_from) == made)
        cpu->jit.exit = JIT_EXIT_RIP;
    made->dead = true;
    block->code = NULL;
    /* Its return points must not be met any more: behind them is the rest of the dead block. */
    jit_empty_shadows(&cpu->jit);
}

static bool host_is_able(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
}

int jit_create(struct soft_cpu *cpu, const struct jit_config *config, struct error *err) {
    if (!host_is_able())
        return error_set(err, -ENOTSUP, "the translator needs a processor with AVX2 and BMI2");
    lowerings_init();
    struct jit *jit = calloc(1, sizeof *jit);
    if (jit == NULL)
        return error_set_errno(err, -ENOMEM, "no memory for the translator");
    size_t size = config->code < JIT_CODE_SIZE ? config->code : JIT_CODE_SIZE;
    int r = code_memory_create(&jit->memory, size, err);
    jit->mappings = pages_take(JIT_MAPPINGS * sizeof *jit->mappings);
    cpu->jit.jit = jit;
    if (r == 0 && (!jit->mappings || !shadow_create(cpu)))
        r = error_set_errno(err, -ENOMEM, "no memory for the translator");
    if (r < 0) {
        jit_destroy(cpu);
        return r;
    }
    stubs_make(jit, cpu);
    shadow_prepare(cpu);
    begin(cpu);
    cpu->jit.alarm_ns = UINT64_MAX;
    jit->heat = config->heat;
    jit->patient = config->patient;
    cpu->heat_limit = jit->heat << patience(cpu);
    jit->runs = jit->runs_most = config->runs;
    jit->exact = config->exact;
    jit->budget = soft_share(cpu->vcpu.engine, JIT_BUDGET, JIT_BUDGET_LEAST);
    cpu->jit.host_mxcsr = 0x1f80;
    return 0;
}

void jit_destroy(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    if (jit == NULL)
        return;
    alarm_delete(cpu);
    code_memory_destroy(&jit->memory);
    pages_give_back(jit->mappings, JIT_MAPPINGS * sizeof *jit->mappings);
    shadow_destroy(cpu);
    free(jit);
    cpu->jit.jit = NULL;
}
