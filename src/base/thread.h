/*
 * What threads are to the host's scheduler.
 */
#ifndef LODGE_BASE_THREAD_H
#define LODGE_BASE_THREAD_H

/*
 * The calling thread does little at a time, and others wait for it: its turns on a processor are
 * short, so that one begins as soon as it wakes up, before threads that compute (vCPUs above all)
 * have had the whole of theirs. Its share stays what it was. Linux from 6.12 on; before, nothing.
 */
void thread_is_brief(void);
/* It computes, whatever the thread that has made it does: ordinary turns. */
void thread_computes(void);

#endif
