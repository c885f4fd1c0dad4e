/* Page walks, rights, faults, and what flushes forget. */
#include "soft_fixture.h"

#include "cpu/soft/jit/fast.h"
#include "cpu/soft/outside.h"

static const uint64_t USER_PAGE = 0x400000;
static const uint64_t KERNEL_PAGE = UINT64_C(0xffff888000000000);

static int start(void **state) {
    struct fixture *f = fixture_create();
    fixture_long_mode(f);
    *state = f;
    return 0;
}

static int stop(void **state) {
    fixture_destroy(*state);
    return 0;
}

static bool try_read(struct fixture *f, uint64_t linear, unsigned size, unsigned access,
                     uint64_t *value, struct fault *fault) {
    *value = 0;
    return linear_read(f->cpu, linear, value, size, access, fault);
}

static uint64_t must_read(struct fixture *f, uint64_t linear) {
    struct fault fault;
    uint64_t value;
    assert_true(try_read(f, linear, 8, 0, &value, &fault));
    return value;
}

static bool try_write(struct fixture *f, uint64_t linear, uint64_t value, unsigned access,
                      struct fault *fault) {
    return linear_write(f->cpu, linear, &value, 8, access, fault);
}

static void sets_accessed_and_dirty(void **state) {
    struct fixture *f = *state;
    struct fault fault;
    fixture_map(f, KERNEL_PAGE, 0x200000, PT_P | PT_W);
    fixture_poke(f, 0x200010, 0x1122334455667788, 8);
    uint64_t leaf = fixture_entry(f, KERNEL_PAGE, 12);
    assert_int_equal(must_read(f, KERNEL_PAGE + 0x10), 0x1122334455667788);
    assert_int_equal(fixture_peek(f, leaf, 8) & (PT_A | PT_D), PT_A);
    assert_int_equal(fixture_peek(f, fixture_entry(f, KERNEL_PAGE, 39), 8) & PT_A, PT_A);
    assert_true(try_write(f, KERNEL_PAGE + 0x10, 42, 0, &fault));
    assert_int_equal(fixture_peek(f, leaf, 8) & (PT_A | PT_D), PT_A | PT_D);
    assert_int_equal(fixture_peek(f, 0x200010, 8), 42);
}

struct rights_case {
    uint64_t bits; /* of the page */
    uint32_t cr4;
    bool wp, ac;
    unsigned access;
    int error; /* -1: allowed */
};

#define P  PT_P
#define W  PT_W
#define U  PT_U
#define NX PT_NX
static const struct rights_case rights_cases[] = {
    /* Supervisor. */
    {P | W, 0, true, false, 0, -1},
    {P, 0, true, false, ACCESS_WRITE, PF_PRESENT | PF_WRITE},
    {P, 0, false, false, ACCESS_WRITE, -1},
    {P | NX, 0, true, false, ACCESS_FETCH, PF_PRESENT | PF_FETCH},
    {P | U, 0, true, false, ACCESS_FETCH, -1},
    {P | U, CR4_SMEP, true, false, ACCESS_FETCH, PF_PRESENT | PF_FETCH},
    {P | U | W, CR4_SMAP, true, false, 0, PF_PRESENT},
    {P | U | W, CR4_SMAP, true, false, ACCESS_WRITE, PF_PRESENT | PF_WRITE},
    {P | U | W, CR4_SMAP, true, true, ACCESS_WRITE, -1},
    {P | U | W, CR4_SMAP, true, true, ACCESS_IMPLICIT, PF_PRESENT},
    {P | U, CR4_SMAP, true, false, ACCESS_FETCH, -1},
    {0, 0, true, false, 0, 0},
    {0, 0, true, false, ACCESS_WRITE, PF_WRITE},
    /* User. */
    {P | U | W, 0, true, false, ACCESS_USER, -1},
    {P | U, 0, false, false, ACCESS_USER | ACCESS_WRITE, PF_PRESENT | PF_WRITE | PF_USER},
    {P | W, 0, true, false, ACCESS_USER, PF_PRESENT | PF_USER},
    {P | U | NX, 0, true, false, ACCESS_USER | ACCESS_FETCH, PF_PRESENT | PF_USER | PF_FETCH},
    {P | U, CR4_SMEP | CR4_SMAP, true, false, ACCESS_USER | ACCESS_FETCH, -1},
    {0, 0, true, false, ACCESS_USER | ACCESS_FETCH, PF_USER | PF_FETCH},
    /* Reserved bits: address bits 48 to 51. */
    {P | U | W | UINT64_C(1) << 51, 0, true, false, ACCESS_USER,
     PF_PRESENT | PF_USER | PF_RESERVED},
};
#undef P
#undef W
#undef U
#undef NX

