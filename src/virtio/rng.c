#include "virtio/rng.h"

#include <sys/random.h>

#include "base/bytes.h"

enum { REQUESTS = 0, RNG_CHUNK = 256, RNG_REQUEST_MAX = 4096, RNG_TURN_MAX = 16 };

struct virtio_rng {
    struct virtio_device virtio;
};

static const struct state_field rng_fields[] = {
    STATE_NESTED(struct virtio_rng, virtio, &virtio_state, 1),
};
static const struct state_table rng_state =
    STATE_TABLE("virtio-rng", 1, struct virtio_rng, rng_fields);

/* Answers the bytes written; a request may be answered short (5.4.6). */
static uint32_t fill(struct virtq *queue, const struct virtq_chain *chain) {
    uint32_t done = 0;
    while (done < chain->writable_length && done < RNG_REQUEST_MAX) {
        uint8_t bytes[RNG_CHUNK];
        /* Up to 256 bytes come whole and uninterrupted, see getrandom(2). */
        ssize_t got = getrandom(bytes, sizeof bytes, 0);
        if (got <= 0)
            break;
        ssize_t written = virtq_write(queue, chain, done, bytes, (size_t)got);
        if (written <= 0)
            break;
        done += (uint32_t)written;
    }
    return done;
}

static bool rng_notify(struct virtio_device *device, unsigned index) {
    struct virtq *queue = &device->queues[index];
    struct virtq_chain chain;
    for (unsigned turn = 0; turn < RNG_TURN_MAX; turn++) {
        if (!virtq_pop(queue, &chain)) {
            virtq_signal(queue);
            if (!virtq_listen(queue))
                return false;
            continue;
        }
        virtq_push(queue, chain.token, fill(queue, &chain));
    }
    virtq_signal(queue);
    return true;
}

static const struct virtio_class rng_virtio_class = {
    .id = VIRTIO_ID_ENTROPY,
    .pci_class = 0xff0000,
    .queues = 1,
    .queue_sizes = {[REQUESTS] = 64},
    .notify = rng_notify,
};

static int rng_init(struct device *device, const void *config, struct error *err) {
    const struct virtio_rng_config *rng_config = config;
    struct virtio_rng *rng = container_of(device, struct virtio_rng, virtio.device);
    return virtio_create(&rng->virtio, &rng_virtio_class, 0, &rng_config->options, err);
}

static void rng_reset(struct device *device) {
    virtio_reset(container_of(device, struct virtio_device, device));
}

static void rng_destroy(struct device *device) {
    virtio_destroy(container_of(device, struct virtio_device, device));
}

const struct device_class virtio_rng_class = {
    .name = "virtio-rng",
    .size = sizeof(struct virtio_rng),
    .state = &rng_state,
    .init = rng_init,
    .reset = rng_reset,
    .quiesce = virtio_quiesce,
    .destroy = rng_destroy,
};
