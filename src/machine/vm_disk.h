/* Disks by the control socket: `resize-disk` (docs/control.md). The loop's thread; answers the
 * call. */
#ifndef LODGE_MACHINE_VM_DISK_H
#define LODGE_MACHINE_VM_DISK_H

#include "machine/control.h"

struct machine;

void vm_disk_resize(struct machine *machine, struct control_call *call, const json_t *arguments);

#endif
