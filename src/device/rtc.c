#include "device/rtc.h"

#include <time.h>

#include "memory/bytewise.h"

enum { RTC_PORT = 0x70, RTC_GSI = 8, CMOS_SIZE = 128 };
enum {
    REG_SECONDS = 0,
    REG_SECONDS_ALARM = 1,
    REG_MINUTES = 2,
    REG_MINUTES_ALARM = 3,
    REG_HOURS = 4,
    REG_HOURS_ALARM = 5,
    REG_WEEKDAY = 6,
    REG_DAY = 7,
    REG_MONTH = 8,
    REG_YEAR = 9,
    REG_A = 10,
    REG_B = 11,
    REG_C = 12,
    REG_D = 13,
    REG_CENTURY = 0x32,
};
enum { A_UPDATING = 0x80, A_DIVIDER = 0x70, A_RUNNING = 0x20, A_RATE = 0x0f };
enum { B_SET = 0x80, B_UPDATE = 0x10, B_BINARY = 4, B_24_HOURS = 2 };
enum { C_REQUEST = 0x80, C_PERIODIC = 0x40, C_ALARM = 0x20, C_UPDATE = 0x10, C_FLAGS = 0x70 };
enum { D_VALID = 0x80, HOUR_PM = 0x80, ALARM_ANY = 0xc0, MINUTES_A_DAY = 1440 };
/* Years 0 to 25599 are what two bytes can say, however the guest sets them. */
#define OFFSET_LIMIT (INT64_C(1) << 41)
enum { UPDATE_NOTICE_NS = 244000, OSCILLATOR_HZ = 32768, SECONDS_A_DAY = 86400 };

struct rtc {
    struct device device;
    struct port_range *ports;
    struct vm_timer *timer;
    uint8_t index;
    /* Registers A to D and the alarm live in their bytes; the time's bytes count only while B.SET
     * holds the clock. */
    uint8_t cmos[CMOS_SIZE];
    int64_t offset;  /* the guest's clock minus the wall's, in seconds */
    uint64_t looked; /* guest ns up to which register C's flags are complete */
    uint8_t disconnected;
};

/* ---- The time in bytes ---- */

static uint8_t encode(const struct rtc *rtc, int value) {
    if (rtc->cmos[REG_B] & B_BINARY)
        return (uint8_t)value;
    return (uint8_t)((value / 10 % 10) << 4 | value % 10);
}

static int decode(const struct rtc *rtc, uint8_t byte) {
    return rtc->cmos[REG_B] & B_BINARY ? byte : (byte >> 4) * 10 + (byte & 15);
}

static uint8_t encode_hour(const struct rtc *rtc, int hour) {
    if (rtc->cmos[REG_B] & B_24_HOURS)
        return encode(rtc, hour);
    return encode(rtc, (hour + 11) % 12 + 1) | (hour >= 12 ? HOUR_PM : 0);
}

static int decode_hour(const struct rtc *rtc, uint8_t byte) {
    if (rtc->cmos[REG_B] & B_24_HOURS)
        return decode(rtc, byte);
    return decode(rtc, byte & ~HOUR_PM) % 12 + (byte & HOUR_PM ? 12 : 0);
}

static bool is_time(unsigned index) {
    return index == REG_SECONDS || index == REG_MINUTES || index == REG_HOURS ||
           (index >= REG_WEEKDAY && index <= REG_YEAR) || index == REG_CENTURY;
}

static void time_to_bytes(struct rtc *rtc, int64_t seconds) {
    time_t t = (time_t)seconds;
    struct tm tm;
    if (!gmtime_r(&t, &tm))
        return;
    int year = tm.tm_year + 1900;
    rtc->cmos[REG_SECONDS] = encode(rtc, tm.tm_sec);
    rtc->cmos[REG_MINUTES] = encode(rtc, tm.tm_min);
    rtc->cmos[REG_HOURS] = encode_hour(rtc, tm.tm_hour);
    rtc->cmos[REG_WEEKDAY] = encode(rtc, tm.tm_wday + 1);
    rtc->cmos[REG_DAY] = encode(rtc, tm.tm_mday);
    rtc->cmos[REG_MONTH] = encode(rtc, tm.tm_mon + 1);
    rtc->cmos[REG_YEAR] = encode(rtc, (year % 100 + 100) % 100);
    rtc->cmos[REG_CENTURY] = encode(rtc, (year / 100 % 100 + 100) % 100);
}

