#include "simulated.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

struct step {
    enum block_operation operation;
    uint64_t offset, length;
    uint8_t *data; /* of a write */
};

struct simulated {
    struct block block;
    uint8_t *bytes; /* what a read sees */
    size_t limit;
    uint8_t *start; /* what was there at the beginning */
    size_t start_size;
    struct step *steps;
    size_t count, room;
    bool deferring;
    struct block_request *deferred[256];
    unsigned deferred_count;
    int error;
};

uint64_t simulated_random(uint64_t *state) {
    *state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = *state;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static struct simulated *simulated_of(struct block *block) {
    return container_of(block, struct simulated, block);
}

static void *need(void *memory) {
    if (memory == NULL)
        abort();
    return memory;
}

static void note(struct simulated *device, struct step step) {
    if (device->count == device->room) {
        device->room = device->room == 0 ? 1024 : device->room * 2;
        device->steps = need(realloc(device->steps, device->room * sizeof step));
    }
    device->steps[device->count++] = step;
}

static void copy(struct block_request *request, uint8_t *bytes, bool out) {
    for (unsigned i = 0; i < request->vector_count; i++) {
        if (out)
            memcpy(bytes, request->vectors[i].iov_base, request->vectors[i].iov_len);
        else
            memcpy(request->vectors[i].iov_base, bytes, request->vectors[i].iov_len);
        bytes += request->vectors[i].iov_len;
    }
}

static int perform(struct simulated *device, struct block_request *request) {
    struct step step = {request->operation, request->offset, request->length, NULL};
    uint64_t size = device->block.info.size;
    bool reading = request->operation == BLOCK_READ;
    if (!reading && device->error != 0)
        return device->error;
    if (!range_within(request->offset, request->length, device->limit))
        return -ENOSPC;
    if (reading) {
        copy(request, device->bytes + request->offset, false);
        return 0;
    }
    if (request->operation == BLOCK_WRITE) {
        step.data = need(malloc(request->length));
        copy(request, step.data, true);
        memcpy(device->bytes + request->offset, step.data, request->length);
        if (request->offset + request->length > size)
            device->block.info.size = request->offset + request->length;
    } else if (request->operation != BLOCK_FLUSH) {
        memset(device->bytes + request->offset, 0, request->length);
    }
    note(device, step);
    if (request->durable)
        note(device, (struct step){.operation = BLOCK_FLUSH});
    return 0;
}

static int submit(struct block *block, struct block_request *request) {
    struct simulated *device = simulated_of(block);
    if (device->deferring && request->operation == BLOCK_WRITE &&
        device->deferred_count < ARRAY_SIZE(device->deferred)) {
        device->deferred[device->deferred_count++] = request;
        return 0;
    }
    request->result = perform(device, request);
    return 1;
}

void simulated_defer(struct simulated *device) {
    device->deferring = true;
}

void simulated_release(struct simulated *device, uint64_t *random) {
    device->deferring = false;
    while (device->deferred_count > 0) {
        unsigned i = (unsigned)(simulated_random(random) % device->deferred_count);
        struct block_request *request = device->deferred[i];
        device->deferred[i] = device->deferred[--device->deferred_count];
        request->result = perform(device, request);
        request->done(request);
    }
}

void simulated_fail(struct simulated *device, int error) {
    device->error = error;
}

static void nothing(struct block *block) {
    (void)block;
}

/* The test owns devices: what is built upon them may close them and be gone. */
static const struct block_class simulated_class = {
    .name = "simulated", .submit = submit, .drain = nothing, .close = nothing};

struct simulated *simulated_from(const uint8_t *bytes, size_t size, size_t limit) {
    struct simulated *device = need(calloc(1, sizeof *device));
    device->limit = limit;
    device->bytes = need(calloc(1, limit));
    if (size > 0) {
        device->start = need(malloc(size));
        memcpy(device->start, bytes, size);
        memcpy(device->bytes, bytes, size);
    }
    device->start_size = size;
    device->block.class = &simulated_class;
    device->block.info = (struct block_info){.size = size,
                                             .logical_block = 512,
                                             .physical_block = 4096,
                                             .discard = true,
                                             .name = "simulated"};
    return device;
}

struct simulated *simulated_create(size_t limit) {
    return simulated_from(NULL, 0, limit);
}

void simulated_destroy(struct simulated *device) {
    for (size_t i = 0; i < device->count; i++)
        free(device->steps[i].data);
    free(device->steps);
    free(device->bytes);
    free(device->start);
    free(device);
}

struct block *simulated_block(struct simulated *device) {
    return &device->block;
}

size_t simulated_position(const struct simulated *device) {
    return device->count;
}

/* ---- Crashes ---- */

enum survival { NOTHING, EVERYTHING, WRITES, SECTORS, NEARLY_ALL, HARDLY_ANY, SURVIVALS };

static void apply(struct simulated *to, const struct step *step, uint64_t from, uint64_t length) {
    if (step->operation == BLOCK_WRITE)
        memcpy(to->bytes + step->offset + from, step->data + from, length);
    else
        memset(to->bytes + step->offset + from, 0, length);
    if (step->operation == BLOCK_WRITE && step->offset + from + length > to->block.info.size)
        to->block.info.size = step->offset + from + length;
}

static void survive(struct simulated *to, const struct step *step, enum survival how,
                    uint64_t *random) {
    bool whole = how == EVERYTHING || (how == WRITES && simulated_random(random) % 2 == 0);
    if (how == NOTHING || (how == WRITES && !whole))
        return;
    if (whole) {
        apply(to, step, 0, step->length);
        return;
    }
    unsigned odds = how == SECTORS ? 2 : 16;
    for (uint64_t at = 0; at < step->length; at += BLOCK_SECTOR) {
        bool rare = simulated_random(random) % odds == 0;
        if (how == NEARLY_ALL ? !rare : rare)
            apply(to, step, at, BLOCK_SECTOR);
    }
}

struct simulated *simulated_crash(const struct simulated *device, size_t position,
                                  uint64_t *random) {
    struct simulated *left = simulated_from(device->start, device->start_size, device->limit);
    size_t flushed = position;
    while (flushed > 0 && device->steps[flushed - 1].operation != BLOCK_FLUSH)
        flushed--;
    for (size_t i = 0; i < flushed; i++)
        if (device->steps[i].operation != BLOCK_FLUSH)
            apply(left, &device->steps[i], 0, device->steps[i].length);
    enum survival how = (enum survival)(simulated_random(random) % SURVIVALS);
    for (size_t i = flushed; i < position; i++)
        survive(left, &device->steps[i], how, random);
    free(left->start);
    left->start_size = left->block.info.size;
    left->start = need(malloc(left->start_size + 1));
    memcpy(left->start, left->bytes, left->start_size);
    return left;
}
