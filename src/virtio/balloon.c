#include "virtio/balloon.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

/* Features: 5.5.3. */
enum { F_STATS = 1, F_DEFLATE_ON_OOM = 2, F_PAGE_POISON = 4, F_REPORTING = 5 };

/* Configuration: 5.5.4. */
enum { CONFIG_TARGET = 0, CONFIG_ACTUAL = 4, CONFIG_POISON = 12, CONFIG_SIZE = 16 };

enum { QUEUES = 4, QUEUE_SIZE = 128, STATISTIC_SIZE = 10, STATISTIC_VALUE = 2 };
enum {
    PFN_SIZE = 4,
    PFN_BATCH = 256,      /* Linux tells as many at once */
    PFNS_MAX = 16 * 1024, /* of one chain */
    TURN_WORK = 1 << 18,  /* pages of a turn; */
    DISCARD_WORK = 16,    /* as many more for each call */
};

struct virtio_balloon {
    struct virtio_device virtio;
    uint32_t target; /* pages */
    uint32_t actual;
    uint32_t poison; /* what the driver fills free pages with */
    bool has_buffer; /* the driver's buffer for statistics is here, until they are asked for */
    struct virtq_token buffer;

    /* Host-side bookkeeping: not state. */
    uint64_t returned, known_ns;
    unsigned work, present; /* work: of this turn */
    bool known;
    uint64_t statistics[BALLOON_STATISTICS];
    void (*changed)(void *context, bool news);
    void *context;
};

static const struct state_field balloon_fields[] = {
    STATE_NESTED(struct virtio_balloon, virtio, &virtio_state, 1),
    STATE_FIELD(struct virtio_balloon, target, 1, .keep = true),
    STATE_FIELD(struct virtio_balloon, actual, 1),
    STATE_FIELD(struct virtio_balloon, poison, 1),
    STATE_FIELD(struct virtio_balloon, has_buffer, 1),
    STATE_FIELD(struct virtio_balloon, buffer.id, 1),
    STATE_FIELD(struct virtio_balloon, buffer.slots, 1),
};
static const struct state_table balloon_state =
    STATE_TABLE("virtio-balloon", 1, struct virtio_balloon, balloon_fields);

static struct virtio_balloon *balloon_of(struct virtio_device *device) {
    return container_of(device, struct virtio_balloon, virtio);
}

static void tell(struct virtio_balloon *balloon, bool news) {
    if (balloon->changed != NULL)
        balloon->changed(balloon->context, news);
}

/* ---- Pages given up ---- */

static int compare_pfns(const void *a, const void *b) {
    uint32_t x = load_le32(a), y = load_le32(b);
    return x < y ? -1 : x > y;
}

/* Page numbers are guest-physical: no IOMMU stands between. */
static void discard_pages(struct virtio_balloon *balloon, uint32_t *pfns, unsigned count) {
    struct memory *memory = balloon->virtio.device.platform->memory;
    qsort(pfns, count, sizeof *pfns, compare_pfns);
    for (unsigned first = 0, next; first < count; first = next) {
        for (next = first + 1; next < count && pfns[next] - pfns[next - 1] <= 1;)
            next++;
        uint64_t pages = (uint64_t)pfns[next - 1] - pfns[first] + 1;
        balloon->returned +=
            memory_discard(memory, (uint64_t)pfns[first] << PAGE_SHIFT, pages << PAGE_SHIFT);
        balloon->work += DISCARD_WORK + (unsigned)pages;
    }
}

static void inflate(struct virtio_balloon *balloon, struct virtq *queue,
                    const struct virtq_chain *chain) {
    uint32_t pfns[PFN_BATCH], length = chain->readable_length;
    if (length / PFN_SIZE > PFNS_MAX) {
        virtq_break(queue, "more pages at once than a balloon takes");
        return;
    }
    for (uint32_t at = 0; length - at >= PFN_SIZE;) {
        uint32_t part = length - at < sizeof pfns ? length - at : (uint32_t)sizeof pfns;
        ssize_t got = virtq_read(queue, chain, at, pfns, round_down(part, PFN_SIZE));
        if (got < PFN_SIZE)
            return;
        discard_pages(balloon, pfns, (unsigned)got / PFN_SIZE);
        at += (uint32_t)got;
    }
}

/* A chain's buffers are the free pages themselves. A driver that counts on them to stay as it has
 * filled them, with anything but zeros, keeps them. */
