/*
 * Bytes from one descriptor to another, for verbs that join a program or a
 * console of a guest to this process's own input and output. Made for poll():
 * neither side is made non-blocking, for they may be shared with others.
 */
#ifndef LODGE_CLI_RELAY_H
#define LODGE_CLI_RELAY_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RELAY_STEP = 4096 }; /* a pipe that poll() calls writable takes it (pipe(7), PIPE_BUF) */

struct relay {
    int from, to; /* -1: closed */
    /* May be NULL: changes what was read in place; returns what is left of it. */
    size_t (*filter)(void *context, uint8_t *bytes, size_t length);
    void *context;
    bool ended; /* nothing comes any more, or nobody takes it */
    uint8_t bytes[RELAY_STEP];
    size_t head, count;
};

/* What it waits for at present. */
struct pollfd relay_poll(const struct relay *relay);
/* With what poll() has said of that. */
void relay_work(struct relay *relay, short events);

#endif
