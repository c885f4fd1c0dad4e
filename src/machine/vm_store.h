/*
 * VMs that last: each has a directory of its own.
 *
 *     $XDG_DATA_HOME/lodge/vms, else /var/lib/lodge/vms for root and
 *     ~/.local/share/lodge/vms for others
 *         NAME/config.json     what it is made from; see vm_store_create
 *         NAME/image/, disk.lodge   of VMs that boot an image; image/overlay.h
 *         NAME/lock            locked by whoever starts, runs or removes it
 *         NAME/console.log     machine/console_hub.h
 *         NAME/monitor.log     what its monitor said while it ran last
 *
 * A directory is whole or not there: it is made and removed under a name that
 * begins with a dot. What a killed process has left of that goes with the next
 * change. Whether a VM runs is told by its lock alone, which ends with the
 * process that holds it, however that ends.
 *
 * Any thread.
 */
#ifndef LODGE_MACHINE_VM_STORE_H
#define LODGE_MACHINE_VM_STORE_H

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum { VM_STORE_FORMAT = 1 }; /* of config.json; grows when older lodges cannot read it any more */

/* A VM that is locked by this process (and those that it forks). */
struct vm_directory {
    char path[PATH_MAX];
    int lock;
};

/*
 * options: an object, borrowed; kept in config.json as {"format", "name", "options"}. fill, if not
 * NULL, puts more into the directory before it is seen. -EEXIST.
 */
typedef int vm_store_filler(void *context, const char *directory, struct error *err);
int vm_store_create(const char *name, json_t *options, vm_store_filler *fill, void *context,
                    struct error *err);
/* The options again; the caller's. -ENOENT, -EPROTO: not as lodge writes it. */
int vm_store_load(const char *name, json_t **options, struct error *err);
bool vm_store_has(const char *name);

/* -ENOENT: no such VM. -EBUSY: it runs, or is being started or removed. */
int vm_store_lock(const char *name, struct vm_directory *directory, struct error *err);
void vm_store_unlock(struct vm_directory *directory);
/* With everything in it. Unlocks it in any case. */
int vm_store_remove(const char *name, struct vm_directory *directory, struct error *err);

/* Somebody holds its lock. */
bool vm_store_is_busy(const char *name);
/* DIRECTORY/NAME/FILE, whether or not there is such a file. */
int vm_store_path(const char *name, const char *file, char path[PATH_MAX], struct error *err);
/* All names, sorted; the caller frees each and the list. No store yet: none. */
int vm_store_list(char ***names, size_t *count, struct error *err);

#endif
