#include "machine/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "device/acpi_pm.h"
#include "device/q35.h"
#include "machine/acpi.h"
#include "machine/layout.h"
#include "machine/machine_identity.h"
#include "machine/machine_state.h"
#include "machine/private.h"
#include "machine/ram_lazy.h"
#include "machine/smbios.h"
#include "memory/missing.h"
#include "virtio/net.h"

/* A guest that resets itself this often, each time this soon after its start, gets nowhere. */
enum { QUICK_RESETS_MAX = 10, QUICK_RESET_SECONDS = 2 };

/* ---- Asking: any thread, any lock held but none below LOCK_VCPU needed ---- */

void machine_ask(struct machine *machine, unsigned what) {
    if (atomic_fetch_or(&machine->pending, what) == 0)
        loop_post(machine->config.loop, machine_serve, machine);
    /* So that the guest does not run on after the instruction that asked. */
    for (unsigned i = 0; i < machine->config.vcpus; i++)
        if (machine->vcpus[i].vcpu != NULL)
            vcpu_kick(machine->vcpus[i].vcpu);
}

void machine_request(struct platform *platform, enum platform_request request) {
    struct machine *machine = container_of(platform, struct machine, platform);
    switch (request) {
    case PLATFORM_POWER_OFF: machine_ask(machine, PENDING_POWER_OFF); break;
    case PLATFORM_RESET: machine_ask(machine, PENDING_RESET); break;
    case PLATFORM_WATCHDOG: machine_ask(machine, PENDING_WATCHDOG); break;
    case PLATFORM_PANICKED: machine_panicked(machine); break;
    }
}

void machine_stop(struct machine *machine) {
    machine_ask(machine, PENDING_STOP);
}

void machine_panic_seen(struct machine *machine) {
    atomic_store(&machine->panic_seen, true);
}

void machine_panicked(struct machine *machine) {
    machine_panic_seen(machine);
    machine_ask(machine, PENDING_PANICKED);
}

void machine_power_button(struct machine *machine) {
    acpi_pm_power_button(machine->acpi_pm);
}

void machine_reset(struct machine *machine) {
    machine_ask(machine, PENDING_RESET);
}

void machine_disk_failed(void *machine) {
    machine_ask(machine, PENDING_DISK);
}

void machine_user_device_full(void *user_device) {
    struct machine_user_device *user = user_device;
    atomic_store(&user->full, true);
    machine_ask(user->machine, PENDING_DISK);
}

void machine_stop_on_reboot(struct machine *machine) {
    machine->config.on_reboot = REBOOT_STOP;
}

/* ---- Time ---- */

struct vm_clock *machine_clock(struct machine *machine) {
    return machine->platform.clock;
}

static int check_time_scale(const struct machine *machine, double scale, struct error *err) {
    if (!(scale >= CLOCK_SCALE_MIN && scale <= CLOCK_SCALE_MAX))
        return error_set(err, -ERANGE, "a time scale is from %g to %g", CLOCK_SCALE_MIN,
                         CLOCK_SCALE_MAX);
    if (scale != 1 && strcmp(engine_name(machine->engine), "soft") != 0)
        return error_set(err, -ENOTSUP,
                         "only the soft engine can scale the guest's time: use --engine soft");
    return 0;
}

struct time_change {
    struct machine *machine;
    double scale;
};

static void change_scale(void *context) {
    const struct time_change *change = context;
    vm_clock_set_scale(change->machine->platform.clock, change->scale);
}

int machine_set_time_scale(struct machine *machine, double scale, struct error *err) {
    struct time_change change = {machine, scale};
    int result = check_time_scale(machine, scale, err);
    if (result == 0)
        machine_with_vcpus_parked(machine, change_scale, &change);
    return result;
}

