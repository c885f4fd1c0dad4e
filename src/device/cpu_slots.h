/*
 * How many processors are plugged, for the DSDT: one port, read-only. They are
 * plugged in order and stay; the DSDT's event method notifies the guest of
 * those that are new.
 */
#ifndef LODGE_DEVICE_CPU_SLOTS_H
#define LODGE_DEVICE_CPU_SLOTS_H

#include "device/device.h"

struct cpu_slots_config {
    uint16_t port;
    uint8_t plugged; /* from the start */
};

extern const struct device_class cpu_slots_class;

/* Any thread. The general-purpose event is the caller's to raise. */
void cpu_slots_plug(struct device *device, uint8_t plugged);

#endif
