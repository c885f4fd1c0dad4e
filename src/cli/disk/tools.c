#include "cli/disk/tools.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/disk/disk.h"

volatile sig_atomic_t disk_tool_stopped;

static void stop(int signal_number) {
    disk_tool_stopped = signal_number;
}

void disk_tool_catch_signals(void) {
    struct sigaction action = {.sa_handler = stop, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int disk_tool_parse(char *text, struct block_options *options, struct error *err) {
    char *save = NULL;
    int result = 0;
    strtok_r(text, ",", &save);
    for (char *word = strtok_r(NULL, ",", &save); word != NULL && result == 0;
         word = strtok_r(NULL, ",", &save))
        result = block_option_parse(options, word, err);
    return result;
}

int disk_tool_open(char *text, bool readonly, struct block **block, struct error *err) {
    struct block_options options = {0};
    int result = disk_tool_parse(text, &options, err);
    options.readonly |= readonly;
    return result == 0 ? block_open(text, &options, block, err) : result;
}

int disk_tool_open_lodge(char *text, bool readonly, struct block **block, struct error *err) {
    int result = disk_tool_open(text, readonly, block, err);
    if (result == 0 && !disk_is(*block)) {
        block_close(*block);
        result = error_set(err, -ENOTSUP, "%s is no lodge disk; convert it to one first", text);
    }
    return result;
}

void disk_tool_progress(const struct disk_arguments *a, const char *what, unsigned done) {
    static unsigned last = UINT32_MAX;
    if (a->quiet || done == last || isatty(STDERR_FILENO) == 0)
        return;
    last = done;
    if (done >= 1000)
        fprintf(stderr, "\r%*s\r", 40, "");
    else
        fprintf(stderr, "\r%s %u.%u %%", what, done / 10, done % 10);
}

char *disk_tool_part_name(const char *path) {
    char *name;
    return asprintf(&name, "%s.part-%d", path, getpid()) < 0 ? NULL : name;
}

int disk_tool_publish(const char *part, const char *path, struct error *err) {
    if (link(part, path) == 0 || renameat2(AT_FDCWD, part, AT_FDCWD, path, RENAME_NOREPLACE) == 0) {
        unlink(part);
        return 0;
    }
    int result = -errno;
    unlink(part);
    return error_set_errno(err, result, "cannot name the new disk %s", path);
}

const char *disk_tool_bytes(uint64_t bytes) {
    static char buffers[4][32];
    static unsigned turn;
    static const char units[] = "KMGTPE";
    char *buffer = buffers[turn++ % 4];
    double value = (double)bytes;
    int unit = -1;
    while (value >= 1024 && unit < 5) {
        value /= 1024;
        unit++;
    }
    if (unit < 0)
        snprintf(buffer, sizeof buffers[0], "%llu bytes", (unsigned long long)bytes);
    else
        snprintf(buffer, sizeof buffers[0], "%.*f %ciB", value == (double)(uint64_t)value ? 0 : 1,
                 value, units[unit]);
    return buffer;
}
