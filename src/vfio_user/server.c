#include "vfio_user/server.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/thread.h"
#include "pci/pci.h"
#include "vfio_user/wire.h"

/* What the state file begins with; the model's part follows on the next page. */
struct state_header {
    char magic[32];
    uint64_t size;
    struct vu_kept kept;
};

enum { STATE_OFFSET = 4096, BACKLOG = 8 };
static const char state_magic[32] = "lodge vfio-user state 1";

struct vu_server {
    struct vu_model model;
    struct platform platform;
    char path[sizeof((struct sockaddr_un *)NULL)->sun_path], state_path[128];
    int listener, state_fd, stop;
    struct state_header *header;
    size_t state_size; /* of the file */
    pthread_t thread;
    bool bound, started, had_client;
};

/* ---- A machine without vCPUs ---- */

static void ignore_request(struct platform *platform, enum platform_request request) {
    (void)platform, (void)request;
}

int vu_platform_create(struct loop *loop, struct platform *platform, struct error *err) {
    static const struct pci_bus_config bus = {0}; /* nobody looks for BARs there */
    *platform = (struct platform){.loop = loop, .request = ignore_request};
    int rc = memory_create(&platform->memory, err);
    if (rc == 0)
        rc = ports_create(&platform->ports, err);
    if (rc == 0)
        rc = vm_clock_create(&platform->clock, err);
    if (rc == 0)
        rc = irqchip_create(platform->memory, platform->ports, platform->clock, &platform->irqchip,
                            err);
    if (rc == 0)
        rc = pci_bus_create(platform, &bus, &platform->pci, err);
    if (rc == 0)
        vm_clock_resume(platform->clock);
    return rc;
}

void vu_platform_destroy(struct platform *platform) {
    pci_bus_destroy(platform->pci);
    if (platform->irqchip != NULL)
        irqchip_destroy(platform->irqchip);
    if (platform->clock != NULL)
        vm_clock_destroy(platform->clock);
    if (platform->ports != NULL)
        ports_destroy(platform->ports);
    memory_destroy(platform->memory);
}

/* ---- State ---- */

/* The file's lock says who serves the socket. */
static int open_state(struct vu_server *server, struct error *err) {
    const char *path = server->state_path;
    server->state_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (server->state_fd < 0)
        return error_set_errno(err, -errno, "cannot make %s", path);
    if (flock(server->state_fd, LOCK_EX | LOCK_NB) < 0)
        return error_set(err, -EBUSY, "%s is served by another process", server->path);
    int rc = -posix_fallocate(server->state_fd, 0, (off_t)server->state_size);
    if (rc < 0)
        return error_set_errno(err, rc, "cannot write %s", path);
    void *bytes =
        mmap(NULL, server->state_size, PROT_READ | PROT_WRITE, MAP_SHARED, server->state_fd, 0);
    if (bytes == MAP_FAILED)
        return error_set_errno(err, -errno, "cannot map %s", path);
    server->header = bytes;
    struct state_header fresh = {.size = server->state_size};
    memcpy(fresh.magic, state_magic, sizeof fresh.magic);
    server->header->kept.client[VU_RESUME_LENGTH] = 0;
    if (memcmp(server->header, &fresh, offsetof(struct state_header, kept)) != 0)
        *server->header = fresh;
    return 0;
}

/* ---- The socket ---- */

/* Whoever holds the state's lock may take the place of a socket that its owner left. */
static int open_socket(struct vu_server *server, struct error *err) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat there;
    memcpy(address.sun_path, server->path, sizeof address.sun_path);
    if (lstat(server->path, &there) == 0) {
        if (!S_ISSOCK(there.st_mode))
            return error_set(err, -EEXIST, "%s is there already and is no socket", server->path);
        unlink(server->path);
    }
    server->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    server->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->listener < 0 || server->stop < 0)
        return error_set_errno(err, -errno, "cannot make a socket");
    if (bind(server->listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        chmod(server->path, 0600) < 0 || listen(server->listener, BACKLOG) < 0)
        return error_set_errno(err, -errno, "cannot listen at %s", server->path);
    server->bound = true;
    return 0;
}

static void serve_client(struct vu_server *server, int socket) {
    static struct log_limit limit;
    struct error err = {0};
    server->had_client = true;
    log_info("%s: a client has come", server->path);
    int rc = vu_serve(socket, &server->model, &server->platform,
                      (uint8_t *)server->header + STATE_OFFSET, &server->header->kept, server->stop,
                      &err);
    if (rc == 0)
        return; /* asked to stop */
    server->had_client = false;
    if (err.text[0] == 0)
        log_info("%s: the client has gone", server->path);
    else if (log_limit_pass(&limit))
        log_warning("%s: the client was sent away: %s", server->path, err.text);
}

static void *run(void *context) {
    struct vu_server *server = context;
    thread_begins(THREAD_OTHER, "device");
    struct pollfd fds[] = {{.fd = server->listener, .events = POLLIN},
                           {.fd = server->stop, .events = POLLIN}};
    while (poll(fds, 2, -1) < 0 || fds[1].revents == 0) {
        int socket = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (socket < 0)
            continue;
        serve_client(server, socket);
        close(socket);
    }
    return NULL;
}

/* ---- Life ---- */

static int set_up(struct vu_server *server, struct loop *loop, struct error *err) {
    int rc = vu_platform_create(loop, &server->platform, err);
    if (rc == 0)
        rc = open_state(server, err);
    if (rc == 0)
        rc = open_socket(server, err);
    if (rc == 0) {
        rc = -pthread_create(&server->thread, NULL, run, server);
        if (rc < 0)
            error_set_errno(err, rc, "cannot make a thread");
    }
    server->started = rc == 0;
    return rc;
}

int vu_server_create(const char *path, const struct vu_model *model, struct loop *loop,
                     struct vu_server **server, struct error *err) {
    struct vu_server *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "no memory for a server");
    made->model = *model;
    made->listener = made->state_fd = made->stop = -1;
    made->state_size = STATE_OFFSET + round_up(model->state_size, STATE_OFFSET);
    int rc = 0;
    if (strlen(path) >= sizeof made->path)
        rc = error_set(err, -ENAMETOOLONG, "a socket's path has up to %zu bytes, that one has %zu",
                       sizeof made->path - 1, strlen(path));
    strncpy(made->path, path, sizeof made->path - 1);
    snprintf(made->state_path, sizeof made->state_path, "%s.state", made->path);
    if (rc == 0)
        rc = set_up(made, loop, err);
    if (rc < 0)
        vu_server_destroy(made);
    else
        *server = made;
    return rc;
}

void vu_server_destroy(struct vu_server *server) {
    uint64_t one = 1;
    if (server == NULL)
        return;
    if (server->started) {
        if (write(server->stop, &one, sizeof one) < 0)
            log_error("%s: cannot stop its thread", server->path);
        pthread_join(server->thread, NULL);
    }
    if (server->bound)
        unlink(server->path);
    if (server->header != NULL) {
        if (!server->had_client && server->bound)
            unlink(server->state_path);
        munmap(server->header, server->state_size);
    }
    if (server->listener >= 0)
        close(server->listener);
    if (server->stop >= 0)
        close(server->stop);
    if (server->state_fd >= 0)
        close(server->state_fd);
    vu_platform_destroy(&server->platform);
    free(server);
}
