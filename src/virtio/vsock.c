#include "virtio/vsock.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"

enum { RECEIVE = 0, TRANSMIT = 1, EVENT = 2 }; /* from the guest's point of view: 5.10.2 */
enum { F_STREAM = 0 };
enum { TYPE_STREAM = 1 };
enum { EVENT_TRANSPORT_RESET = 0 };

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

/* struct virtio_vsock_hdr: 5.10.6. */
enum { HEADER_SIZE = 44 };
struct header {
    uint64_t source_cid, target_cid;
    uint32_t source_port, target_port;
    uint32_t length;
    uint16_t type, op;
    uint32_t flags, buffer_size, forwarded;
};

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
    uint32_t received, consumed, consumed_told;        /* guest to host, modulo 2^32 */
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

static int vsock_after_load(void *object, struct error *err) {
    (void)err;
    ((struct virtio_vsock *)object)->event_owed = true;
    return 0;
}

static const struct state_field vsock_fields[] = {
    STATE_NESTED(struct virtio_vsock, virtio, &virtio_state, 1),
    STATE_FIELD(struct virtio_vsock, guest_cid, 1, .keep = true),
};
/* Connections do not outlive a saved state: their other ends are elsewhere. */
static const struct state_table vsock_state = STATE_TABLE(
    "virtio-vsock", 1, struct virtio_vsock, vsock_fields, .after_load = vsock_after_load);

static struct virtio_vsock *vsock_of(struct virtio_device *device) {
    return container_of(device, struct virtio_vsock, virtio);
}

static struct virtio_vsock *vsock_of_device(struct device *device) {
    return container_of(device, struct virtio_vsock, virtio.device);
}

/* ---- Byte rings ---- */

static bool ring_ready(struct byte_ring *ring) {
    if (ring->bytes == NULL)
        ring->bytes = malloc(VSOCK_BUFFER);
    return ring->bytes != NULL;
}

static uint32_t ring_room(const struct byte_ring *ring) {
    return VSOCK_BUFFER - ring->length;
}

/* The contiguous free space at the end, of at most `length` bytes (lowered to what there is). */
static uint8_t *ring_end(struct byte_ring *ring, uint32_t *length) {
    uint32_t end = (ring->start + ring->length) % VSOCK_BUFFER;
    uint32_t room = ring_room(ring), straight = VSOCK_BUFFER - end;
    if (room > straight)
        room = straight;
    if (*length > room)
        *length = room;
    return ring->bytes + end;
}

/* The contiguous bytes at the start, likewise. */
static const uint8_t *ring_start(const struct byte_ring *ring, uint32_t *length) {
    uint32_t straight = VSOCK_BUFFER - ring->start;
    if (*length > ring->length)
        *length = ring->length;
    if (*length > straight)
        *length = straight;
    return ring->bytes + ring->start;
}

static void ring_drop(struct byte_ring *ring, uint32_t length) {
    ring->start = (ring->start + length) % VSOCK_BUFFER;
    ring->length -= length;
}

static void ring_free(struct byte_ring *ring) {
    free(ring->bytes);
    *ring = (struct byte_ring){0};
}

/* ---- Connections: making, finding, forgetting ---- */

static struct vsock_conn *find(struct virtio_vsock *vsock, uint32_t guest_port,
                               uint32_t host_port) {
    for (struct vsock_conn *conn = vsock->conns; conn != NULL; conn = conn->next)
        if (conn->guest_port == guest_port && conn->host_port == host_port &&
            conn->state != CONN_GONE)
            return conn;
    return NULL;
}

