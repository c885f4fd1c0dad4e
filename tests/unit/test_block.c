/* Places: blocks of a page that turns up at another linear address move there. */
#include "soft_fixture.h"

#include "cpu/soft/block_private.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/jit/translation.h"
#include "cpu/soft/run.h"

enum { CODE = 0x300000, BUDGET = 1 << 20, WORDS = 0x800 };
static const uint64_t FIRST = UINT64_C(0x7f1234560000), SECOND = UINT64_C(0x7f9876540000),
                      THIRD = UINT64_C(0x561111110000), LOW = 0x400000;

/* mov words(%rip), %rax; jmp here; here: ret */
static const uint8_t code[] = {0x48, 0x8b, 0x05, 0xf9, 0x07, 0x00, 0x00, 0xeb, 0x00, 0xc3};
enum { HERE = 9 };

static int start(void **state) {
    struct fixture *f = fixture_create();
    fixture_long_mode(f);
    insn_index_init();
    f->cpu->run = calloc(1, sizeof(struct soft_run));
    memset(f->cpu->features, 0xff, sizeof f->cpu->features);
    assert_int_equal(block_cache_create(f->cpu, BUDGET, NULL), 0);
    assert_int_equal(memory_write(f->memory, CODE, code, sizeof code), 0);
    const uint64_t all[] = {FIRST, SECOND, THIRD, LOW};
    for (unsigned i = 0; i < ARRAY_SIZE(all); i++)
        fixture_map(f, all[i], CODE, PT_P | PT_W);
    *state = f;
    return 0;
}

static int stop(void **state) {
    struct fixture *f = *state;
    block_cache_destroy(f->cpu);
    jit_destroy(f->cpu);
    free(f->cpu->run);
    fixture_destroy(f);
    return 0;
}

static struct block *find(struct fixture *f, uint64_t rip) {
    f->cpu->rip = rip;
    struct block *block = block_find(f->cpu, block_key(f->cpu));
    assert_non_null(block);
    assert_int_equal(block->rip, rip);
    return block;
}

static struct block *look(struct fixture *f, uint64_t rip) {
    f->cpu->rip = rip;
    return block_look(f->cpu, block_key(f->cpu));
}

static void moves_when_left(void **state) {
    struct fixture *f = *state;
    struct block *block = find(f, FIRST), *here = find(f, FIRST + HERE);
    assert_int_equal(block->insns[0].disp, FIRST + WORDS);
    block_link(block, 1, here);
    f->cpu->jit.spaces += 2;
    assert_ptr_equal(find(f, SECOND), block);
    assert_int_equal(block->insns[0].disp, SECOND + WORDS);
    assert_ptr_equal(block_chunk(block)->link[1], here);
    assert_ptr_equal(look(f, SECOND + HERE), here);
    assert_null(look(f, FIRST));
    assert_int_equal(f->cpu->count.places_moved, 1);
    /* Its page changes: it goes, where it is now. */
    block_invalidate(f->cpu, CODE, 1);
    assert_true(block->dead);
    assert_null(look(f, SECOND));
}

static void stays_while_it_is_used(void **state) {
    struct fixture *f = *state;
    struct block *first = find(f, FIRST), *second = find(f, SECOND);
    assert_ptr_not_equal(first, second);
    /* Two programs in turn. */
    for (unsigned i = 0; i < 10; i++) {
        f->cpu->jit.spaces++;
        assert_ptr_equal(find(f, FIRST), first);
        f->cpu->jit.spaces++;
        assert_ptr_equal(find(f, SECOND), second);
    }
    /* One has ended; the other goes on beside a new one. */
    f->cpu->jit.spaces++;
    find(f, SECOND);
    f->cpu->jit.spaces++;
    assert_ptr_equal(find(f, THIRD), first);
    assert_ptr_equal(find(f, SECOND), second);
}

static void fixed_addresses_stay(void **state) {
    struct fixture *f = *state;
    struct block *low = find(f, LOW);
    f->cpu->jit.spaces += 100;
    struct block *first = find(f, FIRST);
    assert_ptr_not_equal(first, low);
    f->cpu->jit.spaces += 100;
    assert_ptr_equal(find(f, LOW), low);
    assert_ptr_equal(find(f, FIRST), first);
}

static void breakpoints_hold_it(void **state) {
    struct fixture *f = *state;
    assert_int_equal(block_set_breakpoint(f->cpu, FIRST + HERE, true), 0);
    block_safe_point(f->cpu);
    struct block *block = find(f, FIRST);
    f->cpu->jit.spaces += 100;
    assert_ptr_not_equal(find(f, SECOND), block);
    assert_ptr_equal(find(f, FIRST), block);
}

