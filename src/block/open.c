#include "block/open.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "block/disk/disk.h"
#include "block/nbd.h"
#include "block/qcow2.h"
#include "block/raw.h"

const char *const block_formats[] = {
    [BLOCK_FORMAT_AUTO] = "auto",   [BLOCK_FORMAT_RAW] = "raw", [BLOCK_FORMAT_LODGE] = "lodge",
    [BLOCK_FORMAT_QCOW2] = "qcow2", [BLOCK_FORMAT_NBD] = "nbd", NULL};

/* ---- Options ---- */

static int parse_format(const char *name, enum block_format *format, struct error *err) {
    for (int i = BLOCK_FORMAT_RAW; block_formats[i] != NULL; i++)
        if (strcmp(block_formats[i], name) == 0) {
            *format = (enum block_format)i;
            return 0;
        }
    return error_set(err, -EINVAL,
                     "there is no disk format '%.40s'; there are raw, lodge, qcow2 "
                     "and nbd",
                     name);
}

int block_option_parse(struct block_options *options, const char *word, struct error *err) {
    if (strcmp(word, "readonly") == 0) {
        options->readonly = true;
        return 0;
    }
    if (strncmp(word, "format=", 7) == 0)
        return parse_format(word + 7, &options->format, err);
    if (strncmp(word, "snapshot=", 9) == 0) {
        options->snapshot = word + 9;
        options->readonly = true;
        return 0;
    }
    if (strncmp(word, "cache=", 6) == 0) {
        options->direct = strcmp(word + 6, "none") == 0;
        if (!options->direct && strcmp(word + 6, "writeback") != 0)
            return error_set(err, -EINVAL, "cache=%.40s: it can be writeback or none", word + 6);
        return 0;
    }
    return error_set(
        err, -ENOENT,
        "unknown word '%.40s'; there are readonly, format=, cache= and snapshot=", word);
}

/* ---- Formats ---- */

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length > tail && strcmp(text + length - tail, end) == 0;
}

/* What a file's first bytes look like. */
static enum block_format looks_like(const char *path) {
    uint8_t bytes[8] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    ssize_t got = fd >= 0 ? pread(fd, bytes, sizeof bytes, 0) : -1;
    if (fd >= 0)
        close(fd);
    if (got != (ssize_t)sizeof bytes)
        return BLOCK_FORMAT_RAW;
    if (disk_probe(bytes, sizeof bytes))
        return BLOCK_FORMAT_LODGE;
    return qcow2_probe(bytes, sizeof bytes) ? BLOCK_FORMAT_QCOW2 : BLOCK_FORMAT_RAW;
}

int block_find_format(const char *path, enum block_format said, enum block_format *format,
                      struct error *err) {
    *format = said;
    if (said != BLOCK_FORMAT_AUTO)
        return 0;
    if (strncmp(path, "nbd:", 4) == 0 || strncmp(path, "nbd+unix:", 9) == 0)
        *format = BLOCK_FORMAT_NBD;
    else if (ends_with(path, ".lodge"))
        *format = BLOCK_FORMAT_LODGE;
    else if (ends_with(path, ".qcow2"))
        *format = BLOCK_FORMAT_QCOW2;
    else
        *format = BLOCK_FORMAT_RAW;
    enum block_format looks = *format == BLOCK_FORMAT_RAW ? looks_like(path) : BLOCK_FORMAT_RAW;
    if (looks == BLOCK_FORMAT_RAW)
        return 0;
    return error_set(err, -EINVAL,
                     "%s looks like a %s image, but is not named .%s; say format=%s, or format=raw",
                     path, block_formats[looks], block_formats[looks], block_formats[looks]);
}

char *block_relative_path(const char *image, const char *path) {
    const char *slash = strrchr(image, '/');
    char *joined;
    if (path[0] == '/' || slash == NULL || strncmp(path, "nbd", 3) == 0)
        return strdup(path);
    return asprintf(&joined, "%.*s/%s", (int)(slash - image), image, path) < 0 ? NULL : joined;
}

/* ---- Opening ---- */

static int open_any(const char *path, const struct block_options *options, unsigned depth,
                    struct block **block, struct error *err);

