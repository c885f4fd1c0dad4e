/*
 * Stacks that a translator would like to trust: at ends of pages, remapped or
 * write-protected between push and pop, in devices and ROM, aliased as data,
 * switched at every call; returns to where no call came from, calls that never
 * return, recursion of millions of frames.
 */
#include "runtime.h"

#define ALL       (PTE_P | PTE_W | PTE_U)
#define READ_ONLY (PTE_P | PTE_U)
#define PAGE(n)   (TEST_VA + 0x1000ul * (n))
enum { ERROR_P = 1, ERROR_W = 2, ERROR_U = 4, HOT = 40 };
#define CR4_PCIDE   0x20000ul
#define CR3_NOFLUSH (1ul << 63)

/* ---- Each instruction that uses the stack, at a stack that refuses ---- */

/* RSP is `a` when the instruction at 1: runs; R11 is where that is; RBP serves LEAVE. */
#define AT_STACK(name, instructions)                                                               \
    static void name(uint64_t a) {                                                                 \
        asm volatile("push %%rbp; mov %%rsp, %%rbx; lea 1f(%%rip), %%r11; lea 9f(%%rip), %%r10\n"  \
                     "mov %0, %%rbp; mov %0, %%rsp\n" instructions                                 \
                     "\n9: mov %%rbx, %%rsp; pop %%rbp" ::"D"(a)                                   \
                     : "rax", "rbx", "rcx", "rdx", "r10", "r11", "memory", "cc");                  \
    }
extern volatile uint64_t target_word, memory_word;
volatile uint64_t target_word, memory_word;
AT_STACK(push_register, "1: push %%rax")
AT_STACK(push_homed, "1: push %%r13")
AT_STACK(push_rsp, "1: push %%rsp")
AT_STACK(push_immediate, "1: push $-7")
AT_STACK(push_memory, "1: push memory_word(%%rip)")
AT_STACK(push_flags, "1: pushfq")
AT_STACK(call_near, "1: call 2f; 2:")
AT_STACK(call_register, "lea 2f(%%rip), %%rax; 1: call *%%rax; 2:")
AT_STACK(call_memory, "lea 2f(%%rip), %%rax; mov %%rax, target_word(%%rip)\n"
                      "1: call *target_word(%%rip); 2:")
AT_STACK(enter_0, "1: enter $16, $0")
AT_STACK(pop_register, "1: pop %%rax")
AT_STACK(pop_homed, "mov %%r14, %%rcx; 1: pop %%r14; mov %%rcx, %%r14")
AT_STACK(pop_memory, "1: pop memory_word(%%rip)")
AT_STACK(pop_flags, "1: popfq")
AT_STACK(leave_frame, "1: leave")
AT_STACK(return_near, "1: ret")
AT_STACK(return_more, "1: ret $16")

struct stack_case {
    const char *name;
    void (*run)(uint64_t);
    bool writes; /* 8 bytes below RSP; else reads 8 bytes at it */
};
static const struct stack_case stack_cases[] = {
    {"push reg", push_register, true}, {"push r13", push_homed, true},
    {"push rsp", push_rsp, true},      {"push imm", push_immediate, true},
    {"push mem", push_memory, true},   {"pushf", push_flags, true},
    {"call", call_near, true},         {"call reg", call_register, true},
    {"call mem", call_memory, true},   {"enter", enter_0, true},
    {"pop reg", pop_register, false},  {"pop r14", pop_homed, false},
    {"pop mem", pop_memory, false},    {"popf", pop_flags, false},
    {"leave", leave_frame, false},     {"ret", return_near, false},
    {"ret n", return_more, false},
};
enum { STACK_CASES = sizeof stack_cases / sizeof stack_cases[0] };

/* What the good stack holds where it is read: flags for POPF, an address for RET, anything else. */
static void fill_good(const struct stack_case *c, volatile uint64_t *at) {
    extern const char landing[];
    *at = c->run == pop_flags                              ? 2
          : c->run == return_near || c->run == return_more ? PHYSICAL(landing)
                                                           : 0x1234;
}

static void heat(const struct stack_case *c) {
    for (unsigned i = many(HOT); i > 0; i--) {
        fill_good(c, (volatile uint64_t *)PAGE(1) + 256);
        try_call(c->run, PAGE(1) + 2048);
    }
}

