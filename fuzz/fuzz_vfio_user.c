/*
 * Both sides of vfio-user before a peer that sends anything. The first byte chooses the side; what
 * follows are messages, each with a length, cut or padded by the fuzzer as it likes: to a server
 * with an NVMe controller (after a greeting, if bit 1 is set), or to a client that connects.
 */
#define assert_true(a)                                                                             \
    do {                                                                                           \
        if (!(a))                                                                                  \
            __builtin_trap();                                                                      \
    } while (0)

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "nvme/nvme.h"
#include "vfio_user/lent.h"
#include "vfio_user/link.h"
#include "vfio_user/server.h"
#include "vfio_user/wire.h"

/* As many answers as fit into a socket that nobody reads. */
enum { INPUT_MAX = 1536, RAM = 64 << 10 };

/* ---- A disk that does nothing, at once ---- */

static int disk_submit(struct block *block, struct block_request *request) {
    (void)block;
    request->result = 0;
    return 1;
}

static void disk_drain(struct block *block) {
    (void)block;
}

static const struct block_class disk_class = {.submit = disk_submit, .drain = disk_drain};
static struct block disk = {
    .class = &disk_class,
    .info = {.size = 1 << 20, .logical_block = 512, .physical_block = 512, .name = "disk"}};

static int create(void *context, struct platform *platform, void *state, struct device **device,
                  struct error *err) {
    struct nvme_config config = {.blocks = {&disk}, .count = 1, .late = true, .journal = state};
    (void)context;
    int rc = device_create(&nvme_class, "nvme", platform, &config, device, err);
    if (rc == 0)
        nvme_pause(*device);
    return rc;
}

static void greet(int socket) {
    struct vu_message *message = calloc(1, sizeof *message);
    struct vu_version version = {.max_fds = 16, .max_data = 4096};
    vu_begin(message, 1, VU_VERSION);
    vu_version_format(&version, false, message);
    assert_true(vu_send(socket, message) == 0);
    free(message);
}

static void lend(int socket, int fd) {
    struct vu_message *message = calloc(1, sizeof *message);
    vu_begin(message, 2, VU_DMA_MAP);
    store_le32(message->payload + 4, VU_MAP_READ | VU_MAP_WRITE);
    store_le64(message->payload + 24, RAM);
    message->length = VU_MAP_SIZE;
    message->fds[0] = fd;
    message->fd_count = 1;
    assert_true(vu_send(socket, message) == 0);
    free(message);
}

static void to_server(const uint8_t *data, size_t size, bool greeted) {
    static const struct vu_model model = {
        .name = "fuzz", .create = create, .pause = nvme_pause, .resume = nvme_resume, .full = -1};
    struct vu_model sized = model;
    struct platform platform;
    struct loop *loop;
    struct vu_kept kept = {.done = -1};
    int pair[2], fd = memfd_create("fuzz", MFD_CLOEXEC);
    sized.state_size = nvme_journal_size();
    void *state = calloc(1, sized.state_size);
    assert_true(fd >= 0 && ftruncate(fd, RAM) == 0 && loop_create(&loop, NULL) == 0);
    assert_true(vu_platform_create(loop, &platform, NULL) == 0);
    assert_true(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
    if (greeted) {
        greet(pair[0]);
        lend(pair[0], fd);
    }
    if (send(pair[0], data, size, MSG_NOSIGNAL) >= 0)
        shutdown(pair[0], SHUT_WR);
    vu_serve(pair[1], &sized, &platform, state, &kept, -1, NULL);
    close(pair[0]);
    close(pair[1]);
    close(fd);
    vu_platform_destroy(&platform);
    loop_destroy(loop);
    free(state);
}

struct peer {
    int listener;
    const uint8_t *data;
    size_t size;
};

static void *run_peer(void *context) {
    const struct peer *peer = context;
    char bytes[4096];
    int fd = accept(peer->listener, NULL, NULL);
    if (send(fd, peer->data, peer->size, MSG_NOSIGNAL) >= 0)
        shutdown(fd, SHUT_WR);
    while (recv(fd, bytes, sizeof bytes, 0) > 0)
        ;
    close(fd);
    return NULL;
}

/* The answers come before the client asks: their ids must fit. */
static void to_client(const uint8_t *data, size_t size) {
    char path[64];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct memory *memory;
    struct link *link = NULL;
    struct link_shape shape;
    snprintf(path, sizeof path, "/tmp/lodge-fuzz-%d", getpid());
    strcpy(address.sun_path, path);
    unlink(path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    assert_true(listen(listener, 1) == 0 && memory_create(&memory, NULL) == 0);
    struct peer peer = {listener, data, size};
    pthread_t thread;
    assert_true(pthread_create(&thread, NULL, run_peer, &peer) == 0);
    link_open(path, memory, &link, &shape, NULL);
    link_close(link);
    pthread_join(thread, NULL);
    close(listener);
    unlink(path);
    memory_destroy(memory);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    log_set_level(LOG_ERROR);
    assert_true(lent_guard(NULL) == 0);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1 || size > INPUT_MAX)
        return 0;
    if (data[0] & 1)
        to_client(data + 1, size - 1);
    else
        to_server(data + 1, size - 1, data[0] & 2);
    return 0;
}
