#include "virtio/queue.h"

#include <stdatomic.h>

#include "base/bytes.h"

enum { DESCRIPTOR_SIZE = 16 };

/* Descriptor flags: 2.7.5 and 2.8.10. */
enum {
    F_NEXT = 1,
    F_WRITE = 2,
    F_INDIRECT = 4,
    F_AVAIL = 1 << 7,
    F_USED = 1 << 15,
};

/* Flags of the split areas (2.7.6, 2.7.8) and of the packed event structures (2.8.14). */
enum { SPLIT_NO_EVENT = 1 };
enum { EVENT_ENABLE = 0, EVENT_DISABLE = 1, EVENT_AT = 2, EVENT_FLAGS_MASK = 3 };

/* One descriptor, in the form that both layouts share. */
struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t link; /* split: next; packed: id */
};

static const struct state_field virtq_fields[] = {
    STATE_FIELD(struct virtq, size, 1),
    STATE_FIELD(struct virtq, vector, 1, .reset = 0xffff),
    STATE_FIELD(struct virtq, descriptors, 1),
    STATE_FIELD(struct virtq, driver, 1),
    STATE_FIELD(struct virtq, device, 1),
    STATE_FIELD(struct virtq, ready, 1),
    STATE_FIELD(struct virtq, packed, 1),
    STATE_FIELD(struct virtq, event_index, 1),
    STATE_FIELD(struct virtq, indirect, 1),
    STATE_FIELD(struct virtq, broken, 1),
    STATE_FIELD(struct virtq, avail_wrap, 1),
    STATE_FIELD(struct virtq, used_wrap, 1),
    STATE_FIELD(struct virtq, avail, 1),
    STATE_FIELD(struct virtq, used, 1),
    STATE_FIELD(struct virtq, in_flight, 1),
    STATE_FIELD(struct virtq, unsignalled, 1),
};

static const char *check_setup(const struct virtq *queue);

static int virtq_after_load(void *object, struct error *err) {
    const struct virtq *queue = object;
    const char *why = queue->ready ? check_setup(queue) : NULL;
    if (why == NULL && queue->ready && queue->in_flight > queue->size)
        why = "more in flight than its size";
    if (why == NULL && queue->ready && queue->packed &&
        (queue->avail >= queue->size || queue->used >= queue->size))
        why = "position outside the ring";
    return why == NULL ? 0 : error_set(err, -EINVAL, "virtqueue state: %s", why);
}

const struct state_table virtq_state =
    STATE_TABLE("virtqueue", 1, struct virtq, virtq_fields, .after_load = virtq_after_load);

/* ---- Life ---- */

void virtq_init(struct virtq *queue, const struct virtq_owner *owner, uint16_t index,
                uint16_t size_max) {
    *queue = (struct virtq){.owner = owner, .index = index, .size_max = size_max};
    virtq_reset(queue);
}

void virtq_reset(struct virtq *queue) {
    if (queue->wait.here != NULL)
        dma_await_cancel(queue->owner->dma, &queue->wait);
    queue->waiting = false;
    state_reset(&virtq_state, queue);
    queue->size = queue->size_max;
}

void virtq_break(struct virtq *queue, const char *why) {
    if (queue->broken)
        return;
    queue->broken = true;
    queue->owner->broken(queue->owner->context, queue, why);
}

/* NULL, or what is wrong with what the driver set up. */
static const char *check_setup(const struct virtq *queue) {
    if (queue->size == 0 || queue->size > queue->size_max)
        return "bad queue size";
    if (!queue->packed && !is_power_of_two(queue->size))
        return "size of a split queue is no power of two";
    uint64_t driver_align = queue->packed ? 4 : 2;
    if (queue->descriptors % 16 != 0 || queue->driver % driver_align != 0 || queue->device % 4 != 0)
        return "misaligned queue area";
    return NULL;
}

void virtq_enable(struct virtq *queue, struct virtq_features features) {
    if (queue->ready)
        return;
    queue->packed = features.packed;
    queue->event_index = features.event_index;
    queue->indirect = features.indirect;
    queue->avail_wrap = queue->used_wrap = true;
    queue->avail = queue->used = queue->in_flight = queue->unsignalled = 0;
    const char *why = check_setup(queue);
    if (why != NULL)
        virtq_break(queue, why);
    else
        queue->ready = true;
}

