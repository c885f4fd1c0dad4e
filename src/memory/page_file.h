/*
 * RAM paged out to a file: what the guest does not change at the moment is
 * written, made durable, and dropped; it comes back when it is touched
 * (memory/missing.h). Memory is dealt with in slices, each in two steps: one
 * reads and writes while the guest runs, the other, with the guest held, drops
 * what is still as it was written. A failure before leaves all in memory.
 *
 * The file has no name, so that it goes with the process.
 */
#ifndef LODGE_MEMORY_PAGE_FILE_H
#define LODGE_MEMORY_PAGE_FILE_H

#include "memory/memory.h"

struct page_file;

/*
 * Makes the file in `directory`, and lets pages go away (errors as
 * memory_missing_begin, `kernel` likewise). Control thread.
 */
int page_file_create(struct memory *memory, const char *directory, bool kernel,
                     struct page_file **file, struct error *err);

/* The VM ends, or no page is away. Control thread. NULL is fine. */
void page_file_destroy(struct page_file *file);

enum { PAGE_FILE_SLICE = 16 << 20 };
unsigned page_file_slices(const struct page_file *file);

/*
 * Writes what of slice n is in memory. The guest may run; one slice at a time, on one thread, that
 * may block. Returns how many bytes could be dropped; -ENOSPC, -EIO and so on: none will be.
 */
int64_t page_file_write(struct page_file *file, unsigned slice);
/* No vCPU runs and devices are quiet: drops what has not changed since. Bytes dropped. */
uint64_t page_file_drop(struct page_file *file);

/* Reading fails at the moment, with this -errno; who touches what is away stands still until it
 * does not. 0: all is well. Any thread. */
int page_file_error(const struct page_file *file);

#endif
