/* Opening: the superblock, snapshots, the journal, and which blocks are in use. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/disk/private.h"
#include "block/sync.h"

uint64_t disk_file_blocks(const struct block *file) {
    return file->info.size / DISK_BLOCK + (file->info.size % DISK_BLOCK != 0);
}

int disk_read_superblock(struct block *file, struct disk_superblock *superblock,
                         struct error *err) {
    uint8_t block[DISK_BLOCK];
    bool found = false;
    struct error why = {0};
    int result = error_set(&why, -EINVAL, "not a lodge disk");
    for (unsigned i = 0; i < DISK_SUPERBLOCKS; i++) {
        struct disk_superblock candidate;
        struct error reason;
        int rc = (i + 1) * (uint64_t)DISK_BLOCK <= file->info.size
                     ? block_read(file, i * (uint64_t)DISK_BLOCK, block, sizeof block)
                     : -EINVAL;
        if (rc != 0)
            error_set_errno(&reason, rc, "cannot read superblock %u", i);
        else
            rc = disk_decode_superblock(block, &candidate, &reason);
        if (rc == 0 && (!found || candidate.sequence > superblock->sequence)) {
            *superblock = candidate;
            found = true;
        }
        /* Of two reasons the one that says more: a version that is too new, damage. */
        if (rc != 0 && (i == 0 || rc == -ENOTSUP)) {
            result = rc;
            why = reason;
        }
    }
    if (found)
        return 0;
    return error_set(err, result, "%s: %s", file->info.name, why.text);
}

int disk_read_table(struct block *file, uint64_t file_blocks, const struct disk_missing *missing,
                    uint64_t entries[DISK_ENTRIES]) {
    uint8_t block[DISK_BLOCK];
    uint64_t physical = disk_physical(missing->entry);
    if (physical >= file_blocks)
        return -EINVAL;
    int result = block_read(file, physical * DISK_BLOCK, block, sizeof block);
    if (result == 0)
        result = disk_decode_table(block, missing->level, missing->index,
                                   disk_birth(missing->entry), entries);
    return result;
}

int disk_load_snapshots(struct block *file, const struct disk_superblock *superblock,
                        struct disk_snapshot **snapshots, struct error *err) {
    unsigned blocks = disk_snapshot_blocks(superblock->snapshot_count);
    *snapshots = calloc(DISK_SNAPSHOTS_MAX, sizeof **snapshots);
    if (*snapshots == NULL)
        return error_set(err, -ENOMEM, "no memory for snapshots");
    for (unsigned i = 0; i < blocks; i++) {
        uint8_t block[DISK_BLOCK];
        uint64_t at = superblock->snapshots + i;
        int result = at < disk_file_blocks(file)
                         ? block_read(file, at * DISK_BLOCK, block, sizeof block)
                         : -EINVAL;
        if (result == 0)
            result = disk_decode_snapshots(block, *snapshots, superblock->snapshot_count, i);
        if (result != 0) {
            free(*snapshots);
            *snapshots = NULL;
            return error_set_errno(err, result, "%s: the table of snapshots is damaged",
                                   file->info.name);
        }
    }
    return 0;
}

/* ---- The journal ---- */

static int load_missing(struct disk *disk, const struct disk_missing *missing) {
    uint64_t entries[DISK_ENTRIES];
    int result = disk_read_table(disk->file, disk_file_blocks(disk->file), missing, entries);
    if (result == 0 && disk_map_add(&disk->map, missing, entries) == NULL)
        result = -ENOMEM;
    return result;
}

static int leaf_of(struct disk *disk, uint64_t block, struct disk_table **leaf) {
    struct disk_missing missing;
    int result;
    while ((result = disk_map_leaf(&disk->map, block, leaf, &missing)) == -EAGAIN) {
        result = load_missing(disk, &missing);
        if (result != 0)
            return result;
    }
    return result;
}

/* A record is about blocks that the disk has, and maps none that the file has not. */
static bool record_fits(const struct disk *disk, const struct disk_record *record) {
    uint64_t blocks = (disk->superblock.live.size + DISK_BLOCK - 1) / DISK_BLOCK;
    return range_within(record->first, record->count, blocks) &&
           (!disk_allocated(record->entry) ||
            range_within(disk_physical(record->entry), record->count,
                         disk_file_blocks(disk->file)));
}

static int replay_record(struct disk *disk, const struct disk_record *record) {
    if (!record_fits(disk, record) || disk->map.dirty > DISK_REPLAY_TABLES)
        return -EINVAL;
    for (uint64_t i = 0; i < record->count;) {
        struct disk_table *leaf;
        int result = leaf_of(disk, record->first + i, &leaf);
        if (result != 0)
            return result;
        do {
            uint64_t entry = record->entry;
            leaf->entries[(record->first + i) % DISK_ENTRIES] =
                disk_allocated(entry) ? entry + i : entry;
        } while (++i < record->count && (record->first + i) % DISK_ENTRIES != 0);
    }
    return 0;
}

