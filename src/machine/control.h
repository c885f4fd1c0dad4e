/*
 * A VM's control socket: a Unix socket in the user's runtime directory on
 * which programs ask the VM and tell it what to do. One JSON text a line each
 * way: a greeting, commands with replies, events. docs/control.md is the
 * protocol, for users.
 *
 *   control.c           the socket, its clients, lines in and out
 *   control_commands.c  commands: found by name, checked, run
 *   control_names.h     where sockets are, and the names of VMs
 *
 * What clients send is not trusted to be well-formed. Everything is bounded:
 * clients, lines, what waits to be read by a client. Clients are processes of
 * the same user or root (0600, and the kernel's word on who connects).
 *
 * Everything on the loop's thread; handlers must not block.
 */
#ifndef LODGE_MACHINE_CONTROL_H
#define LODGE_MACHINE_CONTROL_H

#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/loop.h"

enum {
    CONTROL_PROTOCOL = 1, /* told in the greeting; grows when something changes incompatibly */
    CONTROL_CLIENTS_MAX = 16,
    CONTROL_LINE_MAX = 64 << 10,  /* of a command, with its newline */
    CONTROL_OUTPUT_MAX = 8 << 20, /* waiting for a client that does not read */
    CONTROL_FDS_MAX = 3,          /* descriptors that a client has sent and no command has taken */
};

struct control;

/* A command that runs: kept by the handler until it has the answer. */
struct control_call;

/*
 * Runs a command. arguments: an object, borrowed. Answers by exactly one of the two calls below,
 * now or later.
 */
typedef void control_handler(void *context, struct control_call *call, const json_t *arguments);

/* `result` becomes the control's; NULL: an empty object. The call is gone. */
void control_return(struct control_call *call, json_t *result);
/* class: a word for programs, "GenericError" when there is no better. The call is gone. */
void control_fail(struct control_call *call, const char *class, const char *text);

/* An event for the client of a call alone, before the answer. `data` becomes the control's. */
void control_tell(struct control_call *call, const char *event, json_t *data);

/*
 * A number that names the client of a call; 0 once it has gone away. The call must be answered all
 * the same.
 */
unsigned long control_client(const struct control_call *call);
/*
 * The descriptors that the call's client has sent (SCM_RIGHTS) with this command or before it and
 * that no other has taken: exactly `count` of them, which become the caller's. False: it has sent
 * fewer; nothing is taken.
 */
bool control_take_fds(struct control_call *call, int *fds, unsigned count);

struct control_command {
    const char *name; /* NULL ends a table */
    control_handler *run;
    /* Its arguments: "name:TYPE" with i (integer), n (number), b (boolean), s (string), a (array of
     * strings), all optional; NULL ends the list. Others are refused, and wrong types, before run
     * is called.
     */
    const char *arguments[10];
};

/*
 * Listens at `path`. commands: a table that stays the caller's. name: the VM's, copied.
 * gone: a client went away; may be NULL; it answers no calls of other clients. -ENAMETOOLONG,
 * -EADDRINUSE: a VM of that name runs.
 */
struct control_config {
    struct loop *loop;
    const char *directory, *name; /* the socket is DIRECTORY/NAME.sock */
    const struct control_command *commands;
    void (*gone)(void *context, unsigned long client);
    void *context; /* for commands and gone */
};
int control_create(const struct control_config *config, struct control **control,
                   struct error *err);
/* Ends connections once what is told so far is written, as far as that goes without waiting, and
 * removes the socket. Calls that are still open may be answered later: nobody hears. */
void control_destroy(struct control *control);

/* Tells all clients. data: an object that becomes the control's, or NULL. */
void control_event(struct control *control, const char *event, json_t *data);

/* For control_commands.c: finds and runs; answers in any case. */
void control_run(const struct control_config *config, struct control_call *call,
                 const json_t *request);

#endif
