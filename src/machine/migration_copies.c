#include "machine/migration_copies.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/disk/disk.h"
#include "block/sync.h"
#include "image/file.h"
#include "image/overlay.h"
#include "machine/migration_extents.h"
#include "machine/vm_store.h"

/* No flush is to take so long that the source gives up. */
#define UNFLUSHED_MAX (UINT64_C(512) << 20)

struct copy {
    bool comes, on_image, dirty;
    enum block_format format;
    uint64_t size, bytes; /* its size; what it takes, about */
    uint64_t first;       /* its size in the oldest of its snapshots; without any, its size */
    char file[32], path[PATH_MAX];
    char end[PATH_MAX];  /* its path once the VM has come */
    struct block *block; /* while it comes */
};

struct disk_copies {
    struct copy disks[MACHINE_DISKS_MAX];
    unsigned count;
    bool has_image, has_seed; /* the first is the image's, the last cloud-init's */
    uint64_t unflushed;
    struct extents *extents;
};

static int strange(struct error *err) {
    return error_set(err, -EPROTO,
                     "what the other side says of the VM's disks is not as lodge "
                     "says it");
}

/* ---- What is to come ---- */

static int read_copy(struct disk_copies *copies, const char *name, unsigned index,
                     const json_t *disk, struct error *err) {
    struct copy *copy = &copies->disks[index];
    const json_t *about = json_object_get(disk, "copy");
    const char *format = json_string_value(json_object_get(about, "format"));
    json_int_t bytes = json_integer_value(json_object_get(about, "bytes"));
    json_int_t first = json_integer_value(json_object_get(about, "first-size"));
    bool image = copies->has_image && index == 0;
    bool seed = copies->has_seed && index == copies->count - 1;
    if (about == NULL)
        return image || seed ? strange(err) : 0;
    bool raw = format != NULL && strcmp(format, block_formats[BLOCK_FORMAT_RAW]) == 0;
    bool lodge = format != NULL && strcmp(format, block_formats[BLOCK_FORMAT_LODGE]) == 0;
    *copy = (struct copy){
        .comes = true,
        .on_image = json_is_true(json_object_get(about, "on-image")),
        .format = raw ? BLOCK_FORMAT_RAW : BLOCK_FORMAT_LODGE,
        .size = (uint64_t)json_integer_value(json_object_get(disk, "size")),
        .bytes = bytes > 0 ? (uint64_t)bytes : 0,
    };
    copy->first = lodge && first > 0 && first % BLOCK_SECTOR == 0 ? (uint64_t)first : copy->size;
    if ((!raw && !lodge) || (image && raw) || (seed && !raw) || (copy->on_image && !image))
        return strange(err);
    if (image)
        snprintf(copy->file, sizeof copy->file, "disk.lodge"); /* as overlay_find has it */
    else if (seed)
        snprintf(copy->file, sizeof copy->file, "%s", seed_file);
    else
        snprintf(copy->file, sizeof copy->file, "disk%u.%s", index, format);
    return vm_store_path(name, copy->file, copy->end, err);
}

/* ---- The options ---- */

/* It has another format and place, and of a snapshot that was opened it has only the contents. */
static json_t *renamed(const struct copy *copy, const char *option) {
    char words[256] = "";
    option += strcspn(option, ",");
    while (option[0] == ',') {
        size_t length = 1 + strcspn(option + 1, ","), used = strlen(words);
        if (strncmp(option, ",snapshot=", 10) == 0)
            snprintf(words + used, sizeof words - used, ",readonly");
        else if (strncmp(option, ",format=", 8) != 0)
            snprintf(words + used, sizeof words - used, "%.*s", (int)length, option);
        option += length;
    }
    return json_sprintf("%s,format=%s%s", copy->end, block_formats[copy->format], words);
}

/* The disks that options name, by number, come behind the image's. */
static int rename_disks(const struct disk_copies *copies, json_t *options, struct error *err) {
    const json_t *given = json_object_get(options, "disk");
    size_t count = json_is_array(given) ? json_array_size(given) : given != NULL;
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        const char *option =
            json_string_value(json_is_array(given) ? json_array_get(given, i) : given);
        size_t disk = i + copies->has_image;
        if (option == NULL || disk >= copies->count) {
            json_decref(list);
            return strange(err);
        }
        json_array_append_new(list, copies->disks[disk].comes
                                        ? renamed(&copies->disks[disk], option)
                                        : json_string(option));
    }
    int result = json_array_size(list) == count ? 0 : error_set(err, -ENOMEM, "out of memory");
    if (result == 0 && count > 0)
        json_object_set(options, "disk", list);
    json_decref(list);
    return result;
}

int disk_copies_create(const char *name, const json_t *disks, json_t *options,
                       struct disk_copies **copies, struct error *err) {
    struct disk_copies *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->has_image = json_object_get(options, "image") != NULL;
    made->has_seed = json_object_get(options, "cloud-init") != NULL;
    made->count = (unsigned)json_array_size(disks);
    int result = extents_create(false, &made->extents, err);
    for (unsigned i = 0; i < made->count && result == 0; i++)
        result = read_copy(made, name, i, json_array_get(disks, i), err);
    if (result == 0)
        result = rename_disks(made, options, err);
    if (result < 0)
        disk_copies_destroy(made);
    else
        *copies = made;
    return result;
}

void disk_copies_destroy(struct disk_copies *copies) {
    if (copies == NULL)
        return;
    for (unsigned i = 0; i < copies->count; i++)
        block_close(copies->disks[i].block);
    extents_destroy(copies->extents);
    free(copies);
}

