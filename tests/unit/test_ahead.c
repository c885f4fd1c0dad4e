#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "memory/ahead.h"
#include "memory/scarce.h"

#define CHUNK      MIB(2)
#define RAM_SIZE   GIB(1)
#define READY_MOST (AHEAD_MOST / CHUNK)
#define PATIENCE   (60 * NS_PER_SECOND)

static struct memory *memory;

static int setup(void **state) {
    if (memory_create(&memory, NULL) < 0 || memory_add_ram(memory, "ram", 0, RAM_SIZE, NULL) < 0)
        return -1;
    memory_ahead_start(memory);
    return 0;
}

static int teardown(void **state) {
    memory_destroy(memory);
    return 0;
}

static struct memory_ahead_counts counts(void) {
    struct memory_ahead_counts now;
    memory_ahead_counts(memory, &now);
    return now;
}

/* Nothing is made ready on a host that has no huge pages, or little memory. */
static void need_a_host_that_can(void) {
    char enabled[64] = "";
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
    if (file != NULL) {
        if (fgets(enabled, sizeof enabled, file) == NULL)
            enabled[0] = 0;
        fclose(file);
    }
    if (enabled[0] == 0 || strstr(enabled, "[never]") != NULL || memory_is_scarce(""))
        skip();
}

static void touch(uint64_t chunk) {
    uint64_t word = chunk + 1;
    assert_int_equal(memory_write(memory, chunk * CHUNK + 0x1000, &word, sizeof word), 0);
}

static bool is_fresh(uint64_t chunk) {
    struct mem_page page;
    view_page(memory_default_view(memory), chunk * CHUNK, &page);
    return page.fresh;
}

static void touch_all(const uint64_t *chunks, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        touch(chunks[i]);
}

/* Until so many are ready. */
static void await_ready(uint64_t chunks) {
    uint64_t end = host_clock_ns() + PATIENCE;
    while (counts().ready < chunks && counts().refused == 0) {
        assert_true(host_clock_ns() < end);
        usleep(1000);
    }
    if (counts().refused > 0)
        skip(); /* no huge page to be had just now */
    assert_int_equal(counts().ready, chunks);
}

static const uint64_t upwards[] = {20, 21, 22, 23, 24};

static void a_streak_is_met(void **state) {
    need_a_host_that_can();
    touch_all(upwards, ARRAY_SIZE(upwards));
    assert_true(!is_fresh(24) && is_fresh(25));
    await_ready(3); /* the rest of this block of 4 MiB, and the next */
    assert_true(memory_resident(memory) >= 8 * CHUNK);
    uint64_t met = counts().met, fresh = counts().fresh;
    touch(25);
    touch(26);
    touch(27);
    assert_int_equal(counts().met, met + 3);
    assert_int_equal(counts().fresh, fresh);
    for (uint64_t chunk = 20; chunk <= 27; chunk++) {
        uint64_t word = 0, next = 1;
        memory_read(memory, chunk * CHUNK + 0x1000, &word, sizeof word);
        memory_read(memory, chunk * CHUNK, &next, sizeof next);
        assert_int_equal(word, chunk + 1);
        assert_int_equal(next, 0);
    }
}

static void downwards_too(void **state) {
    static const uint64_t chunks[] = {100, 101, 98, 99, 97};
    need_a_host_that_can();
    touch_all(chunks, ARRAY_SIZE(chunks));
    await_ready(3);
    uint64_t met = counts().met;
    touch(95);
    touch(94);
    touch(96);
    assert_int_equal(counts().met, met + 3);
}

