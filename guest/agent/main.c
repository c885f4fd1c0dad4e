#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static struct {
    int signals, listener, button;
    struct channel control;
    int64_t again_ms; /* not to be connected before */
    struct session *sessions[SESSIONS_MAX];
    unsigned session_count;
} agent;

void say(const char *format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    dprintf(STDERR_FILENO, "lodge-agent: %s\n", line);
}

/* ---- vsock ---- */

static int open_listener(void) {
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_port = AGENT_PORT, .svm_cid = VMADDR_CID_ANY};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, SESSIONS_MAX) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int connect_host(void) {
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_port = AGENT_PORT, .svm_cid = VMADDR_CID_HOST};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* Where time runs fast, Linux's two seconds for a connection may be over before the host has turned
 * to it. */
static int connect_host_patiently(void) {
    enum { TRIES = 100 };
    int fd = connect_host();
    for (int i = 1; fd < 0 && errno == ETIMEDOUT && i < TRIES; i++)
        fd = connect_host();
    return fd;
}

static void send_hello(void) {
    struct {
        uint32_t version;
        char release[65];
    } hello = {.version = AGENT_SPEAKS};
    struct utsname name;
    if (uname(&name) == 0)
        snprintf(hello.release, sizeof hello.release, "%s", name.release);
    channel_send(&agent.control, AGENT_HELLO, 0, &hello,
                 sizeof hello.version + strlen(hello.release));
}

/* ---- A console instead of a host: --console serial ---- */

/* The device behind /dev/console can be a controlling terminal, /dev/console itself cannot. */
static int open_console(void) {
    char active[128] = "", path[160];
    int fd = open("/sys/class/tty/console/active", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t length = read(fd, active, sizeof active - 1);
        active[length > 0 ? length : 0] = 0;
        close(fd);
    }
    active[strcspn(active, "\n")] = 0;
    const char *last = strrchr(active, ' ');
    snprintf(path, sizeof path, "/dev/%s", last != NULL ? last + 1 : active);
    fd = open(path, O_RDWR | O_CLOEXEC);
    return fd >= 0 ? fd : open("/dev/console", O_RDWR | O_CLOEXEC);
}

/* Those that ask for the end, of the machine or of a service. */
static void take_signals(void) {
    struct signalfd_siginfo info;
    while (read(agent.signals, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGTERM && getpid() != 1)
            exit(0);
        if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGPWR)
            power_off();
    }
}

static void take_button(void) {
    if (power_button_pressed(agent.button))
        power_off();
}

/* Reaps on the way. */
static bool has_ended(pid_t wanted) {
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        if (pid == wanted)
            return true;
    return pid < 0 && errno == ECHILD;
}

static void run_shell(void) {
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        setsid();
        int fd = open_console();
        ioctl(fd, TIOCSCTTY, 1);
        for (int i = 0; i < 3; i++)
            dup2(fd, i);
        if (chdir("/root") < 0 && chdir("/") < 0)
            _exit(1);
        execle("/bin/sh", "-sh", (char *)NULL, default_environment);
        _exit(127);
    }
    while (pid > 0 && !has_ended(pid)) {
        struct pollfd fds[] = {{agent.signals, POLLIN, 0}, {agent.button, POLLIN, 0}};
        if (poll(fds, 2, -1) < 0)
            continue;
        take_signals();
        if (fds[1].revents != 0)
            take_button();
    }
}

/* ---- The loop ---- */

static bool handle_control(void *context, const struct agent_header *header,
                           const uint8_t *payload) {
    if (header->type == AGENT_MOUNT) {
        uint32_t error = (uint32_t)-volume_mount(payload, header->length);
        channel_send(&agent.control, AGENT_MOUNTED, 0, &error, sizeof error);
        return true;
    }
    if (header->type == AGENT_RENEW && AGENT_SPEAKS >= AGENT_VERSION_RENEW) {
        renew(&agent.control, payload, header->length);
        agent.again_ms = 0; /* it may go on from a snapshot again, very soon */
        return true;
    }
    if (header->type == AGENT_IDENTITY && AGENT_SPEAKS >= AGENT_VERSION_IDENTITY)
        return identity_take(payload, header->length);
    if (header->type != AGENT_SHUTDOWN)
        return false;
    power_off();
    return true;
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (unsigned i = 0; i < agent.session_count; i++)
            if (session_reaped(agent.sessions[i], pid, status))
                break;
}

/* ---- Being found again: a machine that goes on from a snapshot has lost its connections ---- */

