/*
 * Crossings between privileges in hot code: SYSCALL and SYSRET with SWAPGS,
 * calls and returns on both sides; STAC and CLAC that return to callers of the
 * other kind; page faults in the middle of loops, whose pages are others then;
 * STI before HLT.
 */
#include "apic.h"

#define MSR_STAR           0xc0000081u
#define MSR_LSTAR          0xc0000082u
#define MSR_SFMASK         0xc0000084u
#define MSR_GS_BASE        0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u

#define CR4_SMAP 0x200000ul

/* ---- SYSCALL and SYSRET ---- */

/* What GS points to in the kernel, and what it points to in the program. */
static struct { uint64_t user_rsp, stack, count, flags, last, leave; } kernel_area;
static uint64_t user_area[2];
static uint8_t kernel_stack[2048] __attribute__((aligned(16)));

extern const char sides_landing[];
asm(".pushsection .text\n"
    "sides_landing:\n"
    "  swapgs\n"
    "  mov %rsp, %gs:0\n"
    "  mov %gs:8, %rsp\n"
    "  pushfq\n"
    "  popq %rdx\n"
    "  or %rdx, %gs:24\n"
    "  call sides_inner\n"
    "  sti\n"
    "  cli\n"
    "  mov %gs:0, %rsp\n"
    "  mov %gs:16, %rdx\n"
    "  cmp %rdx, %gs:32\n"
    "  jne 1f\n"
    "  mov %gs:40, %rcx\n"
    "1: swapgs\n"
    "  sysretq\n"
    "sides_inner:\n"
    "  incq %gs:16\n"
    "  swapgs\n"
    "  addq $2, %gs:8\n"
    "  swapgs\n"
    "  ret\n"
    ".popsection");

/* RDI: how often. R9: flags that were others behind a system call, R10: those that R11 had wrong.
 */
CODE(user_calls, "  xor %r9d, %r9d\n"
                 "  xor %r10d, %r10d\n"
                 "1: mov %edi, %eax\n"
                 "  shl $29, %eax\n"
                 "  add $0x60000000, %eax\n"
                 "  pushfq\n"
                 "  popq %r8\n"
                 "  push %r8\n"
                 "  popfq\n"
                 "  call 2f\n"
                 "  pushfq\n"
                 "  popq %rsi\n"
                 "  xor %r8, %rsi\n"
                 "  or %rsi, %r9\n"
                 "  xor %r8, %r11\n"
                 "  or %r11, %r10\n"
                 "  dec %edi\n"
                 "  jnz 1b\n"
                 "  ud2\n"
                 "2: syscall\n"
                 "  ret");

static void syscalls(unsigned count) {
    kernel_area.stack = PHYSICAL(kernel_stack + sizeof kernel_stack);
    kernel_area.count = kernel_area.flags = 0;
    user_area[1] = 0;
    wrmsr(MSR_STAR, (uint64_t)KERNEL_CS << 32 | (uint64_t)USER_CS32 << 48);
    wrmsr(MSR_LSTAR, PHYSICAL(sides_landing));
    wrmsr(MSR_SFMASK, 0x257fd5);
    wrmsr(MSR_GS_BASE, PHYSICAL(user_area));
    wrmsr(MSR_KERNEL_GS_BASE, PHYSICAL(&kernel_area));
    check("vector", run_user(user_calls, CODE_SIZE(user_calls), count),
          kernel_area.last != 0 ? GP : UD);
    check("program's GS", rdmsr(MSR_GS_BASE), PHYSICAL(user_area));
    check("kernel's GS", rdmsr(MSR_KERNEL_GS_BASE), PHYSICAL(&kernel_area));
}

static void system_calls(void) {
    unsigned count = many(20000);
    kernel_area.last = 0;
    syscalls(count);
    check("count", kernel_area.count, count);
    check("count by the program's GS", user_area[1], 2 * count);
    check("flags in the kernel", kernel_area.flags, 2);
    check("flags behind it", trap.frame.r9, 0);
    check("flags in R11", trap.frame.r10, 0);
}

