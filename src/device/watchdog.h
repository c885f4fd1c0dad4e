/*
 * A watchdog that counts down in the guest's time unless the guest resets it,
 * and tells the machine when it gets to the end. The guest finds it by an
 * ACPI table, the WDAT (Microsoft, "Hardware Watchdog Timers Design
 * Specification" 1.01), which machine/acpi.c writes and which Linux's
 * wdat_wdt and Windows drive; hence the registers are lodge's own, 32 bits
 * each, accessed as a whole:
 *
 *   WATCHDOG_COUNT    ticks to go; written: how many there are from each reset on
 *   WATCHDOG_CONTROL  bit 0: it runs. Written with 1 it starts anew.
 *   WATCHDOG_RESET    written, anything: the count begins anew
 *   WATCHDOG_STATUS   bit 0: it has got to its end since it was last written with 1; a reset of
 *                     the machine leaves that alone
 */
#ifndef LODGE_DEVICE_WATCHDOG_H
#define LODGE_DEVICE_WATCHDOG_H

#include "device/device.h"

enum {
    WATCHDOG_COUNT = 0,
    WATCHDOG_CONTROL = 4,
    WATCHDOG_RESET = 8,
    WATCHDOG_STATUS = 12,
    WATCHDOG_PORTS = 16,

    WATCHDOG_TICK_MS = 100,
    WATCHDOG_COUNT_MAX = 0xffff,
};

struct watchdog_config {
    uint16_t base;
};

extern const struct device_class watchdog_class;

#endif
