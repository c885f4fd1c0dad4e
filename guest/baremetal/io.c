/* Port and memory-mapped accesses: sizes, alignment, strings, read-modify-write, ROM, nothing. */
#include "runtime.h"

static struct logged_access entries[64];

/* The accesses since the last time. */
static unsigned take_log(void) {
    return request(REQUEST_LOG, PHYSICAL(entries), 64, 0);
}

static uint64_t pattern(uint64_t offset, unsigned size) {
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)TEST_PATTERN(offset + i) << 8 * i;
    return value;
}

static void check_entry(const char *what, unsigned n, uint64_t address, unsigned size, bool write,
                        uint64_t value) {
    check(what, entries[n].address, address);
    check(what, entries[n].size, size);
    check(what, entries[n].write, write);
    check(what, entries[n].value, value);
}

/* ---- Ports ---- */

static void port_reads(void) {
    take_log();
    check("byte", inb(TEST_PORTS + 1), pattern(1, 1));
    check("word", inw(TEST_PORTS + 2), pattern(2, 2));
    check("dword", inl(TEST_PORTS + 4), pattern(4, 4));
    check("word at an odd port", inw(TEST_PORTS + 7), pattern(7, 2));
    check("dword at an odd port", inl(TEST_PORTS + 9), pattern(9, 4));
    check("accesses", take_log(), 5);
    check_entry("byte", 0, TEST_PORTS + 1, 1, false, pattern(1, 1));
    check_entry("word", 1, TEST_PORTS + 2, 2, false, pattern(2, 2));
    check_entry("dword", 2, TEST_PORTS + 4, 4, false, pattern(4, 4));
    check_entry("odd word", 3, TEST_PORTS + 7, 2, false, pattern(7, 2));
    check_entry("odd dword", 4, TEST_PORTS + 9, 4, false, pattern(9, 4));
}

static void port_writes(void) {
    take_log();
    outb(TEST_PORTS, 0x12);
    outw(TEST_PORTS + 2, 0x3456);
    outl(TEST_PORTS + 4, 0x789abcde);
    check("accesses", take_log(), 3);
    check_entry("byte", 0, TEST_PORTS, 1, true, 0x12);
    check_entry("word", 1, TEST_PORTS + 2, 2, true, 0x3456);
    check_entry("dword", 2, TEST_PORTS + 4, 4, true, 0x789abcde);
}

/* IN keeps or clears the rest of RAX as other instructions do. */
static void port_registers(void) {
    uint64_t rax = 0x1122334455667788;
    asm volatile("inb %%dx, %%al" : "+a"(rax) : "d"(TEST_PORTS));
    check("byte", rax, 0x1122334455667700 | pattern(0, 1));
    rax = 0x1122334455667788;
    asm volatile("inw %%dx, %%ax" : "+a"(rax) : "d"(TEST_PORTS));
    check("word", rax, 0x1122334455660000 | pattern(0, 2));
    rax = 0x1122334455667788;
    asm volatile("inl %%dx, %%eax" : "+a"(rax) : "d"(TEST_PORTS));
    check("dword", rax, pattern(0, 4));
}

static void port_nobody(void) {
    check("byte", inb(0x5100), 0xff);
    check("word", inw(0x5100), 0xffff);
    check("dword", inl(0x5100), 0xffffffff);
    outl(0x5100, 0);
    /* Over the end of a range: a byte at a time. */
    check("over the end", inw(TEST_PORTS + TEST_PORTS_COUNT - 1),
          0xff00 | pattern(TEST_PORTS_COUNT - 1, 1));
}

static void port_strings(void) {
    take_log();
    const uint8_t *from = (const uint8_t *)"abcdefgh";
    uint64_t count = 3;
    asm volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(TEST_PORTS) : "memory");
    check("count left", count, 0);
    count = 2;
    asm volatile("rep outsw" : "+S"(from), "+c"(count) : "d"(TEST_PORTS + 2) : "memory");
    check("accesses", take_log(), 5);
    check_entry("first", 0, TEST_PORTS, 1, true, 'a');
    check_entry("third", 2, TEST_PORTS, 1, true, 'c');
    check_entry("word", 4, TEST_PORTS + 2, 2, true, 'f' | 'g' << 8);

    uint8_t *to = test_page[0];
    count = 4;
    asm volatile("rep insl" : "+D"(to), "+c"(count) : "d"(TEST_PORTS + 4) : "memory");
    check("end", PHYSICAL(to), PHYSICAL(test_page[0]) + 16);
    for (unsigned i = 0; i < 16; i += 4)
        check("dword", *(volatile uint32_t *)&test_page[0][i], pattern(4, 4));
    to = test_page[0] + 7;
    count = 4;
    asm volatile("std; rep insb; cld" : "+D"(to), "+c"(count) : "d"(TEST_PORTS + 1) : "memory");
    check("backwards", PHYSICAL(to), PHYSICAL(test_page[0]) + 3);
    check("bytes", *(volatile uint32_t *)&test_page[0][4], pattern(1, 1) * 0x01010101);
    count = 0;
    to = NULL;
    asm volatile("rep insb" : "+D"(to), "+c"(count) : "d"(TEST_PORTS) : "memory");
    check("count of 0", PHYSICAL(to), 0);
}

