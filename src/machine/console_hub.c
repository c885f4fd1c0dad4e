#include "machine/console_hub.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/lock.h"
#include "base/log.h"

enum { RING_SIZE = 256 << 10, STEP = 16 << 10, INPUT_SIZE = 4096 };

struct watcher {
    struct watcher *next;
    struct console_hub *hub;
    int socket;
    struct loop_fd *watch;
    uint64_t at; /* the next byte for it, as `written` counts */
    bool writes;
    uint8_t input[INPUT_SIZE]; /* what the guest has not taken yet */
    size_t input_head, input_count;
};

struct console_hub {
    struct chardev chardev;
    struct loop *loop;
    struct lock lock; /* guards what follows */
    uint8_t ring[RING_SIZE];
    uint64_t written; /* bytes ever put into the ring */
    uint64_t logged;  /* of them in the log */
    bool work_due;
    bool refused; /* a write was cut short: call writable */
    /* The loop's thread only. */
    struct loop_timer *work_timer, *input_timer;
    char path[PATH_MAX];
    int log;
    size_t log_size;
    bool log_failed;
    struct watcher *watchers;
    unsigned watcher_count;
};

/* ---- The ring ---- */

/* Copies up to `size` bytes from position *at on, which moves up when they are no longer there. */
static size_t copy_out(struct console_hub *hub, uint64_t *at, uint8_t *bytes, size_t size) {
    lock_take(&hub->lock);
    if (hub->written - *at > RING_SIZE)
        *at = hub->written - RING_SIZE;
    size_t length = hub->written - *at < size ? (size_t)(hub->written - *at) : size;
    for (size_t i = 0; i < length; i++)
        bytes[i] = hub->ring[(*at + i) % RING_SIZE];
    lock_release(&hub->lock);
    return length;
}

/* ---- The log ---- */

static void log_broke(struct console_hub *hub, const char *what) {
    if (!hub->log_failed)
        log_warning("console log: %s: %s; the console is no longer kept", what, strerror(errno));
    hub->log_failed = true;
}

