/* qos: what the classes of a VM's disks do, and changing them. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"

enum { OPT_WATCH, OPT_OUTPUT, OPT_HELP };

const struct option_spec qos_options[] = {
    [OPT_WATCH] = {"watch", 'w', NULL, "show: again every second, until the VM ends"},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static const char usage[] = "usage: lodge qos show [OPTIONS] VM\n"
                            "       lodge qos set [OPTIONS] VM DISK CLASS\n";

struct qos_verb {
    bool watch, json;
};

static int help(void) {
    printf("%s\n"
           "Shows how a VM's disks share: requests and bytes of the last second, and how long\n"
           "requests took since classes differ (half, 99 %% and 99.9 %% of them, microseconds).\n"
           "DISK is disk0, disk1, ... in the order of --disk; CLASS is urgent, high, medium or\n"
           "low: urgent goes first, the others share 8 : 4 : 1. Options:\n",
           usage);
    option_help(qos_options);
    return EXIT_OK;
}

static double number(const json_t *disk, const char *member) {
    return json_number_value(json_object_get(disk, member));
}

static const char *text(const json_t *disk, const char *member) {
    const char *value = json_string_value(json_object_get(disk, member));
    return value != NULL ? value : "";
}

static void print_disks(const json_t *before, const json_t *now, double seconds) {
    size_t i;
    json_t *disk;
    printf("%-8s %-7s %9s %9s %9s %9s %9s %8s  %s\n", "DISK", "CLASS", "REQUESTS", "MB/S", "HALF",
           "99%", "99.9%", "WAITING", "FILE");
    json_array_foreach(json_object_get(now, "disks"), i, disk) {
        const json_t *old = json_array_get(json_object_get(before, "disks"), i);
        printf("%-8s %-7s %9.0f %9.1f %9.0f %9.0f %9.0f %8.0f  %s\n", text(disk, "name"),
               text(disk, "class"), (number(disk, "requests") - number(old, "requests")) / seconds,
               (number(disk, "bytes") - number(old, "bytes")) / 1e6 / seconds,
               number(disk, "latency-us-50"), number(disk, "latency-us-99"),
               number(disk, "latency-us-99.9"), number(disk, "waiting"), text(disk, "file"));
    }
    fflush(stdout);
}

static int show(struct client *client, const struct qos_verb *verb, struct error *err) {
    json_t *before = NULL, *now = NULL;
    uint64_t since = host_clock_ns();
    int result = client_call(client, "query-qos", NULL, &before, err);
    if (result < 0)
        return result;
    if (verb->json) {
        print_json(before);
        return 0;
    }
    do {
        result = client_wait(client, -1, 1000);
        uint64_t at = host_clock_ns();
        if (result == 0)
            result = client_call(client, "query-qos", NULL, &now, err);
        if (result < 0)
            break;
        print_disks(before, now, (double)(at - since) / 1e9);
        json_decref(before);
        before = now;
        since = at;
    } while (verb->watch);
    json_decref(before);
    /* The end of the VM is the end of watching it. */
    return result == -ECONNRESET ? 0 : result;
}

static int set(struct client *client, const struct qos_verb *verb, char **operands,
               struct error *err) {
    json_t *arguments = json_pack("{s:s, s:s}", "disk", operands[0], "class", operands[1]);
    int result = client_call(client, "set-qos", arguments, NULL, err);
    if (result == 0 && verb->json)
        print_json(json_pack("{s:s, s:s}", "disk", operands[0], "class", operands[1]));
    return result;
}

int cmd_qos(int argc, char **argv) {
    struct option_parser parser = {.specs = qos_options, .argc = argc, .argv = argv, .at = 1};
    struct qos_verb verb = {0};
    struct error err = {0};
    struct client *client;
    int option;
    const char *what = argc > 1 && argv[1][0] != '-' ? argv[parser.at++] : "";
    while ((option = option_next(&parser, &err)) >= 0) {
        if (option == OPT_HELP)
            return help();
        verb.watch |= option == OPT_WATCH;
        if (option == OPT_OUTPUT && parse_output(parser.value, &verb.json, &err) < 0)
            return cli_error(EXIT_USAGE, err.text);
    }
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    bool setting = strcmp(what, "set") == 0;
    if ((!setting && strcmp(what, "show") != 0) || argc - parser.at != (setting ? 3 : 1))
        return cli_error(EXIT_USAGE, "usage: lodge qos show VM, lodge qos set VM DISK CLASS");
    const char *name = argv[parser.at];
    int result = vm_connect(name, &client, &err);
    if (result == 0) {
        result =
            setting ? set(client, &verb, argv + parser.at + 1, &err) : show(client, &verb, &err);
        client_close(client);
    }
    return result < 0 ? cli_error(EXIT_FAILED, err.text) : EXIT_OK;
}
