/* Flows, pieces, and which is next. See qos.h. */
#include "block/qos.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/lock.h"
#include "base/loop.h"

enum {
    URGENT_PIECES_MAX = 64,
    WINDOW_IDLE = 1 << 20, /* bytes below urgent in flight, without urgent traffic and with it */
    WINDOW_URGENT = 256 << 10,
    VIRTUAL_SCALE = 64,
    COST = 1024,              /* bytes that a piece counts for beyond its own */
    CLEARED_PIECE = 16 << 20, /* discards and zeroes move no data */
    HISTOGRAM = 160,          /* eighths of powers of two, from 2^10 ns */
    HISTOGRAM_FIRST = 10,
    NAME_MAX_LENGTH = 32,
};
#define URGENT_MEMORY_NS UINT64_C(100000000) /* urgent traffic is expected to go on for so long */

const char *const qos_class_names[QOS_CLASSES + 1] = {"urgent", "high", "medium", "low", NULL};

/* How requests of a class are cut: bytes of a piece, pieces of a request in flight, share. */
static const struct {
    uint32_t piece;
    unsigned depth, weight;
} classes[QOS_CLASSES] = {
    [QOS_URGENT] = {UINT32_MAX, 1, 0},
    [QOS_HIGH] = {256 << 10, 8, QOS_WEIGHT_HIGH},
    [QOS_MEDIUM] = {128 << 10, 4, QOS_WEIGHT_MEDIUM},
    [QOS_LOW] = {64 << 10, 2, QOS_WEIGHT_LOW},
};

struct flow {
    struct block block; /* what the device sees */
    struct qos *qos;
    struct block *target;
    struct flow *next;
    char name[NAME_MAX_LENGTH];
    enum qos_class class;
    struct waiting *first, **last; /* requests with pieces that have not started */
    uint64_t virtual_time;
    unsigned waiting, in_flight, outstanding; /* requests, pieces, requests not answered */
    uint64_t requests, pieces, bytes;
    uint32_t latencies[HISTOGRAM];
};

struct qos {
    struct lock lock;
    pthread_cond_t idle; /* a flow's last request was answered */
    struct loop *loop;
    uint64_t (*now_ns)(void);
    struct flow *flows;
    atomic_bool active;    /* classes differ */
    uint64_t window_bytes; /* in flight below urgent */
    unsigned urgent_pieces;
    uint64_t urgent_ns;    /* when an urgent request last came */
    uint64_t virtual_time; /* of the piece started last */
    bool posted;
};

/* A device's request until it is answered. */
struct waiting {
    struct waiting *next;
    struct flow *flow;
    struct block_request *request;
    uint64_t offset, left, began_ns; /* what has not started */
    struct iovec *vector;            /* of what has not started */
    size_t vector_used;
    unsigned in_flight;
    bool submitting; /* its submitter looks whether it is complete */
    int result;
};

struct piece {
    struct block_request block;
    struct waiting *of;
    uint64_t bytes; /* of data that it moves */
    bool urgent;
    struct iovec vectors[];
};

static bool moves_data(const struct block_request *request) {
    return request->operation == BLOCK_READ || request->operation == BLOCK_WRITE;
}

/* ---- Counting ---- */

static unsigned bucket_of(uint64_t ns) {
    if (ns < UINT64_C(1) << HISTOGRAM_FIRST)
        return 0;
    unsigned power = 63 - (unsigned)__builtin_clzll(ns);
    unsigned bucket = (power - HISTOGRAM_FIRST) * 8 + (unsigned)(ns >> (power - 3) & 7);
    return bucket < HISTOGRAM ? bucket : HISTOGRAM - 1;
}

/* Where a bucket ends. */
static uint64_t bucket_ns(unsigned bucket) {
    unsigned power = bucket / 8 + HISTOGRAM_FIRST;
    return (UINT64_C(9) + bucket % 8) << (power - 3);
}

static uint64_t quantile(const struct flow *flow, unsigned per_mille) {
    uint64_t wanted = (flow->requests * per_mille + 999) / 1000, seen = 0;
    for (unsigned i = 0; i < HISTOGRAM && wanted > 0; i++) {
        seen += flow->latencies[i];
        if (seen >= wanted)
            return bucket_ns(i);
    }
    return 0;
}

