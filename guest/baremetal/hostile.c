/*
 * Code made to hurt a translator: instructions across pages, jumps into the
 * middle of others, pages that are code, data and stack at once, one address
 * with several meanings, floods of tiny blocks, and traps, single steps,
 * breakpoints and NMIs in loops that are hot.
 */
#include "apic.h"

#define ALL     (PTE_P | PTE_W | PTE_U)
#define PAGE(n) (TEST_VA + 0x1000ul * (n))
enum { ERROR_P = 1, ERROR_W = 2, ERROR_U = 4, ERROR_I = 16, HOT = 40, RET = 0xc3 };
#define CR4_PCIDE   0x20000ul
#define CR4_SMEP    0x100000ul
#define CR4_PGE     0x80ul
#define CR3_NOFLUSH (1ul << 63)
#define EFER_NXE    0x800ul
#define RFLAGS_TF   0x100ul
#define RFLAGS_RF   0x10000ul
#define DR6_FIXED   0xffff0ff0ul
#define DR7_FIXED   0x400ul

static uint64_t run(uint64_t code) {
    uint64_t value = 0;
    asm volatile("call *%1"
                 : "+a"(value)
                 : "r"(code)
                 : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "memory", "cc");
    return value;
}
static void run_at(uint64_t code) {
    run(code);
}

/* ---- Instructions across pages ---- */

/* mov $imm64, %rax; ret, its first n bytes in page 1, the rest in page 2. */
static void across(unsigned n) {
    static const uint8_t code[] = {0x48, 0xb8, 8, 7, 6, 5, 4, 3, 2, 1, RET};
    uint64_t at = PAGE(2) - n;
    map(1, PHYSICAL(test_page[1]) | ALL);
    map(2, PHYSICAL(test_page[2]) | ALL);
    memcpy((void *)at, code, sizeof code);
    memcpy(test_page[3], (void *)PAGE(2), 16);
    for (unsigned i = n > 2 ? 0 : 2 - n; i < 10 - n; i++)
        test_page[3][i] = 0x55;
    uint64_t other = 0x0102030405060708;
    for (unsigned i = 0; i < 8; i++)
        if (i + 2 >= n)
            other = (other & ~(0xfful << 8 * i)) | 0x55ul << 8 * i;
    for (unsigned i = 0; i < HOT; i++) {
        map(2, PHYSICAL(test_page[2]) | ALL);
        check("first page 2", run(at), 0x0102030405060708);
        if (n < 10) {
            map(2, PHYSICAL(test_page[3]) | ALL);
            check("another page 2", run(at), other);
        }
        map(2, 0);
        check("no page 2", try_call(run_at, at), PF);
        check("error", trap.frame.error, read_cr4() & CR4_SMEP ? ERROR_I : trap.frame.error & ~7ul);
        check("cr2", trap.cr2, PAGE(2));
        check("rip", trap.frame.rip, n < 10 ? at : PAGE(2));
        map(2, PHYSICAL(test_page[2]) | ALL | PTE_NX);
        check("NX page 2", try_call(run_at, at), PF);
        check("error", trap.frame.error, ERROR_P | ERROR_I);
        check("cr2", trap.cr2, PAGE(2));
        map(2, PHYSICAL(test_page[2]) | ALL);
        check("again", run(at), 0x0102030405060708);
    }
}

static void across_pages(void) {
    for (unsigned n = 1; n <= 10; n++)
        across(n);
    map(1, 0);
    map(2, 0);
}

/* ---- Lengths ---- */