/* The host's TSC cannot run faster, so with KVM what is lost stays lost. */
static int set_up_time(struct machine *machine, struct error *err) {
    struct vm_clock *clock = machine->platform.clock;
    const struct machine_config *config = &machine->config;
    double scale = config->time_scale != 0 ? config->time_scale : 1;
    int result = check_time_scale(machine, scale, err);
    if (result < 0)
        return result;
    bool soft = strcmp(engine_name(machine->engine), "soft") == 0;
    vm_clock_set_scale(clock, scale);
    vm_clock_set_catch_up(clock, soft && !config->no_catch_up);
    vm_clock_move_wall(clock, config->time_offset);
    return 0;
}

/* ---- Starting and restarting the guest ---- */

static int write_acpi(struct machine *machine, uint64_t *rsdp, struct error *err) {
    const struct machine_config *made = &machine->config;
    struct machine_range plug = machine_plug_range(made);
    uint64_t low = made->memory < LAYOUT_LOW_RAM_END ? made->memory : LAYOUT_LOW_RAM_END;
    struct acpi_config config = {.vcpus = made->vcpus,
                                 .vcpus_max = made->vcpus_max,
                                 .idle_states = machine->idle_states != NULL,
                                 .ram_below_4g = low,
                                 .ram_above_4g = made->memory - low,
                                 .plug_base = plug.gpa,
                                 .plug_size = plug.size};
    uint8_t *tables = calloc(1, LAYOUT_ACPI_SIZE);
    if (tables == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    size_t length = acpi_build(&config, tables, LAYOUT_ACPI_SIZE, LAYOUT_ACPI_BASE, rsdp);
    int result = length == 0 ? -ENOSPC
                             : memory_write(machine->platform.memory, LAYOUT_ACPI_BASE, tables,
                                            LAYOUT_ACPI_SIZE);
    free(tables);
    return result < 0 ? error_set(err, result, "the ACPI tables do not fit in memory") : 0;
}

static int write_smbios(struct machine *machine, struct error *err) {
    uint8_t tables[LAYOUT_SMBIOS_END - LAYOUT_SMBIOS_TABLES], anchor[SMBIOS_ANCHOR_SIZE];
    uint64_t memory = machine->config.memory;
    uint64_t low = memory < LAYOUT_LOW_RAM_END ? memory : LAYOUT_LOW_RAM_END;
    struct smbios_config config = {machine->config.vcpus, machine->config.vcpus_max, low,
                                   memory - low};
    size_t length = smbios_build(&config, tables, sizeof tables);
    smbios_anchor(LAYOUT_SMBIOS_TABLES, length, anchor);
    int result = length == 0
                     ? -ENOSPC
                     : memory_write(machine->platform.memory, LAYOUT_SMBIOS_TABLES, tables, length);
    if (result == 0)
        result = memory_write(machine->platform.memory, LAYOUT_SMBIOS_BASE, anchor, sizeof anchor);
    return result < 0 ? error_set(err, result, "the SMBIOS tables do not fit in memory") : 0;
}

/* What firmware and boot loader would do: the state that the first vCPU starts in. */
static int load_kernel(struct machine *machine, struct x86_state *state, struct error *err) {
    uint64_t rsdp = 0;
    q35_set_up(machine->q35, LAYOUT_ECAM_BASE, LAYOUT_PM1_EVENT_PORT);
    int result = pci_bus_assign(machine->platform.pci, err);
    if (result == 0)
        result = write_acpi(machine, &rsdp, err);
    if (result == 0)
        result = write_smbios(machine, err);
    return result == 0 ? boot_load(machine->boot, machine->platform.memory, rsdp, state, err)
                       : result;
}

/* vCPUs parked or not yet there, devices reset. */
static int start_guest(struct machine *machine, struct error *err) {
    struct x86_state state;
    for (unsigned i = 0; i < machine->config.vcpus; i++) {
        machine->vcpus[i].exit = (struct vcpu_exit){0};
        vcpu_reset(machine->vcpus[i].vcpu, false);
    }
    vcpu_get_state(machine->vcpus[0].vcpu, &state);
    int result = machine->firmware != NULL
                     ? firmware_start(machine->firmware, machine->platform.memory, err)
                     : load_kernel(machine, &state, err);
    if (result == 0)
        result = vcpu_set_state(machine->vcpus[0].vcpu, &state, err);
    machine->started_ns = vm_clock_ns(machine->platform.clock);
    return result;
}

/* ---- Deciding: control thread, vCPUs parked ---- */

static void dump_line(void *context, const char *text) {
    struct machine *machine = context;
    if (machine->events.dump != NULL)
        machine->events.dump(machine->events.context, text);
}

static void dump_vcpus(struct machine *machine) {
    for (unsigned i = 0; i < machine->config.vcpus; i++)
        vcpu_dump(machine->vcpus[i].vcpu, dump_line, machine);
}

static void end(struct machine *machine, enum machine_end why, const char *text) {
    machine->result->end = why;
    snprintf(machine->result->text, sizeof machine->result->text, "%s", text);
    loop_stop(machine->config.loop);
}

/* What the engine said about why it stopped. */
static const char *exit_text(const struct machine *machine) {
    for (unsigned i = 0; i < machine->config.vcpus; i++)
        if (machine->vcpus[i].exit.text[0] != 0)
            return machine->vcpus[i].exit.text;
    return "";
}

static bool is_reset_loop(struct machine *machine) {
    uint64_t ran = vm_clock_ns(machine->platform.clock) - machine->started_ns;
    machine->quick_resets =
        ran < QUICK_RESET_SECONDS * NS_PER_SECOND ? machine->quick_resets + 1 : 0;
    return machine->quick_resets >= QUICK_RESETS_MAX;
}

static void restart(struct machine *machine) {
    struct error err = {0};
    machine->held = false;
    atomic_store(&machine->panic_seen, false);
    if (machine->events.restarted != NULL)
        machine->events.restarted(machine->events.context);
    devices_reset(machine);
    if (devices_tell_firmware(machine, &err) < 0 || start_guest(machine, &err) < 0)
        end(machine, MACHINE_FAILED, err.text);
    else
        machine_unpark(machine, false);
}

static void hold(struct machine *machine, bool can_run) {
    if (machine->events.held != NULL)
        machine->events.held(machine->events.context);
    machine->held = !can_run;
    if (can_run)
        machine_unpark(machine, false);
}

static void serve_panic(struct machine *machine, bool can_run) {
    if (machine->config.on_panic == PANIC_HOLD)
        hold(machine, can_run);
    else
        end(machine, MACHINE_PANICKED, "the guest's kernel panicked");
}

static void serve_reset(struct machine *machine) {
    if (atomic_load(&machine->panic_seen))
        serve_panic(machine, false);
    else if (machine->config.on_reboot == REBOOT_STOP)
        end(machine, MACHINE_REBOOTED, "");
    else if (is_reset_loop(machine))
        end(machine, MACHINE_RESET_LOOP,
            "the guest resets itself again and again right after its start");
    else
        restart(machine);
}

/* An empty interrupt table under the processor's feet is a way of old to reset a PC. */
static bool is_deliberate(struct machine *machine) {
    struct x86_state state;
    for (unsigned i = 0; i < machine->config.vcpus; i++) {
        if (machine->vcpus[i].exit.stop != VCPU_SHUTDOWN)
            continue;
        vcpu_get_state(machine->vcpus[i].vcpu, &state);
        if (state.idtr.limit != 0)
            return false;
    }
    return true;
}

static void serve_triple_fault(struct machine *machine) {
    if (atomic_load(&machine->panic_seen)) {
        serve_panic(machine, false);
        return;
    }
    if (is_deliberate(machine)) {
        serve_reset(machine);
        return;
    }
    dump_vcpus(machine);
    end(machine, MACHINE_TRIPLE_FAULT, exit_text(machine));
}

static void serve_failure(struct machine *machine, enum machine_end why) {
    dump_vcpus(machine);
    end(machine, why, exit_text(machine));
}

static void serve_watchdog(struct machine *machine) {
    enum watchdog_policy policy = machine->config.on_watchdog;
    if (machine->events.watchdog != NULL)
        machine->events.watchdog(machine->events.context, policy);
    switch (policy) {
    case WATCHDOG_DO_RESET:
        if (machine->config.on_reboot == REBOOT_RESTART) {
            serve_reset(machine);
            break;
        }
        /* fall through */
    case WATCHDOG_DO_POWEROFF:
        end(machine, MACHINE_WATCHDOG, "the guest did not reset its watchdog in time");
        break;
    case WATCHDOG_DO_PAUSE:
        machine_unpark(machine, false);
        machine_pause(machine);
        break;
    case WATCHDOG_DO_NONE: machine_unpark(machine, false); break;
    }
}

/* True: requests are kept, the guest cannot go on. */
static bool tell_failures(struct machine *machine) {
    bool kept = false;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        struct hold_failures failures;
        hold_take(machine->blocks[i], &failures);
        kept |= failures.kept > 0;
        if (failures.count > 0 && machine->events.disk_failed != NULL)
            machine->events.disk_failed(machine->events.context, i, &failures);
    }
    for (unsigned i = 0; i < machine->config.user_device_count; i++) {
        struct machine_user_device *user = &machine->user_devices[i];
        if (!atomic_exchange(&user->full, false) || user->waits)
            continue;
        kept = user->waits = true;
        if (machine->events.device_full != NULL)
            machine->events.device_full(machine->events.context, user->socket);
    }
    return kept;
}

