/*
 * The event loop: one thread per VM on which back ends and slow device work
 * run. A thin layer over libuv, which has no nanosecond timers and no
 * thread-safe calls of its own; both are here.
 *
 * Handlers run on the loop's thread, one at a time, and must not block.
 * Unless a call says "any thread", call it on the loop's thread (or before
 * loop_run).
 */
#ifndef LODGE_BASE_LOOP_H
#define LODGE_BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct loop;
struct loop_fd;
struct loop_signal;
struct loop_timer;

enum { LOOP_READ = 1, LOOP_WRITE = 2, LOOP_HANGUP = 4 };

typedef void loop_fd_handler(void *context, unsigned events);
typedef void loop_handler(void *context);
typedef void loop_signal_handler(void *context, int signal);

int loop_create(struct loop **loop, struct error *err);

/* Frees the loop and everything still registered. Not from a handler. */
void loop_destroy(struct loop *loop);

/* Runs handlers until loop_stop(). The calling thread becomes the loop's thread. */
void loop_run(struct loop *loop);

/* Any thread: loop_run returns after the handler that runs now. */
void loop_stop(struct loop *loop);

/*
 * Any thread: handler(context) runs once on the loop's thread, in order of
 * posting. Returns 0 or -ENOMEM.
 */
int loop_post(struct loop *loop, loop_handler *handler, void *context);

/* True on the loop's thread. */
bool loop_is_here(const struct loop *loop);

/*
 * Watches a file descriptor for the events named. LOOP_HANGUP, if asked for:
 * the peer stopped sending (what it sent before may still be unread). Asked
 * for or not, an error on the descriptor ends the watch and is told once as
 * LOOP_HANGUP|LOOP_READ; reading tells which error.
 * The caller keeps ownership of fd and must remove the watch before closing it. Whether fd blocks
 * stays as it is: a handler that could find nothing to read after all wants O_NONBLOCK on it.
 */
int loop_fd_add(struct loop *loop, int fd, unsigned events, loop_fd_handler *handler, void *context,
                struct loop_fd **watch, struct error *err);
void loop_fd_set(struct loop_fd *watch, unsigned events);
void loop_fd_remove(struct loop_fd *watch);

int loop_signal_add(struct loop *loop, int signal, loop_signal_handler *handler, void *context,
                    struct loop_signal **watch, struct error *err);
void loop_signal_remove(struct loop_signal *watch);

/*
 * One-shot timers in host monotonic nanoseconds. Devices do not use these:
 * they use vm_timer (base/clock.h), which follows the VM's clock.
 * loop_timer_arm and _cancel may be called from any thread; after a cancel
 * on the loop's thread the handler does not run, after one from another
 * thread it may be running once more. loop_timer_free: the loop's thread,
 * or with the loop stopped.
 */
int loop_timer_create(struct loop *loop, loop_handler *handler, void *context,
                      struct loop_timer **timer, struct error *err);
void loop_timer_arm(struct loop_timer *timer, uint64_t host_deadline_ns);
void loop_timer_cancel(struct loop_timer *timer);
void loop_timer_free(struct loop_timer *timer);

#endif
