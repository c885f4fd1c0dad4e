#include "machine/vm_control.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cpu/profile.h"
#include "machine/console_hub.h"
#include "machine/control.h"
#include "machine/control_names.h"
#include "machine/machine_identity.h"
#include "machine/machine_idle.h"
#include "machine/private.h"
#include "machine/profile.h"
#include "machine/vm_disk.h"
#include "machine/vm_exec.h"
#include "machine/vm_memory.h"
#include "machine/vm_migration.h"
#include "machine/vm_pages.h"
#include "machine/vm_qos.h"
#include "machine/vm_snapshot.h"

enum { INTERVAL_US = 1000, TOP = 20, TOP_MAX = 1000 };

struct vm_control {
    struct machine *machine;
    struct agent *agent; /* NULL: none has answered */
    struct control *socket;
    struct vm_exec *exec;
    struct vm_memory *memory;
    struct vm_pages *pages;
    struct vm_snapshots *snapshots; /* NULL: there is no place for them */
    struct vm_migration *migration; /* NULL: the VM does not last */
    struct console_hub *console;    /* NULL: none to attach to */
    uint64_t started_ns;
    bool panicked;
    struct perf_map *perf_map;
    struct guest_symbols_fetch *map_fetch; /* names for it are on their way */
    /* One profile at a time, which ends with the client that began it. */
    struct profile *profile;
    unsigned long owner;
    struct control_call *starting; /* waits for symbols */
    struct guest_symbols_fetch *fetch;
    unsigned interval_us;
};

static bool is_moving(const struct vm_control *control, struct control_call *call);

/* Why memory that the guest waits for does not come; empty: it does. */
static void memory_why(const struct vm_control *control, char *why, size_t size) {
    vm_pages_why(control->pages, why, size);
    if (why[0] == 0)
        vm_migration_why(control->migration, why, size);
}

/* True: the call has been answered, since the VM runs elsewhere, or a vCPU stands still for memory
 * and gets nowhere where it could be held. */
static bool is_out_of_reach(const struct vm_control *control, struct control_call *call) {
    char why[ERROR_TEXT_MAX];
    memory_why(control, why, sizeof why);
    if (why[0] == 0 && !vm_migration_is_away(control->migration, why, sizeof why))
        return false;
    control_fail(call, "GenericError", why);
    return true;
}

/* ---- Queries ---- */

static void query_status(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    struct machine *machine = control->machine;
    char why[ERROR_TEXT_MAX];
    machine_why_paused(machine, why, sizeof why);
    if (why[0] == 0)
        memory_why(control, why, sizeof why);
    bool away = vm_migration_is_away(control->migration, why, sizeof why);
    const char *status = control->panicked                    ? "panicked"
                         : away || machine_is_paused(machine) ? "paused"
                         : machine->running                   ? "running"
                                                              : "ended";
    double up = (double)(host_clock_ns() - control->started_ns) / (double)NS_PER_SECOND;
    json_t *reply =
        json_pack("{s:s, s:b, s:i, s:s, s:i, s:i, s:I, s:f, s:b, s:b}", "status", status, "running",
                  strcmp(status, "running") == 0, "pid", (int)getpid(), "engine",
                  engine_name(machine->engine), "vcpus", (int)machine->config.vcpus, "vcpus-max",
                  (int)machine->config.vcpus_max, "memory", (json_int_t)machine->config.memory,
                  "uptime-seconds", up, "agent", control->agent != NULL, "profiling",
                  control->profile != NULL);
    if (why[0] != 0)
        json_object_set_new(reply, "why", json_string(why));
    json_t *identity = machine_identity_json(machine);
    json_object_del(identity, "events");
    json_object_update(reply, identity);
    json_decref(identity);
    control_return(call, reply);
}

static void query_identity(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    control_return(call, machine_identity_json(control->machine));
}

static void query_idle_states(void *context, struct control_call *call, const json_t *arguments) {
    json_t *reply = machine_idle_json(((struct vm_control *)context)->machine);
    if (reply == NULL)
        control_fail(call, "NotActive", "this VM was started without --idle-states");
    else
        control_return(call, reply);
}

