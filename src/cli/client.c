#include "cli/client.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "machine/control.h"
#include "machine/control_names.h"

/* An answer may be long in coming when the guest is asked for its symbols. */
enum { ANSWER_MS = 60000, GREETING_MS = 5000, LINE_MAX_BYTES = CONTROL_OUTPUT_MAX };

struct client {
    int fd;
    unsigned next_id;
    char *buffer;
    size_t length, room;
    void (*event)(void *context, const char *event, const json_t *data);
    void *context;
};

static int lost(struct error *err) {
    return error_set(err, -ECONNRESET, "the VM has ended");
}

/* More bytes of the present line. */
static int receive(struct client *client, int ms, struct error *err) {
    struct pollfd ready = {.fd = client->fd, .events = POLLIN};
    if (client->length == client->room) {
        size_t room = client->room == 0 ? 4096 : 2 * client->room;
        char *bigger = room <= LINE_MAX_BYTES ? realloc(client->buffer, room) : NULL;
        if (bigger == NULL)
            return error_set(err, -EPROTO, "the VM's answer is too long");
        client->buffer = bigger;
        client->room = room;
    }
    int result = poll(&ready, 1, ms);
    if (result == 0)
        return error_set(err, -ETIMEDOUT, "the VM does not answer");
    if (result < 0)
        return errno == EINTR ? 0 : error_set_errno(err, -errno, "poll");
    ssize_t got = recv(client->fd, client->buffer + client->length, client->room - client->length,
                       MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (got <= 0)
        return lost(err);
    client->length += (size_t)got;
    return 0;
}

/* The next message. NULL with err filled. */
static json_t *next_message(struct client *client, int ms, struct error *err) {
    char *newline;
    while ((newline = memchr(client->buffer, '\n', client->length)) == NULL)
        if (receive(client, ms, err) < 0)
            return NULL;
    size_t line = (size_t)(newline - client->buffer) + 1;
    json_t *message = json_loadb(client->buffer, line, 0, NULL);
    client->length -= line;
    memmove(client->buffer, newline + 1, client->length);
    if (!json_is_object(message)) {
        json_decref(message);
        error_set(err, -EPROTO, "the VM does not speak lodge's protocol");
        return NULL;
    }
    return message;
}

/* The VM's own words for a refusal. */
static int refused(const json_t *error, struct error *err) {
    const char *text = json_string_value(json_object_get(error, "desc"));
    return error_set(err, -EREMOTEIO, "%s", text != NULL ? text : "the VM refuses");
}

static int check_greeting(struct client *client, struct error *err) {
    json_t *message = next_message(client, GREETING_MS, err);
    if (message == NULL)
        return err != NULL ? err->code : -EPROTO;
    const json_t *lodge = json_object_get(message, "lodge");
    json_int_t protocol = json_integer_value(json_object_get(lodge, "protocol"));
    json_decref(message);
    if (protocol != CONTROL_PROTOCOL)
        return error_set(err, -EPROTO, "the VM runs another version of lodge");
    return 0;
}

int client_open(const char *directory, const char *name, struct client **client,
                struct error *err) {
    struct client *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->room = 4096;
    made->buffer = malloc(made->room);
    int result = made->buffer == NULL ? error_set(err, -ENOMEM, "out of memory")
                                      : control_connect(directory, name, &made->fd, err);
    if (result < 0) {
        free(made->buffer);
        free(made);
        return result;
    }
    result = check_greeting(made, err);
    if (result < 0)
        client_close(made);
    else
        *client = made;
    return result;
}

void client_close(struct client *client) {
    if (client == NULL)
        return;
    close(client->fd);
    free(client->buffer);
    free(client);
}

static int send_all(struct client *client, const char *text, size_t length, struct error *err) {
    while (length > 0) {
        ssize_t sent = send(client->fd, text, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return lost(err);
        text += sent;
        length -= (size_t)sent;
    }
    return 0;
}

/* Descriptors go with the first byte of what follows. */
static int send_rights(struct client *client, const int *fds, unsigned count, struct error *err) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(CONTROL_FDS_MAX * sizeof(int))];
    } rights = {0};
    struct iovec text = {(char[]){" "}, 1};
    struct msghdr message = {.msg_iov = &text,
                             .msg_iovlen = 1,
                             .msg_control = rights.bytes,
                             .msg_controllen = CMSG_SPACE(count * sizeof *fds)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof *fds);
    memcpy(CMSG_DATA(header), fds, count * sizeof *fds);
    return sendmsg(client->fd, &message, MSG_NOSIGNAL) < 0 ? lost(err) : 0;
}

int client_send(struct client *client, const char *command, json_t *arguments, struct error *err) {
    json_t *request = json_pack("{s:s, s:o*, s:i}", "execute", command, "arguments", arguments,
                                "id", (int)++client->next_id);
    char *text = request != NULL ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    if (text == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int result = send_all(client, text, strlen(text), err);
    if (result == 0)
        result = send_all(client, "\n", 1, err);
    free(text);
    return result;
}

int client_call(struct client *client, const char *command, json_t *arguments, json_t **result,
                struct error *err) {
    return client_call_with(client, command, arguments, NULL, 0, result, err);
}

int client_call_with(struct client *client, const char *command, json_t *arguments, const int *fds,
                     unsigned fd_count, json_t **result, struct error *err) {
    int code = fd_count > 0 ? send_rights(client, fds, fd_count, err) : 0;
    if (code < 0)
        json_decref(arguments);
    else
        code = client_send(client, command, arguments, err);
    while (code == 0) {
        json_t *message = next_message(client, ANSWER_MS, err);
        if (message == NULL)
            return err != NULL ? err->code : -EPROTO;
        json_t *returned = json_object_get(message, "return");
        json_t *error = json_object_get(message, "error");
        bool ours = json_integer_value(json_object_get(message, "id")) == client->next_id;
        if (error != NULL && (ours || json_object_get(message, "id") == NULL))
            code = refused(error, err);
        else if (returned != NULL && ours)
            code = 1;
        if (code == 1 && result != NULL)
            *result = json_incref(returned);
        const char *event = json_string_value(json_object_get(message, "event"));
        if (event != NULL && client->event != NULL)
            client->event(client->context, event, json_object_get(message, "data"));
        json_decref(message);
    }
    return code < 0 ? code : 0;
}

void client_on_event(struct client *client,
                     void (*event)(void *context, const char *event, const json_t *data),
                     void *context) {
    client->event = event;
    client->context = context;
}

int client_fd(const struct client *client) {
    return client->fd;
}

int client_take(struct client *client, json_t **message, struct error *err) {
    *message = NULL;
    while (memchr(client->buffer, '\n', client->length) == NULL) {
        int result = receive(client, 0, err);
        if (result < 0)
            return result == -ETIMEDOUT ? 0 : result;
    }
    *message = next_message(client, 0, err);
    return *message != NULL ? 0 : -EPROTO;
}

int client_wait(struct client *client, int fd, int ms) {
    struct pollfd watched[] = {{.fd = client->fd, .events = POLLRDHUP},
                               {.fd = fd, .events = POLLIN}};
    if (poll(watched, 2, ms) < 0)
        return 0;
    return watched[0].revents != 0 ? -ECONNRESET : 0;
}
