/*
 * SMBIOS tables (DMTF DSP0134, version 3.2, with its 64-bit entry point):
 * firmware, system, chassis, processor and memory, as dmidecode and
 * /sys/class/dmi show them.
 */
#ifndef LODGE_MACHINE_SMBIOS_H
#define LODGE_MACHINE_SMBIOS_H

#include <stddef.h>
#include <stdint.h>

struct smbios_config {
    unsigned vcpus;                      /* cores of the one processor that are enabled */
    unsigned vcpus_max;                  /* cores that it has; 0: no more than those */
    uint64_t ram_below_4g, ram_above_4g; /* bytes, where layout.h has them */
};

enum { SMBIOS_ANCHOR_SIZE = 24 };

/* Writes the structures. Returns their length, 0 when size is too small. */
size_t smbios_build(const struct smbios_config *config, uint8_t *out, size_t size);

/* The entry point for structures that lie at gpa. It goes to a multiple of 16 from F0000h on. */
void smbios_anchor(uint64_t gpa, size_t length, uint8_t anchor[SMBIOS_ANCHOR_SIZE]);

#endif
