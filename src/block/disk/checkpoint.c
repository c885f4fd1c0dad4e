/*
 * Checkpoints: changed tables go to new places, then a superblock says where.
 * The old tree and the journal stay whole until it does.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/disk/private.h"
#include "block/sync.h"

/* A table on its way to the file. */
struct moved {
    struct disk_table *table;
    uint64_t old, new; /* entries; new 0: nothing is left to write */
};

struct checkpoint {
    struct disk *disk;
    struct moved *moved;
    size_t count;
    uint8_t *bytes; /* of all tables that are written, in the order of moved */
    uint64_t snapshots, old_snapshots;
    unsigned snapshot_blocks, old_snapshot_blocks;
    struct disk_superblock superblock;
};

static int by_level(const void *a, const void *b) {
    const struct disk_table *x = ((const struct moved *)a)->table,
                            *y = ((const struct moved *)b)->table;
    if (x->level != y->level)
        return x->level < y->level ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static int collect(struct checkpoint *c) {
    struct disk_map *map = &c->disk->map;
    size_t room = map->dirty > 0 ? map->dirty : 1;
    c->moved = calloc(room, sizeof *c->moved);
    c->bytes = aligned_alloc(DISK_BLOCK, room * DISK_BLOCK);
    if (c->moved == NULL || c->bytes == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < map->bucket_count && c->count < map->dirty; i++)
        for (struct disk_table *t = map->buckets[i]; t != NULL; t = t->next)
            if (t->dirty)
                c->moved[c->count++] = (struct moved){.table = t, .old = t->where};
    qsort(c->moved, c->count, sizeof *c->moved, by_level);
    return 0;
}

/* A table of nothing but the same unallocated entry needs no block; a root says nothing else. */
static bool uniform(const struct disk_table *table, bool root) {
    for (unsigned i = 1; i < DISK_ENTRIES; i++)
        if (table->entries[i] != table->entries[0])
            return false;
    return table->entries[0] == 0 || (table->entries[0] == DISK_ZERO && !root);
}

/* Where a table goes is noted in its parent, which is written after it. */
static void point_at(struct disk_map *map, const struct disk_table *table, uint64_t entry) {
    if (table->level + 1 == map->levels) {
        map->root = entry;
        return;
    }
    struct disk_table *parent = disk_map_find(map, table->level + 1, table->index / DISK_ENTRIES);
    parent->entries[table->index % DISK_ENTRIES] = entry;
}

/* Takes blocks for what is written: the run that begins at *next has *left more. */
static int take_block(struct checkpoint *c, uint64_t *next, uint64_t *left, uint64_t want) {
    if (*left == 0) {
        int64_t got = disk_space_take(&c->disk->space, want, next);
        if (got < 0)
            return (int)got;
        *left = (uint64_t)got;
    }
    (*left)--;
    return 0;
}

static int place(struct checkpoint *c) {
    struct disk *disk = c->disk;
    uint64_t next = 0, left = 0;
    uint8_t *at = c->bytes;
    int result = 0;
    for (size_t i = 0; i < c->count; i++) {
        struct disk_table *table = c->moved[i].table;
        uint64_t entry = 0;
        table->pins++;
        if (!uniform(table, table->level + 1 == disk->map.levels)) {
            result = take_block(c, &next, &left, c->count - i);
            if (result != 0) {
                c->count = i + 1; /* those before have places to give back */
                break;
            }
            entry = c->moved[i].new = disk_entry(next++, disk->superblock.generation);
            disk_encode_table(table->entries, table->level, table->index,
                              disk->superblock.generation, at);
            at += DISK_BLOCK;
        } else {
            entry = table->entries[0];
        }
        point_at(&disk->map, table, entry);
        table->where = c->moved[i].new;
        table->dirty = false;
        disk->map.dirty--;
    }
    disk_space_release(&disk->space, next, left);
    return result;
}

/* The snapshot table is small: it finds room in one run, or at the end. */
static int place_snapshots(struct checkpoint *c, const struct disk_change *change) {
    unsigned want = change != NULL ? disk_snapshot_blocks(change->superblock.snapshot_count) : 0;
    if (change == NULL)
        return 0;
    c->superblock = change->superblock;
    c->old_snapshots = c->disk->superblock.snapshots;
    c->old_snapshot_blocks = disk_snapshot_blocks(c->disk->superblock.snapshot_count);
    c->superblock.snapshots = 0;
    while (c->snapshot_blocks < want) {
        uint64_t first;
        int64_t got = disk_space_take(&c->disk->space, want - c->snapshot_blocks, &first);
        if (got < 0)
            return (int)got;
        if (c->snapshot_blocks > 0 && first != c->snapshots + c->snapshot_blocks) {
            disk_space_release(&c->disk->space, c->snapshots, c->snapshot_blocks);
            c->snapshot_blocks = 0;
        }
        if (c->snapshot_blocks == 0)
            c->snapshots = first;
        c->snapshot_blocks += (unsigned)got;
    }
    c->superblock.snapshots = c->snapshots;
    return 0;
}

/* ---- Without the lock ---- */

static int write_tables(struct checkpoint *c) {
    const uint8_t *at = c->bytes;
    for (size_t i = 0; i < c->count;) {
        uint64_t first = disk_physical(c->moved[i].new), run = 0;
        if (first == 0) {
            i++;
            continue;
        }
        while (i < c->count && disk_physical(c->moved[i].new) == first + run)
            run++, i++;
        int result = disk_write_metadata(c->disk, first * DISK_BLOCK, at, run * DISK_BLOCK);
        if (result != 0)
            return result;
        at += run * DISK_BLOCK;
        c->disk->counts.metadata_bytes += run * DISK_BLOCK;
    }
    return 0;
}

static int write_snapshots(struct checkpoint *c, const struct disk_change *change) {
    uint8_t block[DISK_BLOCK];
    for (unsigned i = 0; i < c->snapshot_blocks; i++) {
        disk_encode_snapshots(change->snapshots, c->superblock.snapshot_count, i, block);
        int result =
            disk_write_metadata(c->disk, (c->snapshots + i) * DISK_BLOCK, block, DISK_BLOCK);
        if (result != 0)
            return result;
    }
    return 0;
}

/* When this fails nobody knows which superblock the file has: the disk is broken. */
static int write_superblock(struct checkpoint *c) {
    uint8_t block[DISK_BLOCK];
    uint64_t slot = c->superblock.sequence % DISK_SUPERBLOCKS;
    disk_encode_superblock(&c->superblock, block);
    int result = disk_write_metadata(c->disk, slot * DISK_BLOCK, block, DISK_BLOCK);
    if (result == 0)
        result = block_flush(c->disk->file);
    c->disk->counts.metadata_bytes += DISK_BLOCK;
    return result;
}

/* ---- With the lock again ---- */

static void give_up(struct checkpoint *c) {
    struct disk *disk = c->disk;
    for (size_t i = 0; i < c->count; i++) {
        struct disk_table *table = c->moved[i].table;
        if (c->moved[i].new != 0)
            disk_space_release(&disk->space, disk_physical(c->moved[i].new), 1);
        table->where = c->moved[i].old;
        disk->map.dirty += !table->dirty;
        table->dirty = true;
    }
    disk_space_release(&disk->space, c->snapshots, c->snapshot_blocks);
}

static void take_effect(struct checkpoint *c) {
    struct disk *disk = c->disk;
    for (size_t i = 0; i < c->count; i++) {
        uint64_t old = c->moved[i].old;
        if (old != 0 && disk_birth(old) > disk->shared)
            disk_space_release(&disk->space, disk_physical(old), 1);
        else
            disk_removal_lost(disk, old);
    }
    disk_space_release(&disk->space, c->old_snapshots, c->old_snapshot_blocks);
    disk->superblock = c->superblock;
    disk->journal_head = 0;
    disk->counts.checkpoints++;
}

static int prepare(struct checkpoint *c, const struct disk_change *change) {
    struct disk *disk = c->disk;
    c->superblock = disk->superblock;
    int result = collect(c);
    if (result == 0)
        result = place(c);
    if (result == 0)
        result = place_snapshots(c, change);
    c->superblock.sequence = disk->superblock.sequence + 1;
    c->superblock.journal_sequence = disk->journal_sequence;
    if (change == NULL || !change->keep_root) {
        c->superblock.live.root = disk->map.root;
        c->superblock.live.levels = disk->map.levels;
    }
    return result;
}

int disk_checkpoint(struct disk *disk, const struct disk_change *change) {
    struct checkpoint c = {.disk = disk};
    lock_take(&disk->lock);
    int result = prepare(&c, change);
    lock_release(&disk->lock);

    if (result == 0)
        result = write_tables(&c);
    if (result == 0)
        result = write_snapshots(&c, change);
    /* Data that the tables show, and the tables themselves, before the superblock. */
    if (result == 0) {
        result = block_flush(disk->file);
        if (result != 0)
            disk->broken = result;
    }
    bool tried = result == 0;
    if (tried)
        result = write_superblock(&c);

    lock_take(&disk->lock);
    if (result == 0)
        take_effect(&c);
    else if (tried)
        disk->broken = result;
    else
        give_up(&c);
    for (size_t i = 0; i < c.count; i++)
        c.moved[i].table->pins--;
    lock_release(&disk->lock);
    free(c.moved);
    free(c.bytes);
    return result;
}