/* ---- Access to ring memory: every byte goes through these ---- */

static bool usable(const struct virtq *queue) {
    return queue->ready && !queue->broken;
}

static bool ring_read(struct virtq *queue, uint64_t address, void *to, size_t length) {
    if (dma_read(queue->owner->dma, address, to, length) == 0)
        return true;
    virtq_break(queue, "ring or descriptor table is not in memory");
    return false;
}

static bool ring_write(struct virtq *queue, uint64_t address, const void *from, size_t length) {
    if (dma_write(queue->owner->dma, address, from, length) == 0)
        return true;
    virtq_break(queue, "ring is not in writable memory");
    return false;
}

static bool read16(struct virtq *queue, uint64_t address, uint16_t *value) {
    return ring_read(queue, address, value, sizeof *value);
}

static bool write16(struct virtq *queue, uint64_t address, uint16_t value) {
    return ring_write(queue, address, &value, sizeof value);
}

static struct descriptor decode(const struct virtq *queue, const uint8_t *raw) {
    uint16_t first = load_le16(raw + 12), second = load_le16(raw + 14);
    return (struct descriptor){
        .address = load_le64(raw),
        .length = load_le32(raw + 8),
        .flags = queue->packed ? second : first,
        .link = queue->packed ? first : second,
    };
}

static bool read_descriptor(struct virtq *queue, uint64_t table, uint16_t index,
                            struct descriptor *descriptor) {
    uint8_t raw[DESCRIPTOR_SIZE];
    if (!ring_read(queue, table + (uint64_t)index * DESCRIPTOR_SIZE, raw, sizeof raw))
        return false;
    *descriptor = decode(queue, raw);
    return true;
}

/* Where the fields after the split rings are. */
static uint64_t split_used_event(const struct virtq *queue) {
    return queue->driver + 4 + 2 * (uint64_t)queue->size;
}

static uint64_t split_avail_event(const struct virtq *queue) {
    return queue->device + 4 + 8 * (uint64_t)queue->size;
}

/* ---- Memory that is away ---- */

static void came(void *context) {
    struct virtq *queue = context;
    queue->owner->came(queue->owner->context, queue);
}

/* True: there is something to wait for, and then the queue is served. */
static bool await_bytes(struct virtq *queue, uint64_t address, uint64_t length) {
    if (!virtq_any_away(queue))
        return false;
    queue->wait.here = came;
    queue->wait.context = queue;
    if (!dma_await(queue->owner->dma, address, length, &queue->wait))
        return false;
    queue->waiting = true;
    return true;
}

bool virtq_is_here(struct virtq *queue) {
    uint64_t size = queue->size;
    queue->waiting = false;
    if (!usable(queue) || !virtq_any_away(queue))
        return true;
    bool away = await_bytes(queue, queue->descriptors, size * DESCRIPTOR_SIZE);
    away |= await_bytes(queue, queue->driver, queue->packed ? 4 : 6 + 2 * size);
    away |= await_bytes(queue, queue->device, queue->packed ? 4 : 6 + 8 * size);
    return !away;
}

bool virtq_await(struct virtq *queue, const struct virtq_chain *chain) {
    bool away = false;
    if (!virtq_any_away(queue))
        return false;
    for (unsigned i = 0; i < chain->count; i++)
        away |= await_bytes(queue, chain->segments[i].address, chain->segments[i].length);
    return away;
}

/* ---- Chains ---- */

/* Adds a buffer to the chain; NULL or what rule it breaks. */
static const char *add_segment(struct virtq_chain *chain, const struct descriptor *descriptor) {
    bool writable = descriptor->flags & F_WRITE;
    if (!writable && chain->count > chain->readable)
        return "readable buffer after a writable one";
    uint32_t *total = writable ? &chain->writable_length : &chain->readable_length;
    if (descriptor->length > UINT32_MAX - *total)
        return "chain of more than 4 GiB";
    if (descriptor->length != 0 && descriptor->address > UINT64_MAX - (descriptor->length - 1))
        return "buffer wraps around the address space";
    *total += descriptor->length;
    if (descriptor->length == 0)
        return NULL;
    if (chain->count == VIRTQ_CHAIN_MAX)
        return "chain of too many buffers";
    chain->segments[chain->count++] =
        (struct virtq_segment){.address = descriptor->address, .length = descriptor->length};
    if (!writable)
        chain->readable++;
    return NULL;
}

