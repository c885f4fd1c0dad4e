/*
 * Self-modifying and cross-modifying code: what was written is what runs, with
 * the next instruction when written through the same address, after a
 * serializing one otherwise (APM vol. 2, 7.6.1).
 */
#include "runtime.h"

static void serialize(void) {
    cpuid(0, 0);
}

static uint32_t run(const void *code) {
    uint32_t value;
    asm volatile("call *%1" : "=a"(value) : "r"(code) : "memory");
    return value;
}

static void rewritten_function(void) {
    for (uint32_t i = 0; i < 50; i++) {
        put_function(test_page[0], i);
        check("value", run(test_page[0]), i);
    }
}

static void one_byte(void) {
    put_function(test_page[0], 0x11223344);
    check("before", run(test_page[0]), 0x11223344);
    *(volatile uint8_t *)&test_page[0][2] = 0x99;
    check("after", run(test_page[0]), 0x11229944);
}

static void next_instruction(void) {
    uint32_t value;
    for (uint32_t i = 1; i < 20; i++) {
        asm volatile("mov %%cl, 1f+1(%%rip); 1: mov $0, %%eax" : "=a"(value) : "c"(i) : "memory");
        check("value", value, i);
    }
}

/* The loop's own body counts up. */
static void loop_with_growing_immediate(void) {
    uint32_t sum;
    asm volatile("xor %%eax, %%eax; mov $20, %%ecx\n"
                 "1: incl 2f+1(%%rip)\n"
                 "2: .byte 0x05, 0, 0, 0, 0\n" /* add imm32, %eax */
                 "dec %%ecx; jnz 1b"
                 : "=a"(sum)::"rcx", "memory", "cc");
    check("1 + … + 20", sum, 210);
}

static void replaced_opcode(void) {
    uint32_t value;
    asm volatile("mov $5, %%eax; movb $0xc8, 1f+1(%%rip)\n" /* inc %eax becomes dec %eax */
                 "1: .byte 0xff, 0xc0\n"
                 "movb $0xc0, 1b+1(%%rip)"
                 : "=a"(value)::"memory", "cc");
    check("decremented", value, 4);
}

/*
 * A CMP that the store before it turns into a NOP: SETC reads what STC left, which nobody would
 * have read. What is told of is from the second time on: lodge takes a kernel's page for one that
 * does not change itself until it does.
 */
#define CARRY_BEHIND(i, store, old, new)                                                           \
    do {                                                                                           \
        uint64_t carry_ = 0x9090909090900000 | (new);                                              \
        asm volatile("mov %%rsp, %%rbx; movw %1, 1f(%%rip); jmp 3f\n"                              \
                     "3: lea 1f(%%rip), %%rdi; mov $1, %%ecx; stc\n" store "\n"                    \
                     ".balign 8; 1: .byte 0x39, 0xc0, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90\n"        \
                     "setc %%al; mov %%rbx, %%rsp; movzbl %%al, %%eax"                             \
                     : "+a"(carry_)                                                                \
                     : "i"(old)                                                                    \
                     : "rbx", "rcx", "rdx", "rdi", "memory", "cc");                                \
        if ((i) > 0)                                                                               \
            check(store, carry_, 1);                                                               \
    } while (0)

static void flags_become_live(void) {
    enum { CMP = 0xc039, NOP = 0x9066 };
    for (unsigned i = 0; i < 20; i++) {
        CARRY_BEHIND(i, "movw $0x9066, 1f(%%rip)", CMP, NOP);
        CARRY_BEHIND(i, "mov %%ax, (%%rdi)", CMP, NOP);
        CARRY_BEHIND(i, "mov 4(%%rdi), %%edx; mov %%ax, (%%rdi)", CMP, NOP);
        CARRY_BEHIND(i, "lock; xchg %%ax, (%%rdi)", CMP, NOP);
        CARRY_BEHIND(i, "rep stosw", CMP, NOP);
        CARRY_BEHIND(i, "lea 8(%%rdi), %%rsp; push %%rax", CMP, NOP);
    }
}

CODE(user_change, "mov $0x9066, %eax; lea 1f(%rip), %rdx; stc; mov %ax, (%rdx)\n"
                  "1: cmp %eax, %eax; setc (%rdi); ud2");

/* What a program may write where it runs is expected to change. */
static void flags_become_live_at_once(void) {
    enum { RESULT = 0x800 };
    user_code[RESULT] = 2;
    check("vector", run_user(user_change, CODE_SIZE(user_change), USER_CODE_VA + RESULT), UD);
    check("carry", user_code[RESULT], 1);
}

static void by_push(void) {
    uint32_t value;
    asm volatile(
        "mov %%rsp, %%rbx; lea 1f+8(%%rip), %%rsp; mov $0x90909000000007b8, %%rax; push %%rax\n"
        ".balign 8; 1: .byte 0xb8, 0, 0, 0, 0, 0x90, 0x90, 0x90\n"
        "mov %%rbx, %%rsp"
        : "=a"(value)::"rbx", "memory");
    check("value", value, 7);
}

static void by_string(void) {
    static const uint8_t code[] = {0xb8, 0x21, 0x43, 0x65, 0x07};
    uint32_t value;
    const void *from = code;
    uint64_t count = sizeof code;
    asm volatile("lea 1f(%%rip), %%rdi; rep movsb; 1: .byte 0xb8, 0, 0, 0, 0"
                 : "=a"(value), "+S"(from), "+c"(count)::"rdi", "memory");
    check("value", value, 0x07654321);
}

