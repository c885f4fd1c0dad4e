#include "device/hpet.h"

#include "device/pit.h"
#include "device/rtc.h"

enum { TIMERS = 3, HPET_SIZE = 0x400, TICK_NS = 10, WIRE_SOURCE = 8 };
enum {
    REG_ID = 0x000,
    REG_CONFIG = 0x010,
    REG_STATUS = 0x020,
    REG_COUNTER = 0x0f0,
    REG_TIMERS = 0x100,
    TIMER_STEP = 0x20,
    TIMER_CONFIG = 0x00,
    TIMER_COMPARATOR = 0x08,
};
enum { CONFIG_ENABLE = 1, CONFIG_LEGACY = 2 };
enum {
    LEVEL = 1 << 1,
    ENABLED = 1 << 2,
    PERIODIC = 1 << 3,
    CAN_PERIODIC = 1 << 4,
    CAN_64 = 1 << 5,
    SET_VALUE = 1 << 6,
    ONLY_32 = 1 << 8,
    ROUTE_SHIFT = 9,
    ROUTE = 31 << ROUTE_SHIFT,
    TIMER_WRITABLE = LEVEL | ENABLED | PERIODIC | SET_VALUE | ONLY_32 | ROUTE,
};
/* I/O APIC inputs that a timer may be routed to: 20 to 23. */
#define ROUTES UINT64_C(0x00f00000)
/* Period in femtoseconds; vendor; legacy replacement, 64 bits, timers - 1, revision. */
#define ID_REGISTER                                                                                \
    ((uint64_t)TICK_NS * 1000000 << 32 | UINT64_C(0x8086) << 16 | 1 << 15 | 1 << 13 |              \
     (TIMERS - 1) << 8 | 1)
/* Shorter periods tick this far apart: a bound on the loop's work. */
#define SHORTEST_NS UINT64_C(50000)

struct hpet;

struct hpet_timer {
    struct hpet *hpet;
    struct vm_timer *timer;
    struct irq_wire wire; /* where it is routed now */
    uint32_t config;
    uint64_t comparator;
    uint64_t period;
    uint64_t deadline; /* guest ns; UINT64_MAX: none */
};

struct hpet {
    struct device device;
    struct io_region *region;
    struct device *pit, *rtc;
    uint64_t config;
    uint64_t status;
    uint64_t counter; /* while halted; else its value at guest ns 0 */
    struct hpet_timer timers[TIMERS];
};

/* ---- The counter ---- */

static bool is_running(const struct hpet *hpet) {
    return hpet->config & CONFIG_ENABLE;
}

static uint64_t now_ns(const struct hpet *hpet) {
    return vm_clock_ns(hpet->device.platform->clock);
}

static uint64_t counter_at(const struct hpet *hpet, uint64_t ns) {
    return is_running(hpet) ? hpet->counter + ns / TICK_NS : hpet->counter;
}

/* ---- Timers ---- */

static unsigned index_of(const struct hpet_timer *timer) {
    return (unsigned)(timer - timer->hpet->timers);
}

static uint64_t width_mask(const struct hpet_timer *timer) {
    return timer->config & ONLY_32 ? UINT32_MAX : UINT64_MAX;
}

/* Legacy replacement wires timer 0 to IRQ 0 and timer 1 to IRQ 8. */
static unsigned route(const struct hpet_timer *timer) {
    unsigned index = index_of(timer);
    if ((timer->hpet->config & CONFIG_LEGACY) && index < 2)
        return index == 0 ? 0 : 8;
    return (timer->config & ROUTE) >> ROUTE_SHIFT;
}

static bool routed(const struct hpet_timer *timer) {
    bool legacy = (timer->hpet->config & CONFIG_LEGACY) && index_of(timer) < 2;
    return legacy || (ROUTES >> route(timer) & 1);
}

/* Level-triggered timers hold their line while their status bit is set. */
static void update_wire(struct hpet_timer *timer) {
    irq_wire_set(&timer->wire, false);
    timer->wire.gsi = (uint8_t)route(timer);
    bool level = (timer->config & (LEVEL | ENABLED)) == (LEVEL | ENABLED) &&
                 (timer->hpet->status >> index_of(timer) & 1);
    if (routed(timer) && level)
        irq_wire_set(&timer->wire, true);
}

static void raise_interrupt(struct hpet_timer *timer) {
    if (timer->config & LEVEL)
        timer->hpet->status |= UINT64_C(1) << index_of(timer);
    update_wire(timer);
    if ((timer->config & ENABLED) && !(timer->config & LEVEL) && routed(timer)) {
        irq_wire_set(&timer->wire, true);
        irq_wire_set(&timer->wire, false);
    }
}

