/*
 * What privileged instructions and events cost, without an operating system in the way: a
 * bare-metal program (guest/baremetal), which tells its results on the first serial port. See
 * measure.h.
 */
#include "apic.h"
#include "runtime.h"

#include "measure.h"

#define MSR_STAR  0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_FMASK 0xc0000084u
#define CR4_PCIDE (1ul << 17)
#define CR3_KEEP  (1ul << 63)

enum { VECTOR_IPI = 0x80, SERIAL = 0x3f8, STRIDE = 4096 + 64 };

/* ---- Output ---- */

static void put(char c) {
    while (!(inb(SERIAL + 5) & 0x20))
        ;
    outb(SERIAL, (uint8_t)c);
}

static void put_text(const char *text) {
    while (*text != 0)
        put(*text++);
}

static void put_number(uint64_t n) {
    char digits[21], *at = digits + 20;
    *at = 0;
    do
        *--at = (char)('0' + n % 10);
    while ((n /= 10) != 0);
    put_text(at);
}

static void say(const char *kind, const char *name, uint64_t cycles, uint64_t operations) {
    put_text(kind);
    put(' ');
    put_text(name);
    put(' ');
    put_number(cycles);
    put(' ');
    put_number(operations);
    put_text("\r\n");
}

/* ---- Handlers: the least that is right ---- */

asm(".pushsection .text\n"
    /* The load of two bytes that faulted is skipped. */
    "skip_fault:\n"
    "    addq $2, 8(%rsp)\n"
    "    addq $8, %rsp\n"
    "    iretq\n"
    "take_interrupt:\n"
    "    pushq %rax\n"
    "    incq interrupts(%rip)\n"
    "    movl $0xfee000b0, %eax\n" /* EOI */
    "    movl $0, (%rax)\n"
    "    popq %rax\n"
    "    iretq\n"
    ".popsection");
extern const char skip_fault[], take_interrupt[];
volatile uint64_t interrupts;

/* ---- User mode and back ---- */

asm(".pushsection .text\n"
    "user_calls:\n" /* (count, code) */
    "    pushq %rbx\n"
    "    pushq %rbp\n"
    "    movq %rsp, kernel_rsp(%rip)\n"
    "    movq %rdi, %rbx\n"
    "    movq %rsi, %rcx\n"
    "    movl $2, %r11d\n"
    "    sysretq\n"
    "kernel_entry:\n"
    "    swapgs\n"
    "    testl %eax, %eax\n"
    "    jnz 1f\n"
    "    swapgs\n"
    "    sysretq\n"
    "1:  swapgs\n"
    "    movq kernel_rsp(%rip), %rsp\n"
    "    popq %rbp\n"
    "    popq %rbx\n"
    "    ret\n"
    ".popsection\n"
    ".pushsection .bss\n"
    ".balign 8\n"
    "kernel_rsp: .quad 0\n"
    ".popsection");
extern const char kernel_entry[];
void user_calls(uint64_t count, uint64_t code);

CODE(user_loop, "1: xorl %eax, %eax; syscall; decq %rbx; jnz 1b; movl $1, %eax; syscall");

static void system_call(uint64_t n) {
    user_calls(n, USER_CODE_VA);
}

/* ---- Exceptions and interrupts ---- */

static void page_fault(uint64_t n) {
    while (n-- > 0)
        asm volatile("movb (%0), %%al" ::"D"(TEST_VA) : "rax", "memory");
}

static void self_interrupt(uint64_t n) {
    asm volatile("sti");
    while (n-- > 0) {
        uint64_t before = interrupts;
        send_self(VECTOR_IPI);
        while (interrupts == before)
            ;
    }
    asm volatile("cli");
}

static void arm(void) {
    apic_write(APIC_INITIAL, 100);
}

/* A timer that expires at once, while code runs. */
static void timer_running(uint64_t n) {
    asm volatile("sti");
    while (n-- > 0) {
        uint64_t before = interrupts;
        arm();
        while (interrupts == before)
            ;
    }
    asm volatile("cli");
}

/* … and while the processor waits. */
static void timer_halted(uint64_t n) {
    while (n-- > 0) {
        arm();
        wait_for_interrupt();
    }
}

static void interrupt_return(uint64_t n) {
    while (n-- > 0)
        asm volatile(
            "movq %%rsp, %%rax; pushq %0; pushq %%rax; pushfq; pushq %1; leaq 1f(%%rip), %%rax;"
            "pushq %%rax; iretq; 1:" ::"i"(KERNEL_DS),
            "i"(KERNEL_CS)
            : "rax", "memory", "cc");
}

/* ---- Address spaces ---- */

static uint64_t second_pml4[512] __attribute__((aligned(4096)));