/* RFLAGS as SYSRET finds them, the mask and the target may change at any time. */
static void system_calls_change(void) {
    kernel_area.last = 0;
    syscalls(many(2000));
    wrmsr(MSR_SFMASK, 0x257fd4);
    check("vector", run_user(user_calls, CODE_SIZE(user_calls), 8), UD);
    check("CF is not masked", kernel_area.flags, 3);
    check("flags behind it", trap.frame.r9, 0);
    wrmsr(MSR_SFMASK, 0x257fd5);
    wrmsr(MSR_LSTAR, 0);
    wrmsr(MSR_LSTAR, PHYSICAL(sides_landing));
    kernel_area.flags = 0;
    check("vector", run_user(user_calls, CODE_SIZE(user_calls), 8), UD);
    check("flags in the kernel", kernel_area.flags, 2);
}

static void sysret_far_away(void) {
    if (cpuid(0, 0).ebx == 0x756e6547)
        return skip("Intel: SYSRET itself faults");
    kernel_area.last = many(2000);
    kernel_area.leave = 0x800000000000ul;
    syscalls((unsigned)kernel_area.last + 1);
    check("rip", trap.frame.rip, kernel_area.leave);
    check("cs", trap.frame.cs, USER_CS);
    kernel_area.last = 0;
}

/* ---- STAC and CLAC ---- */

extern const char smap_hot[];
asm(".pushsection .text\n"
    "smap_on: clac\n  ret\n"
    "smap_off: stac\n  ret\n"
    "smap_read: mov (%rdi), %al\n  ret\n"
    /* RDI: the address, ESI: how often; then once without STAC. */
    "smap_hot:\n"
    "1: call smap_off\n"
    "  call smap_read\n"
    "  mov (%rdi), %ah\n"
    "  call smap_on\n"
    "  stac\n"
    "  call smap_read\n"
    "  clac\n"
    "  dec %esi\n"
    "  jnz 1b\n"
    "  call smap_read\n"
    "  ret\n"
    ".popsection");

static void access_allowed(uint64_t a) {
    asm volatile("mov %0, %%rdi; mov %1, %%esi; call smap_hot" ::"r"(a), "r"(many(3000))
                 : "rdi", "rsi", "rax", "cc", "memory");
}

static void smap_switched(void) {
    if (!has(HAS_SMAP))
        return skip("no SMAP");
    map(1, PHYSICAL(test_page[0]) | PTE_P | PTE_W | PTE_U);
    write_cr4(read_cr4() | CR4_SMAP);
    expect("without STAC", access_allowed, TEST_VA + 0x1000, PF, 1);
    check("not before", trap.frame.rsi & 0xffffffff, 0);
    write_cr4(read_cr4() & ~CR4_SMAP);
    check("SMAP off", try_call(access_allowed, TEST_VA + 0x1000), NO_TRAP);
}

/* ---- Page faults ---- */

static unsigned faults, wrong;

static void bring_page(struct frame *frame) {
    uint64_t bits = frame->rflags & 0xffff;
    wrong += read_cr2() != TEST_VA + 0x2008 || frame->error != 2 || (bits & 0x801) != 1;
    faults++;
    map(2, PHYSICAL(test_page[1]) | PTE_P | PTE_W);
}

static void page_faults(void) {
    unsigned count = many(5000), carries = 0;
    uint64_t address = TEST_VA + 0x2008;
    faults = wrong = 0;
    set_handler(PF, bring_page);
    for (unsigned i = 0; i < count; i++) {
        uint8_t carry;
        map(2, 0);
        asm volatile("mov $1, %%eax; or %%eax, %%eax; stc; movq $7, (%1); setc %0"
                     : "=r"(carry)
                     : "r"(address)
                     : "rax", "cc", "memory");
        carries += carry;
    }
    set_handler(PF, NULL);
    check("faults", faults, count);
    check("CR2, error code, flags", wrong, 0);
    check("CF behind it", carries, count);
}

