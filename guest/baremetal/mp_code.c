/*
 * Code that another processor changes: a processor that has been told, and
 * serialises, runs the new code (APM vol. 2, 7.6.1); one that has not been
 * told runs the old or the new, and soon the new.
 */
#include "mp.h"

enum { VECTOR = 0x61, FUNCTION_BYTES = 6 };

static uint32_t run(const void *code) {
    uint32_t value;
    asm volatile("call *%1" : "=a"(value) : "r"(code) : "rcx", "memory");
    return value;
}

static volatile uint32_t told, done[MP_MOST], wrong;
static uint8_t *volatile place;

static void wait_until_done(uint32_t value) {
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        while (done[cpu] != value)
            relax();
}

static void begin_others(void (*work)(unsigned)) {
    told = wrong = 0;
    for (unsigned cpu = 1; cpu < mp_count(); cpu++) {
        done[cpu] = 0;
        mp_begin(cpu, work);
    }
}

static void wait_for_others(void) {
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        mp_wait(cpu);
    check("wrong values", wrong, 0);
}

/* ---- Told and serialised ---- */

static unsigned rounds;

/* What says when, and how each serialises. */
static void run_when_told(unsigned cpu) {
    for (uint32_t round = 1; round <= rounds; round++) {
        while (told != round)
            relax();
        switch (cpu % 3) {
        case 0: cpuid(0, 0); break;
        case 1: write_cr3(read_cr3()); break;
        default:
            asm volatile("mov %%rsp, %%rcx; push %0; push %%rcx; pushfq; push %1\n"
                         "lea 1f(%%rip), %%rcx; push %%rcx; iretq; 1:" ::"i"(KERNEL_DS),
                         "i"(KERNEL_CS)
                         : "rcx", "memory", "cc");
        }
        for (unsigned i = 0; i < 3; i++)
            wrong += run(place) != round;
        done[cpu] = round;
    }
}

/* On a page that has been run for long. */
static void one_function(void) {
    rounds = many(2000);
    place = test_page[0] + 100;
    begin_others(run_when_told);
    for (uint32_t round = 1; round <= rounds; round++) {
        put_function(place, round);
        told = round;
        wait_until_done(round);
    }
    wait_for_others();
}

/* The writer runs it, too, before and after. */
static void writer_runs_it(void) {
    rounds = many(2000);
    place = test_page[1] + 4096 - FUNCTION_BYTES;
    begin_others(run_when_told);
    for (uint32_t round = 1; round <= rounds; round++) {
        put_function(place, round);
        wrong += run(place) != round;
        told = round;
        wrong += run(place) != round;
        wait_until_done(round);
    }
    wait_for_others();
}

/* Through another mapping, as kernels do. */
static void by_another_mapping(void) {
    rounds = many(1000);
    place = test_page[2] + 40;
    map(3, PHYSICAL(test_page[2]) | PTE_P | PTE_W);
    begin_others(run_when_told);
    for (uint32_t round = 1; round <= rounds; round++) {
        put_function((uint8_t *)TEST_VA + 3 * 4096 + 40, round);
        told = round;
        wait_until_done(round);
    }
    wait_for_others();
}

/* A page of functions, copied as a whole over the one before, or but for its first quarter. */
static void copied_over(void) {
    enum { FUNCTIONS = 256, QUARTER = 1024 };
    static uint8_t pattern[4096];
    rounds = many(1000);
    place = test_page[3] + 3 * QUARTER;
    memset(test_page[3], 0xcc, 4096);
    begin_others(run_when_told);
    for (uint32_t round = 1; round <= rounds; round++) {
        unsigned from = round % 2 * QUARTER;
        for (unsigned i = 0; i < FUNCTIONS; i++)
            put_function(pattern + i * (4096 / FUNCTIONS), round);
        memcpy(test_page[3] + from, pattern + from, 4096 - from);
        told = round;
        wait_until_done(round);
    }
    wait_for_others();
}

/*
 * The writer goes on writing to the page, with an address for it at hand, while
 * the others come to it for the first time: each round has a page that nobody
 * has run since it was written all over.
 */
static void first_run(unsigned cpu) {
    for (uint32_t round = 1; round <= rounds; round++) {
        while (told != 2 * round)
            relax();
        cpuid(0, 0);
        wrong += run(place) != 2 * round;
        done[cpu] = 2 * round;
        while (told != 2 * round + 1)
            relax();
        cpuid(0, 0);
        wrong += run(place) != 2 * round + 1;
        done[cpu] = 2 * round + 1;
    }
}

static void fresh_pages(void) {
    enum { PAGES = 8 };
    rounds = many(1000);
    begin_others(first_run);
    for (uint32_t round = 1; round <= rounds; round++) {
        uint8_t *page = test_page[4 + round % PAGES];
        uint32_t next = 2 * round + 1;
        memset(page, 0xcc, 4096);
        place = page + round % 64 * FUNCTION_BYTES;
        put_function(place, 2 * round);
        told = 2 * round;
        /* In between this is another page of code to the others; here it is data that is hot. */
        for (unsigned i = 0; i < 50; i++)
            *(volatile uint64_t *)(page + 2048 + 8 * i) = i;
        wait_until_done(2 * round);
        put_function(place, next);
        told = next;
        wait_until_done(next);
    }
    wait_for_others();
}

