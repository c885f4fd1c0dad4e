/* What a request does: which bytes lie where, which blocks it takes, what the map learns after. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/disk/request.h"

/* ---- Growing lists ---- */

static struct disk_piece *new_piece(struct disk_request *r) {
    if (r->piece_count == r->piece_room) {
        size_t room = r->piece_room == 0 ? 4 : r->piece_room * 2;
        struct disk_piece *more = realloc(r->pieces, room * sizeof *more);
        if (more == NULL)
            return NULL;
        r->pieces = more;
        r->piece_room = room;
    }
    return &r->pieces[r->piece_count++];
}

static int add_piece(struct disk_request *r, struct disk_piece piece) {
    struct disk_piece *last = r->piece_count > 0 ? &r->pieces[r->piece_count - 1] : NULL;
    if (last != NULL && last->to == piece.to && last->phase == piece.phase && last->edge == NULL &&
        piece.edge == NULL && last->from + last->length == piece.from &&
        (piece.to == NULL || last->at + last->length == piece.at)) {
        last->length += piece.length;
        return 0;
    }
    struct disk_piece *made = new_piece(r);
    if (made == NULL)
        return -ENOMEM;
    *made = piece;
    return 0;
}

static int add_run(struct disk_request *r, struct disk_run run) {
    if (r->run_count == r->run_room) {
        size_t room = r->run_room == 0 ? 4 : r->run_room * 2;
        struct disk_run *more = realloc(r->runs, room * sizeof *more);
        if (more == NULL)
            return -ENOMEM;
        r->runs = more;
        r->run_room = room;
    }
    r->runs[r->run_count++] = run;
    return 0;
}

/* ---- Looking ---- */

static bool in_place(const struct disk *disk, uint64_t entry) {
    return disk_allocated(entry) && disk_birth(entry) > disk->shared;
}

static uint64_t backing_end(const struct disk *disk) {
    uint64_t limit = disk->superblock.live.backing_limit;
    if (disk->backing == NULL)
        return 0;
    return limit < disk->backing->info.size ? limit : disk->backing->info.size;
}

int disk_classify(struct disk_request *r) {
    struct disk *disk = r->disk;
    uint64_t entry, run;
    r->exclusive = r->guest->operation != BLOCK_READ && r->guest->operation != BLOCK_WRITE;
    if (r->guest->operation != BLOCK_WRITE)
        return 0;
    for (uint64_t block = r->first; block < r->end && !r->exclusive; block++) {
        int result = disk_map_look(&disk->map, block, &entry, &run, &r->missing);
        if (result != 0)
            return result;
        r->exclusive = !in_place(disk, entry);
    }
    return 0;
}

/* Adds pieces for `length` bytes of the disk at `offset`, which has this entry. */
static int add_content(struct disk_request *r, uint64_t entry, uint64_t offset, uint64_t length,
                       struct disk_piece piece) {
    struct disk *disk = r->disk;
    uint64_t end = backing_end(disk);
    if (disk_allocated(entry)) {
        piece.to = disk->file;
        piece.at = disk_physical(entry) * DISK_BLOCK + offset % DISK_BLOCK;
    } else if (entry == 0 && offset < end) {
        uint64_t shown = length < end - offset ? length : end - offset;
        piece.to = disk->backing;
        piece.at = offset;
        piece.length = shown;
        int result = add_piece(r, piece);
        if (result != 0 || shown == length)
            return result;
        piece.from += shown;
        length -= shown;
        piece.to = NULL;
    }
    piece.length = length;
    return add_piece(r, piece);
}

static int plan_read(struct disk_request *r) {
    uint64_t begin = r->guest->offset, end = begin + r->guest->length;
    for (uint64_t offset = begin; offset < end;) {
        uint64_t entry, run, block = offset / DISK_BLOCK;
        int result = disk_map_look(&r->disk->map, block, &entry, &run, &r->missing);
        if (result != 0)
            return result;
        uint64_t until = disk_allocated(entry) ? block + 1 : block + run;
        until = until > r->end ? end : until * DISK_BLOCK;
        until = until > end ? end : until;
        result = add_content(r, entry, offset, until - offset,
                             (struct disk_piece){.phase = PHASE_MOVE, .from = offset - begin});
        if (result != 0)
            return result;
        offset = until;
    }
    return 0;
}

/* ---- Writing ---- */

/* Which part of a block the request writes. */
static void part_of(const struct disk_request *r, uint64_t block, uint64_t *from, uint64_t *to) {
    uint64_t begin = r->guest->offset, end = begin + r->guest->length;
    *from = block * DISK_BLOCK > begin ? block * DISK_BLOCK : begin;
    *to = (block + 1) * DISK_BLOCK < end ? (block + 1) * DISK_BLOCK : end;
}

static bool is_whole(const struct disk_request *r, uint64_t block) {
    uint64_t from, to;
    part_of(r, block, &from, &to);
    return to - from == DISK_BLOCK;
}

