/* The DSDT's contents: the devices that an operating system cannot find by itself. */
#ifndef LODGE_MACHINE_ACPI_DSDT_H
#define LODGE_MACHINE_ACPI_DSDT_H

#include "machine/acpi.h"
#include "machine/aml.h"

void acpi_dsdt(struct aml *aml, const struct acpi_config *config);

#endif
