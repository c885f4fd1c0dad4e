/* INT n, INT3 and what may be wrong with their gates (APM vol. 2, 8.7). */
#include "runtime.h"

FUNCTION(int_50, "int $0x50")
CODE(user_int_50, "int $0x50\n ud2");
CODE(user_int_open, "int $0x40\n ud2");
CODE(user_int3, "int3\n ud2");

static void software_interrupts(void) {
    uint64_t stub = PHYSICAL(trap_stubs) + 16 * 0x50;
    expect("plain", int_50, 0, 0x50, 0);
    set_gate(0x50, stub, KERNEL_CS, 0, 0x0e);
    expect("not present", int_50, 0, NP, 0x50 * 8 + 2);
    set_gate(0x50, stub, KERNEL_CS, 0, 0x8c);
    expect("no gate", int_50, 0, GP, 0x50 * 8 + 2);
    set_gate(0x50, stub, 0, 0, 0x8e);
    expect("null CS", int_50, 0, GP, 0);
    set_gate(0x50, stub, 0x1000, 0, 0x8e);
    expect("CS past the limit", int_50, 0, GP, 0x1000);
    set_gate(0x50, stub, KERNEL_DS, 0, 0x8e);
    expect("CS is data", int_50, 0, GP, KERNEL_DS);
    set_gate(0x50, stub, (uint16_t)descriptor(0, CODE_READ & ~PRESENT), 0, 0x8e);
    set_long(0);
    expect("CS not present", int_50, 0, NP, GDT_FREE);
    set_gate(0x50, stub, USER_CS & ~3, 0, 0x8e);
    expect("CS of lower privilege", int_50, 0, GP, USER_CS & ~3);
    set_gate(0x50, 0x800000000000ul, KERNEL_CS, 0, 0x8e);
    expect("not canonical", int_50, 0, GP, 0);
    reset_gate(0x50);
}

static void idt_limit(void) {
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) small = {0x50 * 16 - 1, PHYSICAL(idt)}, whole = {4095, PHYSICAL(idt)};
    asm volatile("lidt %0" ::"m"(small));
    expect("past the IDT's limit", int_50, 0, GP, 0x50 * 8 + 2);
    asm volatile("lidt %0" ::"m"(whole));
}

static void user_gates(void) {
    check("closed gate", run_user(user_int_50, CODE_SIZE(user_int_50), 0), GP);
    check("error code", trap.frame.error, 0x50 * 8 + 2);
    check("rip", trap.frame.rip, USER_CODE_VA);
    check("open gate", run_user(user_int_open, CODE_SIZE(user_int_open), 0), VECTOR_OPEN);
    check("rip", trap.frame.rip, USER_CODE_VA + 2);
    check("stack", trap.frame_address, tss.rsp[0] - sizeof(struct frame));
    check("ss", trap.frame.ss, USER_DS);
    check("rsp", trap.frame.rsp, USER_STACK_VA);
}

static void user_breakpoint(void) {
    check("vector", run_user(user_int3, CODE_SIZE(user_int3), 0), BP);
    check("rip", trap.frame.rip, USER_CODE_VA + 1);
}

void program(void) {
    TEST(user_gates);
    TEST(user_breakpoint);
    TEST(software_interrupts);
    TEST(idt_limit);
}
