#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/disk/tools.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"

enum {
    OPT_FORMAT,
    OPT_BACKING,
    OPT_OUTPUT,
    OPT_REPAIR,
    OPT_WRITE,
    OPT_PATTERN,
    OPT_BLOCK,
    OPT_COUNT,
    OPT_DEPTH,
    OPT_FLUSH,
    OPT_QUIET,
    OPT_HELP
};

const struct option_spec disk_options[] = {
    [OPT_FORMAT] = {"format", 'f', "raw|lodge|qcow2", "what a new disk is (by its name's ending)"},
    [OPT_BACKING] = {"backing", 'b', "FILE[,WORD...]",
                     "create: what shows until it is written over; stays unchanged"},
    [OPT_OUTPUT] = {"output", 'o', "table|json", "how to print"},
    [OPT_REPAIR] = {"repair", 0, NULL, "check: give what nothing uses back to the host"},
    [OPT_WRITE] = {"write", 'w', NULL, "bench: write, which destroys what is there (read)"},
    [OPT_PATTERN] = {"pattern", 0, "random|sequential|STEP", "bench: the order (random)"},
    [OPT_BLOCK] = {"block", 0, "SIZE", "bench: bytes a request (4K)"},
    [OPT_COUNT] = {"count", 'c', "N", "bench: requests (100000)"},
    [OPT_DEPTH] = {"depth", 0, "N", "bench: requests at a time (64)"},
    [OPT_FLUSH] = {"flush-interval", 0, "N", "bench: a flush after every N requests (0: none)"},
    [OPT_QUIET] = {"quiet", 'q', NULL, "show no progress"},
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static const struct tool {
    const char *name, *arguments, *summary;
    int (*run)(const struct disk_arguments *a, struct error *err);
} tools[] = {
    {"create", "FILE [SIZE]", "make an empty disk, or one on top of another", disk_tool_create},
    {"info", "FILE", "tell a disk's format, size and backing", disk_tool_info},
    {"check", "FILE", "read all metadata of a lodge disk and say whether it is right",
     disk_tool_check},
    {"convert", "FROM TO", "copy a disk into another format", disk_tool_convert},
    {"resize", "FILE|VM DISK [+]SIZE", "make a disk larger, also of a running VM",
     disk_tool_resize},
    {"snapshot", "create|apply|rm|ls FILE|VM DISK [NAME]",
     "keep a lodge disk's state, go back to it", disk_tool_snapshot},
    {"diff", "A B", "list where two disks or snapshots differ", disk_tool_diff},
    {"bench", "FILE", "measure a disk", disk_tool_bench},
    {NULL, NULL, NULL, NULL},
};

static int help(void) {
    puts("usage: lodge disk COMMAND [OPTIONS] ARGUMENTS\n");
    for (const struct tool *tool = tools; tool->name != NULL; tool++)
        printf("  lodge disk %-8s %-38s %s\n", tool->name, tool->arguments, tool->summary);
    puts("\nA disk is FILE[,format=raw|lodge|qcow2|nbd][,snapshot=NAME][,cache=writeback|none].\n"
         "lodge-disk(1) explains. Options:");
    option_help(disk_options);
    return EXIT_OK;
}

static int take_option(struct disk_arguments *a, int option, const char *value, struct error *err) {
    switch (option) {
    case OPT_FORMAT: a->format = value; return 0;
    case OPT_BACKING: a->backing = value; return 0;
    case OPT_OUTPUT: return parse_output(value, &a->json, err);
    case OPT_REPAIR: a->repair = true; return 0;
    case OPT_WRITE: a->write = true; return 0;
    case OPT_PATTERN: a->pattern = value; return 0;
    case OPT_BLOCK: return parse_size(value, &a->block_size, err);
    case OPT_COUNT: return parse_size(value, &a->requests, err);
    case OPT_DEPTH: return parse_size(value, &a->depth, err);
    case OPT_FLUSH: return parse_size(value, &a->flush_interval, err);
    default: a->quiet = true; return 0;
    }
}

static const struct tool *find(const char *name, struct error *err) {
    const char *names[sizeof tools / sizeof tools[0]];
    unsigned count = 0;
    for (const struct tool *tool = tools; tool->name != NULL; tool++) {
        if (strcmp(tool->name, name) == 0)
            return tool;
        names[count++] = tool->name;
    }
    names[count] = NULL;
    const char *nearest = nearest_word(name, names);
    error_set(err, -EINVAL, "lodge disk has no command '%.40s'; %s%s", name,
              nearest != NULL ? "did you mean " : "lodge disk --help lists them",
              nearest != NULL ? nearest : "");
    return NULL;
}

/* Options may stand before, between and behind the operands. */
static int parse(struct option_parser *parser, struct disk_arguments *a, bool *wants_help,
                 struct error *err) {
    static char *operands[8];
    a->operands = operands;
    for (;;) {
        int option = option_next(parser, err);
        if (option == OPTION_ERROR)
            return -EINVAL;
        if (option == OPT_HELP)
            *wants_help = true;
        else if (option >= 0 && take_option(a, option, parser->value, err) < 0)
            return -EINVAL;
        if (option >= 0)
            continue;
        if (parser->at >= parser->argc)
            return 0;
        if (a->count == (int)(sizeof operands / sizeof operands[0]))
            return error_set(err, -EINVAL, "too many arguments");
        operands[a->count++] = parser->argv[parser->at++];
    }
}

int cmd_disk(int argc, char **argv) {
    struct option_parser parser = {.specs = disk_options, .argc = argc, .argv = argv, .at = 1};
    struct disk_arguments a = {
        .block_size = 4096, .requests = 100000, .depth = 64, .pattern = "random"};
    struct error err = {0};
    bool wants_help = false;
    if (parse(&parser, &a, &wants_help, &err) < 0)
        return cli_error(EXIT_USAGE, err.text);
    if (wants_help)
        return help();
    if (a.count == 0)
        return cli_error(EXIT_USAGE, "lodge disk needs a command; lodge disk --help lists them");
    const struct tool *tool = find(a.operands[0], &err);
    if (tool == NULL)
        return cli_error(EXIT_USAGE, err.text);
    a.operands++;
    a.count--;
    int result = tool->run(&a, &err);
    return result < 0
               ? cli_error(strncmp(err.text, "usage:", 6) == 0 ? EXIT_USAGE : EXIT_FAILED, err.text)
               : result;
}
