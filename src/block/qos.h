/*
 * Quality of service: disks that share a store compete by classes. Each disk
 * is a *flow*, a block back end before another one. Its requests are cut into
 * pieces whose size and number in flight depend on the class, so that a large
 * request of a low class does not hold up a small one of an urgent class:
 *
 *  - urgent pieces start at once, whole;
 *  - the others share a window of bytes in flight (qos_window.h) in proportion
 *    to their weights (start-time fair queueing). While there is urgent traffic
 *    the thread that submits a piece is not the one that does it, and the loop
 *    tells of their ends;
 *  - discards and zeroes are background work, whatever the flow's class: they
 *    give way to all the others, but for one byte of a hundred or so.
 *
 * What a disk does by itself (qos_upkeep) is background work as well.
 *
 * A flow may have limits of its own (meter.h), which come first; and there may
 * be limits of all flows together, which are shared by class like the store.
 *
 * While all flows have the same class, a flow without limits passes its
 * requests straight through, uncut and uncounted, unless somebody looks on.
 *
 * Any thread. A request that waits is started on the thread of a completion,
 * or on the loop; nothing of lodge's is locked when `done` is called.
 * Cancelled, or when the flow is drained, what has not started ends with
 * -ECANCELED.
 */
#ifndef LODGE_BLOCK_QOS_H
#define LODGE_BLOCK_QOS_H

#include "block/block.h"
#include "block/histogram.h"
#include "block/meter.h"

struct loop;
struct qos;

enum qos_class { QOS_URGENT, QOS_HIGH, QOS_MEDIUM, QOS_LOW, QOS_BACKGROUND, QOS_CLASSES };

/* "urgent" and so on; NULL at the end. */
extern const char *const qos_class_names[QOS_CLASSES + 1];

/* Shares of the classes below urgent, in proportion. */
enum {
    QOS_WEIGHT_HIGH = 64,
    QOS_WEIGHT_MEDIUM = 32,
    QOS_WEIGHT_LOW = 8,
    QOS_WEIGHT_BACKGROUND = 1,
};

struct qos_settings {
    enum qos_class class;
    struct block_limits limits;
};

/* Time to go by: a clock, and that qos_wake is called when it shows `ns`, or a little later. */
struct qos_time {
    uint64_t (*now_ns)(void);
    void (*wake_at)(struct qos *qos, uint64_t ns);
};

/* time: NULL for the host's. The loop's thread, or before it runs. */
int qos_create(struct loop *loop, const struct qos_time *time, struct qos **qos, struct error *err);
void qos_destroy(struct qos *qos); /* after its flows; NULL is fine */
/* Starts what may start. No lock is held. */
void qos_wake(struct qos *qos);

/*
 * Puts a flow before `target`, which becomes the flow's: closed with it. Its
 * name is copied. On failure the target stays the caller's.
 */
int qos_add_flow(struct qos *qos, struct block *target, const char *name,
                 const struct qos_settings *settings, struct block **flow, struct error *err);

/*
 * Another way to `below`, on which the flow's target stands, for work of the target's own that no
 * request waits for: it is background work beside all flows, outside of limits, and goes on while
 * the loop waits for it. Whoever submits there holds no lock. The flow's: it is there as long as
 * the flow's target. Asked for again it goes to another `below`, when nothing goes to the one
 * before.
 */
struct block *qos_upkeep(struct block *flow, struct block *below);

/* A flow's settings, which may be changed: from its next piece on. No lock is held. -ENOENT: no
 * flow has this name. */
int qos_get(struct qos *qos, const char *name, struct qos_settings *settings, struct error *err);
int qos_set(struct qos *qos, const char *name, const struct qos_settings *settings,
            struct error *err);

/* Limits of all flows together. No lock is held. */
void qos_limit(struct qos *qos, const struct block_limits *limits);

/* Counts for some seconds from now on even what would pass uncounted. */
void qos_watch(struct qos *qos);

/* What a flow did while it was counted. */
struct qos_report {
    const char *name;
    struct qos_settings settings;
    uint64_t requests, pieces, bytes; /* completed */
    uint64_t upkept;                  /* bytes of the disk's own work */
    struct histogram latencies;       /* of requests, with what limits made them wait */
    unsigned waiting;                 /* requests with pieces not yet started */
    unsigned in_flight;               /* pieces that the target has */
};

/* Fills up to `room` reports in the flows' order; answers how many there are. */
unsigned qos_report(struct qos *qos, struct qos_report *reports, unsigned room);

#endif
