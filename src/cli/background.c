#include "cli/background.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { UP = 0xff }; /* any other byte on the socket is an exit code; no monitor ends with 255 */

struct background {
    int starter; /* the socket's end; -1: nobody waits any more */
    int log;
    struct loop_fd *watch;
    loop_handler *gone;
    void *context;
};

/* ---- In the monitor ---- */

static void on_starter(void *context, unsigned events) {
    struct background *background = context;
    loop_fd_set(background->watch, 0);
    background->gone(background->context);
}

int background_watch(struct background *background, struct loop *loop, loop_handler *gone,
                     void *context, struct error *err) {
    background->gone = gone;
    background->context = context;
    return loop_fd_add(loop, background->starter, LOOP_HANGUP, on_starter, background,
                       &background->watch, err);
}

void background_unwatch(struct background *background) {
    if (background->watch != NULL)
        loop_fd_remove(background->watch);
    background->watch = NULL;
}

static void tell(struct background *background, uint8_t word) {
    if (background->starter >= 0 && send(background->starter, &word, 1, MSG_NOSIGNAL) < 0)
        word = 0; /* nobody waits */
}

void background_ready(struct background *background) {
    if (background->starter < 0)
        return;
    background_unwatch(background);
    dup2(background->log, STDERR_FILENO);
    tell(background, UP);
    close(background->starter);
    background->starter = -1;
}

/* What the starter was given by its own parent: unlike all that lodge opens, that stays open on
 * exec. A lock or a pipe of a script is not to last as long as the VM. */
static void close_inherited(void) {
    DIR *list = opendir("/proc/self/fd");
    struct dirent *entry;
    while (list != NULL && (entry = readdir(list)) != NULL) {
        int fd = atoi(entry->d_name), flags = fcntl(fd, F_GETFD);
        if (fd > STDERR_FILENO && flags >= 0 && !(flags & FD_CLOEXEC))
            close(fd);
    }
    if (list != NULL)
        closedir(list);
}

/* The log, open; -1 when something is wrong, which has been said. */
static int detach(const char *log, int error_pipe) {
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int file = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (null < 0 || file < 0) {
        dprintf(error_pipe, "lodge: %s: %s\n", log, strerror(errno));
        return -1;
    }
    dup2(null, STDIN_FILENO);
    dup2(file, STDOUT_FILENO);
    dup2(error_pipe, STDERR_FILENO);
    close_inherited();
    close(null);
    close(error_pipe);
    if (chdir("/") < 0)
        return -1;
    signal(SIGHUP, SIG_IGN);
    return file;
}

/* The second fork leaves the session without a leader, so that it never gets a terminal. */
__attribute__((noreturn)) static void
become_monitor(const char *log, int socket, int error_pipe,
               int (*monitor)(void *context, struct background *background), void *context) {
    setsid();
    pid_t pid = fork();
    if (pid != 0)
        _exit(pid < 0);
    struct background background = {.starter = socket, .log = detach(log, error_pipe)};
    int code = background.log < 0 ? 1 : monitor(context, &background);
    fflush(NULL);
    tell(&background, (uint8_t)code);
    _exit(code);
}

/* ---- In the starter ---- */

/* Passes on what is in the pipe. False: its end. */
static bool pass_on(int from) {
    char text[4096];
    ssize_t got = read(from, text, sizeof text);
    if (got < 0)
        return errno == EINTR || errno == EAGAIN;
    for (ssize_t done = 0, more; done < got; done += more)
        if ((more = write(STDERR_FILENO, text + done, (size_t)(got - done))) <= 0)
            break;
    return got > 0;
}

/* The monitor's word; -1: it ended without one. */
static int wait_for_word(int socket, int errors) {
    struct pollfd fds[] = {{.fd = socket, .events = POLLIN}, {.fd = errors, .events = POLLIN}};
    uint8_t word;
    ssize_t got;
    for (;;) {
        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[1].revents != 0 && !pass_on(errors))
            fds[1].fd = -1;
        if (fds[0].revents == 0)
            continue;
        got = recv(socket, &word, 1, 0);
        if (got >= 0 || errno != EINTR)
            break;
    }
    /* What it said before that. */
    fcntl(errors, F_SETFL, O_NONBLOCK);
    for (struct pollfd rest = {.fd = errors, .events = POLLIN};
         fds[1].fd >= 0 && poll(&rest, 1, 0) == 1 && pass_on(errors);)
        ;
    return got == 1 ? word : -1;
}

int background_start(const char *log, int (*monitor)(void *context, struct background *background),
                     void *context, struct error *err) {
    int sockets[2], errors[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) < 0)
        return error_set_errno(err, -errno, "socket");
    if (pipe2(errors, O_CLOEXEC) < 0) {
        close(sockets[0]);
        close(sockets[1]);
        return error_set_errno(err, -errno, "pipe");
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        close(sockets[0]);
        close(errors[0]);
        become_monitor(log, sockets[1], errors[1], monitor, context);
    }
    int result = pid < 0 ? error_set_errno(err, -errno, "fork") : 0;
    close(sockets[1]);
    close(errors[1]);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    int word = result == 0 ? wait_for_word(sockets[0], errors[0]) : 0;
    if (word == -1)
        result = error_set(err, -ECONNRESET, "the VM's monitor was killed; see %s", log);
    else if (result == 0)
        result = word == UP ? 0 : word == 0 ? 1 : word;
    close(sockets[0]);
    close(errors[0]);
    return result;
}
