/*
 * High-precision event timer: one block of three 64-bit timers at 100 MHz.
 * Source: IA-PC HPET specification 1.0a.
 */
#ifndef LODGE_DEVICE_HPET_H
#define LODGE_DEVICE_HPET_H

#include "device/device.h"

struct hpet_config {
    uint64_t base;            /* FED00000h */
    struct device *pit, *rtc; /* lose their interrupts in legacy replacement; may be NULL */
};

extern const struct device_class hpet_class;

#endif
