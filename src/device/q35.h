/*
 * The chipset, as far as firmware and kernels look at it: of Intel's Q35 the
 * memory controller hub (8086:29c0, 00:00.0) with PCIEXBAR and the PAM
 * registers, and of its ICH9 the LPC bridge (8086:2918, 00:1f.0) with PMBASE
 * and the PIRQ routing. Firmware for virtual machines tells platforms apart
 * by the host bridge's id and programs these registers.
 *
 * What differs from the silicon: RAM lies under C0000h to FFFFFh from the
 * start, with what firmware is to be found there put into it (memory_load);
 * a PAM segment's write enable decides whether it may be written, its read
 * enable is only kept. PCIEXBAR has one size, 256 MiB. There is no SMM.
 *
 * Sources: Intel 3 Series Express Chipset Family data sheet (316966), 5.1;
 * Intel ICH9 data sheet (316972), 13.1.
 */
#ifndef LODGE_DEVICE_Q35_H
#define LODGE_DEVICE_Q35_H

#include "device/device.h"

enum { Q35_LPC_SLOT = 31 };

struct q35_config {
    struct device *acpi_pm; /* placed by PMBASE */
};

extern const struct device_class q35_class;

/* Interrupt of the 8259s that firmware leads PIRQ n to. */
uint8_t q35_pirq_irq(unsigned pirq);

/* Sets the registers as firmware would leave them, for a kernel that is started without. No vCPU
 * runs. */
void q35_set_up(struct device *device, uint64_t ecam_base, uint16_t pm_base);

#endif
