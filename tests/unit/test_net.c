/* Network back ends with hand-made frames, and the network device in front of one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <cmocka.h>

#include "device_rig.h"
#include "net/net.h"
#include "virtio/net.h"

enum { RX = 0, TX = 1, VNET_HEADER = 12 };
enum { ETHERTYPE_IP = 0x0800, ETHERTYPE_ARP = 0x0806 };
static const uint8_t guest_mac[6] = {2, 0x6c, 0x6f, 0x64, 0x67, 0x65};
static const uint8_t guest_ip[4] = {10, 0, 2, 15}, host_ip[4] = {10, 0, 2, 2};

/* ---- Frames ---- */

static void put_be16(uint8_t *p, unsigned value) {
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static unsigned get_be16(const uint8_t *p) {
    return (unsigned)p[0] << 8 | p[1];
}

static uint16_t ip_checksum(const uint8_t *bytes, size_t length) {
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < length; i += 2)
        sum += get_be16(bytes + i);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static size_t arp_frame(uint8_t *frame, unsigned op, const uint8_t *target_mac,
                        const uint8_t *target_ip) {
    memset(frame, 0, 60);
    memset(frame, 0xff, 6);
    memcpy(frame + 6, guest_mac, 6);
    put_be16(frame + 12, ETHERTYPE_ARP);
    put_be16(frame + 14, 1);
    put_be16(frame + 16, ETHERTYPE_IP);
    frame[18] = 6;
    frame[19] = 4;
    put_be16(frame + 20, op);
    memcpy(frame + 22, guest_mac, 6);
    memcpy(frame + 28, guest_ip, 4);
    if (target_mac != NULL)
        memcpy(frame + 32, target_mac, 6);
    memcpy(frame + 38, target_ip, 4);
    return 60;
}

/* Ethernet, IP and UDP headers around a payload that is there already at frame + 42. */
static size_t udp_frame(uint8_t *frame, const uint8_t *source, const uint8_t *target,
                        unsigned source_port, unsigned target_port, size_t payload) {
    memset(frame, 0xff, 6);
    memcpy(frame + 6, guest_mac, 6);
    put_be16(frame + 12, ETHERTYPE_IP);
    uint8_t *ip = frame + 14;
    memset(ip, 0, 28);
    ip[0] = 0x45;
    put_be16(ip + 2, (unsigned)(28 + payload));
    ip[8] = 64;
    ip[9] = 17;
    memcpy(ip + 12, source, 4);
    memcpy(ip + 16, target, 4);
    put_be16(ip + 10, ip_checksum(ip, 20));
    put_be16(ip + 20, source_port);
    put_be16(ip + 22, target_port);
    put_be16(ip + 24, (unsigned)(8 + payload));
    return 42 + payload;
}

static size_t dhcp_discover(uint8_t *frame) {
    static const uint8_t zero[4], broadcast[4] = {255, 255, 255, 255};
    static const uint8_t options[] = {0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255};
    uint8_t *bootp = frame + 42;
    memset(bootp, 0, 300);
    bootp[0] = 1;
    bootp[1] = 1;
    bootp[2] = 6;
    memcpy(bootp + 4, "\x12\x34\x56\x78", 4);
    memcpy(bootp + 28, guest_mac, 6);
    memcpy(bootp + 236, options, sizeof options);
    return udp_frame(frame, zero, broadcast, 68, 67, 300);
}

/* ---- Publishing ---- */

static void test_parse_publish(void **state) {
    static const struct {
        const char *text;
        uint32_t address;
        uint16_t host, guest;
        bool udp;
    } good[] = {
        {"8080:80", 0x7f000001, 8080, 80, false},
        {"8080:80/tcp", 0x7f000001, 8080, 80, false},
        {"53:5353/udp", 0x7f000001, 53, 5353, true},
        {"0.0.0.0:1:65535", 0, 1, 65535, false},
        {"192.168.1.9:65535:1/udp", 0xc0a80109, 65535, 1, true},
    };
    static const char *const bad[] = {
        "",
        ":",
        "80",
        "80:",
        ":80",
        "80:80:80",
        "0:80",
        "80:0",
        "65536:80",
        "80:99999999999",
        "80:80/",
        "80:80/sctp",
        "x:80",
        "80:x",
        "80: 80",
        "-1:80",
        "1.2.3:80:80",
        "1.2.3.4.5:1:2",
        "localhost:80:80",
        "[::1]:80:80",
        "80/udp",
        "80:80/udp/udp",
        "1.2.3.4:80",
        ":80:80",
    };
    for (unsigned i = 0; i < ARRAY_SIZE(good); i++) {
        struct net_publish publish;
        assert_int_equal(net_parse_publish(good[i].text, &publish, NULL), 0);
        assert_int_equal(ntohl(publish.host_address.s_addr), good[i].address);
        assert_int_equal(publish.host_port, good[i].host);
        assert_int_equal(publish.guest_port, good[i].guest);
        assert_int_equal(publish.udp, good[i].udp);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        struct net_publish publish;
        struct error err = {0};
        assert_int_equal(net_parse_publish(bad[i], &publish, &err), -EINVAL);
        assert_non_null(strstr(err.text, "cannot publish"));
    }
}

/* ---- Back ends ---- */

static void test_null(void **state) {
    struct net *net;
    uint8_t frame[64] = {0};
    assert_int_equal(net_null_create(&net, NULL), 0);
    assert_true(net_send(net, frame, sizeof frame));
    assert_null(net_next(net));
    net_close(net);
}

static struct net *user_net(const struct net_publish *publish, unsigned count) {
    struct net_user_config config = {.publish = publish, .publish_count = count};
    struct net *net;
    struct error err;
    int rc = net_user_create(&config, &net, &err);
    if (rc != 0)
        fail_msg("%s", err.text);
    return net;
}

static void test_arp(void **state) {
    uint8_t frame[64];
    struct net *net = user_net(NULL, 0);
    assert_true(net_send(net, frame, arp_frame(frame, 1, NULL, host_ip)));
    struct net_frame *reply = net_next(net);
    assert_non_null(reply);
    assert_int_equal(get_be16(reply->bytes + 12), ETHERTYPE_ARP);
    assert_int_equal(get_be16(reply->bytes + 20), 2);
    assert_memory_equal(reply->bytes + 28, host_ip, 4);
    free(reply);
    assert_null(net_next(net));
    net_close(net);
}

static void test_dhcp(void **state) {
    uint8_t frame[512];
    struct net *net = user_net(NULL, 0);
    assert_true(net_send(net, frame, dhcp_discover(frame)));
    struct net_frame *offer = net_next(net);
    assert_non_null(offer);
    assert_int_equal(get_be16(offer->bytes + 36), 68);
    assert_memory_equal(offer->bytes + 42 + 16, guest_ip, 4);
    free(offer);
    net_close(net);
}

static void test_bad_frames(void **state) {
    uint8_t frame[2048];
    struct net_user_config config = {.isolate_host = true};
    struct net *net;
    assert_int_equal(net_user_create(&config, &net, NULL), 0);
    uint32_t seed = 5;
    for (unsigned i = 0; i < 20000; i++) {
        for (unsigned j = 0; j < 80; j++) {
            seed = seed * 1664525u + 1013904223u;
            frame[j] = (uint8_t)(seed >> 24);
        }
        put_be16(frame + 12, i % 3 == 0 ? ETHERTYPE_ARP : i % 3 == 1 ? ETHERTYPE_IP : 0x86dd);
        if (i % 2 == 0)
            frame[14] = 0x45;
        put_be16(frame + 24, 0);
        put_be16(frame + 24, ip_checksum(frame + 14, 20));
        /* Not to the outside world. */
        memcpy(frame + 30, host_ip, 4);
        assert_true(net_send(net, frame, i % 81));
        free(net_next(net));
    }
    assert_true(net_send(net, frame, 0));
    net_close(net);
}

static void test_bad_config(void **state) {
    struct net *net;
    static const uint16_t bad[] = {1, 575, NET_MTU_MAX + 1};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        struct net_user_config config = {.mtu = bad[i]};
        assert_int_equal(net_user_create(&config, &net, NULL), -EINVAL);
    }
    struct net_user_config config = {.ipv6 = true};
    assert_int_equal(net_user_create(&config, &net, NULL), 0);
    net_close(net);
}

