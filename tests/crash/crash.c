/*
 * The crash campaign of lodge's disk format: random work on a disk, a crash
 * at a random write of the file below, of what was not flushed a random part
 * there; then everything that was flushed must be read, metadata must be
 * consistent, and every sector hold its old content or a newer one.
 *
 *   crash [--points N] [--seed S] [--verbose]
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "block/disk/disk.h"
#include "block/sync.h"
#include "simulated.h"

enum {
    WINDOWS = 8, /* of the disk that are used */
    WINDOW_SECTORS = 192,
    SECTORS = WINDOWS * WINDOW_SECTORS,
    EVENTS = 160,
    SNAPSHOTS = 8,
    POINTS_PER_RUN = 50,
    BATCH = 12,
};
#define FILE_LIMIT MIB(24)
#define SIZE_FIRST MIB(600)
#define SIZE_GROWN MIB(2100)

static const uint64_t BACKING_STAMP = UINT64_C(1) << 62;

/* Where the windows begin; the last two only after the disk has grown. */
static const uint64_t windows[WINDOWS] = {
    0,        MIB(2) - 8192, MIB(17),   MIB(300) + 4096,
    MIB(598), MIB(599),      MIB(1000), SIZE_GROWN - WINDOW_SECTORS * 512};

/* One thing that happened to the disk, and between which positions of the device. */
struct event {
    size_t begin, end;
    bool flushes;                  /* all before is on stable storage when it ends */
    uint64_t stamps[SECTORS];      /* of every sector, after it */
    char created[16], removed[16]; /* snapshots */
};

struct saved {
    char name[16];
    uint64_t stamps[SECTORS];
};

struct run {
    uint64_t random;
    struct simulated *device, *backing;
    struct block *disk;
    struct event *events;
    unsigned event_count;
    struct saved saved[SNAPSHOTS];
    unsigned saved_count, names;
    uint64_t stamps[SECTORS]; /* now */
    uint64_t next_stamp;
    bool grown, removing, stopped; /* stopped: a removal, since the disk was opened */
    struct event *removal;         /* of the snapshot that is being removed, until it is gone */
};

static uint64_t seed_shown;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("FAILED (seed %" PRIu64 "): ", seed_shown);                                     \
            printf(__VA_ARGS__);                                                                   \
            putchar('\n');                                                                         \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t pick(struct run *run, uint64_t n) {
    return simulated_random(&run->random) % n;
}

/* ---- Contents: a sector tells its stamp and its place ---- */

static uint64_t byte_of(unsigned sector) {
    return windows[sector / WINDOW_SECTORS] + sector % WINDOW_SECTORS * (uint64_t)BLOCK_SECTOR;
}

static void fill(uint8_t *bytes, unsigned sector, uint64_t stamp) {
    memset(bytes, 0, BLOCK_SECTOR);
    if (stamp == 0)
        return;
    uint64_t state = stamp * 8191 + sector;
    store_le64(bytes, stamp);
    for (unsigned i = 8; i < BLOCK_SECTOR; i += 8)
        store_le64(bytes + i, simulated_random(&state));
}

/* The stamp of what is in a sector; UINT64_MAX: garbage. */
static uint64_t stamp_of(const uint8_t *bytes, unsigned sector) {
    uint8_t expected[BLOCK_SECTOR];
    uint64_t stamp = load_le64(bytes);
    fill(expected, sector, stamp);
    return memcmp(bytes, expected, BLOCK_SECTOR) == 0 ? stamp : UINT64_MAX;
}

/* ---- Work ---- */

static struct block *open_disk(struct run *run, struct simulated *device, const char *snapshot) {
    struct disk_options config = {.inline_commits = true, .snapshot = snapshot};
    struct block *disk = NULL;
    struct error err = {0};
    struct block *backing = run->backing != NULL ? simulated_block(run->backing) : NULL;
    int result = disk_open(simulated_block(device), backing, &config, &disk, &err);
    CHECK(result == 0, "cannot open: %s", err.text);
    return disk;
}

static struct event *begin(struct run *run) {
    struct event *event = &run->events[run->event_count];
    memset(event, 0, sizeof *event);
    event->begin = simulated_position(run->device);
    return event;
}

static void end(struct run *run, struct event *event, bool flushes) {
    event->end = simulated_position(run->device);
    event->flushes = flushes;
    memcpy(event->stamps, run->stamps, sizeof event->stamps);
    run->event_count++;
}

