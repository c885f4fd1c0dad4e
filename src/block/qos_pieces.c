/* Cutting requests into pieces, which is next, completing. See qos.h. */
#include <stdlib.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "block/qos_private.h"

enum {
    URGENT_PIECES_MAX = 64,
    VIRTUAL_SCALE = 64,
    COST = 1024,              /* bytes that a piece counts for beyond its own */
    CLEARED_PIECE = 16 << 20, /* discards and zeroes move no data, */
    CLEARED_COST = 64 << 10,  /* count for so much, */
    CLEARING_MAX = 2,         /* and so many are under way: each keeps a thread */
    LEFT_TO_URGENT = 500,     /* of a thousandth of the burst of all flows' limits */
    WHOLE = 1 << 30,          /* more than any request that moves data has */
    PIECE_ALIGN = 4096,
};
#define URGENT_MEMORY_NS UINT64_C(100000000) /* urgent traffic is expected to go on for so long */
#define ANSWER_NS        20000               /* until the loop answers what is not urgent */
#define NEVER            UINT64_MAX

/* How requests of a class are cut: by so many times the window's piece, so many pieces of a request
 * in flight; and the share. */
static const struct {
    unsigned pieces, depth, weight;
} classes[QOS_CLASSES] = {
    [QOS_HIGH] = {2, 8, QOS_WEIGHT_HIGH},
    [QOS_MEDIUM] = {1, 4, QOS_WEIGHT_MEDIUM},
    [QOS_LOW] = {1, 4, QOS_WEIGHT_LOW},
    [QOS_BACKGROUND] = {1, 2, QOS_WEIGHT_BACKGROUND},
};

struct piece {
    struct block_request block;
    struct waiting *of;
    uint64_t bytes;             /* of data that it moves */
    struct qos_transit transit; /* below urgent */
    bool urgent;
    struct iovec vectors[];
};

static bool moves_data(const struct block_request *request) {
    return request->operation == BLOCK_READ || request->operation == BLOCK_WRITE;
}

static bool is_upkeep(const struct waiting *waiting) {
    return waiting->lane == &waiting->flow->lanes[LANE_UPKEEP];
}

static bool writes(const struct waiting *waiting) {
    return waiting->request->operation != BLOCK_READ;
}

/* There is urgent traffic, as far as one can tell. */
static bool urgent_lately(const struct qos *qos) {
    return qos->urgent_ns != 0 && qos->time.now_ns() - qos->urgent_ns < URGENT_MEMORY_NS;
}

/* ---- Cutting; the lock is held ---- */

/* A request's pieces are about equal, so that none is a remainder not worth its effort. */
static uint64_t piece_length(const struct waiting *waiting) {
    const struct qos *qos = waiting->flow->qos;
    enum qos_class class = waiting->lane->class;
    uint64_t most = WHOLE;
    if (qos->differ && class != QOS_URGENT)
        most = classes[class].pieces * qos_window_piece(&qos->window);
    if (!moves_data(waiting->request) && most < CLEARED_PIECE)
        most = CLEARED_PIECE;
    uint64_t pieces = (waiting->left + most - 1) / most;
    uint64_t length = round_up((waiting->left + pieces - 1) / pieces, PIECE_ALIGN);
    return length < waiting->left ? length : waiting->left;
}

/* Vectors that hold the next `length` bytes. */
static unsigned vectors_for(const struct waiting *waiting, uint64_t length) {
    const struct iovec *vector = waiting->vector;
    size_t used = waiting->vector_used;
    unsigned n = 0;
    for (; length > 0; n++, vector++, used = 0) {
        size_t there = vector->iov_len - used;
        length -= length < there ? length : there;
    }
    return n;
}

static void move_vectors(struct waiting *waiting, struct piece *piece, uint64_t length) {
    for (unsigned n = 0; length > 0; n++) {
        struct iovec *vector = waiting->vector;
        size_t there = vector->iov_len - waiting->vector_used;
        size_t part = length < there ? (size_t)length : there;
        piece->vectors[n] =
            (struct iovec){(uint8_t *)vector->iov_base + waiting->vector_used, part};
        waiting->vector_used += part;
        length -= part;
        if (waiting->vector_used == vector->iov_len) {
            waiting->vector++;
            waiting->vector_used = 0;
        }
    }
}

