/* Worker threads: what is submitted from anywhere is done once, workers' own chains too. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/pool.h"

enum { JOBS = 64, ROUNDS = 2000, THREADS = 4 };

static struct pool *pool, *other;

struct job {
    struct pool_job job;
    atomic_uint left;
    struct job *branch; /* begun with the chain's second half */
};

/* Goes on with itself, and now and then with two jobs at once: the second needs another worker or
 * is next in turn. */
static void work(void *context, struct pool_job *base) {
    struct job *job = container_of(base, struct job, job);
    assert_ptr_equal(context, &pool);
    unsigned left = atomic_fetch_sub(&job->left, 1) - 1;
    struct job *branch = left == ROUNDS / 2 ? job->branch : NULL;
    if (left > 0)
        assert_int_equal(pool_go_on(pool, &job->job), 0);
    if (branch != NULL)
        assert_int_equal(pool_go_on(pool, &branch->job), 0);
}

static void pass_on(void *context, struct pool_job *base) {
    (void)context;
    assert_int_equal(pool_go_on(pool, base), 0); /* another pool's worker */
}

static void test_chains(void **state) {
    static struct job jobs[JOBS], branches[JOBS];
    (void)state;
    assert_int_equal(pool_create(THREAD_OTHER, THREADS, work, &pool, &pool, NULL), 0);
    assert_int_equal(pool_create(THREAD_OTHER, 1, pass_on, NULL, &other, NULL), 0);
    for (unsigned i = 0; i < JOBS; i++) {
        atomic_store(&jobs[i].left, ROUNDS);
        atomic_store(&branches[i].left, 1);
        jobs[i].branch = &branches[i];
        assert_int_equal(i % 4 == 0   ? pool_submit(other, &jobs[i].job)
                         : i % 4 == 1 ? pool_go_on(pool, &jobs[i].job)
                                      : pool_submit(pool, &jobs[i].job),
                         0);
    }
    pool_drain(other);
    pool_drain(pool);
    for (unsigned i = 0; i < JOBS; i++)
        assert_int_equal(atomic_load(&jobs[i].left) + atomic_load(&branches[i].left), 0);
    pool_destroy(other);
    pool_destroy(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_chains)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
