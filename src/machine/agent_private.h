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
};

#endif
