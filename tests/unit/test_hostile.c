/*
 * Guests that fill page tables, descriptor tables and task segments with
 * noise: whatever happens is a fault, an event or a shutdown, never a fault of
 * lodge's own or an endless loop. Fixed seeds.
 */
#include "soft_fixture.h"

static uint64_t seed;

static uint64_t noise(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static uint64_t pick(const uint64_t *values, size_t count) {
    return values[noise() % count];
}

/* Mostly inside RAM, so that walks and loads get far; sometimes anywhere. */
static uint64_t some_address(void) {
    uint64_t where = noise();
    switch (noise() % 4) {
    case 0: return where;
    case 1: return where % (UINT64_C(1) << 48);
    default: return where % FIXTURE_RAM;
    }
}

/* Entries that look like page table entries and descriptors, more often than chance has it. */
static uint64_t some_entry(void) {
    static const uint64_t types[] = {0x9b, 0x93, 0xfb, 0xf3, 0x8e, 0x8f, 0xee, 0x85,
                                     0x8b, 0x82, 0x8c, 0xec, 0x9f, 0x97, 0x86, 0x87};
    uint64_t value = noise();
    switch (noise() % 4) {
    case 0: return value;
    case 1: return (value % FIXTURE_RAM & PAGE_MASK) | PT_P | (value & 0x86);
    case 2: return (value & UINT64_C(0x00af0000ffffffff)) | pick(types, ARRAY_SIZE(types)) << 40;
    default: return (value & 0xfffffff8) | pick(types, ARRAY_SIZE(types)) << 40;
    }
}

static void fill(struct fixture *f) {
    for (unsigned i = 0; i < 4096; i++)
        fixture_poke(f, noise() % (FIXTURE_RAM / 8) * 8, some_entry(), 8);
    for (uint64_t gpa = 0; gpa < 0x8000; gpa += 8)
        fixture_poke(f, gpa, some_entry(), 8);
}

static void some_segment(struct x86_segment *segment) {
    *segment = (struct x86_segment){.base = some_address(),
                                    .limit = (uint32_t)(noise() >> noise() % 64),
                                    .selector = (uint16_t)noise(),
                                    .attributes = noise() & 0xf0ff};
}

static void some_state(struct fixture *f) {
    struct soft_cpu *cpu = f->cpu;
    static const uint64_t modes[] = {0, CR0_PE, CR0_PE | CR0_PG, CR0_PE | CR0_PG | CR0_WP};
    cpu->cr0 = pick(modes, ARRAY_SIZE(modes)) | CR0_ET;
    cpu->cr4 = noise() & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP | CR4_SMAP);
    cpu->efer = noise() % 2 ? EFER_NXE | EFER_SCE : EFER_SCE;
    if (cpu->cr0 & CR0_PG && cpu->cr4 & CR4_PAE && noise() % 2)
        cpu->efer |= EFER_LME | EFER_LMA;
    cpu->cr3 = noise() % 8 ? noise() % FIXTURE_RAM & PAGE_MASK : noise() & UINT32_MAX;
    cpu->rflags = (noise() & (FLAG_IF | FLAG_TF | FLAG_NT | FLAG_AC | FLAG_IOPL)) | FLAGS_FIXED;
    if (cpu->cr0 & CR0_PE && !(cpu->efer & EFER_LMA) && noise() % 8 == 0)
        cpu->rflags |= FLAG_VM;
    cpu->cpl = noise() & 3;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        some_segment(&cpu->segment[i]);
    some_segment(&cpu->tr);
    some_segment(&cpu->ldtr);
    cpu->gdtr = (struct x86_table){noise() % 0x8000, (uint16_t)noise()};
    cpu->idtr = (struct x86_table){noise() % 0x8000, (uint16_t)noise()};
    for (unsigned i = 0; i < 16; i++)
        cpu->gpr[i] = some_address();
    cpu->rip = some_address();
    mmu_flush_all(cpu);
    mmu_mode_changed(cpu);
}

static void ignore(struct soft_cpu *cpu, const struct insn *insn) {
}

/* A handler with random operands, from the fixture's state. */
static void run_some_handler(struct fixture *f) {
    static insn_exec *const handlers[] = {
        mov_s_e_r,     mov_s_e_m, push_seg,     pop_seg,   load_far_pointer,
        lar_r,         lsl_r,     verr_r,       verw_r,    arpl_m,
        sgdt,          sidt,      lgdt,         lidt,      sldt_m,
        lldt_r,        ltr_r,     swapgs,       jmp_far_a, ret_far,
        call_far_a,    jmp_far_m, call_far_m,   ret_far_i, iret,
        syscall_enter, sysenter,  sysret_leave, sysexit,   mov_c_r,
        mov_d_r,       mov_r_d,   smsw_m,       lmsw_r,    invlpg,
        invpcid,       clflush,   cpuid,        xsetbv,    mov_r_c,
    };
    static const uint8_t sizes[] = {2, 4, 8};
    struct soft_cpu *cpu = f->cpu;
    unsigned size = sizes[noise() % (cpu->mode == INSN_MODE_64 ? 3 : 2)];
    struct insn code[2] = {
        {.length = 3,
         .size = (uint8_t)size,
         .address_size = cpu->mode == INSN_MODE_64 ? 8 : 4,
         .imm = some_address(),
         .disp = (int64_t)some_address(),
         .base = REG_ZERO,
         .index = REG_ZERO,
         .seg = noise() % SEG_COUNT,
         .reg = noise() & 15,
         .rm = noise() & 15,
         .opcode = 0x1f},
        {.exec = ignore},
    };
    cpu->event.pending = false;
    insn_exec *handler = handlers[noise() % ARRAY_SIZE(handlers)];
    if (setjmp(cpu->unwind) == 0)
        handler(cpu, code);
}

static void access_something(struct fixture *f) {
    struct fault fault;
    uint8_t bytes[64] = {0};
    unsigned size = 1 + noise() % 64;
    unsigned access = noise() & (ACCESS_USER | ACCESS_IMPLICIT);
    uint64_t linear = some_address();
    if (!(f->cpu->efer & EFER_LMA))
        linear = (uint32_t)linear;
    if (noise() % 2)
        linear_read(f->cpu, linear, bytes, size, access, &fault);
    else
        linear_write(f->cpu, linear, bytes, size, access, &fault);
}

static void deliver_something(struct fixture *f) {
    static const enum event_kind kinds[] = {EVENT_FAULT, EVENT_TRAP, EVENT_INTERRUPT, EVENT_NMI};
    event_deliver(f->cpu, (uint8_t)noise(), kinds[noise() % 4], noise() & 1, (uint32_t)noise());
}

static void run_rounds(uint64_t start, unsigned rounds) {
    struct fixture *f = fixture_create();
    seed = start;
    fill(f);
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t gpa;
        if (i % 8 == 0)
            some_state(f);
        if (i % 256 == 0)
            fill(f);
        access_something(f);
        run_some_handler(f);
        deliver_something(f);
        mmu_probe(f->cpu, some_address(), &gpa);
    }
    fixture_destroy(f);
}

static void noise_is_survived(void **state) {
    for (uint64_t start = 1; start <= 8; start++)
        run_rounds(start * UINT64_C(0x9e3779b97f4a7c15), 100000);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(noise_is_survived)};
    return cmocka_run_group_tests_name("hostile guests", tests, NULL, NULL);
}