static void forget(struct waiting *waiting) {
    struct lane *lane = waiting->lane;
    struct waiting **link = &lane->first;
    while (*link != waiting)
        link = &(*link)->next;
    *link = waiting->next;
    if (lane->last == &waiting->next)
        lane->last = link;
    lane->waiting--;
}

static void piece_done(struct block_request *block);

static void charge(struct waiting *waiting, const struct piece *piece, uint64_t now) {
    struct flow *flow = waiting->flow;
    if (is_upkeep(waiting))
        return;
    if (flow->limited && !waiting->charged)
        block_meter_charge(&flow->meter, writes(waiting),
                           moves_data(waiting->request) ? waiting->request->length : 0, now);
    waiting->charged = true;
    if (flow->qos->limited)
        block_meter_charge(&flow->qos->meter, writes(waiting), piece->bytes, now);
}

static void account(struct piece *piece) {
    struct waiting *waiting = piece->of;
    struct lane *lane = waiting->lane;
    struct qos *qos = waiting->flow->qos;
    uint64_t now = qos->time.now_ns();
    charge(waiting, piece, now);
    waiting->in_flight++;
    lane->in_flight++;
    piece->urgent = lane->class == QOS_URGENT;
    qos->clearing_pieces += !moves_data(waiting->request);
    if (piece->urgent) {
        qos->urgent_pieces++;
        return;
    }
    if (piece->bytes > 0)
        qos_window_start(&qos->window, &piece->transit, piece->bytes, now);
    uint64_t cost = COST + (moves_data(waiting->request) ? piece->bytes : CLEARED_COST);
    qos->virtual_time = lane->virtual_time;
    lane->virtual_time += cost * VIRTUAL_SCALE / classes[lane->class].weight;
}

/* Takes the next piece off a request; NULL without memory: the request ends then. */
static struct piece *cut(struct waiting *waiting) {
    const struct block_request *request = waiting->request;
    uint64_t length = piece_length(waiting);
    unsigned vectors = moves_data(request) ? vectors_for(waiting, length) : 0;
    struct piece *piece = malloc(sizeof *piece + vectors * sizeof piece->vectors[0]);
    if (piece == NULL) {
        waiting->result = -ENOMEM;
        waiting->left = 0;
        forget(waiting);
        return NULL;
    }
    piece->block = (struct block_request){
        .operation = request->operation,
        .may_unmap = request->may_unmap,
        .durable = request->durable,
        /* The processor that submits may be the one that has the urgent work. */
        .background = waiting->lane->class != QOS_URGENT && urgent_lately(waiting->flow->qos),
        .offset = waiting->offset,
        .length = length,
        .vectors = piece->vectors,
        .vector_count = vectors,
        .done = piece_done,
    };
    piece->of = waiting;
    piece->bytes = moves_data(request) ? length : 0;
    if (vectors > 0)
        move_vectors(waiting, piece, length);
    waiting->offset += length;
    waiting->left -= length;
    if (waiting->left == 0)
        forget(waiting);
    account(piece);
    return piece;
}

/* ---- Choosing; the lock is held ---- */

/* True when the limits let the request start; otherwise notes when they will. */
static bool within_limits(struct qos *qos, const struct waiting *waiting, uint64_t now) {
    uint64_t when = 0;
    if (is_upkeep(waiting))
        return true;
    if (waiting->flow->limited && !waiting->charged)
        when = block_meter_when(&waiting->flow->meter, writes(waiting), 0);
    if (when <= now && qos->limited)
        when = block_meter_when(&qos->meter, writes(waiting),
                                waiting->lane->class == QOS_URGENT ? 0 : LEFT_TO_URGENT);
    if (when > now && when < qos->wake_ns)
        qos->wake_ns = when;
    return when <= now;
}

/* The lane's request that is next: the first that may start and has not got its share of pieces in
 * flight. */
static struct waiting *next_of(struct qos *qos, const struct lane *lane, uint64_t now) {
    unsigned depth = UINT32_MAX;
    struct waiting *waiting = lane->first;
    if (qos->differ && waiting != NULL) {
        bool clears = !moves_data(waiting->request);
        if (clears ? qos->clearing_pieces >= CLEARING_MAX
                   : lane->class == QOS_URGENT && qos->urgent_pieces >= URGENT_PIECES_MAX)
            return NULL;
        depth = lane->class == QOS_URGENT ? UINT32_MAX : classes[lane->class].depth;
    }
    while (waiting != NULL && (waiting->in_flight >= depth || !within_limits(qos, waiting, now)))
        waiting = waiting->next;
    return waiting;
}

