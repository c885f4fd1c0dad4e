#include "virtio/vsock_unix.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"

enum { COMMAND_MAX = 32, PIECE = 16 << 10 };

/* One connection: a descriptor on this side, a vsock connection on the other. */
struct relay {
    struct relay *next;
    struct vsock_unix *bridge;
    int fd;
    struct loop_fd *watch;
    struct vsock_conn *conn; /* NULL while the command is read, and when it is closed */
    bool greet;              /* "OK" is to be written once connected */
    bool fd_ended;           /* nothing more comes from the descriptor */
    bool conn_ended;         /* nothing more comes from the guest */
    char command[COMMAND_MAX];
    unsigned command_length;
    /* From the guest, not written yet: within the credit, so bounded. */
    uint8_t *out;
    uint32_t out_start, out_length;
    /* From the descriptor, not sent yet. */
    uint8_t in[PIECE];
    uint32_t in_start, in_length;
};

struct vsock_unix {
    struct device *vsock;
    struct loop *loop;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    int fd;
    struct loop_fd *watch;
    struct relay *relays;
    unsigned relay_count;
    bool has_port; /* VSOCK_PORT_ANY is ours */
};

/* ---- Life of a relay ---- */

static void listen_more(struct vsock_unix *bridge) {
    if (bridge->watch != NULL)
        loop_fd_set(bridge->watch, bridge->relay_count < VSOCK_UNIX_RELAYS_MAX ? LOOP_READ : 0);
}

static void end_relay(struct relay *relay) {
    struct vsock_unix *bridge = relay->bridge;
    struct relay **link = &bridge->relays;
    while (*link != relay)
        link = &(*link)->next;
    *link = relay->next;
    bridge->relay_count--;
    if (relay->conn != NULL)
        vsock_close(relay->conn);
    if (relay->watch != NULL)
        loop_fd_remove(relay->watch);
    close(relay->fd);
    free(relay->out);
    free(relay);
    listen_more(bridge);
}

static void on_fd(void *context, unsigned events);

/* Waits for what can be done: reading while there is room, writing while something is left. */
static void watch_relay(struct relay *relay) {
    unsigned events = 0;
    if (!relay->fd_ended && relay->in_length == 0)
        events |= LOOP_READ;
    if (relay->out_length > 0)
        events |= LOOP_WRITE;
    loop_fd_set(relay->watch, events);
}

static struct relay *make_relay(struct vsock_unix *bridge, int fd, struct error *err) {
    struct relay *relay = calloc(1, sizeof *relay);
    int flags = fcntl(fd, F_GETFL);
    if (relay == NULL || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
        loop_fd_add(bridge->loop, fd, LOOP_READ, on_fd, relay, &relay->watch, err) != 0) {
        close(fd);
        free(relay);
        error_set(err, -ENOMEM, "cannot bridge a connection to the guest");
        return NULL;
    }
    relay->bridge = bridge;
    relay->fd = fd;
    relay->next = bridge->relays;
    bridge->relays = relay;
    bridge->relay_count++;
    listen_more(bridge);
    return relay;
}

/* ---- From the descriptor to the guest ---- */

static void send_in(struct relay *relay) {
    while (relay->in_length > 0) {
        ssize_t sent = vsock_send(relay->conn, relay->in + relay->in_start, relay->in_length);
        if (sent < 0) {
            /* The guest receives no more: what is left has no taker. */
            relay->in_length = 0;
            relay->fd_ended = true;
            break;
        }
        if (sent == 0)
            break;
        relay->in_start += (uint32_t)sent;
        relay->in_length -= (uint32_t)sent;
    }
    if (relay->fd_ended && relay->in_length == 0)
        vsock_shutdown(relay->conn);
}

