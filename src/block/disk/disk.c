#include "block/disk/disk.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "block/disk/private.h"
#include "block/sync.h"

enum { LOADERS = 2 };

static void disk_drain(struct block *block) {
    struct disk *disk = disk_of(block);
    disk_drain_requests(disk);
    block_drain(disk->file);
    if (disk->backing != NULL)
        block_drain(disk->backing);
}

static void disk_free(struct disk *disk) {
    if (disk->loaders != NULL)
        pool_destroy(disk->loaders);
    disk_map_destroy(&disk->map);
    disk_space_destroy(&disk->space);
    free(disk->batch.records);
    free(disk->batch.frees);
    free(disk->snapshots);
    pthread_cond_destroy(&disk->idle);
    lock_destroy(&disk->lock);
    free(disk);
}

/* A last commit: a disk that is closed well needs no recovery of what nobody flushed. */
static void close_metadata(struct disk *disk) {
    if (disk->config.readonly)
        return;
    int result = disk_commit(disk);
    if (result == 0 && disk->map.dirty > 0)
        result = disk_checkpoint(disk, NULL);
    if (result != 0)
        log_warning("disk %s: the last commit failed: %s; what was flushed before is safe",
                    disk->block.info.name, strerror(-result));
    log_info("disk %s: %llu writes, %llu of them to new blocks, %llu commits",
             disk->block.info.name, (unsigned long long)disk->counts.writes,
             (unsigned long long)disk->counts.allocations,
             (unsigned long long)disk->counts.commits);
}

struct block *disk_file(struct block *block) {
    return disk_of(block)->file;
}

void disk_set_upkeep(struct block *block, struct block *upkeep) {
    struct disk *disk = disk_of(block);
    lock_take(&disk->lock);
    disk->upkeep = upkeep;
    lock_release(&disk->lock);
}

void disk_forget_file(struct block *block) {
    disk_of(block)->keep_file = true;
}

static void disk_close(struct block *block) {
    struct disk *disk = disk_of(block);
    disk_drain(block);
    disk_stop_committer(disk);
    close_metadata(disk);
    block_close(disk->backing);
    if (!disk->keep_file)
        block_close(disk->file);
    disk_free(disk);
}

/* The tree grows upwards; what is new reads as zeroes, not as what the backing may have there. */
static int grow_metadata(struct disk *disk, uint64_t size) {
    struct disk_change change = {.snapshots = disk->snapshots};
    lock_take(&disk->lock);
    int result = disk_map_raise(&disk->map, disk_levels(size));
    change.superblock = disk->superblock;
    lock_release(&disk->lock);
    change.superblock.live.size = size;
    return result == 0 ? disk_checkpoint(disk, &change) : result;
}

static int disk_resize(struct block *block, uint64_t size, struct error *err) {
    struct disk *disk = disk_of(block);
    if (disk->config.readonly)
        return error_set(err, -EROFS, "disk %s is read-only", block->info.name);
    if (size > DISK_SIZE_MAX)
        return error_set(err, -EFBIG, "disk %s can have 64 TiB at most", block->info.name);
    disk_freeze(disk);
    disk_take_turn(disk);
    int result = disk_commit_in_turn(disk);
    if (result == 0)
        result = grow_metadata(disk, size);
    if (result == 0)
        block->info.size = size;
    disk_end_turn(disk);
    disk_thaw(disk);
    return result == 0 ? 0 : error_set_errno(err, result, "cannot grow disk %s", block->info.name);
}

/* The entry at an offset, and how many bytes have the same from there on. -EAGAIN: its table is not
 * in memory. */
static int look(struct disk *disk, uint64_t offset, uint64_t *entry, uint64_t *length) {
    struct disk_missing missing;
    uint64_t run = 0, size = disk->block.info.size;
    lock_take(&disk->lock);
    int result = disk_map_look(&disk->map, offset / DISK_BLOCK, entry, &run, &missing);
    lock_release(&disk->lock);
    uint64_t end = round_down(offset, DISK_BLOCK) + run * DISK_BLOCK;
    *length = (end < size ? end : size) - offset;
    return result;
}

/* The same; waits for the table. False: it cannot be read. */
static bool find_entry(struct disk *disk, uint64_t offset, uint64_t *entry, uint64_t *length) {
    enum { TRIES = 8 }; /* a table that was read may have gone again */
    uint8_t sector[BLOCK_SECTOR];
    int result = look(disk, offset, entry, length);
    for (int i = 0; i < TRIES && result == -EAGAIN; i++) {
        block_read(&disk->block, round_down(offset, BLOCK_SECTOR), sector, sizeof sector);
        result = look(disk, offset, entry, length);
    }
    return result == 0;
}

