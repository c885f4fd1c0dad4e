/* What a machine is made of: buses, chips and devices, in the order in which they are wired. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/disk/disk.h"
#include "block/handover.h"
#include "block/hold.h"
#include "block/open.h"
#include "block/qos.h"
#include "block/sync.h"
#include "device/acpi_pm.h"
#include "device/cpu_slots.h"
#include "device/debugcon.h"
#include "device/flash.h"
#include "device/fw_cfg.h"
#include "device/hpet.h"
#include "device/i8042.h"
#include "device/pit.h"
#include "device/pvpanic.h"
#include "device/q35.h"
#include "device/rtc.h"
#include "device/serial.h"
#include "device/takeover.h"
#include "device/watchdog.h"
#include "fs/fs.h"
#include "machine/layout.h"
#include "machine/machine_identity.h"
#include "machine/machine_idle.h"
#include "machine/private.h"
#include "machine/vm_disk.h"
#include "memory/ahead.h"
#include "nvme/nvme.h"
#include "vfio_user/client.h"
#include "virtio/balloon.h"
#include "virtio/blk.h"
#include "virtio/fs.h"
#include "virtio/mem.h"
#include "virtio/net.h"
#include "virtio/rng.h"
#include "virtio/scsi.h"
#include "virtio/vsock.h"

static uint64_t low_ram(const struct machine *machine) {
    uint64_t size = machine->config.memory;
    return size < LAYOUT_LOW_RAM_END ? size : LAYOUT_LOW_RAM_END;
}

static int create_memory(struct machine *machine, struct error *err) {
    struct platform *platform = &machine->platform;
    uint64_t low = low_ram(machine), high = machine->config.memory - low;
    struct machine_range plug = machine_plug_range(&machine->config);
    int result = memory_create(&platform->memory, err);
    if (result == 0 && machine->config.huge_pages)
        memory_use_huge_pages(platform->memory);
    if (result == 0 && machine->config.user_device_count > 0)
        memory_share(platform->memory);
    if (result == 0)
        result = memory_add_ram(platform->memory, "ram", 0, low, err);
    if (result == 0 && high > 0)
        result = memory_add_ram(platform->memory, "ram-high", LAYOUT_HIGH_RAM_BASE, high, err);
    if (result == 0 && plug.size > 0)
        result = memory_add_pluggable(platform->memory, "ram-plug", plug.gpa, plug.size, err);
    return result;
}

static int create_buses(struct machine *machine, struct error *err) {
    static const struct pci_bus_config pci = {
        .mmio32_base = LAYOUT_MMIO32_BASE,
        .mmio32_size = LAYOUT_MMIO32_SIZE,
        .mmio64_base = LAYOUT_MMIO64_BASE,
        .mmio64_size = LAYOUT_MMIO64_SIZE,
        .io_base = LAYOUT_PCI_IO_BASE,
        .io_size = LAYOUT_PCI_IO_SIZE,
    };
    struct platform *platform = &machine->platform;
    int result = ports_create(&platform->ports, err);
    if (result == 0)
        result = vm_clock_create(&platform->clock, err);
    if (result == 0)
        result = irqchip_create(platform->memory, platform->ports, platform->clock,
                                &platform->irqchip, err);
    return result == 0 ? pci_bus_create(platform, &pci, &platform->pci, err) : result;
}

/* Who adds one: tests/unit/test_state_equality.c has each of them saved and loaded. */
static const struct device_class *const classes[] = {
    &acpi_pm_class,      &cpu_slots_class,
    &debugcon_class,     &flash_class,
    &fw_cfg_class,       &hpet_class,
    &i8042_class,        &identity_class,
    &idle_states_class,  &nvme_class,
    &pit_class,          &pvpanic_class,
    &q35_class,          &rtc_class,
    &serial_class,
#ifdef LODGE_DEBUG
    &takeover_class,
#endif
    &vfio_user_class,    &virtio_balloon_class,
    &virtio_blk_class,   &virtio_fs_class,
    &virtio_mem_class,   &virtio_net_class,
    &virtio_rng_class,   &virtio_scsi_class,
    &virtio_vsock_class, &watchdog_class,
};

