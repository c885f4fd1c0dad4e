/* Snapshots of VMs that last: memory, devices and disks of one moment. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/disk/tools.h"
#include "cli/exit_codes.h"
#include "cli/snapshot_disks.h"
#include "cli/start.h"
#include "cli/vm.h"
#include "machine/clone.h"
#include "machine/machine_state.h"
#include "machine/snapshot_store.h"

enum { OPT_DESCRIPTION, OPT_FULL, OPT_COMPRESS, OPT_CHECK, OPT_OUTPUT, OPT_HELP };

const struct option_spec snapshot_options[] = {
    [OPT_DESCRIPTION] = {"description", 'd', "TEXT", "create: what it is for"},
    [OPT_FULL] = {"full", 0, NULL, "create: with all of memory, not what has changed alone"},
    [OPT_COMPRESS] = {"compress", 0, NULL, "create: with memory compressed, which takes longer"},
    [OPT_CHECK] = {"check", 0, NULL, "restore: as 'lodge snapshot check' first"},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

struct request {
    const char *vm, *name, *description;
    bool full, compress, check, json;
};

static int help(void) {
    puts("usage: lodge snapshot create [-d TEXT] [--full] [--compress] VM NAME\n"
         "       lodge snapshot ls VM\n"
         "       lodge snapshot restore [--check] VM NAME\n"
         "       lodge snapshot check VM NAME\n"
         "       lodge snapshot rm VM NAME\n\n"
         "Keeps all of a running VM under a name: memory, processors, devices and disks of one\n"
         "moment. restore goes back there and on from it; what the VM is now is lost, unless\n"
         "a snapshot is taken first. A further snapshot keeps what has changed since the one\n"
         "before. check reads all of one and compares it with its sums. Options:");
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

/* arguments becomes this call's own. */
static int take(const char *vm, json_t *arguments, json_t **answer, struct error *err) {
    struct client *client = NULL;
    int result = vm_connect(vm, &client, err);
    if (result < 0) {
        json_decref(arguments);
        return result;
    }
    result = client_send(client, "snapshot-create", arguments, err);
    if (result == 0)
        result = wait_for_answer(client, answer, err);
    client_close(client);
    return result;
}

int snapshot_take(const char *vm, const char *name, const char *description, bool full,
                  json_t **answer, struct error *err) {
    return take(
        vm, json_pack("{s:s, s:b, s:s*}", "name", name, "full", full, "description", description),
        answer, err);
}

static int create(const struct request *request, struct error *err) {
    json_t *answer = NULL;
    json_t *arguments = json_pack("{s:s, s:b, s:s*}", "name", request->name, "full", request->full,
                                  "description", request->description);
    if (request->compress) /* which monitors of older lodges do not know */
        json_object_set_new(arguments, "compress", json_true());
    int result = take(request->vm, arguments, &answer, err);
    if (result < 0)
        return result;
    json_int_t packed = json_integer_value(json_object_get(answer, "compressed-bytes"));
    char text[64] = "";
    if (packed > 0)
        snprintf(text, sizeof text, ", compressed to %s", disk_tool_bytes((uint64_t)packed));
    if (request->json)
        print_json(json_incref(answer));
    else
        printf("%s: %s of %smemory%s; the VM stood for %.3f s\n", request->name,
               disk_tool_bytes((uint64_t)json_integer_value(json_object_get(answer, "bytes"))),
               json_is_true(json_object_get(answer, "full")) ? "" : "changed ", text,
               json_real_value(json_object_get(answer, "stood-seconds")));
    json_decref(answer);
    return 0;
}

/* ---- ls ---- */

static const char *text_of(const json_t *about, const char *member) {
    const char *text = json_string_value(json_object_get(about, member));
    return text != NULL ? text : "";
}

/* How deep a tree is drawn, in steps of STEP columns: what is deeper stands there, too. What a name
 * and its lines have together. */
enum { DEPTH_MAX = 64, STEP = 3, NAME_COLUMN = 32 };