static void fifteen_bytes(void) {
    uint8_t *code = test_page[1] + 2048;
    for (unsigned i = 0; i < HOT; i++) {
        memset(code, 0x66, 32);
        code[14] = 0x90;
        code[15] = RET;
        check("15 bytes", try_call(run_at, PHYSICAL(code)), NO_TRAP);
        code[14] = 0x66;
        code[15] = 0x90;
        code[16] = RET;
        check("16 bytes", try_call(run_at, PHYSICAL(code)), GP);
        check("rip", trap.frame.rip, PHYSICAL(code));
    }
    /* The limit counts before the page that is not there. */
    map(1, PHYSICAL(test_page[1]) | ALL);
    map(2, 0);
    memset(test_page[1], 0x66, 4096);
    for (unsigned i = 0; i < HOT; i++) {
        check("15 prefixes, then nothing", try_call(run_at, PAGE(2) - 15), GP);
        check("14 prefixes, then nothing", try_call(run_at, PAGE(2) - 14), PF);
        check("cr2", trap.cr2, PAGE(2));
        check("rip", trap.frame.rip, PAGE(2) - 14);
    }
    map(1, 0);
}

static void skip_two(struct frame *frame) {
    frame->rip += 2;
    frame->rcx++;
}

/* UD2 and encodings that are reserved, in a loop, with a handler that steps over them. */
static void reserved(void) {
    uint64_t turns = 500, traps = 0;
    set_handler(UD, skip_two);
    asm volatile("1: ud2; .byte 0x0f, 0x04; .byte 0xfe, 0xff; .byte 0xff, 0xff\n"
                 ".byte 0x0f, 0x0a; dec %0; jnz 1b"
                 : "+r"(turns), "+c"(traps)::"memory", "cc");
    check("traps", traps, 2500);
    set_handler(UD, NULL);
}

/* ---- Jumps into the middle ---- */

static void middle(void) {
    /* 0: mov $imm32, %eax; ret. 1: what the immediate says: inc %ecx (ff c1); jmp +0 … */
    static const uint8_t code[] = {0xb8, 0xff, 0xc1, 0x89, 0xc8, RET};
    for (unsigned i = 0; i < HOT; i++) {
        memcpy(test_page[1], code, sizeof code);
        uint64_t whole = run(PHYSICAL(test_page[1])), inside = i;
        asm volatile("call *%1; mov %%rcx, %0"
                     : "+c"(inside)
                     : "r"(PHYSICAL(test_page[1]) + 1)
                     : "rax", "memory", "cc");
        check("from the start", whole, 0xc889c1ff);
        check("from the middle", inside, i + 1);
    }
    /* A loop that goes through the same bytes in two ways, turn by turn. */
    uint64_t turns = 1000, sum = 0;
    asm volatile("1: test $1, %0; jz 2f; jmp 3f+1\n"
                 "2: nop\n"
                 "3: .byte 0x3d, 0xff, 0xc1, 0xeb, 0x00\n" /* cmp $imm, %eax; or inc %ecx; jmp */
                 "dec %0; jnz 1b"
                 : "+r"(turns), "+c"(sum)::"rax", "cc");
    check("every other turn", sum, 500);
}

/* ---- A page that is all at once ---- */

/* Code that pushes into its own page, counts beside itself and changes its own immediate. */
CODE(all_at_once, "mov %rsp, %r8\n lea 1024+all_at_once(%rip), %rsp\n mov $0, %eax\n"
                  "1: push %rax\n incq 512+all_at_once(%rip)\n pop %rcx\n add %rcx, %rax\n"
                  "incl 2f+1(%rip)\n 2: .byte 5, 0, 0, 0, 0\n cmp $1000, %eax\n jb 1b\n"
                  "call 3f\n mov %r8, %rsp\n ret\n 3: incq 520+all_at_once(%rip)\n ret");

static void code_data_stack(void) {
    for (unsigned i = 0; i < 20; i++) {
        memset(test_page[1], 0, 4096);
        memcpy(test_page[1], all_at_once, CODE_SIZE(all_at_once));
        uint64_t want = 0, step = 0, turns = 0;
        do {
            want = (uint32_t)(2 * want + ++step);
            turns++;
        } while (want < 1000);
        check("sum", run(PHYSICAL(test_page[1])), want);
        check("counted", *(volatile uint64_t *)&test_page[1][512], turns);
        check("called", *(volatile uint64_t *)&test_page[1][520], 1);
    }
}

/* ---- One page, two mappings ---- */