/* REP INSB into a page that is not there: registers say how far it came. */
FUNCTION(ins_over_the_end, "mov $64, %%ecx; mov %0, %%rdi; mov %1, %%edx; rep insb" ::"r"(a),
         "i"(TEST_PORTS)
         : "rcx", "rdi", "rdx", "memory")

static void port_string_fault(void) {
    map(1, PHYSICAL(test_page[1]) | PTE_P | PTE_W);
    map(2, 0);
    check("vector", try_call(ins_over_the_end, TEST_VA + 0x1ff0), PF);
    check("cr2", trap.cr2, TEST_VA + 0x2000);
    check("rdi", trap.frame.rdi, TEST_VA + 0x2000);
    check("rcx", trap.frame.rcx, 48);
    map(1, 0);
}

/* ---- Memory ---- */

#define MMIO8(offset)  (*(volatile uint8_t *)(TEST_MMIO + (uint64_t)(offset)))
#define MMIO16(offset) (*(volatile uint16_t *)(TEST_MMIO + (uint64_t)(offset)))
#define MMIO32(offset) (*(volatile uint32_t *)(TEST_MMIO + (uint64_t)(offset)))
#define MMIO64(offset) (*(volatile uint64_t *)(TEST_MMIO + (uint64_t)(offset)))

static void mmio_reads(void) {
    take_log();
    check("byte", MMIO8(1), pattern(1, 1));
    check("word", MMIO16(2), pattern(2, 2));
    check("dword", MMIO32(4), pattern(4, 4));
    check("qword", MMIO64(8), pattern(8, 8));
    check("accesses", take_log(), 4);
    check_entry("byte", 0, TEST_MMIO + 1, 1, false, pattern(1, 1));
    check_entry("word", 1, TEST_MMIO + 2, 2, false, pattern(2, 2));
    check_entry("dword", 2, TEST_MMIO + 4, 4, false, pattern(4, 4));
    check_entry("qword", 3, TEST_MMIO + 8, 8, false, pattern(8, 8));
}

static void mmio_writes(void) {
    take_log();
    MMIO8(1) = 0x12;
    MMIO16(2) = 0x3456;
    MMIO32(4) = 0x789abcde;
    MMIO64(8) = 0x1122334455667788;
    check("accesses", take_log(), 4);
    check_entry("byte", 0, TEST_MMIO + 1, 1, true, 0x12);
    check_entry("word", 1, TEST_MMIO + 2, 2, true, 0x3456);
    check_entry("dword", 2, TEST_MMIO + 4, 4, true, 0x789abcde);
    check_entry("qword", 3, TEST_MMIO + 8, 8, true, 0x1122334455667788);
}

/* The value counts, not how the access is cut. */
static void mmio_unaligned(void) {
    check("word", MMIO16(0x11), pattern(0x11, 2));
    check("dword", MMIO32(0x13), pattern(0x13, 4));
    check("qword", MMIO64(0x15), pattern(0x15, 8));
    check("word over a page's end", MMIO16(0xfff), pattern(0xfff, 2));
    check("dword over a page's end", MMIO32(0xffd), pattern(0xffd, 4));
    check("qword over a page's end", MMIO64(0xffb), pattern(0xffb, 8));
    take_log();
    MMIO64(0xffd) = 0x1122334455667788;
    unsigned count = take_log();
    uint64_t value = 0, bytes = 0;
    for (unsigned i = 0; i < count; i++) {
        value |= entries[i].value << 8 * (entries[i].address - TEST_MMIO - 0xffd);
        bytes += entries[i].size;
    }
    check("written bytes", bytes, 8);
    check("written value", value, 0x1122334455667788);
}

static void mmio_over_the_end(void) {
    check("dword", MMIO32(TEST_MMIO_SIZE - 2), 0xffff0000 | pattern(TEST_MMIO_SIZE - 2, 2));
    take_log();
    MMIO32(TEST_MMIO_SIZE - 2) = 0x12345678;
    unsigned count = take_log();
    uint64_t value = 0;
    for (unsigned i = 0; i < count; i++)
        value |= entries[i].value << 8 * (entries[i].address - TEST_MMIO - TEST_MMIO_SIZE + 2);
    check("written", value, 0x5678);
}

