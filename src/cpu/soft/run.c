/*
 * The run loop: between blocks it serves requests, delivers events and
 * interrupts, looks at the clock, and waits in HLT.
 *
 * Faults come back through cpu->unwind, set once a vcpu_run. Instructions are
 * counted by what blocks take from cpu->budget; when it runs out the loop
 * looks at the local APIC's timer.
 */
#include "cpu/soft/run.h"

#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "base/log.h"
#include "cpu/soft/block.h"
#include "cpu/soft/debug.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/others.h"
#include "cpu/soft/profile.h"
#include "cpu/soft/verify.h"

/*
 * Instructions between two looks at the clock. Also bounds how deep handlers
 * nest where the compiler makes no tail calls.
 */
enum { BUDGET = 4000 };

/* ---- Waking and waiting ---- */

void soft_request(struct soft_cpu *cpu, unsigned request) {
    atomic_fetch_or(&cpu->request, request);
    if (!atomic_load(&run_of(cpu)->sleeping))
        return;
    lock_take(&cpu->wake_lock);
    pthread_cond_signal(&cpu->wake);
    lock_release(&cpu->wake_lock);
}

static uint64_t timer_deadline(const struct soft_cpu *cpu) {
    return cpu->lapic != NULL ? lapic_timer_deadline(cpu->lapic) : UINT64_MAX;
}

/* Until the host's monotonic clock reaches ns (UINT64_MAX: for ever) or somebody wakes us. */
static void wait_until(struct soft_cpu *cpu, uint64_t ns) {
    struct timespec until = {.tv_sec = (time_t)(ns / NS_PER_SECOND),
                             .tv_nsec = (long)(ns % NS_PER_SECOND)};
    int r = 0;
    lock_take(&cpu->wake_lock);
    atomic_store(&run_of(cpu)->sleeping, true);
    while (atomic_load(&cpu->request) == 0 && r == 0) {
        r = ns == UINT64_MAX ? pthread_cond_wait(&cpu->wake, &cpu->wake_lock.mutex)
                             : pthread_cond_timedwait(&cpu->wake, &cpu->wake_lock.mutex, &until);
    }
    atomic_store(&run_of(cpu)->sleeping, false);
    lock_release(&cpu->wake_lock);
}

static void wait_for_event(struct soft_cpu *cpu) {
    uint64_t deadline = timer_deadline(cpu);
    if (deadline != UINT64_MAX)
        deadline = vm_clock_to_host_ns(cpu->vcpu.engine->config.clock, deadline);
    cpu->counters.exits++;
    others_rest(cpu);
    wait_until(cpu, deadline);
    others_wake(cpu);
}

/* ---- Interrupts ---- */

static void start_at_vector(struct soft_cpu *cpu, uint8_t vector) {
    if (!cpu->waiting_for_sipi)
        return;
    cpu->waiting_for_sipi = false;
    cpu->segment[SEG_CS].selector = (uint16_t)(vector << 8);
    cpu->segment[SEG_CS].base = (uint64_t)vector << 12;
    cpu->rip = 0;
    mmu_mode_changed(cpu);
}

static void take_lapic_events(struct soft_cpu *cpu) {
    uint8_t vector = 0;
    for (;;) {
        switch (lapic_take_event(cpu->lapic, &vector)) {
        case LAPIC_NO_EVENT: return;
        case LAPIC_NMI: cpu->nmi_pending = true; break;
        case LAPIC_INIT: soft_reset(&cpu->vcpu, true); break;
        case LAPIC_SIPI: start_at_vector(cpu, vector); break;
        }
    }
}

/* Delivers one NMI or interrupt if there is one that may come in now. */
static void take_interrupt(struct soft_cpu *cpu) {
    int vector;
    if (cpu->interrupt_shadow || cpu->waiting_for_sipi)
        return;
    if (cpu->nmi_pending && !cpu->nmi_blocked) {
        cpu->nmi_pending = false;
        cpu->nmi_blocked = true;
        cpu->halted = false;
        event_deliver(cpu, EXC_NMI, EVENT_NMI, false, 0);
        return;
    }
    if (cpu->lapic == NULL || !(cpu->rflags & FLAG_IF) || !lapic_attention(cpu->lapic))
        return;
    vector = lapic_ack(cpu->lapic);
    if (vector < 0)
        return;
    cpu->halted = false;
    event_deliver(cpu, (uint8_t)vector, EVENT_INTERRUPT, false, 0);
}

