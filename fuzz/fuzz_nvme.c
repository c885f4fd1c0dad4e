/*
 * The NVMe controller's registers and queues under a driver that the input spells out: settings,
 * commands with fields from both sides of what is allowed, doorbells in registers and in memory,
 * lists in guest memory that change, a back end that answers late and in any order.
 */
#define assert_true(a)                                                                             \
    do {                                                                                           \
        if (!(a))                                                                                  \
            __builtin_trap();                                                                      \
    } while (0)
#define assert_int_equal(a, b) assert_true((a) == (b))
#define assert_false(a)        assert_true(!(a))
#define fail_msg(...)          __builtin_trap()

#include <stdlib.h>

#include "../tests/unit/device_rig.h"
#include "base/log.h"
#include "nvme/nvme.h"
#include "nvme/spec.h"

enum { STEP_MAX = 2048, DISKS = 2, SECTORS = 4096, LATE_MAX = 64 };
enum { QUEUES = 0x100000, QUEUE_STEP = 0x10000, LISTS = 0x400000, BUFFERS = 0x500000 };

struct input {
    const uint8_t *bytes;
    size_t length;
};

static uint64_t take(struct input *input, unsigned size) {
    size_t n = size < input->length ? size : input->length;
    uint64_t value = load_le(input->bytes, (unsigned)n);
    input->bytes += n;
    input->length -= n;
    return value;
}

/* ---- A disk in no memory at all: it checks what it is asked, and answers when told ---- */

struct disk {
    struct block block;
    struct block_request *late[LATE_MAX];
    unsigned count;
    uint8_t turn;
};

static int disk_submit(struct block *block, struct block_request *request) {
    struct disk *disk = container_of(block, struct disk, block);
    uint64_t bytes = 0;
    assert_true(request->offset % 512 == 0 && request->length % 512 == 0);
    assert_true(range_within(request->offset, request->length, block->info.size));
    for (unsigned i = 0; i < request->vector_count; i++) {
        bytes += request->vectors[i].iov_len;
        if (request->operation == BLOCK_READ)
            memset(request->vectors[i].iov_base, disk->turn, request->vectors[i].iov_len);
    }
    if (request->operation == BLOCK_READ || request->operation == BLOCK_WRITE)
        assert_true(bytes == request->length);
    disk->turn++;
    request->result = disk->turn % 16 == 0 ? -EIO : 0;
    request->length = 0; /* back ends may change it */
    if (disk->turn % 2 == 0 || disk->count == LATE_MAX)
        return 1;
    disk->late[disk->count++] = request;
    return 0;
}

static void finish_one(struct disk *disk, unsigned which) {
    if (disk->count == 0)
        return;
    struct block_request **late = &disk->late[which % disk->count], *request = *late;
    *late = disk->late[--disk->count];
    request->done(request);
}

static void disk_drain(struct block *block) {
    struct disk *disk = container_of(block, struct disk, block);
    while (disk->count > 0)
        finish_one(disk, 0);
}

static void disk_close(struct block *block) {
    disk_drain(block);
}

static const struct block_class disk_class = {
    .name = "fuzz", .submit = disk_submit, .drain = disk_drain, .close = disk_close};

/* ---- The driver ---- */

struct fuzz {
    struct rig rig;
    struct device *device;
    struct disk disks[DISKS];
    uint64_t bar, config;
    uint16_t tails[20];
};

static uint64_t address(struct input *input) {
    static const uint64_t bases[] = {QUEUES, LISTS,   BUFFERS,    RIG_RAM - 4096,
                                     0,      RIG_RAM, UINT64_MAX, BUFFERS};
    uint64_t word = take(input, 2);
    uint64_t base = bases[word & 7];
    return base == UINT64_MAX
               ? base - (word >> 3)
               : base + (word >> 3 & ~UINT64_C(15)) * 16 + (word >> 3 & (word & 8 ? 15 : 0));
}

static uint32_t dword(struct input *input) {
    static const uint32_t edges[] = {0, 1, 2, 7, 15, 255, 0xffff, UINT32_MAX};
    uint8_t kind = (uint8_t)take(input, 1);
    return kind < 128 ? edges[kind & 7] : kind < 192 ? kind & 63u : (uint32_t)take(input, 4);
}

static void put_command(struct fuzz *fuzz, struct input *input, unsigned queue) {
    static const uint8_t opcodes[] = {0x00, 0x01, 0x02, 0x04, 0x05, 0x06,
                                      0x08, 0x09, 0x0a, 0x0c, 0x7c, 0x80};
    uint8_t entry[NVME_SQE] = {0}, what = (uint8_t)take(input, 1);
    entry[0] = what < 240 ? opcodes[what % sizeof opcodes] : what;
    entry[1] = take(input, 1) & 0x40;
    store_le16(entry + 2, (uint16_t)take(input, 1));
    store_le32(entry + 4, dword(input) % 4);
    store_le64(entry + 24, address(input));
    store_le64(entry + 32, address(input));
    if (entry[1] != 0)
        entry[39] = (uint8_t)take(input, 1);
    for (unsigned i = 10; i < 14; i++)
        store_le32(entry + 4 * i, dword(input));
    uint64_t at = QUEUES + (uint64_t)queue * QUEUE_STEP + fuzz->tails[queue] * NVME_SQE;
    memory_write(fuzz->rig.platform.memory, at, entry, sizeof entry);
    fuzz->tails[queue] = (uint16_t)((fuzz->tails[queue] + 1) % 16);
}

