/* A program in a running VM's guest, joined to descriptors of this process: `exec` and `cp`. */
#ifndef LODGE_CLI_EXEC_H
#define LODGE_CLI_EXEC_H

#include <jansson.h>
#include <stdbool.h>

#include "cli/client.h"

struct exec_request {
    json_t *arguments; /* of the control socket's `exec`; taken */
    int in, out, err;  /* the caller's; in: -1 for none */
    bool terminal;     /* and `in` is one: it becomes raw meanwhile, its size is passed on */
};

/*
 * Runs it and waits. *code: its exit code. -EREMOTEIO: the VM refuses; -ECONNRESET: the VM, or the
 * connection to its agent, ended first. SIGINT and SIGTERM go to the program.
 */
int exec_run(struct client *client, const struct exec_request *request, int *code,
             struct error *err);

#endif
