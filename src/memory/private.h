/*
 * What memory.c and view.c share. Nobody else includes this.
 *
 * Locks: memory->lock guards the I/O regions, the list of views, changes of
 * views and of pages' watchers. RAM regions change only during assembly and are read without a
 * lock. listeners_lock is held for reading while listeners are told, so that removing one waits for
 * calls in flight.
 */
#ifndef LODGE_MEMORY_PRIVATE_H
#define LODGE_MEMORY_PRIVATE_H

#include <pthread.h>
#include <string.h>

#include "base/bytes.h"
#include "base/lock.h"
#include "memory/memory.h"

enum { MEMORY_RAM_REGIONS = 32, REGION_NAME = 32 };

/* The architecture's widest physical address (APM vol. 2, 5.3). */
#define MEMORY_GPA_LIMIT (UINT64_C(1) << 52)

/* Further bits of a page's flag byte. */
enum {
    MEM_PAGE_ABSENT = 0x20,   /* of a pluggable region, and not plugged */
    MEM_PAGE_READONLY = 0x40, /* memory_set_readonly */
    MEM_PAGE_HIDDEN = 0x80,   /* an enabled I/O region covers this whole page of RAM */
};

/* What is made ready ahead (ahead.h): huge pages of the host's. */
#define MEMORY_CHUNK (UINT64_C(2) << 20)
enum chunk_state {
    CHUNK_FRESH, /* nobody has touched it since it came, or was given back */
    CHUNK_READY, /* made ready ahead, and not needed yet */
    CHUNK_TOUCHED,
};

struct ram_region {
    char name[REGION_NAME];
    uint64_t gpa, size;
    uint8_t *host;
    _Atomic(uint8_t) *flags;     /* one byte a page */
    _Atomic(uint8_t) *chunks;    /* enum chunk_state; NULL: nothing is made ready ahead */
    _Atomic(uint64_t) *watchers; /* who holds code of a page: a bit for each vCPU */
    bool rom;
    bool pluggable;  /* memory_add_pluggable */
    bool huge_pages; /* of the host's pool */
    bool from_image; /* memory_map_image: pages not written to are a file's */
    bool shared;     /* these two memfds hold the bytes and the flags */
    int fd, flags_fd;
    void *mapping; /* with its guard pages */
    size_t mapping_size;
};

struct io_region {
    struct memory *memory;
    struct io_region *next; /* latest first */
    char name[REGION_NAME];
    uint64_t gpa, size;
    bool enabled, writes_only;
    struct io_ops ops;
    void *context;
};

_Static_assert(MEM_PAGE_NO_ACCESS == (MEM_PAGE_ABSENT | MEM_PAGE_HIDDEN) &&
                   MEM_PAGE_NO_WRITE == (MEM_PAGE_NO_ACCESS | MEM_PAGE_READONLY),
               "what memory.h tells of these bits");

/* ---- A view's overrides: a radix tree by page number (view.c) ---- */

enum { VIEW_LEVELS = 4, VIEW_LEVEL_BITS = 10, VIEW_LEVEL_SLOTS = 1 << VIEW_LEVEL_BITS };

/* A leaf's word: 0 is no override. Bits 51:12 hold the target page when ENTRY_REMAP is set. */
enum { ENTRY_RIGHTS = MEM_ALL, ENTRY_VALID = 8, ENTRY_REMAP = 16 };
#define ENTRY_TARGET (MEMORY_GPA_LIMIT - PAGE_SIZE)

union override_slot {
    _Atomic(struct override_node *) node;
    _Atomic(uint64_t) entry;
};

struct override_node {
    union override_slot slot[VIEW_LEVEL_SLOTS];
};

static inline unsigned view_slot(uint64_t gpa, int level) {
    return gpa >> (PAGE_SHIFT + level * VIEW_LEVEL_BITS) & (VIEW_LEVEL_SLOTS - 1);
}

struct view {
    struct memory *memory;
    struct view *next;
    char name[REGION_NAME];
    struct override_node *root; /* NULL: the default view, which has no overrides */
};

struct memory {
    struct ram_region ram[MEMORY_RAM_REGIONS]; /* by address */
    unsigned ram_count;
    bool huge_pages; /* regions to come take the host's pool */
    struct lock lock;
    struct io_region *io;
    struct view default_view;
    struct view *views; /* the default view and all others */
    pthread_rwlock_t listeners_lock;
    struct memory_listener *listeners;
    atomic_int holders;          /* accesses of devices under way, once somebody freezes */
    atomic_bool frozen, freezes; /* now; at all */
    bool share;                  /* RAM is made shared */
    size_t listener_count;
    struct lock logs_lock;             /* the list of logs, and what is in them */
    struct dirty_log *logs;            /* dirty.c */
    _Atomic(struct missing *) missing; /* from the first memory_missing_begin on; NULL before */
    atomic_bool lost;                  /* memory_missing_lose */
    struct ahead *ahead;               /* NULL: nothing is made ready ahead */
};

