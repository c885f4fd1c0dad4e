/*
 * The commands of a running machine's control socket (machine/control.h,
 * docs/control.md): status, life cycle, programs in the guest, the console,
 * counters, profiling, perf maps; and its events.
 *
 * The loop's thread.
 */
#ifndef LODGE_MACHINE_VM_CONTROL_H
#define LODGE_MACHINE_VM_CONTROL_H

#include "machine/agent.h"
#include "machine/machine.h"

struct console_hub;
struct vm_control;

/*
 * name: NULL makes one. A name that was asked for must be had; where there is no place for a
 * socket without one, the machine runs without: a line in the log says why.
 */
int vm_control_create(struct machine *machine, const char *name, struct vm_control **control,
                      struct error *err);
void vm_control_destroy(struct vm_control *control); /* before the machine and its agent */

/* All below also with control NULL. */

/* The agent by which symbols are read; its guest has just come up. */
void vm_control_agent(struct vm_control *control, struct agent *agent);
/* The guest starts anew; its kernel has panicked. */
void vm_control_restarted(struct vm_control *control);
void vm_control_panicked(struct vm_control *control);
/* The guest's watchdog has got to its end; what is done about it, as in docs/control.md. */
void vm_control_watchdog(struct vm_control *control, enum watchdog_policy policy);
/* Requests to disk n have failed; kept ones pause the machine next. */
void vm_control_disk_failed(struct vm_control *control, unsigned disk,
                            const struct hold_failures *failures);
/* Commands to the device that is served at `socket` wait for space; the machine is paused next. */
void vm_control_device_full(struct vm_control *control, const char *socket);
/* The machine has ended: why in one word, as in docs/control.md. */
void vm_control_ended(struct vm_control *control, const char *reason);

/* The console that clients may attach to; outlives the control. Without: there is none. */
void vm_control_console(struct vm_control *control, struct console_hub *hub);

/* Where snapshots are kept: the VM's directory (vm_store.h), which stays the caller's. Without,
 * none can be taken. */
int vm_control_snapshots(struct vm_control *control, const char *directory, struct error *err);

/* The same VM may move elsewhere; without, it cannot. coming: it has come so itself, and memory of
 * it may still be coming; NULL: it has not. Borrowed. */
struct migration_target;
int vm_control_migration(struct vm_control *control, const char *name, const char *directory,
                         const struct migration_target *coming, struct error *err);

/* Perf maps from the beginning. */
int vm_control_perf_map(struct vm_control *control, struct error *err);

#endif
