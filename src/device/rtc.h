/*
 * MC146818 clock and 128 bytes of CMOS RAM at ports 70h and 71h, GSI 8. Runs
 * in UTC on the VM's wall clock. Source: MC146818A data sheet.
 */
#ifndef LODGE_DEVICE_RTC_H
#define LODGE_DEVICE_RTC_H

#include "device/device.h"

struct rtc_config {
    uint64_t ram_below_4g, ram_above_4g; /* for the CMOS bytes that firmware reads; 0: leave them */
};

extern const struct device_class rtc_class;

/* The HPET's legacy replacement takes IRQ 8 away (true) and gives it back. Any thread. */
void rtc_disconnect(struct device *device, bool disconnected);

#endif