struct write {
    struct block_request request;
    struct iovec vectors[3];
    uint8_t bytes[WINDOW_SECTORS * BLOCK_SECTOR];
    bool done;
};

static void write_done(struct block_request *request) {
    container_of(request, struct write, request)->done = true;
}

/* Prepares a write of `count` sectors from `sector` on, scattered over three vectors. */
static void prepare(struct run *run, struct write *write, unsigned sector, unsigned count) {
    uint64_t stamp = run->next_stamp++;
    size_t length = count * (size_t)BLOCK_SECTOR, a = (size_t)pick(run, length + 1),
           b = a + (size_t)pick(run, length - a + 1);
    for (unsigned i = 0; i < count; i++) {
        fill(write->bytes + i * (size_t)BLOCK_SECTOR, sector + i, stamp);
        run->stamps[sector + i] = stamp;
    }
    write->vectors[0] = (struct iovec){write->bytes, a};
    write->vectors[1] = (struct iovec){write->bytes + a, b - a};
    write->vectors[2] = (struct iovec){write->bytes + b, length - b};
    write->done = false;
    write->request = (struct block_request){.operation = BLOCK_WRITE,
                                            .offset = byte_of(sector),
                                            .length = length,
                                            .vectors = write->vectors,
                                            .vector_count = 3,
                                            .done = write_done};
}

static unsigned pick_sector(struct run *run, unsigned *count) {
    unsigned window = (unsigned)pick(run, run->grown ? WINDOWS : WINDOWS - 2);
    unsigned at = (unsigned)pick(run, WINDOW_SECTORS);
    unsigned most = pick(run, 4) == 0 ? WINDOW_SECTORS : 17;
    unsigned left = WINDOW_SECTORS - at;
    *count = 1 + (unsigned)pick(run, left < most ? left : most);
    if (pick(run, 2) == 0) { /* whole blocks */
        at = (unsigned)round_down(at, 8);
        *count = (unsigned)round_up(*count, 8);
    }
    *count = at + *count > WINDOW_SECTORS ? WINDOW_SECTORS - at : *count;
    return window * WINDOW_SECTORS + at;
}

static void do_write(struct run *run, bool durable) {
    static struct write write;
    unsigned count, sector = pick_sector(run, &count);
    struct event *event = begin(run);
    prepare(run, &write, sector, count);
    write.request.durable = durable;
    bool now = block_submit(run->disk, &write.request) == 1;
    CHECK(now || write.done, "a write does not complete");
    CHECK(write.request.result == 0, "a write fails: %d", write.request.result);
    end(run, event, false);
    event->flushes = false;
    /* It is durable itself, what came before need not be. */
    if (durable)
        for (unsigned i = 0; i < count; i++)
            event->stamps[sector + i] |= UINT64_C(1) << 63;
}

/* Several at once, of neighbouring sectors: they share blocks. Completed in any order. */
static void do_writes(struct run *run) {
    static struct write writes[BATCH];
    bool now[BATCH];
    unsigned window = (unsigned)pick(run, WINDOWS - 2) * WINDOW_SECTORS, at = 0, count = 0;
    struct event *event = begin(run);
    simulated_defer(run->device);
    for (; count < BATCH && at < WINDOW_SECTORS; count++) {
        at += (unsigned)pick(run, 6);
        unsigned length = 1 + (unsigned)pick(run, 14);
        if (at + length > WINDOW_SECTORS)
            break;
        prepare(run, &writes[count], window + at, length);
        now[count] = block_submit(run->disk, &writes[count].request) == 1;
        at += length;
    }
    simulated_release(run->device, &run->random);
    for (unsigned i = 0; i < count; i++)
        CHECK((now[i] || writes[i].done) && writes[i].request.result == 0,
              "one of several writes at once fails");
    end(run, event, false);
}

static void do_zero(struct run *run, bool discard) {
    unsigned count, sector = pick_sector(run, &count);
    struct event *event = begin(run);
    uint64_t offset = byte_of(sector), length = count * (uint64_t)BLOCK_SECTOR;
    int result = discard ? block_discard(run->disk, offset, length)
                         : block_write_zeroes(run->disk, offset, length, true);
    CHECK(result == 0, "zeroes: %d", result);
    for (unsigned i = 0; i < count; i++) {
        uint64_t block = round_down(byte_of(sector + i), DISK_BLOCK);
        bool whole = block >= offset && block + DISK_BLOCK <= offset + length;
        if (whole || !discard)
            run->stamps[sector + i] = 0;
    }
    end(run, event, false);
}

