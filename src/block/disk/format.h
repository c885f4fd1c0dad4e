/*
 * lodge's disk format, version 1: what lies where in its metadata blocks.
 * docs/disk-format.md is the specification; names are the same there. Pure
 * functions between bytes and structures: no I/O, any thread. Decoding
 * checks checksum and every field; what it returns is safe to use.
 */
#ifndef LODGE_BLOCK_DISK_FORMAT_H
#define LODGE_BLOCK_DISK_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum {
    DISK_BLOCK = 4096, /* the unit of allocation, and the size of every metadata block */
    DISK_BLOCK_SHIFT = 12,
    DISK_VERSION = 1,
    DISK_SUPERBLOCKS = 2, /* blocks 0 and 1, written in turn */
    DISK_ENTRIES = 504,   /* of a table */
    DISK_LEVELS_MAX = 4,
    DISK_RECORDS = 252, /* of a journal block */
    DISK_SNAPSHOTS_PER_BLOCK = 15,
    DISK_SNAPSHOTS_MAX = 1020,
    DISK_NAME_MAX = 127,
    DISK_PATH_MAX = 1023,
    DISK_FORMAT_NAME_MAX = 15,
    DISK_JOURNAL_MIN = 4, /* blocks */
    DISK_JOURNAL_MAX = 65536,
    DISK_GENERATION_MAX = (1 << 24) - 1,
};

/* Disks are no larger than this many bytes: 64 TiB. */
#define DISK_SIZE_MAX (UINT64_C(1) << 46)

/*
 * An entry of a table, or a root: what a stretch of the disk is. 0: nothing
 * was written, the backing shows. DISK_ZERO: reads as zeroes. Else the block
 * in the low 40 bits and the generation it was born in above.
 */
#define DISK_ZERO         UINT64_C(1)
#define DISK_PHYSICAL_MAX ((UINT64_C(1) << 40) - 1)

static inline uint64_t disk_entry(uint64_t physical, uint32_t birth) {
    return physical | (uint64_t)birth << 40;
}
static inline uint64_t disk_physical(uint64_t entry) {
    return entry & DISK_PHYSICAL_MAX;
}
static inline uint32_t disk_birth(uint64_t entry) {
    return (uint32_t)(entry >> 40);
}
static inline bool disk_allocated(uint64_t entry) {
    return disk_physical(entry) >= DISK_SUPERBLOCKS;
}

/* One tree: the disk itself, or a snapshot of it. */
struct disk_tree {
    uint64_t size; /* bytes, a multiple of 512 */
    uint64_t root; /* an entry */
    uint32_t levels;
    uint32_t parent;        /* the snapshot that it goes on from; 0: none */
    uint64_t backing_limit; /* bytes of the backing that show */
};

struct disk_superblock {
    uint64_t sequence;
    uint8_t uuid[16];
    struct disk_tree live;
    uint32_t generation; /* of blocks that are allocated now */
    uint32_t next_snapshot;
    uint32_t snapshot_count;
    uint64_t snapshots; /* first block of their table; 0: none */
    uint64_t journal;   /* first block */
    uint32_t journal_blocks;
    uint64_t journal_epoch, journal_sequence;      /* that block `journal` must have to count */
    char backing_format[DISK_FORMAT_NAME_MAX + 1]; /* "": no backing */
    char backing_snapshot[DISK_NAME_MAX + 1];      /* "": the disk itself */
    char backing_path[DISK_PATH_MAX + 1];
};

struct disk_snapshot {
    struct disk_tree tree;
    uint32_t id, generation;
    bool hidden;      /* removed, but several others go on from it */
    uint64_t created; /* seconds since 1970, UTC */
    char name[DISK_NAME_MAX + 1];
};

/* `count` blocks of the disk from `first` on became this entry and, if allocated, its successors.
 */
struct disk_record {
    uint64_t first, entry;
    uint32_t count;
};
enum { DISK_RECORD_COUNT_MAX = (1 << 24) - 1 };

/* Levels that a disk of this size needs. */
uint32_t disk_levels(uint64_t size);
/* Blocks of the disk that one entry at this level (0: leaves) stands for. */
uint64_t disk_span(uint32_t level);

bool disk_probe(const uint8_t *bytes, size_t length); /* has it the magic? */

void disk_encode_superblock(const struct disk_superblock *superblock, uint8_t *block);
/* -EINVAL: not one, damaged or torn; -ENOTSUP: of a later version, or with features unknown. */
int disk_decode_superblock(const uint8_t *block, struct disk_superblock *superblock,
                           struct error *err);

/* A table's place: its level and index in it. */
void disk_encode_table(const uint64_t entries[DISK_ENTRIES], uint32_t level, uint64_t index,
                       uint32_t birth, uint8_t *block);
int disk_decode_table(const uint8_t *block, uint32_t level, uint64_t index, uint32_t birth,
                      uint64_t entries[DISK_ENTRIES]);

void disk_encode_journal(const struct disk_record *records, unsigned count, uint64_t epoch,
                         uint64_t sequence, uint8_t *block);
/* The number of records, or -EINVAL when the block is not the one asked for. */
int disk_decode_journal(const uint8_t *block, uint64_t epoch, uint64_t sequence,
                        struct disk_record records[DISK_RECORDS]);

/* Block `index` of the snapshot table; `count` snapshots altogether. */
void disk_encode_snapshots(const struct disk_snapshot *all, unsigned count, unsigned index,
                           uint8_t *block);
int disk_decode_snapshots(const uint8_t *block, struct disk_snapshot *all, unsigned count,
                          unsigned index);
static inline unsigned disk_snapshot_blocks(unsigned count) {
    return (count + DISK_SNAPSHOTS_PER_BLOCK - 1) / DISK_SNAPSHOTS_PER_BLOCK;
}

#endif
