#include "vfio_user/link.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/thread.h"
#include "pci/pci.h"
#include "vfio_user/wire.h"

enum {
    CALLS = 64,           /* accesses without an answer */
    CLIENT_PATIENCE = 10, /* seconds that an access waits */
    BACK_OFF_MIN_MS = 50, /* between attempts to connect */
    BACK_OFF_MAX_MS = 2000,
    COMMAND_REGISTER = 4,
};
enum { POLL_SOCKET, POLL_TWIN, POLL_STOP, POLL_IRQS };

/* An access, until it is answered. */
struct call {
    uint16_t id, command;
    uint32_t region;
    uint64_t offset, value;
    unsigned size;
    bool waited_for, done;
};

struct link {
    char path[sizeof((struct sockaddr_un *)NULL)->sun_path];
    char name[VU_RESUME_LENGTH + 1]; /* under which the server keeps the device's state */
    struct memory *memory;
    const struct dma_context *dma;
    struct link_events events;
    struct link_shape shape;
    int irqs[PCI_MSIX_MAX], stop;
    pthread_t thread;
    bool started;

    /* The thread's; before it runs link_open's. */
    struct vu_version server;
    int twin;
    struct vu_reader reader, twin_reader;
    struct vu_message answer;
    uint16_t next_id;

    struct lock lock; /* guards what follows */
    pthread_cond_t changed;
    int socket; /* -1: none */
    bool up, closing;
    struct vu_message message; /* to be sent */
    struct call calls[CALLS];  /* in order: [first, first + count) modulo CALLS */
    unsigned first, count;
    uint16_t next_access, command; /* ids: wire.h, struct vu_version */
    struct vfio_user_counters counters;
};

/* ---- Messages ---- */

/* The connection is no good any more: the thread notices. Lock held. */
static void give_up(struct link *link) {
    if (link->socket >= 0)
        shutdown(link->socket, SHUT_RDWR);
    link->up = false;
}

static void send_call(struct link *link, const struct call *call) {
    struct vu_message *message = &link->message;
    bool write = call->command == VU_REGION_WRITE;
    vu_begin(message, call->id, call->command);
    if (call->command != VU_RESET) {
        store_le64(message->payload, call->offset);
        store_le32(message->payload + 8, call->region);
        store_le32(message->payload + 12, call->size);
        if (write)
            store_le(message->payload + VU_ACCESS_SIZE, call->value, call->size);
        message->length = VU_ACCESS_SIZE + (write ? call->size : 0);
    }
    if (vu_send(link->socket, message) < 0)
        give_up(link);
}

static struct timespec deadline(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_sec += CLIENT_PATIENCE;
    return time;
}

/* Lock held. False: it took too long. */
static bool wait_changed(struct link *link, const struct timespec *until) {
    return !link->closing &&
           pthread_cond_clockwait(&link->changed, &link->lock.mutex, CLOCK_MONOTONIC, until) == 0;
}

/* The call with this id; NULL: it has been answered, or there was none. */
static struct call *find_call(struct link *link, uint16_t id) {
    for (unsigned i = 0; i < link->count; i++) {
        struct call *call = &link->calls[(link->first + i) % CALLS];
        if (call->id == id && !call->done)
            return call;
    }
    return NULL;
}

/* Frees those at the front that nobody waits for. */
static void retire(struct link *link) {
    while (link->count > 0 && link->calls[link->first].done &&
           !link->calls[link->first].waited_for) {
        link->first = (link->first + 1) % CALLS;
        link->count--;
    }
    pthread_cond_broadcast(&link->changed);
}

/* Lock held. NULL: the queue has been full for too long. */
static struct call *add_call(struct link *link, uint16_t command) {
    struct timespec until = deadline();
    while (link->count == CALLS)
        if (!wait_changed(link, &until))
            return NULL;
    struct call *call = &link->calls[(link->first + link->count++) % CALLS];
    *call = (struct call){.id = link->next_access++ % VU_ACCESS_IDS, .command = command};
    return call;
}

/* Lock held. All ones when no answer came. */
static uint64_t finish_call(struct link *link, struct call *call) {
    struct timespec until = deadline();
    uint64_t value = UINT64_MAX;
    while (!call->done && wait_changed(link, &until))
        ;
    if (call->done)
        value = call->value;
    call->waited_for = false;
    retire(link);
    return value;
}

