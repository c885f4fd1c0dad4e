/*
 * The soft engine through the public contract: small programs in real and long mode. Long mode runs
 * with 2 MiB identity pages over 16 MiB. Programs end by writing to port 0xf4, which kicks.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine_rig.h"

enum {
    RAM = 16 << 20,
    CODE = 0x10000,
    STACK = 0x20000,
    DATA = 0x30000,
    TABLES = 0x1000,
    GDT = 0x5000,
    IDT = 0x6000,
    HANDLERS = 0x8000,
    END_PORT = RIG_END_PORT,
};

static uint64_t peek64(struct engine_rig *rig, uint64_t gpa) {
    uint64_t value = 0;
    assert_int_equal(memory_read(rig->memory, gpa, &value, sizeof value), 0);
    return value;
}

static int setup(void **state) {
    static struct engine_rig rig;
    struct engine_config config = {.vcpus = 2};
    assert_int_equal(rig_create(&rig, ENGINE_SOFT, RAM, config, NULL), 0);
    rig_add_end_port(&rig);
    assert_int_equal(vcpu_create(rig.engine, 0, &rig.vcpu, NULL), 0);
    *state = &rig;
    return 0;
}

static int teardown(void **state) {
    rig_destroy(*state);
    return 0;
}

/* Exception n's handler is at HANDLERS + 16 n: `mov ebx, n; out 0xf4, al; hlt`. */
static void build_idt(struct engine_rig *rig) {
    for (unsigned n = 0; n < 32; n++) {
        uint64_t at = HANDLERS + 16 * n;
        uint8_t code[] = {0xbb, (uint8_t)n, 0, 0, 0, 0xe6, END_PORT, 0xf4};
        rig_poke(rig, at, code, sizeof code);
        rig_poke64(rig, IDT + 16 * n, (at & 0xffff) | 8 << 16 | (uint64_t)0x8e00 << 32);
        rig_poke64(rig, IDT + 16 * n + 8, 0);
    }
}

static struct x86_state long_mode(struct engine_rig *rig) {
    struct x86_state state;
    build_idt(rig);
    vcpu_reset(rig->vcpu, false);
    rig_long_mode(rig, TABLES, GDT, RAM, &state);
    state.idtr = (struct x86_table){IDT, 32 * 16 - 1};
    state.rip = CODE;
    state.gpr[RSP] = STACK;
    return state;
}

static void run_from(struct engine_rig *rig, struct x86_state *state) {
    struct vcpu_exit exit;
    struct error err = {0};
    int r = vcpu_set_state(rig->vcpu, state, &err);
    if (r < 0)
        print_error("%s\n", err.text);
    assert_int_equal(r, 0);
    vcpu_run(rig->vcpu, &exit);
    if (exit.stop != VCPU_KICKED)
        print_error("stop %d: %s\n", exit.stop, exit.text);
    assert_int_equal(exit.stop, VCPU_KICKED);
    vcpu_get_state(rig->vcpu, state);
}

#define PROGRAM(rig, text) rig_poke(rig, CODE, text, sizeof(text) - 1)
#define END                "\xe6\xf4\xf4" /* out 0xf4, al; hlt */

static void test_loop(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    struct vcpu_counters counters;
    /* mov ecx, 1000; xor eax, eax; again: add rax, rcx; dec rcx; jnz again */
    PROGRAM(rig, "\xb9\xe8\x03\0\0\x31\xc0\x48\x01\xc8\x48\xff\xc9\x75\xf8" END);
    run_from(rig, &state);
    assert_int_equal(state.gpr[RAX], 500500);
    assert_int_equal(state.gpr[RCX], 0);
    assert_int_equal(state.rip, CODE + 17);
    vcpu_get_counters(rig->vcpu, &counters);
    if (strcmp(getenv("LODGE_TRANSLATE"), "off") == 0) /* translated code does not count */
        assert_int_equal(counters.instructions, 2 + 3 * 1000 + 1);
}

