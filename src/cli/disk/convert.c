/* lodge disk convert: from any format into a new raw, lodge or qcow2 file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "block/qcow2.h"
#include "block/raw.h"
#include "block/sync.h"
#include "cli/disk/tools.h"
#include "cli/exit_codes.h"
#include "cli/options.h"

enum { PIECE = 1 << 20, GRAIN = 4096 };

struct conversion {
    const struct disk_arguments *arguments;
    struct block *from, *to;
    struct qcow2_writer *writer; /* when it becomes qcow2 */
    uint8_t *bytes;
};

/* What is not zero: whole clusters to qcow2, runs of blocks to the others. */
static int put_piece(struct conversion *c, uint64_t offset, size_t length) {
    if (c->writer != NULL) {
        int result = 0;
        for (size_t at = 0; at < length && result == 0; at += QCOW2_CLUSTER)
            if (!bytes_are_zero(c->bytes + at, QCOW2_CLUSTER))
                result = qcow2_writer_add(c->writer, (offset + at) / QCOW2_CLUSTER, c->bytes + at);
        return result;
    }
    for (size_t at = 0; at < length;) {
        size_t end = at;
        while (end < length &&
               !bytes_are_zero(c->bytes + end, length - end < GRAIN ? length - end : GRAIN))
            end = end + GRAIN < length ? end + GRAIN : length;
        int result = end > at ? block_write(c->to, offset + at, c->bytes + at, end - at) : 0;
        if (result != 0)
            return result;
        at = end + GRAIN;
    }
    return 0;
}

static int copy(struct conversion *c, struct error *err) {
    uint64_t size = c->from->info.size;
    for (uint64_t offset = 0; offset < size && disk_tool_stopped == 0;) {
        uint64_t skip = round_down(block_zero_run(c->from, offset), PIECE);
        if (skip > 0) {
            offset += skip;
            continue;
        }
        size_t length = size - offset < PIECE ? (size_t)(size - offset) : PIECE;
        memset(c->bytes + length, 0, PIECE - length);
        int result = block_read(c->from, offset, c->bytes, length);
        if (result != 0)
            return error_set_errno(err, result, "cannot read %s at byte %llu", c->from->info.name,
                                   (unsigned long long)offset);
        result = put_piece(c, offset, length);
        if (result != 0)
            return error_set_errno(err, result, "cannot write the new disk");
        offset += length;
        disk_tool_progress(c->arguments, "converting", (unsigned)(offset / (size / 1000 + 1)));
    }
    if (disk_tool_stopped != 0)
        return error_set(err, -EINTR, "stopped; nothing has been made");
    int result = c->writer != NULL ? qcow2_writer_finish(c->writer) : 0;
    if (result == 0)
        result = block_flush(c->to);
    return result == 0 ? 0 : error_set_errno(err, result, "cannot write the new disk");
}

static int open_target(struct conversion *c, const char *part, enum block_format format,
                       struct error *err) {
    struct raw_config raw = {.growable = true};
    struct block_options options = {.format = format};
    uint64_t size = c->from->info.size;
    int result = disk_tool_make(part, format, size, c->arguments, err);
    if (result != 0)
        return result;
    if (format != BLOCK_FORMAT_QCOW2)
        return block_open(part, &options, &c->to, err);
    result = truncate(part, 0) == 0 ? 0 : -errno;
    if (result == 0)
        result = block_open_file(part, &raw, &c->to, err);
    return result == 0 ? qcow2_writer_create(c->to, size, &c->writer, err) : result;
}

static int run(struct conversion *c, const char *path, enum block_format format,
               struct error *err) {
    char *part = disk_tool_part_name(path);
    c->bytes = malloc(PIECE);
    if (part == NULL || c->bytes == NULL) {
        free(part);
        return error_set(err, -ENOMEM, "no memory");
    }
    disk_tool_catch_signals();
    int result = open_target(c, part, format, err);
    bool made = result == 0;
    if (result == 0)
        result = copy(c, err);
    if (c->writer != NULL)
        qcow2_writer_free(c->writer);
    block_close(c->to);
    disk_tool_progress(c->arguments, "converting", 1000);
    if (result == 0)
        result = disk_tool_publish(part, path, err);
    else if (made || c->to != NULL)
        unlink(part);
    free(part);
    return result;
}

int disk_tool_convert(const struct disk_arguments *a, struct error *err) {
    struct conversion c = {.arguments = a};
    enum block_format format;
    int said = 0;
    if (a->count != 2)
        return error_set(err, -EINVAL, "usage: lodge disk convert FROM TO");
    const char *path = a->operands[1];
    if (a->format != NULL)
        said = parse_choice("format", a->format, block_formats, err);
    if (said < 0)
        return said;
    if (access(path, F_OK) == 0)
        return error_set(err, -EEXIST, "%s exists already", path);
    int result = block_find_format(path, (enum block_format)said, &format, err);
    if (result == 0 && format == BLOCK_FORMAT_NBD)
        result = error_set(err, -ENOTSUP, "disks are converted into files");
    if (result == 0)
        result = disk_tool_open(a->operands[0], true, &c.from, err);
    if (result == 0)
        result = run(&c, path, format, err);
    block_close(c.from);
    free(c.bytes);
    return result;
}
