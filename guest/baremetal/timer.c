/* The APIC timer: one-shot, periodic, TSC deadline; what it counts and when it stops. */
#include "apic.h"

enum { VECTOR = 0x70, DIVIDE_BY_1 = 0xb, DIVIDE_BY_16 = 3, SOON = 200000 };

static unsigned ticks;
static void tick(struct frame *frame) {
    ticks++;
    apic_write(APIC_EOI, 0);
}

static void start(uint32_t mode) {
    ticks = 0;
    apic_enable();
    set_handler(VECTOR, tick);
    apic_write(APIC_DIVIDE, DIVIDE_BY_1);
    apic_write(APIC_LVT_TIMER, mode | VECTOR);
}

static void stop(void) {
    apic_write(APIC_INITIAL, 0);
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
    open_window();
}

static void one_shot(void) {
    start(0);
    apic_write(APIC_INITIAL, SOON);
    wait_for_interrupt();
    check("once", ticks, 1);
    check("count at the end", apic_read(APIC_CURRENT), 0);
    check("initial count stays", apic_read(APIC_INITIAL), SOON);
    open_window();
    check("not again", ticks, 1);
    stop();
}

/* Armed by code that then runs on without a pause, again and again. */
static void while_running(void) {
    enum { TIMES = 50 };
    const uint64_t long_enough = 20ul * 1000 * 1000 * 1000;
    const volatile unsigned *seen = &ticks;
    unsigned expired = 0;
    start(0);
    asm volatile("sti" ::: "memory");
    while (expired < TIMES) {
        uint64_t began = rdtsc();
        apic_write(APIC_INITIAL, SOON);
        while (*seen == expired && rdtsc() - began < long_enough)
            ;
        if (*seen != ++expired)
            break;
    }
    cli();
    check("each once", ticks, TIMES);
    stop();
}

static void counts_down(void) {
    start(LVT_MASKED);
    apic_write(APIC_INITIAL, 0xffffffff);
    uint32_t first = apic_read(APIC_CURRENT), second = first;
    for (unsigned i = 0; i < 1000 && second == first; i++)
        second = apic_read(APIC_CURRENT);
    check("down", second < first, 1);
    apic_write(APIC_INITIAL, 0);
    check("stopped", apic_read(APIC_CURRENT), 0);
    stop();
}

static void masked(void) {
    start(LVT_MASKED);
    apic_write(APIC_INITIAL, 1000);
    while (apic_read(APIC_CURRENT) != 0)
        ;
    open_window();
    check("no interrupt", ticks, 0);
    check("no request", apic_bit(APIC_IRR, VECTOR), 0);
    stop();
}

static void periodic(void) {
    start(TIMER_PERIODIC);
    apic_write(APIC_INITIAL, SOON);
    for (unsigned i = 0; i < 5; i++)
        wait_for_interrupt();
    check("five at least", ticks >= 5, 1);
    check("goes on", apic_read(APIC_CURRENT) != 0 || apic_read(APIC_CURRENT) != 0, 1);
    stop();
    unsigned before = ticks;
    open_window();
    check("stopped", ticks, before);
}

static void divide(void) {
    start(LVT_MASKED);
    apic_write(APIC_DIVIDE, DIVIDE_BY_16);
    check("register", apic_read(APIC_DIVIDE), DIVIDE_BY_16);
    apic_write(APIC_INITIAL, 0xffffffff);
    uint64_t tsc = rdtsc();
    while (rdtsc() - tsc < 100000)
        ;
    check("runs", apic_read(APIC_CURRENT) < 0xffffffff, 1);
    stop();
}

/* Software-disabling the APIC masks its timer. */
static void disabled_apic(void) {
    start(0);
    apic_write(APIC_SVR, 0xff);
    check("LVT masked", apic_read(APIC_LVT_TIMER) & LVT_MASKED, LVT_MASKED);
    apic_write(APIC_SVR, 0x1ff);
    check("and stays so", apic_read(APIC_LVT_TIMER) & LVT_MASKED, LVT_MASKED);
    stop();
}

static void deadline(void) {
    if (!has(HAS_TSC_DEADLINE))
        return skip("no TSC deadline");
    start(TIMER_DEADLINE);
    uint64_t at = rdtsc() + SOON;
    wrmsr(MSR_TSC_DEADLINE, at);
    wait_for_interrupt();
    check("once", ticks, 1);
    check("not early", rdtsc() >= at, 1);
    check("disarmed", rdmsr(MSR_TSC_DEADLINE), 0);
    wrmsr(MSR_TSC_DEADLINE, rdtsc() - 1);
    wait_for_interrupt();
    check("in the past", ticks, 2);
    wrmsr(MSR_TSC_DEADLINE, rdtsc() + (1ul << 40));
    check("armed", rdmsr(MSR_TSC_DEADLINE) != 0, 1);
    wrmsr(MSR_TSC_DEADLINE, 0);
    open_window();
    check("called off", ticks, 2);
    apic_write(APIC_INITIAL, 1000);
    check("no count in this mode", apic_read(APIC_CURRENT), 0);
    stop();
}

static void tsc(void) {
    uint64_t a = rdtsc(), b = rdtsc();
    check("runs forwards", b >= a, 1);
    wrmsr(0x10, 0x123456789000);
    a = rdtsc();
    check("written", a >= 0x123456789000 && a - 0x123456789000 < 1ul << 36, 1);
}

void program(void) {
    TEST(one_shot);
    TEST(while_running);
    TEST(counts_down);
    TEST(masked);
    TEST(periodic);
    TEST(divide);
    TEST(disabled_apic);
    TEST(deadline);
    TEST(tsc);
}
