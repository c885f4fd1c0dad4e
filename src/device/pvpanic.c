#include "device/pvpanic.h"

enum { EVENT_PANICKED = 1 };

struct pvpanic {
    struct device device;
    struct port_range *ports;
};

/* What the device understands. Crash kernels' "loaded" event is not offered: a panic always counts.
 */
static uint64_t pvpanic_read(void *context, uint64_t offset, unsigned size) {
    (void)context, (void)offset, (void)size;
    return EVENT_PANICKED;
}

static void pvpanic_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct pvpanic *pvpanic = context;
    struct platform *platform = pvpanic->device.platform;
    (void)offset, (void)size;
    if (value & EVENT_PANICKED)
        platform->request(platform, PLATFORM_PANICKED);
}

static const struct io_ops pvpanic_ops = {pvpanic_read, pvpanic_write};

static int pvpanic_init(struct device *device, const void *config_, struct error *err) {
    struct pvpanic *pvpanic = (struct pvpanic *)device;
    const struct pvpanic_config *config = config_;
    return ports_add(device->platform->ports, device->name, config->port, 1, &pvpanic_ops, pvpanic,
                     &pvpanic->ports, err);
}

static void pvpanic_destroy(struct device *device) {
    ports_remove(((struct pvpanic *)device)->ports);
}

const struct device_class pvpanic_class = {
    .name = "pvpanic",
    .size = sizeof(struct pvpanic),
    .init = pvpanic_init,
    .destroy = pvpanic_destroy,
};
