/*
 * What lodge and lodge-agent say to each other over virtio-vsock. Shared by
 * both sides; each checks what it receives, neither trusts the other.
 *
 * Two kinds of connection, both byte streams of frames:
 *
 *   control   the agent connects to the host's port AGENT_PORT when the guest
 *             is up, sends HELLO and keeps the connection. The host sends
 *             MOUNT, answered in order by MOUNTED, RENEW, answered by RENEWED, IDENTITY, and
 *             SHUTDOWN on it. When it is lost (the machine goes on from a snapshot) the
 *             agent connects again.
 *   session   the host connects to the guest's port AGENT_PORT, sends EXEC and
 *             then data. The agent ends it with EXIT. One program a session;
 *             when the connection is lost, the agent hangs the program up. In
 *             a machine that goes on from a snapshot RENEW (answered by
 *             RENEWED; after an error the agent closes) and IDENTITY may come
 *             before EXEC: there the host need not wait for the control
 *             connection, which is late then. Older agents close at RENEW.
 *
 * A frame is a header of 8 bytes and at most AGENT_PAYLOAD_MAX bytes:
 *
 *     u32 length of the payload   u8 type   u8 stream   u16 zero
 *
 * Numbers are little-endian. A frame that breaks a rule ends the connection.
 *
 * Flow: DATA on a stream may only be sent within the receiver's credit for
 * it, which begins with AGENT_WINDOW bytes and grows by CREDIT frames. So a
 * reader of standard output that is slow holds up neither standard error nor
 * the exit code.
 */
#ifndef LODGE_MACHINE_AGENT_PROTOCOL_H
#define LODGE_MACHINE_AGENT_PROTOCOL_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum {
    AGENT_VERSION = 7,
    AGENT_VERSION_OLDEST = 2, /* what images may have that were made earlier */
    AGENT_VERSION_MOUNT = 3,  /* the first that has MOUNT */
    AGENT_VERSION_AGAIN = 4, /* the first that connects again when the control connection is lost */
    AGENT_VERSION_RENEW = 5, /* the first that has RENEW */
    AGENT_VERSION_IDENTITY = 6, /* the first that has IDENTITY */
    AGENT_VERSION_AT_ONCE = 7,  /* the first that has RENEW in a session */
    AGENT_PORT = 1024,
    AGENT_HEADER_SIZE = 8,
    AGENT_PAYLOAD_MAX = 64 << 10,
    AGENT_WINDOW = 256 << 10, /* bytes of credit a stream begins with */
    AGENT_STRINGS_MAX = 1024, /* arguments and environment together */
};

enum agent_frame {
    AGENT_HELLO = 1, /* agent: u32 AGENT_VERSION, then the kernel's release as text */
    AGENT_SHUTDOWN,  /* host, control: power the guest off */
    AGENT_MOUNT,     /* host, control: u32 flags, then a virtio-fs tag and a path, zero-ended */
    AGENT_MOUNTED,   /* agent, control: u32 errno value of Linux, 0: mounted */
    AGENT_RENEW,     /* host, control: struct agent_renew and a host name, zero-ended */
    AGENT_RENEWED,   /* agent, control: u32 errno value of Linux, then what failed as text */
    AGENT_IDENTITY,  /* host, control: struct agent_identity, its first `count` events */

    AGENT_EXEC = 16,   /* host: struct agent_exec and its strings, see below */
    AGENT_DATA,        /* either: bytes of `stream` */
    AGENT_CREDIT,      /* either: u32 bytes more that may be sent on `stream` */
    AGENT_END,         /* either: no more DATA on `stream` */
    AGENT_SIGNAL,      /* host: u32 signal number (Linux), for the program's process group */
    AGENT_WINDOW_SIZE, /* host: u16 rows, u16 columns */
    AGENT_EXIT,        /* agent: u32 exit code, 0 to 255; nothing follows */
};

enum agent_stream { AGENT_STDIN, AGENT_STDOUT, AGENT_STDERR, AGENT_STREAMS };