/* ---- Short loops over structs, one of which is on two pages ---- */

enum { STRUCTS = 8, FIELDS = 6, STRIDE = 56, FIRST = 0xf00 };

/* The second page comes, and the first one is another from now on. */
static void bring_and_replace(struct frame *frame) {
    faults++;
    map(1, PHYSICAL(test_page[5]) | PTE_P | PTE_W);
    map(2, PHYSICAL(test_page[1]) | PTE_P | PTE_W);
}

/* One more in each field. */
static void count_fields(uint64_t at) {
    uint64_t left = STRUCTS;
    asm volatile("1: mov %0, %%r12\n"
                 "  lea 8(%0), %%r8\n"
                 "  xor %%ebx, %%ebx\n"
                 "2: incq (%%r12,%%rbx,1)\n"
                 "  add $8, %%rbx\n"
                 "  cmp $24, %%rbx\n"
                 "  jne 2b\n"
                 "3: addq $1, -8(%%r8,%%rbx,1)\n"
                 "  lea 8(%%rbx), %%rbx\n"
                 "  cmp $48, %%ebx\n"
                 "  jb 3b\n"
                 "  add $56, %0\n"
                 "  dec %1\n"
                 "  jnz 1b"
                 : "+r"(at), "+r"(left)
                 :
                 : "rbx", "r8", "r12", "cc", "memory");
}

static void check_fields(unsigned count) {
    unsigned differ = 0;
    for (unsigned i = 0; i < STRUCTS * FIELDS; i++) {
        unsigned at = FIRST + i / FIELDS * STRIDE + i % FIELDS * 8;
        if (at < 4096)
            differ +=
                *(uint64_t *)&test_page[0][at] != count || *(uint64_t *)&test_page[5][at] != count;
        else
            differ += *(uint64_t *)&test_page[1][at - 4096] != 2 * count;
    }
    check("fields that differ", differ, 0);
}

static void loops_across_pages(void) {
    unsigned count = many(3000);
    for (unsigned i = 0; i < 4096; i++)
        test_page[0][i] = test_page[1][i] = test_page[5][i] = 0;
    faults = 0;
    set_handler(PF, bring_and_replace);
    for (unsigned i = 0; i < count; i++) {
        map(1, PHYSICAL(test_page[0]) | PTE_P | PTE_W);
        map(2, 0);
        count_fields(TEST_VA + 0x1000 + FIRST);
        count_fields(TEST_VA + 0x1000 + FIRST);
    }
    set_handler(PF, NULL);
    check("faults", faults, count);
    check_fields(count);
    map(1, 0);
    map(2, 0);
}

/* ---- STI ---- */

static unsigned taken, early;
extern const char halted_end[];

static void count_wake(struct frame *frame) {
    taken++;
    early += frame->rip != (uint64_t)halted_end;
    apic_write(APIC_EOI, 0);
}

/* What waits comes in behind HLT, not before it: else nothing would end that. */
static void sti_before_halt(void) {
    unsigned count = many(2000);
    apic_enable();
    set_handler(0x61, count_wake);
    taken = early = 0;
    for (unsigned i = 0; i < count; i++) {
        send_self(0x61);
        asm volatile("sti; hlt; .ifndef halted_end; .globl halted_end; halted_end:; .endif; cli" ::
                         : "memory");
    }
    set_handler(0x61, NULL);
    check("taken", taken, count);
    check("early", early, 0);
}

void program(void) {
    TEST(system_calls);
    TEST(system_calls_change);
    TEST(sysret_far_away);
    TEST(smap_switched);
    TEST(page_faults);
    TEST(loops_across_pages);
    TEST(sti_before_halt);
}
