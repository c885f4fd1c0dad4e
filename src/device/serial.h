/* 16550A UART at I/O ports (COM1: 3F8h, GSI 4). Source: PC16550D data sheet. */
#ifndef LODGE_DEVICE_SERIAL_H
#define LODGE_DEVICE_SERIAL_H

#include "device/chardev.h"
#include "device/device.h"

struct serial_config {
    uint16_t port; /* the first of eight */
    uint8_t gsi;
    struct chardev *chardev; /* may be NULL; outlives the device */
};

extern const struct device_class serial_class;

#endif
