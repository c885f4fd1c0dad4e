/* Flows as back ends, their settings, and what is told of them. See qos.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/loop.h"
#include "block/qos_private.h"

#define WATCH_NS (5 * NS_PER_SECOND)

const char *const qos_class_names[QOS_CLASSES + 1] = {"urgent", "high",       "medium",
                                                      "low",    "background", NULL};

/* ---- The flow as a back end ---- */

static enum qos_class class_of(const struct flow *flow) {
    return flow->lanes[LANE_MOVING].class;
}

/* Whose requests are ordered and counted. */
static void update_managed(struct qos *qos) {
    bool watched = qos->watched_ns > qos->time.now_ns();
    qos->differ = false;
    for (const struct flow *flow = qos->flows; flow != NULL; flow = flow->next)
        qos->differ |= class_of(flow) != class_of(qos->flows);
    for (struct flow *flow = qos->flows; flow != NULL; flow = flow->next)
        atomic_store(&flow->managed, qos->differ || watched || flow->limited || qos->limited);
    if (!watched)
        qos->watched_ns = 0;
}

/* The lock is held. */
static void enqueue(struct flow *flow, struct waiting *waiting) {
    struct qos *qos = flow->qos;
    struct lane *lane = waiting->lane;
    waiting->began_ns = qos->time.now_ns();
    if (qos->watched_ns != 0 && qos->watched_ns <= waiting->began_ns)
        update_managed(qos); /* nobody has looked for a while */
    if (lane->class == QOS_URGENT)
        qos->urgent_ns = waiting->began_ns;
    if (lane->first == NULL && lane->in_flight == 0 && lane->virtual_time < qos->virtual_time)
        lane->virtual_time = qos->virtual_time;
    if (lane == &flow->lanes[LANE_MOVING] && lane->class != QOS_URGENT)
        waiting->demand = waiting->left;
    qos->window.demand += waiting->demand;
    *lane->last = waiting;
    lane->last = &waiting->next;
    lane->waiting++;
}

/* NULL: it is to pass as it is, for want of memory. */
static struct waiting *make_waiting(struct flow *flow, unsigned lane, struct block *target,
                                    struct block_request *request) {
    struct waiting *waiting = calloc(1, sizeof *waiting);
    if (waiting != NULL)
        *waiting = (struct waiting){.flow = flow,
                                    .lane = &flow->lanes[lane],
                                    .target = target,
                                    .request = request,
                                    .offset = request->offset,
                                    .left = request->length,
                                    .vector = request->vectors,
                                    .submitting = true};
    return waiting;
}

static int flow_submit(struct block *block, struct block_request *request) {
    struct flow *flow = container_of(block, struct flow, block);
    if (!atomic_load(&flow->managed) || request->operation == BLOCK_FLUSH || request->length == 0)
        return block_submit(flow->target, request);
    bool moves = request->operation == BLOCK_READ || request->operation == BLOCK_WRITE;
    struct waiting *waiting =
        make_waiting(flow, moves ? LANE_MOVING : LANE_CLEARING, flow->target, request);
    if (waiting == NULL)
        return block_submit(flow->target, request);
    struct qos *qos = flow->qos;
    lock_take(&qos->lock);
    enqueue(flow, waiting);
    flow->outstanding++;
    lock_release(&qos->lock);
    return qos_start(waiting) ? 1 : 0;
}

static void flow_cancel(struct block *block) {
    struct flow *flow = container_of(block, struct flow, block);
    struct qos *qos = flow->qos;
    lock_take(&qos->lock);
    qos_give_up(flow);
    qos_wake_soon(qos);
    lock_release(&qos->lock);
    block_cancel(flow->target);
}

