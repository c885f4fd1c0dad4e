/*
 * A snapshot is taken in five steps: a worker writes RAM while the guest runs
 * (all of it, or what has changed since the last snapshot), and what changes
 * meanwhile again; the loop holds the machine, and saves its state once
 * nothing is under way; the worker writes the last changes and has the disks
 * take theirs; the loop lets the machine go on; the worker makes it durable.
 */
#include "machine/vm_snapshot.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/loop.h"
#include "base/pool.h"
#include "base/thread.h"
#include "block/disk/disk.h"
#include "image/file.h"
#include "machine/machine_state.h"
#include "machine/private.h"
#include "machine/ram_image.h"
#include "machine/ram_packed.h"
#include "machine/snapshot_store.h"

/* What is written while the guest runs is written again until little changes, or so often. */
enum { LIVE_PASSES = 5, LITTLE_PAGES = 2048 };

enum stage { LIVE, REST, DURABLE };

struct job {
    struct pool_job work;
    enum stage stage;
    struct control_call *call;
    char *name;
    bool full; /* no base is wanted */
    bool compress;
    char directory[PATH_MAX]; /* of the snapshot, while it is made; empty: not yet */
    json_t *about;
    struct state_buffer state;
    struct ram_map map;
    int lock, ram;               /* the store's; the file */
    uint64_t *changed;           /* a bit for each page of RAM */
    uint64_t frozen_ns, written; /* host time; bytes of RAM */
    uint64_t packed;             /* those of ram.zst */
    double stood;                /* seconds */
    unsigned disks;              /* of the machine's first so many, those that can have theirs */
    int result;
    struct error err;
};

struct vm_snapshots {
    struct machine *machine;
    const char *directory;
    struct agent *const *agent;
    void (*tell)(void *context, const char *event, json_t *data);
    void *context;
    struct pool *pool;
    struct job *job; /* one at a time */
    atomic_bool ending;
    _Atomic(uint64_t) done; /* bytes of RAM that are dealt with */
    atomic_bool told;       /* on its way to the loop */
    /* What has changed in RAM since the snapshot `base`, for the worker or who starts it. */
    struct dirty_log *log;        /* NULL: not yet kept */
    char base[RAM_BASE_NAME_MAX]; /* empty: none */
};

/* ---- What cannot be in a snapshot ---- */

static bool is_written(const struct machine *machine, unsigned disk) {
    return !machine->images[disk]->info.readonly;
}

static int check_disks(const struct machine *machine, struct error *err) {
    const struct disk_config *disks = machine->config.disks;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        if (is_written(machine, i) && !disk_is(machine->images[i]))
            return error_set(err, -ENOTSUP,
                             "disk%u, %s, is no lodge disk: only those have snapshots; 'lodge disk "
                             "convert' makes one of it",
                             i, disks[i].path);
    }
    return 0;
}

int vm_check_saveable(const struct machine *machine, const struct agent *agent, struct error *err) {
    const struct machine_config *config = &machine->config;
    const char *why = config->verify ? "it runs in lock-step (--verify)"
                      : config->volume_count > 0
                          ? "it has volumes: what the guest has open there is the host's"
                      : config->user_device_count > 0
                          ? "it has devices that other processes serve (--user-device)"
                      : config->huge_pages ? "its memory is of the host's huge pages (--hugepages)"
                      : config->vsock && (agent == NULL || !agent_is_ready(agent))
                          ? "its lodge-agent does not answer"
                      : config->vsock && !agent_comes_again(agent)
                          ? "its lodge-agent is too old to come back after it (see 'lodge image "
                            "build')"
                          : NULL;
    if (why != NULL)
        return error_set(err, -ENOTSUP, "this VM cannot be saved: %s", why);
    return 0;
}

/* ---- Disks: the worker ---- */

/* One of that name that belongs to no snapshot is left from one that was broken off. */
static int take_disk(struct block *image, const char *name, struct error *err) {
    char disk_name[SNAPSHOT_DISK_NAME_MAX];
    snapshot_disk_name(name, disk_name);
    int result = disk_snapshot_create(image, disk_name, err);
    if (result != -EEXIST)
        return result;
    result = disk_snapshot_remove(image, disk_name, NULL, err);
    return result == 0 ? disk_snapshot_create(image, disk_name, err) : result;
}

