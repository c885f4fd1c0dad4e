/*
 * A machine's ids (device/identity.h): where they come from, when they change, who is told.
 *
 * The generation id of a machine that boots is config.generation_id, else what config's file has,
 * else made up. One that goes on from a saved state gets another, every time. The host's id is
 * $LODGE_HOST_ID (a UUID), or follows from the host's machine-id, which it does not tell
 * (machine-id(5)); without one from the host's boot.
 *
 * Control thread, no vCPU runs.
 */
#ifndef LODGE_MACHINE_MACHINE_IDENTITY_H
#define LODGE_MACHINE_MACHINE_IDENTITY_H

#include <jansson.h>

#include "device/identity.h"
#include "machine/agent.h"
#include "machine/machine.h"

/* The ids of a machine that is being made. -EINVAL: generation_id, $LODGE_HOST_ID or the file has
 * none; -errno of the file. */
int machine_identity_begin(const struct machine_config *config, struct identity_config *ids,
                           struct error *err);

/*
 * The machine goes on as something else: from a snapshot, as a clone (both get a new generation id)
 * or on another host. All of its state is loaded. The guest is told by ACPI when it runs on, its
 * agent by machine_tell_identity. Its table of idle states becomes this host's. machine_create
 * calls this for config.restore. -errno: the file.
 */
int machine_new_identity(struct machine *machine, enum identity_kind kind, struct error *err);

/* Tells the agent the ids and the last events: after each time that it becomes ready, and after
 * machine_new_identity while it is. It reports those that it has not heard of. Also while vCPUs
 * run. */
void machine_tell_identity(struct machine *machine, struct agent *agent);
/* What that tells. */
void machine_agent_identity(struct machine *machine, struct agent_identity *told);

/* {"generation-id", "host-id", "events": [{"number", "kind", "generation-id", "host-id", "time"}]};
 * a new object. Also while vCPUs run. */
json_t *machine_identity_json(struct machine *machine);

#endif
