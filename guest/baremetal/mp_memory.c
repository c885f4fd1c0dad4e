/*
 * Memory that processors share: locked instructions of all kinds, where and
 * how wide their operands lie; the order in which stores are seen (x86-TSO:
 * APM vol. 2, 7.2); page tables that processor and program change together;
 * shooting down translations.
 */
#include "mp.h"

enum { VECTOR = 0x61 };

static unsigned turns(void) {
    return many(20000);
}

/* ---- Locked instructions ---- */

static struct {
    uint64_t wide[2], add, inc, dec, sub, xadd, exchanged, compared, bits, neg;
    uint16_t word;
    uint8_t byte;
} shared __attribute__((aligned(64)));
static uint64_t own_exchanged[MP_MOST], own_bits[MP_MOST];

static void compare_and_add(volatile uint64_t *to) {
    uint64_t old = *to;
    asm volatile("1: lea 1(%0), %%rcx; lock cmpxchg %%rcx, %1; jnz 1b"
                 : "+a"(old), "+m"(*to)::"rcx", "cc", "memory");
}

static void compare_and_add_8(volatile uint64_t *to) {
    asm volatile("mov (%0), %%eax; mov 4(%0), %%edx\n"
                 "1: mov %%eax, %%ebx; mov %%edx, %%ecx; add $1, %%ebx; adc $0, %%ecx\n"
                 "lock cmpxchg8b (%0); jnz 1b" ::"r"(to)
                 : "rax", "rbx", "rcx", "rdx", "cc", "memory");
}

static void compare_and_add_16(volatile uint64_t to[2]) {
    asm volatile("mov (%0), %%rax; mov 8(%0), %%rdx\n"
                 "1: lea 1(%%rax), %%rbx; lea 3(%%rdx), %%rcx\n"
                 "lock cmpxchg16b (%0); jnz 1b" ::"r"(to)
                 : "rax", "rbx", "rcx", "rdx", "cc", "memory");
}

/* Takes what is there, and puts back what it had last: nothing is lost. */
static void exchange(unsigned cpu) {
    asm volatile("xchg %0, %1" : "+r"(own_exchanged[cpu]), "+m"(shared.exchanged)::"memory");
}

/* A spin lock of one bit. */
static void lock_bit(volatile uint64_t *bits) {
    for (;;) {
        bool was;
        asm volatile("lock btsq $7, %1" : "=@ccc"(was), "+m"(*bits)::"memory");
        if (!was)
            return;
        relax();
    }
}

static void all_kinds(unsigned cpu) {
    unsigned n = turns();
    own_exchanged[cpu] = cpu;
    mp_meet();
    for (unsigned i = 0; i < n; i++) {
        asm volatile("lock addq $1, %0" : "+m"(shared.add)::"cc", "memory");
        asm volatile("lock incq %0" : "+m"(shared.inc)::"cc", "memory");
        asm volatile("lock decq %0" : "+m"(shared.dec)::"cc", "memory");
        asm volatile("lock subq $2, %0" : "+m"(shared.sub)::"cc", "memory");
        uint64_t one = 1;
        asm volatile("lock xaddq %0, %1" : "+r"(one), "+m"(shared.xadd)::"cc", "memory");
        compare_and_add(&shared.compared);
        asm volatile("lock incw %0" : "+m"(shared.word)::"cc", "memory");
        asm volatile("lock incb %0" : "+m"(shared.byte)::"cc", "memory");
        asm volatile("lock negq %0" : "+m"(shared.neg)::"cc", "memory");
        exchange(cpu);
        lock_bit(&shared.bits);
        own_bits[0]++; /* by whoever has the bit */
        asm volatile("lock btrq $7, %0" : "+m"(shared.bits)::"cc", "memory");
    }
}

static void locked(void) {
    memset(&shared, 0, sizeof shared);
    own_bits[0] = 0;
    shared.exchanged = 1000;
    shared.neg = 5;
    mp_all(all_kinds);
    uint64_t all = (uint64_t)turns() * mp_count(), sum = shared.exchanged, expected = 1000;
    for (unsigned cpu = 0; cpu < mp_count(); cpu++) {
        sum += own_exchanged[cpu];
        expected += cpu;
    }
    check("add", shared.add, all);
    check("inc", shared.inc, all);
    check("dec", shared.dec, -all);
    check("sub", shared.sub, -2 * all);
    check("xadd", shared.xadd, all);
    check("cmpxchg", shared.compared, all);
    check("16 bits", shared.word, (uint16_t)all);
    check("8 bits", shared.byte, (uint8_t)all);
    check("neg", shared.neg, all % 2 ? -5ul : 5);
    check("xchg", sum, expected);
    check("under a lock of bts", own_bits[0], all);
}

