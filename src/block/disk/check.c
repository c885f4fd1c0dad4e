/* Checking: everything that is stored is read, and every reference is followed once. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/disk/private.h"
#include "block/sync.h"

enum { KIND_DATA = DISK_LEVELS_MAX, KIND_SYSTEM, REPORTS_MAX = 100, PROGRESS_EVERY = 64 };

/* Who a block of the file belongs to: a place in the trees, which several trees may share. */
struct owner {
    uint64_t index; /* of the table, or the block of the disk */
    uint32_t birth;
    uint8_t kind;    /* a table's level, KIND_DATA or KIND_SYSTEM */
    bool used, live; /* live: the disk itself has it */
    uint16_t tree;   /* the tree that had it first, 1 and up */
};

struct checker {
    struct disk_check *check;
    struct block *file;
    struct disk_superblock superblock;
    struct disk_snapshot *snapshots;
    struct owner *owners;
    uint64_t file_blocks, disk_blocks, looked;
    uint32_t shared; /* what the disk may write in place was born after this generation */
    uint16_t tree;
    bool live;
    const char *tree_name;
};

__attribute__((format(printf, 2, 3))) static void found(struct checker *c, const char *format,
                                                        ...) {
    char text[256];
    va_list arguments;
    if (c->check->errors++ >= REPORTS_MAX || c->check->report == NULL)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    c->check->report(c->check->context, text);
}

static void tell(struct checker *c) {
    if (c->looked++ % PROGRESS_EVERY == 0 && c->check->progress != NULL && c->file_blocks > 0)
        c->check->progress(c->check->context,
                           (unsigned)(c->looked * 1000 / (c->file_blocks + 1)) % 1001);
}

/*
 * A reference. True: it is the first, go on below it. Several trees may have the same block at
 * the same place, and the disk only one that it will not write in place.
 */
static bool refer(struct checker *c, uint64_t entry, uint8_t kind, uint64_t index) {
    uint64_t physical = disk_physical(entry);
    uint32_t birth = disk_birth(entry);
    if (physical >= c->file_blocks) {
        found(c, "%s: a reference to block %llu behind the file's end", c->tree_name,
              (unsigned long long)physical);
        return false;
    }
    struct owner *owner = &c->owners[physical];
    if (!owner->used) {
        *owner = (struct owner){.index = index,
                                .birth = birth,
                                .kind = kind,
                                .used = true,
                                .live = c->live,
                                .tree = c->tree};
        if (birth == 0 || birth > c->superblock.generation)
            found(c, "%s: block %llu was born in generation %u, later than now", c->tree_name,
                  (unsigned long long)physical, birth);
        return true;
    }
    if (owner->kind != kind || owner->index != index || owner->birth != birth ||
        owner->tree == c->tree)
        found(c, "%s: block %llu is in use twice", c->tree_name, (unsigned long long)physical);
    else if (owner->live && birth > c->shared)
        found(c, "%s: block %llu is the disk's alone, and a snapshot's", c->tree_name,
              (unsigned long long)physical);
    return false;
}

static void check_table(struct checker *c, const struct disk_missing *table) {
    uint64_t entries[DISK_ENTRIES];
    if (!refer(c, table->entry, (uint8_t)table->level, table->index))
        return;
    tell(c);
    c->check->tables++;
    int result = disk_read_table(c->file, c->file_blocks, table, entries);
    if (result != 0) {
        found(c, "%s: the table at block %llu (level %u, index %llu) is damaged", c->tree_name,
              (unsigned long long)disk_physical(table->entry), table->level,
              (unsigned long long)table->index);
        return;
    }
    for (unsigned i = 0; i < DISK_ENTRIES; i++) {
        uint64_t index = table->index * DISK_ENTRIES + i;
        if (!disk_allocated(entries[i]))
            continue;
        if (disk_birth(entries[i]) > disk_birth(table->entry))
            found(c, "%s: what is in the table at block %llu is younger than it", c->tree_name,
                  (unsigned long long)disk_physical(table->entry));
        if (table->level > 0)
            check_table(c, &(struct disk_missing){table->level - 1, index, entries[i]});
        else
            c->check->blocks += refer(c, entries[i], KIND_DATA, index);
    }
}