/* A listening socket on a port of the host's loopback. */
static int listen_somewhere(uint16_t *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

static void test_publish_taken(void **state) {
    struct net_publish publish = {.host_address.s_addr = htonl(INADDR_LOOPBACK), .guest_port = 80};
    int fd = listen_somewhere(&publish.host_port);
    struct net_user_config config = {.publish = &publish, .publish_count = 1};
    struct net *net;
    struct error err;
    assert_int_equal(net_user_create(&config, &net, &err), -EADDRINUSE);
    assert_non_null(strstr(err.text, "cannot publish tcp port"));
    close(fd);
}

/* ---- The device ---- */

struct fixture {
    struct rig rig;
    struct rig_driver driver;
    struct device *device;
    struct net *net;
    uint64_t rx_of_id[VIRTQ_SIZE_MAX];
};

static struct fixture fixture;
static uint16_t published_port;

static int setup(void **state) {
    struct fixture *f = *state = &fixture;
    *f = (struct fixture){0};
    /* A port that was free a moment ago. */
    close(listen_somewhere(&published_port));
    struct net_publish publish = {.host_address.s_addr = htonl(INADDR_LOOPBACK),
                                  .host_port = published_port,
                                  .guest_port = 80};
    f->net = user_net(&publish, 1);
    struct virtio_net_config config = {.options.packed = true, .net = f->net};
    rig_start(&f->rig);
    assert_int_equal(
        device_create(&virtio_net_class, "net0", &f->rig.platform, &config, &f->device, NULL), 0);
    driver_find(&f->driver, &f->rig, VIRTIO_ID_NET);
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    device_destroy(f->device);
    net_close(f->net);
    rig_stop(&f->rig);
    return 0;
}

static void post(struct fixture *f, unsigned count, uint32_t size) {
    for (unsigned i = 0; i < count; i++) {
        const struct driver_buffer buffer = {RIG_DATA + 0x100000 + 0x1000 * i, size};
        int id = ring_add(&f->driver.rings[RX], &buffer, 0, 1);
        assert_true(id >= 0);
        f->rx_of_id[id] = buffer.address;
    }
    driver_notify(&f->driver, RX);
}

static void transmit(struct fixture *f, const uint8_t *frame, size_t length) {
    const struct driver_buffer buffers[] = {{RIG_DATA, VNET_HEADER},
                                            {RIG_DATA + VNET_HEADER, (uint32_t)length}};
    uint16_t id;
    uint32_t used;
    rig_put(&f->rig, RIG_DATA + VNET_HEADER, frame, length);
    ring_add(&f->driver.rings[TX], buffers, 2, 2);
    driver_notify(&f->driver, TX);
    assert_true(ring_used(&f->driver.rings[TX], &id, &used));
}

static void test_device_config(void **state) {
    struct fixture *f = *state;
    uint64_t mac = driver_read(&f->driver, VIRTIO_PCI_DEVICE, 4) |
                   driver_read(&f->driver, VIRTIO_PCI_DEVICE + 4, 2) << 32;
    assert_memory_equal(&mac, guest_mac, 6);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE + 6, 2), 1);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE + 10, 2), 1500);
    virtio_net_set_link(f->device, false);
    assert_int_equal(driver_read(&f->driver, VIRTIO_PCI_DEVICE + 6, 2), 0);
}

