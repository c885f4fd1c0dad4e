/* Identify: 5.15. */
#include <stdio.h>

#include "nvme/private.h"

/* What is asked for: 5.15.1, CNS. */
enum {
    CNS_NAMESPACE = 0x00,
    CNS_CONTROLLER = 0x01,
    CNS_ACTIVE = 0x02,
    CNS_DESCRIPTORS = 0x03,
    CNS_ALLOCATED = 0x10,
    CNS_ALLOCATED_NAMESPACE = 0x11,
    CNS_ATTACHED_CONTROLLERS = 0x12,
    CNS_CONTROLLERS = 0x13,
};

enum { OACS_FORMAT = 1 << 1, OACS_DOORBELL_BUFFER = 1 << 8, OAES_NAMESPACES = 1 << 8 };
enum {
    ONCS_COMPARE = 1,
    ONCS_DATASET = 1 << 2,
    ONCS_WRITE_ZEROES = 1 << 3,
    ONCS_SELECT = 1 << 4,
    ONCS_TIMESTAMP = 1 << 6,
    ONCS_VERIFY = 1 << 7,
};

static void put_text(uint8_t *to, const char *text, size_t size) {
    memset(to, ' ', size);
    memcpy(to, text, strnlen(text, size));
}

static void put_uuid_text(char *to, size_t size, const uint8_t *uuid) {
    snprintf(to, size,
             "nqn.2014-08.org.nvmexpress:uuid:%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
             "%02x%02x%02x%02x%02x%02x",
             uuid[0], uuid[1], uuid[2], uuid[3], uuid[4], uuid[5], uuid[6], uuid[7], uuid[8],
             uuid[9], uuid[10], uuid[11], uuid[12], uuid[13], uuid[14], uuid[15]);
}

static void put_capabilities(const struct nvme *nvme, uint8_t *page) {
    store_le32(page + 84, 1000000); /* to be ready again after a reset, in microseconds */
    store_le32(page + 88, 5000000);
    store_le32(page + 92, OAES_NAMESPACES);
    page[111] = 1; /* an I/O controller */
    store_le16(page + 256, OACS_FORMAT | OACS_DOORBELL_BUFFER);
    page[258] = 3; /* aborts at a time, less one */
    page[259] = NVME_EVENT_COMMANDS - 1;
    page[260] = 1 << 1 | 1;      /* one firmware slot, read-only */
    page[261] = 1 << 1 | 1 << 2; /* effects log; log pages at offsets */
    page[262] = NVME_ERRORS - 1;
    store_le16(page + 266, NVME_TEMPERATURE_WARNING);
    store_le16(page + 268, NVME_TEMPERATURE_CRITICAL);
    uint64_t total = 0;
    for (unsigned i = 0; i < nvme->namespace_count; i++)
        total += nvme->namespaces[i].block->info.size;
    store_le64(page + 280, total);
    page[512] = NVME_SQES << 4 | NVME_SQES;
    page[513] = NVME_CQES << 4 | NVME_CQES;
    store_le32(page + 516, nvme->namespace_count);
    store_le16(page + 520, ONCS_COMPARE | ONCS_DATASET | ONCS_WRITE_ZEROES | ONCS_SELECT |
                               ONCS_TIMESTAMP | ONCS_VERIFY);
    /* A volatile write cache, if there is one, is flushed for all namespaces at once, too. */
    page[525] = (uint8_t)(3 << 1 | !nvme->write_through);
    store_le32(page + 536, 1);     /* SGLs of any alignment */
    store_le16(page + 2048, 2500); /* power state 0: centiwatts */
}

