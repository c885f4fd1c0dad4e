#include "machine/snapshot_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "image/file.h"
#include "machine/control_names.h"
#include "machine/ram_image.h"

static const char being_made[] = ".unfinished", being_removed[] = ".removed",
                  restoring[] = "restoring";

/* ---- Places ---- */

static int store_path(const char *directory, char path[PATH_MAX], struct error *err) {
    return path_join(path, directory, "snapshots", err);
}

static int place(const char *directory, const char *file, char path[PATH_MAX], struct error *err) {
    char store[PATH_MAX];
    int result = store_path(directory, store, err);
    return result == 0 ? path_join(path, store, file, err) : result;
}

/* Two are the store's own. */
static bool is_name(const char *name) {
    return vm_name_check(name, NULL) == 0 && strcmp(name, "current") != 0 &&
           strcmp(name, restoring) != 0;
}

int snapshot_path(const char *directory, const char *name, char path[PATH_MAX], struct error *err) {
    if (!is_name(name))
        return error_set(err, -EINVAL,
                         "'%.40s' is no name for a snapshot: letters, digits, '-', '_' and '.'",
                         name);
    return place(directory, name, path, err);
}

void snapshot_disk_name(const char *name, char text[SNAPSHOT_DISK_NAME_MAX]) {
    snprintf(text, SNAPSHOT_DISK_NAME_MAX, "vm:%s", name);
}

static bool exists(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0;
}

static int sync_path(const char *path, struct error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int result = fd < 0 || fsync(fd) < 0 ? error_set_errno(err, -errno, "%s", path) : 0;
    if (fd >= 0)
        close(fd);
    return result;
}

