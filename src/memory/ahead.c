/* Memory made ready ahead. See ahead.h. */
#include "memory/ahead.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/thread.h"
#include "memory/private.h"
#include "memory/scarce.h"

enum {
    STREAKS = 8,       /* guests fill memory in several places at a time */
    EXPECTED = 2,      /* ranges */
    REFUSALS_MOST = 4, /* chunks in a row that were not huge pages */
    LOOK_EVERY = 8,    /* chunks touched between two looks at the host's memory */
    NICENESS = 10,
    BLOCK_CHUNKS = 2, /* Linux's largest block is 4 MiB, in later kernels 8 */
    CHUNK_PAGES = MEMORY_CHUNK / PAGE_SIZE,
};

/*
 * Where a guest's kernel takes fresh memory: one block of its allocator's largest after the other,
 * upwards at first, and downwards once it has reported what is free. As in read-ahead, the further
 * it went, the more comes next.
 */
struct streak {
    uint64_t block;  /* the last one's number */
    int direction;   /* 1, -1; 0: not known yet */
    unsigned window; /* how many blocks behind that one are wanted */
};

/* Chunks that are sure to be touched. */
struct expected {
    uint64_t gpa, end; /* what is left of them */
};

struct ahead {
    struct memory *memory;
    struct lock lock;
    pthread_cond_t wake; /* a chunk was touched, or the thread is to end */
    pthread_t thread;
    bool started, stopping;
    unsigned most;                  /* chunks ready; 0: no more */
    unsigned refusals, looks;       /* the thread's own */
    struct streak streaks[STREAKS]; /* latest first */
    struct expected expected[EXPECTED];
    unsigned expected_count;
    uint64_t expected_bytes; /* of all so far */
    struct memory_ahead_counts counts;
};

/* NULL: nothing is made ready there. */
static _Atomic(uint8_t) *chunk_at(const struct ahead *ahead, uint64_t gpa) {
    const struct ram_region *region = memory_region(ahead->memory, gpa);
    return region != NULL && region->chunks != NULL ? memory_chunk(region, gpa) : NULL;
}

/* ---- Streaks ---- */

static bool was_touched(const struct ahead *ahead, uint64_t block) {
    for (unsigned i = 0; i < BLOCK_CHUNKS; i++) {
        const _Atomic(uint8_t) *chunk = chunk_at(ahead, (block * BLOCK_CHUNKS + i) * MEMORY_CHUNK);
        if (chunk != NULL && atomic_load(chunk) != CHUNK_FRESH)
            return true;
    }
    return false;
}

/* How far the streak has come with this block; less than 0: it is none of its. */
static int64_t distance(const struct streak *streak, uint64_t block) {
    int64_t blocks = (int64_t)(block - streak->block), most = streak->window + 1;
    if (streak->direction != 0)
        blocks *= streak->direction;
    else
        blocks = llabs(blocks);
    return blocks <= most ? blocks : -1;
}

/* How it goes on is not known before its second block, nor likely before its third. */
static void advance(const struct ahead *ahead, struct streak *streak, uint64_t block) {
    if (streak->block == block)
        return;
    if (streak->direction == 0)
        streak->direction = block > streak->block ? 1 : -1;
    else
        streak->window = streak->window == 0 ? 1 : 2 * streak->window;
    streak->block = block;
    if (streak->window > ahead->most / BLOCK_CHUNKS / 2)
        streak->window = ahead->most / BLOCK_CHUNKS / 2;
}

static struct streak begin(const struct ahead *ahead, uint64_t block) {
    struct streak streak = {.block = block};
    if (was_touched(ahead, block - 1))
        streak.direction = 1;
    else if (was_touched(ahead, block + 1))
        streak.direction = -1;
    return streak;
}

/* The streak that this block continues, or else a new one in the oldest's place, becomes the
 * first. */
