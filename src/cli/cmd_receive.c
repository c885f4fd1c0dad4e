/* Where VMs come to that 'lodge migrate' sends. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/background.h"
#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/run.h"
#include "cli/vm_options.h"
#include "image/image.h"
#include "machine/migration.h"

enum { OPT_CA, OPT_CERT, OPT_KEY, OPT_CPU, OPT_ONCE, OPT_HELP };

/* Connections that are served at a time; more wait. */
enum { SERVED_MAX = 16 };

const struct option_spec receive_options[] = {
    [OPT_CA] = {"ca", 0, "FILE", "whose certificates are trusted (PEM); for TCP", OPTION_PATH},
    [OPT_CERT] = {"cert", 0, "FILE", "this host's certificate (PEM)", OPTION_PATH},
    [OPT_KEY] = {"key", 0, "FILE", "its key (PEM)", OPTION_PATH},
    [OPT_CPU] = {"cpu", 0, "BASELINE",
                 "take only VMs that were shown no more of a processor (host)"},
    [OPT_ONCE] = {"once", 0, NULL, "end when a VM has come"},
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL, OPTION_NO_PATH},
};

static int help(void) {
    puts("usage: lodge receive [OPTIONS] ADDRESS\n\n"
         "Listens for VMs that 'lodge migrate' sends here; they run in the background and are\n"
         "this host's from then on. ADDRESS is unix:PATH, or tcp:PORT or HOST:PORT, where both\n"
         "sides show certificates. Runs until it is interrupted. Options:");
    option_help(receive_options);
    return EXIT_OK;
}

/* ---- One VM: in a process of its own ---- */

static int monitor(void *context, struct background *background) {
    struct run_config *config = context;
    config->background = background;
    int code = run_guest(config);
    migration_target_free(config->coming);
    return code;
}

/* They are opened only when the source has let go of them, which is late to find one missing. */
static int check_disks(const struct migration_target *target, const struct run_config *config,
                       struct error *err) {
    const struct machine_config *machine = &config->machine;
    for (unsigned i = 0; i < machine->disk_count; i++) {
        const struct disk_config *disk = &machine->disks[i];
        if (migration_copies_disk(target, i + (config->image != NULL)))
            continue;
        int wanted = disk->options.readonly ? R_OK : R_OK | W_OK;
        if (strncmp(disk->path, "nbd", 3) != 0 && access(disk->path, wanted) < 0)
            return error_set_errno(err, -errno, "the target does not reach disk%u, %s", i,
                                   disk->path);
    }
    return 0;
}

static int fill(struct migration_target *target, struct run_config *config, struct error *err) {
    const struct migration_offer *offer = migration_offer(target);
    config->name = offer->name;
    config->directory = migration_directory(target);
    config->lasts = true;
    int result = vm_options_apply(offer->options, config, err);
    if (result < 0)
        return result;
    if (config->machine.disk_count + (config->image != NULL) + (config->cloud_init != NULL) !=
        offer->disks)
        return error_set(err, -EINVAL, "its disks are not those of its options");
    migration_apply_disks(target, &config->machine);
    result = check_disks(target, config, err);
    if (result < 0)
        return result;
    config->coming = target;
    config->machine.incoming = migration_incoming(target);
    config->machine.generation_id = offer->generation_id;
    config->machine.engine = ENGINE_SOFT;
    config->machine.vcpus = offer->vcpus;
    return 0;
}

/* What the guest was booted from is needed when it reboots. */
static int fetch_guest(const struct run_config *config, struct error *err) {
    struct image_default image;
    return run_wants_default_guest(config) ? image_default(false, &image, err) : 0;
}

static int take_in(struct migration_target *target, struct error *err) {
    struct run_config config = RUN_DEFAULTS;
    char log[PATH_MAX];
    int result = fill(target, &config, err);
    if (result == 0)
        result = fetch_guest(&config, err);
    if (result == 0)
        result = migration_fetch_files(target, err);
    if (result < 0) {
        migration_refuse(target, err->text);
        return result;
    }
    snprintf(log, sizeof log, "%.*s/monitor.log", PATH_MAX - 16, config.directory);
    return background_start(log, monitor, &config, err);
}

