/*
 * Small helpers on files, directories and programs for the assembly of
 * images. Errors name the path. SIGINT and SIGTERM end program_run with
 * -EINTR between interrupt_begin and interrupt_end.
 */
#ifndef LODGE_IMAGE_FILE_H
#define LODGE_IMAGE_FILE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct file_bytes {
    uint8_t *data;
    size_t length;
};

enum { FILE_BYTES_MAX = 256 << 20 };

/* The whole file, at most FILE_BYTES_MAX; freed by file_free. */
int file_read(const char *path, struct file_bytes *bytes, struct error *err);
void file_free(struct file_bytes *bytes);
/* DIRECTORY/NAME gets these contents: whole and durable, or it is as it was. Mode 0600. */
int file_replace(const char *directory, const char *name, const void *data, size_t length,
                 struct error *err);
/* "PARENT/NAME" into path (PATH_MAX); -ENAMETOOLONG. */
int path_join(char *path, const char *parent, const char *name, struct error *err);
/* Like mkdir -p. */
int make_directories(const char *path, struct error *err);
/* Removes path and what is in it, as far as possible. Symbolic links are not followed. */
void remove_tree(const char *path);

/*
 * Runs a program in directory (NULL: the present one) and waits for it. It is looked for in
 * /usr/sbin and /sbin, too. output, if not NULL, takes its standard output (zero-ended, cut at
 * size); else that goes to standard error, or nowhere with quiet, together with the program's
 * standard error. With line, both are handed to it, a line each, and the program gets a process
 * group of its own, all of which an interrupt ends.
 * 0, -ECHILD when it fails, -ENOENT when it is not installed, -EINTR.
 */
struct program {
    const char *const *argv;
    const char *directory;
    char *output;
    size_t size;
    bool quiet;
    void (*line)(void *context, const char *line);
    void *context;
};
int program_run(const struct program *program, struct error *err);
/* Its path; false: it is not installed. */
bool program_find(const char *name, char path[PATH_MAX]);

/* SIGINT and SIGTERM are noted instead of ending the process. */
void interrupt_begin(void);
int interrupt_seen(void); /* the signal's number, 0: none */
void interrupt_end(void);

#endif