/* What the tree has nothing for, where the backing does not show or has zeroes itself. */
static uint64_t backing_zero_run(struct disk *disk, uint64_t offset, uint64_t length) {
    lock_take(&disk->lock);
    uint64_t limit = disk->backing != NULL ? disk->superblock.live.backing_limit : 0;
    lock_release(&disk->lock);
    if (limit > 0 && limit > disk->backing->info.size)
        limit = disk->backing->info.size;
    if (offset >= limit)
        return length;
    uint64_t run = block_zero_run(disk->backing, offset);
    if (run >= limit - offset) /* up to where it ends, and nothing beyond */
        return length;
    return run < length ? run : length;
}

static uint64_t disk_zero_run(struct block *block, uint64_t offset) {
    struct disk *disk = disk_of(block);
    uint64_t entry = 0, length = 0;
    if (!find_entry(disk, offset, &entry, &length) || (entry != 0 && entry != DISK_ZERO))
        return 0;
    return entry == 0 ? backing_zero_run(disk, offset, length) : length;
}

uint64_t disk_unwritten_run(struct block *block, uint64_t offset) {
    uint64_t entry = 0, length = 0;
    return find_entry(disk_of(block), offset, &entry, &length) && entry == 0 ? length : 0;
}

static const struct block_class disk_class = {
    .name = "lodge",
    .submit = disk_submit,
    .drain = disk_drain,
    .close = disk_close,
    .resize = disk_resize,
    .zero_run = disk_zero_run,
};

bool disk_is(const struct block *block) {
    return block->class == &disk_class;
}

/* ---- Opening ---- */

void disk_set_shared(struct disk *disk) {
    disk->shared = 0;
    for (unsigned i = 0; i < disk->superblock.snapshot_count; i++)
        if (disk->snapshots[i].id == disk->superblock.live.parent)
            disk->shared = disk->snapshots[i].generation;
}

/* Shows a snapshot instead of the disk. */
static int choose_snapshot(struct disk *disk, struct error *err) {
    for (unsigned i = 0; i < disk->superblock.snapshot_count; i++) {
        const struct disk_snapshot *snapshot = &disk->snapshots[i];
        if (!snapshot->hidden && strcmp(snapshot->name, disk->config.snapshot) == 0) {
            disk->superblock.live = snapshot->tree;
            return 0;
        }
    }
    return error_set(err, -ENOENT, "%s has no snapshot '%.80s'", disk->file->info.name,
                     disk->config.snapshot);
}

/*
 * Replays, and begins a journal of its own: what an earlier one left can never be taken for it.
 * Snapshots whose removal was interrupted go, too.
 */
static int recover(struct disk *disk, struct error *err) {
    struct disk_change change;
    struct disk_snapshot *list = NULL;
    int result = disk_find_space(disk, err);
    if (result != 0)
        return result;
    bool changed = disk->map.dirty > 0;
    result = disk_begin_change(disk, &change, &list);
    if (result == 0) {
        changed |= disk_removal_complete(&change, list);
        change.superblock.journal_epoch = disk->superblock.sequence + 1;
        disk->journal_sequence = 1;
        result = disk_checkpoint(disk, &change);
    }
    if (result != 0) {
        free(list);
        return error_set_errno(err, result, "cannot write to disk %s", disk->file->info.name);
    }
    disk_adopt(disk, list);
    return changed ? disk_find_space(disk, err) : 0;
}

/* The superblock and the table of snapshots that belongs to it. */
static int load_head(struct disk *disk, struct error *err) {
    int result = disk_read_superblock(disk->file, &disk->superblock, err);
    return result == 0 ? disk_load_snapshots(disk->file, &disk->superblock, &disk->snapshots, err)
                       : result;
}

/*
 * While another program writes, its table of snapshots may give way to something else as we read
 * it: not as long as the superblock is the same.
 */
static int load_head_beside_writer(struct disk *disk, struct error *err) {
    enum { TRIES = 100 };
    int result = -EAGAIN;
    for (unsigned i = 0; i < TRIES; i++) {
        struct disk_superblock now;
        result = load_head(disk, err);
        int again = disk_read_superblock(disk->file, &now, err);
        if (again == 0 && now.sequence == disk->superblock.sequence)
            break;
        free(disk->snapshots);
        disk->snapshots = NULL;
        result =
            error_set(err, -EAGAIN, "%s is changing too fast to be read", disk->file->info.name);
    }
    return result;
}

static int load_all(struct disk *disk, struct error *err) {
    int result =
        disk->config.snapshot != NULL ? load_head_beside_writer(disk, err) : load_head(disk, err);
    if (result == 0 && disk->config.snapshot != NULL)
        result = choose_snapshot(disk, err);
    if (result != 0)
        return result;
    const struct disk_tree *live = &disk->superblock.live;
    disk_set_shared(disk);
    disk->block.info.size = live->size;
    result = disk_map_create(&disk->map, live->root, live->levels, DISK_TABLES, err);
    if (result == 0 && disk->config.snapshot == NULL)
        result = disk_replay(disk, err);
    if (result == 0 && !disk->config.readonly)
        result = recover(disk, err);
    if (result == 0 && !disk->config.inline_commits)
        result = pool_create(THREAD_IO, LOADERS, disk_load_work, disk, &disk->loaders, err);
    return result == 0 ? disk_start_committer(disk, err) : result;
}

