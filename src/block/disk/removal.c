/*
 * Removing a snapshot, beside the disk's requests. First it is hidden: from
 * then on it cannot be opened, and it is gone for the user. Its tree is then
 * gone through in steps, beside that of its heir, the one tree that goes on
 * from it: what the heir does not have, and what no older snapshot has
 * either, nobody will have. When all that is known the snapshot leaves the
 * table, and its blocks are given back, in steps as well.
 *
 * A crash in between leaves a hidden snapshot with at most one heir, or
 * blocks that nobody has: opening the disk for writing drops the one and does
 * not see the other.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/log.h"
#include "block/disk/private.h"
#include "block/raw.h"
#include "block/sync.h"

enum {
    STEP_WAIT_NS = 2000000, /* that a step waits at most until no request is under way */
    RETURN_MAX = 4096,      /* blocks that are given back in one step */
    RETURN_PUNCH_MIN = 16,
    WALKED = 900, /* of 1000, when the tree has been gone through */
    BLOCK_LEVEL = -1,
};

/* Going through a snapshot's tree. */
struct walk {
    struct disk *disk;
    struct disk_snapshot gone;
    const struct disk_progress *progress;
    struct { /* the tables of the heir that were read last, by level; entry 0: none */
        uint64_t entry;
        uint64_t entries[DISK_ENTRIES];
    } path[DISK_LEVELS_MAX];
};

/* ---- Who goes on from a snapshot ---- */

static unsigned heirs(const struct disk_superblock *superblock, const struct disk_snapshot *list,
                      uint32_t id) {
    unsigned count = superblock->live.parent == id;
    for (unsigned i = 0; i < superblock->snapshot_count; i++)
        count += list[i].tree.parent == id;
    return count;
}

/* A hidden snapshot with several heirs stays: without it they would take what they share for their
 * own. */
static const struct disk_snapshot *droppable(const struct disk_superblock *superblock,
                                             const struct disk_snapshot *list) {
    for (unsigned i = 0; i < superblock->snapshot_count; i++)
        if (list[i].hidden && heirs(superblock, list, list[i].id) <= 1)
            return &list[i];
    return NULL;
}

/* Takes one out of the list: its heir goes on from what it went on from itself. */
static void drop(struct disk_change *change, struct disk_snapshot *list, uint32_t id) {
    struct disk_superblock *s = &change->superblock;
    unsigned at = 0;
    while (list[at].id != id)
        at++;
    uint32_t parent = list[at].tree.parent;
    s->snapshot_count--;
    memmove(&list[at], &list[at + 1], (s->snapshot_count - at) * sizeof list[0]);
    for (unsigned i = 0; i < s->snapshot_count; i++)
        if (list[i].tree.parent == id)
            list[i].tree.parent = parent;
    if (s->live.parent == id)
        s->live.parent = parent;
}

bool disk_removal_complete(struct disk_change *change, struct disk_snapshot *list) {
    const struct disk_snapshot *gone;
    bool dropped = false;
    while ((gone = droppable(&change->superblock, list)) != NULL) {
        drop(change, list, gone->id);
        dropped = true;
    }
    return dropped;
}

/* ---- Blocks that nobody will have ---- */

static void note(struct disk_removal *removal, uint64_t entry) {
    if (disk_allocated(entry) && disk_birth(entry) > removal->above &&
        disk_birth(entry) <= removal->upto)
        disk_space_mark(&removal->blocks, disk_physical(entry));
}

void disk_removal_lost(struct disk *disk, uint64_t entry) {
    if (disk->removal.snapshot != 0 && disk->superblock.live.parent == disk->removal.snapshot)
        note(&disk->removal, entry);
}

static void note_locked(struct disk *disk, uint64_t entry) {
    lock_take(&disk->lock);
    note(&disk->removal, entry);
    lock_release(&disk->lock);
}

/* Between steps requests come first. -ECANCELED: it shall stop. */
static int step(struct disk *disk, const struct disk_progress *progress, uint64_t done) {
    struct timespec until;
    int late = 0;
    if (progress != NULL && !progress->tell(progress->context, (unsigned)done))
        return -ECANCELED;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += STEP_WAIT_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    lock_take(&disk->lock);
    while (disk->active > 0 && late == 0)
        late = pthread_cond_clockwait(&disk->idle, &disk->lock.mutex, CLOCK_MONOTONIC, &until);
    lock_release(&disk->lock);
    return 0;
}

/* ---- What the heir has at a place: a table's, or a block's of the disk (BLOCK_LEVEL) ---- */

