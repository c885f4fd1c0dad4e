/*
 * The driver's side of a virtqueue, just enough for tests: lays rings out in
 * guest memory, makes chains available, collects used ones. Split and packed.
 */
#ifndef LODGE_TESTS_DRIVER_RING_H
#define LODGE_TESTS_DRIVER_RING_H

#include <assert.h>
#include <string.h>

#include "base/bytes.h"
#include "memory/memory.h"
#include "virtio/queue.h"

enum { RING_NEXT = 1, RING_WRITE = 2, RING_INDIRECT = 4, RING_AVAIL = 0x80, RING_USED = 0x8000 };
enum {
    RING_DRIVER = 0x4000,
    RING_DEVICE = 0x6000,
    RING_TABLES = 0x10000,
    RING_TABLE_STEP = 0x2000
};

struct driver_ring {
    struct memory *memory;
    uint64_t base;
    uint16_t size;
    bool packed, indirect;
    uint16_t free_count;
    /* split */
    uint16_t free_head, avail, used_seen;
    uint16_t next[VIRTQ_SIZE_MAX];
    /* packed */
    uint16_t slot, used_slot;
    bool wrap, used_wrap;
    uint16_t slots_of_id[VIRTQ_SIZE_MAX];
    bool id_busy[VIRTQ_SIZE_MAX];
};

struct driver_buffer {
    uint64_t address;
    uint32_t length;
};

static inline void ring_poke(struct driver_ring *ring, uint64_t address, const void *from,
                             size_t length) {
    int rc = memory_write(ring->memory, address, from, length);
    assert(rc == 0);
    (void)rc;
}

static inline void ring_poke16(struct driver_ring *ring, uint64_t address, uint16_t value) {
    ring_poke(ring, address, &value, sizeof value);
}

static inline uint16_t ring_peek16(struct driver_ring *ring, uint64_t address) {
    uint16_t value = 0;
    int rc = memory_read(ring->memory, address, &value, sizeof value);
    assert(rc == 0);
    (void)rc;
    return value;
}

static inline void ring_start(struct driver_ring *ring, struct memory *memory, uint64_t base,
                              uint16_t size, bool packed) {
    static const uint8_t zero[0x10000];
    *ring = (struct driver_ring){.memory = memory,
                                 .base = base,
                                 .size = size,
                                 .packed = packed,
                                 .free_count = size,
                                 .wrap = true,
                                 .used_wrap = true};
    ring_poke(ring, base, zero, sizeof zero);
    for (unsigned i = 0; i < size; i++)
        ring->next[i] = (uint16_t)(i + 1);
}

/* Puts the ring's addresses into a queue that is not enabled yet. */
static inline void ring_attach(const struct driver_ring *ring, struct virtq *queue) {
    queue->size = ring->size;
    queue->descriptors = ring->base;
    queue->driver = ring->base + RING_DRIVER;
    queue->device = ring->base + RING_DEVICE;
}

/* A raw descriptor; `link` is next (split) or id (packed). */
static inline void ring_descriptor(struct driver_ring *ring, uint64_t at, uint64_t address,
                                   uint32_t length, uint16_t flags, uint16_t link) {
    uint8_t raw[16];
    store_le64(raw, address);
    store_le32(raw + 8, length);
    store_le16(raw + 12, ring->packed ? link : flags);
    store_le16(raw + 14, ring->packed ? flags : link);
    ring_poke(ring, at, raw, sizeof raw);
}

static inline uint16_t ring_buffer_flags(unsigned i, unsigned readable, unsigned count) {
    return (uint16_t)((i >= readable ? RING_WRITE : 0) | (i + 1 < count ? RING_NEXT : 0));
}

/* Writes an indirect table for the buffers; answers its address. */
static inline uint64_t ring_table(struct driver_ring *ring, uint16_t id,
                                  const struct driver_buffer *buffers, unsigned readable,
                                  unsigned count) {
    uint64_t table = ring->base + RING_TABLES + (uint64_t)id * RING_TABLE_STEP;
    for (unsigned i = 0; i < count; i++) {
        uint16_t flags = ring_buffer_flags(i, readable, count);
        if (ring->packed)
            flags &= ~RING_NEXT;
        ring_descriptor(ring, table + 16 * i, buffers[i].address, buffers[i].length, flags,
                        (uint16_t)(i + 1));
    }
    return table;
}

/* Makes entry `head` available in a split ring, whatever it is. */
static inline void ring_offer(struct driver_ring *ring, uint16_t head) {
    uint64_t driver = ring->base + RING_DRIVER;
    ring_poke16(ring, driver + 4 + 2 * (ring->avail % ring->size), head);
    ring->avail++;
    ring_poke16(ring, driver + 2, ring->avail);
}

