/*
 * Far transfers and system instructions in 32-bit protected mode, handler by
 * handler: call gates, returns to outer levels, IRET, virtual-8086 mode, and
 * what they refuse. Long mode's are in guest/baremetal, where Linux is, too.
 */
#include "soft_fixture.h"

enum {
    CODE0 = 0x08,
    DATA0 = 0x10,
    CODE3 = 0x1b,
    DATA3 = 0x23,
    CONFORMING = 0x28,
    GATE = 0x33, /* call gate, DPL 3 */
    TASK_GATE = 0x38,
    ABSENT = 0x40,
    TSS_FREE = 0x48,
    LDT = 0x50,
    STACK = 0xc000,
    RING0_STACK = 0xa000,
    USER_STACK = 0xe000,
    RIP = 0x5000,
    TARGET = 0x8000,
};

static void done(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->rip = insn_rip(cpu, insn);
}

/* Runs a handler as the instruction at RIP. The vector it raises, or -1. */
static int run(struct fixture *f, insn_exec *exec, struct insn insn) {
    struct soft_cpu *cpu = f->cpu;
    struct insn code[2] = {insn, {.exec = done, .offset = insn.length}};
    cpu->event.pending = false;
    cpu->event.error = 0;
    cpu->rip = RIP;
    if (setjmp(cpu->unwind) != 0) {
        assert_true(cpu->event.pending);
        assert_int_equal(cpu->rip, RIP); /* faults are precise */
        return cpu->event.vector;
    }
    exec(cpu, code);
    return -1;
}

static struct insn far_to(uint16_t selector, uint32_t offset) {
    return (struct insn){
        .length = 7, .size = 4, .imm = (uint64_t)selector << 32 | offset, .address_size = 4};
}

static const struct insn plain = {.length = 1, .size = 4, .address_size = 4};

static void descriptor(struct fixture *f, unsigned selector, uint64_t value) {
    fixture_poke(f, FIXTURE_GDT + (selector & ~7u), value, 8);
}

static int start(void **state) {
    struct fixture *f = fixture_create();
    struct soft_cpu *cpu = f->cpu;
    descriptor(f, CODE0, UINT64_C(0x00cf9b000000ffff));
    descriptor(f, DATA0, UINT64_C(0x00cf93000000ffff));
    descriptor(f, CODE3, UINT64_C(0x00cffb000000ffff));
    descriptor(f, DATA3, UINT64_C(0x00cff3000000ffff));
    descriptor(f, CONFORMING, UINT64_C(0x00cf9f000000ffff));
    descriptor(f, GATE, UINT64_C(0x0000ec0200000000) | CODE0 << 16 | TARGET); /* 2 parameters */
    descriptor(f, TASK_GATE, UINT64_C(0x0000e50000000000));
    descriptor(f, ABSENT, UINT64_C(0x00cf1b000000ffff));
    descriptor(f, TSS_FREE, UINT64_C(0x0000890040000067));
    descriptor(f, LDT, UINT64_C(0x0000820060000fff));
    cpu->gdtr = (struct x86_table){FIXTURE_GDT, 0x57};
    cpu->idtr = (struct x86_table){FIXTURE_IDT, 0x7ff};
    cpu->tr = (struct x86_segment){FIXTURE_TSS, 0x67, TSS_FREE, SEG_P | 11};
    fixture_poke(f, FIXTURE_TSS + 4, RING0_STACK, 4);
    fixture_poke(f, FIXTURE_TSS + 8, DATA0, 4);
    cpu->cr0 = CR0_PE;
    cpu->segment[SEG_CS] = segment_flat_of(CODE0, 0xc09b);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (i != SEG_CS)
            cpu->segment[i] = segment_flat_of(DATA0, 0xc093);
    cpu->gpr[RSP] = STACK;
    mmu_mode_changed(cpu);
    *state = f;
    return 0;
}

static int stop(void **state) {
    fixture_destroy(*state);
    return 0;
}

static void user_mode(struct fixture *f) {
    struct soft_cpu *cpu = f->cpu;
    cpu->segment[SEG_CS] = segment_flat_of(CODE3, 0xc0fb);
    cpu->segment[SEG_SS] = segment_flat_of(DATA3, 0xc0f3);
    cpu->segment[SEG_DS] = segment_flat_of(DATA3, 0xc0f3);
    cpu->gpr[RSP] = USER_STACK;
    cpu->cpl = 3;
    mmu_mode_changed(cpu);
}

static void stack_is(struct fixture *f, unsigned count, const uint32_t *words) {
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(fixture_peek(f, f->cpu->gpr[RSP] + 4 * i, 4), words[i]);
}

static void push_words(struct fixture *f, unsigned count, const uint32_t *words) {
    f->cpu->gpr[RSP] -= 4 * count;
    for (unsigned i = 0; i < count; i++)
        fixture_poke(f, f->cpu->gpr[RSP] + 4 * i, words[i], 4);
}