static void two_rights(void) {
    map(1, PHYSICAL(test_page[1]) | ALL);
    map(2, PHYSICAL(test_page[1]) | ALL | PTE_NX);
    map(3, PHYSICAL(test_page[1]) | PTE_P | PTE_U);
    for (uint32_t i = 0; i < HOT; i++) {
        put_function((uint8_t *)PAGE(2), i); /* writable, not executable */
        cpuid(0, 0);
        check("by the first", run(PAGE(1)), i);
        check("by the third", run(PAGE(3)), i);
        check("NX", try_call(run_at, PAGE(2)), PF);
        check("error", trap.frame.error, ERROR_P | ERROR_I);
        check("read-only", try_call((void (*)(uint64_t))(uintptr_t)put_function, PAGE(3)), PF);
        check("error", trap.frame.error, ERROR_P | ERROR_W);
        *(volatile uint8_t *)(PAGE(1) + 1) = (uint8_t)(i + 3);
        cpuid(0, 0);
        check("changed by the first", run(PAGE(3)) & 0xff, (uint8_t)(i + 3));
    }
    for (unsigned i = 1; i < 4; i++)
        map(i, 0);
}

/* ---- Write, then execute ---- */

static void write_then_execute(void) {
    uint64_t turns = many(20000), sum = 0, want = turns * (turns + 1) / 2;
    asm volatile("1: mov %k0, 2f+1(%%rip); 2: mov $0, %%eax; add %%rax, %1; dec %0; jnz 1b"
                 : "+r"(turns), "+r"(sum)::"rax", "memory", "cc");
    check("in the same block", sum, want);
    turns = many(20000);
    sum = 0;
    for (uint32_t i = 1; i <= turns; i++) {
        put_function(test_page[1] + 64 * (i % 32), i);
        sum += run(PHYSICAL(test_page[1] + 64 * (i % 32)));
    }
    check("in functions", sum, want);
}

/* ---- Blocks without number ---- */

#define BLOCKS_AT   0x1000000ul
#define BLOCKS_SIZE 0x200000ul

/* jmp to the next one, which is 4 bytes on; the last returns. */
static void tiny_blocks(void) {
    uint64_t bytes = many(BLOCKS_SIZE);
    volatile uint32_t *code = (volatile uint32_t *)BLOCKS_AT;
    bytes &= ~63ul;
    for (uint64_t i = 0; i < bytes / 4; i++)
        code[i] = i % 2 ? 0x9001ebf8 : 0x900175f9; /* stc; jnz over the NOP - clc; jmp over it */
    code[bytes / 4 - 1] = 0xc3c3c3c3;
    for (unsigned turns = 0; turns < 2; turns++) {
        uint64_t came = 0;
        asm volatile("xor %%eax, %%eax; inc %%eax; call *%1; sbb %0, %0"
                     : "=r"(came)
                     : "r"(BLOCKS_AT)
                     : "rax", "memory", "cc");
        check("carry at the end", came, ~0ul);
    }
    /* Entered everywhere: other blocks again. */
    for (uint64_t at = 0; at + 4096 < bytes; at += 4096 + 8)
        run(BLOCKS_AT + bytes - 8 - at % 4096);
}

/* The same memory, new code all the time. */
static void code_over_code(void) {
    uint64_t sum = 0, turns = many(60000);
    for (uint32_t i = 0; i < turns; i++) {
        uint8_t *at = (uint8_t *)BLOCKS_AT + i * 37 % 65536;
        put_function(at, i);
        sum += run(PHYSICAL(at)) - i;
    }
    check("sum", sum, 0);
}

/* ---- One address, several meanings ---- */

/* The same code at CPL 0 and CPL 3: CS tells. */
CODE(which_level, "mov %cs, %eax\n push %rax\n pop %rdx\n test $3, %al\n jnz 1f\n ret\n 1: ud2");
CODE(read_cr0_anywhere, "mov $1, %ecx\n mov %cr0, %rax\n mov $2, %ecx\n ret");

