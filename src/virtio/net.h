/*
 * Network device (virtio 1.2, section 5.1): one receive and one transmit
 * queue, mergeable receive buffers, no offloads. Neither queue waits for
 * memory that is away (net_backup.h).
 */
#ifndef LODGE_VIRTIO_NET_H
#define LODGE_VIRTIO_NET_H

#include "net/net.h"
#include "virtio/net_backup.h"
#include "virtio/virtio.h"

struct virtio_net_config {
    struct virtio_options options;
    struct net *net; /* stays the caller's; closed after the device is destroyed */
    uint8_t mac[6];  /* all zero: 02:6c:6f:64:67:65 */
};

/* config is struct virtio_net_config. */
extern const struct device_class virtio_net_class;

/* The cable is plugged in or pulled. Any thread, lock not held. */
void virtio_net_set_link(struct device *device, bool up);

/* It has another address from now on, which a driver sees when it starts; *old is the one before.
 * As above. */
void virtio_net_set_mac(struct device *device, const uint8_t mac[6], uint8_t old[6]);

/* Tells the network where its address is now (RFC 903: a request that needs no answer). As above.
 */
void virtio_net_announce(struct device *device);

/* What went by way of backup buffers. As above. */
void virtio_net_count(struct device *device, struct net_backup_counters *counters);

#endif