static void count(struct waiting *waiting) {
    struct flow *flow = waiting->flow;
    flow->requests++;
    flow->latencies[bucket_of(flow->qos->now_ns() - waiting->began_ns)]++;
}

/* ---- Cutting; the lock is held ---- */

static uint64_t piece_length(const struct waiting *waiting) {
    uint64_t most = classes[waiting->flow->class].piece;
    if (!moves_data(waiting->request) && most < CLEARED_PIECE)
        most = CLEARED_PIECE;
    return waiting->left < most ? waiting->left : most;
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
    struct flow *flow = waiting->flow;
    struct waiting **link = &flow->first;
    while (*link != waiting)
        link = &(*link)->next;
    *link = waiting->next;
    if (flow->last == &waiting->next)
        flow->last = link;
    flow->waiting--;
}

static void piece_done(struct block_request *block);

static void account(struct piece *piece) {
    struct waiting *waiting = piece->of;
    struct flow *flow = waiting->flow;
    struct qos *qos = flow->qos;
    waiting->in_flight++;
    flow->in_flight++;
    piece->urgent = flow->class == QOS_URGENT;
    if (piece->urgent) {
        qos->urgent_pieces++;
        return;
    }
    qos->window_bytes += piece->bytes;
    qos->virtual_time = flow->virtual_time;
    flow->virtual_time += (piece->bytes + COST) * VIRTUAL_SCALE / classes[flow->class].weight;
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

/* The flow's request that is next: the first that has not got its share of pieces in flight. */
static struct waiting *next_of(const struct qos *qos, const struct flow *flow) {
    struct waiting *waiting = flow->first;
    if (flow->class == QOS_URGENT)
        return qos->urgent_pieces < URGENT_PIECES_MAX ? waiting : NULL;
    while (waiting != NULL && waiting->in_flight >= classes[flow->class].depth)
        waiting = waiting->next;
    return waiting;
}

static bool fits_window(const struct qos *qos, const struct waiting *waiting) {
    bool urgent = qos->urgent_ns != 0 && qos->now_ns() - qos->urgent_ns < URGENT_MEMORY_NS;
    uint64_t window = urgent ? WINDOW_URGENT : WINDOW_IDLE;
    uint64_t length = moves_data(waiting->request) ? piece_length(waiting) : 0;
    return qos->window_bytes == 0 || qos->window_bytes + length <= window;
}

/* Whose piece starts next. One that does not fit is waited for: smaller ones would take its room
 * for ever. */
static struct waiting *choose(const struct qos *qos) {
    struct waiting *best = NULL;
    for (const struct flow *flow = qos->flows; flow != NULL; flow = flow->next) {
        struct waiting *waiting = next_of(qos, flow);
        if (waiting == NULL)
            continue;
        if (flow->class == QOS_URGENT)
            return waiting;
        if (best == NULL || flow->virtual_time < best->flow->virtual_time)
            best = waiting;
    }
    return best != NULL && fits_window(qos, best) ? best : NULL;
}

/* ---- Completing ---- */

/* A piece is through. True: so is its request, and nobody else will answer it. */
static bool settle(struct piece *piece) {
    struct waiting *waiting = piece->of;
    struct flow *flow = waiting->flow;
    struct qos *qos = flow->qos;
    lock_take(&qos->lock);
    waiting->in_flight--;
    flow->in_flight--;
    flow->pieces++;
    flow->bytes += piece->bytes;
    if (piece->urgent)
        qos->urgent_pieces--;
    else
        qos->window_bytes -= piece->bytes;
    if (piece->block.result != 0 && waiting->result == 0)
        waiting->result = piece->block.result;
    if (waiting->result != 0 && waiting->left > 0) { /* the rest need not be tried */
        waiting->left = 0;
        forget(waiting);
    }
    bool ended = waiting->in_flight == 0 && waiting->left == 0 && !waiting->submitting;
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
    count(waiting);
    lock_release(&qos->lock);
}

static void release(struct waiting *waiting) {
    struct flow *flow = waiting->flow;
    lock_take(&flow->qos->lock);
    if (--flow->outstanding == 0)
        pthread_cond_broadcast(&flow->qos->idle);
    lock_release(&flow->qos->lock);
    free(waiting);
}

static void answer(struct waiting *waiting) {
    conclude(waiting);
    waiting->request->done(waiting->request);
    release(waiting);
}

/* Starts what may start. No lock of anybody's is held: requests are answered here. */
static void dispatch(struct qos *qos) {
    while (true) {
        lock_take(&qos->lock);
        struct waiting *waiting = choose(qos);
        struct piece *piece = waiting != NULL ? cut(waiting) : NULL;
        bool failed =
            waiting != NULL && piece == NULL && waiting->in_flight == 0 && !waiting->submitting;
        lock_release(&qos->lock);
        if (waiting == NULL)
            return;
        if (failed)
            answer(waiting);
        else if (piece != NULL && block_submit(waiting->flow->target, &piece->block) == 1 &&
                 settle(piece))
            answer(waiting);
    }
}

static void piece_done(struct block_request *block) {
    struct piece *piece = container_of(block, struct piece, block);
    struct waiting *waiting = piece->of;
    struct qos *qos = waiting->flow->qos;
    if (settle(piece))
        answer(waiting);
    dispatch(qos);
}

static void dispatch_on_loop(void *context) {
    struct qos *qos = context;
    lock_take(&qos->lock);
    qos->posted = false;
    lock_release(&qos->lock);
    dispatch(qos);
}

/* ---- The flow as a back end ---- */

/* Where the device's lock is held, only the request's own pieces are started: answering others
 * would want that lock. What else may start by now is the loop's. */
static bool start_own(struct waiting *waiting) {
    struct qos *qos = waiting->flow->qos;
    struct piece *piece;
    do {
        piece = NULL;
        lock_take(&qos->lock);
        if (choose(qos) == waiting)
            piece = cut(waiting);
        lock_release(&qos->lock);
        if (piece != NULL && block_submit(waiting->flow->target, &piece->block) == 1)
            settle(piece);
    } while (piece != NULL);
    lock_take(&qos->lock);
    waiting->submitting = false;
    bool ended = waiting->in_flight == 0 && waiting->left == 0;
    if (!qos->posted && choose(qos) != NULL)
        qos->posted = loop_post(qos->loop, dispatch_on_loop, qos) == 0;
    lock_release(&qos->lock);
    return ended;
}

static void enqueue(struct flow *flow, struct waiting *waiting) {
    struct qos *qos = flow->qos;
    lock_take(&qos->lock);
    waiting->began_ns = qos->now_ns();
    if (flow->class == QOS_URGENT)
        qos->urgent_ns = waiting->began_ns;
    if (flow->first == NULL && flow->in_flight == 0 && flow->virtual_time < qos->virtual_time)
        flow->virtual_time = qos->virtual_time;
    *flow->last = waiting;
    flow->last = &waiting->next;
    flow->waiting++;
    flow->outstanding++;
    lock_release(&qos->lock);
}

static int flow_submit(struct block *block, struct block_request *request) {
    struct flow *flow = container_of(block, struct flow, block);
    if (!atomic_load(&flow->qos->active) || request->operation == BLOCK_FLUSH ||
        request->length == 0)
        return block_submit(flow->target, request);
    struct waiting *waiting = calloc(1, sizeof *waiting);
    if (waiting == NULL)
        return block_submit(flow->target, request);
    *waiting = (struct waiting){.flow = flow,
                                .request = request,
                                .offset = request->offset,
                                .left = request->length,
                                .vector = request->vectors,
                                .submitting = true};
    enqueue(flow, waiting);
    if (!start_own(waiting))
        return 0;
    conclude(waiting);
    release(waiting);
    return 1;
}

static void flow_drain(struct block *block) {
    struct flow *flow = container_of(block, struct flow, block);
    struct qos *qos = flow->qos;
    dispatch(qos);
    lock_take(&qos->lock);
    while (flow->outstanding > 0)
        pthread_cond_wait(&qos->idle, &qos->lock.mutex);
    lock_release(&qos->lock);
    block_drain(flow->target);
}

/* block_resize tells the device afterwards. */
static int flow_resize(struct block *block, uint64_t size, struct error *err) {
    struct flow *flow = container_of(block, struct flow, block);
    int result = block_resize(flow->target, size, err);
    flow->block.info.size = flow->target->info.size;
    return result;
}

static uint64_t flow_zero_run(struct block *block, uint64_t offset) {
    return block_zero_run(container_of(block, struct flow, block)->target, offset);
}

static void update_active(struct qos *qos) {
    bool differ = false;
    for (const struct flow *flow = qos->flows; flow != NULL; flow = flow->next)
        differ |= flow->class != qos->flows->class;
    atomic_store(&qos->active, differ);
}

static void flow_close(struct block *block) {
    struct flow *flow = container_of(block, struct flow, block);
    struct qos *qos = flow->qos;
    flow_drain(block);
    lock_take(&qos->lock);
    struct flow **link = &qos->flows;
    while (*link != flow)
        link = &(*link)->next;
    *link = flow->next;
    update_active(qos);
    lock_release(&qos->lock);
    block_close(flow->target);
    free(flow);
}

static const struct block_class flow_class = {
    .name = "qos",
    .submit = flow_submit,
    .drain = flow_drain,
    .close = flow_close,
    .resize = flow_resize,
    .zero_run = flow_zero_run,
};

/* ---- Making and changing ---- */

int qos_create(struct loop *loop, uint64_t (*now_ns)(void), struct qos **qos, struct error *err) {
    struct qos *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "no memory for quality of service");
    lock_init(&made->lock, LOCK_BACKEND, "qos");
    pthread_cond_init(&made->idle, NULL);
    made->loop = loop;
    made->now_ns = now_ns != NULL ? now_ns : host_clock_ns;
    *qos = made;
    return 0;
}

