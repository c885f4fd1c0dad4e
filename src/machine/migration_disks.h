/*
 * Disks that go along with a VM (docs/migration.md): what they have is sent while the guest writes
 * to them; what has been written since is sent again (block/hold.h's log).
 *
 * A disk in the VM's own directory goes along, others by choice. The one on the VM's image goes
 * without what the image has, which the target has, too (migration_image.h); every other disk
 * arrives on nothing, whatever it stands on here. Its own snapshots go along (migration_layers.h).
 *
 * One thread's: the move's.
 */
#ifndef LODGE_MACHINE_MIGRATION_DISKS_H
#define LODGE_MACHINE_MIGRATION_DISKS_H

#include <jansson.h>

#include "machine/migration_memory.h"
#include "machine/migration_stream.h"

struct machine;
struct disk_sender;

struct disk_sender_config {
    struct machine *machine;
    const char *directory; /* the VM's */
    bool all;              /* not only those in its directory */
    bool compress;
};

/*
 * Looks what there is to be sent, and from here on sees what is written. All stays the caller's.
 * -ENOTSUP: a disk that cannot be moved.
 */
int disk_sender_create(const struct disk_sender_config *config, struct disk_sender **sender,
                       struct error *err);
void disk_sender_destroy(struct disk_sender *sender); /* NULL is fine */

/* "disks" of HELLO. */
json_t *disk_sender_describe(const struct disk_sender *sender);
/* Those that stay behind as they are once their copies run elsewhere: [{"disk", "file"}]. */
json_t *disk_sender_left_behind(const struct disk_sender *sender);

/* What has been written since the last look is to be sent, too. All before has been sent. */
void disk_sender_look(struct disk_sender *sender);
uint64_t disk_sender_left(const struct disk_sender *sender); /* bytes; NULL: none */
uint64_t disk_sender_sent(const struct disk_sender *sender); /* bytes of data so far */
/* Sends it. As memory_sender_send. */
int disk_sender_send(struct disk_sender *sender, struct stream *stream,
                     memory_sender_progress *progress, void *context, struct error *err);

#endif