/* What a kernel looks at between two switches: a few pages. */
static void look_around(void) {
    for (unsigned i = 0; i < 8; i++)
        asm volatile("movb (%0), %%al" ::"r"(PHYSICAL(test_page[i])) : "rax", "memory");
}

static void switch_spaces(uint64_t n, uint64_t first, uint64_t second) {
    for (uint64_t i = 0; i < n; i++) {
        write_cr3(i & 1 ? first : second);
        look_around();
    }
    write_cr3(PHYSICAL(boot_pml4));
}

static void switch_flushing(uint64_t n) {
    switch_spaces(n, PHYSICAL(boot_pml4), PHYSICAL(second_pml4));
}

static void switch_tagged(uint64_t n) {
    switch_spaces(n, PHYSICAL(boot_pml4) | CR3_KEEP, PHYSICAL(second_pml4) | 1 | CR3_KEEP);
}

static void invalidate(uint64_t n) {
    while (n-- > 0)
        asm volatile("invlpg (%0); movb (%0), %%al" ::"r"(test_page) : "rax", "memory");
}

/* More pages than any TLB has entries for. */
static void tlb_miss(uint64_t n) {
    enum { MEMORY = 16 << 20, ROOM = 96 << 20 };
    uint64_t at = 0;
    while (n-- > 0) {
        asm volatile("movb (%0), %%al" ::"r"(MEMORY + at) : "rax", "memory");
        at = at + STRIDE < ROOM ? at + STRIDE : at % 4096;
    }
}

/* ---- Single instructions ---- */

#define INSTRUCTION(name, text)                                                                    \
    static void name(uint64_t n) {                                                                 \
        while (n-- > 0)                                                                            \
            asm volatile(text ::: "rax", "rcx", "rdx", "rbx", "cc", "memory");                     \
    }
INSTRUCTION(swap_gs, "swapgs; swapgs")
INSTRUCTION(write_fs_base, "movl $0xc0000100, %%ecx; xorl %%eax, %%eax; xorl %%edx, %%edx; wrmsr")
INSTRUCTION(write_kernel_gs, "movl $0xc0000102, %%ecx; xorl %%eax, %%eax; xorl %%edx, %%edx; wrmsr")
INSTRUCTION(read_fs_base, "movl $0xc0000100, %%ecx; rdmsr")
INSTRUCTION(interrupts_on_off, "sti; cli")
INSTRUCTION(save_flags, "pushfq; popfq")
INSTRUCTION(fault_address, "movq %%cr2, %%rax")
INSTRUCTION(read_time, "rdtsc")
INSTRUCTION(identify, "xorl %%eax, %%eax; cpuid")

/* ---- All ---- */

static void set_up(void) {
    apic_enable();
    apic_write(APIC_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, VECTOR_IPI);
    set_gate(PF, PHYSICAL(skip_fault), KERNEL_CS, 0, 0x8e);
    set_gate(VECTOR_IPI, PHYSICAL(take_interrupt), KERNEL_CS, 0, 0x8e);
    wrmsr(MSR_STAR, 0x1bul << 48 | (uint64_t)KERNEL_CS << 32);
    wrmsr(MSR_LSTAR, PHYSICAL(kernel_entry));
    wrmsr(MSR_FMASK, 0x700);
    for (unsigned i = 0; i < CODE_SIZE(user_loop); i++)
        user_code[i] = (uint8_t)user_loop[i];
    for (unsigned i = 0; i < 512; i++)
        second_pml4[i] = boot_pml4[i];
    write_cr3(PHYSICAL(boot_pml4));
}

static bool has_pcid(void) {
    uint32_t a = 1, b, c = 0, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return c >> 17 & 1;
}

static const struct cost costs[] = {
    {"bare-syscall", system_call},
    {"bare-page-fault", page_fault},
    {"self-interrupt", self_interrupt},
    {"timer-running", timer_running},
    {"timer-halted", timer_halted},
    {"iretq", interrupt_return},
    {"cr3-flushing", switch_flushing},
    {"invlpg", invalidate},
    {"tlb-miss", tlb_miss},
    {"swapgs", swap_gs},
    {"wrmsr-fs-base", write_fs_base},
    {"wrmsr-kernel-gs", write_kernel_gs},
    {"rdmsr-fs-base", read_fs_base},
    {"sti-cli", interrupts_on_off},
    {"pushf-popf", save_flags},
    {"mov-cr2", fault_address},
    {"bare-rdtsc", read_time},
    {"cpuid", identify},
};
static const struct cost tagged = {"cr3-tagged", switch_tagged};

void program(void) {
    set_up();
    put_text("ready\r\n");
    for (unsigned i = 0; i < sizeof costs / sizeof costs[0]; i++)
        measure(&costs[i]);
    if (has_pcid()) {
        write_cr4(read_cr4() | CR4_PCIDE);
        measure(&tagged);
    }
    put_text("done\r\n");
    finish();
}