static int take_disks(const struct machine *machine, struct job *job) {
    int result = 0;
    for (unsigned i = 0; i < machine->config.disk_count && result == 0; i++) {
        if (is_written(machine, i))
            result = take_disk(machine->images[i], job->name, &job->err);
        job->disks += result == 0;
    }
    return result;
}

static void drop_disks(const struct machine *machine, const struct job *job) {
    char name[SNAPSHOT_DISK_NAME_MAX];
    snapshot_disk_name(job->name, name);
    for (unsigned i = 0; i < job->disks; i++)
        if (is_written(machine, i))
            disk_snapshot_remove(machine->images[i], name, NULL, NULL);
}

static json_t *list_disks(const struct machine *machine) {
    json_t *list = json_array();
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        char name[16], path[PATH_MAX];
        snprintf(name, sizeof name, "disk%u", i);
        if (is_written(machine, i) && realpath(machine->config.disks[i].path, path) != NULL)
            json_array_append_new(list, json_pack("{s:s, s:s}", "disk", name, "file", path));
    }
    return list;
}

/* ---- Files: the worker ---- */

static void tell_progress(void *context) {
    struct vm_snapshots *snapshots = context;
    uint64_t total = memory_image_size(snapshots->machine->platform.memory);
    atomic_store(&snapshots->told, false);
    if (!atomic_load(&snapshots->ending))
        snapshots->tell(snapshots->context, "SNAPSHOT_PROGRESS",
                        json_pack("{s:I, s:I}", "done", (json_int_t)atomic_load(&snapshots->done),
                                  "total", (json_int_t)total));
}

static bool goes_on(void *context, uint64_t done) {
    const struct vm_snapshots *snapshots = context;
    return !atomic_load(&snapshots->ending) && !machine_is_disturbed(snapshots->machine);
}

static bool progress(void *context, uint64_t done) {
    struct vm_snapshots *snapshots = context;
    atomic_store(&snapshots->done, done);
    if (!atomic_exchange(&snapshots->told, true))
        loop_post(snapshots->machine->config.loop, tell_progress, snapshots);
    return goes_on(context, done);
}

static int open_new(const struct job *job, const char *name, char path[PATH_MAX],
                    struct error *err) {
    int result = path_join(path, job->directory, name, err);
    if (result < 0)
        return result;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : error_set_errno(err, -errno, "%s", path);
}

/* `wanted`: NULL: all of it. */
static int write_ram(struct vm_snapshots *snapshots, struct job *job, const uint64_t *wanted,
                     memory_image_progress *hear) {
    int result = memory_save_pages(snapshots->machine->platform.memory, job->ram, wanted,
                                   &job->map.pages, hear, snapshots, &job->written);
    if (result == -ECANCELED)
        return error_set(&job->err, result,
                         "the VM is ending, or one of its disks has no space left");
    return result < 0 ? error_set_errno(&job->err, result,
                                        "cannot write the guest's memory to %s/ram", job->directory)
                      : 0;
}

static int64_t fetch_changed(struct vm_snapshots *snapshots, struct job *job) {
    int64_t changed =
        memory_image_fetch_dirty(snapshots->machine->platform.memory, snapshots->log, job->changed);
    if (changed < 0)
        error_set_errno(&job->err, (int)changed, "cannot tell what has changed in memory");
    return changed;
}

/* The base's map, when this snapshot can build upon it. */
static bool find_base(const struct vm_snapshots *snapshots, const struct job *job,
                      struct ram_map *map) {
    char path[PATH_MAX];
    struct ram_chain chain = {0};
    bool good = !job->full && snapshots->base[0] != 0 &&
                snapshot_path(snapshots->directory, snapshots->base, path, NULL) == 0 &&
                ram_chain_open(path, job->map.pages.count, &chain, NULL) == 0 &&
                chain.count < RAM_CHAIN_MAX;
    if (good) {
        *map = chain.layer[0].map;
        chain.layer[0].map = (struct ram_map){0};
    }
    ram_chain_close(&chain);
    return good;
}

