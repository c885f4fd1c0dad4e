#include "device/i8042.h"

#include "memory/bytewise.h"

enum { DATA_PORT = 0x60, COMMAND_PORT = 0x64, CONTROL_A_PORT = 0x92 };
enum { STATUS_OUTPUT_FULL = 1, STATUS_SYSTEM = 4, STATUS_COMMAND = 8, STATUS_UNLOCKED = 0x10 };
enum {
    COMMAND_READ_RAM = 0x20, /* to 3Fh: the controller's RAM, byte 0 is the command byte */
    COMMAND_WRITE_RAM = 0x60,
    COMMAND_DISABLE_AUX = 0xa7,
    COMMAND_ENABLE_AUX = 0xa8,
    COMMAND_TEST_AUX = 0xa9,
    COMMAND_SELF_TEST = 0xaa,
    COMMAND_TEST_KEYBOARD = 0xab,
    COMMAND_DISABLE_KEYBOARD = 0xad,
    COMMAND_ENABLE_KEYBOARD = 0xae,
    COMMAND_READ_OUTPUT = 0xd0,
    COMMAND_WRITE_OUTPUT = 0xd1,
    COMMAND_PULSE = 0xf0, /* to FFh: bits that are clear pulse low; bit 0 is the reset line */
};
enum { RAM_SIZE = 32, MODE_SYSTEM = 4, MODE_NO_KEYBOARD = 0x10, MODE_NO_AUX = 0x20 };
enum { OUTPUT_NOT_RESET = 1, OUTPUT_A20 = 2 };
enum { SELF_TEST_PASSED = 0x55, INTERFACE_GOOD = 0, INTERFACE_NO_CLOCK = 1 };
enum { MODE_INTERRUPT = 1, KEYBOARD_GSI = 1, ANSWERS_MAX = 4 };

/* What a keyboard is told and what it answers. */
enum {
    KEYBOARD_LEDS = 0xed,
    KEYBOARD_ECHO = 0xee,
    KEYBOARD_SCAN_SET = 0xf0,
    KEYBOARD_IDENTIFY = 0xf2,
    KEYBOARD_RATE = 0xf3,
    KEYBOARD_ENABLE = 0xf4,
    KEYBOARD_DISABLE = 0xf5,
    KEYBOARD_DEFAULTS = 0xf6,
    KEYBOARD_RESET = 0xff,
    KEYBOARD_ACK = 0xfa,
    KEYBOARD_RESEND = 0xfe,
    KEYBOARD_PASSED = 0xaa,
};

struct i8042 {
    struct device device;
    struct port_range *data, *command, *control_a;
    uint8_t ram[RAM_SIZE];
    uint8_t output_port;
    uint8_t answers[ANSWERS_MAX], answer_count; /* the oldest first */
    uint8_t last_answer;                        /* read again when there is no other */
    uint8_t pending;          /* the command that waits for a byte at the data port, 0: none */
    uint8_t last_command;     /* the last write was to the command port */
    uint8_t keyboard_pending; /* the keyboard's command that waits for its parameter, 0: none */
};

static void request_reset(struct i8042 *i8042) {
    struct platform *platform = i8042->device.platform;
    platform->request(platform, PLATFORM_RESET);
}

/* What finds no room is lost: nobody has read for a long time. */
static void answer(struct i8042 *i8042, uint8_t value) {
    if (i8042->answer_count < ANSWERS_MAX)
        i8042->answers[i8042->answer_count++] = value;
}

static uint8_t take_answer(struct i8042 *i8042) {
    if (i8042->answer_count == 0)
        return i8042->last_answer;
    i8042->last_answer = i8042->answers[0];
    i8042->answer_count--;
    memmove(i8042->answers, i8042->answers + 1, i8042->answer_count);
    return i8042->last_answer;
}

/* Each waiting byte is an edge. */
static void update_irq(struct i8042 *i8042) {
    struct irqchip *chip = i8042->device.platform->irqchip;
    irq_set(chip, KEYBOARD_GSI, false);
    irq_set(chip, KEYBOARD_GSI, i8042->answer_count > 0 && (i8042->ram[0] & MODE_INTERRUPT));
}

/*
 * A keyboard that nobody types on: it answers, since firmware waits for
 * seconds for one that does not.
 */
