/* The socket device: connections either way, credit, and guests that break the rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

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

struct fixture {
    struct rig rig;
    struct rig_driver driver;
    struct device *device;
    uint64_t rx_of_id[VIRTQ_SIZE_MAX];
    unsigned rx_next;
    /* the guest's side of flow control */
    uint32_t guest_buffer, guest_forwarded;
    /* what the user was told */
    struct vsock_conn *conn;
    unsigned accepted, connected, ended, closed, writable;
    int error, refuse;
    bool hoard; /* do not return credit */
    void (*in_received)(struct fixture *f);
    uint8_t received[256 << 10];
    size_t received_length;
};

static struct fixture fixture;

/* ---- The host's user ---- */

static void on_connected(void *context, struct vsock_conn *conn) {
    ((struct fixture *)context)->connected++;
}

static void on_received(void *context, struct vsock_conn *conn, const void *bytes, size_t length) {
    struct fixture *f = context;
    assert_true(f->received_length + length <= sizeof f->received);
    memcpy(f->received + f->received_length, bytes, length);
    f->received_length += length;
    if (!f->hoard)
        vsock_consumed(conn, length);
    if (f->in_received != NULL)
        f->in_received(f);
}

static void on_writable(void *context, struct vsock_conn *conn) {
    ((struct fixture *)context)->writable++;
}

static void on_ended(void *context, struct vsock_conn *conn) {
    ((struct fixture *)context)->ended++;
}

static void on_closed(void *context, struct vsock_conn *conn, int error) {
    struct fixture *f = context;
    f->closed++;
    f->error = error;
}

static const struct vsock_ops ops = {on_connected, on_received, on_writable, on_ended, on_closed};

static int on_accept(void *context, struct vsock_conn *conn, uint32_t port) {
    struct fixture *f = context;
    f->accepted++;
    if (f->refuse)
        return -ECONNREFUSED;
    f->conn = conn;
    vsock_attach(conn, &ops, f);
    return 0;
}

/* ---- The guest's driver ---- */

static void post_buffers(struct fixture *f, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        uint64_t address = RX_DATA + (f->rx_next++ % QUEUE) * 2 * BUFFER;
        const struct driver_buffer buffer = {address, HEADER + BUFFER};
        int id = ring_add(&f->driver.rings[RX], &buffer, 0, 1);
        if (id < 0)
            break;
        f->rx_of_id[id] = address;
    }
    driver_notify(&f->driver, RX);
}

static void start_driver(struct fixture *f) {
    driver_start(&f->driver, VIRTIO_FEATURE(VIRTIO_F_EVENT_IDX), 3, QUEUE);
    f->rx_next = 0;
    f->guest_forwarded = 0;
    post_buffers(f, QUEUE);
}

static void put_packet(struct fixture *f, const struct packet *packet) {
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
    rig_put(&f->rig, TX_DATA, raw, sizeof raw);
    rig_put(&f->rig, TX_DATA + HEADER, packet->data, sizeof packet->data);
    uint32_t data = packet->length < BUFFER ? packet->length : BUFFER;
    const struct driver_buffer buffers[] = {{TX_DATA, HEADER}, {TX_DATA + HEADER, data}};
    assert_true(ring_add(&f->driver.rings[TX], buffers, data ? 2 : 1, data ? 2 : 1) >= 0);
    driver_notify(&f->driver, TX);
    assert_true(ring_used(&f->driver.rings[TX], &id, &length));
}

static struct packet packet_of(struct fixture *f, uint16_t op, uint32_t guest_port,
                               uint32_t host_port) {
    return (struct packet){.source_cid = VSOCK_GUEST_CID,
                           .target_cid = VSOCK_HOST_CID,
                           .source_port = guest_port,
                           .target_port = host_port,
                           .type = 1,
                           .op = op,
                           .buffer_size = f->guest_buffer,
                           .forwarded = f->guest_forwarded};
}

