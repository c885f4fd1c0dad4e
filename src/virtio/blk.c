#include "virtio/blk.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"

enum { QUEUES = VIRTIO_QUEUES_MAX, QUEUE_SIZE = 256 };

/* Feature bits: 5.2.3. */
enum {
    F_SIZE_MAX = 1,
    F_SEG_MAX = 2,
    F_GEOMETRY = 4,
    F_RO = 5,
    F_BLK_SIZE = 6,
    F_FLUSH = 9,
    F_TOPOLOGY = 10,
    F_MQ = 12,
    F_DISCARD = 13,
    F_WRITE_ZEROES = 14,
};

/* Requests: 5.2.6. */
enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };
enum { HEADER_SIZE = 16, RANGE_SIZE = 16, RANGE_UNMAP = 1 };

/* Limits told in the configuration; a request beyond LENGTH_MAX is an I/O error. */
enum { SEGMENTS_MAX = 254, SEGMENT_SIZE_MAX = 1 << 20, LENGTH_MAX = 256 << 20 };
enum { DISCARD_SECTORS_MAX = 1 << 22, ZERO_SECTORS_MAX = 1 << 17 };

/* struct virtio_blk_config: 5.2.4. */
enum {
    CONFIG_CAPACITY = 0,
    CONFIG_SIZE_MAX = 8,
    CONFIG_SEG_MAX = 12,
    CONFIG_CYLINDERS = 16,
    CONFIG_HEADS = 18,
    CONFIG_SECTORS = 19,
    CONFIG_BLK_SIZE = 20,
    CONFIG_PHYSICAL_EXPONENT = 24,
    CONFIG_MIN_IO = 26,
    CONFIG_QUEUES = 34,
    CONFIG_DISCARD_SECTORS = 36,
    CONFIG_DISCARD_SEGMENTS = 40,
    CONFIG_DISCARD_ALIGNMENT = 44,
    CONFIG_ZERO_SECTORS = 48,
    CONFIG_ZERO_SEGMENTS = 52,
    CONFIG_ZERO_UNMAP = 56,
    CONFIG_SIZE = 60,
};

/*
 * Requests that are done when they are submitted come back one by one, each with an interrupt,
 * though the driver may be about to submit more. So when they come fast it is tried to interrupt
 * once for several. Where they then fail to come, as the driver waits for each, there is an
 * interrupt after IDLE_NS, and for as few as there were from then on; each time doubles the number
 * of requests until the next trial.
 */
enum {
    TOGETHER_MAX = 8,
    IDLE_NS = 1000000,
    BUSY_NS = 500000, /* each: requests come fast */
    PATIENCE_MIN = 64,
    PATIENCE_MAX = 1 << 13,
    PROVEN = 16, /* interrupts for several in a row */
};

struct moderation {
    struct virtio_blk *blk;
    struct virtq *queue;
    struct vm_timer *timer;
    unsigned together; /* requests that one interrupt is for */
    unsigned seen, patience, proven;
    uint64_t since_ns, last_ns;
    bool waits; /* an interrupt does; the timer is armed */
};

struct virtio_blk {
    struct virtio_device virtio;
    struct block *block;
    uint64_t capacity; /* sectors */
    uint16_t queues;   /* told to the driver */
    char serial[VIRTIO_BLK_SERIAL_MAX];
    struct moderation moderation[QUEUES];
};

/* A request under way. */
struct blk_request {
    struct block_request block;
    struct virtio_blk *blk;
    struct virtq *queue;
    struct virtq_chain *chain;
    uint32_t transfers; /* bytes the back end writes to the guest */
    struct iovec vectors[];
};

static const struct state_field blk_fields[] = {
    STATE_NESTED(struct virtio_blk, virtio, &virtio_state, 1),
    STATE_FIELD(struct virtio_blk, capacity, 1, .keep = true),
};
static const struct state_table blk_state =
    STATE_TABLE("virtio-blk", 1, struct virtio_blk, blk_fields);

static struct virtio_blk *blk_of(struct virtio_device *device) {
    return container_of(device, struct virtio_blk, virtio);
}

/* ---- Completion ---- */

