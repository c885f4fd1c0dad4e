/*
 * The same pages of code at many linear addresses: in turn, called from one
 * another, in several address spaces, changed in between. A translator that
 * moves what it made of them must get every address right.
 *
 * The library below is two pages of code and one of data. It is called with
 * its own address in RSI and adds up distances from there, so that the result
 * is the same wherever it is.
 */
#include "runtime.h"

asm(".pushsection .data\n"
    ".balign 4096\n"
    "library:\n"
    /* In: RDI n, RSI the library's address here. Out: RAX. Clobbers RCX, RDX, R8 to R11. */
    "    push %rbx\n"
    "    push %r12\n"
    "    push %r14\n"
    "    lea library(%rip), %r12\n" /* R12 and R14 are the translator's */
    "    sub %rsi, %r12\n"
    "    lea words(%rip), %r14\n"
    "    xor %eax, %eax\n"
    "    mov %edi, %ecx\n"
    "turn:\n"
    "    test $3, %ecx\n"
    "    jz even\n"
    "    add words+8(%rip), %rax\n"
    "    addq $1, counter(%rip)\n"
    "    cmpl $0x1234, words+16(%rip)\n"
    "    jne wrong\n"
    "    call other\n" /* on the second page */
    "    jmp next\n"
    "even:\n"
    "    call 1f\n" /* the address that CALL pushed */
    "1:  pop %rdx\n"
    "    sub %rsi, %rdx\n"
    "    add %rdx, %rax\n"
    "    add (%r14), %rax\n"
    "    add %r12, %rax\n"
    "    pushq words(%rip)\n"
    "    pop %rdx\n"
    "    add %rdx, %rax\n"
    "next:\n"
    "    dec %ecx\n"
    "    jnz turn\n"
    "    jmp over_the_edge\n"
    "wrong:\n"
    "    ud2\n"
    "callback:\n" /* from the second page */
    "    lea callback(%rip), %rdx\n"
    "    sub %rsi, %rdx\n"
    "    add %rdx, %rax\n"
    "    ret\n"
    "changed:\n"
    "    mov $5, %eax\n"
    "    ret\n"
    /* Calls RDI, at another address, with R8 in RDI and R9 in RSI. */
    "nested:\n"
    "    push %rsi\n"
    "    push %rdi\n"
    "    mov %rdi, %rax\n"
    "    mov %r8, %rdi\n"
    "    mov %r9, %rsi\n"
    "    call *%rax\n"
    "    pop %rdi\n"
    "    pop %rsi\n"
    "    lea nested(%rip), %rdx\n"
    "    sub %rsi, %rdx\n"
    "    add %rdx, %rax\n"
    "    ret\n"
    "    .fill 4096 - (. - library) - 6 - 3, 1, 0x90\n"
    "over_the_edge:\n"
    "    add words+24(%rip), %rax\n" /* 7 bytes */
    "straddling:\n"
    "    add $0x11223344, %rax\n" /* 6 bytes, 2 of them on this page */
    "    pop %r14\n"
    "    pop %r12\n"
    "    pop %rbx\n"
    "    ret\n"
    "other:\n"
    "    push %rcx\n"
    "    and $3, %ecx\n"
    "    lea table(%rip), %rdx\n"
    "    movslq (%rdx,%rcx,4), %rcx\n"
    "    add %rdx, %rcx\n"
    "    mov %rcx, %rdx\n"
    "    pop %rcx\n"
    "    jmp *%rdx\n"
    "one:\n"
    "    add $1, %rax\n"
    "    ret\n"
    "two:\n"
    "    call callback\n"
    "    add $2, %rax\n"
    "    ret\n"
    "three:\n"
    "    lea callback(%rip), %rdx\n"
    "    call *%rdx\n"
    "    xchg words+32(%rip), %rdx\n"
    "    jmp callback\n"
    "    .balign 4\n"
    "table: .long one - table, one - table, two - table, three - table\n"
    "    .balign 4096\n"
    "words: .quad 1000, 100, 0x1234, 10, 0\n"
    "counter: .quad 0\n"
    "    .balign 4096\n"
    ".popsection");
