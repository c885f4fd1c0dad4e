/* Frames over a vsock connection, for agent.c and agent_session.c. The loop's thread. */
#ifndef LODGE_MACHINE_AGENT_CHANNEL_H
#define LODGE_MACHINE_AGENT_CHANNEL_H

#include <stdbool.h>

#include "machine/agent_protocol.h"
#include "virtio/vsock.h"

struct agent_channel;

struct agent_channel_events {
    /* False: the frame breaks a rule; the channel closes and `closed` follows. */
    bool (*frame)(void *context, const struct agent_header *header, const uint8_t *payload);
    /* Something was sent: there is room again. Optional. */
    void (*room)(void *context);
    /* The connection is over (negative errno, 0: in order). The channel is still to be closed. */
    void (*closed)(void *context, int error);
};

struct agent_channel {
    const struct agent_channel_events *events;
    void *context;
    struct vsock_conn *conn; /* NULL: over */
    uint8_t in[AGENT_HEADER_SIZE + AGENT_PAYLOAD_MAX];
    size_t in_used;
    uint8_t out[4 * (AGENT_HEADER_SIZE + AGENT_PAYLOAD_MAX)];
    size_t out_used;
};

extern const struct vsock_ops agent_channel_ops; /* its context is the channel */

/* conn is set by the caller, from vsock_connect or vsock_attach with agent_channel_ops. */
void agent_channel_init(struct agent_channel *channel, const struct agent_channel_events *events,
                        void *context);
void agent_channel_close(struct agent_channel *channel);
/* Bytes of payload that a frame may have now. */
size_t agent_channel_room(const struct agent_channel *channel);
/* False when there is no room or the connection is over: nothing is sent. */
bool agent_channel_send(struct agent_channel *channel, uint8_t type, uint8_t stream,
                        const void *payload, size_t length);

#endif
