/*
 * ACPI tables of a machine: RSDP, XSDT, FADT (revision 6), FACS, DSDT, MADT,
 * MCFG, HPET, WDAT, and SRAT where memory may be plugged in. Addresses come from layout.h; the
 * DSDT's bytecode is emitted by aml.h. Sources: ACPI 6.4; PCI Firmware Specification 3.0 for MCFG;
 * IA-PC HPET specification 1.0a.
 */
#ifndef LODGE_MACHINE_ACPI_H
#define LODGE_MACHINE_ACPI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct acpi_config {
    unsigned vcpus;      /* local APIC ids 0 to vcpus - 1; 1 to 255 */
    unsigned vcpus_max;  /* with those that may come later (device/cpu_slots.h); 0: none may */
    bool idle_states;    /* processors have _CST (device/idle_states.h) */
    bool firmware;       /* firmware places the BARs, */
    uint64_t memory_end; /* above this if it does so above 4 GiB */
    uint64_t ram_below_4g, ram_above_4g;
    uint64_t plug_base, plug_size; /* where memory may be plugged in; size 0: nowhere */
};

/*
 * Writes all tables into out as they will lie at guest-physical gpa (below
 * 4 GiB, a multiple of 64), the RSDP first. Returns the bytes used, 0 when
 * size is too small or the configuration cannot be. *rsdp: its address.
 */
size_t acpi_build(const struct acpi_config *config, uint8_t *out, size_t size, uint64_t gpa,
                  uint64_t *rsdp);

/*
 * The same tables for firmware that places them itself: pointers hold offsets
 * in the buffer, to which the address that it gets is to be added, checksums
 * are 0 and still to be made. The RSDP is apart: its pointer of 8 bytes at
 * ACPI_RSDP_XSDT, its checksums over its first 20 bytes (at 8) and all (at 32).
 * Returns the bytes used, 0 as above.
 */
enum { ACPI_RSDP_SIZE = 36, ACPI_RSDP_XSDT = 24, ACPI_LINKS_MAX = 32 };

struct acpi_pointer {
    uint32_t at;
    uint8_t size; /* 4 or 8 */
};

struct acpi_sum {
    uint32_t start, length, at;
};

struct acpi_links {
    struct acpi_pointer pointers[ACPI_LINKS_MAX];
    struct acpi_sum sums[ACPI_LINKS_MAX];
    unsigned pointer_count, sum_count;
};

size_t acpi_build_linked(const struct acpi_config *config, uint8_t *out, size_t size,
                         uint8_t rsdp[ACPI_RSDP_SIZE], struct acpi_links *links);

#endif
