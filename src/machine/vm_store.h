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
 *         NAME/clone.json      of a clone: what it stands on; see clone.h
 *         NAME/unstarted       it is nothing before it has run: vm_store_create_starting
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
/*
 * The same for a VM that is to be there only once it has started: it is locked from the beginning,
 * and goes with the next change when nobody has it locked any more before vm_store_started, which
 * its monitor calls.
 */
int vm_store_create_starting(const char *name, json_t *options, vm_store_filler *fill,
                             void *context, struct vm_directory *directory, struct error *err);
int vm_store_started(const char *directory, struct error *err);
/* Nobody else changes the store, or makes VMs, until the descriptor that is returned is closed. */
int vm_store_hold(struct error *err);
/* The options again; the caller's. -ENOENT, -EPROTO: not as lodge writes it. */
int vm_store_load(const char *name, json_t **options, struct error *err);
bool vm_store_has(const char *name);

/* -ENOENT: no such VM. -EBUSY: it runs, or is being started or removed. */
int vm_store_lock(const char *name, struct vm_directory *directory, struct error *err);
void vm_store_unlock(struct vm_directory *directory);
/* With everything in it. Unlocks it in any case. check, if not NULL, may refuse, while nobody makes
 * VMs. */
typedef int vm_store_checker(const char *name, struct error *err);
int vm_store_remove(const char *name, struct vm_directory *directory, vm_store_checker *check,
                    struct error *err);

/* ---- Moving between stores: machine/migration.h ---- */

enum { MOVE_ID_MAX = 40 }; /* bytes of the text that names one move, with its end */

/*
 * Makes a directory for a VM that is on its way here, locked, which nobody sees yet. -EEXIST: there
 * is a VM of that name; -EBUSY: another one of that name is just coming.
 */
int vm_store_expect(const char *name, json_t *options, const char *id,
                    struct vm_directory *directory, struct error *err);
/* It is here: seen from now on. -ENOENT: vm_store_settle has been quicker. vm_store_sync makes that
 * durable, which takes longer. */
int vm_store_arrive(const char *name, struct vm_directory *directory, struct error *err);
void vm_store_sync(void);
/* It does not come after all: removes and unlocks its directory. */
void vm_store_turn_away(struct vm_directory *directory);
/* Whether the VM has come by that move. If not it never will: what is there of it goes. 1, 0, or
 * -errno: nobody can tell. */
int vm_store_settle(const char *name, const char *id, struct error *err);

/* In the store that it leaves: written before it may run elsewhere, so that it is not started
 * here as well; taken back when it turns out not to. directory: the VM's. Durable. */
int vm_store_mark_left(const char *directory, const char *to, const char *id, struct error *err);
int vm_store_unmark_left(const char *directory, struct error *err);
/* {"to", "id"}, the caller's; NULL: it is here. */
json_t *vm_store_left(const char *name);

/* Somebody holds its lock. */
bool vm_store_is_busy(const char *name);
/* DIRECTORY/NAME/FILE, whether or not there is such a file. */
int vm_store_path(const char *name, const char *file, char path[PATH_MAX], struct error *err);
/* All names, sorted; the caller frees each and the list. No store yet: none. */
int vm_store_list(char ***names, size_t *count, struct error *err);

#endif