static void checks_rights(void **state) {
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(rights_cases); i++) {
        const struct rights_case *c = &rights_cases[i];
        struct fault fault;
        fixture_map(f, USER_PAGE, 0x200000, c->bits);
        assert_true(system_set_cr4(f->cpu, CR4_PAE | CR4_PGE | c->cr4));
        f->cpu->cr0 = (f->cpu->cr0 & ~(uint64_t)CR0_WP) | (c->wp ? CR0_WP : 0);
        f->cpu->rflags = FLAGS_FIXED | (c->ac ? FLAG_AC : 0);
        mmu_flush_all(f->cpu);
        /* Twice: walked, then (when allowed) from the TLB. */
        for (unsigned again = 0; again < 2; again++) {
            bool ok = mmu_translate(f->cpu, USER_PAGE + 0x123, c->access, &fault) != NULL;
            if (c->error < 0) {
                assert_true(ok);
                continue;
            }
            assert_false(ok);
            assert_int_equal(fault.vector, EXC_PF);
            assert_int_equal(fault.error, c->error);
            assert_int_equal(fault.address, USER_PAGE + 0x123);
        }
    }
}

static void upper_levels_restrict(void **state) {
    struct fixture *f = *state;
    struct fault fault;
    fixture_map(f, USER_PAGE, 0x200000, PT_P | PT_W | PT_U);
    uint64_t upper = fixture_entry(f, USER_PAGE, 21);
    fixture_poke(f, upper, fixture_peek(f, upper, 8) & ~(uint64_t)PT_W, 8);
    assert_false(try_write(f, USER_PAGE, 1, ACCESS_USER, &fault));
    assert_int_equal(fault.error, PF_PRESENT | PF_WRITE | PF_USER);
    /* The page table is known by now: the upper level's rights must be remembered with it. */
    assert_non_null(mmu_translate(f->cpu, USER_PAGE, ACCESS_USER, &fault));
    fixture_map(f, USER_PAGE + PAGE_SIZE, 0x201000, PT_P | PT_W | PT_U);
    assert_false(try_write(f, USER_PAGE + PAGE_SIZE, 1, ACCESS_USER, &fault));
}

static void maps_large_pages(void **state) {
    struct fixture *f = *state;
    struct fault fault;
    uint64_t two = UINT64_C(0xffff888000200000), giant = UINT64_C(0xffff8880c0000000);
    fixture_poke(f, fixture_entry(f, two, 21), 0x400000 | PT_P | PT_W | PT_PS, 8);
    fixture_poke(f, fixture_entry(f, giant, 30), PT_P | PT_W | PT_PS, 8);
    fixture_poke(f, 0x543210, 0xabcd, 8);
    assert_int_equal(must_read(f, two + 0x143210), 0xabcd);
    assert_int_equal(must_read(f, giant + 0x543210), 0xabcd);
    /* INVLPG of any address in a large page forgets all of it. */
    fixture_poke(f, fixture_entry(f, two, 21), 0x600000 | PT_P | PT_W | PT_PS, 8);
    fixture_poke(f, fixture_entry(f, giant, 30), 0, 8);
    fixture_poke(f, 0x743210, 0x1234, 8);
    assert_int_equal(must_read(f, two + 0x143210), 0xabcd);
    mmu_flush_page(f->cpu, two + 0x1000);
    assert_int_equal(must_read(f, two + 0x143210), 0x1234);
    mmu_flush_page(f->cpu, giant + 0x1000);
    uint64_t value;
    assert_false(try_read(f, giant + 0x543210, 8, 0, &value, &fault));
    /* A large page's low address bits are reserved. */
    fixture_poke(f, fixture_entry(f, giant, 30), PT_P | PT_PS | 0x2000, 8);
    assert_false(try_read(f, giant, 8, 0, &value, &fault));
    assert_int_equal(fault.error, PF_PRESENT | PF_RESERVED);
}

