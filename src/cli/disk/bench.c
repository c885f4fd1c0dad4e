/*
 * lodge disk bench: requests of one size at a depth, on a disk of any format,
 * without a guest. Writes destroy the disk's contents.
 */
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "block/disk/disk.h"
#include "block/sync.h"
#include "cli/disk/tools.h"
#include "cli/exit_codes.h"
#include "cli/options.h"

enum { DEPTH_MAX = 1024, BLOCK_MAX = 16 << 20, ALIGNMENT = 4096 };

struct bench {
    const struct disk_arguments *arguments;
    struct block *block;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct slot *finished; /* may be used again */
    uint64_t place, step, random, places;
    bool random_order;
    int result;
};

struct slot {
    struct block_request request;
    struct iovec vector;
    struct bench *bench;
    struct slot *next;
};

static void finished(struct block_request *request) {
    struct slot *slot = container_of(request, struct slot, request);
    struct bench *bench = slot->bench;
    pthread_mutex_lock(&bench->mutex);
    slot->next = bench->finished;
    bench->finished = slot;
    pthread_cond_signal(&bench->cond);
    pthread_mutex_unlock(&bench->mutex);
}

static struct slot *take_slot(struct bench *bench) {
    pthread_mutex_lock(&bench->mutex);
    while (bench->finished == NULL)
        pthread_cond_wait(&bench->cond, &bench->mutex);
    struct slot *slot = bench->finished;
    bench->finished = slot->next;
    pthread_mutex_unlock(&bench->mutex);
    if (slot->request.result != 0)
        bench->result = slot->request.result;
    return slot;
}

/* A block's place: pseudo-random, or so much further than the last, around the disk's end. */
static uint64_t next_offset(struct bench *bench) {
    uint64_t size = bench->arguments->block_size, at = bench->place;
    if (bench->random_order) {
        bench->random = bench->random * UINT64_C(6364136223846793005) + 1442695040888963407U;
        return (bench->random >> 20) % bench->places * size;
    }
    bench->place = (bench->place + bench->step) % (bench->places * size);
    return at;
}

static void submit(struct bench *bench, struct slot *slot, enum block_operation operation) {
    uint64_t length = bench->arguments->block_size;
    void *memory = slot->vector.iov_base;
    slot->vector.iov_len = length;
    slot->request = (struct block_request){.operation = operation,
                                           .vectors = &slot->vector,
                                           .vector_count = operation != BLOCK_FLUSH,
                                           .length = operation != BLOCK_FLUSH ? length : 0,
                                           .done = finished};
    if (operation != BLOCK_FLUSH)
        slot->request.offset = next_offset(bench);
    if (block_submit(bench->block, &slot->request) == 1) {
        slot->vector.iov_base = memory;
        finished(&slot->request);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Seconds that all requests took. */
static double run(struct bench *bench, struct slot *slots, uint8_t *memory) {
    const struct disk_arguments *a = bench->arguments;
    for (uint64_t i = 0; i < a->depth; i++) {
        slots[i] = (struct slot){.bench = bench, .next = bench->finished};
        bench->finished = &slots[i];
    }
    double begin = now();
    for (uint64_t i = 0; i < a->requests && bench->result == 0; i++) {
        bool flush = a->flush_interval > 0 && i % a->flush_interval == a->flush_interval - 1;
        struct slot *slot = take_slot(bench);
        slot->vector.iov_base = memory + (size_t)(slot - slots) * a->block_size;
        submit(bench, slot, a->write ? BLOCK_WRITE : BLOCK_READ);
        if (flush) {
            slot = take_slot(bench);
            submit(bench, slot, BLOCK_FLUSH);
        }
    }
    for (uint64_t i = 0; i < a->depth; i++)
        take_slot(bench);
    return now() - begin;
}

static void print(const struct disk_arguments *a, struct block *block, double seconds) {
    json_t *json =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:f, s:f}", "format", block->class->name, "operation",
                  a->write ? "write" : "read", "requests", (json_int_t)a->requests, "bytes",
                  (json_int_t)a->block_size, "depth", (json_int_t)a->depth, "seconds", seconds,
                  "per-second", (double)a->requests / seconds);
    if (disk_is(block)) {
        struct disk_counts c;
        disk_get_counts(block, &c);
        json_object_set_new(json, "commits", json_integer((json_int_t)c.commits));
        json_object_set_new(json, "checkpoints", json_integer((json_int_t)c.checkpoints));
        json_object_set_new(json, "commits-per-write",
                            json_real(c.writes > 0 ? (double)c.commits / (double)c.writes : 0));
        json_object_set_new(json, "metadata-bytes", json_integer((json_int_t)c.metadata_bytes));
    }
    if (a->json) {
        json_dumpf(json, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        printf("%s: %" PRIu64 " %ss of %s at depth %" PRIu64 " in %.3f s: %.0f a second\n",
               block->class->name, a->requests, a->write ? "write" : "read",
               disk_tool_bytes(a->block_size), a->depth, seconds, (double)a->requests / seconds);
        if (disk_is(block))
            printf("metadata commits: %lld (%.5f a write), %lld of them checkpoints, %s\n",
                   (long long)json_integer_value(json_object_get(json, "commits")),
                   json_real_value(json_object_get(json, "commits-per-write")),
                   (long long)json_integer_value(json_object_get(json, "checkpoints")),
                   disk_tool_bytes(
                       (uint64_t)json_integer_value(json_object_get(json, "metadata-bytes"))));
    }
    json_decref(json);
}

static int set_up(struct bench *bench, const struct disk_arguments *a, struct error *err) {
    uint64_t size = a->block_size;
    bench->arguments = a;
    bench->random = 1;
    if (size == 0 || size % BLOCK_SECTOR != 0 || size > BLOCK_MAX || a->depth == 0 ||
        a->depth > DEPTH_MAX)
        return error_set(err, -EINVAL, "blocks have 512 bytes to 16M, the depth is 1 to %d",
                         DEPTH_MAX);
    bench->places = bench->block->info.size / size;
    if (bench->places == 0)
        return error_set(err, -EINVAL, "the disk is smaller than one block");
    bench->random_order = strcmp(a->pattern, "random") == 0;
    bench->step = size;
    if (bench->random_order || strcmp(a->pattern, "sequential") == 0)
        return 0;
    int result = parse_size(a->pattern, &bench->step, err);
    if (result == 0 && bench->step % size != 0)
        result = error_set(err, -EINVAL, "the step is a multiple of the blocks' size");
    return result;
}

int disk_tool_bench(const struct disk_arguments *a, struct error *err) {
    struct bench bench = {.mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    if (a->count != 1)
        return error_set(err, -EINVAL, "usage: lodge disk bench FILE");
    int result = disk_tool_open(a->operands[0], !a->write, &bench.block, err);
    if (result != 0)
        return result;
    result = set_up(&bench, a, err);
    struct slot *slots = calloc(a->depth, sizeof *slots);
    uint8_t *memory = aligned_alloc(ALIGNMENT, round_up(a->depth * a->block_size, ALIGNMENT));
    if (slots == NULL || memory == NULL) {
        result = error_set(err, -ENOMEM, "no memory");
    } else if (result == 0) {
        memset(memory, 0x5a, a->depth * a->block_size);
        double seconds = run(&bench, slots, memory);
        result = bench.result;
        if (result == 0)
            print(a, bench.block, seconds);
        else
            error_set_errno(err, result, "%s: a request failed", a->operands[0]);
    }
    block_close(bench.block);
    free(slots);
    free(memory);
    return result;
}
