/*
 * The event loop over libuv. Two things libuv lacks are added: calls posted
 * from other threads (a list and one uv_async), and timers with nanosecond
 * deadlines (a sorted list and one timerfd; a VM has a few dozen timers).
 *
 * libuv handles may only be freed after their close callback, so watches are
 * allocated apart from the caller and freed there.
 */
#include "base/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/thread.h"

struct link {
    struct link *next, *previous;
};

struct post {
    struct post *next;
    loop_handler *handler;
    void *context;
};

struct loop_fd {
    uv_poll_t poll; /* first: the close callback frees it */
    struct loop *loop;
    loop_fd_handler *handler;
    void *context;
};

struct loop_signal {
    uv_signal_t signal; /* first */
    loop_signal_handler *handler;
    void *context;
};

struct loop_timer {
    struct link all;  /* in loop->timers, for loop_destroy */
    struct link link; /* in loop->armed or loop->due, else linked to itself */
    struct loop *loop;
    loop_handler *handler;
    void *context;
    uint64_t deadline;
};

struct loop {
    uv_loop_t uv;
    uv_async_t wake;
    uv_poll_t timer_poll;
    int timer_fd;
    atomic_bool stop;
    atomic_bool running;
    _Atomic(pthread_t) thread; /* valid while running */
    struct lock lock;          /* guards what follows */
    struct post *posts, **posts_end;
    struct link timers;
    struct link armed;   /* by deadline */
    struct link due;     /* expired, their handlers about to run */
    uint64_t programmed; /* the timerfd's deadline; UINT64_MAX: none */
};

/* ---- Lists ---- */

static void link_init(struct link *link) {
    link->next = link->previous = link;
}

static bool link_single(const struct link *link) {
    return link->next == link;
}

static void link_remove(struct link *link) {
    link->next->previous = link->previous;
    link->previous->next = link->next;
    link_init(link);
}

static void link_before(struct link *position, struct link *link) {
    link->previous = position->previous;
    link->next = position;
    position->previous->next = link;
    position->previous = link;
}

static struct loop_timer *timer_of(struct link *link) {
    return container_of(link, struct loop_timer, link);
}

/* ---- Posted calls ---- */

static struct post *take_posts(struct loop *loop) {
    lock_take(&loop->lock);
    struct post *posts = loop->posts;
    loop->posts = NULL;
    loop->posts_end = &loop->posts;
    lock_release(&loop->lock);
    return posts;
}

/* A stop came in between: what is left runs first when the loop runs again. */
static void return_posts(struct loop *loop, struct post *posts) {
    struct post **end = &posts->next;
    while (*end != NULL)
        end = &(*end)->next;
    lock_take(&loop->lock);
    *end = loop->posts;
    if (loop->posts == NULL)
        loop->posts_end = end;
    loop->posts = posts;
    lock_release(&loop->lock);
}

static void on_wake(uv_async_t *async) {
    struct loop *loop = container_of(async, struct loop, wake);
    struct post *post = take_posts(loop);
    while (post != NULL && !atomic_load(&loop->stop)) {
        struct post *next = post->next;
        post->handler(post->context);
        free(post);
        post = next;
    }
    if (post != NULL)
        return_posts(loop, post);
    if (atomic_load(&loop->stop))
        uv_stop(&loop->uv);
}

int loop_post(struct loop *loop, loop_handler *handler, void *context) {
    struct post *post = malloc(sizeof *post);
    if (post == NULL)
        return -ENOMEM;
    *post = (struct post){.handler = handler, .context = context};
    lock_take(&loop->lock);
    *loop->posts_end = post;
    loop->posts_end = &post->next;
    lock_release(&loop->lock);
    uv_async_send(&loop->wake);
    return 0;
}

/* ---- Timers ---- */

/* Lock held. Points the timerfd at the earliest deadline; an unneeded expiry is left to happen. */
static void program(struct loop *loop) {
    if (link_single(&loop->armed))
        return;
    uint64_t first = timer_of(loop->armed.next)->deadline;
    if (first >= loop->programmed)
        return;
    /* A zero time would disarm. */
    uint64_t at = first == 0 ? 1 : first;
    struct itimerspec spec = {
        .it_value = {.tv_sec = (time_t)(at / NS_PER_SECOND), .tv_nsec = (long)(at % NS_PER_SECOND)},
    };
    loop->programmed = first;
    if (timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL) < 0)
        log_error("event loop: timerfd_settime: %s", strerror(errno));
}

static void collect_due(struct loop *loop) {
    uint64_t now = host_clock_ns();
    lock_take(&loop->lock);
    loop->programmed = UINT64_MAX;
    while (!link_single(&loop->armed) && timer_of(loop->armed.next)->deadline <= now) {
        struct link *link = loop->armed.next;
        link_remove(link);
        link_before(&loop->due, link);
    }
    program(loop);
    lock_release(&loop->lock);
}

