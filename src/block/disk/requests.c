/*
 * The order of requests. Each claims the blocks it touches: one that changes
 * the map alone, others together. Who comes later and cannot share waits.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "block/disk/request.h"

enum { BEING_SUBMITTED, LEFT, COMPLETE, HANDED_ON };

/* ---- The list ---- */

static void list_add(struct disk *disk, struct disk_request *r) {
    r->previous = disk->last;
    if (disk->last != NULL)
        disk->last->next = r;
    else
        disk->first = r;
    disk->last = r;
}

static void list_remove(struct disk *disk, struct disk_request *r) {
    if (r->previous != NULL)
        r->previous->next = r->next;
    else
        disk->first = r->next;
    if (r->next != NULL)
        r->next->previous = r->previous;
    else
        disk->last = r->previous;
}

static bool conflicts(const struct disk_request *r) {
    for (const struct disk_request *o = r->previous; o != NULL; o = o->previous)
        if ((o->exclusive || r->exclusive) && o->first < r->end && r->first < o->end)
            return true;
    return false;
}

static void request_free(struct disk_request *r) {
    for (unsigned e = 0; e < ARRAY_SIZE(r->edges); e++)
        free(r->edges[e].bytes);
    free(r->runs);
    free(r->pieces);
    free(r->vectors);
    free(r);
}

/* ---- Ending ---- */

static void scan(struct disk *disk, unsigned ended);
static void scan_elsewhere(struct disk *disk, unsigned ended);

static void complain(struct disk *disk, const struct block_request *request) {
    static const char *const names[] = {"read", "write", "flush", "discard", "write zeroes"};
    if (atomic_fetch_add(&disk->complained, 1) < LOG_LIMIT_BURST)
        log_warning("disk %s: %s at byte %llu failed: %s", disk->block.info.name,
                    names[request->operation], (unsigned long long)request->offset,
                    strerror(-request->result));
}

static void finish(struct disk_request *r) {
    struct disk *disk = r->disk;
    struct block_request *guest = r->guest;
    int result = atomic_load(&r->result);
    bool commits = r->commits && result == 0;
    lock_take(&disk->lock);
    if (r->active) {
        disk_settle(r, result);
        disk_commit_poke(disk);
        disk->active--;
    }
    list_remove(disk, r);
    bool due = !disk->thread_runs && disk_commit_due(disk);
    lock_release(&disk->lock);
    guest->result = result;
    if (result != 0)
        complain(disk, guest);
    if (due)
        disk_commit(disk);
    int left = atomic_exchange(&r->state, commits ? HANDED_ON : COMPLETE);
    if (left == LEFT)
        request_free(r);
    if (commits)
        disk_request_flush(disk, guest);
    else if (left == LEFT)
        guest->done(guest);
    if (left == BEING_SUBMITTED)
        scan_elsewhere(disk, 1);
    else
        scan(disk, 1);
}

/* ---- Moving data ---- */

static void next_phase(struct disk_request *r);

static void note(struct disk_request *r, int result) {
    int none = 0;
    if (result != 0)
        atomic_compare_exchange_strong(&r->result, &none, result);
}

static void piece_done(struct block_request *io) {
    struct disk_request *r = container_of(io, struct disk_piece, io)->owner;
    note(r, io->result);
    if (atomic_fetch_sub(&r->outstanding, 1) == 1)
        next_phase(r);
}

static void zero(struct block_request *io) {
    for (unsigned i = 0; i < io->vector_count; i++)
        memset(io->vectors[i].iov_base, 0, io->vectors[i].iov_len);
}

static void start_piece(struct disk_request *r, struct disk_piece *piece) {
    bool write = r->guest->operation == BLOCK_WRITE && piece->phase == PHASE_MOVE;
    piece->io.operation = write ? BLOCK_WRITE : BLOCK_READ;
    piece->io.background = r->guest->background;
    piece->io.durable = write && r->guest->durable && !r->commits;
    piece->io.offset = piece->at;
    piece->io.length = piece->length;
    piece->io.done = piece_done;
    atomic_fetch_add(&r->outstanding, 1);
    if (piece->to == NULL) {
        zero(&piece->io);
        atomic_fetch_sub(&r->outstanding, 1);
    } else if (block_submit(piece->to, &piece->io) == 1) {
        note(r, piece->io.result);
        atomic_fetch_sub(&r->outstanding, 1);
    }
}

