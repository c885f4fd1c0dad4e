/*
 * The files of a VM's snapshots (snapshot_store.h) go along when it moves. What they have on disks
 * is with the disks: in place where both sides reach these, else migration_layers.h.
 *
 * The caller holds the snapshots' lock on the side that the VM leaves, so nobody changes them.
 */
#ifndef LODGE_MACHINE_MIGRATION_SNAPSHOTS_H
#define LODGE_MACHINE_MIGRATION_SNAPSHOTS_H

#include <jansson.h>

#include "machine/migration_copies.h"
#include "machine/migration_memory.h"
#include "machine/migration_stream.h"

/* ---- The side that a VM leaves ---- */

/* What HELLO says of them ("snapshots"); the caller's. NULL: there are none. */
int migration_snapshots_describe(const char *directory, json_t **about, struct error *err);
/* Once the target says that they may come. progress: as memory_sender_send's. */
int migration_snapshots_send(const char *directory, const json_t *about, struct stream *stream,
                             bool compress, memory_sender_progress *progress, void *context,
                             struct error *err);

/* ---- The side that it comes to ---- */

/* Bytes that they take, about. about: HELLO's, which is not trusted; NULL is fine. */
uint64_t migration_snapshots_bytes(const json_t *about);
/* Puts them into the VM's directory, and says there where the disks that come with it will be. */
int migration_snapshots_receive(const json_t *about, const struct disk_copies *copies,
                                struct stream *stream, const char *directory, struct error *err);

#endif
