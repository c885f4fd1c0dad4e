#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "block/block.h"
#include "block/raw.h"
#include "block/uring.h"

#define READERS_BYTE (INT64_C(1) << 62)

/* How many system calls may block at a time, and the piece in which zeroes are written. */
enum { RAW_THREADS = 4, RAW_THREADS_DIRECT = 16, ZERO_PIECE = 64 << 10 };

struct raw {
    struct block block;
    int fd;        /* through the host's page cache */
    int direct_fd; /* past it; -1: none */
    bool device;
    char *path;
    struct pool *pool;
    struct uring *uring;         /* for what goes past the page cache; NULL: none */
    atomic_uint writing;         /* writes that threads have */
    atomic_bool no_nowait;       /* reads that never block are not supported here */
    atomic_bool no_nowait_write; /* nor writes */
    atomic_int lost; /* a flush failed with this: what the host lost of the writes, nobody knows */
    atomic_uint complained; /* errors logged so far */
};

static const struct block_class raw_class;

static struct raw *raw_of(struct block *block) {
    return container_of(block, struct raw, block);
}

/* ---- System calls, whole or not at all ---- */

/* Whether a request can go past the page cache: all of it lies on sectors, in memory too. */
static bool raw_is_direct(const struct raw *raw, const struct block_request *request) {
    if (raw->direct_fd < 0 || request->offset % BLOCK_SECTOR != 0)
        return false;
    for (unsigned i = 0; i < request->vector_count; i++)
        if ((uintptr_t)request->vectors[i].iov_base % BLOCK_SECTOR != 0 ||
            request->vectors[i].iov_len % BLOCK_SECTOR != 0)
            return false;
    return true;
}

/* Moves the vectors past `done` bytes. */
static void advance(struct block_request *request, size_t done) {
    request->offset += done;
    request->length -= done;
    while (request->vector_count > 0 && done >= request->vectors->iov_len) {
        done -= request->vectors->iov_len;
        request->vectors++;
        request->vector_count--;
    }
    if (request->vector_count > 0) {
        request->vectors->iov_base = (uint8_t *)request->vectors->iov_base + done;
        request->vectors->iov_len -= done;
    }
}

/* A file whose size is no multiple of a sector reads as zeroes behind its end. */
static void zero_rest(struct block_request *request) {
    for (unsigned i = 0; i < request->vector_count; i++)
        memset(request->vectors[i].iov_base, 0, request->vectors[i].iov_len);
    request->length = 0;
}

/* Transfers until done; -EAGAIN when RWF_NOWAIT is among the flags and it would wait. */
static int transfer(struct raw *raw, struct block_request *request, int flags) {
    int fd = raw_is_direct(raw, request) ? raw->direct_fd : raw->fd;
    while (request->length > 0) {
        bool reading = request->operation == BLOCK_READ;
        int count = request->vector_count < IOV_MAX ? (int)request->vector_count : IOV_MAX;
        ssize_t done = reading
                           ? preadv2(fd, request->vectors, count, (off_t)request->offset, flags)
                           : pwritev2(fd, request->vectors, count, (off_t)request->offset, flags);
        if (done < 0 && errno == EINTR)
            continue;
        /* Finer than what lies below can do without the page cache, or cut short there. */
        if (fd != raw->fd && ((done < 0 && errno == EINVAL) || (done > 0 && done % 512 != 0))) {
            fd = raw->fd;
            done = done < 0 ? 0 : done;
            advance(request, (size_t)done);
            continue;
        }
        if (done < 0)
            return -errno;
        if (done == 0 && !reading)
            return -ENOSPC;
        if (done == 0)
            zero_rest(request);
        else
            advance(request, (size_t)done);
    }
    return 0;
}

static int write_zero_bytes(struct raw *raw, uint64_t offset, uint64_t length) {
    static const uint8_t zeroes[ZERO_PIECE];
    while (length > 0) {
        size_t piece = length < sizeof zeroes ? (size_t)length : sizeof zeroes;
        ssize_t done = pwrite(raw->fd, zeroes, piece, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done == 0 ? -ENOSPC : -errno;
        offset += (uint64_t)done;
        length -= (uint64_t)done;
    }
    return 0;
}

static bool unsupported(int error) {
    return error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EINVAL;
}

static int allocate(struct raw *raw, int mode, const struct block_request *request) {
    int rc;
    do
        rc = fallocate(raw->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)request->offset,
                       (off_t)request->length);
    while (rc != 0 && errno == EINTR);
    return rc == 0 ? 0 : errno;
}

static int device_range(struct raw *raw, unsigned long operation,
                        const struct block_request *request) {
    uint64_t range[2] = {request->offset, request->length};
    return ioctl(raw->fd, operation, range) == 0 ? 0 : errno;
}