/* Starts the pieces of the phase that r->phase says; ends the request after the last. */
static void next_phase(struct disk_request *r) {
    while (r->phase < PHASES && atomic_load(&r->result) == 0) {
        enum disk_phase phase = r->phase++;
        if (phase == PHASE_MOVE && r->guest->operation == BLOCK_WRITE)
            disk_merge_edges(r);
        atomic_store(&r->outstanding, 1);
        for (size_t i = 0; i < r->piece_count; i++)
            if (r->pieces[i].phase == phase)
                start_piece(r, &r->pieces[i]);
        if (atomic_fetch_sub(&r->outstanding, 1) != 1)
            return;
    }
    finish(r);
}

/* ---- Starting ---- */

int disk_load_missing(struct disk *disk, const struct disk_missing *missing) {
    uint64_t entries[DISK_ENTRIES];
    int result = disk_read_table(disk->file, DISK_PHYSICAL_MAX, missing, entries);
    lock_take(&disk->lock);
    /* Somebody else may have read it too, changed it, and given its block up by now. */
    if (disk_map_find(&disk->map, missing->level, missing->index) != NULL)
        result = 0;
    else if (result == 0 && disk_map_add(&disk->map, missing, entries) == NULL)
        result = -ENOMEM;
    disk_map_trim(&disk->map);
    lock_release(&disk->lock);
    return result;
}

static void load(struct disk_request *r) {
    int result = disk_load_missing(r->disk, &r->missing);
    /* A damaged table is an I/O error of what it stands for. */
    note(r, result == -EINVAL ? -EIO : result);
}

/* Claims the range and works out what to do: 0, -EAGAIN, -EBUSY (wait), or an error. */
static int claim(struct disk_request *r) {
    struct disk *disk = r->disk;
    if (!r->active) {
        int result = disk_classify(r);
        if (result != 0)
            r->exclusive = true; /* while it is not known */
        if (result != 0 || disk->frozen || conflicts(r))
            return result != 0 ? result : -EBUSY;
        r->active = true;
        disk->active++;
    }
    return disk_plan(r);
}

/* Goes on, waits for a table that a loader reads, or waits for others: true. */
static bool start(struct disk_request *r) {
    struct disk *disk = r->disk;
    for (;;) {
        lock_take(&disk->lock);
        int result = atomic_load(&r->result);
        r->loading = false;
        if (result == 0)
            result = claim(r);
        r->loading = result == -EAGAIN;
        r->commits = r->guest->durable && r->guest->operation != BLOCK_READ &&
                     (r->exclusive || disk->batch.record_count > 0 || disk->committing);
        lock_release(&disk->lock);
        if (result == -EBUSY)
            return true;
        if (result == -EAGAIN && disk->loaders != NULL && pool_submit(disk->loaders, &r->job) == 0)
            return false;
        if (result == -EAGAIN) {
            load(r);
            continue;
        }
        note(r, result);
        note(r, disk_slice(r));
        next_phase(r);
        return false;
    }
}

void disk_load_work(void *context, struct pool_job *job) {
    struct disk *disk = context;
    if (job == &disk->scan_job) {
        lock_take(&disk->lock);
        disk->scan_queued = false;
        lock_release(&disk->lock);
        scan(disk, 1);
        return;
    }
    struct disk_request *r = container_of(job, struct disk_request, job);
    load(r);
    start(r);
}

/* The first that waits and need not any longer. */
static struct disk_request *runnable(struct disk *disk) {
    for (struct disk_request *r = disk->first; r != NULL && !disk->frozen; r = r->next)
        if (!r->active && !r->loading && atomic_load(&r->state) == LEFT && !conflicts(r)) {
            r->loading = true; /* nobody else starts it */
            return r;
        }
    return NULL;
}

/*
 * Starts what waits and can go. One thread at a time, in a loop: what ends meanwhile calls again.
 * `ended` requests are through, and nobody needs the disk on their behalf any longer.
 */
