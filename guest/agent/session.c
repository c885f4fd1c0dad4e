#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

struct session {
    struct channel channel;
    struct child child; /* pid 0: none yet */
    bool exited, finished;
    uint32_t exit_code;
    uint32_t credit[AGENT_STREAMS]; /* what the host takes of our output */
    /* Standard input that the program has not taken yet: at most what we gave credit for. */
    uint8_t input[AGENT_WINDOW];
    size_t input_used, input_taken;
    bool input_ends;
    uint32_t credit_due; /* taken, not yet told to the host */
};

/* Memory that the next one may have: a large piece each time would cost more than a short program's
 * start. */
static struct session *spare;

static struct session *begin(struct session *session, int fd) {
    channel_init(&session->channel, fd);
    session->child = (struct child){0, -1, -1, -1};
    session->exited = session->finished = session->input_ends = false;
    session->exit_code = session->credit_due = 0;
    session->credit[AGENT_STDIN] = 0;
    session->credit[AGENT_STDOUT] = session->credit[AGENT_STDERR] = AGENT_WINDOW;
    session->input_used = session->input_taken = 0;
    return session;
}

void session_prepare(void) {
    spare = malloc(sizeof *spare);
    if (spare == NULL)
        return;
    begin(spare, -1);
    spare->channel.in[0] = spare->channel.out[0] = 0; /* their pages are there, too */
}

struct session *session_create(int fd) {
    struct session *session = spare != NULL ? spare : malloc(sizeof *session);
    spare = NULL;
    if (session == NULL)
        close(fd);
    return session != NULL ? begin(session, fd) : NULL;
}

