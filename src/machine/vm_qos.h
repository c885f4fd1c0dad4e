/* Quality of service by the control socket: `query-qos` and `set-qos` (docs/control.md). The
 * loop's thread; each answers the call. */
#ifndef LODGE_MACHINE_VM_QOS_H
#define LODGE_MACHINE_VM_QOS_H

#include "machine/control.h"

struct machine;

void vm_qos_query(struct machine *machine, struct control_call *call);
void vm_qos_set(struct machine *machine, struct control_call *call, const json_t *arguments);

#endif