/* Writes the status byte, the last writable one, and gives the chain back. */
static void complete(struct virtq *queue, const struct virtq_chain *chain, uint8_t status,
                     uint32_t written) {
    if (virtq_write(queue, chain, chain->writable_length - 1, &status, 1) == 1)
        virtq_push(queue, chain->token, written + 1);
}

static void finish_request(struct blk_request *request) {
    struct virtq *queue = request->queue;
    bool ok = request->block.result == 0;
    /* After a reset of the whole machine the ring is no more. */
    if (request->transfers != 0)
        memory_unhold(queue->owner->dma->memory);
    if (queue->ready) {
        if (ok)
            virtq_wrote(queue, request->chain, 0, request->transfers);
        complete(queue, request->chain, ok ? S_OK : S_IOERR, ok ? request->transfers : 0);
    }
    free(request->chain);
    free(request);
}

/* A worker of the back end is through with a request. */
static void request_done(struct block_request *block) {
    struct blk_request *request = container_of(block, struct blk_request, block);
    struct virtio_blk *blk = request->blk;
    struct virtq *queue = request->queue;
    lock_take(&blk->virtio.device.lock);
    finish_request(request);
    virtq_signal(queue);
    virtio_release(&blk->virtio);
    lock_release(&blk->virtio.device.lock);
}

/* ---- Interrupts ---- */

static uint64_t now(const struct virtio_blk *blk) {
    return vm_clock_ns(blk->virtio.device.platform->clock);
}

/* Perhaps requests come fast enough to try an interrupt for more of them. */
static void consider(struct moderation *m) {
    if (m->seen++ == 0)
        m->since_ns = now(m->blk);
    if (m->seen < m->patience)
        return;
    if (now(m->blk) - m->since_ns < (uint64_t)m->seen * BUSY_NS)
        m->together = TOGETHER_MAX;
    m->seen = m->proven = 0;
}

/* After a turn in which the driver has notified. */
static void interrupt(struct moderation *m) {
    struct virtq *queue = m->queue;
    if (queue->unsignalled == 0)
        return;
    if (m->together < TOGETHER_MAX)
        consider(m);
    if (queue->unsignalled >= m->together) {
        if (m->together == TOGETHER_MAX && ++m->proven == PROVEN)
            m->patience = PATIENCE_MIN;
        virtq_signal(queue);
        return;
    }
    m->last_ns = now(m->blk);
    if (!m->waits)
        vm_timer_arm(m->timer, m->last_ns + IDLE_NS);
    m->waits = true;
}

static void on_idle(void *context) {
    struct moderation *m = context;
    struct virtio_blk *blk = m->blk;
    struct virtq *queue = m->queue;
    lock_take(&blk->virtio.device.lock);
    if (queue->unsignalled > 0 && now(blk) < m->last_ns + IDLE_NS) {
        vm_timer_arm(m->timer, m->last_ns + IDLE_NS);
    } else {
        if (queue->unsignalled > 0) {
            m->together = queue->unsignalled < m->together ? queue->unsignalled : 1;
            m->patience = m->patience < PATIENCE_MAX ? m->patience * 2 : PATIENCE_MAX;
            m->seen = m->proven = 0;
            virtq_signal(queue);
        }
        m->waits = false;
    }
    lock_release(&blk->virtio.device.lock);
}

/* ---- Starting requests; each answers a status, or -1 when completion follows ---- */

static struct blk_request *make_request(struct virtio_blk *blk, struct virtq *queue,
                                        const struct virtq_chain *chain, unsigned vectors) {
    size_t chain_size =
        offsetof(struct virtq_chain, segments) + chain->count * sizeof chain->segments[0];
    struct blk_request *request = calloc(1, sizeof *request + vectors * sizeof(struct iovec));
    struct virtq_chain *copy = malloc(chain_size);
    if (request == NULL || copy == NULL) {
        free(request);
        free(copy);
        return NULL;
    }
    memcpy(copy, chain, chain_size);
    request->blk = blk;
    request->queue = queue;
    request->chain = copy;
    request->block.done = request_done;
    request->block.vectors = request->vectors;
    return request;
}

