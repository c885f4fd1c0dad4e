#include "device/serial.h"

#include "memory/bytewise.h"

enum { SERIAL_PORTS = 8, FIFO_SIZE = 16 };

enum { REG_DATA, REG_IER, REG_IIR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCRATCH };
enum { IER_RECEIVE = 1, IER_TRANSMIT = 2, IER_LINE = 4, IER_MODEM = 8 };
enum {
    IIR_MODEM = 0x00,
    IIR_NONE = 0x01,
    IIR_TRANSMIT = 0x02,
    IIR_RECEIVE = 0x04,
    IIR_LINE = 0x06,
    IIR_TIMEOUT = 0x0c,
    IIR_FIFOS = 0xc0,
};
enum { FCR_ENABLE = 1, FCR_CLEAR_RECEIVE = 2, FCR_CLEAR_TRANSMIT = 4 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 16, MCR_WRITABLE = 31 };
enum { LSR_READY = 1, LSR_OVERRUN = 2, LSR_EMPTY = 0x20, LSR_IDLE = 0x40 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };
enum { MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD };

struct serial_fifo {
    uint8_t bytes[FIFO_SIZE];
    uint8_t head;
    uint8_t count;
};

struct serial {
    struct device device;
    struct chardev *chardev;
    struct port_range *ports;
    struct irq_wire wire;

    uint8_t ier, lcr, mcr, fcr, scratch;
    uint16_t divisor;
    uint8_t overrun;
    uint8_t msr;              /* lines in the high half, changes since the last read in the low */
    uint8_t transmit_pending; /* the transmitter ran empty and nobody has looked */
    struct serial_fifo receive;
    struct serial_fifo transmit; /* what the back end has not taken yet */
};

/* ---- FIFOs ---- */

