/*
 * ACPI tables of a machine: RSDP, XSDT, FADT (revision 6), FACS, DSDT, MADT,
 * MCFG, HPET. Addresses come from layout.h; the DSDT's bytecode is emitted by
 * aml.h. Sources: ACPI 6.4; PCI Firmware Specification 3.0 for MCFG; IA-PC
 * HPET specification 1.0a.
 */
#ifndef LODGE_MACHINE_ACPI_H
#define LODGE_MACHINE_ACPI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct acpi_config {
    unsigned vcpus; /* local APIC ids 0 to vcpus - 1; 1 to 255 */
};

/*
 * Writes all tables into out as they will lie at guest-physical gpa (below
 * 4 GiB, a multiple of 64), the RSDP first. Returns the bytes used, 0 when
 * size is too small or the configuration cannot be. *rsdp: its address.
 */
size_t acpi_build(const struct acpi_config *config, uint8_t *out, size_t size, uint64_t gpa,
                  uint64_t *rsdp);

#endif
