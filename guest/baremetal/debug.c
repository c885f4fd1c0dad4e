/* Debug exceptions: single-step, hardware breakpoints, DR6 and DR7 (APM vol. 2, chapter 13). */
#include "runtime.h"

#define RFLAGS_TF 0x100ul
#define RFLAGS_RF 0x10000ul
#define DR6_FIXED 0xffff0ff0ul
enum { DR6_BS = 0x4000, DR6_BD = 0x2000, DR7_FIXED = 0x400, DR7_GD = 0x2000 };

static void set_dr7(uint64_t v) {
    asm volatile("mov %0, %%dr7" ::"r"(v));
}
static void set_dr6(uint64_t v) {
    asm volatile("mov %0, %%dr6" ::"r"(v));
}
static void set_dr0(uint64_t v) {
    asm volatile("mov %0, %%dr0" ::"r"(v));
}
static uint64_t get_dr6(void) {
    uint64_t v;
    asm volatile("mov %%dr6, %0" : "=r"(v));
    return v;
}
static uint64_t get_dr7(void) {
    uint64_t v;
    asm volatile("mov %%dr7, %0" : "=r"(v));
    return v;
}

/* ---- A handler that writes down where it was called from ---- */

static volatile struct {
    unsigned count;
    uint64_t rip[32];
    uint64_t dr6[32];
    uint64_t rflags;
    unsigned stop_at; /* clears TF in the frame then */
} seen;

static void note(struct frame *frame) {
    if (seen.count < 32) {
        seen.rip[seen.count] = frame->rip;
        seen.dr6[seen.count] = get_dr6();
    }
    seen.rflags = frame->rflags;
    set_dr6(DR6_FIXED);
    if (++seen.count >= seen.stop_at)
        frame->rflags &= ~RFLAGS_TF;
    frame->rflags |= RFLAGS_RF; /* an instruction breakpoint does not repeat */
}

static void start(unsigned stop_at) {
    seen.count = 0;
    seen.stop_at = stop_at;
    set_dr6(DR6_FIXED);
    set_handler(DB, note);
}

static void stop(void) {
    set_dr7(DR7_FIXED);
    set_handler(DB, NULL);
}

/* ---- Single-step ---- */

static void single_step(void) {
    uint64_t labels[4];
    start(3);
    asm volatile("lea 1f(%%rip), %%rax; mov %%rax, (%0); lea 2f(%%rip), %%rax; mov %%rax, 8(%0)\n"
                 "lea 3f(%%rip), %%rax; mov %%rax, 16(%0)\n"
                 "pushfq; orl $0x100, (%%rsp); popfq\n"
                 "nop; 1: mov %%eax, %%eax; 2: .byte 0x0f, 0x1f, 0x40, 0; 3: nop; nop" ::"r"(labels)
                 : "rax", "memory", "cc");
    check("traps", seen.count, 3);
    for (unsigned i = 0; i < 3; i++) {
        check("after each instruction", seen.rip[i], labels[i]);
        check("BS", seen.dr6[i], DR6_FIXED | DR6_BS);
    }
    stop();
}

/* Each turn of a repeated instruction traps; RIP stays at it until the last. */
static void step_repeat(void) {
    uint64_t at, after;
    void *to = test_page[0];
    uint64_t count = 3;
    start(4);
    asm volatile("lea 1f(%%rip), %0; lea 2f(%%rip), %1\n"
                 "pushfq; orl $0x100, (%%rsp); popfq\n"
                 "1: rep stosb; 2: nop; nop"
                 : "=&r"(at), "=&r"(after), "+D"(to), "+c"(count)::"memory", "cc");
    check("traps", seen.count, 4);
    check("first turn", seen.rip[0], at);
    check("second", seen.rip[1], at);
    check("third", seen.rip[2], after);
    stop();
}

/* MOV SS holds the trap back for one instruction. */
static void step_mov_ss(void) {
    uint64_t after;
    start(1);
    asm volatile("mov %%ss, %%ecx; lea 1f(%%rip), %0\n"
                 "pushfq; orl $0x100, (%%rsp); popfq\n"
                 "mov %%ecx, %%ss; nop; 1: nop"
                 : "=&r"(after)::"rcx", "memory", "cc");
    check("traps", seen.count, 1);
    check("after the next one", seen.rip[0], after);
    stop();
}

/* A fault is delivered with TF clear; the handler is not stepped. */
static uint64_t handler_flags;
static void skip_ud2(struct frame *frame) {
    asm volatile("pushfq; popq %0" : "=r"(handler_flags)::"memory");
    frame->rip += 2;
}

static void step_into_handler(void) {
    uint64_t after;
    start(1);
    set_handler(UD, skip_ud2);
    asm volatile("lea 1f(%%rip), %0\n"
                 "pushfq; orl $0x100, (%%rsp); popfq\n"
                 "ud2; nop; 1: nop"
                 : "=&r"(after)::"memory", "cc");
    check("TF in the handler", handler_flags & RFLAGS_TF, 0);
    check("traps", seen.count, 1);
    check("after the first instruction that ends", seen.rip[0], after);
    set_handler(UD, NULL);
    stop();
}

CODE(user_step, "pushfq\n orl $0x100, (%rsp)\n popfq\n nop\n nop\n ud2");

static void step_user(void) {
    check("vector", run_user(user_step, CODE_SIZE(user_step), 0), DB);
    check("rip", trap.frame.rip, USER_CODE_VA + 10);
    check("dr6", trap.dr6, DR6_FIXED | DR6_BS);
}

