#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "cli/console.h"
#include "cli/exit_codes.h"

enum { OPT_WATCH, OPT_HISTORY, OPT_HELP };

const struct option_spec console_options[] = {
    [OPT_WATCH] = {"watch", 'w', NULL, "only look; several may, one writes"},
    [OPT_HISTORY] = {"history", 0, "BYTES", "how much of what it said before is shown (16384)"},
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int help(void) {
    puts("usage: lodge console [OPTIONS] NAME\n\n"
         "Joins this terminal to the serial console of a VM that 'lodge start' has started.\n"
         "Ctrl-] then . leaves it. Options:");
    option_help(console_options);
    return EXIT_OK;
}

int cmd_console(int argc, char **argv) {
    struct option_parser parser = {.specs = console_options, .argc = argc, .argv = argv, .at = 1};
    uint64_t history = CONSOLE_HISTORY;
    struct error err = {0};
    bool write = true;
    int option;
    while ((option = option_next(&parser, &err)) >= 0) {
        if (option == OPT_HELP)
            return help();
        if (option == OPT_WATCH)
            write = false;
        else if (parse_size(parser.value, &history, &err) < 0)
            return cli_error(EXIT_USAGE, err.text);
    }
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    if (argc - parser.at != 1)
        return cli_error(EXIT_USAGE, "usage: lodge console [OPTIONS] NAME");
    if (history > INT64_MAX)
        history = INT64_MAX;
    int result = console_attach(argv[parser.at], write, (size_t)history, &err);
    return result < 0 ? cli_error(EXIT_FAILED, err.text) : EXIT_OK;
}
