#include "runtime.h"

struct trap trap;
struct gate idt[256] __attribute__((aligned(16)));
struct tss tss __attribute__((aligned(16)));
uint8_t trap_stack[TRAP_STACK_SIZE] __attribute__((aligned(16)));
uint8_t ist_stack[2][TRAP_STACK_SIZE] __attribute__((aligned(16)));
uint64_t test_pdpt[512] __attribute__((aligned(4096)));
uint64_t test_pd[512] __attribute__((aligned(4096)));
uint64_t test_pt[512] __attribute__((aligned(4096)));
uint8_t test_page[16][4096] __attribute__((aligned(4096)));

extern const char landing[];
extern uint64_t landing_rsp;

static trap_handler *handlers[256];

void *memcpy(void *to, const void *from, size_t size) {
    void *start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size)::"memory");
    return start;
}

void *memset(void *to, int value, size_t size) {
    void *start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return start;
}

/* ---- Reporting ---- */

static const char *test_name;
static unsigned test_failures, failures;
static const char *skipped;
enum { FAILURES_SHOWN = 6 };

void print(const char *text) {
    while (*text)
        outb(PORT_CHARACTER, (uint8_t)*text++);
}

void print_hex(uint64_t value) {
    print("0x");
    int shift = 60;
    while (shift > 0 && value >> shift == 0)
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        outb(PORT_CHARACTER, (uint8_t) "0123456789abcdef"[value >> shift & 15]);
}

void check(const char *what, uint64_t got, uint64_t want) {
    if (got == want || test_failures++ >= FAILURES_SHOWN)
        return;
    print("FAIL ");
    print(test_name);
    print(": ");
    print(what);
    print(": got ");
    print_hex(got);
    print(", want ");
    print_hex(want);
    print("\n");
}

void skip(const char *reason) {
    skipped = reason;
}

void run_test(const char *name, void (*test)(void)) {
    test_name = name;
    test_failures = 0;
    skipped = NULL;
    test();
    if (test_failures != 0) {
        failures++;
        return;
    }
    print(skipped ? "skip " : "ok ");
    print(name);
    if (skipped) {
        print(": ");
        print(skipped);
    }
    print("\n");
}

void finish(void) {
    print("end\n");
    outl(PORT_EXIT, failures);
    for (;;)
        asm volatile("cli; hlt");
}

/* ---- Traps ---- */

static void report_stray_trap(const struct frame *frame) {
    print("FAIL ");
    print(test_name ? test_name : "start");
    print(": stray trap ");
    print_hex(frame->vector);
    print(" error ");
    print_hex(frame->error);
    print(" rip ");
    print_hex(frame->rip);
    print(" cs ");
    print_hex(frame->cs);
    print(" rsp ");
    print_hex(frame->rsp);
    print(" cr2 ");
    print_hex(read_cr2());
    print("\n");
    failures++;
    finish();
}

void trap_dispatch(struct frame *frame);
void trap_dispatch(struct frame *frame) {
    trap_handler *handler = handlers[frame->vector];
    if (handler) {
        handler(frame);
        return;
    }
    if (landing_rsp == 0)
        report_stray_trap(frame);
    trap.frame = *frame;
    trap.frame_address = PHYSICAL(frame);
    if (frame->vector == PF)
        trap.cr2 = read_cr2();
    if (frame->vector == DB) {
        asm volatile("mov %%dr6, %0" : "=r"(trap.dr6));
        asm volatile("mov %0, %%dr6" ::"r"(0xffff0ff0ul));
    }
    frame->rax = frame->vector;
    frame->rip = PHYSICAL(landing);
    frame->cs = KERNEL_CS;
    frame->rflags = 2;
    frame->rsp = landing_rsp;
    frame->ss = KERNEL_DS;
}

void set_handler(unsigned vector, trap_handler *handler) {
    handlers[vector] = handler;
}

