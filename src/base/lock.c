#include "base/lock.h"

#include <stdio.h>
#include <stdlib.h>

#ifdef LODGE_DEBUG
enum { HELD_MAX = 16 };
static _Thread_local const struct lock *held[HELD_MAX];
static _Thread_local unsigned held_count;

static void note_taken(const struct lock *lock) {
    if (held_count > 0 && held[held_count - 1]->rank >= lock->rank) {
        fprintf(stderr, "lodge: lock order: \"%s\" taken while holding \"%s\"\n", lock->name,
                held[held_count - 1]->name);
        abort();
    }
    if (held_count < HELD_MAX)
        held[held_count++] = lock;
}

static void note_released(const struct lock *lock) {
    for (unsigned i = held_count; i-- > 0;) {
        if (held[i] != lock)
            continue;
        for (unsigned j = i + 1; j < held_count; j++)
            held[j - 1] = held[j];
        held_count--;
        return;
    }
}
#else
static void note_taken(const struct lock *lock) {
    (void)lock;
}

static void note_released(const struct lock *lock) {
    (void)lock;
}
#endif

void lock_init(struct lock *lock, enum lock_rank rank, const char *name) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    /* Locks are held for a moment: waiting for another thread's wake-up would take longer. */
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&lock->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    lock->rank = rank;
    lock->name = name;
}

void lock_destroy(struct lock *lock) {
    pthread_mutex_destroy(&lock->mutex);
}

void lock_take(struct lock *lock) {
    note_taken(lock);
    pthread_mutex_lock(&lock->mutex);
}

void lock_release(struct lock *lock) {
    note_released(lock);
    pthread_mutex_unlock(&lock->mutex);
}
