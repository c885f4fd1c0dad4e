/*
 * Commits: what makes mapping changes durable. Data first, then one write to
 * the journal for all changes since the commit before, or a checkpoint.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/thread.h"
#include "block/disk/private.h"
#include "block/sync.h"

/* Changes wait no longer than this for a commit that nobody asks for. */
enum { COMMIT_SECONDS = 5, FREE_PUNCH_MIN = 16, UPKEEP_STEP = 64 << 10 };

/* ---- Batches ---- */

static int make_room(void **array, size_t count, size_t *room, size_t size) {
    if (*array != NULL && count < *room)
        return 0;
    size_t more = *room == 0 ? 256 : *room * 2;
    void *bigger = realloc(*array, more * size);
    if (bigger == NULL)
        return -ENOMEM;
    *array = bigger;
    *room = more;
    return 0;
}

static int add_record(struct disk_batch *batch, struct disk_record record) {
    struct disk_record *last =
        batch->record_count > 0 ? &batch->records[batch->record_count - 1] : NULL;
    bool allocated = disk_allocated(record.entry);
    if (last != NULL && last->first + last->count == record.first &&
        record.entry == last->entry + (allocated ? last->count : 0) &&
        disk_allocated(last->entry) == allocated &&
        record.count <= DISK_RECORD_COUNT_MAX - last->count) {
        last->count += record.count;
        return 0;
    }
    if (make_room((void **)&batch->records, batch->record_count, &batch->record_room,
                  sizeof record) != 0)
        return -ENOMEM;
    batch->records[batch->record_count++] = record;
    return 0;
}

static int add_free(struct disk_batch *batch, uint64_t first, uint64_t count) {
    struct disk_free *last = batch->free_count > 0 ? &batch->frees[batch->free_count - 1] : NULL;
    if (last != NULL && last->first + last->count == first) {
        last->count += count;
        return 0;
    }
    if (make_room((void **)&batch->frees, batch->free_count, &batch->free_room,
                  sizeof *batch->frees) != 0)
        return -ENOMEM;
    batch->frees[batch->free_count++] = (struct disk_free){first, count};
    return 0;
}

/* A change that could not be noted cannot be committed: nothing may be promised from now on. */
static int noted(struct disk *disk, int result) {
    if (result != 0 && disk->broken == 0)
        disk->broken = result;
    return result;
}

int disk_add_record(struct disk *disk, struct disk_record record) {
    return noted(disk, add_record(&disk->batch, record));
}

int disk_add_free(struct disk *disk, uint64_t first, uint64_t count) {
    return noted(disk, add_free(&disk->batch, first, count));
}

/* `later` goes behind `batch` and is empty after. */
static int append(struct disk_batch *batch, struct disk_batch *later) {
    int result = 0;
    for (size_t i = 0; i < later->record_count && result == 0; i++)
        result = add_record(batch, later->records[i]);
    for (size_t i = 0; i < later->free_count && result == 0; i++)
        result = add_free(batch, later->frees[i].first, later->frees[i].count);
    free(later->records);
    free(later->frees);
    *later = (struct disk_batch){0};
    return result;
}

/* ---- One commit ---- */

/* Where metadata goes next: by upkeep, unless somebody waits. */
static struct block *way_to_file(struct disk *disk) {
    lock_take(&disk->lock);
    bool waited = disk->flushes != NULL || disk->serving || disk->turn_waiters > 0 ||
                  disk->frozen > 0 || disk->stopping || disk_commit_due(disk);
    struct block *way = waited ? disk->file : disk->upkeep;
    lock_release(&disk->lock);
    return way;
}

int disk_write_metadata(struct disk *disk, uint64_t at, const uint8_t *bytes, size_t length) {
    int result = 0;
    while (length > 0 && result == 0) {
        struct block *way = way_to_file(disk);
        size_t step = way == disk->file || length < UPKEEP_STEP ? length : UPKEEP_STEP;
        result = block_write(way, at, bytes, step);
        at += step;
        bytes += step;
        length -= step;
    }
    return result;
}

