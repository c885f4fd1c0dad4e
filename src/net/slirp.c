/*
 * The user network. libslirp is not thread-safe and wants to be polled: its
 * state is guarded by one lock; a thread polls its sockets; frames from the
 * guest enter on the vCPU's thread, which spares them a wake-up, and wake the
 * poll only when libslirp has new sockets or room.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/thread.h"
#include "net/net.h"

enum {
    FRAMES_MAX = 512,  /* waiting for the guest; beyond, frames are dropped */
    FRAMES_HIGH = 256, /* no more is read from sockets until the guest has taken some */
    POLLS_MAX = 8192,  /* sockets looked at in one round */
    IDLE_MS = 500,     /* libslirp's slow timer */
    BUSY_MS = 100,     /* while there are sockets: delayed acknowledgements are due */
};

struct user_timer {
    struct user_timer *next;
    SlirpTimerCb handler;
    void *context;
    int64_t deadline_ms; /* INT64_MAX: not armed */
};

struct user_net {
    struct net net;
    struct lock lock;
    Slirp *slirp;
    pthread_t thread;
    bool thread_started;
    int wake_fd;
    bool stopping, wake_wanted, throttled;
    struct user_timer *timers;
    struct net_frame *first, *last;
    unsigned frames;

    /* Held while `ready` runs, so that net_attach can wait for it. Outside the ranks of
     * base/lock.h: taken with no other lock held, and the device takes its own inside. */
    pthread_mutex_t ready_lock;
    void (*ready)(void *context);
    void *ready_context;

    /* Of the thread alone. */
    struct pollfd *polls;
    unsigned poll_count, poll_room;
};

static struct user_net *user_of(struct net *net) {
    return container_of(net, struct user_net, net);
}

static void wake(struct user_net *user) {
    uint64_t one = 1;
    ssize_t ignored = write(user->wake_fd, &one, sizeof one);
    (void)ignored;
}

static int64_t now_ms(void) {
    return (int64_t)(host_clock_ns() / 1000000);
}

/* ---- What libslirp calls; the lock is held ---- */

static ssize_t on_packet(const void *bytes, size_t length, void *opaque) {
    struct user_net *user = opaque;
    if (user->frames >= FRAMES_MAX || length > NET_FRAME_MAX)
        return (ssize_t)length;
    struct net_frame *frame = malloc(sizeof *frame + length);
    if (frame == NULL)
        return (ssize_t)length;
    frame->next = NULL;
    frame->length = length;
    memcpy(frame->bytes, bytes, length);
    if (user->first == NULL)
        user->first = frame;
    else
        user->last->next = frame;
    user->last = frame;
    user->frames++;
    return (ssize_t)length;
}

static void on_guest_error(const char *message, void *opaque) {
    log_guest("user network: %s", message);
}

static int64_t on_clock(void *opaque) {
    return (int64_t)host_clock_ns();
}

static void *on_timer_new(SlirpTimerCb handler, void *context, void *opaque) {
    struct user_net *user = opaque;
    struct user_timer *timer = calloc(1, sizeof *timer);
    if (timer == NULL)
        return NULL;
    *timer = (struct user_timer){user->timers, handler, context, INT64_MAX};
    user->timers = timer;
    return timer;
}

static void on_timer_free(void *timer, void *opaque) {
    struct user_net *user = opaque;
    struct user_timer **link = &user->timers;
    while (*link != NULL && *link != timer)
        link = &(*link)->next;
    if (*link != NULL)
        *link = (*link)->next;
    free(timer);
}

static void on_timer_mod(void *timer, int64_t deadline_ms, void *opaque) {
    if (timer != NULL)
        ((struct user_timer *)timer)->deadline_ms = deadline_ms;
    ((struct user_net *)opaque)->wake_wanted = true;
}

static void on_poll_fd(int fd, void *opaque) {
    ((struct user_net *)opaque)->wake_wanted = true;
}

static void on_notify(void *opaque) {
    ((struct user_net *)opaque)->wake_wanted = true;
}

static const SlirpCb callbacks = {
    .send_packet = on_packet,
    .guest_error = on_guest_error,
    .clock_get_ns = on_clock,
    .timer_new = on_timer_new,
    .timer_free = on_timer_free,
    .timer_mod = on_timer_mod,
    .register_poll_fd = on_poll_fd,
    .unregister_poll_fd = on_poll_fd,
    .notify = on_notify,
};

/* ---- The thread ---- */

static const struct {
    int slirp;
    short poll;
} event_bits[] = {
    {SLIRP_POLL_IN, POLLIN},   {SLIRP_POLL_OUT, POLLOUT}, {SLIRP_POLL_PRI, POLLPRI},
    {SLIRP_POLL_ERR, POLLERR}, {SLIRP_POLL_HUP, POLLHUP},
};