static void do_flush(struct run *run) {
    struct event *event = begin(run);
    CHECK(block_flush(run->disk) == 0, "flush");
    end(run, event, true);
}

static void do_reopen(struct run *run) {
    struct event *event = begin(run);
    block_close(run->disk);
    end(run, event, true);
    event = begin(run);
    run->disk = open_disk(run, run->device, NULL);
    run->stopped = false;
    end(run, event, true);
}

static void report(void *context, const char *text) {
    printf("%s: %s\n", (const char *)context, text);
}

/* All is committed and checkpointed: what the disk takes for used is what the file's trees have. */
static void check_space(struct run *run) {
    struct disk_check check = {.report = report, .context = (void *)(uintptr_t) "in use"};
    struct disk_usage usage;
    struct error err = {0};
    CHECK(disk_check(simulated_block(run->device), &check, &err) == 0, "check: %s", err.text);
    disk_get_usage(run->disk, &usage);
    uint64_t blocks = simulated_block(run->device)->info.size / DISK_BLOCK;
    uint64_t used = blocks - check.unused_bytes / DISK_BLOCK;
    CHECK(usage.used_blocks == used ||
              ((run->removing || run->stopped) && usage.used_blocks > used),
          "%" PRIu64 " blocks taken for used, %" PRIu64 " are", usage.used_blocks, used);
}

static void do_snapshot(struct run *run) {
    struct error err;
    struct event *event = begin(run);
    if (run->saved_count == SNAPSHOTS)
        return;
    struct saved *saved = &run->saved[run->saved_count++];
    snprintf(saved->name, sizeof saved->name, "s%u", run->names++);
    memcpy(saved->stamps, run->stamps, sizeof saved->stamps);
    CHECK(disk_snapshot_create(run->disk, saved->name, &err) == 0, "snapshot: %s", err.text);
    memcpy(event->created, saved->name, sizeof event->created);
    end(run, event, true);
    check_space(run);
}

/* A step of a removal. The snapshot is gone by now; the disk is worked on, or the removal stopped.
 */
static bool while_removing(void *context, unsigned done) {
    struct run *run = context;
    if (run->removal != NULL)
        end(run, run->removal, true);
    run->removal = NULL;
    CHECK(done <= 1000, "progress: %u", done);
    uint64_t what = pick(run, 16);
    if (run->event_count >= EVENTS - 3 || what >= 9)
        return true;
    if (what == 0)
        do_flush(run);
    else if (what == 1 && pick(run, 4) == 0)
        do_snapshot(run);
    else if (what == 2)
        do_zero(run, true);
    else if (what == 3)
        do_writes(run);
    else
        do_write(run, false);
    run->stopped |= pick(run, 32) == 0;
    return !run->stopped;
}

static void do_remove(struct run *run) {
    struct error err;
    struct disk_progress progress = {while_removing, run};
    struct event *event = begin(run);
    if (run->saved_count == 0 || run->event_count >= EVENTS - 3)
        return;
    struct saved *saved = &run->saved[pick(run, run->saved_count)];
    char name[sizeof saved->name];
    memcpy(name, saved->name, sizeof name);
    memcpy(event->removed, name, sizeof event->removed);
    *saved = run->saved[--run->saved_count];
    run->removal = event;
    run->removing = true;
    bool stopped = run->stopped;
    run->stopped = false;
    int result = disk_snapshot_remove(run->disk, name, &progress, &err);
    CHECK(result == (run->stopped ? -ECANCELED : 0), "remove: %s", err.text);
    run->stopped |= stopped;
    if (run->removal != NULL)
        end(run, event, true);
    run->removal = NULL;
    run->removing = false;
}

static void do_apply(struct run *run) {
    struct error err;
    struct event *event = begin(run);
    if (run->saved_count == 0 || run->grown) /* a smaller size would come back */
        return;
    struct saved *saved = &run->saved[pick(run, run->saved_count)];
    CHECK(disk_snapshot_apply(run->disk, saved->name, &err) == 0, "apply: %s", err.text);
    memcpy(run->stamps, saved->stamps, sizeof run->stamps);
    end(run, event, true);
}

static void do_grow(struct run *run) {
    struct error err;
    struct event *event = begin(run);
    if (run->grown)
        return;
    CHECK(block_resize(run->disk, SIZE_GROWN, &err) == 0, "grow: %s", err.text);
    run->grown = true;
    end(run, event, true);
}