/* The rules for a descriptor that names an indirect table (2.7.5.3.1, 2.8.19). */
static const char *check_indirect(const struct virtq *queue, const struct descriptor *descriptor) {
    if (!queue->indirect)
        return "indirect descriptor without the feature";
    if (descriptor->flags & F_NEXT)
        return "indirect descriptor with a next one";
    if (descriptor->length == 0 || descriptor->length % DESCRIPTOR_SIZE != 0)
        return "indirect table of a bad length";
    if (descriptor->length / DESCRIPTOR_SIZE > VIRTQ_CHAIN_MAX)
        return "indirect table of too many entries";
    if (descriptor->address > UINT64_MAX - descriptor->length)
        return "indirect table wraps around the address space";
    return NULL;
}

/* Walks a copied table: entries linked by NEXT (split), or all of them in order (packed). */
static const char *walk_table(const struct virtq *queue, const uint8_t *table, unsigned entries,
                              struct virtq_chain *chain) {
    unsigned index = 0;
    for (unsigned steps = 0; steps < entries; steps++) {
        struct descriptor descriptor = decode(queue, table + index * DESCRIPTOR_SIZE);
        if (descriptor.flags & F_INDIRECT)
            return "indirect table in an indirect table";
        const char *why = add_segment(chain, &descriptor);
        if (why != NULL)
            return why;
        if (queue->packed) {
            index++;
            continue;
        }
        if (!(descriptor.flags & F_NEXT))
            return NULL;
        index = descriptor.link;
        if (index >= entries)
            return "link outside the indirect table";
    }
    return queue->packed ? NULL : "loop in an indirect table";
}

static bool add_indirect(struct virtq *queue, const struct descriptor *descriptor,
                         struct virtq_chain *chain) {
    uint8_t table[VIRTQ_CHAIN_MAX * DESCRIPTOR_SIZE];
    const char *why = check_indirect(queue, descriptor);
    if (why == NULL) {
        if (await_bytes(queue, descriptor->address, descriptor->length) ||
            !ring_read(queue, descriptor->address, table, descriptor->length))
            return false;
        why = walk_table(queue, table, descriptor->length / DESCRIPTOR_SIZE, chain);
    }
    if (why != NULL)
        virtq_break(queue, why);
    return why == NULL;
}

/* Adds what one ring descriptor stands for: a buffer or a table of them. */
static bool add_descriptor(struct virtq *queue, const struct descriptor *descriptor,
                           struct virtq_chain *chain) {
    if (descriptor->flags & F_INDIRECT)
        return add_indirect(queue, descriptor, chain);
    const char *why = add_segment(chain, descriptor);
    if (why != NULL)
        virtq_break(queue, why);
    return why == NULL;
}

static void start_chain(struct virtq_chain *chain) {
    chain->token = (struct virtq_token){.slots = 1};
    chain->readable = chain->count = 0;
    chain->readable_length = chain->writable_length = 0;
}

/* ---- Taking: split ---- */

/* The number of chains available and not taken; -1 when the queue broke. */
static int split_available(struct virtq *queue) {
    uint16_t index;
    if (!read16(queue, queue->driver + 2, &index))
        return -1;
    /* What the index covers is read after the index. */
    atomic_thread_fence(memory_order_acquire);
    uint16_t count = index - queue->avail;
    if (count <= queue->size)
        return count;
    virtq_break(queue, "available index ran ahead of the ring");
    return -1;
}

