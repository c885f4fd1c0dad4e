/*
 * Instructions that touch memory more than once, with a fault at each touch:
 * what stands after it is what stood before, registers, flags and memory,
 * except where the manuals let words be written that are written again when
 * the instruction is run anew. Then the page comes and it completes.
 *
 * Each runs warm first, at a place where nothing is wrong.
 */
#include "runtime.h"

#define ALL       (PTE_P | PTE_W | PTE_U)
#define READ_ONLY (PTE_P | PTE_U)
#define PAGE(n)   (TEST_VA + 0x1000ul * (n))
enum { ERROR_P = 1, ERROR_W = 2, ERROR_U = 4, HOT = 40 };

/* Pages 1 and 2 are memory, 3 is for reading, 4 is not there, 5 is memory, 6 and 7 as 3 and 4. */
static void set_up(void) {
    use_ist(PF, 1);
    for (unsigned i = 1; i < 6; i++)
        map(i, i == 4 ? 0 : PHYSICAL(test_page[i]) | (i == 3 ? READ_ONLY : ALL));
    for (unsigned i = 0; i < 4096; i++)
        for (unsigned page = 1; page < 6; page++)
            test_page[page][i] = (uint8_t)(i * 7 + page);
}

static void clean_up(void) {
    reset_gate(PF);
    for (unsigned i = 1; i < 8; i++)
        map(i, 0);
}

/* ---- Registers in, registers out ---- */

struct registers {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, flags;
};
static struct registers in, out;
static uint64_t kernel_rsp, kernel_rbp;

/* Loads `in`, runs the instruction at 1:, notes `out`. R11: where 1: is. RSP only when it is not 0.
 */
#define STEP(name, instruction)                                                                    \
    static void name(uint64_t a) {                                                                 \
        asm volatile("mov %%rsp, %2; mov %%rbp, %3; lea 1f(%%rip), %%r11; lea %0, %%r8\n"          \
                     "push 64(%%r8); popfq\n"                                                      \
                     "mov (%%r8), %%rax; mov 8(%%r8), %%rbx; mov 16(%%r8), %%rcx\n"                \
                     "mov 24(%%r8), %%rdx; mov 32(%%r8), %%rsi; mov 40(%%r8), %%rdi\n"             \
                     "mov 48(%%r8), %%rbp; mov 56(%%r8), %%rsp; mov 64(%%r8), %%r8\n"              \
                     "1: " instruction "\n2: pushfq; popq 64+%1\n"                                 \
                     "mov %%rax, %1; mov %%rbx, 8+%1; mov %%rcx, 16+%1; mov %%rdx, 24+%1\n"        \
                     "mov %%rsi, 32+%1; mov %%rdi, 40+%1; mov %%rbp, 48+%1; mov %%rsp, 56+%1\n"    \
                     "mov %2, %%rsp; mov %3, %%rbp"                                                \
                     : "+m"(in), "+m"(out), "+m"(kernel_rsp), "+m"(kernel_rbp)::"rax", "rbx",      \
                       "rcx", "rdx", "rsi", "rdi", "r8", "r11", "memory", "cc");                   \
    }
STEP(push_memory, "push (%%rdi)")
STEP(pop_memory, "pop (%%rdi)")
STEP(pop_by_rsp, "pop 64(%%rsp)")
STEP(call_memory, "call *(%%rdi)")
STEP(enter_3, "enter $32, $3")
STEP(movs_once, "movsq")
STEP(cmps_once, "cmpsq")
STEP(xchg_memory, "xchg %%rax, (%%rdi)")
STEP(xadd_memory, "lock xadd %%rax, (%%rdi)")
STEP(add_memory, "add %%rax, (%%rdi)")
STEP(adc_memory, "adc %%rax, (%%rdi)")
STEP(shl_memory, "shlq $3, (%%rdi)")
STEP(bts_memory, "bts %%rax, (%%rdi)")
STEP(cmpxchg_memory, "lock cmpxchg %%rbx, (%%rdi)")
STEP(cmpxchg8, "lock cmpxchg8b (%%rdi)")
STEP(cmpxchg16, "lock cmpxchg16b (%%rdi)")
STEP(setz_memory, "setz (%%rdi)")
STEP(not_memory, "notq (%%rdi)")

struct step {
    const char *name;
    void (*run)(uint64_t);
    bool reads, writes; /* size bytes at RDI */
    uint8_t size;
};
static const struct step steps[] = {
    {"push m", push_memory, true, false, 8},   {"pop m", pop_memory, false, true, 8},
    {"movs", movs_once, false, true, 8},       {"cmps", cmps_once, true, false, 8},
    {"xchg", xchg_memory, true, true, 8},      {"xadd", xadd_memory, true, true, 8},
    {"add", add_memory, true, true, 8},        {"adc", adc_memory, true, true, 8},
    {"shl", shl_memory, true, true, 8},        {"cmpxchg", cmpxchg_memory, true, true, 8},
    {"cmpxchg8b", cmpxchg8, true, true, 8},    {"not", not_memory, true, true, 8},
    {"cmpxchg16b", cmpxchg16, true, true, 16}, {"setz", setz_memory, false, true, 1},
};
enum { STEPS = sizeof steps / sizeof steps[0] };

