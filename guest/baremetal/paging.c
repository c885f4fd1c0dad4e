/*
 * Paging: permissions at every level, error codes, CR2, accessed and dirty
 * bits, reserved bits, large and global pages, PCID (APM vol. 2, chapter 5).
 */
#include "runtime.h"

#define CR0_WP      0x10000ul
#define CR4_PGE     0x80ul
#define CR4_PCIDE   0x20000ul
#define CR4_SMEP    0x100000ul
#define CR4_SMAP    0x200000ul
#define MSR_EFER    0xc0000080u
#define EFER_NXE    0x800ul
#define MSR_GS_BASE 0xc0000101u
#define ALL         (PTE_P | PTE_W | PTE_U)

enum access { READ, WRITE, EXECUTE };
enum { RET = 0xc3, ERROR_P = 1, ERROR_W = 2, ERROR_U = 4, ERROR_RSVD = 8, ERROR_I = 16 };

/* ---- Accesses ---- */

static void read_byte(uint64_t a) {
    asm volatile("movb (%0), %%al" ::"r"(a) : "rax", "memory");
}
static void write_byte(uint64_t a) {
    asm volatile("movb $0xc3, (%0)" ::"r"(a) : "memory");
}
static void execute(uint64_t a) {
    asm volatile("call *%0" ::"r"(a) : "memory");
}
static void set_ac(void) {
    asm volatile("pushfq; orl $0x40000, (%%rsp); popfq" ::: "cc", "memory");
}
static void clear_ac(void) {
    asm volatile("pushfq; andl $~0x40000, (%%rsp); popfq" ::: "cc", "memory");
}
static void read_byte_ac(uint64_t a) {
    set_ac();
    read_byte(a);
    clear_ac();
}
static void write_byte_ac(uint64_t a) {
    set_ac();
    write_byte(a);
    clear_ac();
}

CODE(user_read, "movb (%rdi), %al\n ud2");
CODE(user_write, "movb $0xc3, (%rdi)\n ud2");
CODE(user_execute, "call *%rdi\n ud2");

static unsigned access_kernel(enum access access, uint64_t va) {
    static void (*const functions[])(uint64_t) = {read_byte, write_byte, execute};
    return try_call(functions[access], va);
}

/* NO_TRAP when the access went well. */
static unsigned access_user(enum access access, uint64_t va) {
    unsigned vector = access == READ    ? run_user(user_read, CODE_SIZE(user_read), va)
                      : access == WRITE ? run_user(user_write, CODE_SIZE(user_write), va)
                                        : run_user(user_execute, CODE_SIZE(user_execute), va);
    return vector == UD ? NO_TRAP : vector;
}

/* ---- The permission matrix ---- */

struct mode {
    bool user, wp, smep, smap, ac;
};

/* The error code that an access must raise, or -1. */
static int expected(uint64_t upper, uint64_t leaf, enum access access, const struct mode *mode) {
    bool w = upper & leaf & PTE_W, u = upper & leaf & PTE_U, nx = (upper | leaf) & PTE_NX;
    int code = (access == WRITE ? ERROR_W : 0) | (mode->user ? ERROR_U : 0) |
               (access == EXECUTE ? ERROR_I : 0);
    if (!(leaf & PTE_P))
        return code;
    bool refused = access == EXECUTE && nx;
    if (mode->user)
        refused |= !u || (access == WRITE && !w);
    else
        refused |= (access == WRITE && !w && mode->wp) || (access == EXECUTE && u && mode->smep) ||
                   (access != EXECUTE && u && mode->smap && !mode->ac);
    return refused ? code | ERROR_P : -1;
}