static void set_idle_states(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    struct error err = {0};
    int result = machine_set_idle(control->machine,
                                  json_string_value(json_object_get(arguments, "table")), &err);
    if (result < 0)
        control_fail(call, result == -ENODEV ? "NotActive" : "BadArgument", err.text);
    else
        control_return(call, NULL);
}

static void query_counters(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    control_return(call, json_pack("{s:o}", "counters", machine_counters_json(control->machine)));
}

/* ---- Life cycle ---- */

static void set_cpus(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    struct error err;
    json_int_t count = json_integer_value(json_object_get(arguments, "count"));
    if (is_moving(control, call))
        return;
    if (count < 1 || count > MACHINE_VCPUS_MAX)
        control_fail(call, "InvalidParameter", "a VM has 1 to 64 processors");
    else if (machine_set_vcpus(control->machine, (unsigned)count, &err) < 0)
        control_fail(call, "GenericError", err.text);
    else
        control_return(call, NULL);
}

static void tell(void *context, const char *event, json_t *data) {
    struct vm_control *control = context;
    if (control->socket != NULL)
        control_event(control->socket, event, data);
    else
        json_decref(data);
}

static void pause_guest(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    if (is_out_of_reach(control, call))
        return;
    if (!machine_pause(control->machine)) {
        control_fail(call, "NotActive", "the VM is paused already");
        return;
    }
    control_return(call, NULL);
    tell(control, "STOP", NULL);
}

static void resume_guest(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    char why[ERROR_TEXT_MAX];
    if (vm_migration_is_doubtful(control->migration)) {
        vm_migration_take_back(control->migration, call,
                               json_is_true(json_object_get(arguments, "force")));
        return;
    }
    if (vm_migration_is_away(control->migration, why, sizeof why)) {
        control_fail(call, "GenericError", why);
        return;
    }
    if (!machine_resume(control->machine)) {
        control_fail(call, "NotActive", "the VM is not paused");
        return;
    }
    control_return(call, NULL);
    tell(control, "RESUME", NULL);
}

/* A paused guest would never hear of it. */
static void power_down(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    const char *way = json_string_value(json_object_get(arguments, "way"));
    char why[ERROR_TEXT_MAX];
    if (way != NULL && strcmp(way, "agent") != 0 && strcmp(way, "acpi") != 0) {
        control_fail(call, "BadArgument", "'way' is agent or acpi");
        return;
    }
    if (vm_migration_is_away(control->migration, why, sizeof why)) {
        control_fail(call, "GenericError", why);
        return;
    }
    if (machine_resume(control->machine))
        tell(control, "RESUME", NULL);
    bool by_agent = (way == NULL || strcmp(way, "agent") == 0) && control->agent != NULL &&
                    agent_shutdown(control->agent);
    if (!by_agent && way != NULL && strcmp(way, "agent") == 0) {
        control_fail(call, "NotActive", "no lodge-agent answers in the guest");
        return;
    }
    if (!by_agent)
        machine_power_button(control->machine);
    control_return(call, json_pack("{s:s}", "way", by_agent ? "agent" : "acpi"));
    tell(control, "POWERDOWN", NULL);
}

static void reset_guest(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    if (is_out_of_reach(control, call))
        return;
    machine_reset(control->machine);
    control_return(call, NULL);
}

static void quit(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    char why[ERROR_TEXT_MAX];
    control_return(call, NULL);
    if (vm_migration_is_away(control->migration, why, sizeof why))
        machine_leave(control->machine);
    else
        machine_stop(control->machine);
}

/* ---- Time ---- */