static void code_moves_along(void **state) {
    struct fixture *f = *state;
    const struct jit_config config = {.heat = 1, .code = JIT_CODE_SIZE};
    if (jit_create(f->cpu, &config, NULL) < 0)
        skip();
    struct block *block = jit_translate(f->cpu, find(f, FIRST));
    assert_non_null(block->code);
    struct jit_block *made = block->code;
    assert_true(made->exit_count > 0);
    const struct jit_exit *exit = jit_exits(made);
    assert_int_equal(jit_exit_rip(made, exit), FIRST + HERE);
    f->cpu->jit.spaces += 2;
    assert_ptr_equal(find(f, SECOND), block);
    assert_ptr_equal(block->code, made);
    assert_int_equal(jit_exit_rip(made, exit), SECOND + HERE);
    assert_int_equal(f->cpu->count.translations, 1);
    /* A dropped block's code goes along with those that are left. */
    find(f, SECOND + HERE);
    block_drop(f->cpu, block);
    f->cpu->jit.spaces += 2;
    find(f, THIRD + HERE);
    assert_int_equal(jit_exit_rip(made, exit), THIRD + HERE);
}

/* The first translation counts its runs; when it is worn another takes its place. */
static void worn_code_is_made_anew(void **state) {
    struct fixture *f = *state;
    const struct jit_config config = {.heat = 1, .runs = 1000, .code = JIT_CODE_SIZE};
    if (jit_create(f->cpu, &config, NULL) < 0)
        skip();
    struct block *block = jit_translate(f->cpu, find(f, FIRST + HERE));
    struct jit_block *first = block->code;
    struct jit *jit = f->cpu->jit.jit;
    assert_non_null(first);
    assert_true(first->counted);
    assert_int_equal(first->site_count, 2); /* the stack's check, called, and the RET */
    assert_ptr_equal(jit_map_find(jit, first->code), first);
    assert_false(jit_wants(f->cpu, block));
    f->cpu->jit.runs_left[first->counter] = -1;
    assert_true(jit_wants(f->cpu, block));
    assert_ptr_equal(jit_translate(f->cpu, block), block);
    assert_ptr_not_equal(block->code, first);
    assert_true(first->dead);
    assert_false(block->code->counted);
    assert_false(jit_wants(f->cpu, block));
    assert_ptr_equal(jit_map_find(jit, block->code->code), block->code);
    /* A jump to the new code is over the old one's entry. */
    const uint8_t *entry = jit_code(jit, first, first->entry_saved);
    int32_t distance;
    memcpy(&distance, entry + 1, sizeof distance);
    assert_int_equal(entry[0], 0xe9);
    assert_ptr_equal(entry + 5 + distance, jit_code(jit, block->code, block->code->entry_saved));
}

/* Room for a block is made by dropping the others of its page: the page is watched nevertheless. */
static void room_is_made_before_the_page_is_watched(void **state) {
    enum { FILLING = 0x400000, FILLING_PAGES = 64, LINEAR = 0x800000 };
    struct fixture *f = *state;
    const struct block_store *store = f->cpu->blocks->store;
    const size_t most =
        sizeof(struct block_chunk) + (BLOCK_INSNS_MAX + 1) * sizeof(struct insn) + BLOCK_ALIGN;
    uint8_t rets[PAGE_SIZE];
    memset(rets, code[HERE], sizeof rets);
    for (uint64_t at = 0; at < FILLING_PAGES * PAGE_SIZE; at += PAGE_SIZE) {
        assert_int_equal(memory_write(f->memory, FILLING + at, rets, sizeof rets), 0);
        fixture_map(f, LINEAR + at, FILLING + at, PT_P);
    }
    struct block *first = find(f, LOW);
    uint64_t at = LINEAR;
    while (store->current < SEGMENTS - 1 ||
           store->segment_size - store->segments[store->current].used >= most)
        find(f, at++);
    assert_true(at < LINEAR + FILLING_PAGES * PAGE_SIZE);
    assert_false(first->dead);
    struct block *second = find(f, LOW + HERE);
    assert_true(first->dead);
    assert_true(memory_is_watched_by(f->memory, CODE, f->cpu->vcpu.id));
    store8(f->cpu, SEG_DS, LOW + HERE, code[HERE]);
    assert_true(second->dead);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(moves_when_left, start, stop),
        cmocka_unit_test_setup_teardown(room_is_made_before_the_page_is_watched, start, stop),
        cmocka_unit_test_setup_teardown(stays_while_it_is_used, start, stop),
        cmocka_unit_test_setup_teardown(fixed_addresses_stay, start, stop),
        cmocka_unit_test_setup_teardown(breakpoints_hold_it, start, stop),
        cmocka_unit_test_setup_teardown(code_moves_along, start, stop),
        cmocka_unit_test_setup_teardown(worn_code_is_made_anew, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
