/* One program in the guest, its streams joined to file descriptors of the host. */
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/bytes.h"
#include "machine/agent_private.h"

/* A descriptor that poll() calls writable takes this much without blocking (pipe(7), PIPE_BUF). */
enum { WRITE_STEP = 4096 };

/* Where one output goes: buffered up to the credit that the agent has. */
struct output {
    struct agent_session *session;
    uint8_t stream;
    int fd;
    struct loop_fd *watch; /* only while the descriptor is full */
    uint8_t buffer[AGENT_WINDOW];
    size_t head, count;
    uint32_t credit_due;
    bool closed; /* nobody reads it: thrown away */
};

struct agent_session {
    struct agent *agent;
    struct agent_exec_config config;
    struct agent_channel channel;
    struct output outputs[2];
    struct loop_fd *in_watch; /* NULL: none, or a file that is always ready */
    bool in_open, in_end_due;
    uint32_t in_credit;
    void (*renewed)(void *context, int error, const char *what); /* until it is */
    bool over, told, posted, closed;
    int code;
};

/* ---- The end ---- */

/* Lets go of the caller's descriptors. */
static void unwatch(struct agent_session *session) {
    for (int i = 0; i < 2; i++)
        if (session->outputs[i].watch != NULL)
            loop_fd_remove(session->outputs[i].watch);
    if (session->in_watch != NULL)
        loop_fd_remove(session->in_watch);
    session->outputs[0].watch = session->outputs[1].watch = NULL;
    session->in_watch = NULL;
}

static void tell_ended(void *context) {
    struct agent_session *session = context;
    session->posted = false;
    if (session->closed)
        free(session);
    else if (session->config.ended != NULL)
        session->config.ended(session->config.context, session->code);
}

/* Told by way of the loop, so that the session may be closed there. */
static void check_ended(struct agent_session *session) {
    bool drained = session->outputs[0].count == 0 && session->outputs[1].count == 0;
    if (!session->over || !drained || session->told)
        return;
    session->told = true;
    session->posted = loop_post(session->agent->loop, tell_ended, session) == 0;
}

static void finish(struct agent_session *session, int code) {
    if (session->over)
        return;
    session->over = true;
    session->code = code;
    session->in_open = false;
    if (session->in_watch != NULL)
        loop_fd_set(session->in_watch, 0);
    check_ended(session);
}

/* ---- Output ---- */

static bool is_writable(int fd) {
    struct pollfd ready = {.fd = fd, .events = POLLOUT};
    return poll(&ready, 1, 0) == 1;
}

static void give_credit(struct output *output) {
    uint32_t due = output->credit_due;
    if (due < AGENT_WINDOW / 4 || output->session->over)
        return;
    if (agent_channel_send(&output->session->channel, AGENT_CREDIT, output->stream, &due,
                           sizeof due))
        output->credit_due = 0;
}

/* The reader went away: the program is told as it would be by a pipe. */
static void output_lost(struct output *output) {
    output->closed = true;
    agent_session_signal(output->session, SIGPIPE);
}

static ssize_t write_step(struct output *output) {
    size_t length = output->count;
    if (length > AGENT_WINDOW - output->head)
        length = AGENT_WINDOW - output->head;
    if (output->closed)
        return (ssize_t)length;
    if (length > WRITE_STEP)
        length = WRITE_STEP;
    if (!is_writable(output->fd))
        return -EAGAIN;
    ssize_t written = write(output->fd, output->buffer + output->head, length);
    if (written >= 0)
        return written;
    if (errno == EAGAIN || errno == EINTR)
        return -errno;
    output_lost(output);
    return (ssize_t)length;
}

static void on_writable(void *context, unsigned events);

static void watch_output(struct output *output, bool wanted) {
    struct loop *loop = output->session->agent->loop;
    if (output->watch != NULL)
        loop_fd_set(output->watch, wanted ? LOOP_WRITE : 0);
    else if (wanted && loop_fd_add(loop, output->fd, LOOP_WRITE, on_writable, output,
                                   &output->watch, NULL) < 0)
        output_lost(output);
}

static void flush_output(struct output *output) {
    while (output->count > 0) {
        ssize_t written = write_step(output);
        if (written == -EINTR)
            continue;
        if (written < 0)
            break;
        output->head = (output->head + (size_t)written) % AGENT_WINDOW;
        output->count -= (size_t)written;
        output->credit_due += (uint32_t)written;
    }
    watch_output(output, output->count > 0);
    give_credit(output);
    check_ended(output->session);
}

