#include "virtio/vsock_private.h"

#include <stdlib.h>
#include <string.h>

static struct virtio_vsock *vsock_of_device(struct device *device) {
    return container_of(device, struct virtio_vsock, virtio.device);
}

/* ---- Byte rings ---- */

bool vsock_ring_ready(struct byte_ring *ring) {
    if (ring->bytes == NULL)
        ring->bytes = malloc(VSOCK_BUFFER);
    return ring->bytes != NULL;
}

static uint32_t ring_room(const struct byte_ring *ring) {
    return VSOCK_BUFFER - ring->length;
}

/* The contiguous free space at the end, of at most `length` bytes (lowered to what there is). */
uint8_t *vsock_ring_end(struct byte_ring *ring, uint32_t *length) {
    uint32_t end = (ring->start + ring->length) % VSOCK_BUFFER;
    uint32_t room = ring_room(ring), straight = VSOCK_BUFFER - end;
    if (room > straight)
        room = straight;
    if (*length > room)
        *length = room;
    return ring->bytes + end;
}

/* The contiguous bytes at the start, likewise. */
const uint8_t *vsock_ring_start(const struct byte_ring *ring, uint32_t *length) {
    uint32_t straight = VSOCK_BUFFER - ring->start;
    if (*length > ring->length)
        *length = ring->length;
    if (*length > straight)
        *length = straight;
    return ring->bytes + ring->start;
}

void vsock_ring_drop(struct byte_ring *ring, uint32_t length) {
    ring->start = (ring->start + length) % VSOCK_BUFFER;
    ring->length -= length;
}

static void ring_free(struct byte_ring *ring) {
    free(ring->bytes);
    *ring = (struct byte_ring){0};
}

/* ---- Connections: making, finding, forgetting ---- */

struct vsock_conn *vsock_conn_find(struct virtio_vsock *vsock, uint32_t guest_port,
                                   uint32_t host_port) {
    for (struct vsock_conn *conn = vsock->conns; conn != NULL; conn = conn->next)
        if (conn->guest_port == guest_port && conn->host_port == host_port &&
            conn->state != CONN_GONE)
            return conn;
    return NULL;
}

void vsock_conn_free(struct vsock_conn *conn) {
    struct vsock_conn **link = &conn->vsock->conns;
    while (*link != conn)
        link = &(*link)->next;
    *link = conn->next;
    conn->vsock->conn_count--;
    ring_free(&conn->in);
    ring_free(&conn->out);
    free(conn);
}

/* Frees a connection that nobody knows any more. */
void vsock_conn_settle(struct vsock_conn *conn) {
    if (conn->state == CONN_GONE && conn->ops == NULL && !conn->in_told && !conn->in_out &&
        conn->references == 0)
        vsock_conn_free(conn);
}

static void dispatch(void *context);

static void post_dispatch(struct virtio_vsock *vsock) {
    if (!vsock->dispatch_posted)
        vsock->dispatch_posted =
            loop_post(vsock->virtio.device.platform->loop, dispatch, vsock) == 0;
}

void vsock_conn_tell(struct vsock_conn *conn, unsigned what) {
    struct virtio_vsock *vsock = conn->vsock;
    conn->tell |= what;
    if (!conn->in_told) {
        conn->in_told = true;
        conn->next_told = NULL;
        if (vsock->told_first == NULL)
            vsock->told_first = conn;
        else
            vsock->told_last->next_told = conn;
        vsock->told_last = conn;
    }
    post_dispatch(vsock);
}

static struct vsock_conn *take_told(struct virtio_vsock *vsock) {
    struct vsock_conn *conn = vsock->told_first;
    if (conn != NULL) {
        vsock->told_first = conn->next_told;
        conn->in_told = false;
    }
    return conn;
}

void vsock_conn_queue(struct vsock_conn *conn) {
    struct virtio_vsock *vsock = conn->vsock;
    if (conn->in_out)
        return;
    conn->in_out = true;
    conn->next_out = NULL;
    if (vsock->out_first == NULL)
        vsock->out_first = conn;
    else
        vsock->out_last->next_out = conn;
    vsock->out_last = conn;
}

void vsock_conn_owe(struct vsock_conn *conn, enum packet_op op) {
    conn->owed |= 1u << op;
    vsock_conn_queue(conn);
}

