/*
 * Files of a VM that nobody changes any more (its image's, its snapshots'), whole and in their
 * order: frames FILE, then ROUND. Holes stay holes.
 *
 * What is received is not trusted: sizes were told before, and no more comes.
 */
#ifndef LODGE_MACHINE_MIGRATION_FILES_H
#define LODGE_MACHINE_MIGRATION_FILES_H

#include "machine/migration_memory.h"
#include "machine/migration_stream.h"

struct moved_file {
    char path[PATH_MAX];
    uint64_t size;
};

/* One that is to be sent, with its size; `bytes` grows by what it takes here. */
int moved_file_find(const char *directory, const char *name, struct moved_file *file,
                    uint64_t *bytes, struct error *err);

struct moved_files {
    const struct moved_file *files;
    unsigned count;
    const char *what; /* for errors: "the VM's image" */
};
/* bytes: in all, about. progress: as memory_sender_send's. */
int moved_files_send(const struct moved_files *files, uint64_t bytes, struct stream *stream,
                     bool compress, memory_sender_progress *progress, void *context,
                     struct error *err);
/* Makes them, durably; their directories are there. */
int moved_files_receive(const struct moved_files *files, struct stream *stream, struct error *err);

/* Whether a directory has room for what is to come into it. -ENOSPC. */
int moved_files_check_room(const char *directory, uint64_t bytes, struct error *err);

#endif
