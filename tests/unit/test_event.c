/* Delivery of events: frames, stacks, error codes, and what a fault on the way becomes. */
#include "soft_fixture.h"

enum {
    HANDLER = 0x8000,
    KERNEL_STACK = 0xa000, /* RSP0 */
    IST_STACK = 0xb000,
    PRESENT_STACK = 0xc000,
    SELECTOR_CODE = 0x08,
    SELECTOR_DATA = 0x10,
    SELECTOR_USER_CODE = 0x1b,
    SELECTOR_USER_DATA = 0x23,
    SELECTOR_TSS = 0x28,
    GATE_INTERRUPT = 0x8e,
    GATE_TRAP = 0x8f,
    GATE_USER = 0x60,
};

static void long_gate(struct fixture *f, unsigned vector, unsigned bits, unsigned ist) {
    uint64_t low = (HANDLER & 0xffff) | SELECTOR_CODE << 16 | (uint64_t)ist << 32 |
                   (uint64_t)bits << 40 | (uint64_t)(HANDLER >> 16) << 48;
    fixture_poke(f, FIXTURE_IDT + vector * 16, low, 8);
    fixture_poke(f, FIXTURE_IDT + vector * 16 + 8, 0, 8);
}

static void descriptors(struct fixture *f, uint64_t code) {
    fixture_poke(f, FIXTURE_GDT + SELECTOR_CODE, code, 8);
    fixture_poke(f, FIXTURE_GDT + SELECTOR_DATA, UINT64_C(0x00cf93000000ffff), 8);
    fixture_poke(f, FIXTURE_GDT + 0x18, code | UINT64_C(0x600000000000), 8);
    fixture_poke(f, FIXTURE_GDT + 0x20, UINT64_C(0x00cff3000000ffff), 8);
    f->cpu->gdtr = (struct x86_table){FIXTURE_GDT, 0x3f};
    f->cpu->idtr = (struct x86_table){FIXTURE_IDT, 0xfff};
    f->cpu->tr = (struct x86_segment){FIXTURE_TSS, 0x67, SELECTOR_TSS, SEG_P | 11};
}

static int start_long(void **state) {
    struct fixture *f = fixture_create();
    fixture_long_mode(f);
    descriptors(f, UINT64_C(0x00af9b000000ffff));
    fixture_poke(f, FIXTURE_TSS + 4, KERNEL_STACK, 8);
    fixture_poke(f, FIXTURE_TSS + 0x24, IST_STACK, 8);
    f->cpu->gpr[RSP] = PRESENT_STACK;
    f->cpu->rip = 0x1234;
    *state = f;
    return 0;
}

static int start_protected(void **state) {
    struct fixture *f = fixture_create();
    struct soft_cpu *cpu = f->cpu;
    descriptors(f, UINT64_C(0x00cf9b000000ffff));
    cpu->cr0 = CR0_PE;
    cpu->segment[SEG_CS] = segment_flat_of(SELECTOR_CODE, 0xc09b);
    cpu->segment[SEG_SS] = segment_flat_of(SELECTOR_DATA, 0xc093);
    fixture_poke(f, FIXTURE_TSS + 4, KERNEL_STACK, 4);
    fixture_poke(f, FIXTURE_TSS + 8, SELECTOR_DATA, 4);
    cpu->gpr[RSP] = PRESENT_STACK;
    cpu->rip = 0x1234;
    mmu_mode_changed(cpu);
    *state = f;
    return 0;
}

static int stop(void **state) {
    fixture_destroy(*state);
    return 0;
}

static uint64_t stack_at(struct fixture *f, unsigned slot) {
    return fixture_peek(f, f->cpu->gpr[RSP] + slot * 8, 8);
}

static void user_mode(struct fixture *f) {
    f->cpu->segment[SEG_CS].selector = SELECTOR_USER_CODE;
    f->cpu->segment[SEG_SS].selector = SELECTOR_USER_DATA;
    fixture_cpl(f, 3);
}

