#include "virtio/net.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "virtio/net_backup.h"

enum { RECEIVE = 0, TRANSMIT = 1 };
enum { F_MTU = 3, F_MAC = 5, F_MRG_RXBUF = 15, F_STATUS = 16 };
/* Configuration: 5.1.4. */
enum { CONFIG_MAC = 0, CONFIG_STATUS = 6, CONFIG_PAIRS = 8, CONFIG_MTU = 10, CONFIG_SIZE = 12 };
enum { STATUS_LINK_UP = 1 };
/* Buffers that one frame may be spread over. */
enum { MERGE_MAX = 64 };

struct virtio_net {
    struct virtio_device virtio;
    struct net *net;
    uint8_t mac[6];
    uint8_t link_up;
    bool stalled;              /* the back end takes no frames for now */
    struct net_frame *pending; /* taken from the back end, waits for a buffer */
    struct net_backup backup;  /* what waits for memory that is away; younger than `pending` */
    uint8_t frame[NET_FRAME_MAX];
};

static const struct state_field net_fields[] = {
    STATE_NESTED(struct virtio_net, virtio, &virtio_state, 1),
    STATE_ARRAY(struct virtio_net, mac, 1, .keep = true),
    STATE_FIELD(struct virtio_net, link_up, 1, .keep = true),
};
static const struct state_table net_state =
    STATE_TABLE("virtio-net", 1, struct virtio_net, net_fields);

static struct virtio_net *net_of(struct virtio_device *device) {
    return container_of(device, struct virtio_net, virtio);
}

/* ---- To the guest ---- */

static unsigned merge_limit(const struct virtio_net *net) {
    return virtio_has(&net->virtio, F_MRG_RXBUF) ? MERGE_MAX : 1;
}

/* The buffers that one frame goes to: their chains, popped. */
struct merge {
    struct virtq_token tokens[MERGE_MAX];
    uint32_t written[MERGE_MAX];
    unsigned count;
};

static void put_back(struct virtq *queue, struct merge *merge) {
    while (merge->count > 0)
        virtq_unpop(queue, merge->tokens[--merge->count]);
}

/* The next buffer; asks to hear of more when there is none. */
static bool next_buffer(struct virtq *queue, struct virtq_chain *chain) {
    while (!virtq_pop(queue, chain))
        if (!virtq_listen(queue))
            return false;
    return true;
}

/* Copies what fits of the frame from `done` on into the next buffer. */
static bool write_part(struct virtio_net *net, const struct net_frame *frame, uint32_t *done,
                       struct merge *merge, struct virtq_chain *first) {
    struct virtq *queue = &net->virtio.queues[RECEIVE];
    struct virtq_chain later, *chain = merge->count == 0 ? first : &later;
    if (!next_buffer(queue, chain))
        return false;
    /* Room for the header, which comes last: it counts the buffers. */
    uint32_t skip = merge->count == 0 ? NET_VIRTIO_HEADER : 0;
    if (chain->writable_length <= skip) {
        virtq_break(queue, "receive buffer too small");
        return false;
    }
    ssize_t written = virtq_write(queue, chain, skip, frame->bytes + *done, frame->length - *done);
    if (written < 0)
        return false;
    merge->tokens[merge->count] = chain->token;
    merge->written[merge->count++] = skip + (uint32_t)written;
    *done += (uint32_t)written;
    return true;
}

enum delivery { DELIVERED, NO_ROOM, UNDELIVERABLE };

static enum delivery deliver(struct virtio_net *net, const struct net_frame *frame) {
    struct virtq *queue = &net->virtio.queues[RECEIVE];
    unsigned limit = merge_limit(net);
    struct virtq_chain first;
    struct merge merge = {.count = 0};
    uint8_t header[NET_VIRTIO_HEADER] = {0};
    uint32_t done = 0;
    first.count = first.readable = 0;
    while (done < frame->length) {
        bool too_large = merge.count == limit;
        if (too_large || !write_part(net, frame, &done, &merge, &first)) {
            put_back(queue, &merge);
            return too_large ? UNDELIVERABLE : NO_ROOM;
        }
    }
    store_le16(header + NET_VIRTIO_HEADER_BUFFERS, (uint16_t)merge.count);
    virtq_write(queue, &first, 0, header, sizeof header);
    for (unsigned i = 0; i < merge.count; i++)
        virtq_push(queue, merge.tokens[i], merge.written[i]);
    return DELIVERED;
}

