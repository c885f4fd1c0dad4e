/*
 * Network device (virtio 1.2, section 5.1): one receive and one transmit
 * queue, mergeable receive buffers, no offloads.
 */
#ifndef LODGE_VIRTIO_NET_H
#define LODGE_VIRTIO_NET_H

#include "net/net.h"
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

#endif