const struct device_class *devices_class(unsigned n) {
    return n < ARRAY_SIZE(classes) ? classes[n] : NULL;
}

/* Puts it on the machine's list. */
static int keep(struct machine *machine, struct device *device, struct error *err) {
    unsigned n = 0;
    while (devices_class(n) != NULL && devices_class(n) != device->class)
        n++;
    if (devices_class(n) == NULL) {
        device_destroy(device);
        return error_set(err, -ENOTSUP, "no machine has a device of that class");
    }
    device->next = machine->devices;
    machine->devices = device;
    return 0;
}

/* Makes a device of the machine's. */
static int add(struct machine *machine, const struct device_class *class, const char *name,
               const void *config, struct device **device, struct error *err) {
    struct device *made;
    int result = device_create(class, name, &machine->platform, config, &made, err);
    if (result == 0)
        result = keep(machine, made, err);
    if (result == 0 && device != NULL)
        *device = made;
    return result;
}

static int create_timers(struct machine *machine, struct error *err) {
    struct rtc_config rtc = {low_ram(machine), machine->config.memory - low_ram(machine)};
    struct hpet_config hpet = {.base = LAYOUT_HPET_BASE};
    int result = add(machine, &pit_class, "pit0", NULL, &hpet.pit, err);
    if (result == 0)
        result = add(machine, &rtc_class, "rtc0", &rtc, &hpet.rtc, err);
    return result == 0 ? add(machine, &hpet_class, "hpet0", &hpet, NULL, err) : result;
}

static int add_identity(struct machine *machine, struct error *err) {
    struct identity_config ids = {.base = LAYOUT_IDENTITY_BASE};
    int result = machine_identity_begin(&machine->config, &ids, err);
    return result == 0 ? add(machine, &identity_class, "identity0", &ids, &machine->identity, err)
                       : result;
}

static int add_idle_states(struct machine *machine, struct error *err) {
    struct idle_states_config config = {.port = LAYOUT_IDLE_PORT};
    int result = machine_idle_table(machine->config.idle_states, &config.table, err);
    return result == 0 ? add(machine, &idle_states_class, "idle-states0", &config,
                             &machine->idle_states, err)
                       : result;
}

static int create_chips(struct machine *machine, struct error *err) {
    static const struct acpi_pm_config acpi = {.base = LAYOUT_PM1_EVENT_PORT,
                                               .sci = LAYOUT_SCI_GSI};
    static const struct pvpanic_config pvpanic = {.port = LAYOUT_PVPANIC_PORT};
    static const struct watchdog_config watchdog = {.base = LAYOUT_WATCHDOG_PORT};
    struct serial_config serial = {
        .port = LAYOUT_SERIAL_PORT, .gsi = LAYOUT_SERIAL_IRQ, .chardev = machine->config.serial};
    struct cpu_slots_config slots = {.port = LAYOUT_CPU_SLOTS_PORT,
                                     .plugged = (uint8_t)machine->config.vcpus};
    int result = add(machine, &acpi_pm_class, "acpi0", &acpi, &machine->acpi_pm, err);
    struct q35_config q35 = {.acpi_pm = machine->acpi_pm};
    if (result == 0)
        result = add(machine, &q35_class, "q35", &q35, &machine->q35, err);
    if (result == 0)
        result = add(machine, &i8042_class, "i8042", NULL, NULL, err);
    if (result == 0 && machine->has_cpu_slots)
        result = add(machine, &cpu_slots_class, "cpus", &slots, &machine->cpu_slots, err);
    if (result == 0)
        result = add(machine, &pvpanic_class, "pvpanic0", &pvpanic, NULL, err);
    if (result == 0)
        result = add(machine, &watchdog_class, "watchdog0", &watchdog, NULL, err);
    if (result == 0)
        result = add_identity(machine, err);
    if (result == 0 && machine->config.idle_states != NULL)
        result = add_idle_states(machine, err);
    return result == 0 ? add(machine, &serial_class, "serial0", &serial, NULL, err) : result;
}

static struct virtio_options virtio_options(const struct machine *machine) {
    return (struct virtio_options){.packed = machine->config.packed_rings};
}

