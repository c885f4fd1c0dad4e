#include "base/thread.h"

#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

static void (*on_begin)(enum thread_kind kind);

void thread_on_begin(void (*call)(enum thread_kind kind)) {
    on_begin = call;
}

/* This thread's; a process's first thread is like any. */
static _Thread_local enum thread_kind own_kind = THREAD_OTHER;

void thread_begins(enum thread_kind kind, const char *name) {
    own_kind = kind;
    pthread_setname_np(pthread_self(), name);
    if (on_begin != NULL)
        on_begin(kind);
}

enum { TURN_NS = 100000 }; /* the least that the kernel knows */

/* ---- Threads that another starts ---- */

struct order {
    pthread_t *thread;
    const pthread_attr_t *attributes;
    void *(*run)(void *context);
    void *context;
    int result;
    bool done;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t ordered, done;
    struct order *order;
    bool there;
} maker = {.lock = PTHREAD_MUTEX_INITIALIZER,
           .ordered = PTHREAD_COND_INITIALIZER,
           .done = PTHREAD_COND_INITIALIZER};

static int start(struct order *order) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int result = pthread_create(order->thread, order->attributes, order->run, order->context);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return result;
}

static void *make_threads(void *context) {
    thread_begins(THREAD_OTHER, "threads");
    pthread_mutex_lock(&maker.lock);
    for (;;) {
        while (maker.order == NULL || maker.order->done)
            pthread_cond_wait(&maker.ordered, &maker.lock);
        maker.order->result = start(maker.order);
        maker.order->done = true;
        pthread_cond_broadcast(&maker.done);
    }
    return NULL;
}

int thread_maker_start(void) {
    pthread_t thread;
    struct order order = {.thread = &thread, .run = make_threads};
    int result = start(&order);
    if (result == 0)
        pthread_detach(thread);
    maker.there = result == 0;
    return -result;
}

int thread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *context),
                  void *context) {
    struct order order = {thread, attributes, run, context, 0, false};
    if (own_kind == THREAD_OTHER || !maker.there)
        return start(&order);
    pthread_mutex_lock(&maker.lock);
    while (maker.order != NULL)
        pthread_cond_wait(&maker.done, &maker.lock);
    maker.order = &order;
    pthread_cond_signal(&maker.ordered);
    while (!order.done)
        pthread_cond_wait(&maker.done, &maker.lock);
    maker.order = NULL;
    pthread_cond_broadcast(&maker.done);
    pthread_mutex_unlock(&maker.lock);
    return order.result;
}

/* ---- Turns ---- */

/* The kernel's, which glibc 2.36 does not declare: sched_setattr(2). */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

/* 0: the kernel's own measure. */
static void set_turn(uint64_t ns) {
    struct attributes attributes = {0};
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 ||
        attributes.policy != SCHED_OTHER)
        return;
    attributes.runtime = ns;
    syscall(SYS_sched_setattr, 0, &attributes, 0);
}

void thread_is_brief(void) {
    set_turn(TURN_NS);
}

void thread_computes(void) {
    set_turn(0);
}
