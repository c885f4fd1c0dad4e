#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

void channel_init(struct channel *channel, int fd) {
    channel->fd = fd;
    channel->failed = false;
    channel->in_used = channel->out_used = channel->out_sent = 0;
}

/* Hands out the whole frames in the buffer and keeps the rest. */
static void take_frames(struct channel *channel, channel_handler *handle, void *context) {
    size_t at = 0;
    while (channel->in_used - at >= AGENT_HEADER_SIZE) {
        struct agent_header header;
        if (!agent_get_header(channel->in + at, &header)) {
            channel->failed = true;
            return;
        }
        if (channel->in_used - at - AGENT_HEADER_SIZE < header.length)
            break;
        if (!handle(context, &header, channel->in + at + AGENT_HEADER_SIZE)) {
            channel->failed = true;
            return;
        }
        at += AGENT_HEADER_SIZE + header.length;
    }
    memmove(channel->in, channel->in + at, channel->in_used - at);
    channel->in_used -= at;
}

void channel_receive(struct channel *channel, channel_handler *handle, void *context) {
    while (!channel->failed) {
        ssize_t got = recv(channel->fd, channel->in + channel->in_used,
                           sizeof channel->in - channel->in_used, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (got <= 0) {
            channel->failed = true;
            return;
        }
        channel->in_used += (size_t)got;
        take_frames(channel, handle, context);
    }
}

size_t channel_room(const struct channel *channel) {
    size_t left = sizeof channel->out - channel->out_used;
    if (left <= AGENT_HEADER_SIZE)
        return 0;
    left -= AGENT_HEADER_SIZE;
    return left < AGENT_PAYLOAD_MAX ? left : AGENT_PAYLOAD_MAX;
}

void channel_send(struct channel *channel, uint8_t type, uint8_t stream, const void *payload,
                  size_t length) {
    if (channel->failed)
        return;
    if (sizeof channel->out - channel->out_used < AGENT_HEADER_SIZE + length) {
        channel->failed = true;
        return;
    }
    uint8_t *to = channel->out + channel->out_used;
    agent_put_header(to, type, stream, (uint32_t)length);
    if (length > 0)
        memcpy(to + AGENT_HEADER_SIZE, payload, length);
    channel->out_used += AGENT_HEADER_SIZE + length;
}

bool channel_flush(struct channel *channel) {
    while (!channel->failed && channel->out_sent < channel->out_used) {
        ssize_t sent = send(channel->fd, channel->out + channel->out_sent,
                            channel->out_used - channel->out_sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (sent < 0) {
            channel->failed = true;
            break;
        }
        channel->out_sent += (size_t)sent;
    }
    memmove(channel->out, channel->out + channel->out_sent, channel->out_used - channel->out_sent);
    channel->out_used -= channel->out_sent;
    channel->out_sent = 0;
    return channel->out_used == 0;
}

short channel_events(const struct channel *channel) {
    return (short)(POLLIN | (channel->out_used > 0 ? POLLOUT : 0));
}