static void refuse(const struct stack_case *c, uint64_t rsp, unsigned vector, uint64_t error,
                   uint64_t cr2) {
    uint64_t word = memory_word;
    for (unsigned i = 0; i < 3; i++) {
        trap.cr2 = 0;
        check(c->name, try_call(c->run, rsp), vector);
        check(c->name, trap.frame.error, error);
        if (vector == PF)
            check(c->name, trap.cr2, cr2);
        check(c->name, trap.frame.rsp, rsp);
        check(c->name, trap.frame.rbp, rsp);
        check(c->name, trap.frame.rip, trap.frame.r11);
        check(c->name, memory_word, word);
        heat(c);
    }
}

static void set_up(void) {
    use_ist(PF, 1);
    use_ist(GP, 1);
    use_ist(SS, 1);
    map(1, PHYSICAL(test_page[1]) | ALL);
    map(2, PHYSICAL(test_page[2]) | ALL);
    map(3, PHYSICAL(test_page[3]) | READ_ONLY);
    map(4, 0);
    map(5, PHYSICAL(test_page[5]) | ALL);
    memset(test_page[1], 0, 5 * 4096);
}

static void clean_up(void) {
    reset_gate(PF);
    reset_gate(GP);
    reset_gate(SS);
    for (unsigned i = 1; i < 16; i++)
        map(i, 0);
}

static void refused(void) {
    set_up();
    for (unsigned i = 0; i < STACK_CASES; i++) {
        const struct stack_case *c = &stack_cases[i];
        uint64_t write = c->writes ? ERROR_W : 0, off = c->writes ? 8 : 0;
        heat(c);
        refuse(c, PAGE(4) + 512, PF, write, PAGE(4) + 512 - off);
        refuse(c, 0x8000000000000000ul, SS, 0, 0);
        refuse(c, 0x0000800000000000ul + off, SS, 0, 0);
        if (c->writes)
            refuse(c, PAGE(3) + 512, PF, ERROR_W | ERROR_P, PAGE(3) + 504);
        /* Half in a page that is not there. */
        refuse(c, PAGE(4) - 4 + off, PF, write | (c->writes ? ERROR_P : 0),
               c->writes ? PAGE(4) - 4 : PAGE(4));
        refuse(c, PAGE(5) - 4 + off, PF, write, PAGE(5) - 4);
    }
    clean_up();
}

/* ---- Pages that change between push and pop ---- */

static void (*between_function)(void);
void between(void);
__attribute__((used)) void between(void) {
    between_function();
}
static uint64_t popped_with(void (*function)(void), uint64_t rsp, uint64_t value) {
    uint64_t popped;
    between_function = function;
    asm volatile("mov %%rsp, %%r12; mov %%rsi, %%rsp; push %%rdx; mov %%rsp, %%r13\n"
                 "mov %%r12, %%rsp; call between; mov %%r13, %%rsp; pop %%rax; mov %%r12, %%rsp"
                 : "=a"(popped), "+S"(rsp), "+d"(value)
                 :
                 : "rcx", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "memory", "cc");
    return popped;
}

static unsigned turn;
static void other_page(void) {
    map(1, PHYSICAL(test_page[1 + (turn & 1)]) | ALL);
}
static void other_page_cr3(void) {
    test_pt[1] = PHYSICAL(test_page[1 + (turn & 1)]) | ALL;
    write_cr3(read_cr3());
}
static void same_page(void) {
}
static void by_alias(void) {
    *(volatile uint64_t *)(PAGE(6) + 1016) = 77;
}
static void by_physical(void) {
    *(volatile uint64_t *)&test_page[1][1016] = 78;
}
static void by_dma(void) {
    static uint64_t source;
    source = 79;
    request(REQUEST_DMA, PHYSICAL(&test_page[1][1016]), PHYSICAL(&source), 8);
}

static void remapped(void) {
    set_up();
    for (turn = 0; turn < HOT; turn++) {
        volatile uint64_t *one = (volatile uint64_t *)&test_page[1][1016];
        volatile uint64_t *two = (volatile uint64_t *)&test_page[2][1016];
        map(1, PHYSICAL(test_page[1]) | ALL);
        *one = 1;
        *two = 2;
        check("by INVLPG", popped_with(other_page, PAGE(1) + 1024, 5), turn & 1 ? 2 : 5);
        check("pushed", *one, 5);
        map(1, PHYSICAL(test_page[1]) | ALL);
        *two = 3;
        check("by CR3", popped_with(other_page_cr3, PAGE(1) + 1024, 6), turn & 1 ? 3 : 6);
        map(1, PHYSICAL(test_page[1]) | ALL);
        check("not at all", popped_with(same_page, PAGE(1) + 1024, 7), 7);
    }
    clean_up();
}

