/*
 * A guest's text console, between its serial port and where that leads to (or
 * nowhere): keeps the last lines for error messages and notices when a Linux
 * kernel says that it has panicked, for guests without a pvpanic driver.
 */
#ifndef LODGE_MACHINE_CONSOLE_H
#define LODGE_MACHINE_CONSOLE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "device/chardev.h"

struct console;

/* Any thread, with the serial port's lock held: must not call the device. final: the kernel has
 * said all that it had to say. */
typedef void console_panic(void *context, bool final);

/* next (may be NULL) stays the caller's and outlives the console. */
int console_create(struct chardev *next, console_panic *panic, void *context,
                   struct console **console, struct error *err);
/* The device is gone. */
void console_destroy(struct console *console);
/* What the serial port is given. */
struct chardev *console_chardev(struct console *console);

/* Any thread: copies the last `lines` lines, zero-ended, without escape sequences; returns the
 * length. */
size_t console_tail(struct console *console, unsigned lines, char *text, size_t size);

#endif