/* The gravest first: of several requests the others no longer matter. */
void machine_serve(void *context) {
    struct machine *machine = context;
    if (!machine->running)
        return;
    if (machine->frozen) { /* it is taken up when it has thawed */
        machine_check_settled(machine);
        return;
    }
    /* A vCPU may wait for memory that never comes; it has been kicked. */
    if (atomic_load(&machine->pending) & PENDING_STOP)
        memory_missing_lose(machine->platform.memory);
    machine_park(machine);
    unsigned pending = atomic_exchange(&machine->pending, 0);
    if (pending & PENDING_STOP)
        end(machine, MACHINE_STOPPED, "");
    else if (pending & PENDING_FAILED)
        serve_failure(machine, MACHINE_FAILED);
    else if (pending & PENDING_DIFFERENCE)
        serve_failure(machine, MACHINE_DIFFERENCE);
    else if (pending & PENDING_POWER_OFF)
        end(machine, MACHINE_POWERED_OFF, "");
    else if (pending & PENDING_TRIPLE_FAULT)
        serve_triple_fault(machine);
    else if (pending & PENDING_RESET)
        serve_reset(machine);
    else if (pending & PENDING_WATCHDOG)
        serve_watchdog(machine);
    else if (pending & PENDING_PANICKED)
        serve_panic(machine, true);
    else
        machine_unpark(machine, false);
    /* A reset has given up what was kept. */
    if ((pending & PENDING_DISK) && tell_failures(machine))
        machine_pause(machine);
}

