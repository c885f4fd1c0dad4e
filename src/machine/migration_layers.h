/*
 * Snapshots within a disk (of lodge's format) that goes along (migration_disks.h). Each goes as
 * what it has other than the one that it goes on from, oldest first; then the disk itself, as what
 * it has other than the snapshot that it goes on from.
 *
 * A frame LAYER, JSON, goes between: "disk" (its number) and any of "keep" (what was sent so far is
 * the snapshot of this name), "on" (the disk is put back to this one first) and "size" (and gets
 * this one then), in this order; none of them: it is still being looked through.
 *
 * One thread's, which may wait. Nobody removes a snapshot meanwhile.
 */
#ifndef LODGE_MACHINE_MIGRATION_LAYERS_H
#define LODGE_MACHINE_MIGRATION_LAYERS_H

#include "block/block.h"
#include "machine/migration_extents.h"

struct disk_layers;

struct disk_layers_config {
    struct block *disk; /* that disk_open made */
    const char *file;   /* its path */
    unsigned index;
};
/* NULL: the disk has no snapshots. -ENOTSUP: ones that cannot go along. */
int disk_layers_create(const struct disk_layers_config *config, struct disk_layers **layers,
                       struct error *err);
void disk_layers_destroy(struct disk_layers *layers); /* NULL is fine */

/* The size of the disk in the first of them. */
uint64_t disk_layers_first_size(const struct disk_layers *layers);
/* All of them show the disk's backing as far as they go themselves. */
bool disk_layers_show_backing(const struct disk_layers *layers);

/*
 * Sends them. on_backing: the target's disk begins with the same backing, else with zeroes. sent:
 * bytes of data are added.
 */
int disk_layers_send(struct disk_layers *layers, bool on_backing, struct extents *extents,
                     struct stream *stream, uint64_t *sent, struct error *err);
/* Once they are sent: which blocks of 1 << shift bytes of the disk are other than what the target's
 * has by then, in `todo` (bit n: block n). */
int disk_layers_compare(struct disk_layers *layers, unsigned shift, uint64_t *todo,
                        struct stream *stream, struct error *err);

#endif