static void keyboard(struct i8042 *i8042, uint8_t value) {
    uint8_t parameter_of = i8042->keyboard_pending;
    i8042->keyboard_pending = 0;
    if (parameter_of != 0 && value < KEYBOARD_LEDS) {
        answer(i8042, KEYBOARD_ACK);
        if (parameter_of == KEYBOARD_SCAN_SET && value == 0)
            answer(i8042, 2);
        return;
    }
    switch (value) {
    case KEYBOARD_ECHO: answer(i8042, KEYBOARD_ECHO); return;
    case KEYBOARD_LEDS:
    case KEYBOARD_SCAN_SET:
    case KEYBOARD_RATE: i8042->keyboard_pending = value; break;
    case KEYBOARD_ENABLE:
    case KEYBOARD_DISABLE:
    case KEYBOARD_DEFAULTS:
    case KEYBOARD_IDENTIFY: break;
    case KEYBOARD_RESET: i8042->answer_count = 0; break;
    default: answer(i8042, KEYBOARD_RESEND); return;
    }
    answer(i8042, KEYBOARD_ACK);
    if (value == KEYBOARD_RESET)
        answer(i8042, KEYBOARD_PASSED);
    if (value == KEYBOARD_IDENTIFY) {
        answer(i8042, 0xab);
        answer(i8042, 0x83);
    }
}

/* True: the guest asks for a reset. There is no mouse, so that interface's test tells so. */
static bool command(struct i8042 *i8042, uint8_t value) {
    i8042->last_command = true;
    i8042->pending = 0;
    if (value >= COMMAND_READ_RAM && value < COMMAND_READ_RAM + RAM_SIZE)
        answer(i8042, i8042->ram[value - COMMAND_READ_RAM]);
    else if ((value >= COMMAND_WRITE_RAM && value < COMMAND_WRITE_RAM + RAM_SIZE) ||
             value == COMMAND_WRITE_OUTPUT)
        i8042->pending = value;
    if (value >= COMMAND_PULSE)
        return !(value & 1);
    switch (value) {
    case COMMAND_DISABLE_AUX: i8042->ram[0] |= MODE_NO_AUX; break;
    case COMMAND_ENABLE_AUX: i8042->ram[0] &= ~MODE_NO_AUX; break;
    case COMMAND_DISABLE_KEYBOARD: i8042->ram[0] |= MODE_NO_KEYBOARD; break;
    case COMMAND_ENABLE_KEYBOARD: i8042->ram[0] &= ~MODE_NO_KEYBOARD; break;
    case COMMAND_SELF_TEST:
        i8042->ram[0] |= MODE_SYSTEM;
        answer(i8042, SELF_TEST_PASSED);
        break;
    case COMMAND_TEST_AUX: answer(i8042, INTERFACE_NO_CLOCK); break;
    case COMMAND_TEST_KEYBOARD: answer(i8042, INTERFACE_GOOD); break;
    case COMMAND_READ_OUTPUT: answer(i8042, i8042->output_port); break;
    default: break;
    }
    return false;
}

/* A byte without a command is for the keyboard. */
static bool data(struct i8042 *i8042, uint8_t value) {
    uint8_t to = i8042->pending;
    i8042->last_command = false;
    i8042->pending = 0;
    if (to >= COMMAND_WRITE_RAM && to < COMMAND_WRITE_RAM + RAM_SIZE)
        i8042->ram[to - COMMAND_WRITE_RAM] = value;
    else if (to == 0)
        keyboard(i8042, value);
    if (to != COMMAND_WRITE_OUTPUT)
        return false;
    i8042->output_port = value | OUTPUT_NOT_RESET;
    return !(value & OUTPUT_NOT_RESET);
}

/* ---- Ports ---- */

static uint64_t data_read(void *context, uint64_t offset, unsigned size) {
    struct i8042 *i8042 = context;
    (void)offset, (void)size;
    lock_take(&i8042->device.lock);
    uint8_t value = take_answer(i8042);
    update_irq(i8042);
    lock_release(&i8042->device.lock);
    return value;
}

static void data_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct i8042 *i8042 = context;
    (void)offset, (void)size;
    lock_take(&i8042->device.lock);
    bool reset = data(i8042, (uint8_t)value);
    update_irq(i8042);
    lock_release(&i8042->device.lock);
    if (reset)
        request_reset(i8042);
}