static void follow(struct ahead *ahead, uint64_t block) {
    unsigned n = 0;
    while (n < STREAKS && distance(&ahead->streaks[n], block) < 0)
        n++;
    struct streak streak;
    if (n < STREAKS) {
        streak = ahead->streaks[n];
        advance(ahead, &streak, block);
    } else {
        streak = begin(ahead, block);
        n = STREAKS - 1;
    }
    memmove(&ahead->streaks[1], &ahead->streaks[0], n * sizeof streak);
    ahead->streaks[0] = streak;
}

/*
 * The next fresh chunk of the streak's. The very next that the guest is going to need comes last:
 * it would be there at the same time, and two would do the same.
 */
static _Atomic(uint8_t) *next_of(const struct ahead *ahead, const struct streak *streak,
                                 uint64_t *gpa) {
    _Atomic(uint8_t) *very_next = NULL;
    uint64_t very_next_gpa = 0, at;
    bool ready = false;
    unsigned wanted = streak->direction == 0 ? 0 : (streak->window + 1) * BLOCK_CHUNKS;
    for (unsigned i = 0; i < wanted; i++) {
        int64_t blocks = (int64_t)(i / BLOCK_CHUNKS) * streak->direction;
        at = ((streak->block + (uint64_t)blocks) * BLOCK_CHUNKS + i % BLOCK_CHUNKS) * MEMORY_CHUNK;
        _Atomic(uint8_t) *chunk = chunk_at(ahead, at);
        uint8_t state = chunk == NULL ? CHUNK_TOUCHED : atomic_load(chunk);
        ready |= state == CHUNK_READY;
        if (state != CHUNK_FRESH)
            continue;
        if (ready || very_next != NULL) {
            *gpa = at;
            return chunk;
        }
        very_next = chunk;
        very_next_gpa = at;
    }
    *gpa = very_next_gpa;
    return very_next;
}

/* The chunk that is wanted most; NULL: there is none, or enough is ready. */
static _Atomic(uint8_t) *next_chunk(const struct ahead *ahead, uint64_t *gpa) {
    _Atomic(uint8_t) *chunk = NULL;
    if (ahead->counts.ready >= ahead->most)
        return NULL;
    for (unsigned n = 0; n < STREAKS && chunk == NULL; n++)
        chunk = next_of(ahead, &ahead->streaks[n], gpa);
    return chunk;
}

/* ---- The thread ---- */

/* How many of a chunk's pages the host has memory behind. */
static unsigned pages_there(uint8_t *host) {
    unsigned char there[CHUNK_PAGES];
    unsigned count = 0;
    if (mincore(host, MEMORY_CHUNK, there) < 0)
        return CHUNK_PAGES;
    for (unsigned i = 0; i < CHUNK_PAGES; i++)
        count += there[i] & 1;
    return count;
}

/* What becomes of a fresh chunk. No lock held. */
static enum chunk_state touch(struct ahead *ahead, uint64_t gpa) {
    const struct ram_region *region = memory_region(ahead->memory, gpa);
    uint8_t *host = region->host + (gpa - region->gpa);
    if (pages_there(host) > 0)
        return CHUNK_TOUCHED; /* through a pointer that somebody had kept */
    __atomic_fetch_or(host, 0, __ATOMIC_RELAXED);
    bool huge = pages_there(host) == CHUNK_PAGES;
    ahead->refusals = huge ? 0 : ahead->refusals + 1;
    return huge ? CHUNK_READY : CHUNK_TOUCHED;
}

/* Below the vCPUs' threads, whatever those run at. */
static void stand_back(void) {
    struct sched_param none = {0};
    sched_setscheduler(0, SCHED_OTHER, &none);
    thread_computes();
    setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + NICENESS);
}

/* The next fresh chunk of those that are sure to be touched, or NULL. */
static _Atomic(uint8_t) *next_expected(struct ahead *ahead, uint64_t *gpa) {
    for (unsigned i = 0; i < ahead->expected_count && ahead->most > 0; i++) {
        struct expected *range = &ahead->expected[i];
        while (range->gpa < range->end) {
            *gpa = range->gpa;
            range->gpa += MEMORY_CHUNK;
            _Atomic(uint8_t) *chunk = chunk_at(ahead, *gpa);
            if (chunk != NULL && atomic_load(chunk) == CHUNK_FRESH)
                return chunk;
        }
    }
    return NULL;
}

