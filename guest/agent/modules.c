/*
 * Kernel modules. /etc/modules.lodge, written when the guest's image was put
 * together, has them in an order that satisfies their dependencies, one a
 * line: a path, then the device aliases that want it, as shell patterns; no
 * pattern means always.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

enum { ALIASES_MAX = 64, ALIAS_SIZE = 128 };

static struct {
    char names[ALIASES_MAX][ALIAS_SIZE];
    unsigned count;
} present;

static void add_alias(const char *directory, const char *device) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s/modalias", directory, device);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    char *name = present.names[present.count];
    ssize_t length = read(fd, name, ALIAS_SIZE - 1);
    close(fd);
    if (length <= 0)
        return;
    name[length] = 0;
    name[strcspn(name, "\n")] = 0;
    present.count++;
}

static void scan_bus(const char *directory) {
    DIR *d = opendir(directory);
    struct dirent *entry;
    while (d != NULL && (entry = readdir(d)) != NULL && present.count < ALIASES_MAX)
        if (entry->d_name[0] != '.')
            add_alias(directory, entry->d_name);
    if (d != NULL)
        closedir(d);
}

static void scan_devices(void) {
    present.count = 0;
    scan_bus("/sys/bus/acpi/devices");
    scan_bus("/sys/bus/pci/devices");
    scan_bus("/sys/bus/virtio/devices");
    scan_bus("/sys/class/input");
    scan_bus("/sys/bus/scsi/devices");
}

static bool is_present(const char *pattern) {
    for (unsigned i = 0; i < present.count; i++)
        if (fnmatch(pattern, present.names[i], 0) == 0)
            return true;
    return false;
}

static void load(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        say("module %s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

static bool wanted(char *patterns) {
    char *save = NULL;
    char *pattern = strtok_r(patterns, " \n", &save);
    bool any = pattern == NULL;
    for (; pattern != NULL && !any; pattern = strtok_r(NULL, " \n", &save))
        any = is_present(pattern);
    return any;
}

void setup_modules(void) {
    FILE *list = fopen("/etc/modules.lodge", "re");
    if (list == NULL)
        return;
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, list) > 0) {
        size_t path = strcspn(line, " \n");
        bool conditional = line[path] == ' ';
        line[path] = 0;
        /* A module that was just loaded may have brought new devices. */
        if (conditional)
            scan_devices();
        if (path > 0 && (!conditional || wanted(line + path + 1)))
            load(line);
    }
    free(line);
    fclose(list);
}
