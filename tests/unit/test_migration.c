/* What a move sends: pages packed and unpacked, frames, and what is wrong with either. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "machine/migration_extents.h"
#include "machine/migration_pages.h"
#include "machine/migration_stream.h"
#include "machine/page_set.h"
#include "memory/memory.h"

enum { PAGES = 8 };

struct guest {
    uint8_t pages[PAGES][PAGE_SIZE];
};

static bool take(void *context, uint64_t gpa, enum page_kind kind, const uint8_t *bytes) {
    struct guest *guest = context;
    if (gpa % PAGE_SIZE != 0 || gpa / PAGE_SIZE >= PAGES)
        return false;
    uint8_t *page = guest->pages[gpa / PAGE_SIZE];
    for (size_t i = 0; i < PAGE_SIZE; i++)
        page[i] = kind == PAGE_RAW ? bytes[i] : kind == PAGE_DELTA ? page[i] ^ bytes[i] : 0;
    return true;
}

/* Not to be packed any smaller. */
static void fill(uint8_t *page, uint32_t seed) {
    for (size_t i = 0; i < PAGE_SIZE; i++)
        page[i] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
}

struct rig {
    struct page_packer *packer;
    struct page_unpacker *unpacker;
    struct guest here, there;
};

static struct rig *make_rig(bool compress) {
    struct rig *rig = calloc(1, sizeof *rig);
    assert_non_null(rig);
    assert_int_equal(page_packer_create(compress, &rig->packer, NULL), 0);
    assert_int_equal(page_unpacker_create(&rig->unpacker, NULL), 0);
    return rig;
}

static void free_rig(struct rig *rig) {
    page_packer_destroy(rig->packer);
    page_unpacker_destroy(rig->unpacker);
    free(rig);
}

static size_t send_all(struct rig *rig, bool again) {
    size_t length;
    for (uint64_t i = 0; i < PAGES; i++)
        page_packer_add(rig->packer, i * PAGE_SIZE, rig->here.pages[i], again);
    const uint8_t *body = page_packer_take(rig->packer, &length);
    assert_int_equal(page_unpack(rig->unpacker, body, length, take, &rig->there, NULL), 0);
    assert_memory_equal(&rig->here, &rig->there, sizeof rig->here);
    return length;
}

static void test_pages(void **state) {
    for (int compress = 0; compress < 2; compress++) {
        struct rig *rig = make_rig(compress);
        struct page_counts counts;
        fill(rig->here.pages[1], 1);
        memset(rig->here.pages[2], 7, PAGE_SIZE);
        fill(rig->here.pages[3], 3);
        size_t first = send_all(rig, true);
        assert_true(compress ? first < 3 * PAGE_SIZE : first > 3 * PAGE_SIZE);
        rig->here.pages[1][100] ^= 1;
        memset(rig->here.pages[3], 0, PAGE_SIZE);
        size_t second = send_all(rig, true);
        page_packer_count_all(rig->packer, &counts);
        assert_int_equal(counts.deltas, compress);
        assert_int_equal(counts.unchanged, compress); /* the second page */
        assert_true(compress ? second < 300 : second > 2 * PAGE_SIZE);
        fill(rig->here.pages[3], 4);
        send_all(rig, true);
        free_rig(rig);
    }
}

/* Whatever is wrong is refused, or at least does no harm. */
static void test_damaged_pages(void **state) {
    struct rig *rig = make_rig(true);
    size_t length;
    fill(rig->here.pages[1], 1);
    memset(rig->here.pages[2], 7, PAGE_SIZE);
    for (uint64_t i = 0; i < PAGES; i++)
        page_packer_add(rig->packer, i * PAGE_SIZE, rig->here.pages[i], true);
    const uint8_t *body = page_packer_take(rig->packer, &length);
    uint8_t *copy = malloc(length);
    for (size_t cut = 0; cut < length; cut++) {
        memcpy(copy, body, cut);
        assert_int_equal(page_unpack(rig->unpacker, copy, cut, take, &rig->there, NULL), -EPROTO);
    }
    for (size_t bit = 0; bit < 8 * length; bit++) {
        memcpy(copy, body, length);
        copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
        int result = page_unpack(rig->unpacker, copy, length, take, &rig->there, NULL);
        assert_true(result == 0 || result == -EPROTO);
    }
    store_le32(copy, PAGES_MAX + 1);
    assert_int_equal(page_unpack(rig->unpacker, copy, length, take, &rig->there, NULL), -EPROTO);
    free(copy);
    free_rig(rig);
}

