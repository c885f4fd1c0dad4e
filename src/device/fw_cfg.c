#include "device/fw_cfg.h"

#include <stdlib.h>

#include "base/bytes.h"
#include "base/log.h"

enum { SELECTOR = 0, DATA = 1, DMA_HIGH = 4, DMA_LOW = 8 };
enum { ID_TRADITIONAL = 1, ID_DMA = 2 };
enum { DMA_ERROR = 1, DMA_READ = 2, DMA_SKIP = 4, DMA_SELECT = 8, DMA_WRITE = 16 };
enum { DMA_CONTROL = 0, DMA_LENGTH = 4, DMA_ADDRESS = 8, DMA_SIZE = 16 };
enum { DIRECTORY_HEADER = 4, DIRECTORY_ENTRY = 64, ENTRY_SELECT = 4, ENTRY_NAME = 8 };
#define DMA_SIGNATURE UINT64_C(0x51454d5520434647) /* "QEMU CFG" */

struct item {
    uint16_t key;
    uint32_t length;
    uint8_t *bytes;
};

struct fw_cfg {
    struct device device;
    struct port_range *ports;
    struct item items[FW_CFG_ITEMS_MAX];
    unsigned item_count, file_count;
    uint8_t directory[DIRECTORY_HEADER + FW_CFG_ITEMS_MAX * DIRECTORY_ENTRY];
    uint16_t key;
    uint32_t offset; /* in the selected item; may lie past its end */
    uint32_t dma_high;
    unsigned own_items; /* the device's own, the first ones */
};

/* ---- Reading items: lock held ---- */

static const struct item *selected(const struct fw_cfg *fw) {
    for (unsigned i = 0; i < fw->item_count; i++)
        if (fw->items[i].key == fw->key)
            return &fw->items[i];
    return NULL;
}

static void select_item(struct fw_cfg *fw, uint16_t key) {
    fw->key = key;
    fw->offset = 0;
}

static void skip(struct fw_cfg *fw, uint32_t length) {
    fw->offset = length > UINT32_MAX - fw->offset ? UINT32_MAX : fw->offset + length;
}

/* What is left of the selected item, at most length bytes. */
static uint32_t rest(const struct fw_cfg *fw, uint32_t length, const uint8_t **bytes) {
    const struct item *item = selected(fw);
    if (item == NULL || fw->offset >= item->length)
        return 0;
    uint32_t left = item->length - fw->offset;
    *bytes = item->bytes + fw->offset;
    return left < length ? left : length;
}

static uint8_t read_byte(struct fw_cfg *fw) {
    const uint8_t *bytes;
    uint8_t value = rest(fw, 1, &bytes) ? *bytes : 0;
    skip(fw, 1);
    return value;
}

/* ---- DMA: lock held ---- */

static int write_zeros(struct memory *memory, uint64_t gpa, uint32_t length) {
    static const uint8_t zeros[4096];
    int rc = 0;
    while (length > 0 && rc == 0) {
        uint32_t n = length < sizeof zeros ? length : sizeof zeros;
        rc = memory_write(memory, gpa, zeros, n);
        gpa += n;
        length -= n;
    }
    return rc;
}

static int dma_out(struct fw_cfg *fw, uint64_t gpa, uint32_t length) {
    struct memory *memory = fw->device.platform->memory;
    const uint8_t *bytes = NULL;
    if (length > FW_CFG_DMA_MAX)
        return -E2BIG;
    uint32_t have = rest(fw, length, &bytes);
    int rc = memory_write(memory, gpa, bytes, have);
    if (rc == 0)
        rc = write_zeros(memory, gpa + have, length - have);
    skip(fw, length);
    return rc;
}

/* Serves the request at gpa, all of whose fields are big-endian. */
static void dma(struct fw_cfg *fw, uint64_t gpa) {
    struct memory *memory = fw->device.platform->memory;
    uint8_t request[DMA_SIZE], answer[4] = {0};
    if (memory_read(memory, gpa, request, sizeof request) < 0) {
        log_guest("fw_cfg: no request at %#llx", (unsigned long long)gpa);
        return;
    }
    uint32_t control = load_be32(request + DMA_CONTROL), length = load_be32(request + DMA_LENGTH);
    int rc = 0;
    if (control & DMA_SELECT)
        select_item(fw, (uint16_t)(control >> 16));
    if (control & DMA_READ)
        rc = dma_out(fw, load_be64(request + DMA_ADDRESS), length);
    else if (control & DMA_WRITE)
        rc = -EROFS;
    else if (control & DMA_SKIP)
        skip(fw, length);
    store_be32(answer, rc < 0 ? DMA_ERROR : 0);
    memory_write(memory, gpa + DMA_CONTROL, answer, sizeof answer);
}

/* ---- Ports ---- */

/* The signature that tells that there is DMA, big-endian as the address is. */
static uint64_t read_signature(uint64_t offset, unsigned size) {
    uint8_t bytes[8];
    store_be64(bytes, DMA_SIGNATURE);
    return load_le(bytes + (offset - DMA_HIGH), size);
}

static uint64_t fw_cfg_read(void *context, uint64_t offset, unsigned size) {
    struct fw_cfg *fw = context;
    uint64_t value = bytes_mask(size);
    if (offset >= DMA_HIGH)
        return read_signature(offset, size);
    lock_take(&fw->device.lock);
    if (offset == DATA && size == 1)
        value = read_byte(fw);
    else if (offset == SELECTOR && size == 2)
        value = fw->key;
    lock_release(&fw->device.lock);
    return value;
}

