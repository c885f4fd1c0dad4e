/*
 * The console of a VM that runs in the background: everything that the guest
 * says goes into a log of bounded size, and to whoever watches at the moment.
 * One of those may write to the guest.
 *
 *   DIRECTORY/console.log    the latest, up to CONSOLE_LOG_MAX bytes
 *   DIRECTORY/console.log.1  what came before it, up to as many
 *
 * The log loses nothing: a guest that is faster than the disk waits. A
 * watcher that is slower than the guest misses what no longer fits.
 */
#ifndef LODGE_MACHINE_CONSOLE_HUB_H
#define LODGE_MACHINE_CONSOLE_HUB_H

#include <stdbool.h>

#include "base/error.h"
#include "base/loop.h"
#include "device/chardev.h"

enum { CONSOLE_LOG_MAX = 1 << 20, CONSOLE_WATCHERS_MAX = 16 };

struct console_hub;

/* A log that is there already is gone on with. The loop's thread, as all below. */
int console_hub_create(struct loop *loop, const char *directory, struct console_hub **hub,
                       struct error *err);
/* The device is gone. Watchers see the end of their sockets once all is written that they take. */
/* The directory has another name now. */
void console_hub_move(struct console_hub *hub, const char *directory);
void console_hub_destroy(struct console_hub *hub);
/* For the serial port, by way of struct console. */
struct chardev *console_hub_chardev(struct console_hub *hub);

/*
 * socket: a stream socket, the hub's from now on unless this fails; it goes when the other end
 * closes. The latest `history` bytes come first. writes: what comes from the socket goes to the
 * guest. -EBUSY: somebody writes already. -EMFILE: too many watch.
 */
int console_hub_attach(struct console_hub *hub, int socket, bool writes, size_t history,
                       struct error *err);

#endif
