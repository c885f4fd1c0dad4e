#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
    const char *directory, *user;
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
    if (request->directory == NULL)
        return false;
    request->user = take_string(request->strings, length, &at);
    return request->user != NULL && at == length;
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

/* ---- In the child: errors are the program's, on its standard error ---- */

static void set_environment(const struct request *request) {
    clearenv();
    for (unsigned i = 0; default_environment[i] != NULL; i++)
        putenv(default_environment[i]);
    for (unsigned i = 0; request->environment[i] != NULL; i++)
        putenv(request->environment[i]);
}

__attribute__((noreturn)) static void refuse(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    _exit(AGENT_NOT_EXECUTABLE);
}

static bool is_number(const char *text, unsigned *number) {
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    *number = (unsigned)value;
    return text[0] >= '0' && text[0] <= '9' && *end == 0 && value < UINT32_MAX;
}

/* By /etc/passwd and /etc/group alone: a static program has no other name services. */
static const struct passwd *find_user(const char *name) {
    unsigned number;
    bool by_number = is_number(name, &number);
    FILE *file = fopen("/etc/passwd", "re");
    const struct passwd *user;
    while (file != NULL && (user = fgetpwent(file)) != NULL)
        if (by_number ? user->pw_uid == number : strcmp(user->pw_name, name) == 0)
            return user; /* the file stays open: this process is about to become another */
    return NULL;
}

static gid_t find_group(const char *name) {
    unsigned number;
    FILE *file = fopen("/etc/group", "re");
    const struct group *group;
    if (is_number(name, &number))
        return number;
    while (file != NULL && (group = fgetgrent(file)) != NULL)
        if (strcmp(group->gr_name, name) == 0)
            return group->gr_gid;
    refuse(name, "the guest has no such group");
}

/* The groups that list the user, and its own. */
static void join_groups(const char *user, gid_t own) {
    enum { GROUPS = 64 };
    gid_t groups[GROUPS] = {own};
    size_t count = 1;
    FILE *file = fopen("/etc/group", "re");
    const struct group *group;
    while (file != NULL && user != NULL && (group = fgetgrent(file)) != NULL)
        for (char **member = group->gr_mem; *member != NULL && count < GROUPS; member++)
            if (strcmp(*member, user) == 0)
                groups[count++] = group->gr_gid;
    if (setgroups(count, groups) < 0)
        refuse("groups", strerror(errno));
}

static void set_unless_asked(const struct request *request, const char *name, const char *value) {
    size_t length = strlen(name);
    for (unsigned i = 0; request->environment[i] != NULL; i++)
        if (strncmp(request->environment[i], name, length) == 0 &&
            request->environment[i][length] == '=')
            return;
    setenv(name, value, 1);
}

/* Turns into the user that the request names. */
static void become(const struct request *request) {
    char name[256];
    unsigned uid;
    if (request->user[0] == 0)
        return;
    const char *colon = strchr(request->user, ':');
    snprintf(name, sizeof name, "%.*s",
             colon != NULL ? (int)(colon - request->user) : (int)strlen(request->user),
             request->user);
    const struct passwd *user = find_user(name);
    if (user == NULL && !is_number(name, &uid))
        refuse(name, "the guest has no such user");
    if (user != NULL) {
        uid = user->pw_uid;
        set_unless_asked(request, "HOME", user->pw_dir);
        set_unless_asked(request, "USER", user->pw_name);
        set_unless_asked(request, "SHELL", user->pw_shell);
    }
    gid_t group = colon != NULL ? find_group(colon + 1) : user != NULL ? user->pw_gid : 0;
    if (isatty(STDIN_FILENO) && fchown(STDIN_FILENO, uid, (gid_t)-1) < 0)
        refuse("terminal", strerror(errno));
    join_groups(user != NULL && colon == NULL ? user->pw_name : NULL, group);
    if (setgid(group) < 0 || setuid(uid) < 0)
        refuse(request->user, strerror(errno));
}

/* Runs the first of the name that there is. Asking costs the kernel far less than an execve that
 * fails. Returns when there is none, or one that only execvp() knows how to run. */
static void run_found(const char *name, char *const *arguments) {
    const char *from = strchr(name, '/') == NULL ? getenv("PATH") : NULL;
    char path[4096];
    while (from != NULL) {
        const char *end = strchrnul(from, ':');
        int length = snprintf(path, sizeof path, "%.*s/%s", (int)(end - from), from, name);
        if (end > from && length < (int)sizeof path && access(path, X_OK) == 0)
            execv(path, arguments);
        from = *end != 0 ? end + 1 : NULL;
    }
}

__attribute__((noreturn)) static void run(const struct request *request) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    set_environment(request);
    become(request);
    const char *directory = request->directory[0] != 0 ? request->directory : getenv("HOME");
    if (directory == NULL || chdir(directory) < 0) {
        if (request->directory[0] != 0) {
            fprintf(stderr, "%s: %s\n", directory, strerror(errno));
            _exit(AGENT_NOT_EXECUTABLE);
        }
        if (chdir("/") < 0)
            _exit(AGENT_NOT_EXECUTABLE);
    }
    run_found(request->arguments[0], request->arguments);
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

/* The program's ends of its pipes. */
struct start {
    const struct request *request;
    int in, out, err;
};

static int start_program(void *context) {
    const struct start *start = context;
    setsid();
    dup2(start->in, STDIN_FILENO);
    dup2(start->out, STDOUT_FILENO);
    dup2(start->err, STDERR_FILENO);
    run(start->request);
}

/* A copy of the agent would be a fifth of a short program's work, so the child is in its memory
 * until it is another program, and the agent waits. Who becomes another user first reads files, for
 * which it has memory of its own. */
static pid_t start_child(struct start *start) {
    static _Alignas(16) uint8_t stack[64 << 10];
    if (start->request->user[0] == 0)
        return clone(start_program, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, start);
    pid_t pid = fork();
    if (pid == 0)
        start_program(start);
    return pid;
}

static int spawn_with_pipes(const struct request *request, struct child *child) {
    int pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
    pid_t pid = -1;
    bool ready = true;
    for (int i = 0; i < 3 && ready; i++)
        ready = pipe2(pipes[i], O_CLOEXEC) == 0;
    struct start start = {request, pipes[0][0], pipes[1][1], pipes[2][1]};
    if (ready)
        pid = start_child(&start);
    int result = pid < 0 ? -errno : 0;
    clearenv(); /* which the child has set for both */
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