/* DHCP through the device: split and packed, whole and merged buffers. */
static void test_device_dhcp(void **state) {
    struct fixture *f = *state;
    uint8_t frame[512], answer[2048];
    for (unsigned kind = 0; kind < 4; kind++) {
        bool packed = kind & 1, merge = kind & 2;
        uint64_t features = merge ? VIRTIO_FEATURE(15) : 0;
        features |= packed ? VIRTIO_FEATURE(VIRTIO_F_RING_PACKED) : 0;
        driver_start(&f->driver, features, 2, 32);
        uint32_t size = merge ? 100 : 1526, length, done = 0, buffers = 1;
        post(f, 16, size);
        transmit(f, frame, dhcp_discover(frame));
        for (unsigned i = 0; i < buffers; i++) {
            uint16_t id;
            assert_true(ring_used(&f->driver.rings[RX], &id, &length));
            rig_get(&f->rig, f->rx_of_id[id], answer + done, length);
            done += length;
            if (i == 0)
                buffers = load_le16(answer + 10);
        }
        assert_int_equal(buffers > 1, merge);
        assert_int_equal(get_be16(answer + VNET_HEADER + 36), 68);
        assert_memory_equal(answer + VNET_HEADER + 42 + 16, guest_ip, 4);
    }
}

/* Too few buffers for the frame: it waits for more. */
static void test_device_waits(void **state) {
    struct fixture *f = *state;
    uint8_t frame[512];
    uint16_t id;
    uint32_t length;
    driver_start(&f->driver, VIRTIO_FEATURE(15) | VIRTIO_FEATURE(VIRTIO_F_EVENT_IDX), 2, 32);
    post(f, 3, 100);
    transmit(f, frame, dhcp_discover(frame));
    assert_false(ring_used(&f->driver.rings[RX], &id, &length));
    /* The device wants to hear of what comes behind the three. */
    assert_int_equal(ring_peek16(&f->driver.rings[RX], RIG_RINGS + RING_DEVICE + 4 + 8 * 32), 3);
    post(f, 10, 100);
    assert_true(ring_used(&f->driver.rings[RX], &id, &length));
}

