#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/state.h"

struct inner {
    uint16_t a;
    uint64_t b;
};

struct outer {
    uint8_t scratch; /* not in the table */
    uint8_t r8;
    uint32_t r32;
    bool flag;
    uint16_t words[5];
    uint8_t blob[3][12];
    struct inner one;
    struct inner two[2];
    uint64_t later;
    uint8_t flash[4];
};

static const struct state_field inner_fields[] = {
    STATE_FIELD(struct inner, a, 1, .reset = 0x1234),
    STATE_FIELD(struct inner, b, 1),
};
static const struct state_table inner_table = STATE_TABLE("inner", 1, struct inner, inner_fields);

static const struct state_field outer_fields[] = {
    STATE_FIELD(struct outer, r8, 1, .reset = 3),
    STATE_FIELD(struct outer, r32, 1),
    STATE_FIELD(struct outer, flag, 1, .reset = 1),
    STATE_ARRAY(struct outer, words, 1, .reset = 0xffff),
    STATE_ARRAY(struct outer, blob, 1),
    STATE_NESTED(struct outer, one, &inner_table, 1),
    STATE_NESTED_ARRAY(struct outer, two, &inner_table, 1),
    STATE_FIELD(struct outer, later, 2, .reset = 77),
    STATE_ARRAY(struct outer, flash, 1, .keep = true),
};

static int refuse_r8_9(void *object, struct error *err) {
    struct outer *o = object;
    return o->r8 == 9 ? error_set(err, -EINVAL, "r8 is 9") : 0;
}

static const struct state_table outer_table =
    STATE_TABLE("outer", 2, struct outer, outer_fields, .after_load = refuse_r8_9);

/* The same device a version earlier, and one from the future. */
static const struct state_field old_fields[] = {
    STATE_FIELD(struct outer, r8, 1),
    STATE_FIELD(struct outer, r32, 1),
    STATE_FIELD(struct outer, flag, 1),
    STATE_ARRAY(struct outer, words, 1),
    STATE_ARRAY(struct outer, blob, 1),
    STATE_NESTED(struct outer, one, &inner_table, 1),
    STATE_NESTED_ARRAY(struct outer, two, &inner_table, 1),
    STATE_ARRAY(struct outer, flash, 1),
};
static const struct state_table old_table = STATE_TABLE("outer", 1, struct outer, old_fields);

static struct outer sample(void) {
    struct outer o = {.r8 = 1, .r32 = 0xdeadbeef, .words = {1, 2, 3, 4, 5}, .later = 99};
    o.one = (struct inner){5, 6};
    o.two[1] = (struct inner){7, UINT64_MAX};
    memset(o.blob, 0xa5, sizeof o.blob);
    memcpy(o.flash, "abcd", 4);
    return o;
}

static void reset_values(void **state) {
    struct outer o = sample();
    o.scratch = 42;
    state_reset(&outer_table, &o);
    assert_int_equal(o.r8, 3);
    assert_int_equal(o.r32, 0);
    assert_true(o.flag);
    assert_int_equal(o.words[4], 0xffff);
    assert_int_equal(o.blob[2][11], 0);
    assert_int_equal(o.two[1].a, 0x1234);
    assert_int_equal(o.later, 77);
    assert_memory_equal(o.flash, "abcd", 4);
    assert_int_equal(o.scratch, 42);
}

static void round_trip(void **state) {
    struct outer from = sample(), to = {.scratch = 9};
    struct state_buffer buffer = {0};
    size_t used;
    assert_int_equal(state_save(&outer_table, &from, &buffer, NULL), 0);
    assert_int_equal(state_load(&outer_table, &to, buffer.data, buffer.length, &used, NULL), 0);
    assert_int_equal(used, buffer.length);
    assert_int_equal(to.r32, from.r32);
    assert_false(to.flag);
    assert_memory_equal(to.words, from.words, sizeof from.words);
    assert_memory_equal(to.blob, from.blob, sizeof from.blob);
    assert_int_equal(to.one.b, 6);
    assert_true(to.two[1].b == UINT64_MAX);
    assert_int_equal(to.later, 99);
    assert_memory_equal(to.flash, "abcd", 4);
    assert_int_equal(to.scratch, 9);
    state_buffer_free(&buffer);
}

static void older_state_loads(void **state) {
    struct outer from = sample(), to;
    struct state_buffer buffer = {0};
    size_t used;
    assert_int_equal(state_save(&old_table, &from, &buffer, NULL), 0);
    assert_int_equal(state_load(&outer_table, &to, buffer.data, buffer.length, &used, NULL), 0);
    assert_int_equal(to.words[4], 5);
    assert_int_equal(to.later, 77);
    state_buffer_free(&buffer);
}

static void newer_state_is_refused(void **state) {
    struct outer from = sample(), to;
    struct state_buffer buffer = {0};
    struct error err;
    size_t used;
    assert_int_equal(state_save(&outer_table, &from, &buffer, NULL), 0);
    assert_int_equal(state_load(&old_table, &to, buffer.data, buffer.length, &used, &err),
                     -ENOTSUP);
    assert_non_null(strstr(err.text, "version 2"));
    state_buffer_free(&buffer);
}