/* All leaves are brought in, and stay, before anything is taken. */
static int pin_leaves(struct disk_request *r) {
    struct disk_table *leaf;
    for (uint64_t at = r->first / DISK_ENTRIES; at <= (r->end - 1) / DISK_ENTRIES; at++) {
        int result = disk_map_leaf(&r->disk->map, at * DISK_ENTRIES, &leaf, &r->missing);
        if (result != 0)
            return result;
    }
    for (uint64_t at = r->first / DISK_ENTRIES; at <= (r->end - 1) / DISK_ENTRIES; at++)
        disk_map_find(&r->disk->map, 0, at)->pins++;
    r->pinned = true;
    return 0;
}

/* A partly written block that moves: a buffer, filled with what it keeps. */
static int add_edge(struct disk_request *r, uint64_t block, uint64_t entry, uint64_t physical) {
    struct disk_edge *edge = &r->edges[r->edges[0].bytes != NULL];
    edge->bytes = aligned_alloc(DISK_BLOCK, DISK_BLOCK);
    if (edge->bytes == NULL)
        return -ENOMEM;
    memset(edge->bytes, 0, DISK_BLOCK);
    edge->block = block;
    int result = add_content(r, entry, block * DISK_BLOCK, DISK_BLOCK,
                             (struct disk_piece){.phase = PHASE_FILL, .edge = edge->bytes});
    if (result != 0)
        return result;
    return add_piece(r, (struct disk_piece){.phase = PHASE_MOVE,
                                            .to = r->disk->file,
                                            .edge = edge->bytes,
                                            .at = physical * DISK_BLOCK,
                                            .length = DISK_BLOCK});
}

static uint64_t entry_now(const struct disk_request *r, uint64_t block) {
    return disk_map_find(&r->disk->map, 0, block / DISK_ENTRIES)->entries[block % DISK_ENTRIES];
}

static int write_block(struct disk_request *r, uint64_t block, uint64_t physical) {
    uint64_t from, to;
    part_of(r, block, &from, &to);
    return add_piece(r, (struct disk_piece){.phase = PHASE_MOVE,
                                            .to = r->disk->file,
                                            .from = from - r->guest->offset,
                                            .at = physical * DISK_BLOCK + from % DISK_BLOCK,
                                            .length = to - from});
}

/* New blocks for `count` blocks of the disk from `first` on: as few runs as there can be. */
static int allocate(struct disk_request *r, uint64_t first, uint64_t count) {
    while (count > 0) {
        struct disk_run run = {.first = first};
        int64_t got = disk_space_take(&r->disk->space, count, &run.physical);
        if (got < 0)
            return (int)got;
        run.count = (uint64_t)got;
        int result = add_run(r, run);
        if (result != 0)
            disk_space_release(&r->disk->space, run.physical, run.count);
        for (uint64_t i = 0; i < run.count && result == 0; i++)
            result = is_whole(r, first + i)
                         ? write_block(r, first + i, run.physical + i)
                         : add_edge(r, first + i, entry_now(r, first + i), run.physical + i);
        if (result != 0)
            return result;
        first += run.count;
        count -= run.count;
    }
    return 0;
}

static int plan_write(struct disk_request *r) {
    const struct disk *disk = r->disk;
    int result = r->exclusive ? pin_leaves(r) : 0;
    for (uint64_t block = r->first; block < r->end && result == 0;) {
        uint64_t entry, run, count = 1;
        result = disk_map_look(&r->disk->map, block, &entry, &run, &r->missing);
        if (result == 0 && in_place(disk, entry)) {
            result = write_block(r, block++, disk_physical(entry));
            continue;
        }
        while (result == 0 && block + count < r->end &&
               !in_place(disk, entry_now(r, block + count)))
            count++;
        if (result == 0)
            result = allocate(r, block, count);
        block += count;
    }
    return result;
}

/* ---- Unmapping: discards and zeroes of whole blocks, done in the map at once ---- */

static int unmap_block(struct disk *disk, struct disk_table *leaf, uint64_t block, uint64_t entry) {
    uint64_t *at = &leaf->entries[block % DISK_ENTRIES];
    int result = 0;
    if (*at == entry)
        return 0;
    if (in_place(disk, *at))
        result = disk_add_free(disk, disk_physical(*at), 1);
    else
        disk_removal_lost(disk, *at);
    *at = entry;
    if (result == 0)
        result = disk_add_record(disk, (struct disk_record){block, entry, 1});
    return result;
}