static void one_access(uint64_t upper, uint64_t leaf, enum access access, const struct mode *mode) {
    uint64_t va = TEST_VA + 0x1234;
    unsigned vector;
    if (mode->ac && !mode->user && access != EXECUTE)
        vector = try_call(access == READ ? read_byte_ac : write_byte_ac, va);
    else
        vector = mode->user ? access_user(access, va) : access_kernel(access, va);
    int want = expected(upper, leaf, access, mode);
    uint64_t label = leaf >> 63 << 12 | upper >> 63 << 13 | (leaf & 7) | (upper & 7) << 4 |
                     (uint64_t)access << 8 | (uint64_t)mode->user << 16 | (uint64_t)mode->wp << 17;
    /* What differs is told by its label: the check's values carry it above bit 32. */
    if (want < 0) {
        check("access allowed", label << 32 | vector, label << 32 | NO_TRAP);
        return;
    }
    check("vector", label << 32 | vector, label << 32 | PF);
    if (vector != PF)
        return;
    check("error code", label << 32 | trap.frame.error, label << 32 | (unsigned)want);
    check("cr2", trap.cr2, va);
}

static void matrix(const struct mode *mode) {
    static const uint64_t uppers[] = {ALL, PTE_P | PTE_U, PTE_P | PTE_W, ALL | PTE_NX};
    test_page[0][0x234] = RET;
    for (unsigned u = 0; u < 4; u++) {
        test_pd[0] = PHYSICAL(test_pt) | uppers[u];
        for (unsigned bits = 0; bits < 16; bits++) {
            uint64_t leaf = (bits & 7) | (bits & 8 ? PTE_NX : 0);
            map(1, PHYSICAL(test_page[0]) | leaf);
            for (enum access access = READ; access <= EXECUTE; access++)
                one_access(uppers[u], leaf, access, mode);
        }
    }
    test_pd[0] = PHYSICAL(test_pt) | ALL;
    map(1, 0);
}

static void supervisor_permissions(void) {
    matrix(&(struct mode){.wp = true});
}
static void user_permissions(void) {
    matrix(&(struct mode){.user = true, .wp = true});
}

static void supervisor_without_wp(void) {
    write_cr0(read_cr0() & ~CR0_WP);
    matrix(&(struct mode){.wp = false});
    write_cr0(read_cr0() | CR0_WP);
}

static void smep(void) {
    if (!has(HAS_SMEP))
        return skip("no SMEP");
    write_cr4(read_cr4() | CR4_SMEP);
    matrix(&(struct mode){.wp = true, .smep = true});
    write_cr4(read_cr4() & ~CR4_SMEP);
}

static void smap(void) {
    if (!has(HAS_SMAP))
        return skip("no SMAP");
    write_cr4(read_cr4() | CR4_SMAP);
    matrix(&(struct mode){.wp = true, .smap = true});
    matrix(&(struct mode){.wp = true, .smap = true, .ac = true});
    write_cr4(read_cr4() & ~CR4_SMAP);
}

/* Implicit supervisor accesses (here: to an LDT in a user page) heed SMAP whatever AC says. */
static void load_segment_ac(uint64_t selector) {
    set_ac();
    asm volatile("mov %0, %%fs" ::"r"((uint32_t)selector));
}

static void smap_implicit(void) {
    if (!has(HAS_SMAP))
        return skip("no SMAP");
    uint64_t base = TEST_VA + 0x1000;
    gdt[GDT_FREE / 8] = 0xf | (base & 0xffffff) << 16 | 0x82ul << 40 | (base >> 24 & 0xff) << 56;
    gdt[GDT_FREE / 8 + 1] = base >> 32;
    ((uint64_t *)test_page[0])[1] = 0x00cf93000000ffff;
    map(1, PHYSICAL(test_page[0]) | ALL);
    asm volatile("lldt %w0" ::"r"(GDT_FREE));
    check("without SMAP", try_call(load_segment_ac, 8 | 4), NO_TRAP);
    write_cr4(read_cr4() | CR4_SMAP);
    check("vector", try_call(load_segment_ac, 8 | 4), PF);
    check("error code", trap.frame.error, ERROR_P);
    check("cr2", trap.cr2, base + 8);
    write_cr4(read_cr4() & ~CR4_SMAP);
    asm volatile("lldt %w0" ::"r"(0));
    map(1, 0);
}

/* ---- Accessed and dirty ---- */

static uint64_t leaf_bits(void) {
    return test_pt[1] & (PTE_A | PTE_D);
}