/* Answers the index under which on_events is asked, -1 when there are too many. */
static int on_add_poll(int fd, int events, void *opaque) {
    struct user_net *user = opaque;
    if (user->poll_count == user->poll_room) {
        unsigned room = user->poll_room * 2;
        struct pollfd *polls = room > POLLS_MAX ? NULL : realloc(user->polls, room * sizeof *polls);
        if (polls == NULL)
            return -1;
        user->polls = polls;
        user->poll_room = room;
    }
    struct pollfd *entry = &user->polls[user->poll_count];
    *entry = (struct pollfd){.fd = fd};
    for (unsigned i = 0; i < ARRAY_SIZE(event_bits); i++)
        if (events & event_bits[i].slirp)
            entry->events |= event_bits[i].poll;
    return (int)user->poll_count++;
}

static int on_events(int index, void *opaque) {
    const struct user_net *user = opaque;
    int events = 0;
    if (index < 0 || (unsigned)index >= user->poll_count)
        return 0;
    for (unsigned i = 0; i < ARRAY_SIZE(event_bits); i++)
        if (user->polls[index].revents & event_bits[i].poll)
            events |= event_bits[i].slirp;
    return events;
}

static void run_timers(struct user_net *user) {
    int64_t now = now_ms();
    struct user_timer *next;
    for (struct user_timer *timer = user->timers; timer != NULL; timer = next) {
        next = timer->next;
        if (timer->deadline_ms > now)
            continue;
        timer->deadline_ms = INT64_MAX;
        timer->handler(timer->context);
    }
}

static int poll_timeout(const struct user_net *user, uint32_t wanted) {
    uint32_t limit = user->poll_count > 1 ? BUSY_MS : IDLE_MS;
    bool timed = user->poll_count > 1 || wanted != UINT32_MAX;
    int64_t timeout = timed ? (wanted < limit ? wanted : limit) : INT32_MAX;
    int64_t now = now_ms();
    for (const struct user_timer *timer = user->timers; timer != NULL; timer = timer->next)
        if (timer->deadline_ms != INT64_MAX && timer->deadline_ms - now < timeout)
            timeout = timer->deadline_ms > now ? timer->deadline_ms - now : 0;
    return timeout == INT32_MAX ? -1 : (int)timeout;
}

/* Collects what to wait for; the lock is held. Answers the time-out in ms, -1 for none. */
static int prepare(struct user_net *user) {
    uint32_t wanted = UINT32_MAX;
    user->polls[0] = (struct pollfd){.fd = user->wake_fd, .events = POLLIN};
    user->poll_count = 1;
    user->throttled = user->frames >= FRAMES_HIGH;
    if (user->throttled)
        return -1;
    slirp_pollfds_fill(user->slirp, &wanted, on_add_poll, user);
    user->wake_wanted = false;
    return poll_timeout(user, wanted);
}

static void drain_wake(struct user_net *user) {
    uint64_t count;
    ssize_t ignored = read(user->wake_fd, &count, sizeof count);
    (void)ignored;
}

static void call_ready(struct user_net *user) {
    pthread_mutex_lock(&user->ready_lock);
    if (user->ready != NULL)
        user->ready(user->ready_context);
    pthread_mutex_unlock(&user->ready_lock);
}

static void *poll_thread(void *argument) {
    struct user_net *user = argument;
    thread_begins(THREAD_OTHER, "network");
    lock_take(&user->lock);
    while (!user->stopping) {
        int timeout = prepare(user);
        bool throttled = user->throttled;
        lock_release(&user->lock);
        int ready = poll(user->polls, user->poll_count, timeout);
        if (user->polls[0].revents != 0)
            drain_wake(user);
        lock_take(&user->lock);
        if (!throttled) {
            slirp_pollfds_poll(user->slirp, ready < 0, on_events, user);
            run_timers(user);
        }
        bool frames = user->frames > 0;
        lock_release(&user->lock);
        if (frames)
            call_ready(user);
        lock_take(&user->lock);
    }
    lock_release(&user->lock);
    return NULL;
}

/* ---- The contract ---- */

static bool user_send(struct net *net, const uint8_t *frame, size_t length) {
    struct user_net *user = user_of(net);
    if (length < NET_HEADER_SIZE || length > NET_FRAME_MAX)
        return true;
    lock_take(&user->lock);
    slirp_input(user->slirp, frame, (int)length);
    bool wanted = user->wake_wanted;
    user->wake_wanted = false;
    lock_release(&user->lock);
    if (wanted)
        wake(user);
    return true;
}

static struct net_frame *user_next(struct net *net) {
    struct user_net *user = user_of(net);
    lock_take(&user->lock);
    struct net_frame *frame = user->first;
    bool relieved = false;
    if (frame != NULL) {
        user->first = frame->next;
        user->frames--;
        relieved = user->throttled && user->frames == FRAMES_HIGH / 2;
    }
    lock_release(&user->lock);
    if (relieved)
        wake(user);
    return frame;
}

static void user_attach(struct net *net, void (*ready)(void *context), void *context) {
    struct user_net *user = user_of(net);
    pthread_mutex_lock(&user->ready_lock);
    user->ready = ready;
    user->ready_context = context;
    pthread_mutex_unlock(&user->ready_lock);
}

