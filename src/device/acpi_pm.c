#include "device/acpi_pm.h"

#include "memory/bytewise.h"

enum { PORTS = 0x24 };
enum {
    STATUS_TIMER = 1 << 0,
    STATUS_POWER_BUTTON = 1 << 8,
    STATUS_WAKE = 1 << 15,
    STATUS_WRITABLE = 0x8731, /* write one to clear */
    ENABLE_TIMER = 1 << 0,
    ENABLE_WRITABLE = 0x4721,
};
enum {
    CONTROL_SCI = 1 << 0,
    CONTROL_SLEEP_TYPE = 7 << 10,
    CONTROL_SLEEP = 1 << 13,
    CONTROL_WRITABLE = CONTROL_SLEEP_TYPE | 1 << 1,
};
#define PM_TIMER_HZ UINT64_C(3579545)

struct acpi_pm {
    struct device device;
    struct port_range *ports;
    struct irq_wire sci;
    struct vm_timer *timer;
    uint16_t status, enable;
    uint16_t control;
    uint16_t gpe_status, gpe_enable;
    uint8_t timer_carry; /* the PM timer's top bit when the status bit was last looked at */
};

/* ---- The PM timer ---- */

static uint64_t ticks(const struct acpi_pm *pm) {
    uint64_t ns = vm_clock_ns(pm->device.platform->clock);
    return (uint64_t)((unsigned __int128)ns * PM_TIMER_HZ / NS_PER_SECOND);
}

/* TMR_STS is set whenever bit 31 changes. */
static void update_timer_status(struct acpi_pm *pm) {
    uint8_t carry = ticks(pm) >> 31 & 1;
    if (carry != pm->timer_carry)
        pm->status |= STATUS_TIMER;
    pm->timer_carry = carry;
}

/* Nobody waits for the carry unless its interrupt is enabled and not yet there. */
static void arm(struct acpi_pm *pm) {
    if (!(pm->enable & ENABLE_TIMER) || (pm->status & STATUS_TIMER)) {
        vm_timer_cancel(pm->timer);
        return;
    }
    uint64_t next = ((ticks(pm) >> 31) + 1) << 31;
    vm_timer_arm(pm->timer, (uint64_t)((unsigned __int128)next * NS_PER_SECOND / PM_TIMER_HZ) + 1);
}

static void update_sci(struct acpi_pm *pm) {
    bool level = (pm->status & pm->enable) || (pm->gpe_status & pm->gpe_enable);
    irq_wire_set(&pm->sci, level);
}

static void timer_carries(void *context) {
    struct acpi_pm *pm = context;
    lock_take(&pm->device.lock);
    update_timer_status(pm);
    arm(pm);
    update_sci(pm);
    lock_release(&pm->device.lock);
}

void acpi_pm_place(struct device *device, uint16_t base, bool enabled) {
    ports_move(((struct acpi_pm *)device)->ports, base, enabled);
}

void acpi_pm_power_button(struct device *device) {
    struct acpi_pm *pm = (struct acpi_pm *)device;
    lock_take(&device->lock);
    pm->status |= STATUS_POWER_BUTTON;
    update_sci(pm);
    lock_release(&device->lock);
}

void acpi_pm_raise_gpe(struct device *device, unsigned bit) {
    struct acpi_pm *pm = (struct acpi_pm *)device;
    lock_take(&device->lock);
    pm->gpe_status |= (uint16_t)(1 << (bit & 15));
    update_sci(pm);
    lock_release(&device->lock);
}

bool acpi_pm_gpe_enabled(struct device *device, unsigned bit) {
    lock_take(&device->lock);
    bool enabled = ((struct acpi_pm *)device)->gpe_enable >> (bit & 15) & 1;
    lock_release(&device->lock);
    return enabled;
}

/* ---- Registers ---- */

static uint8_t byte_of(uint32_t value, unsigned index) {
    return (uint8_t)(value >> (8 * index));
}

static uint8_t read_register(struct acpi_pm *pm, unsigned offset) {
    if (offset < ACPI_PM_CONTROL)
        return offset < 2 ? byte_of(pm->status, offset) : byte_of(pm->enable, offset - 2);
    if (offset < ACPI_PM_CONTROL + 2)
        return byte_of(pm->control, offset - ACPI_PM_CONTROL);
    if (offset >= ACPI_PM_GPE0)
        return offset < ACPI_PM_GPE0 + 2 ? byte_of(pm->gpe_status, offset - ACPI_PM_GPE0)
                                         : byte_of(pm->gpe_enable, offset - ACPI_PM_GPE0 - 2);
    return 0;
}

static void set_byte(uint16_t *reg, unsigned index, uint8_t value, uint16_t writable) {
    uint16_t mask = writable & (uint16_t)(0xff << (8 * index));
    *reg = (*reg & ~mask) | ((uint16_t)(value << (8 * index)) & mask);
}

/* True: the guest asks for S5. From any other sleep, which the DSDT does not offer, it wakes at
 * once: it waits for WAK_STS (4.8.3.2.1). */
