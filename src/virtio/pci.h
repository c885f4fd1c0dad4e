/*
 * The PCI transport of virtio devices (virtio 1.2, section 4.1), modern only.
 *
 * BAR 0 (64-bit memory, 16 KiB) holds the four structures, a page each:
 *
 *     0000h common configuration   1000h interrupt status
 *     2000h device configuration   3000h notifications, 4 bytes a queue
 *
 * BAR 2 is the MSI-X table: vector 0 to queues. Without MSI-X the function
 * uses INTA#. A vendor capability each leads drivers there, and a fifth one
 * is a window for those that cannot map BARs.
 *
 * The devices' side of the contract is virtio/virtio.h.
 */
#ifndef LODGE_VIRTIO_PCI_H
#define LODGE_VIRTIO_PCI_H

#include "virtio/virtio.h"

enum {
    VIRTIO_PCI_COMMON = 0x0000,
    VIRTIO_PCI_ISR = 0x1000,
    VIRTIO_PCI_DEVICE = 0x2000,
    VIRTIO_PCI_NOTIFY = 0x3000,
    VIRTIO_PCI_NOTIFY_STEP = 4,
    VIRTIO_PCI_BAR_SIZE = 0x4000,
};

/* Offsets of the common configuration structure: 4.1.4.3. */
enum {
    VIRTIO_COMMON_FEATURE_SELECT = 0,
    VIRTIO_COMMON_FEATURE = 4,
    VIRTIO_COMMON_DRIVER_FEATURE_SELECT = 8,
    VIRTIO_COMMON_DRIVER_FEATURE = 12,
    VIRTIO_COMMON_CONFIG_VECTOR = 16,
    VIRTIO_COMMON_QUEUES = 18,
    VIRTIO_COMMON_STATUS = 20,
    VIRTIO_COMMON_GENERATION = 21,
    VIRTIO_COMMON_QUEUE_SELECT = 22,
    VIRTIO_COMMON_QUEUE_SIZE = 24,
    VIRTIO_COMMON_QUEUE_VECTOR = 26,
    VIRTIO_COMMON_QUEUE_ENABLE = 28,
    VIRTIO_COMMON_QUEUE_NOTIFY = 30,
    VIRTIO_COMMON_QUEUE_DESCRIPTORS = 32,
    VIRTIO_COMMON_QUEUE_DRIVER = 40,
    VIRTIO_COMMON_QUEUE_DEVICE = 48,
    VIRTIO_COMMON_SIZE = 60, /* with queue_notify_data and queue_reset, which read 0 here */
};

/*
 * For engines that catch notifications in the kernel (ioeventfd): where a
 * queue's 2-byte notification is written now; false while the BAR does not
 * decode. Whoever takes the event calls virtio_pci_notify. Lock not held.
 */
bool virtio_pci_notify_address(struct virtio_device *device, unsigned queue, uint64_t *gpa);

/* The driver notified queue n. Any thread, lock not held. */
void virtio_pci_notify(struct virtio_device *device, unsigned queue);

#endif
