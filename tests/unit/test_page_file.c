/* RAM paged out to a file and back (memory/page_file.h), with a disk that is full or fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/bytes.h"
#include "memory/missing.h"
#include "memory/page_file.h"

#define LOW  MIB(20) /* two slices, the second in part */
#define HIGH GIB(4)
enum { HIGH_SIZE = 1 << 20, HALF = 3 * 512 * PAGE_SIZE };

struct fixture {
    struct memory *memory;
    struct page_file *file;
    char directory[64];
};

static int setup(void **state) {
    static struct fixture f;
    f = (struct fixture){.directory = "/tmp/lodge-pages-XXXXXX"};
    *state = &f;
    if (mkdtemp(f.directory) == NULL || memory_create(&f.memory, NULL) < 0 ||
        memory_add_ram(f.memory, "low", 0, LOW, NULL) < 0 ||
        memory_add_rom(f.memory, "rom", GIB(1), PAGE_SIZE, NULL, 0, NULL) < 0 ||
        memory_add_ram(f.memory, "high", HIGH, HIGH_SIZE, NULL) < 0)
        return -1;
    return page_file_create(f.memory, f.directory, false, &f.file, NULL);
}

static int teardown(void **state) {
    struct fixture *f = *state;
    page_file_destroy(f->file);
    memory_destroy(f->memory);
    return rmdir(f->directory); /* which is empty: the file has no name */
}

static void fill(uint8_t *page, uint64_t gpa, unsigned round) {
    for (unsigned i = 0; i < PAGE_SIZE; i += 8)
        store_le64(page + i, (gpa + i) * UINT64_C(0x9e3779b97f4a7c15) + round);
}

/* Every third page has something in it, every third zeros, the others were never touched. */
static void put(struct fixture *f, uint64_t gpa, uint64_t size, unsigned round) {
    uint8_t page[PAGE_SIZE];
    for (uint64_t at = gpa; at < gpa + size; at += 3 * PAGE_SIZE) {
        fill(page, at, round);
        assert_int_equal(memory_write(f->memory, at, page, sizeof page), 0);
        memset(page, 0, sizeof page);
        if (at + PAGE_SIZE < gpa + size)
            assert_int_equal(memory_write(f->memory, at + PAGE_SIZE, page, sizeof page), 0);
    }
}

static void check(struct fixture *f, uint64_t gpa, uint64_t size, unsigned round) {
    uint8_t page[PAGE_SIZE], expected[PAGE_SIZE];
    for (uint64_t at = gpa; at < gpa + size; at += PAGE_SIZE) {
        if ((at - gpa) / PAGE_SIZE % 3 == 0)
            fill(expected, at, round);
        else
            memset(expected, 0, sizeof expected);
        assert_int_equal(memory_read(f->memory, at, page, sizeof page), 0);
        if (memcmp(page, expected, sizeof page) != 0)
            fail_msg("page %llxh is wrong", (unsigned long long)at);
    }
}

static uint64_t away(struct fixture *f) {
    struct missing_counters counters;
    memory_missing_count(f->memory, &counters);
    return counters.away;
}

static uint64_t page_out(struct fixture *f) {
    uint64_t bytes = 0;
    for (unsigned i = 0; i < page_file_slices(f->file); i++) {
        assert_true(page_file_write(f->file, i) >= 0);
        bytes += page_file_drop(f->file);
    }
    return bytes;
}

/* ---- */

static void test_out_and_in(void **state) {
    struct fixture *f = *state;
    assert_int_equal(page_file_slices(f->file), 3);
    for (unsigned round = 1; round < 4; round++) {
        put(f, 0, LOW, round);
        put(f, HIGH, HIGH_SIZE, round);
        uint64_t before = memory_resident(f->memory);
        uint64_t dropped = page_out(f);
        assert_true(dropped >= 2 * (LOW + HIGH_SIZE) / 3 - 8 * PAGE_SIZE && dropped <= before);
        assert_int_equal(memory_resident(f->memory), before - dropped);
        assert_true(away(f) >= (LOW + HIGH_SIZE) / 3);
        check(f, HIGH, HIGH_SIZE, round);
        check(f, 0, LOW, round);
        assert_int_equal(away(f), 0);
    }
}