static void take_report(struct virtio_balloon *balloon, struct virtq *queue,
                        const struct virtq_chain *chain) {
    if (virtio_has(&balloon->virtio, F_PAGE_POISON) && balloon->poison != 0)
        return;
    for (unsigned i = chain->readable; i < chain->count; i++) {
        const struct virtq_segment *segment = &chain->segments[i];
        balloon->returned += dma_discard(queue->owner->dma, segment->address, segment->length);
        balloon->work += DISCARD_WORK + (segment->length >> PAGE_SHIFT);
    }
}

/* ---- Statistics ---- */

/* The driver's one buffer stays here until they are wanted again. */
static void take_statistics(struct virtio_balloon *balloon, struct virtq *queue,
                            const struct virtq_chain *chain) {
    uint8_t bytes[64 * STATISTIC_SIZE];
    ssize_t length = virtq_read(queue, chain, 0, bytes, sizeof bytes);
    if (length < 0)
        return;
    balloon->present = 0;
    for (ssize_t at = 0; length - at >= STATISTIC_SIZE; at += STATISTIC_SIZE) {
        uint16_t tag = load_le16(bytes + at);
        if (tag >= BALLOON_STATISTICS)
            continue; /* of a newer driver */
        balloon->statistics[tag] = load_le64(bytes + at + STATISTIC_VALUE);
        balloon->present |= 1u << tag;
    }
    balloon->known = true;
    balloon->known_ns = vm_clock_ns(balloon->virtio.device.platform->clock);
    if (balloon->has_buffer)
        virtq_push(queue, balloon->buffer, 0);
    balloon->buffer = chain->token;
    balloon->has_buffer = true;
    tell(balloon, true);
}

/* ---- Queues ---- */

enum role { INFLATE, DEFLATE, STATISTICS, REPORTS, NONE };

/*
 * 5.5.2 gives fixed numbers to the queues behind the first two, but drivers (and the devices they
 * grew up with) count just those that the features bring, in the same order.
 */
static enum role role_of(const struct virtio_balloon *balloon, unsigned index) {
    static const struct {
        unsigned feature;
        enum role role;
    } further[] = {{F_STATS, STATISTICS}, {F_REPORTING, REPORTS}};
    unsigned next = DEFLATE + 1;
    if (index <= DEFLATE)
        return (enum role)index;
    for (unsigned i = 0; i < ARRAY_SIZE(further); i++)
        if (virtio_has(&balloon->virtio, further[i].feature) && index == next++)
            return further[i].role;
    return NONE;
}

/* What was taken back is there as soon as it is touched. */
static void serve(struct virtio_balloon *balloon, unsigned index, const struct virtq_chain *chain) {
    struct virtq *queue = &balloon->virtio.queues[index];
    enum role role = role_of(balloon, index);
    if (role == INFLATE)
        inflate(balloon, queue, chain);
    else if (role == REPORTS)
        take_report(balloon, queue, chain);
    else if (role == STATISTICS)
        take_statistics(balloon, queue, chain);
    if (role != STATISTICS)
        virtq_push(queue, chain->token, 0);
}

static bool balloon_notify(struct virtio_device *device, unsigned index) {
    struct virtio_balloon *balloon = balloon_of(device);
    struct virtq *queue = &device->queues[index];
    struct virtq_chain chain;
    balloon->work = 0;
    for (unsigned turn = 0; turn < VIRTIO_TURN_MAX && balloon->work < TURN_WORK; turn++) {
        if (!virtq_pop(queue, &chain)) {
            virtq_signal(queue);
            if (!virtq_listen(queue))
                return false;
            continue;
        }
        serve(balloon, index, &chain);
    }
    virtq_signal(queue);
    return true;
}

/* ---- Configuration ---- */

static void balloon_config_read(struct virtio_device *device, unsigned offset, void *to,
                                unsigned length) {
    const struct virtio_balloon *balloon = balloon_of(device);
    uint8_t image[CONFIG_SIZE] = {0};
    store_le32(image + CONFIG_TARGET, balloon->target);
    store_le32(image + CONFIG_ACTUAL, balloon->actual);
    store_le32(image + CONFIG_POISON, balloon->poison);
    memcpy(to, image + offset, length);
}

static void balloon_config_write(struct virtio_device *device, unsigned offset, const void *from,
                                 unsigned length) {
    struct virtio_balloon *balloon = balloon_of(device);
    uint8_t image[CONFIG_SIZE];
    balloon_config_read(device, 0, image, sizeof image);
    memcpy(image + offset, from, length);
    balloon->poison = load_le32(image + CONFIG_POISON);
    if (balloon->actual == load_le32(image + CONFIG_ACTUAL))
        return;
    balloon->actual = load_le32(image + CONFIG_ACTUAL);
    tell(balloon, false);
}

