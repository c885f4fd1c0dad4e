/* Snapshots' memory in files that build upon each other: mapped, checked, merged; damaged, hostile.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "image/file.h"
#include "machine/ram_image.h"
#include "machine/ram_lazy.h"
#include "machine/ram_packed.h"
#include "memory/missing.h"

enum { PAGES = 300, RAM = PAGES * PAGE_SIZE };

static char store[] = "/tmp/lodge-ram-XXXXXX";

static const char *place(const char *name) {
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", store, name);
    return path;
}

static struct memory *make_memory(void) {
    struct memory *memory;
    assert_int_equal(memory_create(&memory, NULL), 0);
    assert_int_equal(memory_add_ram(memory, "low", 0, RAM / 3, NULL), 0);
    assert_int_equal(memory_add_ram(memory, "high", GIB(4), RAM - RAM / 3, NULL), 0);
    return memory;
}

/* By page of the image. */
static void put(struct memory *memory, unsigned page, uint64_t value) {
    uint64_t at = (uint64_t)page * PAGE_SIZE;
    uint64_t gpa = at < RAM / 3 ? at : GIB(4) + at - RAM / 3;
    assert_int_equal(memory_write(memory, gpa + 8, &value, sizeof value), 0);
}

static uint64_t get(struct memory *memory, unsigned page) {
    uint64_t at = (uint64_t)page * PAGE_SIZE, value;
    uint64_t gpa = at < RAM / 3 ? at : GIB(4) + at - RAM / 3;
    assert_int_equal(memory_read(memory, gpa + 8, &value, sizeof value), 0);
    return value;
}

