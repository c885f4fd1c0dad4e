/*
 * Clones: machines that go on from another VM's snapshot (snapshot_store.h) as machines of their
 * own. Memory is the snapshot's file, copied page by page as it is written to; disks are disks on
 * top of the snapshots that the VM's own have; what makes the guest one of a kind it gets anew from
 * lodge-agent (agent_protocol.h, AGENT_RENEW) before anything else happens in it. docs/clones.md.
 *
 * Any thread.
 */
#ifndef LODGE_MACHINE_CLONE_H
#define LODGE_MACHINE_CLONE_H

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "machine/agent_protocol.h"
#include "machine/control_names.h"

/* What a clone goes on from. */
struct clone_source {
    char vm[VM_NAME_MAX + 1], snapshot[VM_NAME_MAX + 1];
    char directory[PATH_MAX]; /* the VM's */
    char saved[PATH_MAX];     /* the snapshot's: machine_config.restore */
    json_t *about;            /* snapshot_load's */
    json_t *options;          /* vm_store_load's */
};

/* "VM@SNAPSHOT" in two. -EINVAL. */
int clone_parse(const char *text, struct clone_source *source, struct error *err);
/* Reads what vm and snapshot name. -ENOENT, -EPROTO. */
int clone_open(struct clone_source *source, struct error *err);
void clone_close(struct clone_source *source);

unsigned clone_vcpus(const struct clone_source *source);
/* The file of a disk that the VM wrote to; NULL: it did not. Belongs to the source. */
const char *clone_disk(const struct clone_source *source, unsigned disk);

/*
 * A clone that lasts has clone.json in its directory: {"vm", "snapshot", "disks"}: what it goes on
 * from, and how many of its disks stand on that VM's.
 */
int clone_keep(const struct clone_source *source, unsigned disks, const char *directory,
               struct error *err);
/* -EBUSY, and which: disks of kept clones stand on those of this VM, or of its snapshot of that
 * name (NULL: of any). Meanwhile nobody makes any: vm_store_hold. */
int clone_check_users(const char *vm, const char *snapshot, struct error *err);

/* Who a clone is. */
struct clone_identity {
    char host_name[AGENT_HOST_NAME_MAX + 1];
    uint8_t machine_id[16], mac[6];
    bool ssh_keys; /* are to be made anew */
};

/* name: NULL: one is made of the source VM's. */
int clone_identity_make(const char *vm, const char *name, struct clone_identity *identity,
                        struct error *err);

#endif
