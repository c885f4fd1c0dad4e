/* Two vCPUs and changed code: what one is told, and asks, in orders that threads come to rarely. */
#include "soft_fixture.h"

#include "cpu/soft/block.h"
#include "cpu/soft/others.h"
#include "cpu/soft/run.h"

enum { PAGES = 80, BUDGET = 1 << 20, RUN_AT = 64, WRITTEN_AT = 68 };
static const uint64_t CODE = 0x300000, LINEAR = UINT64_C(0xffff888000000000);

/* mov $0, %eax; ret */
static const uint8_t code[] = {0xb8, 0, 0, 0, 0, 0xc3};

struct pair {
    struct fixture *fixture;
    struct soft_cpu *alone; /* the fixture's own */
    struct soft_engine engine;
    struct soft_cpu *writer, *runner;
};

static uint64_t page_at(unsigned n) {
    return LINEAR + (uint64_t)n * PAGE_SIZE;
}

static struct soft_cpu *join(struct pair *p, unsigned id) {
    struct soft_cpu *cpu = aligned_alloc(64, round_up(sizeof *cpu, 64));
    memset(cpu, 0, sizeof *cpu);
    cpu->vcpu.engine = &p->engine.engine;
    cpu->vcpu.id = id;
    cpu->several = true;
    cpu->memory = p->fixture->memory;
    cpu->view = memory_default_view(cpu->memory);
    cpu->rflags = FLAGS_FIXED;
    cpu->flags.result = 1;
    cpu->run = calloc(1, sizeof(struct soft_run));
    memset(cpu->features, 0xff, sizeof cpu->features);
    assert_int_equal(mmu_init(cpu, NULL), 0);
    assert_int_equal(block_cache_create(cpu, BUDGET, NULL), 0);
    p->fixture->cpu = cpu;
    fixture_long_mode(p->fixture);
    others_wake(cpu);
    return cpu;
}

static void part(struct soft_cpu *cpu) {
    others_rest(cpu);
    block_cache_destroy(cpu);
    mmu_destroy(cpu);
    free(cpu->run);
    free(cpu);
}

static int start(void **state) {
    struct pair *p = calloc(1, sizeof *p);
    insn_index_init();
    p->fixture = fixture_create();
    p->alone = p->fixture->cpu;
    p->engine.engine.config = p->fixture->engine.config;
    p->engine.engine.config.vcpus = 2;
    others_init(&p->engine);
    p->writer = join(p, 0);
    p->runner = join(p, 1);
    for (unsigned n = 0; n < PAGES; n++) {
        fixture_map(p->fixture, page_at(n), CODE + n * PAGE_SIZE, PT_P | PT_W);
        assert_int_equal(
            memory_write(p->fixture->memory, CODE + n * PAGE_SIZE + RUN_AT, code, sizeof code), 0);
    }
    *state = p;
    return 0;
}

static int stop(void **state) {
    struct pair *p = *state;
    part(p->writer);
    part(p->runner);
    p->fixture->cpu = p->alone;
    fixture_destroy(p->fixture);
    others_destroy(&p->engine);
    free(p);
    return 0;
}

static struct block *find(struct soft_cpu *cpu, unsigned n) {
    cpu->rip = page_at(n) + RUN_AT;
    struct block *block = block_find(cpu, block_key(cpu));
    assert_non_null(block);
    return block;
}

static void write_code(struct soft_cpu *cpu, unsigned n, uint8_t value) {
    store8(cpu, SEG_DS, page_at(n) + WRITTEN_AT, value);
}

static bool has_address(struct soft_cpu *cpu, unsigned n) {
    return access_fast(cpu, TLB_WRITE, SEG_DS, page_at(n) + WRITTEN_AT, 1) != NULL;
}

/* Between two blocks. */
static void look(struct soft_cpu *cpu) {
    if (atomic_load(&cpu->request) & REQUEST_FLUSH)
        mmu_serve_requests(cpu);
}

static void serialise(struct soft_cpu *cpu) {
    soft_serialise(cpu);
    look(cpu);
}

static void tells_what_it_wrote_since(void **state) {
    struct pair *p = *state;
    write_code(p->writer, 0, 1);
    assert_true(has_address(p->writer, 0));
    struct block *block = find(p->runner, 0);
    assert_true(p->runner->unsettled);
    serialise(p->runner);
    assert_true(block->dead);
    block = find(p->runner, 0);
    write_code(p->writer, 0, 2);
    look(p->writer);
    assert_false(has_address(p->writer, 0));
    serialise(p->runner);
    assert_true(block->dead);
    /* From here on each write is told. */
    block = find(p->runner, 0);
    assert_false(p->runner->unsettled);
    write_code(p->writer, 0, 3);
    look(p->runner);
    assert_true(block->dead);
}

