/* What the files of a disk share. */
#ifndef LODGE_BLOCK_DISK_PRIVATE_H
#define LODGE_BLOCK_DISK_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/lock.h"
#include "block/disk/disk.h"
#include "block/disk/map.h"
#include "block/disk/space.h"

struct disk_change;
struct disk_request;
struct pool;

/* Blocks of the file that a commit gives back. */
struct disk_free {
    uint64_t first, count;
};

/* Changes that a commit makes durable together. */
struct disk_batch {
    struct disk_record *records;
    size_t record_count, record_room;
    struct disk_free *frees;
    size_t free_count, free_room;
};

/* A snapshot that is being removed, hidden already. */
struct disk_removal {
    uint32_t snapshot;        /* its id; 0: none, or no longer */
    uint32_t above, upto;     /* its own blocks were born after the one and up to the other */
    struct disk_space blocks; /* used: nobody will have it when the snapshot is gone */
};

struct disk {
    struct block block;
    struct block *file, *backing;
    struct block *upkeep; /* the file, too */
    struct disk_options config;
    bool keep_file;

    /* Guards all below; never held while a request goes to another node. */
    struct lock lock;
    pthread_cond_t idle;               /* no request is active */
    struct disk_superblock superblock; /* as last written; live.root is the checkpoint's */
    struct disk_snapshot *snapshots;   /* superblock.snapshot_count of them */
    uint32_t shared;                   /* blocks born up to this generation are a snapshot's too */
    struct disk_map map;
    struct disk_space space;
    struct disk_batch batch; /* since the last commit began */
    struct disk_removal removal;
    bool trees_taken;
    struct disk_counts counts;
    int broken; /* a negative errno: metadata can no longer be trusted to reach the file */

    struct disk_request *first, *last; /* in order of arrival */
    unsigned active;                   /* claimed their range, still under way */
    unsigned busy;                     /* not through, flushes and the callers of `done` included */
    unsigned frozen;                   /* by so many */
    bool scanning, rescan, scan_queued;
    struct pool_job scan_job; /* for a loader: start what waits */

    /* The committer's. */
    pthread_t thread;
    bool thread_runs, stopping;
    bool committing; /* changes are on their way, no longer in `batch` */
    bool turn_taken;
    bool serving;          /* flushes wait for the commit under way */
    unsigned turn_waiters; /* threads that wait for their turn */
    bool failing;          /* the last commit failed: do not try again at once */
    pthread_cond_t wake;
    struct block_request *flushes, **flushes_end;
    uint32_t journal_head; /* the block to write next */
    uint64_t journal_sequence;
    struct pool *loaders; /* read missing tables */
    atomic_uint complained;
};

/* Changes beyond these are committed, or checkpointed, though nobody asked. */
enum { DISK_BATCH_RECORDS = 65536, DISK_DIRTY_TABLES = 4096, DISK_TABLES = 16384 };

/* A journal cannot change more tables than these: a checkpoint comes before. */
enum { DISK_REPLAY_TABLES = DISK_BATCH_RECORDS + 4 * DISK_DIRTY_TABLES };

static inline struct disk *disk_of(struct block *block) {
    return (struct disk *)(void *)((char *)block - offsetof(struct disk, block));
}

/* ---- requests.c ---- */

int disk_submit(struct block *block, struct block_request *request);
/* Waits until nothing is active and lets nothing start; the lock is not held. */
void disk_freeze(struct disk *disk);
void disk_thaw(struct disk *disk);
/* Waits until all are through. */
void disk_drain_requests(struct disk *disk);
/* What a loader does: reads the table that a request misses and goes on with it. */
void disk_load_work(void *context, struct pool_job *job);

/* Going back to a snapshot, and removing one: one at a time. */
void disk_take_trees(struct disk *disk);
void disk_end_trees(struct disk *disk);
/* Reads what a look into the map has missed, and adds it. */
int disk_load_missing(struct disk *disk, const struct disk_missing *missing);

/* ---- snapshot.c ---- */

/* The snapshot that is to be changed; or err. */
int disk_need_snapshot(const struct disk *disk, const char *name, struct disk_snapshot **snapshot,
                       struct error *err);
/* A list of snapshots of its own to change, with room for one more, for disk_checkpoint. */
int disk_begin_change(struct disk *disk, struct disk_change *change, struct disk_snapshot **list);
/* After the checkpoint: the list is the disk's. */
void disk_adopt(struct disk *disk, struct disk_snapshot *list);

/* ---- removal.c ---- */

/* The disk's tree has this entry no longer; it may be the last to have had it. The lock is held. */
void disk_removal_lost(struct disk *disk, uint64_t entry);
/* Drops the snapshots whose removal was interrupted; false: there are none. */
bool disk_removal_complete(struct disk_change *change, struct disk_snapshot *list);

/* ---- disk.c ---- */

/* Works out `shared` after the disk's parent has changed. */
void disk_set_shared(struct disk *disk);
/* The file below stays open, and the caller's, when the disk is closed. */
void disk_forget_file(struct block *block);

/* ---- commit.c ---- */

/* Asks for a commit that completes `request`. */
void disk_request_flush(struct disk *disk, struct block_request *request);
/* A commit is due because of how much has gathered; the lock is held. */
bool disk_commit_due(const struct disk *disk);
void disk_commit_poke(struct disk *disk);
/*
 * Commits and checkpoints happen in turn, one thread's at a time. disk_commit takes a turn for
 * itself; the lock is not held.
 */
int disk_commit(struct disk *disk);
void disk_take_turn(struct disk *disk);
void disk_end_turn(struct disk *disk);
int disk_commit_in_turn(struct disk *disk);
/* Writes metadata in the caller's turn. While nobody waits for the turn's end it is upkeep, a step
 * at a time. */
int disk_write_metadata(struct disk *disk, uint64_t at, const uint8_t *bytes, size_t length);
int disk_start_committer(struct disk *disk, struct error *err);
void disk_stop_committer(struct disk *disk);

int disk_add_record(struct disk *disk, struct disk_record record);
int disk_add_free(struct disk *disk, uint64_t first, uint64_t count);

/* ---- checkpoint.c ---- */

/* What a checkpoint changes beside the tables. */
struct disk_change {
    struct disk_superblock superblock;
    const struct disk_snapshot *snapshots; /* superblock.snapshot_count of them */
    bool keep_root; /* superblock.live.root is meant as it is, whatever tables are in memory */
};

/* Writes changed tables and a superblock; in the caller's turn. change: or NULL. */
int disk_checkpoint(struct disk *disk, const struct disk_change *change);

/* ---- load.c ---- */

/* Reads a table, with its checksum checked. -EINVAL: damaged. */
int disk_read_table(struct block *file, uint64_t file_blocks, const struct disk_missing *missing,
                    uint64_t entries[DISK_ENTRIES]);
int disk_load_snapshots(struct block *file, const struct disk_superblock *superblock,
                        struct disk_snapshot **snapshots, struct error *err);
/* Applies what the journal has to the map. */
int disk_replay(struct disk *disk, struct error *err);
/* Works out the space map from all trees. No request is active. */
int disk_find_space(struct disk *disk, struct error *err);
uint64_t disk_file_blocks(const struct block *file);

#endif
