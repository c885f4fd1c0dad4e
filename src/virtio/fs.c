#include "virtio/fs.h"

#include <stdlib.h>
#include <string.h>

#include <linux/fuse.h>

#include "base/bytes.h"
#include "base/pool.h"

/* 5.11.2. Forgets and interrupts come by the first queue, so that they need not wait. */
enum { HIPRIO = 0, REQUESTS = 1, QUEUES = 2 };
enum { HIPRIO_SIZE = 128, REQUESTS_SIZE = 1024 };

/* struct virtio_fs_config: 5.11.4. */
enum { CONFIG_TAG = 0, CONFIG_QUEUES = 36, CONFIG_SIZE = 40 };

struct virtio_fs {
    struct virtio_device virtio;
    struct fs *fs;
    struct pool *pool;
    char tag[VIRTIO_FS_TAG_MAX];
};

/* A request under way: one allocation, which the arrays below point into. */
struct fs_request {
    struct pool_job job;
    struct virtio_fs *device;
    struct virtq *queue;
    struct virtq_chain *chain; /* as long as its segments are */
    struct fs_message message;
    bool fills; /* the message's data is guest memory that is written */
};

static const struct state_field fs_fields[] = {
    STATE_NESTED(struct virtio_fs, virtio, &virtio_state, 1),
};
static const struct state_table fs_state = STATE_TABLE("virtio-fs", 1, struct virtio_fs, fs_fields);

static struct virtio_fs *fs_of(struct virtio_device *device) {
    return container_of(device, struct virtio_fs, virtio);
}

/* ---- Completion ---- */

/* The answer goes to the chain's beginning, a READ's data is behind it already. */
static void give_back(struct fs_request *request) {
    const struct fs_message *message = &request->message;
    struct virtq *queue = request->queue;
    uint32_t head = (uint32_t)message->out_length, data = (uint32_t)message->data_filled;
    if (request->fills)
        memory_unhold(queue->owner->dma->memory);
    /* After a reset of the whole machine the ring is no more. */
    if (!queue->ready)
        return;
    virtq_wrote(queue, request->chain, sizeof(struct fuse_out_header), data);
    if (virtq_write(queue, request->chain, 0, message->out, head) >= 0)
        virtq_push(queue, request->chain->token, head + data);
}

static void work(void *context, struct pool_job *job) {
    struct fs_request *request = container_of(job, struct fs_request, job);
    struct virtio_fs *fs = context;
    fs_serve(fs->fs, &request->message);
    lock_take(&fs->virtio.device.lock);
    give_back(request);
    virtq_signal(request->queue);
    virtio_release(&fs->virtio);
    lock_release(&fs->virtio.device.lock);
    free(request);
}

/* ---- Starting requests ---- */

/* Where a chain's parts are. */
struct layout {
    uint32_t in, out;       /* bytes of arguments and of the answer, headers included */
    uint32_t data;          /* bytes of data behind either */
    bool to_host, to_guest; /* which */
};

/* NULL, or what is wrong. */
static const char *lay_out(const struct virtq_chain *chain, uint32_t opcode,
                           struct layout *layout) {
    const uint32_t write_size = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in);
    const uint32_t answer_size = sizeof(struct fuse_out_header);
    bool silent = opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT;
    *layout = (struct layout){.in = chain->readable_length, .out = chain->writable_length};
    if (!silent && layout->out < answer_size)
        return "request without room for an answer";
    if (opcode == FUSE_READ) {
        layout->data = layout->out - answer_size;
        layout->out = answer_size;
        layout->to_guest = layout->data > 0;
    } else if (opcode == FUSE_WRITE && layout->in > write_size) {
        layout->data = layout->in - write_size;
        layout->in = write_size;
        layout->to_host = true;
    }
    if (layout->in > FS_IN_MAX)
        return "request of too many bytes";
    if (layout->out > FS_OUT_MAX)
        layout->out = FS_OUT_MAX;
    return NULL;
}

static void *carve(uint8_t **at, size_t size) {
    void *piece = *at;
    *at += round_up(size, 16);
    return piece;
}

static struct fs_request *make_request(struct virtio_fs *fs, struct virtq *queue,
                                       const struct virtq_chain *chain, const struct layout *layout,
                                       unsigned vectors) {
    size_t chain_size =
        offsetof(struct virtq_chain, segments) + chain->count * sizeof chain->segments[0];
    size_t vectors_size = vectors * sizeof(struct iovec);
    uint8_t *at =
        malloc(round_up(sizeof(struct fs_request), 16) + round_up(chain_size, 16) +
               round_up(vectors_size, 16) + round_up(layout->in, 16) + round_up(layout->out, 16));
    if (at == NULL)
        return NULL;
    struct fs_request *request = carve(&at, sizeof *request);
    *request = (struct fs_request){.device = fs, .queue = queue};
    request->chain = carve(&at, chain_size);
    memcpy(request->chain, chain, chain_size);
    request->message.data = carve(&at, vectors_size);
    request->message.in = carve(&at, layout->in);
    request->message.in_length = layout->in;
    request->message.out = carve(&at, layout->out);
    request->message.out_room = layout->out;
    return request;
}

