/*
 * A snapshot's pages, compressed: DIRECTORY/ram.zst in place of DIRECTORY/ram (docs/snapshots.md).
 * It holds the pages that the map (ram_image.h) says to be there, in their order, in chunks of
 * RAM_PACKED_CHUNK pages, each compressed by itself; their sums are the map's.
 *
 * Any thread. A file may be hostile: nothing larger than the map's pages ever comes out of it.
 */
#ifndef LODGE_MACHINE_RAM_PACKED_H
#define LODGE_MACHINE_RAM_PACKED_H

#include "memory/memory.h"

enum { RAM_PACKED_FORMAT = 1, RAM_PACKED_CHUNK = 256 };

/* `ram` into an empty file, durably; *bytes is how many it has then. progress (may be NULL) is
 * asked after each chunk; false: -ECANCELED. -ENOMEM, -errno. */
int ram_pack(int ram, const struct memory_pages *pages, int packed, memory_image_progress *progress,
             void *context, uint64_t *bytes);
/* The other way, into an empty file that gets the size of all pages; ram < 0: its sums are looked
 * at. -EINVAL: damaged, or hostile; -ENOTSUP: of a newer lodge. */
int ram_unpack(int packed, const struct memory_pages *pages, int ram, struct error *err);

#endif