/* Nobody watches the page any more when the writer answers: it keeps the address. */
static void is_asked_again_for_what_it_kept(void **state) {
    struct pair *p = *state;
    write_code(p->writer, 0, 1);
    find(p->runner, 0);
    serialise(p->runner);
    look(p->writer);
    assert_true(has_address(p->writer, 0));
    struct block *block = find(p->runner, 0);
    write_code(p->writer, 0, 2);
    look(p->writer);
    serialise(p->runner);
    assert_true(block->dead);
}

static void by_space(struct soft_cpu *cpu) {
    mmu_flush_space(cpu, 0);
}

static void by_page(struct soft_cpu *cpu) {
    mmu_flush_page(cpu, page_at(0));
}

static void by_large_page(struct soft_cpu *cpu) {
    level1_drop_pages(cpu, LINEAR, 512);
}

static void by_restart(struct soft_cpu *cpu) {
    mmu_restart(cpu);
    mmu_flush_all(cpu);
}

static void by_running_it(struct soft_cpu *cpu) {
    find(cpu, 0);
}

/* All that the writer does without a look, once it has been asked. */
static void tells_before_it_forgets(void **state) {
    struct pair *p = *state;
    void (*const ways[])(struct soft_cpu *) = {by_space,      by_page,    by_large_page,
                                               mmu_flush_all, by_restart, mmu_drop_writes,
                                               by_running_it};
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        write_code(p->writer, 0, 1);
        struct block *block = find(p->runner, 0);
        assert_true(has_address(p->writer, 0));
        write_code(p->writer, 0, (uint8_t)(2 + i));
        ways[i](p->writer);
        assert_false(has_address(p->writer, 0));
        look(p->writer);
        serialise(p->runner);
        assert_true(block->dead);
        block_invalidate(p->writer, CODE, PAGE_SIZE);
    }
}

/* Asked when it was about to rest, it answers through whoever serialises. */
static void answers_of_those_at_rest_count_at_once(void **state) {
    struct pair *p = *state;
    write_code(p->writer, 0, 1);
    struct block *block = find(p->runner, 0);
    write_code(p->writer, 0, 2);
    pthread_mutex_unlock(&mmu_of(p->writer)->busy);
    serialise(p->runner);
    assert_true(block->dead);
    others_wake(p->writer);
}

/* More pages than are remembered one by one. */
static void many_changes_count_at_once(void **state) {
    struct pair *p = *state;
    struct block *blocks[PAGES];
    _Static_assert((int)PAGES > (int)MMU_CODE_QUEUE, "the queue overflows");
    for (unsigned n = 0; n < PAGES; n++)
        blocks[n] = find(p->runner, n);
    for (unsigned n = 0; n < PAGES; n++)
        write_code(p->writer, n, 1);
    look(p->runner);
    for (unsigned n = 0; n < PAGES; n++)
        assert_true(blocks[n]->dead);
}

/* Checks that translated code relies on are made anew before the ring of replaced ones is full. */
static void replaced_addresses_are_not_relied_on_for_long(void **state) {
    struct pair *p = *state;
    const uint64_t same_slot = page_at(0) + (uint64_t)TLB_ENTRIES * PAGE_SIZE;
    fixture_map(p->fixture, same_slot, CODE + PAGE_SIZE, PT_P | PT_W);
    uint64_t epoch = p->writer->jit.epoch;
    for (unsigned i = 0; i < MMU_REPLACED / 2; i++)
        store8(p->writer, SEG_DS, (i % 2 == 0 ? page_at(0) : same_slot) + WRITTEN_AT, 1);
    assert_int_not_equal(p->writer->jit.epoch, epoch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(tells_what_it_wrote_since, start, stop),
        cmocka_unit_test_setup_teardown(is_asked_again_for_what_it_kept, start, stop),
        cmocka_unit_test_setup_teardown(tells_before_it_forgets, start, stop),
        cmocka_unit_test_setup_teardown(answers_of_those_at_rest_count_at_once, start, stop),
        cmocka_unit_test_setup_teardown(many_changes_count_at_once, start, stop),
        cmocka_unit_test_setup_teardown(replaced_addresses_are_not_relied_on_for_long, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
