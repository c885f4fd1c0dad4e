/* qos: what the classes and limits of a VM's disks do, and changing them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "block/meter.h"
#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/limits.h"
#include "cli/vm.h"

enum { OPT_WATCH, OPT_OUTPUT, OPT_HELP };

const struct option_spec qos_options[] = {
    [OPT_WATCH] = {"watch", 'w', NULL, "show: again every second, until the VM ends"},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static const char usage[] = "usage: lodge qos show [OPTIONS] VM\n"
                            "       lodge qos set [OPTIONS] VM DISK WORD...\n";

struct qos_verb {
    bool watch, json;
};

static int help(void) {
    printf(
        "%s\n"
        "Shows what a VM's disks do: requests and bytes of a second, how long requests took\n"
        "(half, 99 %% and 99.9 %% of them took no longer; microseconds), and how many are there.\n"
        "DISK is disk0, disk1, ... in the order of --disk. Each WORD sets one thing:\n"
        "  urgent, high, medium, low,     the class: urgent goes first, the next three share\n"
        "  background                     8 : 4 : 1, background gives way to all\n"
        "  iops=N, read-iops=, write-iops=   requests a second; 0: no limit\n"
        "  bps=SIZE, read-bps=, write-bps=   bytes a second; 0: no limit\n"
        "  burst=SECONDS                  what of so long a time may go at once (0.1)\n"
        "Options:\n",
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

/* ---- Showing ---- */

/* Requests in the bucket that ends at `end` microseconds. */
static double in_bucket(const json_t *latencies, double end) {
    size_t i;
    json_t *bucket;
    json_array_foreach(latencies, i, bucket) {
        if (json_number_value(json_array_get(bucket, 0)) == end)
            return json_number_value(json_array_get(bucket, 1));
    }
    return 0;
}

/* So many of a thousand requests between the two reports took no longer. */
static double quantile(const json_t *before, const json_t *now, double per_mille) {
    const json_t *old = json_object_get(before, "latencies-us"),
                 *new = json_object_get(now, "latencies-us");
    double all = number(now, "requests") - number(before, "requests"), seen = 0;
    size_t i;
    json_t *bucket;
    json_array_foreach(new, i, bucket) {
        double end = json_number_value(json_array_get(bucket, 0));
        seen += json_number_value(json_array_get(bucket, 1)) - in_bucket(old, end);
        if (all > 0 && seen >= all * per_mille / 1000)
            return end;
    }
    return 0;
}

/* "iops=500,bps=1000000", or "-". */
static void describe_limits(const json_t *limits, char *line, size_t size) {
    size_t used = 0;
    snprintf(line, size, "-");
    for (unsigned i = 0; i < BLOCK_LIMITS && used < size; i++)
        if (json_object_get(limits, block_limit_names[i]) != NULL)
            used += (size_t)snprintf(line + used, size - used, "%s%s=%.0f", used > 0 ? "," : "",
                                     block_limit_names[i], number(limits, block_limit_names[i]));
}

static void print_disks(const json_t *before, const json_t *now, double seconds) {
    size_t i;
    json_t *disk;
    printf("%-8s %-7s %9s %9s %9s %9s %9s %6s  %-20s %s\n", "DISK", "CLASS", "IOPS", "MB/S", "HALF",
           "99%", "99.9%", "DEPTH", "LIMITS", "FILE");
    json_array_foreach(json_object_get(now, "disks"), i, disk) {
        const json_t *old = json_array_get(json_object_get(before, "disks"), i);
        char limits[128];
        describe_limits(json_object_get(disk, "limits"), limits, sizeof limits);
        printf("%-8s %-7s %9.0f %9.1f %9.0f %9.0f %9.0f %6.0f  %-20s %s\n", text(disk, "name"),
               text(disk, "class"), (number(disk, "requests") - number(old, "requests")) / seconds,
               (number(disk, "bytes") - number(old, "bytes")) / 1e6 / seconds,
               quantile(old, disk, 500), quantile(old, disk, 990), quantile(old, disk, 999),
               number(disk, "waiting") + number(disk, "in-flight"), limits, text(disk, "file"));
    }
    fflush(stdout);
}

static int show(struct client *client, const struct qos_verb *verb, struct error *err) {
    json_t *before = NULL, *now = NULL;
    bool refresh = verb->watch && isatty(STDOUT_FILENO) != 0;
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
        if (refresh)
            fputs("\033[H\033[J", stdout);
        print_disks(before, now, (double)(at - since) / 1e9);
        json_decref(before);
        before = now;
        since = at;
    } while (verb->watch);
    json_decref(before);
    /* The end of the VM is the end of watching it. */
    return result == -ECONNRESET ? 0 : result;
}

/* ---- Setting ---- */

/* One word into the arguments of set-qos. */
static int take_word(json_t *arguments, const char *word, struct error *err) {
    struct block_limits limits = {0};
    unsigned given = 0;
    if (strchr(word, '=') == NULL || strncmp(word, "class=", 6) == 0) {
        const char *class = strchr(word, '=') != NULL ? word + 6 : word;
        json_object_set_new(arguments, "class", json_string(class));
        return 0;
    }
    int result = parse_limit(&limits, word, &given, err);
    if (result == -ENOENT)
        return error_set(err, -EINVAL,
                         "unknown word '%.40s'; there are a class, iops=, bps= (also read- and "
                         "write-) and burst=",
                         word);
    for (unsigned i = 0; i < BLOCK_LIMITS && result == 0; i++)
        if (given & 1u << i)
            json_object_set_new(arguments, block_limit_names[i],
                                json_integer((json_int_t)limits.per_second[i]));
    if (given & 1u << BLOCK_LIMITS)
        json_object_set_new(arguments, "burst", json_real(limits.burst_ms / 1e3));
    return result;
}

static int set(struct client *client, const struct qos_verb *verb, char **operands,
               struct error *err) {
    json_t *arguments = json_pack("{s:s}", "disk", operands[0]);
    int result = 0;
    for (char **word = operands + 1; *word != NULL && result == 0; word++)
        result = take_word(arguments, *word, err);
    if (result == 0)
        result = client_call(client, "set-qos", json_incref(arguments), NULL, err);
    if (result == 0 && verb->json)
        print_json(json_incref(arguments));
    json_decref(arguments);
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
    int operands = argc - parser.at;
    if ((!setting && strcmp(what, "show") != 0) || (setting ? operands < 3 : operands != 1))
        return cli_error(EXIT_USAGE, "usage: lodge qos show VM, lodge qos set VM DISK WORD...");
    const char *name = argv[parser.at];
    int result = vm_connect(name, &client, &err);
    if (result == 0) {
        result =
            setting ? set(client, &verb, argv + parser.at + 1, &err) : show(client, &verb, &err);
        client_close(client);
    }
    return result < 0 ? cli_error(EXIT_FAILED, err.text) : EXIT_OK;
}