/* Waits for something to do; NULL: the thread is to end. Lock held. */
static _Atomic(uint8_t) *await_chunk(struct ahead *ahead, uint64_t *gpa, bool *expected) {
    _Atomic(uint8_t) *chunk = NULL;
    while (!ahead->stopping) {
        chunk = next_expected(ahead, gpa);
        *expected = chunk != NULL;
        if (chunk != NULL || (chunk = next_chunk(ahead, gpa)) != NULL)
            break;
        pthread_cond_wait(&ahead->wake, &ahead->lock.mutex);
    }
    return chunk;
}

static void note(struct ahead *ahead, _Atomic(uint8_t) *chunk, enum chunk_state state,
                 bool expected) {
    if (expected && state == CHUNK_READY)
        state = CHUNK_TOUCHED;
    bool ready = state == CHUNK_READY;
    ahead->counts.made += ready;
    /* The guest may have come meanwhile. */
    if (atomic_load(chunk) != CHUNK_FRESH)
        return;
    atomic_store(chunk, (uint8_t)state);
    ahead->counts.ready += ready;
}

static void *run(void *context) {
    struct ahead *ahead = context;
    _Atomic(uint8_t) *chunk;
    uint64_t gpa = 0;
    bool expected;
    thread_begins(THREAD_OTHER, "ahead");
    stand_back();
    lock_take(&ahead->lock);
    while ((chunk = await_chunk(ahead, &gpa, &expected)) != NULL) {
        lock_release(&ahead->lock);
        bool scarce = ahead->looks++ % LOOK_EVERY == 0 && memory_is_scarce("");
        enum chunk_state state = scarce ? CHUNK_FRESH : touch(ahead, gpa);
        lock_take(&ahead->lock);
        note(ahead, chunk, state, expected);
        ahead->counts.refused += ahead->refusals > 0;
        if (scarce) {
            memset(ahead->streaks, 0, sizeof ahead->streaks);
            memset(ahead->expected, 0, sizeof ahead->expected);
        }
        if (ahead->refusals == REFUSALS_MOST)
            ahead->most = 0;
    }
    lock_release(&ahead->lock);
    return NULL;
}

/* Lock held. */
static void start_thread(struct ahead *ahead) {
    ahead->started = thread_create(&ahead->thread, NULL, run, ahead) == 0;
    if (!ahead->started)
        ahead->most = 0;
}

/* There is something to do. Lock held. */
static void wake(struct ahead *ahead) {
    if (ahead->started)
        pthread_cond_signal(&ahead->wake);
    else
        start_thread(ahead);
}

/* ---- What happens to chunks ---- */

void memory_ahead_expect(struct memory *memory, uint64_t gpa, uint64_t size) {
    struct ahead *ahead = memory->ahead;
    if (ahead == NULL)
        return;
    lock_take(&ahead->lock);
    uint64_t left = AHEAD_EXPECTED_MOST - ahead->expected_bytes;
    size = size < left ? size : left;
    if (size != 0 && ahead->most > 0 && ahead->expected_count < EXPECTED) {
        ahead->expected_bytes += size;
        ahead->expected[ahead->expected_count++] =
            (struct expected){round_down(gpa, MEMORY_CHUNK), gpa + size};
        wake(ahead);
    }
    lock_release(&ahead->lock);
}

void memory_ahead_touched(struct memory *memory, uint64_t gpa) {
    struct ahead *ahead = memory->ahead;
    _Atomic(uint8_t) *chunk = chunk_at(ahead, gpa);
    lock_take(&ahead->lock);
    uint8_t state = atomic_exchange(chunk, CHUNK_TOUCHED);
    ahead->counts.fresh += state == CHUNK_FRESH;
    if (state == CHUNK_READY) {
        ahead->counts.met++;
        ahead->counts.ready--;
    }
    if (state != CHUNK_TOUCHED && ahead->most > 0) {
        follow(ahead, gpa / (BLOCK_CHUNKS * MEMORY_CHUNK));
        uint64_t next;
        if (next_chunk(ahead, &next) != NULL)
            wake(ahead);
    }
    lock_release(&ahead->lock);
}