void set_gate(unsigned vector, uint64_t offset, uint16_t selector, unsigned ist, uint8_t type) {
    idt[vector] = (struct gate){
        .offset0 = (uint16_t)offset,
        .selector = selector,
        .ist = (uint8_t)ist,
        .type = type,
        .offset1 = (uint16_t)(offset >> 16),
        .offset2 = (uint32_t)(offset >> 32),
    };
}

void reset_gate(unsigned vector) {
    bool open = vector == VECTOR_OPEN || vector == BP;
    set_gate(vector, PHYSICAL(trap_stubs) + 16 * vector, KERNEL_CS, 0, open ? 0xee : 0x8e);
}

void use_ist(unsigned vector, unsigned ist) {
    set_gate(vector, PHYSICAL(trap_stubs) + 16 * vector, KERNEL_CS, ist, 0x8e);
}

uint64_t descriptor(unsigned n, unsigned access) {
    gdt[GDT_FREE / 8 + n] = 0x00cf00000000ffff | (uint64_t)access << 40;
    return GDT_FREE + 8 * n;
}

void set_long(unsigned n) {
    gdt[GDT_FREE / 8 + n] ^= 6ul << 52;
}

void expect(const char *what, void (*function)(uint64_t), uint64_t argument, unsigned vector,
            uint64_t error) {
    check(what, try_call(function, argument), vector);
    if (vector != NO_TRAP)
        check(what, trap.frame.error, error);
}

/* ---- Paging ---- */

void map(unsigned page, uint64_t pte) {
    test_pt[page] = pte;
    invlpg(TEST_VA + 4096ul * page);
}

uint64_t other_pml4[512] __attribute__((aligned(4096)));
static uint64_t other_pdpt[512] __attribute__((aligned(4096)));
static uint64_t other_pd[512] __attribute__((aligned(4096)));
uint64_t other_pt[512] __attribute__((aligned(4096)));

void build_other_space(void) {
    enum { ALL = PTE_P | PTE_W | PTE_U };
    memcpy(other_pml4, boot_pml4, sizeof other_pml4);
    other_pml4[TEST_VA >> 39] = PHYSICAL(other_pdpt) | ALL;
    other_pdpt[0] = PHYSICAL(other_pd) | ALL;
    other_pd[0] = PHYSICAL(other_pt) | ALL;
}

/* ---- Code ---- */