static const json_t *find(const json_t *list, const char *name) {
    json_t *about;
    size_t i;
    json_array_foreach((json_t *)list, i,
                       about) if (strcmp(text_of(about, "name"), name) == 0) return about;
    return NULL;
}

/* The next behind `i` that goes on from `parent`; "": from none, or one that is not there. */
static size_t next_child(const json_t *list, size_t i, const char *parent) {
    for (; i < json_array_size(list); i++) {
        const char *own = text_of(json_array_get(list, i), "parent");
        if (strcmp(find(list, own) != NULL ? own : "", parent) == 0)
            break;
    }
    return i;
}

static void print_one(const char *lines, const json_t *about) {
    const char *error = text_of(about, "error");
    int used = (int)(strlen(lines) + strlen(text_of(about, "name")));
    printf("%s%s%*s", lines, text_of(about, "name"), used < NAME_COLUMN ? NAME_COLUMN - used : 1,
           "");
    if (error[0] != 0)
        printf(" %s\n", error);
    else
        printf(" %-20s %10s  %s\n", text_of(about, "created"),
               disk_tool_bytes((uint64_t)json_integer_value(json_object_get(about, "bytes"))),
               text_of(about, "description"));
}

/* Below `parent`, whose own lines lead here; those of the last child end with it. */
static void print_children(const json_t *list, const char *parent, char *lines, bool current) {
    size_t length = strlen(lines), i = next_child(list, 0, parent), next;
    bool root = parent[0] == 0;
    if (length > (size_t)DEPTH_MAX * STEP)
        length -= STEP;
    for (; i < json_array_size(list); i = next) {
        const json_t *about = json_array_get(list, i);
        const char *own = text_of(about, "name");
        next = next_child(list, i + 1, parent);
        bool last = next == json_array_size(list) && !current;
        if (!root)
            memcpy(lines + length, last ? "`- " : "|- ", STEP + 1);
        print_one(lines, about);
        if (!root)
            memcpy(lines + length, last ? "   " : "|  ", STEP + 1);
        print_children(list, own, lines, json_is_true(json_object_get(about, "current")));
        lines[length] = 0;
    }
    if (current)
        printf("%s`- (now)\n", lines);
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
    char lines[(DEPTH_MAX + 2) * STEP] = "";
    print_children(all, "", lines, false);
    json_decref(all);
    return 0;
}

/* ---- rm ---- */

static int drop(void *client, const json_t *about, struct error *err) {
    return snapshot_disks_drop(client, about, err);
}

/* The store is locked. client: of the VM; NULL: it does not run. */
static int rm_locked(const char *directory, const char *name, struct client *client,
                     struct error *err) {
    int result = snapshot_disks_recover(directory, client, err);
    return result == 0 ? snapshot_remove(directory, name, drop, client, err) : result;
}

static int rm_any(const struct request *request, const char *path, struct error *err) {
    struct vm_directory directory;
    struct client *client = NULL;
    int result = vm_store_lock(request->vm, &directory, err);
    if (result == 0) {
        result = rm_locked(path, request->name, NULL, err);
        vm_store_unlock(&directory);
        return result;
    }
    if (result == -EBUSY)
        result = vm_connect(request->vm, &client, err);
    if (result == 0)
        result = rm_locked(path, request->name, client, err);
    client_close(client);
    return result;
}

static int rm(const struct request *request, struct error *err) {
    char path[PATH_MAX];
    int hold = -1, lock = -1, result = find_vm(request->vm, path, err);
    if (result == 0)
        result = start_check_left(request->vm, err);
    if (result == 0)
        result = hold = vm_store_hold(err);
    if (result >= 0)
        result = clone_check_users(request->vm, request->name, err);
    if (result == 0)
        result = lock = snapshot_lock(path, err);
    if (result >= 0)
        result = rm_any(request, path, err);
    if (lock >= 0)
        close(lock);
    if (hold >= 0)
        close(hold);
    return result;
}

/* ---- restore ---- */

