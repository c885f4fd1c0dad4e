/* lodge disk info, check. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "block/disk/disk.h"
#include "block/raw.h"
#include "cli/disk/tools.h"
#include "cli/exit_codes.h"

/* ---- info ---- */

static json_t *describe_lodge(struct block *block) {
    struct disk_usage usage;
    char uuid[40];
    disk_get_usage(block, &usage);
    const struct disk_superblock *s = &usage.superblock;
    const uint8_t *u = s->uuid;
    snprintf(uuid, sizeof uuid,
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
    json_t *json = json_pack("{s:s, s:I, s:I}", "uuid", uuid, "journal-bytes",
                             (json_int_t)s->journal_blocks * DISK_BLOCK, "snapshots",
                             (json_int_t)s->snapshot_count);
    if (s->backing_format[0] != 0) {
        json_object_set_new(json, "backing", json_string(s->backing_path));
        json_object_set_new(json, "backing-format", json_string(s->backing_format));
    }
    if (s->backing_snapshot[0] != 0)
        json_object_set_new(json, "backing-snapshot", json_string(s->backing_snapshot));
    return json;
}

static void print_json(json_t *json) {
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
}

static void print_info(const json_t *json) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)json, key, value) {
        if (json_is_string(value))
            printf("%-18s %s\n", key, json_string_value(value));
        else if (strstr(key, "bytes") != NULL)
            printf("%-18s %s\n", key, disk_tool_bytes((uint64_t)json_integer_value(value)));
        else
            printf("%-18s %lld\n", key, (long long)json_integer_value(value));
    }
}

int disk_tool_info(const struct disk_arguments *a, struct error *err) {
    struct block *block;
    struct stat status;
    if (a->count != 1)
        return error_set(err, -EINVAL, "usage: lodge disk info FILE");
    int result = disk_tool_open(a->operands[0], true, &block, err);
    if (result != 0)
        return result;
    json_t *json = json_pack("{s:s, s:s, s:I}", "file", a->operands[0], "format",
                             block->class->name, "bytes", (json_int_t)block->info.size);
    if (stat(a->operands[0], &status) == 0)
        json_object_set_new(json, "bytes-on-host",
                            json_integer((json_int_t)status.st_blocks * 512));
    if (disk_is(block)) {
        json_t *more = describe_lodge(block);
        json_object_update(json, more);
        json_decref(more);
    }
    block_close(block);
    if (a->json) {
        print_json(json);
    } else {
        print_info(json);
        json_decref(json);
    }
    return EXIT_OK;
}

/* ---- check ---- */

struct check_context {
    const struct disk_arguments *arguments;
    json_t *found;
};

static void report(void *context, const char *text) {
    struct check_context *c = context;
    json_array_append_new(c->found, json_string(text));
    if (!c->arguments->json)
        fprintf(stderr, "lodge: %s: %s\n", c->arguments->operands[0], text);
}

static void progress(void *context, unsigned done) {
    const struct check_context *c = context;
    disk_tool_progress(c->arguments, "checking", done);
}

static int repair(const struct disk_arguments *a, uint64_t *bytes, struct error *err) {
    struct block *block;
    struct block_options options = {.format = BLOCK_FORMAT_LODGE, .no_backing = true};
    int result = block_open(a->operands[0], &options, &block, err);
    if (result == 0) {
        result = disk_trim_file(block, bytes, err);
        block_close(block);
    }
    return result;
}

static int check_file(const struct disk_arguments *a, struct disk_check *check, struct error *err) {
    struct raw_config raw = {.readonly = true, .growable = true};
    struct block *file;
    int result = block_open_file(a->operands[0], &raw, &file, err);
    if (result == 0) {
        result = disk_check(file, check, err);
        block_close(file);
    }
    return result;
}

int disk_tool_check(const struct disk_arguments *a, struct error *err) {
    struct check_context context = {.arguments = a, .found = json_array()};
    struct disk_check check = {.report = report, .progress = progress, .context = &context};
    struct block_options options = {0};
    enum block_format format;
    uint64_t freed = 0;
    int result = a->count == 1 ? 0 : error_set(err, -EINVAL, "usage: lodge disk check FILE");
    if (result == 0)
        result = disk_tool_parse(a->operands[0], &options, err);
    if (result == 0)
        result = block_find_format(a->operands[0], options.format, &format, err);
    if (result == 0 && format != BLOCK_FORMAT_LODGE)
        result = error_set(err, -ENOTSUP, "%s is no lodge disk: there is nothing to check",
                           a->operands[0]);
    if (result == 0)
        result = check_file(a, &check, err);
    disk_tool_progress(a, "checking", 1000);
    if (result == 0 && a->repair && check.errors == 0)
        result = repair(a, &freed, err);
    if (result == 0 && a->json)
        print_json(json_pack("{s:I, s:I, s:I, s:I, s:I, s:O}", "errors", (json_int_t)check.errors,
                             "tables", (json_int_t)check.tables, "data-bytes",
                             (json_int_t)check.blocks * DISK_BLOCK, "unused-bytes",
                             (json_int_t)check.unused_bytes, "given-back-bytes", (json_int_t)freed,
                             "found", context.found));
    else if (result == 0)
        printf("%s: %llu errors, %s of data in %llu tables, %s of the file in no use%s\n",
               a->operands[0], (unsigned long long)check.errors,
               disk_tool_bytes(check.blocks * DISK_BLOCK), (unsigned long long)check.tables,
               disk_tool_bytes(check.unused_bytes),
               freed > 0 || a->repair ? ", given back to the host" : "");
    json_decref(context.found);
    if (result != 0)
        return result;
    return check.errors == 0 ? EXIT_OK : EXIT_FAILED;
}
