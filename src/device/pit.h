/*
 * i8254 timer at ports 40h to 43h and system control port B (61h): gate and
 * output of channel 2. Channel 0 drives GSI 0. Source: Intel 8254 data sheet.
 * config: none (NULL).
 */
#ifndef LODGE_DEVICE_PIT_H
#define LODGE_DEVICE_PIT_H

#include "device/device.h"

extern const struct device_class pit_class;

/* The HPET's legacy replacement takes IRQ 0 away (true) and gives it back. Any thread. */
void pit_disconnect(struct device *device, bool disconnected);

#endif
