/*
 * The devices that take and give guest memory, balloon and memory device, under a driver that the
 * input spells out: lists of pages, reports and requests from both sides of what is allowed,
 * descriptors of its own, registers, resets, other targets meanwhile.
 */
#define assert_true(a)                                                                             \
    do {                                                                                           \
        if (!(a))                                                                                  \
            __builtin_trap();                                                                      \
    } while (0)
#define assert_int_equal(a, b) assert_true((a) == (b))
#define assert_false(a)        assert_true(!(a))
#define fail_msg(...)          __builtin_trap()

#include "../tests/unit/device_rig.h"
#include "base/log.h"
#include "virtio/balloon.h"
#include "virtio/mem.h"

enum { STEP_MAX = 1024, BLOCKS = 16, QUEUES = 4, RING = 16, BUFFERS = 4, FEATURES = 0x36 };
#define REGION GIB(4)

struct input {
    const uint8_t *bytes;
    size_t length;
};

struct fuzz {
    struct rig rig;
    struct device *device[2]; /* balloon, memory */
    struct rig_driver driver[2];
};

static uint64_t take(struct input *input, unsigned size) {
    size_t n = size < input->length ? size : input->length;
    uint64_t value = load_le(input->bytes, (unsigned)n);
    input->bytes += n;
    input->length -= n;
    return value;
}

/* In lists, rings, pages, the region, at RAM's end, nowhere. */
static uint64_t address(struct input *input) {
    static const uint64_t bases[] = {RIG_DATA,       RIG_DATA + 0x100000, REGION, RIG_RAM - 8,
                                     RIG_RAM - 4096, RIG_RINGS,           0,      UINT64_MAX - 64};
    uint64_t word = take(input, 2);
    return bases[word & 7] + (word >> 4) * (word & 8 ? 1 : PAGE_SIZE / 2);
}

static void negotiate(struct rig_driver *driver, uint64_t features, unsigned queues) {
    if (!driver_negotiate(driver, (features & FEATURES) | VIRTIO_FEATURE(VIRTIO_F_VERSION_1)))
        return;
    for (unsigned i = 0; i < queues; i++)
        driver_queue(driver, i, RING, false);
    driver_write(driver, VIRTIO_COMMON_STATUS, driver_status(driver) | VIRTIO_DRIVER_OK, 1);
}

static void offer(struct rig_driver *driver, struct input *input, unsigned queue) {
    struct driver_buffer buffers[BUFFERS];
    unsigned count = 1 + take(input, 1) % BUFFERS, readable = (unsigned)take(input, 1) % 4;
    for (unsigned i = 0; i < count; i++) {
        buffers[i].address = address(input);
        buffers[i].length = (uint32_t)take(input, 2) + 1;
        if (buffers[i].length & 1)
            buffers[i].length <<= 8;
    }
    if (driver->rings[queue].memory != NULL)
        ring_add(&driver->rings[queue], buffers, readable < count ? readable : count, count);
    driver_notify(driver, queue);
}

static void request(struct fuzz *fuzz, struct input *input) {
    const struct driver_buffer buffers[] = {{RIG_DATA, 24}, {RIG_DATA + 64, 10}};
    struct rig_driver *driver = &fuzz->driver[1];
    uint8_t bytes[24] = {0};
    store_le16(bytes, (uint16_t)take(input, 1) % 5);
    store_le64(bytes + 8, REGION + (take(input, 1) % (BLOCKS + 2)) * MIB(2));
    store_le16(bytes + 16, (uint16_t)take(input, 1) % (BLOCKS + 2));
    memory_write(fuzz->rig.platform.memory, RIG_DATA, bytes, sizeof bytes);
    if (driver->rings[0].memory != NULL)
        ring_add(&driver->rings[0], buffers, 1, 2);
    driver_notify(driver, 0);
}

static void collect(struct rig_driver *driver, unsigned queue) {
    uint16_t id;
    uint32_t length;
    if (driver->rings[queue].memory != NULL)
        while (ring_used(&driver->rings[queue], &id, &length))
            assert_true(id < RING);
}

/* What the device says of itself is what memory shows. */
static void check(struct fuzz *fuzz) {
    struct mem_report report;
    uint64_t there = 0;
    uint8_t byte;
    virtio_mem_report(fuzz->device[1], &report);
    for (uint64_t at = 0; at < BLOCKS * MIB(2); at += MIB(2))
        there += memory_read(fuzz->rig.platform.memory, REGION + at, &byte, 1) == 0 ? MIB(2) : 0;
    assert_true(there == report.plugged);
}

static void step(struct fuzz *fuzz, struct input *input) {
    uint8_t what = (uint8_t)take(input, 1), bytes[8];
    struct rig_driver *driver = &fuzz->driver[what >> 4 & 1];
    unsigned queue = what >> 5 & 3;
    uint64_t at;
    switch (what & 15) {
    case 0:
    case 1:
    case 2: offer(&fuzz->driver[0], input, queue); break;
    case 3: offer(&fuzz->driver[1], input, 0); break;
    case 4:
    case 5: request(fuzz, input); break;
    case 6: collect(driver, driver == &fuzz->driver[1] ? 0 : queue); break;
    case 7: negotiate(&fuzz->driver[0], take(input, 1), QUEUES); break;
    case 8: negotiate(&fuzz->driver[1], take(input, 1), 1); break;
    case 9: virtio_balloon_set_target(fuzz->device[0], take(input, 4) << 8); break;
    case 10: virtio_mem_request(fuzz->device[1], take(input, 2) << 16); break;
    case 11: virtio_balloon_ask(fuzz->device[0]); break;
    case 12:
        at = take(input, 1);
        driver_write(driver, VIRTIO_PCI_DEVICE + (unsigned)at, take(input, 4), 4);
        driver_read(driver, VIRTIO_PCI_DEVICE + (unsigned)at, 4);
        break;
    case 13:
        at = address(input);
        store_le64(bytes, address(input) >> (what >> 4));
        memory_write(fuzz->rig.platform.memory, at, bytes, sizeof bytes);
        break;
    case 14: rig_pump(&fuzz->rig); break;
    default:
        if (what >> 4 < 2)
            device_reset(fuzz->device[what >> 4]);
        else
            driver_write(driver, (unsigned)take(input, 1) % 64, take(input, 4), 4);
        break;
    }
}

static void start(struct fuzz *fuzz) {
    struct virtio_balloon_config balloon = {0};
    struct virtio_mem_config mem = {.gpa = REGION, .size = BLOCKS * MIB(2)};
    struct platform *platform = &fuzz->rig.platform;
    rig_start(&fuzz->rig);
    assert_int_equal(memory_add_pluggable(platform->memory, "plug", mem.gpa, mem.size, NULL), 0);
    assert_int_equal(device_create(&virtio_balloon_class, "balloon0", platform, &balloon,
                                   &fuzz->device[0], NULL),
                     0);
    assert_int_equal(
        device_create(&virtio_mem_class, "mem0", platform, &mem, &fuzz->device[1], NULL), 0);
    driver_find(&fuzz->driver[0], &fuzz->rig, VIRTIO_ID_BALLOON);
    driver_find(&fuzz->driver[1], &fuzz->rig, VIRTIO_ID_MEM);
    negotiate(&fuzz->driver[0], FEATURES, QUEUES);
    negotiate(&fuzz->driver[1], 3, 1);
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
    check(&fuzz);
    device_destroy(fuzz.device[0]);
    device_destroy(fuzz.device[1]);
    rig_stop(&fuzz.rig);
    return 0;
}
