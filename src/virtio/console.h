/*
 * Console device (virtio 1.2, section 5.3), one port: a byte stream each
 * way, a size in characters, and the emergency write register.
 */
#ifndef LODGE_VIRTIO_CONSOLE_H
#define LODGE_VIRTIO_CONSOLE_H

#include "virtio/virtio.h"

struct virtio_console_config {
    struct virtio_options options;
    uint16_t columns, rows; /* 0 by 0: unknown */
    /*
     * The guest's output. Answers the bytes taken; when fewer than offered,
     * the back end calls virtio_console_resume once it can take more. Called
     * with the device's lock held, on a vCPU thread or the loop: must not
     * block or call the device. NULL: output is dropped.
     */
    size_t (*output)(void *context, const void *bytes, size_t length);
    /* Optional: after virtio_console_input was refused some bytes, there is room again. Same rules.
     */
    void (*input_ready)(void *context);
    void *context;
};

/* config is struct virtio_console_config. */
extern const struct device_class virtio_console_class;

/* Any thread, lock not held, all of these: */

/* Input for the guest: the number of bytes taken. */
size_t virtio_console_input(struct device *device, const void *bytes, size_t length);
/* The back end takes output again. */
void virtio_console_resume(struct device *device);
void virtio_console_resize(struct device *device, uint16_t columns, uint16_t rows);

#endif