static void fw_cfg_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct fw_cfg *fw = context;
    lock_take(&fw->device.lock);
    if (offset == SELECTOR && size == 2)
        select_item(fw, (uint16_t)value);
    else if (offset == DMA_HIGH && size == 4)
        fw->dma_high = __builtin_bswap32((uint32_t)value);
    else if (offset == DMA_LOW && size == 4) {
        uint64_t gpa = (uint64_t)fw->dma_high << 32 | __builtin_bswap32((uint32_t)value);
        fw->dma_high = 0;
        dma(fw, gpa);
    }
    lock_release(&fw->device.lock);
}

static const struct io_ops fw_cfg_ops = {fw_cfg_read, fw_cfg_write};

/* ---- Adding items ---- */

static int add(struct fw_cfg *fw, uint16_t key, uint8_t *bytes, size_t length, struct error *err) {
    if (fw->item_count == FW_CFG_ITEMS_MAX || length > UINT32_MAX) {
        error_set(err, -ENOSPC, "too much for the firmware configuration device");
        return -ENOSPC;
    }
    for (unsigned i = 0; i < fw->item_count; i++)
        if (fw->items[i].key == key) {
            error_set(err, -EEXIST, "firmware configuration item %#x is there", key);
            return -EEXIST;
        }
    fw->items[fw->item_count++] = (struct item){key, (uint32_t)length, bytes};
    return 0;
}

int fw_cfg_add(struct device *device, uint16_t key, const void *bytes, size_t length,
               struct error *err) {
    uint8_t *copy = malloc(length + 1);
    if (copy == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    memcpy(copy, bytes, length);
    int rc = add((struct fw_cfg *)device, key, copy, length, err);
    if (rc < 0)
        free(copy);
    return rc;
}

int fw_cfg_add_integer(struct device *device, uint16_t key, uint64_t value, unsigned size,
                       struct error *err) {
    uint8_t bytes[8];
    store_le(bytes, value, size);
    return fw_cfg_add(device, key, bytes, size, err);
}

int fw_cfg_add_file(struct device *device, const char *name, const void *bytes, size_t length,
                    struct error *err) {
    struct fw_cfg *fw = (struct fw_cfg *)device;
    uint16_t key = (uint16_t)(FW_CFG_FILES + fw->file_count);
    if (strlen(name) >= FW_CFG_NAME_SIZE)
        return error_set(err, -ENAMETOOLONG, "firmware configuration file %s", name);
    int rc = fw_cfg_add(device, key, bytes, length, err);
    if (rc < 0)
        return rc;
    uint8_t *entry = fw->directory + DIRECTORY_HEADER + fw->file_count * DIRECTORY_ENTRY;
    store_be32(entry, (uint32_t)length);
    store_be16(entry + ENTRY_SELECT, key);
    memcpy(entry + ENTRY_NAME, name, strlen(name));
    store_be32(fw->directory, ++fw->file_count);
    return 0;
}

static void free_items(struct fw_cfg *fw, unsigned first) {
    for (unsigned i = first; i < fw->item_count; i++)
        if (fw->items[i].bytes != fw->directory)
            free(fw->items[i].bytes);
    fw->item_count = first;
}

void fw_cfg_forget(struct device *device) {
    struct fw_cfg *fw = (struct fw_cfg *)device;
    free_items(fw, fw->own_items);
    fw->file_count = 0;
    memset(fw->directory, 0, sizeof fw->directory);
}

/* ---- Life ---- */

static const struct state_field fw_cfg_fields[] = {
    STATE_FIELD(struct fw_cfg, key, 1),
    STATE_FIELD(struct fw_cfg, offset, 1),
    STATE_FIELD(struct fw_cfg, dma_high, 1),
};
static const struct state_table fw_cfg_state =
    STATE_TABLE("fw_cfg", 1, struct fw_cfg, fw_cfg_fields);

static void fw_cfg_destroy(struct device *device) {
    struct fw_cfg *fw = (struct fw_cfg *)device;
    ports_remove(fw->ports);
    free_items(fw, 0);
}

static int fw_cfg_init(struct device *device, const void *config, struct error *err) {
    struct fw_cfg *fw = (struct fw_cfg *)device;
    (void)config;
    int rc = add(fw, FW_CFG_DIRECTORY, fw->directory, sizeof fw->directory, err);
    if (rc == 0)
        rc = fw_cfg_add(device, FW_CFG_SIGNATURE, "QEMU", 4, err);
    if (rc == 0)
        rc = fw_cfg_add_integer(device, FW_CFG_ID, ID_TRADITIONAL | ID_DMA, 4, err);
    fw->own_items = fw->item_count;
    if (rc == 0)
        rc = ports_add(device->platform->ports, device->name, FW_CFG_PORT, FW_CFG_PORTS,
                       &fw_cfg_ops, fw, &fw->ports, err);
    if (rc < 0)
        fw_cfg_destroy(device);
    return rc;
}

const struct device_class fw_cfg_class = {
    .name = "fw_cfg",
    .size = sizeof(struct fw_cfg),
    .state = &fw_cfg_state,
    .init = fw_cfg_init,
    .destroy = fw_cfg_destroy,
};
