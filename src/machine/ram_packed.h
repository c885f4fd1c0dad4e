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

/* Of a file whose pages are wanted one by one: a chunk of them at a time. */
struct ram_unpacker;
struct ram_chunk {
    const uint64_t *page; /* their numbers, ascending */
    unsigned count;
    const uint8_t *bytes; /* one behind the other */
};
/* File and pages are the caller's, and stay until it is closed. -ENOMEM, -EINVAL, -ENOTSUP. */
int ram_unpacker_open(int packed, const struct memory_pages *pages, struct ram_unpacker **unpacker,
                      struct error *err);
void ram_unpacker_close(struct ram_unpacker *unpacker); /* NULL is fine */
/* The chunk with a page that the file has; good until the next call. -EINVAL: damaged; -EIO. */
int ram_unpacker_read(struct ram_unpacker *unpacker, uint64_t page, struct ram_chunk *chunk,
                      struct error *err);

#endif
