/*
 * The debug console of firmware for virtual machines: bytes written to port
 * 402h are lines of lodge's log, at debug level ("lodge run -v -v"). Reading
 * answers E9h, by which SeaBIOS and OVMF know that it is there.
 */
#ifndef LODGE_DEVICE_DEBUGCON_H
#define LODGE_DEVICE_DEBUGCON_H

#include "device/device.h"

enum { DEBUGCON_PORT = 0x402 };

extern const struct device_class debugcon_class; /* config: NULL */

#endif
