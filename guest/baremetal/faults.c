/*
 * Faults and their error codes: segment loads, gates, returns, changes of
 * privilege, control registers (APM vol. 2, chapters 4 and 8; vol. 3).
 */
#include "runtime.h"

#define CR0_TS     8ul
#define CR0_EM     4ul
#define CR4_TSD    4ul
#define CR4_DE     8ul
#define CR4_UMIP   0x800ul
#define RFLAGS_IF  0x200ul
#define RFLAGS_NT  0x4000ul
#define RFLAGS_AC  0x40000ul
#define MSR_EFER   0xc0000080u
#define MSR_STAR   0xc0000081u
#define MSR_LSTAR  0xc0000082u
#define MSR_CSTAR  0xc0000083u
#define MSR_SFMASK 0xc0000084u

/* ---- Segment loads ---- */

FUNCTION(load_ds, "mov %0, %%ds" ::"r"((uint32_t)a))
FUNCTION(load_fs, "mov %0, %%fs" ::"r"((uint32_t)a))
FUNCTION(load_ss, "mov %0, %%ss; mov %1, %%ss" ::"r"((uint32_t)a), "r"(KERNEL_DS))
FUNCTION(load_ldt, "lldt %w0" ::"r"((uint32_t)a))
FUNCTION(load_tr, "ltr %w0" ::"r"((uint32_t)a))

static void data_segments(void) {
    expect("null", load_ds, 0, NO_TRAP, 0);
    expect("null with RPL 3", load_ds, 3, NO_TRAP, 0);
    expect("data", load_ds, descriptor(0, DATA), NO_TRAP, 0);
    expect("readable code", load_ds, descriptor(0, CODE_READ), NO_TRAP, 0);
    expect("read-only data", load_ds, descriptor(0, DATA_READ_ONLY), NO_TRAP, 0);
    expect("not present", load_ds, descriptor(0, DATA & ~PRESENT), NP, GDT_FREE);
    expect("not present, FS", load_fs, descriptor(0, DATA & ~PRESENT), NP, GDT_FREE);
    expect("execute-only code", load_ds, descriptor(0, CODE_ONLY), GP, GDT_FREE);
    expect("a TSS", load_ds, TSS_SELECTOR, GP, TSS_SELECTOR);
    expect("RPL above DPL", load_ds, descriptor(0, DATA) | 3, GP, GDT_FREE);
    expect("past the GDT's limit", load_ds, 0x1000, GP, 0x1000);
    expect("without an LDT", load_fs, 0x44, GP, 0x44);
    descriptor(0, DATA & ~1); /* not accessed yet */
    expect("data", load_ds, GDT_FREE, NO_TRAP, 0);
    check("accessed bit", gdt[GDT_FREE / 8] >> 40 & 0xff, DATA);
}

static void stack_segments(void) {
    expect("null at CPL 0", load_ss, 0, NO_TRAP, 0);
    expect("null with RPL 3", load_ss, 3, GP, 0);
    expect("data", load_ss, descriptor(0, DATA), NO_TRAP, 0);
    expect("not present", load_ss, descriptor(0, DATA & ~PRESENT), SS, GDT_FREE);
    expect("read-only", load_ss, descriptor(0, DATA_READ_ONLY), GP, GDT_FREE);
    expect("code", load_ss, descriptor(0, CODE_READ), GP, GDT_FREE);
    expect("DPL 3", load_ss, USER_DS & ~3, GP, USER_DS & ~3);
    expect("RPL 3", load_ss, descriptor(0, DATA) | 3, GP, GDT_FREE);
}

