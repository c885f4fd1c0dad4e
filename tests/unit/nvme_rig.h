/*
 * The driver's side of an NVMe controller, on device_rig.h's machine: registers, queues, one
 * command at a time or many. Disks are temporary files whose sector n is full of the byte n.
 */
#ifndef LODGE_TESTS_NVME_RIG_H
#define LODGE_TESTS_NVME_RIG_H

#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "device_rig.h"
#include "nvme/nvme.h"
#include "nvme/spec.h"

enum {
    DISK_SECTORS = 4096,
    DISKS = 2,
    QUEUES = 4,
    ENTRIES = 16,
    ADMIN_SQ = 0x400000,
    ADMIN_CQ = 0x410000,
    IO_SQ = 0x420000, /* queue n at + n * QUEUE_STEP, its completion queue behind it */
    IO_CQ = 0x428000,
    QUEUE_STEP = 0x10000,
    SHADOW = 0x600000,
    EVENT = 0x601000,
    LISTS = 0x700000,
    DATA = RIG_DATA,
};

struct driver_queue {
    uint64_t sq, cq;
    uint16_t entries, cq_entries, tail, head;
    bool phase;
};

struct completion {
    uint32_t result;
    uint16_t sq_head, sq, id, status; /* status without the phase */
};

struct nvme_rig {
    struct rig rig;
    struct device *device;
    struct block *blocks[DISKS];
    char paths[DISKS][48];
    uint64_t bar, config;
    struct driver_queue queues[QUEUES];
    uint16_t next_id;
    struct completion last;
    unsigned waiting; /* queue that nvme_done looks at */
};

/* ---- Registers ---- */

static inline uint64_t reg_read(struct nvme_rig *n, unsigned offset, unsigned size) {
    return rig_read(&n->rig, n->bar + offset, size);
}
static inline void reg_write(struct nvme_rig *n, unsigned offset, uint64_t value, unsigned size) {
    rig_write(&n->rig, n->bar + offset, value, size);
}
static inline void ring(struct nvme_rig *n, unsigned doorbell, uint32_t value) {
    reg_write(n, NVME_REG_DOORBELLS + 4 * doorbell, value, 4);
}

static inline bool rig_not_ready(void *context) {
    return !(reg_read(context, NVME_REG_CSTS, 4) & NVME_CSTS_RDY);
}
static inline bool rig_shut_down(void *context) {
    return (reg_read(context, NVME_REG_CSTS, 4) & NVME_CSTS_SHST) == NVME_CSTS_SHST_COMPLETE;
}

static inline void queue_start(struct driver_queue *queue, uint64_t sq, uint64_t cq,
                               uint16_t entries) {
    *queue = (struct driver_queue){
        .sq = sq, .cq = cq, .entries = entries, .cq_entries = entries, .phase = true};
}

static inline void nvme_disable(struct nvme_rig *n) {
    reg_write(n, NVME_REG_CC, 0, 4);
    assert_true(rig_pump_until(&n->rig, rig_not_ready, n));
}

/* Turns the controller on with empty admin queues; `settings` are further bits of CC. */
static inline void nvme_enable(struct nvme_rig *n, uint32_t settings) {
    static const uint8_t zeroes[ENTRIES * NVME_CQE];
    queue_start(&n->queues[0], ADMIN_SQ, ADMIN_CQ, ENTRIES);
    rig_put(&n->rig, ADMIN_CQ, zeroes, sizeof zeroes);
    reg_write(n, NVME_REG_AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1), 4);
    reg_write(n, NVME_REG_ASQ, ADMIN_SQ, 8);
    reg_write(n, NVME_REG_ACQ, ADMIN_CQ, 4);
    reg_write(n, NVME_REG_ACQ + 4, 0, 4);
    reg_write(n, NVME_REG_CC,
              NVME_CC_EN | NVME_SQES << NVME_CC_IOSQES_SHIFT | NVME_CQES << NVME_CC_IOCQES_SHIFT |
                  settings,
              4);
}

/* ---- Commands ---- */

struct command {
    uint8_t opcode, flags;
    uint32_t nsid, dword[16];
    uint64_t prp1, prp2;
};