void put_function(uint8_t *at, uint32_t value) {
    at[0] = 0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

/* ---- User mode: pages of its own below the test region ---- */

static uint64_t user_pd[512] __attribute__((aligned(4096)));
static uint64_t user_pt[512] __attribute__((aligned(4096)));
uint8_t user_code[4096] __attribute__((aligned(4096)));
static uint8_t user_stack[4096] __attribute__((aligned(4096)));

static void map_user_pages(void) {
    uint64_t all = PTE_P | PTE_W | PTE_U;
    /* PML4[0] is shared with the identity map: PDPT[508] is at USER_CODE_VA. */
    uint64_t *pdpt = (uint64_t *)(boot_pml4[0] & ~0xffful);
    pdpt[USER_CODE_VA >> 30 & 511] = PHYSICAL(user_pd) | all;
    user_pd[0] = PHYSICAL(user_pt) | all;
    user_pt[0] = PHYSICAL(user_code) | all;
    user_pt[3] = PHYSICAL(user_stack) | all;
    /* The same for compatibility mode, below 4 GiB, in place of a 2 MiB page that nobody uses. */
    boot_pds[USER_CODE32_VA >> 21] = PHYSICAL(user_pt) | all;
    write_cr3(read_cr3());
}

static unsigned run(const void *code, size_t size, uint64_t argument, uint64_t va, uint16_t cs) {
    memcpy(user_code, code, size);
    struct iret_frame frame = {va, cs, 2, va + 0x4000, USER_DS};
    return try_iret(&frame, argument);
}

unsigned run_user(const void *code, size_t size, uint64_t argument) {
    return run(code, size, argument, USER_CODE_VA, USER_CS);
}

unsigned run_user32(const void *code, size_t size, uint64_t argument) {
    /* IRET would drop segments of DPL 0, and 32-bit code needs some. */
    asm volatile("mov %0, %%ds; mov %0, %%es" ::"r"(USER_DS));
    return run(code, size, argument, USER_CODE32_VA, USER_CS32);
}

/* ---- The harness ---- */

bool has_harness(void) {
    return inl(PORT_REQUEST) == REQUEST_MAGIC;
}

uint32_t request(enum request_operation operation, uint64_t a, uint64_t b, uint64_t c) {
    static volatile struct request r;
    r.operation = operation;
    r.a = a;
    r.b = b;
    r.c = c;
    r.answer = 0;
    outl(PORT_REQUEST, (uint32_t)PHYSICAL(&r));
    return r.answer;
}

/* ---- Processor ---- */

struct cpuid cpuid(uint32_t leaf, uint32_t subleaf) {
    struct cpuid c;
    asm volatile("cpuid"
                 : "=a"(c.eax), "=b"(c.ebx), "=c"(c.ecx), "=d"(c.edx)
                 : "a"(leaf), "c"(subleaf));
    return c;
}

bool has(enum feature feature) {
    switch (feature) {
    case HAS_PCID: return cpuid(1, 0).ecx >> 17 & 1;
    case HAS_X2APIC: return cpuid(1, 0).ecx >> 21 & 1;
    case HAS_TSC_DEADLINE: return cpuid(1, 0).ecx >> 24 & 1;
    case HAS_SMEP: return cpuid(7, 0).ebx >> 7 & 1;
    case HAS_INVPCID: return cpuid(7, 0).ebx >> 10 & 1;
    case HAS_SMAP: return cpuid(7, 0).ebx >> 20 & 1;
    case HAS_UMIP: return cpuid(7, 0).ecx >> 2 & 1;
    case HAS_GBPAGES: return cpuid(0x80000001, 0).edx >> 26 & 1;
    }
    return false;
}

static uint64_t cycles_of(uint64_t turns) {
    uint64_t start = rdtsc();
    asm volatile("1: dec %0; jnz 1b" : "+r"(turns)::"cc");
    return rdtsc() - start;
}

unsigned many(unsigned n) {
    enum { TURNS = 1000, CYCLES_EACH = 500, TRIES = 5 };
    static uint64_t least;
    for (unsigned i = 0; i < TRIES && (least == 0 || least > TURNS * CYCLES_EACH); i++) {
        uint64_t cycles = cycles_of(TURNS);
        if (least == 0 || cycles < least)
            least = cycles;
    }
    return least > TURNS * CYCLES_EACH ? n / 100 : n;
}

/* ---- Start ---- */

void runtime_init(void);
void runtime_init(void) {
    for (unsigned vector = 0; vector < 256; vector++)
        reset_gate(vector);
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, PHYSICAL(idt)};
    asm volatile("lidt %0" ::"m"(pointer));

    tss.rsp[0] = PHYSICAL(trap_stack) + TRAP_STACK_SIZE;
    for (unsigned i = 0; i < 2; i++)
        tss.ist[i] = PHYSICAL(ist_stack[i]) + TRAP_STACK_SIZE;
    tss.io_map = sizeof tss;
    uint64_t base = PHYSICAL(&tss);
    gdt[TSS_SELECTOR / 8] =
        (sizeof tss - 1) | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
    gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
    asm volatile("ltr %w0" ::"r"(TSS_SELECTOR));

    uint64_t all = PTE_P | PTE_W | PTE_U;
    test_pdpt[0] = PHYSICAL(test_pd) | all;
    test_pd[0] = PHYSICAL(test_pt) | all;
    boot_pml4[TEST_VA >> 39] = PHYSICAL(test_pdpt) | all;
    map_user_pages();
}