static void system_segments(void) {
    expect("LDT: null", load_ldt, 0, NO_TRAP, 0);
    expect("LDT: data", load_ldt, descriptor(0, DATA), GP, GDT_FREE);
    descriptor(0, 2);
    gdt[GDT_FREE / 8 + 1] = 0;
    expect("LDT: not present", load_ldt, GDT_FREE, NP, GDT_FREE);
    if (try_call(load_tr, 0) == NO_TRAP) { /* QEMU; it would end at the next trap from user mode */
        check("TR: null", NO_TRAP, GP);
        gdt[TSS_SELECTOR / 8] &= ~(2ul << 40);
        load_tr(TSS_SELECTOR);
    }
    expect("TR: busy", load_tr, TSS_SELECTOR, GP, TSS_SELECTOR);
    descriptor(0, 9);
    expect("TR: not present", load_tr, GDT_FREE, NP, GDT_FREE);
    expect("TR: an LDT", load_tr, descriptor(0, 0x82), GP, GDT_FREE);
}

FUNCTION(user_segments, "mov %0, %%ds; mov %0, %%es; mov %1, %%fs; mov %1, %%gs" ::"r"(USER_DS),
         "r"(KERNEL_DS))
CODE(read_selectors, "mov %ds, %eax\n mov %es, %ebx\n mov %fs, %ecx\n mov %gs, %edx\n ud2");

/* A return to CPL 3 makes data segments null that CPL 3 may not have. */
static void segments_on_return(void) {
    try_call(user_segments, 0);
    asm volatile("mov %0, %%fs; mov %1, %%ds; mov %1, %%es" ::"r"(KERNEL_DS), "r"(USER_DS));
    check("vector", run_user(read_selectors, CODE_SIZE(read_selectors), 0), UD);
    check("ds", trap.frame.rax, USER_DS);
    check("es", trap.frame.rbx, USER_DS);
    check("fs", trap.frame.rcx, 0);
}

/* ---- Gates ---- */

FUNCTION(ud2, "ud2")
/* The EXT bit: the gate of an exception, not of INT, is bad. */
static void exception_through_bad_gate(void) {
    set_gate(UD, PHYSICAL(trap_stubs) + 16 * UD, KERNEL_CS, 0, 0x0e);
    expect("not present", ud2, 0, NP, UD * 8 + 2 + 1);
    reset_gate(UD);
}

static void stacks(void) {
    for (unsigned odd = 0; odd < 16; odd += 8) {
        uint64_t top = PHYSICAL(test_page[8]) + odd;
        check("vector", try_stack(ud2, 0, top), UD);
        /* try_stack's call pushed 8 bytes; the frame begins at a multiple of 16 below. */
        check("aligned", trap.frame_address, ((top - 8) & ~15ul) - sizeof(struct frame));
        check("rsp", trap.frame.rsp, top - 8);
        check("ss", trap.frame.ss, KERNEL_DS);
    }
    use_ist(UD, 2);
    check("vector", try_call(ud2, 0), UD);
    check("IST 2", trap.frame_address, tss.ist[1] - sizeof(struct frame));
    reset_gate(UD);
}

/* ---- IRET ---- */

static void iret_target_code(void) {
    asm volatile("ud2");
}

static void expect_iret(const char *what, struct iret_frame frame, unsigned vector,
                        uint64_t error) {
    check(what, try_iret(&frame, 0), vector);
    check(what, trap.frame.error, error);
}

static void iret(void) {
    uint64_t target = PHYSICAL(iret_target_code), stack = PHYSICAL(test_page[8]);
    struct iret_frame good = {target, KERNEL_CS, 2, stack, KERNEL_DS}, bad;
    expect_iret("same privilege", good, UD, 0);
    check("rsp", trap.frame.rsp, stack);
    bad = good, bad.ss = 0;
    expect_iret("null SS at CPL 0", bad, UD, 0);
    check("ss", trap.frame.ss, 0);
    bad = good, bad.cs = 0;
    expect_iret("null CS", bad, GP, 0);
    bad = good, bad.cs = 0x1000;
    expect_iret("CS past the limit", bad, GP, 0x1000);
    bad = good, bad.cs = KERNEL_DS;
    expect_iret("CS is data", bad, GP, KERNEL_DS);
    bad = good, bad.rip = 0x800000000000ul;
    check("not canonical", try_iret(&bad, 0), GP);
    bad = good, bad.cs = USER_CS, bad.ss = 0;
    expect_iret("null SS at CPL 3", bad, GP, 0);
    bad = good, bad.cs = USER_CS, bad.ss = KERNEL_DS | 3;
    expect_iret("SS of DPL 0 at CPL 3", bad, GP, KERNEL_DS);
    bad = good, bad.cs = USER_CS & ~3;
    expect_iret("CS of DPL 3, RPL 0", bad, GP, USER_CS & ~3);
    bad = good, bad.cs = descriptor(0, CODE_READ & ~PRESENT);
    set_long(0);
    expect_iret("CS not present", bad, NP, GDT_FREE);
}