static void both_levels(void) {
    for (unsigned i = 0; i < HOT; i++) {
        check("CPL 3", run_user(which_level, CODE_SIZE(which_level), 0), UD);
        check("its CS", trap.frame.rdx & 3, 3);
        check("CPL 0", run(USER_CODE_VA), KERNEL_CS);
        check("CPL 3", run_user(read_cr0_anywhere, CODE_SIZE(read_cr0_anywhere), 0), GP);
        check("before it", trap.frame.rcx, 1);
        check("CPL 0", run(USER_CODE_VA), read_cr0());
    }
}

static void call_in_both(uint64_t first, uint64_t second) {
    uint64_t a, b;
    for (unsigned i = 0; i < 200; i++) {
        asm volatile("mov %2, %%cr3; call *%4; mov %%rax, %0; mov %3, %%cr3; call *%4\n"
                     "mov %%rax, %1; mov %2, %%cr3"
                     : "=&r"(a), "=&r"(b)
                     : "r"(first), "r"(second), "r"(PAGE(1))
                     : "rax", "memory", "cc");
        check("first space", a, 111);
        check("second space", b, 222);
    }
}

/* mov %rdi, %cr3, at the same address in both spaces, with other code behind it. */
static void put_switch(uint8_t *at, uint8_t value) {
    static const uint8_t code[] = {0x0f, 0x22, 0xdf, 0xb8, 0, 0, 0, 0, RET};
    memcpy(at, code, sizeof code);
    at[4] = value;
}

static void switch_below_ones_feet(uint64_t first, uint64_t second) {
    uint64_t a, b;
    put_switch(&test_page[1][64], 1);
    put_switch(&test_page[2][64], 2);
    for (unsigned i = 0; i < 200; i++) {
        asm volatile("mov %3, %%rdi; call *%4; mov %%rax, %0; mov %2, %%rdi; call *%4\n"
                     "mov %%rax, %1"
                     : "=&r"(a), "=&r"(b)
                     : "r"(first), "r"(second), "r"(PAGE(1) + 64)
                     : "rax", "rdi", "memory", "cc");
        check("there", a, 2);
        check("and back", b, 1);
    }
}

static void two_spaces(void) {
    uint64_t cr3 = read_cr3();
    build_other_space();
    map(1, PHYSICAL(test_page[1]) | ALL);
    other_pt[1] = PHYSICAL(test_page[2]) | ALL;
    put_function(test_page[1], 111);
    put_function(test_page[2], 222);
    call_in_both(cr3, PHYSICAL(other_pml4));
    switch_below_ones_feet(cr3, PHYSICAL(other_pml4));
    if (has(HAS_PCID)) {
        write_cr4(read_cr4() | CR4_PCIDE);
        call_in_both(cr3 | 1, PHYSICAL(other_pml4) | 2);
        call_in_both(cr3 | 1 | CR3_NOFLUSH, PHYSICAL(other_pml4) | 2 | CR3_NOFLUSH);
        switch_below_ones_feet(cr3 | 1 | CR3_NOFLUSH, PHYSICAL(other_pml4) | 2 | CR3_NOFLUSH);
        write_cr3(cr3);
        write_cr4(read_cr4() & ~CR4_PCIDE);
    }
    write_cr3(cr3);
    map(1, 0);
}

/* Call from one page into another that changes its place; links between them must notice. */
static void moving_callee(void) {
    uint8_t *at = test_page[1];
    put_function(test_page[2], 2);
    put_function(test_page[3], 3);
    /* call PAGE(2); ret, in page 1 of the region. */
    static const uint8_t code[] = {0xe8, 0xfb, 0x0f, 0, 0, RET};
    memcpy(at, code, sizeof code);
    map(1, PHYSICAL(at) | ALL);
    for (unsigned i = 0; i < HOT; i++) {
        unsigned page = 2 + (i & 1);
        map(2, PHYSICAL(test_page[page]) | ALL);
        check("by INVLPG", run(PAGE(1)), page);
        check("again", run(PAGE(1)), page);
        test_pt[2] = PHYSICAL(test_page[5 - page]) | ALL;
        write_cr3(read_cr3());
        check("by CR3", run(PAGE(1)), 5 - page);
        map(2, PHYSICAL(test_page[page]) | ALL | PTE_NX);
        check("NX", try_call(run_at, PAGE(1)), PF);
        check("rip", trap.frame.rip, PAGE(2));
        map(2, 0);
        check("gone", try_call(run_at, PAGE(1)), PF);
        check("rip", trap.frame.rip, PAGE(2));
    }
    map(1, 0);
}