static void aliased(void) {
    set_up();
    map(6, PHYSICAL(test_page[1]) | ALL);
    for (unsigned i = 0; i < HOT; i++) {
        check("changed by alias", popped_with(by_alias, PAGE(1) + 1024, i), 77);
        check("changed by address", popped_with(by_physical, PAGE(1) + 1024, i), 78);
        if (has_harness())
            check("changed by DMA", popped_with(by_dma, PAGE(1) + 1024, i), 79);
    }
    /* In one block: pushes seen by the alias, stores by the alias popped. */
    for (uint64_t i = 0; i < HOT; i++) {
        uint64_t seen, popped, value = i * 3;
        asm volatile("mov %%rsp, %%r12; lea 1024(%2), %%rsp; push %3; mov 1016(%4), %0\n"
                     "addq $1, 1016(%4); pop %1; push %1; addq $1, (%%rsp); mov 1016(%4), %3\n"
                     "mov %%r12, %%rsp"
                     : "=&r"(seen), "=&r"(popped), "+r"((uint64_t){PAGE(1)}), "+r"(value)
                     : "r"(PAGE(6))
                     : "r12", "memory", "cc");
        check("push seen", seen, i * 3);
        check("popped", popped, i * 3 + 1);
        check("again", value, i * 3 + 2);
    }
    clean_up();
}

static unsigned repaired;
static uint64_t repair_pte;
static void count_and_map(struct frame *frame) {
    repaired++;
    map(1, repair_pte);
}

/* The page goes away or becomes read-only while code runs on it; the handler brings it back. */
static void taken_away(void) {
    static const uint64_t away[] = {0, READ_ONLY};
    set_up();
    for (unsigned kind = 0; kind < 2; kind++) {
        repair_pte = PHYSICAL(test_page[1]) | ALL;
        repaired = 0;
        set_handler(PF, count_and_map);
        for (uint64_t i = 0; i < HOT; i++) {
            uint64_t out, in = i;
            map(1, PHYSICAL(test_page[1]) | ALL);
            asm volatile("mov %%rsp, %%r12; mov %1, %%rsp; push %0; push %0\n"
                         "mov %2, (%3); invlpg (%%rsp); push %0; incq (%%rsp); pop %0\n"
                         "add (%%rsp), %0; mov %%r12, %%rsp"
                         : "+r"(in)
                         : "r"(PAGE(1) + 2048),
                           "r"(kind == 0 ? away[0] : away[1] | PHYSICAL(test_page[1])),
                           "r"(&test_pt[1])
                         : "r12", "memory", "cc");
            out = in;
            check("value", out, 2 * i + 1);
            check("faults", repaired, i + 1);
        }
        set_handler(PF, NULL);
    }
    clean_up();
}

/* ---- Operands near the stack's top, but in the page behind ---- */

static void push_of_far(uint64_t rsp) {
    volatile uint64_t *at = (volatile uint64_t *)rsp;
    at[-1] = at[-2] = at[-3] = 0;
    at[2] = rsp;
    at[131] = ~rsp;
    asm volatile(
        "mov %%rsp, %%r12; mov %0, %%rsp; movb $7, 896(%%rsp); mov 16(%%rsp), %%rax\n"
        "push 1048(%%rsp); push %%rax; call 1f; jmp 2f; 1: ret; 2: mov %%r12, %%rsp" ::"r"(rsp)
        : "rax", "r12", "memory", "cc");
    check("far word", at[-1], ~rsp);
    check("pushed behind", at[-2], rsp);
    check("stored before", *(volatile uint8_t *)&at[112], 7);
}

static void call_of_far(uint64_t rsp) {
    uint64_t back, want;
    asm volatile("mov %%rsp, %%r12; mov %2, %%rsp; lea 1f(%%rip), %%rax; mov %%rax, 1048(%%rsp)\n"
                 "movb $8, 896(%%rsp); push %2; call *1056(%%rsp); 2: ud2\n"
                 "1: pop %0; lea 2b(%%rip), %1; cmpb $8, 904(%%rsp); jne 2b; pop %%rax\n"
                 "mov %%r12, %%rsp"
                 : "=&r"(back), "=&r"(want)
                 : "r"(rsp)
                 : "rax", "r12", "memory", "cc");
    check("return address", back, want);
    check("pushed before", ((volatile uint64_t *)rsp)[-1], rsp);
}

static void far_operands(void) {
    set_up();
    map(2, PHYSICAL(test_page[5]) | ALL); /* not what follows the first in memory */
    for (unsigned turns = 0; turns < 2; turns++)
        for (uint64_t rsp = PAGE(1) + 64; rsp < PAGE(2) + 64; rsp += 8) {
            push_of_far(rsp);
            call_of_far(rsp);
        }
    clean_up();
}