/* The guest touches it later than we do: then it is there, and counts as its own. */
static void what_is_expected_is_there(void **state) {
    need_a_host_that_can();
    memory_ahead_expect(memory, 30 * CHUNK + 0x5000, 3 * CHUNK);
    memory_ahead_expect(memory, RAM_SIZE - CHUNK, AHEAD_EXPECTED_MOST);
    memory_ahead_expect(memory, 200 * CHUNK, CHUNK); /* one too many */
    uint64_t end = host_clock_ns() + PATIENCE;
    while ((is_fresh(30) || is_fresh(31) || is_fresh(32) || is_fresh(33) ||
            is_fresh(RAM_SIZE / CHUNK - 1)) &&
           counts().refused == 0) {
        assert_true(host_clock_ns() < end);
        usleep(1000);
    }
    if (counts().refused > 0)
        skip();
    assert_true(is_fresh(29) && is_fresh(34) && is_fresh(200));
    assert_int_equal(memory_resident(memory), 5 * CHUNK);
    assert_int_equal(counts().ready, 0);
    touch(31);
    assert_int_equal(counts().fresh, 0);
}

/* What is touched here and there is not taken for a streak. */
static void places_apart_are_no_streak(void **state) {
    for (uint64_t chunk = 20; chunk < 300; chunk += 20)
        touch(chunk);
    memory_ahead_stop(memory);
    assert_int_equal(counts().made, 0);
}

static void what_is_ready_is_bounded(void **state) {
    need_a_host_that_can();
    for (uint64_t first = 40; first < 400; first += 100)
        for (uint64_t chunk = first; chunk < first + 20; chunk++)
            touch(chunk);
    await_ready(READY_MOST);
    assert_true(memory_resident(memory) <= (4 * 20 + READY_MOST) * CHUNK);
    touch(340 + 50);
    touch(340 + 52);
    touch(340 + 54);
    memory_ahead_stop(memory);
    assert_int_equal(counts().ready, READY_MOST);
}

/* Bytes that somebody writes without telling stay as they are, and are not counted. */
static void contents_stay(void **state) {
    need_a_host_that_can();
    size_t length = RAM_SIZE;
    uint8_t *host = memory_map(memory, 0, &length, false);
    assert_non_null(host);
    memset(host + 27 * CHUNK, 0xa5, CHUNK);
    touch_all(upwards, ARRAY_SIZE(upwards));
    await_ready(2);
    memory_ahead_stop(memory);
    assert_false(is_fresh(27));
    for (uint64_t i = 0; i < CHUNK; i++)
        assert_int_equal(host[27 * CHUNK + i], 0xa5);
}

static void what_is_given_back_is_fresh_again(void **state) {
    need_a_host_that_can();
    touch_all(upwards, ARRAY_SIZE(upwards));
    await_ready(3);
    assert_true(memory_discard(memory, 0, RAM_SIZE) == RAM_SIZE);
    assert_true(is_fresh(20) && is_fresh(22) && is_fresh(24));
    assert_int_equal(counts().ready, 0);
    assert_true(memory_resident(memory) < CHUNK);
    /* It is not made ready anew with something else; a part of one does not count. */
    uint64_t made = counts().made;
    touch(50);
    memory_discard(memory, 50 * CHUNK, CHUNK - PAGE_SIZE);
    assert_false(is_fresh(50));
    memory_ahead_stop(memory);
    assert_int_equal(counts().made, made);
}

static void nothing_after_the_stop(void **state) {
    memory_ahead_stop(memory);
    memory_ahead_stop(memory);
    touch(20);
    touch(22);
    touch(24);
    assert_int_equal(counts().made, 0);
    assert_true(is_fresh(25) && !is_fresh(24));
}

/* Pages of a restored guest are its own only when it writes to them. */
static void images_are_left_alone(void **state) {
    char name[] = "/tmp/lodge-ahead-XXXXXX";
    int fd = mkstemp(name);
    assert_true(fd >= 0);
    unlink(name);
    assert_int_equal(ftruncate(fd, (off_t)memory_image_size(memory)), 0);
    const struct memory_layer layer = {.fd = fd};
    assert_int_equal(memory_map_image(memory, &layer, 1, NULL), 0);
    for (uint64_t chunk = 20; chunk < 40; chunk++)
        touch(chunk);
    assert_int_equal(counts().made, 0);
    close(fd);
}