enum { AGENT_MOUNT_READONLY = 1 }; /* flags */
enum { AGENT_EXEC_TTY = 1 };       /* flags: a pseudo-terminal; everything comes on AGENT_STDOUT */

/*
 * What a machine that goes on from a snapshot is told before anything else: it is later, and its
 * randomness is not its own. With AGENT_RENEW_IDENTITY it is another machine now, too: the rest
 * counts, with the host name behind it. With AGENT_RENEW_SSH_KEYS it makes itself new host keys of
 * the kinds that it has.
 */
enum { AGENT_RENEW_IDENTITY = 1, AGENT_RENEW_SSH_KEYS = 2 }; /* flags */
enum { AGENT_HOST_NAME_MAX = 64, AGENT_SEED_SIZE = 64 };
struct agent_renew {
    uint64_t wall_ns; /* since 1970 */
    uint32_t flags;
    uint8_t old_mac[6], mac[6]; /* equal: there is no network device */
    uint8_t machine_id[16];
    uint8_t seed[AGENT_SEED_SIZE];
};
_Static_assert(sizeof(struct agent_renew) == 104, "as on the wire");

/*
 * EXEC's payload: this, then argument_count + environment_count strings, the
 * working directory and the user (either empty: the agent's default), each
 * ended by a zero. "NAME=VALUE" strings add to or replace the agent's default
 * environment. The user is NAME or a number, with :GROUP (name or number)
 * behind it if it is not to be the user's own; a name has HOME, USER and SHELL
 * set as /etc/passwd says.
 */
struct agent_exec {
    uint32_t flags;
    uint16_t rows, columns;
    uint16_t argument_count, environment_count;
};
_Static_assert(sizeof(struct agent_exec) == 12, "as on the wire");

/*
 * IDENTITY's payload (device/identity.h): sent after each HELLO, behind a RENEW, and whenever an
 * event is added. The agent keeps the number of the last event that it has heard of, and reports
 * those that follow; one that has just started with its system has heard of all. UUIDs in the
 * order of their text.
 */
enum { AGENT_IDENTITY_EVENTS = 16 };
enum { AGENT_EVENT_RESTORE = 1, AGENT_EVENT_CLONE, AGENT_EVENT_MOVE };
struct agent_identity_event {
    uint64_t number, seconds; /* from 1; since 1970 */
    uint32_t kind, zero;
    uint8_t generation[16], host[16];
};
struct agent_identity {
    uint8_t generation[16], host[16];
    uint64_t number; /* of the last event, 0: there was none */
    uint32_t count, zero;
    struct agent_identity_event events[AGENT_IDENTITY_EVENTS];
};
_Static_assert(sizeof(struct agent_identity_event) == 56, "as on the wire");
_Static_assert(sizeof(struct agent_identity) == 48 + 16 * 56, "as on the wire");

/* A frame's header, read. */
struct agent_header {
    uint32_t length;
    uint8_t type, stream;
};

static inline void agent_put_header(uint8_t out[AGENT_HEADER_SIZE], uint8_t type, uint8_t stream,
                                    uint32_t length) {
    memset(out, 0, AGENT_HEADER_SIZE);
    memcpy(out, &length, sizeof length);
    out[4] = type;
    out[5] = stream;
}

/* False: no frame of this protocol. */
static inline bool agent_get_header(const uint8_t in[AGENT_HEADER_SIZE],
                                    struct agent_header *header) {
    memcpy(&header->length, in, sizeof header->length);
    header->type = in[4];
    header->stream = in[5];
    return header->length <= AGENT_PAYLOAD_MAX && header->stream < AGENT_STREAMS && in[6] == 0 &&
           in[7] == 0;
}

/* Exit codes that the agent gives on its own, as shells do. */
enum { AGENT_NOT_EXECUTABLE = 126, AGENT_NOT_FOUND = 127, AGENT_BY_SIGNAL = 128 };

#endif
