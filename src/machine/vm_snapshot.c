/*
 * A snapshot is taken in four steps: the loop holds the machine, and saves
 * its state once nothing is under way; a worker writes RAM and has the disks
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
#include "block/disk/disk.h"
#include "image/file.h"
#include "machine/machine_state.h"
#include "machine/private.h"
#include "machine/snapshot_store.h"

struct job {
    struct pool_job work;
    struct control_call *call;
    char *name;
    char directory[PATH_MAX]; /* of the snapshot, while it is made */
    json_t *about;
    struct state_buffer state;
    uint64_t frozen_ns, written; /* host time; bytes of RAM */
    double stood;                /* seconds */
    unsigned disks;              /* of the machine's first so many, those that can have theirs */
    bool durable;                /* the second piece of work */
    int result;
    struct error err;
};

struct vm_snapshots {
    struct machine *machine;
    const char *directory;
    void (*tell)(void *context, const char *event, json_t *data);
    void *context;
    struct pool *pool;
    struct job *job; /* one at a time */
    bool ending;
    _Atomic(uint64_t) done; /* bytes of RAM that are dealt with */
    atomic_bool told;       /* on its way to the loop */
};

/* ---- What cannot be in a snapshot ---- */

static bool is_written(const struct machine *machine, unsigned disk) {
    return !machine->images[disk]->info.readonly;
}

static int check_disks(const struct machine *machine, struct error *err) {
    const struct disk_config *disks = machine->config.disks;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        if (disks[i].device == DISK_NVME)
            return error_set(err, -ENOTSUP, "disk%u is an NVMe disk, which has no snapshots yet",
                             i);
        if (is_written(machine, i) && !disk_is(machine->images[i]))
            return error_set(err, -ENOTSUP,
                             "disk%u, %s, is no lodge disk: only those have snapshots; 'lodge disk "
                             "convert' makes one of it",
                             i, disks[i].path);
    }
    return 0;
}

static int check_machine(const struct machine *machine, const struct agent *agent,
                         struct error *err) {
    const struct machine_config *config = &machine->config;
    const char *why = strcmp(engine_name(machine->engine), "soft") != 0
                          ? "its engine is KVM, which cannot be saved yet; use --engine soft"
                      : config->verify ? "it runs in lock-step (--verify)"
                      : config->volume_count > 0
                          ? "it has volumes: what the guest has open there is the host's"
                      : config->user_device_count > 0
                          ? "it has devices that other processes serve (--user-device)"
                      : config->huge_pages ? "its memory is of the host's huge pages (--hugepages)"
                      : config->firmware != FIRMWARE_NONE
                          ? "it boots by firmware, whose flash cannot be saved yet"
                      : config->vsock && (agent == NULL || !agent_is_ready(agent))
                          ? "its lodge-agent does not answer"
                      : config->vsock && !agent_comes_again(agent)
                          ? "its lodge-agent is too old to come back after it (see 'lodge image "
                            "build')"
                          : NULL;
    if (why != NULL)
        return error_set(err, -ENOTSUP, "no snapshot can be taken of this VM: %s", why);
    return check_disks(machine, err);
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
    if (!snapshots->ending)
        snapshots->tell(snapshots->context, "SNAPSHOT_PROGRESS",
                        json_pack("{s:I, s:I}", "done", (json_int_t)atomic_load(&snapshots->done),
                                  "total", (json_int_t)total));
}

static bool progress(void *context, uint64_t done) {
    struct vm_snapshots *snapshots = context;
    atomic_store(&snapshots->done, done);
    if (!atomic_exchange(&snapshots->told, true))
        loop_post(snapshots->machine->config.loop, tell_progress, snapshots);
    return !machine_is_disturbed(snapshots->machine);
}

static int open_new(const struct job *job, const char *name, char path[PATH_MAX],
                    struct error *err) {
    int result = path_join(path, job->directory, name, err);
    if (result < 0)
        return result;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : error_set_errno(err, -errno, "%s", path);
}