/* One more place to boot from, as an Open Firmware path: the function that was just added. */
static void add_boot_path(struct machine *machine, const char *node, const char *unit) {
    const struct pci_function *function = NULL, *next = NULL;
    size_t used = strlen(machine->boot_order);
    while ((next = pci_bus_next(machine->platform.pci, next)) != NULL)
        if (pci_function_slot(next) < Q35_LPC_SLOT)
            function = next;
    snprintf(machine->boot_order + used, sizeof machine->boot_order - used, "%s/pci@i0cf8/%s@%x/%s",
             used > 0 ? "\n" : "", node, (unsigned)pci_function_slot(function), unit);
}

static int add_virtio_disk(struct machine *machine, unsigned index, struct error *err) {
    struct virtio_blk_config config = {.options = virtio_options(machine),
                                       .block = machine->blocks[index],
                                       .queues = machine->config.vcpus > machine->config.vcpus_max
                                                     ? machine->config.vcpus
                                                     : machine->config.vcpus_max};
    char name[16];
    snprintf(name, sizeof name, "disk%u", index);
    int result = add(machine, &virtio_blk_class, name, &config, NULL, err);
    add_boot_path(machine, "scsi", "disk@0,0");
    return result;
}

/* True when the disk is a namespace of the controller that disk `first` has begun. */
static bool shares_controller(const struct disk_config *first, const struct disk_config *disk) {
    return disk->device == DISK_NVME && first->controller != NULL && disk->controller != NULL &&
           strcmp(first->controller, disk->controller) == 0;
}

/* The controller of disk `first`, with the namespaces behind it that share it. */
static int add_nvme(struct machine *machine, unsigned first, unsigned number, struct error *err) {
    const struct disk_config *disks = machine->config.disks;
    struct nvme_config config = {.blocks = {machine->blocks[first]}, .count = 1};
    char name[16];
    for (unsigned i = first + 1; i < machine->config.disk_count; i++)
        if (shares_controller(&disks[first], &disks[i]))
            config.blocks[config.count++] = machine->blocks[i];
    snprintf(name, sizeof name, "nvme%u", number);
    int result = add(machine, &nvme_class, name, &config, NULL, err);
    add_boot_path(machine, "nvme", "namespace@1,0");
    return result;
}

static bool is_shared(const struct machine *machine, unsigned index) {
    const struct disk_config *disks = machine->config.disks;
    for (unsigned i = 0; i < index; i++)
        if (disks[i].device == DISK_NVME && shares_controller(&disks[i], &disks[index]))
            return true;
    return false;
}

/* Behind a node that can let it go. */
static int open_image(struct machine *machine, unsigned index, struct block **block,
                      struct error *err) {
    const struct disk_config *disk = &machine->config.disks[index];
    const struct machine_incoming *incoming = machine->config.incoming;
    struct block *image = NULL;
    int result = incoming == NULL ? block_open(disk->path, &disk->options, &image, err) : 0;
    if (result < 0)
        return result;
    result = handover_add(image, incoming != NULL ? &incoming->disks[index] : NULL, block, err);
    if (result < 0)
        block_close(image);
    else
        machine->images[index] = image;
    return result;
}

void machine_flush_disks(struct machine *machine) {
    for (unsigned i = 0; i < machine->config.disk_count; i++)
        if (machine->images[i] != NULL && !machine->images[i]->info.readonly)
            block_flush(machine->images[i]);
}

int machine_release_disks(struct machine *machine, struct error *err) {
    int result = 0;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        struct error *first = result == 0 ? err : NULL;
        int one = handover_release(machine->handovers[i], first);
        machine->images[i] = NULL;
        result = result == 0 ? one : result;
    }
    return result;
}

/* What a lodge disk does by itself is background work. */
static void order_upkeep(struct machine *machine, unsigned index, struct block *image) {
    if (image != NULL && disk_is(image))
        disk_set_upkeep(image, qos_upkeep(machine->flows[index], disk_file(image)));
}