uint64_t link_read(struct link *link, uint32_t region, uint64_t offset, unsigned size) {
    uint64_t value = UINT64_MAX;
    lock_take(&link->lock);
    link->counters.reads++;
    struct call *call = add_call(link, VU_REGION_READ);
    if (call != NULL) {
        call->region = region;
        call->offset = offset;
        call->size = size;
        call->waited_for = true;
        if (link->up)
            send_call(link, call);
        value = finish_call(link, call);
    }
    lock_release(&link->lock);
    return value & bytes_mask(size);
}

void link_write(struct link *link, uint32_t region, uint64_t offset, uint64_t value,
                unsigned size) {
    lock_take(&link->lock);
    link->counters.writes += region != VU_REGION_CONFIG;
    struct call *call = add_call(link, VU_REGION_WRITE);
    if (call != NULL) {
        call->region = region;
        call->offset = offset;
        call->value = value;
        call->size = size;
        if (link->up)
            send_call(link, call);
    } else {
        log_guest("%s does not answer: a write is lost", link->path);
    }
    lock_release(&link->lock);
}

void link_command(struct link *link, uint16_t command) {
    lock_take(&link->lock);
    bool changed = link->command != command;
    link->command = command;
    lock_release(&link->lock);
    if (changed)
        link_write(link, VU_REGION_CONFIG, COMMAND_REGISTER, command, sizeof command);
}

void link_reset(struct link *link) {
    lock_take(&link->lock);
    struct call *call = add_call(link, VU_RESET);
    if (call != NULL) {
        call->waited_for = true;
        if (link->up)
            send_call(link, call);
        finish_call(link, call);
    }
    link->command = 0;
    lock_release(&link->lock);
}

static void take_reply(struct link *link, const struct vu_message *reply) {
    lock_take(&link->lock);
    struct call *call = find_call(link, reply->id);
    if (call != NULL) {
        bool answered = !(reply->flags & VU_ERROR) && reply->command == call->command;
        if (call->command == VU_REGION_READ)
            call->value = answered && reply->length >= VU_ACCESS_SIZE + call->size
                              ? load_le(reply->payload + VU_ACCESS_SIZE, call->size)
                              : UINT64_MAX;
        call->done = true;
        retire(link);
    }
    lock_release(&link->lock);
}

/* ---- The server's commands: memory ---- */

static int access_memory(struct link *link, const struct vu_message *message) {
    struct vu_message *answer = &link->answer;
    bool write = message->command == VU_DMA_WRITE;
    uint64_t address = load_le64(message->payload), count = load_le64(message->payload + 8);
    if (message->length < VU_ACCESS_SIZE || count > VU_DATA_MAX ||
        (write && message->length - VU_ACCESS_SIZE < count) || link->dma == NULL)
        return -EINVAL;
    memcpy(answer->payload, message->payload, VU_ACCESS_SIZE);
    answer->length = VU_ACCESS_SIZE + (write ? 0 : (uint32_t)count);
    return write ? dma_write(link->dma, address, message->payload + VU_ACCESS_SIZE, count)
                 : dma_read(link->dma, address, answer->payload + VU_ACCESS_SIZE, count);
}

static int answer_server(struct link *link, int socket, const struct vu_message *message) {
    struct vu_message *answer = &link->answer;
    if (message->command == VU_LODGE_FULL && link->events.full != NULL)
        link->events.full(link->events.context);
    bool memory = message->command == VU_DMA_READ || message->command == VU_DMA_WRITE;
    vu_begin_reply(answer, message);
    int rc = memory ? access_memory(link, message) : -ENOTSUP;
    if (rc < 0) {
        answer->flags |= VU_ERROR;
        answer->error = (uint32_t)-rc;
        answer->length = 0;
    }
    lock_take(&link->lock);
    link->counters.watched += message->command == VU_DMA_WRITE;
    rc = message->flags & VU_NO_REPLY ? 0 : vu_send(socket, answer);
    lock_release(&link->lock);
    return rc;
}