static bool write_control(struct acpi_pm *pm, unsigned index, uint8_t value) {
    set_byte(&pm->control, index, value, CONTROL_WRITABLE);
    if (index != 1 || !((unsigned)value << 8 & CONTROL_SLEEP))
        return false;
    bool off = (pm->control & CONTROL_SLEEP_TYPE) >> 10 == ACPI_PM_S5;
    if (!off)
        pm->status |= STATUS_WAKE;
    return off;
}

static bool write_register(struct acpi_pm *pm, unsigned offset, uint8_t value) {
    if (offset < 2)
        pm->status &= ~(value << (8 * offset) & STATUS_WRITABLE);
    else if (offset < 4)
        set_byte(&pm->enable, offset - 2, value, ENABLE_WRITABLE);
    else if (offset < ACPI_PM_CONTROL + 2)
        return write_control(pm, offset - ACPI_PM_CONTROL, value);
    else if (offset >= ACPI_PM_GPE0 + 2)
        set_byte(&pm->gpe_enable, offset - ACPI_PM_GPE0 - 2, value, UINT16_MAX);
    else if (offset >= ACPI_PM_GPE0)
        pm->gpe_status &= ~(uint16_t)(value << (8 * (offset - ACPI_PM_GPE0)));
    return false;
}

static uint8_t read_byte(void *context, unsigned offset) {
    struct acpi_pm *pm = context;
    lock_take(&pm->device.lock);
    update_timer_status(pm);
    uint8_t value = read_register(pm, offset);
    lock_release(&pm->device.lock);
    return value;
}

static void write_byte(void *context, unsigned offset, uint8_t value) {
    struct acpi_pm *pm = context;
    struct platform *platform = pm->device.platform;
    lock_take(&pm->device.lock);
    update_timer_status(pm);
    bool power_off = write_register(pm, offset, value);
    arm(pm);
    update_sci(pm);
    lock_release(&pm->device.lock);
    if (power_off)
        platform->request(platform, PLATFORM_POWER_OFF);
}

/* The timer is read as a whole, so that its bytes belong together. */
static uint64_t acpi_pm_read(void *context, uint64_t offset, unsigned size) {
    struct acpi_pm *pm = context;
    if (offset >= ACPI_PM_TIMER && offset < ACPI_PM_TIMER + 4) {
        uint64_t value = ticks(pm) & UINT32_MAX;
        return value >> (8 * (offset - ACPI_PM_TIMER)) & bytes_mask(size);
    }
    return bytewise_read(read_byte, context, offset, size);
}

static void acpi_pm_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    bytewise_write(write_byte, context, offset, value, size);
}

static const struct io_ops acpi_pm_ops = {acpi_pm_read, acpi_pm_write};

/* ---- Life ---- */

static int after_load(void *object, struct error *err) {
    (void)err;
    arm(object);
    return 0;
}

static const struct state_field acpi_pm_fields[] = {
    STATE_FIELD(struct acpi_pm, status, 1),
    STATE_FIELD(struct acpi_pm, enable, 1),
    STATE_FIELD(struct acpi_pm, control, 1, .reset = CONTROL_SCI), /* no SMI to turn it on with */
    STATE_FIELD(struct acpi_pm, gpe_status, 1),
    STATE_FIELD(struct acpi_pm, gpe_enable, 1),
    STATE_FIELD(struct acpi_pm, timer_carry, 1),
};
static const struct state_table acpi_pm_state =
    STATE_TABLE("acpi pm", 1, struct acpi_pm, acpi_pm_fields, .after_load = after_load);

static void acpi_pm_reset(struct device *device) {
    struct acpi_pm *pm = (struct acpi_pm *)device;
    lock_take(&device->lock);
    pm->timer_carry = ticks(pm) >> 31 & 1;
    vm_timer_cancel(pm->timer);
    update_sci(pm);
    lock_release(&device->lock);
}

static int acpi_pm_init(struct device *device, const void *config_, struct error *err) {
    struct acpi_pm *pm = (struct acpi_pm *)device;
    const struct acpi_pm_config *config = config_;
    struct platform *platform = device->platform;

    pm->sci = (struct irq_wire){.chip = platform->irqchip, .gsi = config->sci};
    int rc = vm_timer_create(platform->clock, platform->loop, timer_carries, pm, &pm->timer, err);
    if (rc < 0)
        return rc;
    rc = ports_add(platform->ports, device->name, config->base, PORTS, &acpi_pm_ops, pm, &pm->ports,
                   err);
    if (rc < 0)
        vm_timer_free(pm->timer);
    return rc;
}

static void acpi_pm_destroy(struct device *device) {
    struct acpi_pm *pm = (struct acpi_pm *)device;
    ports_remove(pm->ports);
    vm_timer_free(pm->timer);
}

const struct device_class acpi_pm_class = {
    .name = "acpi pm",
    .size = sizeof(struct acpi_pm),
    .state = &acpi_pm_state,
    .init = acpi_pm_init,
    .reset = acpi_pm_reset,
    .destroy = acpi_pm_destroy,
};
