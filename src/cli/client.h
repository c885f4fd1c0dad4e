/*
 * A connection to a running VM's control socket, for the verbs that ask one:
 * docs/control.md. Everything waits, at most some seconds for each answer.
 */
#ifndef LODGE_CLI_CLIENT_H
#define LODGE_CLI_CLIENT_H

#include <jansson.h>

#include "base/error.h"

struct client;

/* -ENOENT: no VM of that name runs. -ETIMEDOUT: it does not answer. -EPROTO: it is no lodge, or a
 * newer one. */
int client_open(const char *directory, const char *name, struct client **client, struct error *err);
void client_close(struct client *client);

/*
 * arguments: taken; may be NULL. *result: what was returned, the caller's. -EREMOTEIO: the VM said
 * no; err has its words.
 */
int client_call(struct client *client, const char *command, json_t *arguments, json_t **result,
                struct error *err);

/* Waits, until the VM ends the connection (then -ECONNRESET) or `fd` can be read. ms: at most. */
int client_wait(struct client *client, int fd, int ms);

#endif
