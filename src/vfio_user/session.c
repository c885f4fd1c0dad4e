/* One client of a server: what it may ask, and the device that answers. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "pci/pci.h"
#include "vfio_user/lent.h"
#include "vfio_user/server.h"
#include "vfio_user/wire.h"

struct session {
    const struct vu_model *model;
    struct platform *platform;
    void *state;
    struct vu_kept *kept;
    int socket;
    struct vu_reader reader;
    struct vu_message reply;
    struct lent *lent;
    struct pci_served served;
    struct device *device; /* NULL: before the version is agreed on */
    struct pci_function *function;
    bool running; /* it was let at memory */
    bool tells_full;

    struct lock irq_lock; /* the device may be signalling on another thread */
    int irqs[PCI_MSIX_MAX];
    unsigned irq_count; /* that are there */

    /* The server's own messages, and their answers (twin-socket mode). */
    struct lock twin_lock;
    int twin;
    uint16_t next_id;
    struct vu_reader twin_reader;
    struct vu_message question;
};

/* ---- What the device does to the client ---- */

static bool irqs_enabled(void *context) {
    struct session *session = context;
    lock_take(&session->irq_lock);
    bool enabled = session->irq_count > 0;
    lock_release(&session->irq_lock);
    return enabled;
}

/* The client has the eventfd, too, and may have filled it: nobody waits for it. */
static void signal_fd(int fd) {
    struct pollfd writable = {.fd = fd, .events = POLLOUT};
    uint64_t one = 1;
    if (poll(&writable, 1, 0) == 1 && write(fd, &one, sizeof one) < 0)
        log_guest("vfio-user: an interrupt could not be signalled");
}

static void notify(void *context, uint16_t vector) {
    struct session *session = context;
    lock_take(&session->irq_lock);
    if (vector < PCI_MSIX_MAX && session->irqs[vector] >= 0)
        signal_fd(session->irqs[vector]);
    lock_release(&session->irq_lock);
}

/* "VFIO_USER_DMA_WRITE": the bytes are there already; the client's own gate tells its engine. A
 * client that does not answer is sent away. */
static void tell_watched(void *context, uint64_t address, const void *bytes, size_t length) {
    struct session *session = context;
    struct vu_message *question = &session->question;
    lock_take(&session->twin_lock);
    vu_begin(question, session->next_id++, VU_DMA_WRITE);
    store_le64(question->payload, address);
    store_le64(question->payload + 8, length);
    memcpy(question->payload + VU_ACCESS_SIZE, bytes, length);
    question->length = (uint32_t)(VU_ACCESS_SIZE + length);
    int rc = session->twin >= 0 ? vu_send(session->twin, question) : -ENOTCONN;
    if (rc == 0)
        rc = vu_wait(&session->twin_reader, session->twin, VU_PATIENCE_MS);
    if (rc == 1)
        vu_close_fds(&session->twin_reader.message);
    if (rc < 0)
        shutdown(session->socket, SHUT_RDWR);
    lock_release(&session->twin_lock);
}

/* ---- Version ---- */

static int open_twin(struct session *session) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    session->twin = pair[0];
    session->reply.fds[0] = pair[1];
    session->reply.fd_count = 1;
    return 0;
}

static int create_device(struct session *session) {
    struct error err;
    int rc = session->model->create(session->model->context, session->platform, session->state,
                                    &session->device, &err);
    if (rc < 0) {
        log_error("%s: %s", session->model->name, err.text);
        return rc;
    }
    session->function = pci_bus_next(session->platform->pci, NULL);
    pci_serve(session->function, &session->served);
    return 0;
}

/* Answers with what both can. The device is made for this client, or as it left it. */
static int agree(struct session *session, const struct vu_message *message) {
    struct vu_version asked;
    int rc = vu_version_parse(message, &asked);
    if (rc < 0 || session->device != NULL || asked.major != VU_MAJOR)
        return -EPROTO;
    struct vu_version agreed = {
        .major = VU_MAJOR,
        .minor = asked.minor < VU_MINOR ? asked.minor : VU_MINOR,
        .max_fds = VU_FDS_MAX,
        .max_data = VU_DATA_MAX,
        .max_maps = VU_MAPS_MAX,
        .twin = asked.twin,
        .page_flags = asked.page_flags && asked.twin,
        .full = asked.full,
        .resumed = asked.resume[0] != 0 && strcmp(asked.resume, session->kept->client) == 0,
    };
    if (!agreed.resumed) {
        memset(session->state, 0, session->model->state_size);
        atomic_store(&session->kept->done, -1);
    }
    agreed.done = atomic_load(&session->kept->done);
    memcpy(session->kept->client, asked.resume, sizeof asked.resume);
    memcpy(agreed.resume, asked.resume, sizeof asked.resume);
    session->tells_full = asked.full;
    rc = create_device(session);
    if (rc == 0 && asked.twin)
        rc = open_twin(session);
    if (rc == 0)
        vu_version_format(&agreed, true, &session->reply);
    return rc;
}

