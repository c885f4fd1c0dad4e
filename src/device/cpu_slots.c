#include "device/cpu_slots.h"

#include <stdatomic.h>

struct cpu_slots {
    struct device device;
    struct port_range *ports;
    _Atomic(uint8_t) plugged;
};

static uint64_t cpu_slots_read(void *context, uint64_t offset, unsigned size) {
    struct cpu_slots *slots = context;
    (void)offset, (void)size;
    return atomic_load(&slots->plugged);
}

static void cpu_slots_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    (void)context, (void)offset, (void)value, (void)size;
}

static const struct io_ops cpu_slots_ops = {cpu_slots_read, cpu_slots_write};

void cpu_slots_plug(struct device *device, uint8_t plugged) {
    atomic_store(&((struct cpu_slots *)device)->plugged, plugged);
}

static const struct state_field cpu_slots_fields[] = {
    STATE_FIELD(struct cpu_slots, plugged, 1, .keep = true),
};
static const struct state_table cpu_slots_state =
    STATE_TABLE("cpu slots", 1, struct cpu_slots, cpu_slots_fields);

static int cpu_slots_init(struct device *device, const void *config_, struct error *err) {
    struct cpu_slots *slots = (struct cpu_slots *)device;
    const struct cpu_slots_config *config = config_;
    atomic_store(&slots->plugged, config->plugged);
    return ports_add(device->platform->ports, device->name, config->port, 1, &cpu_slots_ops, slots,
                     &slots->ports, err);
}

static void cpu_slots_destroy(struct device *device) {
    ports_remove(((struct cpu_slots *)device)->ports);
}

const struct device_class cpu_slots_class = {
    .name = "cpu-slots",
    .size = sizeof(struct cpu_slots),
    .state = &cpu_slots_state,
    .later = true,
    .init = cpu_slots_init,
    .destroy = cpu_slots_destroy,
};
