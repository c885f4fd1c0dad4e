#include "memory/page_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/pool.h"
#include "memory/missing.h"
#include "memory/private.h"

/* What is near to what was touched is read along with it. */
enum { CLUSTER = 16 };

enum { READERS = 8 };

enum { SLICE_PAGES = PAGE_FILE_SLICE / PAGE_SIZE };

/* What becomes of a page of the slice. */
enum { STAYS, ZERO, WRITTEN };

struct page_file {
    struct memory *memory;
    int fd;
    struct pool *readers;
    atomic_int error;
    /* The slice that was written last, from page_file_write to page_file_drop: a copy of its pages,
     * to see which have changed since. */
    uint8_t *copy;
    const struct ram_region *region; /* that it is of */
    uint64_t at, file_at;            /* where it begins, in the region and in the file */
    unsigned pages;
    uint8_t fate[SLICE_PAGES];
};

struct read {
    struct pool_job job;
    uint64_t gpa;
};

/* ---- Where memory is in the file: one region behind the other, as in memory/image.c ---- */

static uint64_t file_offset(const struct memory *memory, const struct ram_region *region) {
    uint64_t offset = 0;
    for (const struct ram_region *before = memory->ram; before < region; before++)
        offset += before->rom ? 0 : before->size;
    return offset;
}

static unsigned slices_of(const struct ram_region *region) {
    return region->rom ? 0 : (unsigned)((region->size + PAGE_FILE_SLICE - 1) / PAGE_FILE_SLICE);
}

unsigned page_file_slices(const struct page_file *file) {
    unsigned slices = 0;
    for (unsigned i = 0; i < file->memory->ram_count; i++)
        slices += slices_of(&file->memory->ram[i]);
    return slices;
}

static void find_slice(struct page_file *file, unsigned slice) {
    const struct ram_region *region = file->memory->ram;
    while (slice >= slices_of(region))
        slice -= slices_of(region++);
    uint64_t at = (uint64_t)slice * PAGE_FILE_SLICE, left = region->size - at;
    file->region = region;
    file->at = at;
    file->file_at = file_offset(file->memory, region) + at;
    file->pages = (unsigned)((left < PAGE_FILE_SLICE ? left : PAGE_FILE_SLICE) >> PAGE_SHIFT);
}

/* ---- Out ---- */

/* Copies what is in memory. Pages that nobody ever touched are not, nor those that are away. */
static int copy_pages(struct page_file *file) {
    static const uint8_t gone = MEM_PAGE_ABSENT;
    unsigned char there[SLICE_PAGES];
    const uint8_t *host = file->region->host + file->at;
    uint64_t gpa = file->region->gpa + file->at;
    if (mincore((void *)host, (size_t)file->pages * PAGE_SIZE, there) < 0)
        return -errno;
    for (unsigned i = 0; i < file->pages; i++) {
        uint64_t page = gpa + (uint64_t)i * PAGE_SIZE;
        uint8_t *copy = file->copy + (size_t)i * PAGE_SIZE;
        file->fate[i] = STAYS;
        if (!(there[i] & 1) || !memory_is_here(file->memory, page, PAGE_SIZE) ||
            (atomic_load(memory_page_flags(file->region, page)) & gone))
            continue;
        memcpy(copy, host + (size_t)i * PAGE_SIZE, PAGE_SIZE);
        file->fate[i] = bytes_are_zero(copy, PAGE_SIZE) ? ZERO : WRITTEN;
    }
    return 0;
}

/* How many pages from i on have the same fate. */
static unsigned run_of(const struct page_file *file, unsigned i) {
    unsigned run = 1;
    while (i + run < file->pages && file->fate[i + run] == file->fate[i])
        run++;
    return run;
}

