#include "image/file.h"

#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Files ---- */

static int read_all(int fd, const char *path, struct file_bytes *bytes, struct error *err) {
    struct stat status;
    if (fstat(fd, &status) < 0)
        return error_set_errno(err, -errno, "%s", path);
    if (!S_ISREG(status.st_mode) || status.st_size > FILE_BYTES_MAX)
        return error_set(err, -EINVAL, "%s: not a regular file of a sensible size", path);
    bytes->data = malloc((size_t)status.st_size + 1);
    if (bytes->data == NULL)
        return error_set(err, -ENOMEM, "%s: out of memory", path);
    while (bytes->length < (size_t)status.st_size) {
        ssize_t got = read(fd, bytes->data + bytes->length, (size_t)status.st_size - bytes->length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set_errno(err, -errno, "%s", path);
        if (got == 0)
            return error_set(err, -EIO, "%s: it became shorter while it was read", path);
        bytes->length += (size_t)got;
    }
    return 0;
}

int file_read(const char *path, struct file_bytes *bytes, struct error *err) {
    *bytes = (struct file_bytes){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, -errno, "%s", path);
    int result = read_all(fd, path, bytes, err);
    close(fd);
    if (result < 0)
        file_free(bytes);
    return result;
}

void file_free(struct file_bytes *bytes) {
    free(bytes->data);
    *bytes = (struct file_bytes){0};
}

static int write_all(int fd, const uint8_t *data, size_t length) {
    while (length > 0) {
        ssize_t done = write(fd, data, length);
        if (done < 0 && errno != EINTR)
            return -errno;
        data += done > 0 ? done : 0;
        length -= done > 0 ? (size_t)done : 0;
    }
    return fsync(fd) < 0 ? -errno : 0;
}

static int sync_directory(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return result;
}

int file_replace(const char *directory, const char *name, const void *data, size_t length,
                 struct error *err) {
    char path[PATH_MAX], new_path[PATH_MAX], new_name[NAME_MAX + 1];
    snprintf(new_name, sizeof new_name, ".%.200s.new", name);
    int result = path_join(path, directory, name, err);
    if (result == 0)
        result = path_join(new_path, directory, new_name, err);
    if (result < 0)
        return result;
    int fd = open(new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    result = fd < 0 ? -errno : write_all(fd, data, length);
    if (fd >= 0)
        close(fd);
    if (result == 0 && rename(new_path, path) < 0)
        result = -errno;
    if (result == 0)
        result = sync_directory(directory);
    else if (fd >= 0)
        unlink(new_path);
    return result < 0 ? error_set_errno(err, result, "%s", path) : 0;
}

int path_join(char *path, const char *parent, const char *name, struct error *err) {
    int length = snprintf(path, PATH_MAX, "%s/%s", parent, name);
    if (length < 0 || length >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "%s: the name is too long", parent);
    return 0;
}

int make_directories(const char *path, struct error *err) {
    char part[PATH_MAX];
    size_t length = strlen(path);
    if (length >= sizeof part)
        return error_set(err, -ENAMETOOLONG, "%s: the name is too long", path);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != 0)
            continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0777) < 0 && errno != EEXIST)
            return error_set_errno(err, -errno, "%s", part);
    }
    return 0;
}

static int remove_one(const char *path, const struct stat *status, int flag, struct FTW *ftw) {
    remove(path);
    return 0;
}