/* ---- Jumps and calls ---- */

struct jump_case {
    uint16_t selector;
    uint32_t offset;
    unsigned cpl;
    int vector;
    uint32_t error;
};

static const struct jump_case jump_cases[] = {
    {CODE0, TARGET, 0, -1, 0},
    {CONFORMING, TARGET, 3, -1, 0},
    {CODE3, TARGET, 3, -1, 0},
    {0, TARGET, 0, EXC_GP, 0},
    {CODE0, TARGET, 3, EXC_GP, CODE0},
    {CODE3, TARGET, 0, EXC_GP, CODE3 & ~3},
    {DATA0, TARGET, 0, EXC_GP, DATA0},
    {ABSENT, TARGET, 0, EXC_NP, ABSENT},
    {0x60, TARGET, 0, EXC_GP, 0x60},      /* beyond the table */
    {TASK_GATE, 0, 0, EXC_GP, TASK_GATE}, /* task switches are refused */
    {TSS_FREE, 0, 0, EXC_GP, TSS_FREE},
};

static void jumps(void **state) {
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(jump_cases); i++) {
        const struct jump_case *c = &jump_cases[i];
        stop(state);
        start(state);
        f = *state;
        if (c->cpl == 3)
            user_mode(f);
        assert_int_equal(run(f, jmp_far_a, far_to(c->selector, c->offset)), c->vector);
        if (c->vector < 0) {
            assert_int_equal(f->cpu->rip, c->offset);
            assert_int_equal(f->cpu->segment[SEG_CS].selector, (c->selector & ~3u) | c->cpl);
            assert_int_equal(f->cpu->cpl, c->cpl);
        } else {
            assert_int_equal(f->cpu->event.error, c->error);
        }
    }
}

static void jump_beyond_the_limit(void **state) {
    struct fixture *f = *state;
    descriptor(f, CODE0, UINT64_C(0x00409b000000ffff)); /* 64 KiB */
    assert_int_equal(run(f, jmp_far_a, far_to(CODE0, 0x10000)), EXC_GP);
    assert_int_equal(f->cpu->event.error, 0);
    assert_int_equal(run(f, jmp_far_a, far_to(CODE0, 0xffff)), -1);
}

static void call_pushes(void **state) {
    struct fixture *f = *state;
    assert_int_equal(run(f, call_far_a, far_to(CODE0, TARGET)), -1);
    stack_is(f, 2, (uint32_t[]){RIP + 7, CODE0});
    assert_int_equal(f->cpu->rip, TARGET);
    assert_int_equal(run(f, ret_far, plain), -1);
    assert_int_equal(f->cpu->rip, RIP + 7);
    assert_int_equal(f->cpu->gpr[RSP], STACK);
}

static void call_gate_to_inner_level(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    user_mode(f);
    push_words(f, 2, (uint32_t[]){0x11, 0x22});
    assert_int_equal(run(f, call_far_a, far_to(GATE, 0xdead)), -1);
    assert_int_equal(cpu->cpl, 0);
    assert_int_equal(cpu->rip, TARGET);
    assert_int_equal(cpu->segment[SEG_SS].selector, DATA0);
    assert_int_equal(cpu->gpr[RSP], RING0_STACK - 24);
    stack_is(f, 6, (uint32_t[]){RIP + 7, CODE3, 0x11, 0x22, USER_STACK - 8, DATA3});
    /* And back, releasing the parameters on both stacks. */
    struct insn ret = {.length = 3, .size = 4, .imm = 8};
    assert_int_equal(run(f, ret_far_i, ret), -1);
    assert_int_equal(cpu->cpl, 3);
    assert_int_equal(cpu->rip, RIP + 7);
    assert_int_equal(cpu->segment[SEG_SS].selector, DATA3);
    assert_int_equal(cpu->gpr[RSP], USER_STACK);
}

static void call_gate_refused(void **state) {
    struct fixture *f = *state;
    user_mode(f);
    descriptor(f, GATE, UINT64_C(0x0000cc0000000000) | CODE0 << 16 | TARGET); /* DPL 2 */
    assert_int_equal(run(f, call_far_a, far_to(GATE, 0)), EXC_GP);
    assert_int_equal(f->cpu->event.error, GATE & ~3);
    descriptor(f, GATE, UINT64_C(0x00006c0000000000) | CODE0 << 16 | TARGET); /* not present */
    assert_int_equal(run(f, call_far_a, far_to(GATE, 0)), EXC_NP);
    descriptor(f, GATE, UINT64_C(0x0000ec0000000000) | CODE0 << 16 | TARGET);
    assert_int_equal(run(f, jmp_far_a, far_to(GATE, 0)), EXC_GP); /* JMP changes no level */
    assert_int_equal(f->cpu->event.error, CODE0);
    fixture_poke(f, FIXTURE_TSS + 8, DATA3, 4);
    assert_int_equal(run(f, call_far_a, far_to(GATE, 0)), EXC_TS);
    assert_int_equal(f->cpu->event.error, DATA3 & ~3);
    f->cpu->tr.limit = 7;
    assert_int_equal(run(f, call_far_a, far_to(GATE, 0)), EXC_TS);
    assert_int_equal(f->cpu->event.error, TSS_FREE);
    assert_int_equal(f->cpu->gpr[RSP], USER_STACK);
}