static void flow_drain(struct block *block) {
    struct flow *flow = container_of(block, struct flow, block);
    struct qos *qos = flow->qos;
    lock_take(&qos->lock);
    qos_give_up(flow);
    lock_release(&qos->lock);
    qos_answer_ended(qos);
    qos_dispatch(qos);
    lock_take(&qos->lock);
    while (flow->outstanding > 0) {
        if (qos->ended == NULL) {
            pthread_cond_wait(&qos->idle, &qos->lock.mutex);
            continue;
        }
        lock_release(&qos->lock); /* we may be on the loop's thread, which would do it */
        qos_answer_ended(qos);
        lock_take(&qos->lock);
    }
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

/* ---- Upkeep, a back end as well ---- */

static int upkeep_submit(struct block *block, struct block_request *request) {
    struct flow *flow = container_of(block, struct flow, upkeep);
    struct qos *qos = flow->qos;
    struct waiting *waiting = NULL;
    if (request->operation != BLOCK_FLUSH && request->length > 0)
        waiting = make_waiting(flow, LANE_UPKEEP, flow->below, request);
    lock_take(&qos->lock);
    bool ordered = waiting != NULL && !flow->closing && atomic_load(&flow->managed);
    if (ordered) {
        enqueue(flow, waiting);
        flow->upkeeping++;
    }
    lock_release(&qos->lock);
    if (ordered)
        return qos_start_upkeep(waiting) ? 1 : 0;
    free(waiting);
    return block_submit(flow->below, request);
}

/* The lock is held; it is not while this waits. */
static void await_upkeep(struct flow *flow) {
    while (flow->upkeeping > 0)
        pthread_cond_wait(&flow->qos->idle, &flow->qos->lock.mutex);
}

static void upkeep_drain(struct block *block) {
    struct flow *flow = container_of(block, struct flow, upkeep);
    lock_take(&flow->qos->lock);
    await_upkeep(flow);
    lock_release(&flow->qos->lock);
}

static const struct block_class upkeep_class = {
    .name = "upkeep",
    .submit = upkeep_submit,
    .drain = upkeep_drain,
};

struct block *qos_upkeep(struct block *block, struct block *below) {
    struct flow *flow = container_of(block, struct flow, block);
    flow->upkeep = (struct block){.class = &upkeep_class, .info = below->info};
    flow->below = below;
    return &flow->upkeep;
}

/* ---- The end of both ---- */

static void flow_close(struct block *block) {
    struct flow *flow = container_of(block, struct flow, block);
    struct qos *qos = flow->qos;
    flow_drain(block);
    lock_take(&qos->lock);
    flow->closing = true;
    await_upkeep(flow);
    struct flow **link = &qos->flows;
    while (*link != flow)
        link = &(*link)->next;
    *link = flow->next;
    update_managed(qos);
    lock_release(&qos->lock);
    block_close(flow->target);
    free(flow);
}

static const struct block_class flow_class = {
    .name = "qos",
    .submit = flow_submit,
    .cancel = flow_cancel,
    .drain = flow_drain,
    .close = flow_close,
    .resize = flow_resize,
    .zero_run = flow_zero_run,
};

/* ---- Making and changing ---- */

static void wake_at(struct qos *qos, uint64_t ns) {
    loop_timer_arm(qos->timer, ns);
}

void qos_wake(struct qos *qos) {
    lock_take(&qos->lock);
    qos->armed_ns = 0;
    lock_release(&qos->lock);
    qos_answer_ended(qos);
    qos_dispatch(qos);
}

static void on_timer(void *context) {
    qos_wake(context);
}

int qos_create(struct loop *loop, const struct qos_time *time, struct qos **qos,
               struct error *err) {
    static const struct qos_time host = {host_clock_ns, wake_at};
    struct qos *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "no memory for quality of service");
    int result = loop_timer_create(loop, on_timer, made, &made->timer, err);
    if (result < 0) {
        free(made);
        return result;
    }
    lock_init(&made->lock, LOCK_BACKEND, "qos");
    pthread_cond_init(&made->idle, NULL);
    made->last_ended = &made->ended;
    made->time = time != NULL ? *time : host;
    *qos = made;
    return 0;
}

void qos_destroy(struct qos *qos) {
    if (qos == NULL)
        return;
    loop_timer_free(qos->timer);
    pthread_cond_destroy(&qos->idle);
    lock_destroy(&qos->lock);
    free(qos);
}