/* ---- Life ---- */

int machine_check_memory(uint64_t bytes, struct error *err) {
    struct sysinfo host;
    if (bytes < MACHINE_MEMORY_MIN)
        return error_set(
            err, -EINVAL, "memory of %llu KiB is too little: use --memory %lluM or more",
            (unsigned long long)(bytes >> 10), (unsigned long long)(MACHINE_MEMORY_MIN >> 20));
    if (bytes % PAGE_SIZE != 0)
        return error_set(err, -EINVAL, "memory must be a multiple of 4K");
    if (sysinfo(&host) < 0)
        return 0;
    uint64_t most = (uint64_t)(host.totalram + host.totalswap) * host.mem_unit;
    if (bytes > most)
        return error_set(err, -ENOMEM, "memory of %llu MiB is more than this host has (%llu MiB)",
                         (unsigned long long)(bytes >> 20), (unsigned long long)(most >> 20));
    return 0;
}

static int check_plugging(const struct machine_config *config, struct error *err) {
    struct machine_range plug = machine_plug_range(config);
    uint64_t limit =
        config->firmware != FIRMWARE_NONE ? LAYOUT_FIRMWARE_MEMORY_END : LAYOUT_MMIO64_BASE;
    if (plug.size == 0)
        return 0;
    if (plug.gpa + plug.size > limit)
        return error_set(err, -EINVAL, "memory of %llu MiB at most is more than there is room for",
                         (unsigned long long)(config->memory_max >> 20));
    return machine_check_memory(config->memory_max, err);
}

