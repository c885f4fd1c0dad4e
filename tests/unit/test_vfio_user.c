/* vfio-user: messages, a served NVMe controller under a client that keeps to no rule, both sides.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "device_rig.h"
#include "nvme/nvme.h"
#include "nvme/spec.h"
#include "vfio_user/lent.h"
#include "vfio_user/link.h"
#include "vfio_user/server.h"
#include "vfio_user/wire.h"

enum { RAM = 1 << 20, DISK = 1 << 20, ASQ = 0x1000, ACQ = 0x2000, DATA_AT = 0x3000 };

/* ---- A server on a thread, and the client's end of its socket ---- */

struct test {
    char disk[48], socket[64];
    struct block *block;
    struct loop *loop;
    struct platform platform;
    void *state;
    struct vu_kept kept;
    int ours, theirs, result, ram, full;
    uint8_t *memory;
    struct error err;
    pthread_t thread;
    struct vu_reader reader;
    struct vu_message message;
};

static int create_nvme(void *context, struct platform *platform, void *state,
                       struct device **device, struct error *err) {
    struct test *t = context;
    struct nvme_config config = {.blocks = {t->block}, .count = 1, .late = true, .journal = state};
    int rc = device_create(&nvme_class, "nvme", platform, &config, device, err);
    if (rc == 0)
        nvme_pause(*device);
    return rc;
}

static struct vu_model model(struct test *t) {
    return (struct vu_model){.name = "test",
                             .state_size = nvme_journal_size(),
                             .create = create_nvme,
                             .pause = nvme_pause,
                             .resume = nvme_resume,
                             .full = t->full,
                             .context = t};
}

static void *serve(void *context) {
    struct test *t = context;
    struct vu_model served = model(t);
    t->err.text[0] = 0;
    t->result = vu_serve(t->theirs, &served, &t->platform, t->state, &t->kept, -1, &t->err);
    shutdown(t->theirs, SHUT_RDWR);
    return NULL;
}

static void start(struct test *t) {
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    t->ours = pair[0];
    t->theirs = pair[1];
    t->reader.have = 0;
    assert_int_equal(pthread_create(&t->thread, NULL, serve, t), 0);
}

/* What vu_serve answered. */
static int stop(struct test *t) {
    shutdown(t->ours, SHUT_RDWR);
    pthread_join(t->thread, NULL);
    close(t->ours);
    close(t->theirs);
    return t->result;
}

static int setup(void **state) {
    struct test *t = calloc(1, sizeof *t);
    *state = t;
    log_set_level(LOG_ERROR);
    strcpy(t->disk, "/tmp/lodge-test-vfio-user-XXXXXX");
    int fd = mkstemp(t->disk);
    assert_true(fd >= 0 && ftruncate(fd, DISK) == 0 && pwrite(fd, "first sector", 12, 0) == 12);
    close(fd);
    snprintf(t->socket, sizeof t->socket, "%s.socket", t->disk);
    assert_int_equal(block_open_raw(t->disk, false, &t->block, NULL), 0);
    assert_int_equal(loop_create(&t->loop, NULL), 0);
    assert_int_equal(vu_platform_create(t->loop, &t->platform, NULL), 0);
    t->state = calloc(1, nvme_journal_size());
    t->full = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_true(t->full >= 0);
    t->ram = memfd_create("test", MFD_CLOEXEC);
    assert_true(t->ram >= 0 && ftruncate(t->ram, RAM) == 0);
    t->memory = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED, t->ram, 0);
    assert_true(t->memory != MAP_FAILED);
    return 0;
}

static int teardown(void **state) {
    struct test *t = *state;
    vu_platform_destroy(&t->platform);
    block_close(t->block);
    loop_destroy(t->loop);
    munmap(t->memory, RAM);
    close(t->ram);
    close(t->full);
    unlink(t->disk);
    free(t->state);
    free(t);
    return 0;
}

/* ---- The client ---- */

static uint8_t *begin(struct test *t, uint16_t command, uint32_t length) {
    vu_begin(&t->message, 7, command);
    memset(t->message.payload, 0, length);
    t->message.length = length;
    return t->message.payload;
}