/* ---- Memory ---- */

/* Guest memory changes hands while the device is paused. */
static void changed(struct session *session) {
    if (session->running)
        session->model->resume(session->device);
}

static int map_memory(struct session *session, const struct vu_message *message) {
    const uint8_t *p = message->payload;
    uint32_t flags = load_le32(p + 4);
    if (message->length < VU_MAP_SIZE || flags & ~(uint32_t)(VU_MAP_READ | VU_MAP_WRITE))
        return -EINVAL;
    struct lent_map map = {
        .offset = load_le64(p + 8),
        .address = load_le64(p + 16),
        .size = load_le64(p + 24),
        .readable = flags & VU_MAP_READ,
        .writable = flags & VU_MAP_WRITE,
        .fd = message->fd_count > 0 ? message->fds[0] : -1,
        .flags_fd = message->fd_count > 1 ? message->fds[1] : -1,
    };
    session->model->pause(session->device);
    int rc = lent_add(session->lent, &map);
    changed(session);
    return rc;
}

static int unmap_memory(struct session *session, const struct vu_message *message) {
    const uint8_t *p = message->payload;
    if (message->length < VU_UNMAP_SIZE || load_le32(p + 4) != 0)
        return -EINVAL;
    session->model->pause(session->device);
    int rc = lent_remove(session->lent, load_le64(p + 8), load_le64(p + 16));
    changed(session);
    memcpy(session->reply.payload, p, VU_UNMAP_SIZE);
    session->reply.length = VU_UNMAP_SIZE;
    return rc;
}

/* ---- What there is ---- */

static int get_info(struct session *session, const struct vu_message *message) {
    uint8_t *to = session->reply.payload;
    if (message->length < VU_INFO_SIZE)
        return -EINVAL;
    store_le32(to, VU_INFO_SIZE);
    store_le32(to + 4, VU_DEVICE_RESET | VU_DEVICE_PCI);
    store_le32(to + 8, VU_REGIONS);
    store_le32(to + 12, VU_IRQS);
    session->reply.length = VU_INFO_SIZE;
    return 0;
}

/* 0: there is no such region. */
static uint64_t region_size(const struct session *session, uint32_t index) {
    if (index < PCI_BARS)
        return pci_function_bar(session->function, index)->size;
    return index == VU_REGION_CONFIG ? PCI_CONFIG_SIZE : 0;
}

static int get_region_info(struct session *session, const struct vu_message *message) {
    uint8_t *to = session->reply.payload;
    uint32_t index = load_le32(message->payload + 8);
    if (message->length < VU_REGION_INFO_SIZE || index >= VU_REGIONS)
        return -EINVAL;
    uint64_t size = region_size(session, index);
    memset(to, 0, VU_REGION_INFO_SIZE);
    store_le32(to, VU_REGION_INFO_SIZE);
    store_le32(to + 4, size > 0 ? VU_REGION_READABLE | VU_REGION_WRITABLE : 0);
    store_le32(to + 8, index);
    store_le64(to + 16, size);
    session->reply.length = VU_REGION_INFO_SIZE;
    return 0;
}

/* No descriptors: what would be written to them says too little (doorbells carry values), and the
 * NVMe driver's go to memory. */
static int get_io_fds(struct session *session, const struct vu_message *message) {
    uint8_t *to = session->reply.payload;
    uint32_t index = load_le32(message->payload + 8);
    if (message->length < VU_IO_FDS_SIZE || index >= VU_REGIONS)
        return -EINVAL;
    memset(to, 0, VU_IO_FDS_SIZE);
    store_le32(to, VU_IO_FDS_SIZE);
    store_le32(to + 8, index);
    session->reply.length = VU_IO_FDS_SIZE;
    return 0;
}

static unsigned irqs_of(const struct session *session, uint32_t index) {
    return index == VU_IRQ_MSIX ? pci_msix_vectors(session->function) : 0;
}

static int get_irq_info(struct session *session, const struct vu_message *message) {
    uint8_t *to = session->reply.payload;
    uint32_t index = load_le32(message->payload + 8);
    if (message->length < VU_IRQ_INFO_SIZE || index >= VU_IRQS)
        return -EINVAL;
    unsigned count = irqs_of(session, index);
    store_le32(to, VU_IRQ_INFO_SIZE);
    store_le32(to + 4, count > 0 ? VU_IRQ_EVENTFD : 0);
    store_le32(to + 8, index);
    store_le32(to + 12, count);
    session->reply.length = VU_IRQ_INFO_SIZE;
    return 0;
}