void remove_tree(const char *path) {
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---- Interrupts ---- */

static volatile sig_atomic_t interrupted;
static struct sigaction old_actions[2];
static const int interrupts[] = {SIGINT, SIGTERM};

static void note(int number) {
    interrupted = number;
}

void interrupt_begin(void) {
    struct sigaction action = {.sa_handler = note};
    interrupted = 0;
    for (int i = 0; i < 2; i++)
        sigaction(interrupts[i], &action, &old_actions[i]);
}

int interrupt_seen(void) {
    return interrupted;
}

void interrupt_end(void) {
    for (int i = 0; i < 2; i++)
        sigaction(interrupts[i], &old_actions[i], NULL);
}

/* ---- Programs ---- */

/* Where root's programs are, which users run, too. */
static const char root_programs[] = "/usr/sbin:/sbin";

bool program_find(const char *name, char path[PATH_MAX]) {
    const char *given = getenv("PATH");
    char list[PATH_MAX], *save = NULL;
    if (strchr(name, '/') != NULL)
        return snprintf(path, PATH_MAX, "%s", name) < PATH_MAX && access(path, X_OK) == 0;
    snprintf(list, sizeof list, "%s:%s", given != NULL ? given : "/usr/bin:/bin", root_programs);
    for (char *part = strtok_r(list, ":", &save); part != NULL; part = strtok_r(NULL, ":", &save))
        if (path_join(path, part, name, NULL) == 0 && access(path, X_OK) == 0)
            return true;
    return false;
}

__attribute__((noreturn)) static void run_child(const struct program *program, int output) {
    int nowhere = open("/dev/null", O_RDWR);
    char path[PATH_MAX];
    bool found = program_find(program->argv[0], path);
    if (program->line != NULL)
        setpgid(0, 0);
    dup2(nowhere, STDIN_FILENO);
    if (program->line != NULL)
        dup2(output, STDERR_FILENO);
    else if (program->quiet)
        dup2(nowhere, STDERR_FILENO);
    dup2(output >= 0 ? output : STDERR_FILENO, STDOUT_FILENO);
    setenv("LC_ALL", "C", 1);
    if (found && (program->directory == NULL || chdir(program->directory) == 0))
        execv(path, (char *const *)program->argv);
    _exit(found ? 126 : 127);
}

/* Takes what fits, reads on so that the program does not block. */
static void collect(const struct program *program, int fd) {
    size_t used = 0;
    char rest[512];
    for (;;) {
        size_t room = program->size - 1 - used;
        ssize_t got =
            room > 0 ? read(fd, program->output + used, room) : read(fd, rest, sizeof rest);
        if (got < 0 && errno == EINTR && !interrupted)
            continue;
        if (got <= 0)
            break;
        if (room > 0)
            used += (size_t)got;
    }
    program->output[used] = 0;
}

/* Lines end with a carriage return, too, where progress is drawn; long ones are cut. An interrupt
 * is passed on; what the program says while it tidies up is still read, or it would end at that. */
static void hand_lines(const struct program *program, int fd, pid_t pid) {
    enum { LOOK_MS = 500 };
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    char bytes[512], line[512];
    size_t used = 0;
    bool told = false;
    for (;;) {
        if (interrupted && !told)
            told = kill(-pid, SIGTERM) == 0;
        if (poll(&wait, 1, LOOK_MS) <= 0)
            continue;
        ssize_t got = read(fd, bytes, sizeof bytes);
        if (got == 0 || (got < 0 && errno != EINTR))
            break;
        for (ssize_t i = 0; i < got; i++) {
            bool end = bytes[i] == '\n' || bytes[i] == '\r';
            if (!end && used < sizeof line - 1)
                line[used++] = bytes[i];
            line[used] = 0;
            if (end && used > 0)
                program->line(program->context, line);
            if (end)
                used = 0;
        }
    }
}

static int wait_for(pid_t pid, const struct program *program, struct error *err) {
    const char *name = program->argv[0];
    int status;
    do {
        if (interrupted)
            kill(pid, SIGTERM);
    } while (waitpid(pid, &status, 0) < 0 && errno == EINTR);
    if (interrupted)
        return error_set(err, -EINTR, "interrupted");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return error_set(err, -ENOENT, "%s is not installed", name);
    return error_set(err, -ECHILD, "%s failed", name);
}

static bool is_read(const struct program *program) {
    return program->output != NULL || program->line != NULL;
}

int program_run(const struct program *program, struct error *err) {
    int pipes[2] = {-1, -1};
    const char *name = program->argv[0];
    if (interrupted)
        return error_set(err, -EINTR, "interrupted");
    if (is_read(program) && pipe2(pipes, O_CLOEXEC) < 0)
        return error_set_errno(err, -errno, "%s", name);
    pid_t pid = fork();
    if (pid == 0)
        run_child(program, pipes[1]);
    int result = pid < 0 ? error_set_errno(err, -errno, "%s", name) : 0;
    if (pipes[1] >= 0)
        close(pipes[1]);
    if (pid > 0 && program->output != NULL)
        collect(program, pipes[0]);
    else if (pid > 0 && program->line != NULL)
        hand_lines(program, pipes[0], pid);
    if (pipes[0] >= 0)
        close(pipes[0]);
    return result < 0 ? result : wait_for(pid, program, err);
}