bool disk_copies_has(const struct disk_copies *copies, unsigned disk) {
    return disk < copies->count && copies->disks[disk].comes;
}

uint64_t disk_copies_bytes(const struct disk_copies *copies) {
    uint64_t bytes = 0;
    for (unsigned i = 0; i < copies->count; i++)
        bytes += copies->disks[i].bytes;
    return bytes;
}

const char *disk_copies_file(const struct disk_copies *copies, const char *disk) {
    for (unsigned i = 0; i < copies->count; i++) {
        char name[16];
        snprintf(name, sizeof name, "disk%u", i);
        if (copies->disks[i].comes && strcmp(name, disk) == 0)
            return copies->disks[i].end;
    }
    return NULL;
}

void disk_copies_place(struct disk_copies *copies, const char *directory) {
    for (unsigned i = 0; i < copies->count; i++)
        path_join(copies->disks[i].path, directory, copies->disks[i].file, NULL);
}

void disk_copies_apply(const struct disk_copies *copies, struct machine_config *config) {
    for (unsigned i = 0; i < config->disk_count; i++)
        if (disk_copies_has(copies, i + copies->has_image))
            config->disks[i].path = copies->disks[i + copies->has_image].path;
}

/* ---- Coming ---- */

static int make_raw(const struct copy *copy, struct error *err) {
    int fd = open(copy->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600), result = 0;
    if (fd < 0 || ftruncate(fd, (off_t)copy->size) < 0)
        result = error_set_errno(err, -errno, "%s", copy->path);
    if (fd >= 0)
        close(fd);
    return result;
}

int disk_copies_begin(struct disk_copies *copies, struct error *err) {
    int result = 0;
    for (unsigned i = 0; i < copies->count && result == 0; i++) {
        struct copy *copy = &copies->disks[i];
        const struct block_options options = {.format = copy->format};
        if (!copy->comes)
            continue;
        result = copy->format == BLOCK_FORMAT_RAW
                     ? make_raw(copy, err)
                     : overlay_empty(copy->path, copy->first, !copy->on_image, err);
        if (result == 0)
            result = block_open(copy->path, &options, &copy->block, err);
    }
    return result;
}

int disk_copies_take(struct disk_copies *copies, const struct stream *stream, struct error *err) {
    struct extent extent;
    int result = extent_read(copies->extents, stream, &extent, err);
    if (result < 0)
        return result;
    struct copy *copy = extent.which < copies->count ? &copies->disks[extent.which] : NULL;
    if (copy == NULL || copy->block == NULL || extent.offset % BLOCK_SECTOR != 0 ||
        extent.length % BLOCK_SECTOR != 0 || extent.offset > copy->block->info.size ||
        extent.length > copy->block->info.size - extent.offset)
        return strange(err);
    result = extent.kind == EXTENT_ZEROES
                 ? block_write_zeroes(copy->block, extent.offset, extent.length, true)
                 : block_write(copy->block, extent.offset, extent.bytes, (size_t)extent.length);
    if (result < 0)
        return error_set_errno(err, result, "the target cannot write disk%u", extent.which);
    copy->dirty = true;
    copies->unflushed += extent.kind == EXTENT_ZEROES ? 0 : extent.length;
    return copies->unflushed > UNFLUSHED_MAX ? disk_copies_flush(copies, err) : 0;
}

/* One of its snapshots is whole, or the next one begins. */
static int take_layer(struct copy *copy, const json_t *layer, struct error *err) {
    const char *keep = json_string_value(json_object_get(layer, "keep"));
    const char *on = json_string_value(json_object_get(layer, "on"));
    json_int_t size = json_integer_value(json_object_get(layer, "size"));
    int result = keep != NULL ? disk_snapshot_create(copy->block, keep, err) : 0;
    if (result == 0 && on != NULL)
        result = disk_snapshot_apply(copy->block, on, err);
    if (result == 0 && size != 0 && (uint64_t)size != copy->block->info.size)
        result = size > 0 ? block_resize(copy->block, (uint64_t)size, err) : strange(err);
    copy->dirty = true;
    return result;
}

int disk_copies_layer(struct disk_copies *copies, const struct stream *stream, struct error *err) {
    json_t *layer = NULL;
    int result = stream_json(stream, &layer, err);
    if (result < 0)
        return result;
    json_int_t disk = json_integer_value(json_object_get(layer, "disk"));
    struct copy *copy = disk >= 0 && disk < copies->count ? &copies->disks[disk] : NULL;
    result = copy != NULL && copy->block != NULL && copy->format == BLOCK_FORMAT_LODGE
                 ? take_layer(copy, layer, err)
                 : strange(err);
    json_decref(layer);
    return result;
}

int disk_copies_flush(struct disk_copies *copies, struct error *err) {
    for (unsigned i = 0; i < copies->count; i++) {
        struct copy *copy = &copies->disks[i];
        int result = copy->dirty && copy->block != NULL ? block_flush(copy->block) : 0;
        if (result < 0)
            return error_set_errno(err, result, "the target cannot write disk%u", i);
        copy->dirty = false;
    }
    copies->unflushed = 0;
    return 0;
}

int disk_copies_end(struct disk_copies *copies, struct error *err) {
    int result = disk_copies_flush(copies, err);
    for (unsigned i = 0; i < copies->count; i++) {
        const struct copy *copy = &copies->disks[i];
        if (result == 0 && copy->block != NULL && copy->block->info.size != copy->size)
            result = strange(err);
        block_close(copies->disks[i].block);
        copies->disks[i].block = NULL;
    }
    return result;
}