static void scan(struct disk *disk, unsigned ended) {
    lock_take(&disk->lock);
    disk->rescan = true;
    while (disk->rescan && !disk->scanning) {
        struct disk_request *r;
        disk->scanning = true;
        disk->rescan = false;
        while ((r = runnable(disk)) != NULL) {
            lock_release(&disk->lock);
            start(r);
            lock_take(&disk->lock);
        }
        disk->scanning = false;
    }
    disk->busy -= ended;
    pthread_cond_broadcast(&disk->idle);
    lock_release(&disk->lock);
}

static bool somebody_waits(const struct disk *disk) {
    for (const struct disk_request *r = disk->first; r != NULL; r = r->next)
        if (!r->active && !r->loading)
            return true;
    return false;
}

/*
 * A submitter may hold locks that the completions of others take: it must not run them, so a
 * loader does.
 */
static void scan_elsewhere(struct disk *disk, unsigned ended) {
    lock_take(&disk->lock);
    bool queue = !disk->scan_queued && somebody_waits(disk) && disk->loaders != NULL;
    disk->scan_queued |= queue;
    disk->busy += queue;
    lock_release(&disk->lock);
    if (queue && pool_submit(disk->loaders, &disk->scan_job) == 0)
        queue = false;
    else if (queue)
        ended++; /* not a single thread: nothing is lost but time, the next completion scans */
    lock_take(&disk->lock);
    if (queue)
        disk->scan_queued = false;
    disk->busy -= ended;
    pthread_cond_broadcast(&disk->idle);
    bool here = disk->loaders == NULL;
    lock_release(&disk->lock);
    if (here)
        scan(disk, 0);
}

/* ---- Submitting ---- */

/* Blocks that a request touches; of an unmapping those that it covers. */
static void set_range(struct disk_request *r) {
    const struct block_request *guest = r->guest;
    uint64_t end = guest->offset + guest->length;
    bool unmaps = guest->operation != BLOCK_READ && guest->operation != BLOCK_WRITE;
    r->first = guest->offset / DISK_BLOCK;
    r->end = (end + DISK_BLOCK - 1) / DISK_BLOCK;
    if (unmaps && guest->offset % DISK_BLOCK != 0)
        r->first++;
    if (unmaps && end % DISK_BLOCK != 0 && end != r->disk->block.info.size)
        r->end--;
}

static int submit_range(struct disk *disk, struct block_request *guest) {
    struct disk_request *r = calloc(1, sizeof *r);
    guest->result = -ENOMEM;
    if (r == NULL)
        return 1;
    r->disk = disk;
    r->guest = guest;
    set_range(r);
    lock_take(&disk->lock);
    disk->counts.writes += guest->operation == BLOCK_WRITE;
    guest->result = guest->operation == BLOCK_READ ? 0 : disk->broken;
    if (guest->result != 0 || r->first >= r->end) {
        lock_release(&disk->lock);
        request_free(r);
        return 1;
    }
    list_add(disk, r);
    disk->busy++;
    lock_release(&disk->lock);
    bool waits = start(r);
    int state = BEING_SUBMITTED;
    if (atomic_compare_exchange_strong(&r->state, &state, LEFT)) {
        if (waits)
            scan_elsewhere(disk, 0);
        return 0;
    }
    request_free(r);
    return state == COMPLETE;
}

/* Zeroes that begin or end within a block: those parts are written. */
struct zeroes {
    struct block_request parts[3];
    struct iovec vectors[3];
    struct block_request *guest;
    atomic_uint outstanding;
    atomic_int result;
};

/* True: that was the last part, and the request has its result. */
static bool zeroes_part(struct zeroes *zeroes, int result) {
    int none = 0;
    if (result != 0)
        atomic_compare_exchange_strong(&zeroes->result, &none, result);
    if (atomic_fetch_sub(&zeroes->outstanding, 1) != 1)
        return false;
    zeroes->guest->result = atomic_load(&zeroes->result);
    return true;
}

static void zeroes_done(struct block_request *part) {
    struct zeroes *zeroes = part->context;
    struct block_request *guest = zeroes->guest;
    if (!zeroes_part(zeroes, part->result))
        return;
    free(zeroes);
    guest->done(guest);
}

