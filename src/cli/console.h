/* A running VM's serial console, joined to this process's standard input and output. */
#ifndef LODGE_CLI_CONSOLE_H
#define LODGE_CLI_CONSOLE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum { CONSOLE_HISTORY = 16 << 10 };

/* Shows the latest `history` bytes and all that follows until the VM ends (0) or the user leaves
 * (0). write: input goes to the guest. -EREMOTEIO: the VM refuses, somebody else may be writing. */
int console_attach(const char *name, bool write, size_t history, struct error *err);

#endif