/* A queue as a driver would make it, so that the input need not find that out. */
static void create_queue(struct fuzz *fuzz, unsigned queue) {
    for (unsigned step = 0; step < 2; step++) {
        uint8_t entry[NVME_SQE] = {step == 0 ? NVME_ADMIN_CREATE_CQ : NVME_ADMIN_CREATE_SQ};
        store_le64(entry + 24, QUEUES + (uint64_t)queue * QUEUE_STEP + (step == 0 ? 0x8000 : 0));
        store_le32(entry + 40, 15 << 16 | queue);
        store_le32(entry + 44, step == 0 ? 3 : queue << 16 | 1);
        memory_write(fuzz->rig.platform.memory, QUEUES + fuzz->tails[0] * NVME_SQE, entry,
                     sizeof entry);
        fuzz->tails[0] = (uint16_t)((fuzz->tails[0] + 1) % 16);
    }
    fuzz->tails[queue] = 0;
    rig_write(&fuzz->rig, fuzz->bar + NVME_REG_DOORBELLS, fuzz->tails[0], 4);
}

static void enable(struct fuzz *fuzz, uint32_t settings) {
    uint64_t bar = fuzz->bar;
    rig_write(&fuzz->rig, bar + NVME_REG_AQA, 0x000f000f, 4);
    rig_write(&fuzz->rig, bar + NVME_REG_ASQ, QUEUES, 8);
    rig_write(&fuzz->rig, bar + NVME_REG_ACQ, QUEUES + 0x8000, 8);
    rig_write(&fuzz->rig, bar + NVME_REG_CC, 0x00460001 | settings, 4);
    memset(fuzz->tails, 0, sizeof fuzz->tails);
}

static void step(struct fuzz *fuzz, struct input *input) {
    static const uint8_t sizes[] = {1, 2, 4, 8};
    uint8_t what = (uint8_t)take(input, 1);
    unsigned queue = what >> 4 & 3, size = sizes[what >> 6];
    uint64_t at;
    uint8_t bytes[8];
    switch (what & 15) {
    case 0:
    case 1:
    case 2: put_command(fuzz, input, queue); break;
    case 3:
    case 4:
        rig_write(&fuzz->rig, fuzz->bar + NVME_REG_DOORBELLS + 8 * queue, fuzz->tails[queue], 4);
        break;
    case 5:
        rig_write(&fuzz->rig, fuzz->bar + NVME_REG_DOORBELLS + 8 * queue + 4, take(input, 1), 4);
        break;
    case 6: enable(fuzz, (what >> 4 & 1) << 11); break;
    case 7: rig_write(&fuzz->rig, fuzz->bar + NVME_REG_CC, (what >> 4) << 14, 4); break;
    case 8:
        at = take(input, 1) * 4;
        rig_write(&fuzz->rig, fuzz->bar + at, take(input, size), size);
        break;
    case 9: rig_read(&fuzz->rig, fuzz->bar + take(input, 2) % 0x4000, size); break;
    case 10:
        at = address(input);
        store_le64(bytes, address(input));
        memory_write(fuzz->rig.platform.memory, at, bytes, sizeof bytes);
        break;
    case 11: finish_one(&fuzz->disks[what >> 4 & 1], (unsigned)take(input, 1)); break;
    case 12: rig_pump(&fuzz->rig); break;
    case 13: create_queue(fuzz, queue + 1); break;
    case 14: rig_write(&fuzz->rig, fuzz->bar + NVME_REG_DOORBELLS + take(input, 1), 1, 4); break;
    default:
        if (what == 0xff)
            device_reset(fuzz->device);
        else
            rig_write(&fuzz->rig, fuzz->config + 4, (what & 16) | 6, 2);
        break;
    }
}

static void start(struct fuzz *fuzz) {
    rig_start(&fuzz->rig);
    for (unsigned i = 0; i < DISKS; i++)
        fuzz->disks[i].block = (struct block){.class = &disk_class,
                                              .info = {.size = SECTORS * 512,
                                                       .logical_block = 512,
                                                       .physical_block = 4096,
                                                       .readonly = i == 1,
                                                       .discard = true,
                                                       .name = "disk"}};
    struct nvme_config config = {
        .blocks = {&fuzz->disks[0].block, &fuzz->disks[1].block}, .count = DISKS, .slot = 2};
    assert_int_equal(
        device_create(&nvme_class, "nvme0", &fuzz->rig.platform, &config, &fuzz->device, NULL), 0);
    assert_int_equal(pci_bus_assign(fuzz->rig.platform.pci, NULL), 0);
    fuzz->config = RIG_ECAM + (UINT64_C(1) << 15);
    rig_write(&fuzz->rig, fuzz->config + 4, 6, 2);
    fuzz->bar = rig_read(&fuzz->rig, fuzz->config + 0x10, 4) & ~UINT64_C(15);
    fuzz->bar |= rig_read(&fuzz->rig, fuzz->config + 0x14, 4) << 32;
    enable(fuzz, 0);
    create_queue(fuzz, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
    static struct fuzz fuzz;
    struct input input = {bytes, length};
    fuzz = (struct fuzz){0};
    log_set_level(LOG_ERROR);
    start(&fuzz);
    for (unsigned steps = 0; input.length > 0 && steps < STEP_MAX; steps++)
        step(&fuzz, &input);
    device_destroy(fuzz.device);
    for (unsigned i = 0; i < DISKS; i++)
        assert_int_equal(fuzz.disks[i].count, 0);
    rig_stop(&fuzz.rig);
    return 0;
}