/* ---- Debugging what is hot ---- */

static void set_dr(uint64_t dr0, uint64_t dr7) {
    asm volatile("mov %0, %%dr0; mov %1, %%dr7" ::"r"(dr0), "r"(dr7));
}
static volatile uint64_t debug_traps, debug_limit, debug_sum;
static void on_debug(struct frame *frame) {
    debug_traps++;
    debug_sum += frame->rcx;
    asm volatile("mov %0, %%dr6" ::"r"(DR6_FIXED));
    if (debug_traps >= debug_limit)
        frame->rflags &= ~RFLAGS_TF;
    frame->rflags |= RFLAGS_RF;
}

/* Loops with a turn of three instructions; RCX counts down. */
#define HOT_LOOP "1: add %%rcx, %0; dec %%rcx; jnz 1b\n"

static void step_hot_loop(void) {
    uint64_t sum = 0, turns = 1000;
    set_handler(DB, on_debug);
    debug_traps = debug_sum = 0;
    debug_limit = 300;
    asm volatile(HOT_LOOP "mov $1000, %%ecx\n"
                          "pushfq; orl $0x100, (%%rsp); popfq\n" HOT_LOOP
                 : "+r"(sum), "+c"(turns)::"memory", "cc");
    check("sum", sum, 2 * 500500);
    check("traps", debug_traps, 300);
    /* Turns of 3 steps: rcx is n, n - 1, n - 1 after them. */
    uint64_t want = 0;
    for (uint64_t i = 0; i < 100; i++)
        want += (1000 - i) + 2 * (999 - i);
    check("in order", debug_sum, want);
    set_handler(DB, NULL);
}

static void break_hot_loop(void) {
    volatile uint64_t watched = 0;
    uint64_t sum = 0, at;
    set_handler(DB, on_debug);
    debug_traps = debug_sum = 0;
    debug_limit = ~0ul;
    /* An execution breakpoint that comes when the loop is hot and goes while it is. */
    asm volatile("lea 2f(%%rip), %1; mov $5000, %%ecx\n"
                 "1: add %%rcx, %0; cmp $1000, %%ecx; je 3f; cmp $900, %%ecx; je 4f\n"
                 "2: dec %%rcx; jnz 1b; jmp 5f\n"
                 "3: mov %1, %%dr0; mov $0x402, %%eax; mov %%rax, %%dr7; jmp 2b\n"
                 "4: mov $0x400, %%eax; mov %%rax, %%dr7; jmp 2b\n"
                 "5:"
                 : "+r"(sum), "=&r"(at)::"rax", "rcx", "memory", "cc");
    check("sum", sum, 5000ul * 5001 / 2);
    check("executions", debug_traps, 100);
    debug_traps = 0;
    asm volatile("mov %1, %%dr0; mov $3000, %%ecx\n"
                 "1: cmp $2000, %%ecx; jne 2f; mov $0xd0402, %%eax; mov %%rax, %%dr7\n"
                 "2: incq (%1); cmp $1950, %%ecx; jne 3f; mov $0x400, %%eax; mov %%rax, %%dr7\n"
                 "3: dec %%rcx; jnz 1b"
                 :
                 : "r"(0ul), "r"(&watched)
                 : "rax", "rcx", "memory", "cc");
    check("counted", watched, 3000);
    check("writes", debug_traps, 51);
    set_dr(0, DR7_FIXED);
    set_handler(DB, NULL);
}

/* ---- NMIs anywhere ---- */

static volatile uint64_t nmis, ticks;
static void on_nmi(struct frame *frame) {
    nmis++;
}
static void on_tick(struct frame *frame) {
    ticks++;
    apic_write(APIC_EOI, 0);
    apic_write(APIC_INITIAL,
               50000 + ticks * 79193 % 200000); /* nanoseconds: more than this takes */
}