static void on_writable(void *context, unsigned events) {
    flush_output(context);
}

static bool take_output(struct output *output, const uint8_t *bytes, size_t length) {
    if (length > AGENT_WINDOW - output->count)
        return false; /* more than its credit */
    size_t at = (output->head + output->count) % AGENT_WINDOW;
    size_t first = length < AGENT_WINDOW - at ? length : AGENT_WINDOW - at;
    memcpy(output->buffer + at, bytes, first);
    memcpy(output->buffer, bytes + first, length - first);
    output->count += length;
    flush_output(output);
    return true;
}

/* ---- Input ---- */

static void end_input(struct agent_session *session) {
    session->in_open = false;
    session->in_end_due = !agent_channel_send(&session->channel, AGENT_END, AGENT_STDIN, NULL, 0);
    if (session->in_watch != NULL)
        loop_fd_set(session->in_watch, 0);
}

/* How much may be read now. */
static size_t input_room(const struct agent_session *session) {
    size_t room = agent_channel_room(&session->channel);
    return room < session->in_credit ? room : session->in_credit;
}

/* Reads once and passes it on. */
static void read_input(struct agent_session *session) {
    uint8_t bytes[AGENT_PAYLOAD_MAX];
    ssize_t got = read(session->config.in, bytes, input_room(session));
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        end_input(session);
        return;
    }
    size_t length = (size_t)got;
    if (session->config.filter != NULL)
        length = session->config.filter(session->config.context, bytes, length);
    if (length == 0)
        return;
    session->in_credit -= (uint32_t)length;
    agent_channel_send(&session->channel, AGENT_DATA, AGENT_STDIN, bytes, length);
}

/* Goes on as far as credit and room reach. */
static void pump_input(struct agent_session *session) {
    if (session->in_end_due && !session->over)
        end_input(session);
    if (session->in_watch != NULL) {
        bool wanted = session->in_open && input_room(session) > 0;
        loop_fd_set(session->in_watch, wanted ? LOOP_READ : 0);
        return;
    }
    while (session->in_open && input_room(session) > 0)
        read_input(session);
}

static void on_readable(void *context, unsigned events) {
    struct agent_session *session = context;
    if (session->in_open && input_room(session) > 0)
        read_input(session);
    pump_input(session);
}

/* ---- Frames ---- */

static bool on_data(struct agent_session *session, const struct agent_header *header,
                    const uint8_t *payload) {
    if (header->stream != AGENT_STDOUT && header->stream != AGENT_STDERR)
        return false;
    return take_output(&session->outputs[header->stream - AGENT_STDOUT], payload, header->length);
}

static bool on_credit(struct agent_session *session, const struct agent_header *header,
                      uint32_t more) {
    if (header->stream != AGENT_STDIN || more > AGENT_WINDOW - session->in_credit)
        return false;
    session->in_credit += more;
    pump_input(session);
    return true;
}

static void start_streams(struct agent_session *session);

static bool on_renewed(struct agent_session *session, const struct agent_header *header,
                       const uint8_t *payload) {
    void (*renewed)(void *context, int error, const char *what) = session->renewed;
    char what[AGENT_WHAT_MAX];
    int error;
    if (!agent_parse_renewed(header, payload, &error, what))
        return false;
    session->renewed = NULL;
    if (error == 0)
        start_streams(session);
    renewed(session->config.context, error, what);
    return true;
}

static bool on_frame(void *context, const struct agent_header *header, const uint8_t *payload) {
    struct agent_session *session = context;
    uint32_t number = header->length == sizeof number ? load_le32(payload) : UINT32_MAX;
    if (session->over)
        return false;
    if (session->renewed != NULL)
        return on_renewed(session, header, payload);
    switch (header->type) {
    case AGENT_DATA: return on_data(session, header, payload);
    case AGENT_CREDIT: return header->length == 4 && on_credit(session, header, number);
    case AGENT_EXIT:
        if (number > 255)
            return false;
        finish(session, (int)number);
        return true;
    default: return false;
    }
}

static void on_room(void *context) {
    struct agent_session *session = context;
    give_credit(&session->outputs[0]);
    give_credit(&session->outputs[1]);
    pump_input(session);
}

static void on_closed(void *context, int error) {
    finish(context, error != 0 ? error : -ECONNRESET);
}

static const struct agent_channel_events session_events = {
    .frame = on_frame, .room = on_room, .closed = on_closed};

/* ---- Starting ---- */

