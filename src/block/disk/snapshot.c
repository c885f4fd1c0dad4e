/*
 * Snapshots. Taking one writes no tables: the disk and its snapshot share
 * their tree, and blocks born before it are no longer written in place.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "block/disk/private.h"
#include "block/sync.h"

static struct disk_snapshot *find(const struct disk *disk, const char *name) {
    for (unsigned i = 0; i < disk->superblock.snapshot_count; i++)
        if (!disk->snapshots[i].hidden && strcmp(disk->snapshots[i].name, name) == 0)
            return &disk->snapshots[i];
    return NULL;
}

int disk_need_snapshot(const struct disk *disk, const char *name, struct disk_snapshot **snapshot,
                       struct error *err) {
    *snapshot = find(disk, name);
    if (disk->config.readonly)
        return error_set(err, -EROFS, "disk %s is read-only", disk->block.info.name);
    return *snapshot != NULL
               ? 0
               : error_set(err, -ENOENT, "%s has no snapshot '%.80s'", disk->block.info.name, name);
}

static int check_name(const struct disk *disk, const char *name, struct error *err) {
    size_t length = strlen(name);
    if (disk->config.readonly)
        return error_set(err, -EROFS, "disk %s is read-only", disk->block.info.name);
    if (length == 0 || length > DISK_NAME_MAX)
        return error_set(err, -EINVAL, "a snapshot's name has 1 to %d bytes", DISK_NAME_MAX);
    for (const char *c = name; *c != 0; c++)
        if ((unsigned char)*c < ' ' || *c == 127 || *c == ',')
            return error_set(err, -EINVAL,
                             "a snapshot's name has no commas and control characters");
    if (find(disk, name) != NULL)
        return error_set(err, -EEXIST, "%s has a snapshot '%.80s' already", disk->block.info.name,
                         name);
    if (disk->superblock.snapshot_count == DISK_SNAPSHOTS_MAX ||
        disk->superblock.generation == DISK_GENERATION_MAX)
        return error_set(err, -E2BIG, "%s can have no more snapshots (%d)", disk->block.info.name,
                         DISK_SNAPSHOTS_MAX);
    return 0;
}

int disk_begin_change(struct disk *disk, struct disk_change *change, struct disk_snapshot **list) {
    *list = calloc(DISK_SNAPSHOTS_MAX, sizeof **list);
    if (*list == NULL)
        return -ENOMEM;
    memcpy(*list, disk->snapshots, disk->superblock.snapshot_count * sizeof **list);
    *change = (struct disk_change){.superblock = disk->superblock, .snapshots = *list};
    return 0;
}

/* All that is in memory, to the file: the root is the disk as it is now. */
static int settle(struct disk *disk) {
    int result = disk_commit_in_turn(disk);
    return result == 0 && disk->map.dirty > 0 ? disk_checkpoint(disk, NULL) : result;
}

/* disk_snapshots may look on. */
void disk_adopt(struct disk *disk, struct disk_snapshot *list) {
    lock_take(&disk->lock);
    free(disk->snapshots);
    disk->snapshots = list;
    disk_set_shared(disk);
    lock_release(&disk->lock);
}

/* ---- Taking one ---- */

static int create(struct disk *disk, const char *name) {
    struct disk_change change;
    struct disk_snapshot *list = NULL;
    int result = settle(disk);
    if (result == 0)
        result = disk_begin_change(disk, &change, &list);
    if (result != 0)
        return result;
    struct disk_superblock *s = &change.superblock;
    struct disk_snapshot *made = &list[s->snapshot_count++];
    *made = (struct disk_snapshot){.tree = s->live,
                                   .id = s->next_snapshot++,
                                   .generation = s->generation++,
                                   .created = (uint64_t)time(NULL)};
    memcpy(made->name, name, strlen(name));
    made->tree.root = disk->map.root;
    made->tree.levels = disk->map.levels;
    s->live.parent = made->id;
    result = disk_checkpoint(disk, &change);
    if (result == 0)
        disk_adopt(disk, list);
    else
        free(list);
    return result;
}

int disk_snapshot_create(struct block *block, const char *name, struct error *err) {
    struct disk *disk = disk_of(block);
    disk_freeze(disk);
    disk_take_turn(disk);
    int result = check_name(disk, name, err);
    bool valid = result == 0;
    if (valid)
        result = create(disk, name);
    disk_end_turn(disk);
    disk_thaw(disk);
    if (valid && result != 0)
        error_set_errno(err, result, "cannot take a snapshot of %s", block->info.name);
    return result;
}

/* ---- Going back to one ---- */

/* The map begins anew at what the superblock says, and so does the space. */
static int reload(struct disk *disk, struct error *err) {
    disk_map_destroy(&disk->map);
    int result = disk_map_create(&disk->map, disk->superblock.live.root,
                                 disk->superblock.live.levels, DISK_TABLES, err);
    if (result == 0)
        result = disk_find_space(disk, err);
    if (result != 0)
        disk->broken = result;
    return result;
}

static int apply(struct disk *disk, const struct disk_snapshot *snapshot, struct error *err) {
    struct disk_change change;
    struct disk_snapshot *list = NULL;
    int result = settle(disk);
    if (result == 0)
        result = disk_begin_change(disk, &change, &list);
    if (result != 0)
        return error_set_errno(err, result, "cannot go back");
    change.keep_root = true;
    change.superblock.live = snapshot->tree;
    change.superblock.live.parent = snapshot->id;
    uint64_t size = snapshot->tree.size;
    result = disk_checkpoint(disk, &change);
    if (result != 0) {
        free(list);
        return error_set_errno(err, result, "cannot go back");
    }
    disk_adopt(disk, list);
    disk->block.info.size = size;
    return reload(disk, err);
}

int disk_snapshot_apply(struct block *block, const char *name, struct error *err) {
    struct disk *disk = disk_of(block);
    struct disk_snapshot *snapshot;
    disk_take_trees(disk);
    disk_freeze(disk);
    disk_take_turn(disk);
    int result = disk_need_snapshot(disk, name, &snapshot, err);
    if (result == 0)
        result = apply(disk, snapshot, err);
    disk_end_turn(disk);
    disk_thaw(disk);
    disk_end_trees(disk);
    return result;
}

unsigned disk_snapshots(struct block *block, struct disk_snapshot *all) {
    struct disk *disk = disk_of(block);
    unsigned count = 0;
    lock_take(&disk->lock);
    for (unsigned i = 0; i < disk->superblock.snapshot_count; i++)
        if (!disk->snapshots[i].hidden)
            all[count++] = disk->snapshots[i];
    lock_release(&disk->lock);
    return count;
}

int disk_trim_file(struct block *block, uint64_t *bytes, struct error *err) {
    struct disk *disk = disk_of(block);
    uint64_t from = 0, run;
    int result = 0;
    *bytes = 0;
    disk_freeze(disk);
    while (result == 0 && (run = disk_space_next_free(&disk->space, &from)) > 0) {
        result = block_discard(disk->file, from * DISK_BLOCK, run * DISK_BLOCK);
        *bytes += run * DISK_BLOCK;
        from += run;
    }
    disk_thaw(disk);
    return result == 0
               ? 0
               : error_set_errno(err, result, "cannot give space of %s back", block->info.name);
}