/* ---- Frames ---- */

struct pair {
    struct stream one, other;
    char path[64];
};

static void make_pair(struct pair *pair) {
    const struct tunnel_keys none = {0};
    struct tunnel_listener *listener;
    struct tunnel *tunnel;
    char address[80];
    int fd;
    snprintf(pair->path, sizeof pair->path, "/tmp/lodge-test-%d", (int)getpid());
    snprintf(address, sizeof address, "unix:%s", pair->path);
    assert_int_equal(tunnel_listen(address, &none, &listener, NULL), 0);
    assert_int_equal(tunnel_connect(address, &none, &tunnel, NULL), 0);
    assert_int_equal(stream_create(tunnel, &pair->one, NULL), 0);
    assert_int_equal(tunnel_accept(listener, &fd, NULL), 0);
    assert_int_equal(tunnel_open(listener, fd, &tunnel, NULL), 0);
    assert_int_equal(stream_create(tunnel, &pair->other, NULL), 0);
    tunnel_listener_close(listener);
    assert_int_equal(access(pair->path, F_OK), -1);
}

static void close_pair(struct pair *pair) {
    stream_close(&pair->one);
    stream_close(&pair->other);
}

static void test_frames(void **state) {
    struct pair pair;
    enum stream_type type;
    struct error err;
    json_t *message;
    make_pair(&pair);
    assert_int_equal(stream_send_preamble(&pair.one, NULL), 0);
    assert_int_equal(stream_receive_preamble(&pair.other, NULL), 0);
    assert_int_equal(stream_send(&pair.one, STREAM_STATE, "abc", 3, NULL), 0);
    assert_int_equal(stream_send_json(&pair.one, STREAM_HANDOVER, json_pack("{s:i}", "a", 1), NULL),
                     0);
    assert_int_equal(stream_receive(&pair.other, &type, NULL), 0);
    assert_int_equal(type, STREAM_STATE);
    assert_int_equal(pair.other.length, 3);
    assert_memory_equal(pair.other.body, "abc", 3);
    assert_int_equal(stream_expect(&pair.other, STREAM_HANDOVER, NULL), 0);
    assert_int_equal(stream_json(&pair.other, &message, NULL), 0);
    assert_int_equal(json_integer_value(json_object_get(message, "a")), 1);
    json_decref(message);
    stream_send_json(&pair.other, STREAM_REFUSED, json_pack("{s:s}", "why", "so"), NULL);
    assert_int_equal(stream_expect(&pair.one, STREAM_READY, &err), -EREMOTEIO);
    assert_string_equal(err.text, "so");
    stream_close(&pair.one);
    assert_int_equal(stream_receive(&pair.other, &type, &err), -ECONNRESET);
    close_pair(&pair);
}

/* A frame, as bytes, with one bit wrong; each in a connection of its own. */
static void test_damaged_frames(void **state) {
    uint8_t frame[16 + 3];
    for (unsigned bit = 0; bit < 8 * sizeof frame; bit++) {
        struct pair pair;
        enum stream_type type;
        make_pair(&pair);
        assert_int_equal(stream_send(&pair.one, STREAM_STATE, "abc", 3, NULL), 0);
        assert_int_equal(tunnel_read(pair.other.tunnel, frame, sizeof frame, NULL), 0);
        frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(tunnel_write(pair.one.tunnel, frame, sizeof frame, NULL), 0);
        stream_close(&pair.one);
        int result = stream_receive(&pair.other, &type, NULL);
        assert_true(result == -EPROTO || result == -ECONNRESET);
        close_pair(&pair);
    }
}

/* Page n of RAM. */
static uint64_t page(unsigned n) {
    return (uint64_t)n * PAGE_SIZE;
}

