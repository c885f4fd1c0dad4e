#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "agent.h"

char *const default_environment[] = {
    (char[]){"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    (char[]){"HOME=/root"},
    (char[]){"USER=root"},
    (char[]){"SHELL=/bin/sh"},
    (char[]){"LANG=C.UTF-8"},
    NULL,
};

/* An EXEC frame, taken apart. The strings stay in the frame's copy. */
struct request {
    struct agent_exec exec;
    char *strings;
    char *arguments[AGENT_STRINGS_MAX + 1];
    char *environment[AGENT_STRINGS_MAX + 1];
    const char *directory;
};

/* The string at *at, ended by a zero within the payload; NULL when it is not. */
static char *take_string(char *strings, size_t length, size_t *at) {
    char *begin = strings + *at;
    char *end = memchr(begin, 0, length - *at);
    if (end == NULL)
        return NULL;
    *at = (size_t)(end + 1 - strings);
    return begin;
}

static bool take_strings(struct request *request, size_t length) {
    unsigned arguments = request->exec.argument_count;
    unsigned total = arguments + request->exec.environment_count;
    size_t at = 0;
    for (unsigned i = 0; i < total; i++) {
        char *string = take_string(request->strings, length, &at);
        if (string == NULL)
            return false;
        if (i < arguments)
            request->arguments[i] = string;
        else if (strchr(string, '=') != NULL)
            request->environment[i - arguments] = string;
        else
            return false;
    }
    request->directory = take_string(request->strings, length, &at);
    return request->directory != NULL && at == length;
}

static int parse(const uint8_t *payload, size_t length, struct request *request) {
    memset(request, 0, sizeof *request);
    if (length < sizeof request->exec)
        return -EBADMSG;
    memcpy(&request->exec, payload, sizeof request->exec);
    unsigned total = request->exec.argument_count + request->exec.environment_count;
    if (request->exec.argument_count == 0 || total > AGENT_STRINGS_MAX ||
        (request->exec.flags & ~(uint32_t)AGENT_EXEC_TTY) != 0)
        return -EBADMSG;
    length -= sizeof request->exec;
    request->strings = malloc(length + 1);
    if (request->strings == NULL)
        return -ENOMEM;
    memcpy(request->strings, payload + sizeof request->exec, length);
    return take_strings(request, length) ? 0 : -EBADMSG;
}

/* ---- In the child ---- */

static void set_environment(const struct request *request) {
    clearenv();
    for (unsigned i = 0; default_environment[i] != NULL; i++)
        putenv(default_environment[i]);
    for (unsigned i = 0; request->environment[i] != NULL; i++)
        putenv(request->environment[i]);
}

__attribute__((noreturn)) static void run(const struct request *request) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    set_environment(request);
    const char *directory = request->directory[0] != 0 ? request->directory : getenv("HOME");
    if (directory == NULL || chdir(directory) < 0) {
        if (request->directory[0] != 0) {
            fprintf(stderr, "%s: %s\n", directory, strerror(errno));
            _exit(AGENT_NOT_EXECUTABLE);
        }
        if (chdir("/") < 0)
            _exit(AGENT_NOT_EXECUTABLE);
    }
    execvp(request->arguments[0], request->arguments);
    int code = errno == ENOENT ? AGENT_NOT_FOUND : AGENT_NOT_EXECUTABLE;
    fprintf(stderr, "%s: %s\n", request->arguments[0],
            errno == ENOENT ? "command not found" : strerror(errno));
    _exit(code);
}

/* ---- Pipes and terminals ---- */

static void close_pair(int pair[2]) {
    for (int i = 0; i < 2; i++)
        if (pair[i] >= 0)
            close(pair[i]);
}

static void set_nonblocking(int fd) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static int spawn_with_pipes(const struct request *request, struct child *child) {
    int pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
    pid_t pid = -1;
    bool ready = true;
    for (int i = 0; i < 3 && ready; i++)
        ready = pipe2(pipes[i], O_CLOEXEC) == 0;
    if (ready)
        pid = fork();
    if (pid == 0) {
        setsid();
        dup2(pipes[0][0], STDIN_FILENO);
        dup2(pipes[1][1], STDOUT_FILENO);
        dup2(pipes[2][1], STDERR_FILENO);
        run(request);
    }
    int result = pid < 0 ? -errno : 0;
    if (result < 0) {
        for (int i = 0; i < 3; i++)
            close_pair(pipes[i]);
        return result;
    }
    close(pipes[0][0]);
    close(pipes[1][1]);
    close(pipes[2][1]);
    *child = (struct child){pid, pipes[0][1], pipes[1][0], pipes[2][0]};
    return 0;
}

/* A new pseudo-terminal's master, with the size that the request gives; its other end in *slave. */
static int open_terminal(const struct request *request, int *slave) {
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0)
        return -errno;
    char name[64];
    struct winsize size = {.ws_row = request->exec.rows, .ws_col = request->exec.columns};
    if (unlockpt(master) < 0 || ptsname_r(master, name, sizeof name) != 0 ||
        (*slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
        int result = -errno;
        close(master);
        return result;
    }
    ioctl(master, TIOCSWINSZ, &size);
    return master;
}

static int spawn_with_terminal(const struct request *request, struct child *child) {
    int slave = -1;
    int master = open_terminal(request, &slave);
    if (master < 0)
        return master;
    int out = fcntl(master, F_DUPFD_CLOEXEC, 0);
    pid_t pid = out < 0 ? -1 : fork();
    if (pid == 0) {
        setsid();
        ioctl(slave, TIOCSCTTY, 0);
        dup2(slave, STDIN_FILENO);
        dup2(slave, STDOUT_FILENO);
        dup2(slave, STDERR_FILENO);
        run(request);
    }
    int result = pid < 0 ? -errno : 0;
    close(slave);
    if (result < 0) {
        close(master);
        if (out >= 0)
            close(out);
        return result;
    }
    *child = (struct child){pid, master, out, -1};
    return 0;
}

int spawn(const uint8_t *payload, size_t length, struct child *child) {
    struct request *request = malloc(sizeof *request);
    if (request == NULL)
        return -ENOMEM;
    int result = parse(payload, length, request);
    if (result == 0)
        result = request->exec.flags & AGENT_EXEC_TTY ? spawn_with_terminal(request, child)
                                                      : spawn_with_pipes(request, child);
    if (result == 0) {
        set_nonblocking(child->in);
        set_nonblocking(child->out);
        if (child->err >= 0)
            set_nonblocking(child->err);
    }
    free(request->strings);
    free(request);
    return result;
}