static struct net_frame *next_frame(struct virtio_net *net) {
    struct net_frame *frame = net->pending != NULL ? net->pending : net_next(net->net);
    net->pending = NULL;
    return frame;
}

/* The next frame goes to the guest; false: none, or no room for it. */
static bool receive_one(struct virtio_net *net) {
    struct net_frame *frame = next_frame(net);
    if (frame != NULL && net->link_up && deliver(net, frame) == NO_ROOM) {
        net->pending = frame;
        return false;
    }
    free(frame);
    return frame != NULL;
}

/* The same while memory is away. */
static bool back_up_one(struct virtio_net *net) {
    struct net_frame *frame = net_backup_is_full(&net->backup) ? NULL : next_frame(net);
    if (frame != NULL && net->link_up)
        net_backup_add(&net->backup, frame);
    else
        free(frame);
    return frame != NULL;
}

/* Moves waiting frames to the guest; true when a turn was not enough. */
static bool receive(struct virtio_net *net) {
    struct virtq *queue = &net->virtio.queues[RECEIVE];
    bool more = true, away = !net_backup_is_empty(&net->backup) || virtq_any_away(queue);
    virtq_quiet(queue);
    for (unsigned turn = 0; turn < VIRTIO_TURN_MAX && more; turn++)
        more = away ? back_up_one(net) : receive_one(net);
    bool full = net_backup_is_full(&net->backup);
    if (away)
        net_backup_serve(&net->backup, queue, merge_limit(net));
    virtq_signal(queue);
    return more || (full && !net_backup_is_full(&net->backup));
}

/* ---- From the guest ---- */

/* True when the frame is dealt with, false when the back end has no room. */
static bool send_frame(struct virtio_net *net, const struct virtq_chain *chain) {
    struct virtq *queue = &net->virtio.queues[TRANSMIT];
    ssize_t length = virtq_read(queue, chain, NET_VIRTIO_HEADER, net->frame, sizeof net->frame);
    if (length < NET_HEADER_SIZE ||
        chain->readable_length > NET_VIRTIO_HEADER + sizeof net->frame) {
        log_guest("%s: frame of a bad length dropped", net->virtio.device.name);
        return true;
    }
    return !net->link_up || net_send(net->net, net->frame, (size_t)length);
}

static bool transmit(struct virtio_net *net) {
    struct virtq *queue = &net->virtio.queues[TRANSMIT];
    struct virtq_chain chain;
    bool more = true;
    virtq_quiet(queue);
    for (unsigned turn = 0; turn < VIRTIO_TURN_MAX && !net->stalled; turn++) {
        if (!virtq_pop(queue, &chain)) {
            more = virtq_listen(queue);
            if (!more)
                break;
            continue;
        }
        net->stalled = !send_frame(net, &chain);
        if (net->stalled)
            virtq_unpop(queue, chain.token);
        else
            virtq_push(queue, chain.token, 0);
    }
    virtq_signal(queue);
    return more && !net->stalled;
}

static bool net_notify(struct virtio_device *device, unsigned queue) {
    struct virtio_net *net = net_of(device);
    if (queue == RECEIVE)
        return receive(net);
    bool more = transmit(net);
    /* What was sent may have been answered on the spot. */
    virtio_serve(device, RECEIVE);
    return more;
}

/* The back end has frames, or room. */
static void net_ready(void *context) {
    struct virtio_net *net = context;
    lock_take(&net->virtio.device.lock);
    if (net->stalled) {
        net->stalled = false;
        virtio_serve(&net->virtio, TRANSMIT);
    }
    virtio_serve(&net->virtio, RECEIVE);
    lock_release(&net->virtio.device.lock);
}

/* ---- Configuration ---- */

static void net_config_read(struct virtio_device *device, unsigned offset, void *to,
                            unsigned length) {
    const struct virtio_net *net = net_of(device);
    uint8_t config[CONFIG_SIZE] = {0};
    memcpy(config + CONFIG_MAC, net->mac, sizeof net->mac);
    store_le16(config + CONFIG_STATUS, net->link_up ? STATUS_LINK_UP : 0);
    store_le16(config + CONFIG_PAIRS, 1);
    store_le16(config + CONFIG_MTU, net->net->mtu);
    memcpy(to, config + offset, length);
}

