/*
 * Out of long mode and back: protected mode without paging, with 32-bit and
 * with PAE paging, segments with limits, real mode (modes.S).
 */
#include "runtime.h"

void visit_protected(const void *function);
void save_idt(void);
extern const char plain_protected[], paged_protected[], pae_protected[], segmented_protected[],
    enter_real[], real_code[], real_code_end[];
extern volatile uint32_t mode_result[8];
extern uint32_t two_level[1024], two_level_table[1024];
extern uint64_t pae_pointers[4], pae_directory[512], pae_table[512];

static void plain(void) {
    visit_protected(plain_protected);
    check("paging off, protection on", mode_result[0] & 0x80000001, 1);
    check("LMA", mode_result[1] & 0x500, 0);
    check("OF and SF", mode_result[2] & 0x880, 0x880);
    check("LEA wraps", mode_result[3], 1);
    check("LMA again", rdmsr(0xc0000080) & 0x500, 0x500);
}

static void two_levels(void) {
    *(volatile uint32_t *)test_page[0] = 0x11112222;
    two_level[0] = 0x83; /* 4 MiB as they are */
    two_level[0x40000000 >> 22] = (uint32_t)PHYSICAL(two_level_table) | 3;
    two_level_table[0] = (uint32_t)PHYSICAL(test_page[0]) | 3;
    visit_protected(paged_protected);
    check("read", mode_result[0], 0x11112222);
    check("written", *(volatile uint32_t *)&test_page[0][4], 0x5a5a5a5a);
    check("accessed, dirty", mode_result[1] & 0x60, 0x60);
    check("4 MiB page", mode_result[2] & 0x60, 0x60);
}

static void pae(void) {
    *(volatile uint32_t *)test_page[1] = 0x33334444;
    pae_pointers[0] = PHYSICAL(pae_directory) | 1;
    pae_directory[0] = 0x83; /* 2 MiB as they are */
    uint64_t *second = (uint64_t *)test_page[2];
    memset(second, 0, 4096);
    second[0] = PHYSICAL(pae_table) | 3;
    pae_pointers[1] = PHYSICAL(second) | 1;
    pae_table[0] = PHYSICAL(test_page[1]) | 3;
    visit_protected(pae_protected);
    check("read", mode_result[0], 0x33334444);
    check("written", *(volatile uint32_t *)&test_page[1][4], 0x6b6b6b6b);
    check("accessed, dirty", mode_result[1] & 0x60, 0x60);
}

static void segments(void) {
    uint64_t base = PHYSICAL(test_page[3]);
    *(volatile uint32_t *)&test_page[3][4] = 0x55667788;
    /* 1 KiB of data, byte-granular, 32-bit. */
    gdt[GDT_FREE / 8] =
        0x3ff | (base & 0xffffff) << 16 | 0x93ul << 40 | 0x4ul << 52 | (base >> 24 & 0xff) << 56;
    visit_protected(segmented_protected);
    check("base", mode_result[0], 0x55667788);
    check("written", *(volatile uint32_t *)&test_page[3][8], 0x12344321);
    check("LSL", mode_result[1], 0x3ff);
    check("LAR", mode_result[2] & 0xf0ff00, 0x409300);
    check("VERR", mode_result[3] & 0xff, 1);
}

static void real(void) {
    memcpy((void *)0x8000, real_code, (size_t)(real_code_end - real_code));
    memset((void *)0x9000, 0, 64);
    visit_protected(enter_real);
    const volatile uint16_t *words = (const volatile uint16_t *)0x9000;
    check("selector", words[0], 0x1234);
    check("shifted", *(volatile uint8_t *)0x12350, 0x77);
    check("wrapped offset", *(volatile uint8_t *)0x30, 0x66);
    check("IF in the handler", words[1] & 0x200, 0);
    check("IF after IRET", words[2] & 0x200, 0x200);
    check("PUSH of 2 bytes", words[3], 2);
    check("POP", words[4], 0x5678);
    check("far call", words[5], 0xfa12);
    check("#DE", words[6], 0xdddd);
    check("LOOP", words[7], 5);
    check("32-bit store", *(volatile uint32_t *)0x9010, 0x12345678);
    check("PE", *(volatile uint32_t *)0x9014 & 1, 0);
}

void program(void) {
    save_idt();
    TEST(plain);
    TEST(two_levels);
    TEST(pae);
    TEST(real);
    TEST(plain);
    TEST(segments);
}
