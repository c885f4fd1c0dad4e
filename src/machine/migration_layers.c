#include "machine/migration_layers.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "block/disk/disk.h"
#include "block/open.h"
#include "block/sync.h"

/* How long the target may hear nothing while there is nothing to be sent: it would give up. */
#define QUIET_NS (5 * NS_PER_SECOND)

struct disk_layers {
    struct block *disk;
    const char *file;
    unsigned index, count;
    uint64_t told_ns; /* a frame went last */
    uint8_t now[EXTENT_DATA_MAX], before[EXTENT_DATA_MAX];
    struct disk_snapshot all[]; /* DISK_SNAPSHOTS_MAX; the oldest first */
};

/* ---- What there is ---- */

/* The one of that id, by its number; -1: it is hidden, or there is none. */
static int find(const struct disk_layers *layers, uint32_t id) {
    for (unsigned i = 0; i < layers->count; i++)
        if (layers->all[i].id == id)
            return (int)i;
    return -1;
}

/* What a tree is sent on: the snapshot that it goes on from, else the one before. */
static int base_of(const struct disk_layers *layers, const struct disk_tree *tree, int before) {
    int parent = find(layers, tree->parent);
    return parent >= 0 ? parent : before;
}

static void live_tree(const struct disk_layers *layers, struct disk_tree *tree) {
    struct disk_usage usage;
    disk_get_usage(layers->disk, &usage);
    *tree = usage.superblock.live;
    tree->size = layers->disk->info.size;
}

/* Disks only grow. */
static int check_sizes(const struct disk_layers *layers, struct error *err) {
    struct disk_tree live;
    live_tree(layers, &live);
    for (unsigned i = 0; i <= layers->count; i++) {
        const struct disk_tree *tree = i < layers->count ? &layers->all[i].tree : &live;
        int base = base_of(layers, tree, (int)i - 1);
        if (base >= 0 && layers->all[base].tree.size > tree->size)
            return error_set(err, -ENOTSUP,
                             "disk%u is smaller than its snapshot '%s' was: 'lodge snapshot rm' or "
                             "'lodge disk snapshot rm' first",
                             layers->index, layers->all[base].name);
    }
    return 0;
}

int disk_layers_create(const struct disk_layers_config *config, struct disk_layers **layers,
                       struct error *err) {
    struct disk_layers *made =
        calloc(1, sizeof *made + DISK_SNAPSHOTS_MAX * sizeof(struct disk_snapshot));
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->disk = config->disk;
    made->file = config->file;
    made->index = config->index;
    made->count = disk_snapshots(config->disk, made->all);
    int result = check_sizes(made, err);
    if (result < 0 || made->count == 0) {
        free(made);
        made = NULL;
    }
    *layers = made;
    return result;
}

void disk_layers_destroy(struct disk_layers *layers) {
    free(layers);
}

uint64_t disk_layers_first_size(const struct disk_layers *layers) {
    return layers->all[0].tree.size;
}

bool disk_layers_show_backing(const struct disk_layers *layers) {
    for (unsigned i = 0; i < layers->count; i++)
        if (layers->all[i].tree.backing_limit != layers->all[i].tree.size)
            return false;
    return true;
}

/* ---- Two of them side by side ---- */

static int tell(struct disk_layers *layers, struct stream *stream, json_t *layer,
                struct error *err) {
    json_object_set_new(layer, "disk", json_integer(layers->index));
    layers->told_ns = host_clock_ns();
    return stream_send_json(stream, STREAM_LAYER, layer, err);
}

static int open_layer(const struct disk_layers *layers, unsigned which, struct block **block,
                      struct error *err) {
    const struct block_options options = {
        .format = BLOCK_FORMAT_LODGE, .readonly = true, .snapshot = layers->all[which].name};
    return block_open(layers->file, &options, block, err);
}

/* A snapshot, or the disk itself, beside what the target has; that may be nothing. */
struct pair {
    struct disk_layers *layers;
    struct block *now, *before;
    bool on_backing;   /* without `before` */
    bool same_backing; /* of both */
    struct stream *stream;
    struct error *err;
};

static uint64_t min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Bytes from an offset on that are known to be the same. */
static uint64_t known_same(const struct pair *pair, uint64_t offset) {
    if (pair->before == NULL)
        return pair->on_backing ? disk_unwritten_run(pair->now, offset)
                                : block_zero_run(pair->now, offset);
    if (offset >= pair->before->info.size)
        return block_zero_run(pair->now, offset);
    uint64_t unwritten = pair->same_backing ? min_u64(disk_unwritten_run(pair->now, offset),
                                                      disk_unwritten_run(pair->before, offset))
                                            : 0;
    if (unwritten > 0)
        return unwritten;
    return min_u64(block_zero_run(pair->now, offset), block_zero_run(pair->before, offset));
}

/* What the target has; zeroes where that ends. */
static int read_before(const struct pair *pair, uint64_t offset, size_t length) {
    uint8_t *to = pair->layers->before;
    uint64_t size = pair->before->info.size;
    size_t there = offset < size ? (size_t)min_u64(length, size - offset) : 0;
    memset(to + there, 0, length - there);
    return there > 0 ? block_read(pair->before, offset, to, there) : 0;
}

/* `length` bytes are in the buffers; -errno. */
static int read_both(const struct pair *pair, uint64_t offset, size_t length) {
    int result = block_read(pair->now, offset, pair->layers->now, length);
    if (result == 0 && pair->before != NULL)
        result = read_before(pair, offset, length);
    return result < 0
               ? error_set_errno(pair->err, result, "disk%u cannot be read", pair->layers->index)
               : 0;
}

