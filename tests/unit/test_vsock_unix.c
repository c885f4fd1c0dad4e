/* The bridge between the socket device and Unix sockets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "virtio/vsock_unix.h"
#include "vsock_rig.h"

struct fixture {
    struct vsock_guest guest;
    struct vsock_unix *bridge;
    char directory[32], path[64];
    /* the client's end */
    int fd;
    char line[64];
    size_t length, wanted;
    bool ended;
};

static struct fixture fixture;

static int setup(void **state) {
    struct fixture *f = *state = &fixture;
    *f = (struct fixture){.fd = -1};
    guest_start(&f->guest);
    strcpy(f->directory, "/tmp/lodge-test-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    snprintf(f->path, sizeof f->path, "%s/v", f->directory);
    assert_int_equal(
        vsock_unix_create(f->guest.device, f->guest.rig.platform.loop, f->path, &f->bridge, NULL),
        0);
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    vsock_unix_destroy(f->bridge);
    assert_int_equal(access(f->path, F_OK), -1);
    if (f->fd >= 0)
        close(f->fd);
    guest_stop(&f->guest);
    rmdir(f->directory);
    return 0;
}

static int unix_socket(const char *path, bool listening) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (listening) {
        assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
        assert_int_equal(listen(fd, 4), 0);
    } else {
        assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    }
    return fd;
}

/* ---- What the loop is run until ---- */

static bool guest_heard(void *context) {
    struct fixture *f = context;
    struct driver_ring *ring = &f->guest.driver.rings[RX];
    return ring_peek16(ring, ring->base + RING_DEVICE + 2) != ring->used_seen;
}

static struct packet await(struct fixture *f, uint16_t op) {
    assert_true(rig_pump_until(&f->guest.rig, guest_heard, f));
    return expect(&f->guest, op);
}

/* The client has `wanted` bytes, or the stream ended. */
static bool client_heard(void *context) {
    struct fixture *f = context;
    ssize_t got = recv(f->fd, f->line + f->length, sizeof f->line - 1 - f->length, 0);
    if (got > 0)
        f->length += (size_t)got;
    f->ended = got == 0 || (got < 0 && errno != EAGAIN);
    return f->ended || (f->wanted != 0 && f->length >= f->wanted);
}

static void client_reads(struct fixture *f, const char *text) {
    memset(f->line, 0, sizeof f->line);
    f->length = 0;
    f->wanted = strlen(text);
    assert_true(rig_pump_until(&f->guest.rig, client_heard, f));
    assert_string_equal(f->line, text);
}

static void client_sees_end(struct fixture *f) {
    f->length = f->wanted = 0;
    assert_true(rig_pump_until(&f->guest.rig, client_heard, f));
    assert_true(f->ended);
    assert_int_equal(f->length, 0);
}

