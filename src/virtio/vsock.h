/*
 * Socket device (virtio 1.2, section 5.10): stream connections between ports
 * of the guest and ports of the host (CID 2), without a network.
 *
 * The host's side is in this process: code that wants to talk to the guest
 * (lodge run to its agent, the Unix socket bridge of virtio/vsock_unix.h)
 * connects to a guest port or listens on a host port and is called back.
 *
 * Flow control is exact in both directions: the device never holds more than
 * VSOCK_BUFFER bytes a connection and direction. What the guest sent counts
 * against its credit until vsock_consumed; what the host sends waits for the
 * guest's credit.
 *
 * Threads: all calls and all callbacks on the loop's thread, callbacks
 * without any lock held, so that they may call back. A guest's reset ends
 * every connection with ECONNRESET; connections being made wait for its
 * driver to come.
 */
#ifndef LODGE_VIRTIO_VSOCK_H
#define LODGE_VIRTIO_VSOCK_H

#include <sys/types.h>

#include "virtio/virtio.h"

enum {
    VSOCK_HOST_CID = 2,
    VSOCK_GUEST_CID = 3,             /* the usual one: one guest a monitor */
    VSOCK_BUFFER = 64 << 10,         /* bytes a connection and direction */
    VSOCK_CONNECTIONS_MAX = 256,     /* a guest that wants more is refused */
    VSOCK_HOST_PORT_FIRST = 1 << 30, /* host ports given to vsock_connect start here */
};
#define VSOCK_PORT_ANY UINT32_MAX

struct virtio_vsock_config {
    struct virtio_options options;
    uint64_t guest_cid; /* 3 to 2^32-2; 0: VSOCK_GUEST_CID */
};

/* config is struct virtio_vsock_config. */
extern const struct device_class virtio_vsock_class;

/*
 * One connection. Valid from vsock_connect or accept until `closed` was
 * called or vsock_close or vsock_abort returned.
 */
struct vsock_conn;

struct vsock_ops {
    /* Optional. The guest accepted a vsock_connect. */
    void (*connected)(void *context, struct vsock_conn *conn);
    /*
     * The guest sent bytes; they are the callee's now (copy what is to stay
     * beyond the call). They count against the guest's credit until
     * vsock_consumed, here or later.
     */
    void (*received)(void *context, struct vsock_conn *conn, const void *bytes, size_t length);
    /* Optional. vsock_send took less than offered, and there is room again. */
    void (*writable)(void *context, struct vsock_conn *conn);
    /* Optional. The guest sends no more (half-close); all it sent was received. */
    void (*ended)(void *context, struct vsock_conn *conn);
    /* The connection is over: 0 closed by the guest in good order, else a negative errno
     * (-ECONNREFUSED: nobody listens there, -ECONNRESET). The last call. */
    void (*closed)(void *context, struct vsock_conn *conn, int error);
};

/*
 * Connects to a port of the guest. `closed` tells of failure later.
 * -EMFILE when there are VSOCK_CONNECTIONS_MAX, -ENOMEM.
 */
int vsock_connect(struct device *device, uint32_t guest_port, const struct vsock_ops *ops,
                  void *context, struct vsock_conn **conn, struct error *err);

/*
 * Listens on a host port, or with VSOCK_PORT_ANY on all that have no listener
 * of their own. accept() answers 0 after vsock_attach (or vsock_relay), or a
 * negative errno to refuse. -EADDRINUSE, -ENOMEM.
 */
typedef int vsock_accept(void *context, struct vsock_conn *conn, uint32_t host_port);
int vsock_listen(struct device *device, uint32_t host_port, vsock_accept *accept, void *context,
                 struct error *err);
void vsock_unlisten(struct device *device, uint32_t host_port);
void vsock_attach(struct vsock_conn *conn, const struct vsock_ops *ops, void *context);

/* Takes what fits: the bytes taken, 0 when full (then `writable` follows), -EPIPE when the guest
 * receives no more. */
ssize_t vsock_send(struct vsock_conn *conn, const void *bytes, size_t length);
/* `length` more bytes received are dealt with: the guest may send as many again. */
void vsock_consumed(struct vsock_conn *conn, size_t length);
/* The host sends no more (half-close), once what it sent is out. */
void vsock_shutdown(struct vsock_conn *conn);
/* Sends what is still waiting and closes. No callback follows. */
void vsock_close(struct vsock_conn *conn);
/* Resets the connection at once. No callback follows. */
void vsock_abort(struct vsock_conn *conn);

uint32_t vsock_host_port(const struct vsock_conn *conn);
uint32_t vsock_guest_port(const struct vsock_conn *conn);

#endif