static int check(const struct machine_config *config, struct error *err) {
    if (config->vcpus == 0 || config->vcpus > MACHINE_VCPUS_MAX)
        return error_set(err, -EINVAL, "a machine has 1 to %d vCPUs", MACHINE_VCPUS_MAX);
    if (config->vcpus_max < config->vcpus || config->vcpus_max > MACHINE_VCPUS_MAX)
        return error_set(err, -EINVAL, "room for %u vCPUs, of %u to %d", config->vcpus_max,
                         config->vcpus, MACHINE_VCPUS_MAX);
    int result = machine_check_memory(config->memory, err);
    return result == 0 ? check_plugging(config, err) : result;
}

static int create_vcpus(struct machine *machine, struct error *err) {
    struct engine_config config = {
        .memory = machine->platform.memory,
        .ports = machine->platform.ports,
        .irqchip = machine->platform.irqchip,
        .clock = machine->platform.clock,
        .vcpus = machine->config.vcpus_max,
        .cpu = machine->config.cpu,
        .address_bits = machine->firmware != NULL ? LAYOUT_FIRMWARE_ADDRESS_BITS : 0,
        .frugal = machine->config.frugal,
        .resumed = machine->config.restore != NULL,
        .verify = machine->config.verify,
    };
    int result =
        engine_create(machine->config.engine, &config, &machine->engine, &machine->engine_why, err);
    for (unsigned i = 0; i < machine->config.vcpus && result == 0; i++) {
        machine->vcpus[i].machine = machine;
        result = vcpu_create(machine->engine, i, &machine->vcpus[i].vcpu, err);
    }
    return result;
}

static int create(struct machine *machine, struct error *err) {
    const struct machine_config *config = &machine->config;
    int result = check(config, err);
    if (result == 0 && config->firmware != FIRMWARE_NONE)
        result = firmware_open(config->firmware, config->firmware_file, config->firmware_variables,
                               &machine->firmware, err);
    else if (result == 0 && (config->kernel != NULL || config->restore == NULL))
        result = boot_open(config->kernel, config->initrd, config->cmdline, config->boot,
                           &machine->boot, err);
    if (result == 0)
        result = devices_create(machine, err);
    if (result == 0)
        result = create_vcpus(machine, err);
    if (result == 0 && machine->idle_states != NULL &&
        strcmp(engine_name(machine->engine), "soft") != 0)
        result =
            error_set(err, -ENOTSUP, "only the soft engine serves idle states: use --engine soft");
    if (result == 0)
        result = set_up_time(machine, err);
    if (result < 0)
        return result;
    machine->times.parts_ns = host_clock_ns();
    if (config->restore != NULL)
        result = machine_restore(machine, config->restore, err);
    else if (config->incoming == NULL)
        result = start_guest(machine, err);
    if (result == 0 && config->restore != NULL)
        result = machine_new_identity(machine, config->cloned ? IDENTITY_CLONED : IDENTITY_RESTORED,
                                      err);
    machine->times.ready_ns = host_clock_ns();
    machine->started_ns = vm_clock_ns(machine->platform.clock);
    return result;
}

