#include "base/host_note.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BOOT_ID_SIZE = 64 };

static bool read_line(const char *path, char *line, int size) {
    FILE *file = fopen(path, "re");
    bool read = file != NULL && fgets(line, size, file) != NULL;
    if (file != NULL)
        fclose(file);
    line[read ? strcspn(line, "\n") : 0] = 0;
    return read;
}

static bool boot_id(char id[BOOT_ID_SIZE]) {
    return read_line("/proc/sys/kernel/random/boot_id", id, BOOT_ID_SIZE) && id[0] != 0;
}

bool host_note_read(const char *path, char *text, size_t size) {
    char id[BOOT_ID_SIZE], line[BOOT_ID_SIZE + HOST_NOTE_MAX];
    if (!boot_id(id) || !read_line(path, line, sizeof line))
        return false;
    size_t length = strlen(id);
    if (strncmp(line, id, length) != 0 || line[length] != ' ')
        return false;
    return (size_t)snprintf(text, size, "%s", line + length + 1) < size;
}

void host_note_write(const char *path, const char *text) {
    char id[BOOT_ID_SIZE], own[PATH_MAX];
    if (!boot_id(id) ||
        (size_t)snprintf(own, sizeof own, "%s.%d", path, (int)getpid()) >= sizeof own)
        return;
    FILE *file = fopen(own, "we");
    bool good = file != NULL && fprintf(file, "%s %s\n", id, text) > 0;
    if (file != NULL && fclose(file) != 0)
        good = false;
    if (file != NULL && (!good || rename(own, path) < 0))
        unlink(own);
}
