#include "mp.h"

extern const char mp_trampoline[], mp_trampoline_end[];

uint8_t mp_stacks[MP_MOST][MP_STACK] __attribute__((aligned(4096)));
volatile struct mp_arrival mp_arrivals[MP_MOST];

static void (*volatile jobs[MP_MOST])(unsigned cpu);
static volatile bool there[MP_MOST];
static unsigned count = 1;

unsigned mp_count(void) {
    return count;
}

unsigned mp_self(void) {
    return cpuid(1, 0).ebx >> 24;
}

static void load_idt(void) {
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, PHYSICAL(idt)};
    asm volatile("lidt %0" ::"m"(pointer));
}

_Noreturn void mp_arrive(unsigned cpu, uint32_t cs, uint32_t cr0, uint32_t signature);
_Noreturn void mp_arrive(unsigned cpu, uint32_t cs, uint32_t cr0, uint32_t signature) {
    load_idt();
    apic_enable();
    mp_arrivals[cpu] = (struct mp_arrival){mp_arrivals[cpu].times + 1, cs, cr0, signature};
    there[cpu] = true;
    for (;;) {
        void (*job)(unsigned) = jobs[cpu];
        if (job != NULL) {
            job(cpu);
            jobs[cpu] = NULL;
        }
        relax();
    }
}

/* Mode and destination shorthand in `low`. */
static void send(unsigned cpu, uint32_t low) {
    apic_write(APIC_ICR_HIGH, cpu << 24);
    apic_write(APIC_ICR_LOW, low);
}

enum { ICR_INIT = 0x4500, ICR_SIPI = 0x4600 | MP_PAGE >> 12 };

void mp_several(void) {
    if (mp_start() == 1)
        skip("there is one");
}

void mp_restart(unsigned cpu) {
    there[cpu] = false;
    jobs[cpu] = NULL;
    send(cpu, ICR_INIT);
    send(cpu, ICR_SIPI);
    send(cpu, ICR_SIPI); /* ignored unless the first came too early */
    while (!there[cpu])
        relax();
}

unsigned mp_start(void) {
    memcpy((void *)MP_PAGE, mp_trampoline, (size_t)(mp_trampoline_end - mp_trampoline));
    apic_enable();
    unsigned all = has_harness() ? request(REQUEST_PROCESSORS, 0, 0, 0) : 1;
    count = all < MP_MOST ? all : MP_MOST;
    for (unsigned cpu = 1; cpu < count; cpu++)
        mp_restart(cpu);
    return count;
}

void mp_begin(unsigned cpu, void (*work)(unsigned cpu)) {
    jobs[cpu] = work;
}

void mp_wait(unsigned cpu) {
    while (jobs[cpu] != NULL)
        relax();
}

void mp_all(void (*work)(unsigned cpu)) {
    for (unsigned cpu = 1; cpu < count; cpu++)
        mp_begin(cpu, work);
    work(0);
    for (unsigned cpu = 1; cpu < count; cpu++)
        mp_wait(cpu);
}

void mp_meet(void) {
    static unsigned arrived, rounds;
    unsigned round = __atomic_load_n(&rounds, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == count) {
        arrived = 0;
        __atomic_store_n(&rounds, round + 1, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(&rounds, __ATOMIC_ACQUIRE) == round)
        relax();
}