static bool split_walk(struct virtq *queue, uint16_t head, struct virtq_chain *chain) {
    uint16_t index = head;
    for (unsigned steps = 0; steps < queue->size; steps++) {
        struct descriptor descriptor;
        if (index >= queue->size) {
            virtq_break(queue, "descriptor outside the ring");
            return false;
        }
        if (!read_descriptor(queue, queue->descriptors, index, &descriptor) ||
            !add_descriptor(queue, &descriptor, chain))
            return false;
        if (!(descriptor.flags & F_NEXT))
            return true;
        index = descriptor.link;
    }
    virtq_break(queue, "loop of descriptors");
    return false;
}

static bool split_pop(struct virtq *queue, struct virtq_chain *chain) {
    if (split_available(queue) <= 0)
        return false;
    uint64_t entry = queue->driver + 4 + 2 * (uint64_t)(queue->avail & (queue->size - 1));
    uint16_t head;
    if (!read16(queue, entry, &head))
        return false;
    chain->token.id = head;
    if (!split_walk(queue, head, chain))
        return false;
    queue->avail++;
    return true;
}

/* ---- Taking: packed ---- */

static uint64_t packed_slot(const struct virtq *queue, uint16_t slot) {
    return queue->descriptors + (uint64_t)slot * DESCRIPTOR_SIZE;
}

static bool packed_is_available(const struct virtq *queue, uint16_t flags) {
    bool avail = flags & F_AVAIL, used = flags & F_USED;
    return avail == queue->avail_wrap && used != queue->avail_wrap;
}

/* 1: the next descriptor is the device's; 0: not yet; -1: the queue broke. */
static int packed_available(struct virtq *queue) {
    uint16_t flags;
    if (!read16(queue, packed_slot(queue, queue->avail) + 14, &flags))
        return -1;
    /* The rest of the descriptor is read after its flags. */
    atomic_thread_fence(memory_order_acquire);
    return packed_is_available(queue, flags);
}

static void packed_advance(const struct virtq *queue, uint16_t *slot, bool *wrap, unsigned count) {
    unsigned next = *slot + count;
    if (next >= queue->size) {
        next -= queue->size;
        *wrap = !*wrap;
    }
    *slot = (uint16_t)next;
}

static bool packed_pop(struct virtq *queue, struct virtq_chain *chain) {
    if (packed_available(queue) <= 0)
        return false;
    uint16_t slot = queue->avail;
    bool wrap = queue->avail_wrap;
    unsigned slots = 0;
    struct descriptor descriptor;
    do {
        if (++slots > queue->size) {
            virtq_break(queue, "chain longer than the ring");
            return false;
        }
        if (!read_descriptor(queue, queue->descriptors, slot, &descriptor) ||
            !add_descriptor(queue, &descriptor, chain))
            return false;
        packed_advance(queue, &slot, &wrap, 1);
    } while (descriptor.flags & F_NEXT);
    chain->token = (struct virtq_token){.id = descriptor.link, .slots = (uint16_t)slots};
    queue->avail = slot;
    queue->avail_wrap = wrap;
    return true;
}

bool virtq_pop_away(struct virtq *queue, struct virtq_chain *chain) {
    if (!usable(queue) || !virtq_is_here(queue))
        return false;
    start_chain(chain);
    if (!(queue->packed ? packed_pop(queue, chain) : split_pop(queue, chain)))
        return false;
    if (chain->token.slots > queue->size - queue->in_flight) {
        virtq_break(queue, "more chains outstanding than the ring holds");
        return false;
    }
    queue->in_flight += chain->token.slots;
    return true;
}

bool virtq_pop(struct virtq *queue, struct virtq_chain *chain) {
    if (!virtq_pop_away(queue, chain))
        return false;
    if (!virtq_await(queue, chain))
        return true;
    virtq_unpop(queue, chain->token);
    return false;
}

void virtq_unpop(struct virtq *queue, struct virtq_token token) {
    if (!usable(queue) || token.slots > queue->in_flight)
        return;
    queue->in_flight -= token.slots;
    if (!queue->packed) {
        queue->avail--;
    } else if (queue->avail >= token.slots) {
        queue->avail -= token.slots;
    } else {
        queue->avail = (uint16_t)(queue->avail + queue->size - token.slots);
        queue->avail_wrap = !queue->avail_wrap;
    }
}

/* ---- Giving back ---- */

