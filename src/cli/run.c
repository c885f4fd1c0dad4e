/* One run of a guest, from its files to its exit code. Everything here is on the loop's thread. */
#include "cli/run_private.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/host_clock.h"
#include "base/log.h"
#include "cli/background.h"
#include "cli/batch.h"
#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cpu/cpu.h"
#include "device/chardev.h"
#include "isolation/isolation.h"
#include "machine/clone.h"
#include "machine/console.h"
#include "machine/console_hub.h"
#include "machine/control_names.h"
#include "machine/machine_identity.h"
#include "machine/migration.h"
#include "machine/vm_control.h"
#include "machine/vm_store.h"

/* How long the guest may take. LODGE_AGENT_TIMEOUT (seconds) is for tests and slow hosts. */
enum { AGENT_TIMEOUT_SECONDS = 180, SHUTDOWN_SECONDS = 30 };

/*
 * The default guest's: no waiting for hardware that no lodge machine has, no
 * work against flaws that its processor does not have, no self-tests of its
 * cryptography (half of the boot's instructions), a reboot right after a panic.
 */
static const char default_cmdline[] =
    "console=ttyS0 panic=-1 mitigations=off tsc=reliable no_timer_check random.trust_cpu=on "
    "8250.nr_uarts=1 i8042.noaux i8042.nokbd nowatchdog cryptomgr.notests";

/* What libslirp's DHCP server would tell the guest. */
static const char network_cmdline[] = "lodge.net=10.0.2.15/24,10.0.2.2,10.0.2.3";

static bool boots_image_directly(const struct run *run) {
    return run->config->image != NULL && run->config->machine.firmware == FIRMWARE_NONE;
}

static bool has_terminal(const struct run *run) {
    return !in_background(run) && terminal_is_there();
}

void settle(struct run *run, int code) {
    if (!run->code_known)
        run->code = code;
    run->code_known = true;
}

/* ---- Ending ---- */

static void arm(struct loop_timer *timer, unsigned seconds) {
    loop_timer_arm(timer, host_clock_ns() + seconds * NS_PER_SECOND);
}

static void on_shutdown_timeout(void *context) {
    struct run *run = context;
    machine_stop(run->machine);
}

/* Asks the guest to shut down; it gets some time for that. */
static void ask_shutdown(struct run *run) {
    if (uses_agent(run) && !agent_shutdown(run->agent)) {
        machine_stop(run->machine); /* nothing runs yet that could lose anything */
        return;
    }
    if (!uses_agent(run))
        machine_power_button(run->machine);
    arm(run->shutdown_timer, SHUTDOWN_SECONDS);
}

static void on_signal(void *context, int number) {
    struct run *run = context;
    if (run->signal != 0 || run->code_known)
        machine_stop(run->machine);
    else
        ask_shutdown(run);
    if (run->signal == 0)
        run->signal = number;
}

static void leave(struct run *run) {
    run->left = true;
    machine_stop(run->machine);
}

static size_t on_input(void *context, uint8_t *bytes, size_t length) {
    struct run *run = context;
    bool wants_to_leave = false;
    length = terminal_filter(&run->escape, bytes, length, &wants_to_leave);
    if (wants_to_leave)
        leave(run);
    return length;
}

/* A disk that stays may have been written to: the guest flushes and unmounts it. */
static bool has_disks_to_flush(const struct run *run) {
    bool ends_with_run = run->own.overlay.path[0] != 0; /* then it is the first */
    if (run->config->machine.user_device_count > 0)
        return true;
    for (unsigned i = ends_with_run; i < run->config->machine.disk_count; i++)
        if (!run->config->machine.disks[i].options.readonly && run->own.tops[i].path[0] == 0)
            return true;
    return false;
}

static void on_command_ended(void *context, int code) {
    struct run *run = context;
    run->marks.ended_ns = host_clock_ns();
    agent_session_close(run->session);
    run->session = NULL;
    if (run->at_once && code < 0) {
        renew_later(run);
        return;
    }
    if (run->signal != 0 || run->restarting || run->code_known)
        return;
    if (code < 0) {
        fprintf(stderr, "lodge: the connection to the guest's agent broke: %s\n", strerror(-code));
        settle(run, EXIT_LOST);
        print_tail(run);
    }
    settle(run, code);
    if (code >= 0 && has_disks_to_flush(run) && agent_shutdown(run->agent))
        arm(run->shutdown_timer, SHUTDOWN_SECONDS);
    else
        machine_stop(run->machine);
}

