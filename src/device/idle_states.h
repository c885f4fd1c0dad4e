/*
 * The host's idle states, as a table that the guest's ACPI _CST is made of (machine/acpi_idle.c),
 * and the ports that enter them. The first state is HLT. An access to another's port has the vCPU
 * wait until an interrupt is there for it, masked or not, woken up to the state's latency late: the
 * host may put its timers together.
 *
 * The gate: when the table is another one (the guest has been moved, or is told so), a processor
 * that has not read it since enters no state but the first one, whichever port it reads.
 *
 * Registers (32 bits, offsets from the base):
 *
 *     0   read: how many states there are, which begins a look at the table; write: of which one
 *         the next two tell
 *     4   latency in us      8   power in mW, 0: unknown
 *     12  write: this processor has read the table
 *     16 + n   read, 8 bits: enters state n
 */
#ifndef LODGE_DEVICE_IDLE_STATES_H
#define LODGE_DEVICE_IDLE_STATES_H

#include "device/device.h"

enum {
    IDLE_STATES_MAX = 7, /* Linux's ACPI_PROCESSOR_MAX_POWER - 1 */
    IDLE_STATES_CPUS = 64,
    IDLE_STATES_COUNT = 0,
    IDLE_STATES_LATENCY = 4,
    IDLE_STATES_POWER = 8,
    IDLE_STATES_DONE = 12,
    IDLE_STATES_ENTER = 16,
    IDLE_STATES_PORTS = IDLE_STATES_ENTER + IDLE_STATES_MAX,
    IDLE_STATES_NAME = 16,
};

struct idle_state {
    char name[IDLE_STATES_NAME]; /* ends with 0 */
    uint32_t latency_us, power_mw;
};

struct idle_table {
    uint32_t count; /* 1 to IDLE_STATES_MAX */
    struct idle_state states[IDLE_STATES_MAX];
};

struct idle_states_config {
    uint16_t port;
    struct idle_table table;
};

extern const struct device_class idle_states_class;

/* True: it differs from what the guest was shown; the general-purpose event is the caller's. */
bool idle_states_set(struct device *device, const struct idle_table *table);

struct idle_states_report {
    struct idle_table table;
    uint64_t entries[IDLE_STATES_MAX]; /* by ports, so none of the first; of this process */
    uint64_t gated;                    /* those that found the gate closed */
    uint32_t changes;                  /* how often the table has changed */
    bool read[IDLE_STATES_CPUS];       /* this processor has read it as it is */
};
void idle_states_look(struct device *device, struct idle_states_report *report);

#endif
