/*
 * The queue walker against arbitrary rings. Input: a byte of features, a byte
 * of size, then guest memory from address 0 (see the areas below). Memory
 * changes behind the walker's back at every access, as a hostile guest's
 * other vCPU would do it: what is checked must be what is used.
 *
 * libFuzzer ends the run on a crash, a hang, or a broken promise of
 * virtio/queue.h (trap).
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/bytes.h"
#include "virtio/queue.h"

enum { RAM = 0x2000, DRIVER = 0x400, DEVICE = 0x600, SIZE_MAX_FUZZED = 32, TURNS = 200 };
enum { PACKED = 1, EVENT_INDEX = 2, INDIRECT = 4, HONEST = 8 };

static uint8_t ram[RAM];
static uint32_t noise;
static bool honest;
static unsigned breaks;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

static void require(bool promise) {
    if (!promise)
        __builtin_trap();
}

static void meddle(void) {
    if (honest)
        return;
    noise = noise * 1664525u + 1013904223u;
    if (noise >> 29 == 0)
        ram[(noise >> 8) % RAM] ^= (uint8_t)(noise >> 21);
}

/* The walker's only way to memory: this guest's. */
int dma_read(const struct dma_context *dma, uint64_t iova, void *to, size_t length) {
    if (!range_within(iova, length, RAM))
        return -EFAULT;
    memcpy(to, ram + iova, length);
    meddle();
    return 0;
}

int dma_write(const struct dma_context *dma, uint64_t iova, const void *from, size_t length) {
    if (!range_within(iova, length, RAM))
        return -EFAULT;
    memcpy(ram + iova, from, length);
    meddle();
    return 0;
}

void *dma_map(const struct dma_context *dma, uint64_t iova, size_t *length, bool write) {
    if (iova >= RAM)
        return NULL;
    if (*length > RAM - iova)
        *length = RAM - iova;
    return ram + iova;
}

void dma_unmap(const struct dma_context *dma, uint64_t iova, size_t written) {
    require(range_within(iova, written, RAM));
}

static void on_interrupt(void *context, struct virtq *queue) {
}

static void on_broken(void *context, struct virtq *queue, const char *why) {
    require(++breaks == 1);
}

static void check_chain(const struct virtq_chain *chain) {
    uint64_t readable = 0, writable = 0;
    require(chain->readable <= chain->count && chain->count <= VIRTQ_CHAIN_MAX);
    for (unsigned i = 0; i < chain->count; i++) {
        require(chain->segments[i].length != 0);
        *(i < chain->readable ? &readable : &writable) += chain->segments[i].length;
    }
    require(readable == chain->readable_length && writable == chain->writable_length);
}

static void use_chain(struct virtq *queue, const struct virtq_chain *chain) {
    uint8_t bytes[64] = {0};
    struct iovec vectors[8];
    virtq_read(queue, chain, noise % 100, bytes, sizeof bytes);
    virtq_write(queue, chain, noise % 50, bytes, sizeof bytes);
    uint32_t part = chain->writable_length / 2;
    if (virtq_map(queue, chain, true, part, chain->writable_length - part, vectors, 8) > 0)
        virtq_wrote(queue, chain, part, chain->writable_length - part);
}

static void run(struct virtq *queue) {
    static struct virtq_chain chain;
    struct virtq_token held[4];
    unsigned count = 0;
    for (unsigned turn = 0; turn < TURNS; turn++) {
        noise = noise * 1664525u + 1013904223u;
        unsigned action = noise >> 29;
        if (action < 4 && count < ARRAY_SIZE(held) && virtq_pop(queue, &chain)) {
            check_chain(&chain);
            use_chain(queue, &chain);
            held[count++] = chain.token;
        } else if (action == 4 && count > 0) {
            virtq_unpop(queue, held[--count]);
        } else if (action <= 6 && count > 0) {
            virtq_push(queue, held[--count], noise & 0xff);
            virtq_signal(queue);
        } else if (noise & 1) {
            virtq_listen(queue);
        } else {
            virtq_quiet(queue);
        }
        require(virtq_in_flight(queue) <= queue->size);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    static const struct dma_context dma;
    static const struct virtq_owner owner = {&dma, on_interrupt, on_broken, NULL};
    struct virtq queue;
    if (length < 2)
        return 0;
    memset(ram, 0, sizeof ram);
    memcpy(ram, data + 2, length - 2 < RAM ? length - 2 : RAM);
    noise = data[1] * 2654435761u;
    honest = data[0] & HONEST;
    breaks = 0;
    virtq_init(&queue, &owner, 0, SIZE_MAX_FUZZED);
    queue.size = data[1];
    queue.descriptors = 0;
    queue.driver = DRIVER;
    queue.device = DEVICE;
    virtq_enable(&queue, (struct virtq_features){.packed = data[0] & PACKED,
                                                 .event_index = data[0] & EVENT_INDEX,
                                                 .indirect = data[0] & INDIRECT});
    run(&queue);
    return 0;
}