static void accessed_dirty(void) {
    test_page[0][0x234] = RET;
    map(1, PHYSICAL(test_page[0]) | ALL);
    access_kernel(READ, TEST_VA + 0x1234);
    check("after a read", leaf_bits(), PTE_A);
    access_kernel(WRITE, TEST_VA + 0x1234);
    check("after a write", leaf_bits(), PTE_A | PTE_D);
    map(1, PHYSICAL(test_page[0]) | ALL);
    access_kernel(EXECUTE, TEST_VA + 0x1234);
    check("after a fetch", leaf_bits(), PTE_A);
    map(1, PHYSICAL(test_page[0]) | ALL);
    access_kernel(WRITE, TEST_VA + 0x1234);
    check("after a first write", leaf_bits(), PTE_A | PTE_D);
    map(1, PHYSICAL(test_page[0]) | PTE_P | PTE_U);
    check("vector", access_kernel(WRITE, TEST_VA + 0x1234), PF);
    check("dirty after a refused write", leaf_bits() & PTE_D, 0);
    map(1, 0);
}

static void accessed_upper(void) {
    test_pd[0] = PHYSICAL(test_pt) | ALL;
    test_pdpt[0] = PHYSICAL(test_pd) | ALL;
    boot_pml4[TEST_VA >> 39] = PHYSICAL(test_pdpt) | ALL;
    write_cr3(read_cr3());
    map(1, PHYSICAL(test_page[0]) | ALL);
    access_kernel(WRITE, TEST_VA + 0x1234);
    check("page directory", test_pd[0] & (PTE_A | PTE_D), PTE_A);
    check("directory pointers", test_pdpt[0] & (PTE_A | PTE_D), PTE_A);
    check("level 4", boot_pml4[TEST_VA >> 39] & (PTE_A | PTE_D), PTE_A);
    map(1, 0);
}

/* ---- Reserved bits ---- */

static void refused_as_reserved(const char *what, enum access access) {
    int code = ERROR_P | ERROR_RSVD | (access == WRITE ? ERROR_W : 0);
    check(what, access_kernel(access, TEST_VA + 0x1234), PF);
    check(what, trap.frame.error, (unsigned)code);
    check(what, trap.cr2, TEST_VA + 0x1234);
}

static void reserved_bits(void) {
    unsigned bits = cpuid(0x80000008, 0).eax & 0xff;
    if (bits < 52) {
        map(1, PHYSICAL(test_page[0]) | ALL | 1ul << 51);
        refused_as_reserved("address bit 51", READ);
        refused_as_reserved("address bit 51", WRITE);
        map(1, PHYSICAL(test_page[0]) | ALL | 1ul << bits);
        refused_as_reserved("the first address bit too many", READ);
    }
    map(1, PHYSICAL(test_page[0]) | ALL);
    test_pd[0] = 0x2000 | ALL | PTE_PS;
    write_cr3(read_cr3());
    refused_as_reserved("bit 13 of a 2 MiB page", READ);
    test_pd[0] = PHYSICAL(test_pt) | ALL;
    boot_pml4[TEST_VA >> 39] |= PTE_PS;
    write_cr3(read_cr3());
    refused_as_reserved("bit 7 of level 4", READ);
    boot_pml4[TEST_VA >> 39] &= ~PTE_PS;
    write_cr3(read_cr3());
    map(1, 0);
}

/* Not present wins over reserved bits. */
static void reserved_not_present(void) {
    map(1, (PHYSICAL(test_page[0]) | 1ul << 51 | PTE_NX) & ~PTE_P);
    check("vector", access_kernel(READ, TEST_VA + 0x1234), PF);
    check("error code", trap.frame.error, 0);
    map(1, 0);
}

static void nx_without_nxe(void) {
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_NXE);
    map(1, PHYSICAL(test_page[0]) | ALL | PTE_NX);
    refused_as_reserved("bit 63 without NXE", READ);
    map(1, 0);
    check("vector", access_kernel(EXECUTE, TEST_VA + 0x1234), PF);
    check("no I bit without NXE", trap.frame.error, has(HAS_SMEP) ? trap.frame.error : 0);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
}