static void long_frame_at_same_level(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    cpu->gpr[RSP] = PRESENT_STACK - 3;
    flags_set(cpu, FLAG_IF | FLAG_TF | FLAG_NT | FLAG_CF | FLAGS_FIXED);
    long_gate(f, EXC_GP, GATE_INTERRUPT, 0);
    assert_true(event_deliver(cpu, EXC_GP, EVENT_FAULT, true, 0x18));
    assert_int_equal(cpu->rip, HANDLER);
    assert_int_equal(cpu->gpr[RSP], PRESENT_STACK - 16 - 48);
    assert_int_equal(stack_at(f, 0), 0x18);
    assert_int_equal(stack_at(f, 1), 0x1234);
    assert_int_equal(stack_at(f, 2), SELECTOR_CODE);
    assert_int_equal(stack_at(f, 3), FLAG_IF | FLAG_TF | FLAG_NT | FLAG_CF | FLAG_RF | FLAGS_FIXED);
    assert_int_equal(stack_at(f, 4), PRESENT_STACK - 3);
    assert_int_equal(stack_at(f, 5), 0x10);
    assert_int_equal(flags_get(cpu), FLAG_CF | FLAGS_FIXED);
    assert_int_equal(cpu->segment[SEG_SS].selector, 0x10);
}

static void long_frame_from_user(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    user_mode(f);
    cpu->rflags |= FLAG_IF;
    long_gate(f, 0x40, GATE_TRAP, 0);
    assert_true(event_deliver(cpu, 0x40, EVENT_INTERRUPT, false, 0));
    assert_int_equal(cpu->gpr[RSP], KERNEL_STACK - 40);
    assert_int_equal(stack_at(f, 1), SELECTOR_USER_CODE);
    assert_int_equal(stack_at(f, 2) & FLAG_RF, 0);
    assert_int_equal(stack_at(f, 4), SELECTOR_USER_DATA);
    assert_int_equal(cpu->cpl, 0);
    assert_int_equal(cpu->segment[SEG_SS].selector, 0); /* null, RPL 0 */
    assert_int_equal(cpu->segment[SEG_SS].attributes, 0);
    assert_true(cpu->rflags & FLAG_IF); /* a trap gate leaves it */
    assert_int_equal(cpu->counters.interrupts, 1);
}

static void ist_switches_always(void **state) {
    struct fixture *f = *state;
    long_gate(f, EXC_NMI, GATE_INTERRUPT, 1);
    assert_true(event_deliver(f->cpu, EXC_NMI, EVENT_NMI, false, 0));
    assert_int_equal(f->cpu->gpr[RSP], IST_STACK - 40);
    assert_int_equal(stack_at(f, 3), PRESENT_STACK);
    assert_true(f->cpu->nmi_blocked);
}

static void absent_gate_is_np(void **state) {
    struct fixture *f = *state;
    long_gate(f, 0x40, GATE_INTERRUPT & ~0x80, 0);
    long_gate(f, EXC_NP, GATE_INTERRUPT, 0);
    assert_true(event_deliver(f->cpu, 0x40, EVENT_INTERRUPT, false, 0));
    assert_int_equal(stack_at(f, 0), 0x40 * 8 | 3); /* IDT, EXT */
}

static void beyond_the_table_is_gp(void **state) {
    struct fixture *f = *state;
    f->cpu->idtr.limit = 0x3ff;
    long_gate(f, EXC_GP, GATE_INTERRUPT, 0);
    assert_true(event_deliver(f->cpu, 0x40, EVENT_INTERRUPT, false, 0));
    assert_int_equal(stack_at(f, 0), 0x40 * 8 | 3);
}

static void two_contributory_faults_double(void **state) {
    struct fixture *f = *state;
    long_gate(f, EXC_GP, 0, 0); /* wrong type: #GP again */
    long_gate(f, EXC_DF, GATE_INTERRUPT, 1);
    assert_true(event_deliver(f->cpu, EXC_GP, EVENT_FAULT, true, 0));
    assert_int_equal(f->cpu->gpr[RSP], IST_STACK - 48);
    assert_int_equal(stack_at(f, 0), 0);
}

static void page_fault_on_the_stack_doubles(void **state) {
    struct fixture *f = *state;
    f->cpu->gpr[RSP] = 0x700000; /* not mapped */
    long_gate(f, EXC_PF, GATE_INTERRUPT, 0);
    long_gate(f, EXC_DF, GATE_INTERRUPT, 1);
    assert_true(event_deliver(f->cpu, EXC_PF, EVENT_FAULT, true, 2));
    assert_int_equal(f->cpu->gpr[RSP], IST_STACK - 48);
    assert_int_equal(f->cpu->cr2, 0x700000 - 48);
}

