/* What `lodge run` was asked for (cmd_run.c reads it, run.c does it). */
#ifndef LODGE_CLI_RUN_H
#define LODGE_CLI_RUN_H

#include "machine/config.h"

enum run_console { CONSOLE_AGENT, CONSOLE_SERIAL };

struct run_config {
    struct machine_config machine; /* cmdline, loop and serial are filled by run_guest */
    enum run_console console;
    unsigned verbose;
    const char *name; /* of the VM; NULL: one is made up */
    bool perf_map;
    const char *append;
    const char *const *command; /* ended by NULL; NULL: a shell */
};

/* Runs it all. Returns the exit code. */
int run_guest(struct run_config *config);

#endif
