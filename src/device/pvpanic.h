/*
 * pvpanic: the guest's kernel reports its crash by a byte to a port. Source:
 * QEMU's docs/specs/pvpanic. config: struct pvpanic_config.
 */
#ifndef LODGE_DEVICE_PVPANIC_H
#define LODGE_DEVICE_PVPANIC_H

#include "device/device.h"

struct pvpanic_config {
    uint16_t port; /* 505h */
};

extern const struct device_class pvpanic_class;

#endif
