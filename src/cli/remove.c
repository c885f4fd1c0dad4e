#include "cli/remove.h"

#include <unistd.h>

#include "cli/snapshot_disks.h"
#include "cli/vm.h"
#include "machine/clone.h"
#include "machine/vm_store.h"

static int check_clones(const char *name, struct error *err) {
    return clone_check_users(name, NULL, err);
}

/* It may run elsewhere, by the same disks, and have its snapshots there. */
static bool has_left(const char *name) {
    json_t *left = vm_store_left(name);
    json_decref(left);
    return left != NULL;
}

/* What its snapshots have on disks elsewhere; no clone comes to need it meanwhile. */
static int drop_disks(const char *name, const struct vm_directory *directory, struct error *err) {
    int hold = vm_store_hold(err);
    int result = hold < 0 ? hold : check_clones(name, err);
    if (result == 0 && !has_left(name))
        result = snapshot_disks_drop_all(directory->path, err);
    if (hold >= 0)
        close(hold);
    return result;
}

int vm_remove(const char *name, bool force, struct error *err) {
    struct vm_directory directory;
    int result = check_clones(name, err); /* before it is ended for nothing */
    if (result < 0)
        return result;
    result = vm_store_lock(name, &directory, err);
    if (result == -EBUSY && vm_wait_ending(name))
        result = vm_store_lock(name, &directory, err);
    if (result == -EBUSY && force) {
        result = vm_stop(name, 0, err);
        if (result == 0 || result == -ENOENT) /* it has just ended by itself */
            result = vm_store_lock(name, &directory, err);
    } else if (result == -EBUSY) {
        error_set(err, result, "'%s' is running; 'lodge stop %s' first, or 'lodge rm -f %s'", name,
                  name, name);
    }
    if (result < 0)
        return result;
    result = drop_disks(name, &directory, err);
    if (result == 0)
        return vm_store_remove(name, &directory, check_clones, err);
    vm_store_unlock(&directory);
    return result;
}