/* Reads all there is. Negative: the connection is no good. */
static int receive(struct link *link, int socket, struct vu_reader *reader) {
    int rc;
    while ((rc = vu_receive(reader, socket)) == 1) {
        struct vu_message *message = &reader->message;
        if ((message->flags & VU_TYPE) == VU_REPLY)
            take_reply(link, message);
        else
            rc = answer_server(link, socket, message);
        vu_close_fds(message);
        if (rc < 0)
            break;
    }
    return rc;
}

/* ---- Connecting ---- */

/* Sends link->message and waits for its reply, which is then in link->reader. Nobody else uses the
 * connection yet; a server that asks for memory already is answered. */
static int ask(struct link *link, uint32_t least) {
    struct vu_message *reply = &link->reader.message;
    int rc = vu_send(link->socket, &link->message);
    while (rc == 0) {
        rc = vu_wait(&link->reader, link->socket, VU_PATIENCE_MS);
        if (rc < 0)
            return rc;
        rc = 0;
        if ((reply->flags & VU_TYPE) == VU_REPLY && reply->id == link->message.id)
            break;
        if ((reply->flags & VU_TYPE) != VU_REPLY)
            rc = answer_server(link, link->socket, reply);
        vu_close_fds(reply);
    }
    if (rc == 0 && reply->flags & VU_ERROR)
        rc = reply->error > 0 && reply->error < 4096 ? -(int)reply->error : -EIO;
    if (rc == 0 && (reply->length < least || reply->command != link->message.command))
        rc = -EPROTO;
    if (rc < 0 || reply->command != VU_VERSION)
        vu_close_fds(reply);
    return rc;
}

static struct vu_message *begin(struct link *link, uint16_t command, uint32_t length) {
    uint16_t id = VU_ACCESS_IDS | link->next_id++;
    vu_begin(&link->message, id, command);
    memset(link->message.payload, 0, length);
    link->message.length = length;
    return &link->message;
}

static int agree(struct link *link) {
    struct vu_version offered = {.major = VU_MAJOR,
                                 .minor = VU_MINOR,
                                 .max_fds = VU_FDS_MAX,
                                 .max_data = VU_DATA_MAX,
                                 .max_maps = VU_MAPS_MAX,
                                 .twin = true,
                                 .page_flags = true,
                                 .full = true};
    struct vu_message *reply = &link->reader.message;
    memcpy(offered.resume, link->name, sizeof offered.resume);
    vu_version_format(&offered, false, begin(link, VU_VERSION, 0));
    int rc = ask(link, 4);
    if (rc == 0)
        rc = vu_version_parse(reply, &link->server);
    if (rc == 0 && (link->server.major != VU_MAJOR || link->server.minor > VU_MINOR ||
                    (link->server.twin && link->server.twin_index >= reply->fd_count)))
        rc = -EPROTO;
    if (rc == 0 && link->server.twin) {
        link->twin = reply->fds[link->server.twin_index];
        reply->fds[link->server.twin_index] = -1;
    }
    vu_close_fds(reply);
    return rc;
}

static int ask_region(struct link *link, uint32_t index, uint64_t *size) {
    struct vu_message *message = begin(link, VU_GET_REGION_INFO, VU_REGION_INFO_SIZE);
    store_le32(message->payload, VU_REGION_INFO_SIZE);
    store_le32(message->payload + 8, index);
    int rc = ask(link, VU_REGION_INFO_SIZE);
    if (rc == 0)
        *size = load_le64(link->reader.message.payload + 16);
    return rc;
}

static int ask_config(struct link *link, uint8_t *config) {
    struct vu_message *message = begin(link, VU_REGION_READ, VU_ACCESS_SIZE);
    store_le32(message->payload + 8, VU_REGION_CONFIG);
    store_le32(message->payload + 12, LINK_CONFIG);
    int rc = ask(link, VU_ACCESS_SIZE + LINK_CONFIG);
    if (rc == 0)
        memcpy(config, link->reader.message.payload + VU_ACCESS_SIZE, LINK_CONFIG);
    return rc;
}

