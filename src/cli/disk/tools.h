/* What the subcommands of `lodge disk` share: a file each. */
#ifndef LODGE_CLI_DISK_TOOLS_H
#define LODGE_CLI_DISK_TOOLS_H

#include <signal.h>

#include "block/open.h"

/* The command line, read. */
struct disk_arguments {
    char **operands;
    int count;
    const char *format;  /* of what is made; NULL: by its name */
    const char *backing; /* FILE[,WORD...]; NULL: none */
    const char *pattern; /* bench: random, sequential, or a step in bytes */
    uint64_t block_size, requests, depth, flush_interval;
    bool json, repair, write, quiet;
};

/* Each prints what it has to say and returns an exit code; errors are filled and -errno. */
int disk_tool_create(const struct disk_arguments *a, struct error *err);
int disk_tool_info(const struct disk_arguments *a, struct error *err);
int disk_tool_check(const struct disk_arguments *a, struct error *err);
int disk_tool_convert(const struct disk_arguments *a, struct error *err);
int disk_tool_resize(const struct disk_arguments *a, struct error *err);
int disk_tool_snapshot(const struct disk_arguments *a, struct error *err);
int disk_tool_diff(const struct disk_arguments *a, struct error *err);
int disk_tool_bench(const struct disk_arguments *a, struct error *err);

/* "FILE[,WORD...]" in `text`, which is cut at its commas. */
int disk_tool_parse(char *text, struct block_options *options, struct error *err);
/* Parses and opens. */
int disk_tool_open(char *text, bool readonly, struct block **block, struct error *err);
/* As above, -ENOTSUP when it is no lodge disk. */
int disk_tool_open_lodge(char *text, bool readonly, struct block **block, struct error *err);

/* Set by the first SIGINT or SIGTERM after disk_tool_catch_signals. */
extern volatile sig_atomic_t disk_tool_stopped;
void disk_tool_catch_signals(void);

/* A percentage on standard error when that is a terminal; 1000: done, the line goes. */
void disk_tool_progress(const struct disk_arguments *a, const char *what, unsigned done);

/* A name beside `path` for a file that is not whole yet. To be freed; NULL: no memory. */
char *disk_tool_part_name(const char *path);
/* The finished file gets its name, unless there is one of that name: -EEXIST. */
int disk_tool_publish(const char *part, const char *path, struct error *err);

/* Makes `path` an empty disk of this format, raw or lodge. Removes what it made when it fails. */
int disk_tool_make(const char *path, enum block_format format, uint64_t size,
                   const struct disk_arguments *a, struct error *err);

/* "1.5 GiB" in a static buffer, one of four in turn. */
const char *disk_tool_bytes(uint64_t bytes);

#endif
