#include "machine/agent.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/log.h"
#include "machine/agent_private.h"

/* ---- The control connection ---- */

static bool on_hello(struct agent *agent, const struct agent_header *header,
                     const uint8_t *payload) {
    char release[65] = "";
    size_t length = header->length - sizeof(uint32_t);
    if (header->length < sizeof(uint32_t) || length >= sizeof release)
        return false;
    uint32_t version = load_le32(payload);
    if (version < AGENT_VERSION_OLDEST || version > AGENT_VERSION) {
        log_guest("the guest's agent speaks version %u of the protocol, lodge versions %d to %d",
                  (unsigned)version, AGENT_VERSION_OLDEST, AGENT_VERSION);
        return false;
    }
    for (size_t i = 0; i < length; i++)
        release[i] = payload[4 + i] > ' ' && payload[4 + i] < 0x7f ? (char)payload[4 + i] : '?';
    agent->version = version;
    agent->ready = true;
    if (agent->events.ready != NULL)
        agent->events.ready(agent->events.context, release);
    return true;
}

static bool on_mounted(struct agent *agent, const struct agent_header *header,
                       const uint8_t *payload) {
    if (header->length != sizeof(uint32_t) || agent->mounts == 0)
        return false;
    uint32_t error = load_le32(payload);
    agent->mounts--;
    if (agent->events.mounted != NULL)
        agent->events.mounted(agent->events.context, error < 4096 ? -(int)error : -EPROTO);
    return true;
}

static bool on_frame(void *context, const struct agent_header *header, const uint8_t *payload) {
    struct agent *agent = context;
    if (header->type == AGENT_MOUNTED)
        return on_mounted(agent, header, payload);
    return header->type == AGENT_HELLO && !agent->ready && on_hello(agent, header, payload);
}

static void on_closed(void *context, int error) {
    struct agent *agent = context;
    agent->ready = false;
    agent->mounts = 0;
}

static const struct agent_channel_events control_events = {.frame = on_frame, .closed = on_closed};

static int on_accept(void *context, struct vsock_conn *conn, uint32_t host_port) {
    struct agent *agent = context;
    if (agent->control.conn != NULL)
        return -EBUSY;
    agent_channel_init(&agent->control, &control_events, agent);
    agent->control.conn = conn;
    vsock_attach(conn, &agent_channel_ops, &agent->control);
    return 0;
}

int agent_create(struct device *vsock, struct loop *loop, const struct agent_events *events,
                 struct agent **agent, struct error *err) {
    struct agent *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->vsock = vsock;
    made->loop = loop;
    made->events = *events;
    agent_channel_init(&made->control, &control_events, made);
    int result = vsock_listen(vsock, AGENT_PORT, on_accept, made, err);
    if (result < 0) {
        free(made);
        return result;
    }
    *agent = made;
    return 0;
}

void agent_destroy(struct agent *agent) {
    if (agent == NULL)
        return;
    vsock_unlisten(agent->vsock, AGENT_PORT);
    agent_channel_close(&agent->control);
    free(agent);
}

bool agent_is_ready(const struct agent *agent) {
    return agent->ready;
}

bool agent_comes_again(const struct agent *agent) {
    return agent->ready && agent->version >= AGENT_VERSION_AGAIN;
}

bool agent_shutdown(struct agent *agent) {
    return agent->ready && agent_channel_send(&agent->control, AGENT_SHUTDOWN, 0, NULL, 0);
}

bool agent_mount(struct agent *agent, const char *tag, const char *path, bool readonly) {
    uint8_t payload[4096];
    store_le32(payload, readonly ? AGENT_MOUNT_READONLY : 0);
    int length = snprintf((char *)payload + 4, sizeof payload - 4, "%s%c%s", tag, 0, path);
    if (!agent->ready || agent->version < AGENT_VERSION_MOUNT || length < 0 ||
        (size_t)length + 5 > sizeof payload ||
        !agent_channel_send(&agent->control, AGENT_MOUNT, 0, payload, (size_t)length + 5))
        return false;
    agent->mounts++;
    return true;
}