/* What the log tells, upon `base`; NULL: all. */
static void save(struct memory *memory, struct dirty_log *log, const char *name, const char *base) {
    uint64_t changed[PAGES / 64 + 1], written = 0;
    struct ram_map map, base_map = {0};
    if (base != NULL)
        assert_int_equal(ram_map_load(place(base), &base_map, NULL), 0);
    assert_int_equal(ram_map_init(&map, PAGES, base, &base_map), 0);
    ram_map_free(&base_map);
    mkdir(place(name), 0700);
    char ram[PATH_MAX];
    assert_int_equal(path_join(ram, place(name), "ram", NULL), 0);
    int fd = open(ram, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(memory_image_fetch_dirty(memory, log, changed) >= 0);
    assert_int_equal(memory_save_pages(memory, fd, base == NULL ? NULL : changed, &map.pages, NULL,
                                       NULL, &written),
                     0);
    close(fd);
    assert_int_equal(ram_map_store(place(name), &map, NULL), 0);
    ram_map_free(&map);
}

/* By touches, where the host tells of them. */
static void expect_lazily(const char *name, const uint64_t *values, const unsigned *at,
                          unsigned count) {
    struct ram_chain chain;
    struct missing_counters counters;
    struct ram_lazy *lazy = NULL;
    struct memory *memory = make_memory();
    assert_int_equal(ram_chain_open(place(name), PAGES, &chain, NULL), 0);
    int result = ram_lazy_begin(&chain, memory, false, &lazy, NULL);
    assert_true(result == 0 || result == -EPERM || result == -ENOSYS);
    ram_chain_close(&chain);
    if (result == 0) {
        memory_missing_count(memory, &counters);
        assert_int_equal(counters.away, RAM);
        put(memory, at[count - 1], 77);
        for (unsigned i = 0; i < count; i++)
            assert_int_equal(get(memory, at[i]), i + 1 < count ? values[i] : 77);
        for (unsigned page = 0; page < PAGES; page++) { /* and all others are zeros */
            bool named = false;
            for (unsigned i = 0; i < count; i++)
                named |= at[i] == page;
            if (!named)
                assert_int_equal(get(memory, page), 0);
        }
        memory_missing_count(memory, &counters);
        assert_int_equal(counters.away, 0);
    }
    memory_destroy(memory);
    ram_lazy_destroy(lazy);
}

static void expect(const char *name, const uint64_t *values, const unsigned *at, unsigned count) {
    struct ram_chain chain;
    struct memory *memory = make_memory();
    assert_int_equal(ram_chain_open(place(name), PAGES, &chain, NULL), 0);
    assert_int_equal(ram_chain_check(&chain, NULL), 0);
    assert_int_equal(ram_chain_map(&chain, memory, NULL), 0);
    ram_chain_close(&chain);
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(get(memory, at[i]), values[i]);
    put(memory, at[0], 77); /* which no file has */
    memory_destroy(memory);
}

/* Pages at either region's ends, in runs and alone; one that is zero again. */
static const unsigned at[] = {0, 99, 100, 101, 150, 151, 152, 299};
static const uint64_t in_one[] = {1, 2, 3, 4, 5, 6, 7, 8};
static const uint64_t in_two[] = {1, 20, 30, 4, 5, 0, 7, 8};
static const uint64_t in_three[] = {100, 20, 31, 4, 5, 0, 7, 80};

static void put_changes(struct memory *memory, const uint64_t *from, const uint64_t *to) {
    for (unsigned i = 0; i < ARRAY_SIZE(at); i++)
        if (from == NULL || from[i] != to[i])
            put(memory, at[i], to[i]);
}

static void make_three(void) {
    struct memory *memory = make_memory();
    struct dirty_log *log;
    assert_int_equal(memory_dirty_log_open(memory, &log), 0);
    put_changes(memory, NULL, in_one);
    save(memory, log, "one", NULL);
    put_changes(memory, in_one, in_two);
    save(memory, log, "two", "one");
    put_changes(memory, in_two, in_three);
    save(memory, log, "three", "two");
    memory_dirty_log_close(log);
    memory_destroy(memory);
}

static void expect_all(const char *name, const uint64_t *values) {
    expect(name, values, at, ARRAY_SIZE(at));
    expect_lazily(name, values, at, ARRAY_SIZE(at));
}

static void test_chain(void **unused) {
    make_three();
    expect_all("one", in_one);
    expect_all("two", in_two);
    expect_all("three", in_three);
}

/* Whichever goes: those that stay are whole, also for who has them mapped. */
static void test_merge(void **unused) {
    struct ram_chain chain;
    struct memory *mapped = make_memory();
    make_three();
    assert_int_equal(ram_chain_open(place("three"), PAGES, &chain, NULL), 0);
    assert_int_equal(ram_chain_map(&chain, mapped, NULL), 0);
    ram_chain_close(&chain);
    assert_int_equal(ram_merge(place("three"), "one", NULL), 0); /* not its base */
    assert_int_equal(ram_merge(place("three"), "two", NULL), 0);
    remove_tree(place("two"));
    expect_all("three", in_three);
    assert_int_equal(ram_merge(place("three"), "one", NULL), 0);
    remove_tree(place("one"));
    expect_all("three", in_three);
    for (unsigned i = 0; i < ARRAY_SIZE(at); i++)
        assert_int_equal(get(mapped, at[i]), in_three[i]);
    assert_int_equal(ram_chain_open(place("three"), PAGES, &chain, NULL), 0);
    assert_int_equal(chain.count, 1);
    ram_chain_close(&chain);
    memory_destroy(mapped);
}

static void expect_bad(const char *name, int expected, const char *text) {
    struct ram_chain chain;
    struct error err = {0};
    int result = ram_chain_open(place(name), PAGES, &chain, &err);
    if (result == 0)
        result = ram_chain_check(&chain, &err);
    ram_chain_close(&chain);
    assert_int_equal(result, expected);
    if (strstr(err.text, text) == NULL)
        fail_msg("'%s' in '%s'", text, err.text);
}

static void flip(const char *file, off_t where) {
    uint8_t byte;
    int fd = open(place(file), O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, where), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, where), 1);
    close(fd);
}