/* ---- Addresses ---- */

static void push_there(uint64_t a) {
    asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; push %%rax; mov %%rbx, %%rsp" ::"r"(a) : "rbx");
}
static void jump_there(uint64_t a) {
    asm volatile("jmp *%0" ::"r"(a));
}

static void read_gs(uint64_t offset) {
    asm volatile("movb %%gs:(%0), %%al" ::"r"(offset) : "rax", "memory");
}

/* AMD's processors want the offset canonical, not just the sum. */
static void offset_not_canonical(void) {
    wrmsr(MSR_GS_BASE, 0x1000);
    check("sum not mapped", try_call(read_gs, 0xffff800000000000ul), PF);
    check("offset below the hole's end", try_call(read_gs, 0xffff7ffffffff800ul), GP);
    check("error code", trap.frame.error, 0);
    wrmsr(MSR_GS_BASE, 0);
}

static void not_canonical(void) {
    uint64_t bad = 0x0000800000000000ul;
    check("read", try_call(read_byte, bad), GP);
    check("error code", trap.frame.error, 0);
    check("write below the hole's end", try_call(write_byte, 0xffff7ffffffffffful), GP);
    use_ist(SS, 1); /* the stack at hand is no place for a frame */
    check("stack", try_call(push_there, bad + 0x1000), SS);
    check("error code", trap.frame.error, 0);
    reset_gate(SS);
    check("jump", try_call(jump_there, bad), GP);
    check("highest address", try_call(read_byte, ~0ul), PF);
    check("cr2", trap.cr2, ~0ul);
}

static void write_eight(uint64_t a) {
    *(volatile uint64_t *)a = 0x1122334455667788ul;
}
static void add_eight(uint64_t a) {
    asm volatile("addq $1, (%0)" ::"r"(a) : "memory", "cc");
}

/* An access into a second page that is not there: CR2 is that page's first byte, nothing is
 * written. */
static void across_pages(void) {
    map(1, PHYSICAL(test_page[0]) | ALL);
    map(2, 0);
    *(volatile uint64_t *)&test_page[0][0xff8] = 0;
    check("vector", try_call(write_eight, TEST_VA + 0x1ffd), PF);
    check("cr2", trap.cr2, TEST_VA + 0x2000);
    check("error code", trap.frame.error, ERROR_W);
    check("bytes", *(volatile uint64_t *)&test_page[0][0xff8], 0);
    check("vector", try_call(add_eight, TEST_VA + 0x1ffc), PF);
    check("cr2", trap.cr2, TEST_VA + 0x2000);
    map(2, PHYSICAL(test_page[2]) | PTE_P);
    check("vector", try_call(add_eight, TEST_VA + 0x1ffc), PF);
    check("error code", trap.frame.error, ERROR_P | ERROR_W);
    check("bytes", *(volatile uint64_t *)&test_page[0][0xff8], 0);
    map(2, PHYSICAL(test_page[2]) | ALL);
    check("vector", try_call(write_eight, TEST_VA + 0x1ffd), NO_TRAP);
    check("first part", *(volatile uint64_t *)&test_page[0][0xff8], 0x6677880000000000ul);
    check("second part", *(volatile uint64_t *)&test_page[2][0] & 0xffffffffff, 0x1122334455);
    map(1, 0);
    map(2, 0);
}

/* An instruction that begins in one page and ends in the next, which is not there. */
static void fetch_across_pages(void) {
    map(1, PHYSICAL(test_page[0]) | ALL);
    map(2, 0);
    memcpy(&test_page[0][0xffe], "\x48\xb8", 2); /* mov imm64, %rax */
    check("vector", access_kernel(EXECUTE, TEST_VA + 0x1ffe), PF);
    check("cr2", trap.cr2, TEST_VA + 0x2000);
    check("rip", trap.frame.rip, TEST_VA + 0x1ffe);
    check("error code", trap.frame.error & ~(uint64_t)ERROR_I, 0);
    memcpy(test_page[2], "\1\2\3\4\5\6\7\10\xc3", 9);
    map(2, PHYSICAL(test_page[2]) | ALL);
    check("vector", access_kernel(EXECUTE, TEST_VA + 0x1ffe), NO_TRAP);
    map(1, 0);
    map(2, 0);
}

