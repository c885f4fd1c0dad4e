#include "cli/snapshot_disks.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/disk/disk.h"
#include "block/open.h"
#include "image/file.h"
#include "machine/machine_state.h"
#include "machine/snapshot_store.h"

static const char *text_of(const json_t *about, const char *member) {
    const char *text = json_string_value(json_object_get(about, member));
    return text != NULL ? text : "";
}

/* ---- In a file ---- */

static int open_disk(const char *file, bool readonly, struct block **block, struct error *err) {
    struct block_options options = {
        .format = BLOCK_FORMAT_LODGE, .readonly = readonly, .no_backing = true};
    return block_open(file, &options, block, err);
}

static bool disk_has(struct block *block, const char *name) {
    struct disk_snapshot *all = calloc(DISK_SNAPSHOTS_MAX, sizeof *all);
    unsigned count = all != NULL ? disk_snapshots(block, all) : 0;
    bool found = false;
    for (unsigned i = 0; i < count && !found; i++)
        found = strcmp(all[i].name, name) == 0;
    free(all);
    return found;
}

typedef int disk_change(struct block *block, const char *name, struct error *err);

static int check_disk(struct block *block, const char *name, struct error *err) {
    return disk_has(block, name)
               ? 0
               : error_set(err, -ENOENT, "%s has lost its snapshot '%s'", block->info.name, name);
}

static int drop_disk(struct block *block, const char *name, struct error *err) {
    return disk_has(block, name) ? disk_snapshot_remove(block, name, NULL, err) : 0;
}

static int change_file(const char *file, const char *name, disk_change *change, struct error *err) {
    struct block *block;
    if (change == drop_disk && access(file, F_OK) < 0 && errno == ENOENT)
        return 0;
    int result = open_disk(file, change == check_disk, &block, err);
    if (result < 0)
        return result;
    result = change(block, name, err);
    block_close(block);
    return result;
}

static int change_files(const json_t *about, disk_change *change, struct error *err) {
    char name[SNAPSHOT_DISK_NAME_MAX];
    json_t *disk;
    size_t i;
    int result = 0;
    snapshot_disk_name(text_of(about, "name"), name);
    json_array_foreach(json_object_get(about, "disks"), i, disk) {
        if (result == 0)
            result = change_file(text_of(disk, "file"), name, change, err);
    }
    return result;
}

int snapshot_disks_check(const json_t *about, struct error *err) {
    return change_files(about, check_disk, err);
}

/* ---- UEFI variables ---- */

/* The file that they are kept in. */
static int find_variables(const char *directory, char path[PATH_MAX], struct error *err) {
    char config[PATH_MAX];
    int result = path_join(config, directory, "config.json", err);
    json_t *all = result == 0 ? json_load_file(config, JSON_REJECT_DUPLICATES, NULL) : NULL;
    const char *said =
        json_string_value(json_object_get(json_object_get(all, "options"), "firmware-vars"));
    if (result == 0 && said != NULL && realpath(said, path) == NULL)
        result = error_set_errno(err, -errno, "firmware variables: %s", said);
    else if (result == 0 && said == NULL)
        result = path_join(path, directory, "uefi-variables", err);
    json_decref(all);
    return result;
}

static int replace_variables(char *path, const uint8_t *contents, size_t size, struct error *err) {
    char *slash = strrchr(path, '/');
    *slash = 0;
    int result = file_replace(path, slash + 1, contents, size, err);
    *slash = '/';
    return result;
}