/* A snapshot's entry: its tables do not change. */
static int entry_of_tree(struct walk *walk, const struct disk_tree *tree, int level, uint64_t index,
                         uint64_t *entry) {
    *entry = level < (int)tree->levels ? tree->root : 0;
    for (int at = (int)tree->levels - 1; at > level && disk_allocated(*entry); at--) {
        uint64_t below = disk_span((uint32_t)(at - level - 1));
        struct disk_missing table = {(uint32_t)at, index / below / DISK_ENTRIES, *entry};
        if (walk->path[at].entry != *entry) {
            walk->path[at].entry = 0;
            int result = disk_read_table(walk->disk->upkeep, DISK_PHYSICAL_MAX, &table,
                                         walk->path[at].entries);
            if (result != 0)
                return result;
            walk->path[at].entry = *entry;
        }
        *entry = walk->path[at].entries[index / below % DISK_ENTRIES];
    }
    return 0;
}

/* The disk's own; a table that has changed in memory is none that the snapshot has. Lock held. */
static int entry_of_disk(struct disk *disk, int level, uint64_t index, uint64_t *entry,
                         struct disk_missing *missing) {
    uint64_t run;
    return level == BLOCK_LEVEL
               ? disk_map_look(&disk->map, index, entry, &run, missing)
               : disk_map_table(&disk->map, (uint32_t)level, index, entry, missing);
}

/* 0: there is no heir, or it has nothing there. Who it is may change meanwhile: a snapshot that is
 * taken of the disk takes the disk's place. */
static int entry_of_heir(struct walk *walk, int level, uint64_t index, uint64_t *entry) {
    struct disk *disk = walk->disk;
    for (;;) {
        struct disk_missing missing;
        struct disk_tree tree = {0};
        lock_take(&disk->lock);
        bool live = disk->superblock.live.parent == walk->gone.id;
        int result = live ? entry_of_disk(disk, level, index, entry, &missing) : 0;
        for (unsigned i = 0; i < disk->superblock.snapshot_count; i++)
            if (disk->snapshots[i].tree.parent == walk->gone.id)
                tree = disk->snapshots[i].tree;
        lock_release(&disk->lock);
        if (!live)
            return entry_of_tree(walk, &tree, level, index, entry);
        if (result != -EAGAIN)
            return result;
        result = disk_load_missing(disk, &missing);
        if (result != 0)
            return result;
    }
}

/* ---- Going through the tree ---- */

static uint64_t walked(const struct walk *walk, const struct disk_missing *table) {
    uint64_t blocks = (walk->gone.tree.size + DISK_BLOCK - 1) / DISK_BLOCK;
    uint64_t at = table->index * DISK_ENTRIES * disk_span(table->level);
    return at < blocks ? at * WALKED / blocks : WALKED;
}

/* What the heir shares, and what an older snapshot has, is passed by, with all below. */
static int walk_table(struct walk *walk, const struct disk_missing *table) {
    uint64_t entries[DISK_ENTRIES], theirs = 0;
    const struct disk_removal *removal = &walk->disk->removal;
    if (disk_birth(table->entry) <= removal->above)
        return 0;
    int result = entry_of_heir(walk, (int)table->level, table->index, &theirs);
    if (result != 0 || theirs == table->entry)
        return result;
    note_locked(walk->disk, table->entry);
    result = disk_read_table(walk->disk->upkeep, DISK_PHYSICAL_MAX, table, entries);
    if (result == 0)
        result = step(walk->disk, walk->progress, walked(walk, table));
    for (unsigned i = 0; i < DISK_ENTRIES && result == 0; i++) {
        struct disk_missing child = {table->level - 1, table->index * DISK_ENTRIES + i, entries[i]};
        if (!disk_allocated(entries[i]) || disk_birth(entries[i]) <= removal->above)
            continue;
        if (table->level > 0) {
            result = walk_table(walk, &child); /* at most DISK_LEVELS_MAX deep */
            continue;
        }
        result = entry_of_heir(walk, BLOCK_LEVEL, child.index, &theirs);
        if (result == 0 && theirs != child.entry)
            note_locked(walk->disk, child.entry);
    }
    return result;
}

static int walk_tree(struct disk *disk, const struct disk_snapshot *gone,
                     const struct disk_progress *progress) {
    const struct disk_tree *tree = &gone->tree;
    if (!disk_allocated(tree->root))
        return 0;
    struct walk *walk = calloc(1, sizeof *walk);
    if (walk == NULL)
        return -ENOMEM;
    walk->disk = disk;
    walk->gone = *gone;
    walk->progress = progress;
    int result = walk_table(walk, &(struct disk_missing){tree->levels - 1, 0, tree->root});
    free(walk);
    return result;
}

/* ---- The steps ---- */

/* Changes the table of snapshots while no request runs; most of what goes with it is written
 * before. */
static int change_table(struct disk *disk, uint32_t id, bool hide) {
    struct disk_change change;
    struct disk_snapshot *list;
    int result = disk_commit_in_turn(disk);
    if (result == 0)
        result = disk_begin_change(disk, &change, &list);
    if (result != 0)
        return result;
    for (unsigned i = 0; i < change.superblock.snapshot_count; i++)
        list[i].hidden |= hide && list[i].id == id;
    if (!hide)
        drop(&change, list, id);
    result = disk_checkpoint(disk, &change);
    if (result == 0)
        disk_adopt(disk, list);
    else
        free(list);
    return result;
}