static int submit(struct blk_request *request) {
    struct virtio_blk *blk = request->blk;
    virtio_hold(&blk->virtio);
    /* The worker's completion waits for the lock that we hold. */
    if (block_submit(blk->block, &request->block) == 1) {
        finish_request(request);
        virtio_release(&blk->virtio);
    }
    return -1;
}

static bool range_valid(const struct virtio_blk *blk, uint64_t sector, uint64_t length) {
    return length % BLOCK_SECTOR == 0 && range_within(sector, length / BLOCK_SECTOR, blk->capacity);
}

static int start_transfer(struct virtio_blk *blk, struct virtq *queue,
                          const struct virtq_chain *chain, uint64_t sector, bool write) {
    uint32_t length = write ? chain->readable_length - HEADER_SIZE : chain->writable_length - 1;
    if (length > LENGTH_MAX || !range_valid(blk, sector, length) ||
        (write && blk->block->info.readonly))
        return S_IOERR;
    if (length == 0)
        return S_OK;
    /* Some more than segments: RAM may not be contiguous within one. */
    unsigned vectors = chain->count + 8u;
    struct blk_request *request = make_request(blk, queue, chain, vectors);
    if (request == NULL)
        return S_IOERR;
    int count =
        virtq_map(queue, chain, !write, write ? HEADER_SIZE : 0, length, request->vectors, vectors);
    if (count < 0) {
        free(request->chain);
        free(request);
        return S_IOERR;
    }
    request->transfers = write ? 0 : length;
    if (!write)
        memory_hold(queue->owner->dma->memory);
    request->block.operation = write ? BLOCK_WRITE : BLOCK_READ;
    request->block.durable = write && !virtio_has(&blk->virtio, F_FLUSH);
    request->block.offset = sector * BLOCK_SECTOR;
    request->block.length = length;
    request->block.vector_count = (unsigned)count;
    return submit(request);
}

static int start_plain(struct virtio_blk *blk, struct virtq *queue, const struct virtq_chain *chain,
                       enum block_operation operation, uint64_t offset, uint64_t length,
                       bool may_unmap) {
    struct blk_request *request = make_request(blk, queue, chain, 0);
    if (request == NULL)
        return S_IOERR;
    request->block.operation = operation;
    request->block.offset = offset;
    request->block.length = length;
    request->block.may_unmap = may_unmap;
    return submit(request);
}

/* Discard and write zeroes: one range a request (5.2.6.2). */
static int start_range(struct virtio_blk *blk, struct virtq *queue, const struct virtq_chain *chain,
                       bool zeroes) {
    uint8_t range[RANGE_SIZE];
    if (blk->block->info.readonly || chain->readable_length != HEADER_SIZE + RANGE_SIZE ||
        virtq_read(queue, chain, HEADER_SIZE, range, sizeof range) != sizeof range)
        return S_IOERR;
    uint64_t sector = load_le64(range);
    uint32_t sectors = load_le32(range + 8), flags = load_le32(range + 12);
    if ((flags & ~(uint32_t)RANGE_UNMAP) != 0 || (!zeroes && flags != 0))
        return S_UNSUPP;
    if (sectors > (zeroes ? (uint32_t)ZERO_SECTORS_MAX : (uint32_t)DISCARD_SECTORS_MAX) ||
        !range_within(sector, sectors, blk->capacity))
        return S_IOERR;
    if (sectors == 0)
        return S_OK;
    return start_plain(blk, queue, chain, zeroes ? BLOCK_WRITE_ZEROES : BLOCK_DISCARD,
                       sector * BLOCK_SECTOR, (uint64_t)sectors * BLOCK_SECTOR,
                       flags & RANGE_UNMAP);
}

/* Answers at once: the serial number, zero-padded. */
static int get_id(struct virtio_blk *blk, struct virtq *queue, const struct virtq_chain *chain) {
    size_t room = chain->writable_length - 1;
    size_t length = room < sizeof blk->serial ? room : sizeof blk->serial;
    ssize_t written = virtq_write(queue, chain, 0, blk->serial, length);
    if (written >= 0)
        complete(queue, chain, S_OK, (uint32_t)written);
    return -1;
}