/* ---- Returns ---- */

static void return_to_outer_level(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    push_words(f, 4, (uint32_t[]){TARGET, CODE3, USER_STACK, DATA3});
    cpu->segment[SEG_ES] = segment_flat_of(DATA3, 0xc0f3);
    assert_int_equal(run(f, ret_far, plain), -1);
    assert_int_equal(cpu->cpl, 3);
    assert_int_equal(cpu->gpr[RSP], USER_STACK);
    assert_int_equal(cpu->segment[SEG_DS].attributes, 0); /* of the inner level: gone */
    assert_int_equal(cpu->segment[SEG_ES].selector, DATA3);
}

static void return_refused(void **state) {
    struct fixture *f = *state;
    push_words(f, 4, (uint32_t[]){TARGET, CODE3, USER_STACK, DATA0});
    assert_int_equal(run(f, ret_far, plain), EXC_GP);
    assert_int_equal(f->cpu->event.error, DATA0);
    push_words(f, 2, (uint32_t[]){TARGET, 0});
    assert_int_equal(run(f, ret_far, plain), EXC_GP);
    user_mode(f);
    push_words(f, 2, (uint32_t[]){TARGET, CODE0}); /* inwards */
    assert_int_equal(run(f, ret_far, plain), EXC_GP);
    assert_int_equal(f->cpu->event.error, CODE0);
    assert_int_equal(f->cpu->gpr[RSP], USER_STACK - 8);
}

static void iret_between_levels(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    uint32_t flags = FLAG_IF | FLAG_CF | FLAG_IOPL | FLAGS_FIXED;
    cpu->nmi_blocked = true;
    push_words(f, 5, (uint32_t[]){TARGET, CODE3, flags, USER_STACK, DATA3});
    assert_int_equal(run(f, iret, plain), -1);
    assert_int_equal(cpu->cpl, 3);
    assert_int_equal(flags_get(cpu), flags);
    assert_int_equal(cpu->gpr[RSP], USER_STACK);
    assert_false(cpu->nmi_blocked);
    /* At CPL 3 with IOPL 0, IRET changes neither IF nor IOPL. */
    cpu->rflags &= ~(uint64_t)FLAG_IOPL;
    push_words(f, 3, (uint32_t[]){TARGET, CODE3, FLAG_IOPL});
    assert_int_equal(run(f, iret, plain), -1);
    assert_int_equal(flags_get(cpu), FLAG_IF | FLAGS_FIXED);
}

static void iret_from_a_task(void **state) {
    struct fixture *f = *state;
    f->cpu->rflags |= FLAG_NT;
    push_words(f, 3, (uint32_t[]){TARGET, CODE0, FLAGS_FIXED});
    assert_int_equal(run(f, iret, plain), EXC_GP);
}

static void virtual_8086_and_back(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    uint32_t flags = FLAG_VM | FLAG_IF | FLAGS_FIXED;
    push_words(f, 9,
               (uint32_t[]){0x123, 0x1000, flags, 0x800, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000});
    assert_int_equal(run(f, iret, plain), -1);
    assert_int_equal(cpu->cpl, 3);
    assert_int_equal(cpu->mode, INSN_MODE_16);
    assert_int_equal(cpu->segment[SEG_CS].base, 0x10000);
    assert_int_equal(cpu->segment[SEG_GS].base, 0x60000);
    assert_int_equal(cpu->rip, 0x123);
    fixture_poke(f, FIXTURE_IDT + 0x40 * 8, TARGET | CODE0 << 16 | UINT64_C(0x8e0000000000), 8);
    assert_true(event_deliver(cpu, 0x40, EVENT_INTERRUPT, false, 0));
    assert_int_equal(cpu->cpl, 0);
    assert_int_equal(cpu->gpr[RSP], RING0_STACK - 36);
    stack_is(f, 9,
             (uint32_t[]){0x123, 0x1000, flags, 0x800, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000});
    assert_int_equal(cpu->segment[SEG_DS].attributes, 0);
    assert_int_equal(run(f, iret, plain), -1);
    assert_int_equal(cpu->segment[SEG_SS].base, 0x20000);
}