static unsigned fifo_limit(const struct serial *serial) {
    return serial->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static void fifo_clear(struct serial_fifo *fifo) {
    fifo->head = 0;
    fifo->count = 0;
}

static void fifo_push(struct serial_fifo *fifo, uint8_t byte) {
    fifo->bytes[(fifo->head + fifo->count) % FIFO_SIZE] = byte;
    fifo->count++;
}

static uint8_t fifo_pop(struct serial_fifo *fifo) {
    uint8_t byte = fifo->bytes[fifo->head];
    fifo->head = (fifo->head + 1) % FIFO_SIZE;
    fifo->count--;
    return byte;
}

/* ---- Interrupts ---- */

static unsigned trigger_level(const struct serial *serial) {
    static const uint8_t levels[] = {1, 4, 8, 14};
    return serial->fcr & FCR_ENABLE ? levels[serial->fcr >> 6] : 1;
}

/*
 * The interrupt of the highest priority. A byte below the trigger level is
 * reported as timed out at once: nothing is gained by making the guest wait.
 */
static uint8_t interrupt_id(const struct serial *serial) {
    if ((serial->ier & IER_LINE) && serial->overrun)
        return IIR_LINE;
    if ((serial->ier & IER_RECEIVE) && serial->receive.count)
        return serial->receive.count >= trigger_level(serial) ? IIR_RECEIVE : IIR_TIMEOUT;
    if ((serial->ier & IER_TRANSMIT) && serial->transmit_pending)
        return IIR_TRANSMIT;
    if ((serial->ier & IER_MODEM) && (serial->msr & 0x0f))
        return IIR_MODEM;
    return IIR_NONE;
}

/* OUT2 connects the chip's interrupt output on a PC. */
static void update_interrupt(struct serial *serial) {
    irq_wire_set(&serial->wire, interrupt_id(serial) != IIR_NONE && (serial->mcr & MCR_OUT2));
}

/* ---- Modem lines ---- */

static uint8_t modem_lines(const struct serial *serial) {
    if (!(serial->mcr & MCR_LOOP))
        return serial->chardev ? MSR_CONNECTED : 0;
    return (serial->mcr & MCR_RTS ? MSR_CTS : 0) | (serial->mcr & MCR_DTR ? MSR_DSR : 0) |
           (serial->mcr & MCR_OUT1 ? MSR_RI : 0) | (serial->mcr & MCR_OUT2 ? MSR_DCD : 0);
}

static void update_modem(struct serial *serial) {
    uint8_t lines = modem_lines(serial);
    uint8_t changed = (lines ^ serial->msr) & 0xf0;
    if (lines & MSR_RI)
        changed &= ~MSR_RI; /* TERI reports the falling edge only */
    serial->msr = lines | (serial->msr & 0x0f) | changed >> 4;
}

/* ---- Bytes ---- */

/* Offers the back end what waits; what it does not take stays until it calls writable. */
static void drain(struct serial *serial) {
    while (serial->transmit.count) {
        struct serial_fifo *fifo = &serial->transmit;
        uint8_t byte = fifo->bytes[fifo->head];
        if (serial->chardev && serial->chardev->ops->write(serial->chardev, &byte, 1) == 0)
            return;
        fifo_pop(fifo);
    }
    serial->transmit_pending = 1;
}

static void receive_byte(struct serial *serial, uint8_t byte) {
    if (serial->receive.count < fifo_limit(serial))
        fifo_push(&serial->receive, byte);
    else
        serial->overrun = 1;
}

static void write_data(struct serial *serial, uint8_t byte) {
    serial->transmit_pending = 0;
    if (serial->mcr & MCR_LOOP) {
        receive_byte(serial, byte);
        serial->transmit_pending = 1;
        return;
    }
    /* A guest that does not wait for room loses its newest byte, as on the chip. */
    if (serial->transmit.count < fifo_limit(serial))
        fifo_push(&serial->transmit, byte);
    drain(serial);
}

/*
 * A sender waits for "request to send": what is typed before a driver has opened the port is kept
 * by the back end, where a driver's clearing of the FIFO does not lose it.
 */
static bool takes_input(const struct serial *serial) {
    return (serial->mcr & (MCR_RTS | MCR_LOOP)) == MCR_RTS;
}

static void resume_input(struct serial *serial) {
    if (serial->chardev && takes_input(serial))
        serial->chardev->ops->resume_input(serial->chardev);
}

static uint8_t read_data(struct serial *serial) {
    if (serial->receive.count == 0)
        return 0;
    uint8_t byte = fifo_pop(&serial->receive);
    if (serial->receive.count == 0)
        resume_input(serial);
    return byte;
}

/* ---- The back end's calls ---- */

static size_t front_receive(void *context, const uint8_t *bytes, size_t length) {
    struct serial *serial = context;
    size_t taken = 0;

    lock_take(&serial->device.lock);
    if (takes_input(serial))
        while (taken < length && serial->receive.count < fifo_limit(serial))
            fifo_push(&serial->receive, bytes[taken++]);
    update_interrupt(serial);
    lock_release(&serial->device.lock);
    return taken;
}

static void front_writable(void *context) {
    struct serial *serial = context;
    lock_take(&serial->device.lock);
    if (serial->transmit.count)
        drain(serial);
    update_interrupt(serial);
    lock_release(&serial->device.lock);
}

static const struct chardev_front front = {front_receive, front_writable};

/* ---- Registers ---- */

static uint8_t read_iir(struct serial *serial) {
    uint8_t id = interrupt_id(serial);
    if (id == IIR_TRANSMIT)
        serial->transmit_pending = 0;
    return id | (serial->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
}

static uint8_t read_lsr(struct serial *serial) {
    uint8_t value = serial->receive.count ? LSR_READY : 0;
    if (serial->transmit.count == 0)
        value |= LSR_EMPTY | LSR_IDLE;
    if (serial->overrun)
        value |= LSR_OVERRUN;
    serial->overrun = 0;
    return value;
}

static uint8_t read_msr(struct serial *serial) {
    uint8_t value = serial->msr;
    serial->msr &= 0xf0;
    return value;
}

static uint8_t read_register(struct serial *serial, unsigned offset) {
    bool divisor = serial->lcr & LCR_DLAB;
    switch (offset) {
    case REG_DATA: return divisor ? (uint8_t)serial->divisor : read_data(serial);
    case REG_IER: return divisor ? serial->divisor >> 8 : serial->ier;
    case REG_IIR: return read_iir(serial);
    case REG_LCR: return serial->lcr;
    case REG_MCR: return serial->mcr;
    case REG_LSR: return read_lsr(serial);
    case REG_MSR: return read_msr(serial);
    default: return serial->scratch;
    }
}

static void write_ier(struct serial *serial, uint8_t value) {
    bool newly = (value & ~serial->ier) & IER_TRANSMIT;
    serial->ier = value & 0x0f;
    if (newly && serial->transmit.count == 0)
        serial->transmit_pending = 1;
}

static void write_fcr(struct serial *serial, uint8_t value) {
    bool toggled = (value ^ serial->fcr) & FCR_ENABLE;
    if (toggled || (value & FCR_CLEAR_RECEIVE)) {
        fifo_clear(&serial->receive);
        resume_input(serial);
    }
    if (toggled || (value & FCR_CLEAR_TRANSMIT)) {
        fifo_clear(&serial->transmit);
        serial->transmit_pending = 1;
    }
    serial->fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
}

static void write_mcr(struct serial *serial, uint8_t value) {
    bool took_input = takes_input(serial);
    serial->mcr = value & MCR_WRITABLE;
    update_modem(serial);
    if (!took_input)
        resume_input(serial);
}

static void write_divisor(struct serial *serial, unsigned shift, uint8_t value) {
    serial->divisor = (serial->divisor & ~(0xff << shift)) | value << shift;
}

static void write_register(struct serial *serial, unsigned offset, uint8_t value) {
    bool divisor = serial->lcr & LCR_DLAB;
    switch (offset) {
    case REG_DATA:
        if (divisor)
            write_divisor(serial, 0, value);
        else
            write_data(serial, value);
        break;
    case REG_IER:
        if (divisor)
            write_divisor(serial, 8, value);
        else
            write_ier(serial, value);
        break;
    case REG_IIR: write_fcr(serial, value); break;
    case REG_LCR: serial->lcr = value; break;
    case REG_MCR: write_mcr(serial, value); break;
    case REG_SCRATCH: serial->scratch = value; break;
    default: break; /* LSR and MSR are read-only */
    }
}

static uint8_t read_byte(void *context, unsigned offset) {
    struct serial *serial = context;
    lock_take(&serial->device.lock);
    uint8_t value = read_register(serial, offset);
    update_interrupt(serial);
    lock_release(&serial->device.lock);
    return value;
}

static void write_byte(void *context, unsigned offset, uint8_t value) {
    struct serial *serial = context;
    lock_take(&serial->device.lock);
    write_register(serial, offset, value);
    update_interrupt(serial);
    lock_release(&serial->device.lock);
}

static uint64_t serial_port_read(void *context, uint64_t offset, unsigned size) {
    return bytewise_read(read_byte, context, offset, size);
}

static void serial_port_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    bytewise_write(write_byte, context, offset, value, size);
}

static const struct io_ops serial_ops = {serial_port_read, serial_port_write};

/* ---- Life ---- */

static int fifo_after_load(void *object, struct error *err) {
    const struct serial_fifo *fifo = object;
    if (fifo->count > FIFO_SIZE || fifo->head >= FIFO_SIZE)
        return error_set(err, -EINVAL, "serial: a FIFO of %u bytes at %u", fifo->count, fifo->head);
    return 0;
}

static const struct state_field fifo_fields[] = {
    STATE_ARRAY(struct serial_fifo, bytes, 1),
    STATE_FIELD(struct serial_fifo, head, 1),
    STATE_FIELD(struct serial_fifo, count, 1),
};
static const struct state_table fifo_state =
    STATE_TABLE("fifo", 1, struct serial_fifo, fifo_fields, .after_load = fifo_after_load);

/* This back end has room, and will not say so. */
static int serial_after_load(void *object, struct error *err) {
    struct serial *serial = object;
    (void)err;
    if (serial->transmit.count)
        drain(serial);
    update_interrupt(serial);
    return 0;
}

static const struct state_field serial_fields[] = {
    STATE_FIELD(struct serial, ier, 1),
    STATE_FIELD(struct serial, lcr, 1, .reset = 0x03),
    STATE_FIELD(struct serial, mcr, 1),
    STATE_FIELD(struct serial, fcr, 1),
    STATE_FIELD(struct serial, scratch, 1),
    STATE_FIELD(struct serial, divisor, 1, .reset = 12), /* 9600 baud */
    STATE_FIELD(struct serial, overrun, 1),
    STATE_FIELD(struct serial, msr, 1, .reset = MSR_CONNECTED),
    STATE_FIELD(struct serial, transmit_pending, 1),
    STATE_NESTED(struct serial, receive, &fifo_state, 1),
    STATE_NESTED(struct serial, transmit, &fifo_state, 1),
};
static const struct state_table serial_state =
    STATE_TABLE("serial", 1, struct serial, serial_fields, .after_load = serial_after_load);

static int serial_init(struct device *device, const void *config_, struct error *err) {
    struct serial *serial = (struct serial *)device;
    const struct serial_config *config = config_;

    serial->chardev = config->chardev;
    serial->wire = (struct irq_wire){.chip = device->platform->irqchip, .gsi = config->gsi};
    if (!serial->chardev)
        serial->msr = 0;
    int rc = ports_add(device->platform->ports, device->name, config->port, SERIAL_PORTS,
                       &serial_ops, serial, &serial->ports, err);
    if (rc < 0)
        return rc;
    if (serial->chardev)
        chardev_attach(serial->chardev, &front, serial);
    resume_input(serial);
    return 0;
}

static void serial_reset(struct device *device) {
    struct serial *serial = (struct serial *)device;
    lock_take(&device->lock);
    if (!serial->chardev)
        serial->msr = 0;
    update_interrupt(serial);
    resume_input(serial);
    lock_release(&device->lock);
}

static void serial_destroy(struct device *device) {
    struct serial *serial = (struct serial *)device;
    if (serial->chardev)
        chardev_attach(serial->chardev, NULL, NULL);
    ports_remove(serial->ports);
}

const struct device_class serial_class = {
    .name = "serial",
    .size = sizeof(struct serial),
    .state = &serial_state,
    .init = serial_init,
    .reset = serial_reset,
    .destroy = serial_destroy,
};
