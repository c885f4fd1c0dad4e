/*
 * Code as an attacker would have it run on a thread of a monitor's that was
 * taken over: it tries all that the monitor is not to be able to do. In debug
 * builds only (-Dlodge_debug=true), for tests/linux/takeover.sh.
 */
#ifndef LODGE_ISOLATION_TAKEOVER_H
#define LODGE_ISOLATION_TAKEOVER_H

/*
 * Tries everything on the calling thread. A line each on standard error: "takeover: THREAD: WHAT:
 * refused", or "…: failed: WHY", or "…: DONE", which is what must not be.
 */
void takeover_try_all(const char *thread);
/* Tries one thing as it would be tried, without anything to look at what comes of it. */
void takeover_execute(void);

#endif