/* A page fault while a benign event is delivered comes on its own. */
static void page_fault_after_benign(void **state) {
    struct fixture *f = *state;
    f->cpu->gpr[RSP] = 0x700000;
    long_gate(f, 0x40, GATE_INTERRUPT, 0);
    long_gate(f, EXC_PF, GATE_INTERRUPT, 1);
    assert_true(event_deliver(f->cpu, 0x40, EVENT_INTERRUPT, false, 0));
    assert_int_equal(stack_at(f, 0), PF_WRITE);
    assert_int_equal(stack_at(f, 1), 0x1234);
}

static void triple_fault_shuts_down(void **state) {
    struct fixture *f = *state;
    assert_false(event_deliver(f->cpu, EXC_UD, EVENT_FAULT, false, 0));
    assert_int_equal(f->cpu->exit.stop, VCPU_SHUTDOWN);
    assert_true(atomic_load(&f->cpu->request) & REQUEST_STOP);
    assert_int_equal(f->cpu->rip, 0x1234);
}

static void protected_inner_level(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    fixture_poke(f, FIXTURE_IDT + 0x40 * 8,
                 HANDLER | SELECTOR_CODE << 16 | UINT64_C(0x8e0000000000), 8);
    user_mode(f);
    assert_true(event_deliver(cpu, 0x40, EVENT_INTERRUPT, false, 0));
    assert_int_equal(cpu->gpr[RSP], KERNEL_STACK - 20);
    assert_int_equal(fixture_peek(f, KERNEL_STACK - 4, 4), SELECTOR_USER_DATA);
    assert_int_equal(fixture_peek(f, KERNEL_STACK - 8, 4), PRESENT_STACK);
    assert_int_equal(fixture_peek(f, KERNEL_STACK - 16, 4), SELECTOR_USER_CODE);
    assert_int_equal(fixture_peek(f, KERNEL_STACK - 20, 4), 0x1234);
    assert_int_equal(cpu->cpl, 0);
    assert_int_equal(cpu->segment[SEG_SS].selector, SELECTOR_DATA);
}

static void protected_bad_stack_is_ts(void **state) {
    struct fixture *f = *state;
    uint64_t gate = HANDLER | SELECTOR_CODE << 16 | UINT64_C(0x8e0000000000);
    fixture_poke(f, FIXTURE_IDT + 0x40 * 8, gate, 8);
    fixture_poke(f, FIXTURE_TSS + 8, SELECTOR_USER_DATA, 4); /* wrong level */
    user_mode(f);
    assert_false(event_deliver(f->cpu, 0x40, EVENT_INTERRUPT, false, 0));
    assert_int_equal(f->cpu->exit.stop, VCPU_SHUTDOWN);
}

static void protected_16_bit_gate(void **state) {
    struct fixture *f = *state;
    fixture_poke(f, FIXTURE_IDT + EXC_GP * 8,
                 HANDLER | SELECTOR_CODE << 16 | UINT64_C(0x860000000000), 8);
    assert_true(event_deliver(f->cpu, EXC_GP, EVENT_FAULT, true, 0x50));
    assert_int_equal(f->cpu->gpr[RSP], PRESENT_STACK - 8);
    assert_int_equal(fixture_peek(f, PRESENT_STACK - 8, 2), 0x50);
    assert_int_equal(fixture_peek(f, PRESENT_STACK - 6, 2), 0x1234);
}

static void real_mode_vector_table(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    cpu->cr0 = 0;
    cpu->idtr = (struct x86_table){0, 0x3ff};
    cpu->segment[SEG_CS] = (struct x86_segment){0x10000, 0xffff, 0x1000, 0x9b};
    cpu->segment[SEG_SS] = (struct x86_segment){0x20000, 0xffff, 0x2000, 0x93};
    cpu->gpr[RSP] = 4; /* wraps */
    cpu->rflags |= FLAG_IF;
    fixture_poke(f, 0x21 * 4, 0x30000042, 4);
    mmu_mode_changed(cpu);
    assert_true(event_deliver(cpu, 0x21, EVENT_INTERRUPT, false, 0));
    assert_int_equal(cpu->rip, 0x42);
    assert_int_equal(cpu->segment[SEG_CS].base, 0x30000);
    assert_int_equal(cpu->gpr[RSP], 0xfffe);
    assert_int_equal(fixture_peek(f, 0x20002, 2), FLAG_IF | FLAGS_FIXED);
    assert_int_equal(fixture_peek(f, 0x20000, 2), 0x1000);
    assert_int_equal(fixture_peek(f, 0x2fffe, 2), 0x1234);
    assert_int_equal(cpu->rflags & FLAG_IF, 0);
}