static void after_load_refuses_and_resets(void **state) {
    struct outer from = sample(), to;
    struct state_buffer buffer = {0};
    struct error err;
    size_t used;
    from.r8 = 9;
    assert_int_equal(state_save(&outer_table, &from, &buffer, NULL), 0);
    assert_int_equal(state_load(&outer_table, &to, buffer.data, buffer.length, &used, &err),
                     -EINVAL);
    assert_string_equal(err.text, "r8 is 9");
    assert_int_equal(to.r8, 3);
    state_buffer_free(&buffer);
}

/* The bytes live in an allocation of exactly their size, so that ASan sees any overrun. */
static int load_exact(const uint8_t *data, size_t length) {
    uint8_t *copy = malloc(length == 0 ? 1 : length);
    assert_non_null(copy);
    memcpy(copy, data, length);
    struct outer o = {0};
    size_t used;
    struct error err;
    int rc = state_load(&outer_table, &o, copy, length, &used, &err);
    assert_true(used <= length);
    free(copy);
    return rc;
}

static void every_truncation_is_refused(void **state) {
    struct outer from = sample();
    struct state_buffer buffer = {0};
    assert_int_equal(state_save(&outer_table, &from, &buffer, NULL), 0);
    for (size_t length = 0; length < buffer.length; length++)
        assert_int_equal(load_exact(buffer.data, length), -EINVAL);
    assert_int_equal(load_exact(buffer.data, buffer.length), 0);
    state_buffer_free(&buffer);
}

static void corrupted_bytes_do_no_harm(void **state) {
    struct outer from = sample();
    struct state_buffer buffer = {0};
    assert_int_equal(state_save(&outer_table, &from, &buffer, NULL), 0);
    uint32_t random = 12345;
    for (int i = 0; i < 20000; i++) {
        random = random * 1664525 + 1013904223;
        size_t at = (random >> 8) % buffer.length;
        uint8_t old = buffer.data[at];
        buffer.data[at] ^= (uint8_t)(1 + random % 255);
        load_exact(buffer.data, buffer.length);
        buffer.data[at] = old;
    }
    state_buffer_free(&buffer);
}

static void a_bad_boolean_is_refused(void **state) {
    struct outer from = sample();
    struct state_buffer buffer = {0};
    memset(&from.flag, 2, 1);
    assert_int_equal(state_save(&outer_table, &from, &buffer, NULL), 0);
    assert_int_equal(load_exact(buffer.data, buffer.length), -EINVAL);
    state_buffer_free(&buffer);
}

static void printing(void **state) {
    struct outer o = sample();
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    state_print(&outer_table, &o, out);
    fclose(out);
    assert_non_null(strstr(text, "  r32 = 0xdeadbeef\n"));
    assert_non_null(strstr(text, "  flag = false\n"));
    assert_non_null(strstr(text, "  words[0] = 0x1 0x2 0x3 0x4\n  words[4] = 0x5\n"));
    assert_non_null(strstr(text, "  two[1]:\n    a = 0x7\n"));
    free(text);
}

/* Bytes that the object points to, as many as it was made with. */
struct pointing {
    uint8_t *bytes;
    size_t length;
    uint8_t last;
};
static const struct state_field pointing_fields[] = {
    STATE_BYTES(struct pointing, bytes, length, 1),
    STATE_FIELD(struct pointing, last, 1),
};
static const struct state_table pointing_table =
    STATE_TABLE("pointing", 1, struct pointing, pointing_fields);

static void bytes_elsewhere(void **state) {
    uint8_t from[5] = "abcde", to[5] = "vwxyz";
    struct pointing a = {from, 5, 7}, b = {to, 5, 0};
    struct state_buffer out = {0};
    struct error err = {0};
    size_t used;
    assert_int_equal(state_save(&pointing_table, &a, &out, NULL), 0);
    assert_int_equal(state_load(&pointing_table, &b, out.data, out.length, &used, NULL), 0);
    assert_int_equal(used, out.length);
    assert_memory_equal(to, "abcde", 5);
    assert_int_equal(b.last, 7);
    assert_ptr_equal(b.bytes, to);
    state_reset(&pointing_table, &b);
    assert_memory_equal(to, "abcde", 5);
    b.length = 4;
    assert_int_equal(state_load(&pointing_table, &b, out.data, out.length, &used, &err), -EINVAL);
    assert_non_null(strstr(err.text, "bytes has another shape"));
    for (size_t cut = 0; cut < out.length; cut++) {
        b.length = 5;
        assert_true(state_load(&pointing_table, &b, out.data, cut, &used, NULL) < 0);
    }
    state_buffer_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reset_values),
        cmocka_unit_test(round_trip),
        cmocka_unit_test(older_state_loads),
        cmocka_unit_test(newer_state_is_refused),
        cmocka_unit_test(after_load_refuses_and_resets),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(corrupted_bytes_do_no_harm),
        cmocka_unit_test(a_bad_boolean_is_refused),
        cmocka_unit_test(printing),
        cmocka_unit_test(bytes_elsewhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
