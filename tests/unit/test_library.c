/* Libraries that are loaded when they are needed. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/library.h"

#define FUNCTIONS(F) F(fabs) F(ldexp)

static void functions_are_found_once(void **state) {
    static struct { FUNCTIONS(LIBRARY_POINTER) } lib;
    static const char *const names[] = {FUNCTIONS(LIBRARY_NAME)};
    (void)state;
    assert_int_equal(library_load("libm.so.6", names, ARRAY_SIZE(names), &lib, NULL), 0);
    assert_true(lib.fabs(-3) == 3);
    assert_true(lib.ldexp(3, 2) == 12);
    /* It is known, whatever the file's name is now. */
    assert_int_equal(library_load("libnone.so.1", names, ARRAY_SIZE(names), &lib, NULL), 0);
    assert_true(lib.fabs(-2) == 2);
}

static void what_is_missing_is_named(void **state) {
    static const char *const names[] = {"fabs", "no_such_function", "ldexp"};
    void *functions[3] = {NULL};
    struct error err = {0};
    (void)state;
    assert_int_equal(library_load("libnone.so.1", names, ARRAY_SIZE(names), functions, &err),
                     -ENOENT);
    assert_non_null(strstr(err.text, "libnone.so.1"));
    assert_int_equal(library_load("libm.so.6", names, ARRAY_SIZE(names), functions, &err), -ENOENT);
    assert_non_null(strstr(err.text, "libm.so.6"));
    assert_non_null(strstr(err.text, "no_such_function"));
    assert_null(functions[2]); /* so that the next one looks again */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(functions_are_found_once),
        cmocka_unit_test(what_is_missing_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