/* Whatever the bytes are, timegm carries them over into a time. */
static int64_t bytes_to_time(const struct rtc *rtc) {
    struct tm tm = {
        .tm_sec = decode(rtc, rtc->cmos[REG_SECONDS]),
        .tm_min = decode(rtc, rtc->cmos[REG_MINUTES]),
        .tm_hour = decode_hour(rtc, rtc->cmos[REG_HOURS]),
        .tm_mday = decode(rtc, rtc->cmos[REG_DAY]),
        .tm_mon = decode(rtc, rtc->cmos[REG_MONTH]) - 1,
        .tm_year =
            decode(rtc, rtc->cmos[REG_CENTURY]) * 100 + decode(rtc, rtc->cmos[REG_YEAR]) - 1900,
    };
    return timegm(&tm);
}

/* ---- The running clock ---- */

static bool runs(const struct rtc *rtc) {
    return !(rtc->cmos[REG_B] & B_SET) && (rtc->cmos[REG_A] & A_DIVIDER) == A_RUNNING;
}

static int64_t wall(const struct rtc *rtc, uint64_t ns) {
    return vm_clock_wall_seconds(rtc->device.platform->clock, ns);
}

static int64_t seconds_at(const struct rtc *rtc, uint64_t ns) {
    return (int64_t)((uint64_t)wall(rtc, ns) + (uint64_t)rtc->offset);
}

static void set_time(struct rtc *rtc, uint64_t now) {
    rtc->offset = (int64_t)((uint64_t)bytes_to_time(rtc) - (uint64_t)wall(rtc, now));
}

/* The first guest ns after `now` that belongs to the next second of the wall's clock. */
static uint64_t next_second(const struct rtc *rtc, uint64_t now) {
    int64_t second = wall(rtc, now);
    uint64_t low = now, high = now + NS_PER_SECOND;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (wall(rtc, middle) > second)
            high = middle;
        else
            low = middle;
    }
    return high;
}

/* Periods of register A's rate that have begun until ns; *shift is a period in oscillator ticks. */
static bool periodic_shift(const struct rtc *rtc, unsigned *shift) {
    unsigned rate = rtc->cmos[REG_A] & A_RATE;
    *shift = rate < 3 ? rate + 6 : rate - 1; /* 1 and 2 are 256 and 128 Hz */
    return rate != 0 && (rtc->cmos[REG_A] & A_DIVIDER) == A_RUNNING;
}

static uint64_t oscillator_ticks(uint64_t ns) {
    return (uint64_t)((unsigned __int128)ns * OSCILLATOR_HZ / NS_PER_SECOND);
}

static uint64_t next_period(uint64_t now, unsigned shift) {
    uint64_t tick = ((oscillator_ticks(now) >> shift) + 1) << shift;
    return (uint64_t)(((unsigned __int128)tick * NS_PER_SECOND + OSCILLATOR_HZ - 1) /
                      OSCILLATOR_HZ);
}

/* ---- The alarm ---- */

static bool matches(uint8_t alarm, int value, int decoded) {
    return alarm >= ALARM_ANY || value == decoded;
}

/* Seconds from `after` to the alarm's next match, at least 1; INT64_MAX: it never matches. */
static int64_t seconds_to_alarm(const struct rtc *rtc, int64_t after) {
    const uint8_t *cmos = rtc->cmos;
    int hour = decode_hour(rtc, cmos[REG_HOURS_ALARM]);
    int minute = decode(rtc, cmos[REG_MINUTES_ALARM]);
    int second = decode(rtc, cmos[REG_SECONDS_ALARM]);
    int64_t today = (after % SECONDS_A_DAY + SECONDS_A_DAY) % SECONDS_A_DAY;
    int64_t start = today + 1;

    for (int64_t m = start / 60; m <= start / 60 + MINUTES_A_DAY; m++) {
        int64_t first = m == start / 60 ? start % 60 : 0;
        if (!matches(cmos[REG_HOURS_ALARM], (int)(m / 60 % 24), hour) ||
            !matches(cmos[REG_MINUTES_ALARM], (int)(m % 60), minute))
            continue;
        if (cmos[REG_SECONDS_ALARM] >= ALARM_ANY)
            return m * 60 + first - today;
        if (second >= first && second < 60)
            return m * 60 + second - today;
    }
    return INT64_MAX;
}

/* ---- Interrupts ---- */

