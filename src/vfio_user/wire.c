#include "vfio_user/wire.h"

#include <jansson.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"

/* ---- Receiving ---- */

void vu_close_fds(struct vu_message *message) {
    for (unsigned i = 0; i < message->fd_count; i++)
        if (message->fds[i] >= 0)
            close(message->fds[i]);
    message->fd_count = 0;
}

/* Keeps the descriptors that came along. -EPROTO: more than were announced. */
static int take_fds(struct vu_message *message, struct msghdr *header) {
    bool fit = !(header->msg_flags & MSG_CTRUNC);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c != NULL; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        unsigned count = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (unsigned i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (message->fd_count < VU_FDS_MAX) {
                message->fds[message->fd_count++] = fd;
            } else {
                close(fd);
                fit = false;
            }
        }
    }
    return fit ? 0 : -EPROTO;
}

static int read_some(struct vu_message *message, int socket, void *to, size_t length) {
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(VU_FDS_MAX * sizeof(int))];
    struct iovec vector = {to, length};
    struct msghdr header = {.msg_iov = &vector,
                            .msg_iovlen = 1,
                            .msg_control = control,
                            .msg_controllen = sizeof control};
    ssize_t n = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -ECONNRESET;
    int rc = take_fds(message, &header);
    if (n == 0 || rc < 0)
        return n == 0 ? -ECONNRESET : rc;
    return (int)n;
}

static int read_header(struct vu_reader *reader) {
    struct vu_message *message = &reader->message;
    uint32_t size = load_le32(reader->header + 4);
    message->id = load_le16(reader->header);
    message->command = load_le16(reader->header + 2);
    message->flags = load_le32(reader->header + 8);
    message->error = load_le32(reader->header + 12);
    if (size < VU_HEADER || size - VU_HEADER > VU_PAYLOAD_MAX)
        return -EPROTO;
    message->length = size - VU_HEADER;
    return 0;
}

int vu_receive(struct vu_reader *reader, int socket) {
    struct vu_message *message = &reader->message;
    for (;;) {
        if (reader->have == 0)
            message->fd_count = 0;
        bool in_header = reader->have < VU_HEADER;
        uint32_t done = in_header ? reader->have : reader->have - VU_HEADER;
        uint32_t wanted = in_header ? VU_HEADER : message->length;
        if (!in_header && done == wanted) {
            reader->have = 0;
            return 1;
        }
        uint8_t *to = in_header ? reader->header : message->payload;
        int n = read_some(message, socket, to + done, wanted - done);
        if (n > 0)
            reader->have += (uint32_t)n;
        if (n > 0 && in_header && reader->have == VU_HEADER && read_header(reader) < 0)
            n = -EPROTO;
        if (n < 0)
            vu_close_fds(message);
        if (n <= 0)
            return n;
    }
}

int vu_wait(struct vu_reader *reader, int socket, int timeout_ms) {
    uint64_t end = host_clock_ns() + (uint64_t)timeout_ms * 1000000;
    for (;;) {
        int rc = vu_receive(reader, socket);
        uint64_t now = host_clock_ns();
        if (rc != 0)
            return rc;
        struct pollfd poll_fd = {.fd = socket, .events = POLLIN};
        if (now >= end)
            return -ETIMEDOUT;
        poll(&poll_fd, 1, (int)((end - now) / 1000000) + 1);
    }
}

/* ---- Sending ---- */

static int wait_writable(int socket, uint64_t end) {
    struct pollfd poll_fd = {.fd = socket, .events = POLLOUT};
    uint64_t now = host_clock_ns();
    if (now >= end)
        return -ETIMEDOUT;
    poll(&poll_fd, 1, (int)((end - now) / 1000000) + 1);
    return 0;
}

static void put_fds(struct msghdr *header, void *control, const struct vu_message *message) {
    size_t length = message->fd_count * sizeof(int);
    header->msg_control = control;
    header->msg_controllen = CMSG_SPACE(length);
    struct cmsghdr *c = CMSG_FIRSTHDR(header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(length);
    memcpy(CMSG_DATA(c), message->fds, length);
}

int vu_send(int socket, const struct vu_message *message) {
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(VU_FDS_MAX * sizeof(int))] = {0};
    uint8_t bytes[VU_HEADER + VU_PAYLOAD_MAX];
    size_t size = VU_HEADER + message->length, done = 0;
    uint64_t end = host_clock_ns() + (uint64_t)VU_PATIENCE_MS * 1000000;
    store_le16(bytes, message->id);
    store_le16(bytes + 2, message->command);
    store_le32(bytes + 4, (uint32_t)size);
    store_le32(bytes + 8, message->flags);
    store_le32(bytes + 12, message->error);
    memcpy(bytes + VU_HEADER, message->payload, message->length);
    while (done < size) {
        struct iovec vector = {bytes + done, size - done};
        struct msghdr header = {.msg_iov = &vector, .msg_iovlen = 1};
        if (done == 0 && message->fd_count > 0)
            put_fds(&header, control, message);
        ssize_t n = sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0)
            done += (size_t)n;
        else if (errno != EAGAIN && errno != EINTR)
            return -ECONNRESET;
        else if (wait_writable(socket, end) < 0)
            return -ETIMEDOUT;
    }
    return 0;
}