static json_t *time_status(struct vm_control *control) {
    struct vm_clock *clock = machine_clock(control->machine);
    uint64_t host, ns = vm_clock_both_ns(clock, &host);
    return json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:I, s:b}", "guest-seconds", (double)ns / (double)NS_PER_SECOND,
        "host-seconds", (double)host / (double)NS_PER_SECOND, "wall-seconds",
        (double)vm_clock_wall_ns(clock, ns) / (double)NS_PER_SECOND, "scale", vm_clock_scale(clock),
        "behind-seconds", (double)vm_clock_behind_ns(clock) / (double)NS_PER_SECOND, "tsc-hz",
        (json_int_t)vm_clock_tsc_hz(clock), "paused", vm_clock_paused(clock));
}

static void query_time(void *context, struct control_call *call, const json_t *arguments) {
    control_return(call, time_status(context));
}

static void set_time(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    const json_t *scale = json_object_get(arguments, "scale");
    struct error err = {0};
    int result = scale != NULL
                     ? machine_set_time_scale(control->machine, json_number_value(scale), &err)
                     : 0;
    if (result < 0)
        control_fail(call, result == -ENOTSUP ? "NotSupported" : "BadArgument", err.text);
    else
        control_return(call, time_status(control));
}

/* ---- Programs and the console ---- */

static void start_program(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    vm_exec_start(control->exec, control->agent, call, arguments);
}

static void resize_program(void *context, struct control_call *call, const json_t *arguments) {
    vm_exec_resize(((struct vm_control *)context)->exec, call, arguments);
}

static void signal_program(void *context, struct control_call *call, const json_t *arguments) {
    vm_exec_signal(((struct vm_control *)context)->exec, call, arguments);
}

static void attach_console(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    json_int_t history = json_integer_value(json_object_get(arguments, "history"));
    bool writes = json_is_true(json_object_get(arguments, "write"));
    struct error err = {0};
    int fd;
    if (control->console == NULL) {
        control_fail(call, "NotSupported", "this VM's console belongs to its 'lodge run'");
        return;
    }
    if (history < 0 || !control_take_fds(call, &fd, 1)) {
        control_fail(call, "BadRequest", "send a stream socket along; 'history' counts bytes");
        return;
    }
    int result = console_hub_attach(control->console, fd, writes, (size_t)history, &err);
    if (result < 0) {
        close(fd);
        control_fail(call, result == -EBUSY ? "Busy" : "GenericError", err.text);
        return;
    }
    control_return(call, NULL);
}

void vm_control_console(struct vm_control *control, struct console_hub *hub) {
    if (control != NULL)
        control->console = hub;
}

/* ---- Disks ---- */

static void resize_disk(void *context, struct control_call *call, const json_t *arguments) {
    if (!is_moving(context, call))
        vm_disk_resize(((struct vm_control *)context)->machine, call, arguments);
}

static void snapshot_disk(void *context, struct control_call *call, const json_t *arguments) {
    if (!is_moving(context, call))
        vm_disk_snapshot(((struct vm_control *)context)->machine, call, arguments);
}

static void remove_snapshot(void *context, struct control_call *call, const json_t *arguments) {
    if (!is_moving(context, call))
        vm_disk_remove_snapshot(((struct vm_control *)context)->machine, call, arguments);
}

static void query_snapshots(void *context, struct control_call *call, const json_t *arguments) {
    if (!is_moving(context, call))
        vm_disk_query_snapshots(((struct vm_control *)context)->machine, call, arguments);
}

static void query_qos(void *context, struct control_call *call, const json_t *arguments) {
    vm_qos_query(((struct vm_control *)context)->machine, call);
}

static void set_qos(void *context, struct control_call *call, const json_t *arguments) {
    vm_qos_set(((struct vm_control *)context)->machine, call, arguments);
}

/* ---- Snapshots of the whole VM ---- */

static void create_snapshot(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    char why[ERROR_TEXT_MAX];
    vm_pages_why(control->pages, why, sizeof why);
    if (why[0] != 0)
        control_fail(call, "GenericError", why);
    else if (vm_pages_busy(control->pages))
        control_fail(call, "Busy", "the VM is being paged out");
    else if (control->snapshots == NULL)
        control_fail(call, "NotSupported",
                     "this VM ends with its 'lodge run'; those of 'lodge create' have snapshots");
    else if (!is_moving(control, call))
        vm_snapshots_take(control->snapshots, call, arguments);
}

