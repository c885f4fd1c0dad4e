#include "device/pit.h"

#include "memory/bytewise.h"

enum { CHANNELS = 3, PIT_PORT = 0x40, PIT_PORTS = 4, CONTROL_B_PORT = 0x61 };
enum { ACCESS_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_WORD };
enum { SELECT_READ_BACK = 3, BACK_NO_COUNT = 0x20, BACK_NO_STATUS = 0x10 };
enum { CONTROL_GATE = 1, CONTROL_SPEAKER = 2, CONTROL_REFRESH = 0x10, CONTROL_OUTPUT = 0x20 };
enum { REFRESH_NS = 15085 };
#define PIT_HZ UINT64_C(1193182)
/* A guest that programs a shorter period gets ticks this far apart: a bound on the loop's work. */
#define SHORTEST_NS UINT64_C(50000)

struct channel {
    uint32_t reload; /* the counting element's start: 1 to 65536 (10000 in BCD) */
    uint64_t start;  /* guest ns at which it was loaded or triggered */
    uint64_t held;   /* ticks counted before the gate closed; while it is closed */
    uint16_t latch;
    uint8_t mode; /* 0 to 5 */
    uint8_t bcd;
    uint8_t access; /* ACCESS_* */
    uint8_t gate;
    uint8_t loaded;                /* a count was written since the mode was */
    uint8_t low_byte;              /* written, waits for the high one */
    uint8_t write_high, read_high; /* which byte of a word is next */
    uint8_t latched;               /* bytes of the latch still to read */
    uint8_t status, status_latched;
    uint8_t triggered; /* modes 1 and 5: the gate has risen */
};

struct pit {
    struct device device;
    struct port_range *ports, *control_b;
    struct vm_timer *timer;
    struct channel channel[CHANNELS];
    uint8_t speaker;      /* port 61h bit 1 */
    uint8_t disconnected; /* by the HPET */
    uint64_t deadline;    /* of channel 0's next edge; UINT64_MAX: none */
};

static uint64_t now(const struct pit *pit) {
    return vm_clock_ns(pit->device.platform->clock);
}

static uint64_t ns_to_ticks(uint64_t ns) {
    return (uint64_t)((unsigned __int128)ns * PIT_HZ / NS_PER_SECOND);
}

/* Rounded up: at that time the tick has come. */
static uint64_t ticks_to_ns(uint64_t ticks) {
    return (uint64_t)(((unsigned __int128)ticks * NS_PER_SECOND + PIT_HZ - 1) / PIT_HZ);
}

/* ---- A channel's count and output, as functions of time ---- */

static bool is_periodic(const struct channel *channel) {
    return channel->mode == 2 || channel->mode == 3;
}

static bool needs_trigger(const struct channel *channel) {
    return channel->mode == 1 || channel->mode == 5;
}

static bool counts(const struct channel *channel) {
    if (!channel->loaded)
        return false;
    return needs_trigger(channel) ? channel->triggered : channel->gate;
}

static uint64_t elapsed(const struct channel *channel, uint64_t at) {
    if (!counts(channel))
        return channel->held;
    return ns_to_ticks(at - channel->start);
}

static uint16_t to_bcd(uint32_t value) {
    return (uint16_t)(value % 10 | value / 10 % 10 << 4 | value / 100 % 10 << 8 |
                      value / 1000 % 10 << 12);
}

static uint16_t count(const struct channel *channel, uint64_t at) {
    uint64_t ticks = elapsed(channel, at);
    uint32_t base = channel->bcd ? 10000 : 65536;
    uint64_t left;

    if (channel->mode == 3)
        left = channel->reload - 2 * ticks % channel->reload;
    else if (channel->mode == 2)
        left = channel->reload - ticks % channel->reload;
    else
        left = (channel->reload + base - ticks % base) % base;
    return channel->bcd ? to_bcd((uint32_t)left % base) : (uint16_t)left;
}

static bool output(const struct channel *channel, uint64_t at) {
    uint64_t ticks = elapsed(channel, at);
    uint32_t reload = channel->reload;
    switch (channel->mode) {
    case 0: return channel->loaded && ticks >= reload;
    case 1: return !channel->triggered || ticks >= reload;
    case 2: return !channel->gate || ticks % reload != reload - 1;
    case 3: return !channel->gate || ticks % reload < (reload + 1) / 2;
    default: return ticks != reload;
    }
}

