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
 * arguments: taken; may be NULL. result: what was returned, the caller's; may be NULL. -EREMOTEIO:
 * the VM said no; err has its words.
 */
int client_call(struct client *client, const char *command, json_t *arguments, json_t **result,
                struct error *err);

/* The same, with descriptors sent along; they stay the caller's. */
int client_call_with(struct client *client, const char *command, json_t *arguments, const int *fds,
                     unsigned fd_count, json_t **result, struct error *err);

/* Hears of events that come while a call waits; each gives the answer more time. */
void client_on_event(struct client *client,
                     void (*event)(void *context, const char *event, const json_t *data),
                     void *context);

/*
 * For programs that do several things at once: sends a command whose answer nobody wants
 * (arguments: taken), and takes messages without waiting when the descriptor can be read. *message:
 * an event or an answer, the caller's; NULL: none (any more). -ECONNRESET: the VM has ended.
 */
int client_send(struct client *client, const char *command, json_t *arguments, struct error *err);
int client_fd(const struct client *client);
int client_take(struct client *client, json_t **message, struct error *err);

/* Waits, until the VM ends the connection (then -ECONNRESET) or `fd` can be read. ms: at most. */
int client_wait(struct client *client, int fd, int ms);

#endif
