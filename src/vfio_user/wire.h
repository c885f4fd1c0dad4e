/*
 * The vfio-user protocol on a Unix socket: messages with file descriptors,
 * and the capabilities that both sides name first. A device process (the
 * server) and a VM's monitor (the client) share it.
 *
 * Source: "vfio-user Protocol Specification" 0.1, as in QEMU's
 * docs/interop/vfio-user.rst; section titles are quoted. Structures and
 * constants that it takes from VFIO: Linux's uapi, linux/vfio.h. Everything
 * is in the host's byte order, which here is little-endian.
 *
 * Neither side trusts the other: a message is read whole, within a limit,
 * before anything looks at it.
 */
#ifndef LODGE_VFIO_USER_WIRE_H
#define LODGE_VFIO_USER_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* "Commands". */
enum vu_command {
    VU_VERSION = 1,
    VU_DMA_MAP = 2,
    VU_DMA_UNMAP = 3,
    VU_GET_INFO = 4,
    VU_GET_REGION_INFO = 5,
    VU_GET_REGION_IO_FDS = 6,
    VU_GET_IRQ_INFO = 7,
    VU_SET_IRQS = 8,
    VU_REGION_READ = 9,
    VU_REGION_WRITE = 10,
    VU_DMA_READ = 11,
    VU_DMA_WRITE = 12,
    VU_RESET = 13,
    /* Ours, from a server to a client that can (struct vu_version, full): some of its commands wait
     * for space on the host. No payload, no reply; sent again while they wait. */
    VU_LODGE_FULL = 0x4c00,
};

enum {
    VU_HEADER = 16,
    VU_DATA_MAX = 4096, /* of one read or write: what either side of ours announces */
    VU_PAYLOAD_MAX = VU_DATA_MAX + 64,
    VU_FDS_MAX = 16,       /* with one message: likewise */
    VU_MAPS_MAX = 64,      /* what the server announces */
    VU_PATIENCE_MS = 5000, /* for a peer to take or answer a message */
};

/* "Header", flags. */
enum { VU_TYPE = 15, VU_COMMAND = 0, VU_REPLY = 1, VU_NO_REPLY = 1 << 4, VU_ERROR = 1 << 5 };

/* What the indices of regions and interrupts mean for a PCI device (linux/vfio.h). */
enum { VU_REGION_CONFIG = 7, VU_REGIONS = 9, VU_IRQ_MSIX = 2, VU_IRQS = 5 };
enum { VU_DEVICE_RESET = 1 << 0, VU_DEVICE_PCI = 1 << 1 };
enum { VU_REGION_READABLE = 1 << 0, VU_REGION_WRITABLE = 1 << 1 };
enum { VU_MAP_READ = 1 << 0, VU_MAP_WRITE = 1 << 1 };
enum { VU_IRQ_EVENTFD = 1 << 0, VU_IRQ_NORESIZE = 1 << 3 };
enum {
    VU_SET_NONE = 1 << 0,
    VU_SET_BOOL = 1 << 1,
    VU_SET_EVENTFD = 1 << 2,
    VU_SET_MASK = 1 << 3,
    VU_SET_UNMASK = 1 << 4,
    VU_SET_TRIGGER = 1 << 5,
};

/* Sizes of payloads without their data. */
enum {
    VU_MAP_SIZE = 32,
    VU_UNMAP_SIZE = 24,
    VU_INFO_SIZE = 16,
    VU_REGION_INFO_SIZE = 32,
    VU_IO_FDS_SIZE = 16,
    VU_IRQ_INFO_SIZE = 16,
    VU_SET_IRQS_SIZE = 20,
    VU_ACCESS_SIZE = 16, /* of regions and of memory */
};

struct vu_message {
    uint16_t id, command;
    uint32_t flags, error;
    uint32_t length; /* of the payload */
    uint8_t payload[VU_PAYLOAD_MAX];
    int fds[VU_FDS_MAX];
    unsigned fd_count;
};

/* Zero-initialise. */
struct vu_reader {
    struct vu_message message;
    uint8_t header[VU_HEADER];
    uint32_t have; /* bytes of the message, header included */
};

/*
 * Reads on. 1: reader->message is a whole message; its descriptors are the caller's, who takes them
 * (sets fds[n] to -1) or lets vu_close_fds close them. 0: the rest has not come yet. -ECONNRESET:
 * the peer has gone; -EPROTO: what it sends is no message.
 */
int vu_receive(struct vu_reader *reader, int socket);
void vu_close_fds(struct vu_message *message);

/* Waits for a whole message. -ETIMEDOUT. */
int vu_wait(struct vu_reader *reader, int socket, int timeout_ms);

/* Sends message->payload and its descriptors, which stay the caller's. Waits VU_PATIENCE_MS for a
 * peer that does not read, then -ETIMEDOUT. */
int vu_send(int socket, const struct vu_message *message);

/* A message without payload, a reply to one, a reply that says why not (a positive errno). */
void vu_begin(struct vu_message *message, uint16_t id, uint16_t command);
void vu_begin_reply(struct vu_message *reply, const struct vu_message *to);

/* ---- "VFIO_USER_VERSION" ---- */

enum { VU_ACCESS_IDS = 1 << 15 };
enum { VU_MAJOR = 0, VU_MINOR = 1, VU_RESUME_LENGTH = 32 };

struct vu_version {
    uint16_t major, minor;
    unsigned max_fds, max_data, max_maps;
    bool twin; /* twin-socket mode: the client can, the server does */
    unsigned twin_index;
    /*
     * Ours, in an object "lodge" that others ignore. page_flags: a map comes with a second
     * descriptor, the flag bytes of its pages (docs/vfio-user.md). resume: the client's
     * name for its connection, so that it can go on after the server's end; in the reply `resumed`
     * says that the device has kept its state, and `done` which of the client's accesses it has
     * seen last (-1: none). Accesses have the ids 0 to VU_ACCESS_IDS - 1 in turn, other messages
     * those above. full: the client stops its guest at VU_LODGE_FULL.
     */
    bool page_flags, resumed, full;
    int done;
    char resume[VU_RESUME_LENGTH + 1];
};

/* What is not named gets the specification's default. -EPROTO. */
int vu_version_parse(const struct vu_message *message, struct vu_version *version);
/* Fills message's payload. */
void vu_version_format(const struct vu_version *version, bool reply, struct vu_message *message);

#endif
