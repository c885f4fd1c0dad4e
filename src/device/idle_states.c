#include "device/idle_states.h"

#include <string.h>

#include "cpu/cpu.h"

struct idle_states {
    struct device device;
    struct port_range *ports;
    struct idle_table table;
    uint32_t changes;
    uint32_t reading;  /* the change that the look at the table has begun with, */
    uint32_t selected; /* the state that it tells of */
    uint32_t
        read[IDLE_STATES_CPUS]; /* the change since when a processor has read it, + 1; 0: not */
    uint64_t entries[IDLE_STATES_MAX], gated;
};

static bool has_read(const struct idle_states *idle, unsigned cpu) {
    return cpu < IDLE_STATES_CPUS && idle->read[cpu] == idle->changes + 1;
}

/* ---- Registers ---- */

static void enter(struct idle_states *idle, unsigned state) {
    struct platform *platform = idle->device.platform;
    unsigned cpu;
    struct vcpu *vcpu = platform->vcpu != NULL ? platform->vcpu(platform, &cpu) : NULL;
    uint32_t latency = 0;
    if (vcpu == NULL)
        return;
    lock_take(&idle->device.lock);
    if (!has_read(idle, cpu)) {
        idle->gated++;
    } else if (state < idle->table.count) {
        idle->entries[state]++;
        latency = idle->table.states[state].latency_us;
    }
    lock_release(&idle->device.lock);
    vcpu_rest(vcpu, latency * UINT64_C(1000));
}

static uint32_t read_register(struct idle_states *idle, uint64_t offset) {
    const struct idle_state *state =
        idle->selected < idle->table.count && idle->selected < IDLE_STATES_MAX
            ? &idle->table.states[idle->selected]
            : NULL;
    switch (offset) {
    case IDLE_STATES_COUNT: idle->reading = idle->changes; return idle->table.count;
    case IDLE_STATES_LATENCY: return state != NULL ? state->latency_us : 0;
    case IDLE_STATES_POWER: return state != NULL ? state->power_mw : 0;
    default: return 0;
    }
}

static uint64_t idle_read(void *context, uint64_t offset, unsigned size) {
    struct idle_states *idle = context;
    if (offset >= IDLE_STATES_ENTER) {
        enter(idle, (unsigned)offset - IDLE_STATES_ENTER);
        return 0;
    }
    lock_take(&idle->device.lock);
    uint32_t value = read_register(idle, offset);
    lock_release(&idle->device.lock);
    return size < 4 ? value & ((UINT64_C(1) << 8 * size) - 1) : value;
}

static void idle_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct idle_states *idle = context;
    (void)size;
    lock_take(&idle->device.lock);
    if (offset == IDLE_STATES_COUNT)
        idle->selected = (uint32_t)value;
    else if (offset == IDLE_STATES_DONE && value < IDLE_STATES_CPUS)
        idle->read[value] = idle->reading + 1;
    lock_release(&idle->device.lock);
}

static const struct io_ops idle_ops = {idle_read, idle_write};

/* ---- The machine's side ---- */

static bool is_same(const struct idle_table *a, const struct idle_table *b) {
    bool same = a->count == b->count;
    for (uint32_t i = 0; i < a->count && same; i++)
        same = a->states[i].latency_us == b->states[i].latency_us &&
               a->states[i].power_mw == b->states[i].power_mw;
    return same;
}

bool idle_states_set(struct device *device, const struct idle_table *table) {
    struct idle_states *idle = (struct idle_states *)device;
    lock_take(&device->lock);
    bool changes = !is_same(&idle->table, table);
    idle->table = *table;
    idle->changes += changes;
    lock_release(&device->lock);
    return changes;
}

void idle_states_look(struct device *device, struct idle_states_report *report) {
    const struct idle_states *idle = (struct idle_states *)device;
    lock_take(&device->lock);
    *report = (struct idle_states_report){
        .table = idle->table, .gated = idle->gated, .changes = idle->changes};
    memcpy(report->entries, idle->entries, sizeof report->entries);
    for (unsigned cpu = 0; cpu < IDLE_STATES_CPUS; cpu++)
        report->read[cpu] = has_read(idle, cpu);
    lock_release(&device->lock);
}

/* ---- Life ---- */

static const struct state_field state_fields[] = {
    STATE_ARRAY(struct idle_state, name, 1, .keep = true),
    STATE_FIELD(struct idle_state, latency_us, 1, .keep = true),
    STATE_FIELD(struct idle_state, power_mw, 1, .keep = true),
};
static const struct state_table state_state =
    STATE_TABLE("idle state", 1, struct idle_state, state_fields);

static const struct state_field table_fields[] = {
    STATE_FIELD(struct idle_table, count, 1, .keep = true),
    STATE_NESTED_ARRAY(struct idle_table, states, &state_state, 1),
};
static const struct state_table table_state =
    STATE_TABLE("idle table", 1, struct idle_table, table_fields);

/* What the guest was shown, and who has read it. */
static const struct state_field idle_fields[] = {
    STATE_NESTED(struct idle_states, table, &table_state, 1),
    STATE_FIELD(struct idle_states, changes, 1, .keep = true),
    STATE_FIELD(struct idle_states, reading, 1),
    STATE_FIELD(struct idle_states, selected, 1),
    STATE_ARRAY(struct idle_states, read, 1),
};

static int after_load(void *object, struct error *err) {
    struct idle_states *idle = object;
    bool good = idle->table.count >= 1 && idle->table.count <= IDLE_STATES_MAX;
    for (unsigned i = 0; i < IDLE_STATES_MAX; i++)
        good &= idle->table.states[i].name[IDLE_STATES_NAME - 1] == 0;
    if (good)
        return 0;
    idle->table.count = 1;
    return error_set(err, -EINVAL, "no table of idle states");
}

static const struct state_table idle_state =
    STATE_TABLE("idle states", 1, struct idle_states, idle_fields, .after_load = after_load);

static int idle_init(struct device *device, const void *config_, struct error *err) {
    struct idle_states *idle = (struct idle_states *)device;
    const struct idle_states_config *config = config_;
    idle->table = config->table;
    return ports_add(device->platform->ports, device->name, config->port, IDLE_STATES_PORTS,
                     &idle_ops, idle, &idle->ports, err);
}

static void idle_destroy(struct device *device) {
    ports_remove(((struct idle_states *)device)->ports);
}

const struct device_class idle_states_class = {
    .name = "idle-states",
    .size = sizeof(struct idle_states),
    .state = &idle_state,
    .init = idle_init,
    .destroy = idle_destroy,
};
