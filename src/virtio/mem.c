#include "virtio/mem.h"

#include <stdlib.h>
#include <string.h>

/* Features: 5.15.3. */
enum { F_ACPI_PXM = 0, F_UNPLUGGED_INACCESSIBLE = 1 };

/* Configuration: 5.15.4. */
enum {
    CONFIG_BLOCK_SIZE = 0,
    CONFIG_NODE = 8,
    CONFIG_ADDRESS = 16,
    CONFIG_REGION = 24,
    CONFIG_USABLE = 32,
    CONFIG_PLUGGED = 40,
    CONFIG_REQUESTED = 48,
    CONFIG_SIZE = 56,
};

/* Requests and answers: 5.15.6. */
enum { PLUG, UNPLUG, UNPLUG_ALL, STATE };
enum { ACK, NACK, BUSY, ERROR };
enum { STATE_PLUGGED, STATE_UNPLUGGED, STATE_MIXED };
enum { REQUEST_SIZE = 24, REQUEST_ADDRESS = 8, REQUEST_BLOCKS = 16 };
enum { ANSWER_SIZE = 10, ANSWER_STATE = 8 };

/* A request may be for a lot of memory. */
enum { REQUESTS = 0, TURN_MAX = 16 };

enum { BITMAP_WORDS = VIRTIO_MEM_REGION_MAX / VIRTIO_MEM_BLOCK / 64 };

struct virtio_mem {
    struct virtio_device virtio;
    uint64_t requested;             /* bytes */
    uint64_t plugged[BITMAP_WORDS]; /* a bit for each block */

    /* From the configuration, and host-side bookkeeping: not state. */
    uint64_t gpa;
    unsigned blocks, plugged_count;
    void (*changed)(void *context);
    void *context;
};

struct block_range {
    unsigned first, count;
};

static struct virtio_mem *mem_of(struct virtio_device *device) {
    return container_of(device, struct virtio_mem, virtio);
}

static void tell(struct virtio_mem *mem) {
    if (mem->changed != NULL)
        mem->changed(mem->context);
}

/* ---- Blocks ---- */

static bool is_plugged(const struct virtio_mem *mem, unsigned block) {
    return mem->plugged[block / 64] >> block % 64 & 1;
}

static unsigned count_plugged(const struct virtio_mem *mem, struct block_range range) {
    unsigned count = 0;
    for (unsigned i = 0; i < range.count; i++)
        count += is_plugged(mem, range.first + i);
    return count;
}

static int place(struct virtio_mem *mem, struct block_range range, bool plugged) {
    return memory_plug(mem->virtio.device.platform->memory,
                       mem->gpa + range.first * VIRTIO_MEM_BLOCK, range.count * VIRTIO_MEM_BLOCK,
                       plugged);
}

/* Blocks that are all of the other kind. */
static int set_plugged(struct virtio_mem *mem, struct block_range range, bool plugged) {
    int result = place(mem, range, plugged);
    if (result < 0)
        return result;
    for (unsigned block = range.first; block < range.first + range.count; block++)
        mem->plugged[block / 64] ^= UINT64_C(1) << block % 64;
    mem->plugged_count += plugged ? range.count : -range.count;
    tell(mem);
    return 0;
}

/* The next run of plugged blocks from `at` on; count 0: none. */
static struct block_range next_run(const struct virtio_mem *mem, unsigned at) {
    struct block_range run = {at, 0};
    while (run.first < mem->blocks && !is_plugged(mem, run.first))
        run.first++;
    while (run.first + run.count < mem->blocks && is_plugged(mem, run.first + run.count))
        run.count++;
    return run;
}

static void unplug_all(struct virtio_mem *mem) {
    struct block_range run;
    for (unsigned at = 0; (run = next_run(mem, at)).count > 0; at = run.first + run.count)
        set_plugged(mem, run, false);
}

/* ---- Requests ---- */

static bool parse_range(const struct virtio_mem *mem, const uint8_t *request,
                        struct block_range *range) {
    uint64_t address = load_le64(request + REQUEST_ADDRESS);
    uint16_t count = load_le16(request + REQUEST_BLOCKS);
    if (address < mem->gpa || address % VIRTIO_MEM_BLOCK != 0 || count == 0 ||
        !range_within((address - mem->gpa) / VIRTIO_MEM_BLOCK, count, mem->blocks))
        return false;
    *range = (struct block_range){(unsigned)((address - mem->gpa) / VIRTIO_MEM_BLOCK), count};
    return true;
}