/* Sends t->message; answers the reply's error, which must be one, or 0. */
static int ask(struct test *t) {
    struct vu_message *reply = &t->reader.message;
    assert_int_equal(vu_send(t->ours, &t->message), 0);
    assert_int_equal(vu_wait(&t->reader, t->ours, 60000), 1);
    assert_int_equal(reply->flags & VU_TYPE, VU_REPLY);
    assert_int_equal(reply->id, t->message.id);
    assert_int_equal(reply->command, t->message.command);
    vu_close_fds(reply);
    return reply->flags & VU_ERROR ? (int)reply->error : 0;
}

static struct vu_version greet(struct test *t, const char *name) {
    struct vu_version version = {.max_fds = 16, .max_data = 4096, .minor = VU_MINOR};
    snprintf(version.resume, sizeof version.resume, "%s", name);
    begin(t, VU_VERSION, 0);
    vu_version_format(&version, false, &t->message);
    assert_int_equal(ask(t), 0);
    assert_int_equal(vu_version_parse(&t->reader.message, &version), 0);
    return version;
}

static int lend(struct test *t, uint64_t address, uint64_t size, uint64_t offset, int fd) {
    uint8_t *p = begin(t, VU_DMA_MAP, VU_MAP_SIZE);
    store_le32(p + 4, VU_MAP_READ | VU_MAP_WRITE);
    store_le64(p + 8, offset);
    store_le64(p + 16, address);
    store_le64(p + 24, size);
    t->message.fd_count = fd >= 0;
    t->message.fds[0] = fd;
    return ask(t);
}

static int write_region(struct test *t, uint32_t region, uint64_t offset, uint64_t value,
                        uint32_t size) {
    uint8_t *p = begin(t, VU_REGION_WRITE, VU_ACCESS_SIZE + 8);
    store_le64(p, offset);
    store_le32(p + 8, region);
    store_le32(p + 12, size);
    store_le64(p + VU_ACCESS_SIZE, value);
    return ask(t);
}

static int read_region(struct test *t, uint32_t region, uint64_t offset, uint32_t size) {
    uint8_t *p = begin(t, VU_REGION_READ, VU_ACCESS_SIZE);
    store_le64(p, offset);
    store_le32(p + 8, region);
    store_le32(p + 12, size);
    return ask(t);
}

static int set_irqs(struct test *t, uint32_t flags, uint32_t start, uint32_t count, int fd) {
    uint8_t *p = begin(t, VU_SET_IRQS, VU_SET_IRQS_SIZE);
    store_le32(p + 4, flags);
    store_le32(p + 8, VU_IRQ_MSIX);
    store_le32(p + 12, start);
    store_le32(p + 16, count);
    t->message.fd_count = fd >= 0;
    t->message.fds[0] = fd;
    return ask(t);
}

static void enable(struct test *t) {
    assert_int_equal(write_region(t, VU_REGION_CONFIG, 4, 6, 2), 0);
    assert_int_equal(write_region(t, 0, NVME_REG_AQA, 15 << 16 | 15, 4), 0);
    assert_int_equal(write_region(t, 0, NVME_REG_ASQ, ASQ, 8), 0);
    assert_int_equal(write_region(t, 0, NVME_REG_ACQ, ACQ, 8), 0);
    assert_int_equal(write_region(t, 0, NVME_REG_CC,
                                  NVME_CC_EN | NVME_SQES << NVME_CC_IOSQES_SHIFT |
                                      NVME_CQES << NVME_CC_IOCQES_SHIFT,
                                  4),
                     0);
}

/* Puts "identify controller" into the admin queue's nth entry and rings. */
static void identify(struct test *t, unsigned n) {
    uint8_t *entry = t->memory + ASQ + (size_t)n * NVME_SQE;
    memset(entry, 0, NVME_SQE);
    entry[0] = NVME_ADMIN_IDENTIFY;
    store_le16(entry + 2, (uint16_t)(n + 1));
    store_le64(entry + 24, DATA_AT);
    store_le32(entry + 40, 1);
    assert_int_equal(write_region(t, 0, NVME_REG_DOORBELLS, n + 1, 4), 0);
}

