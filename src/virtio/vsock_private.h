/*
 * The socket device's own header: connections (vsock_conn.c) and packets
 * (vsock.c) meet here. Everything under the device's lock.
 */
#ifndef LODGE_VIRTIO_VSOCK_PRIVATE_H
#define LODGE_VIRTIO_VSOCK_PRIVATE_H

#include "virtio/vsock.h"

enum { RECEIVE = 0, TRANSMIT = 1, EVENT = 2 }; /* from the guest's point of view: 5.10.2 */

enum packet_op {
    OP_NONE,
    OP_REQUEST,
    OP_RESPONSE,
    OP_RST,
    OP_SHUTDOWN,
    OP_RW,
    OP_CREDIT_UPDATE,
    OP_CREDIT_REQUEST,
};

enum { SHUTDOWN_RECEIVE = 1, SHUTDOWN_SEND = 2, SHUTDOWN_BOTH = 3 };

enum conn_state {
    CONN_ACCEPTING,  /* the guest asked; the listener has not answered */
    CONN_CONNECTING, /* the host asked; the guest has not answered */
    CONN_OPEN,
    CONN_CLOSING, /* closed by the host: flushes, shuts down, waits for the guest's RST */
    CONN_GONE,    /* the guest knows nothing of it: the user may still be told things */
};

/* What the user is to be told, on the loop. */
enum {
    TELL_ACCEPT = 1,
    TELL_CONNECTED = 2,
    TELL_DATA = 4,
    TELL_ENDED = 8,
    TELL_WRITABLE = 16,
    TELL_CLOSED = 32,
};

/* A ring of VSOCK_BUFFER bytes, allocated at first use. */
struct byte_ring {
    uint8_t *bytes;
    uint32_t start, length;
};

struct vsock_conn {
    struct virtio_vsock *vsock;
    struct vsock_conn *next;
    struct vsock_conn *next_told, *next_out;
    bool in_told, in_out; /* queued in those lists */
    unsigned references;  /* of the dispatcher */
    enum conn_state state;
    uint32_t guest_port, host_port;

    const struct vsock_ops *ops; /* NULL: nobody is interested */
    void *context;
    unsigned tell;
    int error;
    bool wants_room;

    unsigned owed; /* bit OP_*: packets to send */
    bool shutdown_wanted, shutdown_sent, credit_asked;
    uint8_t guest_shutdown;
    struct byte_ring in, out;
    /* Guest to host, modulo 2^32. What the user consumed while its callback still runs counts
     * as consumed only when it has left the ring. */
    uint32_t received, user_consumed, consumed, consumed_told;
    uint32_t sent, guest_buffer_size, guest_forwarded; /* host to guest */
};

struct listener {
    struct listener *next;
    uint32_t port;
    vsock_accept *accept;
    void *context;
};

/* An RST owed for a connection that has no object. */
struct reply {
    uint32_t guest_port, host_port;
    uint64_t source_cid;
};
enum { REPLIES_MAX = 128 };

struct virtio_vsock {
    struct virtio_device virtio;
    uint64_t guest_cid;
    uint8_t event_owed; /* the guest is to hear that all connections are lost */

    struct vsock_conn *conns;
    unsigned conn_count;
    uint32_t next_port;
    struct listener *listeners;
    struct vsock_conn *told_first, *told_last;
    struct vsock_conn *out_first, *out_last;
    bool dispatch_posted;
    struct reply replies[REPLIES_MAX];
    unsigned reply_first, reply_count;
    bool transmit_stalled; /* no room for replies: the guest's packets wait */
};

/* ---- vsock_conn.c ---- */

/* Allocates the ring's bytes if need be; false: no memory. */
bool vsock_ring_ready(struct byte_ring *ring);
/* The contiguous free space at the end, of at most `length` bytes (lowered to what there is). */
uint8_t *vsock_ring_end(struct byte_ring *ring, uint32_t *length);
/* The contiguous bytes at the start, likewise. */
const uint8_t *vsock_ring_start(const struct byte_ring *ring, uint32_t *length);
void vsock_ring_drop(struct byte_ring *ring, uint32_t length);

/* The connection between two ports that the guest knows of; NULL: none. */
struct vsock_conn *vsock_conn_find(struct virtio_vsock *vsock, uint32_t guest_port,
                                   uint32_t host_port);
/* NULL when there are too many or no memory. */
struct vsock_conn *vsock_conn_make(struct virtio_vsock *vsock, uint32_t guest_port,
                                   uint32_t host_port, enum conn_state state);
/* Frees a connection that nobody knows any more. */
void vsock_conn_settle(struct vsock_conn *conn);
void vsock_conn_free(struct vsock_conn *conn);
/* The user is told (TELL_*) on the loop. */
void vsock_conn_tell(struct vsock_conn *conn, unsigned what);
/* The connection may have something to send. */
void vsock_conn_queue(struct vsock_conn *conn);
void vsock_conn_owe(struct vsock_conn *conn, enum packet_op op);
/* The guest is through with the connection, or never to hear of it again. May free it. */
void vsock_conn_gone(struct vsock_conn *conn, int error);
/* The same, and the guest gets an RST. */
void vsock_conn_reset(struct vsock_conn *conn, int error);
void vsock_owe_reset(struct virtio_vsock *vsock, uint32_t guest_port, uint32_t host_port,
                     uint64_t source_cid);
struct listener *vsock_find_listener(struct virtio_vsock *vsock, uint32_t port);

#endif