static int write_json(const char *directory, const char *name, const json_t *value,
                      struct error *err) {
    char *text = json_dumps(value, JSON_INDENT(2) | JSON_ENCODE_ANY);
    if (text == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int result = file_replace(directory, name, text, strlen(text), err);
    free(text);
    return result;
}

/* ---- Which one the VM goes on from ---- */

static json_t *current(const char *directory) {
    char path[PATH_MAX];
    json_t *name = place(directory, "current", path, NULL) == 0
                       ? json_load_file(path, JSON_DECODE_ANY, NULL)
                       : NULL;
    if (json_is_string(name))
        return name;
    json_decref(name);
    return json_null();
}

static int set_current(const char *directory, const json_t *name, struct error *err) {
    char store[PATH_MAX];
    int result = store_path(directory, store, err);
    return result == 0 ? write_json(store, "current", name, err) : result;
}

int snapshot_set_current(const char *directory, const char *name, struct error *err) {
    char path[PATH_MAX];
    json_t *value = json_string(name);
    int result = set_current(directory, value, err);
    json_decref(value);
    if (result == 0)
        result = place(directory, restoring, path, err);
    return result == 0 && unlink(path) < 0 && errno != ENOENT
               ? error_set_errno(err, -errno, "%s", path)
               : result;
}

int snapshot_restoring(const char *directory, const char *name, struct error *err) {
    char store[PATH_MAX];
    json_t *value = json_string(name);
    int result = store_path(directory, store, err);
    if (result == 0)
        result = write_json(store, restoring, value, err);
    json_decref(value);
    return result;
}

/* ---- Making ---- */

/* Where a snapshot of that name goes, and what all of the VM's are in. */
static int paths_of(const char *directory, const char *name, char path[PATH_MAX],
                    char store[PATH_MAX], struct error *err) {
    int result = snapshot_path(directory, name, path, err);
    return result == 0 ? store_path(directory, store, err) : result;
}

int snapshot_lock(const char *directory, struct error *err) {
    char store[PATH_MAX];
    int result = store_path(directory, store, err);
    if (result == 0)
        result = make_directories(store, err);
    if (result < 0)
        return result;
    int fd = open(store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, -errno, "%s", store);
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    result = -errno;
    close(fd);
    return result == -EWOULDBLOCK
               ? error_set(err, -EBUSY, "a snapshot of this VM is just being made or removed")
               : error_set_errno(err, result, "%s", store);
}

int snapshot_begin(const char *directory, const char *name, const json_t *about,
                   char work[PATH_MAX], struct error *err) {
    char path[PATH_MAX], store[PATH_MAX];
    int result = paths_of(directory, name, path, store, err);
    if (result == 0)
        result = path_join(work, store, being_made, err);
    if (result < 0)
        return result;
    if (exists(path))
        return error_set(err, -EEXIST, "there is a snapshot '%s' already", name);
    remove_tree(work);
    if (mkdir(work, 0700) < 0)
        return error_set_errno(err, -errno, "%s", work);
    json_t *intent =
        json_pack("{s:s, s:O}", "name", name, "disks", json_object_get(about, "disks"));
    result = write_json(work, "snapshot.json", intent, err);
    json_decref(intent);
    if (result < 0)
        remove_tree(work);
    return result;
}

static void describe(const char *directory, const char *name, json_t *about) {
    char when[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    json_object_set_new(about, "format", json_integer(SNAPSHOT_FORMAT));
    json_object_set_new(about, "name", json_string(name));
    json_object_set_new(about, "created", json_string(when));
    json_object_set_new(about, "parent", current(directory));
}

static int sync_file(const char *work, const char *name, struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, work, name, err);
    return result == 0 ? sync_path(path, err) : result;
}

int snapshot_commit(const char *directory, const char *name, const char *work, json_t *about,
                    struct error *err) {
    char path[PATH_MAX], store[PATH_MAX];
    int result = paths_of(directory, name, path, store, err);
    if (result == 0)
        result = sync_file(work, "state", err);
    describe(directory, name, about);
    if (result == 0)
        result = write_json(work, "snapshot.json", about, err);
    if (result == 0 && rename(work, path) < 0)
        result = error_set_errno(err, -errno, "%s", path);
    if (result < 0)
        return result;
    result = sync_path(store, err);
    if (result == 0)
        result = snapshot_set_current(directory, name, err);
    if (result < 0)
        rename(path, work); /* the caller drops what belongs to it, so it must not be found */
    return result;
}

/* ---- Reading ---- */

int snapshot_load(const char *directory, const char *name, json_t **about, struct error *err) {
    char path[PATH_MAX], file[PATH_MAX];
    json_error_t where;
    int result = snapshot_path(directory, name, path, err);
    if (result == 0)
        result = path_join(file, path, "snapshot.json", err);
    if (result < 0)
        return result;
    if (!exists(path))
        return error_set(err, -ENOENT, "there is no snapshot '%s'", name);
    json_t *value = json_load_file(file, JSON_REJECT_DUPLICATES, &where);
    if (value == NULL)
        return error_set(err, -EPROTO, "%s, line %d: %s", file, where.line, where.text);
    json_int_t format = json_integer_value(json_object_get(value, "format"));
    bool whole = json_is_string(json_object_get(value, "created")) &&
                 json_is_integer(json_object_get(value, "vcpus")) &&
                 json_is_array(json_object_get(value, "disks"));
    if (format == SNAPSHOT_FORMAT && whole) {
        *about = value;
        return 0;
    }
    json_decref(value);
    if (format != SNAPSHOT_FORMAT && format > 0)
        return error_set(err, -EPROTO, "snapshot '%s' is of %s lodge (format %lld, not %d)", name,
                         format > SNAPSHOT_FORMAT ? "a newer" : "an older", (long long)format,
                         SNAPSHOT_FORMAT);
    return error_set(err, -EPROTO, "%s is not as lodge writes it", file);
}

static int is_snapshot(const struct dirent *entry) {
    return is_name(entry->d_name);
}

/* Of memory, as it is now: a removed base leaves its pages to those that build upon it. */
static json_int_t bytes_of(const char *directory, const char *name) {
    char path[PATH_MAX], ram[PATH_MAX];
    struct stat status;
    static const char *const files[] = {"ram", "ram.zst"};
    for (unsigned i = 0; i < 2; i++)
        if (snapshot_path(directory, name, path, NULL) == 0 &&
            path_join(ram, path, files[i], NULL) == 0 && stat(ram, &status) == 0)
            return (json_int_t)status.st_blocks * 512;
    return 0;
}

/* By time, then by name, which the list is sorted by. */
static void insert(json_t *list, json_t *about) {
    const char *created = json_string_value(json_object_get(about, "created"));
    size_t at = json_array_size(list);
    while (at > 0 &&
           strcmp(json_string_value(json_object_get(json_array_get(list, at - 1), "created")),
                  created) > 0)
        at--;
    json_array_insert_new(list, at, about);
}

bool snapshot_is_kvm(const json_t *about) {
    const char *engine = json_string_value(json_object_get(about, "engine"));
    return engine != NULL && strcmp(engine, "kvm") == 0;
}

int snapshot_list(const char *directory, json_t **list, struct error *err) {
    char store[PATH_MAX];
    struct dirent **entries = NULL;
    int result = store_path(directory, store, err);
    if (result < 0)
        return result;
    int found = scandir(store, &entries, is_snapshot, alphasort);
    if (found < 0 && errno != ENOENT)
        return error_set_errno(err, -errno, "cannot read %s", store);
    json_t *now = current(directory);
    *list = json_array();
    for (int i = 0; i < found; i++) {
        const char *name = entries[i]->d_name;
        json_t *about = NULL;
        struct error why = {0};
        if (snapshot_load(directory, name, &about, &why) < 0)
            about = json_pack("{s:s, s:s, s:s}", "name", name, "created", "", "error", why.text);
        json_object_set_new(about, "bytes", json_integer(bytes_of(directory, name)));
        json_object_set_new(about, "current",
                            json_boolean(json_equal(now, json_object_get(about, "name"))));
        insert(*list, about);
        free(entries[i]);
    }
    free(entries);
    json_decref(now);
    return 0;
}

bool snapshot_exists(const char *directory, const char *name) {
    char path[PATH_MAX];
    return snapshot_path(directory, name, path, NULL) == 0 && exists(path);
}

int snapshot_place_disks(const char *directory, const char *name, snapshot_disk_finder *find,
                         void *context, struct error *err) {
    char path[PATH_MAX];
    json_t *about = NULL, *disk;
    size_t i;
    int result = snapshot_path(directory, name, path, err);
    if (result == 0)
        result = snapshot_load(directory, name, &about, err);
    if (result < 0)
        return result;
    json_array_foreach(json_object_get(about, "disks"), i, disk) {
        const char *is = json_string_value(json_object_get(disk, "disk"));
        const char *file = is != NULL ? find(context, is) : NULL;
        if (file != NULL)
            json_object_set_new(disk, "file", json_string(file));
    }
    json_object_set_new(about, "name", json_string(name));
    result = write_json(path, "snapshot.json", about, err);
    json_decref(about);
    return result;
}

/* ---- Removing ---- */

/* Those that have pages from it take them over. */
static int merge_children(const char *directory, const char *name, struct error *err) {
    json_t *list = NULL, *about;
    size_t i;
    int result = snapshot_list(directory, &list, err);
    if (result < 0)
        return result;
    json_array_foreach(list, i, about) {
        char path[PATH_MAX];
        const char *other = json_string_value(json_object_get(about, "name"));
        if (other == NULL || strcmp(other, name) == 0)
            continue;
        result = snapshot_path(directory, other, path, err);
        if (result == 0)
            result = ram_merge(path, name, err);
        if (result < 0)
            break;
    }
    json_decref(list);
    return result;
}

static int give_children(const char *directory, const json_t *name, const json_t *parent,
                         struct error *err) {
    json_t *list = NULL, *about, *now = current(directory);
    size_t i;
    int result = json_equal(now, name) ? set_current(directory, parent, err) : 0;
    json_decref(now);
    if (result == 0)
        result = snapshot_list(directory, &list, err);
    if (result < 0)
        return result;
    json_array_foreach(list, i, about) {
        char path[PATH_MAX];
        if (!json_equal(json_object_get(about, "parent"), name))
            continue;
        json_object_del(about, "current");
        json_object_del(about, "bytes");
        json_object_set(about, "parent", (json_t *)parent);
        result =
            snapshot_path(directory, json_string_value(json_object_get(about, "name")), path, err);
        if (result == 0)
            result = write_json(path, "snapshot.json", about, err);
        if (result < 0)
            break;
    }
    json_decref(list);
    return result;
}

/* Of one under a name of the store's own, as far as it says; NULL: nothing. */
static json_t *read_about(const char *work) {
    char file[PATH_MAX];
    json_t *about = path_join(file, work, "snapshot.json", NULL) == 0
                        ? json_load_file(file, JSON_REJECT_DUPLICATES, NULL)
                        : NULL;
    if (json_is_string(json_object_get(about, "name")) &&
        json_is_array(json_object_get(about, "disks")))
        return about;
    json_decref(about);
    return NULL;
}

/* Disks first, so that what is left of it says which they are. */
static int clear_away(const char *directory, const char *work, snapshot_disks *drop, void *context,
                      struct error *err) {
    char path[PATH_MAX];
    json_t *about = read_about(work);
    const char *name = json_string_value(json_object_get(about, "name"));
    int result = 0;
    /* A later one of that name has the disks' snapshots now. */
    if (name != NULL && snapshot_path(directory, name, path, NULL) == 0 && !exists(path))
        result = drop(context, about, err);
    json_decref(about);
    if (result < 0)
        return result;
    remove_tree(work);
    return exists(work) ? error_set(err, -EACCES, "some of it cannot be removed: see %s", work) : 0;
}

int snapshot_remove(const char *directory, const char *name, snapshot_disks *drop, void *context,
                    struct error *err) {
    char path[PATH_MAX], work[PATH_MAX];
    json_t *about = NULL;
    int result = snapshot_load(directory, name, &about, err);
    if (result == -ENOENT || result == -EINVAL)
        return result;
    json_t *own = json_string(name), *parent = json_object_get(about, "parent");
    result = snapshot_path(directory, name, path, err);
    if (result == 0)
        result = place(directory, being_removed, work, err);
    if (result == 0)
        result = merge_children(directory, name, err);
    if (result == 0)
        result = give_children(directory, own, parent != NULL ? parent : json_null(), err);
    json_decref(own);
    json_decref(about);
    if (result < 0)
        return result;
    if (rename(path, work) < 0)
        return error_set_errno(err, -errno, "cannot remove %s", path);
    result = clear_away(directory, work, drop, context, err);
    if (result < 0 && result != -EACCES)
        rename(work, path);
    return result;
}

/* ---- After a kill ---- */

static int put_back(const char *directory, snapshot_disks *apply, void *context,
                    struct error *err) {
    char path[PATH_MAX];
    json_t *about = NULL;
    int result = place(directory, restoring, path, err);
    json_t *name = result == 0 ? json_load_file(path, JSON_DECODE_ANY, NULL) : NULL;
    if (json_is_string(name) &&
        snapshot_load(directory, json_string_value(name), &about, NULL) == 0) {
        result = apply(context, about, err);
        if (result == 0)
            result = snapshot_set_current(directory, json_string_value(name), err);
    } else if (result == 0) {
        unlink(path); /* nothing that it could be put back to */
    }
    json_decref(about);
    json_decref(name);
    return result;
}

int snapshot_recover(const char *directory, snapshot_disks *drop, snapshot_disks *apply,
                     void *context, struct error *err) {
    static const char *const left[] = {being_made, being_removed};
    char work[PATH_MAX];
    int result = 0;
    for (unsigned i = 0; i < 2 && result == 0; i++) {
        result = place(directory, left[i], work, err);
        if (result == 0 && exists(work))
            result = clear_away(directory, work, drop, context, err);
    }
    return result == 0 && apply != NULL ? put_back(directory, apply, context, err) : result;
}
