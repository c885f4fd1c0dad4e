/*
 * What threads are to the host's scheduler.
 */
#ifndef LODGE_BASE_THREAD_H
#define LODGE_BASE_THREAD_H

#include <pthread.h>

/* What a thread is there for, and so what it needs of the host. */
enum thread_kind {
    THREAD_VCPU, /* runs a guest's code, and devices as that asks for it */
    THREAD_IO,   /* moves bytes between disks that are open and memory */
    THREAD_OTHER,
};

/* First in each thread but a process's own. name: at most 15 bytes, as ps and top show it. */
void thread_begins(enum thread_kind kind, const char *name);
/* What thread_begins calls from now on. Before there are threads; NULL: nothing. */
void thread_on_begin(void (*call)(enum thread_kind kind));

/*
 * pthread_create for threads that anybody may have to start: what vCPUs and I/O threads have given
 * up, their threads would lack, so another starts them (thread_maker_start). 0 or a positive errno
 * value. Signals are for the main thread: all are blocked in it.
 */
int thread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *context),
                  void *context);
/* Once, by the main thread; that maker lasts as long as the process. Without it each starts its
 * own. 0 or a negative errno value. */
int thread_maker_start(void);

/*
 * The calling thread does little at a time, and others wait for it: its turns on a processor are
 * short, so that one begins as soon as it wakes up, before threads that compute (vCPUs above all)
 * have had the whole of theirs. Its share stays what it was. Linux from 6.12 on; before, nothing.
 */
void thread_is_brief(void);
/* It computes, whatever the thread that has made it does: ordinary turns. */
void thread_computes(void);

#endif