static void test_missing(void **state) {
    enum { LAST = 999 };
    struct page_set *one, *other;
    struct page_cursor at = {0};
    struct memory *memory;
    struct pair pair;
    enum stream_type type;
    struct error err;
    uint64_t gpa;
    assert_int_equal(memory_create(&memory, NULL), 0);
    assert_int_equal(memory_add_ram(memory, "ram", 0, page(LAST + 1), &err), 0);
    assert_int_equal(page_set_create(memory, &one), 0);
    assert_int_equal(page_set_create(memory, &other), 0);
    assert_true(page_set_add(one, page(3)));
    assert_false(page_set_add(one, page(3)));
    assert_true(page_set_add(one, page(64)));
    assert_true(page_set_add(one, page(LAST)));
    assert_false(page_set_add(one, page(LAST + 1)));
    assert_int_equal(page_set_count(one), 3);
    make_pair(&pair);
    assert_int_equal(page_set_send(one, &pair.one, NULL), 0);
    assert_int_equal(stream_receive(&pair.other, &type, NULL), 0);
    assert_int_equal(type, STREAM_MISSING);
    assert_int_equal(page_set_receive(other, pair.other.body, pair.other.length, &err), 0);
    assert_int_equal(page_set_count(other), 3);
    /* Twice, not whole, of no page, behind the end. */
    assert_int_equal(page_set_receive(other, pair.other.body, pair.other.length, &err), -EPROTO);
    assert_int_equal(page_set_receive(other, pair.other.body, 7, &err), -EPROTO);
    page_set_clear(other);
    pair.other.body[0] = 1;
    assert_int_equal(page_set_receive(other, pair.other.body, pair.other.length, &err), -EPROTO);
    store_le64(pair.other.body, page(LAST));
    assert_int_equal(page_set_receive(other, pair.other.body, pair.other.length, &err), -EPROTO);
    assert_int_equal(page_set_count(other), 0);
    assert_true(page_set_take(one, page(64)));
    assert_false(page_set_take(one, page(64)));
    assert_true(page_set_next(one, &at, &gpa) && gpa == page(3));
    at.page++;
    assert_true(page_set_next(one, &at, &gpa) && gpa == page(LAST));
    at.page++;
    assert_false(page_set_next(one, &at, &gpa));
    close_pair(&pair);
    page_set_destroy(one);
    page_set_destroy(other);
    memory_destroy(memory);
}

/* ---- Stretches of disks ---- */

enum { STRETCH = 5 * EXTENT_GRAIN + 512 };

/* Data and zeroes, as they are and packed; and what is cut or changed does no harm. */
static void test_extents(void **state) {
    static uint8_t bytes[STRETCH], there[STRETCH];
    memset(bytes, 7, 2 * EXTENT_GRAIN);
    fill(bytes + 2 * EXTENT_GRAIN, 1);
    bytes[STRETCH - 1] = 1;
    for (int compress = 0; compress < 2; compress++) {
        struct pair pair;
        struct extents *extents;
        uint64_t sent = 0, end = 1 << 20;
        const struct extent data = {.which = 3, .offset = end, .length = STRETCH, .bytes = bytes};
        make_pair(&pair);
        assert_int_equal(extents_create(compress, &extents, NULL), 0);
        assert_int_equal(
            extent_send_split(extents, &pair.one, STREAM_DISK, &data, true, &sent, NULL), 0);
        assert_int_equal(sent, 3 * EXTENT_GRAIN + 512);
        assert_true(compress ? pair.one.bytes < 2 * EXTENT_GRAIN : pair.one.bytes > sent);
        memset(there, 1, sizeof there);
        while (end < (1 << 20) + STRETCH) {
            enum stream_type type;
            struct extent got;
            assert_int_equal(stream_receive(&pair.other, &type, NULL), 0);
            assert_int_equal(extent_read(extents, &pair.other, &got, NULL), 0);
            assert_int_equal(got.which, 3);
            assert_int_equal(got.offset, end);
            if (got.kind == EXTENT_DATA)
                memcpy(there + (end - (1 << 20)), got.bytes, got.length);
            else
                memset(there + (end - (1 << 20)), 0, got.length);
            end += got.length;
            while (pair.other.length-- > 0)
                assert_int_equal(extent_read(extents, &pair.other, &got, NULL), -EPROTO);
        }
        assert_memory_equal(bytes, there, STRETCH);
        extents_destroy(extents);
        close_pair(&pair);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages),   cmocka_unit_test(test_damaged_pages),
        cmocka_unit_test(test_frames),  cmocka_unit_test(test_damaged_frames),
        cmocka_unit_test(test_missing), cmocka_unit_test(test_extents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
