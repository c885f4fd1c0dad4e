/* Snapshots of VMs that last: memory, devices and disks of one moment. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/disk/disk.h"
#include "block/open.h"
#include "cli/cli.h"
#include "cli/disk/tools.h"
#include "cli/exit_codes.h"
#include "cli/start.h"
#include "cli/vm.h"
#include "machine/machine_state.h"
#include "machine/snapshot_store.h"

enum { OPT_DESCRIPTION, OPT_OUTPUT, OPT_HELP };

const struct option_spec snapshot_options[] = {
    [OPT_DESCRIPTION] = {"description", 'd', "TEXT", "create: what it is for"},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

struct request {
    const char *vm, *name, *description;
    bool json;
};

static int help(void) {
    puts("usage: lodge snapshot create [-d TEXT] VM NAME\n"
         "       lodge snapshot ls VM\n"
         "       lodge snapshot restore VM NAME\n"
         "       lodge snapshot rm VM NAME\n\n"
         "Keeps all of a running VM under a name: memory, processors, devices and disks of one\n"
         "moment. restore goes back there and on from it; what the VM is now is lost, unless\n"
         "a snapshot is taken first. Options:");
    option_help(snapshot_options);
    return EXIT_OK;
}

/* The VM's directory; -ENOENT: it is not kept. */
static int find_vm(const char *name, char path[PATH_MAX], struct error *err) {
    if (vm_store_has(name))
        return vm_store_path(name, ".", path, err);
    return error_set(err, -ENOENT, "no VM named '%s' is kept; 'lodge ps -a' lists them", name);
}

/* ---- create ---- */

static void show_progress(const json_t *event) {
    const json_t *data = json_object_get(event, "data");
    double done = (double)json_integer_value(json_object_get(data, "done"));
    double total = (double)json_integer_value(json_object_get(data, "total"));
    if (isatty(STDERR_FILENO) && total > 0)
        fprintf(stderr, "\rmemory %.0f %%%s", 100 * done / total, done >= total ? "\n" : "");
}

/* However long it takes. */
static int wait_for_answer(struct client *client, json_t **answer, struct error *err) {
    for (;;) {
        json_t *message = NULL;
        int result = client_take(client, &message, err);
        if (result < 0)
            return result;
        if (message == NULL) {
            client_wait(client, client_fd(client), 1000);
            continue;
        }
        const char *event = json_string_value(json_object_get(message, "event"));
        json_t *error = json_object_get(message, "error");
        json_t *returned = json_object_get(message, "return");
        if (event != NULL && strcmp(event, "SNAPSHOT_PROGRESS") == 0)
            show_progress(message);
        if (error != NULL)
            result =
                error_set(err, -EREMOTEIO, "%s", json_string_value(json_object_get(error, "desc")));
        *answer = json_incref(returned);
        json_decref(message);
        if (error != NULL || returned != NULL)
            return result;
    }
}

static int create(const struct request *request, struct error *err) {
    struct client *client = NULL;
    json_t *answer = NULL, *arguments = json_pack("{s:s}", "name", request->name);
    if (request->description != NULL)
        json_object_set_new(arguments, "description", json_string(request->description));
    int result = vm_connect(request->vm, &client, err);
    if (result < 0) {
        json_decref(arguments);
        return result;
    }
    result = client_send(client, "snapshot-create", arguments, err);
    if (result == 0)
        result = wait_for_answer(client, &answer, err);
    client_close(client);
    if (result < 0)
        return result;
    if (request->json)
        print_json(json_incref(answer));
    else
        printf("%s: %s of memory; the VM stood for %.3f s\n", request->name,
               disk_tool_bytes((uint64_t)json_integer_value(json_object_get(answer, "bytes"))),
               json_real_value(json_object_get(answer, "stood-seconds")));
    json_decref(answer);
    return 0;
}

/* ---- ls ---- */

static const char *text_of(const json_t *about, const char *member) {
    const char *text = json_string_value(json_object_get(about, member));
    return text != NULL ? text : "";
}

/* Those that go on from `parent` (NULL: from none), and from those, indented. */
static void print_children(const json_t *list, const char *parent, int depth) {
    json_t *about;
    size_t i;
    json_array_foreach((json_t *)list, i, about) {
        const char *own = text_of(about, "name");
        if (strcmp(text_of(about, "parent"), parent) != 0 || depth > 2 * SNAPSHOT_DISK_NAME_MAX)
            continue;
        bool current = json_is_true(json_object_get(about, "current"));
        printf("%*s%-*s %-20s %10s  %s\n", depth, "", depth < 30 ? 32 - depth : 2, own,
               text_of(about, "created"),
               disk_tool_bytes((uint64_t)json_integer_value(json_object_get(about, "bytes"))),
               text_of(about, "description"));
        if (current)
            printf("%*s(now)\n", depth + 2, "");
        if (own[0] != 0)
            print_children(list, own, depth + 2);
    }
}