int vm_control_snapshots(struct vm_control *control, const char *directory, struct error *err) {
    if (control == NULL)
        return 0;
    vm_pages_place(control->pages, directory);
    return vm_snapshots_create(control->machine, directory, &control->agent, tell, control,
                               &control->snapshots, err);
}

/* ---- Moving ---- */

static void migrate(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    if (control->migration == NULL)
        control_fail(call, "NotSupported",
                     "this VM ends with its 'lodge run'; those of 'lodge create' can be moved");
    else if (vm_snapshots_busy(control->snapshots) || vm_disk_is_busy(control->machine) ||
             vm_pages_busy(control->pages))
        control_fail(call, "Busy", "a snapshot of it is being taken, or it is being paged out");
    else
        vm_migration_start(control->migration, control->agent, call, arguments);
}

static void resume_migration(void *context, struct control_call *call, const json_t *arguments) {
    vm_migration_resume(((struct vm_control *)context)->migration, call, arguments);
}

static void cancel_migration(void *context, struct control_call *call, const json_t *arguments) {
    vm_migration_cancel(((struct vm_control *)context)->migration, call);
}

static void query_migration(void *context, struct control_call *call, const json_t *arguments) {
    vm_migration_query(((struct vm_control *)context)->migration, call);
}

static void on_moved(void *context) {
    machine_leave(((struct vm_control *)context)->machine);
}

int vm_control_migration(struct vm_control *control, const char *name, const char *directory,
                         const struct migration_target *coming, struct error *err) {
    if (control == NULL)
        return 0;
    struct vm_migration_config config = {.machine = control->machine,
                                         .name = name,
                                         .directory = directory,
                                         .tell = tell,
                                         .gone = on_moved,
                                         .context = control,
                                         .coming = coming};
    return vm_migration_create(&config, &control->migration, err);
}

/* Disks and devices stay as they are while a VM moves; true: the call has been answered. */
static bool is_moving(const struct vm_control *control, struct control_call *call) {
    char why[ERROR_TEXT_MAX] = "it is being moved";
    if (!vm_migration_is_busy(control->migration) &&
        !vm_migration_is_away(control->migration, why, sizeof why))
        return false;
    control_fail(call, "Busy", why);
    return true;
}

/* ---- Memory ---- */

static void query_memory(void *context, struct control_call *call, const json_t *arguments) {
    vm_memory_query(((struct vm_control *)context)->memory, call);
}

static void set_memory(void *context, struct control_call *call, const json_t *arguments) {
    vm_memory_set(((struct vm_control *)context)->memory, call, arguments);
}

static void page_out(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    if (control->snapshots != NULL && vm_snapshots_busy(control->snapshots))
        control_fail(call, "Busy", "a snapshot is being taken");
    else if (!is_moving(control, call))
        vm_pages_out(control->pages, call, arguments);
}

static void page_in(void *context, struct control_call *call, const json_t *arguments) {
    vm_pages_in(((struct vm_control *)context)->pages, call);
}

/* ---- Profiles ---- */

static void start_now(struct vm_control *control, struct guest_symbols *symbols,
                      const char *no_symbols) {
    struct control_call *call = control->starting;
    struct error err = {0};
    bool has_symbols = symbols != NULL;
    control->starting = NULL;
    control->fetch = NULL;
    control->owner = control_client(call);
    if (control->owner == 0) { /* it did not wait */
        guest_symbols_free(symbols);
        control_return(call, NULL);
        return;
    }
    int result =
        profile_start(control->machine, control->interval_us, symbols, &control->profile, &err);
    if (result < 0) {
        control_fail(call, result == -ENOTSUP ? "NotSupported" : "GenericError", err.text);
        return;
    }
    json_t *reply = json_pack("{s:b}", "symbols", has_symbols);
    if (!has_symbols)
        json_object_set_new(reply, "no-symbols", json_string(no_symbols));
    control_return(call, reply);
}