static void check_tree(struct checker *c, const struct disk_tree *tree, const char *name) {
    c->tree++;
    c->tree_name = name;
    if (disk_allocated(tree->root))
        check_table(c, &(struct disk_missing){tree->levels - 1, 0, tree->root});
}

static void mark_system(struct checker *c, uint64_t first, uint64_t count, const char *what) {
    c->tree_name = what;
    c->tree++;
    for (uint64_t i = 0; i < count; i++)
        refer(c, disk_entry(first + i, 1), KIND_SYSTEM, first + i);
}

/* Every snapshot's origin is there, is older, and no two are the same. */
static void check_snapshots(struct checker *c) {
    const struct disk_superblock *s = &c->superblock;
    uint32_t parent_generation = 0;
    for (unsigned i = 0; i < s->snapshot_count; i++) {
        const struct disk_snapshot *a = &c->snapshots[i];
        bool origin = a->tree.parent == 0;
        for (unsigned j = 0; j < s->snapshot_count; j++) {
            const struct disk_snapshot *b = &c->snapshots[j];
            origin |= b->id == a->tree.parent && b->generation < a->generation;
            if (i < j && (a->id == b->id || a->generation == b->generation))
                found(c, "snapshots %u and %u are the same", i, j);
        }
        if (!origin)
            found(c, "snapshot '%s' goes on from one that is not there", a->name);
        if (a->id >= s->next_snapshot || a->generation >= s->generation)
            found(c, "snapshot '%s' was taken later than now", a->name);
        if (a->id == s->live.parent)
            parent_generation = a->generation;
    }
    if (s->live.parent != 0 && parent_generation == 0)
        found(c, "the disk goes on from a snapshot that is not there");
    c->shared = parent_generation;
}

static void check_all(struct checker *c) {
    const struct disk_superblock *s = &c->superblock;
    mark_system(c, 0, DISK_SUPERBLOCKS, "superblocks");
    mark_system(c, s->journal, s->journal_blocks, "journal");
    mark_system(c, s->snapshots, disk_snapshot_blocks(s->snapshot_count), "snapshot table");
    check_snapshots(c);
    c->live = true;
    check_tree(c, &s->live, "disk");
    c->live = false;
    for (unsigned i = 0; i < s->snapshot_count; i++)
        check_tree(c, &c->snapshots[i].tree, c->snapshots[i].name);
    for (uint64_t i = 0; i < c->file_blocks; i++)
        c->check->unused_bytes += c->owners[i].used ? 0 : DISK_BLOCK;
}

/* The journal is replayed in memory: its changes must fit the trees. */
static void check_journal(struct checker *c) {
    struct disk_options config = {.readonly = true};
    struct block *block;
    struct error err;
    if (disk_open(c->file, NULL, &config, &block, &err) != 0) {
        found(c, "%s", err.text);
        return;
    }
    disk_forget_file(block);
    block_close(block);
}

int disk_check(struct block *file, struct disk_check *check, struct error *err) {
    struct checker c = {.check = check, .file = file, .file_blocks = disk_file_blocks(file)};
    check->tables = check->blocks = check->errors = check->unused_bytes = 0;
    int result = disk_read_superblock(file, &c.superblock, err);
    if (result != 0)
        return result;
    result = disk_load_snapshots(file, &c.superblock, &c.snapshots, err);
    if (result != 0)
        return result;
    c.owners = calloc(c.file_blocks + 1, sizeof *c.owners);
    if (c.owners == NULL) {
        free(c.snapshots);
        return error_set(err, -ENOMEM, "no memory to check %s", file->info.name);
    }
    check_all(&c);
    check_journal(&c);
    free(c.owners);
    free(c.snapshots);
    return 0;
}
