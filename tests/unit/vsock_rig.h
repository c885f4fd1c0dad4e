/*
 * The guest's side of the socket device for tests: its driver, packet by
 * packet, on the machine of device_rig.h.
 */
#ifndef LODGE_TESTS_VSOCK_RIG_H
#define LODGE_TESTS_VSOCK_RIG_H

#include "device_rig.h"
#include "virtio/vsock.h"

enum { RX = 0, TX = 1, EV = 2, QUEUE = 16 };
enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };
enum { HEADER = 44, BUFFER = 4096, TX_DATA = RIG_DATA, RX_DATA = RIG_DATA + 0x100000 };

struct packet {
    uint64_t source_cid, target_cid;
    uint32_t source_port, target_port, length;
    uint16_t type, op;
    uint32_t flags, buffer_size, forwarded;
    uint8_t data[BUFFER];
};

struct vsock_guest {
    struct rig rig;
    struct rig_driver driver;
    struct device *device;
    uint64_t rx_of_id[VIRTQ_SIZE_MAX];
    unsigned rx_next;
    uint32_t guest_buffer, guest_forwarded; /* told to the host with every packet */
};

static inline void post_buffers(struct vsock_guest *g, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        uint64_t address = RX_DATA + (g->rx_next++ % QUEUE) * 2 * BUFFER;
        const struct driver_buffer buffer = {address, HEADER + BUFFER};
        int id = ring_add(&g->driver.rings[RX], &buffer, 0, 1);
        if (id < 0)
            break;
        g->rx_of_id[id] = address;
    }
    driver_notify(&g->driver, RX);
}

static inline void start_driver(struct vsock_guest *g) {
    driver_start(&g->driver, VIRTIO_FEATURE(VIRTIO_F_EVENT_IDX), 3, QUEUE);
    g->rx_next = 0;
    g->guest_forwarded = 0;
    post_buffers(g, QUEUE);
}

static inline void put_packet(struct vsock_guest *g, const struct packet *packet) {
    uint8_t raw[HEADER];
    uint16_t id;
    uint32_t length;
    store_le64(raw, packet->source_cid);
    store_le64(raw + 8, packet->target_cid);
    store_le32(raw + 16, packet->source_port);
    store_le32(raw + 20, packet->target_port);
    store_le32(raw + 24, packet->length);
    store_le16(raw + 28, packet->type);
    store_le16(raw + 30, packet->op);
    store_le32(raw + 32, packet->flags);
    store_le32(raw + 36, packet->buffer_size);
    store_le32(raw + 40, packet->forwarded);
    rig_put(&g->rig, TX_DATA, raw, sizeof raw);
    rig_put(&g->rig, TX_DATA + HEADER, packet->data, sizeof packet->data);
    uint32_t data = packet->length < BUFFER ? packet->length : BUFFER;
    const struct driver_buffer buffers[] = {{TX_DATA, HEADER}, {TX_DATA + HEADER, data}};
    assert_true(ring_add(&g->driver.rings[TX], buffers, data ? 2 : 1, data ? 2 : 1) >= 0);
    driver_notify(&g->driver, TX);
    assert_true(ring_used(&g->driver.rings[TX], &id, &length));
}

static inline struct packet packet_of(struct vsock_guest *g, uint16_t op, uint32_t guest_port,
                                      uint32_t host_port) {
    return (struct packet){.source_cid = VSOCK_GUEST_CID,
                           .target_cid = VSOCK_HOST_CID,
                           .source_port = guest_port,
                           .target_port = host_port,
                           .type = 1,
                           .op = op,
                           .buffer_size = g->guest_buffer,
                           .forwarded = g->guest_forwarded};
}

static inline void put(struct vsock_guest *g, uint16_t op, uint32_t guest_port, uint32_t host_port,
                       uint32_t flags) {
    struct packet packet = packet_of(g, op, guest_port, host_port);
    packet.flags = flags;
    put_packet(g, &packet);
}

static inline void put_data(struct vsock_guest *g, uint32_t guest_port, uint32_t host_port,
                            const void *bytes, uint32_t length) {
    struct packet packet = packet_of(g, RW, guest_port, host_port);
    packet.length = length;
    memcpy(packet.data, bytes, length < BUFFER ? length : BUFFER);
    put_packet(g, &packet);
}

/* The next packet to the guest; false: none. Puts its buffer back. */
static inline bool get(struct vsock_guest *g, struct packet *packet) {
    uint8_t raw[HEADER + BUFFER];
    uint16_t id;
    uint32_t length;
    if (!ring_used(&g->driver.rings[RX], &id, &length))
        return false;
    rig_get(&g->rig, g->rx_of_id[id], raw, sizeof raw);
    *packet = (struct packet){.source_cid = load_le64(raw),
                              .target_cid = load_le64(raw + 8),
                              .source_port = load_le32(raw + 16),
                              .target_port = load_le32(raw + 20),
                              .length = load_le32(raw + 24),
                              .type = load_le16(raw + 28),
                              .op = load_le16(raw + 30),
                              .flags = load_le32(raw + 32),
                              .buffer_size = load_le32(raw + 36),
                              .forwarded = load_le32(raw + 40)};
    assert_int_equal(length, HEADER + packet->length);
    memcpy(packet->data, raw + HEADER, BUFFER);
    post_buffers(g, 1);
    return true;
}

static inline struct packet expect(struct vsock_guest *g, uint16_t op) {
    struct packet packet;
    assert_true(get(g, &packet));
    assert_int_equal(packet.op, op);
    assert_int_equal(packet.source_cid, VSOCK_HOST_CID);
    assert_int_equal(packet.target_cid, VSOCK_GUEST_CID);
    assert_int_equal(packet.type, 1);
    return packet;
}

static inline void expect_nothing(struct vsock_guest *g) {
    struct packet packet;
    assert_false(get(g, &packet));
}

/* A machine with the device, its driver started. */
static inline void guest_start(struct vsock_guest *g) {
    struct virtio_vsock_config config = {0};
    *g = (struct vsock_guest){.guest_buffer = 64 << 10};
    rig_start(&g->rig);
    assert_int_equal(
        device_create(&virtio_vsock_class, "vsock0", &g->rig.platform, &config, &g->device, NULL),
        0);
    driver_find(&g->driver, &g->rig, VIRTIO_ID_VSOCK);
    start_driver(g);
}

static inline void guest_stop(struct vsock_guest *g) {
    device_destroy(g->device);
    rig_stop(&g->rig);
}

#endif