static void expect_identified(const struct test *t, unsigned n) {
    const uint8_t *entry = t->memory + ACQ + (size_t)n * NVME_CQE;
    assert_int_equal(load_le16(entry + 12), n + 1);
    assert_int_equal(load_le16(entry + 14), 1);
    assert_int_equal(load_le16(t->memory + DATA_AT), 0x1b36);
}

/* ---- Messages ---- */

static void wire_pieces(void **state) {
    int pair[2];
    struct vu_reader *reader = calloc(1, sizeof *reader);
    static const uint8_t bytes[] = {1, 0, 9, 0, 20, 0, 0,   0,   0,   0,
                                    0, 0, 0, 0, 0,  0, 'a', 'b', 'c', 'd'};
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    for (size_t i = 0; i < sizeof bytes; i++) {
        assert_int_equal(vu_receive(reader, pair[1]), 0);
        assert_int_equal(send(pair[0], bytes + i, 1, 0), 1);
    }
    assert_int_equal(vu_receive(reader, pair[1]), 1);
    assert_int_equal(reader->message.length, 4);
    assert_memory_equal(reader->message.payload, "abcd", 4);
    assert_int_equal(vu_wait(reader, pair[1], 1), -ETIMEDOUT);
    close(pair[0]);
    assert_int_equal(vu_receive(reader, pair[1]), -ECONNRESET);
    close(pair[1]);
    free(reader);
}

static void wire_sizes(void **state) {
    static const uint32_t sizes[] = {0, 15, VU_HEADER + VU_PAYLOAD_MAX + 1, UINT32_MAX};
    struct vu_reader *reader = calloc(1, sizeof *reader);
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        int pair[2];
        uint8_t header[VU_HEADER] = {0};
        store_le32(header + 4, sizes[i]);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        assert_int_equal(send(pair[0], header, sizeof header, 0), sizeof header);
        reader->have = 0;
        assert_int_equal(vu_receive(reader, pair[1]), -EPROTO);
        close(pair[0]);
        close(pair[1]);
    }
    free(reader);
}

static int parse(const char *json, struct vu_version *version) {
    static struct vu_message message;
    message.length = (uint32_t)(4 + strlen(json) + 1);
    memset(message.payload, 0, 4);
    strcpy((char *)message.payload + 4, json);
    return vu_version_parse(&message, version);
}

static void versions(void **state) {
    struct vu_version v;
    (void)state;
    assert_int_equal(parse("", &v), 0);
    assert_int_equal(v.max_fds, 1);
    assert_int_equal(v.max_data, 1 << 20);
    assert_false(v.twin);
    assert_int_equal(parse("{\"capabilities\": {\"max_msg_fds\": 8, \"else\": [1],"
                           "\"twin_socket\": {\"supported\": true, \"fd_index\": 0}}}",
                           &v),
                     0);
    assert_int_equal(v.max_fds, 8);
    assert_true(v.twin && v.twin_index == 0);
    assert_int_equal(parse("{\"capabilities\": {\"max_msg_fds\": -1}}", &v), -EPROTO);
    assert_int_equal(parse("{\"capabilities\": {\"max_msg_fds\": \"8\"}}", &v), -EPROTO);
    assert_int_equal(parse("{\"capabilities\": 3}", &v), 0);
    assert_int_equal(parse("{\"capab", &v), -EPROTO);
    assert_int_equal(parse("{\"capabilities\": {\"lodge\": {\"resume\": \"short\"}}}", &v), 0);
    assert_string_equal(v.resume, "");
}

/* ---- The server ---- */

static const char us[] = "0123456789abcdef0123456789abcdef",
                  them[] = "ffffffffffffffffffffffffffffffff";