static int ask_shape(struct link *link, struct link_shape *shape) {
    struct vu_message *message = begin(link, VU_GET_INFO, VU_INFO_SIZE);
    *shape = (struct link_shape){0};
    store_le32(message->payload, VU_INFO_SIZE);
    int rc = ask(link, VU_INFO_SIZE);
    if (rc == 0 && (!(load_le32(link->reader.message.payload + 4) & VU_DEVICE_PCI) ||
                    load_le32(link->reader.message.payload + 8) <= VU_REGION_CONFIG))
        rc = -EPROTO;
    for (unsigned i = 0; rc == 0 && i < LINK_BARS; i++)
        rc = ask_region(link, i, &shape->bars[i]);
    if (rc == 0)
        rc = ask_config(link, shape->config);
    message = begin(link, VU_GET_IRQ_INFO, VU_IRQ_INFO_SIZE);
    store_le32(message->payload, VU_IRQ_INFO_SIZE);
    store_le32(message->payload + 8, VU_IRQ_MSIX);
    if (rc == 0)
        rc = ask(link, VU_IRQ_INFO_SIZE);
    if (rc == 0)
        shape->vectors = load_le32(link->reader.message.payload + 12);
    return rc;
}

/* A server that would write without the engine's knowledge gets no descriptors. */
static int lend(struct link *link) {
    struct memory_shared region;
    int rc = 0;
    for (unsigned n = 0; rc == 0 && memory_shared_region(link->memory, n, &region); n++) {
        struct vu_message *message = begin(link, VU_DMA_MAP, VU_MAP_SIZE);
        store_le32(message->payload, VU_MAP_SIZE);
        store_le32(message->payload + 4, VU_MAP_READ | VU_MAP_WRITE);
        store_le64(message->payload + 16, region.gpa);
        store_le64(message->payload + 24, region.size);
        if (link->server.page_flags && link->server.max_fds >= 2) {
            message->fds[0] = region.fd;
            message->fds[1] = region.flags_fd;
            message->fd_count = 2;
        }
        rc = ask(link, 0);
    }
    return rc;
}

static int give_irqs(struct link *link) {
    unsigned batch = link->server.max_fds < VU_FDS_MAX ? link->server.max_fds : VU_FDS_MAX;
    int rc = batch > 0 ? 0 : -EPROTO;
    for (unsigned start = 0; rc == 0 && start < link->shape.vectors; start += batch) {
        unsigned left = link->shape.vectors - start, count = left < batch ? left : batch;
        struct vu_message *message = begin(link, VU_SET_IRQS, VU_SET_IRQS_SIZE);
        store_le32(message->payload, VU_SET_IRQS_SIZE);
        store_le32(message->payload + 4, VU_SET_EVENTFD | VU_SET_TRIGGER);
        store_le32(message->payload + 8, VU_IRQ_MSIX);
        store_le32(message->payload + 12, start);
        store_le32(message->payload + 16, count);
        memcpy(message->fds, &link->irqs[start], count * sizeof link->irqs[0]);
        message->fd_count = count;
        rc = ask(link, 0);
    }
    return rc;
}

static int connect_socket(const struct link *link) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, link->path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd < 0 ? -errno : fd;
    int rc = -errno;
    close(fd);
    return rc;
}

static void disconnect(struct link *link) {
    lock_take(&link->lock);
    link->up = false;
    if (link->socket >= 0)
        close(link->socket);
    link->socket = -1;
    lock_release(&link->lock);
    if (link->twin >= 0)
        close(link->twin);
    link->twin = -1;
    vu_close_fds(&link->reader.message);
    vu_close_fds(&link->twin_reader.message);
    link->reader.have = link->twin_reader.have = 0;
}

/* Everything up to the first access. The link is not up, so the socket and `message` are ours. */
static int shake_hands(struct link *link, bool again) {
    struct link_shape shape;
    int rc = agree(link);
    if (rc == 0)
        rc = ask_shape(link, again ? &shape : &link->shape);
    if (rc == 0 && again &&
        (memcmp(shape.bars, link->shape.bars, sizeof shape.bars) != 0 ||
         shape.vectors != link->shape.vectors ||
         memcmp(shape.config, link->shape.config, COMMAND_REGISTER) != 0))
        rc = -ENXIO;
    if (rc == 0)
        rc = lend(link);
    return rc;
}

static int connect_server(struct link *link, bool again) {
    int fd = connect_socket(link);
    if (fd < 0)
        return fd;
    lock_take(&link->lock);
    link->socket = fd;
    lock_release(&link->lock);
    int rc = shake_hands(link, again);
    if (rc == 0 && !again) {
        begin(link, VU_RESET, 0);
        rc = ask(link, 0);
    }
    if (rc < 0)
        disconnect(link);
    return rc;
}