static int write_zeroes(struct raw *raw, const struct block_request *request) {
    int error = EOPNOTSUPP;
    if (raw->device && !request->may_unmap)
        error = device_range(raw, BLKZEROOUT, request);
    if (unsupported(error) && request->may_unmap)
        error = allocate(raw, FALLOC_FL_PUNCH_HOLE, request);
    if (unsupported(error))
        error = allocate(raw, FALLOC_FL_ZERO_RANGE, request);
    if (unsupported(error))
        return write_zero_bytes(raw, request->offset, request->length);
    return -error;
}

static int discard(struct raw *raw, const struct block_request *request) {
    int error = raw->device ? device_range(raw, BLKDISCARD, request)
                            : allocate(raw, FALLOC_FL_PUNCH_HOLE, request);
    return unsupported(error) ? 0 : -error;
}

/*
 * Once a flush has failed every later one does: the host may have dropped what it could not write,
 * and would call the next one a success.
 */
static int flush(struct raw *raw) {
    int rc, none = 0, lost = atomic_load(&raw->lost);
    if (lost != 0)
        return lost;
    do
        rc = fdatasync(raw->fd);
    while (rc != 0 && errno == EINTR);
    if (rc == 0)
        return 0;
    rc = -EIO; /* not -ENOSPC: with more space it is lost all the same */
    log_warning("disk %s: cannot flush: %s; from now on the guest gets I/O errors", raw->path,
                strerror(errno));
    atomic_compare_exchange_strong(&raw->lost, &none, rc);
    return rc;
}

/* ---- Requests ---- */

static int perform(struct raw *raw, struct block_request *request) {
    switch (request->operation) {
    case BLOCK_READ: return transfer(raw, request, 0);
    case BLOCK_WRITE: return transfer(raw, request, request->durable ? RWF_DSYNC : 0);
    case BLOCK_FLUSH: return flush(raw);
    case BLOCK_DISCARD: return discard(raw, request);
    case BLOCK_WRITE_ZEROES: break;
    }
    int rc = write_zeroes(raw, request);
    return rc == 0 && request->durable ? flush(raw) : rc;
}

/* The user learns here what happened. A few times. */
static void complain(struct raw *raw, const struct block_request *request) {
    static const char *const names[] = {"read", "write", "flush", "discard", "write zeroes"};
    if (atomic_fetch_add(&raw->complained, 1) < LOG_LIMIT_BURST)
        log_warning("disk %s: %s at byte %llu failed: %s", raw->path, names[request->operation],
                    (unsigned long long)request->offset, strerror(-request->result));
}

static void raw_work(void *context, struct pool_job *job) {
    struct raw *raw = context;
    struct block_request *request = container_of(job, struct block_request, job);
    request->result = perform(raw, request);
    if (request->result != 0)
        complain(raw, request);
    atomic_fetch_sub(&raw->writing, request->operation == BLOCK_WRITE);
    request->done(request);
}

static int leave_to_threads(struct raw *raw, struct block_request *request) {
    atomic_fetch_add(&raw->writing, request->operation == BLOCK_WRITE);
    int rc = request->background ? pool_go_on(raw->pool, &request->job)
                                 : pool_submit(raw->pool, &request->job);
    if (rc != 0)
        atomic_fetch_sub(&raw->writing, request->operation == BLOCK_WRITE);
    return rc;
}

/*
 * What the page cache holds is read here and now, and written to it where the file system can do
 * so without waiting: no thread has to wake up.
 */
static bool do_cached(struct raw *raw, struct block_request *request) {
    bool reading = request->operation == BLOCK_READ;
    atomic_bool *never = reading ? &raw->no_nowait : &raw->no_nowait_write;
    if ((!reading && (request->operation != BLOCK_WRITE || request->durable)) ||
        request->background || raw->direct_fd >= 0 || atomic_load(never))
        return false;
    int rc = transfer(raw, request, RWF_NOWAIT);
    if (rc == -EOPNOTSUPP || rc == -ENOSYS)
        atomic_store(never, true);
    if (rc != 0)
        return false;
    request->result = 0;
    return true;
}

/* The ring says how far a transfer got; a thread does what is left of it, if anything. */
static void uring_result(void *context, struct block_request *request, int result) {
    struct raw *raw = context;
    if (result > 0 && result % BLOCK_SECTOR == 0)
        advance(request, (size_t)result);
    if (request->length > 0 && leave_to_threads(raw, request) == 0)
        return;
    request->result = request->length == 0 ? 0 : -EAGAIN;
    if (request->result != 0)
        complain(raw, request);
    request->done(request);
}

/*
 * A write to a file that nobody waits for in the kernel is completed there by a worker bound to one
 * processor, which gets it when all others there have had theirs. So threads of ours wait for
 * writes to files; what is more than they can do at a time goes to the ring all the same.
 */
