#include "virtio/scsi.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "virtio/scsi_cd.h"

enum { CONTROL, EVENTS, REQUESTS, QUEUES };
enum { CONTROL_SIZE = 16, EVENTS_SIZE = 16, REQUESTS_SIZE = 128 };

/* struct virtio_scsi_config: 5.6.4. The two sizes can be written; these are what they start with.
 */
enum {
    CONFIG_QUEUES = 0,
    CONFIG_SEG_MAX = 4,
    CONFIG_MAX_SECTORS = 8,
    CONFIG_PER_LUN = 12,
    CONFIG_EVENT_SIZE = 16,
    CONFIG_SENSE_SIZE = 20,
    CONFIG_CDB_SIZE = 24,
    CONFIG_SIZE = 36,
    SENSE_SIZE = 96,
    CDB_SIZE = 32,
    EVENT_SIZE = 16,
};

/* Requests: 5.6.6.1. Lengths without the CDB and the sense data. */
enum { REQUEST_CDB = 19, RESPONSE_SENSE = 12 };
enum { SENSE_LENGTH = 0, RESIDUAL = 4, STATUS = 10, RESPONSE = 11 };
enum { S_OK = 0, S_OVERRUN = 1, S_BAD_TARGET = 3, S_FAILURE = 9, S_FUNCTION_REJECTED = 11 };

/* Control requests: 5.6.6.2. */
enum { T_MANAGEMENT = 0, T_QUERY = 1, T_SUBSCRIBE = 2 };

enum { SEGMENTS_MAX = 126, LENGTH_MAX = 4 << 20 };
enum { KEY_MEDIUM_ERROR = 3, CODE_READ_ERROR = 0x11 };

struct virtio_scsi {
    struct virtio_device virtio;
    struct block *disc;
    uint32_t sense_size, cdb_size;
};

/* A read under way. */
struct scsi_read {
    struct block_request block;
    struct virtio_scsi *scsi;
    struct virtq_chain *chain;
    uint32_t at, length; /* where its data lies in the chain's writable part */
    struct iovec vectors[];
};

static const struct state_field scsi_fields[] = {
    STATE_NESTED(struct virtio_scsi, virtio, &virtio_state, 1),
    STATE_FIELD(struct virtio_scsi, sense_size, 1, .reset = SENSE_SIZE),
    STATE_FIELD(struct virtio_scsi, cdb_size, 1, .reset = CDB_SIZE),
};
static const struct state_table scsi_state =
    STATE_TABLE("virtio-scsi", 1, struct virtio_scsi, scsi_fields);

static struct virtio_scsi *scsi_of(struct virtio_device *device) {
    return container_of(device, struct virtio_scsi, virtio);
}

/* ---- Completion ---- */

static uint32_t data_offset(const struct virtio_scsi *scsi) {
    return RESPONSE_SENSE + scsi->sense_size;
}

/* Writes the response and gives the chain back; length: of the data behind it. */
static void complete(struct virtio_scsi *scsi, const struct virtq_chain *chain, uint8_t response,
                     const struct scsi_answer *answer, uint32_t length) {
    struct virtq *queue = &scsi->virtio.queues[REQUESTS];
    uint8_t bytes[RESPONSE_SENSE + SCSI_SENSE_SIZE] = {0};
    uint32_t room = chain->writable_length - data_offset(scsi);
    store_le32(bytes + RESIDUAL, room - length);
    bytes[RESPONSE] = response;
    bool sense = answer != NULL && answer->status == SCSI_CHECK_CONDITION;
    uint32_t size = RESPONSE_SENSE;
    if (sense)
        bytes[STATUS] = answer->status;
    if (sense && scsi->sense_size >= SCSI_SENSE_SIZE) {
        store_le32(bytes + SENSE_LENGTH, SCSI_SENSE_SIZE);
        scsi_sense(answer, bytes + RESPONSE_SENSE);
        size += SCSI_SENSE_SIZE;
    }
    if (virtq_write(queue, chain, 0, bytes, size) == (ssize_t)size)
        virtq_push(queue, chain->token, length > 0 ? data_offset(scsi) + length : size);
}

static void finish_read(struct scsi_read *read) {
    static const struct scsi_answer failed = {
        .status = SCSI_CHECK_CONDITION, .key = KEY_MEDIUM_ERROR, .code = CODE_READ_ERROR};
    struct virtio_scsi *scsi = read->scsi;
    struct virtq *queue = &scsi->virtio.queues[REQUESTS];
    bool ok = read->block.result == 0;
    memory_unhold(queue->owner->dma->memory);
    /* After a reset of the whole machine the ring is no more. */
    if (queue->ready) {
        if (ok)
            virtq_wrote(queue, read->chain, read->at, read->length);
        complete(scsi, read->chain, S_OK, ok ? NULL : &failed, ok ? read->length : 0);
    }
    free(read->chain);
    free(read);
}