static int take_disk(struct machine *machine, unsigned index, struct error *err) {
    const struct disk_config *disk = &machine->config.disks[index];
    struct block *image;
    int result = block_open(disk->path, &disk->options, &image, err);
    if (result < 0)
        return result;
    order_upkeep(machine, index, image);
    result = handover_take(machine->handovers[index], image, err);
    if (result < 0)
        block_close(image);
    else
        machine->images[index] = image;
    return result;
}

int machine_take_disks(struct machine *machine, struct error *err) {
    int result = 0;
    for (unsigned i = 0; i < machine->config.disk_count && result == 0; i++)
        if (machine->images[i] == NULL)
            result = take_disk(machine, i, err);
    return result;
}

/* "disk0" and so on, in the order of the configuration. */
static int open_disk(struct machine *machine, unsigned index, struct error *err) {
    const struct disk_config *disk = &machine->config.disks[index];
    struct hold_config hold = {.loop = machine->config.loop,
                               .keep = !disk->errors_when_full,
                               .told = machine_disk_failed,
                               .context = machine};
    struct block *block, *flow;
    char name[16];
    snprintf(name, sizeof name, "disk%u", index);
    int result = open_image(machine, index, &block, err);
    if (result < 0)
        return result;
    result = qos_add_flow(machine->qos, block, name, &disk->qos, &flow, err);
    machine->handovers[index] = result == 0 ? block : NULL;
    if (result == 0) {
        block = machine->flows[index] = flow;
        order_upkeep(machine, index, machine->images[index]);
    }
    if (result == 0)
        result = hold_add(block, &hold, &machine->blocks[index], err);
    if (result < 0)
        block_close(block);
    return result;
}

static int create_disks(struct machine *machine, struct error *err) {
    const struct disk_config *disks = machine->config.disks;
    unsigned controllers = 0;
    int result = qos_create(machine->config.loop, NULL, &machine->qos, err);
    for (unsigned i = 0; i < machine->config.disk_count && result == 0; i++)
        result = open_disk(machine, i, err);
    for (unsigned i = 0; i < machine->config.disk_count && result == 0; i++) {
        if (disks[i].device == DISK_VIRTIO)
            result = add_virtio_disk(machine, i, err);
        else if (!is_shared(machine, i))
            result = add_nvme(machine, i, controllers++, err);
    }
    return result;
}

/* Devices that other processes serve; NVMe controllers can be booted. */
static int create_user_devices(struct machine *machine, struct error *err) {
    int result = 0;
    for (unsigned i = 0; i < machine->config.user_device_count && result == 0; i++) {
        struct machine_user_device *user = &machine->user_devices[i];
        user->machine = machine;
        user->socket = machine->config.user_devices[i];
        struct vfio_user_config config = {
            .socket = user->socket, .full = machine_user_device_full, .context = user};
        struct device *device = NULL;
        char name[16];
        snprintf(name, sizeof name, "user%u", i);
        result = add(machine, &vfio_user_class, name, &config, &device, err);
        if (result == 0 && vfio_user_is_nvme(device))
            add_boot_path(machine, "nvme", "namespace@1,0");
    }
    return result;
}

/* After the disks: they are booted first. */
static int add_cdrom(struct machine *machine, struct error *err) {
    int result = block_open_raw(machine->config.cdrom, true, &machine->disc, err);
    if (result < 0)
        return error_prefix(err, "cdrom");
    struct virtio_scsi_config config = {.options = virtio_options(machine), .disc = machine->disc};
    result = add(machine, &virtio_scsi_class, "cdrom0", &config, NULL, err);
    add_boot_path(machine, "scsi", "channel@0/disk@0,0");
    return result;
}

static int add_volumes(struct machine *machine, struct error *err) {
    unsigned count = machine->config.volume_count;
    int result = 0;
    for (unsigned i = 0; i < count && result == 0; i++) {
        const struct volume_config *volume = &machine->config.volumes[i];
        char tag[20];
        snprintf(tag, sizeof tag, "volume%u", i);
        result = fs_open(volume->host, volume->readonly, count, &machine->shares[i], err);
        struct virtio_fs_config config = {
            .options = virtio_options(machine), .fs = machine->shares[i], .tag = tag};
        if (result == 0)
            result = add(machine, &virtio_fs_class, tag, &config, NULL, err);
    }
    return result;
}

