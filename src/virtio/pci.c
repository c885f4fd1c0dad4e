#include "virtio/pci.h"

#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"

enum { VIRTIO_VENDOR = 0x1af4, VIRTIO_DEVICE_BASE = 0x1040, NO_VECTOR = 0xffff };
enum { BAR_REGISTERS = 0, BAR_MSIX = 2 };
enum { ISR_QUEUE = 1, ISR_CONFIG = 2 };

/* The vendor capability: 4.1.4. Offsets in it, and its kinds. */
enum { CAP_VENDOR = 0x09, CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_DATA = 16 };
enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_WINDOW = 5 };

/* Configuration space header. */
enum { PCI_COMMAND = 0x04, PCI_COMMAND_MEMORY = 2, PCI_BAR0 = 0x10 };

static const struct state_field virtio_fields[] = {
    STATE_FIELD(struct virtio_device, features, 1),
    STATE_FIELD(struct virtio_device, feature_select, 1),
    STATE_FIELD(struct virtio_device, driver_feature_select, 1),
    STATE_FIELD(struct virtio_device, queue_select, 1),
    STATE_FIELD(struct virtio_device, config_vector, 1, .reset = NO_VECTOR),
    STATE_FIELD(struct virtio_device, status, 1),
    STATE_FIELD(struct virtio_device, isr, 1),
    STATE_FIELD(struct virtio_device, generation, 1, .keep = true),
    STATE_NESTED_ARRAY(struct virtio_device, queues, &virtq_state, 1),
};

static void serve_all(struct virtio_device *device);

static int virtio_after_load(void *object, struct error *err) {
    struct virtio_device *device = object;
    if (device->features & ~device->offered)
        return error_set(err, -EINVAL, "%s: saved with features that this device does not offer",
                         device->device.name);
    if (!pci_msix_enabled(device->function))
        pci_intx_set(device->function, device->isr != 0);
    serve_all(device);
    return 0;
}

const struct state_table virtio_state =
    STATE_TABLE("virtio", 1, struct virtio_device, virtio_fields, .after_load = virtio_after_load);

/* ---- Interrupts ---- */

static void interrupt(struct virtio_device *device, uint16_t vector, uint8_t cause) {
    if (pci_msix_enabled(device->function)) {
        if (vector != NO_VECTOR)
            pci_msix_notify(device->function, vector);
        return;
    }
    device->isr |= cause;
    pci_intx_set(device->function, true);
}

static void queue_interrupt(void *context, struct virtq *queue) {
    interrupt(context, queue->vector, ISR_QUEUE);
}

static void queue_broken(void *context, struct virtq *queue, const char *why) {
    struct virtio_device *device = context;
    log_guest("%s: queue %u: %s: device needs reset", device->device.name, queue->index, why);
    device->status |= VIRTIO_NEEDS_RESET;
    if (device->status & VIRTIO_DRIVER_OK)
        interrupt(device, device->config_vector, ISR_CONFIG);
}

void virtio_config_changed(struct virtio_device *device) {
    device->generation++;
    if (virtio_running(device))
        interrupt(device, device->config_vector, ISR_CONFIG);
}

/* ---- Serving queues ---- */

static void serve_turn(void *context);

static void post_turn(struct virtio_device *device) {
    if (!device->turn_posted)
        device->turn_posted = loop_post(device->device.platform->loop, serve_turn, device) == 0;
}

void virtio_serve(struct virtio_device *device, unsigned queue) {
    if (!virtio_running(device) || !device->queues[queue].ready)
        return;
    /* With its rings away it is served when they have come. */
    bool wait = !device->quiet && !virtq_is_here(&device->queues[queue]);
    if (wait || (!device->quiet && !device->class->notify(device, queue)))
        return;
    device->turn_queues |= 1u << queue;
    if (!device->quiet)
        post_turn(device);
}

static void serve_came(void *context) {
    struct virtio_device *device = context;
    lock_take(&device->device.lock);
    unsigned queues = atomic_exchange(&device->came, 0);
    for (unsigned i = 0; i < device->class->queues; i++)
        if (queues & 1u << i)
            virtio_serve(device, i);
    lock_release(&device->device.lock);
}