static int start_request(struct virtio_blk *blk, struct virtq *queue,
                         const struct virtq_chain *chain) {
    uint8_t header[HEADER_SIZE];
    if (virtq_read(queue, chain, 0, header, sizeof header) < 0)
        return -1;
    uint64_t sector = load_le64(header + 8);
    switch (load_le32(header)) {
    case T_IN: return start_transfer(blk, queue, chain, sector, false);
    case T_OUT: return start_transfer(blk, queue, chain, sector, true);
    case T_FLUSH: return start_plain(blk, queue, chain, BLOCK_FLUSH, 0, 0, false);
    case T_GET_ID: return get_id(blk, queue, chain);
    case T_DISCARD: return start_range(blk, queue, chain, false);
    case T_WRITE_ZEROES: return start_range(blk, queue, chain, true);
    default: return S_UNSUPP;
    }
}

static bool blk_notify(struct virtio_device *device, unsigned index) {
    struct virtio_blk *blk = blk_of(device);
    struct virtq *queue = &device->queues[index];
    struct virtq_chain chain;
    bool more = true;
    virtq_quiet(queue);
    for (unsigned turn = 0; turn < VIRTIO_TURN_MAX; turn++) {
        if (!virtq_pop(queue, &chain)) {
            more = virtq_listen(queue);
            if (!more)
                break;
            continue;
        }
        if (chain.readable_length < HEADER_SIZE || chain.writable_length < 1) {
            virtq_break(queue, "request without header or status");
            return false;
        }
        int status = start_request(blk, queue, &chain);
        if (status >= 0)
            complete(queue, &chain, (uint8_t)status, 0);
    }
    interrupt(&blk->moderation[index]);
    return more;
}

/* ---- Configuration ---- */

static uint8_t exponent(uint32_t blocks) {
    uint8_t n = 0;
    while (n < 31 && (UINT32_C(1) << n) < blocks)
        n++;
    return n;
}

static void put_geometry(const struct virtio_blk *blk, uint8_t *config) {
    enum { HEADS = 16, SECTORS = 63, CYLINDERS_MAX = 16383 };
    uint64_t cylinders = blk->capacity / (HEADS * SECTORS);
    store_le16(config + CONFIG_CYLINDERS,
               cylinders < CYLINDERS_MAX ? (uint16_t)cylinders : CYLINDERS_MAX);
    config[CONFIG_HEADS] = HEADS;
    config[CONFIG_SECTORS] = SECTORS;
}

static void blk_config_read(struct virtio_device *device, unsigned offset, void *to,
                            unsigned length) {
    const struct virtio_blk *blk = blk_of(device);
    const struct block_info *info = &blk->block->info;
    uint8_t config[CONFIG_SIZE] = {0};
    store_le64(config + CONFIG_CAPACITY, blk->capacity);
    store_le32(config + CONFIG_SIZE_MAX, SEGMENT_SIZE_MAX);
    store_le32(config + CONFIG_SEG_MAX, SEGMENTS_MAX);
    put_geometry(blk, config);
    store_le32(config + CONFIG_BLK_SIZE, info->logical_block);
    config[CONFIG_PHYSICAL_EXPONENT] = exponent(info->physical_block / info->logical_block);
    store_le16(config + CONFIG_MIN_IO, 1);
    store_le16(config + CONFIG_QUEUES, blk->queues);
    store_le32(config + CONFIG_DISCARD_SECTORS, DISCARD_SECTORS_MAX);
    store_le32(config + CONFIG_DISCARD_SEGMENTS, 1);
    store_le32(config + CONFIG_DISCARD_ALIGNMENT, info->physical_block / BLOCK_SECTOR);
    store_le32(config + CONFIG_ZERO_SECTORS, ZERO_SECTORS_MAX);
    store_le32(config + CONFIG_ZERO_SEGMENTS, 1);
    config[CONFIG_ZERO_UNMAP] = 1;
    memcpy(to, config + offset, length);
}

