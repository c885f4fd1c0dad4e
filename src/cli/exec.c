#include "cli/exec.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "cli/relay.h"
#include "cli/terminal.h"

enum { STREAMS = 3 };

struct exec {
    struct client *client;
    const struct exec_request *request;
    json_int_t session;
    struct relay relays[STREAMS]; /* input, output, error */
    struct terminal_escape escape;
    int signals;
    bool ended, left;
    int code;
    struct error *err;
};

static void close_end(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* ---- Starting ---- */

/* Pipes whose other ends go to the monitor. */
static int make_pipes(struct exec *exec, int theirs[STREAMS], struct error *err) {
    const struct exec_request *request = exec->request;
    const int ours[STREAMS] = {request->in, request->out, request->err};
    for (int i = 0; i < STREAMS; i++) {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) < 0)
            return error_set_errno(err, -errno, "pipe");
        struct relay *relay = &exec->relays[i];
        theirs[i] = ends[i != 0];
        relay->from = i == 0 ? ours[i] : ends[0];
        relay->to = i == 0 ? ends[1] : ours[i];
    }
    if (request->in < 0) {
        exec->relays[0].ended = true;
        close_end(&exec->relays[0].to);
    }
    return 0;
}

static void add_size(json_t *arguments) {
    uint16_t rows, columns;
    terminal_size(&rows, &columns);
    json_object_set_new(arguments, "rows", json_integer(rows));
    json_object_set_new(arguments, "columns", json_integer(columns));
}

static int start(struct exec *exec, struct error *err) {
    int theirs[STREAMS] = {-1, -1, -1};
    json_t *reply = NULL;
    int result = make_pipes(exec, theirs, err);
    if (exec->request->terminal)
        add_size(exec->request->arguments);
    if (result == 0)
        result = client_call_with(exec->client, "exec", json_incref(exec->request->arguments),
                                  theirs, STREAMS, &reply, err);
    for (int i = 0; i < STREAMS; i++)
        close_end(&theirs[i]);
    exec->session = json_integer_value(json_object_get(reply, "session"));
    json_decref(reply);
    return result;
}

/* ---- While it runs ---- */

static void tell(struct exec *exec, const char *command, json_t *arguments) {
    json_object_set_new(arguments, "session", json_integer(exec->session));
    client_send(exec->client, command, arguments, NULL);
}

static size_t on_input(void *context, uint8_t *bytes, size_t length) {
    struct exec *exec = context;
    return terminal_filter(&exec->escape, bytes, length, &exec->left);
}

static void on_signals(struct exec *exec) {
    struct signalfd_siginfo info;
    if (read(exec->signals, &info, sizeof info) != sizeof info)
        return;
    json_t *arguments = json_object();
    if (info.ssi_signo == SIGWINCH) {
        add_size(arguments);
        tell(exec, "exec-resize", arguments);
    } else {
        json_object_set_new(arguments, "signal", json_integer(info.ssi_signo));
        tell(exec, "exec-signal", arguments);
    }
}

/* "The program has ended" of ours; everything else is passed over. */
static int on_message(struct exec *exec, const json_t *message) {
    const char *event = json_string_value(json_object_get(message, "event"));
    const json_t *data = json_object_get(message, "data");
    if (event == NULL || strcmp(event, "EXEC_ENDED") != 0 ||
        json_integer_value(json_object_get(data, "session")) != exec->session)
        return 0;
    const char *error = json_string_value(json_object_get(data, "error"));
    if (error != NULL)
        return error_set(exec->err, -ECONNRESET, "the connection to the guest's agent broke: %s",
                         error);
    exec->ended = true;
    exec->code = (int)json_integer_value(json_object_get(data, "code"));
    return 0;
}

static int on_client(struct exec *exec) {
    json_t *message;
    int result;
    do {
        result = client_take(exec->client, &message, exec->err);
        bool more = message != NULL;
        if (result == 0 && more)
            result = on_message(exec, message);
        json_decref(message);
        if (!more)
            break;
    } while (result == 0);
    return result;
}

/* What is through is closed, so that the other side sees it. */
static void close_ended(struct exec *exec) {
    if (exec->relays[0].ended)
        close_end(&exec->relays[0].to);
    for (int i = 1; i < STREAMS; i++)
        if (exec->relays[i].ended)
            close_end(&exec->relays[i].from);
}

static bool is_over(const struct exec *exec) {
    return exec->left || (exec->ended && exec->relays[1].ended && exec->relays[2].ended);
}

static int serve(struct exec *exec) {
    int result = on_client(exec); /* some may have come with the answer */
    while (result == 0 && !is_over(exec)) {
        struct pollfd fds[STREAMS + 2];
        for (int i = 0; i < STREAMS; i++)
            fds[i] = relay_poll(&exec->relays[i]);
        fds[STREAMS] = (struct pollfd){client_fd(exec->client), POLLIN, 0};
        fds[STREAMS + 1] = (struct pollfd){exec->signals, POLLIN, 0};
        if (exec->ended) /* its input goes nowhere, and its monitor may be ending */
            fds[0].fd = fds[STREAMS].fd = -1;
        if (poll(fds, STREAMS + 2, -1) < 0)
            continue;
        for (int i = 0; i < STREAMS; i++)
            relay_work(&exec->relays[i], fds[i].revents);
        close_ended(exec);
        if (fds[STREAMS + 1].revents != 0)
            on_signals(exec);
        if (fds[STREAMS].revents != 0)
            result = on_client(exec);
    }
    return result;
}

static int open_signals(sigset_t *old, struct error *err) {
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGINT);
    sigaddset(&wanted, SIGTERM);
    sigaddset(&wanted, SIGWINCH);
    sigprocmask(SIG_BLOCK, &wanted, old);
    int fd = signalfd(-1, &wanted, SFD_CLOEXEC);
    return fd < 0 ? error_set_errno(err, -errno, "signals") : fd;
}

int exec_run(struct client *client, const struct exec_request *request, int *code,
             struct error *err) {
    struct exec exec = {.client = client, .request = request, .err = err, .signals = -1};
    sigset_t old;
    for (int i = 0; i < STREAMS; i++)
        exec.relays[i].from = exec.relays[i].to = -1;
    int result = exec.signals = open_signals(&old, err);
    if (result >= 0)
        result = start(&exec, err);
    if (result == 0 && request->terminal) {
        exec.relays[0].filter = on_input;
        exec.relays[0].context = &exec;
        result = terminal_raw(err);
    }
    if (result == 0)
        result = serve(&exec);
    if (request->terminal)
        terminal_restore();
    close_end(&exec.relays[0].to);
    close_end(&exec.relays[1].from);
    close_end(&exec.relays[2].from);
    close_end(&exec.signals);
    sigprocmask(SIG_SETMASK, &old, NULL);
    json_decref(request->arguments);
    *code = exec.code;
    return result;
}