static void put(struct fixture *f, uint16_t op, uint32_t guest_port, uint32_t host_port,
                uint32_t flags) {
    struct packet packet = packet_of(f, op, guest_port, host_port);
    packet.flags = flags;
    put_packet(f, &packet);
}

static void put_data(struct fixture *f, uint32_t guest_port, uint32_t host_port, const void *bytes,
                     uint32_t length) {
    struct packet packet = packet_of(f, RW, guest_port, host_port);
    packet.length = length;
    memcpy(packet.data, bytes, length < BUFFER ? length : BUFFER);
    put_packet(f, &packet);
}

/* The next packet to the guest; false: none. Puts its buffer back. */
static bool get(struct fixture *f, struct packet *packet) {
    uint8_t raw[HEADER + BUFFER];
    uint16_t id;
    uint32_t length;
    if (!ring_used(&f->driver.rings[RX], &id, &length))
        return false;
    rig_get(&f->rig, f->rx_of_id[id], raw, sizeof raw);
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
    post_buffers(f, 1);
    return true;
}

static struct packet expect(struct fixture *f, uint16_t op) {
    struct packet packet;
    assert_true(get(f, &packet));
    assert_int_equal(packet.op, op);
    assert_int_equal(packet.source_cid, VSOCK_HOST_CID);
    assert_int_equal(packet.target_cid, VSOCK_GUEST_CID);
    assert_int_equal(packet.type, 1);
    return packet;
}

static void expect_nothing(struct fixture *f) {
    struct packet packet;
    assert_false(get(f, &packet));
}

static int setup(void **state) {
    struct fixture *f = *state = &fixture;
    struct virtio_vsock_config config = {0};
    *f = (struct fixture){.guest_buffer = 64 << 10};
    rig_start(&f->rig);
    assert_int_equal(
        device_create(&virtio_vsock_class, "vsock0", &f->rig.platform, &config, &f->device, NULL),
        0);
    driver_find(&f->driver, &f->rig, VIRTIO_ID_VSOCK);
    start_driver(f);
    assert_int_equal(vsock_listen(f->device, 1000, on_accept, f, NULL), 0);
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    device_destroy(f->device);
    rig_stop(&f->rig);
    return 0;
}

/* A connection from guest port 50 to host port 1000. */
static void open_from_guest(struct fixture *f) {
    put(f, REQUEST, 50, 1000, 0);
    rig_pump(&f->rig);
    struct packet packet = expect(f, RESPONSE);
    assert_int_equal(packet.source_port, 1000);
    assert_int_equal(packet.target_port, 50);
    assert_int_equal(packet.buffer_size, VSOCK_BUFFER);
}

/* ---- Good order ---- */

static void test_config(void **state) {
    struct fixture *f = *state;
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE, 8), VSOCK_GUEST_CID);
    assert_int_equal(vsock_listen(f->device, 1000, on_accept, f, NULL), -EADDRINUSE);
}

static void test_guest_connects(void **state) {
    struct fixture *f = *state;
    open_from_guest(f);
    assert_int_equal(f->accepted, 1);
    put_data(f, 50, 1000, "hello", 5);
    rig_pump(&f->rig);
    assert_int_equal(f->received_length, 5);
    assert_memory_equal(f->received, "hello", 5);
    assert_int_equal(vsock_send(f->conn, "world!", 6), 6);
    struct packet packet = expect(f, RW);
    assert_int_equal(packet.length, 6);
    assert_int_equal(packet.forwarded, 5);
    assert_memory_equal(packet.data, "world!", 6);
    /* The guest closes: all is over at once. */
    put(f, SHUTDOWN, 50, 1000, 3);
    expect(f, RST);
    rig_pump(&f->rig);
    assert_int_equal(f->ended, 1);
    assert_int_equal(f->closed, 1);
    assert_int_equal(f->error, 0);
    /* The ports can be used again. */
    open_from_guest(f);
    vsock_close(f->conn);
}