/* ---- Interrupts ---- */

/* Anything else could be written to for ever, or be somebody's file. */
static bool is_eventfd(int fd) {
    char path[32], target[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n < 0)
        return false;
    target[n] = 0;
    return strcmp(target, "anon_inode:[eventfd]") == 0;
}

static void set_irq(struct session *session, unsigned vector, int fd) {
    int *irq = &session->irqs[vector];
    lock_take(&session->irq_lock);
    session->irq_count += (fd >= 0) - (*irq >= 0);
    if (*irq >= 0)
        close(*irq);
    *irq = fd;
    lock_release(&session->irq_lock);
}

static void clear_irqs(struct session *session) {
    for (unsigned i = 0; i < PCI_MSIX_MAX; i++)
        set_irq(session, i, -1);
}

static int assign_irqs(struct session *session, struct vu_message *message, uint32_t start,
                       uint32_t count) {
    if (message->fd_count != 0 && message->fd_count != count)
        return -EINVAL;
    for (unsigned i = 0; i < message->fd_count; i++)
        if (!is_eventfd(message->fds[i]))
            return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        set_irq(session, start + i, message->fd_count > 0 ? message->fds[i] : -1);
        message->fds[i < message->fd_count ? i : 0] = -1;
    }
    return 0;
}

static int set_irqs(struct session *session, struct vu_message *message) {
    const uint8_t *p = message->payload;
    uint32_t flags = load_le32(p + 4), index = load_le32(p + 8), start = load_le32(p + 12),
             count = load_le32(p + 16);
    if (message->length < VU_SET_IRQS_SIZE || index >= VU_IRQS ||
        !range_within(start, count, irqs_of(session, index)))
        return -EINVAL;
    if (flags == (VU_SET_EVENTFD | VU_SET_TRIGGER))
        return assign_irqs(session, message, start, count);
    if (flags != (VU_SET_NONE | VU_SET_TRIGGER))
        return -EINVAL; /* MSI-X vectors are masked by the client */
    if (count == 0 && index == VU_IRQ_MSIX)
        clear_irqs(session);
    for (uint32_t i = 0; i < count; i++)
        notify(session, (uint16_t)(start + i));
    return 0;
}

/* ---- Registers ---- */

/* The largest naturally aligned piece of an access: registers are not written byte by byte. */
static unsigned piece(uint64_t offset, uint32_t left, unsigned most) {
    unsigned size = most;
    while (size > left || offset & (size - 1))
        size /= 2;
    return size;
}

static void read_region(struct session *session, uint32_t region, uint64_t offset, uint32_t count) {
    uint8_t *to = session->reply.payload + VU_ACCESS_SIZE;
    bool config = region == VU_REGION_CONFIG;
    while (count > 0) {
        unsigned n = piece(offset, count, config ? 4 : 8);
        store_le(to,
                 config ? pci_config_read(session->function, (unsigned)offset, n)
                        : pci_bar_read(session->function, region, offset, n),
                 n);
        to += n;
        offset += n;
        count -= n;
    }
}

static void write_region(struct session *session, uint32_t region, uint64_t offset,
                         const uint8_t *from, uint32_t count) {
    bool config = region == VU_REGION_CONFIG;
    while (count > 0) {
        unsigned n = piece(offset, count, config ? 4 : 8);
        if (config)
            pci_config_write(session->function, (unsigned)offset, (uint32_t)load_le(from, n), n);
        else
            pci_bar_write(session->function, region, offset, load_le(from, n), n);
        from += n;
        offset += n;
        count -= n;
    }
    if (!session->running && pci_is_master(session->function)) {
        session->running = true;
        session->model->resume(session->device);
    }
}

static int access_region(struct session *session, const struct vu_message *message) {
    const uint8_t *p = message->payload;
    bool write = message->command == VU_REGION_WRITE;
    uint64_t offset = load_le64(p);
    uint32_t region = load_le32(p + 8), count = load_le32(p + 12);
    if (message->length < VU_ACCESS_SIZE || count > VU_DATA_MAX ||
        (write && message->length - VU_ACCESS_SIZE < count) ||
        !range_within(offset, count, region_size(session, region)))
        return -EINVAL;
    memcpy(session->reply.payload, p, VU_ACCESS_SIZE);
    session->reply.length = VU_ACCESS_SIZE + (write ? 0 : count);
    if (write)
        write_region(session, region, offset, p + VU_ACCESS_SIZE, count);
    else
        read_region(session, region, offset, count);
    return 0;
}

static int reset(struct session *session) {
    device_reset(session->device);
    pci_function_reset(session->function);
    session->model->pause(session->device);
    session->running = false;
    return 0;
}