void vsock_owe_reset(struct virtio_vsock *vsock, uint32_t guest_port, uint32_t host_port,
                     uint64_t source_cid) {
    /* When full, the guest learns from the RST to its next packet. */
    if (vsock->reply_count == REPLIES_MAX)
        return;
    unsigned slot = (vsock->reply_first + vsock->reply_count++) % REPLIES_MAX;
    vsock->replies[slot] = (struct reply){guest_port, host_port, source_cid};
}

/* The guest is through with the connection, or never to hear of it again. */
void vsock_conn_gone(struct vsock_conn *conn, int error) {
    if (conn->state == CONN_GONE)
        return;
    conn->state = CONN_GONE;
    conn->owed = 0;
    conn->error = error;
    ring_free(&conn->out);
    if (conn->ops != NULL)
        vsock_conn_tell(conn, TELL_CLOSED);
    else
        vsock_conn_settle(conn);
}

void vsock_conn_reset(struct vsock_conn *conn, int error) {
    vsock_owe_reset(conn->vsock, conn->guest_port, conn->host_port, VSOCK_HOST_CID);
    vsock_conn_gone(conn, error);
}

/* Makes room when there are too many: ends one that the host closed and the guest keeps. */
static void reap(struct virtio_vsock *vsock) {
    for (struct vsock_conn *conn = vsock->conns; conn != NULL; conn = conn->next)
        if (conn->state == CONN_CLOSING && conn->references == 0) {
            vsock_conn_reset(conn, 0);
            return;
        }
}

struct vsock_conn *vsock_conn_make(struct virtio_vsock *vsock, uint32_t guest_port,
                                   uint32_t host_port, enum conn_state state) {
    if (vsock->conn_count >= VSOCK_CONNECTIONS_MAX)
        reap(vsock);
    if (vsock->conn_count >= VSOCK_CONNECTIONS_MAX)
        return NULL;
    struct vsock_conn *conn = calloc(1, sizeof *conn);
    if (conn == NULL)
        return NULL;
    *conn = (struct vsock_conn){
        .vsock = vsock,
        .next = vsock->conns,
        .state = state,
        .guest_port = guest_port,
        .host_port = host_port,
    };
    vsock->conns = conn;
    vsock->conn_count++;
    return conn;
}

struct listener *vsock_find_listener(struct virtio_vsock *vsock, uint32_t port) {
    struct listener *any = NULL;
    for (struct listener *listener = vsock->listeners; listener != NULL;
         listener = listener->next) {
        if (listener->port == port)
            return listener;
        if (listener->port == VSOCK_PORT_ANY)
            any = listener;
    }
    return any;
}

/* ---- Telling users, on the loop with the lock let go around each call ---- */

static void tell_accept(struct vsock_conn *conn) {
    struct virtio_vsock *vsock = conn->vsock;
    struct listener *listener = vsock_find_listener(vsock, conn->host_port);
    int rc = -ECONNREFUSED;
    if (listener != NULL) {
        vsock_accept *accept = listener->accept;
        void *context = listener->context;
        lock_release(&vsock->virtio.device.lock);
        rc = accept(context, conn, conn->host_port);
        lock_take(&vsock->virtio.device.lock);
    }
    if (conn->state != CONN_ACCEPTING)
        return;
    if (rc != 0 || conn->ops == NULL) {
        conn->ops = NULL;
        vsock_conn_reset(conn, -ECONNREFUSED);
    } else {
        conn->state = CONN_OPEN;
        vsock_conn_owe(conn, OP_RESPONSE);
    }
}

/* Calls one of the optional callbacks. */
static void tell_plain(struct vsock_conn *conn, void (*call)(void *, struct vsock_conn *)) {
    struct lock *lock = &conn->vsock->virtio.device.lock;
    if (call == NULL)
        return;
    void *context = conn->context;
    lock_release(lock);
    call(context, conn);
    lock_take(lock);
}

/* Room that the user made is the guest's again; told unasked when it sees less than half free. */
static void give_credit(struct vsock_conn *conn) {
    uint32_t outstanding = conn->received - conn->user_consumed;
    if (outstanding < conn->in.length)
        outstanding = conn->in.length;
    conn->consumed = conn->received - outstanding;
    uint32_t guest_sees = conn->received - conn->consumed_told;
    if (conn->state == CONN_OPEN && conn->consumed != conn->consumed_told &&
        guest_sees > VSOCK_BUFFER / 2) {
        vsock_conn_owe(conn, OP_CREDIT_UPDATE);
        virtio_serve(&conn->vsock->virtio, RECEIVE);
    }
}

