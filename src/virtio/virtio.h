/*
 * A virtio device, seen from the device's side: its transport (virtio/pci.h)
 * keeps the registers, negotiates features, runs resets and delivers
 * interrupts; the device fills in a struct virtio_class and gets notified.
 *
 * A device's object begins with struct virtio_device, which begins with
 * struct device; its device_class calls virtio_create in init,
 * virtio_reset in reset and virtio_destroy in destroy.
 *
 * Source: virtio 1.2 (OASIS, 2022). Only VERSION_1 drivers are served.
 *
 * Lock: every call into a device below is made with device.lock held, and the
 * calls that a device makes here want it held unless they say otherwise.
 * Threads: notifications come on the vCPU's own thread (short work is done
 * there: waking the loop would cost more), continued on the loop when a turn
 * was not enough.
 */
#ifndef LODGE_VIRTIO_VIRTIO_H
#define LODGE_VIRTIO_VIRTIO_H

#include "device/device.h"
#include "pci/pci.h"
#include "virtio/queue.h"

enum { VIRTIO_QUEUES_MAX = 4 };

/* Most chains a device serves in one turn before others get theirs. */
enum { VIRTIO_TURN_MAX = 256 };

/* Device ids: section 5. */
enum {
    VIRTIO_ID_NET = 1,
    VIRTIO_ID_BLOCK = 2,
    VIRTIO_ID_CONSOLE = 3,
    VIRTIO_ID_ENTROPY = 4,
    VIRTIO_ID_BALLOON = 5,
    VIRTIO_ID_SCSI = 8,
    VIRTIO_ID_VSOCK = 19,
    VIRTIO_ID_MEM = 24,
    VIRTIO_ID_FS = 26,
};

/* Device status: section 2.1. */
enum {
    VIRTIO_ACKNOWLEDGE = 1,
    VIRTIO_DRIVER = 2,
    VIRTIO_DRIVER_OK = 4,
    VIRTIO_FEATURES_OK = 8,
    VIRTIO_NEEDS_RESET = 64,
    VIRTIO_FAILED = 128,
};

/* Feature bits that belong to no one device: section 6. */
enum {
    VIRTIO_F_INDIRECT_DESC = 28,
    VIRTIO_F_EVENT_IDX = 29,
    VIRTIO_F_VERSION_1 = 32,
    VIRTIO_F_RING_PACKED = 34,
};

#define VIRTIO_FEATURE(bit) (UINT64_C(1) << (bit))

struct virtio_device;

struct virtio_class {
    uint16_t id;          /* VIRTIO_ID_* */
    uint32_t pci_class;   /* class code of its PCI function */
    uint16_t config_size; /* bytes of device configuration, up to 256 */
    uint8_t queues;
    uint16_t queue_sizes[VIRTIO_QUEUES_MAX];

    /* Device configuration: the transport has checked that the range lies within config_size. */
    void (*config_read)(struct virtio_device *device, unsigned offset, void *to, unsigned length);
    /* Optional: absent where nothing is writable. */
    void (*config_write)(struct virtio_device *device, unsigned offset, const void *from,
                         unsigned length);

    /*
     * The driver made chains available, or a turn is continued. Serves up to
     * VIRTIO_TURN_MAX chains; true when more are waiting. Only called on
     * ready queues of a device that is DRIVER_OK.
     */
    bool (*notify)(struct virtio_device *device, unsigned queue);

    /* Optional: the driver said DRIVER_OK. */
    void (*started)(struct virtio_device *device);
    /* Optional: the driver resets while work is in flight: what waits may end at once. */
    void (*cancel)(struct virtio_device *device);
    /* Optional: guest memory is to be left alone for a while: chains that no work in flight has are
     * put back. */
    void (*rest)(struct virtio_device *device);
    /* Optional: forget all that a driver has told; work in flight (virtio_hold) has ended. */
    void (*reset)(struct virtio_device *device);
};

struct virtio_device {
    struct device device;
    const struct virtio_class *class;
    struct pci_function *function;
    uint64_t offered;  /* feature bits */
    uint64_t features; /* what the driver accepted */
    struct virtq_owner owner;
    struct virtq queues[VIRTIO_QUEUES_MAX];

    /* Registers of the common configuration (4.1.4.3) and ISR (4.1.4.5). */
    uint32_t feature_select, driver_feature_select;
    uint16_t queue_select, config_vector;
    uint8_t status, isr, generation;

    /* Host-side bookkeeping: not state. */
    uint8_t window_offset; /* PCI configuration access capability (4.1.4.9) */
    unsigned in_flight;    /* virtio_hold */
    bool reset_wanted;     /* the driver asked while work was in flight */
    bool turn_posted;
    bool quiet;           /* virtio_quiesce */
    uint32_t turn_queues; /* bit n: continue queue n on the loop */
    atomic_uint came;     /* bit n: memory that queue n waited for has come; any thread */
};

/* What virtio devices are configured with alike; first member of their config structs. */
struct virtio_options {
    bool packed; /* offer packed rings */
    int slot;    /* PCI slot + 1; 0: the next free one */
};

/* The transport's registers and the queues, to nest in a device's own table. */
extern const struct state_table virtio_state;

/*
 * Makes the transport: a PCI function on platform->pci with `features`
 * (the device's own bits; the transport adds VERSION_1, INDIRECT_DESC,
 * EVENT_IDX, and RING_PACKED if asked). From a device's init, lock not held.
 */
int virtio_create(struct virtio_device *device, const struct virtio_class *class, uint64_t features,
                  const struct virtio_options *options, struct error *err);

/* The machine resets the device (device_class.reset). Lock not held; nothing is in flight. */
void virtio_reset(struct virtio_device *device);

/* All virtio devices' device_class.quiesce: queues wait, guest memory is left alone. */
bool virtio_quiesce(struct device *device, bool quiet);

/* Lock not held, no vCPU and no loop running. */
void virtio_destroy(struct virtio_device *device);

/* True between DRIVER_OK and reset, unless the device needs reset. */
static inline bool virtio_running(const struct virtio_device *device) {
    return (device->status & (VIRTIO_DRIVER_OK | VIRTIO_NEEDS_RESET)) == VIRTIO_DRIVER_OK &&
           !device->reset_wanted;
}

static inline bool virtio_has(const struct virtio_device *device, unsigned feature) {
    return device->features & VIRTIO_FEATURE(feature);
}

/*
 * Work that outlives the call (a disk request) holds the device: a reset by
 * the driver reads back as unfinished until everything is released.
 */
void virtio_hold(struct virtio_device *device);
void virtio_release(struct virtio_device *device);

/* The device's configuration changed: the driver is told. */
void virtio_config_changed(struct virtio_device *device);

/* Serves a queue because its back end moved. Lock held; any thread. */
void virtio_serve(struct virtio_device *device, unsigned queue);

#endif
