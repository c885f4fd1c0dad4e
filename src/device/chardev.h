/*
 * Character back ends: where a serial port's or a console's bytes go to and
 * come from (a terminal, a file, a socket). Neither side loses bytes for want
 * of room: each takes what it can and is told when there is room again.
 *
 * A back end embeds struct chardev first; the device attaches its front end.
 */
#ifndef LODGE_DEVICE_CHARDEV_H
#define LODGE_DEVICE_CHARDEV_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/loop.h"

struct chardev;

/* What the device provides. Both are called on the loop's thread with no lock held. */
struct chardev_front {
    /* Bytes for the guest: returns how many were taken. The back end keeps the rest, and stops
     * asking until resume_input. */
    size_t (*receive)(void *context, const uint8_t *bytes, size_t length);
    /* The back end has room again after a short write. */
    void (*writable)(void *context);
};

/* What the back end provides. Any thread; neither blocks; the caller may hold its device's lock. */
struct chardev_ops {
    /* Bytes from the guest: returns how many were taken. After a short answer the back end calls
     * writable once it has room. */
    size_t (*write)(struct chardev *chardev, const uint8_t *bytes, size_t length);
    /* The device has room for input again. */
    void (*resume_input)(struct chardev *chardev);
};

struct chardev {
    const struct chardev_ops *ops;
    const struct chardev_front *front; /* NULL: nobody attached, input waits */
    void *front_context;
};

/* Assembly only; front NULL detaches. A device accepts a NULL chardev: output goes nowhere. */
static inline void chardev_attach(struct chardev *chardev, const struct chardev_front *front,
                                  void *context) {
    chardev->front = front;
    chardev->front_context = context;
}

/*
 * A back end on a pair of file descriptors (a terminal's 0 and 1, the two
 * ends of a socket); -1: no input, or output thrown away. It buffers output
 * (64 KiB) and reads input only as fast as the device takes it. The caller
 * keeps the descriptors, whose blocking mode is left alone. ended (may be
 * NULL) is called on the loop's thread when the input ends.
 */
struct chardev_fd_config {
    int in, out;
    /* May be NULL: looks at input before the guest does (an escape key) and may change it in
     * place; returns how many bytes are left for the guest. The loop's thread. */
    size_t (*filter)(void *context, uint8_t *bytes, size_t length);
    void (*ended)(void *context);
    void *context;
};
int chardev_fd_create(struct loop *loop, const struct chardev_fd_config *config,
                      struct chardev **chardev, struct error *err);
/* Writes what is still buffered, waiting up to a second for a slow reader. With the loop stopped
 * or on its thread; the device is gone. */
void chardev_fd_destroy(struct chardev *chardev);

#endif
