#include "machine/agent.h"

#include <stddef.h>
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

bool agent_parse_renewed(const struct agent_header *header, const uint8_t *payload, int *error,
                         char what[AGENT_WHAT_MAX]) {
    size_t length = header->length - sizeof(uint32_t);
    if (header->type != AGENT_RENEWED || header->length < sizeof(uint32_t) ||
        length >= AGENT_WHAT_MAX)
        return false;
    uint32_t number = load_le32(payload);
    *error = number < 4096 ? -(int)number : -EPROTO;
    for (size_t i = 0; i < length; i++)
        what[i] = payload[4 + i] >= ' ' && payload[4 + i] < 0x7f ? (char)payload[4 + i] : '?';
    what[length] = 0;
    return true;
}

static bool on_renewed(struct agent *agent, const struct agent_header *header,
                       const uint8_t *payload) {
    char what[AGENT_WHAT_MAX];
    int error;
    if (!agent->renewing || !agent_parse_renewed(header, payload, &error, what))
        return false;
    agent->renewing = false;
    if (agent->events.renewed != NULL)
        agent->events.renewed(agent->events.context, error, what);
    return true;
}

static bool on_frame(void *context, const struct agent_header *header, const uint8_t *payload) {
    struct agent *agent = context;
    if (header->type == AGENT_MOUNTED)
        return on_mounted(agent, header, payload);
    if (header->type == AGENT_RENEWED)
        return on_renewed(agent, header, payload);
    return header->type == AGENT_HELLO && !agent->ready && on_hello(agent, header, payload);
}

static void on_closed(void *context, int error) {
    struct agent *agent = context;
    agent->ready = false;
    agent->mounts = 0;
    agent->renewing = false;
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

bool agent_renews_at_once(const struct agent *agent) {
    return agent->ready && agent->version >= AGENT_VERSION_AT_ONCE;
}

bool agent_send_identity(struct agent_channel *channel, const struct agent_identity *identity) {
    size_t length =
        offsetof(struct agent_identity, events) + identity->count * sizeof identity->events[0];
    return agent_channel_send(channel, AGENT_IDENTITY, 0, identity, length);
}

bool agent_tell_identity(struct agent *agent, const struct agent_identity *identity) {
    return agent->ready && agent->version >= AGENT_VERSION_IDENTITY &&
           agent_send_identity(&agent->control, identity);
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

bool agent_send_renew(struct agent_channel *channel, const struct agent_renew *renew,
                      const char *host_name) {
    uint8_t payload[sizeof *renew + AGENT_HOST_NAME_MAX + 1] = {0};
    size_t length = host_name != NULL ? strnlen(host_name, AGENT_HOST_NAME_MAX) : 0;
    memcpy(payload, renew, sizeof *renew);
    memcpy(payload + sizeof *renew, host_name != NULL ? host_name : "", length);
    return agent_channel_send(channel, AGENT_RENEW, 0, payload, sizeof *renew + length + 1);
}

bool agent_renew(struct agent *agent, const struct agent_renew *renew, const char *host_name) {
    if (!agent->ready || agent->version < AGENT_VERSION_RENEW || agent->renewing ||
        !agent_send_renew(&agent->control, renew, host_name))
        return false;
    agent->renewing = true;
    return true;
}
