/*
 * Disks in lodge's own format (docs/disk-format.md): thin, with snapshots,
 * on any node below (`file`) and over any node behind (`backing`).
 *
 * Guest writes go to blocks taken one after the other; which block is whose
 * is kept in memory and made durable by commits: when a flush asks for it,
 * when many changes have gathered, and every few seconds. A commit is one
 * write to the journal for all changes since the one before. When the journal
 * is full the changed tables are written: a checkpoint.
 */
#ifndef LODGE_BLOCK_DISK_DISK_H
#define LODGE_BLOCK_DISK_DISK_H

#include "block/block.h"
#include "block/disk/format.h"

struct disk_options {
    bool readonly; /* nothing is written, not even recovery: that is kept in memory */
    /* Open this one instead of the disk itself; readonly, but the disk may be in use: what a
     * snapshot has nobody changes. The file is open for a reader then (block/raw.h). */
    const char *snapshot;
    bool inline_commits; /* all work is done by the thread that submits: for tests and tools */
    uint64_t file_limit; /* bytes that the file below may grow to; 0: no limit */
};

/*
 * Opens. `file` and `backing` (NULL: none, or none is there) are the disk's on success and are
 * closed with it; on failure they stay the caller's. -EINVAL: no such disk, damaged; -ENOTSUP: a
 * later version; -ENOENT: no such snapshot; or an error of the file's.
 */
int disk_open(struct block *file, struct block *backing, const struct disk_options *config,
              struct block **block, struct error *err);

/* The newer of the valid superblocks. As disk_open. */
int disk_read_superblock(struct block *file, struct disk_superblock *superblock, struct error *err);

struct disk_create {
    uint64_t size;           /* bytes, a multiple of 512 */
    uint32_t journal_blocks; /* 0: by size */
    uint8_t uuid[16];
    const char *backing_path, *backing_format, *backing_snapshot; /* NULL: none */
    uint64_t backing_size;
};

/* Makes `file` an empty disk. Not durable before block_flush. */
int disk_format(struct block *file, const struct disk_create *create, struct error *err);

/* Counted since the disk was opened. */
struct disk_counts {
    uint64_t writes;      /* guest's write requests */
    uint64_t allocations; /* of them that needed metadata */
    uint64_t commits;     /* physical transactions: journal writes and checkpoints */
    uint64_t checkpoints; /* of them */
    uint64_t records;     /* mapping changes committed */
    uint64_t metadata_bytes;
};

struct disk_usage {
    struct disk_superblock superblock;
    uint64_t used_blocks, file_blocks; /* 0 when opened readonly */
};

/* The block must be one that disk_open made. */
void disk_get_counts(struct block *block, struct disk_counts *counts);
void disk_get_usage(struct block *block, struct disk_usage *usage);
bool disk_is(const struct block *block);
/* How many bytes from here on nobody has written: the backing shows, or zeroes. Waits. Any thread.
 */
uint64_t disk_unwritten_run(struct block *block, uint64_t offset);

/* What the disk's tables, journal and data are in: the disk's. */
struct block *disk_file(struct block *block);
/*
 * What nobody waits for (commits that no flush asks for, removal of snapshots) goes to the file by
 * `upkeep` from now on, another way to it, which stays the caller's and is there until the disk is
 * closed. Before requests come.
 */
void disk_set_upkeep(struct block *block, struct block *upkeep);

/* ---- Snapshots: any thread, one's own `done` excluded ---- */

/* How far a long operation is, in 1/1000: called now and then, on its thread. False: stop. */
struct disk_progress {
    bool (*tell)(void *context, unsigned done);
    void *context;
};

/* Visible ones are filled into `all` (room for DISK_SNAPSHOTS_MAX); returns how many. */
unsigned disk_snapshots(struct block *block, struct disk_snapshot *all);
/*
 * The disk's requests wait meanwhile. -EEXIST, -E2BIG, -EINVAL (the name), or the file's error: the
 * disk is unchanged then.
 */
int disk_snapshot_create(struct block *block, const char *name, struct error *err);
int disk_snapshot_apply(struct block *block, const char *name, struct error *err);
/*
 * Requests go on but for two short moments. progress: may be NULL. -EBUSY: somebody has a snapshot
 * of the disk open (see config.snapshot). -ECANCELED: stopped; the snapshot is gone, its space is
 * free when the disk is opened next, as after a crash in the middle.
 */
int disk_snapshot_remove(struct block *block, const char *name,
                         const struct disk_progress *progress, struct error *err);

/* ---- Checking ---- */

struct disk_check {
    uint64_t tables, blocks; /* looked at; blocks in use by data */
    uint64_t errors;
    uint64_t unused_bytes; /* of the file that nothing uses */
    /* Called for every error, one line; may be NULL. */
    void (*report)(void *context, const char *text);
    /* Called now and then with what is done, in 1/1000; may be NULL. */
    void (*progress)(void *context, unsigned done);
    void *context;
};

/*
 * Looks at everything: superblocks, snapshot table, journal, all tables of all trees, every
 * reference. 0: it could be looked at (errors says what was found). Reads only.
 */
int disk_check(struct block *file, struct disk_check *check, struct error *err);

/* Gives what nothing uses back to the host: holes in the file. The disk is open for writing. */
int disk_trim_file(struct block *block, uint64_t *bytes, struct error *err);

#endif