/* Copies the arguments, maps the data. False: the queue is broken. */
static bool fill_request(struct fs_request *request, const struct layout *layout,
                         unsigned vectors) {
    struct fs_message *message = &request->message;
    if (virtq_read(request->queue, request->chain, 0, (uint8_t *)message->in, layout->in) < 0)
        return false;
    if (layout->data == 0)
        return true;
    int count = virtq_map(request->queue, request->chain, layout->to_guest,
                          layout->to_guest ? layout->out : layout->in, layout->data, message->data,
                          vectors);
    if (count < 0) {
        virtq_break(request->queue, "data in too many pieces");
        return false;
    }
    message->data_count = (unsigned)count;
    message->data_length = layout->data;
    return true;
}

/* False: the queue is broken. */
static bool start(struct virtio_fs *fs, struct virtq *queue, const struct virtq_chain *chain) {
    uint8_t header[8] = {0};
    struct layout layout;
    if (virtq_read(queue, chain, 0, header, sizeof header) < 0)
        return false;
    const char *why = lay_out(chain, load_le32(header + 4), &layout);
    /* Some more than segments: RAM may not be contiguous within one. */
    unsigned vectors = layout.data > 0 ? chain->count + 8u : 0;
    struct fs_request *request =
        why == NULL ? make_request(fs, queue, chain, &layout, vectors) : NULL;
    if (request == NULL) {
        virtq_break(queue, why != NULL ? why : "out of memory");
        return false;
    }
    if (!fill_request(request, &layout, vectors)) {
        free(request);
        return false;
    }
    request->fills = layout.to_guest;
    if (request->fills)
        memory_hold(queue->owner->dma->memory);
    virtio_hold(&fs->virtio);
    if (pool_submit(fs->pool, &request->job) == 0)
        return true;
    if (request->fills)
        memory_unhold(queue->owner->dma->memory);
    virtq_break(queue, "no worker for requests");
    virtio_release(&fs->virtio);
    free(request);
    return false;
}

static bool fs_notify(struct virtio_device *device, unsigned index) {
    struct virtio_fs *fs = fs_of(device);
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
        if (!start(fs, queue, &chain))
            return false;
    }
    return more;
}

/* ---- Class ---- */

static void fs_config_read(struct virtio_device *device, unsigned offset, void *to,
                           unsigned length) {
    uint8_t config[CONFIG_SIZE] = {0};
    memcpy(config + CONFIG_TAG, fs_of(device)->tag, VIRTIO_FS_TAG_MAX);
    store_le32(config + CONFIG_QUEUES, QUEUES - REQUESTS);
    memcpy(to, config + offset, length);
}

/* A new driver knows nothing of what its predecessor was told. */
static void fs_forget(struct virtio_device *device) {
    fs_reset(fs_of(device)->fs);
}

static const struct virtio_class fs_virtio_class = {
    .id = VIRTIO_ID_FS,
    .pci_class = 0x018000, /* mass storage, other */
    .config_size = CONFIG_SIZE,
    .queues = QUEUES,
    .queue_sizes = {[HIPRIO] = HIPRIO_SIZE, [REQUESTS] = REQUESTS_SIZE},
    .config_read = fs_config_read,
    .notify = fs_notify,
    .reset = fs_forget,
};

static int fs_device_init(struct device *device, const void *config, struct error *err) {
    const struct virtio_fs_config *fs_config = config;
    struct virtio_fs *fs = container_of(device, struct virtio_fs, virtio.device);
    fs->fs = fs_config->fs;
    memcpy(fs->tag, fs_config->tag, strnlen(fs_config->tag, sizeof fs->tag));
    int result = pool_create(THREAD_OTHER, VIRTIO_FS_WORKERS, work, fs, &fs->pool, err);
    if (result < 0)
        return result;
    result = virtio_create(&fs->virtio, &fs_virtio_class, 0, &fs_config->options, err);
    if (result < 0)
        pool_destroy(fs->pool);
    return result;
}

static void fs_device_reset(struct device *device) {
    struct virtio_fs *fs = container_of(device, struct virtio_fs, virtio.device);
    pool_drain(fs->pool);
    virtio_reset(&fs->virtio);
}

static void fs_device_destroy(struct device *device) {
    struct virtio_fs *fs = container_of(device, struct virtio_fs, virtio.device);
    pool_destroy(fs->pool);
    virtio_destroy(&fs->virtio);
}

const struct device_class virtio_fs_class = {
    .name = "virtio-fs",
    .size = sizeof(struct virtio_fs),
    .state = &fs_state,
    .init = fs_device_init,
    .reset = fs_device_reset,
    .quiesce = virtio_quiesce,
    .destroy = fs_device_destroy,
};