/* Puts a command into a queue without ringing; answers its id. */
static inline uint16_t put_command(struct nvme_rig *n, unsigned q, const struct command *c) {
    struct driver_queue *queue = &n->queues[q];
    uint8_t entry[NVME_SQE] = {c->opcode, c->flags};
    uint16_t id = n->next_id++;
    store_le16(entry + 2, id);
    store_le32(entry + 4, c->nsid);
    store_le64(entry + 24, c->prp1);
    store_le64(entry + 32, c->prp2);
    for (unsigned i = 10; i < 16; i++)
        store_le32(entry + 4 * i, c->dword[i]);
    rig_put(&n->rig, queue->sq + (uint64_t)queue->tail * NVME_SQE, entry, sizeof entry);
    queue->tail = (uint16_t)((queue->tail + 1) % queue->entries);
    return id;
}

/* Takes a completion off the queue; without telling the controller. */
static inline bool take_completion(struct nvme_rig *n, unsigned q, struct completion *c) {
    struct driver_queue *queue = &n->queues[q];
    uint8_t entry[NVME_CQE];
    rig_get(&n->rig, queue->cq + (uint64_t)queue->head * NVME_CQE, entry, sizeof entry);
    if ((load_le16(entry + 14) & 1) != queue->phase)
        return false;
    *c = (struct completion){load_le32(entry), load_le16(entry + 8), load_le16(entry + 10),
                             load_le16(entry + 12), load_le16(entry + 14) >> 1};
    queue->head = (uint16_t)((queue->head + 1) % queue->cq_entries);
    if (queue->head == 0)
        queue->phase = !queue->phase;
    return true;
}

static inline bool nvme_done(void *context) {
    struct nvme_rig *n = context;
    return take_completion(n, n->waiting, &n->last);
}

/* Waits for a completion, acknowledges it; answers its status without "more" and "do not retry". */
static inline uint16_t wait_command(struct nvme_rig *n, unsigned q) {
    n->waiting = q;
    assert_true(rig_pump_until(&n->rig, nvme_done, n));
    ring(n, 2 * q + 1, n->queues[q].head);
    return n->last.status & 0x7ff;
}

static inline uint16_t run_command(struct nvme_rig *n, unsigned q, const struct command *c) {
    uint16_t id = put_command(n, q, c);
    ring(n, 2 * q, n->queues[q].tail);
    uint16_t status = wait_command(n, q);
    assert_int_equal(n->last.id, id);
    return status;
}

static inline uint16_t create_cq(struct nvme_rig *n, unsigned q, uint16_t entries,
                                 uint16_t vector) {
    static const uint8_t zeroes[1024 * NVME_CQE];
    uint64_t base = IO_CQ + (uint64_t)q * QUEUE_STEP;
    if (q < QUEUES)
        queue_start(&n->queues[q], IO_SQ + (uint64_t)q * QUEUE_STEP, base, entries);
    rig_put(&n->rig, base, zeroes, 16u * (entries < 1024 ? entries : 1024));
    return run_command(
        n, 0,
        &(struct command){
            .opcode = NVME_ADMIN_CREATE_CQ,
            .prp1 = base,
            .dword = {[10] = (entries - 1u) << 16 | q, [11] = (uint32_t)vector << 16 | 3}});
}

static inline uint16_t create_sq(struct nvme_rig *n, unsigned q, uint16_t entries, unsigned cq,
                                 unsigned priority) {
    if (q < QUEUES)
        n->queues[q].entries = entries;
    return run_command(
        n, 0,
        &(struct command){
            .opcode = NVME_ADMIN_CREATE_SQ,
            .prp1 = IO_SQ + (uint64_t)q * QUEUE_STEP,
            .dword = {[10] = (entries - 1u) << 16 | q, [11] = cq << 16 | priority << 1 | 1}});
}

static inline uint16_t delete_queue(struct nvme_rig *n, uint8_t opcode, unsigned q) {
    return run_command(n, 0, &(struct command){.opcode = opcode, .dword = {[10] = q}});
}

/* A read or write and the like of `sectors`, by PRPs. */
static inline struct command transfer(uint8_t opcode, uint32_t nsid, uint64_t sector,
                                      uint32_t sectors, uint64_t prp1, uint64_t prp2) {
    return (struct command){
        .opcode = opcode,
        .nsid = nsid,
        .prp1 = prp1,
        .prp2 = prp2,
        .dword = {[10] = (uint32_t)sector, [11] = (uint32_t)(sector >> 32), [12] = sectors - 1}};
}

static inline uint16_t run_transfer(struct nvme_rig *n, uint8_t opcode, uint64_t sector,
                                    uint32_t sectors, uint64_t prp1, uint64_t prp2) {
    struct command c = transfer(opcode, 1, sector, sectors, prp1, prp2);
    return run_command(n, 1, &c);
}

/* ---- Bytes ---- */