static int list(const struct request *request, struct error *err) {
    char directory[PATH_MAX];
    json_t *all = NULL;
    int result = find_vm(request->vm, directory, err);
    if (result == 0)
        result = snapshot_list(directory, &all, err);
    if (result < 0)
        return result;
    if (request->json) {
        print_json(all);
        return 0;
    }
    printf("%-32s %-20s %10s  %s\n", "NAME", "CREATED", "SIZE", "DESCRIPTION");
    print_children(all, "", 0);
    json_decref(all);
    return 0;
}

/* ---- Disks ---- */

static int open_disk(const char *file, bool readonly, struct block **block, struct error *err) {
    struct block_options options = {
        .format = BLOCK_FORMAT_LODGE, .readonly = readonly, .no_backing = true};
    return block_open(file, &options, block, err);
}

static bool disk_has(struct block *block, const char *name) {
    struct disk_snapshot *all = calloc(DISK_SNAPSHOTS_MAX, sizeof *all);
    unsigned count = all != NULL ? disk_snapshots(block, all) : 0;
    bool found = false;
    for (unsigned i = 0; i < count && !found; i++)
        found = strcmp(all[i].name, name) == 0;
    free(all);
    return found;
}

typedef int disk_change(struct block *block, const char *name, struct error *err);

static int check_disk(struct block *block, const char *name, struct error *err) {
    return disk_has(block, name)
               ? 0
               : error_set(err, -ENOENT, "%s has lost its snapshot '%s'", block->info.name, name);
}

static int remove_disk(struct block *block, const char *name, struct error *err) {
    return disk_has(block, name) ? disk_snapshot_remove(block, name, NULL, err) : 0;
}

/* To each of the snapshot's disks, none of which is in use. */
static int each_disk(const json_t *about, const char *snapshot, disk_change *change,
                     struct error *err) {
    char name[SNAPSHOT_DISK_NAME_MAX];
    json_t *disk;
    size_t i;
    int result = 0;
    snapshot_disk_name(snapshot, name);
    json_array_foreach(json_object_get(about, "disks"), i, disk) {
        struct block *block;
        if (result == 0 &&
            (result = open_disk(text_of(disk, "file"), change == check_disk, &block, err)) == 0) {
            result = change(block, name, err);
            block_close(block);
        }
    }
    return result;
}

/* The same for those of a running VM. */
static bool has_snapshot(struct client *client, const char *disk, const char *name) {
    json_t *reply = NULL, *one;
    bool found = false;
    size_t i;
    if (client_call(client, "query-snapshots", json_pack("{s:s}", "disk", disk), &reply, NULL) == 0)
        json_array_foreach(json_object_get(reply, "snapshots"), i, one) found |=
            strcmp(text_of(one, "name"), name) == 0;
    json_decref(reply);
    return found;
}

static int remove_running(struct client *client, const json_t *about, const char *snapshot,
                          struct error *err) {
    char name[SNAPSHOT_DISK_NAME_MAX];
    json_t *disk;
    size_t i;
    int result = 0;
    snapshot_disk_name(snapshot, name);
    json_array_foreach(json_object_get(about, "disks"), i, disk) {
        const char *which = text_of(disk, "disk");
        if (result == 0 && has_snapshot(client, which, name))
            result = client_call(client, "remove-snapshot",
                                 json_pack("{s:s, s:s}", "disk", which, "name", name), NULL, err);
    }
    return result;
}

/* ---- rm ---- */

/* Disks first: until the end it is there, and can be removed again. */
static int rm_disks(const struct request *request, const json_t *about, struct error *err) {
    struct vm_directory directory;
    struct client *client = NULL;
    int result = vm_store_lock(request->vm, &directory, err);
    if (result == 0) {
        result = each_disk(about, request->name, remove_disk, err);
        vm_store_unlock(&directory);
        return result;
    }
    if (result == -EBUSY)
        result = vm_connect(request->vm, &client, err);
    if (result < 0)
        return result;
    result = remove_running(client, about, request->name, err);
    client_close(client);
    return result;
}