static int write_journal(struct disk *disk, const struct disk_batch *batch) {
    size_t blocks = (batch->record_count + DISK_RECORDS - 1) / DISK_RECORDS;
    uint8_t *bytes = aligned_alloc(DISK_BLOCK, blocks * DISK_BLOCK);
    if (bytes == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < blocks; i++) {
        size_t first = i * DISK_RECORDS, left = batch->record_count - first;
        disk_encode_journal(
            batch->records + first, (unsigned)(left < DISK_RECORDS ? left : DISK_RECORDS),
            disk->superblock.journal_epoch, disk->journal_sequence + i, bytes + i * DISK_BLOCK);
    }
    uint64_t at = (disk->superblock.journal + disk->journal_head) * DISK_BLOCK;
    int result = disk_write_metadata(disk, at, bytes, blocks * DISK_BLOCK);
    if (result == 0)
        result = block_flush(disk->file);
    free(bytes);
    disk->journal_sequence += blocks;
    disk->journal_head += (uint32_t)blocks;
    /* What of it has reached the file is not known: the next commit is a checkpoint. */
    if (result != 0)
        disk->journal_head = disk->superblock.journal_blocks;
    disk->counts.metadata_bytes += blocks * DISK_BLOCK;
    return result;
}

static bool needs_checkpoint(struct disk *disk, const struct disk_batch *batch) {
    size_t blocks = (batch->record_count + DISK_RECORDS - 1) / DISK_RECORDS;
    lock_take(&disk->lock);
    size_t dirty = disk->map.dirty;
    lock_release(&disk->lock);
    return blocks > disk->superblock.journal_blocks - disk->journal_head ||
           dirty > DISK_DIRTY_TABLES;
}

/* Larger stretches are holes in the file before they are used again. */
static void punch(struct disk *disk, const struct disk_batch *batch) {
    for (size_t i = 0; i < batch->free_count && disk->file->info.discard; i++)
        if (batch->frees[i].count >= FREE_PUNCH_MIN)
            block_discard(way_to_file(disk), batch->frees[i].first * DISK_BLOCK,
                          batch->frees[i].count * DISK_BLOCK);
}

/* Data that was written before is flushed: the changes in `batch` may show it. */
static int commit_batch(struct disk *disk, const struct disk_batch *batch) {
    int result = block_flush(disk->file);
    if (result != 0) {
        /* What the host has lost of the data nobody can tell. */
        disk->broken = result;
        return result;
    }
    if (batch->record_count == 0)
        return 0;
    disk->counts.commits++;
    disk->counts.records += batch->record_count;
    return needs_checkpoint(disk, batch) ? disk_checkpoint(disk, NULL) : write_journal(disk, batch);
}

int disk_commit_in_turn(struct disk *disk) {
    lock_take(&disk->lock);
    int result = disk->broken;
    struct disk_batch batch = disk->batch;
    disk->batch = (struct disk_batch){0};
    disk->committing = true;
    lock_release(&disk->lock);

    if (result == 0)
        result = commit_batch(disk, &batch);
    if (result == 0)
        punch(disk, &batch);

    lock_take(&disk->lock);
    if (result == 0) {
        for (size_t i = 0; i < batch.free_count; i++)
            disk_space_release(&disk->space, batch.frees[i].first, batch.frees[i].count);
        free(batch.records);
        free(batch.frees);
    } else {
        noted(disk, append(&batch, &disk->batch));
        disk->batch = batch;
    }
    disk->committing = false;
    disk_map_trim(&disk->map);
    lock_release(&disk->lock);
    return result;
}

void disk_take_turn(struct disk *disk) {
    lock_take(&disk->lock);
    disk->turn_waiters++;
    while (disk->turn_taken)
        pthread_cond_wait(&disk->idle, &disk->lock.mutex);
    disk->turn_waiters--;
    disk->turn_taken = true;
    lock_release(&disk->lock);
}