static int add_network(struct machine *machine, struct error *err) {
    struct net_user_config user = {.publish = machine->config.publish,
                                   .publish_count = machine->config.publish_count};
    int result = machine->config.net == NET_TAP
                     ? net_tap_create(machine->config.tap, &machine->net, err)
                     : net_user_create(&user, &machine->net, err);
    if (result < 0)
        return result;
    struct virtio_net_config config = {.options = virtio_options(machine), .net = machine->net};
    memcpy(config.mac, machine->config.mac, sizeof config.mac);
    return add(machine, &virtio_net_class, "net0", &config, &machine->network, err);
}

/* After everything that is booted from: slots keep their numbers. */
static int add_memory_devices(struct machine *machine, struct error *err) {
    struct machine_range plug = machine_plug_range(&machine->config);
    struct virtio_balloon_config balloon = {.options = virtio_options(machine),
                                            .no_reports = machine->config.huge_pages};
    struct virtio_mem_config mem = {
        .options = virtio_options(machine), .gpa = plug.gpa, .size = plug.size};
    int result = add(machine, &virtio_balloon_class, "balloon0", &balloon, &machine->balloon, err);
    if (result == 0 && plug.size > 0)
        result = add(machine, &virtio_mem_class, "mem0", &mem, &machine->mem, err);
    return result;
}

static int create_virtio(struct machine *machine, struct error *err) {
    struct virtio_rng_config rng = {.options = virtio_options(machine)};
    struct virtio_vsock_config vsock = {.options = virtio_options(machine)};
    int result = add(machine, &virtio_rng_class, "rng0", &rng, NULL, err);
    if (result == 0 && machine->config.vsock)
        result = add(machine, &virtio_vsock_class, "vsock0", &vsock, &machine->vsock, err);
    if (result == 0)
        result = create_disks(machine, err);
    if (result == 0)
        result = create_user_devices(machine, err);
    if (result == 0 && machine->config.cdrom != NULL)
        result = add_cdrom(machine, err);
    if (result == 0)
        result = add_volumes(machine, err);
    if (result == 0 && machine->config.net != NET_NONE)
        result = add_network(machine, err);
    return result == 0 ? add_memory_devices(machine, err) : result;
}

/* ---- Firmware ---- */

int devices_tell_firmware(struct machine *machine, struct error *err) {
    struct machine_range plug = machine_plug_range(&machine->config);
    if (machine->firmware == NULL)
        return 0;
    struct firmware_machine told = {
        .fw_cfg = machine->fw_cfg,
        .ram_below_4g = low_ram(machine),
        .ram_above_4g = machine->config.memory - low_ram(machine),
        .plug_base = plug.gpa,
        .plug_size = plug.size,
        .vcpus = machine->config.vcpus,
        .vcpus_max = machine->config.vcpus_max,
        .idle_states = machine->idle_states != NULL,
        .boot_order = firmware_is_uefi(machine->firmware) ? NULL : machine->boot_order};
    return firmware_configure(&told, err);
}

static int create_firmware(struct machine *machine, struct error *err) {
    struct device *flash;
    if (machine->firmware == NULL)
        return 0;
    int result = firmware_map(machine->firmware, &machine->platform, &flash, err);
    if (result == 0 && flash != NULL)
        result = keep(machine, flash, err);
    if (result == 0)
        result = add(machine, &debugcon_class, "debugcon0", NULL, NULL, err);
    if (result == 0)
        result = add(machine, &fw_cfg_class, "fw_cfg0", NULL, &machine->fw_cfg, err);
    return result == 0 ? devices_tell_firmware(machine, err) : result;
}

int devices_create(struct machine *machine, struct error *err) {
    machine->platform.loop = machine->config.loop;
    machine->platform.request = machine_request;
    machine->platform.idle = machine_idle;
    machine->platform.vcpu = machine_vcpu_here;
    int result = create_memory(machine, err);
    if (result == 0)
        result = create_buses(machine, err);
    if (result == 0)
        result = create_timers(machine, err);
    if (result == 0)
        result = create_chips(machine, err);
    if (result == 0)
        result = create_virtio(machine, err);
#ifdef LODGE_DEBUG
    if (result == 0)
        result = add(machine, &takeover_class, "takeover0", NULL, NULL, err);
#endif
    return result == 0 ? create_firmware(machine, err) : result;
}