static int rm(const struct request *request, struct error *err) {
    char directory[PATH_MAX];
    json_t *about = NULL;
    int result = find_vm(request->vm, directory, err);
    if (result == 0)
        result = snapshot_load(directory, request->name, &about, err);
    if (result == 0 || result == -EPROTO) /* then its disks are not known */
        result = about != NULL ? rm_disks(request, about, err) : 0;
    json_decref(about);
    return result == 0 ? snapshot_remove(directory, request->name, err) : result;
}

/* ---- restore ---- */

static int go_back(const struct request *request, const struct vm_directory *directory,
                   const json_t *about, struct error *err) {
    struct start_from from = {.vcpus =
                                  (unsigned)json_integer_value(json_object_get(about, "vcpus"))};
    char path[PATH_MAX];
    json_t *options = NULL;
    int result = vm_store_load(request->vm, &options, err);
    if (result == 0)
        result = snapshot_path(directory->path, request->name, path, err);
    if (result == 0)
        result = each_disk(about, request->name, check_disk, err);
    if (result == 0)
        result = each_disk(about, request->name, disk_snapshot_apply, err);
    if (result == 0)
        result = snapshot_set_current(directory->path, request->name, err);
    from.snapshot = path;
    if (result == 0)
        result = start_vm(request->vm, directory, options, &from, err);
    json_decref(options);
    return result;
}

/* Whether the VM can go on from it: looked at before it is stopped. */
static int check_files(const struct request *request, const char *directory, const json_t *about,
                       struct error *err) {
    char path[PATH_MAX];
    int result = snapshot_path(directory, request->name, path, err);
    json_int_t memory = json_integer_value(json_object_get(about, "memory"));
    return result == 0 ? machine_check_saved(path, (uint64_t)memory, err) : result;
}

static int restore(const struct request *request, struct error *err) {
    char path[PATH_MAX];
    struct vm_directory directory;
    json_t *about = NULL;
    int result = find_vm(request->vm, path, err);
    if (result == 0)
        result = snapshot_load(path, request->name, &about, err);
    if (result == 0)
        result = check_files(request, path, about, err);
    if (result < 0) {
        json_decref(about);
        return result;
    }
    result = vm_store_lock(request->vm, &directory, err);
    if (result == -EBUSY) {
        result = vm_stop(request->vm, 0, err);
        if (result == 0)
            result = vm_store_lock(request->vm, &directory, err);
    }
    if (result == 0) {
        result = go_back(request, &directory, about, err);
        vm_store_unlock(&directory);
    }
    json_decref(about);
    if (result == 0 && request->json)
        print_json(json_pack("[{s:s, s:s}]", "name", request->vm, "status", "running"));
    return result;
}

/* ---- The verb ---- */

static const struct action {
    const char *name;
    int operands;
    int (*run)(const struct request *request, struct error *err);
} actions[] = {{"create", 2, create}, {"ls", 1, list}, {"restore", 2, restore}, {"rm", 2, rm}};

static const struct action *find_action(const char *name, int operands, struct error *err) {
    for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++)
        if (strcmp(name, actions[i].name) == 0 && operands == actions[i].operands)
            return &actions[i];
    error_set(err, -EINVAL,
              "usage: lodge snapshot create|restore|rm VM NAME, or lodge snapshot ls VM");
    return NULL;
}

static int run(struct request *request, char **operands, int count) {
    struct error err = {0};
    const struct action *action = find_action(count > 0 ? operands[0] : "", count - 1, &err);
    if (action == NULL)
        return cli_error(EXIT_USAGE, err.text);
    request->vm = operands[1];
    request->name = count > 2 ? operands[2] : NULL;
    int result = action->run(request, &err);
    if (result > 0)
        return result; /* the monitor has said why */
    return result == 0 ? EXIT_OK : cli_error(EXIT_FAILED, err.text);
}

int cmd_snapshot(int argc, char **argv) {
    struct option_parser parser = {.specs = snapshot_options, .argc = argc, .argv = argv, .at = 1};
    struct request request = {0};
    struct error err = {0};
    char *operands[4] = {NULL};
    int count = 0, option;
    while ((option = option_next(&parser, &err)) != OPTION_END || parser.at < argc) {
        if (option == OPTION_ERROR)
            return cli_error(EXIT_USAGE, err.text);
        if (option == OPT_HELP)
            return help();
        if (option == OPT_DESCRIPTION)
            request.description = parser.value;
        else if (option == OPT_OUTPUT && parse_output(parser.value, &request.json, &err) < 0)
            return cli_error(EXIT_USAGE, err.text);
        else if (option == OPTION_END && count == 4)
            break;
        else if (option == OPTION_END)
            operands[count++] = argv[parser.at++];
    }
    return run(&request, operands, count + (parser.at < argc));
}
