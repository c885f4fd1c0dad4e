/*
 * What the system sees of floating point and extended state: CR0 and CR4's
 * switches, XCR0, XSAVE areas, unmasked exceptions (APM vol. 2, chapter 11).
 */
#include "runtime.h"

#define CR0_EM         4ul
#define CR0_TS         8ul
#define CR4_OSFXSR     0x200ul
#define CR4_OSXMMEXCPT 0x400ul
#define CR4_OSXSAVE    0x40000ul
enum { MF = 16, XM = 19 };

static uint8_t area[1024] __attribute__((aligned(64)));

FUNCTION(sse, "xorps %%xmm0, %%xmm0" ::)
FUNCTION(mmx, "movd %%eax, %%mm0; emms" ::)
FUNCTION(ldmxcsr, "ldmxcsr %0" ::"m"(*(uint32_t *)a))
FUNCTION(fxsave, "fxsave (%0)" ::"r"(a) : "memory")
FUNCTION(clear_ts, "clts")
FUNCTION(xgetbv, "xgetbv" ::"c"((uint32_t)a) : "rax", "rdx")
FUNCTION(xsetbv, "xsetbv" ::"c"((uint32_t)(a >> 32)), "a"((uint32_t)a), "d"(0))
FUNCTION(xsave, "xsave (%0)" ::"r"(a), "a"(7), "d"(0) : "memory")
FUNCTION(xrstor, "xrstor (%0)" ::"r"(a), "a"(7), "d"(0))
FUNCTION(vex, "vxorps %%ymm1, %%ymm1, %%ymm1" ::)
FUNCTION(divide_sse, "ldmxcsr %0; xorps %%xmm1, %%xmm1; divss %%xmm1, %%xmm1" ::"m"(*(uint32_t *)a))

static void sse_switches(void) {
    uint64_t cr0 = read_cr0(), cr4 = read_cr4();
    write_cr4(cr4 & ~CR4_OSFXSR);
    expect("without OSFXSR", sse, 0, UD, 0);
    write_cr4(cr4 | CR4_OSFXSR);
    expect("with it", sse, 0, NO_TRAP, 0);
    write_cr0(cr0 | CR0_TS);
    expect("TS", sse, 0, NM, 0);
    expect("TS, MMX", mmx, 0, NM, 0);
    expect("TS, FXSAVE", fxsave, PHYSICAL(area), NM, 0);
    expect("CLTS", clear_ts, 0, NO_TRAP, 0);
    check("TS", read_cr0() & CR0_TS, 0);
    write_cr0(cr0 | CR0_EM);
    expect("EM", sse, 0, UD, 0);
    expect("EM, MMX", mmx, 0, UD, 0);
    write_cr0(cr0);
    expect("FXSAVE not on 16 bytes", fxsave, PHYSICAL(area) + 8, GP, 0);
    uint32_t bad = 0x1f80 | 1u << 31, good = 0x1f80;
    expect("reserved bit of MXCSR", ldmxcsr, PHYSICAL(&bad), GP, 0);
    expect("MXCSR", ldmxcsr, PHYSICAL(&good), NO_TRAP, 0);
}

FUNCTION(divide_by_zero, "fninit; fldcw %0; fld1; fldz; fdivrp; nop; fwait" ::"m"(*(uint16_t *)a))
FUNCTION(divide_by_zero_masked, "fninit; fld1; fldz; fdivrp; fwait; fninit" ::)
FUNCTION(clear_x87, "fninit")

static void x87_exceptions(void) {
    uint16_t zero_divide = 0x37b;
    expect("masked", divide_by_zero_masked, 0, NO_TRAP, 0);
    check("unmasked: #MF", try_call(divide_by_zero, PHYSICAL(&zero_divide)), MF);
    check("at the WAIT", *(volatile uint8_t *)trap.frame.rip, 0x9b);
    expect("FNINIT does not wait", clear_x87, 0, NO_TRAP, 0);
}