/* ---- Segment loads ---- */

struct load_case {
    unsigned seg;
    uint16_t selector;
    unsigned cpl;
    int vector; /* -1: loads */
    uint32_t error;
};

static const struct load_case load_cases[] = {
    {SEG_DS, SELECTOR_DATA, 0, -1, 0},
    {SEG_DS, 0, 3, -1, 0},
    {SEG_DS, SELECTOR_USER_DATA, 0, -1, 0},
    {SEG_DS, SELECTOR_DATA | 3, 0, EXC_GP, SELECTOR_DATA},
    {SEG_DS, SELECTOR_DATA, 3, EXC_GP, SELECTOR_DATA},
    {SEG_ES, SELECTOR_CODE, 0, -1, 0}, /* readable code */
    {SEG_ES, 0x40, 0, EXC_GP, 0x40},   /* beyond the table */
    {SEG_ES, 0x3c, 0, EXC_GP, 0x3c},   /* no LDT */
    {SEG_FS, 0x30, 0, EXC_NP, 0x30},
    {SEG_SS, SELECTOR_DATA, 0, -1, 0},
    {SEG_SS, 0, 0, -1, 0}, /* null is fine in 64-bit mode below CPL 3 */
    {SEG_SS, 3, 3, EXC_GP, 0},
    {SEG_SS, SELECTOR_USER_DATA, 3, -1, 0},
    {SEG_SS, SELECTOR_USER_DATA, 0, EXC_GP, SELECTOR_USER_DATA & ~3},
    {SEG_SS, SELECTOR_CODE, 0, EXC_GP, SELECTOR_CODE},
    {SEG_SS, 0x30, 0, EXC_SS, 0x30},
};

static void loads_segments(void **state) {
    struct fixture *f = *state;
    fixture_poke(f, FIXTURE_GDT + 0x30, UINT64_C(0x00cf13000000ffff), 8); /* data, not present */
    for (size_t i = 0; i < ARRAY_SIZE(load_cases); i++) {
        const struct load_case *c = &load_cases[i];
        struct fault fault;
        fixture_cpl(f, c->cpl);
        bool ok = segment_load(f->cpu, c->seg, c->selector, &fault);
        assert_int_equal(ok, c->vector < 0);
        if (ok)
            assert_int_equal(f->cpu->segment[c->seg].selector, c->selector);
        else
            assert_int_equal(fault.vector, c->vector);
        if (!ok)
            assert_int_equal(fault.error, c->error);
    }
}

static void sets_the_accessed_bit(void **state) {
    struct fixture *f = *state;
    struct fault fault;
    fixture_poke(f, FIXTURE_GDT + SELECTOR_DATA, UINT64_C(0x12cf92345678ffff), 8);
    assert_true(segment_load(f->cpu, SEG_DS, SELECTOR_DATA, &fault));
    assert_int_equal(fixture_peek(f, FIXTURE_GDT + SELECTOR_DATA + 5, 1), 0x93);
    assert_int_equal(f->cpu->segment[SEG_DS].base, 0x12345678);
    assert_int_equal(f->cpu->segment[SEG_DS].limit, UINT32_MAX);
}

#define LONG(name)      cmocka_unit_test_setup_teardown(name, start_long, stop)
#define PROTECTED(name) cmocka_unit_test_setup_teardown(name, start_protected, stop)

int main(void) {
    const struct CMUnitTest tests[] = {
        LONG(long_frame_at_same_level),
        LONG(long_frame_from_user),
        LONG(ist_switches_always),
        LONG(absent_gate_is_np),
        LONG(beyond_the_table_is_gp),
        LONG(two_contributory_faults_double),
        LONG(page_fault_on_the_stack_doubles),
        LONG(page_fault_after_benign),
        LONG(triple_fault_shuts_down),
        LONG(loads_segments),
        LONG(sets_the_accessed_bit),
        PROTECTED(protected_inner_level),
        PROTECTED(protected_bad_stack_is_ts),
        PROTECTED(protected_16_bit_gate),
        PROTECTED(real_mode_vector_table),
    };
    return cmocka_run_group_tests_name("soft events", tests, NULL, NULL);
}