static void test_calls(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    /* call 1f; call 1f; end; 1: push rax; inc qword [DATA]; pop rdx; ret */
    PROGRAM(rig, "\xe8\x08\0\0\0\xe8\x03\0\0\0" END "\x50\x48\xff\x04\x25\0\0\x03\0\x5a\xc3");
    state.gpr[RAX] = 7;
    rig_poke64(rig, DATA, 40);
    run_from(rig, &state);
    assert_int_equal(peek64(rig, DATA), 42);
    assert_int_equal(state.gpr[RDX], 7);
    assert_int_equal(state.gpr[RSP], STACK);
}

/* An instruction that writes into the very next one: the new byte takes effect. */
static void test_self_modifying(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    /* mov byte [rip+1], 0x99: into the immediate of the mov al, 0x11 that follows */
    PROGRAM(rig, "\xc6\x05\x01\0\0\0\x99\xb0\x11\xb4\x22" END);
    run_from(rig, &state);
    assert_int_equal(state.gpr[RAX] & 0xffff, 0x2299);
    /* Once more, now that the block has been run. */
    state.rip = CODE;
    PROGRAM(rig, "\xc6\x05\x01\0\0\0\x77\xb0\x11\xb4\x22" END);
    run_from(rig, &state);
    assert_int_equal(state.gpr[RAX] & 0xffff, 0x2277);
}

/* A loop that changes its own body on the way, across a page boundary. */
static void test_self_modifying_straddle(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    /* At page end - 2: mov ebx, imm32 straddles. First jump there, then patch its last byte. */
    rig_poke(rig, CODE + 0xffe, "\xbb\x01\x02\x03\x04\xff\xe7", 7); /* mov ebx, ..; jmp rdi */
    PROGRAM(rig, "\xff\xe6");                                       /* jmp rsi */
    rig_poke(rig, CODE + 0x100, "\x89\xd9\xc6\x02\x55\xbf\0\x02\x01\0\xff\xe6", 12);
    /* 100: mov ecx, ebx; mov byte [rdx], 0x55; mov edi, CODE+0x200; jmp rsi */
    rig_poke(rig, CODE + 0x200, END, 3);
    state.gpr[RSI] = CODE + 0xffe;
    state.gpr[RDI] = CODE + 0x100;
    state.gpr[RDX] = CODE + 0x1002;
    run_from(rig, &state);
    assert_int_equal(state.gpr[RCX], 0x04030201);
    assert_int_equal(state.gpr[RBX], 0x55030201);
}

static void test_divide_error(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    PROGRAM(rig, "\x90\x31\xc9\xf7\xf1\x90"); /* nop; xor ecx, ecx; div ecx */
    run_from(rig, &state);
    assert_int_equal(state.gpr[RBX], EXC_DE);
    assert_int_equal(peek64(rig, state.gpr[RSP]), CODE + 3);
}

static void test_page_fault(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    /* rep movsb that runs into memory that is not mapped after 16 bytes */
    PROGRAM(rig, "\xf3\xa4");
    state.gpr[RSI] = DATA;
    state.gpr[RDI] = RAM - 16;
    state.gpr[RCX] = 100;
    rig_poke64(rig, DATA, UINT64_C(0x1122334455667788));
    run_from(rig, &state);
    assert_int_equal(state.gpr[RBX], EXC_PF);
    assert_int_equal(state.cr2, RAM);
    assert_int_equal(state.gpr[RCX], 84);
    assert_int_equal(state.gpr[RSI], DATA + 16);
    assert_int_equal(state.gpr[RDI], RAM);
    assert_int_equal(peek64(rig, RAM - 16), UINT64_C(0x1122334455667788));
    assert_int_equal(peek64(rig, state.gpr[RSP]), PF_WRITE);
    assert_int_equal(peek64(rig, state.gpr[RSP] + 8), CODE);
}

static void test_fetch_fault(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    PROGRAM(rig, "\xff\xe0"); /* jmp rax: the last bytes of memory, an instruction cut off */
    rig_poke(rig, RAM - 2, "\x48\xb8", 2);
    state.gpr[RAX] = RAM - 2;
    run_from(rig, &state);
    assert_int_equal(state.gpr[RBX], EXC_PF);
    assert_int_equal(state.cr2, RAM);
    assert_int_equal(peek64(rig, state.gpr[RSP] + 8), RAM - 2);
}

static void test_undefined(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    PROGRAM(rig, "\x90\x0f\x0b");
    run_from(rig, &state);
    assert_int_equal(state.gpr[RBX], EXC_UD);
    assert_int_equal(peek64(rig, state.gpr[RSP]), CODE + 1);
}