/* The end of the bytes that are the same (or are not) from `at` on; by EXTENT_GRAIN. */
static size_t run_end(const struct pair *pair, size_t at, size_t length, bool same) {
    const struct disk_layers *layers = pair->layers;
    while (at < length) {
        size_t step = min_u64(EXTENT_GRAIN, length - at);
        bool is = pair->before != NULL && memcmp(layers->now + at, layers->before + at, step) == 0;
        if (is != same)
            break;
        at += step;
    }
    return at;
}

/* `length` bytes from `offset` on are other ones, and in the buffer at `at`. */
typedef int found(void *context, uint64_t offset, size_t at, size_t length);

static int compare_piece(const struct pair *pair, uint64_t offset, size_t length, found *other,
                         void *context) {
    int result = read_both(pair, offset, length);
    for (size_t at = 0; at < length && result == 0;) {
        size_t begin = run_end(pair, at, length, true);
        at = run_end(pair, begin, length, false);
        if (at > begin)
            result = other(context, offset + begin, begin, at - begin);
    }
    if (result == 0 && host_clock_ns() - pair->layers->told_ns > QUIET_NS)
        result = tell(pair->layers, pair->stream, json_object(), pair->err);
    return result;
}

static uint64_t limit_of(struct block *block) {
    struct disk_usage usage;
    disk_get_usage(block, &usage);
    return usage.superblock.live.backing_limit;
}

static int compare(struct pair *pair, found *other, void *context) {
    uint64_t size = pair->now->info.size;
    int result = 0;
    pair->same_backing = pair->before != NULL && limit_of(pair->now) == limit_of(pair->before);
    for (uint64_t offset = 0; offset < size && result == 0;) {
        uint64_t known = round_down(known_same(pair, offset), EXTENT_GRAIN);
        uint64_t length = min_u64(EXTENT_DATA_MAX, size - offset);
        if (known == 0)
            result = compare_piece(pair, offset, (size_t)length, other, context);
        offset += known != 0 ? known : length;
    }
    return result;
}

/* ---- Sending ---- */

struct sending {
    const struct pair *pair;
    struct extents *extents;
    uint64_t *sent;
};

static int send_run(void *context, uint64_t offset, size_t at, size_t length) {
    const struct sending *sending = context;
    const struct pair *pair = sending->pair;
    const struct extent data = {.which = pair->layers->index,
                                .offset = offset,
                                .length = length,
                                .bytes = pair->layers->now + at};
    bool zeroes = pair->before != NULL || pair->on_backing;
    pair->layers->told_ns = host_clock_ns();
    return extent_send_split(sending->extents, pair->stream, STREAM_DISK, &data, zeroes,
                             sending->sent, pair->err);
}

/* What a tree is sent on: `last` is what the target has at the moment. */
static int begin_layer(struct disk_layers *layers, const struct disk_tree *tree, int base, int last,
                       struct stream *stream, struct error *err) {
    json_t *layer = json_pack("{s:I}", "size", (json_int_t)tree->size);
    if (base >= 0 && base != last)
        json_object_set_new(layer, "on", json_string(layers->all[base].name));
    return tell(layers, stream, layer, err);
}

static int send_layer(struct disk_layers *layers, unsigned which, struct pair *pair,
                      struct extents *extents, uint64_t *sent) {
    const struct disk_snapshot *snapshot = &layers->all[which];
    const struct sending sending = {pair, extents, sent};
    int last = (int)which - 1, base = base_of(layers, &snapshot->tree, last);
    int result = begin_layer(layers, &snapshot->tree, base, last, pair->stream, pair->err);
    if (result == 0)
        result = open_layer(layers, which, &pair->now, pair->err);
    if (result == 0 && base >= 0)
        result = open_layer(layers, (unsigned)base, &pair->before, pair->err);
    if (result == 0)
        result = compare(pair, send_run, (void *)&sending);
    block_close(pair->now);
    block_close(pair->before);
    pair->now = pair->before = NULL;
    return result == 0
               ? tell(layers, pair->stream, json_pack("{s:s}", "keep", snapshot->name), pair->err)
               : result;
}

int disk_layers_send(struct disk_layers *layers, bool on_backing, struct extents *extents,
                     struct stream *stream, uint64_t *sent, struct error *err) {
    struct pair pair = {.layers = layers, .on_backing = on_backing, .stream = stream, .err = err};
    int result = 0;
    for (unsigned i = 0; i < layers->count && result == 0; i++)
        result = send_layer(layers, i, &pair, extents, sent);
    return result;
}

/* ---- The disk itself ---- */

struct marks {
    uint64_t *todo;
    unsigned shift;
};

static int mark(void *context, uint64_t offset, size_t at, size_t length) {
    const struct marks *marks = context;
    (void)at;
    for (uint64_t block = offset >> marks->shift; block <= (offset + length - 1) >> marks->shift;
         block++)
        marks->todo[block / 64] |= UINT64_C(1) << block % 64;
    return 0;
}

int disk_layers_compare(struct disk_layers *layers, unsigned shift, uint64_t *todo,
                        struct stream *stream, struct error *err) {
    struct marks marks = {todo, shift};
    struct pair pair = {.layers = layers, .now = layers->disk, .stream = stream, .err = err};
    struct disk_tree live;
    live_tree(layers, &live);
    int last = (int)layers->count - 1, base = base_of(layers, &live, last);
    int result = begin_layer(layers, &live, base, last, stream, err);
    if (result == 0)
        result = open_layer(layers, (unsigned)base, &pair.before, err);
    if (result == 0)
        result = compare(&pair, mark, &marks);
    block_close(pair.before);
    return result;
}