extern uint8_t library[3 * 4096], callback[], changed[], nested[], one[], straddling[];
extern volatile uint64_t counter;

enum { PAGES = 3, STEP = 5, PLACES = 40 };

static uint64_t place(unsigned n) {
    return TEST_VA + (uint64_t)n * STEP * 4096;
}

static void map_place(unsigned n) {
    for (unsigned i = 0; i < PAGES; i++)
        map(n * STEP + i, PHYSICAL(library + i * 4096) | PTE_P | PTE_W);
}

static void map_all(void) {
    for (unsigned n = 0; n < PLACES; n++)
        map_place(n);
}

static uint64_t run(uint64_t at, uint64_t n) {
    uint64_t result;
    asm volatile("call *%3"
                 : "=a"(result), "+D"(n), "+S"(at)
                 : "r"(at)
                 : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
    return result;
}

/* The whole library, by what it does. 1f in it is the byte behind the only call rel32 to itself. */
static uint64_t expected(uint64_t n) {
    uint64_t from_one = run((uint64_t)library, 4) - run((uint64_t)library, 3);
    uint64_t back = (uint64_t)(callback - library), sum = 10 + 0x11223344;
    for (; n != 0; n--) {
        unsigned kind = n & 3;
        sum += kind == 0 ? from_one : 100;
        sum += kind == 1 ? 1 : kind == 2 ? back + 2 : kind == 3 ? 2 * back : 0;
    }
    return sum;
}

static void in_turn(void) {
    uint64_t want = expected(23);
    map_all();
    for (unsigned turns = 0; turns < many(60); turns++)
        check("result", run(place(turns % PLACES), 23), want);
}

/* Longer at each, so that code is hot before it moves. */
static void in_turn_hot(void) {
    uint64_t want = expected(11);
    for (unsigned n = 0; n < 12; n++)
        for (unsigned i = 0; i < many(60); i++)
            check("result", run(place(n * 3 % PLACES), 11), want);
}

static void few_alternating(void) {
    uint64_t want = expected(9);
    for (unsigned i = 0; i < many(600); i++)
        check("result", run(place(i % 3), 9), want);
}

static void counted(void) {
    uint64_t before = counter;
    for (unsigned n = 0; n < PLACES; n++)
        run(place(n), 16);
    check("counter", counter - before, PLACES * 12);
}

/* What is called is the same code elsewhere: the return points are those of code that has moved
 * since, or will have. */
static uint64_t nest(uint64_t to, uint64_t at, uint64_t n, uint64_t r9) {
    uint64_t result;
    register uint64_t count asm("r8") = n, other asm("r9") = r9;
    uint64_t function = at + (uint64_t)(nested - library), target = to;
    asm volatile("call *%5"
                 : "=a"(result), "+D"(target), "+S"(at), "+r"(count), "+r"(other)
                 : "r"(function)
                 : "rcx", "rdx", "r10", "r11", "memory", "cc");
    return result;
}

static void calls_itself_elsewhere(void) {
    uint64_t want = expected(7) + (uint64_t)(nested - library);
    for (unsigned i = 0; i < many(400); i++) {
        unsigned from = i * 7 % PLACES, to = i * 11 % PLACES;
        check("result", nest(place(to), place(from), 7, place(to)), want);
    }
}

/* The second page alone goes elsewhere, and comes back. */
static void half_of_it(void) {
    enum { FIRST = PLACES * STEP, COUNT = 30 };
    uint64_t want = expected(15);
    for (unsigned n = 0; n < COUNT; n++)
        map(FIRST + n, PHYSICAL(library + 4096) | PTE_P);
    for (unsigned i = 0; i < many(400); i++) {
        unsigned n = i % 2 == 0 ? i / 2 % COUNT : i * 7 % COUNT;
        check("result", run(place(i / 4 % PLACES), 15), want);
        check("result again", run(place(i / 4 % PLACES), 15), want);
        run(TEST_VA + (FIRST + n) * 4096 + (uint64_t)(one - library - 4096), 0);
    }
    for (unsigned n = 0; n < COUNT; n++)
        map(FIRST + n, 0);
}

/* ---- Address spaces ---- */

static uint64_t spaces[4][512] __attribute__((aligned(4096)));

static void address_spaces(void) {
    uint64_t here = read_cr3(), want = expected(13);
    for (unsigned s = 0; s < 4; s++)
        memcpy(spaces[s], boot_pml4, sizeof spaces[s]);
    for (unsigned i = 0; i < many(400); i++) {
        write_cr3(PHYSICAL(spaces[i % 4]));
        check("result", run(place(i * 5 % PLACES), 13), want);
        if (i % 16 == 7)
            check("result in place", run((uint64_t)library, 13), want);
    }
    write_cr3(here);
}

/* As programs start one after another beside one that stays. */
static void programs_in_a_row(void) {
    uint64_t here = read_cr3(), want = expected(29);
    for (unsigned i = 0; i < many(150); i++) {
        write_cr3(PHYSICAL(spaces[0]));
        check("result of the one that stays", run(place(0), 29), want);
        write_cr3(PHYSICAL(spaces[1 + i % 3]));
        check("result", run(place(1 + i % (PLACES - 1)), 29), want);
    }
    write_cr3(here);
}

/* ---- Changes ---- */

static uint64_t run_changed(unsigned n) {
    return run(place(n) + (uint64_t)(changed - library), 0) & 0xffffffff;
}

static void code_changes(void) {
    for (unsigned i = 0; i < many(200); i++) {
        unsigned n = i % PLACES;
        check("before", run_changed(n), i == 0 ? 5 : i - 1);
        *(volatile uint32_t *)(place((i + 3) % PLACES) + (uint64_t)(changed + 1 - library)) = i;
        cpuid(0, 0);
        check("after", run_changed(n), i);
        check("after, elsewhere", run_changed((n + 9) % PLACES), i);
    }
    check("the rest", run(place(2), 17), expected(17));
}

/* The second page behind the same first one is another: the instruction on both is, too. */
static void another_second_page(void) {
    uint64_t want = expected(4);
    memcpy(test_page[0], library + 4096, 4096);
    *(uint16_t *)(test_page[0] + 2) = 0x4455; /* the immediate is 0x44553344 now */
    for (unsigned i = 0; i < many(200); i++) {
        unsigned n = i % 11;
        bool other = i / 11 & 1;
        map(n * STEP + 1, PHYSICAL(other ? test_page[0] : library + 4096) | PTE_P);
        check("result", run(place(n), 4), other ? want - 0x11223344 + 0x44553344 : want);
    }
    map_all();
}

/* A fault in code that has moved names the place it happened at. */
static void call_place(uint64_t at) {
    run(at, 1);
}

static void faults_in_place(void) {
    for (unsigned i = 0; i < many(60); i++) {
        unsigned n = i % PLACES;
        run(place(n), 6);
        map(n * STEP + 2, 0);
        check("vector", try_call(call_place, place(n)), PF);
        check("page", trap.cr2 & ~4095ul, place(n) + 2 * 4096);
        check("RIP's page", trap.frame.rip & ~4095ul, place(n));
        map_place(n);
        check("result", run(place(n), 4), expected(4));
    }
}

void program(void) {
    TEST(in_turn);
    TEST(in_turn_hot);
    TEST(few_alternating);
    TEST(counted);
    TEST(calls_itself_elsewhere);
    TEST(half_of_it);
    TEST(address_spaces);
    TEST(programs_in_a_row);
    TEST(code_changes);
    TEST(another_second_page);
    TEST(faults_in_place);
}
