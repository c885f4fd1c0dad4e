#include "virtio/vsock_private.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"

enum { F_STREAM = 0 };
enum { TYPE_STREAM = 1 };
enum { EVENT_TRANSPORT_RESET = 0 };

/* struct virtio_vsock_hdr: 5.10.6. */
enum { HEADER_SIZE = 44 };
struct header {
    uint64_t source_cid, target_cid;
    uint32_t source_port, target_port;
    uint32_t length;
    uint16_t type, op;
    uint32_t flags, buffer_size, forwarded;
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
        const uint8_t *bytes = vsock_ring_start(&conn->out, &piece);
        if (virtq_write(queue, chain, HEADER_SIZE + done, bytes, piece) != (ssize_t)piece)
            break;
        vsock_ring_drop(&conn->out, piece);
        done += piece;
    }
    conn->sent += done;
    if (conn->wants_room && done > 0) {
        conn->wants_room = false;
        vsock_conn_tell(conn, TELL_WRITABLE);
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
        vsock_conn_settle(conn);
    }
    return NULL;
}

/* Behind the others: connections take turns packet by packet. */
static void rotate_sender(struct virtio_vsock *vsock, struct vsock_conn *conn) {
    vsock->out_first = conn->next_out;
    conn->in_out = false;
    vsock_conn_queue(conn);
}

/* Before any packet: the guest resets the connections that it has by then. */
static void send_event(struct virtio_vsock *vsock) {
    struct virtq *queue = &vsock->virtio.queues[EVENT];
    struct virtq_chain chain;
    uint8_t event[4];
    if (!vsock->event_owed || !virtio_running(&vsock->virtio) || !virtq_pop(queue, &chain))
        return;
    store_le32(event, EVENT_TRANSPORT_RESET);
    ssize_t written = virtq_write(queue, &chain, 0, event, sizeof event);
    virtq_push(queue, chain.token, written < 0 ? 0 : (uint32_t)written);
    virtq_signal(queue);
    vsock->event_owed = false;
}

/* Fills the guest's receive buffers; true when a turn was not enough. */
static bool flush(struct virtio_vsock *vsock) {
    struct virtq *queue = &vsock->virtio.queues[RECEIVE];
    struct virtq_chain chain;
    bool more = true;
    send_event(vsock);
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
        vsock_conn_queue(conn);
}

static void take_request(struct virtio_vsock *vsock, const struct header *header) {
    struct vsock_conn *conn = NULL;
    if (vsock_find_listener(vsock, header->target_port) != NULL)
        conn = vsock_conn_make(vsock, header->source_port, header->target_port, CONN_ACCEPTING);
    if (conn == NULL) {
        vsock_owe_reset(vsock, header->source_port, header->target_port, VSOCK_HOST_CID);
        return;
    }
    update_credit(conn, header);
    vsock_conn_tell(conn, TELL_ACCEPT);
}

static void take_data(struct vsock_conn *conn, const struct header *header, struct virtq *queue,
                      const struct virtq_chain *chain) {
    uint32_t outstanding = conn->received - conn->consumed;
    if (header->length > VSOCK_BUFFER - outstanding) {
        log_guest("%s: guest port %u sent more than its credit", conn->vsock->virtio.device.name,
                  conn->guest_port);
        vsock_conn_reset(conn, -ECONNRESET);
        return;
    }
    /* Closed by the host: nobody wants it, and the guest is told so soon. */
    if (conn->state == CONN_CLOSING || header->length == 0)
        return;
    if (!vsock_ring_ready(&conn->in)) {
        vsock_conn_reset(conn, -ENOMEM);
        return;
    }
    uint32_t done = 0;
    while (done < header->length) {
        uint32_t piece = header->length - done;
        uint8_t *end = vsock_ring_end(&conn->in, &piece);
        if (virtq_read(queue, chain, HEADER_SIZE + done, end, piece) != (ssize_t)piece)
            return;
        conn->in.length += piece;
        conn->received += piece;
        done += piece;
    }
    vsock_conn_tell(conn, TELL_DATA);
}

static void take_shutdown(struct vsock_conn *conn, uint32_t flags) {
    uint8_t before = conn->guest_shutdown;
    conn->guest_shutdown |= flags & SHUTDOWN_BOTH;
    if ((conn->guest_shutdown & ~before) & SHUTDOWN_SEND)
        vsock_conn_tell(conn, TELL_ENDED);
    /* Closed on both sides: the RST says that the ports are free (5.10.6.5). */
    if (conn->guest_shutdown == SHUTDOWN_BOTH)
        vsock_conn_reset(conn, 0);
}

static void take_response(struct vsock_conn *conn) {
    if (conn->state == CONN_CONNECTING) {
        conn->state = CONN_OPEN;
        vsock_conn_tell(conn, TELL_CONNECTED);
        vsock_conn_queue(conn);
    } else {
        vsock_conn_reset(conn, -ECONNRESET);
    }
}

static void take_reset(struct vsock_conn *conn) {
    bool in_order = conn->state == CONN_CLOSING || (conn->guest_shutdown & SHUTDOWN_SEND);
    vsock_conn_gone(conn, conn->state == CONN_CONNECTING ? -ECONNREFUSED
                          : in_order                     ? 0
                                                         : -ECONNRESET);
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
        vsock_conn_owe(conn, OP_CREDIT_UPDATE);
    else if (header->op != OP_CREDIT_UPDATE || !open)
        vsock_conn_reset(conn, -ECONNRESET);
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
            vsock_owe_reset(vsock, header.source_port, header.target_port, header.target_cid);
        return;
    }
    struct vsock_conn *conn = vsock_conn_find(vsock, header.source_port, header.target_port);
    if (conn != NULL)
        take_for_conn(conn, &header, queue, chain);
    else if (header.op == OP_REQUEST)
        take_request(vsock, &header);
    else if (header.op != OP_RST)
        vsock_owe_reset(vsock, header.source_port, header.target_port, VSOCK_HOST_CID);
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
            vsock_conn_owe(conn, OP_REQUEST);
        else
            vsock_conn_gone(conn, -ECONNRESET);
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
        vsock_conn_free(vsock->conns);
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
    .quiesce = virtio_quiesce,
    .destroy = vsock_destroy,
};