static void other_memory_is_left_alone(void **state) {
    struct memory *other;
    struct mem_page page;
    assert_int_equal(memory_create(&other, NULL), 0);
    assert_int_equal(memory_add_ram(other, "small", 0, MIB(16), NULL), 0);
    memory_ahead_start(other); /* less than a chunk would be its share */
    view_page(memory_default_view(other), 0, &page);
    assert_false(page.fresh);
    assert_int_equal(memory_add_pluggable(other, "plug", GIB(4), GIB(1), NULL), 0);
    assert_int_equal(memory_add_ram(other, "odd", GIB(8) + MIB(1), GIB(1), NULL), 0);
    assert_int_equal(memory_add_ram(other, "cut", GIB(16), MIB(5), NULL), 0);
    memory_ahead_start(other);
    assert_int_equal(memory_plug(other, GIB(4), GIB(1), true), 0);
    view_page(memory_default_view(other), GIB(4), &page);
    assert_true(page.host != NULL && !page.fresh);
    view_page(memory_default_view(other), GIB(8) + MIB(1), &page);
    assert_false(page.fresh);
    view_page(memory_default_view(other), GIB(16) + MIB(2), &page);
    assert_true(page.fresh);
    view_page(memory_default_view(other), GIB(16) + MIB(4), &page);
    assert_false(page.fresh);
    memory_destroy(other);
}

/* ---- Whether memory is scarce ---- */

static char root[] = "/tmp/lodge-scarce-XXXXXX";

static void put(const char *name, const char *text) {
    char path[256], *slash;
    snprintf(path, sizeof path, "%s%s", root, name);
    for (slash = strchr(path + sizeof root, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void little_memory_is_seen(void **state) {
    char command[64];
    assert_non_null(mkdtemp(root));
    assert_false(memory_is_scarce(root));
    put("/proc/meminfo", "MemTotal: 4194304 kB\nMemFree: 9 kB\nMemAvailable: 1048576 kB\n");
    assert_false(memory_is_scarce(root));
    put("/proc/meminfo", "MemTotal: 4194304 kB\nMemFree: 9 kB\nMemAvailable: 520000 kB\n");
    assert_true(memory_is_scarce(root)); /* an eighth */
    put("/proc/meminfo", "MemTotal: 1048576 kB\nMemFree: 9 kB\nMemAvailable: 250000 kB\n");
    assert_true(memory_is_scarce(root)); /* 256 MiB */
    put("/proc/meminfo", "MemTotal: 4194304 kB\nMemFree: 9 kB\nMemAvailable: 1048576 kB\n");

    put("/proc/self/cgroup", "5:cpu:/x\n0::/a/b\n");
    put("/sys/fs/cgroup/a/b/memory.max", "max\n");
    put("/sys/fs/cgroup/a/b/memory.current", "1000000000\n");
    put("/sys/fs/cgroup/a/memory.max", "2147483648\n");
    put("/sys/fs/cgroup/a/memory.current", "2000000000\n");
    assert_true(memory_is_scarce(root));
    put("/sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 1000000000\n");
    assert_false(memory_is_scarce(root));
    put("/sys/fs/cgroup/a/b/memory.high", "1000000000\n");
    assert_true(memory_is_scarce(root));
    put("/sys/fs/cgroup/a/b/memory.high", "max\n");
    assert_false(memory_is_scarce(root));

    put("/proc/self/cgroup", "4:memory:/a\n0::/\n");
    put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "2000000000\n");
    assert_false(memory_is_scarce(root));
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741000\n");
    assert_true(memory_is_scarce(root));
    put("/proc/self/cgroup", "what\n::\n4:memory\n");
    assert_false(memory_is_scarce(root));
    snprintf(command, sizeof command, "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_streak_is_met, setup, teardown),
        cmocka_unit_test_setup_teardown(downwards_too, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_expected_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(places_apart_are_no_streak, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_ready_is_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(contents_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_given_back_is_fresh_again, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_after_the_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(images_are_left_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(other_memory_is_left_alone, setup, teardown),
        cmocka_unit_test(little_memory_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
