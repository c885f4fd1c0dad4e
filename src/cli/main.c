#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"

const struct verb verbs[] = {
    {"run", "boot a guest, run a command in it or a shell", cmd_run, run_options},
    {"create", "keep a VM under a name", cmd_create, run_options},
    {"start", "start a kept VM in the background", cmd_start, start_options},
    {"clone", "start copies of a running VM, or of its snapshot", cmd_clone, clone_options},
    {"stop", "shut running VMs down", cmd_stop, stop_options},
    {"rm", "remove kept VMs", cmd_rm, rm_options},
    {"ps", "list VMs", cmd_ps, ps_options},
    {"exec", "run a program in a running VM", cmd_exec, exec_options},
    {"cp", "copy files into a running VM, or out of it", cmd_cp, cp_options},
    {"console", "join a VM's serial console", cmd_console, console_options},
    {"logs", "print what a VM has said on its console", cmd_logs, logs_options},
    {"pause", "hold running VMs", cmd_pause, pause_options},
    {"resume", "let paused VMs go on", cmd_resume, resume_options},
    {"snapshot", "keep a running VM's whole state, go back to it", cmd_snapshot, snapshot_options},
    {"migrate", "move a running VM to another host", cmd_migrate, migrate_options},
    {"receive", "listen for VMs that are moved here", cmd_receive, receive_options},
    {"time", "show a running VM's time, set how fast it passes", cmd_time, time_options},
    {"reset", "press VMs' reset button", cmd_reset, pause_options},
    {"qos", "show or set how a running VM's disks share", cmd_qos, qos_options},
    {"cpus", "show or raise the number of a running VM's processors", cmd_cpus, cpus_options},
    {"memory", "show a running VM's memory, take some away or give more", cmd_memory,
     memory_options},
    {"profile", "say where a running VM's time goes", cmd_profile, profile_options},
    {"disk", "make, check, convert and measure disks", cmd_disk, disk_options},
    {"device", "serve devices to other processes' VMs", cmd_device, device_options},
    {"image", "make bootable images; show the default guest", cmd_image, image_options},
    {"completion", "print a completion script for bash", cmd_completion, NULL},
    {"help", "explain lodge or one of its commands", cmd_help, NULL},
    {"version", "print the version", cmd_version, NULL},
    {NULL, NULL, NULL, NULL},
};

int cli_error(int exit_code, const char *text) {
    fprintf(stderr, "lodge: %s\n", text);
    return exit_code;
}

static int unknown_verb(const char *name) {
    enum { NAMES = 32 };
    const char *names[NAMES + 1];
    unsigned count = 0;
    for (; verbs[count].name != NULL && count < NAMES; count++)
        names[count] = verbs[count].name;
    names[count] = NULL;
    const char *nearest = nearest_word(name, names);
    struct error err;
    if (nearest != NULL)
        error_set(&err, -EINVAL, "unknown command '%.40s'; did you mean 'lodge %s'?", name,
                  nearest);
    else
        error_set(&err, -EINVAL, "unknown command '%.40s'; 'lodge help' lists what there is", name);
    return cli_error(EXIT_USAGE, err.text);
}

int main(int argc, char **argv) {
    /* A reader that goes away is an error of that write, not the end. */
    signal(SIGPIPE, SIG_IGN);
    /* So is a file that may not grow any further (RLIMIT_FSIZE). */
    signal(SIGXFSZ, SIG_IGN);
    if (argc < 2)
        return cmd_help(0, NULL);
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        name = "help";
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0)
        name = "version";
    for (const struct verb *verb = verbs; verb->name != NULL; verb++)
        if (strcmp(verb->name, name) == 0)
            return verb->run(argc - 1, argv + 1);
    return unknown_verb(name);
}