/* The log becomes the one before. */
static void rotate(struct console_hub *hub) {
    char older[PATH_MAX + 2];
    snprintf(older, sizeof older, "%s.1", hub->path);
    close(hub->log);
    hub->log = rename(hub->path, older) < 0
                   ? -1
                   : open(hub->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    hub->log_size = 0;
    if (hub->log < 0)
        log_broke(hub, hub->path);
}

static void write_log(struct console_hub *hub) {
    uint8_t bytes[STEP];
    uint64_t at = hub->logged;
    size_t length;
    while ((length = copy_out(hub, &at, bytes, sizeof bytes)) > 0) {
        if (!hub->log_failed && hub->log_size > 0 && hub->log_size + length > CONSOLE_LOG_MAX)
            rotate(hub);
        ssize_t done = hub->log_failed ? (ssize_t)length : write(hub->log, bytes, length);
        if (done < 0 && errno != EINTR) {
            log_broke(hub, "write");
            done = (ssize_t)length;
        }
        at += done > 0 ? (uint64_t)done : 0;
        hub->log_size += done > 0 ? (size_t)done : 0;
        lock_take(&hub->lock);
        hub->logged = at;
        lock_release(&hub->lock);
    }
}

/* ---- Watchers ---- */

static void drop(struct watcher *watcher) {
    struct watcher **link = &watcher->hub->watchers;
    while (*link != watcher)
        link = &(*link)->next;
    *link = watcher->next;
    watcher->hub->watcher_count--;
    if (watcher->watch != NULL)
        loop_fd_remove(watcher->watch);
    close(watcher->socket);
    free(watcher);
}

/* What there is and it takes. False: its other end is closed. */
static bool feed(struct watcher *watcher) {
    uint8_t bytes[STEP];
    size_t length;
    while ((length = copy_out(watcher->hub, &watcher->at, bytes, sizeof bytes)) > 0) {
        ssize_t sent = send(watcher->socket, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN;
        watcher->at += (uint64_t)sent;
    }
    return true;
}

static bool has_more(struct watcher *watcher) {
    lock_take(&watcher->hub->lock);
    bool more = watcher->at != watcher->hub->written;
    lock_release(&watcher->hub->lock);
    return more;
}

static void give_input(struct watcher *watcher) {
    const struct chardev *chardev = &watcher->hub->chardev;
    if (watcher->input_count == 0 || chardev->front == NULL)
        return;
    size_t taken = chardev->front->receive(
        chardev->front_context, watcher->input + watcher->input_head, watcher->input_count);
    watcher->input_head += taken;
    watcher->input_count -= taken;
}

/* False: it is gone. */
static bool take_input(struct watcher *watcher) {
    ssize_t got = recv(watcher->socket, watcher->input, sizeof watcher->input, MSG_DONTWAIT);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    watcher->input_head = 0;
    watcher->input_count = watcher->writes ? (size_t)got : 0;
    give_input(watcher);
    return got > 0;
}

static void settle(struct watcher *watcher) {
    if (!feed(watcher)) {
        drop(watcher);
        return;
    }
    unsigned events = watcher->input_count == 0 ? LOOP_READ : LOOP_HANGUP;
    loop_fd_set(watcher->watch, events | (has_more(watcher) ? LOOP_WRITE : 0));
}

static void on_socket(void *context, unsigned events) {
    struct watcher *watcher = context;
    bool there = watcher->input_count > 0
                     ? !(events & LOOP_HANGUP)
                     : !(events & (LOOP_READ | LOOP_HANGUP)) || take_input(watcher);
    if (there)
        settle(watcher);
    else
        drop(watcher);
}

/* The device has room for input again. */
static void on_input_room(void *context) {
    struct console_hub *hub = context;
    for (struct watcher *watcher = hub->watchers, *next; watcher != NULL; watcher = next) {
        next = watcher->next;
        give_input(watcher);
        settle(watcher);
    }
}

/* ---- What the console sees ---- */

static void work(void *context) {
    struct console_hub *hub = context;
    lock_take(&hub->lock);
    hub->work_due = false;
    lock_release(&hub->lock);
    write_log(hub);
    for (struct watcher *watcher = hub->watchers, *next; watcher != NULL; watcher = next) {
        next = watcher->next;
        settle(watcher);
    }
    lock_take(&hub->lock);
    bool tell = hub->refused;
    hub->refused = false;
    lock_release(&hub->lock);
    if (tell && hub->chardev.front != NULL)
        hub->chardev.front->writable(hub->chardev.front_context);
}

/* Any thread. */
static size_t hub_write(struct chardev *chardev, const uint8_t *bytes, size_t length) {
    struct console_hub *hub = container_of(chardev, struct console_hub, chardev);
    lock_take(&hub->lock);
    size_t room = RING_SIZE - (size_t)(hub->written - hub->logged);
    size_t taken = length < room ? length : room;
    for (size_t i = 0; i < taken; i++)
        hub->ring[hub->written++ % RING_SIZE] = bytes[i];
    hub->refused |= taken < length;
    bool first = !hub->work_due;
    hub->work_due = true;
    lock_release(&hub->lock);
    if (first)
        loop_timer_arm(hub->work_timer, 0);
    return taken;
}

static void hub_resume_input(struct chardev *chardev) {
    struct console_hub *hub = container_of(chardev, struct console_hub, chardev);
    loop_timer_arm(hub->input_timer, 0);
}

static const struct chardev_ops hub_ops = {hub_write, hub_resume_input};

/* ---- Life ---- */

static bool is_written(const struct console_hub *hub) {
    for (const struct watcher *watcher = hub->watchers; watcher != NULL; watcher = watcher->next)
        if (watcher->writes)
            return true;
    return false;
}

int console_hub_attach(struct console_hub *hub, int socket, bool writes, size_t history,
                       struct error *err) {
    if (writes && is_written(hub))
        return error_set(err, -EBUSY, "somebody else writes to this console; it can be watched");
    if (hub->watcher_count == CONSOLE_WATCHERS_MAX)
        return error_set(err, -EMFILE, "%d watch this console already", CONSOLE_WATCHERS_MAX);
    struct watcher *watcher = calloc(1, sizeof *watcher);
    if (watcher == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int result =
        loop_fd_add(hub->loop, socket, LOOP_READ, on_socket, watcher, &watcher->watch, err);
    if (result < 0) {
        free(watcher);
        return result;
    }
    watcher->hub = hub;
    watcher->socket = socket;
    watcher->writes = writes;
    lock_take(&hub->lock);
    watcher->at = hub->written - (history < hub->written ? history : hub->written);
    lock_release(&hub->lock);
    watcher->next = hub->watchers;
    hub->watchers = watcher;
    hub->watcher_count++;
    settle(watcher);
    return 0;
}

static void release(struct console_hub *hub) {
    if (hub->work_timer != NULL)
        loop_timer_free(hub->work_timer);
    if (hub->input_timer != NULL)
        loop_timer_free(hub->input_timer);
    if (hub->log >= 0)
        close(hub->log);
    lock_destroy(&hub->lock);
    free(hub);
}

static int open_log(struct console_hub *hub, struct error *err) {
    struct stat status;
    hub->log = open(hub->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (hub->log < 0 || fstat(hub->log, &status) < 0)
        return error_set_errno(err, -errno, "%s", hub->path);
    hub->log_size = (size_t)status.st_size;
    return 0;
}

int console_hub_create(struct loop *loop, const char *directory, struct console_hub **hub,
                       struct error *err) {
    struct console_hub *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->chardev.ops = &hub_ops;
    made->loop = loop;
    lock_init(&made->lock, LOCK_BACKEND, "console hub");
    snprintf(made->path, sizeof made->path, "%s/console.log", directory);
    int result = open_log(made, err);
    if (result == 0)
        result = loop_timer_create(loop, work, made, &made->work_timer, err);
    if (result == 0)
        result = loop_timer_create(loop, on_input_room, made, &made->input_timer, err);
    if (result < 0)
        release(made);
    else
        *hub = made;
    return result;
}

void console_hub_move(struct console_hub *hub, const char *directory) {
    snprintf(hub->path, sizeof hub->path, "%s/console.log", directory);
}

void console_hub_destroy(struct console_hub *hub) {
    if (hub == NULL)
        return;
    write_log(hub);
    for (struct watcher *watcher = hub->watchers, *next; watcher != NULL; watcher = next) {
        next = watcher->next;
        feed(watcher);
        drop(watcher);
    }
    release(hub);
}

struct chardev *console_hub_chardev(struct console_hub *hub) {
    return &hub->chardev;
}
