/* The machine's own structures: machine.c (life cycle), vcpus.c (their threads), freeze.c
 * (pausing), devices.c (what it is made of). */
#ifndef LODGE_MACHINE_PRIVATE_H
#define LODGE_MACHINE_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/lock.h"
#include "machine/boot.h"
#include "machine/firmware.h"
#include "machine/machine.h"
#include "pci/pci.h"

enum { BOOT_ORDER_MAX = 1024 };

struct block;
struct fs;
struct qos;

struct machine_vcpu {
    struct machine *machine;
    struct vcpu *vcpu;
    pthread_t thread;
    atomic_int thread_id; /* gettid() of it, once it runs */
    bool started;
    /* What vcpu_run returned last, when that was an end: read with the vCPU parked. */
    struct vcpu_exit exit;
};

/* Bits of machine.pending: what the control thread is asked to do. */
enum {
    PENDING_POWER_OFF = 1,
    PENDING_RESET = 2,
    PENDING_PANICKED = 4,
    PENDING_TRIPLE_FAULT = 8,
    PENDING_FAILED = 16,
    PENDING_STOP = 32,
    PENDING_DIFFERENCE = 64,
    PENDING_WATCHDOG = 128,
    PENDING_DISK = 256,
};

/* A device that another process serves. */
struct machine_user_device {
    struct machine *machine;
    const char *socket;
    atomic_bool full; /* its server has said that commands wait for space */
    bool waits;       /* the machine was paused for it; control thread */
};

struct machine {
    struct machine_config config;
    struct machine_events events;
    struct platform platform;
    struct engine *engine;
    const char *engine_why;
    struct boot *boot;         /* or */
    struct firmware *firmware; /* with config.firmware */
    char boot_order[BOOT_ORDER_MAX];
    struct device *devices; /* the newest first */
    struct device *acpi_pm, *q35, *vsock, *identity;
    struct device *network;     /* NULL: none */
    struct device *fw_cfg;      /* NULL: no firmware */
    struct device *cpu_slots;   /* NULL: no processors can be plugged in */
    bool has_cpu_slots;         /* even if all are plugged in: the guest may have seen some come */
    struct device *idle_states; /* NULL: none are shown */
    struct device *balloon;
    struct device *mem;                         /* NULL: no memory can be plugged in */
    struct qos *qos;                            /* all disks compete by it */
    struct block *blocks[MACHINE_DISKS_MAX];    /* disk n: made by hold_add, a flow below it */
    struct block *flows[MACHINE_DISKS_MAX];     /* below those: made by qos_add_flow */
    struct block *handovers[MACHINE_DISKS_MAX]; /* below those: made by handover_add */
    struct block *images[MACHINE_DISKS_MAX];    /* what block_open made of disk n, at the bottom;
                                                   NULL: it is another process's at the moment */
    struct disk_jobs *disk_jobs;                /* of the control socket; NULL: none yet */
    struct machine_user_device user_devices[MACHINE_USER_DEVICES_MAX];
    struct block *disc;                     /* in the CD-ROM drive */
    struct fs *shares[MACHINE_VOLUMES_MAX]; /* volume n's directory */
    struct net *net;
    struct machine_vcpu vcpus[MACHINE_VCPUS_MAX];
    struct ram_lazy *lazy; /* brings what it goes on from; NULL: nothing does */

    struct loop_timer *throttle; /* NULL: never asked for */
    unsigned throttle_percent;
    _Atomic(uint64_t) held_until_ns; /* vCPUs do not run before; host time */

    atomic_uint pending;
    atomic_bool panic_seen; /* the kernel's crash was seen, so what follows is no plain reboot */
    bool running;           /* within machine_run; control thread */

    /* Parking. lock guards what follows. */
    struct lock lock;
    pthread_cond_t changed;
    bool park, quit;
    bool paused; /* by machine_pause: parked until machine_resume, whatever else happens */
    unsigned parked;

    /* Control thread. */
    struct machine_result *result;
    unsigned quick_resets;
    bool frozen, was_paused;        /* machine_freeze; what it found */
    void (*settled)(void *context); /* is still to be called; NULL: has been */
    void *settled_context;
    bool held;           /* crashed for good: only a reset lets vCPUs run again */
    uint64_t started_ns; /* guest time of the last start */
    struct machine_times times;
};

/* devices.c: everything but engine and vCPUs. On failure the caller undoes by devices_destroy. */
int devices_create(struct machine *machine, struct error *err);
/* The nth class of those that a machine's devices can be of; NULL: there are no more. */
const struct device_class *devices_class(unsigned n);
void devices_reset(struct machine *machine);
/* What firmware asks for at the next start, if there is one: how many processors there are may have
 * changed. No vCPU runs. */
int devices_tell_firmware(struct machine *machine, struct error *err);
void devices_destroy(struct machine *machine);
/* What devices count: "nvme.commands" and so on, once for each device. Any thread. */
void devices_each_counter(struct machine *machine,
                          void (*each)(void *context, const char *name, uint64_t value),
                          void *context);

/* What has been written so far becomes durable, so that there is little left to do when that is
 * waited for. Waits for disks. */
void machine_flush_disks(struct machine *machine);
/*
 * Of a machine that is frozen, or has not run: gives its disks up to another process, durable and
 * closed, whatever the answer; gets those back (or: for the first time) that it has not. They
 * wait for disks: for threads that may.
 */
int machine_release_disks(struct machine *machine, struct error *err);
int machine_take_disks(struct machine *machine, struct error *err);

/* Where memory may be plugged in: behind the RAM, whole GiB. size 0: nowhere. */
struct machine_range {
    uint64_t gpa, size;
};
struct machine_range machine_plug_range(const struct machine_config *config);

/*
 * machine.c. Asks for something of PENDING_*: any thread, any lock held but none below LOCK_VCPU
 * needed. `serve` does what is pending; control thread, posted to the loop.
 */
void machine_ask(struct machine *machine, unsigned what);
void machine_serve(void *machine);

/*
 * vcpus.c, control thread. Starts a vCPU's thread; -errno. Parks all of them, which wait between
 * two instructions then; lets them run again (unless the machine is paused) or, with quit, end.
 */
int machine_start_vcpu(struct machine_vcpu *vcpu);
void machine_park(struct machine *machine);
void machine_unpark(struct machine *machine, bool quit);
/* Calls while no vCPU runs, whatever they did before, and lets them go on. Control thread. */
void machine_with_vcpus_parked(struct machine *machine, void (*call)(void *context), void *context);

/* freeze.c: tells the one who froze the machine once it has settled. Control thread. */
void machine_check_settled(void *machine);

/* A disk has failures to tell. Any thread. */
void machine_disk_failed(void *machine);
void machine_user_device_full(void *user_device);

/* The platform's callbacks. */
void machine_request(struct platform *platform, enum platform_request request);
void machine_idle(struct platform *platform);
struct vcpu *machine_vcpu_here(struct platform *platform, unsigned *id);

#endif
