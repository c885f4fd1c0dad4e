/* The socket device: connections either way, credit, and guests that break the rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "vsock_rig.h"

struct fixture {
    struct vsock_guest guest;
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

static int setup(void **state) {
    struct fixture *f = *state = &fixture;
    *f = (struct fixture){0};
    guest_start(&f->guest);
    assert_int_equal(vsock_listen(f->guest.device, 1000, on_accept, f, NULL), 0);
    return 0;
}

static int teardown(void **state) {
    guest_stop(&((struct fixture *)*state)->guest);
    return 0;
}

/* A connection from guest port 50 to host port 1000. */
static void open_from_guest(struct fixture *f) {
    put(&f->guest, REQUEST, 50, 1000, 0);
    rig_pump(&f->guest.rig);
    struct packet packet = expect(&f->guest, RESPONSE);
    assert_int_equal(packet.source_port, 1000);
    assert_int_equal(packet.target_port, 50);
    assert_int_equal(packet.buffer_size, VSOCK_BUFFER);
}

/* ---- Good order ---- */

static void test_config(void **state) {
    struct fixture *f = *state;
    assert_int_equal(driver_read(&f->guest.driver, VIRTIO_PCI_DEVICE, 8), VSOCK_GUEST_CID);
    assert_int_equal(vsock_listen(f->guest.device, 1000, on_accept, f, NULL), -EADDRINUSE);
}

static void test_guest_connects(void **state) {
    struct fixture *f = *state;
    open_from_guest(f);
    assert_int_equal(f->accepted, 1);
    put_data(&f->guest, 50, 1000, "hello", 5);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->received_length, 5);
    assert_memory_equal(f->received, "hello", 5);
    assert_int_equal(vsock_send(f->conn, "world!", 6), 6);
    struct packet packet = expect(&f->guest, RW);
    assert_int_equal(packet.length, 6);
    assert_int_equal(packet.forwarded, 5);
    assert_memory_equal(packet.data, "world!", 6);
    /* The guest closes: all is over at once. */
    put(&f->guest, SHUTDOWN, 50, 1000, 3);
    expect(&f->guest, RST);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->ended, 1);
    assert_int_equal(f->closed, 1);
    assert_int_equal(f->error, 0);
    /* The ports can be used again. */
    open_from_guest(f);
    vsock_close(f->conn);
}

static void test_host_connects(void **state) {
    struct fixture *f = *state;
    assert_int_equal(vsock_connect(f->guest.device, 77, &ops, f, &f->conn, NULL), 0);
    struct packet packet = expect(&f->guest, REQUEST);
    assert_int_equal(packet.target_port, 77);
    uint32_t port = packet.source_port;
    assert_int_equal(port, vsock_host_port(f->conn));
    /* What is sent before the answer waits for it. */
    assert_int_equal(vsock_send(f->conn, "early", 5), 5);
    expect_nothing(&f->guest);
    put(&f->guest, RESPONSE, 77, port, 0);
    packet = expect(&f->guest, RW);
    assert_memory_equal(packet.data, "early", 5);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->connected, 1);
    /* The host closes: what is still to go goes first. */
    vsock_send(f->conn, "late", 4);
    vsock_close(f->conn);
    packet = expect(&f->guest, RW);
    packet = expect(&f->guest, SHUTDOWN);
    assert_int_equal(packet.flags, 3);
    put(&f->guest, RST, 77, port, 0);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->closed, 0);
}

static void test_refused(void **state) {
    struct fixture *f = *state;
    assert_int_equal(vsock_connect(f->guest.device, 77, &ops, f, &f->conn, NULL), 0);
    struct packet packet = expect(&f->guest, REQUEST);
    put(&f->guest, RST, 77, packet.source_port, 0);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->closed, 1);
    assert_int_equal(f->error, -ECONNREFUSED);
    /* The other way round: by the listener, and for want of one. */
    f->refuse = 1;
    put(&f->guest, REQUEST, 50, 1000, 0);
    rig_pump(&f->guest.rig);
    expect(&f->guest, RST);
    put(&f->guest, REQUEST, 50, 1001, 0);
    expect(&f->guest, RST);
    vsock_unlisten(f->guest.device, 1000);
    put(&f->guest, REQUEST, 50, 1000, 0);
    expect(&f->guest, RST);
}