static void wide_kinds(unsigned cpu) {
    unsigned n = turns();
    mp_meet();
    for (unsigned i = 0; i < n; i++) {
        compare_and_add_8(&shared.compared);
        if (cpuid(1, 0).ecx >> 13 & 1)
            compare_and_add_16(shared.wide);
    }
}

static void compared_wide(void) {
    memset(&shared, 0, sizeof shared);
    mp_all(wide_kinds);
    uint64_t all = (uint64_t)turns() * mp_count();
    bool wide = cpuid(1, 0).ecx >> 13 & 1;
    check("cmpxchg8b", shared.compared, all);
    check("cmpxchg16b, low", shared.wide[0], wide ? all : 0);
    check("cmpxchg16b, high", shared.wide[1], wide ? 3 * all : 0);
}

/*
 * Eight bytes across a border: half of the processors add to all of it, the
 * others to its upper four bytes alone, one with XADD and one with CMPXCHG
 * among them.
 */
static volatile uint8_t *split;
static void add_split(unsigned cpu) {
    unsigned n = turns() / 4;
    volatile uint64_t *whole = (volatile uint64_t *)split;
    volatile uint32_t *upper = (volatile uint32_t *)(split + 4);
    uint64_t one = 1;
    mp_meet();
    for (unsigned i = 0; i < n; i++) {
        if (cpu % 2 != 0)
            asm volatile("lock addl $1, %0" : "+m"(*upper)::"cc", "memory");
        else if (cpu % 4 == 0)
            asm volatile("lock addq $1, %0" : "+m"(*whole)::"cc", "memory");
        else if (i % 2 == 0)
            compare_and_add(whole);
        else
            asm volatile("mov $1, %0; lock xaddq %0, %1" : "+r"(one), "+m"(*whole)::"cc", "memory");
    }
}

static void check_split(volatile uint8_t *at) {
    uint64_t n = turns() / 4, lower = n * ((mp_count() + 1) / 2), upper = n * (mp_count() / 2);
    split = at;
    *(volatile uint64_t *)at = 0;
    mp_all(add_split);
    check("sum", *(volatile uint64_t *)at, upper << 32 | lower);
}

static void across_lines(void) {
    check_split(&test_page[0][64 - 4]);
    check_split(&test_page[0][128 - 3]);
}

static void across_pages(void) {
    check_split(&test_page[0][4096 - 4]);
    check_split(&test_page[2][4096 - 1]);
}

static void across_distant_pages(void) {
    map(0, PHYSICAL(test_page[5]) | PTE_P | PTE_W);
    map(1, PHYSICAL(test_page[2]) | PTE_P | PTE_W);
    check_split((uint8_t *)TEST_VA + 4096 - 4);
    check_split((uint8_t *)TEST_VA + 4096 - 7);
}

/* ---- Order ---- */

static volatile struct line {
    uint64_t value;
    uint64_t rest[7];
} x, y, seen[MP_MOST][2] __attribute__((aligned(64)));

static inline uint64_t load(const volatile struct line *from) {
    uint64_t v;
    asm volatile("mov %1, %0" : "=r"(v) : "m"(from->value) : "memory");
    return v;
}
static inline void store(volatile struct line *to, uint64_t v) {
    asm volatile("mov %1, %0" : "=m"(to->value) : "r"(v) : "memory");
}

/* Runs pieces of a litmus test many times; forbidden() says whether what was seen may not be. */
static void (*litmus_piece)(unsigned cpu);
static bool (*forbidden)(void);
static volatile unsigned violations;

static void litmus_loop(unsigned cpu) {
    for (unsigned i = 0, n = turns() / 4; i < n; i++) {
        mp_meet();
        litmus_piece(cpu);
        mp_meet();
        if (cpu != 0)
            continue;
        violations += forbidden();
        x.value = y.value = 0;
    }
}

