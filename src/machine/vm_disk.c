#include "machine/vm_disk.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/loop.h"
#include "base/pool.h"
#include "block/block.h"
#include "block/disk/disk.h"
#include "machine/control.h"
#include "machine/private.h"

/* The disk that the arguments name, "disk0" and so on; -1: none, the call is answered. */
static int find(struct machine *machine, struct control_call *call, const json_t *arguments) {
    const char *name = json_string_value(json_object_get(arguments, "disk"));
    struct error err;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        char this_name[16];
        snprintf(this_name, sizeof this_name, "disk%u", i);
        if (name != NULL && strcmp(this_name, name) == 0)
            return (int)i;
    }
    error_set(&err, -ENOENT, "there is no disk '%.32s'", name != NULL ? name : "");
    control_fail(call, "BadArgument", err.text);
    return -1;
}

void vm_disk_resize(struct machine *machine, struct control_call *call, const json_t *arguments) {
    json_int_t size = json_integer_value(json_object_get(arguments, "size"));
    int disk = find(machine, call, arguments);
    struct error err = {0};
    if (disk < 0)
        return;
    struct block *block = machine->blocks[disk];
    uint64_t wanted = size > 0 ? (uint64_t)size : 0;
    if (json_is_true(json_object_get(arguments, "more")) &&
        __builtin_add_overflow(wanted, block->info.size, &wanted))
        wanted = UINT64_MAX;
    if (block_resize(block, wanted, &err) < 0)
        control_fail(call, "GenericError", err.text);
    else
        control_return(call, json_pack("{s:I}", "size", (json_int_t)block->info.size));
}

/* ---- Snapshots ---- */

/* Their work is a worker's: it waits for the disk. */
struct disk_jobs {
    struct pool *pool;
    struct snapshot_job *unanswered;
    atomic_bool stopping; /* the machine ends: removals do not go on */
};

struct snapshot_job {
    struct pool_job job;
    struct snapshot_job *next; /* of those unanswered; the loop's thread */
    struct machine *machine;
    struct control_call *call;
    struct block *image;
    int (*change)(struct snapshot_job *job);
    char *name;
    int result;
    struct error err;
    atomic_uint done;    /* of a removal, in 1/1000 */
    atomic_bool telling; /* of it */
};

static void job_free(struct snapshot_job *job) {
    free(job->name);
    free(job);
}

static void answer(struct snapshot_job *job) {
    if (job->result < 0)
        control_fail(job->call, "GenericError", job->err.text);
    else
        control_return(job->call, NULL);
    job_free(job);
}

static void on_done(void *context) {
    struct snapshot_job *job = context, **link = &job->machine->disk_jobs->unanswered;
    while (*link != job)
        link = &(*link)->next;
    *link = job->next;
    answer(job);
}

static void work(void *context, struct pool_job *pool_job) {
    struct snapshot_job *job = container_of(pool_job, struct snapshot_job, job);
    job->result = job->change(job);
    loop_post(job->machine->config.loop, on_done, job);
}

/* Whoever asked learns how far it is. */
static void tell_done(void *context) {
    struct snapshot_job *job = context;
    atomic_store(&job->telling, false);
    control_tell(job->call, "SNAPSHOT_REMOVAL",
                 json_pack("{s:s, s:i}", "name", job->name, "done", (int)atomic_load(&job->done)));
}

static bool on_progress(void *context, unsigned done) {
    struct snapshot_job *job = context;
    struct disk_jobs *jobs = job->machine->disk_jobs;
    if (atomic_exchange(&job->done, done) != done && !atomic_exchange(&job->telling, true))
        loop_post(job->machine->config.loop, tell_done, job);
    return !atomic_load(&jobs->stopping);
}

static int create_snapshot(struct snapshot_job *job) {
    return disk_snapshot_create(job->image, job->name, &job->err);
}

static int remove_snapshot(struct snapshot_job *job) {
    struct disk_progress progress = {on_progress, job};
    return disk_snapshot_remove(job->image, job->name, &progress, &job->err);
}

