/*
 * Triple faults: the processor shuts down, the machine starts it again (the
 * harness does; each round of this program ends in another way).
 */
#include "runtime.h"

static void empty_idt(void) {
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) none = {0, 0};
    asm volatile("lidt %0; ud2" ::"m"(none));
}

static void bad_double_fault_gate(void) {
    set_gate(DF, 0, 0, 0, 0x0e);
    set_gate(GP, 0, 0, 0, 0x0e);
    asm volatile("movb (%0), %%al" ::"r"(0x800000000000ul) : "rax");
}

static void no_stack(void) {
    asm volatile("mov %0, %%rsp; ud2" ::"r"(TEST_VA + 0x100000));
}

static void no_page_tables(void) {
    asm volatile("mov %0, %%cr3; nop" ::"r"(PHYSICAL(test_page[0])));
}

static void (*const ways[])(void) = {empty_idt, bad_double_fault_gate, no_stack, no_page_tables};
enum { WAYS = sizeof ways / sizeof ways[0] };

static uint32_t round_number;
static void started_again(void) {
    check("rounds", round_number, WAYS);
    check("A20, flags and the rest as after power-on: interrupts off", read_cr8(), 0);
}

void program(void) {
    if (!has_harness())
        return;
    round_number = request(REQUEST_ROUND, 0, 0, 0);
    if (round_number < WAYS) {
        request(REQUEST_EXPECT_SHUTDOWN, 0, 0, 0);
        ways[round_number]();
    }
    TEST(started_again);
}