int disk_replay(struct disk *disk, struct error *err) {
    struct disk_record records[DISK_RECORDS];
    uint8_t block[DISK_BLOCK];
    const struct disk_superblock *superblock = &disk->superblock;
    for (uint32_t i = 0; i < superblock->journal_blocks; i++) {
        uint64_t at = superblock->journal + i;
        if (at >= disk_file_blocks(disk->file))
            return error_set(err, -EINVAL, "%s: its journal lies behind its end",
                             disk->block.info.name);
        int result = block_read(disk->file, at * DISK_BLOCK, block, sizeof block);
        int count = result != 0 ? result
                                : disk_decode_journal(block, superblock->journal_epoch,
                                                      superblock->journal_sequence + i, records);
        if (result == 0 && count < 0)
            break;
        for (int r = 0; r < count && result == 0; r++)
            result = replay_record(disk, &records[r]);
        if (result != 0)
            return error_set_errno(err, result, "%s: cannot replay the journal",
                                   disk->block.info.name);
    }
    return 0;
}

/* ---- Space ---- */

struct walk {
    struct disk *disk;
    uint64_t file_blocks;
};

/*
 * Marks what stands below a table in the file. A table that is marked already was walked as part
 * of another tree: what is below it is the same.
 */
static int walk_table(struct walk *walk, const struct disk_missing *table) {
    struct disk *disk = walk->disk;
    uint64_t entries[DISK_ENTRIES];
    if (!disk_space_mark(&disk->space, disk_physical(table->entry)))
        return disk_physical(table->entry) < walk->file_blocks ? 0 : -EINVAL;
    int result = disk_read_table(disk->file, walk->file_blocks, table, entries);
    for (unsigned i = 0; i < DISK_ENTRIES && result == 0; i++) {
        struct disk_missing child = {table->level - 1, table->index * DISK_ENTRIES + i, entries[i]};
        if (!disk_allocated(entries[i]))
            continue;
        if (disk_physical(entries[i]) >= walk->file_blocks)
            return -EINVAL;
        if (table->level > 0)
            result = walk_table(walk, &child); /* at most DISK_LEVELS_MAX deep */
        else
            disk_space_mark(&disk->space, disk_physical(entries[i]));
    }
    return result;
}

static int walk_tree(struct disk *disk, uint64_t root, uint32_t levels, uint64_t file_blocks) {
    struct walk walk = {.disk = disk, .file_blocks = file_blocks};
    if (!disk_allocated(root))
        return 0;
    return walk_table(&walk, &(struct disk_missing){levels - 1, 0, root});
}

/* The checkpoint's tree, and what tables in memory say differently. */
static int walk_live(struct disk *disk, uint64_t file_blocks) {
    int result =
        walk_tree(disk, disk->superblock.live.root, disk->superblock.live.levels, file_blocks);
    for (size_t i = 0; i < disk->map.bucket_count && result == 0; i++)
        for (struct disk_table *t = disk->map.buckets[i]; t != NULL && result == 0; t = t->next)
            for (unsigned e = 0; e < DISK_ENTRIES && t->dirty && t->level == 0; e++)
                if (disk_allocated(t->entries[e])) {
                    if (disk_physical(t->entries[e]) >= file_blocks)
                        return -EINVAL;
                    disk_space_mark(&disk->space, disk_physical(t->entries[e]));
                }
    return result;
}

int disk_find_space(struct disk *disk, struct error *err) {
    const struct disk_superblock *superblock = &disk->superblock;
    uint64_t blocks = disk_file_blocks(disk->file), limit = DISK_PHYSICAL_MAX;
    if (disk->space.blocks > blocks)
        blocks = disk->space.blocks;
    if (disk->config.file_limit != 0)
        limit = disk->config.file_limit / DISK_BLOCK;
    disk_space_destroy(&disk->space);
    int result = disk_space_create(&disk->space, blocks, limit > blocks ? limit : blocks, err);
    if (result != 0)
        return result;
    uint64_t snapshot_blocks = disk_snapshot_blocks(superblock->snapshot_count);
    bool inside = range_within(superblock->journal, superblock->journal_blocks, blocks) &&
                  range_within(superblock->snapshots, snapshot_blocks, blocks);
    for (uint64_t i = 0; i < DISK_SUPERBLOCKS; i++)
        disk_space_mark(&disk->space, i);
    for (uint64_t i = 0; i < superblock->journal_blocks && inside; i++)
        disk_space_mark(&disk->space, superblock->journal + i);
    for (uint64_t i = 0; i < snapshot_blocks && inside; i++)
        disk_space_mark(&disk->space, superblock->snapshots + i);
    result = inside ? walk_live(disk, blocks) : -EINVAL;
    for (unsigned i = 0; i < superblock->snapshot_count && result == 0; i++)
        result =
            walk_tree(disk, disk->snapshots[i].tree.root, disk->snapshots[i].tree.levels, blocks);
    if (result != 0)
        return error_set_errno(err, result, "%s: its tables are damaged ('lodge disk check' tells)",
                               disk->block.info.name);
    return 0;
}