int machine_create(const struct machine_config *config, const struct machine_events *events,
                   struct machine **machine, struct error *err) {
    struct machine *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->config = *config;
    made->has_cpu_slots = config->vcpus_max != 0;
    if (made->config.vcpus_max == 0)
        made->config.vcpus_max = made->config.vcpus;
    if (events != NULL)
        made->events = *events;
    lock_init(&made->lock, LOCK_MACHINE, "machine");
    pthread_cond_init(&made->changed, NULL);
    int result = create(made, err);
    if (result < 0) {
        machine_destroy(made);
        return result;
    }
    *machine = made;
    return 0;
}

void machine_destroy(struct machine *machine) {
    if (machine == NULL)
        return;
    for (unsigned i = 0; i < MACHINE_VCPUS_MAX; i++)
        if (machine->vcpus[i].vcpu != NULL)
            vcpu_destroy(machine->vcpus[i].vcpu);
    if (machine->engine != NULL)
        engine_destroy(machine->engine);
    if (machine->throttle != NULL)
        loop_timer_free(machine->throttle);
    devices_destroy(machine);
    ram_lazy_destroy(machine->lazy);
    boot_close(machine->boot);
    firmware_close(machine->firmware);
    pthread_cond_destroy(&machine->changed);
    lock_destroy(&machine->lock);
    free(machine);
}

void machine_run(struct machine *machine, struct machine_result *result) {
    *result = (struct machine_result){.end = MACHINE_FAILED};
    machine->result = result;
    machine->running = true;
    for (unsigned i = 0; i < machine->config.vcpus; i++)
        if (machine_start_vcpu(&machine->vcpus[i]) < 0)
            end(machine, MACHINE_FAILED, "the host has no room for another thread");
    if (atomic_load(&machine->pending) != 0)
        loop_post(machine->config.loop, machine_serve, machine);
    loop_run(machine->config.loop);
    machine->running = false;
    machine_park(machine);
    machine_unpark(machine, true);
    for (unsigned i = 0; i < machine->config.vcpus; i++) {
        if (machine->vcpus[i].started)
            pthread_join(machine->vcpus[i].thread, NULL);
        machine->vcpus[i].started = false;
    }
}

/* ---- Describing ---- */

const struct machine_times *machine_times(const struct machine *machine) {
    return &machine->times;
}

bool machine_renew_mac(struct machine *machine, const uint8_t mac[6], uint8_t old[6]) {
    if (machine->network != NULL)
        virtio_net_set_mac(machine->network, mac, old);
    return machine->network != NULL;
}

struct device *machine_vsock(struct machine *machine) {
    return machine->vsock;
}

void machine_describe_engine(const struct machine *machine, char *text, size_t size) {
    snprintf(text, size, "%s%s%s", engine_name(machine->engine),
             machine->engine_why != NULL ? ": " : "",
             machine->engine_why != NULL ? machine->engine_why : "");
}

const char *machine_describe_boot(const struct machine *machine) {
    return machine->firmware != NULL ? firmware_describe(machine->firmware)
           : machine->boot != NULL   ? boot_describe(machine->boot)
                                     : "none";
}

void machine_counters(struct machine *machine, struct vcpu_counters *counters) {
    *counters = (struct vcpu_counters){0};
    for (unsigned i = 0; i < machine->config.vcpus; i++) {
        struct vcpu_counters one;
        vcpu_get_counters(machine->vcpus[i].vcpu, &one);
        counters->instructions += one.instructions;
        counters->exits += one.exits;
        counters->interrupts += one.interrupts;
        counters->exceptions += one.exceptions;
    }
}

static void add_counter(void *context, const char *name, uint64_t value) {
    json_t *sum = json_object_get(context, name);
    if (sum == NULL)
        json_object_set_new(context, name, json_integer((json_int_t)value));
    else
        json_integer_set(sum, json_integer_value(sum) + (json_int_t)value);
}

json_t *machine_counters_json(struct machine *machine) {
    json_t *counters = json_object();
    for (unsigned i = 0; i < machine->config.vcpus; i++)
        vcpu_each_counter(machine->vcpus[i].vcpu, add_counter, counters);
    devices_each_counter(machine, add_counter, counters);
    return counters;
}