static void litmus(void (*piece)(unsigned), bool (*never)(void)) {
    litmus_piece = piece;
    forbidden = never;
    violations = 0;
    x.value = y.value = 0;
    mp_all(litmus_loop);
    check("forbidden outcomes", violations, 0);
}

#define STORE_BUFFERING(name, fence)                                                               \
    static void name##_piece(unsigned cpu) {                                                       \
        if (cpu > 1)                                                                               \
            return;                                                                                \
        store(cpu == 0 ? &x : &y, 1);                                                              \
        asm volatile(fence ::: "rax", "cc", "memory");                                             \
        seen[cpu][0].value = load(cpu == 0 ? &y : &x);                                             \
    }                                                                                              \
    static bool name##_never(void) {                                                               \
        return seen[0][0].value == 0 && seen[1][0].value == 0;                                     \
    }                                                                                              \
    static void name(void) {                                                                       \
        litmus(name##_piece, name##_never);                                                        \
    }
STORE_BUFFERING(stores_fenced, "mfence")
STORE_BUFFERING(stores_locked, "lock orq $0, (%%rsp)")
STORE_BUFFERING(stores_exchanged, "xchg %%rax, -128(%%rsp)")
STORE_BUFFERING(stores_serialised, "push %%rbx; push %%rcx; push %%rdx; xor %%eax, %%eax; cpuid;"
                                   "pop %%rdx; pop %%rcx; pop %%rbx")

static void message_piece(unsigned cpu) {
    if (cpu == 0) {
        store(&x, 1);
        store(&y, 1);
    } else if (cpu == 1) {
        seen[1][0].value = load(&y);
        seen[1][1].value = load(&x);
    }
}
static bool message_never(void) {
    return seen[1][0].value == 1 && seen[1][1].value == 0;
}
static void message_passing(void) {
    litmus(message_piece, message_never);
}

/* The same where the data is not temporal. */
static void streamed_piece(unsigned cpu) {
    if (cpu == 0)
        asm volatile("movnti %2, %0; sfence; mov %2, %1"
                     : "=m"(x.value), "=m"(y.value)
                     : "r"(1ul)
                     : "memory");
    else
        message_piece(cpu);
}
static void message_streamed(void) {
    litmus(streamed_piece, message_never);
}

static void load_piece(unsigned cpu) {
    if (cpu > 1)
        return;
    seen[cpu][0].value = load(cpu == 0 ? &x : &y);
    store(cpu == 0 ? &y : &x, 1);
}
static bool load_never(void) {
    return seen[0][0].value == 1 && seen[1][0].value == 1;
}
static void load_buffering(void) {
    litmus(load_piece, load_never);
}

/* Two write, two read: those may not disagree about which came first. */
static void independent_piece(unsigned cpu) {
    switch (cpu) {
    case 0: store(&x, 1); break;
    case 1: store(&y, 1); break;
    case 2:
    case 3:
        seen[cpu][0].value = load(cpu == 2 ? &x : &y);
        seen[cpu][1].value = load(cpu == 2 ? &y : &x);
    }
}
static bool independent_never(void) {
    return seen[2][0].value == 1 && seen[2][1].value == 0 && seen[3][0].value == 1 &&
           seen[3][1].value == 0;
}
static void independent_reads(void) {
    if (mp_count() >= 4)
        litmus(independent_piece, independent_never);
    else
        skip("there are less than four");
}

/* Two loads of one place do not go back. */
static volatile bool counting;
static volatile unsigned steps_back;
static void coherent_piece(unsigned cpu) {
    uint64_t n = turns();
    if (cpu == 0) {
        for (uint64_t i = 1; i <= n; i++)
            store(&x, i);
        counting = false;
        return;
    }
    while (counting) {
        uint64_t first = load(&x), second = load(&x);
        steps_back += second < first;
    }
}
static void coherent(void) {
    counting = true;
    steps_back = 0;
    x.value = 0;
    mp_all(coherent_piece);
    check("steps back", steps_back, 0);
}

/* ---- Page tables ---- */

/* The processor sets A and D while others count in the bits that are the program's. */
static void use_page(unsigned cpu) {
    enum { COUNT_SHIFT = 52, TURNS = 100 };
    volatile uint64_t *pte = &test_pt[4];
    mp_meet();
    if (cpu % 2 == 0) {
        for (unsigned i = 0; i < TURNS / 2; i++) {
            uint64_t one = 1ul << COUNT_SHIFT;
            asm volatile("lock addq %1, %0" : "+m"(*pte) : "r"(one) : "cc", "memory");
            relax();
        }
        return;
    }
    for (unsigned i = 0; i < TURNS * 10; i++) {
        asm volatile("lock andq $~0x60, %0" : "+m"(*pte)::"cc", "memory");
        invlpg(TEST_VA + 4 * 4096);
        *(volatile uint64_t *)(TEST_VA + 4 * 4096) = i;
    }
}

static void accessed_and_dirty(void) {
    map(4, PHYSICAL(test_page[4]) | PTE_P | PTE_W);
    mp_all(use_page);
    uint64_t counted = test_pt[4] >> 52 & 0x7ff;
    check("count", counted, 50 * ((mp_count() + 1) / 2));
    check("address", test_pt[4] & 0xffffffffff000, PHYSICAL(test_page[4]));
}

/* The same of a descriptor's accessed bit: byte 5, next to a byte that others change. */
static void load_segment(unsigned cpu) {
    volatile uint64_t *entry = &gdt[GDT_FREE / 8];
    mp_meet();
    for (unsigned i = 0; i < 100; i++) {
        if (cpu % 2 == 0) {
            asm volatile("lock addq %1, %0" : "+m"(*entry) : "r"(1ul << 16) : "cc", "memory");
        } else {
            asm volatile("lock btrq $40, %0" : "+m"(*entry)::"cc", "memory");
            asm volatile("mov %0, %%es; mov %1, %%es" ::"r"(GDT_FREE), "r"(KERNEL_DS));
        }
    }
}

static void accessed_descriptor(void) {
    descriptor(0, DATA);
    mp_all(load_segment);
    check("base", gdt[GDT_FREE / 8] >> 16 & 0xffffff, 100 * ((mp_count() + 1) / 2));
}

/* ---- Shooting down ---- */

static volatile unsigned acknowledged, wrong;
static volatile uint64_t wanted; /* what the page holds for those who have been told */
static volatile bool shooting;

static void shoot_down(struct frame *frame) {
    invlpg(TEST_VA + 6 * 4096);
    __atomic_fetch_add(&acknowledged, 1, __ATOMIC_SEQ_CST);
    apic_write(APIC_EOI, 0);
}

/* Reads the page all the time; what it finds is never older than the last shot. */
static void read_page(unsigned cpu) {
    while (shooting) {
        uint64_t least = wanted, found = *(volatile uint64_t *)(TEST_VA + 6 * 4096);
        wrong += found < least;
        window();
        open_window();
    }
}

static void shot_down(void) {
    unsigned rounds = many(500);
    set_handler(VECTOR, shoot_down);
    for (unsigned i = 0; i < 2; i++)
        memset(test_page[6 + i], 0, 4096);
    map(6, PHYSICAL(test_page[6]) | PTE_P);
    wanted = wrong = 0;
    shooting = true;
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        mp_begin(cpu, read_page);
    for (unsigned round = 1; round <= rounds; round++) {
        uint8_t *next = test_page[6 + round % 2];
        *(volatile uint64_t *)next = round;
        acknowledged = 0;
        map(6, PHYSICAL(next) | PTE_P);
        apic_write(APIC_ICR_LOW, 0xc0000 | VECTOR); /* all others */
        while (acknowledged < mp_count() - 1)
            relax();
        wanted = round;
        /* Who still had the old page would find this. */
        *(volatile uint64_t *)test_page[6 + (round + 1) % 2] = 0;
    }
    shooting = false;
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        mp_wait(cpu);
    check("old translations used", wrong, 0);
}

void program(void) {
    TEST(mp_several);
    if (mp_count() == 1)
        return;
    TEST(locked);
    TEST(across_lines);
    TEST(across_pages);
    TEST(across_distant_pages);
    TEST(stores_fenced);
    TEST(stores_locked);
    TEST(stores_exchanged);
    TEST(stores_serialised);
    TEST(message_passing);
    TEST(message_streamed);
    TEST(load_buffering);
    TEST(independent_reads);
    TEST(coherent);
    TEST(accessed_and_dirty);
    TEST(accessed_descriptor);
    TEST(shot_down);
    TEST(compared_wide);
}