static void arm(struct hpet_timer *timer, uint64_t now) {
    const struct hpet *hpet = timer->hpet;
    uint64_t left = (timer->comparator - counter_at(hpet, now)) & width_mask(timer);

    timer->deadline = UINT64_MAX;
    if (!is_running(hpet) || !(timer->config & ENABLED) || left > INT64_MAX / TICK_NS) {
        vm_timer_cancel(timer->timer);
        return;
    }
    if (left == 0) /* it matches now: the next time is a turn of the counter away */
        left = timer->config & ONLY_32 ? UINT64_C(1) << 32 : INT64_MAX / TICK_NS;
    timer->deadline = now - now % TICK_NS + left * TICK_NS;
    if ((timer->config & PERIODIC) && timer->deadline < now + SHORTEST_NS)
        timer->deadline = now + SHORTEST_NS;
    vm_timer_arm(timer->timer, timer->deadline);
}

/* The comparator moves on to the first multiple of the period that is yet to come: ticks that came
 * late become one. */
static void advance(struct hpet_timer *timer, uint64_t now) {
    uint64_t mask = width_mask(timer);
    uint64_t behind = (counter_at(timer->hpet, now) - timer->comparator) & mask;
    if (timer->period == 0 || behind > mask / 2)
        return;
    timer->comparator += (behind / timer->period + 1) * timer->period;
    timer->comparator &= mask;
}

static void expired(void *context) {
    struct hpet_timer *timer = context;
    struct hpet *hpet = timer->hpet;
    lock_take(&hpet->device.lock);
    uint64_t now = now_ns(hpet);
    if (now >= timer->deadline) {
        if (timer->config & PERIODIC)
            advance(timer, now);
        raise_interrupt(timer);
        arm(timer, now);
    }
    lock_release(&hpet->device.lock);
}

/* ---- Registers, 64 bits wide ---- */

static uint64_t timer_config(const struct hpet_timer *timer) {
    return ROUTES << 32 | CAN_PERIODIC | CAN_64 | timer->config;
}

static uint64_t read_register(const struct hpet *hpet, unsigned offset) {
    if (offset >= REG_TIMERS && offset < REG_TIMERS + TIMERS * TIMER_STEP) {
        const struct hpet_timer *timer = &hpet->timers[(offset - REG_TIMERS) / TIMER_STEP];
        switch (offset % TIMER_STEP) {
        case TIMER_CONFIG: return timer_config(timer);
        case TIMER_COMPARATOR: return timer->comparator;
        default: return 0;
        }
    }
    switch (offset) {
    case REG_ID: return ID_REGISTER;
    case REG_CONFIG: return hpet->config;
    case REG_STATUS: return hpet->status;
    case REG_COUNTER: return counter_at(hpet, now_ns(hpet));
    default: return 0;
    }
}

static void rearm_all(struct hpet *hpet, uint64_t now) {
    for (unsigned i = 0; i < TIMERS; i++) {
        update_wire(&hpet->timers[i]);
        arm(&hpet->timers[i], now);
    }
}

static void write_config(struct hpet *hpet, uint64_t value) {
    uint64_t now = now_ns(hpet);
    bool starts = !is_running(hpet) && (value & CONFIG_ENABLE);
    bool stops = is_running(hpet) && !(value & CONFIG_ENABLE);

    if (starts)
        hpet->counter -= now / TICK_NS;
    else if (stops)
        hpet->counter = counter_at(hpet, now);
    hpet->config = value & (CONFIG_ENABLE | CONFIG_LEGACY);
    rearm_all(hpet, now);
}

static void write_counter(struct hpet *hpet, uint64_t value) {
    uint64_t now = now_ns(hpet);
    hpet->counter = is_running(hpet) ? value - now / TICK_NS : value;
    rearm_all(hpet, now);
}

static void write_status(struct hpet *hpet, uint64_t value) {
    hpet->status &= ~value;
    for (unsigned i = 0; i < TIMERS; i++)
        update_wire(&hpet->timers[i]);
}

static void write_timer_config(struct hpet_timer *timer, uint64_t value) {
    timer->config = (uint32_t)value & TIMER_WRITABLE;
    if (!(timer->config & PERIODIC))
        timer->config &= ~SET_VALUE;
    timer->comparator &= width_mask(timer);
    timer->period &= width_mask(timer);
}

/* In periodic mode a write sets the period; the comparator itself only after SET_VALUE. */
static void write_comparator(struct hpet_timer *timer, uint64_t value) {
    value &= width_mask(timer);
    if (timer->config & PERIODIC)
        timer->period = value;
    if (!(timer->config & PERIODIC) || (timer->config & SET_VALUE))
        timer->comparator = value;
    timer->config &= ~SET_VALUE;
}

static void write_timer(struct hpet_timer *timer, unsigned offset, uint64_t value) {
    if (offset == TIMER_CONFIG)
        write_timer_config(timer, value);
    else if (offset == TIMER_COMPARATOR)
        write_comparator(timer, value);
    update_wire(timer);
    arm(timer, now_ns(timer->hpet));
}

static void write_register(struct hpet *hpet, unsigned offset, uint64_t value) {
    if (offset >= REG_TIMERS && offset < REG_TIMERS + TIMERS * TIMER_STEP) {
        write_timer(&hpet->timers[(offset - REG_TIMERS) / TIMER_STEP], offset % TIMER_STEP, value);
        return;
    }
    switch (offset) {
    case REG_CONFIG: write_config(hpet, value); break;
    case REG_STATUS: write_status(hpet, value); break;
    case REG_COUNTER: write_counter(hpet, value); break;
    default: break;
    }
}

