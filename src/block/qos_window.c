#include "block/qos_window.h"

#include <stddef.h>

#include "base/bytes.h"
#include "base/clock.h"

enum {
    WINDOW_FIRST = 1 << 20,
    PIECES_LEAST = 4, /* that the window has room for: two for each channel */
    PIECES_MOST = 16,
    INTERVAL_NS = 8000000, /* a rate is measured over so long, and so many pieces */
    INTERVAL_PIECES = 16,
    SMALL_MOST = 128 << 10,
    LARGE_LEAST = 512 << 10,
    PIECES_A_SECOND = 16000,   /* are what processors should do at most */
    PROBE_FIRST_NS = 20000000, /* between pieces alone, until there are enough */
    PROBE_NS = 400000000,      /* and later */
    RATE_NS = 250000000,
};

static uint64_t least_of(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static uint64_t most_of(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* ---- What is known of the store ---- */

static uint64_t best_rate(const struct qos_window *window) {
    uint64_t best = 0;
    for (unsigned i = 0; i < QOS_SAMPLES; i++)
        best = most_of(best, window->rates[i]);
    return best;
}

/* What a small piece takes alone, most of the time: three quarters take no longer. */
static uint64_t usual_alone(const struct qos_window *window) {
    const uint64_t *alone = window->alone[QOS_SMALL];
    unsigned count = (unsigned)least_of(window->alone_count[QOS_SMALL], QOS_SAMPLES);
    uint64_t usual = NS_PER_SECOND;
    for (unsigned i = 0; i < count; i++) {
        unsigned no_longer = 0;
        for (unsigned k = 0; k < count; k++)
            no_longer += alone[k] <= alone[i];
        if (no_longer * 4 >= count * 3)
            usual = least_of(usual, alone[i]);
    }
    return count > 0 ? usual : 0;
}

/* What a piece takes alone that meets nothing of what others do. */
static uint64_t best_alone(const struct qos_window *window, enum qos_size size) {
    uint64_t best = NS_PER_SECOND;
    for (unsigned i = 0; i < QOS_SAMPLES && i < window->alone_count[size]; i++)
        best = least_of(best, window->alone[size][i]);
    return best;
}

/* What the store does in so long, and the other way round. */
static uint64_t work(const struct qos_window *window, uint64_t ns) {
    return best_rate(window) / 1000000 * (ns / 1000);
}

static uint64_t duration(const struct qos_window *window, uint64_t bytes) {
    return bytes * 1000 / (best_rate(window) / 1000000 + 1);
}

uint64_t qos_window_bytes(const struct qos_window *window) {
    uint64_t busy = work(window, QOS_DRAIN_NS + usual_alone(window) * 5 / 4);
    uint64_t share = least_of(window->demand / QOS_SHARE, work(window, QOS_MOST_NS));
    if (window->rate_count == 0)
        return WINDOW_FIRST;
    return least_of(most_of(most_of(busy, share), QOS_WINDOW_MIN), QOS_WINDOW_MAX);
}

/* How many times what one piece gets the store does with many. */
static uint64_t channels(const struct qos_window *window) {
    uint64_t small = best_alone(window, QOS_SMALL), large = best_alone(window, QOS_LARGE);
    if (window->alone_count[QOS_LARGE] == 0 || large <= small)
        return 1;
    return (work(window, large - small) + LARGE_LEAST / 2) / (LARGE_LEAST - QOS_PIECE_MIN);
}

uint64_t qos_window_piece(const struct qos_window *window) {
    uint64_t pieces = least_of(most_of(2 * channels(window), PIECES_LEAST), PIECES_MOST);
    uint64_t bytes =
        most_of(qos_window_bytes(window) / pieces, best_rate(window) / PIECES_A_SECOND);
    if (window->closing && window->pieces == 0)
        return window->next_alone == QOS_LARGE ? LARGE_LEAST : QOS_PIECE_MIN;
    return most_of(round_down(bytes, QOS_PIECE_MIN), QOS_PIECE_MIN);
}

/* ---- What is under way ---- */

/* Of a store that is far, no more than half the window within a quarter of the time that it lasts.
 */
static bool in_time(struct qos_window *window, uint64_t bytes, uint64_t now_ns, uint64_t *when_ns) {
    uint64_t all = qos_window_bytes(window), lasts_ns = duration(window, all);
    uint64_t next_ns = window->part_ns + lasts_ns / 4;
    if (2 * best_alone(window, QOS_SMALL) < lasts_ns)
        return true;
    if (now_ns >= next_ns || window->pieces == 0) {
        window->part = all / 2;
        window->part_ns = now_ns;
    } else if (window->part < bytes) {
        *when_ns = next_ns;
        return false;
    }
    return true;
}

bool qos_window_fits(struct qos_window *window, uint64_t bytes, uint64_t now_ns,
                     uint64_t *when_ns) {
    unsigned count = window->alone_count[QOS_SMALL] + window->alone_count[QOS_LARGE];
    uint64_t every_ns = count < QOS_SAMPLES ? PROBE_FIRST_NS : PROBE_NS;
    if (!window->probing && now_ns - window->alone_ns >= every_ns)
        window->closing = true;
    bool room = !window->closing && !window->probing &&
                window->in_flight + bytes / 2 <= qos_window_bytes(window);
    bool fits = (room || window->pieces == 0) && in_time(window, bytes, now_ns, when_ns);
    window->held |= !fits;
    return fits;
}

void qos_window_start(struct qos_window *window, struct qos_transit *piece, uint64_t bytes,
                      uint64_t now_ns) {
    *piece = (struct qos_transit){bytes, now_ns, window->pieces == 0};
    window->undisturbed = piece->alone;
    window->probing = window->closing;
    window->next_alone ^= window->probing;
    window->closing = false;
    window->part -= least_of(bytes, window->part);
    if (window->began_ns == 0) {
        window->began_ns = now_ns;
        window->delivered = window->completed = 0;
        window->held = false;
    }
    window->pieces++;
    window->in_flight += bytes;
}

static void note_rate(struct qos_window *window, uint64_t rate, uint64_t now_ns) {
    if (window->rate_count == 0 || now_ns - window->rate_ns >= RATE_NS) {
        window->rates[window->rate_count++ % QOS_SAMPLES] = rate;
        window->rate_ns = now_ns;
    }
    uint64_t *last = &window->rates[(window->rate_count - 1) % QOS_SAMPLES];
    *last = most_of(*last, rate);
}

/* A rate that only the demand has limited says nothing of the store, unless it is the best yet. */
static void end_interval(struct qos_window *window, uint64_t now_ns) {
    uint64_t rate = window->delivered * 1000000 / ((now_ns - window->began_ns) / 1000);
    if (window->held || rate > best_rate(window))
        note_rate(window, rate, now_ns);
    window->began_ns = now_ns;
    window->delivered = window->completed = 0;
    window->held = false;
}

static void note_alone(struct qos_window *window, const struct qos_transit *piece,
                       uint64_t now_ns) {
    enum qos_size size = piece->bytes >= LARGE_LEAST ? QOS_LARGE : QOS_SMALL;
    window->alone_ns = now_ns;
    if (piece->bytes <= SMALL_MOST || size == QOS_LARGE)
        window->alone[size][window->alone_count[size]++ % QOS_SAMPLES] = now_ns - piece->began_ns;
}

void qos_window_end(struct qos_window *window, const struct qos_transit *piece, uint64_t now_ns) {
    window->pieces--;
    window->in_flight -= piece->bytes;
    window->delivered += piece->bytes;
    window->completed++;
    if (piece->alone && window->undisturbed)
        note_alone(window, piece, now_ns);
    window->probing = false;
    if (now_ns - window->began_ns >= INTERVAL_NS && window->completed >= INTERVAL_PIECES)
        end_interval(window, now_ns);
    if (window->pieces == 0 && !window->held)
        window->began_ns = 0; /* perhaps idle for a while */
}