static void flushes_what_it_must(void **state) {
    struct fixture *f = *state;
    uint64_t global = KERNEL_PAGE, local = KERNEL_PAGE + PAGE_SIZE;
    fixture_map(f, global, 0x200000, PT_P | PT_G);
    fixture_map(f, local, 0x201000, PT_P);
    fixture_poke(f, 0x200000, 1, 8);
    fixture_poke(f, 0x201000, 2, 8);
    fixture_poke(f, 0x300000, 3, 8);
    assert_int_equal(must_read(f, global), 1);
    assert_int_equal(must_read(f, local), 2);
    fixture_map(f, global, 0x300000, PT_P | PT_G);
    fixture_map(f, local, 0x300000, PT_P);
    assert_int_equal(must_read(f, local), 2); /* as hardware would have it */
    assert_true(system_set_cr3(f->cpu, FIXTURE_CR3));
    assert_int_equal(must_read(f, local), 3);
    assert_int_equal(must_read(f, global), 1); /* global pages stay */
    mmu_flush_page(f->cpu, global);
    assert_int_equal(must_read(f, global), 3);
}

static void keeps_address_spaces_apart(void **state) {
    struct fixture *f = *state;
    const uint64_t keep = UINT64_C(1) << 63;
    fixture_map(f, USER_PAGE, 0x200000, PT_P);
    fixture_poke(f, 0x200000, 1, 8);
    fixture_poke(f, 0x300000, 3, 8);
    assert_true(system_set_cr4(f->cpu, CR4_PAE | CR4_PGE | CR4_PCIDE));
    assert_true(system_set_cr3(f->cpu, FIXTURE_CR3 | 5));
    assert_int_equal(must_read(f, USER_PAGE), 1);
    fixture_map(f, USER_PAGE, 0x300000, PT_P);
    assert_true(system_set_cr3(f->cpu, FIXTURE_CR3 | 6));
    assert_int_equal(must_read(f, USER_PAGE), 3);
    assert_true(system_set_cr3(f->cpu, FIXTURE_CR3 | 5 | keep));
    assert_int_equal(must_read(f, USER_PAGE), 1);
    mmu_flush_space(f->cpu, 6); /* another's: ours stays */
    assert_int_equal(must_read(f, USER_PAGE), 1);
    assert_true(system_set_cr3(f->cpu, FIXTURE_CR3 | 5));
    assert_int_equal(must_read(f, USER_PAGE), 3);
    /* PCIDE needs long mode and a CR3 whose low bits are clear; bit 63 is only for PCIDE. */
    assert_true(system_set_cr3(f->cpu, FIXTURE_CR3));
    assert_true(system_set_cr4(f->cpu, CR4_PAE));
    assert_false(system_set_cr3(f->cpu, FIXTURE_CR3 | keep));
}

/* Context numbers run out again and again; nothing stale may be found. */
static void recycles_contexts(void **state) {
    struct fixture *f = *state;
    fixture_map(f, KERNEL_PAGE, 0x200000, PT_P | PT_G);
    for (uint64_t n = 0; n < 20000; n++) {
        fixture_poke(f, 0x300000 + (n & 1) * PAGE_SIZE, n, 8);
        fixture_map(f, USER_PAGE, 0x300000 + (n & 1) * PAGE_SIZE, PT_P | PT_A);
        if (n % 3 == 0)
            mmu_flush_all(f->cpu);
        else
            assert_true(system_set_cr3(f->cpu, FIXTURE_CR3));
        assert_int_equal(must_read(f, USER_PAGE), n);
        must_read(f, KERNEL_PAGE);
    }
}

static void straddles_all_or_nothing(void **state) {
    struct fixture *f = *state;
    struct fault fault;
    uint64_t edge = KERNEL_PAGE + PAGE_SIZE - 4, value;
    fixture_map(f, KERNEL_PAGE, 0x200000, PT_P | PT_W);
    fixture_poke(f, 0x200ffc, 0x01020304, 4);
    assert_false(try_write(f, edge, UINT64_MAX, 0, &fault));
    assert_int_equal(fault.address, KERNEL_PAGE + PAGE_SIZE);
    assert_int_equal(fixture_peek(f, 0x200ffc, 4), 0x01020304);
    fixture_map(f, KERNEL_PAGE + PAGE_SIZE, 0x300000, PT_P | PT_W);
    assert_true(try_write(f, edge, UINT64_C(0x8877665544332211), 0, &fault));
    assert_int_equal(fixture_peek(f, 0x200ffc, 4), 0x44332211);
    assert_int_equal(fixture_peek(f, 0x300000, 4), 0x88776655);
    assert_true(try_read(f, edge + 3, 2, 0, &value, &fault));
    assert_int_equal(value, 0x5544);
}