/*
 * Whoever wants a program run at once in such a machine does not wait for the connection, which
 * comes a little later then, and not in the way of the program's start.
 */
enum { SOON_MS = 4, BUSY_MS = 200, AGAIN_MS = 1000 };

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Not before so many ms from now, if it is lost. */
static void put_off_connection(int ms) {
    int64_t until = agent.control.fd < 0 ? now_ms() + ms : 0;
    if (agent.again_ms < until)
        agent.again_ms = until;
}

static void begin_control(int fd) {
    channel_init(&agent.control, fd);
    send_hello();
    channel_flush(&agent.control);
}

/* At once when the host has shown that it wants us, else every second. Answers for how many ms to
 * wait at most, -1: nothing is to be done. */
static int connect_again(void) {
    if (agent.control.fd >= 0)
        return -1;
    int64_t now = now_ms();
    if (now < agent.again_ms)
        return (int)(agent.again_ms - now);
    agent.again_ms = now + AGAIN_MS;
    int fd = connect_host();
    if (fd < 0)
        return AGAIN_MS;
    begin_control(fd);
    return -1;
}

/* ---- The loop's steps ---- */

static void accept_sessions(void) {
    while (agent.session_count < SESSIONS_MAX) {
        struct sockaddr_vm peer = {0};
        socklen_t size = sizeof peer;
        int fd =
            accept4(agent.listener, (struct sockaddr *)&peer, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            return;
        /* Only the host may run programs, no guest and no local process. */
        if (peer.svm_cid != VMADDR_CID_HOST) {
            close(fd);
            continue;
        }
        struct session *session = session_create(fd);
        if (session != NULL)
            agent.sessions[agent.session_count++] = session;
        put_off_connection(BUSY_MS);
    }
}

static void work_sessions(void) {
    for (unsigned i = 0; i < agent.session_count;) {
        if (session_work(agent.sessions[i])) {
            i++;
            continue;
        }
        session_destroy(agent.sessions[i]);
        agent.sessions[i] = agent.sessions[--agent.session_count];
    }
}

static void work_control(void) {
    if (agent.control.fd < 0)
        return;
    channel_receive(&agent.control, handle_control, NULL);
    channel_flush(&agent.control);
    if (agent.control.failed) {
        close(agent.control.fd);
        agent.control.fd = -1;
        put_off_connection(SOON_MS);
    }
}

static void serve(void) {
    enum { SIGNALS, BUTTON, LISTENER, CONTROL, OWN };
    for (;;) {
        int wait_ms = connect_again();
        struct pollfd fds[OWN + SESSIONS_MAX * SESSION_FDS];
        unsigned n = OWN;
        fds[SIGNALS] = (struct pollfd){agent.signals, POLLIN, 0};
        fds[BUTTON] = (struct pollfd){agent.button, POLLIN, 0};
        fds[LISTENER] =
            (struct pollfd){agent.session_count < SESSIONS_MAX ? agent.listener : -1, POLLIN, 0};
        fds[CONTROL] = (struct pollfd){
            agent.control.fd, agent.control.fd < 0 ? (short)0 : channel_events(&agent.control), 0};
        for (unsigned i = 0; i < agent.session_count; i++)
            n += session_poll(agent.sessions[i], fds + n);
        if (poll(fds, n, wait_ms) < 0) {
            if (errno != EINTR)
                say("poll: %s", strerror(errno));
            continue;
        }
        if (fds[SIGNALS].revents != 0) {
            take_signals();
            reap();
        }
        if (fds[BUTTON].revents != 0)
            take_button();
        if (fds[LISTENER].revents != 0)
            accept_sessions();
        if (fds[CONTROL].revents != 0)
            work_control();
        work_sessions();
    }
}

static int open_signals(void) {
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGPWR);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
}

int main(void) {
    bool is_init = getpid() == 1;
    if (is_init) {
        setup_mounts();
        setup_memory();
        setup_modules();
        setup_network();
    } else {
        setup_memory();
    }
    agent.signals = open_signals();
    agent.button = is_init ? power_button_open() : -1; /* elsewhere it is the init's */
    agent.listener = open_listener();
    int control = agent.listener < 0 ? -1 : connect_host_patiently();
    if (control < 0 && is_init) {
        run_shell();
        power_off();
        return 1;
    }
    if (control < 0) {
        say("no vsock to the host: %s", strerror(errno));
        return 1;
    }
    session_prepare();
    begin_control(control);
    serve();
}