/* Adds to register C what happened since it was last brought up to date. */
static void update_flags(struct rtc *rtc, uint64_t now) {
    uint8_t *flags = &rtc->cmos[REG_C];
    int64_t before = seconds_at(rtc, rtc->looked), after = seconds_at(rtc, now);
    unsigned shift;

    if (runs(rtc) && after > before) {
        *flags |= C_UPDATE;
        if (seconds_to_alarm(rtc, before) <= after - before)
            *flags |= C_ALARM;
    }
    if (periodic_shift(rtc, &shift) &&
        oscillator_ticks(now) >> shift != oscillator_ticks(rtc->looked) >> shift)
        *flags |= C_PERIODIC;
    rtc->looked = now;
    if (*flags & rtc->cmos[REG_B] & C_FLAGS)
        *flags |= C_REQUEST;
}

static uint64_t earlier(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* While an interrupt waits to be seen, nothing more can happen: no timer, however fast the rate. */
static void arm(struct rtc *rtc, uint64_t now) {
    uint8_t enabled = rtc->cmos[REG_B];
    uint64_t deadline = UINT64_MAX;
    unsigned shift;

    if (rtc->cmos[REG_C] & C_REQUEST) {
        vm_timer_cancel(rtc->timer);
        return;
    }
    if ((enabled & C_PERIODIC) && periodic_shift(rtc, &shift))
        deadline = next_period(now, shift);
    if ((enabled & C_UPDATE) && runs(rtc))
        deadline = earlier(deadline, next_second(rtc, now));
    if ((enabled & C_ALARM) && runs(rtc)) {
        int64_t seconds = seconds_to_alarm(rtc, seconds_at(rtc, now));
        if (seconds != INT64_MAX)
            deadline =
                earlier(deadline, next_second(rtc, now) + (uint64_t)(seconds - 1) * NS_PER_SECOND);
    }
    if (deadline == UINT64_MAX)
        vm_timer_cancel(rtc->timer);
    else
        vm_timer_arm(rtc->timer, deadline);
}

/* After any change: the flags, the line, the timer. */
static void update(struct rtc *rtc, uint64_t now) {
    update_flags(rtc, now);
    if (!rtc->disconnected)
        irq_set(rtc->device.platform->irqchip, RTC_GSI, rtc->cmos[REG_C] & C_REQUEST);
    arm(rtc, now);
}

static uint64_t now_ns(const struct rtc *rtc) {
    return vm_clock_ns(rtc->device.platform->clock);
}

static void timer_expired(void *context) {
    struct rtc *rtc = context;
    lock_take(&rtc->device.lock);
    update(rtc, now_ns(rtc));
    lock_release(&rtc->device.lock);
}

void rtc_disconnect(struct device *device, bool disconnected) {
    struct rtc *rtc = (struct rtc *)device;
    lock_take(&device->lock);
    irq_set(device->platform->irqchip, RTC_GSI, false);
    rtc->disconnected = disconnected;
    update(rtc, now_ns(rtc));
    lock_release(&device->lock);
}

/* ---- Registers ---- */

static uint8_t read_a(const struct rtc *rtc, uint64_t now) {
    bool soon = runs(rtc) && wall(rtc, now + UPDATE_NOTICE_NS) > wall(rtc, now);
    return rtc->cmos[REG_A] | (soon ? A_UPDATING : 0);
}

static uint8_t read_c(struct rtc *rtc, uint64_t now) {
    update_flags(rtc, now);
    uint8_t value = rtc->cmos[REG_C];
    rtc->cmos[REG_C] = 0;
    update(rtc, now);
    return value;
}

static uint8_t read_register(struct rtc *rtc) {
    uint64_t now = now_ns(rtc);
    if (is_time(rtc->index) && runs(rtc))
        time_to_bytes(rtc, seconds_at(rtc, now));
    if (rtc->index == REG_A)
        return read_a(rtc, now);
    return rtc->index == REG_C ? read_c(rtc, now) : rtc->cmos[rtc->index];
}

/* Setting one part of a running clock keeps the others; stopping it keeps its time. */
static void write_register(struct rtc *rtc, uint8_t value) {
    uint64_t now = now_ns(rtc);
    bool ran = runs(rtc);

    update_flags(rtc, now);
    if (ran)
        time_to_bytes(rtc, seconds_at(rtc, now));
    switch (rtc->index) {
    case REG_A: rtc->cmos[REG_A] = value & ~A_UPDATING; break;
    case REG_B: rtc->cmos[REG_B] = value & B_SET ? value & ~B_UPDATE : value; break;
    case REG_C:
    case REG_D: break;
    default: rtc->cmos[rtc->index] = value; break;
    }
    if (runs(rtc) && (!ran || is_time(rtc->index)))
        set_time(rtc, now);
    update(rtc, now);
}

/* Bit 7 of the index port masks NMIs on a PC; there are none to mask. */
static uint8_t read_byte(void *context, unsigned offset) {
    struct rtc *rtc = context;
    lock_take(&rtc->device.lock);
    uint8_t value = offset == 0 ? 0xff : read_register(rtc);
    lock_release(&rtc->device.lock);
    return value;
}

static void write_byte(void *context, unsigned offset, uint8_t value) {
    struct rtc *rtc = context;
    lock_take(&rtc->device.lock);
    if (offset == 0)
        rtc->index = value & 0x7f;
    else
        write_register(rtc, value);
    lock_release(&rtc->device.lock);
}

static uint64_t rtc_read(void *context, uint64_t offset, unsigned size) {
    return bytewise_read(read_byte, context, offset, size);
}

static void rtc_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    bytewise_write(write_byte, context, offset, value, size);
}