static int write_beforehand(struct disk *disk) {
    disk_take_turn(disk);
    int result = disk_commit_in_turn(disk);
    if (result == 0)
        result = disk_checkpoint(disk, NULL);
    disk_end_turn(disk);
    return result;
}

/* From now on the disk frees what it leaves by itself again. */
static int leave_table(struct disk *disk, uint32_t id) {
    int result = write_beforehand(disk);
    if (result != 0)
        return result;
    disk_freeze(disk);
    disk_take_turn(disk);
    result = change_table(disk, id, false);
    lock_take(&disk->lock);
    disk->removal.snapshot = 0;
    lock_release(&disk->lock);
    disk_end_turn(disk);
    disk_thaw(disk);
    return result;
}

/* Larger stretches become holes in the file before they are used again. */
static int give_back(struct disk *disk, const struct disk_progress *progress) {
    struct disk_space *blocks = &disk->removal.blocks;
    uint64_t from = 0, run;
    int result = 0;
    while (result == 0 && (run = disk_space_next_used(blocks, &from)) > 0) {
        run = run < RETURN_MAX ? run : RETURN_MAX;
        if (run >= RETURN_PUNCH_MIN && disk->file->info.discard)
            block_discard(disk->upkeep, from * DISK_BLOCK, run * DISK_BLOCK);
        lock_take(&disk->lock);
        disk_space_release(&disk->space, from, run);
        lock_release(&disk->lock);
        from += run;
        result = step(disk, progress, WALKED + from * (1000 - WALKED) / (blocks->blocks + 1));
    }
    return result;
}

/* The next one to remove: *gone, and what there is to know of its blocks. 0: there is none. */
static int begin(struct disk *disk, struct disk_snapshot *gone) {
    struct disk_removal *removal = &disk->removal;
    int result = 0;
    lock_take(&disk->lock);
    const struct disk_snapshot *found = droppable(&disk->superblock, disk->snapshots);
    if (found != NULL)
        result = disk_space_create(&removal->blocks, disk->space.blocks, 0, NULL);
    if (found != NULL && result == 0) {
        *gone = *found;
        removal->above = 0;
        removal->upto = gone->generation;
        for (unsigned i = 0; i < disk->superblock.snapshot_count; i++)
            if (disk->snapshots[i].id == gone->tree.parent)
                removal->above = disk->snapshots[i].generation;
        removal->snapshot = gone->id;
        result = 1;
    }
    lock_release(&disk->lock);
    return result;
}

static void end(struct disk *disk) {
    lock_take(&disk->lock);
    disk->removal.snapshot = 0;
    disk_space_destroy(&disk->removal.blocks);
    lock_release(&disk->lock);
}

static int complete(struct disk *disk, const struct disk_progress *progress) {
    struct disk_snapshot gone = {0};
    int result;
    while ((result = begin(disk, &gone)) == 1) {
        result = walk_tree(disk, &gone, progress);
        if (result == 0)
            result = leave_table(disk, gone.id);
        if (result == 0)
            result = give_back(disk, progress);
        end(disk);
        if (result != 0)
            break;
    }
    return result;
}

static int hide(struct disk *disk, const char *name, struct error *err) {
    struct disk_snapshot *snapshot;
    disk_freeze(disk);
    disk_take_turn(disk);
    int result = disk_need_snapshot(disk, name, &snapshot, err);
    if (result == 0) {
        result = change_table(disk, snapshot->id, true);
        if (result != 0)
            error_set_errno(err, result, "cannot remove the snapshot");
    }
    disk_end_turn(disk);
    disk_thaw(disk);
    return result;
}

int disk_snapshot_remove(struct block *block, const char *name,
                         const struct disk_progress *progress, struct error *err) {
    struct disk *disk = disk_of(block);
    if (block_exclude_readers(disk->file, true) != 0)
        return error_set(err, -EBUSY,
                         "a snapshot of %s is being read, by a VM or another program; try again "
                         "when it is through",
                         block->info.name);
    int result = hide(disk, name, err);
    block_exclude_readers(disk->file, false);
    if (result != 0)
        return result;
    disk_take_trees(disk);
    result = complete(disk, progress);
    disk_end_trees(disk);
    if (result == -ECANCELED)
        return error_set(err, result,
                         "stopped: the snapshot is gone, and the space that it had on the host is "
                         "free when %s is opened next",
                         block->info.name);
    if (result != 0)
        log_warning("disk %s: %s; the removed snapshot's space is free when it is opened next",
                    block->info.name, strerror(-result));
    return 0;
}
