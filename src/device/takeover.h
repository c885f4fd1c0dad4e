/*
 * Debug builds only: a port by which a guest has code run on the monitor's
 * threads that tries what it may not do (isolation/takeover.h).
 */
#ifndef LODGE_DEVICE_TAKEOVER_H
#define LODGE_DEVICE_TAKEOVER_H

#include "device/device.h"

enum { TAKEOVER_PORT = 0x4e0 };

/* A byte that is written: on which thread everything is tried, or that a program is run. */
enum { TAKEOVER_VCPU = 1, TAKEOVER_IO = 2, TAKEOVER_OTHER = 3, TAKEOVER_EXECUTE = 4 };

extern const struct device_class takeover_class; /* config: NULL */

#endif