static void test_half_close(void **state) {
    struct fixture *f = *state;
    open_from_guest(f);
    put_data(&f->guest, 50, 1000, "last", 4);
    put(&f->guest, SHUTDOWN, 50, 1000, 2);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->received_length, 4);
    assert_int_equal(f->ended, 1);
    assert_int_equal(f->closed, 0);
    vsock_send(f->conn, "answer", 6);
    vsock_shutdown(f->conn);
    expect(&f->guest, RW);
    struct packet packet = expect(&f->guest, SHUTDOWN);
    assert_int_equal(packet.flags, 2);
    assert_int_equal(vsock_send(f->conn, "x", 1), -EPIPE);
    put(&f->guest, RST, 50, 1000, 0);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->closed, 1);
    assert_int_equal(f->error, 0);
}

static void test_no_receiver(void **state) {
    struct fixture *f = *state;
    open_from_guest(f);
    put(&f->guest, SHUTDOWN, 50, 1000, 1);
    assert_int_equal(vsock_send(f->conn, "x", 1), -EPIPE);
    vsock_abort(f->conn);
    expect(&f->guest, RST);
    expect_nothing(&f->guest);
}

static void test_any_listener(void **state) {
    struct fixture *f = *state;
    assert_int_equal(vsock_listen(f->guest.device, VSOCK_PORT_ANY, on_accept, f, NULL), 0);
    put(&f->guest, REQUEST, 50, 4242, 0);
    rig_pump(&f->guest.rig);
    assert_int_equal(expect(&f->guest, RESPONSE).source_port, 4242);
    vsock_abort(f->conn);
}

static void test_before_the_driver(void **state) {
    struct fixture *f = *state;
    driver_write(&f->guest.driver, VIRTIO_COMMON_STATUS, 0, 1);
    assert_int_equal(vsock_connect(f->guest.device, 77, &ops, f, &f->conn, NULL), 0);
    rig_pump(&f->guest.rig);
    start_driver(&f->guest);
    expect(&f->guest, REQUEST);
    /* Another reset before the guest answered: asked again. */
    driver_write(&f->guest.driver, VIRTIO_COMMON_STATUS, 0, 1);
    start_driver(&f->guest);
    struct packet packet = expect(&f->guest, REQUEST);
    put(&f->guest, RESPONSE, 77, packet.source_port, 0);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->connected, 1);
    driver_write(&f->guest.driver, VIRTIO_COMMON_STATUS, 0, 1);
    rig_pump(&f->guest.rig);
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
        put_data(&f->guest, 50, 1000, data, BUFFER);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->received_length, VSOCK_BUFFER);
    expect_nothing(&f->guest);
    /* Credit comes back by itself once it is worth a packet. */
    vsock_consumed(f->conn, 1);
    assert_int_equal(expect(&f->guest, CREDIT_UPDATE).forwarded, 1);
    put_data(&f->guest, 50, 1000, data, 1);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->received_length, VSOCK_BUFFER + 1);
    put(&f->guest, CREDIT_REQUEST, 50, 1000, 0);
    assert_int_equal(expect(&f->guest, CREDIT_UPDATE).forwarded, 1);
    /* One byte more than allowed. */
    put_data(&f->guest, 50, 1000, data, 1);
    expect(&f->guest, RST);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->error, -ECONNRESET);
    assert_int_equal(f->received_length, VSOCK_BUFFER + 1);
}

/* The bytes are still being looked at: their room is not the guest's yet. */
static void ask_for_credit(struct fixture *f) {
    f->in_received = NULL;
    put(&f->guest, CREDIT_REQUEST, 50, 1000, 0);
    assert_int_equal(expect(&f->guest, CREDIT_UPDATE).forwarded, 0);
}

