/*
 * Network back ends: what a network device is connected to. Ethernet frames
 * (no preamble, no checksum) go in with net_send and come out with
 * net_next; both ways are bounded.
 */
#ifndef LODGE_NET_NET_H
#define LODGE_NET_NET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum {
    NET_HEADER_SIZE = 14,
    NET_MTU_DEFAULT = 1500,
    NET_MTU_MAX = 65521,
    NET_FRAME_MAX = NET_MTU_MAX + NET_HEADER_SIZE
};

struct net;

/* A frame on its way to the guest. */
struct net_frame {
    struct net_frame *next;
    size_t length;
    uint8_t bytes[];
};

/* What a kind of back end implements; its object begins with struct net. */
struct net_class {
    const char *name;
    bool (*send)(struct net *net, const uint8_t *frame, size_t length);
    struct net_frame *(*next)(struct net *net);
    void (*attach)(struct net *net, void (*ready)(void *context), void *context);
    void (*close)(struct net *net);
};

struct net {
    const struct net_class *class;
    uint16_t mtu;
};

/*
 * A frame from the guest. False: no room, keep it until `ready` is called.
 * Any thread; does not block. What is no sensible frame is taken and dropped.
 */
static inline bool net_send(struct net *net, const uint8_t *frame, size_t length) {
    return net->class->send(net, frame, length);
}

/* The next frame for the guest, the caller's to free with free(); NULL: none. Any thread. */
static inline struct net_frame *net_next(struct net *net) {
    return net->class->next(net);
}

/*
 * ready(context): frames are waiting, or net_send has room again. Called on a
 * thread of the back end's, without any lock; never inside net_send or
 * net_next, so after net_send look for answers yourself. With NULL the calls
 * end: none runs any more when this returns.
 */
static inline void net_attach(struct net *net, void (*ready)(void *context), void *context) {
    net->class->attach(net, ready, context);
}

static inline void net_close(struct net *net) {
    if (net != NULL)
        net->class->close(net);
}

/* ---- Published ports ---- */

/* Connections to host_address:host_port go to guest_port. */
struct net_publish {
    struct in_addr host_address;
    uint16_t host_port, guest_port;
    bool udp;
};

/*
 * Parses [ADDRESS:]HOST:GUEST[/tcp|/udp], for example 8080:80 or
 * 0.0.0.0:53:53/udp. Without an address, the host's loopback: publishing to
 * the world is asked for in so many words. -EINVAL with the reason.
 */
int net_parse_publish(const char *text, struct net_publish *publish, struct error *err);

/* ---- Kinds ---- */

/* Connected to nothing: takes all frames, never has any. */
int net_null_create(struct net **net, struct error *err);

/*
 * A network of its own for the guest, in user space (libslirp), which needs
 * no privileges: 10.0.2.0/24 with the host at 10.0.2.2, a name server
 * (forwarding to the host's resolver) at 10.0.2.3, DHCP that gives out
 * 10.0.2.15. Connections out appear as the host's own.
 */
struct net_user_config {
    bool ipv6;            /* fec0::/64 besides, the host at fec0::2 */
    bool isolate_host;    /* the guest cannot reach the host's loopback by way of 10.0.2.2 */
    uint16_t mtu;         /* 0: NET_MTU_DEFAULT */
    const char *hostname; /* told by DHCP; NULL: "lodge" */
    const struct net_publish *publish;
    unsigned publish_count;
};
/* -EADDRINUSE, -EACCES and so on for ports that cannot be published. */
int net_user_create(const struct net_user_config *config, struct net **net, struct error *err);

/*
 * A tap interface that is there already and that the user may use ('ip tuntap add NAME mode tap
 * user USER'), by itself or in a bridge; with the interface's MTU. -ENODEV, -EBUSY, -EINVAL: no
 * tap.
 */
int net_tap_create(const char *name, struct net **net, struct error *err);

#endif
