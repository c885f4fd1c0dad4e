/*
 * Block back ends: what a disk device is connected to. A back end takes
 * requests and completes each, at once or later on a thread of its own.
 *
 * Offsets and lengths are bytes. Reads, writes, discards and write-zeroes are
 * multiples of 512 and within block_info.size; the device has checked that.
 * Data is read from and written to the vectors in place, guest memory as a
 * rule: it may change at any time, and the back end must not mind.
 */
#ifndef LODGE_BLOCK_BLOCK_H
#define LODGE_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/pool.h"

enum { BLOCK_SECTOR = 512, BLOCK_VECTORS_MAX = 1024 };

struct block;

enum block_operation {
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_FLUSH,        /* all writes completed before are on stable storage */
    BLOCK_DISCARD,      /* contents no longer matter: a hint */
    BLOCK_WRITE_ZEROES, /* reads as zeroes after; may_unmap: space may be given back */
};

/*
 * The back end's until block_submit said 1 or `done` is called; it may change offset, length and
 * vectors. One that has failed can be submitted again as it is: for all that is not done of it.
 */
struct block_request {
    enum block_operation operation;
    bool may_unmap;
    bool durable;    /* a write that is on stable storage when it completes */
    bool background; /* is not done by the thread that submits it, which has other things to do */
    uint64_t offset, length;
    struct iovec *vectors; /* reads and writes: `length` bytes altogether */
    unsigned vector_count; /* up to BLOCK_VECTORS_MAX */
    int result;            /* when completed: 0 or a negative errno (-EIO, -ENOSPC) */
    /* Completion of what block_submit did not complete. Any thread, no lock held. */
    void (*done)(struct block_request *request);
    void *context;              /* the caller's */
    struct block_request *next; /* the back end's, as is job */
    struct pool_job job;
};

struct block_info {
    uint64_t size;          /* a multiple of BLOCK_SECTOR */
    uint32_t logical_block; /* the smallest write that needs no read first: 512 or more */
    uint32_t physical_block;
    bool readonly;
    bool discard;     /* discards have an effect */
    const char *name; /* for messages */
};

/* What a kind of back end implements; its object begins with struct block. */
struct block_class {
    const char *name;
    int (*submit)(struct block *block, struct block_request *request);
    void (*cancel)(struct block *block); /* NULL: nothing waits here */
    void (*drain)(struct block *block);
    void (*close)(struct block *block);
    int (*resize)(struct block *block, uint64_t size, struct error *err); /* NULL: cannot */
    uint64_t (*zero_run)(struct block *block, uint64_t offset);           /* NULL: never known */
};

struct block {
    const struct block_class *class;
    struct block_info info; /* size may grow while requests are under way */
    void (*resized)(void *context);
    void *resized_context;
};

/*
 * Starts a request. 1: it is complete already, result is set and `done` is
 * not called. 0: `done` follows, perhaps before this call returns, but on
 * another thread: no request's `done` runs inside this call, so the caller may
 * hold locks that `done` takes. Any thread; does not wait for the disk.
 */
static inline int block_submit(struct block *block, struct block_request *request) {
    return block->class->submit(block, request);
}

/*
 * Requests that wait on purpose, for a limit or for space on the host, end with -ECANCELED soon;
 * those under way go on. Any thread; no request's `done` runs inside this call.
 */
static inline void block_cancel(struct block *block) {
    if (block->class->cancel != NULL)
        block->class->cancel(block);
}

/*
 * Waits until every request has completed and its `done` has returned; what waits on purpose is
 * cancelled. No lock held.
 */
static inline void block_drain(struct block *block) {
    block->class->drain(block);
}

/* Drains, closes, frees. NULL is fine. */
static inline void block_close(struct block *block) {
    if (block != NULL)
        block->class->close(block);
}

/* Who is told that info.size has grown; one at a time, NULL: nobody. Before requests come. */
static inline void block_on_resize(struct block *block, void (*resized)(void *context),
                                   void *context) {
    block->resized = resized;
    block->resized_context = context;
}

/*
 * Grows, while requests are under way if need be, and tells the listener on this thread, with no
 * lock held. A device's size is measured anew: it has grown already. -EINVAL: it would shrink, or
 * no multiple of a sector; -ENOTSUP: this kind cannot; -EROFS, -ENOSPC, -EIO.
 */
int block_resize(struct block *block, uint64_t size, struct error *err);

/* How many bytes from here on are known to read as zeroes; 0: it is not known. May wait. */
static inline uint64_t block_zero_run(struct block *block, uint64_t offset) {
    return block->class->zero_run != NULL ? block->class->zero_run(block, offset) : 0;
}

/*
 * A raw image: a file or a block device. The image is locked (open file
 * description lock) against other monitors: shared when readonly, else
 * exclusively. -ENOENT, -EACCES, -EBUSY (in use), -EINVAL (a directory or
 * an empty file), and so on.
 */
int block_open_raw(const char *path, bool readonly, struct block **block, struct error *err);

#endif
