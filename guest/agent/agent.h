/*
 * lodge-agent: the host's hand in a guest. As process 1 of the default guest
 * it also is the init: mounts, modules, network, orphans, power-off. Elsewhere
 * it is a service of the guest's own init.
 *
 * One thread, one poll() loop (main.c). The protocol is
 * machine/agent_protocol.h.
 */
#ifndef LODGE_GUEST_AGENT_H
#define LODGE_GUEST_AGENT_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "machine/agent_protocol.h"

/* The version that it speaks. Tests have agents that are older in what lodge tells by it. */
#ifndef AGENT_SPEAKS
#define AGENT_SPEAKS AGENT_VERSION
#endif

/* One line on the guest's console. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- setup.c: what an init does before anything else runs ---- */

void setup_mounts(void);
void setup_network(void);
/* Memory that is plugged in becomes usable by itself, unless somebody has said what is to happen.
 */
void setup_memory(void);

/* modules.c: loads what /etc/modules.lodge names and the machine has devices for. */
void setup_modules(void);

/* volume.c: mounts what a MOUNT frame names. 0, or -errno. */
int volume_mount(const uint8_t *payload, size_t length);

/* Two digits a byte, not ended by 0. */
static inline char *put_hex(char *to, const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        *to++ = "0123456789abcdef"[bytes[i] >> 4];
        *to++ = "0123456789abcdef"[bytes[i] & 15];
    }
    return to;
}

/* identity.c: takes an IDENTITY frame in, reports what is new. False: it breaks a rule. */
bool identity_take(const uint8_t *payload, size_t length);

/* ---- power.c ---- */

/* The power button, if the machine has one and its modules are loaded: what poll() is to watch
 * (POLLIN), -1 without. power_button_pressed: after that; true when it was pressed. */
int power_button_open(void);
bool power_button_pressed(int fd);

/* As init: ends all processes, writes back and unmounts disks, powers the machine off; returns only
 * when the kernel refuses. Else asks the init to do so, and returns. */
void power_off(void);

/* ---- channel.c: frames on a connection, both directions buffered and bounded ---- */

struct channel {
    int fd;
    bool failed; /* broken rule or connection: close it */
    uint8_t in[AGENT_HEADER_SIZE + AGENT_PAYLOAD_MAX];
    size_t in_used;
    uint8_t out[4 * (AGENT_HEADER_SIZE + AGENT_PAYLOAD_MAX)];
    size_t out_used, out_sent;
};

void channel_init(struct channel *channel, int fd);
/* Reads what has come; calls handle for each whole frame until it returns false. */
typedef bool channel_handler(void *context, const struct agent_header *header,
                             const uint8_t *payload);
void channel_receive(struct channel *channel, channel_handler *handle, void *context);
/* Bytes of payload that a frame may have now. */
size_t channel_room(const struct channel *channel);
/* Queues a frame; one that has no room fails the channel. */
void channel_send(struct channel *channel, uint8_t type, uint8_t stream, const void *payload,
                  size_t length);
/* Sends what the socket takes. True when nothing is left. */
bool channel_flush(struct channel *channel);
short channel_events(const struct channel *channel);

/* renew.c: does what a RENEW frame on the channel says, and answers. False: it failed. */
bool renew(struct channel *channel, const uint8_t *payload, size_t length);

/* ---- session.c: one program for the host ---- */

enum { SESSION_FDS = 4, SESSIONS_MAX = 32 };

struct session;

/* Has memory for one at hand. */
void session_prepare(void);
/* Takes over fd, a connection from the host. NULL when out of memory (fd is closed). */
struct session *session_create(int fd);
void session_destroy(struct session *session);
/* Fills fds with what the session waits for; returns how many (at most SESSION_FDS). */
unsigned session_poll(struct session *session, struct pollfd fds[SESSION_FDS]);
/* Does all that can be done without waiting. False: it is over, destroy it. */
bool session_work(struct session *session);
/* Process pid has ended: true when it was this session's. */
bool session_reaped(struct session *session, pid_t pid, int status);

/* spawn.c: starts the program that an EXEC frame describes. */
struct child {
    pid_t pid;
    int in, out, err; /* the agent's ends, non-blocking; err is -1 with a terminal */
};
/* 0, or -errno: -EBADMSG for a frame that breaks a rule. */
int spawn(const uint8_t *payload, size_t length, struct child *child);
/* The environment and the shell that programs get by default. */
extern char *const default_environment[];

#endif
