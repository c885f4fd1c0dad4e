/*
 * Lock-step (cpu/soft/verify.h): code of many kinds agrees; bugs planted into translated code are
 * found, whatever they spoil, and told. A program runs once, so that its translation is there; then
 * bytes of that are changed in code memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/soft/jit/translation.h"
#include "engine_rig.h"

enum {
    RAM = 16 << 20,
    CODE = 0x10000,
    STACK_TOP = 0x20000,
    DATA = 0x30000,
    TABLES = 0x1000,
    GDT = 0x5000,
    IDT = 0x6000,
    HANDLER = 0x8000,
    END_PORT = RIG_END_PORT,
    REPORT_MAX = 64 << 10,
};

struct rig {
    struct engine_rig on;
    char report[REPORT_MAX];
};

static int setup(void **state) {
    struct rig *rig = calloc(1, sizeof *rig);
    struct engine_config config = {.vcpus = 1, .verify = true};
    struct error err;
    assert_int_equal(rig_create(&rig->on, ENGINE_SOFT, RAM, config, NULL), 0);
    rig_add_end_port(&rig->on);
    int r = vcpu_create(rig->on.engine, 0, &rig->on.vcpu, &err);
    if (r == -ENOTSUP)
        rig->on.vcpu = NULL; /* each test skips */
    else
        assert_int_equal(r, 0);
    *state = rig;
    return 0;
}

static int teardown(void **state) {
    struct rig *rig = *state;
    rig_destroy(&rig->on);
    free(rig);
    return 0;
}

/* ---- Programs: 64-bit, CPL 0, 16 MiB mapped by large pages ---- */

/* All exceptions go on at R15 with an empty stack: mov rsp, STACK_TOP; jmp r15. */
static void build_idt(struct rig *rig) {
    static const uint8_t handler[] = {0x48, 0xc7, 0xc4, 0,   STACK_TOP >> 8 & 0xff, STACK_TOP >> 16,
                                      0,    0x41, 0xff, 0xe7};
    rig_poke(&rig->on, HANDLER, handler, sizeof handler);
    for (unsigned n = 0; n < 32; n++) {
        rig_poke64(&rig->on, IDT + 16 * n, HANDLER | 8 << 16 | (uint64_t)0x8e00 << 32);
        rig_poke64(&rig->on, IDT + 16 * n + 8, 0);
    }
}

/* `code`, then the end of a round, then all of it again. */
static void load(struct rig *rig, const uint8_t *code, size_t length) {
    struct x86_state state;
    uint8_t tail[] = {0xe6, END_PORT, 0xe9, 0, 0, 0, 0};
    if (rig->on.vcpu == NULL)
        skip();
    store_le32(tail + 3, (uint32_t) - (length + sizeof tail));
    build_idt(rig);
    rig_poke(&rig->on, CODE, code, length);
    rig_poke(&rig->on, CODE + length, tail, sizeof tail);
    rig_long_mode(&rig->on, TABLES, GDT, RAM, &state);
    state.cr4 |= CR4_OSXSAVE;
    state.xcr0 = 7;
    state.idtr = (struct x86_table){IDT, 32 * 16 - 1};
    state.rip = CODE;
    state.rflags = 2;
    state.gpr[RSP] = STACK_TOP;
    state.gpr[RBX] = DATA;
    assert_int_equal(vcpu_set_state(rig->on.vcpu, &state, NULL), 0);
}

static void add_line(void *context, const char *text) {
    struct rig *rig = context;
    size_t used = strlen(rig->report);
    snprintf(rig->report + used, sizeof rig->report - used, "%s\n", text);
}

static enum vcpu_stop run_round(struct rig *rig) {
    struct vcpu_exit exit;
    vcpu_run(rig->on.vcpu, &exit);
    rig->report[0] = 0;
    vcpu_dump(rig->on.vcpu, add_line, rig);
    if (exit.stop == VCPU_DIFFERENCE)
        assert_non_null(strstr(exit.text, "differ"));
    return exit.stop;
}

/* Changes translated code: the byte `at` of each place where `bytes` stand. */
static void plant(struct rig *rig, const uint8_t *bytes, size_t length, size_t at, uint8_t change) {
    struct code_memory *memory = &((struct soft_cpu *)rig->on.vcpu)->jit.jit->memory;
    unsigned found = 0;
    for (size_t i = 0; i + length <= memory->used; i++) {
        if (memcmp(memory->writable + i, bytes, length) != 0)
            continue;
        memory->writable[i + at] ^= change;
        found++;
    }
    assert_int_not_equal(found, 0);
}