/* ---- Channel 0's interrupt ---- */

/* When the output next rises after `at`; UINT64_MAX: not again. */
static uint64_t next_edge(const struct channel *channel, uint64_t at) {
    uint64_t ticks = elapsed(channel, at);
    if (!counts(channel))
        return UINT64_MAX;
    if (is_periodic(channel))
        ticks = ticks - ticks % channel->reload + channel->reload;
    else if (ticks < channel->reload)
        ticks = channel->reload;
    else
        return UINT64_MAX;
    return channel->start + ticks_to_ns(ticks);
}

static void set_irq(struct pit *pit, bool level) {
    if (!pit->disconnected)
        irq_set(pit->device.platform->irqchip, 0, level);
}

static void arm(struct pit *pit, uint64_t at) {
    pit->deadline = next_edge(&pit->channel[0], at);
    if (pit->deadline == UINT64_MAX) {
        vm_timer_cancel(pit->timer);
        return;
    }
    if (pit->deadline < at + SHORTEST_NS)
        pit->deadline = at + SHORTEST_NS;
    vm_timer_arm(pit->timer, pit->deadline);
}

/* Ticks that came late become one. */
static void tick(void *context) {
    struct pit *pit = context;
    lock_take(&pit->device.lock);
    uint64_t at = now(pit);
    if (at >= pit->deadline) {
        set_irq(pit, false);
        set_irq(pit, true);
        arm(pit, at);
    }
    lock_release(&pit->device.lock);
}

void pit_disconnect(struct device *device, bool disconnected) {
    struct pit *pit = (struct pit *)device;
    lock_take(&device->lock);
    set_irq(pit, false);
    pit->disconnected = disconnected;
    lock_release(&device->lock);
}

/* ---- Counter ports ---- */

static void changed(struct pit *pit, unsigned index, uint64_t at) {
    if (index != 0)
        return;
    set_irq(pit, output(&pit->channel[0], at));
    arm(pit, at);
}

static void load(struct pit *pit, unsigned index, uint32_t value) {
    struct channel *channel = &pit->channel[index];
    uint32_t base = channel->bcd ? 10000 : 65536;
    if (channel->bcd)
        value = (value & 15) + (value >> 4 & 15) * 10 + (value >> 8 & 15) * 100 +
                (value >> 12 & 15) * 1000;
    channel->reload = value % base ? value % base : base;
    channel->start = now(pit);
    channel->held = 0;
    channel->loaded = true;
    channel->triggered = false;
    changed(pit, index, channel->start);
}

static void write_counter(struct pit *pit, unsigned index, uint8_t value) {
    struct channel *channel = &pit->channel[index];
    switch (channel->access) {
    case ACCESS_LOW: load(pit, index, value); break;
    case ACCESS_HIGH: load(pit, index, (uint32_t)value << 8); break;
    default:
        if (channel->write_high) {
            load(pit, index, channel->low_byte | (uint32_t)value << 8);
        } else {
            channel->low_byte = value;
            if (channel->mode == 0) /* the first byte stops the count */
                channel->loaded = false;
        }
        channel->write_high = !channel->write_high;
        break;
    }
}

static uint8_t read_latch(struct channel *channel) {
    bool high = channel->access == ACCESS_HIGH;
    if (channel->access == ACCESS_WORD)
        high = channel->latched == 1;
    channel->latched--;
    return high ? channel->latch >> 8 : (uint8_t)channel->latch;
}

static uint8_t read_counter(struct pit *pit, unsigned index) {
    struct channel *channel = &pit->channel[index];
    if (channel->status_latched) {
        channel->status_latched = false;
        return channel->status;
    }
    if (channel->latched)
        return read_latch(channel);
    uint16_t value = count(channel, now(pit));
    bool high = channel->access == ACCESS_HIGH;
    if (channel->access == ACCESS_WORD) {
        high = channel->read_high;
        channel->read_high = !channel->read_high;
    }
    return high ? value >> 8 : (uint8_t)value;
}

