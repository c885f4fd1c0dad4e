#include "machine/migration_snapshots.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/file.h"
#include "machine/control_names.h"
#include "machine/migration_files.h"
#include "machine/snapshot_store.h"

/* Of one file, and of all snapshots together. */
#define FILE_SIZE_MAX (UINT64_C(1) << 46)
enum { FILES_MAX = 1 << 14 };

static const char what[] = "the VM's snapshots";

static const char *text_of(const json_t *object, const char *member) {
    return json_string_value(json_object_get(object, member));
}

/* ---- The side that a VM leaves ---- */

static int is_file(const struct dirent *entry) {
    return vm_name_check(entry->d_name, NULL) == 0;
}

/* "files" gets {"snapshot", "file", "size"} of each. */
static int describe_one(const char *directory, const char *name, json_t *files, uint64_t *bytes,
                        struct error *err) {
    char path[PATH_MAX];
    struct dirent **entries = NULL;
    int result = snapshot_path(directory, name, path, err);
    if (result < 0)
        return result;
    int found = scandir(path, &entries, is_file, alphasort);
    if (found < 0)
        return error_set_errno(err, -errno, "%s", path);
    for (int i = 0; i < found; i++) {
        struct moved_file file;
        if (result == 0)
            result = moved_file_find(path, entries[i]->d_name, &file, bytes, err);
        if (result == 0)
            json_array_append_new(files,
                                  json_pack("{s:s, s:s, s:I}", "snapshot", name, "file",
                                            entries[i]->d_name, "size", (json_int_t)file.size));
        free(entries[i]);
    }
    free(entries);
    return result;
}

int migration_snapshots_describe(const char *directory, json_t **about, struct error *err) {
    json_t *list = NULL, *files = json_array(), *current = json_null(), *one;
    uint64_t bytes = 0;
    size_t i;
    int result = snapshot_list(directory, &list, err);
    json_array_foreach(list, i, one) {
        if (json_is_true(json_object_get(one, "current")))
            current = json_object_get(one, "name");
        if (result == 0 && text_of(one, "error") != NULL)
            result = error_set(err, -EPROTO, "its snapshot '%s' cannot be read: %s",
                               text_of(one, "name"), text_of(one, "error"));
        if (result == 0)
            result = describe_one(directory, text_of(one, "name"), files, &bytes, err);
    }
    *about = result == 0 && json_array_size(list) > 0
                 ? json_pack("{s:O, s:O, s:I}", "current", current, "files", files, "bytes",
                             (json_int_t)bytes)
                 : NULL;
    json_decref(files);
    json_decref(list);
    return result;
}

/* ---- Both ---- */

/* Where one is, or will be. */
static int place_file(const char *directory, const json_t *about, struct moved_file *file,
                      struct error *err) {
    char path[PATH_MAX];
    const char *snapshot = text_of(about, "snapshot"), *name = text_of(about, "file");
    json_int_t size = json_integer_value(json_object_get(about, "size"));
    file->size = (uint64_t)size;
    if (snapshot == NULL || name == NULL || vm_name_check(name, NULL) < 0 || size < 0 ||
        (uint64_t)size > FILE_SIZE_MAX || snapshot_path(directory, snapshot, path, NULL) < 0)
        return error_set(err, -EPROTO,
                         "what the other side says of the VM's snapshots is not as lodge says it");
    return path_join(file->path, path, name, err);
}

/* "files" as they are in a directory; to be freed. */
static int place_files(const char *directory, const json_t *about, struct moved_files *list,
                       struct error *err) {
    const json_t *files = json_object_get(about, "files");
    size_t count = json_array_size(files);
    struct moved_file *made = count <= FILES_MAX ? calloc(count + 1, sizeof *made) : NULL;
    int result = 0;
    if (made == NULL)
        return error_set(err, -ENOMEM, "%s are too many", what);
    for (size_t i = 0; i < count && result == 0; i++)
        result = place_file(directory, json_array_get(files, i), &made[i], err);
    *list = (struct moved_files){made, (unsigned)count, what};
    return result;
}

int migration_snapshots_send(const char *directory, const json_t *about, struct stream *stream,
                             bool compress, memory_sender_progress *progress, void *context,
                             struct error *err) {
    struct moved_files list = {0};
    int result = place_files(directory, about, &list, err);
    if (result == 0)
        result = stream_expect(stream, STREAM_SNAPSHOTS, err);
    if (result == 0)
        result = moved_files_send(&list, migration_snapshots_bytes(about), stream, compress,
                                  progress, context, err);
    free((void *)list.files);
    return result;
}

/* ---- The side that it comes to ---- */

uint64_t migration_snapshots_bytes(const json_t *about) {
    json_int_t bytes = json_integer_value(json_object_get(about, "bytes"));
    return bytes > 0 ? (uint64_t)bytes : 0;
}

static int make_homes(const struct moved_files *list, struct error *err) {
    int result = 0;
    for (unsigned i = 0; i < list->count && result == 0; i++) {
        char home[PATH_MAX];
        snprintf(home, sizeof home, "%s", list->files[i].path);
        *strrchr(home, '/') = 0;
        result = make_directories(home, err);
    }
    return result;
}

static const char *find_disk(void *context, const char *disk) {
    return disk_copies_file(context, disk);
}

/* They are to be as lodge writes them. */
static int settle(const json_t *about, const struct disk_copies *copies, const char *directory,
                  struct error *err) {
    const json_t *one;
    const char *current = text_of(about, "current"), *last = "";
    size_t i;
    int result = 0;
    json_array_foreach(json_object_get(about, "files"), i, one) {
        const char *name = text_of(one, "snapshot");
        if (result == 0 && strcmp(name, last) != 0)
            result = snapshot_place_disks(directory, name, find_disk, (void *)copies, err);
        last = name;
    }
    return result == 0 && current != NULL && snapshot_exists(directory, current)
               ? snapshot_set_current(directory, current, err)
               : result;
}

int migration_snapshots_receive(const json_t *about, const struct disk_copies *copies,
                                struct stream *stream, const char *directory, struct error *err) {
    struct moved_files list = {0};
    int result = place_files(directory, about, &list, err);
    if (result == 0)
        result = make_homes(&list, err);
    if (result == 0)
        result = stream_send(stream, STREAM_SNAPSHOTS, NULL, 0, err);
    if (result == 0)
        result = moved_files_receive(&list, stream, err);
    if (result == 0)
        result = settle(about, copies, directory, err);
    free((void *)list.files);
    return result;
}