static void refuses_addresses_that_are_not_canonical(void **state) {
    struct fixture *f = *state;
    struct fault fault;
    uint64_t value, linear;
    assert_false(try_read(f, UINT64_C(0x800000000000), 8, 0, &value, &fault));
    assert_int_equal(fault.vector, EXC_GP);
    assert_false(
        segment_check(f->cpu, SEG_SS, UINT64_C(0x7ffffffffffd), 8, false, &linear, &fault));
    assert_int_equal(fault.vector, EXC_SS);
    assert_int_equal(fault.error, 0);
}

static void walks_32_bit_tables(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    struct fault fault;
    uint64_t value;
    cpu->efer = 0;
    cpu->cr4 = CR4_PSE;
    cpu->cr3 = 0x500000;
    fixture_poke(f, 0x500000 + 4 * 1, 0x501000 | PT_P | PT_W | PT_U, 4);
    fixture_poke(f, 0x500000 + 4 * 2, 0x800000 | PT_P | PT_W | PT_PS, 4);
    fixture_poke(f, 0x501000 + 4 * 3, 0x600000 | PT_P | PT_U, 4);
    fixture_poke(f, 0x600008, 77, 8);
    fixture_poke(f, 0x923450, 88, 8);
    mmu_flush_all(cpu);
    mmu_mode_changed(cpu);
    assert_int_equal(must_read(f, 0x403008), 77);
    assert_int_equal(must_read(f, 0x923450), 88);
    assert_int_equal(fixture_peek(f, 0x50100c, 4) & PT_A, PT_A);
    assert_false(try_write(f, 0x403008, 1, ACCESS_USER, &fault));
    assert_int_equal(fault.error, PF_PRESENT | PF_WRITE | PF_USER);
    assert_false(try_read(f, 0x404000, 8, ACCESS_FETCH, &value, &fault));
    assert_int_equal(fault.error, 0); /* the fetch bit is told only with NX or SMEP */
}

static void walks_pae_tables(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    struct fault fault;
    uint64_t value;
    cpu->efer = 0;
    cpu->cr4 = CR4_PAE;
    cpu->cr3 = 0x500020;
    fixture_poke(f, 0x500020 + 8 * 3, 0x501000 | PT_P, 8);
    fixture_poke(f, 0x501000 + 8 * 1, 0x502000 | PT_P | PT_W | PT_U, 8);
    fixture_poke(f, 0x502000 + 8 * 2, 0x600000 | PT_P | PT_W | PT_U, 8);
    fixture_poke(f, 0x600008, 99, 8);
    mmu_flush_all(cpu);
    mmu_mode_changed(cpu);
    assert_int_equal(must_read(f, 0xc0202008), 99);
    fixture_poke(f, 0x500020 + 8 * 3, 0x501000 | PT_P | PT_W, 8); /* reserved there */
    mmu_flush_all(cpu);
    assert_false(try_read(f, 0xc0202008, 8, 0, &value, &fault));
    assert_int_equal(fault.error, PF_PRESENT | PF_RESERVED);
}

static void fast_path_finds_what_slow_path_entered(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    fixture_map(f, KERNEL_PAGE, 0x200000, PT_P | PT_W);
    assert_null(access_fast(cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE, 8));
    store64(cpu, SEG_DS, KERNEL_PAGE + 8, 5);
    assert_non_null(access_fast(cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE, 8));
    assert_null(access_fast(cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE + PAGE_SIZE - 4, 8));
    assert_non_null(access_fast(cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE + PAGE_SIZE - 8, 8));
    assert_int_equal(load64(cpu, SEG_DS, KERNEL_PAGE + 8), 5);
    fixture_cpl(f, 3);
    assert_null(access_fast(cpu, TLB_READ, SEG_DS, KERNEL_PAGE, 8));
    fixture_cpl(f, 0);
    assert_non_null(access_fast(cpu, TLB_READ, SEG_DS, KERNEL_PAGE, 8));
    size_t length = 10000;
    assert_non_null(access_run(cpu, TLB_WRITE, SEG_ES, KERNEL_PAGE + 0x800, &length));
    assert_int_equal(length, 0x800);
}