static bool fits_window(struct qos *qos, const struct waiting *waiting) {
    uint64_t when = NEVER;
    bool fits = !qos->differ || !moves_data(waiting->request) ||
                qos_window_fits(&qos->window, piece_length(waiting), qos->time.now_ns(), &when);
    if (!fits && when < qos->wake_ns)
        qos->wake_ns = when;
    return fits;
}

/* Whose piece starts next. One that does not fit is waited for: smaller ones would take its room
 * for ever. */
static struct waiting *choose(struct qos *qos) {
    struct waiting *best = NULL;
    uint64_t now = qos->time.now_ns();
    qos->wake_ns = NEVER;
    for (struct flow *flow = qos->flows; flow != NULL; flow = flow->next)
        for (unsigned i = 0; i < LANES; i++) {
            struct waiting *waiting = next_of(qos, &flow->lanes[i], now);
            if (waiting != NULL && waiting->lane->class == QOS_URGENT)
                return waiting;
            if (waiting != NULL &&
                (best == NULL || waiting->lane->virtual_time < best->lane->virtual_time))
                best = waiting;
        }
    return best != NULL && fits_window(qos, best) ? best : NULL;
}

static void wake_by(struct qos *qos, uint64_t ns) {
    if (qos->armed_ns != 0 && qos->armed_ns <= ns)
        return;
    qos->armed_ns = ns;
    qos->time.wake_at(qos, ns);
}

void qos_wake_soon(struct qos *qos) {
    wake_by(qos, qos->time.now_ns());
}

/* Nothing may start now; the loop goes on when time lets something. */
static void arm(struct qos *qos) {
    if (qos->wake_ns != NEVER)
        wake_by(qos, qos->wake_ns);
}

/* ---- Completing ---- */

/* A piece is through. True: so is its request, and nobody else will answer it. The lock is held. */
static bool settle(const struct piece *piece) {
    struct waiting *waiting = piece->of;
    struct flow *flow = waiting->flow;
    struct qos *qos = flow->qos;
    waiting->in_flight--;
    waiting->lane->in_flight--;
    qos->clearing_pieces -= !moves_data(&piece->block);
    if (is_upkeep(waiting)) {
        flow->upkept += piece->bytes;
    } else {
        flow->pieces++;
        flow->bytes += piece->bytes;
    }
    if (piece->urgent)
        qos->urgent_pieces--;
    else if (piece->bytes > 0)
        qos_window_end(&qos->window, &piece->transit, qos->time.now_ns());
    if (piece->block.result != 0 && waiting->result == 0)
        waiting->result = piece->block.result;
    if (waiting->result != 0 && waiting->left > 0) { /* the rest need not be tried */
        waiting->left = 0;
        forget(waiting);
    }
    return waiting->in_flight == 0 && waiting->left == 0 && !waiting->submitting;
}

/* The same, of one that the target has completed at once. */
static bool settle_now(struct piece *piece) {
    struct qos *qos = piece->of->flow->qos;
    lock_take(&qos->lock);
    bool ended = settle(piece);
    lock_release(&qos->lock);
    free(piece);
    return ended;
}

/* The request's answer is known: frees what we had of it. */
static void conclude(struct waiting *waiting) {
    struct flow *flow = waiting->flow;
    struct qos *qos = flow->qos;
    waiting->request->result = waiting->result;
    lock_take(&qos->lock);
    qos->window.demand -= waiting->demand;
    if (!is_upkeep(waiting)) {
        flow->requests++;
        histogram_add(&flow->latencies, qos->time.now_ns() - waiting->began_ns);
    }
    lock_release(&qos->lock);
}

static void release(struct waiting *waiting) {
    struct flow *flow = waiting->flow;
    lock_take(&flow->qos->lock);
    if (--*(is_upkeep(waiting) ? &flow->upkeeping : &flow->outstanding) == 0)
        pthread_cond_broadcast(&flow->qos->idle);
    lock_release(&flow->qos->lock);
    free(waiting);
}