int qos_add_flow(struct qos *qos, struct block *target, const char *name,
                 const struct qos_settings *settings, struct block **flow_out, struct error *err) {
    struct flow *flow = calloc(1, sizeof *flow), **link = &qos->flows;
    if (flow == NULL)
        return error_set(err, -ENOMEM, "no memory for disk %s", name);
    flow->block = (struct block){.class = &flow_class, .info = target->info};
    flow->qos = qos;
    flow->target = target;
    flow->lanes[LANE_MOVING].class = settings->class;
    flow->lanes[LANE_CLEARING].class = flow->lanes[LANE_UPKEEP].class = QOS_BACKGROUND;
    for (unsigned i = 0; i < LANES; i++)
        flow->lanes[i].last = &flow->lanes[i].first;
    block_meter_set(&flow->meter, &settings->limits);
    flow->limited = block_meter_limits(&flow->meter);
    snprintf(flow->name, sizeof flow->name, "%s", name);
    lock_take(&qos->lock);
    while (*link != NULL)
        link = &(*link)->next;
    *link = flow;
    update_managed(qos);
    lock_release(&qos->lock);
    *flow_out = &flow->block;
    return 0;
}

static struct flow *find(struct qos *qos, const char *name) {
    struct flow *flow = qos->flows;
    while (flow != NULL && strcmp(flow->name, name) != 0)
        flow = flow->next;
    return flow;
}

static int no_such_disk(const char *name, struct error *err) {
    return error_set(err, -ENOENT, "there is no disk '%.32s'", name);
}

int qos_get(struct qos *qos, const char *name, struct qos_settings *settings, struct error *err) {
    lock_take(&qos->lock);
    const struct flow *flow = find(qos, name);
    if (flow != NULL)
        *settings = (struct qos_settings){class_of(flow), flow->meter.limits};
    lock_release(&qos->lock);
    return flow != NULL ? 0 : no_such_disk(name, err);
}

int qos_set(struct qos *qos, const char *name, const struct qos_settings *settings,
            struct error *err) {
    lock_take(&qos->lock);
    struct flow *flow = find(qos, name);
    if (flow != NULL) {
        flow->lanes[LANE_MOVING].class = settings->class;
        block_meter_set(&flow->meter, &settings->limits);
        flow->limited = block_meter_limits(&flow->meter);
        update_managed(qos);
    }
    lock_release(&qos->lock);
    if (flow == NULL)
        return no_such_disk(name, err);
    qos_dispatch(qos);
    return 0;
}

void qos_limit(struct qos *qos, const struct block_limits *limits) {
    lock_take(&qos->lock);
    block_meter_set(&qos->meter, limits);
    qos->limited = block_meter_limits(&qos->meter);
    update_managed(qos);
    lock_release(&qos->lock);
    qos_dispatch(qos);
}

void qos_watch(struct qos *qos) {
    lock_take(&qos->lock);
    qos->watched_ns = qos->time.now_ns() + WATCH_NS;
    update_managed(qos);
    lock_release(&qos->lock);
}

unsigned qos_report(struct qos *qos, struct qos_report *reports, unsigned room) {
    unsigned n = 0;
    lock_take(&qos->lock);
    for (const struct flow *flow = qos->flows; flow != NULL; flow = flow->next, n++) {
        if (n >= room)
            continue;
        reports[n] = (struct qos_report){
            .name = flow->name,
            .settings = {class_of(flow), flow->meter.limits},
            .requests = flow->requests,
            .pieces = flow->pieces,
            .bytes = flow->bytes,
            .upkept = flow->upkept,
            .latencies = flow->latencies,
        };
        for (unsigned i = 0; i < LANE_UPKEEP; i++) {
            reports[n].waiting += flow->lanes[i].waiting;
            reports[n].in_flight += flow->lanes[i].in_flight;
        }
    }
    lock_release(&qos->lock);
    return n;
}