/* As long as nothing runs they are in that file, of which the snapshot has what the flash held. */
static int put_variables_back(const char *directory, const char *name, struct error *err) {
    char path[PATH_MAX], saved[PATH_MAX];
    struct stat status;
    int result = find_variables(directory, path, err);
    if (result == 0)
        result = snapshot_path(directory, name, saved, err);
    if (result < 0 || stat(path, &status) < 0) /* it has none */
        return result;
    size_t size = (size_t)status.st_size;
    uint8_t *contents = size <= MACHINE_STATE_MAX ? malloc(size + 1) : NULL;
    if (contents == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    result = machine_read_saved_flash(saved, contents, size, err);
    if (result > 0)
        result = replace_variables(path, contents, size, err);
    free(contents);
    return result;
}

int snapshot_disks_apply(const char *directory, const json_t *about, struct error *err) {
    int result = change_files(about, disk_snapshot_apply, err);
    return result == 0 ? put_variables_back(directory, text_of(about, "name"), err) : result;
}

/* ---- By a VM that runs ---- */

static bool has_snapshot(struct client *client, const char *disk, const char *name) {
    json_t *reply = NULL, *one;
    bool found = false;
    size_t i;
    if (client_call(client, "query-snapshots", json_pack("{s:s}", "disk", disk), &reply, NULL) == 0)
        json_array_foreach(json_object_get(reply, "snapshots"), i, one) found |=
            strcmp(text_of(one, "name"), name) == 0;
    json_decref(reply);
    return found;
}

int snapshot_disks_drop(struct client *client, const json_t *about, struct error *err) {
    char name[SNAPSHOT_DISK_NAME_MAX];
    json_t *disk;
    size_t i;
    int result = 0;
    if (client == NULL)
        return change_files(about, drop_disk, err);
    snapshot_disk_name(text_of(about, "name"), name);
    json_array_foreach(json_object_get(about, "disks"), i, disk) {
        const char *which = text_of(disk, "disk");
        if (result == 0 && has_snapshot(client, which, name))
            result = client_call(client, "remove-snapshot",
                                 json_pack("{s:s, s:s}", "disk", which, "name", name), NULL, err);
    }
    return result;
}

/* ---- After a kill, and at the end ---- */

struct recovery {
    const char *directory;
    struct client *client;
};

static int drop(void *context, const json_t *about, struct error *err) {
    const struct recovery *recovery = context;
    return snapshot_disks_drop(recovery->client, about, err);
}

static int apply(void *context, const json_t *about, struct error *err) {
    const struct recovery *recovery = context;
    int result = snapshot_disks_apply(recovery->directory, about, err);
    if (result == 0)
        fprintf(stderr,
                "lodge: going back to '%s' was broken off before; the VM's disks and UEFI "
                "variables are as they were there now\n",
                text_of(about, "name"));
    return result;
}

int snapshot_disks_recover(const char *directory, struct client *client, struct error *err) {
    struct recovery recovery = {directory, client};
    return snapshot_recover(directory, drop, client != NULL ? NULL : apply, &recovery, err);
}

int snapshot_disks_settle(const char *directory, struct error *err) {
    char store[PATH_MAX];
    int result = path_join(store, directory, "snapshots", err);
    if (result < 0 || access(store, F_OK) < 0)
        return result;
    int lock = snapshot_lock(directory, err);
    if (lock < 0)
        return lock;
    result = snapshot_disks_recover(directory, NULL, err);
    close(lock);
    return result;
}

static int drop_outside(const char *directory, const json_t *about, struct error *err) {
    char name[SNAPSHOT_DISK_NAME_MAX];
    size_t length = strlen(directory), i;
    json_t *disk;
    snapshot_disk_name(text_of(about, "name"), name);
    json_array_foreach(json_object_get(about, "disks"), i, disk) {
        const char *file = text_of(disk, "file");
        bool inside = strncmp(file, directory, length) == 0 && file[length] == '/';
        if (!inside && change_file(file, name, drop_disk, err) == -EBUSY)
            return -EBUSY;
    }
    return 0;
}

int snapshot_disks_drop_all(const char *directory, struct error *err) {
    json_t *list = NULL, *about;
    size_t i;
    int result = snapshot_disks_settle(directory, err);
    if (result == 0)
        result = snapshot_list(directory, &list, err);
    json_array_foreach(list, i, about) {
        if (result == 0)
            result = drop_outside(directory, about, err);
    }
    json_decref(list);
    return result;
}