/* Everything that a translator treats in a way of its own; the same result each time. */
static uint64_t busy(void) {
    uint64_t sum = 0;
    asm volatile("mov $300, %%r13d; mov %%rsp, %%r14\n"
                 "1: push %0; add %%r13, (%%rsp); adc $0, %0; call 2f; pop %0\n"
                 "test $1, %%r13b; lea 3f(%%rip), %%rax; jz 4f; jmp *%%rax\n"
                 "2: cmp $77, %%r13; sbb %%rdx, %%rdx; lea (%0,%%rdx,2), %0; add %%rdx, %0\n"
                 "pushfq; xorl $0x8d5, (%%rsp); popfq; adc $3, %0\n"
                 "cld; add $0x11, %0; ret\n"
                 "3: mov %1, %%rdi; mov %1, %%rsi; mov $40, %%ecx; rep movsb; cmpxchg %%r13, (%1)\n"
                 "4: ror $7, %0; xchg %0, 8(%1); xchg %0, 8(%1); lock xadd %0, 16(%1)\n"
                 "mov 16(%1), %%rax; xor %%rax, %0; add %%r13, %0; movq $0, 16(%1)\n"
                 "dec %%r13; jnz 1b; mov %%r14, %%rsp"
                 : "+r"(sum)
                 : "r"(test_page[4])
                 : "rax", "rcx", "rdx", "rsi", "rdi", "r13", "r14", "memory", "cc");
    return sum;
}

static void ticks_anywhere(void) {
    enum { TICK = 0x71, ENOUGH = 1000 };
    memset(test_page[4], 0, 4096);
    uint64_t want = busy(), enough = many(ENOUGH);
    set_handler(TICK, on_tick);
    ticks = 0;
    apic_enable();
    apic_write(APIC_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, TICK);
    apic_write(APIC_INITIAL, 50000);
    asm volatile("sti");
    while (ticks < enough) {
        memset(test_page[4], 0, 64);
        check("the same", busy(), want);
    }
    asm volatile("cli");
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
    apic_write(APIC_INITIAL, 0);
    set_handler(TICK, NULL);
}

static void ioapic_route(unsigned pin, uint32_t low) {
    volatile uint32_t *ioapic = (volatile uint32_t *)0xfec00000ul;
    ioapic[0] = 0x11 + 2 * pin;
    ioapic[4] = apic_read(APIC_ID);
    ioapic[0] = 0x10 + 2 * pin;
    ioapic[4] = low;
}

/* NMIs that another thread of the monitor sends while this runs. */
static void nmi_anywhere(void) {
    enum { GSI = 20, ENOUGH = 100, LIMIT = 100000 };
    if (!has_harness())
        return skip("no harness");
    memset(test_page[4], 0, 4096);
    uint64_t want = busy(), enough = many(ENOUGH);
    use_ist(NMI, 1);
    set_handler(NMI, on_nmi);
    nmis = 0;
    ioapic_route(GSI, 0x400);
    for (uint64_t i = 0; i < enough; i++) {
        request(REQUEST_LINE_LATER, GSI, 1, 0);
        for (unsigned n = 0; nmis == i && n < LIMIT; n++) {
            memset(test_page[4], 0, 64);
            check("the same", busy(), want);
        }
        request(REQUEST_LINE, GSI, 0, 0);
    }
    check("all of them", nmis, enough);
    ioapic_route(GSI, 0x10000);
    set_handler(NMI, NULL);
    reset_gate(NMI);
}

void program(void) {
    wrmsr(0xc0000080, rdmsr(0xc0000080) | EFER_NXE);
    TEST(across_pages);
    TEST(fifteen_bytes);
    TEST(middle);
    TEST(code_data_stack);
    TEST(two_rights);
    TEST(write_then_execute);
    TEST(tiny_blocks);
    TEST(code_over_code);
    TEST(both_levels);
    TEST(two_spaces);
    TEST(moving_callee);
    TEST(step_hot_loop);
    TEST(break_hot_loop);
    TEST(ticks_anywhere);
    TEST(nmi_anywhere);
    TEST(reserved);
}
