/* Messages are one line that can be printed, whatever is put into them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <string.h>

#include "base/error.h"

static void test_words(void **state) {
    struct error err;
    assert_int_equal(error_set(&err, -EIO, "disk%u", 3), -EIO);
    assert_string_equal(err.text, "disk3");
    assert_int_equal(error_set_errno(&err, -ENOENT, "%s", "caf\xc3\xa9"), -ENOENT);
    assert_string_equal(err.text, "caf\xc3\xa9: No such file or directory");
    assert_int_equal(error_prefix(&err, "'%s'", "box"), -ENOENT);
    assert_string_equal(err.text, "'box': caf\xc3\xa9: No such file or directory");
    assert_int_equal(error_set(NULL, -EIO, "nobody hears"), -EIO);
}

static void test_not_to_be_printed(void **state) {
    static const struct {
        const char *said, *told;
    } cases[] = {
        {"two\nlines\033[2J\177", "two?lines?[2J?"},
        {"\xc2\x9b"
         "2J",
         "??2J"},                            /* a control character of its own */
        {"\xc0\xaf \xe0\x80\xaf", "?? ???"}, /* longer than it has to be */
        {"\xed\xa0\x80", "???"},             /* half of a pair */
        {"\xf4\x90\x80\x80", "????"},        /* beyond the last */
        {"\x80 \xff \xe2\x82", "? ? ??"},
        {"\xe2\x82\xac \xf0\x9f\x98\x80", "\xe2\x82\xac \xf0\x9f\x98\x80"},
    };
    struct error err;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        error_set(&err, -EPROTO, "%s", cases[i].said);
        assert_string_equal(err.text, cases[i].told);
    }
}

/* Whatever is cut off, JSON takes the rest. */
static void test_long(void **state) {
    char text[3 * ERROR_TEXT_MAX + 1];
    struct error err;
    for (size_t shift = 0; shift < 3; shift++) {
        memset(text, 'x', shift);
        for (size_t i = shift; i + 3 < sizeof text; i += 3)
            memcpy(text + i, "\xe2\x82\xac", 4);
        error_set(&err, -EPROTO, "%s", text);
        json_t *string = json_string(err.text);
        assert_non_null(string);
        json_decref(string);
        error_prefix(&err, "it");
        string = json_string(err.text);
        assert_non_null(string);
        json_decref(string);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_not_to_be_printed),
        cmocka_unit_test(test_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