/* ---- Large, global, tagged ---- */

static uint64_t read_u64(uint64_t a) {
    return *(volatile uint64_t *)a;
}

static void large_pages(void) {
    *(volatile uint64_t *)test_page[3] = 0x1111;
    uint64_t physical = PHYSICAL(test_page[3]), offset = physical & 0x1fffff;
    test_pd[1] = (physical & ~0x1ffffful) | ALL | PTE_PS;
    uint64_t va = TEST_VA + 0x200000 + offset;
    check("2 MiB page", read_u64(va), 0x1111);
    check("accessed", test_pd[1] & (PTE_A | PTE_D), PTE_A);
    *(volatile uint64_t *)va = 0x2222;
    check("written", *(volatile uint64_t *)test_page[3], 0x2222);
    check("dirty", test_pd[1] & (PTE_A | PTE_D), PTE_A | PTE_D);
    test_pd[1] = (physical & ~0x1ffffful) | PTE_P | PTE_U | PTE_PS;
    invlpg(va);
    check("read-only 2 MiB page", access_kernel(WRITE, va), PF);
    check("error code", trap.frame.error, ERROR_P | ERROR_W);
    test_pd[1] = 0;
    invlpg(va);
    check("gone", access_kernel(READ, va), PF);
}

static void gigabyte_pages(void) {
    if (!has(HAS_GBPAGES))
        return skip("no 1 GiB pages");
    *(volatile uint64_t *)test_page[3] = 0x3333;
    test_pdpt[1] = 0 | ALL | PTE_PS;
    uint64_t va = TEST_VA + (1ul << 30) + PHYSICAL(test_page[3]);
    check("1 GiB page", read_u64(va), 0x3333);
    check("accessed", test_pdpt[1] & (PTE_A | PTE_D), PTE_A);
    *(volatile uint64_t *)va = 0x4444;
    check("dirty", test_pdpt[1] & (PTE_A | PTE_D), PTE_A | PTE_D);
    test_pdpt[1] = 0x2000 | ALL | PTE_PS;
    invlpg(va);
    check("reserved bit 13", access_kernel(READ, va), PF);
    check("error code", trap.frame.error, ERROR_P | ERROR_RSVD);
    test_pdpt[1] = 0;
    invlpg(va);
}

static void set_pages(void) {
    *(volatile uint64_t *)test_page[0] = 0xaaaa;
    *(volatile uint64_t *)test_page[1] = 0xbbbb;
}

static void global_pages(void) {
    set_pages();
    write_cr4(read_cr4() | CR4_PGE);
    uint64_t va = TEST_VA + 0x1000;
    map(1, PHYSICAL(test_page[0]) | ALL | PTE_G);
    check("first", read_u64(va), 0xaaaa);
    map(1, PHYSICAL(test_page[1]) | ALL | PTE_G);
    check("after INVLPG", read_u64(va), 0xbbbb);
    test_pt[1] = PHYSICAL(test_page[0]) | ALL | PTE_G;
    write_cr4(read_cr4() & ~CR4_PGE);
    write_cr4(read_cr4() | CR4_PGE);
    check("after a change of CR4.PGE", read_u64(va), 0xaaaa);
    map(1, PHYSICAL(test_page[0]) | ALL);
    check("plain", read_u64(va), 0xaaaa);
    test_pt[1] = PHYSICAL(test_page[1]) | ALL;
    write_cr3(read_cr3());
    check("plain after a load of CR3", read_u64(va), 0xbbbb);
    write_cr4(read_cr4() & ~CR4_PGE);
    map(1, 0);
}