static void test_single_step(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    PROGRAM(rig, "\xff\xc0\xff\xc0\xff\xc0");
    state.rflags |= FLAG_TF;
    run_from(rig, &state);
    assert_int_equal(state.gpr[RBX], EXC_DB);
    assert_int_equal(state.gpr[RAX], 1);
    assert_int_equal(peek64(rig, state.gpr[RSP]), CODE + 2);
    assert_int_equal(state.dr[6] & 0x4000, 0x4000);
}

static void test_breakpoint(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    struct vcpu_exit exit;
    PROGRAM(rig, "\xff\xc0\xff\xc0\xff\xc0" END);
    assert_int_equal(vcpu_set_state(rig->vcpu, &state, NULL), 0);
    assert_int_equal(vcpu_set_breakpoint(rig->vcpu, CODE + 2, true, NULL), 0);
    vcpu_run(rig->vcpu, &exit);
    assert_int_equal(exit.stop, VCPU_BREAKPOINT);
    assert_int_equal(exit.gva, CODE + 2);
    vcpu_get_state(rig->vcpu, &state);
    assert_int_equal(state.gpr[RAX], 1);
    assert_int_equal(state.rip, CODE + 2);
    vcpu_run(rig->vcpu, &exit);
    assert_int_equal(exit.stop, VCPU_KICKED);
    vcpu_get_state(rig->vcpu, &state);
    assert_int_equal(state.gpr[RAX], 3);
    assert_int_equal(vcpu_set_breakpoint(rig->vcpu, CODE + 2, false, NULL), 0);
}

/* Copies forward through itself: each byte is the one before. */
static void test_overlapping_copy(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    PROGRAM(rig, "\xf3\xa4" END);
    rig_poke64(rig, DATA, UINT64_C(0x0807060504030201));
    state.gpr[RSI] = DATA;
    state.gpr[RDI] = DATA + 3;
    state.gpr[RCX] = 5000;
    run_from(rig, &state);
    assert_int_equal(peek64(rig, DATA + 4992), UINT64_C(0x0201030201030201));
    assert_int_equal(state.gpr[RDI], DATA + 5003);
}

static void test_real_mode(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state;
    vcpu_reset(rig->vcpu, false);
    vcpu_get_state(rig->vcpu, &state);
    state.segment[SEG_CS].base = CODE;
    state.segment[SEG_CS].selector = CODE >> 4;
    state.rip = 0;
    state.gpr[RSP] = 0x8000;
    /* mov ax, 0x3000; mov ds, ax; mov word [0x10], 0x1234; push word [0x10]; pop bx; end */
    PROGRAM(rig, "\xb8\0\x30\x8e\xd8\xc7\x06\x10\0\x34\x12\xff\x36\x10\0\x5b" END);
    run_from(rig, &state);
    assert_int_equal(state.gpr[RBX], 0x1234);
    assert_int_equal(peek64(rig, DATA + 0x10) & 0xffff, 0x1234);
    assert_int_equal(state.gpr[RSP], 0x8000);
}

/* HLT ends at the interrupt that the local APIC's timer brings. */
static void test_halt_timer(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    /* Uses the x2APIC's MSRs: vector 0x11's handler ends the program. */
    static const char code[] = "\xb9\x1b\0\0\0\x0f\x32\x80\xcc\x0c\x0f\x30" /* APIC base: x2APIC */
                               "\x31\xd2\xb9\x0f\x08\0\0\xb8\xff\x01\0\0\x0f\x30" /* spurious */
                               "\xb9\x32\x08\0\0\xb8\x11\0\0\0\x0f\x30"           /* LVT timer */
                               "\xb9\x38\x08\0\0\xb8\x10\x27\0\0\x0f\x30" /* initial count */
                               "\xfb\xf4\xeb\xfd";                        /* sti; hlt; jmp */
    rig_poke(rig, CODE, code, sizeof code - 1);
    run_from(rig, &state);
    assert_int_equal(state.gpr[RBX], 0x11);
}

