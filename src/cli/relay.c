#include "cli/relay.h"

#include <errno.h>
#include <unistd.h>

struct pollfd relay_poll(const struct relay *relay) {
    if (relay->ended)
        return (struct pollfd){.fd = -1};
    if (relay->count > 0)
        return (struct pollfd){.fd = relay->to, .events = POLLOUT};
    return (struct pollfd){.fd = relay->from, .events = POLLIN};
}

static bool is_passing(int error) {
    return error == EAGAIN || error == EINTR;
}

static void take(struct relay *relay) {
    ssize_t got = read(relay->from, relay->bytes, sizeof relay->bytes);
    if (got <= 0) {
        relay->ended = got == 0 || !is_passing(errno);
        return;
    }
    relay->head = 0;
    relay->count = (size_t)got;
    if (relay->filter != NULL)
        relay->count = relay->filter(relay->context, relay->bytes, relay->count);
}

void relay_work(struct relay *relay, short events) {
    if (relay->ended || events == 0)
        return;
    if (relay->count == 0) {
        take(relay);
        return;
    }
    ssize_t put = write(relay->to, relay->bytes + relay->head, relay->count);
    if (put < 0) {
        relay->ended = !is_passing(errno);
        return;
    }
    relay->head += (size_t)put;
    relay->count -= (size_t)put;
}