static void watched_code_gets_no_write_entry(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    struct mem_page page;
    view_page(cpu->view, 0x200000, &page);
    fixture_map(f, KERNEL_PAGE, 0x200000, PT_P | PT_W);
    store64(cpu, SEG_DS, KERNEL_PAGE, 1);
    assert_non_null(access_fast(cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE, 8));
    mmu_watch_code(cpu, 0x200000, page.host);
    assert_true(atomic_load(page.flags) & MEM_PAGE_CODE);
    assert_null(access_fast(cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE, 8));
    store64(cpu, SEG_DS, KERNEL_PAGE, 2);
    assert_null(access_fast(cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE, 8));
    assert_int_equal(fixture_peek(f, 0x200000, 8), 2);
}

static bool fetch_dirty(struct fixture *f, uint64_t gpa) {
    uint64_t bitmap = 0;
    return memory_fetch_dirty(f->memory, gpa, PAGE_SIZE, &bitmap) == 1;
}

/* A write through an entry from before the flags were cleared must not get lost. */
static void dirty_log_misses_nothing(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    fixture_map(f, KERNEL_PAGE, 0x200000, PT_P | PT_W);
    store64(cpu, SEG_DS, KERNEL_PAGE, 1);
    assert_true(fetch_dirty(f, 0x200000));
    assert_non_null(access_fast(cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE, 8));
    store64(cpu, SEG_DS, KERNEL_PAGE, 2);
    assert_true(atomic_load(&cpu->request) & REQUEST_FLUSH);
    mmu_serve_requests(cpu);
    assert_null(access_fast(cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE, 8));
    assert_true(fetch_dirty(f, 0x200000));
    mmu_serve_requests(cpu);
    assert_false(fetch_dirty(f, 0x200000));
    mmu_serve_requests(cpu);
    store64(cpu, SEG_DS, KERNEL_PAGE, 3);
    assert_true(fetch_dirty(f, 0x200000));
    /* And one by a vCPU that stops before it looks. */
    mmu_serve_requests(cpu);
    fetch_dirty(f, 0x200000);
    mmu_serve_requests(cpu);
    store64(cpu, SEG_DS, KERNEL_PAGE, 4);
    assert_true(fetch_dirty(f, 0x200000));
    store64(cpu, SEG_DS, KERNEL_PAGE, 5);
    assert_false(fetch_dirty(f, 0x200000));
    mmu_settle_writes(cpu);
    assert_true(fetch_dirty(f, 0x200000));
}

static void legacy_segments_limit_the_fast_path(void **state) {
    struct fixture *f = *state;
    struct soft_cpu *cpu = f->cpu;
    struct fault fault;
    uint64_t linear;
    cpu->efer = 0;
    cpu->cr0 = CR0_PE;
    cpu->cr4 = 0;
    cpu->segment[SEG_CS] = segment_flat_of(8, 0xc09b);
    cpu->segment[SEG_DS] = (struct x86_segment){0x10000, 0xfff, 0x10, 0x4093};
    cpu->segment[SEG_ES] = (struct x86_segment){0, 0xfff, 0x18, 0x4097}; /* expand-down */
    mmu_flush_all(cpu);
    mmu_mode_changed(cpu);
    store32(cpu, SEG_DS, 0xffc, 7);
    assert_int_equal(fixture_peek(f, 0x10ffc, 4), 7);
    assert_non_null(access_fast(cpu, TLB_WRITE, SEG_DS, 0xffc, 4));
    assert_null(access_fast(cpu, TLB_WRITE, SEG_DS, 0xffd, 4));
    assert_null(access_fast(cpu, TLB_WRITE, SEG_CS, 0, 4));
    assert_false(segment_check(cpu, SEG_DS, 0xffd, 4, true, &linear, &fault));
    assert_int_equal(fault.vector, EXC_GP);
    assert_false(segment_check(cpu, SEG_CS, 0, 4, true, &linear, &fault));
    assert_true(segment_check(cpu, SEG_CS, 0, 4, false, &linear, &fault));
    assert_false(segment_check(cpu, SEG_ES, 0xfff, 4, true, &linear, &fault));
    assert_true(segment_check(cpu, SEG_ES, 0x1000, 4, true, &linear, &fault));
    assert_false(segment_check(cpu, SEG_FS, 0, 1, false, &linear, &fault)); /* null */
    assert_null(access_fast(cpu, TLB_READ, SEG_FS, 0, 1));
}