static bool read_fd(struct relay *relay) {
    ssize_t got = recv(relay->fd, relay->in, sizeof relay->in, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (got < 0) {
        end_relay(relay);
        return false;
    }
    relay->fd_ended = got == 0;
    relay->in_start = 0;
    relay->in_length = (uint32_t)got;
    send_in(relay);
    return true;
}

/* ---- From the guest to the descriptor ---- */

static bool write_fd(struct relay *relay) {
    while (relay->out_length > 0) {
        ssize_t done =
            send(relay->fd, relay->out + relay->out_start, relay->out_length, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && errno == EAGAIN)
            return true;
        if (done < 0) {
            end_relay(relay);
            return false;
        }
        relay->out_start += (uint32_t)done;
        relay->out_length -= (uint32_t)done;
        if (relay->conn != NULL)
            vsock_consumed(relay->conn, (size_t)done);
    }
    if (relay->conn_ended)
        shutdown(relay->fd, SHUT_WR);
    if (relay->conn != NULL)
        return true;
    end_relay(relay);
    return false;
}

static bool append_out(struct relay *relay, const void *bytes, size_t length) {
    if (relay->out == NULL)
        relay->out = malloc(VSOCK_BUFFER + COMMAND_MAX);
    if (relay->out == NULL)
        return false;
    if (relay->out_start > 0) {
        memmove(relay->out, relay->out + relay->out_start, relay->out_length);
        relay->out_start = 0;
    }
    if (length > VSOCK_BUFFER + COMMAND_MAX - relay->out_length)
        return false;
    memcpy(relay->out + relay->out_length, bytes, length);
    relay->out_length += (uint32_t)length;
    return true;
}

static void relay_received(void *context, struct vsock_conn *conn, const void *bytes,
                           size_t length) {
    struct relay *relay = context;
    if (!append_out(relay, bytes, length))
        end_relay(relay);
    else if (write_fd(relay))
        watch_relay(relay);
}

static void relay_connected(void *context, struct vsock_conn *conn) {
    struct relay *relay = context;
    char answer[COMMAND_MAX];
    if (!relay->greet)
        return;
    int length = snprintf(answer, sizeof answer, "OK %u\n", vsock_host_port(conn));
    /* Not the guest's bytes: no credit is given back for them. */
    if (send(relay->fd, answer, (size_t)length, MSG_NOSIGNAL) != length) {
        end_relay(relay);
        return;
    }
    watch_relay(relay);
}

static void relay_writable(void *context, struct vsock_conn *conn) {
    struct relay *relay = context;
    send_in(relay);
    watch_relay(relay);
}

static void relay_ended(void *context, struct vsock_conn *conn) {
    struct relay *relay = context;
    relay->conn_ended = true;
    if (write_fd(relay))
        watch_relay(relay);
}

static void relay_closed(void *context, struct vsock_conn *conn, int error) {
    struct relay *relay = context;
    relay->conn = NULL;
    relay->conn_ended = true;
    relay->fd_ended = true;
    relay->in_length = 0;
    if (error != 0)
        end_relay(relay);
    else if (write_fd(relay))
        watch_relay(relay);
}

static const struct vsock_ops relay_ops = {relay_connected, relay_received, relay_writable,
                                           relay_ended, relay_closed};

/* ---- "CONNECT <port>\n" ---- */

static bool parse_command(const char *text, uint32_t *port) {
    static const char word[] = "CONNECT ";
    uint64_t value = 0;
    if (strncmp(text, word, sizeof word - 1) != 0)
        return false;
    text += sizeof word - 1;
    if (*text == '\0')
        return false;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = value * 10 + (uint64_t)(*text - '0');
        if (value >= VSOCK_PORT_ANY)
            return false;
    }
    *port = (uint32_t)value;
    return true;
}

/* Reads the command a byte at a time: what follows it belongs to the guest. */
static void read_command(struct relay *relay) {
    uint32_t port;
    char byte;
    for (;;) {
        ssize_t got = recv(relay->fd, &byte, 1, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0 || relay->command_length == COMMAND_MAX - 1) {
            end_relay(relay);
            return;
        }
        if (byte == '\n')
            break;
        relay->command[relay->command_length++] = byte;
    }
    relay->greet = true;
    if (!parse_command(relay->command, &port) ||
        vsock_connect(relay->bridge->vsock, port, &relay_ops, relay, &relay->conn, NULL) != 0) {
        end_relay(relay);
        return;
    }
    /* Nothing is read until the guest has answered. */
    loop_fd_set(relay->watch, 0);
}

static void on_fd(void *context, unsigned events) {
    struct relay *relay = context;
    if (relay->conn == NULL && !relay->conn_ended) {
        read_command(relay);
        return;
    }
    if ((events & (LOOP_WRITE | LOOP_HANGUP)) && !write_fd(relay))
        return;
    if ((events & (LOOP_READ | LOOP_HANGUP)) && !relay->fd_ended && relay->in_length == 0 &&
        !read_fd(relay))
        return;
    watch_relay(relay);
}

