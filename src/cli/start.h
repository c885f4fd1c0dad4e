/* Starting a VM that lasts, for the verbs that do. */
#ifndef LODGE_CLI_START_H
#define LODGE_CLI_START_H

#include <jansson.h>

#include "machine/vm_store.h"

struct batch;

/* What it begins with, other than a boot. */
struct start_from {
    const char *snapshot; /* its directory */
    unsigned vcpus;
    bool kvm; /* its engine was that */
    /* Of a clone, which then is there once it has started and its batch is:
     * vm_store_create_starting. Or NULL. */
    const struct clone_source *source;
    const struct clone_identity *identity;
    const struct batch *batch;
};

/*
 * Starts the VM in the background and waits until it is up. It is locked, and stays so until its
 * monitor has ended, which inherits the lock. options: vm_store_load's. from: NULL boots. Returns
 * as background_start.
 */
int start_vm(const char *name, const struct vm_directory *directory, json_t *options,
             const struct start_from *from, struct error *err);

/* -EBUSY: its monitor ended just as the VM was handed over to another host, and it may run there.
 */
int start_check_left(const char *name, struct error *err);

#endif