static void test_host_connects(void **state) {
    struct fixture *f = *state;
    assert_int_equal(vsock_connect(f->device, 77, &ops, f, &f->conn, NULL), 0);
    struct packet packet = expect(f, REQUEST);
    assert_int_equal(packet.target_port, 77);
    uint32_t port = packet.source_port;
    assert_int_equal(port, vsock_host_port(f->conn));
    /* What is sent before the answer waits for it. */
    assert_int_equal(vsock_send(f->conn, "early", 5), 5);
    expect_nothing(f);
    put(f, RESPONSE, 77, port, 0);
    packet = expect(f, RW);
    assert_memory_equal(packet.data, "early", 5);
    rig_pump(&f->rig);
    assert_int_equal(f->connected, 1);
    /* The host closes: what is still to go goes first. */
    vsock_send(f->conn, "late", 4);
    vsock_close(f->conn);
    packet = expect(f, RW);
    packet = expect(f, SHUTDOWN);
    assert_int_equal(packet.flags, 3);
    put(f, RST, 77, port, 0);
    rig_pump(&f->rig);
    assert_int_equal(f->closed, 0);
}

static void test_refused(void **state) {
    struct fixture *f = *state;
    assert_int_equal(vsock_connect(f->device, 77, &ops, f, &f->conn, NULL), 0);
    struct packet packet = expect(f, REQUEST);
    put(f, RST, 77, packet.source_port, 0);
    rig_pump(&f->rig);
    assert_int_equal(f->closed, 1);
    assert_int_equal(f->error, -ECONNREFUSED);
    /* The other way round: by the listener, and for want of one. */
    f->refuse = 1;
    put(f, REQUEST, 50, 1000, 0);
    rig_pump(&f->rig);
    expect(f, RST);
    put(f, REQUEST, 50, 1001, 0);
    expect(f, RST);
    vsock_unlisten(f->device, 1000);
    put(f, REQUEST, 50, 1000, 0);
    expect(f, RST);
}

static void test_half_close(void **state) {
    struct fixture *f = *state;
    open_from_guest(f);
    put_data(f, 50, 1000, "last", 4);
    put(f, SHUTDOWN, 50, 1000, 2);
    rig_pump(&f->rig);
    assert_int_equal(f->received_length, 4);
    assert_int_equal(f->ended, 1);
    assert_int_equal(f->closed, 0);
    vsock_send(f->conn, "answer", 6);
    vsock_shutdown(f->conn);
    expect(f, RW);
    struct packet packet = expect(f, SHUTDOWN);
    assert_int_equal(packet.flags, 2);
    assert_int_equal(vsock_send(f->conn, "x", 1), -EPIPE);
    put(f, RST, 50, 1000, 0);
    rig_pump(&f->rig);
    assert_int_equal(f->closed, 1);
    assert_int_equal(f->error, 0);
}

static void test_no_receiver(void **state) {
    struct fixture *f = *state;
    open_from_guest(f);
    put(f, SHUTDOWN, 50, 1000, 1);
    assert_int_equal(vsock_send(f->conn, "x", 1), -EPIPE);
    vsock_abort(f->conn);
    expect(f, RST);
    expect_nothing(f);
}

static void test_any_listener(void **state) {
    struct fixture *f = *state;
    assert_int_equal(vsock_listen(f->device, VSOCK_PORT_ANY, on_accept, f, NULL), 0);
    put(f, REQUEST, 50, 4242, 0);
    rig_pump(&f->rig);
    assert_int_equal(expect(f, RESPONSE).source_port, 4242);
    vsock_abort(f->conn);
}