static const struct io_ops rtc_ops = {rtc_read, rtc_write};

/* ---- Life ---- */

static int after_load(void *object, struct error *err) {
    struct rtc *rtc = object;
    if (rtc->index >= CMOS_SIZE || rtc->offset > OFFSET_LIMIT || rtc->offset < -OFFSET_LIMIT)
        return error_set(err, -EINVAL, "RTC: index %u, offset %lld s", rtc->index,
                         (long long)rtc->offset);
    arm(rtc, now_ns(rtc));
    return 0;
}

/* The battery keeps the CMOS and the clock through a reset. */
static const struct state_field rtc_fields[] = {
    STATE_FIELD(struct rtc, index, 1),
    STATE_ARRAY(struct rtc, cmos, 1, .keep = true),
    STATE_FIELD(struct rtc, offset, 1, .keep = true),
    STATE_FIELD(struct rtc, looked, 1, .keep = true),
    STATE_FIELD(struct rtc, disconnected, 1),
};
static const struct state_table rtc_state =
    STATE_TABLE("rtc", 1, struct rtc, rtc_fields, .after_load = after_load);

static void rtc_reset(struct device *device) {
    struct rtc *rtc = (struct rtc *)device;
    lock_take(&device->lock);
    rtc->cmos[REG_B] &= ~C_FLAGS;
    rtc->cmos[REG_C] = 0;
    update(rtc, now_ns(rtc));
    lock_release(&device->lock);
}

/* Where PC firmware looks for the memory's size: KiB above 1 MiB, 64 KiB units above 16 MiB and
 * above 4 GiB. */
static void fill_memory(struct rtc *rtc, const struct rtc_config *config) {
    uint64_t low = config->ram_below_4g;
    uint64_t kib = low > MIB(1) ? (low - MIB(1)) >> 10 : 0;
    uint64_t units = low > MIB(16) ? (low - MIB(16)) >> 16 : 0;
    uint64_t high = config->ram_above_4g >> 16;

    store_le16(rtc->cmos + 0x15, 640);
    store_le16(rtc->cmos + 0x17, (uint16_t)(kib < 0xffff ? kib : 0xffff));
    store_le16(rtc->cmos + 0x30, load_le16(rtc->cmos + 0x17));
    store_le16(rtc->cmos + 0x34, (uint16_t)(units < 0xffff ? units : 0xffff));
    store_le16(rtc->cmos + 0x5b, (uint16_t)high);
    rtc->cmos[0x5d] = (uint8_t)(high >> 16);
}

static int rtc_init(struct device *device, const void *config, struct error *err) {
    struct rtc *rtc = (struct rtc *)device;
    struct platform *platform = device->platform;

    rtc->cmos[REG_A] = A_RUNNING | 6; /* 1024 Hz */
    rtc->cmos[REG_B] = B_24_HOURS;
    rtc->cmos[REG_D] = D_VALID;
    rtc->looked = now_ns(rtc);
    if (config)
        fill_memory(rtc, config);
    int rc = vm_timer_create(platform->clock, platform->loop, timer_expired, rtc, &rtc->timer, err);
    if (rc < 0)
        return rc;
    rc = ports_add(platform->ports, device->name, RTC_PORT, 2, &rtc_ops, rtc, &rtc->ports, err);
    if (rc < 0)
        vm_timer_free(rtc->timer);
    return rc;
}

static void rtc_destroy(struct device *device) {
    struct rtc *rtc = (struct rtc *)device;
    ports_remove(rtc->ports);
    vm_timer_free(rtc->timer);
}

const struct device_class rtc_class = {
    .name = "rtc",
    .size = sizeof(struct rtc),
    .state = &rtc_state,
    .init = rtc_init,
    .reset = rtc_reset,
    .destroy = rtc_destroy,
};