/* Pages in turn code, data and code again, by whoever comes first. */
static void changing_hands(unsigned cpu) {
    uint8_t *own = test_page[4 + cpu % 8];
    for (uint32_t round = 1; round <= rounds; round++) {
        put_function(own + 512, round << 8 | cpu);
        mp_meet();
        for (unsigned i = 0; i < mp_count(); i++) {
            unsigned other = (cpu + i) % mp_count();
            cpuid(0, 0);
            wrong += run(test_page[4 + other % 8] + 512) != (round << 8 | other);
        }
        mp_meet();
        for (unsigned i = 0; i < 4096 / 8; i++)
            ((volatile uint64_t *)own)[i] = round;
    }
}

static void code_and_data_in_turn(void) {
    rounds = many(300);
    wrong = 0;
    mp_all(changing_hands);
    check("wrong values", wrong, 0);
}

/* Many pages at once are new to all: more than are remembered one by one. */
enum { MANY = 448 };
static uint8_t lot[MANY][4096] __attribute__((aligned(4096)));
static void run_lot(unsigned cpu) {
    for (uint32_t round = 1; round <= rounds; round++) {
        while (told != round)
            relax();
        cpuid(0, 0);
        for (unsigned i = 0; i < MANY; i++)
            wrong += run(lot[i] + 64) != (round << 16 | i);
        done[cpu] = round;
    }
}

static void many_pages(void) {
    rounds = many(20) + 2;
    begin_others(run_lot);
    for (uint32_t round = 1; round <= rounds; round++) {
        for (unsigned i = 0; i < MANY; i++)
            put_function(lot[i] + 64, round << 16 | i);
        told = round;
        wait_until_done(round);
    }
    wait_for_others();
}

/* ---- Not told ---- */

/* Runs it until it is the new one; nothing else may be seen. */
static void run_until_new(unsigned cpu) {
    for (uint32_t round = 1; round <= rounds; round++) {
        uint32_t value;
        while ((value = run(place)) != round)
            wrong += value != round - 1;
        done[cpu] = round;
    }
}

static void seen_soon(void) {
    rounds = many(300);
    place = test_page[12] + 7; /* the value is on an 8-byte boundary */
    put_function(place, 0);
    begin_others(run_until_new);
    for (uint32_t round = 1; round <= rounds; round++) {
        *(volatile uint32_t *)(place + 1) = round;
        wait_until_done(round);
    }
    wait_for_others();
}

/* A jump to itself that becomes a return. */
static void run_endless(unsigned cpu) {
    for (uint32_t round = 1; round <= rounds; round++) {
        while (told != round)
            relax();
        cpuid(0, 0);
        done[cpu] = round;
        run(place);
        done[cpu] = round | 0x10000;
    }
}

static void endless_loop_ends(void) {
    rounds = many(100);
    place = test_page[13] + 16;
    begin_others(run_endless);
    for (uint32_t round = 1; round <= rounds; round++) {
        *(volatile uint16_t *)place = 0xfeeb;
        told = round;
        wait_until_done(round);
        *(volatile uint16_t *)place = 0x90c3;
        wait_until_done(round | 0x10000);
    }
    wait_for_others();
}

/* ---- As Linux changes its own code: a breakpoint first, the rest, the first byte ---- */

static volatile unsigned synchronised, trapped;

static void serialise(struct frame *frame) {
    cpuid(0, 0);
    __atomic_fetch_add(&synchronised, 1, __ATOMIC_SEQ_CST);
    apic_write(APIC_EOI, 0);
}

/* In place of the instruction under the breakpoint: run it again until it is there. */
static void again(struct frame *frame) {
    __atomic_fetch_add(&trapped, 1, __ATOMIC_SEQ_CST);
    relax();
    frame->rip--;
}

static void synchronise(void) {
    synchronised = 0;
    apic_write(APIC_ICR_LOW, 0xc0000 | VECTOR);
    while (synchronised != mp_count() - 1)
        relax();
}

/* mov $value, %eax, in two stores that both must have happened; the value's bytes are all alike. */
static void run_patched(unsigned cpu) {
    asm volatile("sti");
    while (!told) {
        uint32_t value = run(place);
        wrong += value != (value & 0xff) * 0x01010101;
        relax();
    }
    cli();
}

static void patched_as_by_linux(void) {
    set_handler(VECTOR, serialise);
    set_handler(BP, again);
    trapped = 0;
    place = test_page[14] + 30;
    put_function(place, 0);
    begin_others(run_patched);
    for (uint32_t round = 1, n = 20; round <= n; round++) {
        uint32_t value = (round & 0xff) * 0x01010101;
        *(volatile uint8_t *)place = 0xcc;
        synchronise();
        for (unsigned i = 0; i < 4; i++)
            ((volatile uint8_t *)place)[1 + i] = (uint8_t)(value >> 8 * i);
        synchronise();
        *(volatile uint8_t *)place = 0xb8;
        synchronise();
        wrong += run(place) != value;
    }
    told = 1;
    wait_for_others();
    set_handler(BP, NULL);
}

void program(void) {
    TEST(mp_several);
    if (mp_count() == 1)
        return;
    TEST(one_function);
    TEST(writer_runs_it);
    TEST(by_another_mapping);
    TEST(copied_over);
    TEST(fresh_pages);
    TEST(code_and_data_in_turn);
    TEST(many_pages);
    TEST(seen_soon);
    TEST(endless_loop_ends);
    TEST(patched_as_by_linux);
}
