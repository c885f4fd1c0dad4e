/*
 * ACPI fixed hardware: PM1 event and control, PM timer (32 bits), GPE0 and
 * the SCI. Sleep type ACPI_PM_S5 powers the machine off; from other sleeps the
 * guest wakes at once. Source: ACPI 6.4, chapter 4.8.
 */
#ifndef LODGE_DEVICE_ACPI_PM_H
#define LODGE_DEVICE_ACPI_PM_H

#include "device/device.h"

enum {
    ACPI_PM_S5 = 5,      /* SLP_TYP for S5: the DSDT says the same */
    ACPI_PM_EVENT = 0,   /* offsets from the base: PM1a event block, 4 bytes */
    ACPI_PM_CONTROL = 4, /* PM1a control block, 2 bytes */
    ACPI_PM_TIMER = 8,   /* 4 bytes */
    ACPI_PM_GPE0 = 0x20, /* 4 bytes: 16 status bits, 16 enable bits */
};

struct acpi_pm_config {
    uint16_t base; /* 600h, until acpi_pm_place */
    uint8_t sci;   /* GSI 9 */
};

extern const struct device_class acpi_pm_class;

/* Moves the registers in the port space and makes them answer or not: the chipset's to say. */
void acpi_pm_place(struct device *device, uint16_t base, bool enabled);
/* Any thread. The power button is pressed: the guest is asked to shut down. */
void acpi_pm_power_button(struct device *device);
/* Any thread. Sets a general-purpose event's status bit (0 to 15). */
void acpi_pm_raise_gpe(struct device *device, unsigned bit);
/* Any thread. Whether the guest has enabled it: its system does, firmware does not. */
bool acpi_pm_gpe_enabled(struct device *device, unsigned bit);

#endif
