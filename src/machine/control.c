/* The control socket: clients, lines in, lines out. */
#include "machine/control.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/log.h"
#include "machine/control_names.h"

/* A client with this much unread gets no further commands run. */
enum { OUTPUT_ENOUGH = 64 << 10 };

struct client {
    struct client *next;
    struct control *control;
    unsigned long number;
    int fd;
    struct loop_fd *watch;
    struct control_call *call; /* that runs; the next waits for it */
    bool ended;                /* nothing more comes from it */
    bool hung;                 /* it has stopped sending; what it sent is not all read yet */
    bool refused;              /* only what is to be written is left of it */
    bool broken;               /* nothing can be written either */
    bool busy;                 /* in serve(), which sees to everything */
    int fds[CONTROL_FDS_MAX];  /* sent, not yet taken by a command */
    unsigned fd_count;
    size_t length;
    char *output;
    size_t output_start, output_length, output_room;
    char line[CONTROL_LINE_MAX];
};

struct control_call {
    struct client *client; /* NULL: it has gone */
    json_t *id;
};

struct control {
    struct control_config config;
    char name[VM_NAME_MAX + 1], path[CONTROL_PATH_MAX];
    int fd;
    struct loop_fd *watch;
    struct client *clients;
    unsigned client_count;
    unsigned long last_number;
};

/* ---- Output ---- */

static void drop_output(struct client *client) {
    free(client->output);
    client->output = NULL;
    client->output_start = client->output_length = client->output_room = 0;
}

static void flush(struct client *client) {
    while (client->output_length > 0 && !client->broken) {
        ssize_t sent = send(client->fd, client->output + client->output_start,
                            client->output_length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return;
        if (sent < 0) {
            client->broken = true;
            break;
        }
        client->output_start += (size_t)sent;
        client->output_length -= (size_t)sent;
    }
    drop_output(client);
}

/* Room for `more` bytes behind what is there. False: the client reads too slowly, or no memory. */
static bool make_room(struct client *client, size_t more) {
    if (more > CONTROL_OUTPUT_MAX - client->output_length)
        return false;
    if (client->output_start + client->output_length + more <= client->output_room)
        return true;
    size_t room = client->output_length + more;
    room += room / 2;
    char *bigger = malloc(room);
    if (bigger == NULL)
        return false;
    if (client->output_length > 0)
        memcpy(bigger, client->output + client->output_start, client->output_length);
    free(client->output);
    client->output = bigger;
    client->output_start = 0;
    client->output_room = room;
    return true;
}

/* Takes `message`. */
static void put(struct client *client, json_t *message) {
    char *text = message != NULL ? json_dumps(message, JSON_COMPACT) : NULL;
    size_t length = text != NULL ? strlen(text) : 0;
    json_decref(message);
    if (client->broken || text == NULL || !make_room(client, length + 1)) {
        client->broken = true;
        free(text);
        return;
    }
    char *end = client->output + client->output_start + client->output_length;
    memcpy(end, text, length);
    end[length] = '\n';
    client->output_length += length + 1;
    free(text);
}

static json_t *error_message(const char *class, const char *text) {
    return json_pack("{s:{s:s, s:s}}", "error", "class", class, "desc", text);
}

/* The rest of what it sends is not looked at. */
static void refuse(struct client *client, const char *class, const char *text) {
    put(client, error_message(class, text));
    client->refused = true;
}

/* ---- Clients ---- */

static void listen_more(struct control *control);

static void end_client(struct client *client) {
    struct control *control = client->control;
    struct client **link = &control->clients;
    while (*link != client)
        link = &(*link)->next;
    *link = client->next;
    control->client_count--;
    if (client->call != NULL)
        client->call->client = NULL;
    loop_fd_remove(client->watch);
    for (unsigned i = 0; i < client->fd_count; i++)
        close(client->fds[i]);
    close(client->fd);
    drop_output(client);
    if (control->config.gone != NULL)
        control->config.gone(control->config.context, client->number);
    free(client);
}

static bool is_over(const struct client *client) {
    bool said_all = client->output_length == 0 && client->call == NULL;
    return client->broken || (said_all && (client->ended || client->refused));
}

static bool may_read(const struct client *client) {
    return !client->ended && !client->refused && client->call == NULL &&
           client->output_length < OUTPUT_ENOUGH;
}

static void serve(struct client *client);

static bool has_line(const struct client *client) {
    return memchr(client->line, '\n', client->length) != NULL;
}

/* After anything that changed: goes on with what is there, writes what can be written, waits for
 * what can come, or ends it. */
static void settle(struct client *client) {
    unsigned events = 0;
    flush(client);
    while (may_read(client) && has_line(client) && !client->broken)
        serve(client);
    if (is_over(client)) {
        end_client(client);
        return;
    }
    if (client->output_length > 0)
        events |= LOOP_WRITE;
    if (may_read(client))
        events |= LOOP_READ;
    else if (!client->ended && !client->hung)
        events |= LOOP_HANGUP;
    loop_fd_set(client->watch, events);
}

/* ---- Commands ---- */

static void run_line(struct client *client, const char *line, size_t length) {
    json_error_t parse;
    char text[JSON_ERROR_TEXT_LENGTH + 32];
    json_t *request = json_loadb(line, length, JSON_REJECT_DUPLICATES, &parse);
    struct control_call *call = request != NULL ? calloc(1, sizeof *call) : NULL;
    if (request == NULL) {
        snprintf(text, sizeof text, "no JSON: %s", parse.text);
        put(client, error_message("BadJson", text));
        return;
    }
    if (call == NULL) {
        client->broken = true;
    } else {
        call->client = client;
        call->id = json_is_object(request) ? json_incref(json_object_get(request, "id")) : NULL;
        client->call = call;
        control_run(&client->control->config, call, request);
    }
    json_decref(request);
}

/* Runs the commands that are there, as long as each is answered at once. */
static void serve(struct client *client) {
    client->busy = true;
    size_t start = 0;
    while (client->call == NULL && !client->refused && !client->broken) {
        char *newline = memchr(client->line + start, '\n', client->length - start);
        if (newline == NULL)
            break;
        size_t length = (size_t)(newline - (client->line + start));
        if (length > 0 && !(length == 1 && client->line[start] == '\r'))
            run_line(client, client->line + start, length);
        start += length + 1;
        flush(client);
        if (client->output_length >= OUTPUT_ENOUGH)
            break;
    }
    client->length -= start;
    memmove(client->line, client->line + start, client->length);
    if (client->length == sizeof client->line && client->call == NULL && !has_line(client))
        refuse(client, "LineTooLong", "a command is longer than a line may be");
    client->busy = false;
}

/* Keeps what there is room for; what is too much is closed. */
static void take_descriptors(struct client *client, struct msghdr *message) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (client->fd_count < CONTROL_FDS_MAX)
                client->fds[client->fd_count++] = fd;
            else
                close(fd);
        }
    }
}