static void split_push(struct virtq *queue, struct virtq_token token, uint32_t written) {
    uint8_t element[8];
    store_le32(element, token.id);
    store_le32(element + 4, written);
    uint64_t entry = queue->device + 4 + 8 * (uint64_t)(queue->used & (queue->size - 1));
    if (!ring_write(queue, entry, element, sizeof element))
        return;
    /* The element is there before the index that covers it. */
    atomic_thread_fence(memory_order_release);
    if (write16(queue, queue->device + 2, (uint16_t)(queue->used + 1)))
        queue->used++;
}

static void packed_push(struct virtq *queue, struct virtq_token token, uint32_t written) {
    uint64_t slot = packed_slot(queue, queue->used);
    uint8_t element[6];
    store_le32(element, written);
    store_le16(element + 4, token.id);
    if (!ring_write(queue, slot + 8, element, sizeof element))
        return;
    uint16_t flags = (queue->used_wrap ? F_AVAIL | F_USED : 0) | (written != 0 ? F_WRITE : 0);
    /* The flags hand the descriptor over: last. */
    atomic_thread_fence(memory_order_release);
    if (write16(queue, slot + 14, flags))
        packed_advance(queue, &queue->used, &queue->used_wrap, token.slots);
}

void virtq_push(struct virtq *queue, struct virtq_token token, uint32_t written) {
    if (!usable(queue) || token.slots > queue->in_flight)
        return;
    if (queue->packed)
        packed_push(queue, token, written);
    else
        split_push(queue, token, written);
    queue->in_flight -= token.slots;
    if (queue->unsignalled <= queue->size)
        queue->unsignalled += token.slots;
}

/* ---- Events ---- */

/* Did the position pass `event` in the last `moved` steps that led to `now`? (2.7.10) */
static bool passed(uint16_t event, uint16_t now, uint16_t moved) {
    return (uint16_t)(now - event - 1) < moved;
}

static bool split_wants_interrupt(struct virtq *queue, uint16_t moved) {
    uint16_t value;
    if (queue->event_index)
        return read16(queue, split_used_event(queue), &value) && passed(value, queue->used, moved);
    return read16(queue, queue->driver, &value) && !(value & SPLIT_NO_EVENT);
}

static bool packed_wants_interrupt(struct virtq *queue, uint16_t moved) {
    uint8_t event[4];
    if (!ring_read(queue, queue->driver, event, sizeof event))
        return false;
    unsigned flags = load_le16(event + 2) & EVENT_FLAGS_MASK;
    if (flags != EVENT_AT || !queue->event_index)
        return flags != EVENT_DISABLE;
    uint16_t position = load_le16(event) & 0x7fff;
    bool wrap = load_le16(event) >> 15;
    if (wrap != queue->used_wrap)
        position -= queue->size;
    return passed(position, queue->used, moved);
}

void virtq_signal(struct virtq *queue) {
    if (!usable(queue) || queue->unsignalled == 0)
        return;
    uint16_t moved = queue->unsignalled;
    queue->unsignalled = 0;
    /* Used entries are visible before we look whether the driver sleeps. */
    atomic_thread_fence(memory_order_seq_cst);
    if (moved > queue->size || (queue->packed ? packed_wants_interrupt(queue, moved)
                                              : split_wants_interrupt(queue, moved)))
        queue->owner->interrupt(queue->owner->context, queue);
}

static void packed_set_event(struct virtq *queue, uint16_t flags) {
    uint8_t event[4];
    store_le16(event, (uint16_t)(queue->avail | queue->avail_wrap << 15));
    store_le16(event + 2, flags);
    ring_write(queue, queue->device, event, sizeof event);
}

void virtq_quiet(struct virtq *queue) {
    if (!usable(queue))
        return;
    if (queue->packed)
        packed_set_event(queue, EVENT_DISABLE);
    else if (!queue->event_index)
        write16(queue, queue->device, SPLIT_NO_EVENT);
    /* Split with EVENT_IDX: avail_event stays behind, which says the same. */
}