/* A worker of the back end is through with it. */
static void read_done(struct block_request *block) {
    struct scsi_read *read = container_of(block, struct scsi_read, block);
    struct virtio_scsi *scsi = read->scsi;
    lock_take(&scsi->virtio.device.lock);
    finish_read(read);
    virtq_signal(&scsi->virtio.queues[REQUESTS]);
    virtio_release(&scsi->virtio);
    lock_release(&scsi->virtio.device.lock);
}

/* ---- Requests ---- */

static struct scsi_read *make_read(struct virtio_scsi *scsi, const struct virtq_chain *chain,
                                   unsigned vectors) {
    size_t chain_size =
        offsetof(struct virtq_chain, segments) + chain->count * sizeof chain->segments[0];
    struct scsi_read *read = calloc(1, sizeof *read + vectors * sizeof(struct iovec));
    struct virtq_chain *copy = malloc(chain_size);
    if (read == NULL || copy == NULL) {
        free(read);
        free(copy);
        return NULL;
    }
    memcpy(copy, chain, chain_size);
    read->scsi = scsi;
    read->chain = copy;
    read->block.done = read_done;
    read->block.vectors = read->vectors;
    return read;
}

static void submit(struct scsi_read *read) {
    struct virtio_scsi *scsi = read->scsi;
    memory_hold(scsi->virtio.queues[REQUESTS].owner->dma->memory);
    virtio_hold(&scsi->virtio);
    /* The worker's completion waits for the lock that we hold. */
    if (block_submit(scsi->disc, &read->block) == 1) {
        finish_read(read);
        virtio_release(&scsi->virtio);
    }
}

static void start_read(struct virtio_scsi *scsi, const struct virtq_chain *chain,
                       const struct scsi_answer *answer) {
    uint64_t length = (uint64_t)answer->blocks * SCSI_CD_BLOCK;
    uint32_t room = chain->writable_length - data_offset(scsi);
    unsigned vectors = chain->count + 8u;
    if (length > room || length > LENGTH_MAX) {
        complete(scsi, chain, S_OVERRUN, NULL, 0);
        return;
    }
    struct scsi_read *read = make_read(scsi, chain, vectors);
    int count = read == NULL
                    ? -ENOMEM
                    : virtq_map(&scsi->virtio.queues[REQUESTS], chain, true, data_offset(scsi),
                                (uint32_t)length, read->vectors, vectors);
    if (count < 0) {
        if (read != NULL)
            free(read->chain);
        free(read);
        complete(scsi, chain, S_FAILURE, NULL, 0);
        return;
    }
    read->at = data_offset(scsi);
    read->length = (uint32_t)length;
    read->block.operation = BLOCK_READ;
    read->block.offset = answer->first_block * SCSI_CD_BLOCK;
    read->block.length = length;
    read->block.vector_count = (unsigned)count;
    submit(read);
}

static void give_data(struct virtio_scsi *scsi, const struct virtq_chain *chain,
                      const struct scsi_answer *answer) {
    uint32_t room = chain->writable_length - data_offset(scsi);
    uint32_t length = answer->length < room ? answer->length : room;
    if (length > 0 && virtq_write(&scsi->virtio.queues[REQUESTS], chain, data_offset(scsi),
                                  answer->data, length) != (ssize_t)length)
        return;
    complete(scsi, chain, S_OK, answer, length);
}

/* The single-level address of target 0, unit 0 (5.6.6.1). */
static bool is_drive(const uint8_t lun[8]) {
    return lun[0] == 1 && lun[1] == 0 && (lun[2] & 0x3f) == 0 && lun[3] == 0;
}

static void serve(struct virtio_scsi *scsi, const struct virtq_chain *chain) {
    uint8_t request[REQUEST_CDB + SCSI_CDB_SIZE] = {0};
    struct scsi_answer answer;
    uint64_t blocks = scsi->disc->info.size / SCSI_CD_BLOCK;
    if (virtq_read(&scsi->virtio.queues[REQUESTS], chain, 0, request, sizeof request) < 0)
        return;
    if (!is_drive(request)) {
        complete(scsi, chain, S_BAD_TARGET, NULL, 0);
        return;
    }
    scsi_cd_command(blocks, request + REQUEST_CDB, &answer);
    if (answer.status == SCSI_GOOD && answer.blocks > 0)
        start_read(scsi, chain, &answer);
    else
        give_data(scsi, chain, &answer);
}

/* Nothing can be aborted: what is under way ends soon, and only reads. */
static uint32_t serve_control(struct virtq *queue, const struct virtq_chain *chain) {
    uint8_t type[4], answer[5] = {0};
    if (virtq_read(queue, chain, 0, type, sizeof type) < 0)
        return 0;
    bool management = load_le32(type) == T_MANAGEMENT;
    answer[management ? 0 : 4] = management ? S_FUNCTION_REJECTED : S_OK;
    ssize_t written = virtq_write(queue, chain, 0, answer, management ? 1 : sizeof answer);
    return written > 0 ? (uint32_t)written : 0;
}