static void queue_came(void *context, struct virtq *queue) {
    struct virtio_device *device = context;
    if (atomic_fetch_or(&device->came, 1u << queue->index) == 0)
        loop_post(device->device.platform->loop, serve_came, device);
}

/* All queues, soon: nobody says which of them have something to do. */
static void serve_all(struct virtio_device *device) {
    device->turn_queues = (1u << device->class->queues) - 1;
    post_turn(device);
}

bool virtio_quiesce(struct device *base, bool quiet) {
    struct virtio_device *device = container_of(base, struct virtio_device, device);
    lock_take(&base->lock);
    device->quiet = quiet;
    if (quiet && device->class->rest != NULL)
        device->class->rest(device);
    if (!quiet && device->turn_queues != 0)
        post_turn(device);
    bool idle = device->in_flight == 0;
    lock_release(&base->lock);
    return idle;
}

static void serve_turn(void *context) {
    struct virtio_device *device = context;
    lock_take(&device->device.lock);
    uint32_t queues = device->turn_queues;
    device->turn_queues = 0;
    device->turn_posted = false;
    for (unsigned i = 0; i < device->class->queues; i++)
        if (queues & 1u << i)
            virtio_serve(device, i);
    lock_release(&device->device.lock);
}

void virtio_pci_notify(struct virtio_device *device, unsigned queue) {
    lock_take(&device->device.lock);
    if (queue < device->class->queues)
        virtio_serve(device, queue);
    lock_release(&device->device.lock);
}

/* ---- Life cycle: status, features, reset ---- */

static void finish_reset(struct virtio_device *device) {
    device->reset_wanted = false;
    device->turn_queues = 0;
    state_reset(&virtio_state, device);
    for (unsigned i = 0; i < device->class->queues; i++)
        virtq_reset(&device->queues[i]);
    if (device->class->reset != NULL)
        device->class->reset(device);
    pci_intx_set(device->function, false);
}

void virtio_reset(struct virtio_device *device) {
    lock_take(&device->device.lock);
    finish_reset(device);
    lock_release(&device->device.lock);
}

void virtio_hold(struct virtio_device *device) {
    device->in_flight++;
}

void virtio_release(struct virtio_device *device) {
    struct platform *platform = device->device.platform;
    if (--device->in_flight > 0)
        return;
    if (device->reset_wanted)
        finish_reset(device);
    if (device->quiet && platform->idle != NULL)
        platform->idle(platform);
}

static void driver_reset(struct virtio_device *device) {
    device->reset_wanted = true;
    if (device->in_flight == 0)
        finish_reset(device);
    else if (device->class->cancel != NULL)
        device->class->cancel(device);
}

static bool features_acceptable(const struct virtio_device *device) {
    return (device->features & ~device->offered) == 0 && virtio_has(device, VIRTIO_F_VERSION_1);
}

static void driver_ok(struct virtio_device *device) {
    if (device->class->started != NULL)
        device->class->started(device);
    /* What the driver made available, and perhaps notified of, before it was ready. */
    for (unsigned i = 0; i < device->class->queues; i++)
        virtio_serve(device, i);
}

static void write_status(struct virtio_device *device, uint8_t value) {
    if (value == 0) {
        driver_reset(device);
        return;
    }
    uint8_t old = device->status;
    uint8_t allowed = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FAILED | VIRTIO_FEATURES_OK;
    if ((value & VIRTIO_FEATURES_OK) && !(old & VIRTIO_FEATURES_OK) && !features_acceptable(device))
        allowed &= ~VIRTIO_FEATURES_OK;
    if (old & VIRTIO_FEATURES_OK)
        allowed |= VIRTIO_DRIVER_OK;
    device->status |= value & allowed;
    if ((device->status & ~old) & VIRTIO_DRIVER_OK)
        driver_ok(device);
}