static ssize_t receive(struct client *client) {
    struct iovec room = {client->line + client->length, sizeof client->line - client->length};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(CONTROL_FDS_MAX * sizeof(int))];
    } rights;
    struct msghdr message = {.msg_iov = &room,
                             .msg_iovlen = 1,
                             .msg_control = rights.bytes,
                             .msg_controllen = sizeof rights.bytes};
    ssize_t got = recvmsg(client->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got >= 0)
        take_descriptors(client, &message);
    return got;
}

static void take_input(struct client *client) {
    if (client->length < sizeof client->line) {
        ssize_t got = receive(client);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0) {
            client->ended = true;
            client->broken = got < 0;
            return;
        }
        client->length += (size_t)got;
    }
    serve(client);
}

static void on_client(void *context, unsigned events) {
    struct client *client = context;
    if (may_read(client) && (events & (LOOP_READ | LOOP_HANGUP)))
        take_input(client);
    else if (events & LOOP_HANGUP)
        client->hung = true;
    settle(client);
}

static void finish_call(struct control_call *call, json_t *message) {
    struct client *client = call->client;
    if (client != NULL) {
        if (call->id != NULL && message != NULL)
            json_object_set(message, "id", call->id);
        client->call = NULL;
        put(client, message);
    } else {
        json_decref(message);
    }
    json_decref(call->id);
    free(call);
    if (client != NULL && !client->busy)
        settle(client);
}

void control_return(struct control_call *call, json_t *result) {
    finish_call(call, json_pack("{s:o}", "return", result != NULL ? result : json_object()));
}

