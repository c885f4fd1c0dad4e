/*
 * What a machine is made from. Filled by the command line (or a test), only
 * read by the machine; strings stay the caller's and must outlive the machine.
 */
#ifndef LODGE_MACHINE_CONFIG_H
#define LODGE_MACHINE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "block/open.h"
#include "block/qos.h"
#include "cpu/cpu.h"
#include "net/net.h"

struct chardev;
struct loop;

enum { MACHINE_VCPUS_MAX = 64, MACHINE_DISKS_MAX = 16, MACHINE_PUBLISH_MAX = 32 };
enum { MACHINE_USER_DEVICES_MAX = 8, MACHINE_VOLUMES_MAX = 8 };

/* RAM a machine may have; above what the host has is refused as well. */
#define MACHINE_MEMORY_MIN     MIB(2)
#define MACHINE_MEMORY_DEFAULT MIB(512)

/* A VM that comes from another monitor (machine/migration.h): its disks, opened when they are
 * handed over. */
struct machine_incoming {
    struct block_info disks[MACHINE_DISKS_MAX];
};

enum disk_device { DISK_VIRTIO, DISK_NVME };

struct disk_config {
    const char *path;
    struct block_options options;
    enum disk_device device;
    struct qos_settings qos; /* against the machine's other disks */
    bool errors_when_full;   /* the guest gets an error where the host is full; else it is paused */
    bool temporary;          /* for who makes the config: what is written ends with the run */
    const char *controller;  /* NVMe disks with the same name share one; NULL: one of its own */
};

/* A directory of the host, and where the guest has it. Its virtio-fs tag is "volumeN", N from 0. */
struct volume_config {
    const char *host, *guest;
    bool readonly;
};
enum { VOLUME_GUEST_MAX = 1024 }; /* bytes of the guest's path */

enum net_kind { NET_NONE, NET_USER, NET_TAP };

/* How a kernel is entered. AUTO takes the quickest that the file offers. */
enum boot_protocol {
    BOOT_AUTO,
    BOOT_BZIMAGE, /* 64-bit entry of a bzImage: the kernel unpacks itself */
    BOOT_ELF,     /* the ELF file (a bzImage's is unpacked by lodge) at its 64-bit entry */
    BOOT_PVH,     /* the ELF file at the 32-bit entry that its PVH note names */
};

/* What starts the guest: a kernel directly, or firmware that looks for a loader on the disks. */
enum firmware_kind {
    FIRMWARE_NONE,
    FIRMWARE_OVMF,
    FIRMWARE_SEABIOS,
    FIRMWARE_FILE, /* firmware_file */
};

/* What becomes of the machine when its guest reboots, and when its kernel crashes. */
enum reboot_policy { REBOOT_RESTART, REBOOT_STOP };
enum panic_policy { PANIC_STOP, PANIC_HOLD };

/* What becomes of it when the guest does not reset its watchdog in time. */
enum watchdog_policy {
    WATCHDOG_DO_RESET,
    WATCHDOG_DO_POWEROFF,
    WATCHDOG_DO_PAUSE,
    WATCHDOG_DO_NONE
};

struct machine_config {
    enum engine_kind engine;
    uint64_t memory;       /* bytes, from the start */
    uint64_t memory_max;   /* with what may be plugged in later; 0: none */
    bool huge_pages;       /* of the host's pool, all reserved */
    unsigned vcpus;        /* from the start */
    unsigned vcpus_max;    /* with those that may be plugged in later; 0: none */
    enum cpu_baseline cpu; /* what guests are shown of the host's processor; the soft engine's */
    bool verify;           /* the soft engine's interpreter and translator in lock-step */
    /* This and the next three: without firmware. NULL: with `restore`, and it never boots
     * (REBOOT_STOP). */
    const char *kernel;
    const char *initrd; /* NULL: none */
    const char *cmdline;
    enum boot_protocol boot;
    enum firmware_kind firmware;
    const char *firmware_file;
    const char *firmware_variables; /* a file; NULL: UEFI variables are not kept */
    struct disk_config disks[MACHINE_DISKS_MAX];
    unsigned disk_count;
    const char *user_devices[MACHINE_USER_DEVICES_MAX]; /* sockets of vfio-user servers */
    unsigned user_device_count;
    const char *cdrom; /* an ISO 9660 image in a CD-ROM drive; NULL: no drive */
    struct volume_config volumes[MACHINE_VOLUMES_MAX];
    unsigned volume_count;
    enum net_kind net;
    const char *tap; /* with NET_TAP: the interface */
    uint8_t mac[6];  /* of its device; all zero: the device's own choice */
    struct net_publish publish[MACHINE_PUBLISH_MAX];
    unsigned publish_count;
    bool vsock;        /* a way to lodge-agent */
    bool packed_rings; /* virtio devices offer packed rings */
    /* Where the first serial port leads to; the caller's, outlives the machine. NULL: nowhere. */
    struct chardev *serial;
    /* The loop that the machine's back ends run on; the caller's, outlives the machine. */
    struct loop *loop;
    enum reboot_policy on_reboot;
    enum panic_policy on_panic;
    enum watchdog_policy on_watchdog;
    /* A directory with a saved machine (machine_state.h) that this one goes on from; NULL: it
     * boots. */
    const char *restore;
    bool cloned; /* with restore: as another machine than the one that was saved */
    bool frugal; /* many such machines are to fit on the host */
    /* The generation id (device/identity.h) of a machine that boots, a UUID; NULL: what the file
     * has, or else one is made up. The file (NULL: none) keeps it, and is made if need be. */
    const char *generation_id, *generation_file;
    const char *idle_states; /* "host" or a file (machine_idle.h); NULL: none. The soft engine's */
    const struct machine_incoming *incoming; /* it comes from another monitor; NULL: it does not */
    double time_scale;   /* guest seconds in a host second; 0: 1. The soft engine's */
    int64_t time_offset; /* seconds that the guest's wall clock is ahead of the host's */
    bool no_catch_up;    /* time lost in a pause stays lost */
};

#endif
