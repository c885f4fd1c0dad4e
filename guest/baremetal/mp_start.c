/*
 * Processors start each other and send interrupts: INIT and SIPI, all
 * destination and delivery modes, NMI, x2APIC, a timer each, time that all
 * agree on (APM vol. 2, chapter 16).
 */
#include "mp.h"

enum { VECTOR = 0x61, TIMER_VECTOR = 0x71 };
enum { APIC_LDR = 0xd0, APIC_DFR = 0xe0 };
enum { ICR_LOGICAL = 0x800, ICR_LOWEST = 0x100, ICR_ALL = 0x80000, ICR_OTHERS = 0xc0000 };

static volatile unsigned hits[MP_MOST], nmis[MP_MOST];
static bool x2apic;

static void eoi(void) {
    if (x2apic)
        wrmsr(0x80b, 0);
    else
        apic_write(APIC_EOI, 0);
}

static void count_hit(struct frame *frame) {
    hits[mp_self()]++;
    eoi();
}

static void count_nmi(struct frame *frame) {
    nmis[mp_self()]++;
}

static void clear(void) {
    for (unsigned i = 0; i < MP_MOST; i++)
        hits[i] = nmis[i] = 0;
    set_handler(VECTOR, count_hit);
    set_handler(NMI, count_nmi);
}

static void send(uint32_t destination, uint32_t low) {
    if (x2apic) {
        wrmsr(0x830, (uint64_t)destination << 32 | low);
        return;
    }
    apic_write(APIC_ICR_HIGH, destination << 24);
    apic_write(APIC_ICR_LOW, low);
}

/* Others listen until they are told to end. */
static volatile bool listening;
static void listen(unsigned cpu) {
    while (listening)
        open_window();
}
/* The same, waiting in HLT. */
static void listen_halted(unsigned cpu) {
    while (listening)
        wait_for_interrupt();
}

static void start_listening(void (*how)(unsigned)) {
    clear();
    listening = true;
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        mp_begin(cpu, how);
}

/* Halted ones need something to wake them: vector 62h. */
static void nothing(struct frame *frame) {
    eoi();
}
static void stop_listening(void) {
    set_handler(VECTOR + 1, nothing);
    listening = false;
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        send(cpu, VECTOR + 1);
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        mp_wait(cpu);
}

static void until(volatile unsigned *counter, unsigned value) {
    while (*counter < value)
        relax();
}

/* ---- Starting ---- */

static void arrivals(void) {
    for (unsigned cpu = 1; cpu < mp_count(); cpu++) {
        check("started", mp_arrivals[cpu].times, 1);
        check("CS", mp_arrivals[cpu].cs, MP_PAGE >> 4);
        check("CR0: PE, PG", mp_arrivals[cpu].cr0 & 0x80000001, 0);
        check("CR0: ET", mp_arrivals[cpu].cr0 >> 4 & 1, 1);
    }
}

static volatile uint64_t base_seen[MP_MOST];
static void look_at_base(unsigned cpu) {
    base_seen[cpu] = rdmsr(MSR_APIC_BASE);
}

static void one_bootstrap_processor(void) {
    mp_all(look_at_base);
    for (unsigned cpu = 0; cpu < mp_count(); cpu++)
        check("BSC", base_seen[cpu] >> 8 & 1, cpu == 0);
}

static void sipi_to_a_running_one(void) {
    unsigned before = mp_arrivals[1].times;
    send(1, 0x4600 | MP_PAGE >> 12);
    start_listening(listen);
    send(1, VECTOR);
    until(&hits[1], 1); /* it has looked since */
    stop_listening();
    check("not started again", mp_arrivals[1].times, before);
}

static void spin_without_interrupts(unsigned cpu) {
    asm volatile("cli; 1: jmp 1b");
}

static void init_stops_a_loop(void) {
    unsigned before = mp_arrivals[1].times;
    mp_begin(1, spin_without_interrupts);
    mp_restart(1);
    check("started again", mp_arrivals[1].times, before + 1);
}

static void halt_for_ever(unsigned cpu) {
    for (;;)
        asm volatile("cli; hlt");
}

static void init_ends_a_halt(void) {
    unsigned before = mp_arrivals[1].times;
    mp_begin(1, halt_for_ever);
    mp_restart(1);
    check("started again", mp_arrivals[1].times, before + 1);
}

/* ---- Interrupts ---- */

