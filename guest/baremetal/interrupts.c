/*
 * Interrupts: local APIC priorities, self IPIs, EOI, I/O APIC, MSI, 8259 by
 * way of LINT0, NMI, the shadow of STI (APM vol. 2, chapters 8 and 16).
 */
#include "apic.h"

/* ---- Handlers that keep a record ---- */

static struct record {
    unsigned count;
    uint8_t vector[16];
    uint64_t rip;
    uint64_t rflags;
} record;

static void note(struct frame *frame) {
    if (record.count < 16)
        record.vector[record.count] = (uint8_t)frame->vector;
    record.count++;
    record.rip = frame->rip;
    record.rflags = frame->rflags;
}

static void note_and_eoi(struct frame *frame) {
    note(frame);
    apic_write(APIC_EOI, 0);
}

static void start(trap_handler *handler) {
    static const uint8_t vectors[] = {0x51, 0x61, 0x62, 0x71, 0x81, 0x91};
    record = (struct record){0};
    apic_enable();
    for (unsigned i = 0; i < sizeof vectors; i++)
        set_handler(vectors[i], handler);
}

/* ---- Local APIC ---- */

static void self_ipi(void) {
    start(note_and_eoi);
    send_self(0x61);
    check("IRR while IF is 0", apic_bit(APIC_IRR, 0x61), 1);
    check("not delivered", record.count, 0);
    open_window();
    check("delivered", record.count, 1);
    check("vector", record.vector[0], 0x61);
    check("IF in the frame", record.rflags >> 9 & 1, 1);
    check("IRR after", apic_bit(APIC_IRR, 0x61), 0);
    check("ISR after EOI", apic_bit(APIC_ISR, 0x61), 0);
    open_window();
    check("once", record.count, 1);
}

static unsigned isr_inside, ppr_inside, if_inside;
static void look_inside(struct frame *frame) {
    uint64_t flags;
    asm volatile("pushfq; popq %0" : "=r"(flags)::"memory");
    note(frame);
    isr_inside = apic_bit(APIC_ISR, (unsigned)frame->vector);
    ppr_inside = apic_read(APIC_PPR);
    if_inside = flags >> 9 & 1;
    apic_write(APIC_EOI, 0);
}

static void in_service(void) {
    start(look_inside);
    send_self(0x61);
    open_window();
    check("ISR", isr_inside, 1);
    check("PPR", ppr_inside, 0x60);
    check("IF", if_inside, 0);
    check("PPR after", apic_read(APIC_PPR), 0);
}

static void order(void) {
    start(note_and_eoi);
    send_self(0x51);
    send_self(0x71);
    send_self(0x61);
    open_window();
    check("all", record.count, 3);
    check("first", record.vector[0], 0x71);
    check("second", record.vector[1], 0x61);
    check("third", record.vector[2], 0x51);
}

static void open_up(struct frame *frame) {
    note(frame);
    if (frame->vector == 0x61) {
        send_self(0x62); /* the same class: waits */
        send_self(0x51); /* lower: waits */
        send_self(0x71); /* higher: nests */
        open_window();
        check("nested", record.count, 2);
        check("by the higher", record.vector[1], 0x71);
    }
    apic_write(APIC_EOI, 0);
}

static void nesting(void) {
    start(open_up);
    send_self(0x61);
    open_window();
    check("all", record.count, 4);
    check("third", record.vector[2], 0x62);
    check("fourth", record.vector[3], 0x51);
}

static void without_eoi(void) {
    start(note);
    send_self(0x71);
    open_window();
    send_self(0x61);
    open_window();
    check("lower waits for EOI", record.count, 1);
    check("PPR", apic_read(APIC_PPR), 0x70);
    apic_write(APIC_EOI, 0);
    open_window();
    check("after EOI", record.count, 2);
    apic_write(APIC_EOI, 0);
    check("PPR", apic_read(APIC_PPR), 0);
}

