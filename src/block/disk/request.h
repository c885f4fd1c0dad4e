/* A request on its way through a disk; requests.c orders them, plan.c works out what each does. */
#ifndef LODGE_BLOCK_DISK_REQUEST_H
#define LODGE_BLOCK_DISK_REQUEST_H

#include "block/disk/private.h"

/* Phase FILL reads what a partly written block keeps, phase MOVE is the request itself. */
enum disk_phase { PHASE_FILL, PHASE_MOVE, PHASES };

/* What a stretch of a request turns into: a request to the file or the backing, or zeroes. */
struct disk_piece {
    struct block_request io;
    struct disk_request *owner;
    struct block *to; /* NULL: reads as zeroes */
    enum disk_phase phase;
    uint64_t from; /* its place in the guest's request, or in an edge */
    uint64_t length;
    uint64_t at;   /* byte of `to` */
    uint8_t *edge; /* an edge's buffer instead of the guest's memory; or NULL */
    struct iovec edge_vector;
};

/* Blocks of the disk that get blocks of the file when the data is there. */
struct disk_run {
    uint64_t first, physical, count;
};

/* The first or last block of a write, when it is written only partly. */
struct disk_edge {
    uint8_t *bytes; /* a block's; NULL: none */
    uint64_t block;
    uint64_t entry; /* what it was */
};

struct disk_request {
    struct disk_request *next, *previous;
    struct disk *disk;
    struct block_request *guest;
    struct pool_job job; /* for the loaders */
    struct disk_missing missing;
    uint64_t first, end; /* blocks */
    bool active;         /* its range is its own as far as it needs it */
    bool exclusive;      /* it changes the map */
    bool loading;
    bool pinned;
    bool commits;      /* completes with a commit */
    uint64_t progress; /* of an unmapping: the block to go on with */
    struct disk_edge edges[2];
    struct disk_run *runs;
    size_t run_count, run_room;
    struct disk_piece *pieces;
    size_t piece_count, piece_room;
    struct iovec *vectors;
    enum disk_phase phase;
    atomic_uint outstanding;
    atomic_int result;
    atomic_int state; /* who completes: the submitter, or whoever ends it */
};

/*
 * All with the disk's lock held. plan: decides what is done and claims what that takes: 0;
 * -EAGAIN: `missing` must be read and all begun anew; another negative errno: it fails.
 */
int disk_classify(struct disk_request *r); /* sets exclusive */
int disk_plan(struct disk_request *r);
/* The data is there (result 0) or is not: the map takes it over, or blocks go back. */
void disk_settle(struct disk_request *r, int result);

/* Without the lock: edges take the guest's bytes, once FILL is through. */
void disk_merge_edges(struct disk_request *r);
/* Points each piece at its part of the guest's vectors. -ENOMEM. */
int disk_slice(struct disk_request *r);

#endif