#define RSP_GOOD (PAGE(2) + 2048)
static const struct registers plain = {.rax = 0x1122334455667788,
                                       .rbx = 0x99aabbccddeeff00,
                                       .rcx = 5,
                                       .rdx = 6,
                                       .rsi = PAGE(2) + 512,
                                       .rdi = PAGE(1) + 512,
                                       .rbp = PAGE(2) + 1024,
                                       .rsp = RSP_GOOD,
                                       .flags = 0x893};

/* Of what is near the places that are used. */
static uint64_t sum_of_memory(void) {
    static const uint16_t places[] = {0, 1, 2, 62, 63, 64, 65, 66, 254, 255, 256, 257, 510, 511};
    uint64_t sum = 0;
    for (unsigned page = 1; page < 6; page++)
        for (unsigned n = 0, i; n < sizeof places / 2 && (i = places[n], true); n++)
            sum = (sum << 1 | sum >> 63) ^ ((const volatile uint64_t *)test_page[page])[i];
    return sum;
}

/* Runs it where it faults: nothing is done, and the flags are those before it. */
static void refuse(const char *what, void (*run)(uint64_t), uint64_t error, uint64_t cr2) {
    uint64_t before = sum_of_memory();
    check(what, try_call(run, 0), PF);
    check(what, trap.frame.error, error);
    check(what, trap.cr2, cr2);
    check(what, trap.frame.rip, trap.frame.r11);
    check(what, trap.frame.rax, in.rax);
    check(what, trap.frame.rbx, in.rbx);
    check(what, trap.frame.rcx, in.rcx);
    check(what, trap.frame.rdx, in.rdx);
    check(what, trap.frame.rsi, in.rsi);
    check(what, trap.frame.rdi, in.rdi);
    check(what, trap.frame.rbp, in.rbp);
    check(what, trap.frame.rsp, in.rsp);
    check(what, sum_of_memory(), before);
}

static void heat(void (*run)(uint64_t)) {
    struct registers kept = in;
    in = plain;
    for (unsigned i = many(HOT); i > 0; i--)
        try_call(run, 0);
    in = kept;
}

static void at_rdi(void) {
    set_up();
    for (unsigned i = 0; i < STEPS; i++) {
        const struct step *s = &steps[i];
        uint64_t write = s->writes ? ERROR_W : 0;
        heat(s->run);
        for (unsigned turn = 0; turn < 3; turn++) {
            in = plain;
            in.rdi = PAGE(4) + 512;
            refuse(s->name, s->run, write, in.rdi);
            heat(s->run);
            if (s->writes) {
                in.rdi = PAGE(3) + 512;
                refuse(s->name, s->run, ERROR_P | ERROR_W, in.rdi);
                heat(s->run);
            }
            if (s->size != 8)
                continue;
            in.rdi = PAGE(5) - 3; /* the first half is not there */
            refuse(s->name, s->run, write, in.rdi);
            heat(s->run);
            map(4, PHYSICAL(test_page[4]) | ALL);
            map(5, 0);
            in.rdi = PAGE(5) - 3; /* the second */
            refuse(s->name, s->run, write, PAGE(5));
            map(5, PHYSICAL(test_page[5]) | READ_ONLY);
            if (s->writes)
                refuse(s->name, s->run, ERROR_P | ERROR_W, PAGE(5));
            map(5, PHYSICAL(test_page[5]) | ALL);
            check(s->name, try_call(s->run, 0), NO_TRAP); /* and now it goes */
            map(4, 0);
            heat(s->run);
        }
    }
    clean_up();
}

/* ---- The other operand ---- */

