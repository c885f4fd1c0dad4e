#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/lock.h"
#include "device/chardev.h"

/* A descriptor that poll() calls writable takes this much without blocking (pipe(7), PIPE_BUF). */
enum {
    OUTPUT_SIZE = 65536,
    INPUT_SIZE = 4096,
    WRITE_STEP = 4096,
    LAST_WAIT_MS = 1000,
    RETRY_NS = 10000000
};

struct chardev_fd {
    struct chardev chardev;
    struct loop *loop;
    struct chardev_fd_config config;
    struct lock lock; /* guards the output ring and the two flags below it */
    uint8_t output[OUTPUT_SIZE];
    size_t output_head, output_count;
    bool flush_due;
    bool refused; /* a write was cut short: call writable */
    struct loop_timer *flush_timer, *resume_timer, *read_timer;
    /* The loop's thread only. */
    struct loop_fd *in_watch, *out_watch;
    uint8_t input[INPUT_SIZE];
    size_t input_head, input_count;
    unsigned watched;
    bool ended;
};

/* ---- Output ---- */

static bool can_write_now(int fd, int timeout_ms) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLOUT};
    return poll(&poll_fd, 1, timeout_ms) == 1;
}

/* Takes up to one step of output out of the ring's front. Returns bytes gone, 0 when none can go.
 */
static size_t write_step(struct chardev_fd *self, int timeout_ms) {
    lock_take(&self->lock);
    const uint8_t *bytes = self->output + self->output_head;
    size_t length = self->output_count;
    if (length > OUTPUT_SIZE - self->output_head)
        length = OUTPUT_SIZE - self->output_head;
    if (length > WRITE_STEP)
        length = WRITE_STEP;
    lock_release(&self->lock);

    /* Writers append behind these bytes and never move them. */
    if (length == 0 || !can_write_now(self->config.out, timeout_ms))
        return 0;
    ssize_t written = write(self->config.out, bytes, length);
    if (written < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (written < 0)
        written = (ssize_t)length; /* the reader is gone: its output is, too */

    lock_take(&self->lock);
    self->output_head = (self->output_head + (size_t)written) % OUTPUT_SIZE;
    self->output_count -= (size_t)written;
    lock_release(&self->lock);
    return (size_t)written;
}

static void tell_writable(struct chardev_fd *self) {
    lock_take(&self->lock);
    bool tell = self->refused && self->output_count < OUTPUT_SIZE;
    if (tell)
        self->refused = false;
    lock_release(&self->lock);
    if (tell && self->chardev.front)
        self->chardev.front->writable(self->chardev.front_context);
}

static void out_event(void *context, unsigned events);

/* The reader is slow: wait for it. What the loop cannot watch is asked again in a while. */
static void wait_for_reader(struct chardev_fd *self) {
    if (self->out_watch)
        return;
    if (loop_fd_add(self->loop, self->config.out, LOOP_WRITE, out_event, self, &self->out_watch,
                    NULL) < 0) {
        self->out_watch = NULL;
        loop_timer_arm(self->flush_timer, host_clock_ns() + RETRY_NS);
    }
}

static void flush(void *context) {
    struct chardev_fd *self = context;
    lock_take(&self->lock);
    self->flush_due = false;
    lock_release(&self->lock);
    while (write_step(self, 0) > 0)
        ;
    lock_take(&self->lock);
    bool rest = self->output_count > 0;
    lock_release(&self->lock);
    if (rest) {
        wait_for_reader(self);
    } else if (self->out_watch) {
        loop_fd_remove(self->out_watch);
        self->out_watch = NULL;
    }
    tell_writable(self);
}

static void out_event(void *context, unsigned events) {
    (void)events;
    flush(context);
}

static size_t fd_write(struct chardev *chardev, const uint8_t *bytes, size_t length) {
    struct chardev_fd *self = (struct chardev_fd *)chardev;
    if (self->config.out < 0)
        return length;

    lock_take(&self->lock);
    size_t taken = length;
    if (taken > OUTPUT_SIZE - self->output_count)
        taken = OUTPUT_SIZE - self->output_count;
    for (size_t i = 0; i < taken; i++)
        self->output[(self->output_head + self->output_count + i) % OUTPUT_SIZE] = bytes[i];
    self->output_count += taken;
    if (taken < length)
        self->refused = true;
    bool first = !self->flush_due;
    self->flush_due = true;
    lock_release(&self->lock);
    if (first)
        loop_timer_arm(self->flush_timer, 0);
    return taken;
}

/* ---- Input ---- */

/* Files and /dev/null cannot be watched, but neither do they block: they are read by turns. */
static void watch_input(struct chardev_fd *self, bool on) {
    unsigned events = on ? LOOP_READ : 0;
    if (!self->in_watch) {
        if (on && !self->ended)
            loop_timer_arm(self->read_timer, 0);
        return;
    }
    if (self->watched == events)
        return;
    self->watched = events;
    loop_fd_set(self->in_watch, events);
}

/* Hands on what was read. Input is watched again only once the device has taken all of it. */
static void offer_input(void *context) {
    struct chardev_fd *self = context;
    const struct chardev_front *front = self->chardev.front;
    if (front && self->input_count) {
        size_t taken = front->receive(self->chardev.front_context, self->input + self->input_head,
                                      self->input_count);
        self->input_head += taken;
        self->input_count -= taken;
    }
    watch_input(self, self->input_count == 0);
}

static void input_ended(struct chardev_fd *self) {
    self->ended = true;
    if (self->in_watch)
        loop_fd_remove(self->in_watch);
    self->in_watch = NULL;
    if (self->config.ended)
        self->config.ended(self->config.context);
}

static void read_input(void *context) {
    struct chardev_fd *self = context;
    if (self->input_count) {
        offer_input(self);
        return;
    }
    ssize_t got = read(self->config.in, self->input, INPUT_SIZE);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        input_ended(self);
        return;
    }
    self->input_head = 0;
    self->input_count = (size_t)got;
    if (self->config.filter)
        self->input_count =
            self->config.filter(self->config.context, self->input, self->input_count);
    offer_input(self);
}