static void look_at_clock(struct soft_cpu *cpu) {
    uint64_t deadline = timer_deadline(cpu), now;
    soft_account(cpu);
    cpu->budget = run_of(cpu)->granted = BUDGET;
    if (deadline == UINT64_MAX)
        return;
    now = vm_clock_ns(cpu->vcpu.engine->config.clock);
    if (now >= deadline)
        lapic_timer_expire(cpu->lapic, now);
}

/*
 * What vcpu_rest has asked for: one wait, which any request ends. Guests look for themselves what
 * has ended it, so that it is no state of the processor's.
 */
static void rest(struct soft_cpu *cpu) {
    enum { USUAL_SLACK_NS = 50000 }; /* prctl(2) */
    uint64_t late = run_of(cpu)->late_ns;
    bool later = late > USUAL_SLACK_NS;
    if (cpu->nmi_pending || (cpu->lapic != NULL && lapic_attention(cpu->lapic)))
        return;
    if (later)
        prctl(PR_SET_TIMERSLACK, late, 0, 0, 0);
    wait_for_event(cpu);
    if (later)
        prctl(PR_SET_TIMERSLACK, 0, 0, 0, 0); /* as it was */
    look_at_clock(cpu);
}

/* True: vcpu_run is to return *exit. */
static bool serve_requests(struct soft_cpu *cpu, struct vcpu_exit *exit) {
    unsigned request = atomic_load_explicit(&cpu->request, memory_order_acquire);
    if (likely(request == 0))
        return false;
    if (request & REQUEST_FLUSH)
        mmu_serve_requests(cpu);
    if (request & REQUEST_BLOCKS)
        block_safe_point(cpu);
    atomic_fetch_and(&cpu->request, ~(unsigned)REQUEST_INTERRUPT);
    if (request & REQUEST_STOP) {
        atomic_fetch_and(&cpu->request, ~(unsigned)REQUEST_STOP);
        run_of(cpu)->stopped_at_breakpoint = cpu->exit.stop == VCPU_BREAKPOINT;
        *exit = cpu->exit;
        return true;
    }
    if (request & REQUEST_KICK) {
        atomic_fetch_and(&cpu->request, ~(unsigned)REQUEST_KICK);
        *exit = (struct vcpu_exit){.stop = VCPU_KICKED};
        return true;
    }
    if (request & REQUEST_REST) {
        atomic_fetch_and(&cpu->request, ~(unsigned)REQUEST_REST);
        rest(cpu);
        return serve_requests(cpu, exit);
    }
    return false;
}

static void deliver_pending(struct soft_cpu *cpu) {
    cpu->event.pending = false;
    cpu->halted = false;
    event_deliver(cpu, cpu->event.vector, (enum event_kind)cpu->event.kind, cpu->event.has_error,
                  cpu->event.error);
}

/* Everything due between two instructions. True: vcpu_run is to return *exit. */
static bool attend(struct soft_cpu *cpu, struct vcpu_exit *exit) {
    for (;;) {
        if (unlikely(cpu->event.pending))
            deliver_pending(cpu);
        if (unlikely(cpu->budget < BLOCK_INSNS_MAX || cpu->jit.alarmed)) {
            cpu->jit.alarmed = false;
            look_at_clock(cpu);
        }
        if (serve_requests(cpu, exit))
            return true;
        if (cpu->lapic != NULL && lapic_attention(cpu->lapic)) {
            take_lapic_events(cpu);
            take_interrupt(cpu);
        } else if (unlikely(cpu->nmi_pending)) {
            take_interrupt(cpu);
        }
        if (likely(!cpu->halted && !cpu->waiting_for_sipi))
            return atomic_load(&cpu->request) & REQUEST_STOP ? serve_requests(cpu, exit) : false;
        cpu->interrupt_shadow = false;
        if (!(cpu->rflags & FLAG_IF) || cpu->lapic == NULL || !lapic_pending(cpu->lapic))
            wait_for_event(cpu);
        look_at_clock(cpu);
    }
}

/* ---- Running ---- */

void soft_enter(struct soft_cpu *cpu, struct block *block) {
    cpu->block = block;
    cpu->budget -= block->run_count;
    block->insns[0].exec(cpu, block->insns);
}

struct block *soft_block(struct soft_cpu *cpu, uint64_t key) {
    struct block *block;
    cpu->insn = NULL;
    block = block_jump(cpu, key);
    if (unlikely(block == NULL))
        block = block_find(cpu, key);
    if (unlikely(block == NULL))
        raise_exit(cpu);
    return block;
}