static void client_writes(struct fixture *f, const char *text) {
    assert_int_equal(send(f->fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* Opens a connection to guest port 52; answers the host's port. */
static uint32_t open_to_guest(struct fixture *f) {
    char line[32];
    f->fd = unix_socket(f->path, false);
    client_writes(f, "CONNECT 52\nearly");
    struct packet packet = await(f, REQUEST);
    assert_int_equal(packet.target_port, 52);
    put(&f->guest, RESPONSE, 52, packet.source_port, 0);
    snprintf(line, sizeof line, "OK %u\n", packet.source_port);
    client_reads(f, line);
    packet = await(f, RW);
    assert_int_equal(packet.length, 5);
    assert_memory_equal(packet.data, "early", 5);
    return packet.source_port;
}

static void test_connect(void **state) {
    struct fixture *f = *state;
    uint32_t port = open_to_guest(f);
    put_data(&f->guest, 52, port, "answer", 6);
    client_reads(f, "answer");
    client_writes(f, "more");
    assert_int_equal(await(f, RW).length, 4);
    /* The guest closes; the client sees the end. */
    put_data(&f->guest, 52, port, "bye", 3);
    put(&f->guest, SHUTDOWN, 52, port, 3);
    await(f, RST);
    client_reads(f, "bye");
    client_sees_end(f);
}

static void test_half_close(void **state) {
    struct fixture *f = *state;
    uint32_t port = open_to_guest(f);
    shutdown(f->fd, SHUT_WR);
    assert_int_equal(await(f, SHUTDOWN).flags, 2);
    put_data(&f->guest, 52, port, "late", 4);
    client_reads(f, "late");
    put(&f->guest, SHUTDOWN, 52, port, 2);
    client_sees_end(f);
}

static void test_client_goes(void **state) {
    struct fixture *f = *state;
    open_to_guest(f);
    close(f->fd);
    f->fd = -1;
    struct packet packet = await(f, SHUTDOWN);
    assert_true(packet.flags & 2);
}

static void test_refused(void **state) {
    struct fixture *f = *state;
    f->fd = unix_socket(f->path, false);
    client_writes(f, "CONNECT 99\n");
    struct packet packet = await(f, REQUEST);
    put(&f->guest, RST, 99, packet.source_port, 0);
    client_sees_end(f);
}

static void test_bad_commands(void **state) {
    struct fixture *f = *state;
    static const char *const bad[] = {
        "\n",
        "CONNECT\n",
        "CONNECT \n",
        "CONNECT x\n",
        "connect 5\n",
        "CONNECT 5 \n",
        "CONNECT 4294967295\n",
        "CONNECT 99999999999999999999\n",
        "CONNECT -1\n",
        "CONNECT 00000000000000000000000000000000000000005\n",
        "GET / HTTP/1.1\r\n",
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        f->fd = unix_socket(f->path, false);
        client_writes(f, bad[i]);
        client_sees_end(f);
        close(f->fd);
        f->fd = -1;
    }
    expect_nothing(&f->guest);
}

static void test_guest_connects(void **state) {
    struct fixture *f = *state;
    char path[80];
    snprintf(path, sizeof path, "%s_700", f->path);
    int listener = unix_socket(path, true);
    put(&f->guest, REQUEST, 60, 700, 0);
    await(f, RESPONSE);
    f->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    assert_true(f->fd >= 0);
    put_data(&f->guest, 60, 700, "hello", 5);
    client_reads(f, "hello");
    client_writes(f, "hi");
    assert_int_equal(await(f, RW).length, 2);
    close(listener);
    unlink(path);
    /* Nobody there: refused. */
    put(&f->guest, REQUEST, 61, 700, 0);
    await(f, RST);
}

static void test_relay_fd(void **state) {
    struct fixture *f = *state;
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    f->fd = ends[0];
    assert_int_equal(vsock_unix_relay_fd(f->bridge, 52, ends[1], NULL), 0);
    client_writes(f, "first");
    struct packet packet = await(f, REQUEST);
    put(&f->guest, RESPONSE, 52, packet.source_port, 0);
    assert_int_equal(await(f, RW).length, 5);
    put_data(&f->guest, 52, packet.source_port, "back", 4);
    client_reads(f, "back");
}

static void test_create_errors(void **state) {
    struct fixture *f = *state;
    struct vsock_unix *other;
    char path[200];
    struct loop *loop = f->guest.rig.platform.loop;
    assert_int_equal(vsock_unix_create(f->guest.device, loop, f->path, &other, NULL), -EADDRINUSE);
    assert_int_equal(access(f->path, F_OK), 0);
    memset(path, 'x', sizeof path);
    path[sizeof path - 1] = '\0';
    assert_int_equal(vsock_unix_create(f->guest.device, loop, path, &other, NULL), -ENAMETOOLONG);
    snprintf(path, sizeof path, "%s/w", f->directory);
    /* One bridge a device. */
    assert_int_equal(vsock_unix_create(f->guest.device, loop, path, &other, NULL), -EADDRINUSE);
    assert_int_equal(access(path, F_OK), -1);
    test_guest_connects(state);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_connect),  TEST(test_half_close),    TEST(test_client_goes),
        TEST(test_refused),  TEST(test_bad_commands),  TEST(test_guest_connects),
        TEST(test_relay_fd), TEST(test_create_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
