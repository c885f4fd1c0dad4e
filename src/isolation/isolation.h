/*
 * What a monitor may still ask of the host, once it is set up (docs/security.md).
 *
 * The guest is taken to be hostile, and the monitor to have a flaw by which it
 * runs code of its choice in it. Then a process remains that cannot start
 * programs or processes, trace or signal others, gain privileges, load code of
 * its own, or open kinds of sockets that this VM does not need. Threads that
 * run the guest's code (THREAD_VCPU) or move disks' bytes (THREAD_IO) can do
 * less (base/thread.h says which they are): those open no file for writing,
 * make no process's signal handlers others. calls.c lists each system call.
 *
 * A call that is not on the list is not done: one line on standard error names
 * it and the thread, and the process ends as if by SIGSYS. That is either an
 * attack or an omission here, which `--sandbox off` gets round.
 */
#ifndef LODGE_ISOLATION_ISOLATION_H
#define LODGE_ISOLATION_ISOLATION_H

#include <stdbool.h>

#include "base/error.h"

/* What this VM needs beyond what all do. */
struct isolation_grants {
    bool network;   /* sockets of IPv4 and IPv6: user network, NBD, moves */
    bool vcpu_net;  /* vCPUs send frames to the user network, which opens sockets as it gets them */
    bool raw_files; /* files of other users: a root's monitor keeps what that takes */
    bool owners;    /* it changes files' owners and modes: a volume that may be written to */
    bool low_ports; /* it publishes ports below 1024 */
    bool tap;       /* it attaches to a tap that is not this user's */
    void (*ending)(void); /* called before the line of a refused call, in a signal handler */
};

/*
 * For the rest of the process's life: no new privileges, no capability but those granted, no core
 * files, the filters. Before there are other threads; those that come say what they are
 * (thread_begins).
 */
int isolation_enter(const struct isolation_grants *grants, struct error *err);

#endif