static void other_operand(void) {
    static const struct {
        const char *name;
        void (*run)(uint64_t);
        bool stack_writes;
    } both[] = {{"push m", push_memory, true}, {"pop m", pop_memory, false}};
    set_up();
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned turn = 0; turn < 3; turn++) {
            heat(both[i].run);
            in = plain;
            in.rsp = PAGE(4) + 512;
            refuse(both[i].name, both[i].run, both[i].stack_writes ? ERROR_W : 0,
                   in.rsp - (both[i].stack_writes ? 8 : 0));
        }
    }
    /* The address is RSP's after the pop; RSP itself stays when the store faults. */
    for (unsigned turn = 0; turn < 3; turn++) {
        heat(pop_by_rsp);
        in = plain;
        in.rsp = PAGE(3) - 32;
        refuse("pop by rsp", pop_by_rsp, ERROR_P | ERROR_W, PAGE(3) + 40);
        in.rsp = RSP_GOOD;
        *(volatile uint64_t *)RSP_GOOD = 0x5151 + turn;
        check("pop by rsp", try_call(pop_by_rsp, 0), NO_TRAP);
        check("stored", *(volatile uint64_t *)(RSP_GOOD + 72), 0x5151 + turn);
        check("rsp", out.rsp, RSP_GOOD + 8);
    }
    for (unsigned turn = 0; turn < 3; turn++) {
        heat(movs_once);
        in = plain;
        in.rsi = PAGE(4) + 8;
        refuse("movs: source", movs_once, 0, in.rsi);
        heat(cmps_once);
        in = plain;
        in.rsi = PAGE(4) + 8;
        refuse("cmps: source", cmps_once, 0, in.rsi);
    }
    clean_up();
}

/* ---- CALL through memory: the target is read, then the push faults ---- */

static void called(void) {
    asm volatile("");
}

static void call_through_memory(void) {
    set_up();
    *(volatile uint64_t *)(PAGE(1) + 512) = PHYSICAL(called);
    heat(call_memory);
    for (unsigned turn = 0; turn < 3; turn++) {
        in = plain;
        in.rdi = PAGE(4) + 512;
        refuse("target", call_memory, 0, in.rdi);
        in = plain;
        in.rsp = PAGE(4) + 512;
        refuse("push", call_memory, ERROR_W, in.rsp - 8);
        in.rsp = PAGE(3) + 512;
        refuse("push", call_memory, ERROR_W | ERROR_P, in.rsp - 8);
        heat(call_memory);
    }
    clean_up();
}

/* ---- ENTER with a display: words may be written before the fault, registers not ---- */

static void enter_display(void) {
    set_up();
    for (unsigned turn = 0; turn < 3; turn++) {
        heat(enter_3);
        for (unsigned room = 0; room < 4; room++) {
            in = plain;
            in.rsp = PAGE(5) + 8 * room; /* that many pushes go well */
            check("vector", try_call(enter_3, 0), PF);
            check("error", trap.frame.error, ERROR_W);
            check("cr2", trap.cr2, PAGE(5) - 8);
            check("rsp", trap.frame.rsp, in.rsp);
            check("rbp", trap.frame.rbp, in.rbp);
        }
        in = plain;
        in.rbp = PAGE(5); /* the display is below it */
        check("display", try_call(enter_3, 0), PF);
        check("error", trap.frame.error, 0);
        check("cr2", trap.cr2, PAGE(5) - 8);
        check("rsp", trap.frame.rsp, in.rsp);
        in = plain;
        in.rsp = PAGE(5) + 40; /* all pushes go well, but the new top of the stack is not there */
        check("top", try_call(enter_3, 0), PF);
        check("rsp", trap.frame.rsp, in.rsp);
        check("rbp", trap.frame.rbp, in.rbp);
        in = plain;
        check("goes", try_call(enter_3, 0), NO_TRAP);
        check("rbp", out.rbp, RSP_GOOD - 8);
        check("rsp", out.rsp, RSP_GOOD - 64);
    }
    clean_up();
}

/* ---- Bit strings reach far from their operand ---- */

static void bit_string(void) {
    set_up();
    for (unsigned turn = 0; turn < 3; turn++) {
        heat(not_memory);
        in = plain;
        in.rax = 3 * 4096 * 8; /* of PAGE(1): PAGE(4) */
        refuse("bts", bts_memory, ERROR_W, PAGE(4) + 512);
        in.rax = (uint64_t)-8 * 1024;
        in.rdi = PAGE(5) + 512;
        refuse("bts, backwards", bts_memory, ERROR_W, PAGE(5) - 512);
        in.rdi = PAGE(2);
        in.rax = 5;
        *(volatile uint64_t *)PAGE(2) = 0;
        check("goes", try_call(bts_memory, 0), NO_TRAP);
        check("bit", *(volatile uint64_t *)PAGE(2), 32);
    }
    clean_up();
}

/* ---- 32-bit user code: PUSHA and POPA across pages ---- */

CODE(user_pusha,
     "mov %edi, %esp\n mov $0x11, %eax\n mov $0x22, %ebx\n mov $0x33, %ecx\n"
     ".code32\n pusha\n popa\n pusha\n mov $0, %eax\n mov $0, %ebx\n popa\n .code64\n ud2");
CODE(user_popa,
     "mov %edi, %esp\n mov $0x11, %eax\n mov $0x22, %ebx\n .code32\n popa\n .code64\n ud2");