/*
 * missing.c. Around giving memory back: the source's copy of it is forgotten, and none comes
 * meanwhile. missing_destroy: nobody uses memory any more.
 */
void missing_lock(struct memory *memory);
void missing_forget(struct memory *memory, const struct ram_region *region, uint64_t gpa,
                    uint64_t size);
void missing_unlock(struct memory *memory);
void missing_destroy(struct memory *memory);

/*
 * shared.c. Puts a memfd under the region's reserved address space. Then the flags, zeroed. Closing
 * leaves the bytes' mapping alone.
 */
int shared_map(struct ram_region *region);
int shared_map_flags(struct ram_region *region);
void shared_close(struct ram_region *region);

/* The region that holds gpa, or NULL. */
const struct ram_region *memory_region(const struct memory *memory, uint64_t gpa);

static inline _Atomic(uint8_t) *memory_page_flags(const struct ram_region *region, uint64_t gpa) {
    return &region->flags[(gpa - region->gpa) >> PAGE_SHIFT];
}

static inline _Atomic(uint8_t) *memory_chunk(const struct ram_region *region, uint64_t gpa) {
    return &region->chunks[(gpa - region->gpa) / MEMORY_CHUNK];
}

/* ahead.h wants to know that it is being touched. */
static inline bool memory_is_fresh(const struct ram_region *region, uint64_t gpa) {
    return region->chunks != NULL &&
           atomic_load_explicit(memory_chunk(region, gpa), memory_order_relaxed) != CHUNK_TOUCHED;
}

/* ahead.c. Chunks that lie wholly there are fresh again. */
void memory_ahead_given_back(struct memory *memory, uint64_t gpa, uint64_t size);
void memory_ahead_free(struct memory *memory);

/* Gives a region its host memory (backing.c), and takes it away. */
int memory_map_region(struct ram_region *region, struct error *err);
void memory_unmap_region(struct ram_region *region);

/*
 * After bytes changed. The read-modify-write is a full barrier: an engine that
 * sets MEM_PAGE_CODE and then reads the bytes either sees the new ones or is
 * seen here.
 */
void memory_mark_written(struct memory *memory, const struct ram_region *region, uint64_t gpa,
                         uint64_t length);

/* Tells all listeners; view NULL: for every view. No lock held. */
void memory_tell_changed(struct memory *memory, const struct view *view, uint64_t gpa,
                         uint64_t size);

/*
 * Naturally aligned words move by one load or store: the two sides share ring
 * indices and flags with each other through the gate.
 */
static inline bool memory_is_word(const void *shared, size_t length) {
    return length <= 8 && is_power_of_two(length) && ((uintptr_t)shared & (length - 1)) == 0;
}

static inline void memory_copy_in(void *to, const uint8_t *shared, size_t length) {
    uint64_t word;
    if (!memory_is_word(shared, length)) {
        memcpy(to, shared, length);
        return;
    }
    switch (length) {
    case 1: word = __atomic_load_n(shared, __ATOMIC_ACQUIRE); break;
    case 2: word = __atomic_load_n((const uint16_t *)shared, __ATOMIC_ACQUIRE); break;
    case 4: word = __atomic_load_n((const uint32_t *)shared, __ATOMIC_ACQUIRE); break;
    default: word = __atomic_load_n((const uint64_t *)shared, __ATOMIC_ACQUIRE); break;
    }
    store_le(to, word, (unsigned)length);
}

static inline void memory_copy_out(uint8_t *shared, const void *from, size_t length) {
    if (!memory_is_word(shared, length)) {
        memcpy(shared, from, length);
        return;
    }
    uint64_t word = load_le(from, (unsigned)length);
    switch (length) {
    case 1: __atomic_store_n(shared, (uint8_t)word, __ATOMIC_RELEASE); break;
    case 2: __atomic_store_n((uint16_t *)shared, (uint16_t)word, __ATOMIC_RELEASE); break;
    case 4: __atomic_store_n((uint32_t *)shared, (uint32_t)word, __ATOMIC_RELEASE); break;
    default: __atomic_store_n((uint64_t *)shared, word, __ATOMIC_RELEASE); break;
    }
}

#endif
