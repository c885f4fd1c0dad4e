/* I/O commands: 6. Those that need the back end run step by step, a request each. */
#include <stdlib.h>

#include "nvme/private.h"

enum {
    PIECE = 64 << 10,
    ZERO_PIECE = 1 << 30,
    RANGES_MAX = 256,
    RANGE_SIZE = 16,
    COMPARE_PIECE = 512
};
enum { FORCE_UNIT_ACCESS = 1 << 30, DEALLOCATE = 1 << 25, ATTRIBUTE_DEALLOCATE = 4 };

struct nvme_range {
    uint64_t offset, length; /* bytes */
};

struct nvme_namespace *nvme_namespace(struct nvme *nvme, uint32_t id) {
    return id >= 1 && id <= nvme->namespace_count ? &nvme->namespaces[id - 1] : NULL;
}

/* ---- Running ---- */

static uint16_t status_of(const struct block_request *request) {
    bool reading = request->operation == BLOCK_READ;
    if (request->result == -ENOSPC || request->result == -EDQUOT)
        return NVME_CAPACITY | NVME_DO_NOT_RETRY;
    return (reading ? NVME_READ_ERROR : NVME_WRITE_FAULT) | NVME_DO_NOT_RETRY;
}

/* A request of the back end's is through. */
static void settle(struct nvme_command *command) {
    if (command->holds_memory)
        memory_unhold(command->nvme->dma->memory);
    command->holds_memory = false;
    if (command->block.result != 0)
        command->status = status_of(&command->block);
    else if (command->settled != NULL && !command->nvme->resetting)
        command->settled(command);
}

static void request_done(struct block_request *request);

int nvme_run(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    command->block.done = request_done;
    while (command->status == NVME_OK && command->step(command)) {
        if (nvme->resetting) {
            command->status = NVME_ABORTED;
            break;
        }
        if (block_submit(command->namespace->block, &command->block) == 0)
            return NVME_PENDING; /* request_done waits for the lock that we hold */
        settle(command);
    }
    if (command->ended != NULL)
        command->ended(command);
    else
        nvme_complete(command);
    return NVME_PENDING;
}

/* On a thread of the back end's. */
static void request_done(struct block_request *request) {
    struct nvme_command *command = container_of(request, struct nvme_command, block);
    struct nvme *nvme = command->nvme;
    lock_take(&nvme->device.lock);
    settle(command);
    nvme_run(command);
    nvme_serve(nvme);
    lock_release(&nvme->device.lock);
}

/* ---- Steps ---- */

static void prepare(struct nvme_command *command, enum block_operation operation, uint64_t offset,
                    uint64_t length) {
    command->block.operation = operation;
    command->block.offset = offset;
    command->block.length = length;
    command->block.durable = false;
    command->block.vector_count = 0;
}

/* The last request of those that have to be on stable storage. */
static bool step_flush(struct nvme_command *command) {
    if (!command->flush_after)
        return false;
    command->flush_after = false;
    prepare(command, BLOCK_FLUSH, 0, 0);
    return true;
}

bool nvme_step_flush_all(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    while (command->index < nvme->namespace_count) {
        command->namespace = &nvme->namespaces[command->index++];
        if (command->namespace->block->info.readonly)
            continue;
        prepare(command, BLOCK_FLUSH, 0, 0);
        return true;
    }
    return false;
}

bool nvme_step_zero(struct nvme_command *command) {
    uint64_t length = command->left < ZERO_PIECE ? command->left : ZERO_PIECE;
    if (length == 0)
        return step_flush(command);
    prepare(command, BLOCK_WRITE_ZEROES, command->offset, length);
    command->offset += length;
    command->left -= length;
    return true;
}

/* Reads and writes: one request, prepared by start_transfer. */
static bool step_transfer(struct nvme_command *command) {
    if (command->left == 0)
        return false;
    command->left = 0;
    if (command->block.operation == BLOCK_READ) {
        command->holds_memory = true;
        memory_hold(command->nvme->dma->memory);
    }
    return true;
}

/* Compare and verify: piece by piece through a buffer of ours. */
static bool step_look(struct nvme_command *command) {
    uint64_t length = command->left < PIECE ? command->left : PIECE;
    if (length == 0)
        return false;
    prepare(command, BLOCK_READ, command->offset, length);
    command->small[0] = (struct iovec){command->bounce, (size_t)length};
    command->block.vectors = command->small;
    command->block.vector_count = 1;
    command->piece = (uint32_t)length;
    command->offset += length;
    command->left -= length;
    return true;
}

static bool step_dataset(struct nvme_command *command) {
    while (command->index > 0) {
        const struct nvme_range *range = &command->ranges[--command->index];
        if (range->length == 0)
            continue;
        prepare(command, BLOCK_DISCARD, range->offset, range->length);
        return true;
    }
    return false;
}

/* ---- Checks ---- */

/* The blocks that the command names, as bytes. */
static int check_blocks(struct nvme_command *command, bool writes) {
    struct nvme_namespace *namespace = command->namespace;
    uint64_t first = load_le64(command->entry + 40);
    uint32_t count = (nvme_dword(command, 12) & 0xffff) + 1;
    if (writes && namespace->block->info.readonly)
        return NVME_WRITE_PROTECTED | NVME_DO_NOT_RETRY;
    if (!range_within(first, count, namespace->blocks))
        return NVME_LBA_RANGE | NVME_DO_NOT_RETRY;
    command->offset = first << namespace->shift;
    command->left = (uint64_t)count << namespace->shift;
    return NVME_OK;
}

/* And their data. */
static int check_data(struct nvme_command *command, bool writes) {
    int status = check_blocks(command, writes);
    if (status != NVME_OK)
        return status;
    if (command->left > NVME_TRANSFER_MAX)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    return nvme_data_find(command, (uint32_t)command->left);
}

