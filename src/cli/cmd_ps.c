#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"
#include "machine/control_names.h"
#include "machine/vm_store.h"

enum { OPT_ALL, OPT_OUTPUT, OPT_HELP };

const struct option_spec ps_options[] = {
    [OPT_ALL] = {"all", 'a', NULL, "kept VMs that do not run, too"},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

/* What the VM says of itself; NULL: it has just ended, or was killed. */
static json_t *ask(const char *directory, const char *name) {
    struct client *client;
    struct error err = {0};
    json_t *status = NULL;
    int result = client_open(directory, name, &client, &err);
    if (result == 0) {
        result = client_call(client, "query-status", NULL, &status, &err);
        client_close(client);
    }
    if (result == -ENOENT || result == -ECONNRESET)
        return NULL;
    if (result < 0)
        status = json_pack("{s:s}", "status", "not answering");
    json_object_set_new(status, "name", json_string(name));
    return status;
}

static int list_running(json_t *list, struct error *err) {
    char directory[CONTROL_PATH_MAX], **names = NULL;
    size_t count = 0;
    int result = control_directory(directory, sizeof directory, false, err);
    if (result == 0)
        result = control_list(directory, &names, &count, err);
    if (result < 0 && result != -ENOENT)
        return result;
    for (size_t i = 0; i < count; i++) {
        json_t *status = ask(directory, names[i]);
        if (status != NULL)
            json_array_append_new(list, status);
        free(names[i]);
    }
    free(names);
    return 0;
}

static bool has(const json_t *list, const char *name) {
    size_t i;
    json_t *vm;
    json_array_foreach(list, i, vm) {
        if (strcmp(json_string_value(json_object_get(vm, "name")), name) == 0)
            return true;
    }
    return false;
}

/* A process that is killed closes its socket and its lock one after the other. */
static bool is_starting(const char *name) {
    const struct timespec turn = {.tv_nsec = 10 * 1000 * 1000};
    enum { TURNS = 20 };
    bool busy = vm_store_is_busy(name);
    for (int i = 0; busy && i < TURNS; i++) {
        nanosleep(&turn, NULL);
        busy = vm_store_is_busy(name);
    }
    return busy;
}

/* Its monitor ended just as it was handed over to another host. */
static void say_left(json_t *vm, const char *name) {
    json_t *left = vm_store_left(name);
    if (left != NULL)
        json_object_set_new(vm, "why",
                            json_sprintf("it was moving to %s when its monitor ended, and may run "
                                         "there; 'lodge start --force' starts it here",
                                         json_string_value(json_object_get(left, "to"))));
    json_decref(left);
}

/* One whose lock is held without a socket is on its way up. */
static int list_kept(json_t *list, bool stopped, struct error *err) {
    char **names = NULL;
    size_t count = 0;
    int result = vm_store_list(&names, &count, err);
    for (size_t i = 0; i < count; i++) {
        bool listed = has(list, names[i]), busy = !listed && is_starting(names[i]);
        if (!listed && (stopped || busy)) {
            json_t *vm = json_pack("{s:s, s:s, s:b}", "status", busy ? "starting" : "stopped",
                                   "name", names[i], "running", 0);
            if (!busy)
                say_left(vm, names[i]);
            json_array_append_new(list, vm);
        }
        free(names[i]);
    }
    free(names);
    return result;
}

static const char *text_of(const json_t *vm, const char *member) {
    const char *text = json_string_value(json_object_get(vm, member));
    return text != NULL ? text : "-";
}

static void print_why(const json_t *vm) {
    if (json_object_get(vm, "why") != NULL)
        printf("%-20s   %s\n", "", text_of(vm, "why"));
}

static void print_table(const json_t *list) {
    size_t i;
    json_t *vm;
    printf("%-20s %8s  %-10s %-6s %5s %7s  %s\n", "NAME", "PID", "STATUS", "ENGINE", "VCPUS",
           "MEMORY", "UP");
    json_array_foreach(list, i, vm) {
        double up = json_real_value(json_object_get(vm, "uptime-seconds"));
        if (json_object_get(vm, "pid") == NULL) {
            printf("%-20s %8s  %-10s\n", text_of(vm, "name"), "-", text_of(vm, "status"));
            print_why(vm);
            continue;
        }
        printf("%-20s %8lld  %-10s %-6s %5lld %6lldM  %llu:%02llu:%02llu\n", text_of(vm, "name"),
               (long long)json_integer_value(json_object_get(vm, "pid")), text_of(vm, "status"),
               text_of(vm, "engine"), (long long)json_integer_value(json_object_get(vm, "vcpus")),
               (long long)json_integer_value(json_object_get(vm, "memory")) >> 20,
               (unsigned long long)up / 3600, (unsigned long long)up / 60 % 60,
               (unsigned long long)up % 60);
        print_why(vm);
    }
}

static int help(void) {
    puts("usage: lodge ps [OPTIONS]\n\nLists this user's VMs: those that run, with -a all. "
         "Options:");
    option_help(ps_options);
    return EXIT_OK;
}

int cmd_ps(int argc, char **argv) {
    struct option_parser parser = {.specs = ps_options, .argc = argc, .argv = argv, .at = 1};
    struct error err = {0};
    bool json = false, all = false;
    int option;
    while ((option = option_next(&parser, &err)) >= 0) {
        if (option == OPT_HELP)
            return help();
        if (option == OPT_ALL)
            all = true;
        else if (parse_output(parser.value, &json, &err) < 0)
            return cli_error(EXIT_USAGE, err.text);
    }
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    if (parser.at < argc)
        return cli_error(EXIT_USAGE, "lodge ps takes no arguments");
    json_t *list = json_array();
    if (list_running(list, &err) < 0 || list_kept(list, all, &err) < 0) {
        json_decref(list);
        return cli_error(EXIT_FAILED, err.text);
    }
    if (json)
        print_json(json_incref(list));
    else
        print_table(list);
    json_decref(list);
    return EXIT_OK;
}
