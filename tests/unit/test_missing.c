/* Memory that comes when it is touched (memory/missing.h): a source that answers at once, later, or
 * never. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>
#include <semaphore.h>
#include <unistd.h>

#include "base/bytes.h"
#include "memory/missing.h"

#define RAM_SIZE MIB(2)
#define HIGH     GIB(4)
enum { PAGES = RAM_SIZE >> PAGE_SHIFT, RECORD = 4 * PAGES }; /* what a test asks for, and more */

struct fixture {
    struct memory *memory;
    bool at_once; /* wants are answered within want() */
    pthread_mutex_t mutex;
    uint64_t wanted[RECORD];
    bool waits[RECORD];
    unsigned count;
    sem_t want, here;
    unsigned told;
};

/* A page's contents follow from its address. */
static void fill(uint8_t *page, uint64_t gpa) {
    for (unsigned i = 0; i < PAGE_SIZE; i += 8)
        store_le64(page + i, gpa * UINT64_C(0x9e3779b97f4a7c15) + i);
}

static void supply(struct fixture *f, uint64_t gpa) {
    uint8_t page[PAGE_SIZE];
    fill(page, gpa);
    assert_int_equal(memory_supply(f->memory, gpa, page, PAGE_SIZE), PAGE_SIZE);
}

static void want(void *context, uint64_t gpa, bool waits) {
    struct fixture *f = context;
    pthread_mutex_lock(&f->mutex);
    f->wanted[f->count % RECORD] = gpa;
    f->waits[f->count % RECORD] = waits;
    f->count++;
    pthread_mutex_unlock(&f->mutex);
    if (f->at_once)
        supply(f, gpa);
    sem_post(&f->want);
}

static int setup(void **state) {
    static struct fixture f;
    const struct missing_source source = {want, &f};
    f = (struct fixture){.at_once = true};
    pthread_mutex_init(&f.mutex, NULL);
    sem_init(&f.want, 0, 0);
    sem_init(&f.here, 0, 0);
    *state = &f;
    struct error err = {0};
    if (memory_create(&f.memory, NULL) < 0 ||
        memory_add_ram(f.memory, "low", 0, RAM_SIZE, NULL) < 0 ||
        memory_add_rom(f.memory, "rom", RAM_SIZE, PAGE_SIZE, NULL, 0, NULL) < 0 ||
        memory_add_pluggable(f.memory, "high", HIGH, RAM_SIZE, NULL) < 0)
        return -1;
    if (memory_missing_begin(f.memory, &source, false, &err) < 0) {
        print_message("%s\n", err.text);
        return -1;
    }
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    memory_destroy(f->memory);
    sem_destroy(&f->want);
    sem_destroy(&f->here);
    return 0;
}

static uint64_t read64(struct fixture *f, uint64_t gpa) {
    uint8_t bytes[8];
    assert_int_equal(memory_read(f->memory, gpa, bytes, sizeof bytes), 0);
    return load_le64(bytes);
}

static void check_page(struct fixture *f, uint64_t gpa) {
    uint8_t page[PAGE_SIZE], expected[PAGE_SIZE];
    fill(expected, gpa);
    assert_int_equal(memory_read(f->memory, gpa, page, sizeof page), 0);
    assert_memory_equal(page, expected, sizeof page);
}

static uint64_t away(struct fixture *f) {
    struct missing_counters counters;
    memory_missing_count(f->memory, &counters);
    return counters.away;
}

static void *read_page(void *context) {
    struct fixture *f = context;
    check_page(f, 3 * PAGE_SIZE);
    return NULL;
}

static void here(void *context) {
    struct fixture *f = context;
    f->told++;
    sem_post(&f->here);
}

/* ---- */

static void test_touch_brings_the_page(void **state) {
    struct fixture *f = *state;
    assert_int_equal(memory_take(f->memory, 0, RAM_SIZE), 0);
    assert_int_equal(away(f), RAM_SIZE);
    assert_false(memory_is_here(f->memory, 5 * PAGE_SIZE + 100, 1));
    check_page(f, 5 * PAGE_SIZE);
    assert_int_equal(away(f), RAM_SIZE - PAGE_SIZE);
    assert_true(memory_is_here(f->memory, 5 * PAGE_SIZE, PAGE_SIZE));
    assert_false(memory_is_here(f->memory, 5 * PAGE_SIZE, PAGE_SIZE + 1));
    assert_int_equal(f->count, 1);
    assert_true(f->waits[0]);
    for (unsigned i = 0; i < PAGES; i++)
        check_page(f, (uint64_t)i * PAGE_SIZE);
    assert_int_equal(f->count, PAGES);
    assert_int_equal(away(f), 0);
}

