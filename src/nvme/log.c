/* Log pages: 5.14. */
#include "nvme/private.h"

enum { ERROR_SIZE = 64, HEALTH_SIZE = 512, FIRMWARE_SIZE = 512, LIST_SIZE = 4096 };
enum { RETAIN_EVENT = 1 << 15, HOUR_SECONDS = 3600 };
/* Commands supported and effects (5.14.1.5). */
enum { SUPPORTED = 1, CHANGES_CONTENTS = 2, ALONE_IN_NAMESPACE = 1 << 16 };

static const struct state_field error_fields[] = {
    STATE_FIELD(struct nvme_error, count, 1, .keep = true),
    STATE_FIELD(struct nvme_error, lba, 1, .keep = true),
    STATE_FIELD(struct nvme_error, namespace, 1, .keep = true),
    STATE_FIELD(struct nvme_error, queue, 1, .keep = true),
    STATE_FIELD(struct nvme_error, command, 1, .keep = true),
    STATE_FIELD(struct nvme_error, status, 1, .keep = true),
};
const struct state_table nvme_error_state =
    STATE_TABLE("nvme error", 1, struct nvme_error, error_fields);

/* Worth an entry: what a correct driver would not expect. Not what it may try to learn what there
 * is, nor a comparison that fails. */
static bool worth(uint16_t status) {
    unsigned code = status & 0x7ff;
    return code == NVME_DATA_TRANSFER || code == NVME_INTERNAL || code == NVME_LBA_RANGE ||
           code == NVME_CAPACITY || code == NVME_WRITE_FAULT || code == NVME_READ_ERROR;
}

uint16_t nvme_log_failure(const struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    if (!worth(command->status))
        return 0;
    uint64_t count = ++nvme->error_count;
    nvme->media_errors += (command->status & 0x700) == (NVME_WRITE_FAULT & 0x700);
    nvme->errors[(count - 1) % NVME_ERRORS] = (struct nvme_error){
        .count = count,
        .lba = command->sq == 0 ? 0 : load_le64(command->entry + 40),
        .namespace = nvme_nsid(command),
        .queue = command->sq,
        .command = command->id,
        .status = command->status,
    };
    return NVME_MORE;
}

/* ---- Pages; each fills a zeroed page and answers its size ---- */

static uint32_t error_page(const struct nvme *nvme, uint8_t *page) {
    for (unsigned i = 0; i < NVME_ERRORS && i < nvme->error_count; i++) {
        const struct nvme_error *error = &nvme->errors[(nvme->error_count - 1 - i) % NVME_ERRORS];
        uint8_t *entry = page + (size_t)i * ERROR_SIZE;
        store_le64(entry, error->count);
        store_le16(entry + 8, error->queue);
        store_le16(entry + 10, error->command);
        store_le16(entry + 12, (uint16_t)((error->status | NVME_MORE) << 1));
        store_le16(entry + 14, 0xffff); /* no place in the command is to blame */
        store_le64(entry + 16, error->lba);
        store_le32(entry + 24, error->namespace);
    }
    return NVME_ERRORS * ERROR_SIZE;
}

static uint32_t health_page(const struct nvme *nvme, uint8_t *page) {
    uint64_t seconds = vm_clock_ns(nvme->device.platform->clock) / NS_PER_SECOND;
    page[0] = nvme->live.critical;
    store_le16(page + 1, NVME_TEMPERATURE);
    page[3] = 100; /* available spare, and below which it would be little */
    page[4] = 10;
    store_le64(page + 32, (nvme->read_sectors + 999) / 1000);
    store_le64(page + 48, (nvme->write_sectors + 999) / 1000);
    store_le64(page + 64, nvme->reads);
    store_le64(page + 80, nvme->writes);
    store_le64(page + 112, 1); /* power cycles */
    store_le64(page + 128, seconds / HOUR_SECONDS);
    store_le64(page + 160, nvme->media_errors);
    store_le64(page + 176, nvme->error_count);
    return HEALTH_SIZE;
}

static uint32_t firmware_page(uint8_t *page) {
    page[0] = 1; /* slot 1 is active */
    memset(page + 8, ' ', 8);
    memcpy(page + 8, LODGE_VERSION, strnlen(LODGE_VERSION, 8));
    return FIRMWARE_SIZE;
}

static uint32_t changed_page(const struct nvme *nvme, uint8_t *page) {
    for (unsigned i = 0; i < nvme->namespace_count; i++) {
        if (!(nvme->changed & 1u << i))
            continue;
        store_le32(page, i + 1);
        page += 4;
    }
    return LIST_SIZE;
}