static inline int ring_add_split(struct driver_ring *ring, const struct driver_buffer *buffers,
                                 unsigned readable, unsigned count, bool indirect) {
    unsigned need = indirect ? 1 : count;
    if (need > ring->free_count)
        return -1;
    uint16_t head = ring->free_head, at = head;
    for (unsigned i = 0; i < need; i++) {
        uint64_t descriptor = ring->base + 16 * (uint64_t)at;
        if (indirect)
            ring_descriptor(ring, descriptor, ring_table(ring, head, buffers, readable, count),
                            16 * count, RING_INDIRECT, 0);
        else
            ring_descriptor(ring, descriptor, buffers[i].address, buffers[i].length,
                            ring_buffer_flags(i, readable, count), ring->next[at]);
        ring->free_head = ring->next[at];
        at = ring->next[at];
    }
    ring->slots_of_id[head] = (uint16_t)need;
    ring->free_count -= need;
    ring_offer(ring, head);
    return head;
}

static inline int ring_add_packed(struct driver_ring *ring, const struct driver_buffer *buffers,
                                  unsigned readable, unsigned count, bool indirect) {
    unsigned need = indirect ? 1 : count;
    uint16_t id = 0, first = ring->slot, first_flags = 0;
    if (need > ring->free_count)
        return -1;
    while (ring->id_busy[id])
        id++;
    ring->id_busy[id] = true;
    ring->slots_of_id[id] = (uint16_t)need;
    ring->free_count -= need;
    for (unsigned i = 0; i < need; i++) {
        uint16_t flags = ring->wrap ? RING_AVAIL : RING_USED;
        uint64_t address =
            indirect ? ring_table(ring, id, buffers, readable, count) : buffers[i].address;
        uint32_t length = indirect ? 16 * count : buffers[i].length;
        flags |= indirect ? RING_INDIRECT : ring_buffer_flags(i, readable, count);
        if (i == 0)
            first_flags = flags;
        /* The first descriptor's flags come last. */
        ring_descriptor(ring, ring->base + 16 * (uint64_t)ring->slot, address, length,
                        i == 0 ? (ring->wrap ? RING_USED : RING_AVAIL) : flags, id);
        if (++ring->slot == ring->size) {
            ring->slot = 0;
            ring->wrap = !ring->wrap;
        }
    }
    ring_poke16(ring, ring->base + 16 * (uint64_t)first + 14, first_flags);
    return id;
}

/* Offers a chain; the buffers from `readable` on are writable. Its id, or -1 when the ring is full.
 */
static inline int ring_add(struct driver_ring *ring, const struct driver_buffer *buffers,
                           unsigned readable, unsigned count) {
    return ring->packed ? ring_add_packed(ring, buffers, readable, count, ring->indirect)
                        : ring_add_split(ring, buffers, readable, count, ring->indirect);
}

static inline bool ring_used_split(struct driver_ring *ring, uint16_t *id, uint32_t *length) {
    uint64_t device = ring->base + RING_DEVICE;
    if (ring_peek16(ring, device + 2) == ring->used_seen)
        return false;
    uint8_t element[8];
    memory_read(ring->memory, device + 4 + 8 * (ring->used_seen % ring->size), element, 8);
    ring->used_seen++;
    *id = (uint16_t)load_le32(element);
    *length = load_le32(element + 4);
    /* The chain's descriptors go back to the free list, which its links already form. */
    uint16_t tail = *id;
    for (unsigned i = 1; i < ring->slots_of_id[*id]; i++)
        tail = ring->next[tail];
    ring->next[tail] = ring->free_head;
    ring->free_head = *id;
    ring->free_count += ring->slots_of_id[*id];
    return true;
}

static inline bool ring_used_packed(struct driver_ring *ring, uint16_t *id, uint32_t *length) {
    uint8_t raw[16];
    memory_read(ring->memory, ring->base + 16 * (uint64_t)ring->used_slot, raw, sizeof raw);
    uint16_t flags = load_le16(raw + 14);
    bool avail = flags & RING_AVAIL, used = flags & RING_USED;
    if (avail != used || used != ring->used_wrap)
        return false;
    *id = load_le16(raw + 12);
    *length = load_le32(raw + 8);
    ring->used_slot += ring->slots_of_id[*id];
    if (ring->used_slot >= ring->size) {
        ring->used_slot -= ring->size;
        ring->used_wrap = !ring->used_wrap;
    }
    ring->free_count += ring->slots_of_id[*id];
    ring->id_busy[*id] = false;
    return true;
}

/* Collects one used chain. */
static inline bool ring_used(struct driver_ring *ring, uint16_t *id, uint32_t *length) {
    return ring->packed ? ring_used_packed(ring, id, length) : ring_used_split(ring, id, length);
}

#endif