FUNCTION(iret_nested,
         "pushfq; orl $0x4000, (%%rsp); popfq; mov %%ss, %%eax; push %%rax; push %%rsp;"
         "pushfq; mov %%cs, %%eax; push %%rax; lea 1f(%%rip), %%rax; push %%rax; iretq; 1:" ::
             : "rax", "memory", "cc")

static void iret_nt(void) {
    expect("NT in long mode", iret_nested, 0, GP, 0);
}

CODE(user_flags, "pushfq\n pop %rax\n ud2");
static void iret_flags(void) {
    memcpy((void *)0x300000, user_flags, CODE_SIZE(user_flags));
    struct iret_frame frame = {0x300000, KERNEL_CS, 0x240ad7, PHYSICAL(test_page[8]), KERNEL_DS};
    check("vector", try_iret(&frame, 0), UD);
    check("flags", trap.frame.rax & 0x240fff, 0x2408d7 | (0x240ad7 & RFLAGS_IF));
}

/* ---- User mode may not ---- */

CODE(user_hlt, "hlt");
CODE(user_cli, "cli");
CODE(user_sti, "sti");
CODE(user_in, "mov $0x5000, %edx\n in %dx, %al\n ud2");
CODE(user_mov_cr, "mov %cr3, %rax");
CODE(user_mov_dr, "mov %dr7, %rax");
CODE(user_rdmsr, "mov $0xc0000080, %ecx\n rdmsr");
CODE(user_lgdt, "lgdt (%rsp)");
CODE(user_invlpg, "invlpg (%rsp)");
CODE(user_clts, "clts");
CODE(user_sysexit, "sysexit"); /* as AMD's processors do: elsewhere in long mode it is #UD */
CODE(user_sgdt, "sgdt -32(%rsp)\n ud2");
CODE(user_rdtsc, "rdtsc\n ud2");
CODE(user_misaligned, "pushfq\n orl $0x40000, (%rsp)\n popfq\n mov -7(%rsp), %eax\n ud2");
CODE(user_flags_kept, "pushfq\n orl $0x3200, (%rsp)\n popfq\n pushfq\n pop %rax\n ud2");

