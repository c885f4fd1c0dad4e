#include "virtio/console.h"

#include <string.h>

#include "base/bytes.h"

enum { RECEIVE = 0, TRANSMIT = 1 };
enum { F_SIZE = 0, F_EMERG_WRITE = 2 };
/* Configuration: 5.3.4. */
enum {
    CONFIG_COLUMNS = 0,
    CONFIG_ROWS = 2,
    CONFIG_PORTS = 4,
    CONFIG_EMERGENCY = 8,
    CONFIG_SIZE = 12
};
/* Bytes taken off a chain at a time. */
enum { CONSOLE_CHUNK = 4096 };

struct virtio_console {
    struct virtio_device virtio;
    struct virtio_console_config config;
    uint16_t columns, rows;
    /* The chain at the head of the transmit queue: bytes of it that are out already. */
    uint32_t sent;
    bool stalled; /* the back end wants no output for now */
    bool refused; /* input was turned away for want of buffers */
};

static const struct state_field console_fields[] = {
    STATE_NESTED(struct virtio_console, virtio, &virtio_state, 1),
    STATE_FIELD(struct virtio_console, columns, 1, .keep = true),
    STATE_FIELD(struct virtio_console, rows, 1, .keep = true),
    STATE_FIELD(struct virtio_console, sent, 1),
};
static const struct state_table console_state =
    STATE_TABLE("virtio-console", 1, struct virtio_console, console_fields);

static struct virtio_console *console_of(struct virtio_device *device) {
    return container_of(device, struct virtio_console, virtio);
}

/* ---- Output ---- */

static size_t emit(struct virtio_console *console, const void *bytes, size_t length) {
    if (console->config.output == NULL)
        return length;
    return console->config.output(console->config.context, bytes, length);
}

/* Sends what is left of the chain; true when all of it is out. */
static bool send_chain(struct virtio_console *console, struct virtq *queue,
                       const struct virtq_chain *chain) {
    while (console->sent < chain->readable_length) {
        uint8_t bytes[CONSOLE_CHUNK];
        ssize_t got = virtq_read(queue, chain, console->sent, bytes, sizeof bytes);
        if (got <= 0)
            break;
        size_t taken = emit(console, bytes, (size_t)got);
        console->sent += (uint32_t)taken;
        if (taken < (size_t)got) {
            console->stalled = true;
            return false;
        }
    }
    console->sent = 0;
    return true;
}

static bool transmit(struct virtio_console *console) {
    struct virtq *queue = &console->virtio.queues[TRANSMIT];
    struct virtq_chain chain;
    bool more = true;
    for (unsigned turn = 0; turn < VIRTIO_TURN_MAX && !console->stalled; turn++) {
        if (!virtq_pop(queue, &chain)) {
            more = virtq_listen(queue);
            if (!more)
                break;
        } else if (send_chain(console, queue, &chain)) {
            virtq_push(queue, chain.token, 0);
        } else {
            virtq_unpop(queue, chain.token);
        }
    }
    virtq_signal(queue);
    return more && !console->stalled;
}

void virtio_console_resume(struct device *device) {
    struct virtio_console *console = container_of(device, struct virtio_console, virtio.device);
    lock_take(&device->lock);
    console->stalled = false;
    virtio_serve(&console->virtio, TRANSMIT);
    lock_release(&device->lock);
}

/* ---- Input ---- */

static size_t receive(struct virtio_console *console, const uint8_t *bytes, size_t length) {
    struct virtq *queue = &console->virtio.queues[RECEIVE];
    struct virtq_chain chain;
    size_t done = 0;
    while (done < length && virtq_pop(queue, &chain)) {
        ssize_t written = virtq_write(queue, &chain, 0, bytes + done, length - done);
        if (written < 0)
            break;
        done += (size_t)written;
        virtq_push(queue, chain.token, (uint32_t)written);
    }
    virtq_signal(queue);
    return done;
}

size_t virtio_console_input(struct device *device, const void *bytes, size_t length) {
    struct virtio_console *console = container_of(device, struct virtio_console, virtio.device);
    size_t done = 0;
    lock_take(&device->lock);
    if (virtio_running(&console->virtio)) {
        struct virtq *queue = &console->virtio.queues[RECEIVE];
        done = receive(console, bytes, length);
        /* Buffers that came while we asked to hear of them are used at once. */
        while (done < length && virtq_listen(queue)) {
            size_t more = receive(console, (const uint8_t *)bytes + done, length - done);
            if (more == 0)
                break;
            done += more;
        }
    }
    console->refused = done < length;
    lock_release(&device->lock);
    return done;
}

static bool console_notify(struct virtio_device *device, unsigned queue) {
    struct virtio_console *console = console_of(device);
    if (queue == TRANSMIT)
        return transmit(console);
    if (console->refused && console->config.input_ready != NULL) {
        console->refused = false;
        console->config.input_ready(console->config.context);
    }
    return false;
}

/* ---- Configuration ---- */

static void console_config_read(struct virtio_device *device, unsigned offset, void *to,
                                unsigned length) {
    const struct virtio_console *console = console_of(device);
    uint8_t config[CONFIG_SIZE] = {0};
    store_le16(config + CONFIG_COLUMNS, console->columns);
    store_le16(config + CONFIG_ROWS, console->rows);
    store_le32(config + CONFIG_PORTS, 1);
    memcpy(to, config + offset, length);
}

static void console_config_write(struct virtio_device *device, unsigned offset, const void *from,
                                 unsigned length) {
    /* Emergency write: a character at any time, driver or no driver (5.3.5). */
    if (offset == CONFIG_EMERGENCY)
        emit(console_of(device), from, 1);
}

void virtio_console_resize(struct device *device, uint16_t columns, uint16_t rows) {
    struct virtio_console *console = container_of(device, struct virtio_console, virtio.device);
    lock_take(&device->lock);
    bool changed = console->columns != columns || console->rows != rows;
    console->columns = columns;
    console->rows = rows;
    if (changed)
        virtio_config_changed(&console->virtio);
    lock_release(&device->lock);
}

/* ---- Class ---- */

static void console_forget(struct virtio_device *device) {
    console_of(device)->sent = 0;
}

static const struct virtio_class console_virtio_class = {
    .id = VIRTIO_ID_CONSOLE,
    .pci_class = 0x078000, /* communication controller, other */
    .config_size = CONFIG_SIZE,
    .queues = 2,
    .queue_sizes = {[RECEIVE] = 64, [TRANSMIT] = 64},
    .config_read = console_config_read,
    .config_write = console_config_write,
    .notify = console_notify,
    .reset = console_forget,
};

static int console_init(struct device *device, const void *config, struct error *err) {
    struct virtio_console *console = container_of(device, struct virtio_console, virtio.device);
    console->config = *(const struct virtio_console_config *)config;
    console->columns = console->config.columns;
    console->rows = console->config.rows;
    uint64_t features = VIRTIO_FEATURE(F_EMERG_WRITE) | VIRTIO_FEATURE(F_SIZE);
    return virtio_create(&console->virtio, &console_virtio_class, features,
                         &console->config.options, err);
}

static void console_reset(struct device *device) {
    virtio_reset(container_of(device, struct virtio_device, device));
}

static void console_destroy(struct device *device) {
    virtio_destroy(container_of(device, struct virtio_device, device));
}

const struct device_class virtio_console_class = {
    .name = "virtio-console",
    .size = sizeof(struct virtio_console),
    .state = &console_state,
    .init = console_init,
    .reset = console_reset,
    .quiesce = virtio_quiesce,
    .destroy = console_destroy,
};