static void task_priority(void) {
    start(note_and_eoi);
    write_cr8(7);
    check("TPR", apic_read(APIC_TPR), 0x70);
    check("PPR", apic_read(APIC_PPR), 0x70);
    send_self(0x71);
    open_window();
    check("class 7 waits", record.count, 0);
    send_self(0x81);
    open_window();
    check("class 8 does not", record.count, 1);
    check("vector", record.vector[0], 0x81);
    write_cr8(6);
    open_window();
    check("lower CR8", record.count, 2);
    check("vector", record.vector[1], 0x71);
    apic_write(APIC_TPR, 0x53);
    check("CR8 from TPR", read_cr8(), 5);
    check("TPR", apic_read(APIC_TPR), 0x53);
    write_cr8(0);
    check("TPR from CR8", apic_read(APIC_TPR), 0);
}

/* ---- The shadow ---- */

static void sti_shadow(void) {
    uint64_t after;
    start(note_and_eoi);
    send_self(0x61);
    asm volatile("sti; cli" ::: "memory");
    check("STI CLI: not taken", record.count, 0);
    asm volatile("lea 1f(%%rip), %0; sti; nop; 1: cli" : "=r"(after)::"memory");
    check("taken after one instruction", record.count, 1);
    check("rip", record.rip, after);
}

static void popf_no_shadow(void) {
    uint64_t after;
    start(note_and_eoi);
    send_self(0x61);
    asm volatile("lea 1f(%%rip), %0; pushfq; orl $0x200, (%%rsp); popfq; 1: cli"
                 : "=r"(after)::"memory", "cc");
    check("taken", record.count, 1);
    check("rip", record.rip, after);
}

static void cr8_exact(void) {
    uint64_t after;
    start(note_and_eoi);
    write_cr8(7);
    send_self(0x71);
    asm volatile("sti; nop; nop; lea 1f(%%rip), %0; mov %1, %%cr8; 1: cli"
                 : "=&r"(after)
                 : "r"(0ul)
                 : "memory");
    check("taken", record.count, 1);
    check("right after the write of CR8", record.rip, after);
}

/* MOV SS after STI with an interrupt waiting: both shadows, one instruction more. */
static void mov_ss_shadow(void) {
    uint64_t after;
    start(note_and_eoi);
    send_self(0x61);
    asm volatile("mov %%ss, %%ecx; lea 1f(%%rip), %0; pushfq; orl $0x200, (%%rsp)\n"
                 "mov %%ecx, %%ss; popfq; 1: cli"
                 : "=&r"(after)::"memory", "cc", "rcx");
    check("taken", record.count, 1);
    check("rip", record.rip, after);
}

static void exact_order(void) {
    start(note_and_eoi);
    send_self(0x51);
    send_self(0x71);
    asm volatile("sti; nop; cli" ::: "memory");
    check("both before the next instruction", record.count, 2);
    check("first", record.vector[0], 0x71);
}

/* ---- NMI ---- */

static unsigned nmi_depth, nmi_deepest, nmis;
static void send_nmi(void) {
    apic_write(APIC_ICR_HIGH, apic_read(APIC_ID));
    apic_write(APIC_ICR_LOW, ICR_NMI);
}

static void nmi_handler(struct frame *frame) {
    nmis++;
    nmi_depth++;
    if (nmi_depth > nmi_deepest)
        nmi_deepest = nmi_depth;
    if (nmis == 1) {
        send_nmi();
        open_window();
        check("blocked until IRET", nmis, 1);
    }
    nmi_depth--;
}

static void nmi(void) {
    start(note_and_eoi);
    nmis = nmi_deepest = 0;
    set_handler(NMI, nmi_handler);
    send_nmi();
    open_window();
    check("both", nmis, 2);
    check("not nested", nmi_deepest, 1);
    set_handler(NMI, NULL);
}

/* ---- MSI and I/O APIC (need the harness) ---- */