static void in_event(void *context, unsigned events) {
    (void)events;
    read_input(context);
}

static void fd_resume_input(struct chardev *chardev) {
    struct chardev_fd *self = (struct chardev_fd *)chardev;
    if (self->config.in >= 0)
        loop_timer_arm(self->resume_timer, 0);
}

static const struct chardev_ops fd_ops = {fd_write, fd_resume_input};

/* ---- Life ---- */

static void release(struct chardev_fd *self) {
    if (self->in_watch)
        loop_fd_remove(self->in_watch);
    if (self->out_watch)
        loop_fd_remove(self->out_watch);
    loop_timer_free(self->flush_timer);
    loop_timer_free(self->resume_timer);
    loop_timer_free(self->read_timer);
    lock_destroy(&self->lock);
    free(self);
}

static int start(struct chardev_fd *self, struct error *err) {
    int rc = loop_timer_create(self->loop, flush, self, &self->flush_timer, err);
    if (rc == 0)
        rc = loop_timer_create(self->loop, offer_input, self, &self->resume_timer, err);
    if (rc == 0)
        rc = loop_timer_create(self->loop, read_input, self, &self->read_timer, err);
    if (rc < 0 || self->config.in < 0)
        return rc;
    if (loop_fd_add(self->loop, self->config.in, LOOP_READ, in_event, self, &self->in_watch, NULL) <
        0)
        self->in_watch = NULL;
    self->watched = LOOP_READ;
    watch_input(self, true);
    return 0;
}

int chardev_fd_create(struct loop *loop, const struct chardev_fd_config *config,
                      struct chardev **chardev, struct error *err) {
    struct chardev_fd *self = calloc(1, sizeof *self);
    if (!self)
        return error_set(err, -ENOMEM, "no memory for a console");
    self->chardev.ops = &fd_ops;
    self->loop = loop;
    self->config = *config;
    lock_init(&self->lock, LOCK_BACKEND, "chardev");
    int rc = start(self, err);
    if (rc < 0) {
        release(self);
        return rc;
    }
    *chardev = &self->chardev;
    return 0;
}

void chardev_fd_destroy(struct chardev *chardev) {
    struct chardev_fd *self = (struct chardev_fd *)chardev;
    if (!self)
        return;
    if (self->config.out >= 0)
        while (write_step(self, LAST_WAIT_MS) > 0)
            ;
    release(self);
}