static void test_damage(void **unused) {
    make_three();
    flip("one/ram", 152 * PAGE_SIZE + 4000);
    expect_bad("three", -EINVAL, "one/ram is damaged: its page 152");
    flip("one/ram", 152 * PAGE_SIZE + 4000);
    flip("two/ram", 151 * PAGE_SIZE); /* a hole */
    expect_bad("three", -EINVAL, "two/ram is damaged: its page 151");
    expect_all("one", in_one);
    make_three();
    flip("two/ram.map", 170);
    expect_bad("three", -EINVAL, "damaged");
    make_three();
    assert_int_equal(truncate(place("two/ram"), RAM - 1), 0);
    expect_bad("three", -EINVAL, "bytes of memory");
}

static void test_other_base(void **unused) {
    struct memory *memory = make_memory();
    struct dirty_log *log;
    make_three();
    assert_int_equal(memory_dirty_log_open(memory, &log), 0);
    save(memory, log, "one", NULL); /* of that name, but not that one */
    expect_bad("three", -EINVAL, "builds upon another snapshot");
    assert_int_equal(ram_merge(place("two"), "one", NULL), 0);
    expect_bad("three", -EINVAL, "builds upon another snapshot");
    remove_tree(place("one"));
    expect_bad("three", -ENOENT, "one/ram.map");
    memory_dirty_log_close(log);
    memory_destroy(memory);
}

static void test_longest_chain(void **unused) {
    struct memory *memory = make_memory();
    struct dirty_log *log;
    char name[16] = "n0", base[16];
    assert_int_equal(memory_dirty_log_open(memory, &log), 0);
    save(memory, log, name, NULL);
    for (unsigned i = 1; i <= RAM_CHAIN_MAX; i++) {
        memcpy(base, name, sizeof base);
        snprintf(name, sizeof name, "n%u", i);
        put(memory, i, i);
        save(memory, log, name, base);
    }
    expect_bad(base, 0, "");
    expect_bad(name, -EINVAL, "builds upon more than");
    memory_dirty_log_close(log);
    memory_destroy(memory);
}

/* Maps with a right sum and anything in them. */
static void test_hostile(void **unused) {
    struct file_bytes good;
    struct ram_map map;
    uint64_t seed = 1;
    make_three();
    assert_int_equal(file_read(place("two/ram.map"), &good, NULL), 0);
    for (unsigned round = 0; round < 20000; round++) {
        uint8_t *bytes = malloc(good.length);
        size_t length = good.length;
        memcpy(bytes, good.data, length);
        for (unsigned i = 0; i < 1 + round % 4; i++) {
            seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
            bytes[(seed >> 33) % (round % 2 ? 128 : length)] = (uint8_t)(seed >> 24);
        }
        if (round % 3 == 0)
            length = (seed >> 40) % (length + 1);
        if (length > 16)
            store_le32(bytes + 12, crc32c(0, bytes + 16, length - 16));
        if (ram_map_parse(bytes, length, &map, NULL) == 0) {
            assert_true(map.pages.count <= good.length * 8);
            ram_map_free(&map);
        }
        free(bytes);
    }
    file_free(&good);
}

/* ---- Compressed ---- */

