/*
 * How much of the classes below urgent may be under way at a store, and in
 * what pieces: enough to keep it busy, and little that an urgent request would
 * have to wait behind.
 *
 * The window is what the store does, at the best rate of the last two seconds,
 * in the time that a small piece usually takes which has the store for itself
 * (on a busy host most of it is waiting for a processor), and QOS_DRAIN_NS
 * more. While a small window holds the rate down the next one is larger, until
 * the store is what limits.
 *
 * A piece is as large as one channel of the store moves within QOS_PIECE_NS:
 * small and large pieces that have the store for themselves tell how long a
 * byte takes. So that there are such pieces under load, the window closes at
 * times until nothing is in flight, and until one piece is through then.
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
    QOS_DRAIN_NS = 700000,
    QOS_PIECE_NS = 200000,
    QOS_SAMPLES = 8, /* so many last measurements count */
};

/* A piece in flight; or what it took, once it was alone. */
struct qos_transit {
    uint64_t bytes, ns; /* when it began; how long it took */
    bool alone;
};

struct qos_window {
    uint64_t in_flight;          /* bytes */
    unsigned pieces;             /* in flight */
    uint64_t began_ns;           /* the interval over which the rate is measured; 0: none */
    uint64_t delivered;          /* bytes since */
    unsigned completed;          /* pieces since */
    bool held;                   /* something had to wait since */
    uint64_t rates[QOS_SAMPLES]; /* bytes a second: the best of a quarter of a second each */
    unsigned rate_count;         /* so far */
    uint64_t rate_ns;            /* when the last of them began */
    struct qos_transit alone[2][QOS_SAMPLES]; /* small ones, large ones */
    unsigned alone_count[2];
    uint64_t alone_ns; /* when one was measured last */
    bool closing;      /* nothing starts until nothing is in flight, */
    bool probing;      /* and nothing beside the piece that does then */
    bool probe_large;  /* the next one is */
    bool undisturbed;  /* a piece is alone, and has been all the time */
};

/* How many bytes may be in flight. */
uint64_t qos_window_bytes(const struct qos_window *window);
/* How many bytes the next piece should have. */
uint64_t qos_window_piece(const struct qos_window *window);
/* True when a piece of so many bytes may start. False is noted: something waits. */
bool qos_window_fits(struct qos_window *window, uint64_t bytes, uint64_t now_ns);
void qos_window_start(struct qos_window *window, struct qos_transit *piece, uint64_t bytes,
                      uint64_t now_ns);
void qos_window_end(struct qos_window *window, const struct qos_transit *piece, uint64_t now_ns);

#endif