static void int_n(struct soft_cpu *cpu, const struct insn *insn) {
    event_software(cpu, insn, 0x40);
}

/* INT n is a fault's source, too: RIP is the instruction's own then, else the next one's. */
static void software_interrupts(void **state) {
    struct fixture *f = *state;
    const struct insn insn = {.length = 2, .size = 4, .opcode = 0xcd};
    uint64_t gate = TARGET | CODE0 << 16 | UINT64_C(0x8e0000000000);
    fixture_poke(f, FIXTURE_IDT + 0x40 * 8, gate, 8);
    assert_int_equal(run(f, int_n, insn), -1);
    stack_is(f, 3, (uint32_t[]){RIP + 2, CODE0, FLAGS_FIXED});
    user_mode(f);
    assert_int_equal(run(f, int_n, insn), EXC_GP); /* DPL 0 */
    assert_int_equal(f->cpu->event.error, 0x40 * 8 + 2);
    fixture_poke(f, FIXTURE_IDT + 0x40 * 8, gate | UINT64_C(0x600000000000), 8);
    f->cpu->rflags |= FLAG_VM;
    assert_int_equal(run(f, int_n, insn), EXC_GP); /* IOPL is not 3 */
    assert_int_equal(f->cpu->event.error, 0);
}

/* ---- System segments ---- */

static int load(struct fixture *f, insn_exec *exec, uint16_t selector) {
    f->cpu->gpr[RCX] = selector;
    return run(f, exec, (struct insn){.length = 3, .size = 2, .rm = RCX});
}

static void task_register(void **state) {
    struct fixture *f = *state;
    assert_int_equal(load(f, ltr_r, 0), EXC_GP);
    assert_int_equal(load(f, ltr_r, DATA0), EXC_GP);
    assert_int_equal(f->cpu->event.error, DATA0);
    assert_int_equal(load(f, ltr_r, TSS_FREE), -1);
    assert_int_equal(f->cpu->tr.base, 0x4000);
    assert_int_equal(fixture_peek(f, FIXTURE_GDT + TSS_FREE + 5, 1), 0x8b); /* busy */
    assert_int_equal(load(f, ltr_r, TSS_FREE), EXC_GP);                     /* busy now */
}

static void local_table(void **state) {
    struct fixture *f = *state;
    struct fault fault;
    assert_int_equal(load(f, lldt_r, LDT), -1);
    fixture_poke(f, 0x6008, UINT64_C(0x00cf93000000ffff), 8);
    assert_true(segment_load(f->cpu, SEG_FS, 0x0c, &fault));
    assert_int_equal(load(f, lldt_r, 0), -1);
    assert_false(segment_load(f->cpu, SEG_FS, 0x0c, &fault));
    assert_int_equal(fault.error, 0x0c);
    assert_int_equal(load(f, lldt_r, LDT | SELECTOR_TI), EXC_GP);
}

static bool zf_of(struct fixture *f, insn_exec *exec, uint16_t selector) {
    f->cpu->gpr[RAX] = 0x5555;
    f->cpu->gpr[RCX] = selector;
    assert_int_equal(run(f, exec, (struct insn){.length = 3, .size = 4, .rm = RCX, .reg = RAX}),
                     -1);
    return flags_get(f->cpu) & FLAG_ZF;
}

static void questions(void **state) {
    struct fixture *f = *state;
    assert_true(zf_of(f, lar_r, CODE0));
    assert_int_equal(f->cpu->gpr[RAX] & 0xf0ff00, 0xc09b00);
    assert_true(zf_of(f, lsl_r, LDT));
    assert_int_equal(f->cpu->gpr[RAX], 0xfff);
    assert_false(zf_of(f, lsl_r, GATE));
    assert_int_equal(f->cpu->gpr[RAX], 0x5555);
    assert_true(zf_of(f, lar_r, GATE));
    assert_false(zf_of(f, lar_r, 0));
    assert_true(zf_of(f, verr_r, CODE0));
    assert_false(zf_of(f, verw_r, CODE0));
    assert_true(zf_of(f, verw_r, DATA0));
    user_mode(f);
    assert_false(zf_of(f, verw_r, DATA0));
    assert_true(zf_of(f, verr_r, CONFORMING));
    assert_false(zf_of(f, lar_r, CODE0));
}

#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void) {
    const struct CMUnitTest tests[] = {
        T(jumps),
        T(jump_beyond_the_limit),
        T(call_pushes),
        T(call_gate_to_inner_level),
        T(call_gate_refused),
        T(return_to_outer_level),
        T(return_refused),
        T(iret_between_levels),
        T(iret_from_a_task),
        T(virtual_8086_and_back),
        T(software_interrupts),
        T(task_register),
        T(local_table),
        T(questions),
    };
    return cmocka_run_group_tests_name("far transfers", tests, NULL, NULL);
}