/* One at a time and each looked up anew, because a handler may cancel or free others. */
static void run_due(struct loop *loop) {
    while (!atomic_load(&loop->stop)) {
        lock_take(&loop->lock);
        if (link_single(&loop->due)) {
            lock_release(&loop->lock);
            return;
        }
        struct loop_timer *timer = timer_of(loop->due.next);
        link_remove(&timer->link);
        loop_handler *handler = timer->handler;
        void *context = timer->context;
        lock_release(&loop->lock);
        handler(context);
    }
}

static void on_timer(uv_poll_t *poll, int status, int events) {
    struct loop *loop = container_of(poll, struct loop, timer_poll);
    uint64_t expirations;
    (void)status;
    (void)events;
    if (read(loop->timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
        log_error("event loop: timerfd: %s", strerror(errno));
    collect_due(loop);
    run_due(loop);
}

int loop_timer_create(struct loop *loop, loop_handler *handler, void *context,
                      struct loop_timer **timer, struct error *err) {
    struct loop_timer *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "cannot make a timer");
    made->loop = loop;
    made->handler = handler;
    made->context = context;
    link_init(&made->link);
    lock_take(&loop->lock);
    link_before(&loop->timers, &made->all);
    lock_release(&loop->lock);
    *timer = made;
    return 0;
}

void loop_timer_arm(struct loop_timer *timer, uint64_t host_deadline_ns) {
    struct loop *loop = timer->loop;
    lock_take(&loop->lock);
    link_remove(&timer->link);
    timer->deadline = host_deadline_ns;
    /* UINT64_MAX is never; INT64_MAX nanoseconds, 292 years, is as good. */
    if (host_deadline_ns <= INT64_MAX) {
        struct link *position = loop->armed.next;
        while (position != &loop->armed && timer_of(position)->deadline <= host_deadline_ns)
            position = position->next;
        link_before(position, &timer->link);
        program(loop);
    }
    lock_release(&loop->lock);
}

void loop_timer_cancel(struct loop_timer *timer) {
    lock_take(&timer->loop->lock);
    link_remove(&timer->link);
    lock_release(&timer->loop->lock);
}

void loop_timer_free(struct loop_timer *timer) {
    if (timer == NULL)
        return;
    lock_take(&timer->loop->lock);
    link_remove(&timer->link);
    link_remove(&timer->all);
    lock_release(&timer->loop->lock);
    free(timer);
}

/* ---- File descriptors ---- */

static void on_fd(uv_poll_t *poll, int status, int events) {
    struct loop_fd *watch = container_of(poll, struct loop_fd, poll);
    unsigned seen = 0;
    /* Stopped by a handler of this same turn; the event is still there when the loop runs again. */
    if (status == 0 && atomic_load(&watch->loop->stop))
        return;
    if (events & UV_READABLE)
        seen |= LOOP_READ;
    if (events & UV_WRITABLE)
        seen |= LOOP_WRITE;
    if (events & UV_DISCONNECT)
        seen |= LOOP_HANGUP;
    /* libuv stops a watch that reports an error, so the handler hears of it once. A read tells why.
     */
    if (status < 0)
        seen |= LOOP_HANGUP | LOOP_READ;
    watch->handler(watch->context, seen);
}

static void free_handle(uv_handle_t *handle) {
    free(handle);
}

int loop_fd_add(struct loop *loop, int fd, unsigned events, loop_fd_handler *handler, void *context,
                struct loop_fd **watch, struct error *err) {
    struct loop_fd *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "cannot watch a file descriptor");
    int flags = fcntl(fd, F_GETFL);
    int rc = uv_poll_init(&loop->uv, &made->poll, fd);
    /* libuv makes it non-blocking, and with it every descriptor of other processes (a terminal's!)
     * that shares its file description. */
    if (flags >= 0 && !(flags & O_NONBLOCK))
        fcntl(fd, F_SETFL, flags);
    if (rc < 0) {
        free(made);
        return error_set_errno(err, rc, "cannot watch file descriptor %d", fd);
    }
    made->loop = loop;
    made->handler = handler;
    made->context = context;
    loop_fd_set(made, events);
    *watch = made;
    return 0;
}

void loop_fd_set(struct loop_fd *watch, unsigned events) {
    int wanted = 0;
    if (events & LOOP_READ)
        wanted |= UV_READABLE;
    if (events & LOOP_WRITE)
        wanted |= UV_WRITABLE;
    if (events & LOOP_HANGUP)
        wanted |= UV_DISCONNECT;
    if (wanted != 0)
        uv_poll_start(&watch->poll, wanted, on_fd);
    else
        uv_poll_stop(&watch->poll);
}