static uint64_t io_seen;

static uint64_t io_read_test(void *context, uint64_t offset, unsigned size) {
    return offset << 8 | size;
}

static void io_write_test(void *context, uint64_t offset, uint64_t value, unsigned size) {
    io_seen = value;
}

static void reaches_io(void **state) {
    static const struct io_ops ops = {io_read_test, io_write_test};
    struct fixture *f = *state;
    struct io_region *region;
    assert_int_equal(
        memory_add_io(f->memory, "io", 0xd0000000, PAGE_SIZE, &ops, NULL, &region, NULL), 0);
    fixture_map(f, KERNEL_PAGE, 0xd0000000, PT_P | PT_W);
    assert_int_equal(load32(f->cpu, SEG_DS, KERNEL_PAGE + 0x10), 0x1004);
    assert_int_equal(load8(f->cpu, SEG_DS, KERNEL_PAGE + 0x11), 1);
    store16(f->cpu, SEG_DS, KERNEL_PAGE, 0xbeef);
    assert_int_equal(io_seen, 0xbeef);
    assert_null(access_fast(f->cpu, TLB_READ, SEG_DS, KERNEL_PAGE, 1));
    uint32_t *word = rmw_begin(f->cpu, SEG_DS, KERNEL_PAGE + 0x10, 4);
    *word += 1;
    rmw_end(f->cpu);
    assert_int_equal(io_seen, 0x1005);
}

static void views_refuse(void **state) {
    struct fixture *f = *state;
    struct view *view;
    struct fault fault;
    uint64_t value;
    assert_int_equal(view_create(f->memory, "test", &view, NULL), 0);
    fixture_map(f, KERNEL_PAGE, 0x200000, PT_P | PT_W);
    assert_int_equal(view_protect(view, 0x200000, PAGE_SIZE, MEM_READ), 0);
    f->cpu->view = view;
    mmu_flush_all(f->cpu);
    assert_true(try_read(f, KERNEL_PAGE, 8, 0, &value, &fault));
    assert_false(try_write(f, KERNEL_PAGE + 8, 1, 0, &fault));
    assert_int_equal(fault.vector, FAULT_STOP);
    assert_int_equal(f->cpu->exit.stop, VCPU_TRAP);
    assert_int_equal(f->cpu->exit.gpa, 0x200008);
    assert_int_equal(f->cpu->exit.access, MEM_WRITE);
    f->cpu->view = memory_default_view(f->memory);
    view_destroy(view);
}

static void probes_without_side_effects(void **state) {
    struct fixture *f = *state;
    uint64_t gpa;
    fixture_map(f, KERNEL_PAGE, 0x200000, PT_P);
    assert_int_equal(mmu_probe(f->cpu, KERNEL_PAGE + 0x123, &gpa), 0);
    assert_int_equal(gpa, 0x200123);
    assert_int_equal(fixture_peek(f, fixture_entry(f, KERNEL_PAGE, 12), 8) & PT_A, 0);
    assert_int_equal(mmu_probe(f->cpu, KERNEL_PAGE + PAGE_SIZE, &gpa), -EFAULT);
    assert_int_equal(mmu_probe(f->cpu, UINT64_C(1) << 50, &gpa), -EFAULT);
}

static bool filled(struct fixture *f, uint64_t linear, uint32_t kind) {
    return jit_fast_fill(f->cpu, linear, kind) == 1;
}

