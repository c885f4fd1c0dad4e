/*
 * Virtqueues: the one place of lodge that reads and writes rings.
 *
 * A queue is memory that driver (guest) and device share. The driver makes
 * *chains* available; a chain is a list of buffers, first those that the
 * device reads, then those that it writes. The device uses them in any order
 * and gives each back with the number of bytes it wrote. Two layouts:
 *
 *  split (virtio 1.2, section 2.7): three areas.
 *
 *     descriptor area          driver area (available)     device area (used)
 *     size x 16 bytes          flags   2                   flags       2
 *     address 8, length 4,     index   2  (free running)   index       2
 *     flags 2, next 2          ring    size x 2 (heads)    ring        size x 8 (id, length)
 *                              used_event 2                avail_event 2
 *
 *    A chain starts at a head and follows `next` while NEXT is set.
 *
 *  packed (section 2.8): one ring of 16-byte descriptors (address 8, length
 *  4, id 2, flags 2) that both sides overwrite. AVAIL and USED flag bits,
 *  compared with a wrap counter that flips each time round, say whose a
 *  descriptor is. A chain is consecutive descriptors; the last names its id.
 *  Driver and device areas hold 4 bytes each: when to send the other side an
 *  event.
 *
 * In both, a descriptor with INDIRECT names a table of further descriptors,
 * and EVENT_IDX lets either side name the position at which it wants to hear
 * of progress.
 *
 * The walker trusts nothing in there. Each field is copied once through the
 * DMA context and the copy is checked: indices against sizes, links against
 * the number of descriptors (no loops), tables against VIRTQ_CHAIN_MAX (one
 * level), lengths against 4 GiB a chain, chains outstanding against the
 * queue's size. A ring that breaks a rule calls owner.broken once and the
 * queue answers "empty" until it is reset; nothing more happens.
 *
 * Memory that is away (memory/missing.h) is asked for, and the queue answers
 * "empty" until it has come: nobody stands still for a chain.
 *
 * All calls: under the device's lock.
 */
#ifndef LODGE_VIRTIO_QUEUE_H
#define LODGE_VIRTIO_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/state.h"
#include "memory/dma.h"

enum {
    VIRTQ_SIZE_MAX = 1024, /* descriptors of a ring */
    VIRTQ_CHAIN_MAX = 512, /* buffers of a chain, indirect ones included */
};

struct virtq;

/* What a queue needs of its device's transport. */
struct virtq_owner {
    const struct dma_context *dma;
    void (*interrupt)(void *context, struct virtq *queue);               /* buffers were used */
    void (*broken)(void *context, struct virtq *queue, const char *why); /* device needs reset */
    void *context;
    /* Memory that the queue waited for has come: it is to be served. Any thread, a lock held: posts
     * to the loop. NULL: what is away is touched and stood still for. */
    void (*came)(void *context, struct virtq *queue);
};

struct virtq {
    const struct virtq_owner *owner;
    uint16_t index;    /* of this queue in its device */
    uint16_t size_max; /* what the device offers */

    /* Set by the driver through the transport before it enables the queue. */
    uint16_t size;
    uint16_t vector; /* MSI-X vector, 0xffff for none */
    uint64_t descriptors, driver, device;

    /* Progress: private to queue.c. */
    bool ready, packed, event_index, indirect, broken;
    bool avail_wrap, used_wrap;
    uint16_t avail;       /* next to take: free running (split) or a slot (packed) */
    uint16_t used;        /* next to give back, likewise */
    uint16_t in_flight;   /* ring entries taken and not given back */
    uint16_t unsignalled; /* entries given back since the driver was last considered */
    bool waiting;         /* the last pop found memory away */
    struct memory_wait wait;
};

/* Names a chain when it is given back. */
struct virtq_token {
    uint16_t id;
    uint16_t slots; /* ring entries it takes */
};

struct virtq_segment {
    uint64_t address; /* as the DMA context sees it */
    uint32_t length;  /* never 0 */
};

struct virtq_chain {
    struct virtq_token token;
    uint16_t readable;        /* segments[0, readable): the device reads */
    uint16_t count;           /* segments[readable, count): the device writes */
    uint32_t readable_length; /* bytes */
    uint32_t writable_length;
    struct virtq_segment segments[VIRTQ_CHAIN_MAX];
};

