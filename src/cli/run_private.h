/* One run: what run.c and run_report.c share. */
#ifndef LODGE_CLI_RUN_PRIVATE_H
#define LODGE_CLI_RUN_PRIVATE_H

#include "base/clock.h"
#include "base/loop.h"
#include "cli/run.h"
#include "cli/run_image.h"
#include "cli/terminal.h"
#include "image/image.h"
#include "machine/agent.h"
#include "machine/machine.h"

struct run {
    struct run_config *config;
    struct image_default guest; /* the default guest's, if it is that */
    struct run_image own;       /* disks that are not the command line's */
    char *cmdline;
    char *variables;  /* the file of UEFI variables of a VM that lasts */
    char *generation; /* the file of its generation id */
    struct loop *loop;
    struct chardev *stdio;   /* in the foreground, --console serial */
    struct console_hub *hub; /* in the background */
    struct console *console;
    struct machine *machine;
    struct agent *agent;
    struct agent_session *session;
    struct vm_control *control;
    struct batch_watch *batch;
    struct loop_signal *signals[3];
    struct loop_timer *agent_timer, *shutdown_timer;
    struct terminal_escape escape;
    uint64_t started_ns, ready_ns; /* host time */
    unsigned mounted;              /* volumes that the guest has */
    uint8_t old_mac[6];            /* a clone's network device had it before */
    int signal;                    /* SIGINT or SIGTERM that came, 0: none */
    bool was_ready, restarting, code_known, left;
    bool renew_due; /* the guest is still to be told that it goes on from a snapshot */
    bool at_once;   /* which the command's session does */
    struct {
        uint64_t disks_ns, agent_ns, renewed_ns, ended_ns; /* host time */
    } marks;
    int code;
};

static inline bool uses_agent(const struct run *run) {
    return run->config->console == CONSOLE_AGENT;
}

static inline bool in_background(const struct run *run) {
    return run->config->background != NULL;
}

/* run.c */

/* The first code that somebody knows is the run's. */
void settle(struct run *run, int code);
/* Nothing comes of it, and why. */
void cannot_start(struct run *run, const char *text);
int start_command(struct run *run, const struct agent_exec_renewal *renewal, struct error *err);
void meet_agent(struct run *run);
/* It is the machine that it is to be: its volumes and its command. */
void set_up_guest(struct run *run);

/* run_renew.c: a guest that goes on from a snapshot */

/* By its agent's connection. False: nothing is to be waited for. */
bool renew_guest(struct run *run);
void on_renewed(void *context, int error, const char *what);
/* With its command, before there is that connection, where that can be. */
void renew_at_once(struct run *run);
/* The guest has no agent that would. */
void renew_later(struct run *run);

/* run_report.c */

double seconds_since(uint64_t ns);
/* The console's last lines. */
void print_tail(struct run *run);
/* For -v. */
void say_what_runs(const struct run *run);
void say_what_ran(const struct run *run);
/* Of the whole run, after its machine has ended: says in one line what was not asked for. */
int exit_code(struct run *run, const struct machine_result *result);
/* As events of the control socket have it. */
const char *reason_of_end(enum machine_end end);

#endif
