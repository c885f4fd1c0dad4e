/*
 * Snapshots of a running VM by the control socket (docs/control.md): the command
 * `snapshot-create` and the event `SNAPSHOT_PROGRESS`. The loop's thread; the work is a worker's.
 */
#ifndef LODGE_MACHINE_VM_SNAPSHOT_H
#define LODGE_MACHINE_VM_SNAPSHOT_H

#include "machine/agent.h"
#include "machine/control.h"

struct machine;
struct vm_snapshots;

/* directory: of a VM that lasts (vm_store.h); borrowed. agent: where the present one is told, NULL
 * when none has answered. tell: sends an event, whose data becomes its own. */
int vm_snapshots_create(struct machine *machine, const char *directory, struct agent *const *agent,
                        void (*tell)(void *context, const char *event, json_t *data), void *context,
                        struct vm_snapshots **snapshots, struct error *err);
/* Waits for what is under way. The loop has stopped. NULL is fine. */
void vm_snapshots_destroy(struct vm_snapshots *snapshots);

/* Answers when the snapshot is on stable storage. */
void vm_snapshots_take(struct vm_snapshots *snapshots, struct control_call *call,
                       const json_t *arguments);

/* One is being taken. */
bool vm_snapshots_busy(const struct vm_snapshots *snapshots);

/* -ENOTSUP: something of it cannot be saved, for a snapshot or a move; the text says what. Whether
 * its disks can have snapshots is not looked at. */
int vm_check_saveable(const struct machine *machine, const struct agent *agent, struct error *err);

#endif