/* The line that begins with `name` is marked. */
static void assert_marked(struct rig *rig, const char *name) {
    bool marked = false;
    for (const char *line = rig->report; line != NULL && *line != 0;) {
        const char *end = strchr(line, '\n');
        const char *mark = strstr(line, "<<<");
        line += strspn(line, " ");
        marked = marked || (strncmp(line, name, strlen(name)) == 0 && mark != NULL && mark < end);
        line = end != NULL ? end + 1 : NULL;
    }
    if (!marked)
        print_error("%s", rig->report);
    assert_true(marked);
}

/* ---- Agreement ---- */

static const uint8_t many_kinds[] = {
    0xb8, 0x44, 0x33, 0x22, 0x11,                   /* mov eax, 11223344h */
    0xb9, 0x40, 0,    0,    0,                      /* mov ecx, 64 */
    0x01, 0x04, 0x8b,                               /* 1: add [rbx+rcx*4], eax */
    0x48, 0x0f, 0xaf, 0xc1,                         /* imul rax, rcx */
    0xff, 0xc9,                                     /* dec ecx */
    0x75, 0xf5,                                     /* jnz 1b */
    0xe8, 0x02, 0,    0,    0,                      /* call 2f */
    0xeb, 0x05,                                     /* jmp 3f */
    0x50, 0x9c, 0x5a, 0x58,                         /* 2: push rax; pushf; pop rdx; pop rax */
    0xc3,                                           /* ret */
    0xb9, 0x00, 0x10, 0,    0,                      /* 3: mov ecx, 4096 */
    0x48, 0x89, 0xdf,                               /* mov rdi, rbx */
    0xf3, 0xaa,                                     /* rep stosb */
    0x48, 0x89, 0xde,                               /* mov rsi, rbx */
    0xb9, 0x00, 0x02, 0,    0,                      /* mov ecx, 512 */
    0xf3, 0x48, 0xa5,                               /* rep movsq */
    0x31, 0xd2,                                     /* xor edx, edx */
    0xb9, 0x07, 0,    0,    0,                      /* mov ecx, 7 */
    0x48, 0xf7, 0xf1,                               /* div rcx: flags undefined */
    0x9c, 0x41, 0x58,                               /* pushf; pop r8 */
    0x0f, 0x31, 0x0f, 0xa2,                         /* rdtsc; cpuid */
    0xbb, 0x00, 0x00, 0x03, 0,                      /* mov ebx, DATA */
    0x66, 0x0f, 0x6e, 0xc9,                         /* movd xmm1, ecx */
    0x66, 0x0f, 0x70, 0xc1, 0x1b,                   /* pshufd xmm0, xmm1, 1bh */
    0xc5, 0xfc, 0x11, 0x43, 0x20,                   /* vmovups [rbx+20h], ymm0 */
    0xdb, 0xe3, 0xd9, 0xeb, 0xdd, 0x5b, 0x40,       /* fninit; fldpi; fstp qword [rbx+40h] */
    0xfb, 0x90, 0xfa,                               /* sti; nop; cli */
    0x4c, 0x8d, 0x3d, 0x0a, 0,    0,    0,          /* lea r15, 4f */
    0xb8, 0x00, 0x00, 0x00, 0x40,                   /* mov eax, 1 GiB: not mapped */
    0x01, 0x10,                                     /* add [rax], edx: #PF */
    0x90, 0x90, 0x90,                               /* */
    0xc7, 0x05, 0x06, 0,    0,    0,    0x90, 0x90, /* 4: mov dword [5f], nops: watched code */
    0x90, 0x90, 0x90, 0x90, 0x90, 0x90,             /* */
    0x90, 0x90, 0x90, 0x90, 0x90, 0x90,             /* 5: */
};

static void test_agrees(void **state) {
    struct rig *rig = *state;
    load(rig, many_kinds, sizeof many_kinds);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(run_round(rig), VCPU_KICKED);
    assert_null(strstr(rig->report, "<<<"));
}

/* ADC carries from one turn of the loop to the next; DEC and JNZ leave CF alone. The jump cuts the
 * loop in two blocks, so that CF has to live on at a block's end. */
static void test_flags_across_blocks(void **state) {
    static const uint8_t code[] = {
        0xb9, 0x10, 0,    0,    0,    /* mov ecx, 16 */
        0x48, 0xc7, 0xc0, 0xff, 0xff, /* */
        0xff, 0xff,                   /* mov rax, -1 */
        0xf9,                         /* stc */
        0x48, 0x11, 0x04, 0xcb,       /* 1: adc [rbx+rcx*8], rax */
        0xeb, 0x00,                   /* jmp 2f */
        0xff, 0xc9,                   /* 2: dec ecx */
        0x75, 0xf6,                   /* jnz 1b */
        0x48, 0x01, 0xc8,             /* add rax, rcx */
    };
    struct rig *rig = *state;
    load(rig, code, sizeof code);
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(run_round(rig), VCPU_KICKED);
}

