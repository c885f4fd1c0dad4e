#include "device/watchdog.h"

enum { COUNT_DEFAULT = 300 };
#define TICK_NS (WATCHDOG_TICK_MS * UINT64_C(1000000))

struct watchdog {
    struct device device;
    struct port_range *ports;
    struct vm_timer *timer;
    uint32_t count;   /* ticks from a reset to the end */
    uint64_t started; /* guest time of the last reset; while it runs */
    bool running;
    bool fired;
};

static uint64_t deadline(const struct watchdog *watchdog) {
    return watchdog->started + watchdog->count * TICK_NS;
}

static void arm(struct watchdog *watchdog) {
    if (watchdog->running)
        vm_timer_arm(watchdog->timer, deadline(watchdog));
    else
        vm_timer_cancel(watchdog->timer);
}

static void start_anew(struct watchdog *watchdog) {
    watchdog->started = vm_clock_ns(watchdog->device.platform->clock);
    arm(watchdog);
}

/* It fires once: the guest, if it lives on, has to start it again. */
static void on_timer(void *context) {
    struct watchdog *watchdog = context;
    struct platform *platform = watchdog->device.platform;
    lock_take(&watchdog->device.lock);
    bool over = watchdog->running && vm_clock_ns(platform->clock) >= deadline(watchdog);
    if (over) {
        watchdog->running = false;
        watchdog->fired = true;
    }
    lock_release(&watchdog->device.lock);
    if (over)
        platform->request(platform, PLATFORM_WATCHDOG);
}

/* ---- Registers ---- */

static uint32_t ticks_left(const struct watchdog *watchdog) {
    uint64_t now = vm_clock_ns(watchdog->device.platform->clock);
    if (!watchdog->running)
        return watchdog->count;
    return now < deadline(watchdog) ? (uint32_t)((deadline(watchdog) - now) / TICK_NS) : 0;
}

static uint64_t watchdog_read(void *context, uint64_t offset, unsigned size) {
    struct watchdog *watchdog = context;
    if (size != 4)
        return bytes_mask(size);
    lock_take(&watchdog->device.lock);
    uint32_t value = offset == WATCHDOG_COUNT     ? ticks_left(watchdog)
                     : offset == WATCHDOG_CONTROL ? watchdog->running
                     : offset == WATCHDOG_STATUS  ? watchdog->fired
                                                  : 0;
    lock_release(&watchdog->device.lock);
    return value;
}

static void write_register(struct watchdog *watchdog, unsigned offset, uint32_t value) {
    switch (offset) {
    case WATCHDOG_COUNT:
        value &= WATCHDOG_COUNT_MAX;
        watchdog->count = value != 0 ? value : 1;
        arm(watchdog);
        break;
    case WATCHDOG_CONTROL:
        watchdog->running = value & 1;
        start_anew(watchdog);
        break;
    case WATCHDOG_RESET: start_anew(watchdog); break;
    case WATCHDOG_STATUS: watchdog->fired = watchdog->fired && !(value & 1); break;
    default: break;
    }
}

static void watchdog_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct watchdog *watchdog = context;
    if (size != 4)
        return;
    lock_take(&watchdog->device.lock);
    write_register(watchdog, (unsigned)offset, (uint32_t)value);
    lock_release(&watchdog->device.lock);
}

static const struct io_ops watchdog_ops = {watchdog_read, watchdog_write};

/* ---- Life ---- */

static int after_load(void *object, struct error *err) {
    struct watchdog *watchdog = object;
    if (watchdog->count == 0 || watchdog->count > WATCHDOG_COUNT_MAX)
        return error_set(err, -EINVAL, "the watchdog's count of %u cannot be",
                         (unsigned)watchdog->count);
    arm(watchdog);
    return 0;
}

static const struct state_field watchdog_fields[] = {
    STATE_FIELD(struct watchdog, count, 1, .reset = COUNT_DEFAULT),
    STATE_FIELD(struct watchdog, started, 1),
    STATE_FIELD(struct watchdog, running, 1),
    STATE_FIELD(struct watchdog, fired, 1, .keep = true),
};
static const struct state_table watchdog_state =
    STATE_TABLE("watchdog", 1, struct watchdog, watchdog_fields, .after_load = after_load);

static void watchdog_reset(struct device *device) {
    vm_timer_cancel(((struct watchdog *)device)->timer);
}

static int watchdog_init(struct device *device, const void *config_, struct error *err) {
    struct watchdog *watchdog = (struct watchdog *)device;
    const struct watchdog_config *config = config_;
    struct platform *platform = device->platform;
    int rc =
        vm_timer_create(platform->clock, platform->loop, on_timer, watchdog, &watchdog->timer, err);
    if (rc < 0)
        return rc;
    rc = ports_add(platform->ports, device->name, config->base, WATCHDOG_PORTS, &watchdog_ops,
                   watchdog, &watchdog->ports, err);
    if (rc < 0)
        vm_timer_free(watchdog->timer);
    return rc;
}

static void watchdog_destroy(struct device *device) {
    struct watchdog *watchdog = (struct watchdog *)device;
    ports_remove(watchdog->ports);
    vm_timer_free(watchdog->timer);
}

const struct device_class watchdog_class = {
    .name = "watchdog",
    .size = sizeof(struct watchdog),
    .state = &watchdog_state,
    .init = watchdog_init,
    .reset = watchdog_reset,
    .destroy = watchdog_destroy,
};