void devices_reset(struct machine *machine) {
    for (struct device *device = machine->devices; device != NULL; device = device->next)
        device_reset(device);
    pci_bus_reset(machine->platform.pci);
    irqchip_reset(machine->platform.irqchip);
}

void devices_destroy(struct machine *machine) {
    struct platform *platform = &machine->platform;
    while (machine->devices != NULL) {
        struct device *device = machine->devices;
        machine->devices = device->next;
        device_destroy(device);
    }
    net_close(machine->net);
    vm_disk_end(machine);
    for (unsigned i = 0; i < MACHINE_VOLUMES_MAX; i++)
        fs_close(machine->shares[i]);
    for (unsigned i = 0; i < MACHINE_DISKS_MAX; i++)
        block_close(machine->blocks[i]);
    qos_destroy(machine->qos);
    block_close(machine->disc);
    if (platform->pci != NULL)
        pci_bus_destroy(platform->pci);
    if (platform->irqchip != NULL)
        irqchip_destroy(platform->irqchip);
    if (platform->clock != NULL)
        vm_clock_destroy(platform->clock);
    if (platform->ports != NULL)
        ports_destroy(platform->ports);
    if (platform->memory != NULL)
        memory_destroy(platform->memory);
}

typedef void counter_handler(void *context, const char *name, uint64_t value);

static void each_nvme(struct device *device, counter_handler *each, void *context) {
    struct nvme_counters counters;
    nvme_count(device, &counters);
    each(context, "nvme.doorbells", counters.doorbells);
    each(context, "nvme.registers", counters.registers);
    each(context, "nvme.commands", counters.commands);
    each(context, "nvme.bytes", counters.bytes);
    each(context, "nvme.interrupts", counters.interrupts);
    each(context, "nvme.polls", counters.polls);
}

static void each_vfio_user(struct device *device, counter_handler *each, void *context) {
    struct vfio_user_counters counters;
    vfio_user_count(device, &counters);
    each(context, "vfio-user.reads", counters.reads);
    each(context, "vfio-user.writes", counters.writes);
    each(context, "vfio-user.interrupts", counters.interrupts);
    each(context, "vfio-user.watched", counters.watched);
    each(context, "vfio-user.connections", counters.connections);
}

static void each_net(struct device *device, counter_handler *each, void *context) {
    struct net_backup_counters counters;
    virtio_net_count(device, &counters);
    each(context, "net.backup-frames", counters.frames);
    each(context, "net.backup-most", counters.most);
    each(context, "net.faulty-buffers", counters.faulty);
    each(context, "net.backup-dropped", counters.dropped);
}

static void each_paging(const struct memory *memory, counter_handler *each, void *context) {
    struct missing_counters counters;
    memory_missing_count(memory, &counters);
    each(context, "paging.away", counters.away);
    each(context, "paging.faults", counters.faults);
    each(context, "paging.ahead", counters.ahead);
    each(context, "paging.supplied", counters.supplied);
}

static void each_ahead(struct memory *memory, counter_handler *each, void *context) {
    struct memory_ahead_counts counts;
    memory_ahead_counts(memory, &counts);
    each(context, "ahead.fresh", counts.fresh);
    each(context, "ahead.made", counts.made);
    each(context, "ahead.met", counts.met);
    each(context, "ahead.ready", counts.ready);
    each(context, "ahead.refused", counts.refused);
}

void devices_each_counter(struct machine *machine,
                          void (*each)(void *context, const char *name, uint64_t value),
                          void *context) {
    each_ahead(machine->platform.memory, each, context);
    for (struct device *device = machine->devices; device != NULL; device = device->next) {
        if (device->class == &nvme_class)
            each_nvme(device, each, context);
        else if (device->class == &vfio_user_class)
            each_vfio_user(device, each, context);
        else if (device->class == &virtio_net_class)
            each_net(device, each, context);
    }
    each_paging(machine->platform.memory, each, context);
}