static bool must_last(const struct nvme_command *command) {
    const struct nvme *nvme = command->nvme;
    return (nvme_dword(command, 12) & FORCE_UNIT_ACCESS) || !nvme->live.write_cache ||
           nvme->write_through;
}

/* ---- Commands ---- */

static void transferred(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    bool reading = nvme_opcode(command) == NVME_IO_READ;
    nvme->counters.bytes += command->data.length;
    *(reading ? &nvme->reads : &nvme->writes) += 1;
    *(reading ? &nvme->read_sectors : &nvme->write_sectors) += command->data.length / BLOCK_SECTOR;
    if (reading)
        nvme_data_wrote(command);
}

static int start_transfer(struct nvme_command *command, bool write) {
    int status = check_data(command, write);
    if (status == NVME_OK)
        status = nvme_data_map(command, !write);
    if (status != NVME_OK)
        return status;
    command->block.operation = write ? BLOCK_WRITE : BLOCK_READ;
    command->block.durable = write && must_last(command);
    command->block.offset = command->offset;
    command->block.length = command->left;
    command->step = step_transfer;
    command->settled = transferred;
    return nvme_run(command);
}

static int start_flush(struct nvme_command *command) {
    command->step = nvme_step_flush_all;
    command->index = 0;
    if (nvme_nsid(command) == NVME_ALL_NAMESPACES)
        return nvme_run(command);
    if (command->namespace->block->info.readonly)
        return NVME_OK;
    command->step = step_flush;
    command->flush_after = true;
    return nvme_run(command);
}

static int start_zeroes(struct nvme_command *command) {
    int status = check_blocks(command, true);
    if (status != NVME_OK)
        return status;
    command->step = nvme_step_zero;
    command->flush_after = must_last(command);
    command->block.may_unmap = nvme_dword(command, 12) & DEALLOCATE;
    return nvme_run(command);
}

/* What was read against the command's data. */
static void compare(struct nvme_command *command) {
    uint8_t piece[COMPARE_PIECE];
    uint32_t length = command->piece, done = 0;
    uint32_t at = (uint32_t)(command->data.length - command->left) - length;
    while (done < length && command->status == NVME_OK) {
        command->status = (uint16_t)nvme_data_read(command, at + done, piece, sizeof piece);
        if (command->status == NVME_OK && memcmp(piece, command->bounce + done, sizeof piece) != 0)
            command->status = NVME_COMPARE_FAILURE | NVME_DO_NOT_RETRY;
        done += sizeof piece;
    }
}

static int start_look(struct nvme_command *command, bool comparing) {
    int status = comparing ? check_data(command, false) : check_blocks(command, false);
    if (status != NVME_OK)
        return status;
    command->bounce = malloc(PIECE);
    if (command->bounce == NULL)
        return NVME_INTERNAL;
    command->step = step_look;
    command->settled = comparing ? compare : NULL;
    return nvme_run(command);
}

/* The ranges, read once. */
static int read_ranges(struct nvme_command *command, unsigned count) {
    struct nvme_namespace *namespace = command->namespace;
    uint8_t bytes[RANGES_MAX * RANGE_SIZE];
    int status = nvme_data_find(command, count * RANGE_SIZE);
    if (status == NVME_OK)
        status = nvme_data_read(command, 0, bytes, count * RANGE_SIZE);
    for (unsigned i = 0; i < count && status == NVME_OK; i++) {
        uint64_t length = load_le32(bytes + (size_t)i * RANGE_SIZE + 4);
        uint64_t first = load_le64(bytes + (size_t)i * RANGE_SIZE + 8);
        if (!range_within(first, length, namespace->blocks))
            return NVME_LBA_RANGE | NVME_DO_NOT_RETRY;
        command->ranges[i] =
            (struct nvme_range){first << namespace->shift, length << namespace->shift};
    }
    return status;
}

static int start_dataset(struct nvme_command *command) {
    unsigned count = (nvme_dword(command, 10) & 0xff) + 1;
    bool deallocate = nvme_dword(command, 11) & ATTRIBUTE_DEALLOCATE;
    const struct block_info *info = &command->namespace->block->info;
    if (deallocate && info->readonly)
        return NVME_WRITE_PROTECTED | NVME_DO_NOT_RETRY;
    command->ranges = calloc(count, sizeof *command->ranges);
    if (command->ranges == NULL)
        return NVME_INTERNAL;
    int status = read_ranges(command, count);
    if (status != NVME_OK || !deallocate || !info->discard)
        return status; /* the other attributes are hints */
    command->step = step_dataset;
    command->index = count;
    return nvme_run(command);
}

int nvme_io(struct nvme_command *command) {
    uint8_t opcode = nvme_opcode(command);
    command->namespace = nvme_namespace(command->nvme, nvme_nsid(command));
    if (command->namespace == NULL &&
        !(opcode == NVME_IO_FLUSH && nvme_nsid(command) == NVME_ALL_NAMESPACES))
        return NVME_INVALID_NAMESPACE | NVME_DO_NOT_RETRY;
    if (command->namespace != NULL && command->namespace->formatting)
        return NVME_FORMATTING;
    switch (opcode) {
    case NVME_IO_FLUSH: return start_flush(command);
    case NVME_IO_WRITE: return start_transfer(command, true);
    case NVME_IO_READ: return start_transfer(command, false);
    case NVME_IO_COMPARE: return start_look(command, true);
    case NVME_IO_WRITE_ZEROES: return start_zeroes(command);
    case NVME_IO_DATASET: return start_dataset(command);
    case NVME_IO_VERIFY: return start_look(command, false);
    default: return NVME_INVALID_OPCODE | NVME_DO_NOT_RETRY;
    }
}
