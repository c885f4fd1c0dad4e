/*
 * Entropy device (virtio 1.2, section 5.4): the guest's hwrng, fed from the
 * host's getrandom(2).
 */
#ifndef LODGE_VIRTIO_RNG_H
#define LODGE_VIRTIO_RNG_H

#include "virtio/virtio.h"

struct virtio_rng_config {
    struct virtio_options options;
};

/* config is struct virtio_rng_config. */
extern const struct device_class virtio_rng_class;

#endif