static int plan_unmap(struct disk_request *r) {
    struct disk *disk = r->disk;
    uint64_t target =
        disk->backing != NULL || disk->superblock.backing_format[0] != 0 ? DISK_ZERO : 0;
    r->progress = r->progress > r->first ? r->progress : r->first;
    while (r->progress < r->end) {
        uint64_t entry, run;
        struct disk_table *leaf;
        int result = disk_map_look(&disk->map, r->progress, &entry, &run, &r->missing);
        if (result == 0 && !disk_allocated(entry) && (entry == target || entry == DISK_ZERO)) {
            r->progress += run;
            continue;
        }
        if (result == 0)
            result = disk_map_leaf(&disk->map, r->progress, &leaf, &r->missing);
        if (result != 0)
            return result;
        do
            result = unmap_block(disk, leaf, r->progress++, target);
        while (result == 0 && r->progress < r->end && r->progress % DISK_ENTRIES != 0);
        if (result != 0)
            return result;
    }
    return 0;
}

int disk_plan(struct disk_request *r) {
    r->piece_count = 0;
    switch (r->guest->operation) {
    case BLOCK_READ: return plan_read(r);
    case BLOCK_WRITE: return plan_write(r);
    case BLOCK_DISCARD:
    case BLOCK_WRITE_ZEROES: return plan_unmap(r);
    case BLOCK_FLUSH: break;
    }
    return -EINVAL;
}

/* ---- After ---- */

static void take_over(struct disk *disk, const struct disk_run *run) {
    uint32_t birth = disk->superblock.generation;
    for (uint64_t i = 0; i < run->count; i++) {
        struct disk_table *leaf = NULL;
        struct disk_missing missing;
        /* Pinned: it is there; a checkpoint may have cleaned it meanwhile. */
        if (disk_map_leaf(&disk->map, run->first + i, &leaf, &missing) != 0)
            continue;
        uint64_t *entry = &leaf->entries[(run->first + i) % DISK_ENTRIES];
        disk_removal_lost(disk, *entry);
        *entry = disk_entry(run->physical + i, birth);
    }
    disk_add_record(disk, (struct disk_record){.first = run->first,
                                               .entry = disk_entry(run->physical, birth),
                                               .count = (uint32_t)run->count});
}

void disk_settle(struct disk_request *r, int result) {
    struct disk *disk = r->disk;
    for (size_t i = 0; i < r->run_count; i++) {
        if (result == 0)
            take_over(disk, &r->runs[i]);
        else
            disk_space_release(&disk->space, r->runs[i].physical, r->runs[i].count);
    }
    disk->counts.allocations += r->run_count > 0;
    if (r->pinned)
        for (uint64_t at = r->first / DISK_ENTRIES; at <= (r->end - 1) / DISK_ENTRIES; at++)
            disk_map_find(&disk->map, 0, at)->pins--;
    r->run_count = 0;
    r->pinned = false;
}

void disk_merge_edges(struct disk_request *r) {
    for (unsigned e = 0; e < ARRAY_SIZE(r->edges) && r->edges[e].bytes != NULL; e++) {
        uint64_t from, to, at = 0;
        part_of(r, r->edges[e].block, &from, &to);
        from -= r->guest->offset;
        to -= r->guest->offset;
        uint8_t *into = r->edges[e].bytes + (r->guest->offset + from) % DISK_BLOCK;
        for (unsigned i = 0; i < r->guest->vector_count && at < to; i++) {
            const struct iovec *vector = &r->guest->vectors[i];
            uint64_t begin = at > from ? at : from;
            uint64_t end = at + vector->iov_len < to ? at + vector->iov_len : to;
            if (begin < end)
                memcpy(into + (begin - from), (uint8_t *)vector->iov_base + (begin - at),
                       end - begin);
            at += vector->iov_len;
        }
    }
}

/* Fills `to` with the part of the guest's vectors that is [from, from + length). */
static unsigned slice(const struct block_request *guest, uint64_t from, uint64_t length,
                      struct iovec *to) {
    uint64_t at = 0, until = from + length;
    unsigned count = 0;
    for (unsigned i = 0; i < guest->vector_count && at < until; i++) {
        const struct iovec *vector = &guest->vectors[i];
        uint64_t begin = at > from ? at : from;
        uint64_t end = at + vector->iov_len < until ? at + vector->iov_len : until;
        if (begin < end)
            to[count++] =
                (struct iovec){(uint8_t *)vector->iov_base + (begin - at), (size_t)(end - begin)};
        at += vector->iov_len;
    }
    return count;
}

int disk_slice(struct disk_request *r) {
    size_t room = r->piece_count + r->guest->vector_count + 1, used = 0;
    r->vectors = malloc(room * sizeof *r->vectors);
    if (r->vectors == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < r->piece_count; i++) {
        struct disk_piece *piece = &r->pieces[i];
        piece->owner = r;
        if (piece->edge != NULL) {
            piece->edge_vector = (struct iovec){piece->edge + piece->from, (size_t)piece->length};
            piece->io.vectors = &piece->edge_vector;
            piece->io.vector_count = 1;
            continue;
        }
        piece->io.vectors = r->vectors + used;
        piece->io.vector_count = slice(r->guest, piece->from, piece->length, r->vectors + used);
        used += piece->io.vector_count;
    }
    return 0;
}