/* ---- The agent ---- */

/* Lock-step is a hundred times slower. */
static unsigned agent_timeout(const struct run *run) {
    const char *text = getenv("LODGE_AGENT_TIMEOUT");
    unsigned long seconds = text != NULL ? strtoul(text, NULL, 10) : 0;
    return seconds > 0 && seconds < 86400 ? (unsigned)seconds
           : run->config->machine.verify  ? 10 * AGENT_TIMEOUT_SECONDS
                                          : AGENT_TIMEOUT_SECONDS;
}

static void on_agent_timeout(void *context) {
    struct run *run = context;
    fprintf(stderr,
            "lodge: no agent answered within %u s; is lodge-agent in the initramfs? "
            "The console's last lines:\n",
            agent_timeout(run));
    print_tail(run);
    settle(run, EXIT_NO_AGENT);
    machine_stop(run->machine);
}

int start_command(struct run *run, const struct agent_exec_renewal *renewal, struct error *err) {
    static const char *const login[] = {"/bin/sh", "-l", NULL}, *const shell[] = {"/bin/sh", NULL};
    bool terminal = run->config->command == NULL && has_terminal(run);
    char term[128];
    const char *const environment[] = {term, NULL};
    struct agent_exec_config exec = {
        .renewal = renewal,
        .arguments = run->config->command != NULL ? run->config->command
                     : terminal                   ? login
                                                  : shell,
        .terminal = terminal,
        .in = STDIN_FILENO,
        .out = STDOUT_FILENO,
        .err = STDERR_FILENO,
        .ended = on_command_ended,
        .context = run,
    };
    if (terminal) {
        const char *name = getenv("TERM");
        snprintf(term, sizeof term, "TERM=%.100s", name != NULL ? name : "linux");
        terminal_size(&exec.rows, &exec.columns);
        exec.environment = environment;
        exec.filter = on_input;
        fprintf(stderr, "lodge: " TERMINAL_ESCAPE_HELP "\n");
    }
    int result = terminal ? terminal_raw(err) : 0;
    return result == 0 ? agent_exec(run->agent, &exec, &run->session, err) : result;
}

void cannot_start(struct run *run, const char *text) {
    settle(run, cli_error(EXIT_NOT_STARTED, text));
    machine_stop(run->machine);
}

/* From now on a clone is there, whatever becomes of who started it; or it is not to be. */
static void on_batch_decided(void *context, bool there) {
    struct run *run = context;
    struct error err;
    if (!there) {
        machine_stop(run->machine);
        return;
    }
    if (vm_store_started(run->config->directory, &err) < 0)
        cannot_start(run, err.text);
    else
        batch_done(run->batch);
    batch_unwatch(run->batch);
    run->batch = NULL;
    run->config->batch = NULL; /* a reboot changes nothing of it */
}

static void tell_starter(struct run *run) {
    struct error err;
    int result =
        run->config->batch == NULL || run->batch != NULL
            ? 0
            : batch_watch(run->config->batch, run->loop, on_batch_decided, run, &run->batch, &err);
    if (result == 0) {
        background_ready(run->config->background);
        return;
    }
    cannot_start(run, err.text);
}

/* The guest has all that it was promised. */
static void go_on(struct run *run) {
    struct error err = {0};
    loop_timer_cancel(run->agent_timer);
    vm_control_agent(run->control, run->agent);
    if (in_background(run))
        tell_starter(run);
    else if (run->signal == 0 && start_command(run, NULL, &err) < 0)
        cannot_start(run, err.text);
}

static void cannot_mount(struct run *run, unsigned index, int error, const char *advice) {
    const struct volume_config *volume = &run->config->machine.volumes[index];
    struct error err;
    error_set_errno(&err, error, "the guest cannot mount volume %.150s at %.150s%s", volume->host,
                    volume->guest, advice);
    cannot_start(run, err.text);
}

static void on_mounted(void *context, int error) {
    struct run *run = context;
    if (run->code_known || run->restarting)
        return;
    if (error < 0)
        cannot_mount(run, run->mounted, error, "");
    else if (++run->mounted == run->config->machine.volume_count)
        go_on(run);
}