static bool is_well_formed(const struct virtio_scsi *scsi, const struct virtq_chain *chain) {
    return chain->readable_length >= REQUEST_CDB + scsi->cdb_size &&
           chain->writable_length >= data_offset(scsi);
}

static bool serve_one(struct virtio_scsi *scsi, unsigned index, const struct virtq_chain *chain) {
    struct virtq *queue = &scsi->virtio.queues[index];
    if (index == CONTROL) {
        virtq_push(queue, chain->token, serve_control(queue, chain));
        return true;
    }
    if (!is_well_formed(scsi, chain)) {
        virtq_break(queue, "request without CDB or room for a response");
        return false;
    }
    serve(scsi, chain);
    return true;
}

static bool scsi_notify(struct virtio_device *device, unsigned index) {
    struct virtq *queue = &device->queues[index];
    struct virtq_chain chain;
    bool more = true;
    if (index == EVENTS)
        return false; /* its buffers wait for events, of which there are none */
    virtq_quiet(queue);
    for (unsigned turn = 0; turn < VIRTIO_TURN_MAX; turn++) {
        if (virtq_pop(queue, &chain)) {
            if (!serve_one(scsi_of(device), index, &chain))
                return false;
            continue;
        }
        more = virtq_listen(queue);
        if (!more)
            break;
    }
    virtq_signal(queue);
    return more;
}

/* ---- Configuration ---- */

static void scsi_config_read(struct virtio_device *device, unsigned offset, void *to,
                             unsigned length) {
    const struct virtio_scsi *scsi = scsi_of(device);
    uint8_t config[CONFIG_SIZE] = {0}; /* one channel, target and unit: the rest is 0 */
    store_le32(config + CONFIG_QUEUES, 1);
    store_le32(config + CONFIG_SEG_MAX, SEGMENTS_MAX);
    store_le32(config + CONFIG_MAX_SECTORS, LENGTH_MAX / BLOCK_SECTOR);
    store_le32(config + CONFIG_PER_LUN, REQUESTS_SIZE);
    store_le32(config + CONFIG_EVENT_SIZE, EVENT_SIZE);
    store_le32(config + CONFIG_SENSE_SIZE, scsi->sense_size);
    store_le32(config + CONFIG_CDB_SIZE, scsi->cdb_size);
    memcpy(to, config + offset, length);
}

/* A driver may choose both sizes before it starts the device; what cannot be is ignored. */
static void scsi_config_write(struct virtio_device *device, unsigned offset, const void *from,
                              unsigned length) {
    struct virtio_scsi *scsi = scsi_of(device);
    if (length != 4 || (device->status & VIRTIO_DRIVER_OK))
        return;
    uint32_t value = load_le32(from);
    if (offset == CONFIG_SENSE_SIZE && value <= SENSE_SIZE)
        scsi->sense_size = value;
    else if (offset == CONFIG_CDB_SIZE && value <= CDB_SIZE)
        scsi->cdb_size = value;
}

static void forget_driver(struct virtio_device *device) {
    struct virtio_scsi *scsi = scsi_of(device);
    scsi->sense_size = SENSE_SIZE;
    scsi->cdb_size = CDB_SIZE;
}

/* ---- Class ---- */

static const struct virtio_class scsi_virtio_class = {
    .id = VIRTIO_ID_SCSI,
    .pci_class = 0x010000,
    .config_size = CONFIG_SIZE,
    .queues = QUEUES,
    .queue_sizes = {[CONTROL] = CONTROL_SIZE, [EVENTS] = EVENTS_SIZE, [REQUESTS] = REQUESTS_SIZE},
    .config_read = scsi_config_read,
    .config_write = scsi_config_write,
    .notify = scsi_notify,
    .reset = forget_driver,
};

static int scsi_init(struct device *device, const void *config, struct error *err) {
    const struct virtio_scsi_config *scsi_config = config;
    struct virtio_scsi *scsi = container_of(device, struct virtio_scsi, virtio.device);
    scsi->disc = scsi_config->disc;
    if (scsi->disc->info.size < SCSI_CD_BLOCK)
        return error_set(err, -EINVAL, "%s: too short for a CD", scsi->disc->info.name);
    return virtio_create(&scsi->virtio, &scsi_virtio_class, 0, &scsi_config->options, err);
}

static void scsi_reset(struct device *device) {
    struct virtio_scsi *scsi = container_of(device, struct virtio_scsi, virtio.device);
    block_drain(scsi->disc);
    virtio_reset(&scsi->virtio);
}

static void scsi_destroy(struct device *device) {
    struct virtio_scsi *scsi = container_of(device, struct virtio_scsi, virtio.device);
    block_drain(scsi->disc);
    virtio_destroy(&scsi->virtio);
}

const struct device_class virtio_scsi_class = {
    .name = "virtio-scsi",
    .size = sizeof(struct virtio_scsi),
    .state = &scsi_state,
    .init = scsi_init,
    .reset = scsi_reset,
    .quiesce = virtio_quiesce,
    .destroy = scsi_destroy,
};
