#include <stdlib.h>

#include "net/net.h"

static bool null_send(struct net *net, const uint8_t *frame, size_t length) {
    return true;
}

static struct net_frame *null_next(struct net *net) {
    return NULL;
}

static void null_attach(struct net *net, void (*ready)(void *context), void *context) {
}

static void null_close(struct net *net) {
    free(net);
}

static const struct net_class null_class = {
    .name = "null",
    .send = null_send,
    .next = null_next,
    .attach = null_attach,
    .close = null_close,
};

int net_null_create(struct net **net, struct error *err) {
    struct net *made = malloc(sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "no memory for a network");
    *made = (struct net){.class = &null_class, .mtu = NET_MTU_DEFAULT};
    *net = made;
    return 0;
}
