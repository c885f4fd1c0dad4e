/* The verbs of lodge: one file each. Each gets its own arguments, argv[0] being the verb. */
#ifndef LODGE_CLI_CLI_H
#define LODGE_CLI_CLI_H

#include "base/error.h"
#include "cli/options.h"

struct verb {
    const char *name;    /* NULL ends the table */
    const char *summary; /* one line for the help */
    int (*run)(int argc, char **argv);
    const struct option_spec *options; /* may be NULL */
};

/* All of them; main.c. */
extern const struct verb verbs[];

int cmd_run(int argc, char **argv);
int cmd_create(int argc, char **argv);
int cmd_start(int argc, char **argv);
int cmd_stop(int argc, char **argv);
int cmd_clone(int argc, char **argv);
int cmd_rm(int argc, char **argv);
int cmd_exec(int argc, char **argv);
int cmd_cp(int argc, char **argv);
int cmd_cpus(int argc, char **argv);
int cmd_console(int argc, char **argv);
int cmd_logs(int argc, char **argv);
int cmd_memory(int argc, char **argv);
int cmd_migrate(int argc, char **argv);
int cmd_receive(int argc, char **argv);
int cmd_pause(int argc, char **argv);
int cmd_resume(int argc, char **argv);
int cmd_snapshot(int argc, char **argv);
int cmd_time(int argc, char **argv);
int cmd_reset(int argc, char **argv);
int cmd_device(int argc, char **argv);
int cmd_disk(int argc, char **argv);
int cmd_image(int argc, char **argv);
int cmd_ps(int argc, char **argv);
int cmd_qos(int argc, char **argv);
int cmd_profile(int argc, char **argv);
int cmd_help(int argc, char **argv);
int cmd_version(int argc, char **argv);
int cmd_completion(int argc, char **argv);

extern const struct option_spec clone_options[], run_options[], start_options[], stop_options[],
    rm_options[], ps_options[], exec_options[], cp_options[], cpus_options[], console_options[],
    logs_options[], memory_options[], pause_options[], profile_options[], resume_options[],
    qos_options[], snapshot_options[], time_options[], image_options[], disk_options[],
    device_options[];
extern const struct option_spec migrate_options[], receive_options[];

/* "lodge: TEXT" on standard error; returns the exit code. */
int cli_error(int exit_code, const char *text);

#endif