/* ---- Hardware breakpoints ---- */

static void execution_breakpoint(void) {
    uint64_t at, value;
    start(100);
    asm volatile("lea 1f(%%rip), %0; mov %0, %%dr0; mov %2, %%dr7\n"
                 "mov $5, %%ecx; xor %%eax, %%eax\n"
                 "1: inc %%eax; dec %%ecx; jnz 1b"
                 : "=&r"(at), "=&a"(value)
                 : "r"(DR7_FIXED | 2ul)
                 : "rcx", "memory", "cc");
    check("each time", seen.count, 5);
    check("before the instruction", seen.rip[0], at);
    check("B0", seen.dr6[0], DR6_FIXED | 1);
    check("no RF in the frame", seen.rflags & RFLAGS_RF, 0); /* of all faults only this one */
    check("went on", value, 5);
    stop();
}

/* What is watched, and room below it: a push there raises an exception on that stack. */
static volatile uint64_t area[512 + 4] __attribute__((aligned(32)));
static volatile uint64_t *const watched = area + 512;

/* DR7 for DR0: global, kind (1 write, 3 read or write), length (0: 1, 1: 2, 3: 4, 2: 8 bytes). */
static uint64_t dr7(unsigned kind, unsigned length) {
    return DR7_FIXED | 2 | (uint64_t)kind << 16 | (uint64_t)length << 18;
}

#define WATCHED(statement)                                                                         \
    ({                                                                                             \
        unsigned before = seen.count;                                                              \
        statement;                                                                                 \
        seen.count - before;                                                                       \
    })

static void data_breakpoints(void) {
    volatile uint8_t *bytes = (volatile uint8_t *)&watched[1];
    uint64_t after;
    uint32_t value;
    start(100);
    set_dr0(PHYSICAL(bytes + 4));
    set_dr7(dr7(1, 3));
    asm volatile("lea 1f(%%rip), %0; movl $1, (%1); 1: nop"
                 : "=&r"(after)
                 : "r"(bytes + 4)
                 : "memory");
    check("write", seen.count, 1);
    check("after the instruction", seen.rip[0], after);
    check("B0", seen.dr6[0], DR6_FIXED | 1);
    check("byte inside", WATCHED(bytes[6] = 1), 1);
    check("before it", WATCHED(bytes[3] = 1), 0);
    check("behind it", WATCHED(bytes[8] = 1), 0);
    check("overlapping", WATCHED(*(volatile uint64_t *)(bytes + 1) = 0), 1);
    check("read", WATCHED(asm volatile("movl (%1), %0" : "=r"(value) : "r"(bytes + 4))), 0);
    set_dr7(dr7(3, 3));
    check("read, watched",
          WATCHED(asm volatile("movl (%1), %0; nop"
                               : "=r"(value)
                               : "r"(bytes + 4))),
          1);
    set_dr0(PHYSICAL(&watched[2]));
    set_dr7(dr7(1, 2));
    check("8 bytes: last", WATCHED(*(volatile uint8_t *)((uint64_t)&watched[2] + 7) = 1), 1);
    check("8 bytes: next", WATCHED(*(volatile uint8_t *)((uint64_t)&watched[2] + 8) = 1), 0);
    check("push",
          WATCHED(asm volatile(
              "mov %%rsp, %%rbx; lea 8(%0), %%rsp; push %%rax; mov %%rbx, %%rsp" ::"r"(&watched[2])
              : "rbx", "memory")),
          1);
    set_dr7(DR7_FIXED);
    check("off", WATCHED(watched[2] = 1), 0);
    stop();
}

static void on_mov_dr(struct frame *frame) {
    seen.rip[0] = frame->rip;
    seen.dr6[0] = get_dr6();
    seen.count++;
    set_dr6(DR6_FIXED);
}

static void general_detect(void) {
    uint64_t at, value;
    start(100);
    set_handler(DB, on_mov_dr);
    asm volatile("lea 1f(%%rip), %0; mov %2, %%dr7; 1: mov %%dr7, %1"
                 : "=&r"(at), "=r"(value)
                 : "r"(DR7_FIXED | (uint64_t)DR7_GD));
    check("trap", seen.count, 1);
    check("before the instruction", seen.rip[0], at);
    check("BD", seen.dr6[0], DR6_FIXED | DR6_BD);
    check("GD is cleared", value, DR7_FIXED);
    stop();
}

static void registers(void) {
    set_dr0(0x123456789abc);
    uint64_t value;
    asm volatile("mov %%dr0, %0" : "=r"(value));
    check("DR0", value, 0x123456789abc);
    set_dr6(0);
    check("DR6's fixed bits", get_dr6(), DR6_FIXED);
    set_dr7(0);
    check("DR7's fixed bit", get_dr7(), DR7_FIXED);
    set_dr0(0);
}

/* INT1 (F1h) traps like #DB and sets nothing in DR6. */
static void int1(void) {
    uint64_t after;
    start(100);
    asm volatile("lea 1f(%%rip), %0; .byte 0xf1; 1: nop" : "=&r"(after)::"memory");
    check("trap", seen.count, 1);
    check("after it", seen.rip[0], after);
    stop();
}

void program(void) {
    TEST(registers);
    TEST(single_step);
    TEST(step_repeat);
    TEST(step_mov_ss);
    TEST(step_into_handler);
    TEST(step_user);
    TEST(execution_breakpoint);
    TEST(data_breakpoints);
    TEST(general_detect);
    TEST(int1);
}