/* Writes that the server has seen, though its answers were lost, are not sent again: a doorbell may
 * have been rung since. A server that has forgotten everything gets none of them. Lock held. */
static void forget_seen(struct link *link) {
    unsigned seen = link->server.resumed ? 0 : link->count;
    for (unsigned i = 0; i < link->count && link->server.resumed; i++)
        if (link->calls[(link->first + i) % CALLS].id == link->server.done)
            seen = i + 1;
    for (unsigned i = 0; i < seen; i++) {
        struct call *call = &link->calls[(link->first + i) % CALLS];
        call->done |= call->command == VU_REGION_WRITE;
    }
    retire(link);
}

/* Interrupts, the command register, and what was not answered: then accesses go through. */
static int go_up(struct link *link) {
    int rc = give_irqs(link);
    lock_take(&link->lock);
    uint16_t command = link->command;
    lock_release(&link->lock);
    if (rc == 0) {
        struct vu_message *message = begin(link, VU_REGION_WRITE, VU_ACCESS_SIZE + 2);
        store_le64(message->payload, COMMAND_REGISTER);
        store_le32(message->payload + 8, VU_REGION_CONFIG);
        store_le32(message->payload + 12, 2);
        store_le16(message->payload + VU_ACCESS_SIZE, command);
        rc = ask(link, 0);
    }
    if (rc < 0)
        return rc;
    lock_take(&link->lock);
    link->up = true;
    if (link->counters.connections++ > 0)
        forget_seen(link);
    for (unsigned i = 0; i < link->count && link->up; i++) {
        const struct call *call = &link->calls[(link->first + i) % CALLS];
        if (!call->done)
            send_call(link, call);
    }
    lock_release(&link->lock);
    return 0;
}

/* ---- The thread ---- */

static bool stopped(const struct link *link, int timeout_ms) {
    struct pollfd stop = {.fd = link->stop, .events = POLLIN};
    return poll(&stop, 1, timeout_ms) > 0;
}

/* Until there is a server again; false: the link is being closed. */
static bool reconnect(struct link *link) {
    int wait_ms = BACK_OFF_MIN_MS, told = 0;
    log_warning("%s: the device's server has gone; waiting for another", link->path);
    while (!stopped(link, wait_ms)) {
        int rc = connect_server(link, true);
        if (rc == 0)
            rc = go_up(link);
        if (rc == 0) {
            log_warning("%s: the device's server is there again%s", link->path,
                        link->server.resumed ? "" : "; the device was reset");
            return true;
        }
        disconnect(link);
        if (rc != told && rc != -ENOENT && rc != -ECONNREFUSED && rc != -ECONNRESET)
            log_warning("%s: cannot go on with this server: %s", link->path, strerror(-rc));
        told = rc;
        wait_ms = wait_ms * 2 < BACK_OFF_MAX_MS ? wait_ms * 2 : BACK_OFF_MAX_MS;
    }
    return false;
}

static void take_interrupt(struct link *link, unsigned vector) {
    uint64_t count;
    if (read(link->irqs[vector], &count, sizeof count) != sizeof count)
        return;
    lock_take(&link->lock);
    link->counters.interrupts++;
    lock_release(&link->lock);
    link->events.interrupt(link->events.context, (uint16_t)vector);
}

/* Until the connection breaks. */
static void work(struct link *link, struct pollfd *fds) {
    unsigned vectors = link->shape.vectors;
    fds[POLL_SOCKET] = (struct pollfd){.fd = link->socket, .events = POLLIN};
    fds[POLL_TWIN] = (struct pollfd){.fd = link->twin, .events = POLLIN};
    fds[POLL_STOP] = (struct pollfd){.fd = link->stop, .events = POLLIN};
    for (unsigned i = 0; i < vectors; i++)
        fds[POLL_IRQS + i] = (struct pollfd){.fd = link->irqs[i], .events = POLLIN};
    for (;;) {
        int n = poll(fds, POLL_IRQS + vectors, -1), rc = 0;
        if (n < 0)
            continue;
        if (fds[POLL_STOP].revents != 0)
            return;
        /* What the server told of memory comes before the interrupts behind it. */
        if (fds[POLL_TWIN].revents != 0)
            rc = receive(link, link->twin, &link->twin_reader);
        if (rc == 0 && fds[POLL_SOCKET].revents != 0)
            rc = receive(link, link->socket, &link->reader);
        for (unsigned i = 0; i < vectors; i++)
            if (fds[POLL_IRQS + i].revents != 0)
                take_interrupt(link, i);
        if (rc < 0)
            return;
    }
}