int disk_open(struct block *file, struct block *backing, const struct disk_options *config,
              struct block **block, struct error *err) {
    struct disk *disk = calloc(1, sizeof *disk);
    if (disk == NULL)
        return error_set(err, -ENOMEM, "no memory for disk %s", file->info.name);
    lock_init(&disk->lock, LOCK_BACKEND, "disk");
    pthread_cond_init(&disk->idle, NULL);
    disk->file = disk->upkeep = file;
    disk->backing = backing;
    disk->config = *config;
    disk->config.readonly = config->readonly || config->snapshot != NULL;
    disk->flushes_end = &disk->flushes;
    disk->block.class = &disk_class;
    disk->block.info = (struct block_info){
        .logical_block = BLOCK_SECTOR,
        .physical_block = DISK_BLOCK,
        .readonly = disk->config.readonly,
        .discard = !disk->config.readonly,
        .name = file->info.name,
    };
    int result = load_all(disk, err);
    if (result != 0) {
        disk_free(disk);
        return result;
    }
    *block = &disk->block;
    return 0;
}

/* ---- Making one ---- */

/* A journal that is 1/1024 of the disk: 256 KiB to 16 MiB. */
static uint32_t default_journal(uint64_t size) {
    uint64_t blocks = size / DISK_BLOCK / 1024;
    return blocks < 64 ? 64 : blocks > 4096 ? 4096 : (uint32_t)blocks;
}

static int copy_text(char *to, size_t size, const char *from, const char *what, struct error *err) {
    size_t length = from != NULL ? strlen(from) : 0;
    if (length >= size)
        return error_set(err, -ENAMETOOLONG, "the backing's %s is longer than %zu bytes", what,
                         size - 1);
    memset(to, 0, size);
    if (from != NULL)
        memcpy(to, from, length);
    return 0;
}

static int describe(const struct disk_create *create, struct disk_superblock *s,
                    struct error *err) {
    if (create->size == 0 || create->size > DISK_SIZE_MAX || create->size % BLOCK_SECTOR != 0)
        return error_set(err, -EINVAL,
                         "a lodge disk has a multiple of 512 bytes, and 64 TiB at most");
    *s = (struct disk_superblock){
        .sequence = 1,
        .live = {.size = create->size,
                 .levels = disk_levels(create->size),
                 .backing_limit = create->backing_path != NULL ? create->backing_size : 0},
        .generation = 1,
        .next_snapshot = 1,
        .journal = DISK_SUPERBLOCKS,
        .journal_blocks =
            create->journal_blocks != 0 ? create->journal_blocks : default_journal(create->size),
        .journal_sequence = 1,
    };
    memcpy(s->uuid, create->uuid, sizeof s->uuid);
    if (s->live.backing_limit > create->size)
        s->live.backing_limit = create->size;
    int result =
        copy_text(s->backing_path, sizeof s->backing_path, create->backing_path, "path", err);
    if (result == 0)
        result = copy_text(s->backing_format, sizeof s->backing_format, create->backing_format,
                           "format", err);
    return result == 0 ? copy_text(s->backing_snapshot, sizeof s->backing_snapshot,
                                   create->backing_snapshot, "snapshot", err)
                       : result;
}

/* The journal is written once, so that commits find its blocks even when the host is full. */
int disk_format(struct block *file, const struct disk_create *create, struct error *err) {
    static const uint8_t zero[DISK_BLOCK];
    struct disk_superblock superblock = {0};
    uint8_t block[DISK_BLOCK];
    int result = describe(create, &superblock, err);
    if (result != 0)
        return result;
    for (uint32_t i = 0; i < superblock.journal_blocks && result == 0; i++)
        result = block_write(file, (superblock.journal + i) * DISK_BLOCK, zero, sizeof zero);
    disk_encode_superblock(&superblock, block);
    for (unsigned i = 0; i < DISK_SUPERBLOCKS && result == 0; i++)
        result = block_write(file, i * (uint64_t)DISK_BLOCK, block, sizeof block);
    return result == 0 ? 0 : error_set_errno(err, result, "cannot write to %s", file->info.name);
}

/* ---- Telling ---- */

void disk_get_counts(struct block *block, struct disk_counts *counts) {
    struct disk *disk = disk_of(block);
    lock_take(&disk->lock);
    *counts = disk->counts;
    lock_release(&disk->lock);
}

void disk_get_usage(struct block *block, struct disk_usage *usage) {
    struct disk *disk = disk_of(block);
    lock_take(&disk->lock);
    *usage = (struct disk_usage){.superblock = disk->superblock,
                                 .used_blocks = disk->space.blocks - disk->space.free,
                                 .file_blocks = disk->space.blocks};
    lock_release(&disk->lock);
}