static void write_features(struct virtio_device *device, uint32_t value) {
    if (device->driver_feature_select > 1 || (device->status & VIRTIO_FEATURES_OK))
        return;
    unsigned shift = 32 * device->driver_feature_select;
    device->features &= ~((uint64_t)UINT32_MAX << shift);
    device->features |= (uint64_t)value << shift;
}

/* ---- Common configuration ---- */

static struct virtq *selected(struct virtio_device *device) {
    return device->queue_select < device->class->queues ? &device->queues[device->queue_select]
                                                        : NULL;
}

static void image_of_queue(const struct virtq *queue, uint8_t *image) {
    store_le16(image + VIRTIO_COMMON_QUEUE_SIZE, queue->size);
    store_le16(image + VIRTIO_COMMON_QUEUE_VECTOR, queue->vector);
    store_le16(image + VIRTIO_COMMON_QUEUE_ENABLE, queue->ready);
    store_le16(image + VIRTIO_COMMON_QUEUE_NOTIFY, queue->index);
    store_le64(image + VIRTIO_COMMON_QUEUE_DESCRIPTORS, queue->descriptors);
    store_le64(image + VIRTIO_COMMON_QUEUE_DRIVER, queue->driver);
    store_le64(image + VIRTIO_COMMON_QUEUE_DEVICE, queue->device);
}

static uint64_t common_read(struct virtio_device *device, unsigned offset, unsigned size) {
    uint8_t image[VIRTIO_COMMON_SIZE + 8] = {0};
    if (offset >= VIRTIO_COMMON_SIZE)
        return 0;
    uint32_t select = device->feature_select, driver_select = device->driver_feature_select;
    store_le32(image + VIRTIO_COMMON_FEATURE_SELECT, select);
    store_le32(image + VIRTIO_COMMON_FEATURE,
               select > 1 ? 0 : (uint32_t)(device->offered >> 32 * select));
    store_le32(image + VIRTIO_COMMON_DRIVER_FEATURE_SELECT, driver_select);
    store_le32(image + VIRTIO_COMMON_DRIVER_FEATURE,
               driver_select > 1 ? 0 : (uint32_t)(device->features >> 32 * driver_select));
    store_le16(image + VIRTIO_COMMON_CONFIG_VECTOR, device->config_vector);
    store_le16(image + VIRTIO_COMMON_QUEUES, device->class->queues);
    image[VIRTIO_COMMON_STATUS] = device->status;
    image[VIRTIO_COMMON_GENERATION] = device->generation;
    store_le16(image + VIRTIO_COMMON_QUEUE_SELECT, device->queue_select);
    const struct virtq *queue = selected(device);
    if (queue != NULL)
        image_of_queue(queue, image);
    return load_le(image + offset, size);
}

static uint16_t valid_vector(const struct virtio_device *device, uint64_t value) {
    return value <= device->class->queues ? (uint16_t)value : NO_VECTOR;
}

static void enable_queue(struct virtio_device *device, struct virtq *queue) {
    if (!(device->status & VIRTIO_FEATURES_OK)) {
        log_guest("%s: queue %u enabled before the features are agreed", device->device.name,
                  queue->index);
        return;
    }
    virtq_enable(queue, (struct virtq_features){
                            .packed = virtio_has(device, VIRTIO_F_RING_PACKED),
                            .event_index = virtio_has(device, VIRTIO_F_EVENT_IDX),
                            .indirect = virtio_has(device, VIRTIO_F_INDIRECT_DESC),
                        });
}

/* A 64-bit address, written whole or by halves. */
static void write_address(uint64_t *address, unsigned half, uint64_t value, unsigned size) {
    if (size == 8)
        *address = value;
    else if (half != 0)
        *address = (*address & UINT32_MAX) | value << 32;
    else
        *address = (*address & ~(uint64_t)UINT32_MAX) | value;
}