static int write_ram(struct vm_snapshots *snapshots, struct job *job) {
    char path[PATH_MAX];
    int fd = open_new(job, "ram", path, &job->err);
    if (fd < 0)
        return fd;
    int result = memory_save_image(snapshots->machine->platform.memory, fd, progress, snapshots,
                                   &job->written);
    close(fd);
    return result < 0
               ? error_set_errno(&job->err, result, "cannot write the guest's memory to %s", path)
               : 0;
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
static int write_all(struct vm_snapshots *snapshots, struct job *job) {
    int result = write_ram(snapshots, job);
    if (result == 0)
        result = write_state(job);
    return result == 0 ? take_disks(snapshots->machine, job) : result;
}

static void undo(struct vm_snapshots *snapshots, struct job *job) {
    drop_disks(snapshots->machine, job);
    remove_tree(job->directory);
}

static int make_durable(struct vm_snapshots *snapshots, struct job *job) {
    return snapshot_commit(snapshots->directory, job->name, job->directory, job->about, &job->err);
}

static void on_written(void *context);
static void on_durable(void *context);

static void work(void *context, struct pool_job *pool_job) {
    struct vm_snapshots *snapshots = context;
    struct job *job = container_of(pool_job, struct job, work);
    bool durable = job->durable;
    if (job->result == 0)
        job->result = durable ? make_durable(snapshots, job) : write_all(snapshots, job);
    if (durable && job->result < 0)
        undo(snapshots, job);
    loop_post(snapshots->machine->config.loop, durable ? on_durable : on_written, snapshots);
}

/* ---- The loop ---- */

static void finish(struct vm_snapshots *snapshots) {
    struct job *job = snapshots->job;
    snapshots->job = NULL;
    if (job->result < 0)
        control_fail(job->call, job->result == -ENOTSUP ? "NotSupported" : "GenericError",
                     job->err.text);
    else
        control_return(job->call, json_pack("{s:f, s:I, s:I}", "stood-seconds", job->stood, "bytes",
                                            (json_int_t)job->written, "state-bytes",
                                            (json_int_t)job->state.length));
    state_buffer_free(&job->state);
    json_decref(job->about);
    free(job->name);
    free(job);
}

static void on_durable(void *context) {
    struct vm_snapshots *snapshots = context;
    if (!snapshots->ending)
        finish(snapshots);
}

static void start_work(struct vm_snapshots *snapshots) {
    struct job *job = snapshots->job;
    if (pool_submit(snapshots->pool, &job->work) == 0)
        return;
    error_set(&job->err, job->result = -EAGAIN, "the host has no room for another thread");
    work(snapshots, &job->work);
}

static void on_written(void *context) {
    struct vm_snapshots *snapshots = context;
    struct job *job = snapshots->job;
    if (snapshots->ending)
        return;
    machine_thaw(snapshots->machine);
    job->stood = (double)(host_clock_ns() - job->frozen_ns) / (double)NS_PER_SECOND;
    json_object_set_new(job->about, "bytes", json_integer((json_int_t)job->written));
    json_object_set_new(job->about, "stood-seconds", json_real(job->stood));
    job->durable = true;
    start_work(snapshots);
}

static void on_settled(void *context) {
    struct vm_snapshots *snapshots = context;
    struct job *job = snapshots->job;
    if (machine_is_disturbed(snapshots->machine))
        job->result =
            error_set(&job->err, -EBUSY, "the VM is ending, or one of its disks has no space left");
    else
        job->result = machine_save_state(snapshots->machine, &job->state, &job->err);
    start_work(snapshots);
}

static int begin(struct vm_snapshots *snapshots, const struct agent *agent, struct job *job,
                 struct error *err) {
    struct machine *machine = snapshots->machine;
    char why[ERROR_TEXT_MAX];
    int result = check_machine(machine, agent, err);
    machine_why_paused(machine, why, sizeof why);
    if (result == 0 && why[0] != 0)
        result = error_set(err, -EBUSY, "%s", why);
    if (result == 0)
        result = snapshot_begin(snapshots->directory, job->name, job->directory, err);
    if (result < 0)
        return result;
    snapshots->job = job;
    job->frozen_ns = host_clock_ns();
    result = machine_freeze(machine, on_settled, snapshots, err);
    if (result < 0) {
        snapshots->job = NULL;
        remove_tree(job->directory);
    }
    return result;
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
    job->about = json_pack("{s:s, s:I, s:i, s:o}", "description", text != NULL ? text : "",
                           "memory", (json_int_t)machine->config.memory, "vcpus",
                           (int)machine->config.vcpus, "disks", list_disks(machine));
    return job;
}

void vm_snapshots_take(struct vm_snapshots *snapshots, const struct agent *agent,
                       struct control_call *call, const json_t *arguments) {
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
    job->result = begin(snapshots, agent, job, &job->err);
    if (job->result == 0)
        return;
    snapshots->job = job;
    finish(snapshots);
}

/* ---- Life ---- */

int vm_snapshots_create(struct machine *machine, const char *directory,
                        void (*tell)(void *context, const char *event, json_t *data), void *context,
                        struct vm_snapshots **snapshots, struct error *err) {
    struct vm_snapshots *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->machine = machine;
    made->directory = directory;
    made->tell = tell;
    made->context = context;
    int result = pool_create(1, work, made, &made->pool, err);
    if (result < 0)
        free(made);
    else
        *snapshots = made;
    return result;
}

void vm_snapshots_destroy(struct vm_snapshots *snapshots) {
    if (snapshots == NULL)
        return;
    snapshots->ending = true;
    pool_destroy(snapshots->pool);
    struct job *job = snapshots->job;
    if (job != NULL && !(job->durable && job->result == 0)) {
        undo(snapshots, job);
        job->result = error_set(&job->err, -ECANCELED, "the VM has ended");
    }
    if (job != NULL)
        finish(snapshots);
    free(snapshots);
}