/* ---- Stacks that are no memory ---- */

AT_STACK(return_on, "push %%r10; 1: ret")

static struct logged_access accesses[64];

static void in_device(void) {
    if (!has_harness())
        return skip("no harness");
    use_ist(PF, 1);
    use_ist(GP, 1);
    for (unsigned i = 0; i < HOT; i++) {
        uint64_t popped, stack = TEST_MMIO + 256, pattern = 0;
        for (unsigned n = 0; n < 8; n++)
            pattern |= (uint64_t)TEST_PATTERN(248 + n) << 8 * n;
        request(REQUEST_LOG, PHYSICAL(accesses), 64, 0);
        asm volatile("mov %%rsp, %%r12; mov %1, %%rsp; push $0x55; pop %0; mov %%r12, %%rsp"
                     : "=&r"(popped)
                     : "r"(stack)
                     : "r12", "memory");
        check("accesses", request(REQUEST_LOG, PHYSICAL(accesses), 64, 0), 2);
        check("push", accesses[0].address, stack - 8);
        check("writes", accesses[0].write, 1);
        check("value", accesses[0].value, 0x55);
        check("pop", accesses[1].address, stack - 8);
        check("popped", popped, pattern);
        unsigned vector = try_call(return_on, stack);
        check("return to what the device says", vector, pattern >> 47 != 0 ? GP : PF);
    }
    reset_gate(PF);
    reset_gate(GP);
}

static void in_rom(void) {
    if (!has_harness())
        return skip("no ROM");
    use_ist(PF, 1);
    use_ist(GP, 1);
    for (unsigned i = 0; i < HOT; i++) {
        uint64_t popped, stack = TEST_ROM + 512, want = *(volatile uint64_t *)(stack - 8);
        asm volatile("mov %%rsp, %%r12; mov %1, %%rsp; push $0x55; pop %0; mov %%r12, %%rsp"
                     : "=&r"(popped)
                     : "r"(stack)
                     : "r12", "memory");
        check("popped", popped, want);
        unsigned vector = try_call(return_on, stack);
        check("return to what the ROM says", vector, want >> 47 != 0 ? GP : PF);
    }
    reset_gate(PF);
    reset_gate(GP);
}

/* ---- Calls and returns that do not pair ---- */

static void changed_return(void) {
    uint64_t count = 0, through = 0;
    for (unsigned i = 0; i < 1000; i++)
        asm volatile("lea 3f(%%rip), %%rdx\n"
                     "call 1f; ud2\n"
                     "1: call 2f; ud2\n"
                     "2: mov %%rdx, (%%rsp); test $1, %2; jz 4f\n"
                     "lea 5f(%%rip), %%rax; mov %%rax, 8(%%rsp)\n"
                     "ret; ud2\n"
                     "4: add $8, %%rsp; lea 5f(%%rip), %%rax; mov %%rax, (%%rsp); push %%rdx; ret\n"
                     "3: inc %0; ret; ud2\n"
                     "5: inc %1"
                     : "+r"(count), "+r"(through)
                     : "r"(i)
                     : "rax", "rdx", "memory", "cc");
    check("first return", count, 1000);
    check("second", through, 1000);
}

static void calls_without_return(void) {
    uint64_t turns = many(300000), count = turns, sum = 0;
    asm volatile("mov %%rsp, %%r12\n"
                 "1: call 2f; ud2\n"
                 "2: call 3f; ud2\n"
                 "3: inc %1; mov %%r12, %%rsp; dec %0; jnz 1b"
                 : "+r"(count), "+r"(sum)::"r12", "memory", "cc");
    check("calls", sum, turns);
}

static void returns_without_call(void) {
    uint64_t turns = many(300000), count = turns, sum = 0;
    asm volatile("lea 1f(%%rip), %%rdx; lea 2f(%%rip), %%rcx\n"
                 "1: dec %0; js 3f; push %%rdx; push %%rcx; ret; ud2\n"
                 "2: inc %1; ret; ud2\n"
                 "3:"
                 : "+r"(count), "+r"(sum)::"rcx", "rdx", "memory", "cc");
    check("returns", sum, turns);
}

enum { DEEP = 1500000 };
#define DEEP_STACK 0x1f00000ul

