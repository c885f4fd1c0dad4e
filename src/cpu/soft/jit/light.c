/*
 * Light call-outs: instructions of table_system.c run by their handlers with
 * the guest's vector registers in place, and translated code goes on from
 * there even when privilege, address space or control have changed. And the
 * vector registers between a light call and the rest of lodge (outside.h).
 */
#include "cpu/soft/jit/fast.h"
#include "cpu/soft/jit/saved_flags.h"
#include "cpu/soft/jit/x87_live.h"
#include "cpu/soft/outside.h"
#include "cpu/soft/run.h"

_Static_assert(sizeof(union x86_vector) == 64, "the registers' distance below");

#define EACH_REGISTER(X)                                                                           \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define STORE(n)      "vmovdqu %%ymm" #n ", 64*" #n "(%0)\n\t"
#define LOAD(n)       "vmovdqu 64*" #n "(%0), %%ymm" #n "\n\t"
#define LOAD_LOWER(n) "vmovdqu 64*" #n "(%0), %%xmm" #n "\n\t"

void jit_spill_now(struct soft_cpu *cpu) {
    cpu->jit.light = false;
    cpu->jit.x87_spilled = jit_x87_store(cpu);
    __asm__ volatile(EACH_REGISTER(STORE) "vzeroupper\n\tstmxcsr %1\n\tldmxcsr %2" ::"r"(cpu->vec),
                     "m"(cpu->mxcsr), "m"(cpu->jit.host_mxcsr)
                     : "memory");
}

/* As in stubs.c: upper halves that are zero must not be loaded. */
void light_reload(struct soft_cpu *cpu) {
    if (cpu->jit.x87_spilled)
        jit_x87_load(cpu);
    cpu->jit.x87_spilled = false;
    uint64_t upper = 0;
    for (unsigned n = 0; n < 16; n++)
        upper |= cpu->vec[n].q[2] | cpu->vec[n].q[3];
    if (upper != 0)
        __asm__ volatile(EACH_REGISTER(LOAD)::"r"(cpu->vec) : "memory");
    else
        __asm__ volatile("vzeroupper\n\t" EACH_REGISTER(LOAD_LOWER)::"r"(cpu->vec) : "memory");
    __asm__ volatile("ldmxcsr %0" ::"m"(cpu->mxcsr) : "memory");
}

/* ---- Call-outs ---- */

bool jit_usable(const struct soft_cpu *cpu) {
    /* MM (bit 17) must not reach a host that may not know it: LDMXCSR would fault. */
    enum { MASKS = 0x1f80, KNOWN = 0xffff };
    return cpu->jit.jit != NULL && cpu->jit.flat && (cpu->mxcsr & MASKS) == MASKS &&
           (cpu->mxcsr & ~(uint32_t)KNOWN) == 0;
}

void jit_callout_done(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->jit.jit->completed = true;
}

static bool alarm_is_right(const struct soft_cpu *cpu) {
    return cpu->lapic == NULL || cpu->jit.alarm_ns <= lapic_timer_deadline(cpu->lapic);
}

/* As if translated code were entered anew. */
static void enter_anew(struct soft_cpu *cpu, uint64_t key) {
    jit_set_key(cpu, key);
    cpu->jit.entered_epoch = cpu->jit.epoch;
}

/* Translated code for cpu->rip in the present state, or NULL: the run loop must look. */
static const uint8_t *go_on(struct soft_cpu *cpu) {
    if (!run_may_go_on(cpu) || !jit_usable(cpu) || !alarm_is_right(cpu))
        return NULL;
    cpu->insn = NULL;
    uint64_t key = block_key(cpu);
    const struct block *block = block_look(cpu, key);
    if (block == NULL || block->code == NULL || block->dead)
        return NULL;
    /* As the run loop does between blocks. */
    cpu->interrupt_shadow = false;
    cpu->rflags &= ~(uint64_t)FLAG_RF;
    enter_anew(cpu, key);
    jit_note_jump(cpu, block);
    return jit_entry(cpu, block);
}

static bool run_handler(struct soft_cpu *cpu, const struct insn *insn) {
    struct jit *jit = cpu->jit.jit;
    jit->scratch[0] = *insn;
    jit->scratch[1].exec = jit_callout_done;
    jit->scratch[1].offset = insn->offset + insn->length;
    jit->completed = false;
    cpu->insn = &jit->scratch[0];
    jit->scratch[0].exec(cpu, &jit->scratch[0]);
    return jit->completed;
}

/* NULL: the run loop must look. */
static const uint8_t *run_site(struct soft_cpu *cpu, const struct jit_site *site) {
    struct jit_block *made = jit_block_of_site(site);
    struct block *block = made->block;
    const struct insn *insn = &block->insns[site->insn];
    cpu->block = block;
    cpu->rip = block->rip;
    if (cpu->budget < JIT_CALLOUT_BUDGET)
        cpu->budget = run_of(cpu)->granted = JIT_CALLOUT_BUDGET;
    count_callout(&cpu->count, insn);
    jit_unpack_flags(cpu);
    struct soft_flags flags = cpu->flags;
    cpu->interrupt_shadow = false; /* it ends behind this instruction */
    uint64_t next = insn_next_rip(cpu, insn);
    bool completed = run_handler(cpu, insn);
    if (cpu->flags.result != flags.result || cpu->flags.carries != flags.carries)
        cpu->jit.saved_flags = jit_pack_flags(cpu);
    if (completed && !block->dead && cpu->jit.epoch == cpu->jit.entered_epoch && jit_usable(cpu) &&
        alarm_is_right(cpu) && block_key(cpu) == cpu->jit.key && cpu->request == 0)
        return jit_code(cpu->jit.jit, made, site->resume);
    if (completed)
        cpu->rip = next;
    return go_on(cpu);
}

const uint8_t *jit_fast_light(struct soft_cpu *cpu, uint64_t unused, uint32_t number) {
    const struct jit_site *site = jit_at(cpu->jit.jit, number);
    if (jit_block_of_site(site)->block->insns == NULL)
        return NULL;
    light_begin(cpu);
    const uint8_t *code = run_site(cpu, site);
    light_end(cpu);
    return code != NULL ? code : cpu->jit.jit->leave_here;
}

/* Where a fault is known with all that comes before it in its instruction, and flags are saved. */
const uint8_t *jit_deliver(struct soft_cpu *cpu, const struct jit_site *site,
                           const struct fault *fault) {
    const uint8_t *code = NULL;
    light_begin(cpu);
    cpu->rip = jit_block_of_site(site)->rip + site->offset;
    cpu->insn = NULL;
    cpu->cr2 = fault->address;
    jit_unpack_flags(cpu);
    if (event_deliver(cpu, fault->vector, EVENT_FAULT, true, fault->error))
        code = go_on(cpu);
    light_end(cpu);
    return code != NULL ? code : cpu->jit.jit->leave_here;
}