static inline void fill_data(struct nvme_rig *n, uint64_t address, uint8_t value, size_t length) {
    uint8_t bytes[512];
    memset(bytes, value, sizeof bytes);
    for (size_t at = 0; at < length; at += sizeof bytes)
        rig_put(&n->rig, address + at, bytes,
                length - at < sizeof bytes ? length - at : sizeof bytes);
}

static inline void expect_data(struct nvme_rig *n, uint64_t address, uint8_t value, size_t length) {
    uint8_t byte;
    for (size_t at = 0; at < length; at += 1 + at % 7) {
        rig_get(&n->rig, address + at, &byte, 1);
        assert_int_equal(byte, value);
    }
}

/* ---- The machine ---- */

static inline void make_disk(struct nvme_rig *n, unsigned disk) {
    strcpy(n->paths[disk], "/tmp/lodge-test-nvme-XXXXXX");
    int fd = mkstemp(n->paths[disk]);
    assert_true(fd >= 0);
    uint8_t *bytes = malloc(DISK_SECTORS * 512);
    for (size_t i = 0; i < DISK_SECTORS * 512; i++)
        bytes[i] = (uint8_t)(i / 512 + disk);
    assert_int_equal(write(fd, bytes, DISK_SECTORS * 512), DISK_SECTORS * 512);
    free(bytes);
    close(fd);
}

static inline void find_controller(struct nvme_rig *n) {
    assert_int_equal(pci_bus_assign(n->rig.platform.pci, NULL), 0);
    for (unsigned slot = 0; slot < PCI_SLOTS && n->bar == 0; slot++) {
        uint64_t config = RIG_ECAM + ((uint64_t)slot << 15);
        if (rig_read(&n->rig, config + 8, 4) >> 8 != 0x010802)
            continue;
        rig_write(&n->rig, config + 4, rig_read(&n->rig, config + 4, 2) | 6, 2);
        n->config = config;
        n->bar = rig_read(&n->rig, config + 0x10, 4) & ~UINT64_C(15);
        n->bar |= rig_read(&n->rig, config + 0x14, 4) << 32;
    }
    assert_true(n->bar != 0);
}

/* Turns MSI-X on with vector v's data = v. */
static inline void enable_msix(struct nvme_rig *n) {
    uint64_t table = rig_read(&n->rig, n->config + 0x20, 4) & ~UINT64_C(15);
    for (unsigned v = 0; v < QUEUES; v++) {
        rig_write(&n->rig, table + 16 * v, 0xfee00000, 4);
        rig_write(&n->rig, table + 16 * v + 4, 0, 4);
        rig_write(&n->rig, table + 16 * v + 8, v, 4);
        rig_write(&n->rig, table + 16 * v + 12, 0, 4);
    }
    unsigned at = (unsigned)rig_read(&n->rig, n->config + 0x34, 1);
    while (at != 0 && rig_read(&n->rig, n->config + at, 1) != 0x11)
        at = (unsigned)rig_read(&n->rig, n->config + at + 1, 1);
    assert_true(at != 0);
    rig_write(&n->rig, n->config + at + 2, 0x8000, 2);
}

/* Two disks, the second readonly if asked for; the controller on, with I/O queue pair 1. */
static inline void nvme_rig_start(struct nvme_rig *n, bool second_readonly) {
    *n = (struct nvme_rig){.next_id = 100};
    struct error err;
    log_set_level(LOG_ERROR);
    rig_start(&n->rig);
    for (unsigned i = 0; i < DISKS; i++) {
        make_disk(n, i);
        assert_int_equal(
            block_open_raw(n->paths[i], i == 1 && second_readonly, &n->blocks[i], &err), 0);
    }
    struct nvme_config config = {.blocks = {n->blocks[0], n->blocks[1]},
                                 .count = 2,
                                 .serial = "a serial number of 30 bytes"};
    assert_int_equal(
        device_create(&nvme_class, "nvme0", &n->rig.platform, &config, &n->device, NULL), 0);
    find_controller(n);
    enable_msix(n);
    nvme_enable(n, 0);
    assert_int_equal(create_cq(n, 1, ENTRIES, 1), NVME_OK);
    assert_int_equal(create_sq(n, 1, ENTRIES, 1, 0), NVME_OK);
}

static inline void nvme_rig_stop(struct nvme_rig *n) {
    device_destroy(n->device);
    for (unsigned i = 0; i < DISKS; i++) {
        block_close(n->blocks[i]);
        unlink(n->paths[i]);
    }
    rig_stop(&n->rig);
}

#endif
