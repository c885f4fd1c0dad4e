/* STAC, CLAC and SMAP's switch. */
#include "runtime.h"

#define CR4_SMAP  0x200000ul
#define RFLAGS_AC 0x40000ul

static void stac_read_clac(uint64_t a) {
    asm volatile("stac; movb (%0), %%al; clac" ::"r"(a) : "rax", "memory");
}
static void clac_read(uint64_t a) {
    asm volatile("clac; movb (%0), %%al" ::"r"(a) : "rax", "memory");
}

static uint64_t flags(void) {
    uint64_t v;
    asm volatile("pushfq; popq %0" : "=r"(v)::"memory");
    return v;
}

static void stac_and_clac(void) {
    if (!has(HAS_SMAP))
        return skip("no SMAP");
    asm volatile("stac" ::: "cc", "memory");
    check("AC after STAC", flags() & RFLAGS_AC, RFLAGS_AC);
    asm volatile("clac" ::: "cc", "memory");
    check("AC after CLAC", flags() & RFLAGS_AC, 0);
    map(1, PHYSICAL(test_page[0]) | PTE_P | PTE_W | PTE_U);
    write_cr4(read_cr4() | CR4_SMAP);
    check("between STAC and CLAC", try_call(stac_read_clac, TEST_VA + 0x1000), NO_TRAP);
    check("after CLAC", try_call(clac_read, TEST_VA + 0x1000), PF);
    write_cr4(read_cr4() & ~CR4_SMAP);
    check("SMAP off", try_call(clac_read, TEST_VA + 0x1000), NO_TRAP);
}

CODE(user_stac, "stac\n ud2");

static void user_mode(void) {
    if (!has(HAS_SMAP))
        return skip("no SMAP");
    check("STAC at CPL 3", run_user(user_stac, CODE_SIZE(user_stac), 0), UD);
    check("rip", trap.frame.rip, USER_CODE_VA);
}

void program(void) {
    TEST(stac_and_clac);
    TEST(user_mode);
}
