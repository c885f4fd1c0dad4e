/*
 * Runtime of the bare-metal test programs. A program defines program() and
 * calls TEST(function) for each of its tests; the runtime prints a line a
 * test to the debug port and ends through the exit port.
 *
 *     ok NAME
 *     FAIL NAME: WHAT: got 0x…, want 0x…
 *     skip NAME: REASON
 *     end
 *
 * Ports (the same as QEMU's isa-debugcon and isa-debug-exit, so that programs
 * run there too, without what needs the harness):
 *   E9h  a character
 *   F4h  4 bytes: the program ends; the value is the number of failures
 *   F8h  4 bytes: guest-physical address of a struct request, served before the
 *        OUT completes. A read answers REQUEST_MAGIC where there is a harness.
 */
#ifndef BAREMETAL_RUNTIME_H
#define BAREMETAL_RUNTIME_H

#define KERNEL_CS        0x08
#define KERNEL_DS        0x10
#define USER_CS32        0x1b
#define USER_DS          0x23
#define USER_CS          0x2b
#define TSS_SELECTOR     0x30
#define KERNEL_CS32      0x40
#define KERNEL_CS16      0x48
#define KERNEL_DS16      0x50
#define GDT_FREE         0x58 /* the first of the entries that tests may fill */
#define GDT_FREE_ENTRIES 8

#define NO_TRAP     0x100
#define VECTOR_OPEN 0x40 /* its gate has DPL 3 */

#include "harness.h"

#ifndef __ASSEMBLER__

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DE = 0,
    DB = 1,
    NMI = 2,
    BP = 3,
    OF = 4,
    BR = 5,
    UD = 6,
    NM = 7,
    DF = 8,
    TS = 10,
    NP = 11,
    SS = 12,
    GP = 13,
    PF = 14,
    AC = 17
};

/* ---- Reporting ---- */

void program(void);
void run_test(const char *name, void (*test)(void));
#define TEST(function) run_test(#function, function)
/* Inside a test. A failed check does not end it. */
void check(const char *what, uint64_t got, uint64_t want);
/* Ends the test as skipped (call and return). */
void skip(const char *reason);
void print(const char *text);
void print_hex(uint64_t value);
_Noreturn void finish(void);

/* ---- Traps ---- */

struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

/* The last trap that no handler took. */
extern struct trap {
    struct frame frame;
    uint64_t cr2, dr6;
    uint64_t frame_address;
    bool during_try; /* it landed */
} trap;

/* A vector's handler; it returns to where the trap came from. NULL: a trap lands, outside of a try
 * the program ends with a report. */
typedef void trap_handler(struct frame *frame);
void set_handler(unsigned vector, trap_handler *handler);

/* Calls function(argument). The vector of the trap that ended it, or NO_TRAP. */
unsigned try_call(void (*function)(uint64_t), uint64_t argument);
unsigned try_stack(void (*function)(uint64_t), uint64_t argument, uint64_t stack);

/* Defines a function for try_call: one asm statement; `a` is its argument. */
#define FUNCTION(name, ...)                                                                        \
    static void name(uint64_t a) {                                                                 \
        (void)a;                                                                                   \
        asm volatile(__VA_ARGS__);                                                                 \
    }
/* try_call, and checks the vector and (of a trap) the error code. */
void expect(const char *what, void (*function)(uint64_t), uint64_t argument, unsigned vector,
            uint64_t error);

struct iret_frame {
    uint64_t rip, cs, rflags, rsp, ss;
};
extern const char try_iret_instruction[];
unsigned try_iret(const struct iret_frame *frame, uint64_t argument);

struct gate {
    uint16_t offset0;
    uint16_t selector;
    uint8_t ist;
    uint8_t type; /* P, DPL, type */
    uint16_t offset1;
    uint32_t offset2;
    uint32_t zero;
};
extern struct gate idt[256];
extern const char trap_stubs[];
void set_gate(unsigned vector, uint64_t offset, uint16_t selector, unsigned ist, uint8_t type);
void reset_gate(unsigned vector);            /* as it was at start */
void use_ist(unsigned vector, unsigned ist); /* 1 or 2: stacks that are there */

extern uint64_t gdt[];
extern const char gdt_pointer[];

/* The n-th free entry of the GDT: flat, with this access byte. Answers its selector. */
uint64_t descriptor(unsigned n, unsigned access);
enum { DATA = 0x93, DATA_READ_ONLY = 0x91, CODE_ONLY = 0x99, CODE_READ = 0x9b, PRESENT = 0x80 };
/* Makes it 64-bit code. */
void set_long(unsigned n);

struct tss {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7];
    uint64_t reserved2;
    uint16_t reserved3;
    uint16_t io_map;
} __attribute__((packed));
extern struct tss tss;
#define TRAP_STACK_SIZE 8192
extern uint8_t trap_stack[TRAP_STACK_SIZE];   /* RSP0 points to its end */
extern uint8_t ist_stack[2][TRAP_STACK_SIZE]; /* IST1 and IST2 point to their ends */