static uint16_t plug(struct virtio_mem *mem, struct block_range range) {
    uint64_t most = mem->requested / VIRTIO_MEM_BLOCK;
    if (count_plugged(mem, range) > 0)
        return ERROR;
    if (mem->plugged_count + range.count > most)
        return NACK;
    return set_plugged(mem, range, true) < 0 ? BUSY : ACK;
}

static uint16_t unplug(struct virtio_mem *mem, struct block_range range) {
    if (count_plugged(mem, range) < range.count)
        return ERROR;
    return set_plugged(mem, range, false) < 0 ? BUSY : ACK;
}

static uint16_t state_of(const struct virtio_mem *mem, struct block_range range) {
    unsigned count = count_plugged(mem, range);
    return count == 0 ? STATE_UNPLUGGED : count == range.count ? STATE_PLUGGED : STATE_MIXED;
}

static void answer(struct virtio_mem *mem, const uint8_t *request, uint8_t *reply) {
    uint16_t type = load_le16(request), result = ERROR;
    struct block_range range = {0, 0};
    bool good = type == UNPLUG_ALL || parse_range(mem, request, &range);
    if (good && type == PLUG) {
        result = plug(mem, range);
    } else if (good && type == UNPLUG) {
        result = unplug(mem, range);
    } else if (type == UNPLUG_ALL) {
        unplug_all(mem);
        result = ACK;
    } else if (good && type == STATE) {
        store_le16(reply + ANSWER_STATE, state_of(mem, range));
        result = ACK;
    }
    store_le16(reply, result);
}

static void serve(struct virtio_mem *mem, struct virtq *queue, const struct virtq_chain *chain) {
    uint8_t request[REQUEST_SIZE], reply[ANSWER_SIZE] = {0};
    if (chain->readable_length < sizeof request || chain->writable_length < sizeof reply) {
        virtq_break(queue, "a request or the room for its answer is too short");
        return;
    }
    if (virtq_read(queue, chain, 0, request, sizeof request) < 0)
        return;
    answer(mem, request, reply);
    virtq_write(queue, chain, 0, reply, sizeof reply);
    virtq_push(queue, chain->token, sizeof reply);
}

static bool mem_notify(struct virtio_device *device, unsigned index) {
    struct virtio_mem *mem = mem_of(device);
    struct virtq *queue = &device->queues[index];
    struct virtq_chain chain;
    for (unsigned turn = 0; turn < TURN_MAX; turn++) {
        if (!virtq_pop(queue, &chain)) {
            virtq_signal(queue);
            if (!virtq_listen(queue))
                return false;
            continue;
        }
        serve(mem, queue, &chain);
    }
    virtq_signal(queue);
    return true;
}

/* ---- Configuration ---- */

static void mem_config_read(struct virtio_device *device, unsigned offset, void *to,
                            unsigned length) {
    const struct virtio_mem *mem = mem_of(device);
    uint8_t image[CONFIG_SIZE] = {0};
    uint64_t region = mem->blocks * VIRTIO_MEM_BLOCK;
    store_le64(image + CONFIG_BLOCK_SIZE, VIRTIO_MEM_BLOCK);
    store_le16(image + CONFIG_NODE, 0);
    store_le64(image + CONFIG_ADDRESS, mem->gpa);
    store_le64(image + CONFIG_REGION, region);
    store_le64(image + CONFIG_USABLE, region);
    store_le64(image + CONFIG_PLUGGED, mem->plugged_count * VIRTIO_MEM_BLOCK);
    store_le64(image + CONFIG_REQUESTED, mem->requested);
    memcpy(to, image + offset, length);
}

/* ---- State ---- */

