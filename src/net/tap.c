/*
 * A tap interface of the host's, which somebody with the right to has made:
 * frames go to it and come from it as they are. A thread waits for those that
 * come, and only while the device has taken all that there were.
 */
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/thread.h"
#include "net/net.h"

enum { VLAN_TAG = 4 };

struct tap_net {
    struct net net;
    int fd, wake_fd;
    pthread_t thread;
    bool thread_started;
    atomic_bool quit;
    atomic_bool empty; /* the device has found nothing: it is to hear of the next frame */

    /* Held while `ready` runs, so that net_attach can wait for it; taken with no other lock held.
     */
    pthread_mutex_t ready_lock;
    void (*ready)(void *context);
    void *ready_context;
};

static struct tap_net *tap_of(struct net *net) {
    return container_of(net, struct tap_net, net);
}

static void wake(const struct tap_net *tap) {
    uint64_t one = 1;
    if (write(tap->wake_fd, &one, sizeof one) < 0)
        return; /* it is awake */
}

/* ---- Frames ---- */

/* What the interface does not take (it is down, its queue is full) is lost, as on any wire: true.
 */
static bool tap_send(struct net *net, const uint8_t *frame, size_t length) {
    return write(tap_of(net)->fd, frame, length) != 0;
}

static struct net_frame *tap_next(struct net *net) {
    struct tap_net *tap = tap_of(net);
    size_t room = net->mtu + (size_t)NET_HEADER_SIZE + VLAN_TAG;
    struct net_frame *frame = malloc(sizeof *frame + room);
    ssize_t got = frame != NULL ? read(tap->fd, frame->bytes, room) : -1;
    if (got > 0) {
        frame->length = (size_t)got;
        return frame;
    }
    free(frame);
    if (!atomic_exchange(&tap->empty, true))
        wake(tap);
    return NULL;
}

static void tap_attach(struct net *net, void (*ready)(void *context), void *context) {
    struct tap_net *tap = tap_of(net);
    pthread_mutex_lock(&tap->ready_lock);
    tap->ready = ready;
    tap->ready_context = context;
    pthread_mutex_unlock(&tap->ready_lock);
}

/* ---- The thread ---- */

static void call_ready(struct tap_net *tap) {
    atomic_store(&tap->empty, false);
    pthread_mutex_lock(&tap->ready_lock);
    if (tap->ready != NULL)
        tap->ready(tap->ready_context);
    pthread_mutex_unlock(&tap->ready_lock);
}

static void *wait_for_frames(void *argument) {
    struct tap_net *tap = argument;
    thread_begins(THREAD_OTHER, "tap");
    while (!atomic_load(&tap->quit)) {
        bool empty = atomic_load(&tap->empty);
        struct pollfd polls[] = {{.fd = tap->wake_fd, .events = POLLIN},
                                 {.fd = empty ? tap->fd : -1, .events = POLLIN}};
        uint64_t count;
        poll(polls, ARRAY_SIZE(polls), -1);
        if (polls[0].revents != 0 && read(tap->wake_fd, &count, sizeof count) < 0)
            continue;
        if (polls[1].revents & POLLIN)
            call_ready(tap);
        else if (polls[1].revents != 0)
            atomic_store(&tap->empty, false); /* the interface is gone */
    }
    return NULL;
}

/* Signals are for the main thread. */
static int start_thread(struct tap_net *tap, struct error *err) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&tap->thread, NULL, wait_for_frames, tap);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    tap->thread_started = rc == 0;
    return rc == 0 ? 0 : error_set_errno(err, -rc, "cannot start the network's thread");
}

/* ---- Life ---- */

static void tap_close(struct net *net) {
    struct tap_net *tap = tap_of(net);
    if (tap->thread_started) {
        atomic_store(&tap->quit, true);
        wake(tap);
        pthread_join(tap->thread, NULL);
    }
    if (tap->fd >= 0)
        close(tap->fd);
    if (tap->wake_fd >= 0)
        close(tap->wake_fd);
    pthread_mutex_destroy(&tap->ready_lock);
    free(tap);
}

static const struct net_class tap_class = {
    .name = "tap",
    .send = tap_send,
    .next = tap_next,
    .attach = tap_attach,
    .close = tap_close,
};

/* One that is not there is not made: nobody would have connected it to anything. */
static int open_interface(struct tap_net *tap, const char *name, struct error *err) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    if (name[0] == 0 || strlen(name) >= sizeof request.ifr_name || if_nametoindex(name) == 0)
        return error_set(err, -ENODEV,
                         "there is no network interface '%.40s'; 'ip tuntap add NAME mode tap user "
                         "USER' makes one",
                         name);
    memcpy(request.ifr_name, name, strlen(name));
    tap->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tap->fd < 0)
        return error_set_errno(err, -errno, "/dev/net/tun");
    if (ioctl(tap->fd, TUNSETIFF, &request) == 0)
        return 0;
    if (errno == EINVAL)
        return error_set(err, -EINVAL, "the network interface '%s' is no tap", name);
    if (errno == EBUSY)
        return error_set(err, -EBUSY, "the tap '%s' is in use by another program", name);
    return error_set_errno(err, -errno, "the tap '%s'", name);
}

static uint16_t find_mtu(const char *name) {
    struct ifreq request = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    memcpy(request.ifr_name, name, strlen(name));
    bool good = fd >= 0 && ioctl(fd, SIOCGIFMTU, &request) == 0 && request.ifr_mtu > 0;
    if (fd >= 0)
        close(fd);
    return (uint16_t)(!good                           ? NET_MTU_DEFAULT
                      : request.ifr_mtu < NET_MTU_MAX ? request.ifr_mtu
                                                      : NET_MTU_MAX);
}

int net_tap_create(const char *name, struct net **net, struct error *err) {
    struct tap_net *tap = calloc(1, sizeof *tap);
    if (tap == NULL)
        return error_set(err, -ENOMEM, "no memory for a network");
    tap->net = (struct net){.class = &tap_class};
    tap->fd = -1;
    tap->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    atomic_store(&tap->empty, true);
    pthread_mutex_init(&tap->ready_lock, NULL);
    int result = tap->wake_fd < 0 ? error_set_errno(err, -errno, "cannot start the network")
                                  : open_interface(tap, name, err);
    if (result == 0) {
        tap->net.mtu = find_mtu(name);
        result = start_thread(tap, err);
    }
    if (result < 0)
        tap_close(&tap->net);
    else
        *net = &tap->net;
    return result;
}
