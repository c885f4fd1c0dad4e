/*
 * The tree that says where a disk's blocks lie, as far as it is in memory:
 * tables by level and index. No I/O: what is not here is named as missing,
 * and the caller reads and adds it. Not locked; the owner's lock guards it.
 */
#ifndef LODGE_BLOCK_DISK_MAP_H
#define LODGE_BLOCK_DISK_MAP_H

#include "block/disk/format.h"

struct disk_table {
    struct disk_table *next; /* in the hash */
    uint64_t index;
    uint32_t level;
    unsigned pins;  /* stays in memory while > 0 */
    bool dirty;     /* differs from what `where` has; its ancestors are dirty as well */
    bool used;      /* since eviction came by last */
    uint64_t where; /* the entry of the block that it was read from or written to; or 0 */
    uint64_t entries[DISK_ENTRIES];
};

struct disk_map {
    uint64_t root; /* an entry; the tree's levels */
    uint32_t levels;
    struct disk_table **buckets;
    size_t bucket_count, count, dirty;
    size_t limit; /* clean leaves beyond this many tables may go */
    size_t hand;  /* the bucket that eviction looks at next */
};

/* A table that has to be read before one can go on. */
struct disk_missing {
    uint32_t level;
    uint64_t index, entry;
};

int disk_map_create(struct disk_map *map, uint64_t root, uint32_t levels, size_t limit,
                    struct error *err);
void disk_map_destroy(struct disk_map *map);

/*
 * The entry of a block of the disk and for how many blocks from there on it
 * holds: `run` is more than 1 only for entries that are not allocated.
 * -EAGAIN: `missing` must be read first.
 */
int disk_map_look(struct disk_map *map, uint64_t block, uint64_t *entry, uint64_t *run,
                  struct disk_missing *missing);

/* The entry of a table: where it lies in the file; 0 or DISK_ZERO: nowhere; 0 as well when it has
 * changed since. -EAGAIN: `missing`. */
int disk_map_table(struct disk_map *map, uint32_t level, uint64_t index, uint64_t *entry,
                   struct disk_missing *missing);

/* The leaf of a block, made where there is none, dirty. -EAGAIN, -ENOMEM. */
int disk_map_leaf(struct disk_map *map, uint64_t block, struct disk_table **leaf,
                  struct disk_missing *missing);

/* Puts in a table that was missing; NULL: no memory. One that is there already stays. */
struct disk_table *disk_map_add(struct disk_map *map, const struct disk_missing *missing,
                                const uint64_t entries[DISK_ENTRIES]);

/* The table at a place, or NULL when it is not in memory. */
struct disk_table *disk_map_find(struct disk_map *map, uint32_t level, uint64_t index);

/* Adds levels on top until there are as many. -ENOMEM. */
int disk_map_raise(struct disk_map *map, uint32_t levels);

/* Lets clean leaves go while there are too many tables. */
void disk_map_trim(struct disk_map *map);

#endif