static void on_symbols(void *context, struct guest_symbols *symbols, const char *reason) {
    start_now(context, symbols, reason);
}

static void start(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    const json_t *interval = json_object_get(arguments, "interval-us");
    json_int_t us = interval != NULL ? json_integer_value(interval) : INTERVAL_US;
    struct error err;
    if (control->profile != NULL || control->starting != NULL) {
        control_fail(call, "Busy", "a profile is being made already");
        return;
    }
    if (us < PROFILE_INTERVAL_MIN || us > PROFILE_INTERVAL_MAX) {
        error_set(&err, -EINVAL, "interval-us is from %d to %d", PROFILE_INTERVAL_MIN,
                  PROFILE_INTERVAL_MAX);
        control_fail(call, "BadArgument", err.text);
        return;
    }
    control->starting = call;
    control->interval_us = (unsigned)us;
    if (json_is_false(json_object_get(arguments, "symbols")))
        start_now(control, NULL, "not asked for");
    else if (control->agent == NULL || !agent_is_ready(control->agent))
        start_now(control, NULL, "the guest has no agent to tell them");
    else if (guest_symbols_fetch(control->agent, control->machine->config.loop, on_symbols, control,
                                 &control->fetch, &err) < 0)
        start_now(control, NULL, err.text);
}

static void stop(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    const json_t *wanted = json_object_get(arguments, "top");
    json_int_t top = wanted != NULL ? json_integer_value(wanted) : TOP;
    json_t *report = NULL;
    if (control->profile == NULL) {
        control_fail(call, "NotActive", "no profile is being made");
        return;
    }
    if (control_client(call) != control->owner) {
        control_fail(call, "Busy", "the profile is another client's");
        return;
    }
    if (top < 0 || top > TOP_MAX) {
        control_fail(call, "BadArgument", "top is from 0 to 1000");
        return;
    }
    profile_stop(control->profile, (unsigned)top, &report);
    control->profile = NULL;
    control_return(call, report);
}

static void on_gone(void *context, unsigned long client) {
    struct vm_control *control = context;
    vm_exec_gone(control->exec, client);
    vm_migration_client_gone(control->migration, client);
    if (control->profile == NULL || control->owner != client)
        return;
    profile_stop(control->profile, 0, NULL);
    control->profile = NULL;
}

/* ---- Perf maps ---- */

static void on_map_symbols(void *context, struct guest_symbols *symbols, const char *reason) {
    struct vm_control *control = context;
    control->map_fetch = NULL;
    if (symbols != NULL)
        perf_map_name(control->perf_map, symbols);
    else
        log_info("perf map without names of the guest's kernel: %s", reason);
}

/* Code translated until then has addresses for names. */
static void name_perf_map(struct vm_control *control) {
    if (control->perf_map != NULL && control->map_fetch == NULL && control->agent != NULL &&
        agent_is_ready(control->agent))
        guest_symbols_fetch(control->agent, control->machine->config.loop, on_map_symbols, control,
                            &control->map_fetch, NULL);
}

int vm_control_perf_map(struct vm_control *control, struct error *err) {
    if (control->perf_map != NULL)
        return 0;
    int result = perf_map_start(control->machine, &control->perf_map, err);
    if (result == 0)
        name_perf_map(control);
    return result;
}

static void start_perf_map(void *context, struct control_call *call, const json_t *arguments) {
    struct vm_control *control = context;
    struct error err = {0};
    char path[64];
    int result = vm_control_perf_map(control, &err);
    snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
    if (result < 0)
        control_fail(call, result == -ENOTSUP ? "NotSupported" : "GenericError", err.text);
    else
        control_return(call, json_pack("{s:s}", "path", path));
}

/* ---- What happens to the machine ---- */

void vm_control_agent(struct vm_control *control, struct agent *agent) {
    if (control == NULL)
        return;
    control->agent = agent;
    name_perf_map(control);
}