static int start_map(struct vm_snapshots *snapshots, struct job *job) {
    struct ram_map base = {0};
    job->map.pages.count = memory_image_size(snapshots->machine->platform.memory) >> PAGE_SHIFT;
    job->full = !find_base(snapshots, job, &base);
    int result =
        ram_map_init(&job->map, job->map.pages.count, job->full ? NULL : snapshots->base, &base);
    ram_map_free(&base);
    job->changed = calloc((job->map.pages.count + 63) / 64, sizeof *job->changed);
    if (result == 0 && job->changed == NULL)
        result = -ENOMEM;
    if (result == 0 && snapshots->log == NULL)
        result = memory_dirty_log_open(snapshots->machine->platform.memory, &snapshots->log);
    return result < 0 ? error_set_errno(&job->err, result, "cannot save memory") : 0;
}

static int write_firmware(const struct machine *machine, struct job *job) {
    char path[PATH_MAX];
    if (machine->firmware == NULL)
        return 0;
    int result = path_join(path, job->directory, "firmware", &job->err);
    return result == 0 ? firmware_keep(machine->firmware, path, &job->err) : result;
}

/* While the guest runs. */
static int write_live(struct vm_snapshots *snapshots, struct job *job) {
    char path[PATH_MAX];
    int result = job->lock = snapshot_lock(snapshots->directory, &job->err);
    if (result >= 0)
        result =
            snapshot_begin(snapshots->directory, job->name, job->about, job->directory, &job->err);
    if (result < 0) {
        job->directory[0] = 0;
        return result;
    }
    job->ram = result = open_new(job, "ram", path, &job->err);
    if (result >= 0)
        result = start_map(snapshots, job);
    if (result == 0)
        result = write_firmware(snapshots->machine, job);
    if (result < 0)
        return result;
    snapshots->base[0] = 0; /* what is fetched from here on is this snapshot's */
    int64_t changed = fetch_changed(snapshots, job);
    result = changed < 0 ? (int)changed
                         : write_ram(snapshots, job, job->full ? NULL : job->changed, progress);
    for (int pass = 1; pass < LIVE_PASSES && result == 0; pass++) {
        changed = fetch_changed(snapshots, job);
        if (changed >= 0 && changed < LITTLE_PAGES)
            pass = LIVE_PASSES;
        result = changed < 0 ? (int)changed : write_ram(snapshots, job, job->changed, goes_on);
    }
    return result;
}

/* The rest, while it stands. */
static int write_last(struct vm_snapshots *snapshots, struct job *job) {
    int64_t changed = fetch_changed(snapshots, job);
    return changed < 0 ? (int)changed : write_ram(snapshots, job, job->changed, goes_on);
}

static int write_state(struct job *job) {
    char path[PATH_MAX];
    int fd = open_new(job, "state", path, &job->err);
    if (fd < 0)
        return fd;
    int result = 0;
    for (size_t at = 0; at < job->state.length && result == 0;) {
        ssize_t done = write(fd, job->state.data + at, job->state.length - at);
        if (done < 0 && errno != EINTR)
            result = error_set_errno(&job->err, -errno, "cannot write %s", path);
        at += done > 0 ? (size_t)done : 0;
    }
    close(fd);
    return result;
}

/* Disks last: nothing is as dear to undo. */
static int write_rest(struct vm_snapshots *snapshots, struct job *job) {
    int result = write_last(snapshots, job);
    if (result == 0)
        result = write_state(job);
    return result == 0 ? take_disks(snapshots->machine, job) : result;
}

static void undo(struct vm_snapshots *snapshots, struct job *job) {
    drop_disks(snapshots->machine, job);
    if (job->directory[0] != 0)
        remove_tree(job->directory);
}

/* The guest runs again. */
static int compress(struct vm_snapshots *snapshots, struct job *job) {
    char path[PATH_MAX], ram[PATH_MAX];
    int fd = open_new(job, "ram.zst", path, &job->err);
    if (fd < 0)
        return fd;
    thread_computes();
    int result = ram_pack(job->ram, &job->map.pages, fd, goes_on, snapshots, &job->packed);
    if (result < 0)
        error_set_errno(&job->err, result, "cannot write %s", path);
    close(fd);
    if (result == 0)
        result = path_join(ram, job->directory, "ram", &job->err);
    if (result == 0 && unlink(ram) < 0)
        result = error_set_errno(&job->err, -errno, "%s", ram);
    close(job->ram); /* here: giving up what it had on the host's disk takes its time */
    job->ram = -1;
    return result;
}

static int sync_ram(struct job *job) {
    return fsync(job->ram) < 0 ? error_set_errno(&job->err, -errno, "%s/ram", job->directory) : 0;
}

