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
enum { SELF_TEST_PASSED = 0x55, INTERFACE_NO_CLOCK = 1 };

struct i8042 {
    struct device device;
    struct port_range *data, *command, *control_a;
    uint8_t ram[RAM_SIZE];
    uint8_t output_port;
    uint8_t answer, answer_full;
    uint8_t pending;      /* the command that waits for a byte at the data port, 0: none */
    uint8_t last_command; /* the last write was to the command port */
};

static void request_reset(struct i8042 *i8042) {
    struct platform *platform = i8042->device.platform;
    platform->request(platform, PLATFORM_RESET);
}

static void answer(struct i8042 *i8042, uint8_t value) {
    i8042->answer = value;
    i8042->answer_full = true;
}

/* True: the guest asks for a reset. Nothing is plugged in, so interface tests tell so. */
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
    case COMMAND_TEST_AUX:
    case COMMAND_TEST_KEYBOARD: answer(i8042, INTERFACE_NO_CLOCK); break;
    case COMMAND_READ_OUTPUT: answer(i8042, i8042->output_port); break;
    default: break;
    }
    return false;
}

/* A byte without a command is for the keyboard: nobody answers. */
static bool data(struct i8042 *i8042, uint8_t value) {
    uint8_t to = i8042->pending;
    i8042->last_command = false;
    i8042->pending = 0;
    if (to >= COMMAND_WRITE_RAM && to < COMMAND_WRITE_RAM + RAM_SIZE)
        i8042->ram[to - COMMAND_WRITE_RAM] = value;
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
    uint8_t value = i8042->answer;
    i8042->answer_full = false;
    lock_release(&i8042->device.lock);
    return value;
}

static void data_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct i8042 *i8042 = context;
    (void)offset, (void)size;
    lock_take(&i8042->device.lock);
    bool reset = data(i8042, (uint8_t)value);
    lock_release(&i8042->device.lock);
    if (reset)
        request_reset(i8042);
}

static uint64_t status_read(void *context, uint64_t offset, unsigned size) {
    struct i8042 *i8042 = context;
    (void)offset, (void)size;
    lock_take(&i8042->device.lock);
    uint8_t value = STATUS_UNLOCKED | (i8042->answer_full ? STATUS_OUTPUT_FULL : 0) |
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
    STATE_FIELD(struct i8042, answer, 1),
    STATE_FIELD(struct i8042, answer_full, 1),
    STATE_FIELD(struct i8042, pending, 1),
    STATE_FIELD(struct i8042, last_command, 1),
};
static const struct state_table i8042_state = STATE_TABLE("i8042", 1, struct i8042, i8042_fields);

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