/* ---- Planted bugs ---- */

static void test_register(void **state) {
    static const uint8_t code[] = {0xb8, 0x78, 0x56, 0x34, 0x12}; /* mov eax, 12345678h */
    struct rig *rig = *state;
    load(rig, code, sizeof code);
    assert_int_equal(run_round(rig), VCPU_KICKED);
    plant(rig, code + 1, 4, 0, 1);
    assert_int_equal(run_round(rig), VCPU_DIFFERENCE);
    assert_marked(rig, "RAX");
    assert_non_null(strstr(rig->report, "b8 78 56 34 12"));
    assert_non_null(strstr(rig->report, "0000000012345679"));
}

static void test_memory(void **state) {
    static const uint8_t code[] = {0xc7, 0x43, 0x08, 0x78, 0x56, 0x34, 0x12}; /* mov [rbx+8], … */
    struct rig *rig = *state;
    load(rig, code, sizeof code);
    assert_int_equal(run_round(rig), VCPU_KICKED);
    plant(rig, code + 3, 4, 3, 0x80);
    assert_int_equal(run_round(rig), VCPU_DIFFERENCE);
    assert_marked(rig, "000000030008");
}

/* A store that misses its place, into another page that is open for writing. */
static void test_stray_store(void **state) {
    static const uint8_t code[] = {
        0xb0, 0x77,                   /* mov al, 77h */
        0x88, 0x83, 0x00, 0x50, 0, 0, /* mov [rbx+5000h], al */
        0x88, 0x83, 0x34, 0x12, 0, 0, /* mov [rbx+1234h], al */
    };
    struct rig *rig = *state;
    load(rig, code, sizeof code);
    assert_int_equal(run_round(rig), VCPU_KICKED);
    rig_poke(&rig->on, DATA + 0x1234, "\0", 1);
    plant(rig, code + 10, 4, 1, 0x40); /* 5234h */
    assert_int_equal(run_round(rig), VCPU_DIFFERENCE);
    assert_marked(rig, "000000031230");
    assert_marked(rig, "000000035230");
}

static void test_branch(void **state) {
    static const uint8_t code[] = {
        0xb8, 0x01, 0x67, 0x45, 0x22, /* mov eax, 22456701h */
        0x3d, 0x01, 0x67, 0x45, 0x23, /* cmp eax, 23456701h */
        0x74, 0x02,                   /* jz over */
        0x31, 0xc9,                   /* xor ecx, ecx */
        0xff, 0xc1,                   /* inc ecx */
    };
    struct rig *rig = *state;
    load(rig, code, sizeof code);
    assert_int_equal(run_round(rig), VCPU_KICKED);
    plant(rig, code + 6, 4, 3, 0x01);
    assert_int_equal(run_round(rig), VCPU_DIFFERENCE);
}

static void test_vector(void **state) {
    static const uint8_t code[] = {
        0x66, 0x48, 0x0f, 0x6e, 0xcc, /* movq xmm1, rsp */
        0x66, 0x0f, 0x70, 0xc1, 0x1b, /* pshufd xmm0, xmm1, 1bh */
    };
    struct rig *rig = *state;
    load(rig, code, sizeof code);
    assert_int_equal(run_round(rig), VCPU_KICKED);
    plant(rig, code + 5, 5, 4, 0x03);
    assert_int_equal(run_round(rig), VCPU_DIFFERENCE);
    assert_marked(rig, "YMM0");
}

static void test_flags(void **state) {
    static const uint8_t code[] = {
        0xbe, 0x00, 0x10, 0x11, 0x12,       /* mov esi, 12111000h */
        0x81, 0xfe, 0x01, 0x10, 0x11, 0x12, /* cmp esi, 12111001h */
        0x19, 0xd2,                         /* sbb edx, edx */
    };
    struct rig *rig = *state;
    load(rig, code, sizeof code);
    assert_int_equal(run_round(rig), VCPU_KICKED);
    plant(rig, code + 7, 4, 0, 1);
    assert_int_equal(run_round(rig), VCPU_DIFFERENCE);
    assert_marked(rig, "RDX");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_agrees, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flags_across_blocks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_register, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stray_store, setup, teardown),
        cmocka_unit_test_setup_teardown(test_branch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_vector, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flags, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
