#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"

static int help_all(void) {
    puts("lodge runs virtual machines, with or without hardware support.\n\n"
         "  lodge run                    a shell in a Debian guest\n"
         "  lodge run -- uname -r        one command in it\n\n"
         "Commands:");
    for (const struct verb *verb = verbs; verb->name != NULL; verb++)
        printf("  %-12s %s\n", verb->name, verb->summary);
    puts("\n'lodge COMMAND --help' explains a command; lodge(1) is the manual.");
    return EXIT_OK;
}

int cmd_help(int argc, char **argv) {
    if (argc < 2)
        return help_all();
    for (const struct verb *verb = verbs; verb->name != NULL; verb++) {
        char *arguments[] = {argv[1], (char[]){"--help"}, NULL};
        if (strcmp(verb->name, argv[1]) != 0)
            continue;
        if (verb->options != NULL)
            return verb->run(2, arguments);
        printf("lodge %s: %s\n", verb->name, verb->summary);
        return EXIT_OK;
    }
    struct error err;
    error_set(&err, -EINVAL, "no command '%.40s'; 'lodge help' lists what there is", argv[1]);
    return cli_error(EXIT_USAGE, err.text);
}

int cmd_version(int argc, char **argv) {
    puts("lodge " LODGE_VERSION);
    return EXIT_OK;
}
