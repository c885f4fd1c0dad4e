/*
 * i8042 controller with a keyboard that nobody types on: enough for probes
 * and firmware, and for the reset through port 64h; no mouse. Also system control port A (92h),
 * which has the fast reset and the A20 gate. config: none (NULL).
 */
#ifndef LODGE_DEVICE_I8042_H
#define LODGE_DEVICE_I8042_H

#include "device/device.h"

extern const struct device_class i8042_class;

#endif