#define IOAPIC 0xfec00000ul
static uint32_t ioapic_read(unsigned index) {
    *(volatile uint32_t *)IOAPIC = index;
    return *(volatile uint32_t *)(IOAPIC + 0x10);
}
static void ioapic_write(unsigned index, uint32_t v) {
    *(volatile uint32_t *)IOAPIC = index;
    *(volatile uint32_t *)(IOAPIC + 0x10) = v;
}
static void set_pin(unsigned pin, uint32_t low) {
    ioapic_write(0x11 + 2 * pin, apic_read(APIC_ID));
    ioapic_write(0x10 + 2 * pin, low);
}
enum { PIN_MASKED = 0x10000, PIN_LEVEL = 0x8000, PIN_REMOTE_IRR = 0x4000, PIN_LOW = 0x2000 };

static void msi(void) {
    if (!has_harness())
        return skip("no harness");
    start(note_and_eoi);
    request(REQUEST_MSI, APIC_BASE | (uint64_t)(apic_read(APIC_ID) >> 24) << 12, 0x71, 0);
    open_window();
    check("delivered", record.count, 1);
    check("vector", record.vector[0], 0x71);
}

static void edge_pin(void) {
    if (!has_harness())
        return skip("no harness");
    start(note_and_eoi);
    set_pin(5, 0x61);
    request(REQUEST_LINE, 5, 1, 0);
    open_window();
    check("delivered", record.count, 1);
    open_window();
    check("once", record.count, 1);
    request(REQUEST_LINE, 5, 0, 0);
    open_window();
    check("not by the falling edge", record.count, 1);
    request(REQUEST_LINE, 5, 1, 0);
    request(REQUEST_LINE, 5, 0, 0);
    open_window();
    check("a pulse", record.count, 2);
    set_pin(5, PIN_MASKED);
    request(REQUEST_LINE, 5, 1, 0);
    open_window();
    check("masked", record.count, 2);
    request(REQUEST_LINE, 5, 0, 0);
}

static unsigned lower_at, remote_irr, tmr;
static void level_handler(struct frame *frame) {
    note(frame);
    remote_irr = ioapic_read(0x10 + 2 * 17) & PIN_REMOTE_IRR;
    tmr = apic_bit(APIC_TMR, 0x62);
    if (record.count >= lower_at)
        request(REQUEST_LINE, 17, 0, 0);
    apic_write(APIC_EOI, 0);
}

static void level_pin(void) {
    if (!has_harness())
        return skip("no harness");
    start(level_handler);
    lower_at = 3;
    set_pin(17, 0x62 | PIN_LEVEL);
    request(REQUEST_LINE, 17, 1, 0);
    open_window();
    check("again until the line falls", record.count, 3);
    check("remote IRR", remote_irr, PIN_REMOTE_IRR);
    check("TMR", tmr, 1);
    check("remote IRR after EOI", ioapic_read(0x10 + 2 * 17) & PIN_REMOTE_IRR, 0);
    set_pin(17, PIN_MASKED | PIN_LEVEL | 0x62);
    request(REQUEST_LINE, 17, 1, 0);
    open_window();
    check("masked", record.count, 3);
    lower_at = 4;
    set_pin(17, PIN_LEVEL | 0x62);
    open_window();
    check("a line that is up when the pin opens", record.count, 4);
    set_pin(17, PIN_MASKED);
}

static void halt_until_line(void) {
    if (!has_harness())
        return skip("no harness");
    start(note_and_eoi);
    set_pin(6, 0x91);
    for (unsigned i = 1; i <= 5; i++) {
        request(REQUEST_LINE_LATER, 6, 1, 0);
        wait_for_interrupt();
        check("woken", record.count, i);
        request(REQUEST_LINE, 6, 0, 0);
    }
    set_pin(6, PIN_MASKED);
}

/* An NMI wakes also those who do not want interrupts. */
extern const char nmi_wait[], nmi_wait_end[];

/* On a busy host it may come before HLT does: nobody else would end that. */
static void count_nmi(struct frame *frame) {
    nmis++;
    if (frame->rip - (uint64_t)nmi_wait < (uint64_t)(nmi_wait_end - nmi_wait))
        frame->rip = (uint64_t)nmi_wait_end;
}