/* ---- User mode ---- */

/* Copies code into a page that user mode may execute and runs it there at CPL 3, with a stack,
 * until it traps (code ends with UD2 when it is done). RDI holds the argument. */
unsigned run_user(const void *code, size_t size, uint64_t argument);
/* The same in compatibility mode (CS32; EDI holds the argument). */
unsigned run_user32(const void *code, size_t size, uint64_t argument);
extern uint8_t user_code[4096]; /* the page behind both addresses */
#define USER_CODE_VA   0x7f00000000ul
#define USER_CODE32_VA 0x70000000ul
#define USER_STACK_VA  0x7f00004000ul /* one page below it */
/* A piece of code to copy: its instructions as strings. */
#define CODE(name, instructions)                                                                   \
    asm(".pushsection .rodata\n" #name ":\n" instructions "\n" #name "_end:\n.popsection");        \
    extern const char name[], name##_end[]
#define CODE_SIZE(name) ((size_t)(name##_end - (name)))

/* ---- Paging: the 4 KiB page tables of a region for tests ---- */

#define PTE_P   1ul
#define PTE_W   2ul
#define PTE_U   4ul
#define PTE_PWT 8ul
#define PTE_PCD 0x10ul
#define PTE_A   0x20ul
#define PTE_D   0x40ul
#define PTE_PS  0x80ul
#define PTE_G   0x100ul
#define PTE_NX  0x8000000000000000ul

/* Pages from TEST_VA on, 2 MiB; all levels above allow everything. */
#define TEST_VA 0x8000000000ul
extern uint64_t boot_pml4[512], boot_pds[2048];
extern uint64_t test_pdpt[512], test_pd[512], test_pt[512];
void map(unsigned page, uint64_t pte); /* test_pt[page], and INVLPG */
extern uint8_t test_page[16][4096];    /* physical pages to map */
#define PHYSICAL(p) ((uint64_t)(uintptr_t)(p))

/* Another address space, the same but for the pages from TEST_VA on, which other_pt maps. */
extern uint64_t other_pml4[512], other_pt[512];
void build_other_space(void);

/* mov $value, %eax; ret: six bytes */
void put_function(uint8_t *at, uint32_t value);

/* n, or a hundredth of it where instructions take thousands of cycles: some hosts' KVM. */
unsigned many(unsigned n);

/* ---- The harness ---- */

bool has_harness(void);
uint32_t request(enum request_operation operation, uint64_t a, uint64_t b, uint64_t c);

/* ---- Instructions ---- */

static inline void outb(uint16_t port, uint8_t v) {
    asm volatile("outb %0, %1" ::"a"(v), "Nd"(port));
}
static inline void outw(uint16_t port, uint16_t v) {
    asm volatile("outw %0, %1" ::"a"(v), "Nd"(port));
}
static inline void outl(uint16_t port, uint32_t v) {
    asm volatile("outl %0, %1" ::"a"(v), "Nd"(port) : "memory");
}
static inline uint8_t inb(uint16_t port) {
    uint8_t v;
    asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline uint16_t inw(uint16_t port) {
    uint16_t v;
    asm volatile("inw %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline uint32_t inl(uint16_t port) {
    uint32_t v;
    asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

#define CONTROL_REGISTER(n)                                                                        \
    static inline uint64_t read_cr##n(void) {                                                      \
        uint64_t v;                                                                                \
        asm volatile("mov %%cr" #n ", %0" : "=r"(v));                                              \
        return v;                                                                                  \
    }                                                                                              \
    static inline void write_cr##n(uint64_t v) {                                                   \
        asm volatile("mov %0, %%cr" #n ::"r"(v) : "memory");                                       \
    }
CONTROL_REGISTER(0)
CONTROL_REGISTER(2)
CONTROL_REGISTER(3)
CONTROL_REGISTER(4)
CONTROL_REGISTER(8)

static inline uint64_t rdmsr(uint32_t msr) {
    uint32_t low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}
static inline void wrmsr(uint32_t msr, uint64_t v) {
    asm volatile("wrmsr" ::"c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline uint64_t rdtsc(void) {
    uint32_t low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}
static inline void invlpg(uint64_t va) {
    asm volatile("invlpg (%0)" ::"r"(va) : "memory");
}

struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};
void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);

struct cpuid cpuid(uint32_t leaf, uint32_t subleaf);
enum feature {
    HAS_PCID,
    HAS_INVPCID,
    HAS_SMEP,
    HAS_SMAP,
    HAS_GBPAGES,
    HAS_TSC_DEADLINE,
    HAS_X2APIC,
    HAS_UMIP
};
bool has(enum feature feature);

#endif
#endif