/* What the table says is what memory shows. */
static int mem_after_load(void *object, struct error *err) {
    struct virtio_mem *mem = object;
    struct block_range run, all = {0, mem->blocks};
    for (unsigned block = mem->blocks; block < BITMAP_WORDS * 64; block++)
        if (is_plugged(mem, block))
            return error_set(err, -EINVAL, "%s: saved with a larger region",
                             mem->virtio.device.name);
    place(mem, all, false);
    mem->plugged_count = count_plugged(mem, all);
    for (unsigned at = 0; (run = next_run(mem, at)).count > 0; at = run.first + run.count)
        if (place(mem, run, true) < 0)
            return error_set(err, -ENOMEM, "%s: the host's pool of huge pages is empty",
                             mem->virtio.device.name);
    return 0;
}

static const struct state_field mem_fields[] = {
    STATE_NESTED(struct virtio_mem, virtio, &virtio_state, 1),
    STATE_FIELD(struct virtio_mem, requested, 1, .keep = true),
    STATE_ARRAY(struct virtio_mem, plugged, 1),
};
static const struct state_table mem_state =
    STATE_TABLE("virtio-mem", 1, struct virtio_mem, mem_fields, .after_load = mem_after_load);

/* ---- Life ---- */

static void mem_started(struct virtio_device *device) {
    tell(mem_of(device));
}

static const struct virtio_class mem_virtio_class = {
    .id = VIRTIO_ID_MEM,
    .pci_class = 0xff0000,
    .config_size = CONFIG_SIZE,
    .queues = 1,
    .queue_sizes = {[REQUESTS] = 128},
    .config_read = mem_config_read,
    .notify = mem_notify,
    .started = mem_started,
    .reset = mem_started,
};

static int mem_init(struct device *device, const void *config_, struct error *err) {
    const struct virtio_mem_config *config = config_;
    struct virtio_mem *mem = container_of(device, struct virtio_mem, virtio.device);
    if ((config->gpa | config->size) % VIRTIO_MEM_BLOCK != 0 ||
        config->size > VIRTIO_MEM_REGION_MAX)
        return error_set(err, -EINVAL, "%s: bad region", device->name);
    mem->gpa = config->gpa;
    mem->blocks = (unsigned)(config->size / VIRTIO_MEM_BLOCK);
    return virtio_create(&mem->virtio, &mem_virtio_class,
                         VIRTIO_FEATURE(F_ACPI_PXM) | VIRTIO_FEATURE(F_UNPLUGGED_INACCESSIBLE),
                         &config->options, err);
}

/* The table has forgotten which blocks there were. */
static void mem_reset(struct device *device) {
    struct virtio_mem *mem = container_of(device, struct virtio_mem, virtio.device);
    if (mem->plugged_count > 0)
        place(mem, (struct block_range){0, mem->blocks}, false);
    mem->plugged_count = 0;
    virtio_reset(&mem->virtio);
}

static void mem_destroy(struct device *device) {
    virtio_destroy(container_of(device, struct virtio_device, device));
}

const struct device_class virtio_mem_class = {
    .name = "virtio-mem",
    .size = sizeof(struct virtio_mem),
    .state = &mem_state,
    .init = mem_init,
    .reset = mem_reset,
    .quiesce = virtio_quiesce,
    .destroy = mem_destroy,
};

/* ---- The host's side ---- */

static struct virtio_mem *locked(struct device *device) {
    lock_take(&device->lock);
    return container_of(device, struct virtio_mem, virtio.device);
}

void virtio_mem_report(struct device *device, struct mem_report *report) {
    const struct virtio_mem *mem = locked(device);
    *report = (struct mem_report){virtio_running(&mem->virtio), mem->requested,
                                  mem->plugged_count * VIRTIO_MEM_BLOCK};
    lock_release(&device->lock);
}

void virtio_mem_request(struct device *device, uint64_t bytes) {
    struct virtio_mem *mem = locked(device);
    uint64_t region = mem->blocks * VIRTIO_MEM_BLOCK;
    mem->requested = bytes < region ? round_down(bytes, VIRTIO_MEM_BLOCK) : region;
    virtio_config_changed(&mem->virtio);
    lock_release(&device->lock);
}

void virtio_mem_listen(struct device *device, void (*changed)(void *context), void *context) {
    struct virtio_mem *mem = locked(device);
    mem->changed = changed;
    mem->context = context;
    lock_release(&device->lock);
}