static void queue_write(struct virtio_device *device, unsigned offset, uint64_t value,
                        unsigned size) {
    struct virtq *queue = selected(device);
    if (queue == NULL)
        return;
    if (offset == VIRTIO_COMMON_QUEUE_VECTOR) {
        queue->vector = valid_vector(device, value);
        return;
    }
    if (queue->ready)
        return;
    unsigned half = offset >= VIRTIO_COMMON_QUEUE_DESCRIPTORS ? offset & 4 : 0;
    switch (offset - half) {
    case VIRTIO_COMMON_QUEUE_SIZE: queue->size = (uint16_t)value; break;
    case VIRTIO_COMMON_QUEUE_ENABLE:
        if (value == 1)
            enable_queue(device, queue);
        break;
    case VIRTIO_COMMON_QUEUE_DESCRIPTORS:
        write_address(&queue->descriptors, half, value, size);
        break;
    case VIRTIO_COMMON_QUEUE_DRIVER: write_address(&queue->driver, half, value, size); break;
    case VIRTIO_COMMON_QUEUE_DEVICE: write_address(&queue->device, half, value, size); break;
    default: break;
    }
}

/* The width of the field at offset; 0: no field starts there, or it is not writable. */
static unsigned field_size(unsigned offset) {
    switch (offset) {
    case VIRTIO_COMMON_FEATURE_SELECT:
    case VIRTIO_COMMON_DRIVER_FEATURE_SELECT:
    case VIRTIO_COMMON_DRIVER_FEATURE:
    case VIRTIO_COMMON_QUEUE_DESCRIPTORS:
    case VIRTIO_COMMON_QUEUE_DESCRIPTORS + 4:
    case VIRTIO_COMMON_QUEUE_DRIVER:
    case VIRTIO_COMMON_QUEUE_DRIVER + 4:
    case VIRTIO_COMMON_QUEUE_DEVICE:
    case VIRTIO_COMMON_QUEUE_DEVICE + 4: return 4;
    case VIRTIO_COMMON_CONFIG_VECTOR:
    case VIRTIO_COMMON_QUEUE_SELECT:
    case VIRTIO_COMMON_QUEUE_SIZE:
    case VIRTIO_COMMON_QUEUE_VECTOR:
    case VIRTIO_COMMON_QUEUE_ENABLE: return 2;
    case VIRTIO_COMMON_STATUS: return 1;
    default: return 0;
    }
}

static void common_write(struct virtio_device *device, unsigned offset, uint64_t value,
                         unsigned size) {
    bool address = offset >= VIRTIO_COMMON_QUEUE_DESCRIPTORS && offset % 8 == 0 && size == 8;
    if (size != field_size(offset) && !address) {
        log_guest("%s: %u-byte write at common configuration %xh ignored", device->device.name,
                  size, offset);
        return;
    }
    /* Nothing but reading the status makes sense until an asked-for reset is through. */
    if (device->reset_wanted)
        return;
    switch (offset) {
    case VIRTIO_COMMON_FEATURE_SELECT: device->feature_select = (uint32_t)value; break;
    case VIRTIO_COMMON_DRIVER_FEATURE_SELECT:
        device->driver_feature_select = (uint32_t)value;
        break;
    case VIRTIO_COMMON_DRIVER_FEATURE: write_features(device, (uint32_t)value); break;
    case VIRTIO_COMMON_CONFIG_VECTOR: device->config_vector = valid_vector(device, value); break;
    case VIRTIO_COMMON_STATUS: write_status(device, (uint8_t)value); break;
    case VIRTIO_COMMON_QUEUE_SELECT: device->queue_select = (uint16_t)value; break;
    default: queue_write(device, offset, value, size); break;
    }
}

/* ---- The other structures ---- */

static uint64_t isr_read(struct virtio_device *device) {
    uint8_t isr = device->isr;
    device->isr = 0;
    pci_intx_set(device->function, false);
    return isr;
}

static uint64_t config_read(struct virtio_device *device, unsigned offset, unsigned size) {
    uint8_t bytes[8] = {0};
    unsigned limit = device->class->config_size;
    if (offset < limit)
        device->class->config_read(device, offset, bytes,
                                   size < limit - offset ? size : limit - offset);
    return load_le(bytes, size);
}

static void config_write(struct virtio_device *device, unsigned offset, uint64_t value,
                         unsigned size) {
    uint8_t bytes[8];
    store_le64(bytes, value);
    if (device->class->config_write != NULL &&
        range_within(offset, size, device->class->config_size))
        device->class->config_write(device, offset, bytes, size);
}

