/*
 * One move, between its thread (migration_source.c) and the loop
 * (vm_migration.c); nobody else's.
 */
#ifndef LODGE_MACHINE_MIGRATION_SOURCE_H
#define LODGE_MACHINE_MIGRATION_SOURCE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/loop.h"
#include "base/state.h"
#include "machine/migration_disks.h"
#include "machine/migration_memory.h"
#include "machine/migration_stream.h"
#include "machine/vm_migration.h"
#include "machine/vm_store.h"

/* As stage_names has them. From POST_COPY on to INTERRUPTED it runs there, or may no more. */
enum stage {
    CONNECTING,
    COPYING,
    SWITCHING,
    ASKING,
    POST_COPY,
    MOVED,
    INTERRUPTED, /* in post-copy: some of its memory is still here */
    FAILED,
    DOUBTFUL,
    LOST, /* it ended there in post-copy */
};

/* Whether memory comes after the VM: when rounds get nowhere, after the first one, or not at all.
 */
enum post_copy { POST_COPY_AUTO, POST_COPY_ALWAYS, POST_COPY_NEVER };

/* One move. Its thread's, but for what is said to be shared. */
struct move {
    struct vm_migration *migration;
    loop_handler *done;        /* of the migration: the thread is through */
    struct control_call *call; /* the loop's */
    unsigned long client;
    pthread_t thread;
    bool started;
    char *to, *keys[3];
    char id[MOVE_ID_MAX];
    struct stream stream;
    struct memory_sender *sender;
    struct disk_sender *disks; /* NULL: none yet */
    struct state_buffer state;
    int snapshots;           /* their lock, until it is clear where the VM runs; -1: it has none */
    uint64_t limit, down_ns; /* as wanted */
    uint64_t begun_ns, frozen_ns, told_ns;
    double rate; /* pages a second, of the last round */
    unsigned throttle;
    enum post_copy when;
    bool post_copy; /* it has come to that */
    bool compress, copy_disks;
    bool frozen, released, marked;
    bool taking_back; /* it is to go on here, if it does not run there */
    bool forced;      /* the user says that it does not */
    int result;
    struct error err;

    /* Shared: below the lock. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct tunnel *tunnel; /* to break; NULL: none */
    bool went, cancelled, committed, ending;
    int answer; /* of the loop, to what the thread waits for */
    _Atomic(enum stage) stage;
    atomic_uint round;
    _Atomic(uint64_t) sent, left, left_ns, stood_ns; /* bytes; estimates */
    atomic_bool posted;
};

struct vm_migration {
    struct vm_migration_config config;
    struct move *move; /* under way, or the last one that was */
};

/* The thread: all of a move, up to the end that stage and result tell. */
void *move_run(void *move);
/* The same of one that was interrupted, and of a doubtful one: FAILED: it runs here again. */
void *move_resume(void *move);
void *move_take_back(void *move);

/* ---- For the thread's parts ---- */

void move_enter(struct move *move, enum stage stage);
void move_progress(struct move *move, uint64_t left);
int move_connect(struct move *move, struct stream *stream, struct error *err);
bool move_is_ending(struct move *move);
void move_rest(unsigned ms);
/* After the switch: MOVED, INTERRUPTED or LOST. again: there is no connection. */
enum stage move_push(struct move *move, bool again);
/* What query-migration and events say. Any thread. */
json_t *move_describe(const struct move *move);

#endif