/* The store is locked: a kill on the way is made good by who starts the VM next. */
static int put_disks_back(const char *directory, const json_t *about, struct error *err) {
    const char *name = text_of(about, "name");
    int result = snapshot_disks_recover(directory, NULL, err);
    if (result == 0)
        result = snapshot_disks_check(about, err);
    if (result == 0)
        result = snapshot_restoring(directory, name, err);
    if (result == 0)
        result = snapshot_disks_apply(directory, about, err);
    return result == 0 ? snapshot_set_current(directory, name, err) : result;
}

static int go_back(const struct request *request, const struct vm_directory *directory,
                   const json_t *about, struct error *err) {
    struct start_from from = {
        .vcpus = (unsigned)json_integer_value(json_object_get(about, "vcpus")),
        .kvm = snapshot_is_kvm(about),
    };
    char path[PATH_MAX];
    json_t *options = NULL;
    int result = vm_store_load(request->vm, &options, err);
    if (result == 0)
        result = snapshot_path(directory->path, request->name, path, err);
    int lock = result == 0 ? result = snapshot_lock(directory->path, err) : -1;
    if (lock >= 0) {
        result = put_disks_back(directory->path, about, err);
        close(lock); /* not the monitor's to inherit */
    }
    from.snapshot = path;
    if (result == 0)
        result = start_vm(request->vm, directory, options, &from, err);
    json_decref(options);
    return result;
}

/* Whether the VM can go on from it: looked at before it is stopped. */
static int check_files(const struct request *request, const char *directory, const json_t *about,
                       bool sums, struct error *err) {
    char path[PATH_MAX];
    int result = snapshot_path(directory, request->name, path, err);
    json_int_t memory = json_integer_value(json_object_get(about, "memory"));
    return result == 0 ? machine_check_saved(path, (uint64_t)memory, sums, err) : result;
}

static int restore(const struct request *request, struct error *err) {
    char path[PATH_MAX];
    struct vm_directory directory;
    json_t *about = NULL;
    int result = find_vm(request->vm, path, err);
    if (result == 0)
        result = start_check_left(request->vm, err);
    if (result == 0)
        result = snapshot_load(path, request->name, &about, err);
    if (result == 0)
        result = check_files(request, path, about, request->check, err);
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

/* ---- check ---- */

static int check_snapshot(const struct request *request, struct error *err) {
    char path[PATH_MAX];
    json_t *about = NULL;
    int result = find_vm(request->vm, path, err);
    if (result == 0)
        result = snapshot_load(path, request->name, &about, err);
    if (result == 0)
        result = check_files(request, path, about, true, err);
    json_decref(about);
    if (result == 0 && request->json)
        print_json(json_pack("{s:s, s:b}", "name", request->name, "good", 1));
    else if (result == 0)
        printf("%s: all sums are right\n", request->name);
    return result;
}

/* ---- The verb ---- */

static const struct action {
    const char *name;
    int operands;
    int (*run)(const struct request *request, struct error *err);
} actions[] = {{"create", 2, create},
               {"ls", 1, list},
               {"restore", 2, restore},
               {"check", 2, check_snapshot},
               {"rm", 2, rm}};

static const struct action *find_action(const char *name, int operands, struct error *err) {
    for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++)
        if (strcmp(name, actions[i].name) == 0 && operands == actions[i].operands)
            return &actions[i];
    error_set(err, -EINVAL,
              "usage: lodge snapshot create|restore|check|rm VM NAME, or lodge snapshot ls VM");
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
        else if (option == OPT_FULL)
            request.full = true;
        else if (option == OPT_COMPRESS)
            request.compress = true;
        else if (option == OPT_CHECK)
            request.check = true;
        else if (option == OPT_OUTPUT && parse_output(parser.value, &request.json, &err) < 0)
            return cli_error(EXIT_USAGE, err.text);
        else if (option == OPTION_END && count == 4)
            break;
        else if (option == OPTION_END)
            operands[count++] = argv[parser.at++];
    }
    return run(&request, operands, count + (parser.at < argc));
}
