/* lodge disk create, resize. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/bytes.h"
#include "block/disk/disk.h"
#include "block/raw.h"
#include "block/sync.h"
#include "cli/disk/tools.h"
#include "cli/exit_codes.h"
#include "cli/options.h"
#include "cli/vm.h"

/* What a new disk notes of its backing: where it lies, in which format, how large it is. */
static int describe_backing(const char *image, char *text, struct disk_create *create,
                            struct block_options *options, struct error *err) {
    struct block *backing;
    int result = disk_tool_parse(text, options, err);
    options->readonly = true;
    char *seen = block_relative_path(image, text);
    if (result == 0 && seen == NULL)
        result = error_set(err, -ENOMEM, "no memory");
    if (result == 0)
        result = block_find_format(seen, options->format, &options->format, err);
    if (result == 0) {
        result = block_open(seen, options, &backing, err);
        if (result != 0)
            error_prefix(err, "the backing (seen from the new disk's directory)");
    }
    free(seen);
    if (result != 0)
        return result;
    create->backing_path = text;
    create->backing_format = block_formats[options->format];
    create->backing_snapshot = options->snapshot;
    create->backing_size = backing->info.size;
    block_close(backing);
    return 0;
}

static int format_lodge(const char *path, uint64_t size, const struct disk_arguments *a,
                        struct error *err) {
    struct raw_config raw = {.growable = true};
    struct disk_create create = {.size = size};
    struct block_options backing_options = {0};
    struct block *file;
    char *backing = a->backing != NULL ? strdup(a->backing) : NULL;
    int result = a->backing != NULL && backing == NULL ? -ENOMEM : 0;
    if (backing != NULL)
        result = describe_backing(path, backing, &create, &backing_options, err);
    if (create.size == 0)
        create.size = create.backing_size;
    if (getrandom(create.uuid, sizeof create.uuid, 0) != (ssize_t)sizeof create.uuid)
        memset(create.uuid, 0, sizeof create.uuid);
    if (result == 0)
        result = block_open_file(path, &raw, &file, err);
    if (result == 0) {
        result = disk_format(file, &create, err);
        if (result == 0 && (result = block_flush(file)) != 0)
            error_set_errno(err, result, "cannot write %s", path);
        block_close(file);
    }
    free(backing);
    return result;
}

static int make_raw(const char *path, uint64_t size, struct error *err) {
    if (truncate(path, (off_t)size) != 0)
        return error_set_errno(err, -errno, "cannot give %s its size", path);
    return 0;
}

int disk_tool_make(const char *path, enum block_format format, uint64_t size,
                   const struct disk_arguments *a, struct error *err) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot create %s", path);
    close(fd);
    int result =
        format == BLOCK_FORMAT_LODGE ? format_lodge(path, size, a, err) : make_raw(path, size, err);
    if (result != 0)
        unlink(path);
    return result;
}

static int check_create(const struct disk_arguments *a, enum block_format format, uint64_t size,
                        struct error *err) {
    if (format != BLOCK_FORMAT_RAW && format != BLOCK_FORMAT_LODGE)
        return error_set(err, -ENOTSUP, "lodge creates raw and lodge disks; qcow2 by conversion");
    if (a->backing != NULL && format != BLOCK_FORMAT_LODGE)
        return error_set(err, -EINVAL, "only a lodge disk can stand on another; name it .lodge");
    if (size == 0 && a->backing == NULL)
        return error_set(err, -EINVAL,
                         "usage: lodge disk create FILE SIZE, or --backing FILE for its size");
    if (size % BLOCK_SECTOR != 0)
        return error_set(err, -EINVAL, "a disk's size is a multiple of %d bytes", BLOCK_SECTOR);
    return 0;
}

int disk_tool_create(const struct disk_arguments *a, struct error *err) {
    enum block_format said = BLOCK_FORMAT_AUTO, format;
    uint64_t size = 0;
    int result = 0;
    if (a->count < 1 || a->count > 2)
        return error_set(err, -EINVAL, "usage: lodge disk create FILE [SIZE]");
    const char *path = a->operands[0];
    if (a->format != NULL)
        result = parse_choice("format", a->format, block_formats, err);
    if (result < 0)
        return result;
    said = (enum block_format)result;
    result = a->count == 2 ? parse_size(a->operands[1], &size, err) : 0;
    if (result == 0)
        result = access(path, F_OK) == 0 ? error_set(err, -EEXIST, "%s exists already", path) : 0;
    if (result == 0)
        result = block_find_format(path, said, &format, err);
    if (result == 0)
        result = check_create(a, format, size, err);
    char *part = disk_tool_part_name(path);
    if (part == NULL)
        result = error_set(err, -ENOMEM, "no memory");
    else if (result == 0)
        result = disk_tool_make(part, format, size, a, err);
    if (part != NULL && result == 0)
        result = disk_tool_publish(part, path, err);
    free(part);
    return result;
}

/* A running VM's disk: its guest hears of it. */
static int resize_running(const struct disk_arguments *a, uint64_t size, bool more,
                          struct error *err) {
    struct client *client;
    int result = vm_connect(a->operands[0], &client, err);
    if (result < 0)
        return result;
    json_t *arguments = json_pack("{s:s, s:I, s:b}", "disk", a->operands[1], "size",
                                  (json_int_t)size, "more", more);
    result = client_call(client, "resize-disk", arguments, NULL, err);
    client_close(client);
    return result;
}

int disk_tool_resize(const struct disk_arguments *a, struct error *err) {
    struct block *block;
    uint64_t size;
    if (a->count != 2 && a->count != 3)
        return error_set(err, -EINVAL, "usage: lodge disk resize FILE|VM DISK [+]SIZE");
    const char *wanted = a->operands[a->count - 1];
    bool more = wanted[0] == '+';
    int result = parse_size(wanted + more, &size, err);
    if (result == 0 && size > INT64_MAX)
        result = error_set(err, -EINVAL, "'%.40s' is too large a size", wanted);
    if (result == 0 && a->count == 3)
        return resize_running(a, size, more, err);
    if (result == 0)
        result = disk_tool_open(a->operands[0], false, &block, err);
    if (result != 0)
        return result;
    if (more)
        size += block->info.size;
    result = block_resize(block, size, err);
    if (result == 0 && (result = block_flush(block)) != 0)
        error_set_errno(err, result, "cannot write %s", a->operands[0]);
    block_close(block);
    return result;
}