static bool uring_takes(struct raw *raw, const struct block_request *request) {
    bool reading = request->operation == BLOCK_READ, writing = request->operation == BLOCK_WRITE;
    if (raw->uring == NULL || !(reading || writing) || request->vector_count > IOV_MAX ||
        !raw_is_direct(raw, request))
        return false;
    return reading || raw->device || atomic_load(&raw->writing) >= RAW_THREADS_DIRECT;
}

static int raw_submit(struct block *block, struct block_request *request) {
    struct raw *raw = raw_of(block);
    if (do_cached(raw, request))
        return 1;
    if (uring_takes(raw, request) && uring_submit(raw->uring, request) == 0)
        return 0;
    int rc = leave_to_threads(raw, request);
    if (rc == 0)
        return 0;
    request->result = rc;
    complain(raw, request);
    return 1;
}

static void raw_drain(struct block *block) {
    /* The ring hands on to the pool, never the other way. */
    if (raw_of(block)->uring != NULL)
        uring_drain(raw_of(block)->uring);
    pool_drain(raw_of(block)->pool);
}

static void raw_free(struct raw *raw) {
    if (raw->uring != NULL)
        uring_destroy(raw->uring);
    if (raw->pool != NULL)
        pool_destroy(raw->pool);
    if (raw->direct_fd >= 0)
        close(raw->direct_fd);
    if (raw->fd >= 0)
        close(raw->fd);
    free(raw->path);
    free(raw);
}

static void raw_close(struct block *block) {
    raw_free(raw_of(block));
}

/* ---- Opening ---- */

/*
 * A writer locks every byte of the file but one far behind it, which stands for readers of
 * snapshots. Who only reads locks, and looks at, the bytes that QEMU gives a meaning to, so that
 * both can read one base image, and neither reads what the other writes: a shared lock on byte
 * 100 + n says that its owner does n, one on 200 + n that nobody else may.
 */
enum { QEMU_DOES = 100, QEMU_KEEPS_FROM = 200 };
enum { QEMU_READ = 0, QEMU_WRITE = 1, QEMU_RESIZE = 3 };

static int lock_bytes(struct raw *raw, short type, off_t start, off_t length) {
    struct flock bytes = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(raw->fd, F_OFD_SETLK, &bytes) == 0 ? 0 : errno == EACCES ? -EAGAIN : -errno;
}

/* Does anybody else have a lock on the byte? */
static int look_at_lock(struct raw *raw, off_t at) {
    struct flock byte = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    if (fcntl(raw->fd, F_OFD_GETLK, &byte) != 0)
        return -errno;
    return byte.l_type == F_UNLCK ? 0 : -EAGAIN;
}

static int lock_to_read(struct raw *raw) {
    static const short mine[] = {QEMU_DOES + QEMU_READ, QEMU_KEEPS_FROM + QEMU_WRITE,
                                 QEMU_KEEPS_FROM + QEMU_RESIZE};
    static const short others[] = {QEMU_KEEPS_FROM + QEMU_READ, QEMU_DOES + QEMU_WRITE,
                                   QEMU_DOES + QEMU_RESIZE};
    int result = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(mine) && result == 0; i++)
        result = lock_bytes(raw, F_RDLCK, mine[i], 1);
    for (unsigned i = 0; i < ARRAY_SIZE(others) && result == 0; i++)
        result = look_at_lock(raw, others[i]);
    return result;
}

int block_exclude_readers(struct block *file, bool exclude) {
    if (file->class != &raw_class)
        return 0;
    int result = lock_bytes(raw_of(file), exclude ? F_WRLCK : F_UNLCK, READERS_BYTE, 1);
    return result == -EAGAIN ? -EBUSY : 0; /* a file system without locks has said so before */
}

static int lock_image(struct raw *raw, const struct raw_config *config, struct error *err) {
    int result = config->reader     ? lock_bytes(raw, F_RDLCK, READERS_BYTE, 1)
                 : config->readonly ? lock_to_read(raw)
                                    : lock_bytes(raw, F_WRLCK, 0, READERS_BYTE);
    if (result == 0)
        return 0;
    if (result == -EAGAIN && config->reader)
        return error_set(err, -EBUSY, "disk %s is removing a snapshot; try again soon", raw->path);
    if (result == -EAGAIN)
        return error_set(err, -EBUSY,
                         "disk %s is in use by another VM or program; stop it, or attach the "
                         "disk readonly to both",
                         raw->path);
    errno = -result;
    if (errno == EINVAL || errno == ENOLCK || errno == EOPNOTSUPP) {
        log_warning("disk %s: its file system has no locks; it is not protected against double use",
                    raw->path);
        return 0;
    }
    return error_set_errno(err, -errno, "cannot lock disk %s", raw->path);
}