/* What was given back is not made ready again before the guest comes there anew. */
static void forget(struct ahead *ahead, uint64_t block) {
    for (unsigned n = 0; n < STREAKS; n++)
        if (distance(&ahead->streaks[n], block) >= 0)
            ahead->streaks[n] = (struct streak){.block = ahead->streaks[n].block};
}

void memory_ahead_given_back(struct memory *memory, uint64_t gpa, uint64_t size) {
    struct ahead *ahead = memory->ahead;
    uint64_t end = round_down(gpa + size, MEMORY_CHUNK);
    if (ahead == NULL)
        return;
    lock_take(&ahead->lock);
    for (gpa = round_up(gpa, MEMORY_CHUNK); gpa < end; gpa += MEMORY_CHUNK) {
        _Atomic(uint8_t) *chunk = chunk_at(ahead, gpa);
        if (chunk != NULL && atomic_exchange(chunk, CHUNK_FRESH) == CHUNK_READY)
            ahead->counts.ready--;
        forget(ahead, gpa / (BLOCK_CHUNKS * MEMORY_CHUNK));
    }
    lock_release(&ahead->lock);
}

/* ---- Life ---- */

static bool takes_part(const struct ram_region *region) {
    return !region->rom && !region->pluggable && !region->huge_pages && !region->from_image &&
           region->gpa % MEMORY_CHUNK == 0;
}

/* The last, when it is not whole, is left alone. */
static int add_chunks(struct ram_region *region) {
    uint64_t whole = region->size / MEMORY_CHUNK;
    region->chunks = calloc(whole + 1, sizeof *region->chunks);
    if (region->chunks == NULL)
        return -ENOMEM;
    atomic_store(&region->chunks[whole], CHUNK_TOUCHED);
    return 0;
}

void memory_ahead_start(struct memory *memory) {
    uint64_t most = memory_ram_size(memory) / AHEAD_SHARE;
    if (memory->ahead != NULL || most < MEMORY_CHUNK)
        return;
    struct ahead *ahead = calloc(1, sizeof *ahead);
    if (ahead == NULL)
        return;
    ahead->memory = memory;
    ahead->most = (unsigned)((most < AHEAD_MOST ? most : AHEAD_MOST) / MEMORY_CHUNK);
    lock_init(&ahead->lock, LOCK_AHEAD, "memory ahead");
    pthread_cond_init(&ahead->wake, NULL);
    memory->ahead = ahead;
    for (unsigned i = 0; i < memory->ram_count; i++)
        if (takes_part(&memory->ram[i]) && add_chunks(&memory->ram[i]) < 0)
            break;
}

void memory_ahead_stop(struct memory *memory) {
    struct ahead *ahead = memory->ahead;
    if (ahead == NULL)
        return;
    lock_take(&ahead->lock);
    bool started = ahead->started;
    ahead->most = 0;
    ahead->started = false;
    ahead->stopping = true;
    pthread_cond_signal(&ahead->wake);
    lock_release(&ahead->lock);
    if (started)
        pthread_join(ahead->thread, NULL);
}

void memory_ahead_free(struct memory *memory) {
    if (memory->ahead == NULL)
        return;
    memory_ahead_stop(memory);
    pthread_cond_destroy(&memory->ahead->wake);
    lock_destroy(&memory->ahead->lock);
    free(memory->ahead);
}

void memory_ahead_counts(struct memory *memory, struct memory_ahead_counts *counts) {
    *counts = (struct memory_ahead_counts){0};
    if (memory->ahead == NULL)
        return;
    lock_take(&memory->ahead->lock);
    *counts = memory->ahead->counts;
    lock_release(&memory->ahead->lock);
}
