/*
 * A network device in front of frames of our own making, and memory that is
 * away until we say so: for the test and the measurement of net_backup.h.
 */
#ifndef LODGE_TESTS_AWAY_RIG_H
#define LODGE_TESTS_AWAY_RIG_H

#include <pthread.h>
#include <stdlib.h>

#include "device_rig.h"
#include "memory/missing.h"
#include "virtio/net.h"

enum { RX = 0, TX = 1, VNET_HEADER = 12, AWAY_RING = 256, AWAY_PAGES = RIG_RAM >> PAGE_SHIFT };

/* Frames for the guest: a list that the test fills. */
struct frame_net {
    struct net net;
    struct net_frame *first, **last;
    unsigned queued, sent;
    void (*ready)(void *context);
    void *context;
};

static inline bool frames_send(struct net *net, const uint8_t *frame, size_t length) {
    (void)frame;
    (void)length;
    container_of(net, struct frame_net, net)->sent++;
    return true;
}

static inline struct net_frame *frames_next(struct net *net) {
    struct frame_net *frames = container_of(net, struct frame_net, net);
    struct net_frame *frame = frames->first;
    if (frame == NULL)
        return NULL;
    frames->first = frame->next;
    if (frames->first == NULL)
        frames->last = &frames->first;
    frames->queued--;
    return frame;
}

static inline void frames_attach(struct net *net, void (*ready)(void *context), void *context) {
    struct frame_net *frames = container_of(net, struct frame_net, net);
    frames->ready = ready;
    frames->context = context;
}

static const struct net_class frames_class = {
    .name = "frames",
    .send = frames_send,
    .next = frames_next,
    .attach = frames_attach,
};

struct away_rig {
    struct rig rig;
    struct rig_driver driver;
    struct device *device;
    struct frame_net frames;
    uint32_t sequence, expected; /* of frames made, and received */
    uint64_t rx_of_id[VIRTQ_SIZE_MAX];
    uint32_t room_of_id[VIRTQ_SIZE_MAX];
};

static inline void away_start(struct away_rig *away) {
    *away = (struct away_rig){.frames.net = {&frames_class, NET_MTU_DEFAULT}};
    away->frames.last = &away->frames.first;
    struct virtio_net_config config = {.options.packed = true, .net = &away->frames.net};
    rig_start(&away->rig);
    assert_int_equal(
        device_create(&virtio_net_class, "net0", &away->rig.platform, &config, &away->device, NULL),
        0);
    driver_find(&away->driver, &away->rig, VIRTIO_ID_NET);
}

static inline void away_stop(struct away_rig *away) {
    device_destroy(away->device);
    for (struct net_frame *frame; (frame = frames_next(&away->frames.net)) != NULL;)
        free(frame);
    rig_stop(&away->rig);
}

/* A frame's bytes follow from its number, which it begins with. */
static inline uint8_t away_byte(uint32_t sequence, size_t i) {
    return (uint8_t)(sequence * 131 + i * 7);
}

static inline void away_frame(struct away_rig *away, size_t length) {
    struct net_frame *frame = malloc(sizeof *frame + length);
    assert_non_null(frame);
    *frame = (struct net_frame){.length = length};
    for (size_t i = 0; i < length; i++)
        frame->bytes[i] = away_byte(away->sequence, i);
    store_le32(frame->bytes, away->sequence++);
    *away->frames.last = frame;
    away->frames.last = &frame->next;
    away->frames.queued++;
}

/* A buffer for the device; false: the ring is full. */
static inline bool away_post(struct away_rig *away, uint64_t address, uint32_t length) {
    const struct driver_buffer buffer = {address, length};
    int id = ring_add(&away->driver.rings[RX], &buffer, 0, 1);
    if (id < 0)
        return false;
    away->rx_of_id[id] = address;
    away->room_of_id[id] = length;
    return true;
}

/* Takes a received frame, which must be the next in order and whole; false: there is none. */
static inline bool away_take_frame(struct away_rig *away, void (*used)(void *context, uint16_t id),
                                   void *context) {
    static uint8_t frame[VNET_HEADER + NET_FRAME_MAX];
    uint32_t length, done = 0;
    unsigned buffers = 1;
    for (unsigned i = 0; i < buffers; i++) {
        uint16_t id;
        if (!ring_used(&away->driver.rings[RX], &id, &length)) {
            assert_int_equal(i, 0);
            return false;
        }
        assert_true(length <= away->room_of_id[id] && done + length <= sizeof frame);
        rig_get(&away->rig, away->rx_of_id[id], frame + done, length);
        done += length;
        if (i == 0)
            buffers = load_le16(frame + 10);
        used(context, id);
    }
    assert_int_equal(load_le32(frame + VNET_HEADER), away->expected);
    for (size_t i = 4; i < done - VNET_HEADER; i++)
        if (frame[VNET_HEADER + i] != away_byte(away->expected, i))
            fail_msg("frame %u: byte %zu is wrong", away->expected, i);
    away->expected++;
    return true;
}

#endif
