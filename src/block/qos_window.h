/*
 * How much of the classes below urgent may be under way at a store, and in
 * what pieces: enough to keep it busy, and little that an urgent request would
 * have to wait behind.
 *
 * The window is what the store does, at the best rate of the last two seconds,
 * in the time that a small piece usually takes which has the store for itself
 * (on a busy host most of it is waiting for a processor), and QOS_DRAIN_NS
 * more. Where a QOS_SHARE of what would be at the store without classes is
 * more than that, it is so much, up to what the store does in QOS_MOST_NS.
 * While a small window holds the rate down the next one is larger, until the
 * store is what limits.
 *
 * It goes there in few pieces, for each costs processors something, but in two
 * for each channel of the store: small and large pieces that have the store for
 * themselves tell how much of its rate one of them gets. So that there are such
 * pieces under load, the window closes at times until nothing is in flight, and
 * until one piece is through then.
 *
 * Where the store is far, so that latency is much of the window, no more than
 * half of it starts within a quarter of the time that it lasts: what goes there
 * at once comes back at once, and would go on as one heap.
 *
 * No clock and no lock: the caller's.
 */
#ifndef LODGE_BLOCK_QOS_WINDOW_H
#define LODGE_BLOCK_QOS_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

enum {
    QOS_WINDOW_MIN = 256 << 10,
    QOS_WINDOW_MAX = 64 << 20,
    QOS_PIECE_MIN = 64 << 10,
    QOS_DRAIN_NS = 300000,
    QOS_MOST_NS = 4000000,
    QOS_SHARE = 8,
    QOS_SAMPLES = 8, /* so many last measurements count */
};

enum qos_size { QOS_SMALL, QOS_LARGE, QOS_SIZES };

/* A piece in flight. */
struct qos_transit {
    uint64_t bytes, began_ns;
    bool alone; /* it began so */
};

struct qos_window {
    uint64_t demand;             /* bytes of requests not answered: the caller's */
    uint64_t in_flight;          /* bytes */
    unsigned pieces;             /* in flight */
    uint64_t part, part_ns;      /* bytes that may start of this part; since when */
    uint64_t began_ns;           /* the interval over which the rate is measured; 0: none */
    uint64_t delivered;          /* bytes since */
    unsigned completed;          /* pieces since */
    bool held;                   /* something had to wait since */
    uint64_t rates[QOS_SAMPLES]; /* bytes a second: the best of a quarter of a second each */
    unsigned rate_count;         /* so far */
    uint64_t rate_ns;            /* when the last of them began */
    uint64_t alone[QOS_SIZES][QOS_SAMPLES]; /* what pieces took alone, nanoseconds */
    unsigned alone_count[QOS_SIZES];        /* so far */
    uint64_t alone_ns;                      /* when one was measured last */
    enum qos_size next_alone;
    bool closing;     /* nothing starts until nothing is in flight, */
    bool probing;     /* and nothing beside the piece that does then */
    bool undisturbed; /* a piece is alone, and has been all the time */
};

/* How many bytes may be in flight. */
uint64_t qos_window_bytes(const struct qos_window *window);
/* How many bytes the next piece should have. */
uint64_t qos_window_piece(const struct qos_window *window);
/*
 * True when a piece of so many bytes may start. False is noted: something waits, for the end of a
 * piece or, if only time is missing, until *when_ns, which is left alone otherwise.
 */
bool qos_window_fits(struct qos_window *window, uint64_t bytes, uint64_t now_ns, uint64_t *when_ns);
void qos_window_start(struct qos_window *window, struct qos_transit *piece, uint64_t bytes,
                      uint64_t now_ns);
void qos_window_end(struct qos_window *window, const struct qos_transit *piece, uint64_t now_ns);

#endif