static bool mount_volume(struct run *run, unsigned index) {
    const struct volume_config *volume = &run->config->machine.volumes[index];
    char tag[20];
    snprintf(tag, sizeof tag, "volume%u", index);
    if (agent_mount(run->agent, tag, volume->guest, volume->readonly))
        return true;
    cannot_mount(run, index, -ENOTSUP, ", its lodge-agent is too old (see 'lodge image build')");
    return false;
}

void set_up_guest(struct run *run) {
    const struct machine_config *machine = &run->config->machine;
    run->mounted = 0;
    for (unsigned i = 0; i < machine->volume_count; i++)
        if (!mount_volume(run, i))
            return;
    if (machine->volume_count == 0)
        go_on(run);
}

/* The guest's agent is there, and hears what it is to do. */
void meet_agent(struct run *run) {
    run->marks.agent_ns = run->ready_ns = host_clock_ns();
    run->was_ready = true;
    run->restarting = false;
    bool renewing = run->renew_due && renew_guest(run);
    machine_tell_identity(run->machine, run->agent);
    if (!renewing)
        set_up_guest(run);
}

static void on_ready(void *context, const char *release) {
    struct run *run = context;
    if (run->at_once) /* the session tells more */
        return;
    if (run->was_ready && !run->restarting) { /* only its connection was lost */
        machine_tell_identity(run->machine, run->agent);
        return;
    }
    if (run->config->verbose > 0 && !run->renew_due)
        fprintf(stderr, "lodge: boot of Linux %s took %.2f s\n", release,
                seconds_since(run->started_ns));
    meet_agent(run);
}

static void on_window_change(void *context, int number) {
    struct run *run = context;
    uint16_t rows, columns;
    terminal_size(&rows, &columns);
    if (run->session != NULL)
        agent_session_resize(run->session, rows, columns);
}

/* ---- The machine's events ---- */

static void on_restarted(void *context) {
    struct run *run = context;
    terminal_restore();
    vm_control_restarted(run->control);
    run->restarting = true;
    run->renew_due = false;
    run->started_ns = host_clock_ns();
    if (uses_agent(run))
        arm(run->agent_timer, agent_timeout(run));
    else if (has_terminal(run))
        terminal_raw(NULL);
}

static void on_held(void *context) {
    struct run *run = context;
    if (!run->left)
        fprintf(stderr, "lodge: the guest's kernel panicked and is held; %s ends it\n",
                in_background(run) ? "'lodge stop'" : "Ctrl-C");
    vm_control_panicked(run->control);
    loop_timer_cancel(run->agent_timer);
    terminal_restore();
}

static void on_watchdog(void *context, enum watchdog_policy policy) {
    struct run *run = context;
    fprintf(stderr, "lodge: the guest did not reset its watchdog in time\n");
    vm_control_watchdog(run->control, policy);
}

static void on_disk_failed(void *context, unsigned disk, const struct hold_failures *failures) {
    struct run *run = context;
    if (failures->kept > 0)
        fprintf(
            stderr,
            "lodge: disk%u: no space left on the host for %s: the VM is paused; make room, then "
            "'lodge resume' goes on\n",
            disk, run->config->machine.disks[disk].path);
    vm_control_disk_failed(run->control, disk, failures);
}

static void on_device_full(void *context, const char *socket) {
    struct run *run = context;
    fprintf(stderr,
            "lodge: no space left on the host for the device at %s: the VM is paused; make room, "
            "then 'lodge resume' goes on\n",
            socket);
    vm_control_device_full(run->control, socket);
}

static void on_dump(void *context, const char *line) {
    terminal_restore();
    fprintf(stderr, "%s\n", line);
}

/* vCPU thread, serial port's lock held. */
static void on_console_panic(void *context, bool final) {
    struct run *run = context;
    if (final)
        machine_panicked(run->machine);
    else
        machine_panic_seen(run->machine);
}

/* Who started this VM was interrupted before it was up. */
static void on_starter_gone(void *context) {
    machine_stop(((struct run *)context)->machine);
}

/* ---- Setting up ---- */