static int make_durable(struct vm_snapshots *snapshots, struct job *job) {
    int result = job->compress ? compress(snapshots, job) : sync_ram(job);
    if (result == 0)
        result = ram_map_store(job->directory, &job->map, &job->err);
    if (result == 0)
        result =
            snapshot_commit(snapshots->directory, job->name, job->directory, job->about, &job->err);
    if (result == 0)
        snprintf(snapshots->base, sizeof snapshots->base, "%s", job->name);
    return result;
}

static void on_worked(void *context);

static void work(void *context, struct pool_job *pool_job) {
    static int (*const steps[])(struct vm_snapshots *, struct job *) = {
        [LIVE] = write_live, [REST] = write_rest, [DURABLE] = make_durable};
    struct vm_snapshots *snapshots = context;
    struct job *job = container_of(pool_job, struct job, work);
    if (job->result == 0)
        job->result = steps[job->stage](snapshots, job);
    if (job->stage == DURABLE && job->result < 0)
        undo(snapshots, job);
    loop_post(snapshots->machine->config.loop, on_worked, snapshots);
}

/* ---- The loop ---- */

static void finish(struct vm_snapshots *snapshots) {
    struct job *job = snapshots->job;
    snapshots->job = NULL;
    if (job->ram >= 0)
        close(job->ram);
    if (job->lock >= 0)
        close(job->lock); /* before the answer: another may come upon it */
    if (job->result < 0)
        control_fail(job->call, job->result == -ENOTSUP ? "NotSupported" : "GenericError",
                     job->err.text);
    else
        control_return(job->call,
                       json_pack("{s:f, s:I, s:I, s:I, s:b}", "stood-seconds", job->stood, "bytes",
                                 (json_int_t)job->written, "compressed-bytes",
                                 (json_int_t)job->packed, "state-bytes",
                                 (json_int_t)job->state.length, "full", job->full));
    ram_map_free(&job->map);
    free(job->changed);
    state_buffer_free(&job->state);
    json_decref(job->about);
    free(job->name);
    free(job);
}

static void start_work(struct vm_snapshots *snapshots, enum stage stage) {
    struct job *job = snapshots->job;
    job->stage = stage;
    if (pool_submit(snapshots->pool, &job->work) == 0)
        return;
    if (job->result == 0)
        error_set(&job->err, job->result = -EAGAIN, "the host has no room for another thread");
    work(snapshots, &job->work);
}

static void on_settled(void *context) {
    struct vm_snapshots *snapshots = context;
    struct job *job = snapshots->job;
    if (machine_is_disturbed(snapshots->machine))
        job->result =
            error_set(&job->err, -EBUSY, "the VM is ending, or one of its disks has no space left");
    else
        job->result = machine_save_state(snapshots->machine, &job->state, &job->err);
    json_object_set_new(job->about, "vcpus",
                        json_integer((json_int_t)snapshots->machine->config.vcpus));
    json_object_set_new(job->about, "engine", json_string(engine_name(snapshots->machine->engine)));
    start_work(snapshots, REST);
}

static int check(const struct vm_snapshots *snapshots, struct error *err) {
    char why[ERROR_TEXT_MAX];
    int result = vm_check_saveable(snapshots->machine, *snapshots->agent, err);
    if (result == 0)
        result = check_disks(snapshots->machine, err);
    machine_why_paused(snapshots->machine, why, sizeof why);
    return result == 0 && why[0] != 0 ? error_set(err, -EBUSY, "%s", why) : result;
}

static void freeze(struct vm_snapshots *snapshots) {
    struct job *job = snapshots->job;
    if (job->result == 0)
        job->result = check(snapshots, &job->err);
    job->frozen_ns = host_clock_ns();
    if (job->result == 0)
        job->result = machine_freeze(snapshots->machine, on_settled, snapshots, &job->err);
    if (job->result < 0)
        start_work(snapshots, DURABLE); /* which undoes it */
}

static void thaw(struct vm_snapshots *snapshots) {
    struct job *job = snapshots->job;
    machine_thaw(snapshots->machine);
    job->stood = (double)(host_clock_ns() - job->frozen_ns) / (double)NS_PER_SECOND;
    json_object_set_new(job->about, "stood-seconds", json_real(job->stood));
    start_work(snapshots, DURABLE);
}

