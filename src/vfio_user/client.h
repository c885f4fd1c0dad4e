/*
 * A PCI device that another process serves over vfio-user: the client's side.
 * Its function stands on this machine's bus with the server's identity and
 * BARs; accesses to the BARs become messages (writes are posted), MSI-X
 * vectors come by eventfd and go through the function's own table. There is
 * no INTx, and of the server's capabilities only MSI-X is shown.
 *
 * Guest memory. A server that keeps page flags (wire.h) gets the RAM's
 * descriptors (memory_share) and reaches it directly. Any other server
 * reaches it by VFIO_USER_DMA_READ and _WRITE alone, since an engine that
 * holds decoded code must learn of each write to it.
 *
 * When the server goes away, the client keeps connecting to its socket.
 * Meanwhile writes are kept, in order, and reads wait, ten seconds at most;
 * then they answer all ones and writes are lost, as with a device that was
 * pulled out. A server of lodge's goes on where its predecessor was
 * (server.h) and says which access that one has seen last; those behind it
 * are sent again. The last one itself may come twice, with nothing between,
 * which registers do not mind. With any other server the device has been
 * reset, and the guest's driver has to find out.
 *
 * Threads: accesses on vCPU threads, everything else on a thread of its own.
 */
#ifndef LODGE_VFIO_USER_CLIENT_H
#define LODGE_VFIO_USER_CLIENT_H

#include "device/device.h"

struct vfio_user_config {
    const char *socket; /* copied */
    int slot;           /* PCI slot + 1; 0: the next free one */
    /* A server of lodge's says that commands wait for space on its host; again and again while they
     * do. Any thread. NULL: nobody hears it. */
    void (*full)(void *context);
    void *context;
};

/* config is struct vfio_user_config. The memory is there, made after memory_share. */
extern const struct device_class vfio_user_class;

bool vfio_user_is_nvme(struct device *device);

/* Counted since the device was made; any thread. */
struct vfio_user_counters {
    uint64_t reads, writes; /* exits: accesses to BARs */
    uint64_t interrupts;
    uint64_t connections;
    uint64_t watched; /* writes to watched pages that the server told of */
};
void vfio_user_count(struct device *device, struct vfio_user_counters *counters);

#endif
