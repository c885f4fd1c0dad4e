#include "vfio_user/client.h"

#include <stdlib.h>

#include "base/bytes.h"
#include "pci/pci.h"
#include "vfio_user/link.h"

enum { CONFIG_CLASS = 8, CONFIG_BARS = 0x10, CONFIG_SUBSYSTEM = 0x2c, CONFIG_LIST = 0x34 };
enum { CAPABILITY_MSIX = 0x11, LIST_MAX = 48, BAR_IO = 1, BAR_64 = 4 };

struct vfio_user {
    struct device device;
    struct pci_function *function;
    struct link *link;
    void (*full)(void *context); /* as in struct vfio_user_config */
    void *context;
};

/* ---- BARs: the context is the device, so each has functions of its own ---- */

#define BAR(n)                                                                                     \
    static uint64_t bar##n##_read(void *context, uint64_t offset, unsigned size) {                 \
        return link_read(((struct vfio_user *)context)->link, n, offset, size);                    \
    }                                                                                              \
    static void bar##n##_write(void *context, uint64_t offset, uint64_t value, unsigned size) {    \
        link_write(((struct vfio_user *)context)->link, n, offset, value, size);                   \
    }                                                                                              \
    static const struct io_ops bar##n##_ops = {bar##n##_read, bar##n##_write};
BAR(0)
BAR(1)
BAR(2)
BAR(3)
BAR(4)
BAR(5)

static const struct io_ops *const bar_ops[PCI_BARS] = {&bar0_ops, &bar1_ops, &bar2_ops,
                                                       &bar3_ops, &bar4_ops, &bar5_ops};

/* ---- The function, from what the server says ---- */

/* The BAR that the server has its MSI-X table in; PCI_BARS: no such capability. */
static unsigned table_bar(const struct link_shape *shape) {
    unsigned at = shape->config[CONFIG_LIST] & ~3u;
    for (unsigned i = 0; i < LIST_MAX && at >= 0x40 && at + 8 <= LINK_CONFIG; i++) {
        if (shape->config[at] == CAPABILITY_MSIX)
            return shape->config[at + 4] & 7;
        at = shape->config[at + 1] & ~3u;
    }
    return PCI_BARS;
}

static void take_bars(struct pci_function_config *config, const struct link_shape *shape) {
    for (unsigned i = 0; i < PCI_BARS; i++) {
        uint32_t value = load_le32(shape->config + CONFIG_BARS + 4 * i);
        struct pci_bar *bar = &config->bars[i];
        if (shape->bars[i] == 0)
            continue;
        bar->kind = value & BAR_IO ? PCI_BAR_IO : value & BAR_64 ? PCI_BAR_MEM64 : PCI_BAR_MEM32;
        bar->size = shape->bars[i];
        bar->ops = bar_ops[i];
        i += bar->kind == PCI_BAR_MEM64;
    }
}

static bool bar_is_free(const struct pci_function_config *config, unsigned i) {
    return config->bars[i].kind == PCI_BAR_NONE &&
           (i == 0 || config->bars[i - 1].kind != PCI_BAR_MEM64);
}

/* The table is ours: in the place of the server's where that has a BAR of its own, else in another.
 */
static int place_msix(struct pci_function_config *config, const struct link_shape *shape,
                      struct error *err) {
    unsigned bar = table_bar(shape);
    if (shape->vectors == 0)
        return 0;
    if (bar == 0 || bar >= PCI_BARS)
        for (bar = 1; bar < PCI_BARS && !bar_is_free(config, bar); bar++)
            ;
    if (bar == PCI_BARS)
        return error_set(err, -ENOTSUP, "the device has no BAR left for its MSI-X table");
    if (shape->vectors > PCI_MSIX_MAX)
        return error_set(err, -ENOTSUP, "the device has %u MSI-X vectors; lodge knows %d",
                         shape->vectors, PCI_MSIX_MAX);
    if (config->bars[bar].kind != PCI_BAR_MEM64)
        config->bars[bar].kind = PCI_BAR_MEM32;
    config->msix_bar = (uint8_t)bar;
    config->msix_vectors = (uint16_t)shape->vectors;
    return 0;
}

static void command_written(void *context, uint16_t command) {
    link_command(((struct vfio_user *)context)->link, command);
}

static void config_replaced(void *context) {
    struct vfio_user *client = context;
    link_command(client->link, (uint16_t)pci_config_read(client->function, 4, 2));
}

static int create_function(struct vfio_user *client, const struct link_shape *shape, int slot,
                           struct error *err) {
    const uint8_t *space = shape->config;
    struct pci_function_config config = {
        .vendor = load_le16(space),
        .device = load_le16(space + 2),
        .revision = space[CONFIG_CLASS],
        .class_code = load_le32(space + CONFIG_CLASS) >> 8,
        .subsystem_vendor = load_le16(space + CONFIG_SUBSYSTEM),
        .subsystem = load_le16(space + CONFIG_SUBSYSTEM + 2),
        .slot = slot - 1,
        .context = client,
        .command_written = command_written,
        .config_replaced = config_replaced,
    };
    take_bars(&config, shape);
    int rc = place_msix(&config, shape, err);
    return rc == 0
               ? pci_function_create(client->device.platform->pci, &config, &client->function, err)
               : rc;
}

/* ---- Life ---- */

static void on_interrupt(void *context, uint16_t vector) {
    pci_msix_notify(((struct vfio_user *)context)->function, vector);
}

static void on_full(void *context) {
    const struct vfio_user *client = context;
    client->full(client->context);
}

static void vfio_user_destroy(struct device *device) {
    struct vfio_user *client = container_of(device, struct vfio_user, device);
    link_close(client->link);
    pci_function_destroy(client->function);
}

static int vfio_user_init(struct device *device, const void *data, struct error *err) {
    const struct vfio_user_config *config = data;
    struct vfio_user *client = container_of(device, struct vfio_user, device);
    struct link_shape shape;
    struct link_events events = {on_interrupt, config->full != NULL ? on_full : NULL, client};
    client->full = config->full;
    client->context = config->context;
    int rc = link_open(config->socket, device->platform->memory, &client->link, &shape, err);
    if (rc == 0)
        rc = create_function(client, &shape, config->slot, err);
    if (rc == 0)
        rc = link_start(client->link, pci_dma(client->function), &events, err);
    if (rc < 0) {
        vfio_user_destroy(device);
        return error_prefix(err, "device at %.100s", config->socket);
    }
    return 0;
}

static void vfio_user_reset(struct device *device) {
    link_reset(container_of(device, struct vfio_user, device)->link);
}

bool vfio_user_is_nvme(struct device *device) {
    enum { CLASS_NVME = 0x010802 };
    struct vfio_user *client = container_of(device, struct vfio_user, device);
    return pci_config_read(client->function, CONFIG_CLASS, 4) >> 8 == CLASS_NVME;
}

void vfio_user_count(struct device *device, struct vfio_user_counters *counters) {
    link_count(container_of(device, struct vfio_user, device)->link, counters);
}

const struct device_class vfio_user_class = {
    .name = "vfio-user",
    .size = sizeof(struct vfio_user),
    .init = vfio_user_init,
    .reset = vfio_user_reset,
    .destroy = vfio_user_destroy,
};
