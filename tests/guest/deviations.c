#include "deviations.h"

#include <string.h>

#include "base/bytes.h"

/*
 * What the soft engine answers is compared with the manuals without exception.
 * The KVM engine answers what its host does, and the hosts at hand are not
 * silicon: a KVM that runs kernel mode in the instruction emulator of Linux,
 * many instructions in one go ("emulated"), and kvm-amd inside QEMU's TCG
 * ("TCG"), version 7.2. The reasons are what the failures look like, not what
 * reading the hosts' code has shown.
 */
static const struct {
    const char *program;
    const char *line; /* a failed line that begins so */
    const char *reason;
} kvm_deviations[] = {
    {"smap.elf", "the program did not end: failed KVM cannot emulate",
     "emulated: no STAC and CLAC"},

    {"sides.elf", "system_calls", "emulated: SYSCALL's page is not found; TCG: flags get lost"},
    {"sides.elf", "sysret_far_away", "emulated: SYSCALL's page is not found"},
    {"sides.elf", "the program did not end: failed KVM cannot emulate",
     "emulated: no STAC and CLAC"},

    {"mp_code.elf", "the program did not end: failed KVM cannot emulate", "emulated: no INT3"},
    {"mp_memory.elf", "the program did not end: failed KVM cannot emulate",
     "emulated: no CMPXCHG16B"},
    {"mp_memory.elf", "across_", "emulated: locked operands on two pages are not atomic"},

    {"gates.elf", "user_gates", "emulated: no INT in protected mode; TCG: error code of 16 * n"},
    {"gates.elf", "user_breakpoint", "emulated: no INT3"},
    {"gates.elf", "software_interrupts", "TCG: error code of 16 * n"},
    {"gates.elf", "idt_limit", "TCG: error code of 16 * n"},
    {"gates.elf", "the program did not end: failed KVM cannot emulate", "emulated: no INT"},

    {"paging.elf", "across_pages: ", "emulated: the first page is written before the fault"},
    {"paging.elf", "smap_implicit", "TCG: SMAP does not see descriptor loads"},
    {"paging.elf", "reserved_bits", "TCG: error code without P"},
    {"paging.elf", "offset_not_canonical", "TCG, Intel: offsets are not looked at"},
    {"paging.elf", "nx_without_nxe", "TCG: error code without P"},
    {"paging.elf", "the program did not end: shutdown", "TCG: stacks may be not canonical"},

    {"faults.elf", "stack_segments: null with RPL 3", "TCG: does not look at RPL"},
    {"faults.elf", "system_segments: TR: null", "TCG: LTR takes it"},
    {"faults.elf", "segments_on_return", "emulated: DS and ES are lost"},
    {"faults.elf", "exception_through_bad_gate", "emulated: #DF; TCG: error code of 16 * n"},
    {"faults.elf", "benign_then_fault", "emulated: #DF; TCG: error code of 16 * n"},
    {"faults.elf", "iret: CS is data", "emulated: #UD"},
    {"faults.elf", "user_refused: user_rdtsc", "emulated: CR4.TSD is not heeded"},
    {"faults.elf", "user_refused: user_sysexit", "TCG: #UD"},
    {"faults.elf", "user_popf", "emulated: user mode runs with IF set"},
    {"faults.elf", "user_alignment", "TCG: no alignment checks"},
    {"faults.elf", "syscall_64", "emulated: SYSCALL's page is not found; TCG: flags get lost"},
    {"faults.elf", "syscall_32", "emulated: the host's selectors show"},
    {"faults.elf", "syscall_disabled", "emulated: SYSCALL although disabled"},
    {"faults.elf", "compatibility_addresses: null segment", "TCG and emulated: not looked at"},
    {"faults.elf", "compatibility_addresses: rip", "TCG and emulated: goes with the null segment"},
    {"faults.elf", "decoding_faults: LOCK MOV", "TCG: runs it"},
    {"faults.elf", "control_registers", "TCG: reserved bits are not checked"},
    {"faults.elf", "the program did not end: failed KVM cannot emulate", "emulated: no DAA"},
    {"faults.elf", "the program did not end: failed the processor refused",
     "TCG: CR3's reserved bits are refused by VMRUN, not by MOV"},

    {"extended.elf", "the program did not end: failed KVM cannot emulate", "emulated: no x87"},
    {"extended.elf", "sse_switches: reserved bit of MXCSR", "TCG: not looked at"},
    {"extended.elf", "sse_exceptions", "TCG: no #XM"},
    {"extended.elf", "xcr0: area in use", "TCG: XSETBV does not leave the guest"},
    {"extended.elf", "xcr0: AVX", "TCG: XSETBV does not leave the guest"},
    {"extended.elf", "xsave_areas: reserved bit of MXCSR", "TCG: not looked at"},

    {"interrupts.elf", "in_service", "emulated: EOI when the interrupt is delivered"},
    {"interrupts.elf", "nesting", "emulated: EOI when the interrupt is delivered"},
    {"interrupts.elf", "without_eoi", "emulated: EOI when the interrupt is delivered"},
    {"interrupts.elf", "task_priority: TPR: got 0x50", "kvm-amd keeps TPR's high half, as CR8"},
    {"interrupts.elf", "sti_shadow", "emulated: looks for interrupts now and then only"},
    {"interrupts.elf", "popf_no_shadow", "emulated: looks for interrupts now and then only"},
    {"interrupts.elf", "mov_ss_shadow", "emulated: looks for interrupts now and then only"},
    {"interrupts.elf", "cr8_exact", "emulated: looks for interrupts now and then only"},
    {"interrupts.elf", "exact_order", "emulated: looks for interrupts now and then only"},
    {"interrupts.elf", "nmi", "emulated: NMIs nest"},
    {"interrupts.elf", "level_pin", "emulated: EOI when the interrupt is delivered"},

    {"timer.elf", "tsc: written", "emulated: RDTSC reads the host's"},

    {"debug.elf", "step_repeat", "emulated: REP is one step"},
    {"debug.elf", "step_mov_ss", "emulated: no shadow"},
    {"debug.elf", "data_breakpoints", "emulated: none; TCG: only whole matches"},
    {"debug.elf", "general_detect", "TCG: no GD"},
    {"debug.elf", "int1: stray trap", "TCG: no INT1"},
    {"debug.elf", "the program did not end: failed KVM cannot emulate", "emulated: no INT1"},

    {"stacks.elf", "refused: push reg: ", "TCG: #GP for a stack that is not canonical"},
    {"hostile.elf", "break_hot_loop: writes", "emulated: no data breakpoints"},
    {"hostile.elf", "fifteen_bytes: 15 prefixes, then nothing", "TCG: fetches, then counts"},
    {"hostile.elf", "the program did not end: failed KVM cannot emulate", "emulated: no 0F 04"},

    {"microsteps.elf", "at_rdi: ", "emulated: the first page is written before the fault"},
    {"microsteps.elf", "enter_display: r", "TCG: ENTER moves RSP and RBP before it faults"},
    {"microsteps.elf", "bit_string: bts", "TCG: BTS faults as a read"},
    {"microsteps.elf", "all_registers_32: cr2", "TCG: PUSHA begins with the last register"},
    {"microsteps.elf", "iret_across: ", "TCG: IRET's second page is not looked at first"},
    {"microsteps.elf", "the program did not end: failed KVM cannot emulate",
     "emulated: no CMPXCHG16B"},

    {"smc.elf", "flags_become_live_at_once: carry", "TCG: flags that were dead by the old code"},

    {"modes.elf", "the program did not end: failed KVM cannot emulate", "emulated: no LSL"},
    {"modes.elf", "the program did not end: shutdown", "emulated: 32-bit paging loses the GDT"},
};

const char *deviation_reason(const char *engine, const char *program, const char *line) {
    if (strcmp(engine, "kvm") != 0)
        return NULL;
    for (size_t i = 0; i < ARRAY_SIZE(kvm_deviations); i++) {
        if (strcmp(program, kvm_deviations[i].program) == 0 &&
            strncmp(line, kvm_deviations[i].line, strlen(kvm_deviations[i].line)) == 0)
            return kvm_deviations[i].reason;
    }
    return NULL;
}