/* ---- The control word ---- */

static void latch_count(struct pit *pit, struct channel *channel) {
    if (channel->latched)
        return;
    channel->latch = count(channel, now(pit));
    channel->latched = channel->access == ACCESS_WORD ? 2 : 1;
}

static void latch_status(struct pit *pit, struct channel *channel) {
    if (channel->status_latched)
        return;
    channel->status = (output(channel, now(pit)) ? 0x80 : 0) | (channel->loaded ? 0 : 0x40) |
                      channel->access << 4 | channel->mode << 1 | channel->bcd;
    channel->status_latched = true;
}

static void read_back(struct pit *pit, uint8_t value) {
    for (unsigned i = 0; i < CHANNELS; i++) {
        if (!(value & (2 << i)))
            continue;
        if (!(value & BACK_NO_COUNT))
            latch_count(pit, &pit->channel[i]);
        if (!(value & BACK_NO_STATUS))
            latch_status(pit, &pit->channel[i]);
    }
}

static void set_mode(struct pit *pit, unsigned index, uint8_t value) {
    struct channel *channel = &pit->channel[index];
    channel->access = value >> 4 & 3;
    channel->mode = value >> 1 & 7;
    if (channel->mode > 5)
        channel->mode -= 4; /* 6 and 7 are 2 and 3 */
    channel->bcd = value & 1;
    channel->loaded = false;
    channel->triggered = false;
    channel->held = 0;
    channel->write_high = channel->read_high = false;
    channel->latched = 0;
    channel->status_latched = false;
    changed(pit, index, now(pit));
}

static void write_control(struct pit *pit, uint8_t value) {
    unsigned index = value >> 6;
    if (index == SELECT_READ_BACK)
        read_back(pit, value);
    else if ((value >> 4 & 3) == ACCESS_LATCH)
        latch_count(pit, &pit->channel[index]);
    else
        set_mode(pit, index, value);
}

static uint8_t read_byte(void *context, unsigned offset) {
    struct pit *pit = context;
    if (offset >= CHANNELS)
        return 0xff;
    lock_take(&pit->device.lock);
    uint8_t value = read_counter(pit, offset);
    lock_release(&pit->device.lock);
    return value;
}

static void write_byte(void *context, unsigned offset, uint8_t value) {
    struct pit *pit = context;
    lock_take(&pit->device.lock);
    if (offset < CHANNELS)
        write_counter(pit, offset, value);
    else
        write_control(pit, value);
    lock_release(&pit->device.lock);
}

/* ---- System control port B: channel 2's gate and output ---- */

static void set_gate(struct pit *pit, struct channel *channel, bool gate) {
    if (gate == channel->gate)
        return;
    uint64_t at = now(pit);
    uint64_t ticks = elapsed(channel, at);
    channel->gate = gate;
    if (gate && (needs_trigger(channel) || is_periodic(channel))) {
        channel->start = at;
        channel->triggered = true;
    } else if (gate) {
        channel->start = at - ticks_to_ns(ticks);
    } else if (!needs_trigger(channel)) {
        channel->held = is_periodic(channel) ? 0 : ticks;
    }
}

static uint8_t read_control_b(void *context, unsigned offset) {
    struct pit *pit = context;
    (void)offset;
    lock_take(&pit->device.lock);
    uint64_t at = now(pit);
    uint8_t value = (pit->channel[2].gate ? CONTROL_GATE : 0) |
                    (pit->speaker ? CONTROL_SPEAKER : 0) |
                    (at / REFRESH_NS & 1 ? CONTROL_REFRESH : 0) |
                    (output(&pit->channel[2], at) ? CONTROL_OUTPUT : 0);
    lock_release(&pit->device.lock);
    return value;
}

static void write_control_b(void *context, unsigned offset, uint8_t value) {
    struct pit *pit = context;
    (void)offset;
    lock_take(&pit->device.lock);
    set_gate(pit, &pit->channel[2], value & CONTROL_GATE);
    pit->speaker = (value & CONTROL_SPEAKER) != 0;
    lock_release(&pit->device.lock);
}

static uint64_t port_ops_read(void *context, uint64_t offset, unsigned size) {
    return bytewise_read(read_byte, context, offset, size);
}

