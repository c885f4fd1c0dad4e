#include "machine/migration_disks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/disk/disk.h"
#include "block/hold.h"
#include "block/sync.h"
#include "block/written.h"
#include "machine/migration_extents.h"
#include "machine/migration_layers.h"
#include "machine/private.h"

/* How a disk gets there. */
enum travel {
    TRAVEL_NOT,      /* the target reaches it, or makes it */
    TRAVEL_WHOLE,    /* its contents, on nothing */
    TRAVEL_ON_IMAGE, /* what it has beyond the VM's image */
};

/* What is looked at a time in a file, where that takes a system call. */
enum { LOOK_RAW = 64 << 10 };

struct sent_disk {
    unsigned index;
    enum travel travel;
    enum block_format format;
    bool behind; /* stays here */
    struct block *front, *image;
    struct written_log *log; /* NULL: it is not sent, or nobody writes to it */
    uint64_t *todo;          /* bit n: a block is to be sent */
    size_t words;
    unsigned shift;
    uint64_t left;              /* blocks */
    bool blank;                 /* the target's is still being filled for the first time */
    struct disk_layers *layers; /* its snapshots, as long as they are to be sent; NULL: none */
    uint64_t layers_left;       /* bytes of them, about */
};

struct disk_sender {
    struct machine *machine;
    struct extents *extents;
    struct sent_disk disks[MACHINE_DISKS_MAX];
    unsigned count;
    uint64_t sent;
    uint8_t buffer[EXTENT_DATA_MAX];
};

/* ---- Which go along ---- */

static bool is_within(const char *path, const char *directory) {
    size_t length = strlen(directory);
    return strncmp(path, directory, length) == 0 && path[length] == '/';
}

static bool has_no_name(const char *path) {
    return strncmp(path, "/proc/self/fd/", 14) == 0;
}

static bool stands_on_image(const struct sent_disk *disk) {
    struct disk_usage usage;
    if (!disk_is(disk->image) || (disk->layers != NULL && !disk_layers_show_backing(disk->layers)))
        return false;
    disk_get_usage(disk->image, &usage);
    return strcmp(usage.superblock.backing_path, "image/disk.raw") == 0 &&
           usage.superblock.live.backing_limit == usage.superblock.live.size;
}

/* A disk that shows one of its snapshots goes along as that. */
static int find_layers(const struct disk_config *about, struct sent_disk *disk, struct error *err) {
    const struct disk_layers_config config = {
        .disk = disk->image, .file = about->path, .index = disk->index};
    struct disk_usage usage;
    if (!disk_is(disk->image) || about->options.snapshot != NULL)
        return 0;
    int result = disk_layers_create(&config, &disk->layers, err);
    disk_get_usage(disk->image, &usage);
    disk->layers_left = disk->layers != NULL ? usage.used_blocks * DISK_BLOCK : 0;
    return result;
}

static int choose(const struct disk_sender_config *config, struct sent_disk *disk,
                  struct error *err) {
    const struct disk_config *about = &config->machine->config.disks[disk->index];
    bool own = is_within(about->path, config->directory);
    if (has_no_name(about->path) && about->options.readonly) { /* cloud-init's */
        disk->format = BLOCK_FORMAT_RAW;
        disk->travel = TRAVEL_WHOLE;
        return 0;
    }
    if (has_no_name(about->path))
        return error_set(err, -ENOTSUP,
                         "disk%u is a temporary one, which ends with the VM's run here",
                         disk->index);
    int result = block_find_format(about->path, about->options.format, &disk->format, err);
    if (result < 0)
        return result;
    if (disk->format == BLOCK_FORMAT_NBD || (!own && !config->all))
        return 0;
    disk->behind = !own;
    result = find_layers(about, disk, err);
    disk->travel = own && stands_on_image(disk) ? TRAVEL_ON_IMAGE : TRAVEL_WHOLE;
    return result;
}

/* ---- What there is to be sent ---- */

/* Blocks from an offset on that the target has by itself, in bytes. */
static uint64_t known_there(const struct sent_disk *disk, uint64_t offset) {
    uint64_t block = UINT64_C(1) << disk->shift, size = disk->image->info.size;
    uint64_t run = disk->travel == TRAVEL_ON_IMAGE ? disk_unwritten_run(disk->image, offset)
                                                   : block_zero_run(disk->image, offset);
    return offset + run >= size ? size - offset : round_down(run, block);
}