static void *run(void *context) {
    struct link *link = context;
    thread_begins(THREAD_OTHER, "user device");
    struct pollfd fds[POLL_IRQS + PCI_MSIX_MAX];
    do {
        work(link, fds);
        disconnect(link);
    } while (!stopped(link, 0) && reconnect(link));
    return NULL;
}

/* ---- Life ---- */

static int make_name(struct link *link) {
    uint8_t bytes[VU_RESUME_LENGTH / 2];
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        return -EIO;
    for (unsigned i = 0; i < sizeof bytes; i++)
        snprintf(link->name + (size_t)2 * i, 3, "%02x", bytes[i]);
    return 0;
}

static int explain(int rc, struct error *err) {
    switch (rc) {
    case -ENOENT:
    case -ECONNREFUSED:
        return error_set_errno(
            err, rc, "nobody serves it (lodge device nvme --socket PATH --disk FILE does)");
    case -ETIMEDOUT:
        return error_set(err, rc, "its server does not answer; it serves one client at a time");
    case -EPROTO: return error_set(err, rc, "its server does not speak vfio-user as lodge does");
    default: return error_set_errno(err, rc, "cannot connect");
    }
}

static int make_irqs(struct link *link) {
    for (unsigned i = 0; i < link->shape.vectors && i < PCI_MSIX_MAX; i++) {
        link->irqs[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (link->irqs[i] < 0)
            return -errno;
    }
    return 0;
}

int link_open(const char *path, struct memory *memory, struct link **link_out,
              struct link_shape *shape, struct error *err) {
    struct link *link = calloc(1, sizeof *link);
    if (link == NULL)
        return error_set(err, -ENOMEM, "no memory for a connection");
    *link_out = link;
    link->memory = memory;
    link->socket = link->twin = -1;
    for (unsigned i = 0; i < PCI_MSIX_MAX; i++)
        link->irqs[i] = -1;
    lock_init(&link->lock, LOCK_BACKEND, "vfio-user");
    pthread_cond_init(&link->changed, NULL);
    link->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = link->stop < 0 ? -errno : make_name(link);
    if (rc == 0 && strlen(path) >= sizeof link->path)
        rc = -ENAMETOOLONG;
    strncpy(link->path, path, sizeof link->path - 1);
    if (rc == 0)
        rc = connect_server(link, false);
    if (rc == 0)
        rc = make_irqs(link);
    *shape = link->shape;
    return rc < 0 ? explain(rc, err) : 0;
}

int link_start(struct link *link, const struct dma_context *dma, const struct link_events *events,
               struct error *err) {
    link->dma = dma;
    link->events = *events;
    int rc = go_up(link);
    if (rc < 0)
        return explain(rc, err);
    rc = -pthread_create(&link->thread, NULL, run, link);
    link->started = rc == 0;
    return rc < 0 ? error_set_errno(err, rc, "cannot make a thread") : 0;
}

void link_close(struct link *link) {
    uint64_t one = 1;
    if (link == NULL)
        return;
    lock_take(&link->lock);
    link->closing = true;
    pthread_cond_broadcast(&link->changed);
    lock_release(&link->lock);
    if (link->started) {
        if (write(link->stop, &one, sizeof one) < 0)
            log_error("%s: cannot stop its thread", link->path);
        pthread_join(link->thread, NULL);
    }
    disconnect(link);
    for (unsigned i = 0; i < PCI_MSIX_MAX; i++)
        if (link->irqs[i] >= 0)
            close(link->irqs[i]);
    if (link->stop >= 0)
        close(link->stop);
    pthread_cond_destroy(&link->changed);
    lock_destroy(&link->lock);
    free(link);
}

void link_count(struct link *link, struct vfio_user_counters *counters) {
    lock_take(&link->lock);
    *counters = link->counters;
    lock_release(&link->lock);
}