static void answer(struct waiting *waiting) {
    conclude(waiting);
    waiting->request->done(waiting->request);
    release(waiting);
}

void qos_dispatch(struct qos *qos) {
    while (true) {
        lock_take(&qos->lock);
        struct waiting *waiting = choose(qos);
        struct piece *piece = waiting != NULL ? cut(waiting) : NULL;
        bool failed =
            waiting != NULL && piece == NULL && waiting->in_flight == 0 && !waiting->submitting;
        if (waiting == NULL)
            arm(qos);
        lock_release(&qos->lock);
        if (waiting == NULL)
            return;
        if (failed)
            answer(waiting);
        else if (piece != NULL && block_submit(waiting->target, &piece->block) == 1 &&
                 settle_now(piece))
            answer(waiting);
    }
}

/* By the loop: it tells the device, which may take a while. Soon, but first this thread and others
 * whose pieces have come back with this one go on with the store. The lock is held. */
static void answer_later(struct waiting *waiting) {
    struct qos *qos = waiting->flow->qos;
    waiting->next = NULL;
    *qos->last_ended = waiting;
    qos->last_ended = &waiting->next;
}

static void piece_done(struct block_request *block) {
    struct piece *piece = container_of(block, struct piece, block);
    struct waiting *waiting = piece->of;
    struct qos *qos = waiting->flow->qos;
    lock_take(&qos->lock);
    bool ended = settle(piece),
         later = ended && !piece->urgent && qos->differ && !is_upkeep(waiting);
    if (later) {
        answer_later(waiting);
        wake_by(qos, qos->time.now_ns() + ANSWER_NS);
        pthread_cond_broadcast(&qos->idle);
    }
    lock_release(&qos->lock);
    free(piece);
    if (ended && !later)
        answer(waiting);
    qos_dispatch(qos);
}

/* ---- Starting ---- */

/* The request's own pieces. */
static void start_own(struct waiting *waiting) {
    struct qos *qos = waiting->flow->qos;
    struct piece *piece;
    do {
        piece = NULL;
        lock_take(&qos->lock);
        if (choose(qos) == waiting)
            piece = cut(waiting);
        lock_release(&qos->lock);
        if (piece != NULL && block_submit(waiting->target, &piece->block) == 1)
            settle_now(piece);
    } while (piece != NULL);
}

/* Its submitter has done its part. True: the request is complete, and `waiting` gone. */
static bool leave(struct waiting *waiting, bool ended) {
    if (ended) {
        conclude(waiting);
        release(waiting);
    }
    return ended;
}

bool qos_start(struct waiting *waiting) {
    struct qos *qos = waiting->flow->qos;
    start_own(waiting);
    lock_take(&qos->lock);
    waiting->submitting = false;
    bool ended = waiting->in_flight == 0 && waiting->left == 0;
    if (choose(qos) == NULL)
        arm(qos);
    else
        qos_wake_soon(qos);
    lock_release(&qos->lock);
    return leave(waiting, ended);
}

bool qos_start_upkeep(struct waiting *waiting) {
    struct qos *qos = waiting->flow->qos;
    qos_dispatch(qos);
    lock_take(&qos->lock);
    waiting->submitting = false;
    bool ended = waiting->in_flight == 0 && waiting->left == 0;
    lock_release(&qos->lock);
    return leave(waiting, ended);
}

/* ---- Giving up ---- */

static void give_up_lane(struct qos *qos, const struct lane *lane) {
    while (lane->first != NULL) {
        struct waiting *waiting = lane->first;
        waiting->left = 0;
        if (waiting->result == 0)
            waiting->result = -ECANCELED;
        forget(waiting);
        if (waiting->in_flight == 0 && !waiting->submitting)
            answer_later(waiting);
    }
}

void qos_give_up(struct flow *flow) {
    for (unsigned i = 0; i < LANE_UPKEEP; i++)
        give_up_lane(flow->qos, &flow->lanes[i]);
}

void qos_answer_ended(struct qos *qos) {
    lock_take(&qos->lock);
    struct waiting *waiting = qos->ended;
    qos->ended = NULL;
    qos->last_ended = &qos->ended;
    lock_release(&qos->lock);
    while (waiting != NULL) {
        struct waiting *next = waiting->next;
        answer(waiting);
        waiting = next;
    }
}
