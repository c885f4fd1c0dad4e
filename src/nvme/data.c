/* Where a command's data lies in guest memory: PRP lists (4.3) and SGLs (4.4). */
#include <stdlib.h>

#include "nvme/private.h"

enum { PRP_SIZE = 8, PRP_BATCH = 64, SGL_SIZE = 16, SGL_BATCH = 32, SGL_DESCRIPTORS_MAX = 4096 };
enum { SGL_DATA = 0x00, SGL_SEGMENT = 0x20, SGL_LAST_SEGMENT = 0x30 };
/* RAM may not be contiguous within a segment. */
enum { VECTORS_EXTRA = 8 };

/* ---- Segments ---- */

static int grow(struct nvme_data *data) {
    unsigned room = data->room * 4 < NVME_SEGMENTS_MAX ? data->room * 4 : NVME_SEGMENTS_MAX;
    struct nvme_segment *old = data->segments == data->small ? NULL : data->segments;
    if (room == data->room)
        return NVME_SGL_COUNT | NVME_DO_NOT_RETRY;
    struct nvme_segment *segments = realloc(old, room * sizeof *segments);
    if (segments == NULL)
        return NVME_INTERNAL;
    if (old == NULL)
        memcpy(segments, data->small, sizeof data->small);
    data->segments = segments;
    data->room = room;
    return NVME_OK;
}

/* Appends memory; what follows on what is there already becomes one. */
static int add(struct nvme_data *data, uint64_t address, uint32_t length) {
    struct nvme_segment *last = data->count > 0 ? &data->segments[data->count - 1] : NULL;
    data->length += length;
    if (last != NULL && last->address + last->length == address) {
        last->length += length;
        return NVME_OK;
    }
    if (data->count == data->room) {
        int status = grow(data);
        if (status != NVME_OK)
            return status;
    }
    data->segments[data->count++] = (struct nvme_segment){address, length};
    return NVME_OK;
}

/* ---- PRPs ---- */

/*
 * Pages of a PRP list at `list` until `length` bytes are there. A page's last entry leads to the
 * next page of the list when one entry is not enough for the rest; that page is read from its
 * beginning, so each adds data and no loop is endless.
 */
static int add_list(struct nvme_command *command, uint64_t list, uint32_t length) {
    const struct nvme *nvme = command->nvme;
    uint32_t page = nvme_page_size(nvme);
    uint8_t entries[PRP_BATCH * PRP_SIZE];
    if (list % PRP_SIZE != 0)
        return NVME_PRP_OFFSET | NVME_DO_NOT_RETRY;
    while (length > 0) {
        uint32_t left = (page - (uint32_t)(list & (page - 1))) / PRP_SIZE;
        uint32_t wanted = (length + page - 1) / page;
        uint32_t count = left < wanted ? left : wanted;
        count = count < PRP_BATCH ? count : PRP_BATCH;
        if (dma_read(nvme->dma, list, entries, (size_t)count * PRP_SIZE) != 0)
            return NVME_DATA_TRANSFER;
        for (uint32_t i = 0; i < count; i++) {
            uint64_t entry = load_le64(entries + (size_t)i * PRP_SIZE);
            uint32_t piece = length < page ? length : page;
            if (entry & (page - 1))
                return NVME_PRP_OFFSET | NVME_DO_NOT_RETRY;
            list += PRP_SIZE;
            if (i + 1 == left && length > page) {
                list = entry;
                break;
            }
            int status = add(&command->data, entry, piece);
            if (status != NVME_OK)
                return status;
            length -= piece;
        }
    }
    return NVME_OK;
}

static int find_prps(struct nvme_command *command, uint32_t length) {
    uint32_t page = nvme_page_size(command->nvme);
    uint64_t first = nvme_prp(command, 0), second = nvme_prp(command, 1);
    uint32_t piece = page - (uint32_t)(first & (page - 1));
    if (first % 4 != 0)
        return NVME_PRP_OFFSET | NVME_DO_NOT_RETRY;
    piece = length < piece ? length : piece;
    add(&command->data, first, piece);
    length -= piece;
    if (length == 0)
        return NVME_OK;
    if (length > page)
        return add_list(command, second, length);
    if (second & (page - 1))
        return NVME_PRP_OFFSET | NVME_DO_NOT_RETRY;
    return add(&command->data, second, length);
}