static uint64_t status_read(void *context, uint64_t offset, unsigned size) {
    struct i8042 *i8042 = context;
    (void)offset, (void)size;
    lock_take(&i8042->device.lock);
    uint8_t value = STATUS_UNLOCKED | (i8042->answer_count ? STATUS_OUTPUT_FULL : 0) |
                    (i8042->ram[0] & MODE_SYSTEM ? STATUS_SYSTEM : 0) |
                    (i8042->last_command ? STATUS_COMMAND : 0);
    lock_release(&i8042->device.lock);
    return value;
}

static void command_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct i8042 *i8042 = context;
    (void)offset, (void)size;
    lock_take(&i8042->device.lock);
    bool reset = command(i8042, (uint8_t)value);
    update_irq(i8042);
    lock_release(&i8042->device.lock);
    if (reset)
        request_reset(i8042);
}

/* System control port A: bit 0 resets when it rises, bit 1 is the A20 gate (without effect). */
static uint64_t control_a_read(void *context, uint64_t offset, unsigned size) {
    struct i8042 *i8042 = context;
    (void)offset, (void)size;
    lock_take(&i8042->device.lock);
    uint8_t value = i8042->output_port & OUTPUT_A20;
    lock_release(&i8042->device.lock);
    return value;
}

static void control_a_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct i8042 *i8042 = context;
    (void)offset, (void)size;
    lock_take(&i8042->device.lock);
    i8042->output_port = (i8042->output_port & ~OUTPUT_A20) | (value & OUTPUT_A20);
    lock_release(&i8042->device.lock);
    if (value & 1)
        request_reset(i8042);
}

static const struct io_ops data_ops = {data_read, data_write};
static const struct io_ops command_ops = {status_read, command_write};
static const struct io_ops control_a_ops = {control_a_read, control_a_write};

/* ---- Life ---- */

static const struct state_field i8042_fields[] = {
    STATE_ARRAY(struct i8042, ram, 1),
    STATE_FIELD(struct i8042, output_port, 1, .reset = OUTPUT_NOT_RESET | OUTPUT_A20),
    STATE_ARRAY(struct i8042, answers, 1),
    STATE_FIELD(struct i8042, answer_count, 1),
    STATE_FIELD(struct i8042, last_answer, 1),
    STATE_FIELD(struct i8042, pending, 1),
    STATE_FIELD(struct i8042, last_command, 1),
    STATE_FIELD(struct i8042, keyboard_pending, 1),
};
static int after_load(void *object, struct error *err) {
    const struct i8042 *i8042 = object;
    if (i8042->answer_count > ANSWERS_MAX)
        return error_set(err, -EINVAL, "i8042: %u answers", i8042->answer_count);
    return 0;
}

static const struct state_table i8042_state =
    STATE_TABLE("i8042", 1, struct i8042, i8042_fields, .after_load = after_load);

static void i8042_destroy(struct device *device) {
    struct i8042 *i8042 = (struct i8042 *)device;
    struct port_range *ranges[] = {i8042->data, i8042->command, i8042->control_a};
    for (unsigned i = 0; i < ARRAY_SIZE(ranges); i++)
        if (ranges[i])
            ports_remove(ranges[i]);
}

static int i8042_init(struct device *device, const void *config, struct error *err) {
    struct i8042 *i8042 = (struct i8042 *)device;
    struct ports *ports = device->platform->ports;
    (void)config;

    int rc = ports_add(ports, "i8042 data", DATA_PORT, 1, &data_ops, i8042, &i8042->data, err);
    if (rc == 0)
        rc = ports_add(ports, "i8042 command", COMMAND_PORT, 1, &command_ops, i8042,
                       &i8042->command, err);
    if (rc == 0)
        rc = ports_add(ports, "control port A", CONTROL_A_PORT, 1, &control_a_ops, i8042,
                       &i8042->control_a, err);
    if (rc < 0)
        i8042_destroy(device);
    return rc;
}

const struct device_class i8042_class = {
    .name = "i8042",
    .size = sizeof(struct i8042),
    .state = &i8042_state,
    .init = i8042_init,
    .destroy = i8042_destroy,
};