static void sse_exceptions(void) {
    uint32_t invalid = 0x1f80 & ~0x80u, good = 0x1f80; /* IM clear */
    uint64_t cr4 = read_cr4();
    write_cr4(cr4 | CR4_OSFXSR | CR4_OSXMMEXCPT);
    check("#XM", try_call(divide_sse, PHYSICAL(&invalid)), XM);
    check("at the instruction", *(volatile uint16_t *)trap.frame.rip & 0xff, 0xf3);
    uint32_t mxcsr;
    asm volatile("stmxcsr %0" : "=m"(mxcsr));
    check("IE", mxcsr & 0x3f, 1);
    write_cr4((cr4 | CR4_OSFXSR) & ~CR4_OSXMMEXCPT);
    check("without OSXMMEXCPT", try_call(divide_sse, PHYSICAL(&invalid)), UD);
    write_cr4(cr4);
    expect("MXCSR", ldmxcsr, PHYSICAL(&good), NO_TRAP, 0);
}

static bool has_xsave(void) {
    return cpuid(1, 0).ecx >> 26 & 1;
}

static void xcr0(void) {
    if (!has_xsave())
        return skip("no XSAVE");
    uint64_t cr4 = read_cr4();
    bool avx = cpuid(1, 0).ecx >> 28 & 1;
    write_cr4(cr4 & ~CR4_OSXSAVE);
    expect("XGETBV without OSXSAVE", xgetbv, 0, UD, 0);
    expect("XSAVE without OSXSAVE", xsave, PHYSICAL(area), UD, 0);
    check("CPUID.OSXSAVE", cpuid(1, 0).ecx >> 27 & 1, 0);
    write_cr4(cr4 | CR4_OSFXSR | CR4_OSXSAVE);
    check("CPUID.OSXSAVE", cpuid(1, 0).ecx >> 27 & 1, 1);
    expect("XGETBV", xgetbv, 0, NO_TRAP, 0);
    expect("XGETBV of 5", xgetbv, 5, GP, 0);
    expect("XCR0 without x87", xsetbv, 2, GP, 0);
    expect("XCR0: AVX without SSE", xsetbv, 5, GP, 0);
    expect("XCR0: reserved", xsetbv, 1 | 1u << 31, GP, 0);
    expect("XCR5", xsetbv, 5ul << 32 | 1, GP, 0);
    expect("XCR0: SSE", xsetbv, 3, NO_TRAP, 0);
    check("area in use", cpuid(0xd, 0).ebx, 576);
    if (avx) {
        expect("AVX while off", vex, 0, UD, 0);
        expect("XCR0: AVX", xsetbv, 7, NO_TRAP, 0);
        check("area in use", cpuid(0xd, 0).ebx, 832);
        expect("AVX", vex, 0, NO_TRAP, 0);
        write_cr0(read_cr0() | CR0_TS);
        expect("AVX with TS", vex, 0, NM, 0);
        write_cr0(read_cr0() & ~CR0_TS);
    }
}

static void xsave_areas(void) {
    if (!has_xsave())
        return skip("no XSAVE");
    uint64_t cr4 = read_cr4();
    write_cr4(cr4 | CR4_OSFXSR | CR4_OSXSAVE);
    memset(area, 0, sizeof area);
    expect("not on 64 bytes", xsave, PHYSICAL(area) + 16, GP, 0);
    asm volatile("fninit; fld1");
    expect("XSAVE", xsave, PHYSICAL(area), NO_TRAP, 0);
    check("x87 in use", area[512] & 1, 1);
    check("ST(0)", *(volatile uint64_t *)&area[32], 0x8000000000000000);
    expect("XRSTOR", xrstor, PHYSICAL(area), NO_TRAP, 0);
    area[512 + 7] = 0x40;
    expect("a component nobody has", xrstor, PHYSICAL(area), GP, 0);
    area[512 + 7] = 0;
    area[512 + 16] = 1;
    expect("reserved byte of the header", xrstor, PHYSICAL(area), GP, 0);
    area[512 + 16] = 0;
    *(uint32_t *)&area[24] = 1u << 31;
    area[512] |= 2;
    expect("reserved bit of MXCSR", xrstor, PHYSICAL(area), GP, 0);
    write_cr4(cr4);
}

void program(void) {
    TEST(x87_exceptions);
    TEST(sse_switches);
    TEST(sse_exceptions);
    TEST(xcr0);
    TEST(xsave_areas);
}
