/* Shared by agent.c and agent_session.c. */
#ifndef LODGE_MACHINE_AGENT_PRIVATE_H
#define LODGE_MACHINE_AGENT_PRIVATE_H

#include "machine/agent.h"
#include "machine/agent_channel.h"

struct agent {
    struct device *vsock;
    struct loop *loop;
    struct agent_events events;
    struct agent_channel control;
    bool ready;
    uint32_t version; /* of the one in the guest */
    unsigned mounts;  /* asked for and not answered */
    bool renewing;    /* likewise */
};

/* RENEWED's payload, taken apart: 0 or a negative errno value, and what it was about. False: it
 * breaks a rule. */
enum { AGENT_WHAT_MAX = 128 };
bool agent_parse_renewed(const struct agent_header *header, const uint8_t *payload, int *error,
                         char what[AGENT_WHAT_MAX]);
bool agent_send_renew(struct agent_channel *channel, const struct agent_renew *renew,
                      const char *host_name);
bool agent_send_identity(struct agent_channel *channel, const struct agent_identity *identity);

#endif
