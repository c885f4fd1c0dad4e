/*
 * The other side of a connection under fuzzing: a thread that sends what it was given, takes
 * whatever comes and forgets it, and closes its end for writing when it has sent everything.
 */
#ifndef LODGE_FUZZ_FEED_H
#define LODGE_FUZZ_FEED_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"

struct feed {
    int fd; /* closed at the end */
    const uint8_t *bytes;
    size_t length;
    pthread_t thread;
};

/* False: the other side is gone. */
static inline bool feed_send(struct feed *feed) {
    ssize_t sent = send(feed->fd, feed->bytes, feed->length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0)
        return errno == EAGAIN || errno == EINTR;
    feed->bytes += sent;
    feed->length -= (size_t)sent;
    return feed->length > 0 || shutdown(feed->fd, SHUT_WR) == 0;
}

static inline bool feed_forget(const struct feed *feed) {
    static uint8_t nothing[64 << 10];
    ssize_t got = recv(feed->fd, nothing, sizeof nothing, MSG_DONTWAIT);
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

static inline void *feed_run(void *context) {
    struct feed *feed = context;
    bool open = feed->length > 0 || shutdown(feed->fd, SHUT_WR) == 0;
    while (open) {
        struct pollfd ready = {.fd = feed->fd,
                               .events = (short)(POLLIN | (feed->length > 0 ? POLLOUT : 0))};
        poll(&ready, 1, -1);
        if (ready.revents & POLLOUT)
            open = feed_send(feed);
        if (open && ready.revents & ~POLLOUT)
            open = feed_forget(feed) || feed->length > 0;
    }
    close(feed->fd);
    return NULL;
}

#endif