static void test_credit_in_callback(void **state) {
    struct fixture *f = *state;
    uint8_t data[BUFFER] = {1};
    open_from_guest(f);
    f->in_received = ask_for_credit;
    for (unsigned sent = 0; sent < VSOCK_BUFFER; sent += BUFFER)
        put_data(&f->guest, 50, 1000, data, BUFFER);
    rig_pump(&f->guest.rig);
    assert_int_equal(expect(&f->guest, CREDIT_UPDATE).forwarded, VSOCK_BUFFER);
    vsock_abort(f->conn);
}

static void test_host_out_of_credit(void **state) {
    struct fixture *f = *state;
    static uint8_t data[2 * VSOCK_BUFFER];
    struct packet packet;
    uint32_t got = 0;
    f->guest.guest_buffer = 5000;
    open_from_guest(f);
    assert_int_equal(vsock_send(f->conn, data, sizeof data), VSOCK_BUFFER);
    while (got < 5000) {
        packet = expect(&f->guest, RW);
        got += packet.length;
    }
    assert_int_equal(got, 5000);
    expect(&f->guest, CREDIT_REQUEST);
    expect_nothing(&f->guest);
    f->guest.guest_forwarded = 10;
    put(&f->guest, CREDIT_UPDATE, 50, 1000, 0);
    assert_int_equal(expect(&f->guest, RW).length, 10);
    rig_pump(&f->guest.rig);
    assert_true(f->writable > 0);
    /* Credit figures that make no sense give none. */
    f->guest.guest_forwarded = 0x80000000;
    expect(&f->guest, CREDIT_REQUEST);
    put(&f->guest, CREDIT_UPDATE, 50, 1000, 0);
    expect_nothing(&f->guest);
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
    f->guest.guest_buffer = 10000;
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
            put_data(&f->guest, 50, 1000, to_host + put_bytes, piece);
        put_bytes += piece;
        struct packet packet;
        while (rand() % 4 != 0 && get(&f->guest, &packet)) {
            host_forwarded = packet.forwarded;
            if (packet.op == RW) {
                memcpy(at_guest + got, packet.data, packet.length);
                got += packet.length;
            }
        }
        assert_true(got - f->guest.guest_forwarded <= f->guest.guest_buffer);
        if (rand() % 3 == 0) {
            f->guest.guest_forwarded = got;
            put(&f->guest, CREDIT_UPDATE, 50, 1000, 0);
        }
        if (rand() % 2 == 0)
            rig_pump(&f->guest.rig);
    }
    assert_memory_equal(at_guest, to_guest, TOTAL);
    assert_memory_equal(f->received, to_host, TOTAL);
    vsock_abort(f->conn);
}

/* ---- Guests that break the rules ---- */

static void test_malformed(void **state) {
    struct fixture *f = *state;
    struct packet packet = packet_of(&f->guest, REQUEST, 50, 1000);
    packet.source_cid = 99;
    put_packet(&f->guest, &packet);
    packet = packet_of(&f->guest, RW, 50, 1000);
    packet.length = 1 << 20; /* more than the buffers hold */
    put_packet(&f->guest, &packet);
    expect_nothing(&f->guest);
    packet = packet_of(&f->guest, REQUEST, 50, 1000);
    packet.target_cid = 17;
    put_packet(&f->guest, &packet);
    assert_true(get(&f->guest, &packet));
    assert_int_equal(packet.op, RST);
    assert_int_equal(packet.source_cid, 17);
    packet = packet_of(&f->guest, REQUEST, 50, 1000);
    packet.type = 2;
    put_packet(&f->guest, &packet);
    expect(&f->guest, RST);
    /* Packets of a connection that is none; an RST is never answered. */
    for (uint16_t op = 0; op < 20; op++) {
        put(&f->guest, op, 60, 2000, 3);
        if (op == RST)
            expect_nothing(&f->guest);
        else
            expect(&f->guest, RST);
    }
    rig_pump(&f->guest.rig);
    assert_int_equal(f->accepted, 0);
    assert_false(driver_status(&f->guest.driver) & VIRTIO_NEEDS_RESET);
}