static uint64_t hpet_read(void *context, uint64_t offset, unsigned size) {
    struct hpet *hpet = context;
    unsigned shift = 8 * (offset & 7);
    lock_take(&hpet->device.lock);
    uint64_t value = read_register(hpet, (unsigned)offset & ~7u);
    lock_release(&hpet->device.lock);
    return value >> shift & bytes_mask(size);
}

/* Half of a register: the other half is what it was. A periodic comparator's other half is zero,
 * since what reads back there is not what was last written. */
static uint64_t merge(const struct hpet *hpet, unsigned offset, uint64_t value, unsigned size) {
    unsigned reg = offset & ~7u, shift = 8 * (offset & 7);
    uint64_t mask = bytes_mask(size) << shift;
    bool comparator = reg >= REG_TIMERS && reg % TIMER_STEP == TIMER_COMPARATOR;
    uint64_t before = comparator && shift == 0 ? 0 : read_register(hpet, reg);
    /* Status bits are cleared by ones: the other half must not clear any. */
    if (reg == REG_STATUS)
        before = 0;
    return (before & ~mask) | (value << shift & mask);
}

static void hpet_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct hpet *hpet = context;
    if (size < 4 || offset % size)
        return; /* the specification asks for aligned words of 4 or 8 bytes */
    lock_take(&hpet->device.lock);
    uint64_t before = hpet->config;
    write_register(hpet, (unsigned)offset & ~7u, merge(hpet, (unsigned)offset, value, size));
    uint64_t changed = before ^ hpet->config;
    bool legacy = hpet->config & CONFIG_LEGACY;
    lock_release(&hpet->device.lock);

    if ((changed & CONFIG_LEGACY) && hpet->pit)
        pit_disconnect(hpet->pit, legacy);
    if ((changed & CONFIG_LEGACY) && hpet->rtc)
        rtc_disconnect(hpet->rtc, legacy);
}

static const struct io_ops hpet_ops = {hpet_read, hpet_write};

/* ---- Life ---- */

static const struct state_field timer_fields[] = {
    STATE_FIELD(struct hpet_timer, config, 1),
    STATE_FIELD(struct hpet_timer, comparator, 1, .reset = UINT64_MAX),
    STATE_FIELD(struct hpet_timer, period, 1),
};
static const struct state_table timer_state =
    STATE_TABLE("hpet timer", 1, struct hpet_timer, timer_fields);

static int after_load(void *object, struct error *err) {
    struct hpet *hpet = object;
    (void)err;
    rearm_all(hpet, now_ns(hpet));
    return 0;
}

static const struct state_field hpet_fields[] = {
    STATE_FIELD(struct hpet, config, 1),
    STATE_FIELD(struct hpet, status, 1),
    STATE_FIELD(struct hpet, counter, 1),
    STATE_NESTED_ARRAY(struct hpet, timers, &timer_state, 1),
};
static const struct state_table hpet_state =
    STATE_TABLE("hpet", 1, struct hpet, hpet_fields, .after_load = after_load);

static void hpet_reset(struct device *device) {
    struct hpet *hpet = (struct hpet *)device;
    lock_take(&device->lock);
    rearm_all(hpet, now_ns(hpet));
    lock_release(&device->lock);
}

static void hpet_destroy(struct device *device) {
    struct hpet *hpet = (struct hpet *)device;
    if (hpet->region)
        memory_remove_io(hpet->region);
    for (unsigned i = 0; i < TIMERS; i++)
        if (hpet->timers[i].timer)
            vm_timer_free(hpet->timers[i].timer);
}

static int hpet_init(struct device *device, const void *config_, struct error *err) {
    struct hpet *hpet = (struct hpet *)device;
    const struct hpet_config *config = config_;
    struct platform *platform = device->platform;
    int rc = 0;

    hpet->pit = config->pit;
    hpet->rtc = config->rtc;
    for (unsigned i = 0; rc == 0 && i < TIMERS; i++) {
        struct hpet_timer *timer = &hpet->timers[i];
        timer->hpet = hpet;
        timer->deadline = UINT64_MAX;
        timer->wire = (struct irq_wire){.chip = platform->irqchip,
                                        .gsi = (uint8_t)route(timer),
                                        .source = (uint8_t)(WIRE_SOURCE + i)};
        rc = vm_timer_create(platform->clock, platform->loop, expired, timer, &timer->timer, err);
    }
    if (rc == 0)
        rc = memory_add_io(platform->memory, device->name, config->base, HPET_SIZE, &hpet_ops, hpet,
                           &hpet->region, err);
    if (rc < 0)
        hpet_destroy(device);
    return rc;
}

const struct device_class hpet_class = {
    .name = "hpet",
    .size = sizeof(struct hpet),
    .state = &hpet_state,
    .init = hpet_init,
    .reset = hpet_reset,
    .destroy = hpet_destroy,
};