#define REFUSED(name)                                                                              \
    do {                                                                                           \
        check(#name, run_user(name, CODE_SIZE(name), 0), GP);                                      \
        check(#name, trap.frame.error, 0);                                                         \
    } while (0)

static void user_refused(void) {
    REFUSED(user_hlt);
    REFUSED(user_cli);
    REFUSED(user_sti);
    REFUSED(user_in);
    REFUSED(user_mov_cr);
    REFUSED(user_mov_dr);
    REFUSED(user_rdmsr);
    REFUSED(user_lgdt);
    REFUSED(user_invlpg);
    REFUSED(user_clts);
    REFUSED(user_sysexit);
    write_cr4(read_cr4() | CR4_TSD);
    REFUSED(user_rdtsc);
    write_cr4(read_cr4() & ~CR4_TSD);
    check("RDTSC allowed", run_user(user_rdtsc, CODE_SIZE(user_rdtsc), 0), UD);
}

static void user_mode_instruction_prevention(void) {
    check("SGDT allowed", run_user(user_sgdt, CODE_SIZE(user_sgdt), 0), UD);
    if (!has(HAS_UMIP))
        return skip("no UMIP");
    write_cr4(read_cr4() | CR4_UMIP);
    REFUSED(user_sgdt);
    write_cr4(read_cr4() & ~CR4_UMIP);
}

/* POPF at CPL 3 leaves IF and IOPL alone, without a fault. */
static void user_popf(void) {
    check("vector", run_user(user_flags_kept, CODE_SIZE(user_flags_kept), 0), UD);
    check("flags", trap.frame.rax & 0x3200, 0);
}

static void user_alignment(void) {
    check("vector", run_user(user_misaligned, CODE_SIZE(user_misaligned), 0), AC);
    check("error code", trap.frame.error, 0);
}

/* The TSS holds a bit for each port. */
static struct {
    struct tss tss;
    uint8_t map[0x5010 / 8 + 1];
} __attribute__((packed)) big_tss;

static void set_tss(const struct tss *t, unsigned limit) {
    uint64_t base = PHYSICAL(t);
    gdt[TSS_SELECTOR / 8] =
        limit | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
    gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
    asm volatile("ltr %w0" ::"r"(TSS_SELECTOR));
}

CODE(user_in16, "mov $0x5007, %edx\n in %dx, %ax\n ud2");

static void port_permissions(void) {
    big_tss.tss = tss;
    big_tss.tss.io_map = sizeof big_tss.tss;
    memset(big_tss.map, 0xff, sizeof big_tss.map);
    set_tss(&big_tss.tss, sizeof big_tss - 1);
    REFUSED(user_in);
    big_tss.map[0x5000 / 8] = 0x00;
    check("allowed", run_user(user_in, CODE_SIZE(user_in), 0), UD);
    REFUSED(user_in16); /* its second byte's bit is in the next byte, and set */
    big_tss.map[0x5008 / 8] = 0xfe;
    check("both bytes allowed", run_user(user_in16, CODE_SIZE(user_in16), 0), UD);
    set_tss(&tss, sizeof tss - 1);
}

/* ---- SYSCALL, SYSRET ---- */

extern const char syscall_landing[];
asm(".text\n"
    "syscall_landing:\n"
    "  mov %rsp, syscall_rsp(%rip)\n"
    "  lea syscall_stack+2048(%rip), %rsp\n"
    "  mov %rcx, syscall_rcx(%rip)\n"
    "  mov %r11, syscall_r11(%rip)\n"
    "  pushfq\n"
    "  popq syscall_flags(%rip)\n"
    "  mov %cs, %edx\n"
    "  mov %edx, syscall_cs(%rip)\n"
    "  mov %ss, %edx\n"
    "  mov %edx, syscall_ss(%rip)\n"
    "  mov syscall_rsp(%rip), %rsp\n"
    "  test %esi, %esi\n"
    "  jnz 1f\n"
    "  sysretq\n"
    "1: sysretl\n"
    ".bss\n"
    "syscall_stack: .fill 2048\n"
    "syscall_rsp: .quad 0\n"
    ".text\n");
uint64_t syscall_rcx, syscall_r11, syscall_flags;
uint32_t syscall_cs, syscall_ss;

CODE(user_syscall, "xor %esi, %esi\n xor %eax, %eax\n stc\n syscall\n mov $77, %eax\n mov %cs, "
                   "%ebx\n mov %ss, %ecx\n ud2");
CODE(user_syscall32, ".code32\n mov $1, %esi\n stc\n syscall\n mov $78, %eax\n mov %cs, %ebx\n mov "
                     "%ss, %ecx\n ud2\n .code64");

static void set_syscall_msrs(void) {
    wrmsr(MSR_STAR, (uint64_t)KERNEL_CS << 32 | (uint64_t)USER_CS32 << 48);
    wrmsr(MSR_LSTAR, PHYSICAL(syscall_landing));
    wrmsr(MSR_CSTAR, PHYSICAL(syscall_landing));
    wrmsr(MSR_SFMASK, 0x301);
}

static void syscall_64(void) {
    set_syscall_msrs();
    check("vector", run_user(user_syscall, CODE_SIZE(user_syscall), 0), UD);
    check("came back", trap.frame.rax, 77);
    check("rcx", syscall_rcx, USER_CODE_VA + 7);
    check("r11: CF, ZF, PF", syscall_r11 & 0xd5, 0x45);
    check("flags masked", syscall_flags & 0x345, 0x44);
    check("cs", syscall_cs, KERNEL_CS);
    check("ss", syscall_ss, KERNEL_DS);
    check("user cs", trap.frame.rbx, USER_CS);
    check("user ss", trap.frame.rcx, USER_DS);
}

static void syscall_32(void) {
    if (cpuid(0, 0).ebx == 0x756e6547)
        return skip("Intel: no SYSCALL in compatibility mode");
    set_syscall_msrs();
    check("vector", run_user32(user_syscall32, CODE_SIZE(user_syscall32), 0), UD);
    check("came back", trap.frame.rax, 78);
    check("user cs", trap.frame.rbx, USER_CS32);
    check("user ss", trap.frame.rcx, USER_DS);
}

static void syscall_disabled(void) {
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~1ul);
    check("vector", run_user(user_syscall, CODE_SIZE(user_syscall), 0), UD);
    check("rip", trap.frame.rip, USER_CODE_VA + 5);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
}

/* ---- Compatibility mode ---- */

CODE(compatibility, ".code32\n mov %esp, %ecx\n pusha\n sub %esp, %ecx\n mov $-1, %eax\n inc %eax\n"
                    " push $0x12345678\n pop %edx\n mov %cs, %ebx\n ud2\n .code64");
CODE(compatibility_wrap, ".code32\n mov $0x23, %eax\n mov %eax, %ds\n mov $0x90, %esi\n mov "
                         "-0x91(%esi), %al\n ud2\n .code64");
CODE(compatibility_null, ".code32\n xor %eax, %eax\n mov %eax, %ds\n mov -4(%esp), %eax\n mov "
                         "(%edi), %eax\n ud2\n .code64");
CODE(compatibility_popa, ".code32\n push %edi\n lea -28(%esp), %esp\n popa\n ud2\n .code64");

static void compatibility_mode(void) {
    check("vector", run_user32(compatibility, CODE_SIZE(compatibility), 0), UD);
    check("PUSHA pushes", trap.frame.rcx, 32);
    check("40h is INC", trap.frame.rax, 0);
    check("PUSH of 4 bytes", trap.frame.rdx, 0x12345678);
    check("cs", trap.frame.rbx, USER_CS32);
    check("rip", trap.frame.rip, USER_CODE32_VA + CODE_SIZE(compatibility) - 2);
    check("rsp", trap.frame.rsp, USER_CODE32_VA + 0x4000 - 32);
    check("vector", run_user32(compatibility_popa, CODE_SIZE(compatibility_popa), 99), UD);
    check("POPA", trap.frame.rax, 99);
}

static void compatibility_addresses(void) {
    check("vector", run_user32(compatibility_wrap, CODE_SIZE(compatibility_wrap), 0), PF);
    check("cr2 is cut to 32 bits", trap.cr2, 0xffffffff);
    check("null segment",
          run_user32(compatibility_null, CODE_SIZE(compatibility_null), USER_CODE32_VA), GP);
    check("error code", trap.frame.error, 0);
    check("rip", trap.frame.rip, USER_CODE32_VA + 8);
}

extern const char far_32[];
uint32_t far_result = 1;
asm(".text\n.code32\nfar_32: mov $-1, %eax\n inc %eax\n mov %eax, far_result\n"
    "ljmp $0x08, $far_64\n.code64\nfar_64: ret\n");
static void far_to_32(uint64_t a) {
    asm volatile("lea 1f(%%rip), %%rax; push %%rax; push %0; push %1; lretq; 1:" ::"r"(
                     (uint64_t)KERNEL_CS32),
                 "r"(PHYSICAL(far_32))
                 : "rax", "memory");
}

/* ---- Other exceptions ---- */

FUNCTION(divide, "xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax; div %%ecx" ::
             : "rax", "rcx", "rdx")
FUNCTION(divide_overflow, "mov $-0x80000000, %%eax; cltd; mov $-1, %%ecx; idiv %%ecx" ::
             : "rax", "rcx", "rdx")
FUNCTION(push_es, ".byte 0x06")
FUNCTION(daa, ".byte 0x27")
FUNCTION(far_call, ".byte 0x9a, 0, 0, 0, 0, 0, 0")
FUNCTION(lock_mov, "lock; .byte 0x89, 0xc0")
FUNCTION(lock_add_register, "lock; .byte 0x01, 0xc0")
FUNCTION(too_long,
         ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90")
FUNCTION(as_long_as_may_be,
         ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90")
FUNCTION(fld, "fninit; fldz; fstp %%st(0)" ::: "memory")
FUNCTION(wait, "fwait")

static void decoding_faults(void) {
    expect("UD2", ud2, 0, UD, 0);
    expect("PUSH ES", push_es, 0, UD, 0);
    expect("DAA", daa, 0, UD, 0);
    expect("far CALL", far_call, 0, UD, 0);
    expect("LOCK MOV", lock_mov, 0, UD, 0);
    expect("LOCK ADD of a register", lock_add_register, 0, UD, 0);
    expect("16 bytes", too_long, 0, GP, 0);
    expect("15 bytes", as_long_as_may_be, 0, NO_TRAP, 0);
}

static void arithmetic_faults(void) {
    expect("DIV by 0", divide, 0, DE, 0);
    expect("IDIV overflow", divide_overflow, 0, DE, 0);
}

static void coprocessor_absent(void) {
    uint64_t cr0 = read_cr0();
    asm volatile("fninit"); /* after a reset, all registers are full and nothing is masked */
    write_cr0(cr0 | CR0_TS);
    expect("TS", fld, 0, NM, 0);
    expect("TS with MP, WAIT", wait, 0, NM, 0);
    write_cr0((cr0 | CR0_EM) & ~CR0_TS);
    expect("EM", fld, 0, NM, 0);
    write_cr0(cr0);
    expect("neither", fld, 0, NO_TRAP, 0);
}

/* ---- Control registers and MSRs ---- */

FUNCTION(set_cr0, "mov %0, %%cr0" ::"r"(a) : "memory")
FUNCTION(set_cr3, "mov %0, %%cr3" ::"r"(a) : "memory")
FUNCTION(set_cr4, "mov %0, %%cr4" ::"r"(a) : "memory")
FUNCTION(set_cr8, "mov %0, %%cr8" ::"r"(a) : "memory")
FUNCTION(set_dr7, "mov %0, %%dr7" ::"r"(a) : "memory")
FUNCTION(set_dr0, "mov %0, %%dr0" ::"r"(a) : "memory")
FUNCTION(read_dr4, "mov %%dr4, %%rax" ::: "rax")
FUNCTION(read_cr1, ".byte 0x0f, 0x20, 0xc8" ::: "rax")
FUNCTION(read_msr, "rdmsr" ::"c"((uint32_t)a) : "rax", "rdx")
static void set_lstar(uint64_t v) {
    wrmsr(MSR_LSTAR, v);
}
static void set_efer(uint64_t v) {
    wrmsr(MSR_EFER, v);
}

static void control_registers(void) {
    uint64_t cr0 = read_cr0(), cr4 = read_cr4();
    expect("PG without PE", set_cr0, cr0 & ~1ul, GP, 0);
    expect("paging off in 64-bit code", set_cr0, cr0 & ~0x80000000ul, GP, 0);
    expect("NW without CD", set_cr0, cr0 | 1ul << 29, GP, 0);
    expect("CR0 bit 32", set_cr0, cr0 | 1ul << 32, GP, 0);
    expect("PAE off in long mode", set_cr4, cr4 & ~0x20ul, GP, 0);
    expect("CR4 bit 15", set_cr4, cr4 | 1ul << 15, GP, 0);
    expect("CR4 bit 40", set_cr4, cr4 | 1ul << 40, GP, 0);
    expect("CR8 of 16", set_cr8, 16, GP, 0);
    expect("CR8 of 15", set_cr8, 15, NO_TRAP, 0);
    check("CR8", read_cr8(), 15);
    write_cr8(0);
    expect("CR3 bit 62", set_cr3, read_cr3() | 1ul << 62, GP, 0);
    expect("CR1", read_cr1, 0, UD, 0);
    expect("LME off in long mode", set_efer, rdmsr(MSR_EFER) & ~0x100ul, GP, 0);
    expect("EFER bit 60", set_efer, rdmsr(MSR_EFER) | 1ul << 60, GP, 0);
    expect("LSTAR not canonical", set_lstar, 0x800000000000ul, GP, 0);
    expect("an MSR nobody has", read_msr, 0x2fffffff, GP, 0);
}

static void debug_register_faults(void) {
    expect("DR7 bit 32", set_dr7, 1ul << 32 | 0x400, GP, 0);
    expect("DR0 any address", set_dr0, 0x123456789abcul, NO_TRAP, 0);
    expect("DR4 is DR6", read_dr4, 0, NO_TRAP, 0);
    write_cr4(read_cr4() | CR4_DE);
    expect("DR4 with DE", read_dr4, 0, UD, 0);
    write_cr4(read_cr4() & ~CR4_DE);
}

/* ---- Faults while delivering ---- */

/* A page fault whose gate's code segment is not present: a contributory one on top, so #DF. */
FUNCTION(touch, "movb (%0), %%al" ::"r"(a) : "rax")

static void double_fault(void) {
    use_ist(DF, 1);
    set_gate(PF, PHYSICAL(trap_stubs) + 16 * PF, KERNEL_CS, 0, 0x0e);
    expect("#PF, then #NP", touch, 0x10000000000ul, DF, 0);
    check("on IST 1", trap.frame_address, tss.ist[0] - sizeof(struct frame));
    reset_gate(PF);
    set_gate(GP, PHYSICAL(trap_stubs) + 16 * GP, KERNEL_CS, 0, 0x0e);
    expect("#GP, then #NP", touch, 0x800000000000ul, DF, 0);
    reset_gate(GP);
    set_gate(DE, PHYSICAL(trap_stubs) + 16 * DE, 0x1000, 0, 0x8e);
    expect("#DE, then #GP", divide, 0, DF, 0);
    reset_gate(DE);
    reset_gate(DF);
}

static void benign_then_fault(void) {
    use_ist(NP, 1);
    set_gate(UD, PHYSICAL(trap_stubs) + 16 * UD, KERNEL_CS, 0, 0x0e);
    expect("#UD, then #NP: one after the other", ud2, 0, NP, UD * 8 + 3);
    reset_gate(UD);
    reset_gate(NP);
}

static void far_transfer(void) {
    check("vector", try_call(far_to_32, 0), NO_TRAP);
    check("40h was INC", far_result, 0);
    check("back in 64-bit code", read_cr0() & 1, 1);
}

void program(void) {
    TEST(data_segments);
    TEST(stack_segments);
    TEST(system_segments);
    TEST(segments_on_return);
    TEST(exception_through_bad_gate);
    TEST(stacks);
    TEST(iret);
    TEST(iret_nt);
    TEST(iret_flags);
    TEST(user_refused);
    TEST(user_mode_instruction_prevention);
    TEST(user_popf);
    TEST(user_alignment);
    TEST(port_permissions);
    TEST(syscall_64);
    TEST(syscall_32);
    TEST(syscall_disabled);
    TEST(compatibility_mode);
    TEST(compatibility_addresses);
    TEST(far_transfer);
    TEST(decoding_faults);
    TEST(arithmetic_faults);
    TEST(coprocessor_absent);
    TEST(control_registers);
    TEST(debug_register_faults);
    TEST(double_fault);
    TEST(benign_then_fault);
}
