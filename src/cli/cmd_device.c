/* device: serves devices to VMs of other processes, over vfio-user. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/device.h"
#include "cli/exit_codes.h"
#include "cli/limits.h"

enum { OPT_SOCKET, OPT_DISK, OPT_LIMIT, OPT_VERBOSE, OPT_HELP };

const struct option_spec device_options[] = {
    [OPT_SOCKET] = {"socket", 's', "PATH",
                    "a controller at this socket; the disks behind it are its namespaces",
                    .path = OPTION_NEW_PATH},
    [OPT_DISK] = {"disk", 'd', "FILE[,WORD...]",
                  "a disk, as lodge run's; with class=", .path = OPTION_PATH},
    [OPT_LIMIT] = {"limit", 'l', "WORD[,WORD...]",
                   "limits of all disks together, which their classes share: bps=20M"},
    [OPT_VERBOSE] = {"verbose", 'v', NULL, "say when clients come and go"},
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

struct arguments {
    struct device_function *functions;
    unsigned count;
    struct block_limits limits;
    bool help;
};

static int help(void) {
    puts("usage: lodge device nvme --socket PATH --disk FILE [--disk FILE ...] [--socket PATH "
         "...]\n\n"
         "Serves NVMe controllers, each at a Unix socket, to VMs of other processes: lodge run\n"
         "--user-device PATH, or another client of the vfio-user protocol. Ends at SIGTERM or\n"
         "SIGINT. When it was killed, start it again as before: VMs go on where they were.\n"
         "Options:");
    option_help(device_options);
    puts("\nlodge-device(1) explains.");
    return EXIT_OK;
}

static int add_socket(struct arguments *a, const char *path, struct error *err) {
    if (a->count == DEVICE_FUNCTIONS_MAX)
        return error_set(err, -EINVAL, "more than %d sockets", DEVICE_FUNCTIONS_MAX);
    a->functions[a->count++] = (struct device_function){.socket = path};
    return 0;
}

static int take_word(struct device_disk *disk, const char *word, struct error *err) {
    if (strncmp(word, "class=", 6) == 0) {
        int class = parse_choice("disk class", word + 6, qos_class_names, err);
        disk->qos.class = (enum qos_class) class;
        return class < 0 ? class : 0;
    }
    int rc = parse_limit(&disk->qos.limits, word, NULL, err);
    if (rc == -ENOENT)
        rc = parse_on_full(&disk->errors_when_full, word, err);
    if (rc == -ENOENT)
        rc = block_option_parse(&disk->options, word, err);
    if (rc == -ENOENT)
        return error_set(err, -EINVAL,
                         "--disk: unknown word '%.40s'; there are readonly, format=, cache=, "
                         "snapshot=, class=, on-full= and limits",
                         word);
    return rc == 0 ? 0 : error_prefix(err, "--disk");
}

/* Cuts value at its commas: the path stays in place. */
static int add_disk(struct arguments *a, char *value, struct error *err) {
    struct device_disk disk = {.qos.class = QOS_MEDIUM};
    char *save = NULL;
    int rc = 0;
    if (a->count == 0)
        return error_set(err, -EINVAL, "--disk comes after the --socket that it belongs to");
    struct device_function *function = &a->functions[a->count - 1];
    if (function->disk_count == NVME_NAMESPACES_MAX)
        return error_set(err, -EINVAL, "more than %d disks at one socket", NVME_NAMESPACES_MAX);
    disk.path = strtok_r(value, ",", &save);
    if (disk.path == NULL)
        return error_set(err, -EINVAL, "--disk needs a file");
    for (char *word = strtok_r(NULL, ",", &save); word != NULL && rc == 0;
         word = strtok_r(NULL, ",", &save))
        rc = take_word(&disk, word, err);
    if (rc == 0)
        function->disks[function->disk_count++] = disk;
    return rc;
}

static int add_limits(struct arguments *a, char *value, struct error *err) {
    char *save = NULL;
    int rc = 0;
    for (char *word = strtok_r(value, ",", &save); word != NULL && rc == 0;
         word = strtok_r(NULL, ",", &save)) {
        rc = parse_limit(&a->limits, word, NULL, err);
        if (rc == -ENOENT)
            return error_set(err, -EINVAL,
                             "--limit: unknown word '%.40s'; there are iops=, bps= (also read- and "
                             "write-) and burst=",
                             word);
    }
    return rc == 0 ? 0 : error_prefix(err, "--limit");
}

static int parse(struct option_parser *parser, struct arguments *a, struct error *err) {
    int option, rc = 0;
    while (rc == 0 && (option = option_next(parser, err)) != OPTION_END) {
        switch (option) {
        case OPT_SOCKET: rc = add_socket(a, parser->value, err); break;
        case OPT_DISK: rc = add_disk(a, (char *)parser->value, err); break;
        case OPT_LIMIT: rc = add_limits(a, (char *)parser->value, err); break;
        case OPT_VERBOSE: log_set_level(LOG_INFO); break;
        case OPT_HELP: a->help = true; break;
        default: rc = err->code;
        }
    }
    if (rc < 0 || a->help)
        return rc;
    if (parser->at < parser->argc)
        return error_set(err, -EINVAL, "lodge device nvme takes no '%.40s'",
                         parser->argv[parser->at]);
    if (a->count == 0)
        return error_set(err, -EINVAL, "lodge device nvme needs --socket PATH and --disk FILE");
    for (unsigned i = 0; i < a->count; i++)
        if (a->functions[i].disk_count == 0)
            return error_set(err, -EINVAL, "--socket %.100s has no --disk behind it",
                             a->functions[i].socket);
    return 0;
}

static int serve(struct arguments *a) {
    struct error err = {0};
    int rc = device_serve_nvme(a->functions, a->count, &a->limits, &err);
    return rc < 0 ? cli_error(EXIT_FAILED, err.text) : EXIT_OK;
}

int cmd_device(int argc, char **argv) {
    struct option_parser parser = {.specs = device_options, .argc = argc, .argv = argv, .at = 1};
    static struct device_function functions[DEVICE_FUNCTIONS_MAX];
    struct arguments a = {.functions = functions};
    struct error err = {0};
    bool known = argc > 1 && strcmp(argv[1], "nvme") == 0;
    parser.at += known;
    int rc = parse(&parser, &a, &err);
    if (rc == 0 && !a.help && !known)
        rc = error_set(&err, -EINVAL, "lodge device knows one kind: lodge device nvme");
    if (rc < 0)
        return cli_error(EXIT_USAGE, err.text);
    return a.help ? help() : serve(&a);
}