/* ---- Messages ---- */

static int dispatch(struct session *session, struct vu_message *message) {
    switch (message->command) {
    case VU_DMA_MAP: return map_memory(session, message);
    case VU_DMA_UNMAP: return unmap_memory(session, message);
    case VU_GET_INFO: return get_info(session, message);
    case VU_GET_REGION_INFO: return get_region_info(session, message);
    case VU_GET_REGION_IO_FDS: return get_io_fds(session, message);
    case VU_GET_IRQ_INFO: return get_irq_info(session, message);
    case VU_SET_IRQS: return set_irqs(session, message);
    case VU_REGION_READ:
    case VU_REGION_WRITE: return access_region(session, message);
    case VU_RESET: return reset(session);
    default: return -ENOTSUP;
    }
}

/* Negative: the client is sent away. */
static int answer(struct session *session, struct vu_message *message) {
    struct vu_message *reply = &session->reply;
    bool version = message->command == VU_VERSION;
    if ((message->flags & VU_TYPE) != VU_COMMAND || version == (session->device != NULL))
        return -EPROTO;
    vu_begin_reply(reply, message);
    int rc = version ? agree(session, message) : dispatch(session, message);
    if (rc < 0) {
        reply->flags |= VU_ERROR;
        reply->error = (uint32_t)-rc;
        reply->length = 0;
    }
    if (message->id < VU_ACCESS_IDS)
        atomic_store(&session->kept->done, message->id);
    int sent = message->flags & VU_NO_REPLY ? 0 : vu_send(session->socket, reply);
    vu_close_fds(reply);
    return version && rc < 0 ? rc : sent;
}

/* model->full has been written to. */
static int tell_full(struct session *session) {
    struct vu_message *message = &session->reply;
    uint64_t count;
    if (read(session->model->full, &count, sizeof count) < 0 || !session->tells_full)
        return 0;
    vu_begin(message, VU_ACCESS_IDS, VU_LODGE_FULL);
    message->flags |= VU_NO_REPLY;
    return vu_send(session->socket, message);
}

static int serve(struct session *session, int stop) {
    struct pollfd fds[] = {{.fd = session->socket, .events = POLLIN},
                           {.fd = stop, .events = POLLIN},
                           {.fd = session->model->full, .events = POLLIN}};
    tell_full(session); /* what was meant for a predecessor */
    for (;;) {
        int rc = vu_receive(&session->reader, session->socket);
        if (rc == 1) {
            rc = answer(session, &session->reader.message);
            vu_close_fds(&session->reader.message);
        } else if (rc == 0) {
            poll(fds, 3, -1);
        }
        if (rc == 0 && fds[2].revents != 0)
            rc = tell_full(session);
        if (rc == 0 && lent_is_broken(session->lent))
            rc = -EFAULT;
        if (rc < 0 || fds[1].revents != 0)
            return rc;
    }
}

static int session_start(struct session *session, struct error *err) {
    session->twin = -1;
    for (unsigned i = 0; i < PCI_MSIX_MAX; i++)
        session->irqs[i] = -1;
    lock_init(&session->irq_lock, LOCK_BACKEND, "vfio-user interrupts");
    lock_init(&session->twin_lock, LOCK_BACKEND, "vfio-user twin");
    int rc = lent_create(tell_watched, session, &session->lent, err);
    if (rc == 0)
        session->served =
            (struct pci_served){lent_far(session->lent), irqs_enabled, notify, session};
    return rc;
}

static void session_end(struct session *session) {
    if (session->device != NULL)
        device_destroy(session->device);
    lent_destroy(session->lent);
    clear_irqs(session);
    vu_close_fds(&session->reader.message);
    vu_close_fds(&session->twin_reader.message);
    if (session->twin >= 0)
        close(session->twin);
    lock_destroy(&session->irq_lock);
    lock_destroy(&session->twin_lock);
    free(session);
}

int vu_serve(int socket, const struct vu_model *model, struct platform *platform, void *state,
             struct vu_kept *kept, int stop, struct error *err) {
    struct session *session = calloc(1, sizeof *session);
    if (session == NULL)
        return error_set(err, -ENOMEM, "no memory for a client");
    session->model = model;
    session->platform = platform;
    session->state = state;
    session->kept = kept;
    session->socket = socket;
    int rc = session_start(session, err);
    if (rc == 0)
        rc = serve(session, stop);
    session_end(session);
    switch (rc) {
    case -EPROTO: return error_set(err, rc, "it sent what is no vfio-user message");
    case -ETIMEDOUT: return error_set(err, rc, "it does not read what it is sent");
    case -EFAULT: return error_set(err, rc, "it cut memory short that it had lent");
    default: return rc;
    }
}