/* What an image stands on: always readonly. */
static int open_backing(const char *image, const char *path, const char *format,
                        const char *snapshot, const struct block_options *above, unsigned depth,
                        struct block **backing, struct error *err) {
    struct block_options options = {.readonly = true, .direct = above->direct};
    *backing = NULL;
    if (format[0] == 0 || above->no_backing)
        return 0;
    if (depth + 1 >= BLOCK_CHAIN_MAX)
        return error_set(err, -ELOOP, "%s: more than %d images on one another, or a loop", image,
                         BLOCK_CHAIN_MAX);
    int result = parse_format(format, &options.format, err);
    char *full = block_relative_path(image, path);
    options.snapshot = snapshot[0] != 0 ? snapshot : NULL;
    if (result == 0 && full == NULL)
        result = error_set(err, -ENOMEM, "no memory for disk %s", path);
    if (result == 0) {
        result = open_any(full, &options, depth + 1, backing, err);
        if (result != 0 && (result != -ELOOP || depth == 0)) /* a loop names itself */
            error_prefix(err, "the backing of %s", image);
    }
    free(full);
    return result;
}

static int open_lodge(const char *path, const struct block_options *options, unsigned depth,
                      struct block **block, struct error *err) {
    struct raw_config raw = {.readonly = options->readonly,
                             .direct = options->direct,
                             .reader = options->snapshot != NULL,
                             .growable = true};
    struct disk_options config = {.readonly = options->readonly, .snapshot = options->snapshot};
    struct disk_superblock superblock;
    struct block *file = NULL, *backing = NULL;
    int result = block_open_file(path, &raw, &file, err);
    if (result == 0)
        result = disk_read_superblock(file, &superblock, err);
    if (result == 0)
        result = open_backing(path, superblock.backing_path, superblock.backing_format,
                              superblock.backing_snapshot, options, depth, &backing, err);
    if (result == 0) {
        config.file_limit = block_is_device(file) ? file->info.size : 0;
        result = disk_open(file, backing, &config, block, err);
    }
    if (result != 0) {
        block_close(backing);
        block_close(file);
    }
    return result;
}

static int open_qcow2(const char *path, const struct block_options *options, unsigned depth,
                      struct block **block, struct error *err) {
    struct raw_config raw = {.readonly = true, .direct = options->direct};
    struct qcow2_backing names;
    struct block *file = NULL, *backing = NULL;
    if (!options->readonly)
        return error_set(err, -ENOTSUP,
                         "%s: qcow2 images are only read; for one run say %s,temporary, else make "
                         "a disk on top of it: lodge disk create --backing %s NEW.lodge",
                         path, path, path);
    int result = block_open_file(path, &raw, &file, err);
    if (result == 0)
        result = qcow2_read_backing(file, &names, err);
    if (result == 0)
        result = open_backing(path, names.path, names.format, "", options, depth, &backing, err);
    if (result == 0)
        result = qcow2_open(file, backing, block, err);
    if (result != 0) {
        block_close(backing);
        block_close(file);
    }
    return result;
}

static int open_any(const char *path, const struct block_options *options, unsigned depth,
                    struct block **block, struct error *err) {
    struct raw_config raw = {.readonly = options->readonly, .direct = options->direct};
    enum block_format format;
    int result = block_find_format(path, options->format, &format, err);
    if (result != 0)
        return result;
    if (options->snapshot != NULL && format != BLOCK_FORMAT_LODGE)
        return error_set(err, -EINVAL, "%s: only lodge disks have snapshots", path);
    switch (format) {
    case BLOCK_FORMAT_LODGE: return open_lodge(path, options, depth, block, err);
    case BLOCK_FORMAT_QCOW2: return open_qcow2(path, options, depth, block, err);
    case BLOCK_FORMAT_NBD: return nbd_open(path, options->readonly, block, err);
    case BLOCK_FORMAT_AUTO:
    case BLOCK_FORMAT_RAW: break;
    }
    return block_open_file(path, &raw, block, err);
}

int block_open(const char *path, const struct block_options *options, struct block **block,
               struct error *err) {
    return open_any(path, options, 0, block, err);
}