/* What changes between the two steps stays. */
static void test_changed_stays(void **state) {
    struct fixture *f = *state;
    uint8_t value[8] = {1, 2, 3, 4, 5, 6, 7, 8}, back[8];
    put(f, 0, LOW, 1);
    assert_true(page_file_write(f->file, 0) > 0);
    assert_int_equal(memory_write(f->memory, 6 * PAGE_SIZE + 100, value, sizeof value), 0);
    assert_int_equal(memory_write(f->memory, 7 * PAGE_SIZE + 100, value, sizeof value), 0);
    assert_int_equal(memory_discard(f->memory, 9 * PAGE_SIZE, PAGE_SIZE), PAGE_SIZE);
    assert_true(page_file_drop(f->file) > 0);
    assert_true(memory_is_here(f->memory, 6 * PAGE_SIZE, 2 * PAGE_SIZE));
    for (unsigned page = 6; page < 8; page++) {
        assert_int_equal(memory_read(f->memory, page * PAGE_SIZE + 100, back, sizeof back), 0);
        assert_memory_equal(back, value, sizeof back);
    }
    memset(value, 0, sizeof value);
    assert_int_equal(memory_read(f->memory, 9 * PAGE_SIZE, back, sizeof back), 0);
    assert_memory_equal(back, value, sizeof back);
}

/* Written out again after it was changed: the newer contents count. */
static void test_again(void **state) {
    struct fixture *f = *state;
    put(f, 0, LOW, 1);
    page_out(f);
    put(f, 0, HALF, 2);
    page_out(f);
    page_out(f);
    check(f, 0, HALF, 2);
    check(f, HALF, LOW - HALF, 1);
}

/* No space: nothing goes, nothing is lost, and later it works. */
static void test_full(void **state) {
    struct fixture *f = *state;
    struct rlimit limit, small = {MIB(1), RLIM_INFINITY};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small.rlim_max = limit.rlim_max;
    put(f, 0, LOW, 1);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int64_t written = page_file_write(f->file, 0);
    uint64_t dropped = page_file_drop(f->file);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(written, -EFBIG);
    assert_int_equal(dropped, 0);
    assert_int_equal(away(f), 0);
    check(f, 0, LOW, 1);
    page_out(f);
    check(f, 0, LOW, 1);
}

/* The descriptor of the file without a name. */
static int find_file(const struct fixture *f) {
    int found = -1;
    DIR *fds = opendir("/proc/self/fd");
    assert_non_null(fds);
    for (const struct dirent *entry; (entry = readdir(fds)) != NULL;) { /* NOLINT: one thread */
        char path[300], target[300] = {0};
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        if (readlink(path, target, sizeof target - 1) > 0 && strstr(target, f->directory) != NULL)
            found = atoi(entry->d_name); /* NOLINT: a number of the kernel's */
    }
    closedir(fds);
    assert_true(found >= 0);
    return found;
}

static void *check_low(void *context) {
    check(context, 0, MIB(1), 1);
    return NULL;
}

/* The file cannot be read for a while: who wants it waits, and goes on with the right contents. */
static void test_unreadable(void **state) {
    struct fixture *f = *state;
    uint8_t *saved = malloc(LOW);
    pthread_t thread;
    put(f, 0, LOW, 1);
    page_out(f);
    int fd = find_file(f);
    ssize_t length = pread(fd, saved, LOW, 0);
    assert_true(length > 0);
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(pthread_create(&thread, NULL, check_low, f), 0);
    while (page_file_error(f->file) == 0)
        sched_yield();
    assert_int_equal(page_file_error(f->file), -EIO);
    assert_int_equal(pwrite(fd, saved, (size_t)length, 0), length);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(page_file_error(f->file), 0);
    check(f, 0, LOW, 1);
    free(saved);
}

static void test_no_directory(void **state) {
    struct memory *memory;
    struct page_file *file;
    struct error err = {0};
    (void)state;
    assert_int_equal(memory_create(&memory, NULL), 0);
    assert_int_equal(page_file_create(memory, "/nowhere", false, &file, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nowhere"));
    memory_destroy(memory);
}

int main(void) {
#define WITH(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH(test_out_and_in), WITH(test_changed_stays), WITH(test_again),
        WITH(test_full),       WITH(test_unreadable),    cmocka_unit_test(test_no_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