static int add_signals(struct run *run, struct error *err) {
    int result = loop_signal_add(run->loop, SIGINT, on_signal, run, &run->signals[0], err);
    if (result == 0)
        result = loop_signal_add(run->loop, SIGTERM, on_signal, run, &run->signals[1], err);
    if (result == 0 && has_terminal(run))
        result = loop_signal_add(run->loop, SIGWINCH, on_window_change, run, &run->signals[2], err);
    return result;
}

static int create_console(struct run *run, struct error *err) {
    struct chardev_fd_config stdio = {.in = STDIN_FILENO, .out = STDOUT_FILENO, .context = run};
    int result = 0;
    if (has_terminal(run))
        stdio.filter = on_input;
    if (in_background(run))
        result = console_hub_create(run->loop, run->config->directory, &run->hub, err);
    else if (!uses_agent(run))
        result = chardev_fd_create(run->loop, &stdio, &run->stdio, err);
    struct chardev *next = run->hub != NULL ? console_hub_chardev(run->hub) : run->stdio;
    if (result == 0)
        result = console_create(next, on_console_panic, run, &run->console, err);
    return result;
}

/* Told to the default guest, which would busy-wait for half a second to measure it. 0: unknown. */
static uint64_t tsc_khz(void) {
    struct vm_clock *clock;
    if (vm_clock_create(&clock, NULL) < 0)
        return 0;
    uint64_t hz = vm_clock_tsc_hz(clock);
    vm_clock_destroy(clock);
    return hz / 1000;
}

