#include "device/device.h"

#include <stdio.h>
#include <stdlib.h>

int device_create(const struct device_class *class, const char *name, struct platform *platform,
                  const void *config, struct device **device_out, struct error *err) {
    struct device *device = calloc(1, class->size);
    if (!device)
        return error_set(err, -ENOMEM, "no memory for device %s", name);
    device->class = class;
    device->platform = platform;
    snprintf(device->name, sizeof device->name, "%s", name);
    lock_init(&device->lock, LOCK_DEVICE, class->name);
    if (class->state)
        state_reset(class->state, device);

    int rc = class->init(device, config, err);
    if (rc < 0) {
        error_prefix(err, "device %s", name);
        lock_destroy(&device->lock);
        free(device);
        return rc;
    }
    *device_out = device;
    return 0;
}

void device_reset(struct device *device) {
    lock_take(&device->lock);
    if (device->class->state)
        state_reset(device->class->state, device);
    lock_release(&device->lock);
    if (device->class->reset)
        device->class->reset(device);
}

void device_destroy(struct device *device) {
    if (!device)
        return;
    if (device->class->destroy)
        device->class->destroy(device);
    lock_destroy(&device->lock);
    free(device);
}