/* ---- Life ---- */

static void balloon_started(struct virtio_device *device) {
    tell(balloon_of(device), false);
}

/* The driver has gone, and with it all that it had given up. */
static void balloon_forget(struct virtio_device *device) {
    struct virtio_balloon *balloon = balloon_of(device);
    balloon->actual = balloon->poison = 0;
    balloon->has_buffer = balloon->known = false;
    tell(balloon, false);
}

static const struct virtio_class balloon_virtio_class = {
    .id = VIRTIO_ID_BALLOON,
    .pci_class = 0xff0000,
    .config_size = CONFIG_SIZE,
    .queues = QUEUES,
    .queue_sizes = {QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE},
    .config_read = balloon_config_read,
    .config_write = balloon_config_write,
    .notify = balloon_notify,
    .started = balloon_started,
    .reset = balloon_forget,
};

static int balloon_init(struct device *device, const void *config_, struct error *err) {
    const struct virtio_balloon_config *config = config_;
    struct virtio_balloon *balloon = container_of(device, struct virtio_balloon, virtio.device);
    uint64_t features = VIRTIO_FEATURE(F_STATS) | VIRTIO_FEATURE(F_DEFLATE_ON_OOM);
    if (!config->no_reports)
        features |= VIRTIO_FEATURE(F_PAGE_POISON) | VIRTIO_FEATURE(F_REPORTING);
    return virtio_create(&balloon->virtio, &balloon_virtio_class, features, &config->options, err);
}

static void balloon_reset(struct device *device) {
    virtio_reset(container_of(device, struct virtio_device, device));
}

static void balloon_destroy(struct device *device) {
    virtio_destroy(container_of(device, struct virtio_device, device));
}

const struct device_class virtio_balloon_class = {
    .name = "virtio-balloon",
    .size = sizeof(struct virtio_balloon),
    .state = &balloon_state,
    .init = balloon_init,
    .reset = balloon_reset,
    .quiesce = virtio_quiesce,
    .destroy = balloon_destroy,
};

/* ---- The host's side ---- */

static struct virtio_balloon *locked(struct device *device) {
    lock_take(&device->lock);
    return container_of(device, struct virtio_balloon, virtio.device);
}

void virtio_balloon_report(struct device *device, struct balloon_report *report) {
    const struct virtio_balloon *balloon = locked(device);
    *report = (struct balloon_report){
        .driver = virtio_running(&balloon->virtio),
        .target = (uint64_t)balloon->target << PAGE_SHIFT,
        .actual = (uint64_t)balloon->actual << PAGE_SHIFT,
        .returned = balloon->returned,
        .known = balloon->known,
        .known_ns = balloon->known_ns,
        .present = balloon->present,
    };
    memcpy(report->statistics, balloon->statistics, sizeof report->statistics);
    lock_release(&device->lock);
}

void virtio_balloon_set_target(struct device *device, uint64_t bytes) {
    struct virtio_balloon *balloon = locked(device);
    uint64_t pages = bytes >> PAGE_SHIFT;
    balloon->target = pages < UINT32_MAX ? (uint32_t)pages : UINT32_MAX;
    virtio_config_changed(&balloon->virtio);
    lock_release(&device->lock);
}

bool virtio_balloon_ask(struct device *device) {
    struct virtio_balloon *balloon = locked(device);
    bool asked = virtio_running(&balloon->virtio) && !balloon->virtio.quiet && balloon->has_buffer;
    unsigned index = 0;
    while (asked && role_of(balloon, index) != STATISTICS && index < QUEUES - 1)
        index++;
    /* Nobody waits for statistics as he would for memory. */
    asked = asked && virtq_is_here(&balloon->virtio.queues[index]);
    if (asked) {
        balloon->has_buffer = false;
        virtq_push(&balloon->virtio.queues[index], balloon->buffer, 0);
        virtq_signal(&balloon->virtio.queues[index]);
    }
    lock_release(&device->lock);
    return asked;
}

void virtio_balloon_listen(struct device *device, void (*changed)(void *context, bool news),
                           void *context) {
    struct virtio_balloon *balloon = locked(device);
    balloon->changed = changed;
    balloon->context = context;
    lock_release(&device->lock);
}