/* What is written to a page that is away lies over what the source has. */
static void test_write(void **state) {
    struct fixture *f = *state;
    uint8_t page[PAGE_SIZE], value[4] = {1, 2, 3, 4};
    assert_int_equal(memory_take(f->memory, 0, RAM_SIZE), 0);
    assert_int_equal(memory_write(f->memory, PAGE_SIZE + 8, value, sizeof value), 0);
    fill(page, PAGE_SIZE);
    assert_int_equal(read64(f, PAGE_SIZE), load_le64(page));
    assert_int_equal(read64(f, PAGE_SIZE + 16), load_le64(page + 16));
    assert_int_equal((uint32_t)read64(f, PAGE_SIZE + 8), 0x04030201);
}

/* Memory that was never touched is zeros as before, and nobody is asked. */
static void test_untouched(void **state) {
    struct fixture *f = *state;
    for (unsigned i = 0; i < PAGES; i++)
        assert_int_equal(read64(f, (uint64_t)i * PAGE_SIZE), 0);
    assert_int_equal(f->count, 0);
}

/* What is mapped can be handed to the kernel, which need not be able to wait for pages. */
static void test_mapped_memory_is_there(void **state) {
    struct fixture *f = *state;
    uint8_t expected[3 * PAGE_SIZE], bytes[3 * PAGE_SIZE];
    size_t length = 2 * PAGE_SIZE + 10;
    int pipes[2];
    assert_int_equal(memory_take(f->memory, 0, RAM_SIZE), 0);
    void *host = memory_map(f->memory, PAGE_SIZE - 5, &length, false);
    assert_non_null(host);
    assert_int_equal(length, 2 * PAGE_SIZE + 10);
    assert_int_equal(f->count, 4);
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(write(pipes[1], host, length), length);
    assert_int_equal(read(pipes[0], bytes, length), length);
    for (unsigned i = 0; i < 3; i++)
        fill(expected + i * PAGE_SIZE, (uint64_t)i * PAGE_SIZE);
    assert_memory_equal(bytes, expected + PAGE_SIZE - 5, 2 * PAGE_SIZE + 5);
    close(pipes[0]);
    close(pipes[1]);
}

/* Asked for without waiting, told when it comes; others go on meanwhile. */
static void test_await(void **state) {
    struct fixture *f = *state;
    struct memory_wait wait = {.here = here, .context = f}, other = wait;
    f->at_once = false;
    assert_int_equal(memory_take(f->memory, 0, 8 * PAGE_SIZE), 0);
    assert_false(memory_await(f->memory, 8 * PAGE_SIZE, PAGE_SIZE, &wait));
    assert_true(memory_await(f->memory, PAGE_SIZE + 1, 2 * PAGE_SIZE, &wait));
    assert_true(memory_await(f->memory, 5 * PAGE_SIZE, PAGE_SIZE, &other));
    for (unsigned i = 0; i < 4; i++)
        sem_wait(&f->want);
    for (unsigned i = 0; i < 4; i++)
        assert_false(f->waits[i]);
    assert_int_equal(f->told, 0);
    supply(f, 3 * PAGE_SIZE); /* not the first of the range */
    assert_int_equal(f->told, 0);
    supply(f, PAGE_SIZE);
    assert_int_equal(f->told, 1);
    assert_true(memory_await(f->memory, PAGE_SIZE + 1, 2 * PAGE_SIZE, &wait));
    memory_await_cancel(f->memory, &other);
    supply(f, 5 * PAGE_SIZE);
    assert_int_equal(f->told, 1);
    supply(f, 2 * PAGE_SIZE);
    assert_int_equal(f->told, 2);
    check_page(f, 2 * PAGE_SIZE);
}

