/*
 * The time-stamp counter as programs and kernels read it, in loops that run
 * often enough to be translated: RDTSC, RDTSCP, CR4.TSD, IA32_TSC, TSC_AUX,
 * TSC_ADJUST (APM vol. 2, 13.2.4; Intel SDM vol. 3, 18.17).
 */
#include "apic.h"

#define CR4_TSD 4ul

enum { MSR_TSC = 0x10, MSR_TSC_ADJUST = 0x3b, VECTOR = 0x70 };
#define MSR_TSC_AUX 0xc0000103u

static unsigned turns(void) {
    return 20000;
}

struct reading {
    uint64_t rax, rdx, rcx, rbx, flags;
};

/* All of what either changes, and of what it must not; carry and overflow are set before. */
#define READ(name, instruction)                                                                    \
    static struct reading name(void) {                                                             \
        struct reading r;                                                                          \
        uint64_t flags;                                                                            \
        asm volatile("mov $-1, %%rax; mov $-1, %%rdx; mov $-1, %%rcx; mov $-1, %%rbx\n"            \
                     "push $0x8d7; popf; " instruction "; pushf; pop %4"                           \
                     : "=a"(r.rax), "=d"(r.rdx), "=c"(r.rcx), "=b"(r.rbx), "=&r"(flags)            \
                     :                                                                             \
                     : "cc", "memory");                                                            \
        r.flags = flags;                                                                           \
        return r;                                                                                  \
    }
READ(read_tsc, "rdtsc")
READ(read_tscp, "rdtscp")

static void forwards(void) {
    uint64_t last = 0, upper = 0, others = ~0ul, flags = 0x8d7, backwards = 0;
    for (unsigned i = 0; i < turns(); i++) {
        struct reading r = read_tsc();
        uint64_t now = r.rdx << 32 | r.rax;
        backwards += now < last;
        upper |= (r.rax | r.rdx) >> 32;
        others &= r.rcx & r.rbx;
        flags &= r.flags;
        last = now;
    }
    check("steps backwards", backwards, 0);
    check("upper halves", upper, 0);
    check("RCX and RBX stay", others, ~0ul);
    check("flags stay", flags, 0x8d7);
}

static void processor_number(void) {
    if (!(cpuid(0x80000001, 0).edx >> 27 & 1))
        return skip("no RDTSCP");
    uint64_t last = rdtsc(), wrong = 0, backwards = 0;
    for (unsigned i = 0; i < turns(); i++) {
        if (i % 64 == 0)
            wrmsr(MSR_TSC_AUX, 0xfffe0000 + i);
        struct reading r = read_tscp();
        uint64_t now = r.rdx << 32 | r.rax;
        wrong += r.rcx != 0xfffe0000 + i / 64 * 64;
        backwards += now < last;
        last = now;
    }
    check("ECX", wrong, 0);
    check("steps backwards", backwards, 0);
    wrmsr(MSR_TSC_AUX, 0);
}

/* ---- CR4.TSD ---- */

/* As often as RDI says; each time RAX and RDX are what a fault must leave alone. */
CODE(user_reads, "1: mov $77, %eax\n mov $78, %edx\n rdtsc\n dec %rdi\n jnz 1b\n ud2");
CODE(user_reads_p, "1: mov $77, %eax\n mov $78, %edx\n rdtscp\n dec %rdi\n jnz 1b\n ud2");

static void refused(const char *name, const void *code, size_t size) {
    for (unsigned round = 0; round < 3; round++) {
        check(name, run_user(code, size, 1000), UD);
        write_cr4(read_cr4() | CR4_TSD);
        check(name, run_user(code, size, 1000), GP);
        check("error code", trap.frame.error, 0);
        check("RAX", trap.frame.rax, 77);
        check("RDX", trap.frame.rdx, 78);
        check("RDI", trap.frame.rdi, 1000);
        uint64_t allowed = rdtsc();
        check("privileged code", rdtsc() >= allowed, 1);
        write_cr4(read_cr4() & ~CR4_TSD);
    }
}

static void time_stamp_disable(void) {
    refused("RDTSC", user_reads, CODE_SIZE(user_reads));
    if (cpuid(0x80000001, 0).edx >> 27 & 1)
        refused("RDTSCP", user_reads_p, CODE_SIZE(user_reads_p));
}

/* ---- Moved ---- */

#define NEAR (1ul << 38) /* ticks: a minute or more, for hosts that are busy */

static void written(void) {
    uint64_t wrong = 0;
    for (uint64_t i = 1; i <= 200; i++) {
        uint64_t to = i % 2 ? i << 44 : i << 40;
        wrmsr(MSR_TSC, to);
        struct reading r = read_tsc();
        uint64_t now = r.rdx << 32 | r.rax;
        wrong += now < to || now - to > NEAR;
    }
    check("readings", wrong, 0);
}

static void adjusted(void) {
    if (cpuid(0, 0).eax < 7 || !(cpuid(7, 0).ebx >> 1 & 1))
        return skip("no TSC_ADJUST");
    uint64_t was = rdmsr(MSR_TSC_ADJUST), before = rdtsc();
    wrmsr(MSR_TSC_ADJUST, was + (1ul << 45));
    uint64_t after = rdtsc();
    check("moved", after - before >= 1ul << 45 && after - before < (1ul << 45) + NEAR, 1);
    before = rdtsc();
    wrmsr(MSR_TSC, before + (1ul << 44));
    uint64_t now = rdmsr(MSR_TSC_ADJUST) - was - (1ul << 45);
    check("follows the counter", now <= 1ul << 44 && now > (1ul << 44) - NEAR, 1);
    wrmsr(MSR_TSC_ADJUST, was);
}

/* ---- The local APIC's deadline is one of this counter ---- */

static volatile unsigned ticks;
static void tick(struct frame *frame) {
    ticks++;
    apic_write(APIC_EOI, 0);
}

static void expect_tick(const char *what, uint64_t at, unsigned count) {
    wrmsr(MSR_TSC_DEADLINE, at);
    wait_for_interrupt();
    check(what, ticks, count);
    check("not early", rdtsc() >= at, 1);
    check("disarmed", rdmsr(MSR_TSC_DEADLINE), 0);
}

static void deadlines(void) {
    const uint64_t soon = 200000, now = rdtsc();
    if (!has(HAS_TSC_DEADLINE))
        return skip("no TSC deadline");
    ticks = 0;
    apic_enable();
    set_handler(VECTOR, tick);
    apic_write(APIC_LVT_TIMER, TIMER_DEADLINE | VECTOR);
    wrmsr(MSR_TSC, now + (1ul << 46));
    expect_tick("ahead", rdtsc() + soon, 1);
    expect_tick("in the past", 1, 2);
    wrmsr(MSR_TSC, 1000000);
    expect_tick("back", rdtsc() + soon, 3);
    wrmsr(MSR_TSC_DEADLINE, 1ul << 50);
    check("reads as written", rdmsr(MSR_TSC_DEADLINE), 1ul << 50);
    open_window();
    check("not yet", ticks, 3);
    wrmsr(MSR_TSC, 1ul << 50);
    wait_for_interrupt();
    check("the counter moved past it", ticks, 4);
    wrmsr(MSR_TSC_DEADLINE, ~0ul);
    open_window();
    check("never", ticks, 4);
    wrmsr(MSR_TSC_DEADLINE, 0);
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
    open_window();
}

void program(void) {
    TEST(forwards);
    TEST(processor_number);
    TEST(time_stamp_disable);
    TEST(deadlines);
    TEST(written);
    TEST(adjusted);
}