static void test_before_the_driver(void **state) {
    struct fixture *f = *state;
    driver_write(&f->driver, VIRTIO_COMMON_STATUS, 0, 1);
    assert_int_equal(vsock_connect(f->device, 77, &ops, f, &f->conn, NULL), 0);
    rig_pump(&f->rig);
    start_driver(f);
    expect(f, REQUEST);
    /* Another reset before the guest answered: asked again. */
    driver_write(&f->driver, VIRTIO_COMMON_STATUS, 0, 1);
    start_driver(f);
    struct packet packet = expect(f, REQUEST);
    put(f, RESPONSE, 77, packet.source_port, 0);
    rig_pump(&f->rig);
    assert_int_equal(f->connected, 1);
    driver_write(&f->driver, VIRTIO_COMMON_STATUS, 0, 1);
    rig_pump(&f->rig);
    assert_int_equal(f->closed, 1);
    assert_int_equal(f->error, -ECONNRESET);
}

/* ---- Credit ---- */

static void test_guest_out_of_credit(void **state) {
    struct fixture *f = *state;
    uint8_t data[BUFFER] = {1};
    f->hoard = true;
    open_from_guest(f);
    for (unsigned sent = 0; sent < VSOCK_BUFFER; sent += BUFFER)
        put_data(f, 50, 1000, data, BUFFER);
    rig_pump(&f->rig);
    assert_int_equal(f->received_length, VSOCK_BUFFER);
    expect_nothing(f);
    /* Credit comes back by itself once it is worth a packet. */
    vsock_consumed(f->conn, 1);
    assert_int_equal(expect(f, CREDIT_UPDATE).forwarded, 1);
    put_data(f, 50, 1000, data, 1);
    rig_pump(&f->rig);
    assert_int_equal(f->received_length, VSOCK_BUFFER + 1);
    put(f, CREDIT_REQUEST, 50, 1000, 0);
    assert_int_equal(expect(f, CREDIT_UPDATE).forwarded, 1);
    /* One byte more than allowed. */
    put_data(f, 50, 1000, data, 1);
    expect(f, RST);
    rig_pump(&f->rig);
    assert_int_equal(f->error, -ECONNRESET);
    assert_int_equal(f->received_length, VSOCK_BUFFER + 1);
}

/* The bytes are still being looked at: their room is not the guest's yet. */
static void ask_for_credit(struct fixture *f) {
    f->in_received = NULL;
    put(f, CREDIT_REQUEST, 50, 1000, 0);
    assert_int_equal(expect(f, CREDIT_UPDATE).forwarded, 0);
}

static void test_credit_in_callback(void **state) {
    struct fixture *f = *state;
    uint8_t data[BUFFER] = {1};
    open_from_guest(f);
    f->in_received = ask_for_credit;
    for (unsigned sent = 0; sent < VSOCK_BUFFER; sent += BUFFER)
        put_data(f, 50, 1000, data, BUFFER);
    rig_pump(&f->rig);
    assert_int_equal(expect(f, CREDIT_UPDATE).forwarded, VSOCK_BUFFER);
    vsock_abort(f->conn);
}

static void test_host_out_of_credit(void **state) {
    struct fixture *f = *state;
    static uint8_t data[2 * VSOCK_BUFFER];
    struct packet packet;
    uint32_t got = 0;
    f->guest_buffer = 5000;
    open_from_guest(f);
    assert_int_equal(vsock_send(f->conn, data, sizeof data), VSOCK_BUFFER);
    while (got < 5000) {
        packet = expect(f, RW);
        got += packet.length;
    }
    assert_int_equal(got, 5000);
    expect(f, CREDIT_REQUEST);
    expect_nothing(f);
    f->guest_forwarded = 10;
    put(f, CREDIT_UPDATE, 50, 1000, 0);
    assert_int_equal(expect(f, RW).length, 10);
    rig_pump(&f->rig);
    assert_true(f->writable > 0);
    /* Credit figures that make no sense give none. */
    f->guest_forwarded = 0x80000000;
    expect(f, CREDIT_REQUEST);
    put(f, CREDIT_UPDATE, 50, 1000, 0);
    expect_nothing(f);
    vsock_abort(f->conn);
}

