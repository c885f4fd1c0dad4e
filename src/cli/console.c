#include "cli/console.h"

#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli/relay.h"
#include "cli/terminal.h"
#include "cli/vm.h"

struct console_view {
    struct relay in, out;
    struct terminal_escape escape;
    bool left;
};

static size_t on_input(void *context, uint8_t *bytes, size_t length) {
    struct console_view *view = context;
    return terminal_filter(&view->escape, bytes, length, &view->left);
}

/* Until the socket ends. Input may end before. */
static void serve(struct console_view *view) {
    while (!view->left && !view->out.ended) {
        struct pollfd fds[] = {relay_poll(&view->out), relay_poll(&view->in)};
        if (poll(fds, 2, -1) < 0)
            continue;
        relay_work(&view->out, fds[0].revents);
        relay_work(&view->in, fds[1].revents);
    }
}

static int open_console(const char *name, bool write, size_t history, int socket,
                        struct error *err) {
    struct client *client;
    int result = vm_connect(name, &client, err);
    if (result < 0)
        return result;
    json_t *arguments = json_pack("{s:b, s:I}", "write", write, "history", (json_int_t)history);
    result = client_call_with(client, "console-attach", arguments, &socket, 1, NULL, err);
    client_close(client);
    return result;
}

int console_attach(const char *name, bool write, size_t history, struct error *err) {
    struct console_view view = {0};
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) < 0)
        return error_set_errno(err, -errno, "socket");
    int result = open_console(name, write, history, sockets[1], err);
    close(sockets[1]);
    bool terminal = write && terminal_is_there();
    if (result == 0 && terminal) {
        fprintf(stderr, "lodge: " TERMINAL_ESCAPE_HELP "\n");
        result = terminal_raw(err);
    }
    view.out = (struct relay){.from = sockets[0], .to = STDOUT_FILENO};
    view.in = (struct relay){.from = STDIN_FILENO, .to = sockets[0], .ended = !write};
    if (terminal) {
        view.in.filter = on_input;
        view.in.context = &view;
    }
    if (result == 0)
        serve(&view);
    if (terminal)
        terminal_restore();
    close(sockets[0]);
    return result;
}
