/*
 * The table of idle states that a machine's guest is shown (device/idle_states.h): the host's, or
 * of a file. As text: a state a line, "NAME LATENCY-US [POWER-MW]", the first one HLT, each with a
 * longer latency than the one before; "#" begins a comment.
 */
#ifndef LODGE_MACHINE_MACHINE_IDLE_H
#define LODGE_MACHINE_MACHINE_IDLE_H

#include <jansson.h>

#include "device/idle_states.h"
#include "machine/machine.h"

/* source: "host", or a file. -ENODATA: the host tells of none; -EINVAL: not as above; -errno. */
int machine_idle_table(const char *source, struct idle_table *table, struct error *err);

/*
 * From now on the guest has this table; it is told by ACPI when that is another one. text: NULL:
 * config.idle_states anew. -ENODEV: it was started without one. Control thread.
 */
int machine_set_idle(struct machine *machine, const char *text, struct error *err);

/* {"states": [{"name", "latency-us", "power-mw", "entries"}], "gated", "changes", "read": [of each
 * processor]}; a new object, NULL: there is no table. Any thread. */
json_t *machine_idle_json(struct machine *machine);

#endif