static uint64_t blk_features(const struct block_info *info) {
    uint64_t features = VIRTIO_FEATURE(F_SIZE_MAX) | VIRTIO_FEATURE(F_SEG_MAX) |
                        VIRTIO_FEATURE(F_GEOMETRY) | VIRTIO_FEATURE(F_BLK_SIZE) |
                        VIRTIO_FEATURE(F_FLUSH) | VIRTIO_FEATURE(F_TOPOLOGY) | VIRTIO_FEATURE(F_MQ);
    if (info->readonly)
        return features | VIRTIO_FEATURE(F_RO);
    features |= VIRTIO_FEATURE(F_WRITE_ZEROES);
    return info->discard ? features | VIRTIO_FEATURE(F_DISCARD) : features;
}

/* ---- Class ---- */

static void blk_cancel(struct virtio_device *device) {
    block_cancel(blk_of(device)->block);
}

static const struct virtio_class blk_virtio_class = {
    .id = VIRTIO_ID_BLOCK,
    .pci_class = 0x010000, /* mass storage, SCSI: what virtio disks have always said */
    .config_size = CONFIG_SIZE,
    .queues = QUEUES,
    .queue_sizes = {[0 ... QUEUES - 1] = QUEUE_SIZE},
    .config_read = blk_config_read,
    .notify = blk_notify,
    .cancel = blk_cancel,
};

/* The disk has grown (block_on_resize): the driver reads the capacity anew. */
static void blk_grown(void *context) {
    struct virtio_blk *blk = context;
    lock_take(&blk->virtio.device.lock);
    blk->capacity = blk->block->info.size / BLOCK_SECTOR;
    virtio_config_changed(&blk->virtio);
    lock_release(&blk->virtio.device.lock);
}

static void free_moderation(struct virtio_blk *blk) {
    for (unsigned i = 0; i < QUEUES; i++)
        vm_timer_free(blk->moderation[i].timer);
}

static int make_moderation(struct virtio_blk *blk, struct error *err) {
    const struct platform *platform = blk->virtio.device.platform;
    for (unsigned i = 0; i < QUEUES; i++) {
        struct moderation *m = &blk->moderation[i];
        *m = (struct moderation){
            .blk = blk, .queue = &blk->virtio.queues[i], .together = 1, .patience = PATIENCE_MIN};
        int result = vm_timer_create(platform->clock, platform->loop, on_idle, m, &m->timer, err);
        if (result < 0)
            return result;
    }
    return 0;
}

static int blk_init(struct device *device, const void *config, struct error *err) {
    const struct virtio_blk_config *blk_config = config;
    struct virtio_blk *blk = container_of(device, struct virtio_blk, virtio.device);
    const char *serial = blk_config->serial != NULL ? blk_config->serial : device->name;
    blk->block = blk_config->block;
    blk->capacity = blk->block->info.size / BLOCK_SECTOR;
    blk->queues = 1;
    if (blk_config->queues > 1)
        blk->queues = blk_config->queues < QUEUES ? (uint16_t)blk_config->queues : QUEUES;
    memcpy(blk->serial, serial, strnlen(serial, sizeof blk->serial));
    int result = make_moderation(blk, err);
    if (result == 0)
        result = virtio_create(&blk->virtio, &blk_virtio_class, blk_features(&blk->block->info),
                               &blk_config->options, err);
    if (result == 0)
        block_on_resize(blk->block, blk_grown, blk);
    else
        free_moderation(blk);
    return result;
}

static void blk_reset(struct device *device) {
    struct virtio_blk *blk = container_of(device, struct virtio_blk, virtio.device);
    block_drain(blk->block);
    virtio_reset(&blk->virtio);
}

static void blk_destroy(struct device *device) {
    struct virtio_blk *blk = container_of(device, struct virtio_blk, virtio.device);
    block_on_resize(blk->block, NULL, NULL);
    block_drain(blk->block);
    free_moderation(blk);
    virtio_destroy(&blk->virtio);
}

const struct device_class virtio_blk_class = {
    .name = "virtio-blk",
    .size = sizeof(struct virtio_blk),
    .state = &blk_state,
    .init = blk_init,
    .reset = blk_reset,
    .quiesce = virtio_quiesce,
    .destroy = blk_destroy,
};