/* ---- The listening sockets ---- */

static void on_client(void *context, unsigned events) {
    struct vsock_unix *bridge = context;
    int fd = accept4(bridge->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        make_relay(bridge, fd, NULL);
}

static int connect_unix(const char *path, uint32_t port) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length = snprintf(address.sun_path, sizeof address.sun_path, "%s_%u", path, port);
    if (length < 0 || (size_t)length >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    /* Unix sockets connect at once or not at all. */
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return -ECONNREFUSED;
    }
    return fd;
}

static int on_guest(void *context, struct vsock_conn *conn, uint32_t host_port) {
    struct vsock_unix *bridge = context;
    int fd = bridge->relay_count < VSOCK_UNIX_RELAYS_MAX ? connect_unix(bridge->path, host_port)
                                                         : -ECONNREFUSED;
    if (fd < 0)
        return fd;
    struct relay *relay = make_relay(bridge, fd, NULL);
    if (relay == NULL)
        return -ENOMEM;
    relay->conn = conn;
    vsock_attach(conn, &relay_ops, relay);
    return 0;
}

int vsock_unix_relay_fd(struct vsock_unix *bridge, uint32_t guest_port, int fd, struct error *err) {
    struct relay *relay = make_relay(bridge, fd, err);
    if (relay == NULL)
        return -ENOMEM;
    int rc = vsock_connect(bridge->vsock, guest_port, &relay_ops, relay, &relay->conn, err);
    if (rc != 0)
        end_relay(relay);
    return rc;
}

static int listen_unix(struct vsock_unix *bridge, struct error *err) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, bridge->path, sizeof address.sun_path);
    bridge->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bridge->fd < 0)
        return error_set_errno(err, -errno, "cannot make a socket");
    /* The mode is set before anybody can connect: nobody can until listen. */
    if (bind(bridge->fd, (struct sockaddr *)&address, sizeof address) != 0) {
        int rc = error_set_errno(err, -errno, "cannot make the vsock socket %s", bridge->path);
        bridge->path[0] = '\0';
        return rc;
    }
    if (chmod(bridge->path, 0600) != 0 || listen(bridge->fd, 16) != 0)
        return error_set_errno(err, -errno, "cannot listen on %s", bridge->path);
    return loop_fd_add(bridge->loop, bridge->fd, LOOP_READ, on_client, bridge, &bridge->watch, err);
}

int vsock_unix_create(struct device *vsock, struct loop *loop, const char *path,
                      struct vsock_unix **bridge_out, struct error *err) {
    struct vsock_unix *bridge = calloc(1, sizeof *bridge);
    if (bridge == NULL)
        return error_set(err, -ENOMEM, "no memory for the vsock socket");
    *bridge = (struct vsock_unix){.vsock = vsock, .loop = loop, .fd = -1};
    /* Room for "_<port>" behind it. */
    if (strlen(path) + sizeof "_4294967295" > sizeof bridge->path) {
        free(bridge);
        return error_set(err, -ENAMETOOLONG, "the path of the vsock socket is too long: %s", path);
    }
    memcpy(bridge->path, path, strlen(path) + 1);
    int rc = listen_unix(bridge, err);
    if (rc == 0)
        rc = vsock_listen(vsock, VSOCK_PORT_ANY, on_guest, bridge, err);
    if (rc != 0) {
        vsock_unix_destroy(bridge);
        return rc;
    }
    bridge->has_port = true;
    *bridge_out = bridge;
    return 0;
}

void vsock_unix_destroy(struct vsock_unix *bridge) {
    if (bridge == NULL)
        return;
    if (bridge->has_port)
        vsock_unlisten(bridge->vsock, VSOCK_PORT_ANY);
    while (bridge->relays != NULL)
        /* The analyzer does not see that freeing unlinks. NOLINTNEXTLINE */
        end_relay(bridge->relays);
    if (bridge->watch != NULL)
        loop_fd_remove(bridge->watch);
    if (bridge->fd >= 0)
        close(bridge->fd);
    if (bridge->path[0] != '\0')
        unlink(bridge->path);
    free(bridge);
}