static void controller_page(const struct nvme *nvme, uint8_t *page) {
    const uint8_t *config = pci_config_bytes(nvme->function);
    memcpy(page, config, 2);
    memcpy(page + 2, config + 0x2c, 2);
    memcpy(page + 4, nvme->serial, sizeof nvme->serial);
    put_text(page + 24, "lodge NVMe controller", 40);
    put_text(page + 64, LODGE_VERSION, 8);
    page[72] = 6; /* commands in a burst that suit best, as a power of two */
    page[77] = NVME_MDTS;
    store_le16(page + 78, NVME_CONTROLLER_ID);
    store_le32(page + 80, NVME_VERSION);
    put_capabilities(nvme, page);
    put_uuid_text((char *)page + 768, 256, nvme->uuid);
}

static void namespace_page(const struct nvme_namespace *namespace, uint8_t *page) {
    enum { OPTIMAL_SIZES = 1 << 4, DEALLOCATE_IN_WRITE_ZEROES = 1 << 3, WRITE_PROTECTED = 1 };
    const struct block_info *info = &namespace->block->info;
    uint16_t unit = (uint16_t)(info->physical_block >> namespace->shift);
    store_le64(page, namespace->blocks);
    store_le64(page + 8, namespace->blocks);
    store_le64(page + 16, namespace->blocks);
    page[24] = OPTIMAL_SIZES;
    page[33] = DEALLOCATE_IN_WRITE_ZEROES;
    store_le64(page + 48, info->size);
    for (unsigned at = 64; at <= 70; at += 2) /* writes and deallocations: unit, alignment */
        store_le16(page + at, unit > 0 ? unit - 1 : 0);
    page[99] = info->readonly ? WRITE_PROTECTED : 0;
    page[130] = (uint8_t) namespace->shift; /* the one format: no metadata */
}

static void descriptors_page(const struct nvme_namespace *namespace, uint8_t *page) {
    page[0] = 3; /* a UUID */
    page[1] = sizeof namespace->uuid;
    memcpy(page + 4, namespace->uuid, sizeof namespace->uuid);
}

/* Ids of namespaces above `after`. */
static void namespace_list(const struct nvme *nvme, uint32_t after, uint8_t *page) {
    for (uint32_t id = after + 1; id <= nvme->namespace_count; id++, page += 4)
        store_le32(page, id);
}

/* Controllers with an id of at least `from`: there is one. */
static void controller_list(uint16_t from, uint8_t *page) {
    if (from > NVME_CONTROLLER_ID)
        return;
    store_le16(page, 1);
    store_le16(page + 2, NVME_CONTROLLER_ID);
}

static int fill(struct nvme_command *command, uint8_t *page) {
    struct nvme *nvme = command->nvme;
    uint32_t nsid = nvme_nsid(command), dword10 = nvme_dword(command, 10);
    const struct nvme_namespace *namespace = nvme_namespace(nvme, nsid);
    switch (dword10 & 0xff) {
    case CNS_CONTROLLER: controller_page(nvme, page); return NVME_OK;
    case CNS_CONTROLLERS: controller_list((uint16_t)(dword10 >> 16), page); return NVME_OK;
    case CNS_ACTIVE:
    case CNS_ALLOCATED:
        if (nsid >= NVME_ALL_NAMESPACES - 1)
            break;
        namespace_list(nvme, nsid, page);
        return NVME_OK;
    case CNS_NAMESPACE:
    case CNS_ALLOCATED_NAMESPACE:
        if (namespace == NULL)
            break;
        namespace_page(namespace, page);
        return NVME_OK;
    case CNS_DESCRIPTORS:
        if (namespace == NULL)
            break;
        descriptors_page(namespace, page);
        return NVME_OK;
    case CNS_ATTACHED_CONTROLLERS:
        if (namespace == NULL)
            break;
        controller_list((uint16_t)(dword10 >> 16), page);
        return NVME_OK;
    default: return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    }
    return NVME_INVALID_NAMESPACE | NVME_DO_NOT_RETRY;
}

int nvme_identify(struct nvme_command *command) {
    uint8_t page[NVME_PAGE] = {0};
    int status = fill(command, page);
    return status == NVME_OK ? nvme_reply(command, page, sizeof page) : status;
}
