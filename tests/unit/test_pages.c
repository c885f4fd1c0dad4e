/* Tables straight from the host: zeroed, all of them there, and where huge pages can be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/pages.h"

enum { PAGE = 4096, HUGE_PAGE = 2 << 20 };

static void test_pages(void **state) {
    static const size_t sizes[] = {1, PAGE, PAGE + 1, HUGE_PAGE, 3 * HUGE_PAGE + 5 * PAGE - 7};
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t size = sizes[i];
        uint8_t *at = pages_take(size);
        assert_non_null(at);
        assert_int_equal((uintptr_t)at % (size > HUGE_PAGE ? HUGE_PAGE : PAGE), 0);
        for (size_t offset = 0; offset < size; offset++)
            assert_true(at[offset] == 0);
        at[0] = at[size - 1] = 1;
        pages_give_back(at, size);
    }
    pages_give_back(NULL, PAGE);
}

/* More than there is room for in any process. */
static void test_too_many(void **state) {
    assert_null(pages_take((size_t)1 << 60));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pages),
                                       cmocka_unit_test(test_too_many)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