static void prepare_zeroes(struct zeroes *zeroes, const uint64_t cuts[4]) {
    static uint8_t zero_block[DISK_BLOCK]; /* only read */
    const struct block_request *guest = zeroes->guest;
    for (unsigned i = 0; i < ARRAY_SIZE(zeroes->parts); i++) {
        uint64_t length = cuts[i + 1] - cuts[i];
        zeroes->vectors[i] = (struct iovec){zero_block, (size_t)length};
        zeroes->parts[i] =
            (struct block_request){.operation = i == 1 ? BLOCK_WRITE_ZEROES : BLOCK_WRITE,
                                   .durable = guest->durable,
                                   .background = guest->background,
                                   .may_unmap = guest->may_unmap,
                                   .offset = cuts[i],
                                   .length = length,
                                   .vectors = &zeroes->vectors[i],
                                   .vector_count = i != 1,
                                   .done = zeroes_done,
                                   .context = zeroes};
    }
    atomic_store(&zeroes->outstanding, ARRAY_SIZE(zeroes->parts) + 1);
}

static int submit_zeroes(struct disk *disk, struct block_request *guest) {
    uint64_t end = guest->offset + guest->length;
    uint64_t from = round_up(guest->offset, DISK_BLOCK);
    uint64_t to = end == disk->block.info.size ? end : round_down(end, DISK_BLOCK);
    if (from == guest->offset && to == end)
        return submit_range(disk, guest);
    from = from < end ? from : end;
    to = to > from ? to : from;
    struct zeroes *zeroes = calloc(1, sizeof *zeroes);
    guest->result = -ENOMEM;
    if (zeroes == NULL)
        return 1;
    zeroes->guest = guest;
    prepare_zeroes(zeroes, (const uint64_t[]){guest->offset, from, to, end});
    for (unsigned i = 0; i < ARRAY_SIZE(zeroes->parts); i++) {
        struct block_request *part = &zeroes->parts[i];
        part->result = 0;
        if (part->length == 0 || submit_range(disk, part) == 1)
            zeroes_part(zeroes, part->result);
    }
    if (!zeroes_part(zeroes, 0))
        return 0;
    free(zeroes);
    return 1;
}

static int submit_flush(struct disk *disk, struct block_request *guest) {
    lock_take(&disk->lock);
    bool plain = disk->batch.record_count == 0 && !disk->committing && disk->broken == 0;
    lock_release(&disk->lock);
    if (disk->config.readonly) {
        guest->result = 0;
        return 1;
    }
    if (plain)
        return block_submit(disk->file, guest);
    disk_request_flush(disk, guest);
    return 0;
}

int disk_submit(struct block *block, struct block_request *request) {
    struct disk *disk = disk_of(block);
    bool changes = request->operation != BLOCK_READ && request->operation != BLOCK_FLUSH;
    request->result = changes && disk->config.readonly ? -EROFS : 0;
    if (request->operation == BLOCK_FLUSH)
        return submit_flush(disk, request);
    if (request->result != 0 || request->length == 0)
        return 1;
    if (request->operation == BLOCK_WRITE_ZEROES)
        return submit_zeroes(disk, request);
    return submit_range(disk, request);
}

void disk_drain_requests(struct disk *disk) {
    lock_take(&disk->lock);
    while (disk->busy > 0)
        pthread_cond_wait(&disk->idle, &disk->lock.mutex);
    lock_release(&disk->lock);
}

void disk_freeze(struct disk *disk) {
    lock_take(&disk->lock);
    disk->frozen++;
    while (disk->active > 0)
        pthread_cond_wait(&disk->idle, &disk->lock.mutex);
    lock_release(&disk->lock);
}

void disk_thaw(struct disk *disk) {
    lock_take(&disk->lock);
    disk->frozen--;
    lock_release(&disk->lock);
    scan(disk, 0);
}

void disk_take_trees(struct disk *disk) {
    lock_take(&disk->lock);
    while (disk->trees_taken)
        pthread_cond_wait(&disk->idle, &disk->lock.mutex);
    disk->trees_taken = true;
    lock_release(&disk->lock);
}

void disk_end_trees(struct disk *disk) {
    lock_take(&disk->lock);
    disk->trees_taken = false;
    pthread_cond_broadcast(&disk->idle);
    lock_release(&disk->lock);
}
