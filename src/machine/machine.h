/*
 * A VM: memory, interrupts, PCI, devices and vCPUs put together from a
 * config, and its life cycle.
 *
 * The control thread is the one that calls machine_create, machine_run and
 * machine_destroy; machine_run runs the loop on it. Each vCPU has a thread of
 * its own. What devices ask for (reset, power-off) and what vCPUs end with
 * (triple fault) is decided on the control thread with all vCPUs parked.
 */
#ifndef LODGE_MACHINE_MACHINE_H
#define LODGE_MACHINE_MACHINE_H

#include <jansson.h>

#include "base/error.h"
#include "block/hold.h"
#include "device/device.h"
#include "machine/config.h"

struct machine;

/* Why a machine has ended. */
enum machine_end {
    MACHINE_POWERED_OFF,
    MACHINE_REBOOTED,     /* and the policy is to stop then */
    MACHINE_RESET_LOOP,   /* it resets itself again and again without getting anywhere */
    MACHINE_PANICKED,     /* its kernel says that it crashed */
    MACHINE_TRIPLE_FAULT, /* its processor could not deliver a fault */
    MACHINE_FAILED,       /* lodge cannot go on; text says why */
    MACHINE_WATCHDOG,     /* its watchdog was not reset in time, and the policy is to power off */
    MACHINE_STOPPED,      /* machine_stop */
    MACHINE_DIFFERENCE,   /* config.verify: interpreter and translator disagree */
};

struct machine_result {
    enum machine_end end;
    char text[ERROR_TEXT_MAX]; /* one line about it; empty when there is nothing to say */
};

/* Hears of what happens. All on the control thread, vCPUs parked; any may be NULL. */
struct machine_events {
    /* The guest is about to start anew: connections to it are gone. */
    void (*restarted)(void *context);
    /* The guest has crashed and is held for inspection. */
    void (*held)(void *context);
    /* The guest did not reset its watchdog in time; what config.on_watchdog says is done next. */
    void (*watchdog)(void *context, enum watchdog_policy policy);
    /* Requests to disk n have failed; when some are kept the machine is paused next. */
    void (*disk_failed)(void *context, unsigned disk, const struct hold_failures *failures);
    /* Commands to a device that another process serves wait for space; the machine is paused next.
     */
    void (*device_full)(void *context, const char *socket);
    /* A line of the register dump after a triple fault or a failure. */
    void (*dump)(void *context, const char *line);
    void *context;
};

/*
 * Makes a machine, its guest loaded and ready to run. Errors are one line for the user; see
 * machine/boot.h for those of the kernel. -EINVAL for a config that cannot be, -ENOMEM and
 * others of the parts.
 */
int machine_create(const struct machine_config *config, const struct machine_events *events,
                   struct machine **machine, struct error *err);
void machine_destroy(struct machine *machine);

/* Runs the guest until it ends. */
void machine_run(struct machine *machine, struct machine_result *result);

/* Any thread, before or while machine_run runs: it returns soon. */
void machine_stop(struct machine *machine);
/* Control thread: plugs processors in, up to config.vcpus_max, and tells the guest. -EINVAL:
 * less than there are, or more than there is room for; the guest keeps what it got. */
int machine_set_vcpus(struct machine *machine, unsigned count, struct error *err);
/*
 * Control thread: how much memory the guest is to have, from now on. Below config.memory it is
 * asked to give the rest up, above to take more, up to config.memory_max; *bytes is what that comes
 * to (rounded down to a page or a block). -EINVAL: too much or too little, -ENODEV: the guest has
 * no driver for it. The guest follows as it can: machine_get_memory.
 */
int machine_set_memory(struct machine *machine, uint64_t *bytes, struct error *err);
struct machine_memory {
    uint64_t target, size; /* what the guest is to have, and has */
    uint64_t plugged, ballooned;
    bool balloon_driver, mem_driver;
};
/* Any thread. */
void machine_get_memory(const struct machine *machine, struct machine_memory *memory);
/* Any thread: asks the guest to shut down, by ACPI. */
void machine_power_button(struct machine *machine);
/* Any thread: the reset button. */
void machine_reset(struct machine *machine);
/*
 * Holds the guest and its clock; lets both go on. False: it was so already, or the machine does not
 * run. A paused guest can be reset, stopped and inspected. Control thread.
 */
bool machine_pause(struct machine *machine);
bool machine_resume(struct machine *machine);
void machine_begin_paused(struct machine *machine); /* before machine_run */
bool machine_is_paused(const struct machine *machine);
/*
 * Requests that the host has no space for are kept and the guest is paused until machine_resume,
 * which tries them again. One line about the first disk with such requests; empty: there is none.
 */
void machine_why_paused(const struct machine *machine, char *text, size_t size);
/*
 * Holds guest, clock and devices so that all of the machine can be saved, and calls `settled` on
 * the loop once nothing is under way any more, or will not end (machine_is_disturbed). Until
 * machine_thaw resets and the like wait. -EBUSY: it does not run, or is ending. Control thread.
 */
int machine_freeze(struct machine *machine, void (*settled)(void *context), void *context,
                   struct error *err);
void machine_thaw(struct machine *machine);
/* The frozen machine goes on in another process: it ends as machine_stop has it, without having run
 * again. Control thread. */
void machine_leave(struct machine *machine);
/* Any thread: the frozen machine is to end, or a disk cannot go on; who saves it gives up. */
bool machine_is_disturbed(const struct machine *machine);
/* Leaves vCPUs so many per cent less time, 0 to 99: a move cannot keep up with them. Control
 * thread. */
int machine_set_throttle(struct machine *machine, unsigned percent, struct error *err);
/* -ENOTSUP: the KVM engine. -ERANGE: see base/clock.h. Control thread. */
int machine_set_time_scale(struct machine *machine, double scale, struct error *err);
/* For reading. */
struct vm_clock *machine_clock(struct machine *machine);
/*
 * Any thread. The guest's kernel was seen to crash: a reset or triple fault that follows is no
 * reboot but the end of that crash. machine_panicked: it is through with it, the policy applies
 * now (devices say so by platform.request).
 */
void machine_panic_seen(struct machine *machine);
void machine_panicked(struct machine *machine);
/* From now on a reboot ends the machine, whatever its config says. Control thread. */
void machine_stop_on_reboot(struct machine *machine);

/* When what happened, in host time (host_clock_ns); 0: not yet. Any thread. */
struct machine_times {
    uint64_t parts_ns;          /* memory, devices and processors are there */
    uint64_t ready_ns;          /* the guest is loaded, or restored */
    _Atomic(uint64_t) first_ns; /* its first instruction is about to be run */
};
const struct machine_times *machine_times(const struct machine *machine);

/* A restored machine's network device has this address from now on; *old is what the guest has seen
 * until now, and goes on with. Not before machine_create is through, nor while it runs. False:
 * there is no such device. */
bool machine_renew_mac(struct machine *machine, const uint8_t mac[6], uint8_t old[6]);

/* The socket device; NULL without config.vsock. */
struct device *machine_vsock(struct machine *machine);

/* For -v: engine and why it was chosen, how the kernel was booted; counters of all vCPUs. */
void machine_describe_engine(const struct machine *machine, char *text, size_t size);
const char *machine_describe_boot(const struct machine *machine);
void machine_counters(struct machine *machine, struct vcpu_counters *counters);
/* All that the engine counts, by name, summed over vCPUs. A new object. */
json_t *machine_counters_json(struct machine *machine);

/* Checks an amount of RAM against lodge's limits and the host's; used by the command line too. */
int machine_check_memory(uint64_t bytes, struct error *err);

#endif
