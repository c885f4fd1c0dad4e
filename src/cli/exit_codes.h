/*
 * The exit codes of lodge, for scripts to rely on. docs/lodge-run.1 and
 * docs/lodge.1 say the same.
 */
#ifndef LODGE_CLI_EXIT_CODES_H
#define LODGE_CLI_EXIT_CODES_H

enum {
    EXIT_OK = 0,

    /* All verbs but run. */
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,

    /* run: a command's own code is passed on, with 126 (cannot be executed), 127 (not found) and
     * 128+n (killed by signal n) as shells have them. lodge's own: */
    EXIT_WATCHDOG = 116,     /* the guest did not reset its watchdog in time */
    EXIT_DIFFERENCE = 117,   /* --verify: interpreter and translator disagree */
    EXIT_LOST = 118,         /* the connection to the agent broke while the command ran */
    EXIT_RESET_LOOP = 119,   /* the guest resets itself again and again */
    EXIT_NO_GUEST = 120,     /* the default guest could not be fetched or assembled */
    EXIT_ENGINE = 121,       /* the engine cannot go on */
    EXIT_TRIPLE_FAULT = 122, /* the guest's processor could not deliver a fault */
    EXIT_PANIC = 123,        /* the guest's kernel panicked */
    EXIT_NO_AGENT = 124,     /* no agent answered in time */
    EXIT_NOT_STARTED = 125,  /* wrong options; kernel, initrd, memory or disks that cannot be */
    EXIT_SIGNAL = 128,       /* plus SIGINT (2) or SIGTERM (15): ended by that signal */
};

#endif