void loop_fd_remove(struct loop_fd *watch) {
    if (watch == NULL)
        return;
    /* Stopping takes fd out of epoll at once: the caller may close it. */
    uv_poll_stop(&watch->poll);
    uv_close((uv_handle_t *)&watch->poll, free_handle);
}

/* ---- Signals ---- */

static void on_signal(uv_signal_t *signal, int number) {
    struct loop_signal *watch = container_of(signal, struct loop_signal, signal);
    watch->handler(watch->context, number);
}

int loop_signal_add(struct loop *loop, int signal, loop_signal_handler *handler, void *context,
                    struct loop_signal **watch, struct error *err) {
    struct loop_signal *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "cannot watch a signal");
    made->handler = handler;
    made->context = context;
    int rc = uv_signal_init(&loop->uv, &made->signal);
    if (rc < 0) {
        free(made);
        return error_set_errno(err, rc, "cannot watch signal %d", signal);
    }
    rc = uv_signal_start(&made->signal, on_signal, signal);
    if (rc < 0) {
        uv_close((uv_handle_t *)&made->signal, free_handle);
        return error_set_errno(err, rc, "cannot watch signal %d", signal);
    }
    *watch = made;
    return 0;
}

void loop_signal_remove(struct loop_signal *watch) {
    if (watch == NULL)
        return;
    uv_signal_stop(&watch->signal);
    uv_close((uv_handle_t *)&watch->signal, free_handle);
}

/* ---- The loop ---- */

static int start_handles(struct loop *loop, struct error *err) {
    int rc = uv_async_init(&loop->uv, &loop->wake, on_wake);
    if (rc < 0)
        return error_set_errno(err, rc, "cannot make the event loop's wake-up");
    rc = uv_poll_init(&loop->uv, &loop->timer_poll, loop->timer_fd);
    if (rc < 0) {
        uv_close((uv_handle_t *)&loop->wake, NULL);
        return error_set_errno(err, rc, "cannot watch the event loop's timer");
    }
    uv_poll_start(&loop->timer_poll, UV_READABLE, on_timer);
    return 0;
}

static void close_uv(struct loop *loop) {
    uv_run(&loop->uv, UV_RUN_NOWAIT); /* close callbacks */
    uv_loop_close(&loop->uv);
}

int loop_create(struct loop **loop, struct error *err) {
    struct loop *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "cannot make an event loop");
    made->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (made->timer_fd < 0) {
        int rc = -errno;
        free(made);
        return error_set_errno(err, rc, "cannot make a timerfd");
    }
    int rc = uv_loop_init(&made->uv);
    if (rc < 0) {
        error_set_errno(err, rc, "cannot make an event loop");
    } else {
        rc = start_handles(made, err);
        if (rc < 0)
            close_uv(made);
    }
    if (rc < 0) {
        close(made->timer_fd);
        free(made);
        return rc;
    }
    lock_init(&made->lock, LOCK_LOOP, "loop");
    made->posts_end = &made->posts;
    link_init(&made->timers);
    link_init(&made->armed);
    link_init(&made->due);
    made->programmed = UINT64_MAX;
    *loop = made;
    return 0;
}

static void close_any(uv_handle_t *handle, void *context) {
    struct loop *loop = context;
    if (uv_is_closing(handle))
        return;
    bool own = handle == (uv_handle_t *)&loop->wake || handle == (uv_handle_t *)&loop->timer_poll;
    uv_close(handle, own ? NULL : free_handle);
}

void loop_destroy(struct loop *loop) {
    if (loop == NULL)
        return;
    uv_walk(&loop->uv, close_any, loop);
    close_uv(loop);
    while (!link_single(&loop->timers))
        /* The analyzer does not see that freeing unlinks. NOLINTNEXTLINE */
        loop_timer_free(container_of(loop->timers.next, struct loop_timer, all));
    for (struct post *post = take_posts(loop), *next; post != NULL; post = next) {
        next = post->next;
        free(post);
    }
    close(loop->timer_fd);
    lock_destroy(&loop->lock);
    free(loop);
}

void loop_run(struct loop *loop) {
    thread_is_brief();
    atomic_store(&loop->thread, pthread_self());
    atomic_store(&loop->running, true);
    uv_async_send(&loop->wake); /* what an earlier stop left over */
    run_due(loop);
    while (!atomic_load(&loop->stop))
        uv_run(&loop->uv, UV_RUN_DEFAULT);
    atomic_store(&loop->stop, false);
    atomic_store(&loop->running, false);
}

void loop_stop(struct loop *loop) {
    atomic_store(&loop->stop, true);
    if (loop_is_here(loop))
        uv_stop(&loop->uv);
    else
        uv_async_send(&loop->wake);
}

bool loop_is_here(const struct loop *loop) {
    return atomic_load(&loop->running) && pthread_equal(atomic_load(&loop->thread), pthread_self());
}
