/* A program that differs, with as much of it turned into NOPs as goes. */
#include <string.h>

#include "silicon.h"

static bool differs(struct native *native, struct guest *guest, const struct test_case *test,
                    struct outcome *native_outcome, struct outcome *guest_outcome,
                    const uint64_t *features) {
    struct batch *batch = native_batch(native);
    struct error err;
    batch->count = 1;
    batch->test[0] = *test;
    if (native_run(native, &err) < 0 || batch->native[0].vector == VECTOR_TIMEOUT)
        return false;
    guest_run(guest, test, guest_outcome);
    *native_outcome = batch->native[0];
    return !compare(test, native_outcome, guest_outcome, features);
}

bool shrink_program(struct native *native, struct guest *guest, struct test_case *test,
                    struct outcome *native_outcome, struct outcome *guest_outcome,
                    const uint64_t *features) {
    static struct test_case smaller;
    bool shrunk = true;
    if (!differs(native, guest, test, native_outcome, guest_outcome, features))
        return false;
    while (shrunk) {
        shrunk = false;
        for (unsigned i = test->piece_count; i-- > 0;) {
            unsigned at = test->piece[i].at, length = test->piece[i].length;
            smaller = *test;
            memset(smaller.code + at, 0x90, length);
            if (memcmp(smaller.code, test->code, test->code_length) == 0 ||
                !differs(native, guest, &smaller, native_outcome, guest_outcome, features))
                continue;
            *test = smaller;
            shrunk = true;
        }
    }
    return differs(native, guest, test, native_outcome, guest_outcome, features);
}
