/*
 * Frames whose buffers are away (memory/missing.h). The device does not wait
 * for the memory: the frame stays in a backup buffer, the faulty buffers are
 * noted and their pages asked for, and the next frame gets the next buffers.
 * Frames are delivered in the order in which they came, each as soon as it is
 * the first and its buffers are there, so that one wait covers all that came
 * meanwhile.
 *
 * Bounded: beyond BACKUP_FRAMES or BACKUP_BYTES frames stay with the back end,
 * as they do when a guest offers no buffers.
 *
 * All calls: under the device's lock.
 */
#ifndef LODGE_VIRTIO_NET_BACKUP_H
#define LODGE_VIRTIO_NET_BACKUP_H

#include "net/net.h"
#include "virtio/queue.h"

enum { BACKUP_FRAMES = 256, BACKUP_BYTES = 4 << 20 };

/* struct virtio_net_hdr (virtio 1.2, 5.1.6): no offloads, so all zero but for the number of
 * buffers. */
enum { NET_VIRTIO_HEADER = 12, NET_VIRTIO_HEADER_BUFFERS = 10 };

struct net_arrival;

struct net_backup {
    struct net_arrival *first, *last; /* in order of arrival */
    struct net_arrival *unplaced;     /* the first without buffers; NULL: all have theirs */
    unsigned frames;
    size_t bytes;
    struct net_backup_counters {
        uint64_t frames; /* that went this way */
        uint64_t faulty; /* buffers that were away when they were noted */
        uint64_t
            dropped;   /* frames too large for the buffers of any chain, or lodge had no memory */
        uint64_t most; /* frames at one time */
    } counters;
};

static inline bool net_backup_is_empty(const struct net_backup *backup) {
    return backup->first == NULL;
}

static inline bool net_backup_is_full(const struct net_backup *backup) {
    return backup->frames >= BACKUP_FRAMES || backup->bytes >= BACKUP_BYTES;
}

/* Takes the frame, which is freed then; the backup is not full. */
void net_backup_add(struct net_backup *backup, struct net_frame *frame);

/*
 * Gives frames their buffers, up to `merge` chains each, and delivers those
 * whose turn it is. The queue is served again when the next one's memory has
 * come, or when there are buffers again.
 */
void net_backup_serve(struct net_backup *backup, struct virtq *queue, unsigned merge);

/* Puts all buffers back; the frames stay. */
void net_backup_rest(struct net_backup *backup, struct virtq *queue);

/* Drops everything; the queue was reset. */
void net_backup_forget(struct net_backup *backup);

#endif