static void serves(void **state) {
    struct test *t = *state;
    int irq = eventfd(0, EFD_NONBLOCK);
    uint64_t count;
    start(t);
    greet(t, "");
    begin(t, VU_GET_INFO, VU_INFO_SIZE);
    assert_int_equal(ask(t), 0);
    assert_int_equal(load_le32(t->reader.message.payload + 4), VU_DEVICE_PCI | VU_DEVICE_RESET);
    assert_int_equal(read_region(t, VU_REGION_CONFIG, 8, 4), 0);
    assert_int_equal(load_le32(t->reader.message.payload + 16) >> 8, 0x010802);
    assert_int_equal(lend(t, 0, RAM, 0, t->ram), 0);
    assert_int_equal(set_irqs(t, VU_SET_EVENTFD | VU_SET_TRIGGER, 0, 1, irq), 0);
    enable(t);
    identify(t, 0);
    expect_identified(t, 0);
    assert_int_equal(read(irq, &count, sizeof count), sizeof count);
    /* Triggered by hand, then taken away. */
    assert_int_equal(set_irqs(t, VU_SET_NONE | VU_SET_TRIGGER, 0, 1, -1), 0);
    assert_int_equal(read(irq, &count, sizeof count), sizeof count);
    assert_int_equal(set_irqs(t, VU_SET_NONE | VU_SET_TRIGGER, 0, 0, -1), 0);
    identify(t, 1);
    expect_identified(t, 1);
    assert_int_equal(read(irq, &count, sizeof count), -1);
    /* Without memory it fails until it is reset. */
    uint8_t *p = begin(t, VU_DMA_UNMAP, VU_UNMAP_SIZE);
    store_le64(p + 16, RAM);
    assert_int_equal(ask(t), 0);
    identify(t, 2);
    assert_int_equal(read_region(t, 0, NVME_REG_CSTS, 4), 0);
    assert_true(load_le32(t->reader.message.payload + 16) & NVME_CSTS_CFS);
    begin(t, VU_RESET, 0);
    assert_int_equal(ask(t), 0);
    assert_int_equal(lend(t, 0, RAM, 0, t->ram), 0);
    memset(t->memory, 0, RAM);
    enable(t);
    identify(t, 0);
    expect_identified(t, 0);
    assert_int_equal(stop(t), -ECONNRESET);
    close(irq);
}

/* What cannot be is answered with an error, and the next message is served. */
static void refuses(void **state) {
    struct test *t = *state;
    int file = open("/dev/null", O_RDWR), irq = eventfd(0, EFD_NONBLOCK);
    start(t);
    greet(t, "");
    assert_int_equal(lend(t, 0, 2 * RAM, 0, t->ram), EINVAL);
    assert_int_equal(lend(t, 0, RAM, 4096, t->ram), EINVAL);
    assert_int_equal(lend(t, 0, RAM, UINT64_MAX - 4095, t->ram), EINVAL);
    assert_int_equal(lend(t, UINT64_MAX - 4095, 8192, 0, t->ram), EINVAL);
    assert_int_equal(lend(t, 1, 4096, 0, t->ram), EINVAL);
    assert_int_equal(lend(t, 0, 0, 0, t->ram), EINVAL);
    assert_int_equal(lend(t, 0, 4096, 0, file), EINVAL);
    assert_int_equal(lend(t, 4096, 8192, 0, t->ram), 0);
    assert_int_equal(lend(t, 0, 8192, 0, t->ram), EEXIST);
    assert_int_equal(lend(t, 8192, 4096, 0, -1), EEXIST);
    for (unsigned i = 1; i < VU_MAPS_MAX; i++)
        assert_int_equal(lend(t, 0x100000 + 4096ull * i, 4096, 0, t->ram), 0);
    assert_int_equal(lend(t, 0x10000000, 4096, 0, t->ram), ENOSPC);
    store_le64(begin(t, VU_DMA_UNMAP, VU_UNMAP_SIZE) + 16, 4096);
    assert_int_equal(ask(t), ENOENT);
    assert_int_equal(read_region(t, 0, UINT64_MAX, 4), EINVAL);
    assert_int_equal(read_region(t, 0, 0x4000, 4), EINVAL);
    assert_int_equal(read_region(t, 0, 0, UINT32_MAX), EINVAL);
    assert_int_equal(read_region(t, 77, 0, 1), EINVAL);
    assert_int_equal(read_region(t, VU_REGION_CONFIG, 0, 4096), 0);
    assert_int_equal(read_region(t, 0, 3, 13), 0);
    assert_int_equal(write_region(t, 0, 0, 0, 9), EINVAL);
    assert_int_equal(set_irqs(t, VU_SET_EVENTFD | VU_SET_TRIGGER, 0, 1, file), EINVAL);
    assert_int_equal(set_irqs(t, VU_SET_EVENTFD | VU_SET_TRIGGER, 0, 2, irq), EINVAL);
    assert_int_equal(set_irqs(t, VU_SET_EVENTFD | VU_SET_TRIGGER, 17, 1, irq), EINVAL);
    assert_int_equal(set_irqs(t, VU_SET_NONE | VU_SET_TRIGGER, 1, UINT32_MAX, -1), EINVAL);
    assert_int_equal(set_irqs(t, VU_SET_BOOL | VU_SET_MASK, 0, 1, -1), EINVAL);
    for (uint16_t command = 2; command < 30; command++) {
        begin(t, command, 0); /* without what belongs to it */
        assert_int_equal(ask(t) != 0, command != VU_RESET);
    }
    assert_int_equal(stop(t), -ECONNRESET);
    close(file);
    close(irq);
}