static void test_device_malformed(void **state) {
    struct fixture *f = *state;
    uint8_t frame[64] = {0};
    driver_start(&f->driver, 0, 2, 32);
    transmit(f, frame, 3);
    const struct driver_buffer buffer = {RIG_DATA, 5};
    uint16_t id;
    uint32_t length;
    ring_add(&f->driver.rings[TX], &buffer, 1, 1);
    driver_notify(&f->driver, TX);
    assert_true(ring_used(&f->driver.rings[TX], &id, &length));
    assert_false(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
    post(f, 4, 12);
    transmit(f, frame, arp_frame(frame, 1, NULL, host_ip));
    assert_true(driver_status(&f->driver) & VIRTIO_NEEDS_RESET);
}

static bool frame_came(void *context) {
    struct fixture *f = context;
    uint16_t id;
    uint32_t length;
    return ring_used(&f->driver.rings[RX], &id, &length);
}

/* A connection to the published port becomes frames for the guest, from the back end's thread. */
static void test_device_published(void **state) {
    struct fixture *f = *state;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(published_port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    driver_start(&f->driver, 0, 2, 32);
    post(f, 8, 1526);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect(fd, (struct sockaddr *)&address, sizeof address);
    /* Who has 10.0.2.15? */
    assert_true(rig_pump_until(&f->rig, frame_came, f));
    close(fd);
}

int main(void) {
#define DEVICE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_publish),
        cmocka_unit_test(test_null),
        cmocka_unit_test(test_arp),
        cmocka_unit_test(test_dhcp),
        cmocka_unit_test(test_bad_frames),
        cmocka_unit_test(test_bad_config),
        cmocka_unit_test(test_publish_taken),
        DEVICE(test_device_config),
        DEVICE(test_device_dhcp),
        DEVICE(test_device_waits),
        DEVICE(test_device_malformed),
        DEVICE(test_device_published),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
