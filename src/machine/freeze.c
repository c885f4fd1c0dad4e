/* Holding a machine: paused, for as long as its user likes; frozen, while all of it is saved. */
#include <stdio.h>

#include "machine/private.h"

/* ---- Pausing ---- */

/* A frozen machine stands anyway; what it does afterwards can be changed. */
static bool set_paused_after(struct machine *machine, bool paused) {
    bool changes = machine->was_paused != paused;
    machine->was_paused = paused;
    return changes;
}

bool machine_pause(struct machine *machine) {
    if (machine->frozen)
        return set_paused_after(machine, true);
    if (machine->paused || !machine->running)
        return false;
    lock_take(&machine->lock);
    machine->paused = true;
    lock_release(&machine->lock);
    machine_park(machine);
    vm_clock_pause(machine->platform.clock);
    return true;
}

void machine_begin_paused(struct machine *machine) {
    machine->paused = machine->park = true;
    vm_clock_pause(machine->platform.clock);
}

bool machine_resume(struct machine *machine) {
    if (machine->frozen)
        return set_paused_after(machine, false);
    if (!machine->paused || !machine->running)
        return false;
    lock_take(&machine->lock);
    machine->paused = false;
    lock_release(&machine->lock);
    vm_clock_resume(machine->platform.clock);
    if (!machine->held)
        machine_unpark(machine, false);
    for (unsigned i = 0; i < machine->config.disk_count; i++)
        hold_retry(machine->blocks[i]);
    /* Servers try again by themselves, and tell us if it was in vain. */
    for (unsigned i = 0; i < machine->config.user_device_count; i++)
        machine->user_devices[i].waits = false;
    return true;
}

void machine_why_paused(const struct machine *machine, char *text, size_t size) {
    text[0] = 0;
    for (unsigned i = 0; i < machine->config.disk_count && text[0] == 0; i++)
        if (hold_kept(machine->blocks[i]) > 0)
            snprintf(text, size, "disk%u: no space left on the host for %s", i,
                     machine->config.disks[i].path);
    for (unsigned i = 0; i < machine->config.user_device_count && text[0] == 0; i++)
        if (machine->user_devices[i].waits)
            snprintf(text, size, "no space left on the host for the device at %s",
                     machine->user_devices[i].socket);
}

bool machine_is_paused(const struct machine *machine) {
    return machine->frozen ? machine->was_paused : machine->paused;
}

/* ---- Freezing ---- */

static bool quiesce(struct machine *machine, bool quiet) {
    bool idle = true;
    for (struct device *device = machine->devices; device != NULL; device = device->next)
        if (device->class->quiesce != NULL)
            idle &= device->class->quiesce(device, quiet);
    return idle;
}

bool machine_is_disturbed(const struct machine *machine) {
    return atomic_load(&machine->pending) & (PENDING_STOP | PENDING_DISK);
}

void machine_check_settled(void *context) {
    struct machine *machine = context;
    void (*settled)(void *) = machine->settled;
    if (settled == NULL || (!quiesce(machine, true) && !machine_is_disturbed(machine)))
        return;
    machine->settled = NULL;
    settled(machine->settled_context);
}

void machine_idle(struct platform *platform) {
    struct machine *machine = container_of(platform, struct machine, platform);
    loop_post(machine->config.loop, machine_check_settled, machine);
}

int machine_freeze(struct machine *machine, void (*settled)(void *context), void *context,
                   struct error *err) {
    bool crashed = machine->held || atomic_load(&machine->panic_seen);
    if (!machine->running || machine->frozen || crashed || atomic_load(&machine->pending) != 0)
        return error_set(err, -EBUSY, "the guest %s",
                         crashed ? "has crashed" : "is just being started or ended");
    machine->was_paused = machine->paused;
    lock_take(&machine->lock);
    machine->paused = true;
    lock_release(&machine->lock);
    machine_park(machine);
    vm_clock_pause(machine->platform.clock);
    machine->frozen = true;
    machine->settled_context = context;
    machine->settled = settled;
    quiesce(machine, true);
    machine_idle(&machine->platform);
    return 0;
}

void machine_thaw(struct machine *machine) {
    machine->frozen = false;
    machine->settled = NULL;
    quiesce(machine, false);
    if (!machine->was_paused)
        machine_resume(machine);
    if (atomic_load(&machine->pending) != 0)
        loop_post(machine->config.loop, machine_serve, machine);
}

/* It stays paused: no vCPU leaves its place. */
void machine_leave(struct machine *machine) {
    machine->frozen = false;
    machine->settled = NULL;
    machine_stop(machine);
}