static unsigned count_strings(const char *const *strings) {
    unsigned count = 0;
    while (strings != NULL && strings[count] != NULL)
        count++;
    return count;
}

/* Appends strings with their zeros; false when they do not fit. */
static bool put_strings(uint8_t *payload, size_t *used, const char *const *strings) {
    for (unsigned i = 0; strings != NULL && strings[i] != NULL; i++) {
        size_t length = strlen(strings[i]) + 1;
        if (length > AGENT_PAYLOAD_MAX - *used)
            return false;
        memcpy(payload + *used, strings[i], length);
        *used += length;
    }
    return true;
}

static int send_exec(struct agent_session *session, struct error *err) {
    const struct agent_exec_config *config = &session->config;
    const char *const place[] = {config->directory != NULL ? config->directory : "",
                                 config->user != NULL ? config->user : "", NULL};
    uint8_t payload[AGENT_PAYLOAD_MAX];
    unsigned arguments = count_strings(config->arguments);
    unsigned environment = count_strings(config->environment);
    size_t used = sizeof(struct agent_exec);
    if (arguments + environment > AGENT_STRINGS_MAX ||
        !put_strings(payload, &used, config->arguments) ||
        !put_strings(payload, &used, config->environment) || !put_strings(payload, &used, place))
        return error_set(err, -E2BIG,
                         "the command is too long: lodge passes on %d KiB and %d arguments",
                         AGENT_PAYLOAD_MAX >> 10, AGENT_STRINGS_MAX);
    struct agent_exec exec = {
        .flags = config->terminal ? AGENT_EXEC_TTY : 0,
        .rows = config->rows,
        .columns = config->columns,
        .argument_count = (uint16_t)arguments,
        .environment_count = (uint16_t)environment,
    };
    memcpy(payload, &exec, sizeof exec);
    agent_channel_send(&session->channel, AGENT_EXEC, 0, payload, used);
    return 0;
}

static int send_renewal(struct agent_session *session, struct error *err) {
    const struct agent_exec_renewal *renewal = session->config.renewal;
    if (renewal == NULL)
        return 0;
    session->renewed = renewal->renewed;
    session->config.renewal = NULL;
    return agent_send_renew(&session->channel, renewal->renew, renewal->host_name) &&
                   agent_send_identity(&session->channel, renewal->identity)
               ? 0
               : error_set(err, -ENOBUFS, "no room to tell the guest who it is");
}

static void start_streams(struct agent_session *session) {
    const struct agent_exec_config *config = &session->config;
    for (int i = 0; i < 2; i++) {
        session->outputs[i].session = session;
        session->outputs[i].stream = (uint8_t)(AGENT_STDOUT + i);
        session->outputs[i].fd = i == 0 ? config->out : config->err;
    }
    session->in_credit = AGENT_WINDOW;
    session->in_open = config->in >= 0;
    if (!session->in_open)
        end_input(session);
    else /* fails for what is always ready, like a file */
        loop_fd_add(session->agent->loop, config->in, LOOP_READ, on_readable, session,
                    &session->in_watch, NULL);
    pump_input(session);
}

int agent_exec(struct agent *agent, const struct agent_exec_config *config,
               struct agent_session **session, struct error *err) {
    struct agent_session *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->agent = agent;
    made->config = *config;
    agent_channel_init(&made->channel, &session_events, made);
    int result = vsock_connect(agent->vsock, AGENT_PORT, &agent_channel_ops, &made->channel,
                               &made->channel.conn, err);
    if (result == 0)
        result = send_renewal(made, err);
    if (result == 0)
        result = send_exec(made, err);
    if (result < 0) {
        agent_session_close(made);
        return result;
    }
    if (made->renewed == NULL)
        start_streams(made);
    *session = made;
    return 0;
}

void agent_session_signal(struct agent_session *session, unsigned number) {
    uint32_t value = number;
    if (!session->over)
        agent_channel_send(&session->channel, AGENT_SIGNAL, 0, &value, sizeof value);
}

void agent_session_resize(struct agent_session *session, uint16_t rows, uint16_t columns) {
    uint16_t size[2] = {rows, columns};
    if (!session->over)
        agent_channel_send(&session->channel, AGENT_WINDOW_SIZE, 0, size, sizeof size);
}

void agent_session_close(struct agent_session *session) {
    if (session == NULL)
        return;
    session->closed = true;
    unwatch(session);
    agent_channel_close(&session->channel);
    if (!session->posted)
        free(session);
}
