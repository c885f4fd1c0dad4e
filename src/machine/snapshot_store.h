/*
 * A VM's snapshots on disk: docs/snapshots.md.
 *
 *     VM/snapshots/NAME/snapshot.json   what it is; see snapshot_load
 *     VM/snapshots/NAME/state           machine_state.h
 *     VM/snapshots/NAME/ram, ram.map    ram_image.h
 *     VM/snapshots/current              the name of the one that the VM goes on from
 *     VM/snapshots/restoring            the name of one that disks are just being put back to
 *
 * One is whole or not there: it is made and removed under a name that begins with a dot. The VM's
 * disks (of lodge's format) have a snapshot each that goes with it. What a killed process has left
 * of all this is put in order by snapshot_recover before the VM starts or a snapshot is touched.
 *
 * Any thread. Directories are those of VMs (vm_store.h).
 */
#ifndef LODGE_MACHINE_SNAPSHOT_STORE_H
#define LODGE_MACHINE_SNAPSHOT_STORE_H

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>

#include "base/error.h"

enum { SNAPSHOT_FORMAT = 2, SNAPSHOT_DISK_NAME_MAX = 80, SNAPSHOT_DESCRIPTION_MAX = 1000 };

/* Where it is, or would be. -EINVAL: no such name can be. */
int snapshot_path(const char *directory, const char *name, char path[PATH_MAX], struct error *err);
/* What its disks' snapshots are called. */
void snapshot_disk_name(const char *name, char text[SNAPSHOT_DISK_NAME_MAX]);

/* Held while snapshots are made, removed or recovered; close releases. -EBUSY: somebody is at it.
 */
int snapshot_lock(const char *directory, struct error *err);

/* A directory to fill; what was left of an earlier one goes. `about` (borrowed): what disks there
 * are is noted there before they are touched. -EEXIST: there is one of that name. */
int snapshot_begin(const char *directory, const char *name, const json_t *about,
                   char work[PATH_MAX], struct error *err);
/*
 * It is complete: made durable together with `about` (borrowed; gets format, name, time and
 * parent), and from now on there, as the one that the VM goes on from. On failure it is what it
 * was, the caller's to remove.
 */
int snapshot_commit(const char *directory, const char *name, const char *work, json_t *about,
                    struct error *err);

/*
 * What it is: an object with "format", "name", "created" (ISO 8601), "parent" (a name, or null),
 * "description", "memory", "vcpus", "engine", "disks" ([{"disk", "file"}]). The caller's. -ENOENT,
 * -EPROTO: not as lodge writes it.
 */
int snapshot_load(const char *directory, const char *name, json_t **about, struct error *err);
/* Whether the engine was KVM, which alone can go on from it then ("engine": "kvm" in what is
 * loaded; older lodges had none but the soft engine's). */
bool snapshot_is_kvm(const json_t *about);
/* All of them, the oldest first; each also has "current" (a boolean) and "bytes" (of memory that
 * the host keeps for it). One that cannot be read has "name" and "error". A new array. */
int snapshot_list(const char *directory, json_t **list, struct error *err);

bool snapshot_exists(const char *directory, const char *name);

/* The VM has moved: the file of each of its disks is where `find` says; NULL: where it was. */
typedef const char *snapshot_disk_finder(void *context, const char *disk);
int snapshot_place_disks(const char *directory, const char *name, snapshot_disk_finder *find,
                         void *context, struct error *err);

/* Disks are about to be put back; recovery does that again until it is made the current one. */
int snapshot_restoring(const char *directory, const char *name, struct error *err);
int snapshot_set_current(const char *directory, const char *name, struct error *err);

/* What the caller does to all disks of a snapshot (snapshot_load's, "name" and "disks" at least).
 */
typedef int snapshot_disks(void *context, const json_t *about, struct error *err);
/*
 * Those that went on from it go on from its parent, and keep what memory they have from it; then it
 * is not there any more, and `drop` removes what disks have of it. When that fails it is there
 * again. Locked.
 */
int snapshot_remove(const char *directory, const char *name, snapshot_disks *drop, void *context,
                    struct error *err);
/* Finishes what a killed process has begun: `drop` for one that is not to be, `apply` (may be NULL:
 * the VM runs) for one that disks were being put back to. Locked. */
int snapshot_recover(const char *directory, snapshot_disks *drop, snapshot_disks *apply,
                     void *context, struct error *err);

#endif
