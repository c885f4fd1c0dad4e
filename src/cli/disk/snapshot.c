/* lodge disk snapshot create|ls|apply|rm, and diff. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "block/disk/disk.h"
#include "block/sync.h"
#include "cli/disk/tools.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"

static void list_one(const char *name, json_int_t created, json_int_t bytes, json_t *json) {
    char when[32];
    time_t seconds = (time_t)created;
    struct tm utc;
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &utc));
    if (json != NULL)
        json_array_append_new(
            json, json_pack("{s:s, s:s, s:I}", "name", name, "created", when, "bytes", bytes));
    else
        printf("%-32s %-20s  %s\n", name, when, disk_tool_bytes((uint64_t)bytes));
}

static json_t *begin_list(const struct disk_arguments *a) {
    if (a->json)
        return json_array();
    printf("%-32s %-20s  %s\n", "NAME", "CREATED", "SIZE");
    return NULL;
}

static void end_list(json_t *json) {
    if (json == NULL)
        return;
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
}

static int list(const struct disk_arguments *a, struct block *block, struct error *err) {
    struct disk_snapshot *all = calloc(DISK_SNAPSHOTS_MAX, sizeof *all);
    if (all == NULL)
        return error_set(err, -ENOMEM, "no memory");
    json_t *json = begin_list(a);
    unsigned count = disk_snapshots(block, all);
    for (unsigned i = 0; i < count; i++)
        list_one(all[i].name, (json_int_t)all[i].created, (json_int_t)all[i].tree.size, json);
    free(all);
    end_list(json);
    return EXIT_OK;
}

static bool tell_progress(void *context, unsigned done) {
    disk_tool_progress(context, "removing", done);
    return disk_tool_stopped == 0;
}

static int remove_snapshot(const struct disk_arguments *a, struct block *block, struct error *err) {
    struct disk_progress progress = {tell_progress, (void *)(uintptr_t)a};
    disk_tool_catch_signals();
    int result = disk_snapshot_remove(block, a->operands[2], &progress, err);
    disk_tool_progress(a, "removing", 1000);
    return result;
}

/* ---- Of a running VM's disk ---- */

static void on_event(void *context, const char *event, const json_t *data) {
    if (strcmp(event, "SNAPSHOT_REMOVAL") == 0)
        disk_tool_progress(context, "removing",
                           (unsigned)json_integer_value(json_object_get(data, "done")));
}

static void list_running(const struct disk_arguments *a, const json_t *reply) {
    json_t *json = begin_list(a), *snapshot;
    size_t i;
    json_array_foreach(json_object_get(reply, "snapshots"), i, snapshot) {
        list_one(json_string_value(json_object_get(snapshot, "name")),
                 json_integer_value(json_object_get(snapshot, "created")),
                 json_integer_value(json_object_get(snapshot, "bytes")), json);
    }
    end_list(json);
}

/* `name`: NULL lists them. */
static int tell_running(const struct disk_arguments *a, const char *command, const char *name,
                        struct error *err) {
    struct client *client;
    json_t *reply = NULL, *arguments = json_pack("{s:s}", "disk", a->operands[2]);
    int result = vm_connect(a->operands[1], &client, err);
    if (result < 0) {
        json_decref(arguments);
        return result;
    }
    if (name != NULL)
        json_object_set_new(arguments, "name", json_string(name));
    client_on_event(client, on_event, (void *)(uintptr_t)a);
    result = client_call(client, command, arguments, &reply, err);
    client_close(client);
    disk_tool_progress(a, "removing", 1000);
    if (result == 0 && name == NULL)
        list_running(a, reply);
    json_decref(reply);
    return result;
}

