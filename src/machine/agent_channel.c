#include "machine/agent_channel.h"

#include "base/bytes.h"
#include "base/log.h"

void agent_channel_init(struct agent_channel *channel, const struct agent_channel_events *events,
                        void *context) {
    channel->events = events;
    channel->context = context;
    channel->conn = NULL;
    channel->in_used = channel->out_used = 0;
}

void agent_channel_close(struct agent_channel *channel) {
    if (channel->conn != NULL)
        vsock_close(channel->conn);
    channel->conn = NULL;
}

static void break_off(struct agent_channel *channel) {
    log_guest("the guest's agent sent what it may not send; connection ended");
    if (channel->conn != NULL)
        vsock_abort(channel->conn);
    channel->conn = NULL;
    channel->events->closed(channel->context, -EPROTO);
}

static void flush(struct agent_channel *channel) {
    size_t sent = 0;
    while (channel->conn != NULL && sent < channel->out_used) {
        ssize_t taken = vsock_send(channel->conn, channel->out + sent, channel->out_used - sent);
        if (taken < 0) /* the guest receives no more: its end will be told by `closed` */
            taken = (ssize_t)(channel->out_used - sent);
        if (taken == 0)
            break;
        sent += (size_t)taken;
    }
    memmove(channel->out, channel->out + sent, channel->out_used - sent);
    channel->out_used -= sent;
}

size_t agent_channel_room(const struct agent_channel *channel) {
    size_t left = sizeof channel->out - channel->out_used;
    if (channel->conn == NULL || left <= AGENT_HEADER_SIZE)
        return 0;
    left -= AGENT_HEADER_SIZE;
    return left < AGENT_PAYLOAD_MAX ? left : AGENT_PAYLOAD_MAX;
}

bool agent_channel_send(struct agent_channel *channel, uint8_t type, uint8_t stream,
                        const void *payload, size_t length) {
    if (channel->conn == NULL ||
        sizeof channel->out - channel->out_used < AGENT_HEADER_SIZE + length)
        return false;
    uint8_t *to = channel->out + channel->out_used;
    agent_put_header(to, type, stream, (uint32_t)length);
    if (length > 0)
        memcpy(to + AGENT_HEADER_SIZE, payload, length);
    channel->out_used += AGENT_HEADER_SIZE + length;
    flush(channel);
    return true;
}

/* ---- From the guest ---- */

/* Hands out the whole frame at the buffer's begin; false when there is none (any more). */
static bool take_frame(struct agent_channel *channel) {
    struct agent_header header;
    if (channel->conn == NULL || channel->in_used < AGENT_HEADER_SIZE)
        return false;
    if (!agent_get_header(channel->in, &header)) {
        break_off(channel);
        return false;
    }
    size_t whole = AGENT_HEADER_SIZE + header.length;
    if (channel->in_used < whole)
        return false;
    if (!channel->events->frame(channel->context, &header, channel->in + AGENT_HEADER_SIZE)) {
        break_off(channel);
        return false;
    }
    memmove(channel->in, channel->in + whole, channel->in_used - whole);
    channel->in_used -= whole;
    return true;
}

static void on_received(void *context, struct vsock_conn *conn, const void *bytes, size_t length) {
    struct agent_channel *channel = context;
    const uint8_t *from = bytes;
    /* A stream's own credit bounds what is kept further on. */
    vsock_consumed(conn, length);
    while (length > 0 && channel->conn != NULL) {
        size_t part = sizeof channel->in - channel->in_used;
        if (part > length)
            part = length;
        memcpy(channel->in + channel->in_used, from, part);
        channel->in_used += part;
        from += part;
        length -= part;
        while (take_frame(channel))
            ;
    }
}

static void on_writable(void *context, struct vsock_conn *conn) {
    struct agent_channel *channel = context;
    flush(channel);
    if (channel->events->room != NULL)
        channel->events->room(channel->context);
}

static void on_closed(void *context, struct vsock_conn *conn, int error) {
    struct agent_channel *channel = context;
    channel->conn = NULL;
    channel->events->closed(channel->context, error);
}

/* A half-close: nothing more can come, so nothing is left to do. */
static void on_ended(void *context, struct vsock_conn *conn) {
    struct agent_channel *channel = context;
    vsock_abort(conn);
    channel->conn = NULL;
    channel->events->closed(channel->context, 0);
}

const struct vsock_ops agent_channel_ops = {
    .received = on_received,
    .writable = on_writable,
    .ended = on_ended,
    .closed = on_closed,
};