static void port_ops_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    bytewise_write(write_byte, context, offset, value, size);
}

static uint64_t control_b_read(void *context, uint64_t offset, unsigned size) {
    return bytewise_read(read_control_b, context, offset, size);
}

static void control_b_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    bytewise_write(write_control_b, context, offset, value, size);
}

static const struct io_ops pit_ops = {port_ops_read, port_ops_write};
static const struct io_ops control_b_ops = {control_b_read, control_b_write};

/* ---- Life ---- */

static int channel_after_load(void *object, struct error *err) {
    const struct channel *channel = object;
    bool sane = channel->reload >= 1 && channel->reload <= 65536 && channel->mode <= 5 &&
                channel->access <= ACCESS_WORD && channel->latched <= 2;
    return sane ? 0 : error_set(err, -EINVAL, "i8254: a channel in a state that cannot be");
}

static const struct state_field channel_fields[] = {
    STATE_FIELD(struct channel, reload, 1, .reset = 65536),
    STATE_FIELD(struct channel, start, 1),
    STATE_FIELD(struct channel, held, 1),
    STATE_FIELD(struct channel, latch, 1),
    STATE_FIELD(struct channel, mode, 1),
    STATE_FIELD(struct channel, bcd, 1),
    STATE_FIELD(struct channel, access, 1, .reset = ACCESS_WORD),
    STATE_FIELD(struct channel, gate, 1, .reset = 1),
    STATE_FIELD(struct channel, loaded, 1),
    STATE_FIELD(struct channel, low_byte, 1),
    STATE_FIELD(struct channel, write_high, 1),
    STATE_FIELD(struct channel, read_high, 1),
    STATE_FIELD(struct channel, latched, 1),
    STATE_FIELD(struct channel, status, 1),
    STATE_FIELD(struct channel, status_latched, 1),
    STATE_FIELD(struct channel, triggered, 1),
};
static const struct state_table channel_state = STATE_TABLE(
    "i8254 channel", 1, struct channel, channel_fields, .after_load = channel_after_load);

static int pit_after_load(void *object, struct error *err) {
    struct pit *pit = object;
    (void)err;
    arm(pit, now(pit));
    return 0;
}

static const struct state_field pit_fields[] = {
    STATE_NESTED_ARRAY(struct pit, channel, &channel_state, 1),
    STATE_FIELD(struct pit, speaker, 1),
    STATE_FIELD(struct pit, disconnected, 1),
    STATE_FIELD(struct pit, deadline, 1, .reset = UINT64_MAX),
};
static const struct state_table pit_state =
    STATE_TABLE("pit", 1, struct pit, pit_fields, .after_load = pit_after_load);

static void pit_reset(struct device *device) {
    struct pit *pit = (struct pit *)device;
    lock_take(&device->lock);
    pit->channel[2].gate = false;
    vm_timer_cancel(pit->timer);
    set_irq(pit, false);
    lock_release(&device->lock);
}

static void pit_destroy(struct device *device) {
    struct pit *pit = (struct pit *)device;
    if (pit->ports)
        ports_remove(pit->ports);
    if (pit->control_b)
        ports_remove(pit->control_b);
    vm_timer_free(pit->timer);
}

static int pit_init(struct device *device, const void *config, struct error *err) {
    struct pit *pit = (struct pit *)device;
    struct platform *platform = device->platform;
    (void)config;

    pit->channel[2].gate = false;
    int rc = vm_timer_create(platform->clock, platform->loop, tick, pit, &pit->timer, err);
    if (rc == 0)
        rc = ports_add(platform->ports, device->name, PIT_PORT, PIT_PORTS, &pit_ops, pit,
                       &pit->ports, err);
    if (rc == 0)
        rc = ports_add(platform->ports, "control port B", CONTROL_B_PORT, 1, &control_b_ops, pit,
                       &pit->control_b, err);
    if (rc < 0)
        pit_destroy(device);
    return rc;
}

const struct device_class pit_class = {
    .name = "pit",
    .size = sizeof(struct pit),
    .state = &pit_state,
    .init = pit_init,
    .reset = pit_reset,
    .destroy = pit_destroy,
};
