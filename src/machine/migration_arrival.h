/*
 * Memory that comes after the VM that it is of (post-copy): pages that are
 * still at the source are away (memory/missing.h), and a thread of this room
 * asks for what is touched and takes in what comes, until nothing is missing.
 *
 * A connection that breaks changes nothing: who touches what is missing stands still, the rest of
 * the guest goes on, and the thread waits for the source to connect again, which the receiver
 * (cli/cmd_receive.c) passes on by a socket in the VM's directory.
 */
#ifndef LODGE_MACHINE_MIGRATION_ARRIVAL_H
#define LODGE_MACHINE_MIGRATION_ARRIVAL_H

#include "base/loop.h"
#include "machine/migration_pages.h"
#include "machine/migration_stream.h"
#include "memory/memory.h"

struct arrival;

/* ---- Before the VM is here: the thread that takes it in ---- */

/* memory and loop stay the caller's and outlive it. */
int arrival_create(struct memory *memory, struct loop *loop, struct arrival **arrival,
                   struct error *err);
/* A frame MISSING. -EPROTO. */
int arrival_hear(struct arrival *arrival, const uint8_t *body, size_t length, struct error *err);
/* That was all: those pages go away. directory: the VM's (or what becomes it), where the socket is
 * made. */
int arrival_prepare(struct arrival *arrival, const char *directory, struct error *err);

/* ---- The VM is here ---- */

/* Its own from now on: the connection, and what unpacks pages. */
void arrival_start(struct arrival *arrival, struct stream *stream, struct page_unpacker *unpacker);
/* The source is to hear that it runs. */
void arrival_runs(struct arrival *arrival);
/* The VM has ended, vCPUs and devices with it; memory is still there. NULL is fine. */
void arrival_stop(struct arrival *arrival);
void arrival_destroy(struct arrival *arrival); /* stopped, or never started; NULL is fine */

struct arrival_report {
    uint64_t left; /* bytes */
    bool whole;
    char why[ERROR_TEXT_MAX]; /* the connection is broken; empty: it is not */
};
/* Any thread. */
void arrival_report(struct arrival *arrival, struct arrival_report *report);

/* Connected to the VM in this directory. -ENOENT: it is whole; -ECONNREFUSED: its monitor is gone.
 */
int arrival_connect(const char *directory, int *fd, struct error *err);

#endif