static uint64_t bar_read(void *context, uint64_t offset, unsigned size) {
    struct virtio_device *device = context;
    unsigned page = (unsigned)offset & ~0xfffu, within = (unsigned)offset & 0xfff;
    uint64_t value = 0;
    lock_take(&device->device.lock);
    if (page == VIRTIO_PCI_COMMON)
        value = common_read(device, within, size);
    else if (page == VIRTIO_PCI_ISR && within == 0)
        value = isr_read(device);
    else if (page == VIRTIO_PCI_DEVICE)
        value = config_read(device, within, size);
    lock_release(&device->device.lock);
    return value;
}

static void bar_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct virtio_device *device = context;
    unsigned page = (unsigned)offset & ~0xfffu, within = (unsigned)offset & 0xfff;
    if (page == VIRTIO_PCI_NOTIFY) {
        virtio_pci_notify(device, within / VIRTIO_PCI_NOTIFY_STEP);
        return;
    }
    lock_take(&device->device.lock);
    if (page == VIRTIO_PCI_COMMON)
        common_write(device, within, value, size);
    else if (page == VIRTIO_PCI_DEVICE)
        config_write(device, within, value, size);
    lock_release(&device->device.lock);
}

static const struct io_ops bar_ops = {.read = bar_read, .write = bar_write};

bool virtio_pci_notify_address(struct virtio_device *device, unsigned queue, uint64_t *gpa) {
    const uint8_t *config = pci_config_bytes(device->function);
    if (!(config[PCI_COMMAND] & PCI_COMMAND_MEMORY))
        return false;
    *gpa = (load_le64(config + PCI_BAR0) & ~UINT64_C(15)) + VIRTIO_PCI_NOTIFY +
           (uint64_t)queue * VIRTIO_PCI_NOTIFY_STEP;
    return true;
}

/* ---- The window in configuration space (4.1.4.9) ---- */

/* True when the access touches the window's data and the window names a place in the BAR. */
static bool window_target(struct virtio_device *device, uint16_t offset, unsigned size,
                          uint32_t *target, uint32_t *length) {
    const uint8_t *cap = pci_config_bytes(device->function) + device->window_offset;
    unsigned data = device->window_offset + CAP_DATA;
    if (offset >= data + 4 || offset + size <= data)
        return false;
    *target = load_le32(cap + CAP_OFFSET);
    *length = load_le32(cap + CAP_LENGTH);
    return cap[CAP_BAR] == BAR_REGISTERS && (*length == 1 || *length == 2 || *length == 4) &&
           *target % *length == 0 && range_within(*target, *length, VIRTIO_PCI_BAR_SIZE);
}

static void window_reading(void *context, uint16_t offset, unsigned size) {
    struct virtio_device *device = context;
    uint32_t target, length;
    if (!window_target(device, offset, size, &target, &length))
        return;
    uint8_t *data = pci_config_bytes(device->function) + device->window_offset + CAP_DATA;
    store_le(data, bar_read(device, target, length), length);
}

static void window_written(void *context, uint16_t offset, unsigned size) {
    struct virtio_device *device = context;
    uint32_t target, length;
    if (!window_target(device, offset, size, &target, &length))
        return;
    uint8_t *data = pci_config_bytes(device->function) + device->window_offset + CAP_DATA;
    bar_write(device, target, load_le(data, length), length);
}

/* ---- Making ---- */

/* Adds one vendor capability; `extra` is the notify multiplier or the window's data. */
static int add_capability(struct virtio_device *device, uint8_t kind, uint32_t offset,
                          uint32_t length, uint32_t extra) {
    uint8_t cap[CAP_DATA + 4] = {0}, writable[CAP_DATA + 4] = {0};
    bool longer = kind == CAP_NOTIFY || kind == CAP_WINDOW;
    cap[2] = longer ? sizeof cap : CAP_DATA;
    cap[3] = kind;
    cap[CAP_BAR] = BAR_REGISTERS;
    store_le32(cap + CAP_OFFSET, offset);
    store_le32(cap + CAP_LENGTH, length);
    store_le32(cap + CAP_DATA, extra);
    if (kind == CAP_WINDOW) {
        writable[CAP_BAR] = 0xff;
        memset(writable + CAP_OFFSET, 0xff, sizeof writable - CAP_OFFSET);
    }
    /* Id and next pointer are the bus's; the body starts after them. */
    return pci_add_capability(device->function, CAP_VENDOR, cap + 2, writable + 2, cap[2]);
}