void disk_end_turn(struct disk *disk) {
    lock_take(&disk->lock);
    disk->turn_taken = false;
    pthread_cond_broadcast(&disk->idle);
    lock_release(&disk->lock);
}

int disk_commit(struct disk *disk) {
    disk_take_turn(disk);
    int result = disk_commit_in_turn(disk);
    disk_end_turn(disk);
    return result;
}

/* ---- The committer ---- */

bool disk_commit_due(const struct disk *disk) {
    return disk->batch.record_count >= DISK_BATCH_RECORDS || disk->map.dirty > DISK_DIRTY_TABLES;
}

static void complain(struct disk *disk, int result) {
    if (atomic_fetch_add(&disk->complained, 1) < LOG_LIMIT_BURST)
        log_warning("disk %s: cannot commit: %s", disk->block.info.name, strerror(-result));
}

/* Commits and completes the flushes that were there before; the lock is held on entry and exit. */
static void serve(struct disk *disk) {
    struct block_request *request = disk->flushes;
    unsigned served = 0;
    disk->flushes = NULL;
    disk->flushes_end = &disk->flushes;
    disk->serving = request != NULL;
    lock_release(&disk->lock);
    int result = disk_commit(disk);
    disk->failing = result != 0; /* only this thread looks at it */
    if (result != 0)
        complain(disk, result);
    while (request != NULL) {
        struct block_request *next = request->next;
        request->result = result;
        request->done(request);
        request = next;
        served++;
    }
    lock_take(&disk->lock);
    disk->serving = false;
    disk->busy -= served;
    pthread_cond_broadcast(&disk->idle);
}

/* Until there is something to commit; false when it is time to end. */
static bool wait_for_work(struct disk *disk) {
    while (!disk->stopping && disk->flushes == NULL && (disk->failing || !disk_commit_due(disk))) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += COMMIT_SECONDS;
        if (disk->batch.record_count == 0)
            pthread_cond_wait(&disk->wake, &disk->lock.mutex);
        else if (pthread_cond_timedwait(&disk->wake, &disk->lock.mutex, &until) == ETIMEDOUT)
            return true;
    }
    return !disk->stopping || disk->flushes != NULL;
}

static void *committer(void *argument) {
    struct disk *disk = argument;
    thread_begins(THREAD_IO, "disk commit");
    lock_take(&disk->lock);
    while (wait_for_work(disk)) {
        serve(disk);
    }
    lock_release(&disk->lock);
    return NULL;
}

void disk_commit_poke(struct disk *disk) {
    /* The first change starts the clock; a due commit starts at once. */
    if (disk->batch.record_count == 1 || disk_commit_due(disk))
        pthread_cond_signal(&disk->wake);
}

void disk_request_flush(struct disk *disk, struct block_request *request) {
    lock_take(&disk->lock);
    disk->busy++;
    request->next = NULL;
    *disk->flushes_end = request;
    disk->flushes_end = &request->next;
    if (disk->thread_runs)
        pthread_cond_signal(&disk->wake);
    else
        serve(disk);
    lock_release(&disk->lock);
}

int disk_start_committer(struct disk *disk, struct error *err) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&disk->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    disk->flushes_end = &disk->flushes;
    if (disk->config.inline_commits || disk->config.readonly)
        return 0;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int result = -pthread_create(&disk->thread, NULL, committer, disk);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    disk->thread_runs = result == 0;
    return result == 0 ? 0 : error_set_errno(err, result, "cannot start a disk's thread");
}

void disk_stop_committer(struct disk *disk) {
    lock_take(&disk->lock);
    disk->stopping = true;
    pthread_cond_signal(&disk->wake);
    lock_release(&disk->lock);
    if (disk->thread_runs)
        pthread_join(disk->thread, NULL);
    disk->thread_runs = false;
    pthread_cond_destroy(&disk->wake);
}
