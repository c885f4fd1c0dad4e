/* Directories of the host, mounted where the host says. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "agent.h"

/* Makes the directory and those above it. */
static int make_directory(const char *path) {
    char part[PATH_MAX];
    for (const char *slash = path; slash != NULL;) {
        slash = strchr(slash + 1, '/');
        snprintf(part, sizeof part, "%.*s", slash != NULL ? (int)(slash - path) : PATH_MAX - 1,
                 path);
        if (mkdir(part, 0755) < 0 && errno != EEXIST)
            return -errno;
    }
    return 0;
}

/* The agent may have been started anew in a guest that has it mounted. */
static bool is_mounted(const char *tag, const char *path) {
    FILE *list = fopen("/proc/mounts", "re");
    char line[2 * PATH_MAX], wanted[2 * PATH_MAX];
    bool found = false;
    snprintf(wanted, sizeof wanted, "%s %s virtiofs ", tag, path);
    while (list != NULL && !found && fgets(line, sizeof line, list) != NULL)
        found = strncmp(line, wanted, strlen(wanted)) == 0;
    if (list != NULL)
        fclose(list);
    return found;
}

int volume_mount(const uint8_t *payload, size_t length) {
    uint32_t flags;
    const char *tag = (const char *)payload + sizeof flags;
    if (length < sizeof flags + 4 || payload[length - 1] != 0)
        return -EBADMSG;
    memcpy(&flags, payload, sizeof flags);
    const char *path = tag + strlen(tag) + 1;
    if (path >= (const char *)payload + length || path[0] != '/')
        return -EBADMSG;
    int result = is_mounted(tag, path) ? -EALREADY : make_directory(path);
    if (result < 0)
        return result == -EALREADY ? 0 : result;
    unsigned long how = MS_NOSUID | MS_NODEV | (flags & AGENT_MOUNT_READONLY ? MS_RDONLY : 0);
    return mount(tag, path, "virtiofs", how, "") < 0 ? -errno : 0;
}