static int make_cmdline(struct run *run, bool default_guest, struct error *err) {
    const struct run_config *config = run->config;
    bool network = default_guest && uses_agent(run) && config->machine.net == NET_USER;
    bool ours = default_guest || boots_image_directly(run);
    char tsc[40] = "", root[64] = "";
    if (boots_image_directly(run))
        snprintf(root, sizeof root, "root=UUID=%s ro ", run->own.image.root);
    if (ours && config->source == NULL)
        snprintf(tsc, sizeof tsc, " tsc_early_khz=%llu", (unsigned long long)tsc_khz());
    int length = asprintf(
        &run->cmdline, "%s%s%s%s%s%s%s%s%s", network ? network_cmdline : "", network ? " " : "",
        root, ours ? default_cmdline : "", tsc, ours && uses_agent(run) ? " quiet" : "",
        ours && config->machine.cdrom != NULL ? " scsi_mod.scan=sync" : "",
        ours && config->append != NULL ? " " : "", config->append != NULL ? config->append : "");
    if (length < 0) {
        run->cmdline = NULL;
        return error_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}

/* A VM that lasts keeps its UEFI variables, too. */
static int place_variables(struct run *run, struct error *err) {
    struct machine_config *machine = &run->config->machine;
    if (run->config->directory == NULL || machine->firmware != FIRMWARE_OVMF ||
        machine->firmware_variables != NULL)
        return 0;
    if (asprintf(&run->variables, "%s/uefi-variables", run->config->directory) < 0) {
        run->variables = NULL;
        return error_set(err, -ENOMEM, "out of memory");
    }
    machine->firmware_variables = run->variables;
    return 0;
}

/* A VM that lasts keeps its generation id, which is another after it went back to a snapshot. */
static int place_generation(struct run *run, struct error *err) {
    if (run->config->directory == NULL)
        return 0;
    if (asprintf(&run->generation, "%s/generation-id", run->config->directory) < 0) {
        run->generation = NULL;
        return error_set(err, -ENOMEM, "out of memory");
    }
    run->config->machine.generation_file = run->generation;
    return 0;
}

static int create_machine(struct run *run, struct error *err) {
    static const struct machine_events events = {.restarted = on_restarted,
                                                 .held = on_held,
                                                 .watchdog = on_watchdog,
                                                 .disk_failed = on_disk_failed,
                                                 .device_full = on_device_full,
                                                 .dump = on_dump};
    struct machine_config *machine = &run->config->machine;
    struct machine_events mine = events;
    mine.context = run;
    machine->cmdline = run->cmdline;
    machine->loop = run->loop;
    machine->serial = console_chardev(run->console);
    machine->vsock = uses_agent(run);
    machine->cloned = run->config->identity != NULL;
    machine->frugal = machine->cloned && in_background(run);
    if (run->config->command != NULL)
        machine->on_reboot = REBOOT_STOP; /* a command is not run twice */
    int result = machine_create(machine, &mine, &run->machine, err);
    run->renew_due = machine->restore != NULL;
    if (result == 0 && run->config->identity != NULL)
        machine_renew_mac(run->machine, run->config->identity->mac, run->old_mac);
    return result;
}

static int create_control(struct run *run, struct error *err) {
    const char *directory = run->config->directory;
    int result = vm_control_create(run->machine, run->config->name, &run->control, err);
    if (result == 0)
        vm_control_console(run->control, run->hub);
    if (result == 0 && directory != NULL)
        result = vm_control_snapshots(run->control, directory, err);
    return result == 0 && directory != NULL
               ? vm_control_migration(run->control, run->config->name, directory,
                                      run->config->coming, err)
               : result;
}

/* A path that others have, too, is another from now on, and a shorter one. */
static void follow(char *path, const char *file, const char *directory) {
    if (path != NULL)
        snprintf(path, strlen(path) + 1, "%s/%s", directory, file);
}

/* The VM is here from now on, and its directory where those of others are. */
static int take_over(struct run *run, struct error *err) {
    int result = migration_take_over(run->config->coming, run->machine, err);
    if (result < 0)
        return result;
    console_hub_move(run->hub, run->config->directory);
    follow(run->generation, "generation-id", run->config->directory);
    follow(run->variables, "uefi-variables", run->config->directory);
    run_image_follow(&run->own, run->config->directory);
    return 0;
}

static void on_runs(void *context) {
    migration_runs(context);
}

/* From here on no program is run, and threads begin: what the machine needs is granted. */
static int give_up_rights(const struct run_config *config, struct error *err) {
    const struct machine_config *machine = &config->machine;
    struct isolation_grants grants = {.vcpu_net = machine->net == NET_USER,
                                      .network = machine->net == NET_USER,
                                      .tap = machine->net == NET_TAP,
                                      .raw_files = true,
                                      .ending = terminal_restore};
    if (!config->sandbox)
        return 0;
    grants.network |= config->directory != NULL; /* it may be moved to another host */
    for (unsigned i = 0; i < machine->disk_count; i++)
        grants.network |= strncmp(machine->disks[i].path, "nbd", 3) == 0;
    for (unsigned i = 0; i < machine->volume_count; i++)
        grants.owners |= !machine->volumes[i].readonly;
    for (unsigned i = 0; i < machine->publish_count; i++)
        grants.low_ports |= machine->publish[i].host_port < 1024;
    return isolation_enter(&grants, err);
}

static int set_up(struct run *run, bool default_guest, struct error *err) {
    struct agent_events agent = {
        .ready = on_ready, .mounted = on_mounted, .renewed = on_renewed, .context = run};
    bool temporary = run->config->source != NULL && run->config->directory == NULL;
    int result = temporary ? run_image_clone(&run->own, run->config, err)
                           : run_image_temporary(&run->own, run->config, err);
    if (result == 0 && run->config->cloud_init != NULL)
        result = run_image_seed(&run->own, run->config, err);
    run->marks.disks_ns = host_clock_ns();
    if (result == 0)
        result = give_up_rights(run->config, err);
    if (result == 0)
        result = loop_create(&run->loop, err);
    if (result == 0)
        result = add_signals(run, err);
    if (result == 0 && in_background(run) && run->config->coming == NULL)
        result = background_watch(run->config->background, run->loop, on_starter_gone, run, err);
    if (result == 0)
        result = loop_timer_create(run->loop, on_agent_timeout, run, &run->agent_timer, err);
    if (result == 0)
        result = loop_timer_create(run->loop, on_shutdown_timeout, run, &run->shutdown_timer, err);
    if (result == 0)
        result = create_console(run, err);
    if (result == 0)
        result = make_cmdline(run, default_guest, err);
    if (result == 0)
        result = place_variables(run, err);
    if (result == 0)
        result = place_generation(run, err);
    if (result == 0)
        result = create_machine(run, err);
    if (result == 0 && run->config->coming != NULL)
        result = migration_receive(run->config->coming, run->machine, err);
    if (result == 0)
        result = create_control(run, err);
    if (result == 0 && run->config->coming != NULL)
        result = take_over(run, err);
    if (result == 0 && uses_agent(run))
        result = agent_create(machine_vsock(run->machine), run->loop, &agent, &run->agent, err);
    if (result == 0 && run->config->perf_map)
        result = vm_control_perf_map(run->control, err);
    return result;
}

static void take_down(struct run *run) {
    agent_session_close(run->session);
    vm_control_destroy(run->control);
    agent_destroy(run->agent);
    migration_stop(run->config->coming);
    machine_destroy(run->machine);
    console_destroy(run->console);
    if (run->stdio != NULL)
        chardev_fd_destroy(run->stdio);
    console_hub_destroy(run->hub);
    if (in_background(run))
        background_unwatch(run->config->background);
    batch_unwatch(run->batch);
    for (size_t i = 0; i < ARRAY_SIZE(run->signals); i++)
        if (run->signals[i] != NULL)
            loop_signal_remove(run->signals[i]);
    if (run->agent_timer != NULL)
        loop_timer_free(run->agent_timer);
    if (run->shutdown_timer != NULL)
        loop_timer_free(run->shutdown_timer);
    if (run->loop != NULL)
        loop_destroy(run->loop);
    free(run->cmdline);
    free(run->variables);
    free(run->generation);
    terminal_restore();
}

/* ---- All of it ---- */

static int run_machine(struct run *run) {
    struct machine_result result;
    if (run->config->verbose > 0)
        say_what_runs(run);
    if (run->config->coming != NULL) {
        background_ready(run->config->background);
        loop_post(run->loop, on_runs, run->config->coming);
    } else if (uses_agent(run)) {
        arm(run->agent_timer, agent_timeout(run));
        renew_at_once(run);
    } else if (in_background(run)) {
        background_ready(run->config->background); /* nobody will tell more of such a guest */
    } else if (terminal_is_there()) {
        fprintf(stderr, "lodge: " TERMINAL_ESCAPE_HELP "\n");
        terminal_raw(NULL);
    }
    machine_run(run->machine, &result);
    terminal_restore();
    vm_control_ended(run->control, reason_of_end(result.end));
    if (run->config->verbose > 0)
        say_what_ran(run);
    return exit_code(run, &result);
}

/* ---- What there is to run ---- */

bool run_wants_default_guest(const struct run_config *config) {
    return config->machine.kernel == NULL && config->machine.firmware == FIRMWARE_NONE &&
           config->image == NULL;
}

static int find_guest(struct run *run, bool *default_guest, struct error *err) {
    struct machine_config *machine = &run->config->machine;
    *default_guest = run_wants_default_guest(run->config);
    int result = 0;
    if (*default_guest && machine->restore != NULL && machine->on_reboot == REBOOT_STOP)
        return 0; /* it never boots */
    if (*default_guest) {
        result = image_default(false, &run->guest, err);
        machine->kernel = run->guest.kernel;
        if (machine->initrd == NULL)
            machine->initrd = run->guest.initrd;
    }
    return run->config->image != NULL ? run_image_open(&run->own, run->config, err) : result;
}

static void forget_guest(struct run *run) {
    run_image_close(&run->own);
    free(run);
}

/* What takes long to measure is kept beside the sockets: that directory is this user's own. */
static void keep_measurements(void) {
    char directory[CONTROL_PATH_MAX], path[CONTROL_PATH_MAX + 16];
    if (control_directory(directory, sizeof directory, true, NULL) < 0)
        return;
    snprintf(path, sizeof path, "%s/tsc-hz", directory);
    host_tsc_hz_keep(path);
    snprintf(path, sizeof path, "%s/engine", directory);
    engine_choice_keep(path);
}

int run_guest(struct run_config *config) {
    struct run *run = calloc(1, sizeof *run);
    struct error err = {0};
    bool default_guest;
    if (run == NULL)
        return cli_error(EXIT_NOT_STARTED, "out of memory");
    run->config = config;
    int code, result = find_guest(run, &default_guest, &err);
    if (result < 0) {
        forget_guest(run);
        if (result == -EINTR)
            return EXIT_SIGNAL + image_interrupted();
        return cli_error(EXIT_NO_GUEST, err.text);
    }
    run->started_ns = host_clock_ns();
    keep_measurements();
    result = set_up(run, default_guest, &err);
    if (result < 0 && config->coming != NULL)
        migration_refuse(config->coming, err.text);
    code = result < 0 ? cli_error(EXIT_NOT_STARTED, err.text) : run_machine(run);
    take_down(run);
    forget_guest(run);
    return code;
}