/* From not present to present: no flush is asked for. */
static void made_present(void) {
    set_pages();
    uint64_t va = TEST_VA + 0x1000;
    map(1, 0);
    check("vector", access_kernel(READ, va), PF);
    test_pt[1] = PHYSICAL(test_page[0]) | ALL;
    check("now there", access_kernel(READ, va), NO_TRAP);
    test_pt[1] = 0;
    invlpg(va);
    check("gone", access_kernel(READ, va), PF);
}

static void set_cr3(uint64_t v) {
    write_cr3(v);
}
static void set_cr4(uint64_t v) {
    write_cr4(v);
}

static void invpcid(uint64_t type, uint64_t pcid, uint64_t va) {
    struct {
        uint64_t pcid, va;
    } descriptor = {pcid, va};
    asm volatile("invpcid %0, %1" ::"m"(descriptor), "r"(type) : "memory");
}

static void pcid(void) {
    if (!has(HAS_PCID))
        return skip("no PCID");
    uint64_t cr3 = read_cr3(), keep = 1ul << 63, va = TEST_VA + 0x1000;
    check("PCIDE with CR3[11:0] set",
          (write_cr3(cr3 | 0x18), try_call(set_cr4, read_cr4() | CR4_PCIDE)), GP);
    write_cr3(cr3);
    check("PCIDE", try_call(set_cr4, read_cr4() | CR4_PCIDE), NO_TRAP);
    set_pages();
    map(1, PHYSICAL(test_page[0]) | ALL);
    check("in 0", read_u64(va), 0xaaaa);
    write_cr3(cr3 | 1);
    check("in 1", read_u64(va), 0xaaaa);
    test_pt[1] = PHYSICAL(test_page[1]) | ALL;
    write_cr3(cr3 | 1);
    check("a load of CR3 flushes its own", read_u64(va), 0xbbbb);
    write_cr3(cr3);
    check("in 0 after its flush", read_u64(va), 0xbbbb);
    write_cr3(cr3 | 1 | keep);
    check("bit 63 reads as 0", read_cr3(), cr3 | 1);
    map(1, PHYSICAL(test_page[0]) | ALL);
    check("INVLPG in 1", read_u64(va), 0xaaaa);
    if (has(HAS_INVPCID)) {
        for (uint64_t type = 0; type < 4; type++) {
            test_pt[1] = PHYSICAL(test_page[type & 1 ? 0 : 1]) | ALL;
            invpcid(type, type < 2 ? 1 : 0, type == 0 ? va : 0);
            check("after INVPCID", type << 32 | read_u64(va),
                  type << 32 | (type & 1 ? 0xaaaa : 0xbbbb));
        }
    }
    check("bit 63 is not an address", try_call(set_cr3, cr3), NO_TRAP);
    write_cr4(read_cr4() & ~CR4_PCIDE);
    check("bit 63 without PCIDE", try_call(set_cr3, cr3 | keep), GP);
    map(1, 0);
}

static void bad_invpcid_type(uint64_t type) {
    invpcid(type, 0, 0);
}
static void bad_invpcid_pcid(uint64_t pcid_value) {
    invpcid(1, pcid_value, 0);
}

static void invpcid_faults(void) {
    if (!has(HAS_INVPCID))
        return skip("no INVPCID");
    check("type 4", try_call(bad_invpcid_type, 4), GP);
    check("PCID of 13 bits", try_call(bad_invpcid_pcid, 0x1000), GP);
    check("PCID 1 without PCIDE", try_call(bad_invpcid_pcid, 1), GP);
}

void program(void) {
    TEST(supervisor_permissions);
    TEST(user_permissions);
    TEST(supervisor_without_wp);
    TEST(smep);
    TEST(smap);
    TEST(smap_implicit);
    TEST(accessed_dirty);
    TEST(accessed_upper);
    TEST(reserved_bits);
    TEST(reserved_not_present);
    TEST(nx_without_nxe);
    TEST(not_canonical);
    TEST(offset_not_canonical);
    TEST(across_pages);
    TEST(fetch_across_pages);
    TEST(large_pages);
    TEST(gigabyte_pages);
    TEST(global_pages);
    TEST(made_present);
    TEST(pcid);
    TEST(invpcid_faults);
}
