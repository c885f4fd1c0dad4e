/*
 * The server's side of vfio-user: a PCI device of lodge's, made for whoever
 * connects to a Unix socket. One client at a time; others wait in the
 * socket's queue. The device is a model (struct vu_model) on a bus of its
 * own without vCPUs: its DMA goes to the memory that the client lends
 * (lent.h), its MSI-X vectors are the client's eventfds, accesses to its
 * registers are messages.
 *
 * State. When a client goes, the device is unmade; a client that names itself
 * ("resume", wire.h) and comes back finds it as it was. What that takes lies
 * in a mapped file beside the socket, SOCKET.state, so it works as well when
 * this process was killed and another one serves the socket now. Any other
 * client gets a device that was reset. The file is locked while it is served,
 * and is believed like the process's own memory (mode 0600).
 *
 * Threads: one for each server. It calls the model; the device also works on
 * the loop and on its back ends' threads.
 */
#ifndef LODGE_VFIO_USER_SERVER_H
#define LODGE_VFIO_USER_SERVER_H

#include "device/device.h"

struct vu_model {
    const char *name;
    size_t state_size;
    /*
     * Makes the device, paused, with one PCI function on platform->pci. state: state_size bytes
     * that outlive it, zero or as a predecessor has left them.
     */
    int (*create)(void *context, struct platform *platform, void *state, struct device **device,
                  struct error *err);
    void (*pause)(struct device *device);  /* no access to guest memory after it returns */
    void (*resume)(struct device *device); /* when the function is first let at memory, too */
    /* An eventfd (EFD_NONBLOCK), written to when the client is to be told that commands wait for
     * space on the host (VU_LODGE_FULL); -1: never. */
    int full;
    void *context;
};

struct vu_server;

/*
 * Binds the socket (a stale one is replaced) and serves it. path and name are copied. -EBUSY:
 * somebody serves it; -EEXIST: the path is no socket; -ENAMETOOLONG; or why the file or the socket
 * could not be made.
 */
int vu_server_create(const char *path, const struct vu_model *model, struct loop *loop,
                     struct vu_server **server, struct error *err);
/* Sends the client away, removes the socket; the state stays if there was a client. Not on the
 * loop's thread. NULL is fine. */
void vu_server_destroy(struct vu_server *server);

/* Whom the state is for. */
struct vu_kept {
    char client[33];       /* the name it gave itself; "": nobody */
    _Atomic(int32_t) done; /* its last access that was seen to its end; -1: none */
};

/* Serves one client on a connected socket, which stays the caller's, until it goes; state:
 * model->state_size bytes. For tests; the server does the same with those it accepts. `stop`: a
 * descriptor that becomes readable, or -1. */
int vu_serve(int socket, const struct vu_model *model, struct platform *platform, void *state,
             struct vu_kept *kept, int stop, struct error *err);

/* A machine without vCPUs: memory, ports, clock, interrupt controller, PCI bus. */
int vu_platform_create(struct loop *loop, struct platform *platform, struct error *err);
void vu_platform_destroy(struct platform *platform);

#endif