static void deep_recursion(void) {
    uint64_t frames = many(DEEP), depth, sum = 0;
    for (unsigned turns = 0; turns < 2; turns++) {
        depth = frames;
        asm volatile("mov %%rsp, %%r12; mov %2, %%rsp; call 1f; jmp 3f\n"
                     "1: dec %0; jz 2f; call 1b; 2: inc %1; ret\n"
                     "3: mov %%r12, %%rsp"
                     : "+r"(depth), "+r"(sum)
                     : "r"(DEEP_STACK)
                     : "r12", "memory", "cc");
    }
    check("frames", sum, 2 * frames);
}

/* Two threads of control that call each other. */
static void coroutines(void) {
    uint64_t turns = many(100000), count = turns, a = 0, b = 0;
    map(1, PHYSICAL(test_page[1]) | ALL);
    asm volatile("mov %%rsp, %%r12; lea 2048(%3), %%r13\n"
                 "lea 5f(%%rip), %%rax; sub $8, %%r13; mov %%rax, (%%r13)\n"
                 "1: call 4f; inc %1; dec %0; jnz 1b; jmp 9f\n"
                 "4: xchg %%rsp, %%r13; ret\n" /* to the other one */
                 "5: inc %2; call 4b; inc %2; call 4b; jmp 5b\n"
                 "9: mov %%r12, %%rsp"
                 : "+r"(count), "+r"(a), "+r"(b)
                 : "r"(PAGE(1))
                 : "rax", "r12", "r13", "memory", "cc");
    check("first", a, turns);
    check("second", b, turns);
    map(1, 0);
}

/* ---- Address spaces ---- */

/* One stack address, two stacks: what is pushed in one space is popped there. */
static void ping_pong(uint64_t first, uint64_t second) {
    for (uint64_t i = 0; i < 200; i++) {
        uint64_t x, y, value = i;
        asm volatile("mov %%rsp, %%r12; mov %3, %%cr3; mov %5, %%rsp; push %2\n"
                     "mov %4, %%cr3; lea 1000(%2), %2; push %2; incq (%%rsp)\n"
                     "mov %3, %%cr3; add $16, %%rsp; sub $8, %%rsp; mov (%%rsp), %0\n"
                     "mov %4, %%cr3; mov -8(%%rsp), %1\n"
                     "mov %3, %%cr3; mov %%r12, %%rsp"
                     : "=&r"(x), "=&r"(y), "+r"(value)
                     : "r"(first), "r"(second), "r"(PAGE(1) + 2048)
                     : "r12", "memory", "cc");
        check("first space", x, i);
        check("second space", y, i + 1001);
    }
}

static void two_spaces(void) {
    uint64_t cr3 = read_cr3();
    build_other_space();
    map(1, PHYSICAL(test_page[1]) | ALL);
    other_pt[1] = PHYSICAL(test_page[2]) | ALL;
    ping_pong(cr3, PHYSICAL(other_pml4));
    if (has(HAS_PCID)) {
        write_cr4(read_cr4() | CR4_PCIDE);
        ping_pong(cr3 | 1, PHYSICAL(other_pml4) | 2);
        ping_pong(cr3 | 1 | CR3_NOFLUSH, PHYSICAL(other_pml4) | 2 | CR3_NOFLUSH);
        write_cr3(cr3);
        write_cr4(read_cr4() & ~CR4_PCIDE);
    }
    write_cr3(cr3);
    map(1, 0);
}

/* A stack that only the supervisor may use, from CPL 3, and back. */
CODE(user_stack, "mov %rdi, %rsp\n push %rax\n ud2");
static void user_on_kernel_stack(void) {
    for (unsigned i = 0; i < HOT; i++) {
        map(1, PHYSICAL(test_page[1]) | PTE_P | PTE_W);
        push_register(PAGE(1) + 2048);
        check("vector", run_user(user_stack, CODE_SIZE(user_stack), PAGE(1) + 2048), PF);
        check("error", trap.frame.error, ERROR_P | ERROR_W | ERROR_U);
        check("rsp", trap.frame.rsp, PAGE(1) + 2048);
        map(1, PHYSICAL(test_page[1]) | ALL);
        check("allowed", run_user(user_stack, CODE_SIZE(user_stack), PAGE(1) + 2048), UD);
    }
    map(1, 0);
}

void program(void) {
    TEST(refused);
    TEST(remapped);
    TEST(aliased);
    TEST(taken_away);
    TEST(far_operands);
    TEST(in_device);
    TEST(in_rom);
    TEST(changed_return);
    TEST(calls_without_return);
    TEST(returns_without_call);
    TEST(deep_recursion);
    TEST(coroutines);
    TEST(two_spaces);
    TEST(user_on_kernel_stack);
}