static uint32_t effects_page(uint8_t *page) {
    static const uint8_t plain_admin[] = {
        NVME_ADMIN_DELETE_SQ,   NVME_ADMIN_CREATE_SQ,      NVME_ADMIN_GET_LOG_PAGE,
        NVME_ADMIN_DELETE_CQ,   NVME_ADMIN_CREATE_CQ,      NVME_ADMIN_IDENTIFY,
        NVME_ADMIN_ABORT,       NVME_ADMIN_SET_FEATURES,   NVME_ADMIN_GET_FEATURES,
        NVME_ADMIN_ASYNC_EVENT, NVME_ADMIN_DOORBELL_BUFFER};
    static const uint8_t reading[] = {NVME_IO_FLUSH, NVME_IO_READ, NVME_IO_COMPARE, NVME_IO_VERIFY};
    static const uint8_t writing[] = {NVME_IO_WRITE, NVME_IO_WRITE_ZEROES, NVME_IO_DATASET};
    enum { IO = 1024 };
    for (unsigned i = 0; i < sizeof plain_admin; i++)
        store_le32(page + 4u * plain_admin[i], SUPPORTED);
    store_le32(page + 4 * NVME_ADMIN_FORMAT, SUPPORTED | CHANGES_CONTENTS | ALONE_IN_NAMESPACE);
    for (unsigned i = 0; i < sizeof reading; i++)
        store_le32(page + IO + 4u * reading[i], SUPPORTED);
    for (unsigned i = 0; i < sizeof writing; i++)
        store_le32(page + IO + 4u * writing[i], SUPPORTED | CHANGES_CONTENTS);
    return LIST_SIZE;
}

static uint32_t fill(const struct nvme *nvme, unsigned log, uint8_t *page) {
    switch (log) {
    case NVME_LOG_ERROR: return error_page(nvme, page);
    case NVME_LOG_HEALTH: return health_page(nvme, page);
    case NVME_LOG_FIRMWARE: return firmware_page(page);
    case NVME_LOG_CHANGED: return changed_page(nvme, page);
    case NVME_LOG_EFFECTS: return effects_page(page);
    default: return 0;
    }
}

/* The driver knows now: the next event of the kind is told again. */
static void was_read(struct nvme *nvme, unsigned log) {
    if (log == NVME_LOG_CHANGED)
        nvme->changed = 0;
    if (log == NVME_LOG_ERROR)
        nvme_event_read(nvme, NVME_EVENT_ERROR);
    else if (log == NVME_LOG_HEALTH)
        nvme_event_read(nvme, NVME_EVENT_HEALTH);
    else if (log == NVME_LOG_CHANGED)
        nvme_event_read(nvme, NVME_EVENT_NOTICE);
}

/* [offset, offset + length) of the page; beyond its end are zeroes. */
static int reply_part(struct nvme_command *command, const uint8_t *page, uint32_t size,
                      uint64_t offset, uint32_t length) {
    static const uint8_t zeroes[4096];
    uint32_t there = size - (uint32_t)offset < length ? size - (uint32_t)offset : length;
    int status = nvme_data_find(command, length);
    if (status == NVME_OK)
        status = nvme_data_write(command, 0, page + offset, there);
    for (uint32_t at = there, piece; at < length && status == NVME_OK; at += piece) {
        piece = length - at < sizeof zeroes ? length - at : (uint32_t)sizeof zeroes;
        status = nvme_data_write(command, at, zeroes, piece);
    }
    return status;
}

int nvme_get_log_page(struct nvme_command *command) {
    uint8_t page[LIST_SIZE] = {0};
    uint32_t dword10 = nvme_dword(command, 10), dword11 = nvme_dword(command, 11);
    uint64_t dwords = (dword10 >> 16 | (uint64_t)(dword11 & 0xffff) << 16) + 1;
    uint64_t offset = nvme_dword(command, 12) | (uint64_t)nvme_dword(command, 13) << 32;
    unsigned log = dword10 & 0xff;
    uint32_t nsid = nvme_nsid(command), size = fill(command->nvme, log, page);
    if (size == 0)
        return NVME_INVALID_LOG | NVME_DO_NOT_RETRY;
    if (log == NVME_LOG_HEALTH && nsid != 0 && nsid != NVME_ALL_NAMESPACES) /* LPA bit 0 */
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    if (dwords > NVME_TRANSFER_MAX / 4 || offset % 4 != 0 || offset > size)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    int status = reply_part(command, page, size, offset, (uint32_t)dwords * 4);
    if (status == NVME_OK && !(dword10 & RETAIN_EVENT))
        was_read(command->nvme, log);
    return status;
}