static void work(struct run *run) {
    while (run->event_count < EVENTS - 2) {
        uint64_t what = pick(run, 100);
        if (what < 40)
            do_write(run, false);
        else if (what < 46)
            do_write(run, true);
        else if (what < 60)
            do_writes(run);
        else if (what < 68)
            do_zero(run, false);
        else if (what < 75)
            do_zero(run, true);
        else if (what < 91)
            do_flush(run);
        else if (what < 93)
            do_reopen(run);
        else if (what < 96)
            do_snapshot(run);
        else if (what < 98)
            do_remove(run);
        else if (what < 99)
            do_apply(run);
        else
            do_grow(run);
    }
}

/* ---- Checking ---- */

static void check_metadata(struct simulated *device, const char *when) {
    struct disk_check check = {.report = report, .context = (void *)(uintptr_t)when};
    struct error err = {0};
    int result = disk_check(simulated_block(device), &check, &err);
    CHECK(result == 0, "%s: check: %s", when, err.text);
    CHECK(check.errors == 0, "%s: %" PRIu64 " errors", when, check.errors);
}

static void read_all(struct block *disk, uint8_t *bytes) {
    for (unsigned w = 0; w < WINDOWS; w++) {
        size_t length = WINDOW_SECTORS * (size_t)BLOCK_SECTOR;
        memset(bytes + w * length, 0, length);
        if (windows[w] + length <= disk->info.size)
            CHECK(block_read(disk, windows[w], bytes + w * length, length) == 0, "read");
    }
}

static uint64_t plain(uint64_t stamp) {
    return stamp & ~(UINT64_C(1) << 63);
}

/* The last event whose effect is certain at a position, or 0. */
static unsigned certain(const struct run *run, size_t position) {
    unsigned last = 0;
    for (unsigned i = 0; i < run->event_count; i++)
        if (run->events[i].flushes && run->events[i].end <= position)
            last = i;
    return last;
}

/* Old, or anything newer that had begun; a durable write sets a new old. */
static void check_sectors(const struct run *run, const uint8_t *bytes, size_t position) {
    unsigned first = certain(run, position);
    for (unsigned s = 0; s < SECTORS; s++) {
        uint64_t stamp = stamp_of(bytes + s * (size_t)BLOCK_SECTOR, s);
        bool fine = stamp == plain(run->events[first].stamps[s]);
        for (unsigned i = first + 1; i < run->event_count && run->events[i].begin <= position;
             i++) {
            uint64_t now = run->events[i].stamps[s];
            if (now >> 63 != 0 && run->events[i].end <= position)
                fine = false;
            fine |= stamp == plain(now);
        }
        CHECK(fine, "sector %u has %" PRIx64 ", flushed was %" PRIx64 " (event %u, position %zu)",
              s, stamp, plain(run->events[first].stamps[s]), first, position);
    }
}

/* A snapshot that is there has what the disk had, to the byte. */
static void check_snapshot(struct run *run, struct simulated *device, const char *name) {
    static uint8_t bytes[SECTORS * BLOCK_SECTOR];
    const struct event *taken = NULL;
    for (unsigned i = 0; i < run->event_count; i++)
        if (strcmp(run->events[i].created, name) == 0)
            taken = &run->events[i];
    CHECK(taken != NULL, "a snapshot '%s' from nowhere", name);
    struct block *disk = open_disk(run, device, name);
    read_all(disk, bytes);
    for (unsigned s = 0; s < SECTORS; s++)
        CHECK(byte_of(s) >= disk->info.size ||
                  stamp_of(bytes + s * (size_t)BLOCK_SECTOR, s) == plain(taken->stamps[s]),
              "snapshot %s, sector %u: %" PRIx64 " instead of %" PRIx64, name, s,
              stamp_of(bytes + s * (size_t)BLOCK_SECTOR, s), plain(taken->stamps[s]));
    block_close(disk);
}

static bool listed(const struct disk_snapshot *all, unsigned count, const char *name) {
    for (unsigned i = 0; i < count; i++)
        if (strcmp(all[i].name, name) == 0)
            return true;
    return false;
}

