/*
 * Names of running VMs: each has DIRECTORY/NAME.sock, where DIRECTORY is
 * $XDG_RUNTIME_DIR/lodge, else /run/lodge for root and /run/user/UID/lodge or
 * /tmp/lodge-UID for others. A socket that nobody listens on is stale: its VM
 * was killed. Any thread.
 */
#ifndef LODGE_MACHINE_CONTROL_NAMES_H
#define LODGE_MACHINE_CONTROL_NAMES_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum { VM_NAME_MAX = 63, CONTROL_PATH_MAX = 256 };

/* -EINVAL: 1 to VM_NAME_MAX letters, digits, '.', '_', '-', beginning with a letter or digit. */
int vm_name_check(const char *name, struct error *err);

/* The directory, made when `create`, checked to be the user's own. -ENOENT: there is none. */
int control_directory(char *path, size_t size, bool create, struct error *err);

/* A listening socket DIRECTORY/NAME.sock, mode 0600; replaces a stale one. -EADDRINUSE. */
int control_listen(const char *directory, const char *name, int *fd, struct error *err);

/*
 * Connected to NAME's socket; *fd is the caller's. A stale socket is removed. -ENOENT: no VM of
 * that name runs.
 */
int control_connect(const char *directory, const char *name, int *fd, struct error *err);

/* The names that have a socket, stale or not, sorted. The caller frees each and the list. */
int control_list(const char *directory, char ***names, size_t *count, struct error *err);

#endif
