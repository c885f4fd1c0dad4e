/*
 * A monitor in the background: made by `lodge start`, which waits until the
 * guest is up and passes on what goes wrong until then. The two are joined by
 * a socket (the monitor's word that it is up, or its exit code; and, for the
 * monitor, the end of a starter that was interrupted) and by a pipe that is
 * the monitor's standard error until it is up.
 */
#ifndef LODGE_CLI_BACKGROUND_H
#define LODGE_CLI_BACKGROUND_H

#include "base/error.h"
#include "base/loop.h"

struct background;

/*
 * Runs monitor(context, background) in a process of its own: a session without terminal, standard
 * input and output nowhere, what it says in `log` once it is up. Waits until it is up (0) or has
 * ended (its exit code; what it said is on standard error). -errno when there is no such process.
 */
int background_start(const char *log, int (*monitor)(void *context, struct background *background),
                     void *context, struct error *err);

/* ---- In the monitor ---- */

/* The starter going away before the guest is up calls `gone`, on the loop's thread. */
int background_watch(struct background *background, struct loop *loop, loop_handler *gone,
                     void *context, struct error *err);
/* The guest is up. Nothing happens from the second call on. */
void background_ready(struct background *background);
/* Before the loop is destroyed. */
void background_unwatch(struct background *background);

#endif