static int measure_device(struct raw *raw, struct error *err) {
    struct block_info *info = &raw->block.info;
    int logical = BLOCK_SECTOR;
    unsigned physical = BLOCK_SECTOR;
    if (ioctl(raw->fd, BLKGETSIZE64, &info->size) != 0)
        return error_set_errno(err, -errno, "cannot tell the size of disk %s", raw->path);
    if (ioctl(raw->fd, BLKSSZGET, &logical) == 0)
        info->logical_block = (uint32_t)logical;
    if (ioctl(raw->fd, BLKPBSZGET, &physical) == 0)
        info->physical_block = physical;
    return 0;
}

static int measure(struct raw *raw, const struct raw_config *config, struct error *err) {
    struct block_info *info = &raw->block.info;
    struct stat status;
    if (fstat(raw->fd, &status) != 0)
        return error_set_errno(err, -errno, "cannot examine disk %s", raw->path);
    *info = (struct block_info){
        .size = round_up((uint64_t)status.st_size, BLOCK_SECTOR),
        .logical_block = BLOCK_SECTOR,
        .physical_block = 4096,
        .readonly = config->readonly,
        .discard = !config->readonly,
        .name = raw->path,
    };
    raw->device = S_ISBLK(status.st_mode);
    if (raw->device)
        return measure_device(raw, err);
    if (!S_ISREG(status.st_mode))
        return error_set(err, -EINVAL, "disk %s is neither a file nor a block device", raw->path);
    if (info->size == 0 && !config->growable)
        return error_set(err, -EINVAL,
                         "disk %s is empty; give it a size, for example with "
                         "truncate -s 1G",
                         raw->path);
    return 0;
}

/* Holes of a file. */
static uint64_t raw_zero_run(struct block *block, uint64_t offset) {
    const struct raw *raw = raw_of(block);
    off_t data = raw->device ? (off_t)offset : lseek(raw->fd, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        return block->info.size - offset;
    return data > (off_t)offset ? (uint64_t)data - offset : 0;
}

/* A file grows; a device has grown by itself. */
static int raw_resize(struct block *block, uint64_t size, struct error *err) {
    struct raw *raw = raw_of(block);
    if (block->info.readonly)
        return error_set(err, -EROFS, "disk %s is read-only", raw->path);
    if (raw->device)
        return measure_device(raw, err);
    if (ftruncate(raw->fd, (off_t)size) != 0)
        return error_set_errno(err, -errno, "cannot grow disk %s", raw->path);
    block->info.size = size;
    return 0;
}

static const struct block_class raw_class = {
    .name = "raw",
    .submit = raw_submit,
    .drain = raw_drain,
    .close = raw_close,
    .resize = raw_resize,
    .zero_run = raw_zero_run,
};

static int open_direct(struct raw *raw, bool readonly, struct error *err) {
    raw->direct_fd =
        open(raw->path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_DIRECT);
    if (raw->direct_fd < 0)
        return error_set_errno(err, -errno, "disk %s: its file system has no cache=none",
                               raw->path);
    /* Without a ring (old kernels, sandboxes) threads do it. */
    if (uring_create(raw->direct_fd, uring_result, raw, &raw->uring) < 0)
        log_info("disk %s: no io_uring here, threads instead", raw->path);
    return 0;
}

static int open_image(struct raw *raw, const struct raw_config *config, struct error *err) {
    bool readonly = config->readonly;
    raw->fd = open(raw->path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (raw->fd < 0)
        return error_set_errno(err, -errno, "cannot open disk %s%s", raw->path,
                               readonly ? "" : " for writing");
    int rc = measure(raw, config, err);
    if (rc == 0)
        rc = lock_image(raw, config, err);
    if (rc == 0 && config->direct)
        rc = open_direct(raw, readonly, err);
    return rc != 0 ? rc
                   : pool_create(THREAD_IO, config->direct ? RAW_THREADS_DIRECT : RAW_THREADS,
                                 raw_work, raw, &raw->pool, err);
}

int block_open_file(const char *path, const struct raw_config *config, struct block **block,
                    struct error *err) {
    struct raw *raw = calloc(1, sizeof *raw);
    char *copy = strdup(path);
    if (raw == NULL || copy == NULL) {
        free(raw);
        free(copy);
        return error_set(err, -ENOMEM, "no memory for disk %s", path);
    }
    raw->block.class = &raw_class;
    raw->fd = raw->direct_fd = -1;
    raw->path = copy;
    int rc = open_image(raw, config, err);
    if (rc != 0) {
        raw_free(raw);
        return rc;
    }
    *block = &raw->block;
    return 0;
}

int block_open_raw(const char *path, bool readonly, struct block **block, struct error *err) {
    struct raw_config config = {.readonly = readonly};
    return block_open_file(path, &config, block, err);
}

bool block_is_device(const struct block *block) {
    return block->class == &raw_class && ((const struct raw *)(const void *)block)->device;
}
