/* The processors' _CST (ACPI 6.4, 8.4.2.1), made of what the registers of device/idle_states.h tell
 * at the time. */
#ifndef LODGE_MACHINE_ACPI_IDLE_H
#define LODGE_MACHINE_ACPI_IDLE_H

#include "machine/acpi.h"
#include "machine/aml.h"

/* In \_SB, before the processors: the method that makes it. */
void acpi_idle_method(struct aml *aml);
/* In a processor's device. */
void acpi_idle_processor(struct aml *aml, unsigned id);
/* In \_GPE: the processors are notified that it has changed. names: of their devices in \_SB. */
void acpi_idle_event(struct aml *aml, unsigned processors, void (*name)(unsigned id, char name[8]));

#endif
