/*
 * What snapshots of VMs (machine/snapshot_store.h) have on the VMs' disks: a snapshot of each, by
 * the control socket of a VM that runs, else in the files themselves, which nobody uses then.
 */
#ifndef LODGE_CLI_SNAPSHOT_DISKS_H
#define LODGE_CLI_SNAPSHOT_DISKS_H

#include <jansson.h>

#include "base/error.h"
#include "cli/client.h"

/* Each disk has its own; all disks get what theirs hold, and so does the file with UEFI variables.
 * directory: the VM's, which does not run. */
int snapshot_disks_check(const json_t *about, struct error *err);
int snapshot_disks_apply(const char *directory, const json_t *about, struct error *err);
/* Theirs go, where disks and snapshots are still there. client: of the VM; NULL: it does not run.
 * -EBUSY: somebody else uses one. */
int snapshot_disks_drop(struct client *client, const json_t *about, struct error *err);

/* Puts in order what killed processes have left of a VM's snapshots; as snapshot_disks_drop. The
 * store is locked (snapshot_lock). */
int snapshot_disks_recover(const char *directory, struct client *client, struct error *err);
/* The same before a VM starts, which is locked. */
int snapshot_disks_settle(const char *directory, struct error *err);
/* The VM goes, which is locked: what its snapshots have on disks elsewhere. -EBUSY. */
int snapshot_disks_drop_all(const char *directory, struct error *err);

#endif