static void tell_data(struct vsock_conn *conn) {
    struct lock *lock = &conn->vsock->virtio.device.lock;
    while (conn->ops != NULL && conn->in.length > 0) {
        const struct vsock_ops *ops = conn->ops;
        void *context = conn->context;
        uint32_t length = conn->in.length;
        const uint8_t *bytes = vsock_ring_start(&conn->in, &length);
        /* The guest's packets go behind these bytes meanwhile, never over them. */
        lock_release(lock);
        ops->received(context, conn, bytes, length);
        lock_take(lock);
        vsock_ring_drop(&conn->in, length);
        give_credit(conn);
    }
}

static void tell_closed(struct vsock_conn *conn) {
    struct lock *lock = &conn->vsock->virtio.device.lock;
    const struct vsock_ops *ops = conn->ops;
    void *context = conn->context;
    int error = conn->error;
    conn->ops = NULL;
    lock_release(lock);
    ops->closed(context, conn, error);
    lock_take(lock);
}

static void tell_all(struct vsock_conn *conn) {
    unsigned what = conn->tell;
    conn->tell = 0;
    if ((what & TELL_ACCEPT) && conn->state == CONN_ACCEPTING)
        tell_accept(conn);
    if ((what & TELL_CONNECTED) && conn->ops != NULL)
        tell_plain(conn, conn->ops->connected);
    tell_data(conn);
    if ((what & TELL_ENDED) && conn->ops != NULL)
        tell_plain(conn, conn->ops->ended);
    if ((what & TELL_WRITABLE) && conn->ops != NULL && conn->state != CONN_GONE)
        tell_plain(conn, conn->ops->writable);
    if ((what & TELL_CLOSED) && conn->ops != NULL)
        tell_closed(conn);
}

static void dispatch(void *context) {
    struct virtio_vsock *vsock = context;
    struct vsock_conn *conn;
    lock_take(&vsock->virtio.device.lock);
    vsock->dispatch_posted = false;
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX && (conn = take_told(vsock)) != NULL; i++) {
        conn->references++;
        tell_all(conn);
        conn->references--;
        vsock_conn_settle(conn);
    }
    if (vsock->told_first != NULL)
        post_dispatch(vsock);
    virtio_serve(&vsock->virtio, RECEIVE);
    lock_release(&vsock->virtio.device.lock);
}

/* ---- The users' calls ---- */

static uint32_t free_host_port(struct virtio_vsock *vsock, uint32_t guest_port) {
    do {
        vsock->next_port++;
        if (vsock->next_port < VSOCK_HOST_PORT_FIRST || vsock->next_port == VSOCK_PORT_ANY)
            vsock->next_port = VSOCK_HOST_PORT_FIRST;
    } while (vsock_conn_find(vsock, guest_port, vsock->next_port) != NULL);
    return vsock->next_port;
}

int vsock_connect(struct device *device, uint32_t guest_port, const struct vsock_ops *ops,
                  void *context, struct vsock_conn **conn, struct error *err) {
    struct virtio_vsock *vsock = vsock_of_device(device);
    lock_take(&device->lock);
    struct vsock_conn *made =
        vsock_conn_make(vsock, guest_port, free_host_port(vsock, guest_port), CONN_CONNECTING);
    if (made != NULL) {
        made->ops = ops;
        made->context = context;
        vsock_conn_owe(made, OP_REQUEST);
        virtio_serve(&vsock->virtio, RECEIVE);
    }
    lock_release(&device->lock);
    if (made == NULL)
        return error_set(err, -EMFILE, "%s: too many connections to the guest", device->name);
    *conn = made;
    return 0;
}

static struct listener **listener_link(struct virtio_vsock *vsock, uint32_t port) {
    struct listener **link = &vsock->listeners;
    while (*link != NULL && (*link)->port != port)
        link = &(*link)->next;
    return link;
}

int vsock_listen(struct device *device, uint32_t host_port, vsock_accept *accept, void *context,
                 struct error *err) {
    struct virtio_vsock *vsock = vsock_of_device(device);
    struct listener *listener = malloc(sizeof *listener);
    if (listener == NULL)
        return error_set(err, -ENOMEM, "%s: out of memory", device->name);
    *listener = (struct listener){.port = host_port, .accept = accept, .context = context};
    lock_take(&device->lock);
    struct listener **link = listener_link(vsock, host_port);
    bool taken = *link != NULL;
    if (!taken)
        *link = listener;
    lock_release(&device->lock);
    if (!taken)
        return 0;
    free(listener);
    return error_set(err, -EADDRINUSE, "%s: host port %u has a listener already", device->name,
                     host_port);
}