/* Cleared and copied over in part, as pages are that held a program. */
static void by_long_string(void) {
    enum { FUNCTIONS = 4, APART = 1024, FIRST = 900, END = 3000 };
    uint8_t *page = test_page[9], *source = test_page[10];
    for (uint32_t round = 0; round < 40; round++) {
        memset(page, 0xcc, 4096);
        for (unsigned i = 0; i < FUNCTIONS; i++) {
            put_function(page + i * APART, 100 * round + i);
            put_function(source + i * APART, 1000000 + 100 * round + i);
            check("as written", run(page + i * APART), 100 * round + i);
        }
        memcpy(page + FIRST, source + FIRST, END - FIRST);
        for (unsigned i = 0; i < FUNCTIONS; i++) {
            bool inside = i * APART >= FIRST && i * APART < END;
            check("behind a copy", run(page + i * APART), 100 * round + i + (inside ? 1000000 : 0));
        }
        memset(page + 1, 0x11, APART);
        page[5] = 0xc3;
        check("filled up to the opcode", run(page), 0x11111111);
        check("behind it", *(volatile uint8_t *)(page + APART), 0x11);
        check("not reached", run(page + 3 * APART), 100 * round + 3);
    }
}

static void by_locked(void) {
    put_function(test_page[0], 1);
    run(test_page[0]);
    asm volatile("lock addl $5, %0" : "+m"(*(uint32_t *)&test_page[0][1])::"cc");
    check("lock add", run(test_page[0]), 6);
    asm volatile("xchgl %0, %1" : "+m"(*(uint32_t *)&test_page[0][1]) : "r"(77));
    check("xchg", run(test_page[0]), 77);
}

/* An instruction in two pages; its second half changes. */
static void across_pages(void) {
    uint8_t *at = &test_page[1][0] - 3;
    for (uint32_t i = 0; i < 10; i++) {
        put_function(at, 0x01000000 * i + 0x0a0b0c);
        check("value", run(at), 0x01000000 * i + 0x0a0b0c);
        *(volatile uint8_t *)&test_page[1][1] = (uint8_t)(i + 100); /* the top byte */
        check("changed", run(at), 0x01000000 * (i + 100) + 0x0a0b0c);
    }
}

static void by_another_mapping(void) {
    uint64_t all = PHYSICAL(test_page[2]) | PTE_P | PTE_W;
    map(1, all);
    map(2, all);
    for (uint32_t i = 0; i < 10; i++) {
        put_function((uint8_t *)(TEST_VA + 0x2000), i);
        serialize();
        check("value", run((void *)(TEST_VA + 0x1000)), i);
        check("value, as it lies", run(test_page[2]), i);
    }
    map(1, 0);
    map(2, 0);
}

static void by_dma(void) {
    if (!has_harness())
        return skip("no harness");
    for (uint32_t i = 0; i < 10; i++) {
        put_function(test_page[3], i);
        check("before", run(test_page[3]), i);
        put_function(test_page[4], i + 1000);
        request(REQUEST_DMA, PHYSICAL(test_page[3]), PHYSICAL(test_page[4]), 6);
        serialize();
        check("after", run(test_page[3]), i + 1000);
    }
}

/* The same address, another page. */
static void remapped(void) {
    put_function(test_page[5], 5);
    put_function(test_page[6], 6);
    for (unsigned i = 0; i < 10; i++) {
        unsigned page = 5 + (i & 1);
        map(1, PHYSICAL(test_page[page]) | PTE_P);
        check("value", run((void *)(TEST_VA + 0x1000)), page);
    }
    map(1, 0);
}

/* Data that is written often, in a page with code. */
static void data_beside_code(void) {
    volatile uint32_t *data = (uint32_t *)&test_page[7][256];
    put_function(test_page[7], 7);
    *data = 0;
    for (uint32_t i = 0; i < 300; i++) {
        *data += run(test_page[7]);
        if (i % 100 == 50)
            put_function(test_page[7], i);
    }
    check("sum", *data, 51 * 7 + 100 * 50 + 100 * 150 + 49 * 250);
}

/* The bytes after a fault that the handler repairs are executed as repaired. */
static void repair(struct frame *frame) {
    memcpy((void *)frame->rip, "\x90\x90", 2);
}

static void repaired_by_handler(void) {
    set_handler(UD, repair);
    memcpy(test_page[8], "\x0f\x0b\xb8\x2a\0\0\0\xc3", 8); /* ud2; mov $42, %eax; ret */
    check("value", run(test_page[8]), 42);
    check("bytes", *(volatile uint16_t *)test_page[8], 0x9090);
    set_handler(UD, NULL);
}

void program(void) {
    TEST(rewritten_function);
    TEST(one_byte);
    TEST(next_instruction);
    TEST(loop_with_growing_immediate);
    TEST(replaced_opcode);
    TEST(flags_become_live);
    TEST(flags_become_live_at_once);
    TEST(by_push);
    TEST(by_string);
    TEST(by_long_string);
    TEST(by_locked);
    TEST(across_pages);
    TEST(by_another_mapping);
    TEST(by_dma);
    TEST(remapped);
    TEST(data_beside_code);
    TEST(repaired_by_handler);
}