/* Both directions at once, in random pieces; every byte accounted for. */
static void test_stream(void **state) {
    struct fixture *f = *state;
    enum { TOTAL = 200000 };
    static uint8_t to_guest[TOTAL], to_host[TOTAL], at_guest[TOTAL];
    uint32_t sent = 0, put_bytes = 0, got = 0, credit = VSOCK_BUFFER, host_forwarded = 0;
    srand(3);
    for (unsigned i = 0; i < TOTAL; i++) {
        to_guest[i] = (uint8_t)rand();
        to_host[i] = (uint8_t)rand();
    }
    f->guest_buffer = 10000;
    open_from_guest(f);
    for (unsigned round = 0; got < TOTAL || f->received_length < TOTAL; round++) {
        assert_true(round < 100000);
        uint32_t piece = (uint32_t)rand() % 9000;
        if (piece > TOTAL - sent)
            piece = TOTAL - sent;
        ssize_t taken = vsock_send(f->conn, to_guest + sent, piece);
        assert_true(taken >= 0);
        sent += (uint32_t)taken;
        piece = (uint32_t)rand() % BUFFER;
        credit = VSOCK_BUFFER - (put_bytes - host_forwarded);
        if (piece > credit)
            piece = credit;
        if (piece > TOTAL - put_bytes)
            piece = TOTAL - put_bytes;
        if (piece > 0)
            put_data(f, 50, 1000, to_host + put_bytes, piece);
        put_bytes += piece;
        struct packet packet;
        while (rand() % 4 != 0 && get(f, &packet)) {
            host_forwarded = packet.forwarded;
            if (packet.op == RW) {
                memcpy(at_guest + got, packet.data, packet.length);
                got += packet.length;
            }
        }
        assert_true(got - f->guest_forwarded <= f->guest_buffer);
        if (rand() % 3 == 0) {
            f->guest_forwarded = got;
            put(f, CREDIT_UPDATE, 50, 1000, 0);
        }
        if (rand() % 2 == 0)
            rig_pump(&f->rig);
    }
    assert_memory_equal(at_guest, to_guest, TOTAL);
    assert_memory_equal(f->received, to_host, TOTAL);
    vsock_abort(f->conn);
}

/* ---- Guests that break the rules ---- */

static void test_malformed(void **state) {
    struct fixture *f = *state;
    struct packet packet = packet_of(f, REQUEST, 50, 1000);
    packet.source_cid = 99;
    put_packet(f, &packet);
    packet = packet_of(f, RW, 50, 1000);
    packet.length = 1 << 20; /* more than the buffers hold */
    put_packet(f, &packet);
    expect_nothing(f);
    packet = packet_of(f, REQUEST, 50, 1000);
    packet.target_cid = 17;
    put_packet(f, &packet);
    assert_true(get(f, &packet));
    assert_int_equal(packet.op, RST);
    assert_int_equal(packet.source_cid, 17);
    packet = packet_of(f, REQUEST, 50, 1000);
    packet.type = 2;
    put_packet(f, &packet);
    expect(f, RST);
    /* Packets of a connection that is none; an RST is never answered. */
    for (uint16_t op = 0; op < 20; op++) {
        put(f, op, 60, 2000, 3);
        if (op == RST)
            expect_nothing(f);
        else
            expect(f, RST);
    }
    rig_pump(&f->rig);
    assert_int_equal(f->accepted, 0);
    assert_false(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
}

static void test_wrong_state(void **state) {
    static const uint16_t wrong[] = {0, REQUEST, RESPONSE, 8, 0xffff};
    struct fixture *f = *state;
    for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++) {
        open_from_guest(f);
        put(f, wrong[i], 50, 1000, 0);
        expect(f, RST);
        rig_pump(&f->rig);
        assert_int_equal(f->closed, i + 1);
        assert_int_equal(f->error, -ECONNRESET);
    }
}