static void free_frames(struct user_net *user) {
    while (user->first != NULL) {
        struct net_frame *frame = user->first;
        user->first = frame->next;
        free(frame);
    }
}

static void user_close(struct net *net) {
    struct user_net *user = user_of(net);
    if (user->thread_started) {
        lock_take(&user->lock);
        user->stopping = true;
        lock_release(&user->lock);
        wake(user);
        pthread_join(user->thread, NULL);
    }
    if (user->slirp != NULL)
        slirp_cleanup(user->slirp);
    free_frames(user);
    if (user->wake_fd >= 0)
        close(user->wake_fd);
    lock_destroy(&user->lock);
    pthread_mutex_destroy(&user->ready_lock);
    free(user->polls);
    free(user);
}

static const struct net_class user_class = {
    .name = "user",
    .send = user_send,
    .next = user_next,
    .attach = user_attach,
    .close = user_close,
};

/* ---- Making ---- */

static struct in_addr ipv4(const char *text) {
    return (struct in_addr){.s_addr = inet_addr(text)};
}

static struct in6_addr ipv6(const char *text) {
    struct in6_addr address = {0};
    inet_pton(AF_INET6, text, &address);
    return address;
}

static int start_slirp(struct user_net *user, const struct net_user_config *config,
                       struct error *err) {
    SlirpConfig slirp = {
        .version = 3,
        .in_enabled = true,
        .vnetwork = ipv4("10.0.2.0"),
        .vnetmask = ipv4("255.255.255.0"),
        .vhost = ipv4("10.0.2.2"),
        .vdhcp_start = ipv4("10.0.2.15"),
        .vnameserver = ipv4("10.0.2.3"),
        .in6_enabled = config->ipv6,
        .vprefix_addr6 = ipv6("fec0::"),
        .vprefix_len = 64,
        .vhost6 = ipv6("fec0::2"),
        .vnameserver6 = ipv6("fec0::3"),
        .vhostname = config->hostname != NULL ? config->hostname : "lodge",
        .if_mtu = user->net.mtu,
        .if_mru = user->net.mtu,
        .disable_host_loopback = config->isolate_host,
    };
    user->slirp = slirp_new(&slirp, &callbacks, user);
    return user->slirp != NULL ? 0 : error_set(err, -ENOMEM, "cannot start the user network");
}

static int publish_port(struct user_net *user, const struct net_publish *publish,
                        struct error *err) {
    errno = 0;
    if (slirp_add_hostfwd(user->slirp, publish->udp, publish->host_address, publish->host_port,
                          ipv4("10.0.2.15"), publish->guest_port) == 0)
        return 0;
    char address[INET_ADDRSTRLEN];
    inet_ntop(AF_INET, &publish->host_address, address, sizeof address);
    return error_set_errno(err, errno != 0 ? -errno : -EINVAL, "cannot publish %s port %u on %s",
                           publish->udp ? "udp" : "tcp", publish->host_port, address);
}

/* Signals are for the main thread. */
static int start_thread(struct user_net *user, struct error *err) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&user->thread, NULL, poll_thread, user);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    user->thread_started = rc == 0;
    return rc == 0 ? 0 : error_set_errno(err, -rc, "cannot start the user network's thread");
}

static int start(struct user_net *user, const struct net_user_config *config, struct error *err) {
    enum { POLLS_FIRST = 16 };
    user->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (user->wake_fd < 0)
        return error_set_errno(err, -errno, "cannot start the user network");
    user->polls = calloc(POLLS_FIRST, sizeof *user->polls);
    if (user->polls == NULL)
        return error_set(err, -ENOMEM, "no memory for the user network");
    user->poll_room = POLLS_FIRST;
    int rc = start_slirp(user, config, err);
    for (unsigned i = 0; rc == 0 && i < config->publish_count; i++)
        rc = publish_port(user, &config->publish[i], err);
    return rc != 0 ? rc : start_thread(user, err);
}

int net_user_create(const struct net_user_config *config, struct net **net, struct error *err) {
    uint16_t mtu = config->mtu != 0 ? config->mtu : NET_MTU_DEFAULT;
    /* 576: what every IPv4 host takes (RFC 791); IPv6 wants 1280 (RFC 8200). */
    if (mtu < (config->ipv6 ? 1280 : 576) || mtu > NET_MTU_MAX)
        return error_set(err, -EINVAL, "a user network's MTU is 576 (1280 with IPv6) to %u",
                         NET_MTU_MAX);
    struct user_net *user = calloc(1, sizeof *user);
    if (user == NULL)
        return error_set(err, -ENOMEM, "no memory for the user network");
    user->net = (struct net){.class = &user_class, .mtu = mtu};
    user->wake_fd = -1;
    lock_init(&user->lock, LOCK_BACKEND, "user network");
    pthread_mutex_init(&user->ready_lock, NULL);
    int rc = start(user, config, err);
    if (rc != 0) {
        user_close(&user->net);
        return rc;
    }
    *net = &user->net;
    return 0;
}