static void pack(const char *name) {
    char ram[PATH_MAX], packed[PATH_MAX];
    struct ram_map map;
    uint64_t bytes;
    assert_int_equal(path_join(ram, place(name), "ram", NULL), 0);
    assert_int_equal(path_join(packed, place(name), "ram.zst", NULL), 0);
    assert_int_equal(ram_map_load(place(name), &map, NULL), 0);
    int from = open(ram, O_RDONLY), to = open(packed, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(ram_pack(from, &map.pages, to, NULL, NULL, &bytes), 0);
    assert_int_equal(lseek(to, 0, SEEK_END), bytes);
    close(from);
    close(to);
    unlink(ram);
    ram_map_free(&map);
}

/* Some layers, or all; merged ones are not compressed any more. */
static void test_packed(void **unused) {
    static const char *const names[] = {"one", "two", "three"};
    for (unsigned which = 1; which < 8; which++) {
        make_three();
        for (unsigned i = 0; i < 3; i++)
            if (which & 1u << i)
                pack(names[i]);
        expect_all("one", in_one);
        expect_all("two", in_two);
        expect_all("three", in_three);
        assert_int_equal(ram_merge(place("three"), "two", NULL), 0);
        remove_tree(place("two"));
        expect_all("three", in_three);
        assert_int_equal(access(place("three/ram.zst"), F_OK), -1);
        for (unsigned i = 0; i < 3; i++)
            remove_tree(place(names[i]));
    }
}

static void put_file(const char *name, const uint8_t *bytes, size_t length) {
    int fd = open(place(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, bytes, length), length);
    close(fd);
}

/* One chunk, whose frame is `length` bytes of anything, all lengths and sums right. */
static void put_chunk(const void *frame, uint32_t length) {
    uint8_t *file = calloc(1, 24 + length);
    memcpy(file, "LODGEZST\1\0\0\0\1\0\0\0", 16);
    store_le32(file + 16, length);
    store_le32(file + 20, crc32c(0, file, 20));
    memcpy(file + 24, frame, length);
    put_file("two/ram.zst", file, 24 + length);
    free(file);
}

/* Damaged, cut short, of other sizes than the map's pages have: larger, smaller, none, no frames.
 */
static void test_packed_hostile(void **unused) {
    struct file_bytes good;
    static uint8_t zeros[MIB(8)], frame[65536];
    uint64_t seed = 3;
    make_three();
    pack("two");
    assert_int_equal(file_read(place("two/ram.zst"), &good, NULL), 0);
    expect_bad("two", 0, "");
    for (unsigned round = 0; round < 300; round++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        size_t where = (seed >> 33) % good.length;
        good.data[where] ^= (uint8_t)(1u << (seed >> 20 & 7));
        put_file("two/ram.zst", good.data, good.length);
        struct ram_chain chain;
        assert_int_equal(ram_chain_open(place("two"), PAGES, &chain, NULL), 0);
        int result = ram_chain_check(&chain, NULL); /* frames have a few bits that mean nothing */
        assert_true(result == -EINVAL || result == -ENOTSUP || (result == 0 && where >= 24));
        ram_chain_close(&chain);
        good.data[where] ^= (uint8_t)(1u << (seed >> 20 & 7));
        put_file("two/ram.zst", good.data, where);
        expect_bad("two", -EINVAL, "two/ram.zst: ");
    }
    file_free(&good);
    size_t bomb = ZSTD_compress(frame, sizeof frame, zeros, sizeof zeros, 1);
    assert_true(bomb < 4096);
    put_chunk(frame, (uint32_t)bomb);
    expect_bad("two", -EINVAL, "does not become 3 pages");
    put_chunk(frame, (uint32_t)ZSTD_compress(frame, sizeof frame, zeros, 2 * PAGE_SIZE, 1));
    expect_bad("two", -EINVAL, "does not become 3 pages");
    put_chunk(frame, (uint32_t)ZSTD_compress(frame, sizeof frame, zeros, 3 * PAGE_SIZE, 1));
    expect_bad("two", -EINVAL, "is damaged: its page 99 (at");
    put_chunk(zeros, 100);
    expect_bad("two", -EINVAL, "does not become 3 pages");
    put_chunk(zeros, MIB(4));
    expect_bad("two", -EINVAL, "cannot be as long");
}

static int make_store(void **unused) {
    return mkdtemp(store) != NULL ? 0 : -1;
}

static int remove_store(void **unused) {
    remove_tree(store);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chain),         cmocka_unit_test(test_merge),
        cmocka_unit_test(test_damage),        cmocka_unit_test(test_other_base),
        cmocka_unit_test(test_longest_chain), cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_packed),        cmocka_unit_test(test_packed_hostile),
    };
    return cmocka_run_group_tests(tests, make_store, remove_store);
}
