/*
 * Code in the upper half of the address space, as kernels have it: global pages
 * that all spaces share, pages that differ from space to space, and what is
 * flushed by which means (APM vol. 2, 5.5).
 */
#include "runtime.h"

#define CR4_PGE   0x80ul
#define CR4_PCIDE 0x20000ul
#define ALL       (PTE_P | PTE_W)

enum { ROUNDS = 40, TURNS = 60, SLOT = TEST_VA >> 39 & 511 };

/* The test region once more. */
#define UPPER(page) (0xffff800000000000ul + TEST_VA + (page)*4096ul)

static uint64_t first, second; /* CR3 */

static void both(unsigned page, uint64_t pte) {
    map(page, pte);
    other_pt[page] = pte;
    invlpg(UPPER(page));
}

static void set_up(void) {
    first = read_cr3();
    second = PHYSICAL(other_pml4);
    boot_pml4[256 + SLOT] = boot_pml4[SLOT];
    build_other_space();
    other_pml4[256 + SLOT] = other_pml4[SLOT];
    write_cr4(read_cr4() | CR4_PGE);
}

static uint64_t call(uint64_t at) {
    uint64_t value;
    asm volatile("call *%1" : "=a"(value) : "r"(at) : "rcx", "rdx", "rdi", "memory", "cc");
    return (uint32_t)value;
}

/* call UPPER(3); mov value, %eax; ret. At the beginning of page 1. */
static void put_caller(uint8_t *at, uint8_t value) {
    const uint8_t code[] = {0xe8, 0xfb, 0x1f, 0, 0, 0xb8, value, 0, 0, 0, 0xc3};
    memcpy(at, code, sizeof code);
}

CODE(change_space, "mov %rdi, %cr3\n ret");

/*
 * All of it in the upper half: RBX is called with RDI the other space, where
 * the code behind its call is another. R14 and R15 add up what it returns in
 * the one and in the other. INVLPG makes lodge forget which code it knew.
 */
CODE(in_turns, "1: invlpg (%rbx)\n"
               "mov %r9, %rcx\n"
               "2: mov %r12, %rdi\n call *%rbx\n add %rax, %r14\n"
               "mov %r13, %rdi\n call *%rbx\n add %rax, %r15\n"
               "dec %rcx\n jnz 2b\n"
               "dec %r8\n jnz 1b\n ret");

static void run_in_turns(uint64_t rounds, uint64_t turns, uint64_t keep) {
    register uint64_t rounds_ asm("r8") = rounds, turns_ asm("r9") = turns;
    register uint64_t second_ asm("r12") = second | keep, first_ asm("r13") = first | keep;
    register uint64_t a asm("r14") = 0, b asm("r15") = 0;
    asm volatile("call *%[at]"
                 : "+r"(rounds_), "+r"(a), "+r"(b)
                 : [at] "a"(UPPER(4)), "b"(UPPER(1)), "r"(turns_), "r"(second_), "r"(first_)
                 : "rcx", "rdi", "memory", "cc");
    check("behind the call, in the second space", a, 22 * rounds * turns);
    check("and in the first", b, 11 * rounds * turns);
}

static void returns_into_another_space(void) {
    put_caller(test_page[1], 11);
    put_caller(test_page[2], 22);
    memcpy(test_page[3], change_space, CODE_SIZE(change_space));
    memcpy(test_page[4], in_turns, CODE_SIZE(in_turns));
    both(3, PHYSICAL(test_page[3]) | ALL | PTE_G);
    both(4, PHYSICAL(test_page[4]) | ALL | PTE_G);
    map(1, PHYSICAL(test_page[1]) | ALL);
    other_pt[1] = PHYSICAL(test_page[2]) | ALL;
    invlpg(UPPER(1));
    run_in_turns(ROUNDS, TURNS, 0);
    run_in_turns(1, ROUNDS * TURNS, 0);
    if (!has(HAS_PCID))
        return;
    const uint64_t was = first, other = second, keep = 1ul << 63;
    write_cr4(read_cr4() | CR4_PCIDE);
    first |= 1;
    second |= 2;
    write_cr3(first);
    run_in_turns(ROUNDS, TURNS, keep);
    run_in_turns(1, ROUNDS * TURNS, keep);
    write_cr3(first = was);
    second = other;
    write_cr4(read_cr4() & ~CR4_PCIDE);
}

/* From global code to what is each space's own, and long after nobody did. */
static void own_code_seldom(void) {
    put_function(test_page[5], 55);
    both(5, PHYSICAL(test_page[5]) | ALL | PTE_G);
    put_function(test_page[1], 11);
    put_function(test_page[2], 22);
    invlpg(UPPER(1));
    for (unsigned i = 0; i < 300; i++) {
        bool look = i % 37 == 0;
        check("shared", call(UPPER(5)), 55);
        if (look)
            check("the first's own", call(UPPER(1)), 11);
        write_cr3(second);
        check("shared", call(UPPER(5)), 55);
        if (look || i % 31 == 0)
            check("the second's own", call(UPPER(1)), 22);
        write_cr3(first);
    }
}

static void flush_nothing(void) {
    write_cr3(first);
}
static void flush_page(void) {
    invlpg(UPPER(5));
}
static void flush_global(void) {
    write_cr4(read_cr4() & ~CR4_PGE);
    write_cr4(read_cr4() | CR4_PGE);
}

/* From one half to the other lodge looks for code anew; within the upper one it knows where to go:
 * at UPPER(3) by a register, and 16 bytes on to UPPER(5). */
CODE(call_by_register, "call *%rdx\n ret");

static void put_callers(uint8_t *at) {
    const uint8_t direct[] = {0xe8, 0xeb, 0x1f, 0, 0, 0xc3};
    memcpy(at, call_by_register, CODE_SIZE(call_by_register));
    memcpy(at + 16, direct, sizeof direct);
}

static void check_shared(const char *when, uint64_t expected) {
    uint64_t value;
    asm volatile("call *%[caller]"
                 : "=a"(value)
                 : [caller] "r"(UPPER(3)), "d"(UPPER(5))
                 : "rcx", "rdi", "memory", "cc");
    check(when, (uint32_t)value, expected);
    check(when, call(UPPER(3) + 16), expected);
    check(when, call(UPPER(5)), expected);
}

/* A global page is another, by all means that flush it. */
static void global_code_is_replaced(void) {
    put_function(test_page[5], 55);
    put_function(test_page[6], 66);
    put_callers(test_page[3]);
    both(3, PHYSICAL(test_page[3]) | ALL | PTE_G);
    both(5, PHYSICAL(test_page[5]) | ALL | PTE_G);
    for (unsigned i = 0; i < 40; i++) {
        for (unsigned n = 0; n < 20; n++) {
            check_shared("before", i % 2 ? 66 : 55);
            write_cr3(n % 2 ? first : second);
        }
        test_pt[5] = other_pt[5] = PHYSICAL(test_page[i % 2 ? 5 : 6]) | ALL | PTE_G;
        flush_nothing();
        if (i % 4 < 2)
            flush_page();
        else
            flush_global();
        check_shared("after", i % 2 ? 55 : 66);
    }
}

void program(void) {
    set_up();
    TEST(returns_into_another_space);
    TEST(own_code_seldom);
    TEST(global_code_is_replaced);
}