static void wait_gone(struct test *t) {
    assert_int_equal(vu_wait(&t->reader, t->ours, 60000), -ECONNRESET);
}

/* What is not the protocol ends the connection with a reason; the next client is served. */
static void sends_away(void **state) {
    struct test *t = *state;
    static const char *const greetings[] = {"{", "{\"capabilities\": {\"max_dma_maps\": -7}}"};
    start(t); /* not the version first */
    begin(t, VU_RESET, 0);
    assert_int_equal(vu_send(t->ours, &t->message), 0);
    wait_gone(t);
    assert_int_equal(stop(t), -EPROTO);
    assert_true(t->err.text[0] != 0);
    for (unsigned i = 0; i < 2; i++) {
        start(t);
        strcpy((char *)begin(t, VU_VERSION, 100) + 4, greetings[i]);
        assert_int_equal(ask(t), EPROTO);
        wait_gone(t);
        assert_int_equal(stop(t), -EPROTO);
    }
    start(t); /* another major version */
    begin(t, VU_VERSION, 4)[0] = 1;
    assert_int_equal(ask(t), EPROTO);
    assert_int_equal(stop(t), -EPROTO);
    start(t); /* a reply to nothing */
    greet(t, "");
    begin(t, VU_RESET, 0);
    t->message.flags = VU_REPLY;
    assert_int_equal(vu_send(t->ours, &t->message), 0);
    wait_gone(t);
    assert_int_equal(stop(t), -EPROTO);
    start(t); /* more descriptors than were announced */
    greet(t, "");
    uint8_t control[CMSG_SPACE(64 * sizeof(int))] = {0};
    char bytes[] = "0123456789abcdef";
    struct iovec vector = {bytes, 16};
    struct msghdr header = {.msg_iov = &vector,
                            .msg_iovlen = 1,
                            .msg_control = control,
                            .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    *c = (struct cmsghdr){CMSG_LEN(64 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    for (unsigned i = 0; i < 64; i++)
        memcpy(CMSG_DATA(c) + i * sizeof(int), &t->ram, sizeof(int));
    assert_int_equal(sendmsg(t->ours, &header, 0), 16);
    wait_gone(t);
    assert_int_equal(stop(t), -EPROTO);
    start(t);
    greet(t, "");
    assert_int_equal(stop(t), -ECONNRESET);
}

/* Memory that is cut short while the device uses it costs its client the connection. */
static void cut_short(void **state) {
    struct test *t = *state;
    assert_int_equal(lent_guard(NULL), 0); /* here: cmocka has its own handler until now */
    start(t);
    greet(t, "");
    assert_int_equal(lend(t, 0, RAM, 0, t->ram), 0);
    enable(t);
    assert_int_equal(ftruncate(t->ram, 4096), 0);
    uint8_t *p = begin(t, VU_REGION_WRITE, VU_ACCESS_SIZE + 8);
    store_le64(p, NVME_REG_DOORBELLS);
    store_le32(p + 12, 4);
    p[VU_ACCESS_SIZE] = 1;
    assert_int_equal(vu_send(t->ours, &t->message), 0);
    assert_int_equal(vu_wait(&t->reader, t->ours, 60000), 1);
    wait_gone(t);
    assert_int_equal(stop(t), -EFAULT);
    assert_int_equal(ftruncate(t->ram, RAM), 0);
}

/* A client that comes back finds the device as it was; another one gets a new one. */
static void keeps(void **state) {
    struct test *t = *state;
    start(t);
    assert_false(greet(t, us).resumed);
    assert_int_equal(lend(t, 0, RAM, 0, t->ram), 0);
    enable(t);
    identify(t, 0);
    stop(t);
    start(t);
    struct vu_version version = greet(t, us);
    assert_true(version.resumed);
    assert_int_equal(version.done, 7); /* the id that all our messages have */
    assert_int_equal(lend(t, 0, RAM, 0, t->ram), 0);
    assert_int_equal(write_region(t, VU_REGION_CONFIG, 4, 6, 2), 0);
    identify(t, 1);
    expect_identified(t, 1);
    stop(t);
    start(t);
    assert_false(greet(t, them).resumed);
    assert_int_equal(read_region(t, 0, NVME_REG_CSTS, 4), 0);
    assert_int_equal(load_le32(t->reader.message.payload + 16), 0);
    stop(t);
}

/* Only a client that asked for it is told that the host has no space. */
static void tells_full(void **state) {
    struct test *t = *state;
    struct vu_version version = {.max_fds = 16, .max_data = 4096, .minor = VU_MINOR, .full = true};
    uint64_t one = 1;
    assert_int_equal(write(t->full, &one, sizeof one), sizeof one); /* nobody's any more */
    start(t);
    begin(t, VU_VERSION, 0);
    vu_version_format(&version, false, &t->message);
    assert_int_equal(ask(t), 0);
    assert_int_equal(write(t->full, &one, sizeof one), sizeof one);
    assert_int_equal(vu_wait(&t->reader, t->ours, 60000), 1);
    assert_int_equal(t->reader.message.command, VU_LODGE_FULL);
    assert_int_equal(t->reader.message.flags, VU_COMMAND | VU_NO_REPLY);
    assert_int_equal(t->reader.message.length, 0);
    stop(t);
    start(t);
    greet(t, "");
    assert_int_equal(write(t->full, &one, sizeof one), sizeof one);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(read_region(t, VU_REGION_CONFIG, 8, 4), 0);
    stop(t);
}

/* ---- Both sides: the client's function on a bus, a server at a socket ---- */

static bool client_on_bus(struct rig *rig, uint64_t *bar) {
    assert_int_equal(pci_bus_assign(rig->platform.pci, NULL), 0);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        uint64_t config = RIG_ECAM + ((uint64_t)slot << 15);
        if (rig_read(rig, config + 8, 4) >> 8 != 0x010802)
            continue;
        rig_write(rig, config + 4, 6, 2);
        *bar = rig_read(rig, config + 0x10, 4) & ~UINT64_C(15);
        *bar |= rig_read(rig, config + 0x14, 4) << 32;
        return true;
    }
    return false;
}

static void count_written(void *context, uint64_t gpa, size_t length) {
    (void)gpa;
    *(size_t *)context += length;
}

static void hear_full(void *context) {
    uint64_t one = 1;
    assert_int_equal(write(*(int *)context, &one, sizeof one), sizeof one);
}

static void both(void **state) {
    struct test *t = *state;
    struct rig rig;
    struct vu_server *server;
    struct vu_model served = model(t);
    struct device *device;
    int heard = eventfd(0, EFD_CLOEXEC);
    struct vfio_user_config config = {.socket = t->socket, .full = hear_full, .context = &heard};
    uint64_t bar = 0, one = 1;
    uint8_t entry[NVME_CQE] = {0};
    rig_start(&rig);
    memory_share(rig.platform.memory);
    assert_int_equal(memory_add_ram(rig.platform.memory, "shared", 1ull << 32, RAM, NULL), 0);
    assert_int_equal(
        device_create(&vfio_user_class, "user0", &rig.platform, &config, &device, &t->err),
        -ENOENT);
    assert_int_equal(vu_server_create(t->socket, &served, t->loop, &server, &t->err), 0);
    struct vu_server *second;
    assert_int_equal(vu_server_create(t->socket, &served, t->loop, &second, &t->err), -EBUSY);
    assert_int_equal(
        device_create(&vfio_user_class, "user0", &rig.platform, &config, &device, &t->err), 0);
    assert_true(vfio_user_is_nvme(device));
    assert_true(client_on_bus(&rig, &bar));
    assert_int_equal(rig_read(&rig, bar + NVME_REG_VS, 4), 0x10400);
    uint64_t base = 1ull << 32;
    rig_write(&rig, bar + NVME_REG_AQA, 15 << 16 | 15, 4);
    rig_write(&rig, bar + NVME_REG_ASQ, base + ASQ, 8);
    rig_write(&rig, bar + NVME_REG_ACQ, base + ACQ, 8);
    rig_write(&rig, bar + NVME_REG_CC,
              NVME_CC_EN | NVME_SQES << NVME_CC_IOSQES_SHIFT | NVME_CQES << NVME_CC_IOCQES_SHIFT,
              4);
    /* An engine that holds code of the page hears of each byte, before the command has ended. */
    size_t written = 0;
    struct memory_listener listener = {.code_written = count_written, .context = &written};
    assert_int_equal(memory_add_listener(rig.platform.memory, &listener), 0);
    memory_watch(rig.platform.memory, base + DATA_AT, 0);
    /* The server ends and another begins: the controller is still enabled. */
    vu_server_destroy(server);
    assert_int_equal(vu_server_create(t->socket, &served, t->loop, &server, &t->err), 0);
    assert_int_equal(rig_read(&rig, bar + NVME_REG_CSTS, 4), NVME_CSTS_RDY);
    uint8_t command[NVME_SQE] = {NVME_ADMIN_IDENTIFY};
    store_le64(command + 24, base + DATA_AT);
    store_le32(command + 40, 1);
    rig_put(&rig, base + ASQ, command, sizeof command);
    rig_write(&rig, bar + NVME_REG_DOORBELLS, 1, 4);
    assert_int_equal(rig_read(&rig, bar + NVME_REG_CSTS, 4), NVME_CSTS_RDY);
    rig_get(&rig, base + ACQ, entry, sizeof entry);
    assert_int_equal(load_le16(entry + 14), 1);
    assert_int_equal(written, 4096);
    memory_remove_listener(rig.platform.memory, &listener);
    /* The page's flag says that it was written. */
    uint64_t dirty;
    assert_int_equal(memory_fetch_dirty(rig.platform.memory, base + DATA_AT, 4096, &dirty), 1);
    /* What the machine keeps from devices, the server does too. */
    memory_set_readonly(rig.platform.memory, base + DATA_AT, 4096, true);
    rig_put(&rig, base + ASQ + NVME_SQE, command, sizeof command);
    rig_write(&rig, bar + NVME_REG_DOORBELLS, 2, 4);
    assert_int_equal(rig_read(&rig, bar + NVME_REG_CSTS, 4), NVME_CSTS_RDY);
    rig_get(&rig, base + ACQ + NVME_CQE, entry, sizeof entry);
    assert_int_equal(load_le16(entry + 14) & 0x7ff, NVME_DATA_TRANSFER << 1 | 1);
    assert_int_equal(write(t->full, &one, sizeof one), sizeof one);
    assert_int_equal(read(heard, &one, sizeof one), sizeof one);
    device_reset(device);
    assert_int_equal(rig_read(&rig, bar + NVME_REG_CSTS, 4), 0);
    device_destroy(device);
    close(heard);
    vu_server_destroy(server);
    assert_int_equal(access(t->socket, F_OK), -1);
    rig_stop(&rig);
    char path[80];
    snprintf(path, sizeof path, "%s.state", t->socket);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wire_pieces),
        cmocka_unit_test(wire_sizes),
        cmocka_unit_test(versions),
        cmocka_unit_test_setup_teardown(serves, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses, setup, teardown),
        cmocka_unit_test_setup_teardown(sends_away, setup, teardown),
        cmocka_unit_test_setup_teardown(cut_short, setup, teardown),
        cmocka_unit_test_setup_teardown(keeps, setup, teardown),
        cmocka_unit_test_setup_teardown(tells_full, setup, teardown),
        cmocka_unit_test_setup_teardown(both, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
