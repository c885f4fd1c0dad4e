#include "block/disk/space.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

/* Blocks are taken in rising order; the file grows by this many at a time. */
enum { CHUNK = 256, BITS = 64, REUSE_FRACTION = 4 };

int disk_space_create(struct disk_space *space, uint64_t blocks, uint64_t limit,
                      struct error *err) {
    uint64_t words = (blocks + BITS - 1) / BITS + 1;
    *space = (struct disk_space){.blocks = blocks, .limit = limit, .free = blocks};
    space->used = calloc(words, sizeof(uint64_t));
    return space->used != NULL ? 0 : error_set(err, -ENOMEM, "no memory for a disk's space map");
}

void disk_space_destroy(struct disk_space *space) {
    free(space->used);
    space->used = NULL;
}

bool disk_space_used(const struct disk_space *space, uint64_t block) {
    return block < space->blocks && (space->used[block / BITS] >> block % BITS & 1) != 0;
}

static void set(struct disk_space *space, uint64_t block) {
    space->used[block / BITS] |= UINT64_C(1) << block % BITS;
    space->free--;
}

bool disk_space_mark(struct disk_space *space, uint64_t block) {
    if (block >= space->blocks || disk_space_used(space, block))
        return false;
    set(space, block);
    return true;
}

static int grow(struct disk_space *space) {
    uint64_t more = space->limit - space->blocks;
    if (more == 0)
        return -ENOSPC;
    more = more < CHUNK ? more : CHUNK;
    uint64_t old = (space->blocks + BITS - 1) / BITS + 1;
    uint64_t new = (space->blocks + more + BITS - 1) / BITS + 1;
    uint64_t *used = realloc(space->used, new * sizeof *used);
    if (used == NULL)
        return -ENOMEM;
    memset(used + old, 0, (new - old) * sizeof *used);
    space->used = used;
    space->cursor = space->blocks;
    space->blocks += more;
    space->free += more;
    return 0;
}

/* The first block from there on that is in use, or is not; or the end. */
static uint64_t seek(const struct disk_space *space, uint64_t from, bool used) {
    while (from < space->blocks) {
        uint64_t word = space->used[from / BITS];
        uint64_t rest = (used ? word : ~word) >> from % BITS;
        if (rest != 0) {
            from += (uint64_t)__builtin_ctzll(rest);
            break;
        }
        from = round_down(from, BITS) + BITS;
    }
    return from < space->blocks ? from : space->blocks;
}

/* Behind the end: go round where enough has become free, else grow; the last resort is the other.
 */
static int turn(struct disk_space *space) {
    if (space->free >= CHUNK && space->free >= space->blocks / REUSE_FRACTION) {
        space->cursor = 0;
        return 0;
    }
    int result = grow(space);
    if (result == -ENOSPC && space->free > 0) {
        space->cursor = 0;
        result = 0;
    }
    return result;
}

int64_t disk_space_take(struct disk_space *space, uint64_t want, uint64_t *first) {
    uint64_t at = seek(space, space->cursor, false);
    while (at == space->blocks) {
        int result = turn(space);
        if (result != 0)
            return result;
        at = seek(space, space->cursor, false);
    }
    uint64_t count = 0;
    while (count < want && at + count < space->blocks && !disk_space_used(space, at + count))
        set(space, at + count++);
    space->cursor = at + count;
    *first = at;
    return (int64_t)count;
}

void disk_space_release(struct disk_space *space, uint64_t first, uint64_t count) {
    for (uint64_t block = first; block < first + count; block++)
        if (disk_space_used(space, block)) {
            space->used[block / BITS] &= ~(UINT64_C(1) << block % BITS);
            space->free++;
        }
}

static uint64_t next(const struct disk_space *space, uint64_t *from, bool used) {
    *from = seek(space, *from, used);
    return seek(space, *from, !used) - *from;
}

uint64_t disk_space_next_free(const struct disk_space *space, uint64_t *from) {
    return next(space, from, false);
}

uint64_t disk_space_next_used(const struct disk_space *space, uint64_t *from) {
    return next(space, from, true);
}