int disk_tool_snapshot(const struct disk_arguments *a, struct error *err) {
    enum { CREATE, APPLY, REMOVE, ACTIONS };
    static const char *const names[] = {"create", "apply", "rm"};
    static const char *const commands[] = {"snapshot-disk", NULL, "remove-snapshot"};
    struct block *block;
    const char *action = a->count > 0 ? a->operands[0] : "";
    unsigned which = 0;
    while (which < ACTIONS && strcmp(action, names[which]) != 0)
        which++;
    bool listing = strcmp(action, "ls") == 0;
    int whole = listing ? 2 : 3; /* with a FILE; VM DISK are one more */
    if ((!listing && which == ACTIONS) || (a->count != whole && a->count != whole + 1))
        return error_set(err, -EINVAL,
                         "usage: lodge disk snapshot create|apply|rm FILE|VM DISK NAME, "
                         "or lodge disk snapshot ls FILE|VM DISK");
    if (a->count == whole + 1 && listing)
        return tell_running(a, "query-snapshots", NULL, err);
    if (a->count == whole + 1 && commands[which] == NULL)
        return error_set(
            err, -EBUSY,
            "a running VM's disk cannot go back to a snapshot: stop %s, then lodge disk "
            "snapshot apply FILE %s",
            a->operands[1], a->operands[3]);
    if (a->count == whole + 1)
        return tell_running(a, commands[which], a->operands[3], err);
    int result = disk_tool_open_lodge(a->operands[1], listing, &block, err);
    if (result != 0)
        return result;
    if (listing)
        result = list(a, block, err);
    else if (which == REMOVE)
        result = remove_snapshot(a, block, err);
    else
        result = (which == CREATE ? disk_snapshot_create
                                  : disk_snapshot_apply)(block, a->operands[2], err);
    block_close(block);
    return result;
}

/* ---- diff ---- */

enum { PIECE = 64 << 10, GRAIN = 4096 };

struct difference {
    const struct disk_arguments *arguments;
    uint64_t begin, end; /* of the run that is being gathered */
    uint64_t bytes;
    json_t *json;
};

static void tell(struct difference *d) {
    if (d->end == d->begin)
        return;
    d->bytes += d->end - d->begin;
    if (d->json != NULL)
        json_array_append_new(d->json, json_pack("{s:I, s:I}", "offset", (json_int_t)d->begin,
                                                 "length", (json_int_t)(d->end - d->begin)));
    else
        printf("%14" PRIu64 " %12" PRIu64 "\n", d->begin, d->end - d->begin);
    d->begin = d->end = 0;
}

/* Behind a disk's end there is nothing: it reads as zeroes. */
static int read_part(struct block *block, uint64_t offset, uint8_t *to, size_t length) {
    uint64_t size = block->info.size;
    size_t there = offset >= size ? 0 : size - offset < length ? (size_t)(size - offset) : length;
    memset(to, 0, length);
    return there > 0 ? block_read(block, offset, to, there) : 0;
}

static int compare(struct difference *d, struct block *a, struct block *b, struct error *err) {
    static uint8_t left[PIECE], right[PIECE];
    uint64_t size = a->info.size > b->info.size ? a->info.size : b->info.size;
    for (uint64_t offset = 0; offset < size; offset += PIECE) {
        size_t length = size - offset < PIECE ? (size_t)(size - offset) : PIECE;
        int result = read_part(a, offset, left, length);
        if (result == 0)
            result = read_part(b, offset, right, length);
        if (result != 0)
            return error_set_errno(err, result, "cannot read the disks at byte %" PRIu64, offset);
        for (size_t at = 0; at < length; at += GRAIN) {
            size_t grain = length - at < GRAIN ? length - at : GRAIN;
            if (memcmp(left + at, right + at, grain) == 0)
                continue;
            if (d->end != offset + at)
                tell(d);
            if (d->end == d->begin)
                d->begin = offset + at;
            d->end = offset + at + grain;
        }
        disk_tool_progress(d->arguments, "comparing", (unsigned)(offset / (size / 1000 + 1)));
    }
    tell(d);
    disk_tool_progress(d->arguments, "comparing", 1000);
    return 0;
}

int disk_tool_diff(const struct disk_arguments *a, struct error *err) {
    struct difference d = {.arguments = a, .json = a->json ? json_array() : NULL};
    struct block *left = NULL, *right = NULL;
    int result = a->count == 2 ? 0 : error_set(err, -EINVAL, "usage: lodge disk diff A B");
    if (result == 0)
        result = disk_tool_open(a->operands[0], true, &left, err);
    if (result == 0)
        result = disk_tool_open(a->operands[1], true, &right, err);
    if (result == 0 && !a->json)
        printf("%14s %12s\n", "OFFSET", "LENGTH");
    if (result == 0)
        result = compare(&d, left, right, err);
    if (result == 0 && a->json)
        json_dumpf(d.json, stdout, JSON_INDENT(2)), putchar('\n');
    json_decref(d.json);
    block_close(right);
    block_close(left);
    return result != 0 ? result : d.bytes > 0 ? EXIT_FAILED : EXIT_OK;
}
