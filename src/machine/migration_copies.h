/*
 * The disks that come with a VM (docs/migration.md), at the target: files in the VM's directory,
 * which its options then name.
 *
 * What is said of them, and what they are to have, is not trusted.
 */
#ifndef LODGE_MACHINE_MIGRATION_COPIES_H
#define LODGE_MACHINE_MIGRATION_COPIES_H

#include <jansson.h>

#include "machine/config.h"
#include "machine/migration_stream.h"

struct disk_copies;

/*
 * disks: HELLO's. options: the VM's, in which those that come get their new files' names.
 * -EPROTO.
 */
int disk_copies_create(const char *name, const json_t *disks, json_t *options,
                       struct disk_copies **copies, struct error *err);
void disk_copies_destroy(struct disk_copies *copies); /* NULL is fine */

bool disk_copies_has(const struct disk_copies *copies, unsigned disk);
uint64_t disk_copies_bytes(const struct disk_copies *copies); /* that they take, about */
/* Where "diskN" will be once the VM has come, if it comes along; else NULL. */
const char *disk_copies_file(const struct disk_copies *copies, const char *disk);
/* As long as the VM is on its way its directory is another. */
void disk_copies_place(struct disk_copies *copies, const char *directory);
/* The disks as the options have them: their paths are where they are now, and stay so. */
void disk_copies_apply(const struct disk_copies *copies, struct machine_config *config);

/* Makes the files. */
int disk_copies_begin(struct disk_copies *copies, struct error *err);
/* STREAM_DISK's frame. */
int disk_copies_take(struct disk_copies *copies, const struct stream *stream, struct error *err);
/* STREAM_LAYER's. */
int disk_copies_layer(struct disk_copies *copies, const struct stream *stream, struct error *err);
/* What was taken is on stable storage. */
int disk_copies_flush(struct disk_copies *copies, struct error *err);
/* That was all of it. */
int disk_copies_end(struct disk_copies *copies, struct error *err);

#endif
