/* What the files of quality of service share: qos.c (flows as back ends, settings, reports) and
 * qos_pieces.c (cutting requests, which is next, completing). */
#ifndef LODGE_BLOCK_QOS_PRIVATE_H
#define LODGE_BLOCK_QOS_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/lock.h"
#include "block/qos.h"
#include "block/qos_window.h"

enum { QOS_NAME_MAX = 32 };

/* A flow's requests of one class that have pieces which have not started. */
struct lane {
    enum qos_class class;
    struct waiting *first, **last;
    uint64_t virtual_time;
    unsigned waiting, in_flight; /* requests, pieces */
};

/* Of a device: what moves data, and what does not; and of the disk itself. */
enum { LANE_MOVING, LANE_CLEARING, LANE_UPKEEP, LANES };

struct flow {
    struct block block; /* what the device sees */
    struct qos *qos;
    struct block *target;
    struct block upkeep; /* what the disk sees for its own work */
    struct block *below; /* its target; NULL: none */
    struct flow *next;
    char name[QOS_NAME_MAX];
    atomic_bool managed; /* requests are ordered and counted; otherwise they pass as they are */
    bool limited;
    struct block_meter meter;
    struct lane lanes[LANES];
    bool closing;         /* no more upkeep is ordered */
    unsigned outstanding; /* a device's requests not answered */
    unsigned upkeeping;   /* and the disk's own */
    uint64_t requests, pieces, bytes, upkept;
    struct histogram latencies;
};

struct qos {
    struct lock lock;
    pthread_cond_t idle; /* a flow's last request was answered */
    struct loop_timer *timer;
    struct qos_time time;
    struct flow *flows;
    bool differ;              /* classes do */
    uint64_t watched_ns;      /* somebody looks on until then */
    uint64_t wake_ns;         /* when the first of those that only time holds may start */
    uint64_t armed_ns;        /* when the timer is due */
    struct qos_window window; /* of what is below urgent */
    unsigned urgent_pieces, clearing_pieces;
    struct block_meter meter; /* of all flows together */
    bool limited;
    uint64_t urgent_ns;                  /* when an urgent request last came */
    uint64_t virtual_time;               /* of the piece started last */
    struct waiting *ended, **last_ended; /* to be answered by the loop */
};

/* A device's request until it is answered. */
struct waiting {
    struct waiting *next;
    struct flow *flow;
    struct lane *lane;
    struct block *target;
    struct block_request *request;
    uint64_t offset, left, began_ns; /* what has not started */
    uint64_t demand;                 /* of the window */
    struct iovec *vector;            /* of what has not started */
    size_t vector_used;
    unsigned in_flight;
    bool submitting; /* its submitter looks whether it is complete */
    bool charged;    /* its flow's limits have let it start */
    int result;
};

/* ---- qos_pieces.c ---- */

/* Starts what may start. No lock of anybody's is held: requests are answered here. */
void qos_dispatch(struct qos *qos);
/*
 * Starts pieces of a request that has just been put in its flow's list: no others, for the
 * device's lock is held, which answering others would want; what else may start is the loop's.
 * True: it is complete, its result is set, and `waiting` is gone.
 */
bool qos_start(struct waiting *waiting);
/* The same of upkeep, whose submitter has no lock: others may be answered here. */
bool qos_start_upkeep(struct waiting *waiting);
/* Nothing more of the flow's requests is started; those without pieces in flight are for
 * qos_answer_ended. The lock is held. */
void qos_give_up(struct flow *flow);
/* No lock is held. */
void qos_answer_ended(struct qos *qos);
/* The loop calls qos_wake. The lock is held. */
void qos_wake_soon(struct qos *qos);

#endif
