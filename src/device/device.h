/*
 * A device is one file with one const descriptor: how big its object is, its
 * state table, and how it is made and unmade. The machine keeps a list of
 * devices; reset, snapshot, migration and `lodge inspect` walk that list and
 * the tables, nothing else.
 *
 *     const struct device_class serial_class = {
 *         .name = "serial", .size = sizeof(struct serial), .state = &serial_state,
 *         .init = serial_init, .reset = serial_after_reset, .destroy = serial_destroy,
 *     };
 *
 * The object begins with struct device. Threads: init, reset and destroy on
 * the machine's control thread with no vCPU running; registers on vCPU
 * threads; back-end events on the loop. Each device guards itself with
 * device.lock (rank LOCK_DEVICE).
 */
#ifndef LODGE_DEVICE_DEVICE_H
#define LODGE_DEVICE_DEVICE_H

#include "base/clock.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/loop.h"
#include "base/state.h"
#include "interrupt/interrupt.h"
#include "memory/memory.h"
#include "memory/ports.h"

struct pci_bus;
struct vcpu;
struct platform;

enum platform_request {
    PLATFORM_POWER_OFF, /* ACPI S5 */
    PLATFORM_RESET,     /* reset register, port CF9h, i8042 */
    PLATFORM_WATCHDOG,  /* the guest has not reset its watchdog in time */
    PLATFORM_PANICKED,  /* pvpanic: the guest's kernel says it has crashed */
};

/* What a device may use of its machine. Owned by the machine, outlives all devices. */
struct platform {
    struct memory *memory;
    struct ports *ports;
    struct irqchip *irqchip;
    struct vm_clock *clock;
    struct loop *loop;
    struct pci_bus *pci;
    /* What devices ask of the machine. Any thread; returns at once. */
    void (*request)(struct platform *platform, enum platform_request request);
    /* A device that is quiet (device_class.quiesce) has no work under way any more. As above; a
     * device's lock may be held. May be NULL. */
    void (*idle)(struct platform *platform);
    /* The vCPU whose access is being answered, and its number; NULL: nobody's. May be NULL. */
    struct vcpu *(*vcpu)(struct platform *platform, unsigned *id);
};

struct device;

struct device_class {
    const char *name;
    size_t size;                     /* of the object that begins with struct device */
    const struct state_table *state; /* NULL: has none */
    bool later; /* older lodges did not have it: where saved state lacks it, it stays as made */
    /* config is the class's own struct, named in the device's header. On failure init has undone
     * what it did: destroy is not called. */
    int (*init)(struct device *device, const void *config, struct error *err);
    /* After state_reset: what a table cannot say (lower a line, stop a timer). Called without the
     * device's lock. Optional. */
    void (*reset)(struct device *device);
    /* quiet: begins nothing any more and leaves guest memory alone, so that both can be saved, but
     * for work under way; false: there is some (platform.idle is called at its end). Not quiet:
     * goes on with what has come meanwhile. No vCPU runs, the lock is not held. NULL: only vCPUs
     * and timers make it do anything. */
    bool (*quiesce)(struct device *device, bool quiet);
    void (*destroy)(struct device *device);
};

struct device {
    const struct device_class *class;
    struct platform *platform;
    char name[32]; /* unique in the machine: "serial0" */
    struct lock lock;
    struct device *next; /* the machine's list */
};

/*
 * Makes a device: allocates, resets its state, calls init. On failure nothing
 * is left. The caller (the machine) owns it.
 */
int device_create(const struct device_class *class, const char *name, struct platform *platform,
                  const void *config, struct device **device, struct error *err);
void device_reset(struct device *device);
void device_destroy(struct device *device);

#endif