static void nmi_ends_halt(void) {
    if (!has_harness())
        return skip("no harness");
    start(note_and_eoi);
    set_handler(NMI, count_nmi);
    nmis = 0;
    set_pin(7, 0x400);
    request(REQUEST_LINE_LATER, 7, 1, 0);
    asm volatile("nmi_wait: cli; cmpl $0, %0; jne nmi_wait_end; hlt; nmi_wait_end:" ::"m"(nmis)
                 : "memory", "cc");
    check("woken", nmis, 1);
    request(REQUEST_LINE, 7, 0, 0);
    set_pin(7, PIN_MASKED);
    set_handler(NMI, NULL);
}

/* Logical destinations, flat model: a bit for each. */
static void logical_destination(void) {
    start(note_and_eoi);
    apic_write(0xe0, 0xffffffff);
    apic_write(0xd0, 0x04000000);
    apic_write(APIC_ICR_HIGH, 0x06000000);
    apic_write(APIC_ICR_LOW, 0x800 | 0x61);
    open_window();
    check("with our bit", record.count, 1);
    apic_write(APIC_ICR_HIGH, 0x03000000);
    apic_write(APIC_ICR_LOW, 0x800 | 0x61);
    open_window();
    check("without", record.count, 1);
    apic_write(APIC_ICR_HIGH, 0);
    apic_write(APIC_ICR_LOW, 0x80000 | 0x71); /* all, with ourselves */
    open_window();
    check("broadcast", record.count, 2);
    apic_write(APIC_ICR_LOW, 0xc0000 | 0x71); /* all but ourselves */
    open_window();
    check("others", record.count, 2);
}

/* ---- The 8259 pair through LINT0 ---- */