void qos_destroy(struct qos *qos) {
    if (qos == NULL)
        return;
    pthread_cond_destroy(&qos->idle);
    lock_destroy(&qos->lock);
    free(qos);
}

int qos_add_flow(struct qos *qos, struct block *target, const char *name, enum qos_class class,
                 struct block **flow_out, struct error *err) {
    struct flow *flow = calloc(1, sizeof *flow), **link = &qos->flows;
    if (flow == NULL)
        return error_set(err, -ENOMEM, "no memory for disk %s", name);
    flow->block = (struct block){.class = &flow_class, .info = target->info};
    flow->qos = qos;
    flow->target = target;
    flow->class = class;
    flow->last = &flow->first;
    snprintf(flow->name, sizeof flow->name, "%s", name);
    lock_take(&qos->lock);
    while (*link != NULL)
        link = &(*link)->next;
    *link = flow;
    update_active(qos);
    lock_release(&qos->lock);
    *flow_out = &flow->block;
    return 0;
}

int qos_set_class(struct qos *qos, const char *name, enum qos_class class, struct error *err) {
    struct flow *flow;
    lock_take(&qos->lock);
    for (flow = qos->flows; flow != NULL && strcmp(flow->name, name) != 0;)
        flow = flow->next;
    if (flow != NULL) {
        flow->class = class;
        update_active(qos);
    }
    lock_release(&qos->lock);
    return flow != NULL ? 0 : error_set(err, -ENOENT, "there is no disk '%.32s'", name);
}

unsigned qos_report(struct qos *qos, struct qos_report *reports, unsigned room) {
    unsigned n = 0;
    lock_take(&qos->lock);
    for (const struct flow *flow = qos->flows; flow != NULL; flow = flow->next, n++) {
        if (n >= room)
            continue;
        reports[n] = (struct qos_report){
            .name = flow->name,
            .class = flow->class,
            .requests = flow->requests,
            .pieces = flow->pieces,
            .bytes = flow->bytes,
            .latency_ns = {quantile(flow, 500), quantile(flow, 990), quantile(flow, 999)},
            .waiting = flow->waiting,
            .in_flight = flow->in_flight,
        };
    }
    lock_release(&qos->lock);
    return n;
}
