/*
 * What the kernel tells of the host's memory and of control groups' (Linux's
 * Documentation/admin-guide/cgroup-v2.rst, "Memory", and cgroup-v1/memory.rst).
 */
#include "memory/scarce.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TEXT_ROOM = 4096 };

/* The beginning of a file of the kernel's; false: there is none. */
static bool read_text(const char *root, const char *directory, const char *name, char *text) {
    char path[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s%s/%s", root, directory, name);
    int fd = length < (int)sizeof path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return false;
    ssize_t done = read(fd, text, TEXT_ROOM - 1);
    close(fd);
    text[done > 0 ? done : 0] = 0;
    return done > 0;
}

/* The number behind a name; 0 when it is not told. */
static uint64_t number_behind(const char *text, const char *name) {
    const char *at = strstr(text, name);
    return at == NULL ? 0 : strtoull(at + strlen(name), NULL, 10);
}

static bool is_little(uint64_t left, uint64_t all) {
    return left < SCARCE_LEFT || left < all / SCARCE_SHARE;
}

static bool host_is_scarce(const char *root) {
    char text[TEXT_ROOM];
    if (!read_text(root, "/proc", "meminfo", text) || strstr(text, "MemAvailable:") == NULL)
        return false;
    return is_little(number_behind(text, "MemAvailable:") << 10, number_behind(text, "MemTotal:")
                                                                     << 10);
}

/* ---- Control groups ---- */

/* The two versions' names. */
struct version {
    const char *controllers; /* in /proc/self/cgroup */
    const char *directory;
    const char *limits[2], *used;
};

static const struct version versions[] = {
    {"", "/sys/fs/cgroup", {"memory.max", "memory.high"}, "memory.current"},
    {"memory", "/sys/fs/cgroup/memory", {"memory.limit_in_bytes", NULL}, "memory.usage_in_bytes"},
};

/* UINT64_MAX: none. */
static uint64_t limit_of(const char *root, const char *directory, const struct version *version) {
    char text[TEXT_ROOM];
    uint64_t least = UINT64_MAX;
    for (unsigned i = 0; i < 2 && version->limits[i] != NULL; i++) {
        if (!read_text(root, directory, version->limits[i], text) || text[0] < '0' || text[0] > '9')
            continue; /* "max" */
        uint64_t limit = strtoull(text, NULL, 10);
        least = limit < least ? limit : least;
    }
    return least;
}

/* Pages of files that nobody has used lately can be had again. */
static bool directory_is_scarce(const char *root, const char *directory,
                                const struct version *version) {
    char text[TEXT_ROOM];
    uint64_t limit = limit_of(root, directory, version);
    if (limit == UINT64_MAX || !read_text(root, directory, version->used, text))
        return false;
    uint64_t used = strtoull(text, NULL, 10), files = 0;
    if (read_text(root, directory, "memory.stat", text))
        files = number_behind(text, "inactive_file ");
    used -= files < used ? files : used;
    return used >= limit || is_little(limit - used, limit);
}

/* What a group may have is its parts' limit as well. */
static bool group_is_scarce(const char *root, const char *group, const struct version *version) {
    char directory[PATH_MAX];
    size_t top = strlen(version->directory);
    if (snprintf(directory, sizeof directory, "%s%s", version->directory, group) >=
        (int)sizeof directory)
        return false;
    for (;;) {
        if (directory_is_scarce(root, directory, version))
            return true;
        char *last = strrchr(directory, '/');
        if ((size_t)(last - directory) < top)
            return false;
        *last = 0;
    }
}

/* "number:controllers:group" */
static bool line_is_scarce(const char *root, const char *line) {
    const char *controllers = strchr(line, ':');
    const char *group = controllers == NULL ? NULL : strchr(controllers + 1, ':');
    if (group == NULL)
        return false;
    size_t length = (size_t)(group - controllers) - 1;
    for (unsigned i = 0; i < sizeof versions / sizeof versions[0]; i++)
        if (strlen(versions[i].controllers) == length &&
            strncmp(versions[i].controllers, controllers + 1, length) == 0)
            return group_is_scarce(root, group + 1, &versions[i]);
    return false;
}

bool memory_is_scarce(const char *root) {
    char text[TEXT_ROOM], *rest = NULL;
    if (host_is_scarce(root))
        return true;
    if (!read_text(root, "/proc/self", "cgroup", text))
        return false;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
        if (line_is_scarce(root, line))
            return true;
    return false;
}