static void test_short_header(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffer = {TX_DATA, HEADER - 1};
    uint16_t id;
    uint32_t length;
    ring_add(&f->driver.rings[TX], &buffer, 1, 1);
    driver_notify(&f->driver, TX);
    assert_true(ring_used(&f->driver.rings[TX], &id, &length));
    expect_nothing(f);
}

static void test_many_connections(void **state) {
    struct fixture *f = *state;
    unsigned refused = 0;
    struct packet packet;
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX + 10; i++) {
        put(f, REQUEST, 5000 + i, 1000, 0);
        rig_pump(&f->rig);
        while (get(f, &packet))
            refused += packet.op == RST;
    }
    assert_int_equal(f->accepted, VSOCK_CONNECTIONS_MAX);
    assert_int_equal(refused, 10);
    /* Those the host closes make room, even if the guest never answers. */
    vsock_close(f->conn);
    expect(f, SHUTDOWN);
    put(f, REQUEST, 9000, 1000, 0);
    rig_pump(&f->rig);
    assert_int_equal(f->accepted, VSOCK_CONNECTIONS_MAX + 1);
}

/* No receive buffers: answers wait, then packets wait, then all of it comes through. */
static void test_no_buffers(void **state) {
    struct fixture *f = *state;
    struct packet packet;
    unsigned resets = 0;
    uint16_t id;
    uint32_t length;
    driver_start(&f->driver, 0, 3, QUEUE);
    f->rx_next = 0;
    for (unsigned i = 0; i < 300; i++) {
        uint8_t raw[HEADER] = {0};
        raw[0] = VSOCK_GUEST_CID;
        raw[8] = VSOCK_HOST_CID;
        raw[28] = 1;
        raw[30] = RW;
        rig_put(&f->rig, TX_DATA, raw, sizeof raw);
        const struct driver_buffer buffer = {TX_DATA, HEADER};
        ring_add(&f->driver.rings[TX], &buffer, 1, 1);
        driver_notify(&f->driver, TX);
        while (ring_used(&f->driver.rings[TX], &id, &length))
            ;
    }
    assert_true(f->driver.rings[TX].free_count < QUEUE);
    post_buffers(f, QUEUE);
    for (unsigned i = 0; i < 200; i++) {
        rig_pump(&f->rig);
        while (get(f, &packet))
            resets++;
    }
    while (ring_used(&f->driver.rings[TX], &id, &length))
        ;
    assert_int_equal(f->driver.rings[TX].free_count, QUEUE);
    assert_true(resets >= 128 + QUEUE);
}

static void test_small_buffer(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffer = {RX_DATA, HEADER - 1};
    driver_start(&f->driver, 0, 3, QUEUE);
    ring_add(&f->driver.rings[RX], &buffer, 0, 1);
    put(f, RW, 60, 2000, 0);
    assert_true(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
    rig_pump(&f->rig);
}

static void test_bad_cid(void **state) {
    struct fixture *f = *state;
    struct device *device;
    static const uint64_t bad[] = {1, 2, UINT32_MAX, UINT64_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        struct virtio_vsock_config config = {.guest_cid = bad[i]};
        assert_int_equal(
            device_create(&virtio_vsock_class, "vsock1", &f->rig.platform, &config, &device, NULL),
            -EINVAL);
    }
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_config),
        TEST(test_guest_connects),
        TEST(test_host_connects),
        TEST(test_refused),
        TEST(test_half_close),
        TEST(test_no_receiver),
        TEST(test_any_listener),
        TEST(test_before_the_driver),
        TEST(test_guest_out_of_credit),
        TEST(test_credit_in_callback),
        TEST(test_host_out_of_credit),
        TEST(test_stream),
        TEST(test_malformed),
        TEST(test_wrong_state),
        TEST(test_short_header),
        TEST(test_many_connections),
        TEST(test_no_buffers),
        TEST(test_small_buffer),
        TEST(test_bad_cid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