void vsock_unlisten(struct device *device, uint32_t host_port) {
    struct virtio_vsock *vsock = vsock_of_device(device);
    lock_take(&device->lock);
    struct listener **link = listener_link(vsock, host_port);
    struct listener *listener = *link;
    if (listener != NULL)
        *link = listener->next;
    lock_release(&device->lock);
    free(listener);
}

void vsock_attach(struct vsock_conn *conn, const struct vsock_ops *ops, void *context) {
    lock_take(&conn->vsock->virtio.device.lock);
    conn->ops = ops;
    conn->context = context;
    /* The guest gave up while the listener made up its mind. */
    if (conn->state == CONN_GONE)
        vsock_conn_tell(conn, TELL_CLOSED);
    lock_release(&conn->vsock->virtio.device.lock);
}

ssize_t vsock_send(struct vsock_conn *conn, const void *bytes, size_t length) {
    struct virtio_vsock *vsock = conn->vsock;
    ssize_t result = -EPIPE;
    lock_take(&vsock->virtio.device.lock);
    bool open = conn->state != CONN_GONE && conn->state != CONN_CLOSING && !conn->shutdown_wanted;
    if (open && !(conn->guest_shutdown & SHUTDOWN_RECEIVE)) {
        size_t done = 0;
        while (vsock_ring_ready(&conn->out) && done < length && ring_room(&conn->out) > 0) {
            uint32_t piece =
                length - done < VSOCK_BUFFER ? (uint32_t)(length - done) : VSOCK_BUFFER;
            uint8_t *end = vsock_ring_end(&conn->out, &piece);
            memcpy(end, (const uint8_t *)bytes + done, piece);
            conn->out.length += piece;
            done += piece;
        }
        conn->wants_room = done < length;
        vsock_conn_queue(conn);
        virtio_serve(&vsock->virtio, RECEIVE);
        result = (ssize_t)done;
    }
    lock_release(&vsock->virtio.device.lock);
    return result;
}

void vsock_consumed(struct vsock_conn *conn, size_t length) {
    struct virtio_vsock *vsock = conn->vsock;
    lock_take(&vsock->virtio.device.lock);
    uint32_t outstanding = conn->received - conn->user_consumed;
    conn->user_consumed += length < outstanding ? (uint32_t)length : outstanding;
    give_credit(conn);
    lock_release(&vsock->virtio.device.lock);
}

void vsock_shutdown(struct vsock_conn *conn) {
    struct virtio_vsock *vsock = conn->vsock;
    lock_take(&vsock->virtio.device.lock);
    if (conn->state != CONN_GONE) {
        conn->shutdown_wanted = true;
        vsock_conn_queue(conn);
        virtio_serve(&vsock->virtio, RECEIVE);
    }
    lock_release(&vsock->virtio.device.lock);
}

/* The user lets go; what the guest is told depends on how far the connection was. */
static void let_go(struct vsock_conn *conn, bool flush_first) {
    struct virtio_vsock *vsock = conn->vsock;
    lock_take(&vsock->virtio.device.lock);
    conn->ops = NULL;
    if (conn->state == CONN_OPEN && flush_first) {
        conn->state = CONN_CLOSING;
        conn->shutdown_wanted = true;
        conn->shutdown_sent = false;
        vsock_conn_queue(conn);
    } else if (conn->state == CONN_CONNECTING && (conn->owed & 1u << OP_REQUEST)) {
        vsock_conn_gone(conn, 0);
    } else if (conn->state != CONN_GONE) {
        vsock_conn_reset(conn, 0);
    } else {
        vsock_conn_settle(conn);
    }
    virtio_serve(&vsock->virtio, RECEIVE);
    lock_release(&vsock->virtio.device.lock);
}

void vsock_close(struct vsock_conn *conn) {
    let_go(conn, true);
}

void vsock_abort(struct vsock_conn *conn) {
    let_go(conn, false);
}

uint32_t vsock_host_port(const struct vsock_conn *conn) {
    return conn->host_port;
}

uint32_t vsock_guest_port(const struct vsock_conn *conn) {
    return conn->guest_port;
}