static void physical(void) {
    start_listening(listen);
    for (unsigned round = 1; round <= 50; round++)
        for (unsigned cpu = 1; cpu < mp_count(); cpu++) {
            send(cpu, VECTOR);
            until(&hits[cpu], round);
        }
    stop_listening();
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        check("hits", hits[cpu], 50);
    check("own", hits[0], 0);
}

static void wakes_a_halt(void) {
    start_listening(listen_halted);
    for (unsigned round = 1; round <= 50; round++)
        for (unsigned cpu = 1; cpu < mp_count(); cpu++) {
            send(cpu, VECTOR);
            until(&hits[cpu], round);
        }
    stop_listening();
}

static void shorthands(void) {
    start_listening(listen);
    send(0, ICR_OTHERS | VECTOR);
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        until(&hits[cpu], 1);
    open_window();
    check("all but self", hits[0], 0);
    send(0, ICR_ALL | VECTOR);
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        until(&hits[cpu], 2);
    open_window();
    check("all", hits[0], 1);
    send(x2apic ? 0xffffffff : 0xff, VECTOR);
    for (unsigned cpu = 1; cpu < mp_count(); cpu++)
        until(&hits[cpu], 3);
    open_window();
    check("broadcast address", hits[0], 2);
    stop_listening();
}

static void set_flat(unsigned cpu) {
    apic_write(APIC_DFR, 0xffffffff);
    apic_write(APIC_LDR, 1u << (24 + cpu % 8));
}

static void logical_flat(void) {
    mp_all(set_flat);
    start_listening(listen);
    send(2, ICR_LOGICAL | VECTOR);
    until(&hits[1], 1);
    unsigned all = mp_count() >= 3 ? 6 : 2;
    send(all, ICR_LOGICAL | VECTOR);
    until(&hits[1], 2);
    if (mp_count() >= 3)
        until(&hits[2], 1);
    stop_listening();
    check("the first", hits[1], 2);
    check("own", hits[0], 0);
    if (mp_count() >= 4)
        check("the third", hits[3], 0);
}

static void set_cluster(unsigned cpu) {
    apic_write(APIC_DFR, 0x0fffffff);
    apic_write(APIC_LDR, (cpu / 2 << 4 | 1u << cpu % 2) << 24);
}

/* Processors 2n and 2n + 1 are members 0 and 1 of cluster n. */
static void logical_clusters(void) {
    mp_all(set_cluster);
    start_listening(listen);
    send(0x02, ICR_LOGICAL | VECTOR);
    until(&hits[1], 1);
    if (mp_count() >= 4) {
        send(0x13, ICR_LOGICAL | VECTOR);
        until(&hits[2], 1);
        until(&hits[3], 1);
    }
    stop_listening();
    check("cluster 0, member 1", hits[1], 1);
    mp_all(set_flat);
}

static unsigned all_hits(void) {
    unsigned sum = 0;
    for (unsigned cpu = 0; cpu < mp_count(); cpu++)
        sum += hits[cpu];
    return sum;
}

static void lowest_priority(void) {
    enum { SENT = 40 };
    const uint64_t patience = 5000000000; /* ticks: seconds */
    /* Only those that are there: KVM chooses by the vector, without looking whether one is. */
    unsigned others = mp_count() >= 8 ? 0xfe : (1u << mp_count()) - 2;
    mp_all(set_flat);
    start_listening(listen);
    bool lost = false;
    for (unsigned n = 1; n <= SENT && !lost; n++) {
        uint64_t start = rdtsc();
        send(others, ICR_LOGICAL | ICR_LOWEST | VECTOR);
        while (all_hits() < n && !lost)
            lost = rdtsc() - start > patience;
    }
    stop_listening();
    check("each at one processor", all_hits(), SENT);
}

/* ---- NMI ---- */

static void spin_closed(unsigned cpu) {
    while (listening)
        relax();
}

static void nmi_to_one(void) {
    start_listening(spin_closed);
    send(1, ICR_NMI);
    until(&nmis[1], 1);
    stop_listening();
    check("own", nmis[0], 0);
    set_handler(VECTOR + 1, nothing);
}

static void nmi_to_others(void) {
    start_listening(spin_closed);
    for (unsigned round = 1; round <= 20; round++) {
        send(0, ICR_OTHERS | ICR_NMI);
        for (unsigned cpu = 1; cpu < mp_count(); cpu++)
            until(&nmis[cpu], round);
    }
    stop_listening();
    check("own", nmis[0], 0);
}

/* Interrupts that spin_closed left waiting are taken in here. */
static void drain(unsigned cpu) {
    open_window();
}

/* ---- x2APIC ---- */

