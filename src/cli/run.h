/*
 * A VM as the command line describes it. cmd_run.c has the table of options,
 * which `run` and `create` share; run.c runs it, in the foreground for `run`,
 * in the background for `start`.
 */
#ifndef LODGE_CLI_RUN_H
#define LODGE_CLI_RUN_H

#include "machine/config.h"

enum run_console { CONSOLE_AGENT, CONSOLE_SERIAL };

struct background;
struct batch;
struct clone_identity;
struct clone_source;
struct migration_target;

struct run_config {
    struct machine_config machine; /* cmdline, loop and serial are filled by run_guest */
    enum run_console console;
    bool console_chosen, firmware_chosen; /* said by an option */
    unsigned verbose;
    const char *name; /* of the VM; NULL: one is made up */
    bool perf_map;
    bool sandbox; /* it gives up what it does not need of the host (isolation/isolation.h) */
    const char *append;
    const char *from;           /* VM@SNAPSHOT; NULL: it boots */
    const char *image;          /* its disk is the first one; NULL: none */
    const char *cloud_init;     /* a file of user-data, for a disk behind all others; NULL: none */
    const char *const *command; /* ended by NULL; NULL: a shell */
    /* A VM that lasts: where it keeps what it writes, and the process that waits for it to be up.
     * Both NULL for `run`. */
    const char *directory;
    struct background *background;
    struct migration_target *coming; /* it comes from another monitor; NULL: it does not */
    bool lasts;                      /* a VM that lasts, even if it is only looked at */
    /* machine.restore is of this one, and the VM is another one now, too. NULL: neither. */
    const struct clone_source *source;
    const struct clone_identity *identity;
    const struct batch *batch; /* it comes to be there with others; NULL: by itself */
    uint64_t begun_ns;         /* host time at which the command was given, for -v */
};

#define RUN_DEFAULTS                                                                               \
    {                                                                                              \
        .machine = {.memory = MACHINE_MEMORY_DEFAULT, .vcpus = 1, .net = NET_USER }                \
    }

/* Takes one option of run_options in; value, NULL without one, may be cut up and must last. */
int run_take_option(struct run_config *config, int option, char *value, struct error *err);
/* After all options: refuses what does not go together, sets what follows from them (which firmware
 * is meant when none was named, say). */
int run_check(struct run_config *config, struct error *err);

/* Neither a kernel nor a firmware nor an image was named. */
bool run_wants_default_guest(const struct run_config *config);
/* Runs it all. Returns the exit code. */
int run_guest(struct run_config *config);

#endif