void vu_begin(struct vu_message *message, uint16_t id, uint16_t command) {
    message->id = id;
    message->command = command;
    message->flags = VU_COMMAND;
    message->error = 0;
    message->length = 0;
    message->fd_count = 0;
}

void vu_begin_reply(struct vu_message *reply, const struct vu_message *to) {
    vu_begin(reply, to->id, to->command);
    reply->flags = VU_REPLY;
}

/* ---- Version ---- */

enum {
    DEFAULT_FDS = 1,
    DEFAULT_DATA = 1 << 20,
    DEFAULT_MAPS = 65535,
    PAGE_FLAGS_VERSION = 1,
    VERSION_DATA = 4,
};

/* A number that is there must be one that makes sense. */
static int number(const json_t *capabilities, const char *name, unsigned otherwise,
                  unsigned *value) {
    const json_t *member = json_object_get(capabilities, name);
    *value = otherwise;
    if (member == NULL)
        return 0;
    json_int_t given = json_integer_value(member);
    if (!json_is_integer(member) || given < 0)
        return -EPROTO;
    *value = given < UINT32_MAX ? (unsigned)given : UINT32_MAX;
    return 0;
}

static int take_capabilities(const json_t *capabilities, struct vu_version *version) {
    const json_t *twin = json_object_get(capabilities, "twin_socket");
    const json_t *ours = json_object_get(capabilities, "lodge");
    const char *resume = json_string_value(json_object_get(ours, "resume"));
    int rc = number(capabilities, "max_msg_fds", DEFAULT_FDS, &version->max_fds);
    if (rc == 0)
        rc = number(capabilities, "max_data_xfer_size", DEFAULT_DATA, &version->max_data);
    if (rc == 0)
        rc = number(capabilities, "max_dma_maps", DEFAULT_MAPS, &version->max_maps);
    if (rc == 0)
        rc = number(twin, "fd_index", UINT32_MAX, &version->twin_index);
    version->twin = json_is_true(json_object_get(twin, "supported"));
    version->page_flags =
        json_integer_value(json_object_get(ours, "page_flags")) == PAGE_FLAGS_VERSION;
    version->resumed = json_is_true(json_object_get(ours, "resumed"));
    version->full = json_is_true(json_object_get(ours, "full"));
    const json_t *done = json_object_get(ours, "done");
    json_int_t last = json_integer_value(done);
    version->done = json_is_integer(done) && last >= 0 && last < VU_ACCESS_IDS ? (int)last : -1;
    if (resume != NULL && strlen(resume) == VU_RESUME_LENGTH)
        memcpy(version->resume, resume, VU_RESUME_LENGTH + 1);
    return rc;
}

int vu_version_parse(const struct vu_message *message, struct vu_version *version) {
    json_t *data = NULL;
    *version = (struct vu_version){0};
    if (message->length < VERSION_DATA)
        return -EPROTO;
    version->major = load_le16(message->payload);
    version->minor = load_le16(message->payload + 2);
    const char *text = (const char *)message->payload + VERSION_DATA;
    size_t length = strnlen(text, message->length - VERSION_DATA);
    if (length > 0) {
        data = json_loadb(text, length, 0, NULL);
        if (data == NULL)
            return -EPROTO;
    }
    int rc = take_capabilities(json_object_get(data, "capabilities"), version);
    json_decref(data);
    return rc;
}

static json_t *ours(const struct vu_version *version, bool reply) {
    json_t *object = json_object();
    if (version->page_flags)
        json_object_set_new(object, "page_flags", json_integer(PAGE_FLAGS_VERSION));
    if (version->full)
        json_object_set_new(object, "full", json_true());
    if (reply && version->resume[0] != 0)
        json_object_set_new(object, "resumed", json_boolean(version->resumed));
    if (reply && version->resumed)
        json_object_set_new(object, "done", json_integer(version->done));
    if (!reply && version->resume[0] != 0)
        json_object_set_new(object, "resume", json_string(version->resume));
    return object;
}

void vu_version_format(const struct vu_version *version, bool reply, struct vu_message *message) {
    json_t *twin = json_pack("{s:b}", "supported", version->twin);
    if (reply && version->twin)
        json_object_set_new(twin, "fd_index", json_integer(version->twin_index));
    json_t *data = json_pack("{s:{s:i, s:i, s:i, s:i, s:o, s:o}}", "capabilities", "max_msg_fds",
                             version->max_fds, "max_data_xfer_size", version->max_data,
                             "max_dma_maps", version->max_maps, "pgsizes", 4096, "twin_socket",
                             twin, "lodge", ours(version, reply));
    store_le16(message->payload, version->major);
    store_le16(message->payload + 2, version->minor);
    char *text = (char *)message->payload + VERSION_DATA;
    size_t room = VU_PAYLOAD_MAX - VERSION_DATA - 1;
    size_t length = data != NULL ? json_dumpb(data, text, room, JSON_COMPACT) : 0;
    length = length <= room ? length : 0;
    text[length] = 0;
    message->length = (uint32_t)(VERSION_DATA + length + 1);
    json_decref(data);
}