static void on_worked(void *context) {
    struct vm_snapshots *snapshots = context;
    if (atomic_load(&snapshots->ending))
        return;
    switch (snapshots->job->stage) {
    case LIVE: freeze(snapshots); break;
    case REST: thaw(snapshots); break;
    case DURABLE: finish(snapshots); break;
    }
}

static struct job *make_job(const struct machine *machine, const json_t *arguments,
                            struct error *err) {
    const char *name = json_string_value(json_object_get(arguments, "name"));
    const char *text = json_string_value(json_object_get(arguments, "description"));
    if (name == NULL) {
        error_set(err, -EINVAL, "a snapshot needs a name");
        return NULL;
    }
    if (text != NULL && strlen(text) > SNAPSHOT_DESCRIPTION_MAX) {
        error_set(err, -EINVAL, "a description has up to %d bytes", SNAPSHOT_DESCRIPTION_MAX);
        return NULL;
    }
    struct job *job = calloc(1, sizeof *job);
    char *copy = strdup(name);
    if (job == NULL || copy == NULL) {
        free(job);
        free(copy);
        error_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    job->name = copy;
    job->ram = job->lock = -1;
    job->full = json_is_true(json_object_get(arguments, "full"));
    job->compress = json_is_true(json_object_get(arguments, "compress"));
    job->about = json_pack("{s:s, s:I, s:o}", "description", text != NULL ? text : "", "memory",
                           (json_int_t)machine->config.memory, "disks", list_disks(machine));
    return job;
}

void vm_snapshots_take(struct vm_snapshots *snapshots, struct control_call *call,
                       const json_t *arguments) {
    struct error err = {0};
    if (snapshots->job != NULL) {
        control_fail(call, "Busy", "a snapshot is being taken already");
        return;
    }
    struct job *job = make_job(snapshots->machine, arguments, &err);
    if (job == NULL) {
        control_fail(call, "BadArgument", err.text);
        return;
    }
    job->call = call;
    snapshots->job = job;
    job->result = check(snapshots, &job->err);
    if (job->result < 0)
        finish(snapshots);
    else
        start_work(snapshots, LIVE);
}

bool vm_snapshots_busy(const struct vm_snapshots *snapshots) {
    return snapshots->job != NULL;
}

/* ---- Life ---- */

/* A VM that goes on from one of its own snapshots has changed nothing since. */
static int start_from_base(struct vm_snapshots *snapshots, struct error *err) {
    const struct machine *machine = snapshots->machine;
    const char *name =
        machine->config.restore != NULL ? strrchr(machine->config.restore, '/') : NULL;
    char path[PATH_MAX];
    if (name == NULL || strlen(name + 1) >= sizeof snapshots->base ||
        snapshot_path(snapshots->directory, name + 1, path, NULL) < 0 ||
        strcmp(path, machine->config.restore) != 0)
        return 0;
    snprintf(snapshots->base, sizeof snapshots->base, "%s", name + 1);
    int result = memory_dirty_log_open(machine->platform.memory, &snapshots->log);
    return result < 0 ? error_set_errno(err, result, "cannot tell what changes in memory") : 0;
}

int vm_snapshots_create(struct machine *machine, const char *directory, struct agent *const *agent,
                        void (*tell)(void *context, const char *event, json_t *data), void *context,
                        struct vm_snapshots **snapshots, struct error *err) {
    struct vm_snapshots *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->machine = machine;
    made->directory = directory;
    made->agent = agent;
    made->tell = tell;
    made->context = context;
    int result = pool_create(THREAD_OTHER, 1, work, made, &made->pool, err);
    if (result == 0)
        result = start_from_base(made, err);
    if (result < 0)
        vm_snapshots_destroy(made);
    else
        *snapshots = made;
    return result;
}

void vm_snapshots_destroy(struct vm_snapshots *snapshots) {
    if (snapshots == NULL)
        return;
    atomic_store(&snapshots->ending, true);
    if (snapshots->pool != NULL)
        pool_destroy(snapshots->pool);
    struct job *job = snapshots->job;
    if (job != NULL && !(job->stage == DURABLE && job->result == 0)) {
        undo(snapshots, job);
        job->result = error_set(&job->err, -ECANCELED, "the VM has ended");
    }
    if (job != NULL)
        finish(snapshots);
    memory_dirty_log_close(snapshots->log);
    free(snapshots);
}