static int add_capabilities(struct virtio_device *device, struct error *err) {
    const struct virtio_class *class = device->class;
    int window = -ENOSPC;
    if (add_capability(device, CAP_COMMON, VIRTIO_PCI_COMMON, VIRTIO_COMMON_SIZE, 0) >= 0 &&
        add_capability(device, CAP_ISR, VIRTIO_PCI_ISR, 1, 0) >= 0 &&
        (class->config_size == 0 ||
         add_capability(device, CAP_DEVICE, VIRTIO_PCI_DEVICE, class->config_size, 0) >= 0) &&
        add_capability(device, CAP_NOTIFY, VIRTIO_PCI_NOTIFY,
                       class->queues * VIRTIO_PCI_NOTIFY_STEP, VIRTIO_PCI_NOTIFY_STEP) >= 0)
        window = add_capability(device, CAP_WINDOW, 0, 0, 0);
    if (window < 0)
        return error_set(err, window, "%s: no room for PCI capabilities", device->device.name);
    device->window_offset = (uint8_t)window;
    return 0;
}

static int create_function(struct virtio_device *device, const struct virtio_options *options,
                           struct error *err) {
    const struct virtio_class *class = device->class;
    struct pci_function_config config = {
        .vendor = VIRTIO_VENDOR,
        .device = VIRTIO_DEVICE_BASE + class->id,
        .subsystem_vendor = VIRTIO_VENDOR,
        .subsystem = VIRTIO_DEVICE_BASE + class->id,
        .class_code = class->pci_class,
        .revision = 1,
        .interrupt_pin = true,
        .bars[BAR_REGISTERS] = {.kind = PCI_BAR_MEM64,
                                .size = VIRTIO_PCI_BAR_SIZE,
                                .ops = &bar_ops},
        .bars[BAR_MSIX] = {.kind = PCI_BAR_MEM32},
        .msix_vectors = class->queues + 1,
        .msix_bar = BAR_MSIX,
        .slot = options->slot - 1,
        .context = device,
        .config_written = window_written,
        .config_reading = window_reading,
    };
    return pci_function_create(device->device.platform->pci, &config, &device->function, err);
}

int virtio_create(struct virtio_device *device, const struct virtio_class *class, uint64_t features,
                  const struct virtio_options *options, struct error *err) {
    device->class = class;
    device->offered = features | VIRTIO_FEATURE(VIRTIO_F_VERSION_1) |
                      VIRTIO_FEATURE(VIRTIO_F_INDIRECT_DESC) | VIRTIO_FEATURE(VIRTIO_F_EVENT_IDX);
    if (options->packed)
        device->offered |= VIRTIO_FEATURE(VIRTIO_F_RING_PACKED);
    int rc = create_function(device, options, err);
    if (rc != 0)
        return rc;
    rc = add_capabilities(device, err);
    if (rc != 0) {
        pci_function_destroy(device->function);
        return rc;
    }
    device->owner = (struct virtq_owner){.dma = pci_dma(device->function),
                                         .interrupt = queue_interrupt,
                                         .broken = queue_broken,
                                         .came = queue_came,
                                         .context = device};
    for (unsigned i = 0; i < class->queues; i++)
        virtq_init(&device->queues[i], &device->owner, (uint16_t)i, class->queue_sizes[i]);
    device->config_vector = NO_VECTOR;
    return 0;
}

void virtio_destroy(struct virtio_device *device) {
    for (unsigned i = 0; i < device->class->queues; i++)
        virtq_reset(&device->queues[i]);
    pci_function_destroy(device->function);
}