static void mmio_read_modify_write(void) {
    take_log();
    asm volatile("addl $1, (%0)" ::"r"(TEST_MMIO + 4ul) : "memory", "cc");
    check("ADD", take_log(), 2);
    check_entry("read", 0, TEST_MMIO + 4, 4, false, pattern(4, 4));
    check_entry("write", 1, TEST_MMIO + 4, 4, true, (uint32_t)pattern(4, 4) + 1);
    asm volatile("orb $0x80, (%0)" ::"r"(TEST_MMIO + 1ul) : "memory", "cc");
    check("OR", take_log(), 2);
    check_entry("write", 1, TEST_MMIO + 1, 1, true, pattern(1, 1) | 0x80);
}

static void mmio_exchange(void) {
    uint32_t value = 0x5555;
    take_log();
    asm volatile("xchg %0, (%1)" : "+r"(value) : "r"(TEST_MMIO + 8ul) : "memory");
    check("old", value, (uint32_t)pattern(8, 4));
    check("XCHG", take_log(), 2);
    check_entry("write", 1, TEST_MMIO + 8, 4, true, 0x5555);
}

static void mmio_extending(void) {
    uint64_t value;
    asm volatile("movzbl (%1), %k0" : "=r"(value) : "r"(TEST_MMIO + 3ul));
    check("MOVZX", value, pattern(3, 1));
    asm volatile("movsbq (%1), %0" : "=r"(value) : "r"(TEST_MMIO + 5ul));
    check("MOVSX", value, (uint64_t)(int64_t)(int8_t)pattern(5, 1));
    asm volatile("movslq (%1), %0" : "=r"(value) : "r"(TEST_MMIO + 8ul));
    check("MOVSXD", value, (uint64_t)(int64_t)(int32_t)pattern(8, 4));
    uint64_t flags;
    asm volatile("cmpb %b2, (%1); pushfq; pop %0"
                 : "=r"(flags)
                 : "r"(TEST_MMIO + 5ul), "q"(pattern(5, 1))
                 : "cc");
    check("CMP: ZF", flags >> 6 & 1, 1);
    asm volatile("push (%1); pop %0" : "=r"(value) : "r"(TEST_MMIO + 0x20ul) : "memory");
    check("PUSH", value, pattern(0x20, 8));
}

static void mmio_strings(void) {
    const void *from = (const void *)(TEST_MMIO + 0x100ul);
    void *to = test_page[0];
    uint64_t count = 32;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count)::"memory");
    for (unsigned i = 0; i < 32; i++)
        check("byte", test_page[0][i], pattern(0x100 + i, 1));
    take_log();
    from = test_page[0];
    to = (void *)(TEST_MMIO + 0x200ul);
    count = 4;
    asm volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count)::"memory");
    uint64_t sum = 0, n = take_log();
    for (unsigned i = 0; i < n; i++)
        sum += entries[i].size;
    check("bytes written", sum, 16);
    to = (void *)(TEST_MMIO + 0x300ul);
    count = 3;
    asm volatile("rep stosw" : "+D"(to), "+c"(count) : "a"(0xabcd) : "memory");
    check("STOS", take_log(), 3);
    check_entry("last", 2, TEST_MMIO + 0x304, 2, true, 0xabcd);
}

static void nothing_there(void) {
    check("byte", *(volatile uint8_t *)0xd1000000ul, 0xff);
    check("qword", *(volatile uint64_t *)0xd1000000ul, ~0ul);
    *(volatile uint64_t *)0xd1000000ul = 0;
    check("still nothing", *(volatile uint64_t *)0xd1000000ul, ~0ul);
}

static void rom(void) {
    check("byte", *(volatile uint8_t *)(TEST_ROM + 5ul), pattern(5, 1));
    check("qword", *(volatile uint64_t *)(TEST_ROM + 16ul), pattern(16, 8));
    *(volatile uint64_t *)(TEST_ROM + 16ul) = 0;
    check("writes are ignored", *(volatile uint64_t *)(TEST_ROM + 16ul), pattern(16, 8));
}

void program(void) {
    if (!has_harness())
        return;
    TEST(port_reads);
    TEST(port_writes);
    TEST(port_registers);
    TEST(port_nobody);
    TEST(port_strings);
    TEST(port_string_fault);
    TEST(mmio_reads);
    TEST(mmio_writes);
    TEST(mmio_unaligned);
    TEST(mmio_over_the_end);
    TEST(mmio_read_modify_write);
    TEST(mmio_exchange);
    TEST(mmio_extending);
    TEST(mmio_strings);
    TEST(nothing_there);
    TEST(rom);
}