/* ---- SGLs ---- */

/* What is left to walk: the current segment, and how much may still come. */
struct sgl {
    uint64_t address;
    uint32_t descriptors; /* unread ones of the segment */
    bool last;            /* no segment follows this one */
    uint32_t budget;
};

/* A descriptor that leads to a segment. */
static int enter_segment(struct sgl *sgl, const uint8_t *descriptor) {
    uint32_t length = load_le32(descriptor + 8);
    if (length == 0 || length % SGL_SIZE != 0)
        return NVME_SGL_SEGMENT | NVME_DO_NOT_RETRY;
    if (length / SGL_SIZE > sgl->budget)
        return NVME_SGL_COUNT | NVME_DO_NOT_RETRY;
    sgl->address = load_le64(descriptor);
    sgl->descriptors = length / SGL_SIZE;
    sgl->budget -= sgl->descriptors;
    sgl->last = descriptor[15] == SGL_LAST_SEGMENT;
    return NVME_OK;
}

static bool is_segment(const uint8_t *descriptor) {
    return descriptor[15] == SGL_SEGMENT || descriptor[15] == SGL_LAST_SEGMENT;
}

static int add_block(struct nvme_command *command, const uint8_t *descriptor, uint32_t wanted) {
    uint32_t length = load_le32(descriptor + 8);
    if (descriptor[15] != SGL_DATA)
        return NVME_SGL_TYPE | NVME_DO_NOT_RETRY;
    if (length > wanted - command->data.length)
        return NVME_SGL_LENGTH | NVME_DO_NOT_RETRY;
    return length == 0 ? NVME_OK : add(&command->data, load_le64(descriptor), length);
}

/* Reads up to SGL_BATCH descriptors of the segment. */
static int walk_some(struct nvme_command *command, struct sgl *sgl, uint32_t wanted) {
    uint8_t batch[SGL_BATCH * SGL_SIZE];
    uint32_t count = sgl->descriptors < SGL_BATCH ? sgl->descriptors : SGL_BATCH;
    int status = NVME_OK;
    if (dma_read(command->nvme->dma, sgl->address, batch, (size_t)count * SGL_SIZE) != 0)
        return NVME_DATA_TRANSFER;
    sgl->address += (uint64_t)count * SGL_SIZE;
    for (uint32_t i = 0; i < count && status == NVME_OK; i++) {
        const uint8_t *descriptor = batch + (size_t)i * SGL_SIZE;
        bool at_end = --sgl->descriptors == 0;
        if (at_end && !sgl->last)
            return is_segment(descriptor) ? enter_segment(sgl, descriptor)
                                          : NVME_SGL_SEGMENT | NVME_DO_NOT_RETRY;
        if (is_segment(descriptor))
            return NVME_SGL_SEGMENT | NVME_DO_NOT_RETRY;
        status = add_block(command, descriptor, wanted);
    }
    return status;
}

static int find_sgl(struct nvme_command *command, uint32_t length) {
    const uint8_t *descriptor = command->entry + 24;
    struct sgl sgl = {.budget = SGL_DESCRIPTORS_MAX};
    int status = is_segment(descriptor) ? enter_segment(&sgl, descriptor)
                                        : add_block(command, descriptor, length);
    while (status == NVME_OK && sgl.descriptors > 0)
        status = walk_some(command, &sgl, length);
    if (status == NVME_OK && command->data.length != length)
        status = NVME_SGL_LENGTH | NVME_DO_NOT_RETRY;
    return status;
}

