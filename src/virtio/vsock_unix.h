/*
 * The socket device's bridge to Unix sockets, for programs outside this
 * process. Host to guest: connect to PATH, write "CONNECT <port>\n", read
 * "OK <host port>\n", then talk to that port of the guest; a refused
 * connection is closed without an answer. Guest to host: a connection to
 * host port N, when no listener in this process has it, goes to the Unix
 * socket PATH_N.
 *
 * And the same for a descriptor that is there already: vsock_relay_fd.
 *
 * The loop's thread.
 */
#ifndef LODGE_VIRTIO_VSOCK_UNIX_H
#define LODGE_VIRTIO_VSOCK_UNIX_H

#include "virtio/vsock.h"

struct vsock_unix;

enum {
    VSOCK_UNIX_RELAYS_MAX = VSOCK_CONNECTIONS_MAX, /* clients at a time; more wait */
};

/*
 * Listens on PATH, which must not exist. -EADDRINUSE, -ENAMETOOLONG and so
 * on. Takes VSOCK_PORT_ANY of the device. The socket is for the user alone
 * (mode 0600).
 */
int vsock_unix_create(struct device *vsock, struct loop *loop, const char *path,
                      struct vsock_unix **bridge, struct error *err);

/* Ends all connections and removes PATH. Before the device is destroyed. NULL is fine. */
void vsock_unix_destroy(struct vsock_unix *bridge);

/*
 * Connects a stream socket to a port of the guest: what goes in at one end
 * comes out at the other. Takes fd over, on failure too; it is closed when
 * the connection is.
 */
int vsock_unix_relay_fd(struct vsock_unix *bridge, uint32_t guest_port, int fd, struct error *err);

#endif