static void cancel_fetches(struct vm_control *control) {
    guest_symbols_cancel(control->map_fetch);
    control->map_fetch = NULL;
    guest_symbols_cancel(control->fetch);
    control->fetch = NULL;
    if (control->starting != NULL)
        control_fail(control->starting, "GenericError", "the guest went away meanwhile");
    control->starting = NULL;
}

void vm_control_restarted(struct vm_control *control) {
    if (control == NULL)
        return;
    cancel_fetches(control);
    control->agent = NULL;
    control->panicked = false;
    tell(control, "RESET", NULL);
}

void vm_control_panicked(struct vm_control *control) {
    if (control == NULL)
        return;
    control->panicked = true;
    tell(control, "GUEST_PANICKED", NULL);
}

void vm_control_watchdog(struct vm_control *control, enum watchdog_policy policy) {
    static const char *const actions[] = {
        [WATCHDOG_DO_RESET] = "reset",
        [WATCHDOG_DO_POWEROFF] = "poweroff",
        [WATCHDOG_DO_PAUSE] = "pause",
        [WATCHDOG_DO_NONE] = "none",
    };
    if (control == NULL)
        return;
    tell(control, "WATCHDOG", json_pack("{s:s}", "action", actions[policy]));
    if (policy == WATCHDOG_DO_PAUSE)
        tell(control, "STOP", NULL);
}

void vm_control_disk_failed(struct vm_control *control, unsigned disk,
                            const struct hold_failures *failures) {
    static const char *const operations[] = {"read", "write", "flush", "discard", "write-zeroes"};
    char name[16];
    if (control == NULL)
        return;
    snprintf(name, sizeof name, "disk%u", disk);
    tell(control, "BLOCK_IO_ERROR",
         json_pack("{s:s, s:s, s:s, s:s, s:I, s:i, s:s}", "disk", name, "file",
                   control->machine->config.disks[disk].path, "operation",
                   operations[failures->operation], "error", strerror(-failures->error), "offset",
                   (json_int_t)failures->offset, "count", (int)failures->count, "action",
                   failures->kept > 0 ? "pause" : "report"));
    if (failures->kept > 0 && !machine_is_paused(control->machine))
        tell(control, "STOP", NULL);
}

void vm_control_device_full(struct vm_control *control, const char *socket) {
    if (control == NULL)
        return;
    tell(control, "DEVICE_FULL", json_pack("{s:s}", "socket", socket));
    if (!machine_is_paused(control->machine))
        tell(control, "STOP", NULL);
}

void vm_control_ended(struct vm_control *control, const char *reason) {
    if (control != NULL)
        tell(control, "SHUTDOWN", json_pack("{s:s}", "reason", reason));
}

/* ---- Life ---- */