static void close_end(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void session_destroy(struct session *session) {
    if (session->child.pid > 0 && !session->exited) {
        kill(-session->child.pid, SIGHUP);
        kill(-session->child.pid, SIGCONT);
    }
    close_end(&session->child.in);
    close_end(&session->child.out);
    close_end(&session->child.err);
    close(session->channel.fd);
    free(spare);
    spare = session;
}

static void send_u32(struct session *session, uint8_t type, uint8_t stream, uint32_t value) {
    channel_send(&session->channel, type, stream, &value, sizeof value);
}

/* ---- Frames from the host ---- */

static bool handle_exec(struct session *session, const uint8_t *payload, size_t length) {
    if (session->child.pid != 0)
        return false;
    int result = spawn(payload, length, &session->child);
    if (result == -EBADMSG)
        return false;
    if (result < 0) {
        say("cannot start a program: %s", strerror(-result));
        session->child.pid = -1;
        session->exited = true;
        session->exit_code = AGENT_NOT_EXECUTABLE;
    }
    return true;
}

/* What a machine that goes on from a snapshot is told before its first program. */
static bool handle_before(struct session *session, const struct agent_header *header,
                          const uint8_t *payload) {
    if (AGENT_SPEAKS < AGENT_VERSION_AT_ONCE)
        return false;
    if (header->type == AGENT_IDENTITY)
        return identity_take(payload, header->length);
    if (header->type != AGENT_RENEW)
        return false;
    bool renewed = renew(&session->channel, payload, header->length);
    channel_flush(&session->channel); /* the host waits, or hears why there is nothing more */
    return renewed;
}

static bool handle_data(struct session *session, const uint8_t *payload, size_t length) {
    /* Beyond the credit that was given, or after END: a broken rule. */
    if (session->input_ends || length > sizeof session->input - session->input_used)
        return false;
    memcpy(session->input + session->input_used, payload, length);
    session->input_used += length;
    return true;
}

static bool handle_credit(struct session *session, uint8_t stream, uint32_t more) {
    if (more > UINT32_MAX - session->credit[stream])
        return false;
    session->credit[stream] += more;
    return true;
}

static void handle_signal(struct session *session, uint32_t number) {
    if (session->child.pid > 0 && !session->exited && number > 0 && number < (uint32_t)SIGRTMAX)
        kill(-session->child.pid, (int)number);
}

static void handle_window(struct session *session, const uint8_t *payload) {
    uint16_t size[2];
    memcpy(size, payload, sizeof size);
    struct winsize window = {.ws_row = size[0], .ws_col = size[1]};
    if (session->child.err < 0 && session->child.out >= 0)
        ioctl(session->child.out, TIOCSWINSZ, &window);
}

static bool handle_frame(void *context, const struct agent_header *header, const uint8_t *payload) {
    struct session *session = context;
    uint32_t number = 0;
    if (header->length == sizeof number)
        memcpy(&number, payload, sizeof number);
    if (header->type == AGENT_EXEC)
        return handle_exec(session, payload, header->length);
    if (session->child.pid == 0)
        return handle_before(session, header, payload);
    switch (header->type) {
    case AGENT_DATA: return handle_data(session, payload, header->length);
    case AGENT_END: session->input_ends = true; return header->length == 0;
    case AGENT_CREDIT: return header->length == 4 && handle_credit(session, header->stream, number);
    case AGENT_SIGNAL: handle_signal(session, number); return header->length == 4;
    case AGENT_WINDOW_SIZE:
        if (header->length != 4)
            return false;
        handle_window(session, payload);
        return true;
    default: return false;
    }
}

/* ---- The program's ends ---- */

/* A terminal has no end to close: Ctrl-D is how its reader is told. */
static void end_input(struct session *session) {
    if (session->child.err < 0 && session->child.in >= 0)
        (void)!write(session->child.in, "\004", 1);
    close_end(&session->child.in);
}

static void give_input(struct session *session) {
    while (session->input_taken < session->input_used) {
        size_t left = session->input_used - session->input_taken;
        ssize_t n = session->child.in < 0
                        ? (ssize_t)left /* nobody reads it any more */
                        : write(session->child.in, session->input + session->input_taken, left);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (n < 0) {
            close_end(&session->child.in);
            continue;
        }
        session->input_taken += (size_t)n;
        session->credit_due += (uint32_t)n;
    }
    memmove(session->input, session->input + session->input_taken,
            session->input_used - session->input_taken);
    session->input_used -= session->input_taken;
    session->input_taken = 0;
    if (session->input_used == 0 && session->input_ends)
        end_input(session);
    if (session->credit_due >= AGENT_WINDOW / 4 && channel_room(&session->channel) >= 4) {
        send_u32(session, AGENT_CREDIT, AGENT_STDIN, session->credit_due);
        session->credit_due = 0;
    }
}

/* Passes on what one output has; true when it is drained (for now, or for ever). */
static bool take_output(struct session *session, int *fd, uint8_t stream) {
    static uint8_t buffer[AGENT_PAYLOAD_MAX];
    while (*fd >= 0) {
        size_t room = channel_room(&session->channel);
        if (room > session->credit[stream])
            room = session->credit[stream];
        if (room == 0)
            return false;
        ssize_t got = read(*fd, buffer, room);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return true;
        if (got <= 0) { /* EIO: the last holder of a terminal's other end is gone */
            close_end(fd);
            break;
        }
        channel_send(&session->channel, AGENT_DATA, stream, buffer, (size_t)got);
        session->credit[stream] -= (uint32_t)got;
        channel_flush(&session->channel);
    }
    return true;
}

bool session_reaped(struct session *session, pid_t pid, int status) {
    if (session->child.pid != pid || session->exited)
        return false;
    session->exited = true;
    session->exit_code = WIFSIGNALED(status) ? AGENT_BY_SIGNAL + (uint32_t)WTERMSIG(status)
                                             : (uint32_t)WEXITSTATUS(status);
    return true;
}

unsigned session_poll(struct session *session, struct pollfd fds[SESSION_FDS]) {
    unsigned n = 0;
    bool room = channel_room(&session->channel) > 0;
    fds[n++] = (struct pollfd){session->channel.fd, channel_events(&session->channel), 0};
    if (session->child.in >= 0 && session->input_used > 0)
        fds[n++] = (struct pollfd){session->child.in, POLLOUT, 0};
    if (session->child.out >= 0 && room && session->credit[AGENT_STDOUT] > 0)
        fds[n++] = (struct pollfd){session->child.out, POLLIN, 0};
    if (session->child.err >= 0 && room && session->credit[AGENT_STDERR] > 0)
        fds[n++] = (struct pollfd){session->child.err, POLLIN, 0};
    return n;
}

bool session_work(struct session *session) {
    bool gone = session->exited;
    channel_receive(&session->channel, handle_frame, session);
    if (session->child.pid != 0 && !session->finished) {
        give_input(session);
        bool drained = take_output(session, &session->child.err, AGENT_STDERR);
        drained = take_output(session, &session->child.out, AGENT_STDOUT) && drained;
        /* `gone` was read before the outputs: what it wrote last has been taken. */
        if (gone && drained && channel_room(&session->channel) >= 4) {
            send_u32(session, AGENT_EXIT, 0, session->exit_code);
            session->finished = true;
        }
    }
    bool flushed = channel_flush(&session->channel);
    return !session->channel.failed && !(session->finished && flushed);
}
