/*
 * Monitors that come to be there together, or not at all, whatever is killed meanwhile. Who has
 * them made holds the one writing end of a pipe that all of them watch: a byte in it, which nobody
 * takes out, is for all of them at the same instant, and so is its end without one. On a second
 * pipe each says that it has done its part.
 */
#ifndef LODGE_CLI_BATCH_H
#define LODGE_CLI_BATCH_H

#include <stdbool.h>

#include "base/error.h"
#include "base/loop.h"

struct batch {
    int go[2], done[2];
};

int batch_open(struct batch *batch, struct error *err);
void batch_close(struct batch *batch);
/* After a fork: this process is on its way to be one of them. */
void batch_join(struct batch *batch);

/* All are ready: from this call on they are there. Waits until `count` have done their part;
 * -EPIPE: one has ended before it had. */
int batch_commit(struct batch *batch, unsigned count, struct error *err);

/* ---- In a monitor that is ready ---- */

struct batch_watch;
/* decided: once, on the loop's thread; there: it is to do its part, and to say so by batch_done;
 * else nobody wants it any more. */
typedef void batch_handler(void *context, bool there);
int batch_watch(const struct batch *batch, struct loop *loop, batch_handler *decided, void *context,
                struct batch_watch **watch, struct error *err);
void batch_done(struct batch_watch *watch);
void batch_unwatch(struct batch_watch *watch); /* before the loop is destroyed; NULL is fine */

#endif