static void check_snapshots(struct run *run, struct simulated *device, struct block *disk,
                            size_t position) {
    static struct disk_snapshot all[DISK_SNAPSHOTS_MAX];
    unsigned count = disk_snapshots(disk, all);
    for (unsigned i = 0; i < run->event_count && run->events[i].end <= position; i++) {
        const struct event *event = &run->events[i];
        bool removed = false;
        for (unsigned j = i; j < run->event_count && run->events[j].begin <= position; j++)
            removed |=
                event->created[0] != 0 && strcmp(run->events[j].removed, event->created) == 0;
        if (event->created[0] != 0 && !removed)
            CHECK(listed(all, count, event->created), "snapshot %s is lost", event->created);
        if (event->removed[0] != 0)
            CHECK(!listed(all, count, event->removed), "snapshot %s came back", event->removed);
    }
    for (unsigned i = 0; i < count; i++)
        check_snapshot(run, device, all[i].name);
}

static void check_crash(struct run *run, struct simulated *device, size_t position, bool twice) {
    static uint8_t bytes[SECTORS * BLOCK_SECTOR];
    check_metadata(device, "after the crash");
    struct block *disk = open_disk(run, device, NULL);
    read_all(disk, bytes);
    check_sectors(run, bytes, position);
    check_snapshots(run, device, disk, position);
    if (twice) {
        /* A crash of the recovery. */
        size_t at = (size_t)pick(run, simulated_position(device) + 1);
        struct simulated *again = simulated_crash(device, at, &run->random);
        check_crash(run, again, position, false);
        simulated_destroy(again);
    }
    block_close(disk);
    check_metadata(device, "after recovery");
}

/* ---- Runs ---- */

static struct simulated *make_backing(void) {
    static uint8_t sector[BLOCK_SECTOR];
    struct simulated *backing = simulated_create(MIB(18));
    for (unsigned s = 0; s < SECTORS; s++) {
        fill(sector, s, BACKING_STAMP);
        if (byte_of(s) < MIB(17) + 8 * 1024 + 512) /* it ends within a window, and a block */
            block_write(simulated_block(backing), byte_of(s), sector, sizeof sector);
    }
    return backing;
}

static void start(struct run *run, uint64_t seed) {
    run->random = seed;
    run->next_stamp = 1;
    run->events = calloc(EVENTS, sizeof *run->events);
    CHECK(run->events != NULL, "no memory");
    run->backing = pick(run, 2) == 0 ? make_backing() : NULL;
    struct disk_create create = {.size = SIZE_FIRST,
                                 .journal_blocks = DISK_JOURNAL_MIN + (uint32_t)pick(run, 24)};
    if (run->backing != NULL) {
        create.backing_path = "backing";
        create.backing_format = "raw";
        create.backing_size = simulated_block(run->backing)->info.size;
        for (unsigned s = 0; s < SECTORS; s++)
            if (byte_of(s) < create.backing_size)
                run->stamps[s] = BACKING_STAMP;
    }
    run->device = simulated_create(FILE_LIMIT);
    struct error err;
    CHECK(disk_format(simulated_block(run->device), &create, &err) == 0, "format: %s", err.text);
    CHECK(block_flush(simulated_block(run->device)) == 0, "flush");
    struct event *event = begin(run);
    run->disk = open_disk(run, run->device, NULL);
    end(run, event, true);
}

static void finish(struct run *run) {
    block_close(run->disk);
    simulated_destroy(run->device);
    if (run->backing != NULL)
        simulated_destroy(run->backing);
    free(run->events);
}

static unsigned run_seed(uint64_t seed, unsigned points) {
    static struct run run;
    memset(&run, 0, sizeof run);
    seed_shown = seed;
    start(&run, seed);
    size_t first = simulated_position(run.device);
    work(&run);
    size_t last = simulated_position(run.device);
    for (unsigned i = 0; i < points; i++) {
        size_t position = first + (size_t)pick(&run, last - first + 1);
        struct simulated *left = simulated_crash(run.device, position, &run.random);
        check_crash(&run, left, position, i % 4 == 0);
        simulated_destroy(left);
    }
    finish(&run);
    return points;
}

int main(int argc, char **argv) {
    uint64_t seed = 1;
    unsigned points = 500, done = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--points") == 0)
            points = (unsigned)strtoul(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0)
            seed = strtoull(argv[i + 1], NULL, 10);
    }
    log_set_level(LOG_ERROR);
    for (; done < points; seed++) {
        unsigned left = points - done;
        done += run_seed(seed, left < POINTS_PER_RUN ? left : POINTS_PER_RUN);
        if (done % 1000 == 0)
            fprintf(stderr, "%u of %u points\n", done, points);
    }
    printf("%u crash points: nothing that was flushed is lost, metadata consistent\n", done);
    return 0;
}
