/*
 * Quality of service: disks that share a store compete by classes. Each disk
 * is a *flow*, a block back end before another one. Its requests are cut into
 * pieces whose size and number in flight depend on the class, so that a large
 * request of a low class does not hold up a small one of an urgent class:
 *
 *  - urgent pieces start at once, whole;
 *  - the others share a window of bytes in flight, small while there is
 *    urgent traffic, in proportion to their weights (start-time fair queueing).
 *
 * While all flows have the same class, requests go straight through: nothing
 * is cut, nothing is counted.
 *
 * Any thread. A request that waits is started on the thread of a completion,
 * or on the loop; nothing of lodge's is locked when `done` is called.
 */
#ifndef LODGE_BLOCK_QOS_H
#define LODGE_BLOCK_QOS_H

#include "block/block.h"

struct loop;
struct qos;

enum qos_class { QOS_URGENT, QOS_HIGH, QOS_MEDIUM, QOS_LOW, QOS_CLASSES };

/* "urgent" and so on; NULL at the end. */
extern const char *const qos_class_names[QOS_CLASSES + 1];

/* Shares of the classes below urgent, in proportion. */
enum { QOS_WEIGHT_HIGH = 8, QOS_WEIGHT_MEDIUM = 4, QOS_WEIGHT_LOW = 1 };

/* now_ns: a clock to go by; NULL for the host's. */
int qos_create(struct loop *loop, uint64_t (*now_ns)(void), struct qos **qos, struct error *err);
void qos_destroy(struct qos *qos); /* after its flows; NULL is fine */

/*
 * Puts a flow before `target`, which becomes the flow's: closed with it. Its
 * name is copied. On failure the target stays the caller's.
 */
int qos_add_flow(struct qos *qos, struct block *target, const char *name, enum qos_class class,
                 struct block **flow, struct error *err);

/* Changes a flow's class from its next piece on. -ENOENT: no flow has this name. */
int qos_set_class(struct qos *qos, const char *name, enum qos_class class, struct error *err);

/* What a flow did while classes differed. */
struct qos_report {
    const char *name;
    enum qos_class class;
    uint64_t requests, pieces, bytes; /* completed */
    uint64_t latency_ns[3];           /* of requests: half, 99 % and 99.9 % took no longer */
    unsigned waiting;                 /* requests with pieces not yet started */
    unsigned in_flight;               /* pieces that the target has */
};

/* Fills up to `room` reports in the flows' order; answers how many there are. */
unsigned qos_report(struct qos *qos, struct qos_report *reports, unsigned room);

#endif