static int start_jobs(struct machine *machine, struct error *err) {
    if (machine->disk_jobs != NULL)
        return 0;
    struct disk_jobs *jobs = calloc(1, sizeof *jobs);
    if (jobs == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int result = pool_create(THREAD_OTHER, 1, work, NULL, &jobs->pool, err);
    if (result < 0)
        free(jobs);
    else
        machine->disk_jobs = jobs;
    return result;
}

/* NULL and err: no memory, no thread. */
static struct snapshot_job *make_job(struct machine *machine, const char *name, struct error *err) {
    if (start_jobs(machine, err) < 0)
        return NULL;
    struct snapshot_job *job = calloc(1, sizeof *job);
    char *copy = strdup(name != NULL ? name : "");
    if (job == NULL || copy == NULL) {
        free(job);
        free(copy);
        error_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    job->machine = machine;
    job->name = copy;
    return job;
}

/* The lodge disk that is meant, or NULL: the call is answered. */
static struct block *find_image(struct machine *machine, struct control_call *call,
                                const json_t *arguments) {
    int disk = find(machine, call, arguments);
    struct error err;
    if (disk < 0)
        return NULL;
    if (disk_is(machine->images[disk]))
        return machine->images[disk];
    error_set(&err, -ENOTSUP, "%s is no lodge disk: only those have snapshots",
              machine->config.disks[disk].path);
    control_fail(call, "NotSupported", err.text);
    return NULL;
}

static void change(struct machine *machine, struct control_call *call, const json_t *arguments,
                   int (*how)(struct snapshot_job *job)) {
    const char *name = json_string_value(json_object_get(arguments, "name"));
    struct block *image = find_image(machine, call, arguments);
    struct error err;
    if (image == NULL)
        return;
    struct snapshot_job *job = make_job(machine, name, &err);
    if (job == NULL) {
        control_fail(call, "GenericError", err.text);
        return;
    }
    job->call = call;
    job->image = image;
    job->change = how;
    job->next = machine->disk_jobs->unanswered;
    machine->disk_jobs->unanswered = job;
    if (pool_submit(machine->disk_jobs->pool, &job->job) == 0)
        return;
    machine->disk_jobs->unanswered = job->next;
    job->result = error_set(&job->err, -EAGAIN, "the host has no room for another thread");
    answer(job);
}

void vm_disk_snapshot(struct machine *machine, struct control_call *call, const json_t *arguments) {
    change(machine, call, arguments, create_snapshot);
}

void vm_disk_remove_snapshot(struct machine *machine, struct control_call *call,
                             const json_t *arguments) {
    change(machine, call, arguments, remove_snapshot);
}

void vm_disk_query_snapshots(struct machine *machine, struct control_call *call,
                             const json_t *arguments) {
    struct block *image = find_image(machine, call, arguments);
    if (image == NULL)
        return;
    struct disk_snapshot *all = calloc(DISK_SNAPSHOTS_MAX, sizeof *all);
    unsigned count = all != NULL ? disk_snapshots(image, all) : 0;
    json_t *list = json_array();
    for (unsigned i = 0; i < count; i++)
        json_array_append_new(list, json_pack("{s:s, s:I, s:I}", "name", all[i].name, "created",
                                              (json_int_t)all[i].created, "bytes",
                                              (json_int_t)all[i].tree.size));
    free(all);
    control_return(call, json_pack("{s:o}", "snapshots", list));
}

bool vm_disk_is_busy(const struct machine *machine) {
    return machine->disk_jobs != NULL && machine->disk_jobs->unanswered != NULL;
}

void vm_disk_end(struct machine *machine) {
    struct disk_jobs *jobs = machine->disk_jobs;
    if (jobs == NULL)
        return;
    atomic_store(&jobs->stopping, true);
    pool_destroy(jobs->pool);
    while (jobs->unanswered != NULL) {
        struct snapshot_job *job = jobs->unanswered;
        jobs->unanswered = job->next;
        answer(job);
    }
    free(jobs);
    machine->disk_jobs = NULL;
}