static const struct control_command commands[] = {
    {.name = "query-status", .run = query_status},
    {.name = "query-identity", .run = query_identity},
    {.name = "query-counters", .run = query_counters},
    {.name = "query-idle-states", .run = query_idle_states},
    {.name = "set-idle-states", .run = set_idle_states, .arguments = {"table:s"}},
    {.name = "query-time", .run = query_time},
    {.name = "set-time", .run = set_time, .arguments = {"scale:n"}},
    {.name = "stop", .run = pause_guest},
    {.name = "cont", .run = resume_guest, .arguments = {"force:b"}},
    {.name = "system_powerdown", .run = power_down, .arguments = {"way:s"}},
    {.name = "system_reset", .run = reset_guest},
    {.name = "set-cpus", .run = set_cpus, .arguments = {"count:i"}},
    {.name = "query-memory", .run = query_memory},
    {.name = "set-memory", .run = set_memory, .arguments = {"size:i"}},
    {.name = "memory-page-out", .run = page_out, .arguments = {"keep:i"}},
    {.name = "memory-page-in", .run = page_in},
    {.name = "quit", .run = quit},
    {.name = "exec",
     .run = start_program,
     .arguments = {"command:a", "environment:a", "directory:s", "user:s", "terminal:b", "rows:i",
                   "columns:i"}},
    {.name = "exec-resize",
     .run = resize_program,
     .arguments = {"session:i", "rows:i", "columns:i"}},
    {.name = "exec-signal", .run = signal_program, .arguments = {"session:i", "signal:i"}},
    {.name = "console-attach", .run = attach_console, .arguments = {"write:b", "history:i"}},
    {.name = "resize-disk", .run = resize_disk, .arguments = {"disk:s", "size:i", "more:b"}},
    {.name = "snapshot-disk", .run = snapshot_disk, .arguments = {"disk:s", "name:s"}},
    {.name = "remove-snapshot", .run = remove_snapshot, .arguments = {"disk:s", "name:s"}},
    {.name = "query-snapshots", .run = query_snapshots, .arguments = {"disk:s"}},
    {.name = "snapshot-create",
     .run = create_snapshot,
     .arguments = {"name:s", "description:s", "full:b", "compress:b"}},
    {.name = "migrate",
     .run = migrate,
     .arguments = {"to:s", "ca:s", "cert:s", "key:s", "bandwidth:i", "down-time:i", "compress:b",
                   "copy-disks:b", "post-copy:s"}},
    {.name = "migrate-cancel", .run = cancel_migration},
    {.name = "migrate-resume",
     .run = resume_migration,
     .arguments = {"to:s", "ca:s", "cert:s", "key:s"}},
    {.name = "query-migrate", .run = query_migration},
    {.name = "query-qos", .run = query_qos},
    {.name = "set-qos",
     .run = set_qos,
     .arguments = {"disk:s", "class:s", "iops:i", "read-iops:i", "write-iops:i", "bps:i",
                   "read-bps:i", "write-bps:i", "burst:n"}},
    {.name = "profile-start", .run = start, .arguments = {"interval-us:i", "symbols:b"}},
    {.name = "profile-stop", .run = stop, .arguments = {"top:i"}},
    {.name = "perf-map-start", .run = start_perf_map},
    {.name = NULL},
};

static int listen_for(struct vm_control *control, const char *name, struct error *err) {
    char directory[CONTROL_PATH_MAX], generated[32];
    int result = control_directory(directory, sizeof directory, true, err);
    if (result < 0)
        return result;
    snprintf(generated, sizeof generated, "vm-%d", (int)getpid());
    struct control_config config = {
        .loop = control->machine->config.loop,
        .directory = directory,
        .name = name != NULL ? name : generated,
        .commands = commands,
        .gone = on_gone,
        .context = control,
    };
    return control_create(&config, &control->socket, err);
}

static void free_parts(struct vm_control *control) {
    vm_migration_destroy(control->migration);
    vm_snapshots_destroy(control->snapshots);
    vm_pages_destroy(control->pages);
    vm_memory_destroy(control->memory);
    vm_exec_destroy(control->exec);
    control_destroy(control->socket);
    perf_map_stop(control->perf_map);
    free(control);
}

int vm_control_create(struct machine *machine, const char *name, struct vm_control **control,
                      struct error *err) {
    struct error why = {0};
    int result = name != NULL ? vm_name_check(name, err) : 0;
    if (result < 0)
        return result;
    struct vm_control *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->machine = machine;
    made->started_ns = host_clock_ns();
    result = vm_exec_create(tell, made, &made->exec, err);
    if (result == 0)
        result = vm_memory_create(machine, tell, made, &made->memory, err);
    if (result == 0)
        result = vm_pages_create(machine, tell, made, &made->pages, err);
    if (result < 0) {
        free_parts(made);
        return result;
    }
    result = listen_for(made, name, &why);
    if (result < 0 && name != NULL) {
        free_parts(made);
        return error_set(err, result, "%s", why.text);
    }
    if (result < 0)
        log_info("this VM has no control socket: %s", why.text);
    *control = made;
    return 0;
}

void vm_control_destroy(struct vm_control *control) {
    if (control == NULL)
        return;
    cancel_fetches(control);
    if (control->profile != NULL)
        profile_stop(control->profile, 0, NULL);
    control->profile = NULL;
    free_parts(control);
}