int nvme_data_find(struct nvme_command *command, uint32_t length) {
    struct nvme_data *data = &command->data;
    unsigned kind = command->entry[1] >> 6;
    data->segments = data->small;
    data->room = NVME_SMALL;
    data->count = 0;
    data->length = 0;
    /* Admin commands come with PRPs on PCI Express (4.2, PSDT). */
    if (kind == 3 || (kind != 0 && command->sq == 0))
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    if (length == 0)
        return NVME_OK;
    return kind == 0 ? find_prps(command, length) : find_sgl(command, length);
}

/* ---- Copying ---- */

/* Copies between [offset, offset + length) of the data and bytes; one of from and to is NULL. */
static int copy(struct nvme_command *command, uint32_t offset, uint8_t *to, const uint8_t *from,
                uint32_t length) {
    const struct dma_context *dma = command->nvme->dma;
    for (unsigned i = 0; i < command->data.count && length > 0; i++) {
        const struct nvme_segment *segment = &command->data.segments[i];
        if (offset >= segment->length) {
            offset -= segment->length;
            continue;
        }
        uint32_t piece = segment->length - offset < length ? segment->length - offset : length;
        uint64_t address = segment->address + offset;
        int rc =
            to != NULL ? dma_read(dma, address, to, piece) : dma_write(dma, address, from, piece);
        if (rc != 0)
            return NVME_DATA_TRANSFER;
        to = to != NULL ? to + piece : NULL;
        from = from != NULL ? from + piece : NULL;
        length -= piece;
        offset = 0;
    }
    return length == 0 ? NVME_OK : NVME_DATA_TRANSFER;
}

int nvme_data_read(struct nvme_command *command, uint32_t offset, void *to, uint32_t length) {
    return copy(command, offset, to, NULL, length);
}

int nvme_data_write(struct nvme_command *command, uint32_t offset, const void *from,
                    uint32_t length) {
    return copy(command, offset, NULL, from, length);
}

int nvme_reply(struct nvme_command *command, const void *from, uint32_t length) {
    int status = nvme_data_find(command, length);
    return status == NVME_OK ? nvme_data_write(command, 0, from, length) : status;
}

/* ---- Mapping ---- */

/* Vectors for one segment. */
static int map_segment(struct nvme_command *command, const struct nvme_segment *segment,
                       bool write) {
    struct block_request *request = &command->block;
    uint64_t address = segment->address;
    size_t left = segment->length;
    while (left > 0) {
        size_t length = left;
        void *host = dma_map(command->nvme->dma, address, &length, write);
        if (host == NULL || request->vector_count == command->vector_room)
            return NVME_DATA_TRANSFER;
        command->vectors[request->vector_count++] = (struct iovec){host, length};
        address += length;
        left -= length;
    }
    return NVME_OK;
}

int nvme_data_map(struct nvme_command *command, bool write) {
    struct block_request *request = &command->block;
    unsigned room = command->data.count + VECTORS_EXTRA;
    int status = NVME_OK;
    command->vectors = command->small;
    command->vector_room = ARRAY_SIZE(command->small);
    if (command->data.count > NVME_SMALL) {
        command->vectors = malloc(room * sizeof *command->vectors);
        command->vector_room = room;
        if (command->vectors == NULL)
            return NVME_INTERNAL;
    }
    request->vectors = command->vectors;
    request->vector_count = 0;
    for (unsigned i = 0; i < command->data.count && status == NVME_OK; i++)
        status = map_segment(command, &command->data.segments[i], write);
    return status;
}

void nvme_data_wrote(struct nvme_command *command) {
    for (unsigned i = 0; i < command->data.count; i++)
        dma_unmap(command->nvme->dma, command->data.segments[i].address,
                  command->data.segments[i].length);
}

void nvme_data_free(struct nvme_command *command) {
    if (command->data.segments != command->data.small)
        free(command->data.segments);
    if (command->vectors != command->small)
        free(command->vectors);
    command->data.segments = NULL;
    command->vectors = NULL;
    command->data.count = 0;
    command->data.length = 0;
}