static volatile uint64_t x2_id[MP_MOST], x2_ldr[MP_MOST];
static void enter_x2apic(unsigned cpu) {
    wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 0x400);
    x2_id[cpu] = rdmsr(0x802);
    x2_ldr[cpu] = rdmsr(0x80d);
}

static void leave_x2apic(unsigned cpu) {
    uint64_t base = rdmsr(MSR_APIC_BASE) & ~0xc00ul;
    wrmsr(MSR_APIC_BASE, base);
    wrmsr(MSR_APIC_BASE, base | 0x800);
    apic_enable();
}

static void x2apic_ids(void) {
    for (unsigned cpu = 0; cpu < mp_count(); cpu++) {
        check("id", x2_id[cpu], cpu);
        check("logical id", x2_ldr[cpu], 1u << cpu);
    }
}

static void x2apic_logical(void) {
    start_listening(listen);
    send(2, ICR_LOGICAL | VECTOR);
    until(&hits[1], 1);
    stop_listening();
    check("own", hits[0], 0);
}

static void with_x2apic(void) {
    if (!has(HAS_X2APIC))
        return;
    mp_all(enter_x2apic);
    x2apic = true;
    TEST(x2apic_ids);
    TEST(x2apic_logical);
    static void (*const again[])(void) = {physical, wakes_a_halt, shorthands, nmi_to_others};
    static const char *const names[] = {"physical, x2APIC", "wakes_a_halt, x2APIC",
                                        "shorthands, x2APIC", "nmi_to_others, x2APIC"};
    for (unsigned i = 0; i < 4; i++)
        run_test(names[i], again[i]);
    mp_all(drain);
    x2apic = false;
    mp_all(leave_x2apic);
}

/* ---- Timers, time ---- */

static volatile unsigned ticks[MP_MOST];
static void tick(struct frame *frame) {
    ticks[mp_self()]++;
    apic_write(APIC_EOI, 0);
}

static void wait_for_ticks(unsigned cpu) {
    apic_write(APIC_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, TIMER_PERIODIC | TIMER_VECTOR);
    apic_write(APIC_INITIAL, 200000 + 10000 * cpu);
    while (ticks[cpu] < 10)
        wait_for_interrupt();
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
    apic_write(APIC_INITIAL, 0);
    open_window();
}

static void a_timer_each(void) {
    for (unsigned cpu = 0; cpu < mp_count(); cpu++)
        ticks[cpu] = 0;
    set_handler(TIMER_VECTOR, tick);
    mp_all(wait_for_ticks);
    for (unsigned cpu = 0; cpu < mp_count(); cpu++)
        check("ticks", ticks[cpu] >= 10, 1);
}

/* The one whose turn it is reads a time that is not before what the last one read. */
static volatile uint64_t last_time;
static volatile unsigned turn, backward;
static void pass_time_on(unsigned cpu) {
    for (unsigned round = 0; round < 200; round++) {
        while (turn % mp_count() != cpu)
            relax();
        uint64_t now = rdtsc();
        backward += now < last_time;
        last_time = now;
        turn++;
    }
}

static void one_time(void) {
    last_time = turn = backward = 0;
    mp_all(pass_time_on);
    check("steps backward", backward, 0);
}

/* Without turns, as often as they can: a time that another has read before is not later. */
static void read_behind_others(unsigned cpu) {
    enum { READINGS = 20000 };
    unsigned later = 0;
    mp_meet();
    for (unsigned n = 0; n < READINGS; n++) {
        uint64_t seen = last_time, now;
        uint32_t low, high;
        asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
        now = (uint64_t)high << 32 | low;
        later += now < seen;
        last_time = now;
    }
    __atomic_fetch_add(&backward, later, __ATOMIC_SEQ_CST);
}

static void one_time_for_all(void) {
    last_time = backward = 0;
    mp_all(read_behind_others);
    check("steps backward", backward, 0);
}

void program(void) {
    TEST(mp_several);
    if (mp_count() == 1)
        return;
    TEST(arrivals);
    TEST(one_bootstrap_processor);
    TEST(sipi_to_a_running_one);
    TEST(init_stops_a_loop);
    TEST(init_ends_a_halt);
    TEST(physical);
    TEST(wakes_a_halt);
    TEST(shorthands);
    TEST(logical_flat);
    TEST(logical_clusters);
    TEST(lowest_priority);
    TEST(nmi_to_one);
    TEST(nmi_to_others);
    mp_all(drain);
    with_x2apic();
    TEST(a_timer_each);
    TEST(one_time);
    TEST(one_time_for_all);
}