/* The registers and progress of a queue, to nest in a device's table. */
extern const struct state_table virtq_state;

/* Once, at the device's init. owner outlives the queue. */
void virtq_init(struct virtq *queue, const struct virtq_owner *owner, uint16_t index,
                uint16_t size_max);

/* As after a device reset: not ready, size_max entries, no addresses, no vector. */
void virtq_reset(struct virtq *queue);

struct virtq_features {
    bool packed, event_index, indirect;
};

/*
 * The driver enables the queue: checks size and alignments (2.7, 2.8.10.1)
 * and starts at the ring's beginning. Breaks the queue when they are wrong.
 */
void virtq_enable(struct virtq *queue, struct virtq_features features);

/*
 * Takes the next chain. True: *chain is filled, and the device owes a push
 * (or an unpop). False: none available, or the queue is broken or not ready.
 */
bool virtq_pop(struct virtq *queue, struct virtq_chain *chain);

/*
 * As virtq_pop, but the chain's buffers may be away. virtq_await asks for those
 * that are; true: the queue is served again when the first has come. False:
 * all are there.
 */
bool virtq_pop_away(struct virtq *queue, struct virtq_chain *chain);
bool virtq_await(struct virtq *queue, const struct virtq_chain *chain);

/* Some memory somewhere is away: what follows has a point. */
static inline bool virtq_any_away(const struct virtq *queue) {
    return queue->owner->came != NULL && dma_any_away(queue->owner->dma);
}

/* No ring is away, so that calls other than pops do not stand still either; else asked for
 * likewise. */
bool virtq_is_here(struct virtq *queue);

/* Puts back the chain popped last; several: in reverse order. */
void virtq_unpop(struct virtq *queue, struct virtq_token token);

/*
 * Gives a chain back with the number of bytes written to it. Does not
 * interrupt: call virtq_signal when a batch is through. Ignored on a queue
 * that was reset or broke meanwhile.
 */
void virtq_push(struct virtq *queue, struct virtq_token token, uint32_t written);

/* Interrupts the driver if anything was pushed since the last call and it wants to know. */
void virtq_signal(struct virtq *queue);

/* Asks the driver not to notify while the device is looking anyway. A hint: it may still do so. */
void virtq_quiet(struct virtq *queue);

/*
 * Asks to be notified of the next chain. True: one is there already, which
 * the driver will not notify about: pop again. False also while memory of the
 * next chain is away.
 */
bool virtq_listen(struct virtq *queue);

/* Breaks the queue on the device's behalf: its protocol above the ring was violated. */
void virtq_break(struct virtq *queue, const char *why);

/*
 * Copies between buffers of the chain and the device, from `offset` in its
 * readable (virtq_read) or writable (virtq_write) part. Answers the bytes
 * copied, short where the chain ends; -EFAULT when a buffer is not RAM (the
 * queue is broken then).
 */
ssize_t virtq_read(struct virtq *queue, const struct virtq_chain *chain, uint32_t offset, void *to,
                   size_t length);
ssize_t virtq_write(struct virtq *queue, const struct virtq_chain *chain, uint32_t offset,
                    const void *from, size_t length);

/*
 * Host pointers to [offset, offset+length) of the readable or writable part,
 * for bulk data. Answers the number of vectors; -EFAULT (queue broken) when
 * the range is not all RAM or not all in the chain, -E2BIG when `max` vectors
 * do not suffice (only where guest RAM is not contiguous). The bytes may
 * change under the caller. After writing, call virtq_wrote.
 */
int virtq_map(struct virtq *queue, const struct virtq_chain *chain, bool writable, uint32_t offset,
              uint32_t length, struct iovec *vectors, unsigned max);
/* The first `length` bytes from `offset` of the writable part were written through virtq_map. */
void virtq_wrote(struct virtq *queue, const struct virtq_chain *chain, uint32_t offset,
                 uint32_t length);

/* Ring entries that the device has taken and not given back. */
static inline uint16_t virtq_in_flight(const struct virtq *queue) {
    return queue->in_flight;
}

#endif
