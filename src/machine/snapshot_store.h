/*
 * A VM's snapshots on disk: docs/snapshots.md.
 *
 *     VM/snapshots/NAME/snapshot.json   what it is; see snapshot_load
 *     VM/snapshots/NAME/state           machine_state.h
 *     VM/snapshots/NAME/ram             memory_save_image
 *     VM/snapshots/current              the name of the one that the VM goes on from
 *
 * One is whole or not there: it is made and removed under a name that begins with a dot. What a
 * killed process has left of that goes when the next one is made. The VM's disks (of lodge's
 * format) have a snapshot each that goes with it.
 *
 * Any thread. Directories are those of VMs (vm_store.h).
 */
#ifndef LODGE_MACHINE_SNAPSHOT_STORE_H
#define LODGE_MACHINE_SNAPSHOT_STORE_H

#include <jansson.h>
#include <limits.h>

#include "base/error.h"

enum { SNAPSHOT_FORMAT = 1, SNAPSHOT_DISK_NAME_MAX = 80, SNAPSHOT_DESCRIPTION_MAX = 1000 };

/* Where it is, or would be. -EINVAL: no such name can be. */
int snapshot_path(const char *directory, const char *name, char path[PATH_MAX], struct error *err);
/* What its disks' snapshots are called. */
void snapshot_disk_name(const char *name, char text[SNAPSHOT_DISK_NAME_MAX]);

/* A directory to fill; what was left of an earlier one goes. -EEXIST: there is one of that name. */
int snapshot_begin(const char *directory, const char *name, char work[PATH_MAX], struct error *err);
/*
 * It is complete: made durable together with `about` (borrowed; gets format, name, time and
 * parent), and from now on there, as the one that the VM goes on from. On failure it is what it
 * was, the caller's to remove.
 */
int snapshot_commit(const char *directory, const char *name, const char *work, json_t *about,
                    struct error *err);

/*
 * What it is: an object with "format", "name", "created" (ISO 8601), "parent" (a name, or null),
 * "description", "memory", "vcpus", "bytes", "disks" ([{"disk", "file"}]). The caller's. -ENOENT,
 * -EPROTO: not as lodge writes it.
 */
int snapshot_load(const char *directory, const char *name, json_t **about, struct error *err);
/* All of them, the oldest first; each also has "current" (a boolean). A new array. */
int snapshot_list(const char *directory, json_t **list, struct error *err);

int snapshot_set_current(const char *directory, const char *name, struct error *err);
/* Those that went on from it go on from its parent. */
int snapshot_remove(const char *directory, const char *name, struct error *err);

#endif