static int write_run(const struct page_file *file, const uint8_t *from, uint64_t length,
                     uint64_t offset) {
    while (length > 0) {
        ssize_t done = pwrite(file->fd, from, length, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done == 0 ? -EIO : -errno;
        from += done;
        offset += (uint64_t)done;
        length -= (uint64_t)done;
    }
    return 0;
}

static void forget_slice(struct page_file *file) {
    free(file->copy);
    file->copy = NULL;
}

int64_t page_file_write(struct page_file *file, unsigned slice) {
    uint64_t bytes = 0, written = 0;
    find_slice(file, slice);
    file->copy = malloc(PAGE_FILE_SLICE);
    int result = file->copy == NULL ? -ENOMEM : copy_pages(file);
    for (unsigned i = 0, run; i < file->pages && result == 0; i += run) {
        uint64_t skip = (uint64_t)i * PAGE_SIZE;
        run = run_of(file, i);
        bytes += file->fate[i] == STAYS ? 0 : run;
        if (file->fate[i] != WRITTEN)
            continue;
        written += run;
        result =
            write_run(file, file->copy + skip, (uint64_t)run * PAGE_SIZE, file->file_at + skip);
    }
    /* A write that fails later would be found out when the pages are gone. */
    if (result == 0 && written > 0 && fdatasync(file->fd) < 0)
        result = -errno;
    if (result < 0)
        forget_slice(file);
    return result < 0 ? result : (int64_t)bytes * PAGE_SIZE;
}

static void keep_changed(struct page_file *file) {
    const uint8_t *host = file->region->host + file->at;
    uint64_t gpa = file->region->gpa + file->at;
    for (unsigned i = 0; i < file->pages; i++) {
        size_t skip = (size_t)i * PAGE_SIZE;
        /* Asked again: a touch of a page that the guest gave back would only make it come. */
        if (file->fate[i] != STAYS && (!memory_is_here(file->memory, gpa + skip, PAGE_SIZE) ||
                                       memcmp(host + skip, file->copy + skip, PAGE_SIZE) != 0))
            file->fate[i] = STAYS;
    }
}

uint64_t page_file_drop(struct page_file *file) {
    uint64_t bytes = 0;
    if (file->copy == NULL)
        return 0;
    keep_changed(file);
    uint64_t gpa = file->region->gpa + file->at;
    for (unsigned i = 0, run; i < file->pages; i += run) {
        uint64_t skip = (uint64_t)i * PAGE_SIZE, length;
        run = run_of(file, i);
        length = (uint64_t)run * PAGE_SIZE;
        if (file->fate[i] == ZERO)
            bytes += madvise(file->region->host + file->at + skip, length, MADV_DONTNEED) == 0
                         ? length
                         : 0;
        else if (file->fate[i] == WRITTEN)
            bytes += memory_take(file->memory, gpa + skip, length) == 0 ? length : 0;
    }
    /* It is on the disk, so the host need not keep it in memory either. */
    posix_fadvise(file->fd, (off_t)file->file_at, (off_t)file->pages * PAGE_SIZE,
                  POSIX_FADV_DONTNEED);
    forget_slice(file);
    return bytes;
}

/* ---- In ---- */

static int read_all(const struct page_file *file, uint8_t *to, uint64_t length, uint64_t offset) {
    while (length > 0) {
        ssize_t done = pread(file->fd, to, length, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done == 0 ? -EIO : -errno; /* 0: somebody has cut the file short */
        to += done;
        offset += (uint64_t)done;
        length -= (uint64_t)done;
    }
    return 0;
}

/* The page, and what of its neighbourhood the file has. */
static int bring(const struct page_file *file, uint64_t gpa) {
    const struct ram_region *region = memory_region(file->memory, gpa);
    uint8_t pages[CLUSTER * PAGE_SIZE];
    uint64_t offset = file_offset(file->memory, region), page = gpa - region->gpa;
    uint64_t first = round_down(page, sizeof pages), left = region->size - first;
    uint64_t length = left < sizeof pages ? left : sizeof pages;
    /* The file may end before neighbours that were never written. */
    int result = read_all(file, pages, length, offset + first);
    if (result == 0) {
        memory_supply(file->memory, region->gpa + first, pages, length);
        return 0;
    }
    result = read_all(file, pages, PAGE_SIZE, offset + page);
    if (result == 0)
        memory_supply(file->memory, gpa, pages, PAGE_SIZE);
    return result;
}

static void read_page(struct page_file *file, uint64_t gpa) {
    if (memory_is_here(file->memory, gpa, PAGE_SIZE))
        return; /* it came as a neighbour */
    int result = bring(file, gpa);
    if (result < 0)
        memory_supply_later(file->memory, gpa);
    int before = atomic_exchange(&file->error, result);
    if (result < 0 && before == 0)
        log_error("memory that was paged out cannot be read: %s; the guest waits for it",
                  strerror(-result));
    else if (result == 0 && before < 0)
        log_info("memory that was paged out can be read again");
}

static void work(void *context, struct pool_job *job) {
    struct read *read = container_of(job, struct read, job);
    read_page(context, read->gpa);
    free(read);
}

/* Who stands still gets the page soonest without another thread's waking up; of what is asked for
 * ahead several are read at a time, since storage is quick only then. */
static void want(void *context, uint64_t gpa, bool waits) {
    struct page_file *file = context;
    struct read *read = waits ? NULL : malloc(sizeof *read);
    if (read != NULL) {
        read->gpa = gpa;
        if (pool_submit(file->readers, &read->job) == 0)
            return;
        free(read);
    }
    read_page(file, gpa);
}

int page_file_error(const struct page_file *file) {
    return atomic_load(&file->error);
}

/* ---- Life ---- */

static int open_file(const char *directory, struct error *err) {
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
        return fd >= 0 ? fd : error_set_errno(err, -errno, "cannot make a file in %s", directory);
    char path[4096];
    snprintf(path, sizeof path, "%.4000s/pages-XXXXXX", directory);
    fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot make a file in %s", directory);
    unlink(path);
    return fd;
}

int page_file_create(struct memory *memory, const char *directory, bool kernel,
                     struct page_file **file, struct error *err) {
    struct page_file *made = calloc(1, sizeof *made);
    const struct missing_source source = {want, made};
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->memory = memory;
    int result = made->fd = open_file(directory, err);
    if (result >= 0)
        result = pool_create(THREAD_IO, READERS, work, made, &made->readers, err);
    if (result == 0)
        result = memory_missing_begin(memory, &source, kernel, err);
    if (result < 0) {
        if (made->readers != NULL)
            pool_destroy(made->readers);
        if (made->fd >= 0)
            close(made->fd);
        free(made);
        return result;
    }
    *file = made;
    return 0;
}

void page_file_destroy(struct page_file *file) {
    if (file == NULL)
        return;
    memory_missing_lose(file->memory);
    memory_missing_end(file->memory);
    pool_destroy(file->readers);
    close(file->fd);
    free(file->copy);
    free(file);
}
