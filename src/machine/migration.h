/*
 * A running VM moves to another monitor: docs/migration.md has the protocol
 * and the rules by which it runs on exactly one side whatever breaks.
 *
 *   migration_tunnel.h   the connection
 *   migration_stream.h   frames
 *   migration_pages.h    memory in them
 *   page_set.h           pages that are still to come, or to go
 *   migration_extents.h  disks and files in frames
 *   migration_disks.h    disks that go along, migration_copies.h: at the target
 *   migration_layers.h   and the snapshots that they have
 *   migration_files.h    files: migration_image.h the image that the VM boots,
 *                        migration_snapshots.h its snapshots
 *   migration_target.c   below: the side that a VM comes to; migration_arrival.h: memory after it
 *   vm_migration.h       the side that it leaves; migration_source.h: between its thread and the
 *                        loop; migration_push.c: the thread, when the VM has gone
 */
#ifndef LODGE_MACHINE_MIGRATION_H
#define LODGE_MACHINE_MIGRATION_H

#include <jansson.h>

#include "machine/machine.h"
#include "machine/migration_tunnel.h"
#include "machine/vm_store.h"

enum { MIGRATION_STATE_PIECE = 1 << 20 };

/* ---- The side that a VM comes to. One thread at a time; everything waits for the other side. ----
 */

struct migration_target;

/* What wants to come. The strings and the options are the target's. */
struct migration_offer {
    const char *name;
    json_t *options;           /* vm_store_create's */
    const char *generation_id; /* NULL: it does not say */
    unsigned vcpus;
    unsigned disks;
};

/*
 * The first words on a connection, which becomes the target's. 1: it was a question about an
 * earlier move, which has been answered, or the rest of the memory of a VM that runs here, which
 * has been passed on: there is no target. 0: a VM wants to come; its directory
 * is made and locked. most: it may have been shown no more of a processor. What is not to be had
 * has been told to the other side.
 */
int migration_accept(struct tunnel *tunnel, enum cpu_baseline most,
                     struct migration_target **target, struct error *err);
const struct migration_offer *migration_offer(const struct migration_target *target);
/* Into its directory: the image that the VM boots, this host's, or the source sends it; the VM's
 * snapshots. */
int migration_fetch_files(struct migration_target *target, struct error *err);
/* Disks that come with the VM: `config` has those of the options, and gets where they are. */
void migration_apply_disks(const struct migration_target *target, struct machine_config *config);
bool migration_copies_disk(const struct migration_target *target, unsigned disk);
/* Of the VM; its path changes once the VM has come. */
const char *migration_directory(const struct migration_target *target);
/* For machine_config. */
const struct machine_incoming *migration_incoming(const struct migration_target *target);

/* Tells the other side why not; nothing once the VM is here, whatever comes of it. */
void migration_refuse(struct migration_target *target, const char *why);

/* Into a machine that was made with migration_incoming: memory comes. The loop does not run. */
int migration_receive(struct migration_target *target, struct machine *machine, struct error *err);
/* Then all the rest, and the VM itself: 0: it is here, and nowhere else, and is to be run. */
int migration_take_over(struct migration_target *target, struct machine *machine,
                        struct error *err);
/* It runs. */
void migration_runs(struct migration_target *target);
/* Some of its memory, `left` bytes, is still to come; why: nothing comes at the moment, else empty.
 * target may be NULL: false. Any thread. */
bool migration_is_arriving(const struct migration_target *target, uint64_t *left, char *why,
                           size_t size);
/* The VM has ended; its memory is still there. NULL is fine. */
void migration_stop(struct migration_target *target);
/* Of a VM that has not come nothing is left. NULL is fine. */
void migration_target_free(struct migration_target *target);

#endif