static uint8_t pic_isr_inside;
static void pic_handler(struct frame *frame) {
    note(frame);
    outb(0x20, 0x0b); /* read ISR */
    pic_isr_inside = inb(0x20);
    if (frame->vector >= 0x38)
        outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

static void pic_init(void) {
    static const uint8_t words[][2] = {{0x20, 0x11}, {0x21, 0x30}, {0x21, 4}, {0x21, 1},
                                       {0xa0, 0x11}, {0xa1, 0x38}, {0xa1, 2}, {0xa1, 1},
                                       {0x21, 0xff}, {0xa1, 0xff}};
    for (unsigned i = 0; i < sizeof words / 2; i++)
        outb(words[i][0], words[i][1]);
    for (unsigned vector = 0x30; vector < 0x40; vector++)
        set_handler(vector, pic_handler);
}

static void virtual_wire(void) {
    if (!has_harness())
        return skip("no harness");
    start(note_and_eoi);
    pic_init();
    apic_write(APIC_LVT_LINT0, 0x700); /* ExtINT */
    request(REQUEST_LINE, 3, 1, 0);
    open_window();
    check("masked", record.count, 0);
    outb(0x21, 0xff & ~8);
    open_window();
    check("unmasked", record.count, 1);
    check("vector", record.vector[0], 0x33);
    check("ISR", pic_isr_inside, 8);
    check("no ISR in the APIC", apic_bit(APIC_ISR, 0x33), 0);
    open_window();
    check("edge: once", record.count, 1);
    request(REQUEST_LINE, 3, 0, 0);
    request(REQUEST_LINE, 3, 1, 0);
    open_window();
    check("next edge", record.count, 2);
    request(REQUEST_LINE, 3, 0, 0);
    outb(0x21, 0xff & ~4);
    outb(0xa1, 0xff & ~4);
    request(REQUEST_LINE, 10, 1, 0);
    open_window();
    check("of the second", record.count, 3);
    check("vector", record.vector[2], 0x3a);
    request(REQUEST_LINE, 10, 0, 0);
}

static void virtual_wire_order(void) {
    if (!has_harness())
        return skip("no harness");
    start(note_and_eoi);
    pic_init();
    apic_write(APIC_LVT_LINT0, 0x700);
    outb(0x21, 0xff & ~0x28);
    request(REQUEST_LINE, 5, 1, 0);
    request(REQUEST_LINE, 3, 1, 0);
    open_window();
    check("both", record.count, 2);
    check("first", record.vector[0], 0x33);
    check("second", record.vector[1], 0x35);
    request(REQUEST_LINE, 5, 0, 0);
    request(REQUEST_LINE, 3, 0, 0);
    outb(0x21, 0xff);
}

static void virtual_wire_halt(void) {
    if (!has_harness())
        return skip("no harness");
    start(note_and_eoi);
    pic_init();
    apic_write(APIC_LVT_LINT0, 0x700);
    outb(0x21, 0xff & ~8);
    for (unsigned i = 1; i <= 5; i++) {
        request(REQUEST_LINE_LATER, 3, 1, 0);
        wait_for_interrupt();
        check("woken", record.count, i);
        request(REQUEST_LINE, 3, 0, 0);
    }
    apic_write(APIC_LVT_LINT0, LVT_MASKED);
    request(REQUEST_LINE, 3, 1, 0);
    open_window();
    check("LINT0 masked", record.count, 5);
    request(REQUEST_LINE, 3, 0, 0);
    outb(0x21, 0xff);
}

/* ---- x2APIC, last: it is left by disabling the APIC ---- */

static void set_apic_base(uint64_t v) {
    wrmsr(MSR_APIC_BASE, v);
}
FUNCTION(x2apic_read, "rdmsr" ::"c"((uint32_t)a) : "rax", "rdx")
FUNCTION(x2apic_write_reserved, "wrmsr" ::"c"((uint32_t)a), "a"(0xffffffff), "d"(0xffffffff))

static void x2apic_eoi(struct frame *frame) {
    note(frame);
    wrmsr(0x80b, 0);
}

static void x2apic(void) {
    if (!has(HAS_X2APIC))
        return skip("no x2APIC");
    uint64_t base = rdmsr(MSR_APIC_BASE);
    expect("MSRs in xAPIC mode", x2apic_read, 0x802, GP, 0);
    start(x2apic_eoi);
    set_apic_base(base | 0x400);
    check("mode", rdmsr(MSR_APIC_BASE), base | 0x400);
    check("id", rdmsr(0x802), 0);
    wrmsr(0x80f, 0x1ff);
    wrmsr(0x83f, 0x61);
    open_window();
    check("self IPI", record.count, 1);
    wrmsr(0x830, ICR_SELF | 0x71);
    open_window();
    check("by ICR", record.count, 2);
    wrmsr(0x808, 0x40);
    check("CR8", read_cr8(), 4);
    wrmsr(0x808, 0);
    expect("reserved register", x2apic_read, 0x804, GP, 0);
    expect("write-only register", x2apic_read, 0x83f, GP, 0);
    expect("reserved bits of SVR", x2apic_write_reserved, 0x80f, GP, 0);
    expect("EOI other than 0", x2apic_write_reserved, 0x80b, GP, 0);
    expect("back to xAPIC at once", set_apic_base, base, GP, 0);
    set_apic_base(base & ~0xc00ul);
    check("CPUID.APIC while disabled", cpuid(1, 0).edx >> 9 & 1, 0);
    set_apic_base(base);
    check("xAPIC again", rdmsr(MSR_APIC_BASE), base);
    start(note_and_eoi);
    send_self(0x61);
    open_window();
    check("works", record.count, 1);
}

void program(void) {
    TEST(self_ipi);
    TEST(in_service);
    TEST(order);
    TEST(nesting);
    TEST(without_eoi);
    TEST(task_priority);
    TEST(sti_shadow);
    TEST(popf_no_shadow);
    TEST(mov_ss_shadow);
    TEST(cr8_exact);
    TEST(exact_order);
    TEST(nmi);
    TEST(msi);
    TEST(edge_pin);
    TEST(level_pin);
    TEST(halt_until_line);
    TEST(nmi_ends_halt);
    TEST(logical_destination);
    TEST(virtual_wire);
    TEST(virtual_wire_order);
    TEST(virtual_wire_halt);
    TEST(x2apic);
}