void control_fail(struct control_call *call, const char *class, const char *text) {
    finish_call(call, error_message(class, text));
}

unsigned long control_client(const struct control_call *call) {
    return call->client != NULL ? call->client->number : 0;
}

bool control_take_fds(struct control_call *call, int *fds, unsigned count) {
    struct client *client = call->client;
    if (client == NULL || client->fd_count < count)
        return false;
    memcpy(fds, client->fds, count * sizeof *fds);
    client->fd_count -= count;
    memmove(client->fds, client->fds + count, client->fd_count * sizeof *fds);
    return true;
}

/* ---- Events ---- */

static json_t *make_event(const char *event, json_t *data) {
    struct timeval now;
    gettimeofday(&now, NULL);
    json_t *message = json_pack("{s:s, s:{s:I, s:I}}", "event", event, "timestamp", "seconds",
                                (json_int_t)now.tv_sec, "microseconds", (json_int_t)now.tv_usec);
    if (message != NULL && data != NULL)
        json_object_set(message, "data", data);
    json_decref(data);
    return message;
}

void control_tell(struct control_call *call, const char *event, json_t *data) {
    json_t *message = make_event(event, data);
    struct client *client = call->client;
    if (client == NULL) {
        json_decref(message);
        return;
    }
    put(client, message);
    if (!client->busy)
        settle(client);
}

void control_event(struct control *control, const char *event, json_t *data) {
    json_t *message = make_event(event, data);
    for (struct client *client = control->clients, *next; client != NULL; client = next) {
        next = client->next;
        put(client, json_incref(message));
        if (!client->busy)
            settle(client);
    }
    json_decref(message);
}

/* ---- The socket ---- */

/* The socket's mode keeps others out; this is for a directory with wrong rights. */
static bool is_allowed(int fd) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
           (peer.uid == geteuid() || peer.uid == 0);
}

static void greet(struct client *client) {
    put(client, json_pack("{s:{s:s, s:i, s:s}}", "lodge", "version", LODGE_VERSION, "protocol",
                          CONTROL_PROTOCOL, "name", client->control->name));
}

static int add_client(struct control *control, int fd) {
    struct client *client = calloc(1, sizeof *client);
    if (client == NULL ||
        loop_fd_add(control->config.loop, fd, LOOP_READ, on_client, client, &client->watch, NULL)) {
        free(client);
        return -ENOMEM;
    }
    client->control = control;
    client->fd = fd;
    client->number = ++control->last_number;
    client->next = control->clients;
    control->clients = client;
    control->client_count++;
    greet(client);
    if (control->client_count > CONTROL_CLIENTS_MAX)
        refuse(client, "TooManyClients", "this VM has as many connections as it takes");
    settle(client);
    return 0;
}

static void on_connect(void *context, unsigned events) {
    struct control *control = context;
    int fd = accept4(control->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    if (!is_allowed(fd) || add_client(control, fd) < 0)
        close(fd);
    listen_more(control);
}

/* One more than the most is taken, to be told so; when that one is slow, others wait. */
static void listen_more(struct control *control) {
    bool room = control->client_count <= CONTROL_CLIENTS_MAX;
    loop_fd_set(control->watch, room ? LOOP_READ : 0);
}

int control_create(const struct control_config *config, struct control **control,
                   struct error *err) {
    struct control *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->config = *config;
    made->fd = -1;
    snprintf(made->name, sizeof made->name, "%s", config->name);
    snprintf(made->path, sizeof made->path, "%s/%s.sock", config->directory, config->name);
    int result = control_listen(config->directory, config->name, &made->fd, err);
    if (result == 0)
        result =
            loop_fd_add(config->loop, made->fd, LOOP_READ, on_connect, made, &made->watch, err);
    if (result < 0) {
        if (made->fd >= 0)
            unlink(made->path);
        if (made->fd >= 0)
            close(made->fd);
        free(made);
        return result;
    }
    *control = made;
    return 0;
}

void control_destroy(struct control *control) {
    if (control == NULL)
        return;
    control->config.gone = NULL;
    unlink(control->path);
    for (struct client *client = control->clients, *next; client != NULL; client = next) {
        next = client->next;
        flush(client);
        end_client(client);
    }
    loop_fd_remove(control->watch);
    close(control->fd);
    free(control);
}