bool virtq_listen(struct virtq *queue) {
    if (!usable(queue) || queue->waiting)
        return false;
    if (queue->packed)
        packed_set_event(queue, queue->event_index ? EVENT_AT : EVENT_ENABLE);
    else if (queue->event_index)
        write16(queue, split_avail_event(queue), queue->avail);
    else
        write16(queue, queue->device, 0);
    /* The driver sees the request, or we see its chain. */
    atomic_thread_fence(memory_order_seq_cst);
    if (!usable(queue))
        return false;
    return (queue->packed ? packed_available(queue) : split_available(queue)) > 0;
}

/* ---- Data ---- */

/* One contiguous piece of a range in a chain. */
struct piece {
    uint64_t address;
    uint32_t length;
};

struct cursor {
    const struct virtq_chain *chain;
    unsigned segment, end;
    uint32_t skip; /* bytes before the range */
};

static struct cursor cursor_at(const struct virtq_chain *chain, bool writable, uint32_t offset) {
    return (struct cursor){
        .chain = chain,
        .segment = writable ? chain->readable : 0,
        .end = writable ? chain->count : chain->readable,
        .skip = offset,
    };
}

/* The next piece, of at most `limit` bytes; false at the chain's end. */
static bool cursor_next(struct cursor *cursor, size_t limit, struct piece *piece) {
    for (; cursor->segment < cursor->end; cursor->segment++) {
        const struct virtq_segment *segment = &cursor->chain->segments[cursor->segment];
        if (cursor->skip >= segment->length) {
            cursor->skip -= segment->length;
            continue;
        }
        uint32_t left = segment->length - cursor->skip;
        piece->address = segment->address + cursor->skip;
        piece->length = left < limit ? left : (uint32_t)limit;
        cursor->skip += piece->length;
        return true;
    }
    return false;
}

ssize_t virtq_read(struct virtq *queue, const struct virtq_chain *chain, uint32_t offset, void *to,
                   size_t length) {
    struct cursor cursor = cursor_at(chain, false, offset);
    struct piece piece;
    size_t done = 0;
    while (done < length && cursor_next(&cursor, length - done, &piece)) {
        if (dma_read(queue->owner->dma, piece.address, (uint8_t *)to + done, piece.length) != 0) {
            virtq_break(queue, "buffer is not in memory");
            return -EFAULT;
        }
        done += piece.length;
    }
    return (ssize_t)done;
}

ssize_t virtq_write(struct virtq *queue, const struct virtq_chain *chain, uint32_t offset,
                    const void *from, size_t length) {
    struct cursor cursor = cursor_at(chain, true, offset);
    struct piece piece;
    size_t done = 0;
    while (done < length && cursor_next(&cursor, length - done, &piece)) {
        const uint8_t *bytes = (const uint8_t *)from + done;
        if (dma_write(queue->owner->dma, piece.address, bytes, piece.length) != 0) {
            virtq_break(queue, "buffer is not in writable memory");
            return -EFAULT;
        }
        done += piece.length;
    }
    return (ssize_t)done;
}

int virtq_map(struct virtq *queue, const struct virtq_chain *chain, bool writable, uint32_t offset,
              uint32_t length, struct iovec *vectors, unsigned max) {
    struct cursor cursor = cursor_at(chain, writable, offset);
    struct piece piece;
    unsigned count = 0;
    while (length > 0 && cursor_next(&cursor, length, &piece)) {
        size_t mapped = piece.length;
        void *host = dma_map(queue->owner->dma, piece.address, &mapped, writable);
        if (host == NULL || mapped == 0) {
            virtq_break(queue, "buffer is not in memory");
            return -EFAULT;
        }
        if (count == max)
            return -E2BIG;
        vectors[count++] = (struct iovec){.iov_base = host, .iov_len = mapped};
        length -= (uint32_t)mapped;
        cursor.skip -= piece.length - (uint32_t)mapped;
    }
    if (length == 0)
        return (int)count;
    virtq_break(queue, "chain too short");
    return -EFAULT;
}

void virtq_wrote(struct virtq *queue, const struct virtq_chain *chain, uint32_t offset,
                 uint32_t length) {
    struct cursor cursor = cursor_at(chain, true, offset);
    struct piece piece;
    while (length > 0 && cursor_next(&cursor, length, &piece)) {
        dma_unmap(queue->owner->dma, piece.address, piece.length);
        length -= piece.length;
    }
}