static void test_kick(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    struct vcpu_exit exit;
    PROGRAM(rig, "\xf4");
    assert_int_equal(vcpu_set_state(rig->vcpu, &state, NULL), 0);
    vcpu_kick(rig->vcpu);
    vcpu_run(rig->vcpu, &exit);
    assert_int_equal(exit.stop, VCPU_KICKED);
    vcpu_get_state(rig->vcpu, &state);
    assert_int_equal(state.rip, CODE);
}

static void test_triple_fault(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    struct vcpu_exit exit;
    state.idtr.limit = 0;
    PROGRAM(rig, "\x0f\x0b");
    assert_int_equal(vcpu_set_state(rig->vcpu, &state, NULL), 0);
    vcpu_run(rig->vcpu, &exit);
    assert_int_equal(exit.stop, VCPU_SHUTDOWN);
}

static void *run_second(void *context) {
    struct vcpu_exit exit;
    vcpu_run(context, &exit);
    return (void *)(uintptr_t)exit.stop;
}

/* INIT and SIPI start a second processor in real mode; both add to one counter with LOCK. */
static void test_second_processor(void **context) {
    struct engine_rig *rig = *context;
    struct x86_state state = long_mode(rig);
    struct vcpu *second;
    pthread_t thread;
    void *stop;
    static const char start[] = "\xb9\x1b\0\0\0\x0f\x32\x80\xcc\x0c\x0f\x30" /* APIC base: x2APIC */
                                "\xb9\x30\x08\0\0\xba\x01\0\0\0"             /* ICR, to APIC 1 */
                                "\xb8\0\x45\0\0\x0f\x30\xb8\x31\x46\0\0\x0f\x30" /* INIT, SIPI */
                                "\xb9\x10\x27\0\0"                   /* mov ecx, 10000 */
                                "\xf0\xff\x04\x25\0\0\x03\0\xe2\xf6" /* lock inc; loop */
                                "\xf3\x90\x81\x3c\x25\0\0\x03\0\x20\x4e\0\0\x75\xf1" END;
    /* mov ax, 0x3000; mov ds, ax; mov cx, 10000; again: lock inc dword [0]; loop again; hlt */
    static const char other[] =
        "\xb8\0\x30\x8e\xd8\xb9\x10\x27\xf0\x66\xff\x06\0\0\xe2\xf8\xf4\xeb\xfd";
    rig_poke(rig, CODE, start, sizeof start - 1);
    rig_poke(rig, 0x31000, other, sizeof other - 1);
    rig_poke64(rig, DATA, 0);
    assert_int_equal(vcpu_create(rig->engine, 1, &second, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, run_second, second), 0);
    run_from(rig, &state);
    assert_int_equal(peek64(rig, DATA), 20000);
    vcpu_kick(second);
    pthread_join(thread, &stop);
    assert_int_equal((uintptr_t)stop, VCPU_KICKED);
    vcpu_get_state(second, &state);
    assert_int_equal(state.rip, 0x11);
    vcpu_destroy(second);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_loop, setup, teardown),
        cmocka_unit_test_setup_teardown(test_calls, setup, teardown),
        cmocka_unit_test_setup_teardown(test_self_modifying, setup, teardown),
        cmocka_unit_test_setup_teardown(test_self_modifying_straddle, setup, teardown),
        cmocka_unit_test_setup_teardown(test_divide_error, setup, teardown),
        cmocka_unit_test_setup_teardown(test_page_fault, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fetch_fault, setup, teardown),
        cmocka_unit_test_setup_teardown(test_undefined, setup, teardown),
        cmocka_unit_test_setup_teardown(test_single_step, setup, teardown),
        cmocka_unit_test_setup_teardown(test_breakpoint, setup, teardown),
        cmocka_unit_test_setup_teardown(test_overlapping_copy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_real_mode, setup, teardown),
        cmocka_unit_test_setup_teardown(test_halt_timer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kick, setup, teardown),
        cmocka_unit_test_setup_teardown(test_triple_fault, setup, teardown),
        cmocka_unit_test_setup_teardown(test_second_processor, setup, teardown),
    };
    /* The interpreter alone, then with every block translated. */
    setenv("LODGE_TRANSLATE", "off", 1);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    setenv("LODGE_TRANSLATE", "0", 1);
    return failed + cmocka_run_group_tests(tests, NULL, NULL);
}