/* A page asked for ahead and then touched: the source hears that somebody waits. */
static void test_ask_then_touch(void **state) {
    struct fixture *f = *state;
    pthread_t thread;
    f->at_once = false;
    assert_int_equal(memory_take(f->memory, 0, RAM_SIZE), 0);
    memory_ask(f->memory, 3 * PAGE_SIZE, 1);
    sem_wait(&f->want);
    assert_int_equal(pthread_create(&thread, NULL, read_page, f), 0);
    sem_wait(&f->want);
    assert_int_equal(f->wanted[1], 3 * PAGE_SIZE);
    assert_true(f->waits[1]);
    supply(f, 3 * PAGE_SIZE);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* Given back while it is away: zeros, whatever the source sends later. */
static void test_discard(void **state) {
    struct fixture *f = *state;
    struct memory_wait wait = {.here = here, .context = f};
    uint8_t page[PAGE_SIZE];
    f->at_once = false;
    assert_int_equal(memory_take(f->memory, 0, 4 * PAGE_SIZE), 0);
    assert_true(memory_await(f->memory, PAGE_SIZE, PAGE_SIZE, &wait));
    sem_wait(&f->want);
    assert_int_equal(memory_discard(f->memory, 0, 2 * PAGE_SIZE), 2 * PAGE_SIZE);
    assert_int_equal(f->told, 1);
    assert_int_equal(away(f), 2 * PAGE_SIZE);
    fill(page, PAGE_SIZE);
    assert_int_equal(memory_supply(f->memory, PAGE_SIZE, page, PAGE_SIZE), 0);
    assert_int_equal(read64(f, PAGE_SIZE), 0);
    /* What is here is zeros after being given back as well. */
    assert_int_equal(memory_write(f->memory, PAGE_SIZE, page, PAGE_SIZE), 0);
    assert_int_equal(memory_discard(f->memory, PAGE_SIZE, PAGE_SIZE), PAGE_SIZE);
    assert_int_equal(read64(f, PAGE_SIZE), 0);
}

static void test_unplug(void **state) {
    struct fixture *f = *state;
    uint8_t value[8] = {1};
    assert_int_equal(memory_plug(f->memory, HIGH, RAM_SIZE, true), 0);
    assert_int_equal(memory_write(f->memory, HIGH, value, sizeof value), 0);
    assert_int_equal(memory_take(f->memory, HIGH, RAM_SIZE), 0);
    check_page(f, HIGH + PAGE_SIZE);
    assert_int_equal(memory_plug(f->memory, HIGH, RAM_SIZE, false), 0);
    assert_int_equal(away(f), 0);
    assert_int_equal(memory_plug(f->memory, HIGH, RAM_SIZE, true), 0);
    assert_int_equal(read64(f, HIGH), 0);
}

/* Zeros and several pages at once; what has been written meanwhile stays. */
static void test_supply_in_bulk(void **state) {
    struct fixture *f = *state;
    static uint8_t pages[RAM_SIZE];
    assert_int_equal(memory_take(f->memory, 0, RAM_SIZE), 0);
    check_page(f, 7 * PAGE_SIZE);
    assert_int_equal(away(f), RAM_SIZE - PAGE_SIZE);
    assert_int_equal(memory_supply(f->memory, 0, NULL, 16 * PAGE_SIZE), 15 * PAGE_SIZE);
    check_page(f, 7 * PAGE_SIZE);
    assert_int_equal(read64(f, 8 * PAGE_SIZE), 0);
    for (unsigned i = 0; i < PAGES; i++)
        fill(pages + (size_t)i * PAGE_SIZE, (uint64_t)i * PAGE_SIZE);
    assert_int_equal(memory_missing_end(f->memory), -EBUSY);
    assert_int_equal(memory_supply(f->memory, 0, pages, RAM_SIZE), RAM_SIZE - 16 * PAGE_SIZE);
    for (unsigned i = 16; i < PAGES; i++)
        check_page(f, (uint64_t)i * PAGE_SIZE);
    assert_int_equal(f->count, 1);
    assert_int_equal(memory_missing_end(f->memory), 0);
    assert_int_equal(memory_take(f->memory, 0, PAGE_SIZE), -EFAULT);
}

static void test_prefetch(void **state) {
    struct fixture *f = *state;
    assert_int_equal(memory_plug(f->memory, HIGH, RAM_SIZE, true), 0);
    assert_int_equal(memory_take(f->memory, MIB(1), MIB(1)), 0);
    assert_int_equal(memory_take(f->memory, HIGH, RAM_SIZE), 0);
    memory_prefetch(f->memory, 16);
    for (unsigned i = 0; i < PAGES / 2 + PAGES; i++)
        sem_wait(&f->want);
    assert_int_equal(away(f), 0);
    check_page(f, MIB(1));
    check_page(f, HIGH + RAM_SIZE - PAGE_SIZE);
}

/* No more than so many at a time. */
static void test_prefetch_depth(void **state) {
    struct fixture *f = *state;
    f->at_once = false;
    assert_int_equal(memory_take(f->memory, 0, RAM_SIZE), 0);
    memory_prefetch(f->memory, 4);
    for (unsigned i = 0; i < 4; i++)
        sem_wait(&f->want);
    memory_ask(f->memory, 100 * PAGE_SIZE, 1); /* after which the thread has looked */
    sem_wait(&f->want);
    assert_int_equal(f->count, 5);
    assert_int_equal(f->wanted[4], 100 * PAGE_SIZE);
    supply(f, f->wanted[0]);
    supply(f, 100 * PAGE_SIZE);
    sem_wait(&f->want);
    assert_int_equal(f->count, 6);
}

/* The source is gone: who stands still goes on, and nothing leaves memory any more. */
static void *read_lost(void *context) {
    struct fixture *f = context;
    uint8_t bytes[8];
    assert_int_equal(memory_read(f->memory, 3 * PAGE_SIZE, bytes, sizeof bytes), -EFAULT);
    return NULL;
}

static void test_lose(void **state) {
    struct fixture *f = *state;
    struct memory_wait wait = {.here = here, .context = f};
    pthread_t thread;
    uint8_t bytes[8];
    size_t length = 8;
    f->at_once = false;
    assert_int_equal(memory_take(f->memory, 0, RAM_SIZE), 0);
    assert_true(memory_await(f->memory, PAGE_SIZE, PAGE_SIZE, &wait));
    sem_wait(&f->want);
    assert_int_equal(pthread_create(&thread, NULL, read_lost, f), 0);
    sem_wait(&f->want);
    memory_missing_lose(f->memory);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(f->told, 1);
    assert_int_equal(memory_read(f->memory, 9 * PAGE_SIZE, bytes, sizeof bytes), -EFAULT);
    assert_int_equal(memory_write(f->memory, 9 * PAGE_SIZE, bytes, sizeof bytes), -EFAULT);
    assert_null(memory_map(f->memory, 0, &length, true));
    assert_true(memory_is_here(f->memory, 0, RAM_SIZE));
}

static void test_bad_ranges(void **state) {
    struct fixture *f = *state;
    const struct missing_source source = {want, f};
    struct error err = {0};
    assert_int_equal(memory_take(f->memory, 1, PAGE_SIZE), -EFAULT);
    assert_int_equal(memory_take(f->memory, 0, PAGE_SIZE + 1), -EFAULT);
    assert_int_equal(memory_take(f->memory, RAM_SIZE, PAGE_SIZE), -EFAULT); /* ROM */
    assert_int_equal(memory_take(f->memory, GIB(1), PAGE_SIZE), -EFAULT);
    assert_int_equal(memory_supply(f->memory, GIB(1), NULL, PAGE_SIZE), 0);
    assert_true(memory_is_here(f->memory, GIB(1), PAGE_SIZE));
    assert_true(memory_is_here(f->memory, 0, 0));
    assert_int_equal(memory_take(f->memory, 0, PAGE_SIZE), 0);
    assert_true(memory_is_here(f->memory, 0, 0));
    assert_true(memory_is_here(f->memory, UINT64_MAX, UINT64_MAX));
    memory_ask(f->memory, UINT64_MAX - 1, 100);
    assert_int_equal(memory_missing_begin(f->memory, &source, false, &err), -EBUSY);
}

/* A file with all of RAM is made of what is away too. */
static void test_image(void **state) {
    struct fixture *f = *state;
    uint8_t page[PAGE_SIZE], expected[PAGE_SIZE];
    uint64_t written = 0;
    struct memory_pages pages;
    FILE *file = tmpfile();
    assert_non_null(file);
    assert_int_equal(memory_pages_init(&pages, memory_image_size(f->memory) / PAGE_SIZE), 0);
    assert_int_equal(memory_take(f->memory, 0, 2 * PAGE_SIZE), 0);
    assert_int_equal(memory_save_pages(f->memory, fileno(file), NULL, &pages, NULL, NULL, &written),
                     0);
    memory_pages_free(&pages);
    for (unsigned i = 0; i < 2; i++) {
        fill(expected, (uint64_t)i * PAGE_SIZE);
        assert_int_equal(pread(fileno(file), page, sizeof page, i * PAGE_SIZE), PAGE_SIZE);
        assert_memory_equal(page, expected, sizeof page);
    }
    assert_int_equal(written, 2 * PAGE_SIZE);
    fclose(file);
}

/* Many threads touch everything, in orders of their own, while pages come by other ways too. */
static void *read_all(void *context) {
    struct fixture *f = context;
    for (unsigned i = 0; i < PAGES; i++)
        check_page(f, (uint64_t)(i * 37 % PAGES) * PAGE_SIZE);
    return NULL;
}

static void test_crowd(void **state) {
    struct fixture *f = *state;
    const struct missing_source source = {want, f};
    struct error err = {0};
    pthread_t threads[4];
    assert_int_equal(memory_missing_end(f->memory), 0);
    for (unsigned round = 0; round < 4; round++) {
        assert_int_equal(memory_missing_begin(f->memory, &source, false, &err), 0);
        assert_int_equal(memory_take(f->memory, 0, RAM_SIZE), 0);
        for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
            assert_int_equal(pthread_create(&threads[i], NULL, read_all, f), 0);
        memory_prefetch(f->memory, 8);
        for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
            assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(memory_missing_end(f->memory), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_touch_brings_the_page, setup, teardown),
        cmocka_unit_test_setup_teardown(test_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_untouched, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mapped_memory_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(test_await, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ask_then_touch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_discard, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unplug, setup, teardown),
        cmocka_unit_test_setup_teardown(test_supply_in_bulk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_prefetch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_prefetch_depth, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lose, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_ranges, setup, teardown),
        cmocka_unit_test_setup_teardown(test_image, setup, teardown),
        cmocka_unit_test_setup_teardown(test_crowd, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
