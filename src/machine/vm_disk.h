/*
 * Disks by the control socket (docs/control.md): `resize-disk`, `snapshot-disk`, `remove-snapshot`
 * and `query-snapshots`. The loop's thread; each answers the call, snapshots when they are done.
 */
#ifndef LODGE_MACHINE_VM_DISK_H
#define LODGE_MACHINE_VM_DISK_H

#include "machine/control.h"

struct machine;

void vm_disk_resize(struct machine *machine, struct control_call *call, const json_t *arguments);
void vm_disk_snapshot(struct machine *machine, struct control_call *call, const json_t *arguments);
void vm_disk_remove_snapshot(struct machine *machine, struct control_call *call,
                             const json_t *arguments);
void vm_disk_query_snapshots(struct machine *machine, struct control_call *call,
                             const json_t *arguments);

/* A snapshot is being taken or removed. */
bool vm_disk_is_busy(const struct machine *machine);

/* The machine ends: waits for what is under way. The loop has stopped. */
void vm_disk_end(struct machine *machine);

#endif