void virtio_net_set_link(struct device *device, bool up) {
    struct virtio_net *net = container_of(device, struct virtio_net, virtio.device);
    lock_take(&device->lock);
    if (net->link_up != up) {
        net->link_up = up;
        virtio_config_changed(&net->virtio);
    }
    lock_release(&device->lock);
}

void virtio_net_set_mac(struct device *device, const uint8_t mac[6], uint8_t old[6]) {
    struct virtio_net *net = container_of(device, struct virtio_net, virtio.device);
    lock_take(&device->lock);
    memcpy(old, net->mac, sizeof net->mac);
    memcpy(net->mac, mac, sizeof net->mac);
    lock_release(&device->lock);
}

void virtio_net_announce(struct device *device) {
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    /* RARP, Ethernet, IPv4, their lengths, "request reverse". */
    static const uint8_t kind[10] = {0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3};
    struct virtio_net *net = container_of(device, struct virtio_net, virtio.device);
    uint8_t frame[60] = {0}; /* the shortest */
    lock_take(&device->lock);
    memcpy(frame, broadcast, sizeof broadcast);
    memcpy(frame + 6, net->mac, sizeof net->mac);
    memcpy(frame + 12, kind, sizeof kind);
    memcpy(frame + 22, net->mac, sizeof net->mac); /* who asks, */
    memcpy(frame + 32, net->mac, sizeof net->mac); /* for whose address */
    if (net->link_up)
        net_send(net->net, frame, sizeof frame);
    lock_release(&device->lock);
}

void virtio_net_count(struct device *device, struct net_backup_counters *counters) {
    struct virtio_net *net = container_of(device, struct virtio_net, virtio.device);
    lock_take(&device->lock);
    *counters = net->backup.counters;
    lock_release(&device->lock);
}

/* ---- Class ---- */

static void net_forget(struct virtio_device *device) {
    struct virtio_net *net = net_of(device);
    free(net->pending);
    net->pending = NULL;
    net_backup_forget(&net->backup);
}

static void net_rest(struct virtio_device *device) {
    net_backup_rest(&net_of(device)->backup, &device->queues[RECEIVE]);
}

static const struct virtio_class net_virtio_class = {
    .id = VIRTIO_ID_NET,
    .pci_class = 0x020000, /* Ethernet controller */
    .config_size = CONFIG_SIZE,
    .queues = 2,
    .queue_sizes = {[RECEIVE] = 256, [TRANSMIT] = 256},
    .config_read = net_config_read,
    .notify = net_notify,
    .rest = net_rest,
    .reset = net_forget,
};

static int net_init(struct device *device, const void *config, struct error *err) {
    static const uint8_t default_mac[6] = {0x02, 0x6c, 0x6f, 0x64, 0x67, 0x65};
    static const uint8_t no_mac[6];
    const struct virtio_net_config *net_config = config;
    struct virtio_net *net = container_of(device, struct virtio_net, virtio.device);
    bool given = memcmp(net_config->mac, no_mac, sizeof no_mac) != 0;
    if (net_config->mac[0] & 1)
        return error_set(err, -EINVAL, "%s: the MAC address is a multicast one", device->name);
    memcpy(net->mac, given ? net_config->mac : default_mac, sizeof net->mac);
    net->net = net_config->net;
    net->link_up = true;
    uint64_t features = VIRTIO_FEATURE(F_MTU) | VIRTIO_FEATURE(F_MAC) |
                        VIRTIO_FEATURE(F_MRG_RXBUF) | VIRTIO_FEATURE(F_STATUS);
    int rc = virtio_create(&net->virtio, &net_virtio_class, features, &net_config->options, err);
    if (rc == 0)
        net_attach(net->net, net_ready, net);
    return rc;
}

static void net_reset(struct device *device) {
    virtio_reset(container_of(device, struct virtio_device, device));
}

static void net_destroy(struct device *device) {
    struct virtio_net *net = container_of(device, struct virtio_net, virtio.device);
    net_attach(net->net, NULL, NULL);
    net_forget(&net->virtio);
    virtio_destroy(&net->virtio);
}

const struct device_class virtio_net_class = {
    .name = "virtio-net",
    .size = sizeof(struct virtio_net),
    .state = &net_state,
    .init = net_init,
    .reset = net_reset,
    .quiesce = virtio_quiesce,
    .destroy = net_destroy,
};