static void add(struct sent_disk *disk, uint64_t block) {
    uint64_t bit = UINT64_C(1) << block % 64;
    disk->left += (disk->todo[block / 64] & bit) == 0;
    disk->todo[block / 64] |= bit;
}

static void look_through(struct sent_disk *disk) {
    uint64_t size = disk->image->info.size, block = UINT64_C(1) << disk->shift;
    uint64_t step = disk_is(disk->image) || block > LOOK_RAW ? block : LOOK_RAW;
    for (uint64_t offset = 0; offset < size;) {
        uint64_t known = known_there(disk, offset);
        uint64_t end = known > 0 ? offset + known : offset + step;
        for (; known == 0 && offset < end && offset < size; offset += block)
            add(disk, offset >> disk->shift);
        offset = end;
    }
    disk->blank = true;
}

static int prepare(struct sent_disk *disk, struct error *err) {
    disk->log = written_log_create(disk->image->info.size);
    disk->words = disk->log != NULL ? written_log_words(disk->log) : 0;
    disk->todo = calloc(disk->words + 1, sizeof *disk->todo);
    if (disk->log == NULL || disk->todo == NULL || hold_log(disk->front, disk->log) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    disk->shift = written_log_shift(disk->log);
    if (UINT64_C(1) << disk->shift > EXTENT_DATA_MAX)
        return error_set(err, -ENOTSUP, "disk%u is too large to be copied", disk->index);
    look_through(disk);
    return 0;
}

int disk_sender_create(const struct disk_sender_config *config, struct disk_sender **sender,
                       struct error *err) {
    struct machine *machine = config->machine;
    struct disk_sender *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->machine = machine;
    made->count = machine->config.disk_count;
    int result = extents_create(config->compress, &made->extents, err);
    for (unsigned i = 0; i < made->count && result == 0; i++) {
        struct sent_disk *disk = &made->disks[i];
        *disk = (struct sent_disk){
            .index = i, .front = machine->blocks[i], .image = machine->images[i]};
        result = choose(config, disk, err);
        if (result == 0 && disk->travel != TRAVEL_NOT)
            result = prepare(disk, err);
    }
    if (result < 0)
        disk_sender_destroy(made);
    else
        *sender = made;
    return result;
}

void disk_sender_destroy(struct disk_sender *sender) {
    if (sender == NULL)
        return;
    for (unsigned i = 0; i < sender->count; i++) {
        struct sent_disk *disk = &sender->disks[i];
        if (disk->log != NULL)
            hold_log(disk->front, NULL);
        written_log_destroy(disk->log);
        disk_layers_destroy(disk->layers);
        free(disk->todo);
    }
    extents_destroy(sender->extents);
    free(sender);
}

static void count_left(struct sent_disk *disk) {
    disk->left = 0;
    for (size_t word = 0; word < disk->words; word++)
        disk->left += (unsigned)__builtin_popcountll(disk->todo[word]);
}

void disk_sender_look(struct disk_sender *sender) {
    for (unsigned i = 0; i < sender->count; i++) {
        struct sent_disk *disk = &sender->disks[i];
        if (disk->log == NULL)
            continue;
        written_log_fetch(disk->log, disk->todo);
        count_left(disk);
    }
}

uint64_t disk_sender_left(const struct disk_sender *sender) {
    uint64_t left = 0;
    for (unsigned i = 0; sender != NULL && i < sender->count; i++)
        left += (sender->disks[i].left << sender->disks[i].shift) + sender->disks[i].layers_left;
    return left;
}

uint64_t disk_sender_sent(const struct disk_sender *sender) {
    return sender->sent;
}

/* ---- What is said of them ---- */

static json_t *describe(const struct disk_sender *sender, const struct sent_disk *disk) {
    const struct block_info *info = &sender->machine->handovers[disk->index]->info;
    json_t *about = json_pack("{s:I, s:I, s:I, s:b, s:b}", "size", (json_int_t)info->size,
                              "logical-block", (json_int_t)info->logical_block, "physical-block",
                              (json_int_t)info->physical_block, "readonly", info->readonly,
                              "discard", info->discard);
    if (disk->travel != TRAVEL_NOT)
        json_object_set_new(
            about, "copy",
            json_pack("{s:s, s:b, s:I, s:I}", "format",
                      block_formats[disk->format == BLOCK_FORMAT_RAW ? BLOCK_FORMAT_RAW
                                                                     : BLOCK_FORMAT_LODGE],
                      "on-image", disk->travel == TRAVEL_ON_IMAGE, "bytes",
                      (json_int_t)((disk->left << disk->shift) + disk->layers_left), "first-size",
                      (json_int_t)(disk->layers != NULL ? disk_layers_first_size(disk->layers)
                                                        : info->size)));
    return about;
}

json_t *disk_sender_describe(const struct disk_sender *sender) {
    json_t *list = json_array();
    for (unsigned i = 0; i < sender->count; i++)
        json_array_append_new(list, describe(sender, &sender->disks[i]));
    return list;
}

json_t *disk_sender_left_behind(const struct disk_sender *sender) {
    json_t *list = json_array();
    for (unsigned i = 0; i < sender->count; i++) {
        const struct sent_disk *disk = &sender->disks[i];
        if (disk->travel != TRAVEL_NOT && disk->behind)
            json_array_append_new(list,
                                  json_pack("{s:o, s:s}", "disk", json_sprintf("disk%u", i), "file",
                                            sender->machine->config.disks[disk->index].path));
    }
    return list;
}

/* ---- Sending ---- */

struct sending {
    struct disk_sender *sender;
    struct stream *stream;
    memory_sender_progress *progress;
    void *context;
    struct error *err;
};

static int send_run(const struct sending *sending, const struct sent_disk *disk, uint64_t offset,
                    size_t length) {
    struct disk_sender *sender = sending->sender;
    int result = block_read(disk->image, offset, sender->buffer, length);
    if (result < 0)
        return error_set_errno(sending->err, result, "disk%u cannot be read", disk->index);
    const struct extent data = {
        .which = disk->index, .offset = offset, .length = length, .bytes = sender->buffer};
    result = extent_send_split(sender->extents, sending->stream, STREAM_DISK, &data,
                               !disk->blank || disk->travel == TRAVEL_ON_IMAGE, &sender->sent,
                               sending->err);
    if (result == 0 && sending->progress != NULL &&
        !sending->progress(sending->context, disk_sender_left(sender)))
        result = error_set(sending->err, -ECANCELED, "cancelled");
    return result;
}

static bool take(struct sent_disk *disk, uint64_t block) {
    uint64_t bit = UINT64_C(1) << block % 64;
    bool taken = block / 64 < disk->words && (disk->todo[block / 64] & bit) != 0;
    if (taken)
        disk->todo[block / 64] &= ~bit;
    disk->left -= taken;
    return taken;
}

/* The blocks from this one on that are to be sent, as many as fit into one extent. */
static int send_from(const struct sending *sending, struct sent_disk *disk, uint64_t first) {
    uint64_t size = disk->image->info.size, offset = first << disk->shift, end = first;
    while ((end + 1 - first) << disk->shift <= EXTENT_DATA_MAX && take(disk, end))
        end++;
    uint64_t length = end << disk->shift < size ? (end - first) << disk->shift : size - offset;
    return send_run(sending, disk, offset, (size_t)length);
}

/* What of the disk is as in its snapshots has come with them. */
static int send_layers(const struct sending *sending, struct sent_disk *disk) {
    struct disk_sender *sender = sending->sender;
    int result = disk_layers_send(disk->layers, disk->travel == TRAVEL_ON_IMAGE, sender->extents,
                                  sending->stream, &sender->sent, sending->err);
    memset(disk->todo, 0, disk->words * sizeof *disk->todo);
    if (result == 0)
        result = disk_layers_compare(disk->layers, disk->shift, disk->todo, sending->stream,
                                     sending->err);
    count_left(disk);
    disk->blank = false;
    disk_layers_destroy(disk->layers);
    disk->layers = NULL;
    disk->layers_left = 0;
    return result;
}

static int send_disk(const struct sending *sending, struct sent_disk *disk) {
    int result = disk->layers != NULL ? send_layers(sending, disk) : 0;
    for (size_t word = 0; word < disk->words && result == 0; word++)
        while (disk->todo[word] != 0 && result == 0)
            result = send_from(sending, disk,
                               (uint64_t)word * 64 + (unsigned)__builtin_ctzll(disk->todo[word]));
    disk->blank = disk->blank && result < 0;
    return result;
}

int disk_sender_send(struct disk_sender *sender, struct stream *stream,
                     memory_sender_progress *progress, void *context, struct error *err) {
    struct sending sending = {sender, stream, progress, context, err};
    int result = 0;
    for (unsigned i = 0; i < sender->count && result == 0; i++)
        result = send_disk(&sending, &sender->disks[i]);
    return result;
}