static void run_block(struct soft_cpu *cpu) {
    uint64_t key = block_key(cpu) | cpu->jit.plain;
    struct block *block;
    cpu->jit.plain = 0;
    jit_safe_point(cpu);
    block = soft_block(cpu, key);
    if ((block->heat >= cpu->heat_limit || key & KEY_PLAIN) && jit_usable(cpu)) {
        if (jit_wants(cpu, block))
            block = jit_translate(cpu, block);
        if (block->code != NULL) {
            jit_run(cpu, block);
            return;
        }
    }
    block->heat++;
    if (unlikely(block->insns == NULL) && !block_decode(cpu, block))
        return; /* dropped: found anew */
    soft_enter(cpu, block);
}

/* INT n, INT3, INTO, SYSCALL have switched TF off for their handler: no trap there. MOV SS and POP
 * SS hold a trap back. */
static bool holds_trap_back(const struct soft_cpu *cpu, const struct insn *insn) {
    uint8_t map = insn_row_of(insn)->map, opcode = insn->opcode;
    bool in_handler = !(cpu->rflags & FLAG_TF); /* INTO may have found no overflow */
    if (map == MAP_0F)
        return opcode == 0x05;
    return map == MAP_1B && ((opcode >= 0xcc && opcode <= 0xce && in_handler) || opcode == 0x17 ||
                             (opcode == 0x8e && insn->reg == SEG_SS));
}

static void trap(struct soft_cpu *cpu, uint64_t bits) {
    debug_enter(cpu, bits);
    cpu->halted = false; /* HLT itself was stepped */
    event_deliver(cpu, EXC_DB, EVENT_TRAP, false, 0);
}

/* One instruction: single-step, breakpoints, the instruction after STI or MOV SS. */
void soft_step(struct soft_cpu *cpu, uint64_t more_key) {
    uint64_t hits = 0;
    bool single_step = cpu->rflags & FLAG_TF, shadow = cpu->interrupt_shadow;
    int32_t left = cpu->budget;
    struct block *block;
    cpu->insn = NULL;
    if (debug_active(cpu) && !(cpu->rflags & FLAG_RF))
        hits = debug_match_execute(cpu, block_linear(cpu, cpu->rip));
    if (hits != 0) {
        debug_enter(cpu, hits);
        raise_exception(cpu, EXC_DB);
    }
    block = block_find(cpu, block_key(cpu) | KEY_STEP | more_key);
    if (block == NULL)
        raise_exit(cpu);
    cpu->rflags &= ~(uint64_t)FLAG_RF;
    cpu->interrupt_shadow = false;
    debug_take(cpu);
    /* Nothing left in the budget: no chaining to a next block. */
    cpu->budget = 1;
    run_of(cpu)->granted += 1 - left;
    soft_enter(cpu, block);
    cpu->budget += left - 1;
    run_of(cpu)->granted += left - 1;
    if (shadow)
        cpu->interrupt_shadow = false;
    hits = debug_take(cpu) | (single_step ? DR6_BS : 0);
    if (hits != 0 && !holds_trap_back(cpu, &block->insns[0]))
        trap(cpu, hits);
}

static void run_next(struct soft_cpu *cpu) {
    struct soft_run *run = run_of(cpu);
    if (unlikely(run_must_step(cpu))) {
        bool passing = run->stopped_at_breakpoint;
        run->stopped_at_breakpoint = false;
        soft_step(cpu, passing ? KEY_NO_BREAK : 0);
        return;
    }
    /* Nothing waits: the shadow ends unseen behind the next instruction. Without breakpoints RF
     * only matters to those who see it pushed, which faults do with it set. */
    cpu->interrupt_shadow = false;
    cpu->rflags &= ~(uint64_t)FLAG_RF;
    if (unlikely(cpu->verify != NULL))
        verify_run(cpu);
    else
        run_block(cpu);
}

void soft_run(struct vcpu *vcpu, struct vcpu_exit *exit) {
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    memset(exit, 0, sizeof *exit);
    jit_enter_thread(cpu);
    cpu->jit.alarm_ns = UINT64_MAX; /* while it stood, the clock may have been changed */
    soft_profile_enter(cpu);
    others_wake(cpu);
    setjmp(cpu->unwind); /* comes back here from raise() with the event noted */
    while (!attend(cpu, exit))
        run_next(cpu);
    soft_account(cpu);
    cpu->insn = NULL;
    others_rest(cpu);
}