static void test_wrong_state(void **state) {
    static const uint16_t wrong[] = {0, REQUEST, RESPONSE, 8, 0xffff};
    struct fixture *f = *state;
    for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++) {
        open_from_guest(f);
        put(&f->guest, wrong[i], 50, 1000, 0);
        expect(&f->guest, RST);
        rig_pump(&f->guest.rig);
        assert_int_equal(f->closed, i + 1);
        assert_int_equal(f->error, -ECONNRESET);
    }
}

static void test_short_header(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffer = {TX_DATA, HEADER - 1};
    uint16_t id;
    uint32_t length;
    ring_add(&f->guest.driver.rings[TX], &buffer, 1, 1);
    driver_notify(&f->guest.driver, TX);
    assert_true(ring_used(&f->guest.driver.rings[TX], &id, &length));
    expect_nothing(&f->guest);
}

static void test_many_connections(void **state) {
    struct fixture *f = *state;
    unsigned refused = 0;
    struct packet packet;
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX + 10; i++) {
        put(&f->guest, REQUEST, 5000 + i, 1000, 0);
        rig_pump(&f->guest.rig);
        while (get(&f->guest, &packet))
            refused += packet.op == RST;
    }
    assert_int_equal(f->accepted, VSOCK_CONNECTIONS_MAX);
    assert_int_equal(refused, 10);
    /* Those the host closes make room, even if the guest never answers. */
    vsock_close(f->conn);
    expect(&f->guest, SHUTDOWN);
    put(&f->guest, REQUEST, 9000, 1000, 0);
    rig_pump(&f->guest.rig);
    assert_int_equal(f->accepted, VSOCK_CONNECTIONS_MAX + 1);
}

/* No receive buffers: answers wait, then packets wait, then all of it comes through. */
static void test_no_buffers(void **state) {
    struct fixture *f = *state;
    struct packet packet;
    unsigned resets = 0;
    uint16_t id;
    uint32_t length;
    driver_start(&f->guest.driver, 0, 3, QUEUE);
    f->guest.rx_next = 0;
    for (unsigned i = 0; i < 300; i++) {
        uint8_t raw[HEADER] = {0};
        raw[0] = VSOCK_GUEST_CID;
        raw[8] = VSOCK_HOST_CID;
        raw[28] = 1;
        raw[30] = RW;
        rig_put(&f->guest.rig, TX_DATA, raw, sizeof raw);
        const struct driver_buffer buffer = {TX_DATA, HEADER};
        ring_add(&f->guest.driver.rings[TX], &buffer, 1, 1);
        driver_notify(&f->guest.driver, TX);
        while (ring_used(&f->guest.driver.rings[TX], &id, &length))
            ;
    }
    assert_true(f->guest.driver.rings[TX].free_count < QUEUE);
    post_buffers(&f->guest, QUEUE);
    for (unsigned i = 0; i < 200; i++) {
        rig_pump(&f->guest.rig);
        while (get(&f->guest, &packet))
            resets++;
    }
    while (ring_used(&f->guest.driver.rings[TX], &id, &length))
        ;
    assert_int_equal(f->guest.driver.rings[TX].free_count, QUEUE);
    assert_true(resets >= 128 + QUEUE);
}

static void test_small_buffer(void **state) {
    struct fixture *f = *state;
    const struct driver_buffer buffer = {RX_DATA, HEADER - 1};
    driver_start(&f->guest.driver, 0, 3, QUEUE);
    ring_add(&f->guest.driver.rings[RX], &buffer, 0, 1);
    put(&f->guest, RW, 60, 2000, 0);
    assert_true(driver_status(&f->guest.driver) & VIRTIO_NEEDS_RESET);
    rig_pump(&f->guest.rig);
}

static void test_bad_cid(void **state) {
    struct fixture *f = *state;
    struct device *device;
    static const uint64_t bad[] = {1, 2, UINT32_MAX, UINT64_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        struct virtio_vsock_config config = {.guest_cid = bad[i]};
        assert_int_equal(device_create(&virtio_vsock_class, "vsock1", &f->guest.rig.platform,
                                       &config, &device, NULL),
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
