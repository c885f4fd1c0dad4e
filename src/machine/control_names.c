#include "machine/control_names.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const char suffix[] = ".sock";

int vm_name_check(const char *name, struct error *err) {
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = strlen(name);
    if (length == 0 || length > VM_NAME_MAX || strspn(name, allowed) != length ||
        strchr("._-", name[0]) != NULL)
        return error_set(err, -EINVAL,
                         "'%.40s' is no name for a VM: letters, digits, '.', '_' and '-', at most "
                         "%d, a letter or digit first",
                         name, VM_NAME_MAX);
    return 0;
}

/* ---- The directory ---- */

static void choose_directory(char *path, size_t size) {
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    struct stat status;
    uid_t user = geteuid();
    if (runtime != NULL && runtime[0] == '/') {
        snprintf(path, size, "%s/lodge", runtime);
        return;
    }
    if (user == 0) {
        snprintf(path, size, "/run/lodge");
        return;
    }
    snprintf(path, size, "/run/user/%u", user);
    if (stat(path, &status) == 0 && status.st_uid == user)
        snprintf(path, size, "/run/user/%u/lodge", user);
    else
        snprintf(path, size, "/tmp/lodge-%u", user);
}

int control_directory(char *path, size_t size, bool create, struct error *err) {
    struct stat status;
    choose_directory(path, size);
    if (create && mkdir(path, 0700) < 0 && errno != EEXIST)
        return error_set_errno(err, -errno, "cannot make %s for control sockets", path);
    if (lstat(path, &status) < 0)
        return error_set_errno(err, -errno, "%s", path);
    if (!S_ISDIR(status.st_mode) || status.st_uid != geteuid() || status.st_mode & 022)
        return error_set(err, -EPERM, "%s is not this user's own directory: not used", path);
    return 0;
}

/* ---- Sockets ---- */

static int make_address(const char *directory, const char *name, struct sockaddr_un *address,
                        struct error *err) {
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    int length =
        snprintf(address->sun_path, sizeof address->sun_path, "%s/%s%s", directory, name, suffix);
    if (length < 0 || (size_t)length >= sizeof address->sun_path)
        return error_set(err, -ENAMETOOLONG,
                         "the path of a socket for '%s' in %s is too long; set XDG_RUNTIME_DIR to "
                         "a shorter one",
                         name, directory);
    return 0;
}

/* 0: somebody listens, *fd is connected. -ECONNREFUSED: it is stale. */
static int try_connect(const struct sockaddr_un *address, int *fd) {
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd < 0)
        return -errno;
    if (connect(*fd, (const struct sockaddr *)address, sizeof *address) == 0)
        return 0;
    int result = -errno;
    close(*fd);
    *fd = -1;
    return result;
}

/* Who makes and who removes sockets takes turns. -1 when that cannot be: no turns then. */
static int lock_directory(const char *directory) {
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        flock(fd, LOCK_EX);
    return fd;
}

static void unlock_directory(int fd) {
    if (fd >= 0)
        close(fd);
}

static int bind_socket(const struct sockaddr_un *address, int *fd) {
    int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (made < 0)
        return -errno;
    /* Nobody can connect before listen(), so the mode is right in time. */
    if (bind(made, (const struct sockaddr *)address, sizeof *address) == 0) {
        if (chmod(address->sun_path, 0600) == 0 && listen(made, 8) == 0) {
            *fd = made;
            return 0;
        }
        unlink(address->sun_path);
    }
    int result = -errno;
    close(made);
    return result;
}

int control_listen(const char *directory, const char *name, int *fd, struct error *err) {
    struct sockaddr_un address;
    int other, result = make_address(directory, name, &address, err);
    if (result < 0)
        return result;
    int lock = lock_directory(directory);
    result = try_connect(&address, &other);
    if (result == 0) {
        close(other);
        unlock_directory(lock);
        return error_set(err, -EADDRINUSE, "a VM named '%s' is running; choose another --name",
                         name);
    }
    if (result == -ECONNREFUSED)
        unlink(address.sun_path);
    result = bind_socket(&address, fd);
    unlock_directory(lock);
    return result < 0 ? error_set_errno(err, result, "cannot listen on %s", address.sun_path) : 0;
}

/* Between our look and now a new VM may have taken its place: looked at again, in turn. */
static void remove_stale(const char *directory, const struct sockaddr_un *address) {
    int fd, lock = lock_directory(directory);
    int result = try_connect(address, &fd);
    if (result == 0)
        close(fd);
    else if (result == -ECONNREFUSED)
        unlink(address->sun_path);
    unlock_directory(lock);
}

int control_connect(const char *directory, const char *name, int *fd, struct error *err) {
    struct sockaddr_un address;
    int result = vm_name_check(name, err);
    if (result == 0)
        result = make_address(directory, name, &address, err);
    if (result < 0)
        return result;
    result = try_connect(&address, fd);
    if (result == -ECONNREFUSED)
        remove_stale(directory, &address);
    if (result == -ECONNREFUSED || result == -ENOENT)
        return error_set(err, -ENOENT, "no VM named '%s' is running; 'lodge ps' lists them", name);
    return result < 0 ? error_set_errno(err, result, "cannot connect to %s", address.sun_path) : 0;
}

/* ---- The list ---- */

static int is_socket_name(const struct dirent *entry) {
    size_t length = strlen(entry->d_name), end = sizeof suffix - 1;
    return length > end && length - end <= VM_NAME_MAX && entry->d_name[0] != '.' &&
           strcmp(entry->d_name + length - end, suffix) == 0;
}

int control_list(const char *directory, char ***names, size_t *count, struct error *err) {
    struct dirent **entries;
    int found = scandir(directory, &entries, is_socket_name, alphasort);
    if (found < 0)
        return error_set_errno(err, -errno, "cannot read %s", directory);
    *names = calloc((size_t)found + 1, sizeof **names);
    *count = 0;
    for (int i = 0; i < found; i++) {
        size_t length = strlen(entries[i]->d_name) - (sizeof suffix - 1);
        char *name = *names != NULL ? strndup(entries[i]->d_name, length) : NULL;
        if (name != NULL)
            (*names)[(*count)++] = name;
        free(entries[i]);
    }
    free(entries);
    return *names != NULL ? 0 : error_set(err, -ENOMEM, "out of memory");
}
