/* The end of a VM that lasts, with all that lodge keeps for it. */
#ifndef LODGE_CLI_REMOVE_H
#define LODGE_CLI_REMOVE_H

#include <stdbool.h>

#include "base/error.h"

/* -EBUSY: it runs (force: it is ended first), or clones stand on it. */
int vm_remove(const char *name, bool force, struct error *err);

#endif
