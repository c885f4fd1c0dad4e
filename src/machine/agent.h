/*
 * The host's side of lodge-agent: knows when the agent in a guest is up, runs
 * programs there, asks it to shut the guest down. The protocol and its rules
 * are in machine/agent_protocol.h. What the guest sends is not trusted: it is
 * bounded, and a broken rule ends the connection.
 *
 * Everything on the loop's thread.
 */
#ifndef LODGE_MACHINE_AGENT_H
#define LODGE_MACHINE_AGENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/loop.h"
#include "device/device.h"
#include "machine/agent_protocol.h"

struct agent;
struct agent_identity;
struct agent_session;

struct agent_events {
    /* The agent of a guest that has just booted is there. */
    void (*ready)(void *context, const char *release);
    /* Optional. An agent_mount is through: 0, or a negative errno value; in the calls' order. */
    void (*mounted)(void *context, int error);
    /* Optional. An agent_renew is through: 0, or a negative errno value and what it was about. */
    void (*renewed)(void *context, int error, const char *what);
    void *context;
};

int agent_create(struct device *vsock, struct loop *loop, const struct agent_events *events,
                 struct agent **agent, struct error *err);
/* After its sessions. */
void agent_destroy(struct agent *agent);

bool agent_is_ready(const struct agent *agent);
/* The one that is there takes agent_exec_config.renewal. */
bool agent_renews_at_once(const struct agent *agent);
/* It would connect again after its connection was lost: older ones do not. */
bool agent_comes_again(const struct agent *agent);
/* Asks for a clean power-off. False: there is no agent to ask. */
bool agent_shutdown(struct agent *agent);

/* Tells it who the guest is: agent_protocol.h. False: there is no agent to tell, or it is too old.
 */
bool agent_tell_identity(struct agent *agent, const struct agent_identity *identity);

/* Has a virtio-fs mounted at a path, whose directories are made; `mounted` follows. False: there is
 * no agent to ask, it is too old, or the path is too long. */
bool agent_mount(struct agent *agent, const char *tag, const char *path, bool readonly);

/*
 * Tells the guest that it goes on from a snapshot (agent_protocol.h); `renewed` follows. host_name:
 * may be NULL without AGENT_RENEW_IDENTITY. False: there is no agent to tell, or it is too old.
 */
bool agent_renew(struct agent *agent, const struct agent_renew *renew, const char *host_name);

/* What a guest that goes on from a snapshot is told in the session of its first program. */
struct agent_exec_renewal {
    const struct agent_renew *renew;
    const char *host_name; /* as agent_renew's */
    const struct agent_identity *identity;
    /* As agent_events.renewed. After an error the session ends by itself. */
    void (*renewed)(void *context, int error, const char *what);
};

struct agent_exec_config {
    /* Optional, and only read here: the agent need not be there yet, and input is not read before
     * it is renewed. An older agent breaks the connection. */
    const struct agent_exec_renewal *renewal;
    const char *const *arguments;   /* ended by NULL, at least one */
    const char *const *environment; /* "NAME=VALUE", ended by NULL; may be NULL */
    const char *directory, *user;   /* NULL: the agent's own; "NAME[:GROUP]" or numbers */
    bool terminal;
    uint16_t rows, columns; /* of the terminal */
    /* The caller's, left open. Blocking or not is left as it is. in: -1 for none; with a terminal,
     * err is not used. */
    int in, out, err;
    /* May be NULL: looks at input first and may change it in place; returns what is left. */
    size_t (*filter)(void *context, uint8_t *bytes, size_t length);
    /* The program has ended and all its output is written; or code is -errno when the connection
     * to it broke. The session is to be closed, here or later. */
    void (*ended)(void *context, int code);
    void *context;
};

/* Starts a program. -E2BIG: arguments and environment are too long. */
int agent_exec(struct agent *agent, const struct agent_exec_config *config,
               struct agent_session **session, struct error *err);
/* Linux's signal numbers; for the program's process group. */
void agent_session_signal(struct agent_session *session, unsigned number);
void agent_session_resize(struct agent_session *session, uint16_t rows, uint16_t columns);
/* Also ends the program, if it still runs. */
void agent_session_close(struct agent_session *session);

#endif