/* Two more pages beside the user's code, by its 32-bit address: the second only sometimes there. */
static void all_registers_32(void) {
    extern uint64_t boot_pds[];
    uint64_t *pt = (uint64_t *)(boot_pds[USER_CODE32_VA >> 21] & ~0xffful);
    uint64_t low = USER_CODE32_VA + 0x5000, high = low + 0x1000;
    for (unsigned turn = 0; turn < HOT; turn++) {
        pt[5] = 0;
        pt[6] = PHYSICAL(test_page[6]) | ALL;
        write_cr3(read_cr3());
        check("whole", run_user32(user_pusha, CODE_SIZE(user_pusha), high + 256), UD);
        check("eax", trap.frame.rax, 0x11);
        check("ebx", trap.frame.rbx, 0x22);
        check("esp", trap.frame.rsp, high + 256);
        check("pusha", run_user32(user_pusha, CODE_SIZE(user_pusha), high + 16), PF);
        check("cr2", trap.cr2, high - 4);
        check("error", trap.frame.error, ERROR_W | ERROR_U);
        check("esp", trap.frame.rsp, high + 16);
        check("eip", trap.frame.rip, USER_CODE32_VA + 17);
        pt[5] = PHYSICAL(test_page[5]) | ALL;
        pt[6] = 0;
        write_cr3(read_cr3());
        check("popa", run_user32(user_popa, CODE_SIZE(user_popa), high - 16), PF);
        check("cr2", trap.cr2, high);
        check("esp", trap.frame.rsp, high - 16);
        check("eip", trap.frame.rip, USER_CODE32_VA + 12);
    }
    pt[5] = pt[6] = 0;
    write_cr3(read_cr3());
}

/* ---- 32-bit user code: the stack at the ends of the address space ---- */

/* ESP is 0 at first: the top of the stack is the last page's. */
CODE(user_wrap, "mov %edi, %esp\n mov $0x11, %eax\n .code32\n"
                "push %eax\n mov %esp, %ebx\n push $0x22\n mov 4(%esp), %ecx\n pop %edx\n"
                "pop %esi\n mov %esp, %ebp\n add -4(%esp), %esi\n lea -8(%esp), %edi\n"
                "sub $0x30, %esp\n call 1f\n1:pop %eax\n add $0x40, %esp\n mov %esp, %eax\n"
                "sub $0x14, %esp\n add (%esp), %esi\n pop %eax\n"
                ".code64\n ud2");
CODE(user_pop_at_0, "mov %edi, %esp\n .code32\n push $0x33\n pop %ecx\n pop %eax\n .code64\n ud2");

static void stack_wraps_32(void) {
    static uint64_t top_table[512] __attribute__((aligned(4096)));
    const unsigned last = 2047;
    uint64_t before = boot_pds[last];
    top_table[511] = PHYSICAL(test_page[5]) | ALL;
    boot_pds[last] = PHYSICAL(top_table) | ALL;
    write_cr3(read_cr3());
    for (unsigned turn = 0; turn < HOT; turn++) {
        check("wraps", run_user32(user_wrap, CODE_SIZE(user_wrap), 0), UD);
        check("esp pushed", trap.frame.rbx, 0xfffffffc);
        check("above esp", trap.frame.rcx, 0x11);
        check("popped", trap.frame.rdx, 0x22);
        check("esp wrapped", trap.frame.rbp, 0);
        check("sum", trap.frame.rsi, 0x33);
        check("address", trap.frame.rdi, 0xfffffff8);
        check("esp", trap.frame.rsp, 0);
        check("beyond", run_user32(user_pop_at_0, CODE_SIZE(user_pop_at_0), 0), PF);
        check("cr2", trap.cr2, 0);
        check("ecx", trap.frame.rcx, 0x33);
        check("esp", trap.frame.rsp, 0);
    }
    boot_pds[last] = before;
    write_cr3(read_cr3());
}

/* ---- IRETQ whose frame ends in a page that is not there ---- */

STEP(iret_frame, "iretq")

static void iret_across(void) {
    use_ist(GP, 1);
    set_up();
    for (unsigned turn = 0; turn < 3; turn++) {
        for (unsigned words = 1; words < 5; words++) {
            in = plain;
            in.rsp = PAGE(4) - 8 * words;
            map(3, PHYSICAL(test_page[3]) | ALL);
            /* Which word is read first is the processor's affair. */
            check("vector", try_call(iret_frame, 0), PF);
            check("page", trap.cr2 & ~0xffful, PAGE(4));
            check("error", trap.frame.error, 0);
            check("rip", trap.frame.rip, trap.frame.r11);
            check("rsp", trap.frame.rsp, in.rsp);
        }
        heat(not_memory);
    }
    reset_gate(GP);
    clean_up();
}

void program(void) {
    TEST(at_rdi);
    TEST(other_operand);
    TEST(call_through_memory);
    TEST(enter_display);
    TEST(bit_string);
    TEST(all_registers_32);
    TEST(stack_wraps_32);
    TEST(iret_across);
}