/* Exit code: 0: one has come. */
static int serve(const struct tunnel_listener *listener, enum cpu_baseline most, int fd) {
    struct tunnel *tunnel;
    struct error err = {0};
    struct migration_target *target = NULL;
    int result = tunnel_open(listener, fd, &tunnel, &err);
    if (result == 0)
        result = migration_accept(tunnel, most, &target, &err);
    if (result == 0)
        result = take_in(target, &err);
    if (result == 0)
        printf("%s\n", migration_offer(target)->name);
    fflush(stdout);
    if (target != NULL && result != 0)
        migration_target_free(target); /* of a monitor that was killed, or never was */
    return result < 0 ? cli_error(EXIT_FAILED, err.text) : result;
}

/* ---- All of them ---- */

static volatile sig_atomic_t stopped;

static void on_stop(int number) {
    stopped = number;
}

/* Without SA_RESTART: accept() is to end. */
static void catch_signals(void) {
    struct sigaction action = {.sa_handler = on_stop};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* A process that has ended, or (wait) that will; its exit code, or -1: none has. */
static int reap(unsigned *served, bool wait) {
    int status;
    if (*served == 0 || waitpid(-1, &status, wait ? 0 : WNOHANG) <= 0)
        return -1;
    --*served;
    return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILED;
}

static int listen_on(struct tunnel_listener *listener, enum cpu_baseline most, bool once) {
    unsigned served = 0;
    while (stopped == 0) {
        struct error err = {0};
        int fd, code;
        while ((code = reap(&served, once || served == SERVED_MAX)) >= 0)
            if (once && code == EXIT_OK)
                return EXIT_OK;
        if (stopped != 0 || tunnel_accept(listener, &fd, &err) < 0) {
            if (stopped == 0)
                cli_error(EXIT_FAILED, err.text);
            continue;
        }
        pid_t pid = fork();
        if (pid == 0) {
            signal(SIGINT, SIG_DFL);
            signal(SIGTERM, SIG_DFL);
            close(tunnel_listener_fd(listener));
            exit(serve(listener, most, fd));
        }
        if (pid < 0)
            cli_error(EXIT_FAILED, "the host has no room for another process");
        else
            served++;
        close(fd);
    }
    return EXIT_SIGNAL + stopped;
}

int cmd_receive(int argc, char **argv) {
    struct option_parser parser = {.specs = receive_options, .argc = argc, .argv = argv, .at = 1};
    struct tunnel_keys keys = {0};
    struct tunnel_listener *listener;
    struct error err = {0};
    bool once = false;
    int option, most = CPU_HOST;
    while ((option = option_next(&parser, &err)) >= 0) {
        switch (option) {
        case OPT_CA: keys.authority = parser.value; break;
        case OPT_CERT: keys.certificate = parser.value; break;
        case OPT_KEY: keys.key = parser.value; break;
        case OPT_CPU:
            most = parse_choice("cpu", parser.value, cpu_baselines, &err);
            if (most < 0)
                return cli_error(EXIT_USAGE, err.text);
            break;
        case OPT_ONCE: once = true; break;
        default: return help();
        }
    }
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    if (parser.at + 1 != argc)
        return cli_error(EXIT_USAGE, "usage: lodge receive [OPTIONS] ADDRESS");
    if (tunnel_listen(argv[parser.at], &keys, &listener, &err) < 0)
        return cli_error(err.code == -EINVAL ? EXIT_USAGE : EXIT_FAILED, err.text);
    catch_signals();
    fprintf(stderr, "lodge: listening at %s\n", argv[parser.at]);
    int code = listen_on(listener, (enum cpu_baseline)most, once);
    tunnel_listener_close(listener);
    return code;
}