/* Translated code's fills: what they enter, which bits they set, what they leave to others. */
static void fills_for_translated_code(void **state) {
    struct fixture *f = *state;
    fixture_map(f, KERNEL_PAGE, 0x200000, PT_P | PT_W);
    uint64_t leaf = fixture_entry(f, KERNEL_PAGE, 12);
    assert_true(filled(f, KERNEL_PAGE + 0x123, TLB_READ));
    assert_int_equal(fixture_peek(f, leaf, 8) & (PT_A | PT_D), PT_A);
    assert_non_null(access_fast(f->cpu, TLB_READ, SEG_DS, KERNEL_PAGE + 0x123, 8));
    assert_null(access_fast(f->cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE + 0x123, 8));
    /* A write that may not happen leaves the page clean, one that does not. */
    assert_false(filled(f, KERNEL_PAGE, TLB_WRITE | FILL_MAYBE));
    assert_int_equal(fixture_peek(f, leaf, 8) & PT_D, 0);
    assert_true(filled(f, KERNEL_PAGE, TLB_WRITE));
    assert_int_equal(fixture_peek(f, leaf, 8) & PT_D, PT_D);
    mmu_flush_all(f->cpu);
    assert_true(filled(f, KERNEL_PAGE, TLB_WRITE | FILL_MAYBE));
    assert_non_null(access_fast(f->cpu, TLB_WRITE, SEG_DS, KERNEL_PAGE, 8));
    /* Not there, not to be written, not the user's, not canonical, no memory. */
    assert_false(filled(f, KERNEL_PAGE + PAGE_SIZE, TLB_READ));
    fixture_map(f, KERNEL_PAGE + PAGE_SIZE, 0x201000, PT_P | PT_D);
    assert_true(filled(f, KERNEL_PAGE + PAGE_SIZE, TLB_READ));
    assert_false(filled(f, KERNEL_PAGE + PAGE_SIZE, TLB_WRITE));
    assert_false(filled(f, KERNEL_PAGE + PAGE_SIZE, TLB_WRITE | FILL_MAYBE));
    assert_false(filled(f, UINT64_C(1) << 62, TLB_READ));
    fixture_map(f, KERNEL_PAGE + 2 * PAGE_SIZE, 0x40000000, PT_P | PT_W);
    assert_false(filled(f, KERNEL_PAGE + 2 * PAGE_SIZE, TLB_READ));
    fixture_cpl(f, 3);
    assert_false(filled(f, KERNEL_PAGE, TLB_READ));
    fixture_map(f, USER_PAGE, 0x202000, PT_P | PT_W | PT_U);
    assert_true(filled(f, USER_PAGE, TLB_WRITE));
    assert_false(f->cpu->event.pending);
}

/* What a light call gives up it finds again at its end. */
static void spills_and_reloads_vectors(void **state) {
    struct fixture *f = *state;
    if (!__builtin_cpu_supports("avx2"))
        skip();
    uint64_t after = 0;
    f->cpu->jit.host_mxcsr = 0x1f80;
    /* Before light_begin: sanitizer builds give the registers up there, others in jit_spill. */
    __asm__ volatile("vpcmpeqd %%ymm15, %%ymm15, %%ymm15" ::: "xmm15");
    light_begin(f->cpu);
    jit_spill(f->cpu);
    assert_false(f->cpu->jit.light);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(f->cpu->vec[15].q[i], UINT64_MAX);
    f->cpu->vec[15].q[0] = 0x123456789abcdef0;
    light_end(f->cpu);
    __asm__ volatile("vmovq %%xmm15, %0" : "=r"(after));
    assert_int_equal(after, 0x123456789abcdef0);
    assert_false(f->cpu->jit.light);
}

#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void) {
    const struct CMUnitTest tests[] = {
        T(sets_accessed_and_dirty),
        T(checks_rights),
        T(upper_levels_restrict),
        T(maps_large_pages),
        T(flushes_what_it_must),
        T(keeps_address_spaces_apart),
        T(recycles_contexts),
        T(straddles_all_or_nothing),
        T(refuses_addresses_that_are_not_canonical),
        T(walks_32_bit_tables),
        T(walks_pae_tables),
        T(fast_path_finds_what_slow_path_entered),
        T(watched_code_gets_no_write_entry),
        T(dirty_log_misses_nothing),
        T(legacy_segments_limit_the_fast_path),
        T(reaches_io),
        T(views_refuse),
        T(probes_without_side_effects),
        T(fills_for_translated_code),
        T(spills_and_reloads_vectors),
    };
    return cmocka_run_group_tests_name("soft mmu", tests, NULL, NULL);
}
