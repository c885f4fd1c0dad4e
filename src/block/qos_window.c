#include "block/qos_window.h"

#include <stddef.h>

#include "base/bytes.h"
#include "base/clock.h"

enum { SMALL, LARGE };
enum {
    WINDOW_FIRST = 1 << 20,
    PIECES = 4,            /* that the window has room for, at least */
    INTERVAL_NS = 4000000, /* a rate is measured over so long, and so many pieces */
    INTERVAL_PIECES = 16,
    SMALL_MOST = 128 << 10,
    PROBE_LARGE = 512 << 10,
    PIECES_A_SECOND = 20000,   /* are what processors should do at most */
    PROBE_FIRST_NS = 20000000, /* between pieces alone, until there are enough */
    PROBE_NS = 400000000,      /* and later */
    RATE_NS = 250000000,
};

/* Where the bounds contradict each other the upper one holds. */
static uint64_t clamp(uint64_t value, uint64_t least, uint64_t most) {
    return value > most ? most : value > least ? value : least < most ? least : most;
}

/* ---- What is known of the store ---- */

static uint64_t best_rate(const struct qos_window *window) {
    uint64_t best = 0;
    for (unsigned i = 0; i < QOS_SAMPLES; i++)
        best = window->rates[i] > best ? window->rates[i] : best;
    return best;
}

/* The one that took least: the others met what somebody else does. NULL: none yet. */
static const struct qos_transit *best_alone(const struct qos_window *window, unsigned kind) {
    const struct qos_transit *best = NULL;
    for (unsigned i = 0; i < QOS_SAMPLES && i < window->alone_count[kind]; i++)
        if (best == NULL || window->alone[kind][i].ns < best->ns)
            best = &window->alone[kind][i];
    return best;
}

/* What a small piece takes alone, most of the time: three quarters take no longer. */
static uint64_t usual_alone(const struct qos_window *window) {
    unsigned count = window->alone_count[SMALL];
    uint64_t usual = UINT64_MAX;
    count = count < QOS_SAMPLES ? count : QOS_SAMPLES;
    for (unsigned i = 0; i < count; i++) {
        unsigned no_longer = 0;
        for (unsigned k = 0; k < count; k++)
            no_longer += window->alone[SMALL][k].ns <= window->alone[SMALL][i].ns;
        if (no_longer * 4 >= count * 3 && window->alone[SMALL][i].ns < usual)
            usual = window->alone[SMALL][i].ns;
    }
    return count > 0 ? usual : 0;
}

uint64_t qos_window_bytes(const struct qos_window *window) {
    uint64_t drain = clamp(QOS_DRAIN_NS + usual_alone(window), 0, NS_PER_SECOND);
    uint64_t megabytes = best_rate(window) / 1000000;
    if (window->rate_count == 0)
        return WINDOW_FIRST;
    return clamp(megabytes * (drain / 1000), QOS_WINDOW_MIN, QOS_WINDOW_MAX);
}

uint64_t qos_window_piece(const struct qos_window *window) {
    const struct qos_transit *small = best_alone(window, SMALL), *large = best_alone(window, LARGE);
    uint64_t most = qos_window_bytes(window) / PIECES;
    uint64_t least = best_rate(window) / PIECES_A_SECOND;
    if (window->closing && window->pieces == 0)
        return window->probe_large ? PROBE_LARGE : QOS_PIECE_MIN;
    if (small != NULL && large != NULL && large->ns > small->ns) {
        uint64_t moved = (large->bytes - small->bytes) * QOS_PIECE_NS / (large->ns - small->ns);
        most = clamp(moved, least, most);
    }
    return clamp(round_down(most, QOS_PIECE_MIN), QOS_PIECE_MIN, QOS_WINDOW_MAX);
}

/* ---- What is under way ---- */

bool qos_window_fits(struct qos_window *window, uint64_t bytes, uint64_t now_ns) {
    bool enough = window->alone_count[SMALL] + window->alone_count[LARGE] >= QOS_SAMPLES;
    if (!window->probing && now_ns - window->alone_ns >= (enough ? PROBE_NS : PROBE_FIRST_NS))
        window->closing = true;
    if (window->pieces == 0)
        return true;
    bool fits = !window->closing && !window->probing &&
                window->in_flight + bytes <= qos_window_bytes(window);
    window->held |= !fits;
    return fits;
}

void qos_window_start(struct qos_window *window, struct qos_transit *piece, uint64_t bytes,
                      uint64_t now_ns) {
    *piece = (struct qos_transit){bytes, now_ns, window->pieces == 0};
    window->undisturbed = piece->alone;
    window->probing = window->closing;
    window->probe_large ^= window->probing;
    window->closing = false;
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
    *last = rate > *last ? rate : *last;
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
    unsigned kind = piece->bytes <= SMALL_MOST ? SMALL : LARGE;
    window->alone[kind][window->alone_count[kind]++ % QOS_SAMPLES] =
        (struct qos_transit){piece->bytes, now_ns - piece->ns, true};
    window->alone_ns = now_ns;
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