static void free_conn(struct vsock_conn *conn) {
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
static void settle(struct vsock_conn *conn) {
    if (conn->state == CONN_GONE && conn->ops == NULL && !conn->in_told && !conn->in_out &&
        conn->references == 0)
        free_conn(conn);
}

static void dispatch(void *context);

static void post_dispatch(struct virtio_vsock *vsock) {
    if (!vsock->dispatch_posted)
        vsock->dispatch_posted =
            loop_post(vsock->virtio.device.platform->loop, dispatch, vsock) == 0;
}

static void tell(struct vsock_conn *conn, unsigned what) {
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

static void queue_out(struct vsock_conn *conn) {
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

static void owe(struct vsock_conn *conn, enum packet_op op) {
    conn->owed |= 1u << op;
    queue_out(conn);
}

static void owe_reset(struct virtio_vsock *vsock, uint32_t guest_port, uint32_t host_port,
                      uint64_t source_cid) {
    /* When full, the guest learns from the RST to its next packet. */
    if (vsock->reply_count == REPLIES_MAX)
        return;
    unsigned slot = (vsock->reply_first + vsock->reply_count++) % REPLIES_MAX;
    vsock->replies[slot] = (struct reply){guest_port, host_port, source_cid};
}

/* The guest is through with the connection, or never to hear of it again. */
static void gone(struct vsock_conn *conn, int error) {
    if (conn->state == CONN_GONE)
        return;
    conn->state = CONN_GONE;
    conn->owed = 0;
    conn->error = error;
    ring_free(&conn->out);
    if (conn->ops != NULL)
        tell(conn, TELL_CLOSED);
    else
        settle(conn);
}

static void reset_conn(struct vsock_conn *conn, int error) {
    owe_reset(conn->vsock, conn->guest_port, conn->host_port, VSOCK_HOST_CID);
    gone(conn, error);
}

/* Makes room when there are too many: ends one that the host closed and the guest keeps. */
static void reap(struct virtio_vsock *vsock) {
    for (struct vsock_conn *conn = vsock->conns; conn != NULL; conn = conn->next)
        if (conn->state == CONN_CLOSING && conn->references == 0) {
            reset_conn(conn, 0);
            return;
        }
}

static struct vsock_conn *make_conn(struct virtio_vsock *vsock, uint32_t guest_port,
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

static struct listener *find_listener(struct virtio_vsock *vsock, uint32_t port) {
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

/* ---- Packets to the guest ---- */

static uint32_t guest_credit(const struct vsock_conn *conn) {
    uint32_t outstanding = conn->sent - conn->guest_forwarded;
    return outstanding < conn->guest_buffer_size ? conn->guest_buffer_size - outstanding : 0;
}

/* The packet the connection would send next; OP_NONE: none now. */
static enum packet_op next_op(const struct vsock_conn *conn) {
    static const enum packet_op first[] = {OP_REQUEST, OP_RESPONSE, OP_CREDIT_UPDATE};
    for (unsigned i = 0; i < ARRAY_SIZE(first); i++)
        if (conn->owed & 1u << first[i])
            return first[i];
    if (conn->state != CONN_OPEN && conn->state != CONN_CLOSING)
        return OP_NONE;
    if (conn->out.length > 0) {
        if (guest_credit(conn) > 0)
            return OP_RW;
        return conn->credit_asked ? OP_NONE : OP_CREDIT_REQUEST;
    }
    return conn->shutdown_wanted && !conn->shutdown_sent ? OP_SHUTDOWN : OP_NONE;
}

static bool put_header(struct virtq *queue, const struct virtq_chain *chain,
                       const struct header *header) {
    uint8_t raw[HEADER_SIZE];
    store_le64(raw, header->source_cid);
    store_le64(raw + 8, header->target_cid);
    store_le32(raw + 16, header->source_port);
    store_le32(raw + 20, header->target_port);
    store_le32(raw + 24, header->length);
    store_le16(raw + 28, header->type);
    store_le16(raw + 30, header->op);
    store_le32(raw + 32, header->flags);
    store_le32(raw + 36, header->buffer_size);
    store_le32(raw + 40, header->forwarded);
    return virtq_write(queue, chain, 0, raw, sizeof raw) == sizeof raw;
}

/* Moves bytes from the connection's ring behind the header; answers how many. */
static uint32_t put_payload(struct vsock_conn *conn, struct virtq *queue,
                            const struct virtq_chain *chain) {
    uint32_t limit = chain->writable_length - HEADER_SIZE, credit = guest_credit(conn);
    uint32_t done = 0;
    if (limit > credit)
        limit = credit;
    while (done < limit && conn->out.length > 0) {
        uint32_t piece = limit - done;
        const uint8_t *bytes = ring_start(&conn->out, &piece);
        if (virtq_write(queue, chain, HEADER_SIZE + done, bytes, piece) != (ssize_t)piece)
            break;
        ring_drop(&conn->out, piece);
        done += piece;
    }
    conn->sent += done;
    if (conn->wants_room && done > 0) {
        conn->wants_room = false;
        tell(conn, TELL_WRITABLE);
    }
    return done;
}

/* Fills the chain with the connection's packet; answers the bytes written. */
static uint32_t put_packet(struct vsock_conn *conn, enum packet_op op, struct virtq *queue,
                           const struct virtq_chain *chain) {
    struct header header = {
        .source_cid = VSOCK_HOST_CID,
        .target_cid = conn->vsock->guest_cid,
        .source_port = conn->host_port,
        .target_port = conn->guest_port,
        .type = TYPE_STREAM,
        .op = (uint16_t)op,
        .buffer_size = VSOCK_BUFFER,
        .forwarded = conn->consumed,
    };
    if (op == OP_RW) {
        header.length = put_payload(conn, queue, chain);
    } else if (op == OP_SHUTDOWN) {
        header.flags = conn->state == CONN_CLOSING ? SHUTDOWN_BOTH : SHUTDOWN_SEND;
        conn->shutdown_sent = true;
    } else if (op == OP_CREDIT_REQUEST) {
        conn->credit_asked = true;
    }
    /* Every packet tells the credit. */
    conn->owed &= ~(1u << op | 1u << OP_CREDIT_UPDATE);
    conn->consumed_told = conn->consumed;
    return put_header(queue, chain, &header) ? HEADER_SIZE + header.length : 0;
}

static uint32_t put_reply(struct virtio_vsock *vsock, struct virtq *queue,
                          const struct virtq_chain *chain) {
    struct reply reply = vsock->replies[vsock->reply_first];
    struct header header = {
        .source_cid = reply.source_cid,
        .target_cid = vsock->guest_cid,
        .source_port = reply.host_port,
        .target_port = reply.guest_port,
        .type = TYPE_STREAM,
        .op = OP_RST,
    };
    vsock->reply_first = (vsock->reply_first + 1) % REPLIES_MAX;
    vsock->reply_count--;
    return put_header(queue, chain, &header) ? HEADER_SIZE : 0;
}

/* The first connection that has something to send now; drops those that have not. */
static struct vsock_conn *next_sender(struct virtio_vsock *vsock, enum packet_op *op) {
    struct vsock_conn *conn;
    while ((conn = vsock->out_first) != NULL) {
        *op = next_op(conn);
        if (*op != OP_NONE)
            return conn;
        vsock->out_first = conn->next_out;
        conn->in_out = false;
        settle(conn);
    }
    return NULL;
}

/* Behind the others: connections take turns packet by packet. */
static void rotate_sender(struct virtio_vsock *vsock, struct vsock_conn *conn) {
    vsock->out_first = conn->next_out;
    conn->in_out = false;
    queue_out(conn);
}

/* Fills the guest's receive buffers; true when a turn was not enough. */
static bool flush(struct virtio_vsock *vsock) {
    struct virtq *queue = &vsock->virtio.queues[RECEIVE];
    struct virtq_chain chain;
    bool more = true;
    for (unsigned turn = 0; turn < VIRTIO_TURN_MAX && virtio_running(&vsock->virtio); turn++) {
        enum packet_op op = OP_RST;
        struct vsock_conn *conn = vsock->reply_count > 0 ? NULL : next_sender(vsock, &op);
        more = vsock->reply_count > 0 || conn != NULL;
        if (!more)
            break;
        if (!virtq_pop(queue, &chain)) {
            more = virtq_listen(queue);
            if (!more)
                break;
            continue;
        }
        if (chain.writable_length < HEADER_SIZE) {
            virtq_break(queue, "receive buffer smaller than a packet header");
            break;
        }
        uint32_t written =
            conn == NULL ? put_reply(vsock, queue, &chain) : put_packet(conn, op, queue, &chain);
        virtq_push(queue, chain.token, written);
        if (conn != NULL)
            rotate_sender(vsock, conn);
    }
    virtq_signal(queue);
    return more;
}

/* ---- Packets from the guest ---- */

static bool get_header(struct virtq *queue, const struct virtq_chain *chain,
                       struct header *header) {
    uint8_t raw[HEADER_SIZE];
    if (virtq_read(queue, chain, 0, raw, sizeof raw) != sizeof raw)
        return false;
    *header = (struct header){
        .source_cid = load_le64(raw),
        .target_cid = load_le64(raw + 8),
        .source_port = load_le32(raw + 16),
        .target_port = load_le32(raw + 20),
        .length = load_le32(raw + 24),
        .type = load_le16(raw + 28),
        .op = load_le16(raw + 30),
        .flags = load_le32(raw + 32),
        .buffer_size = load_le32(raw + 36),
        .forwarded = load_le32(raw + 40),
    };
    return true;
}

static void update_credit(struct vsock_conn *conn, const struct header *header) {
    conn->guest_buffer_size = header->buffer_size;
    conn->guest_forwarded = header->forwarded;
    if (guest_credit(conn) > 0)
        conn->credit_asked = false;
    if (conn->out.length > 0)
        queue_out(conn);
}

static void take_request(struct virtio_vsock *vsock, const struct header *header) {
    struct vsock_conn *conn = NULL;
    if (find_listener(vsock, header->target_port) != NULL)
        conn = make_conn(vsock, header->source_port, header->target_port, CONN_ACCEPTING);
    if (conn == NULL) {
        owe_reset(vsock, header->source_port, header->target_port, VSOCK_HOST_CID);
        return;
    }
    update_credit(conn, header);
    tell(conn, TELL_ACCEPT);
}

static void take_data(struct vsock_conn *conn, const struct header *header, struct virtq *queue,
                      const struct virtq_chain *chain) {
    uint32_t outstanding = conn->received - conn->consumed;
    if (header->length > VSOCK_BUFFER - outstanding) {
        log_guest("%s: guest port %u sent more than its credit", conn->vsock->virtio.device.name,
                  conn->guest_port);
        reset_conn(conn, -ECONNRESET);
        return;
    }
    /* Closed by the host: nobody wants it, and the guest is told so soon. */
    if (conn->state == CONN_CLOSING || header->length == 0)
        return;
    if (!ring_ready(&conn->in)) {
        reset_conn(conn, -ENOMEM);
        return;
    }
    uint32_t done = 0;
    while (done < header->length) {
        uint32_t piece = header->length - done;
        uint8_t *end = ring_end(&conn->in, &piece);
        if (virtq_read(queue, chain, HEADER_SIZE + done, end, piece) != (ssize_t)piece)
            return;
        conn->in.length += piece;
        conn->received += piece;
        done += piece;
    }
    tell(conn, TELL_DATA);
}

static void take_shutdown(struct vsock_conn *conn, uint32_t flags) {
    uint8_t before = conn->guest_shutdown;
    conn->guest_shutdown |= flags & SHUTDOWN_BOTH;
    if ((conn->guest_shutdown & ~before) & SHUTDOWN_SEND)
        tell(conn, TELL_ENDED);
    /* Closed on both sides: the RST says that the ports are free (5.10.6.5). */
    if (conn->guest_shutdown == SHUTDOWN_BOTH)
        reset_conn(conn, 0);
}

static void take_response(struct vsock_conn *conn) {
    if (conn->state == CONN_CONNECTING) {
        conn->state = CONN_OPEN;
        tell(conn, TELL_CONNECTED);
        queue_out(conn);
    } else {
        reset_conn(conn, -ECONNRESET);
    }
}

static void take_reset(struct vsock_conn *conn) {
    bool in_order = conn->state == CONN_CLOSING || (conn->guest_shutdown & SHUTDOWN_SEND);
    gone(conn, conn->state == CONN_CONNECTING ? -ECONNREFUSED : in_order ? 0 : -ECONNRESET);
}

static void take_for_conn(struct vsock_conn *conn, const struct header *header, struct virtq *queue,
                          const struct virtq_chain *chain) {
    bool open = conn->state == CONN_OPEN || conn->state == CONN_CLOSING;
    update_credit(conn, header);
    if (header->op == OP_RST)
        take_reset(conn);
    else if (header->op == OP_RESPONSE)
        take_response(conn);
    else if (header->op == OP_RW && open)
        take_data(conn, header, queue, chain);
    else if (header->op == OP_SHUTDOWN && open)
        take_shutdown(conn, header->flags);
    else if (header->op == OP_CREDIT_REQUEST && open)
        owe(conn, OP_CREDIT_UPDATE);
    else if (header->op != OP_CREDIT_UPDATE || !open)
        reset_conn(conn, -ECONNRESET);
}

static void take_packet(struct virtio_vsock *vsock, struct virtq *queue,
                        const struct virtq_chain *chain) {
    struct header header;
    if (!get_header(queue, chain, &header) ||
        header.length > chain->readable_length - HEADER_SIZE ||
        header.source_cid != vsock->guest_cid) {
        log_guest("%s: malformed packet dropped", vsock->virtio.device.name);
        return;
    }
    if (header.target_cid != VSOCK_HOST_CID || header.type != TYPE_STREAM) {
        if (header.op != OP_RST)
            owe_reset(vsock, header.source_port, header.target_port, header.target_cid);
        return;
    }
    struct vsock_conn *conn = find(vsock, header.source_port, header.target_port);
    if (conn != NULL)
        take_for_conn(conn, &header, queue, chain);
    else if (header.op == OP_REQUEST)
        take_request(vsock, &header);
    else if (header.op != OP_RST)
        owe_reset(vsock, header.source_port, header.target_port, VSOCK_HOST_CID);
}

static bool transmit(struct virtio_vsock *vsock) {
    struct virtq *queue = &vsock->virtio.queues[TRANSMIT];
    struct virtq_chain chain;
    bool more = true;
    for (unsigned turn = 0; turn < VIRTIO_TURN_MAX; turn++) {
        /* One packet may cause one reply; without room for it, the packet waits. */
        vsock->transmit_stalled = vsock->reply_count == REPLIES_MAX;
        if (vsock->transmit_stalled) {
            more = false;
            break;
        }
        if (!virtq_pop(queue, &chain)) {
            more = virtq_listen(queue);
            if (!more)
                break;
            continue;
        }
        take_packet(vsock, queue, &chain);
        virtq_push(queue, chain.token, 0);
    }
    virtq_signal(queue);
    bool more_out = flush(vsock);
    return more || more_out || (vsock->transmit_stalled && vsock->reply_count < REPLIES_MAX);
}

static void send_event(struct virtio_vsock *vsock) {
    struct virtq *queue = &vsock->virtio.queues[EVENT];
    struct virtq_chain chain;
    uint8_t event[4];
    store_le32(event, EVENT_TRANSPORT_RESET);
    if (!vsock->event_owed || !virtq_pop(queue, &chain))
        return;
    ssize_t written = virtq_write(queue, &chain, 0, event, sizeof event);
    virtq_push(queue, chain.token, written < 0 ? 0 : (uint32_t)written);
    virtq_signal(queue);
    vsock->event_owed = false;
}

static bool vsock_notify(struct virtio_device *device, unsigned queue) {
    struct virtio_vsock *vsock = vsock_of(device);
    if (queue == TRANSMIT)
        return transmit(vsock);
    if (queue == EVENT) {
        send_event(vsock);
        return false;
    }
    bool more = flush(vsock);
    if (vsock->transmit_stalled && vsock->reply_count < REPLIES_MAX)
        virtio_serve(device, TRANSMIT);
    return more;
}

/* ---- Telling users, on the loop with the lock let go around each call ---- */

static void tell_accept(struct vsock_conn *conn) {
    struct virtio_vsock *vsock = conn->vsock;
    struct listener *listener = find_listener(vsock, conn->host_port);
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
        reset_conn(conn, -ECONNREFUSED);
    } else {
        conn->state = CONN_OPEN;
        owe(conn, OP_RESPONSE);
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

static void tell_data(struct vsock_conn *conn) {
    struct lock *lock = &conn->vsock->virtio.device.lock;
    while (conn->ops != NULL && conn->in.length > 0) {
        const struct vsock_ops *ops = conn->ops;
        void *context = conn->context;
        uint32_t length = conn->in.length;
        const uint8_t *bytes = ring_start(&conn->in, &length);
        /* The guest's packets go behind these bytes meanwhile, never over them. */
        lock_release(lock);
        ops->received(context, conn, bytes, length);
        lock_take(lock);
        ring_drop(&conn->in, length);
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
        settle(conn);
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
    } while (find(vsock, guest_port, vsock->next_port) != NULL);
    return vsock->next_port;
}

int vsock_connect(struct device *device, uint32_t guest_port, const struct vsock_ops *ops,
                  void *context, struct vsock_conn **conn, struct error *err) {
    struct virtio_vsock *vsock = vsock_of_device(device);
    lock_take(&device->lock);
    struct vsock_conn *made =
        make_conn(vsock, guest_port, free_host_port(vsock, guest_port), CONN_CONNECTING);
    if (made != NULL) {
        made->ops = ops;
        made->context = context;
        owe(made, OP_REQUEST);
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
        tell(conn, TELL_CLOSED);
    lock_release(&conn->vsock->virtio.device.lock);
}

ssize_t vsock_send(struct vsock_conn *conn, const void *bytes, size_t length) {
    struct virtio_vsock *vsock = conn->vsock;
    ssize_t result = -EPIPE;
    lock_take(&vsock->virtio.device.lock);
    bool open = conn->state != CONN_GONE && conn->state != CONN_CLOSING && !conn->shutdown_wanted;
    if (open && !(conn->guest_shutdown & SHUTDOWN_RECEIVE)) {
        size_t done = 0;
        while (ring_ready(&conn->out) && done < length && ring_room(&conn->out) > 0) {
            uint32_t piece =
                length - done < VSOCK_BUFFER ? (uint32_t)(length - done) : VSOCK_BUFFER;
            uint8_t *end = ring_end(&conn->out, &piece);
            memcpy(end, (const uint8_t *)bytes + done, piece);
            conn->out.length += piece;
            done += piece;
        }
        conn->wants_room = done < length;
        queue_out(conn);
        virtio_serve(&vsock->virtio, RECEIVE);
        result = (ssize_t)done;
    }
    lock_release(&vsock->virtio.device.lock);
    return result;
}

void vsock_consumed(struct vsock_conn *conn, size_t length) {
    struct virtio_vsock *vsock = conn->vsock;
    lock_take(&vsock->virtio.device.lock);
    uint32_t outstanding = conn->received - conn->consumed;
    conn->consumed += length < outstanding ? (uint32_t)length : outstanding;
    /* Told unasked when the guest sees less than half of the buffer free. */
    uint32_t guest_sees = conn->received - conn->consumed_told;
    if (conn->state == CONN_OPEN && conn->consumed != conn->consumed_told &&
        guest_sees > VSOCK_BUFFER / 2) {
        owe(conn, OP_CREDIT_UPDATE);
        virtio_serve(&vsock->virtio, RECEIVE);
    }
    lock_release(&vsock->virtio.device.lock);
}

void vsock_shutdown(struct vsock_conn *conn) {
    struct virtio_vsock *vsock = conn->vsock;
    lock_take(&vsock->virtio.device.lock);
    if (conn->state != CONN_GONE) {
        conn->shutdown_wanted = true;
        queue_out(conn);
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
        queue_out(conn);
    } else if (conn->state == CONN_CONNECTING && (conn->owed & 1u << OP_REQUEST)) {
        gone(conn, 0);
    } else if (conn->state != CONN_GONE) {
        reset_conn(conn, 0);
    } else {
        settle(conn);
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

/* ---- Class ---- */

static void vsock_config_read(struct virtio_device *device, unsigned offset, void *to,
                              unsigned length) {
    uint8_t config[8];
    store_le64(config, vsock_of(device)->guest_cid);
    memcpy(to, config + offset, length);
}

/* The guest's driver is gone: so are its connections. Those being made wait for the next driver. */
static void vsock_forget(struct virtio_device *device) {
    struct virtio_vsock *vsock = vsock_of(device);
    struct vsock_conn *next;
    vsock->reply_count = 0;
    vsock->transmit_stalled = false;
    for (struct vsock_conn *conn = vsock->conns; conn != NULL; conn = next) {
        next = conn->next;
        if (conn->state == CONN_CONNECTING)
            owe(conn, OP_REQUEST);
        else
            gone(conn, -ECONNRESET);
    }
}

static const struct virtio_class vsock_virtio_class = {
    .id = VIRTIO_ID_VSOCK,
    .pci_class = 0x078000, /* communication controller, other */
    .config_size = 8,
    .queues = 3,
    .queue_sizes = {[RECEIVE] = 128, [TRANSMIT] = 128, [EVENT] = 16},
    .config_read = vsock_config_read,
    .notify = vsock_notify,
    .reset = vsock_forget,
};

static int vsock_init(struct device *device, const void *config, struct error *err) {
    const struct virtio_vsock_config *vsock_config = config;
    struct virtio_vsock *vsock = vsock_of_device(device);
    vsock->guest_cid = vsock_config->guest_cid != 0 ? vsock_config->guest_cid : VSOCK_GUEST_CID;
    if (vsock->guest_cid <= VSOCK_HOST_CID || vsock->guest_cid >= UINT32_MAX)
        return error_set(err, -EINVAL, "%s: the guest's CID must be 3 to 4294967294", device->name);
    return virtio_create(&vsock->virtio, &vsock_virtio_class, VIRTIO_FEATURE(F_STREAM),
                         &vsock_config->options, err);
}

static void vsock_reset(struct device *device) {
    virtio_reset(container_of(device, struct virtio_device, device));
}

static void vsock_destroy(struct device *device) {
    struct virtio_vsock *vsock = vsock_of_device(device);
    while (vsock->conns != NULL)
        free_conn(vsock->conns);
    while (vsock->listeners != NULL)
        vsock_unlisten(device, vsock->listeners->port);
    virtio_destroy(&vsock->virtio);
}

const struct device_class virtio_vsock_class = {
    .name = "virtio-vsock",
    .size = sizeof(struct virtio_vsock),
    .state = &vsock_state,
    .init = vsock_init,
    .reset = vsock_reset,
    .destroy = vsock_destroy,
};
