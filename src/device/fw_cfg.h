/*
 * The firmware configuration device: numbered items and named files that
 * firmware reads from its machine, byte by byte through ports 510h and 511h
 * or by DMA through 514h. Nothing in it is writable. Source: the "fw_cfg"
 * specification in QEMU's documentation (docs/specs/fw_cfg), whose interface
 * OVMF, SeaBIOS and Linux know.
 *
 * Items are added, and forgotten, while no vCPU runs.
 */
#ifndef LODGE_DEVICE_FW_CFG_H
#define LODGE_DEVICE_FW_CFG_H

#include "device/device.h"

enum {
    FW_CFG_PORT = 0x510,
    FW_CFG_PORTS = 12,
    FW_CFG_ITEMS_MAX = 48,
    FW_CFG_NAME_SIZE = 56,
    /* The longest read by DMA that is done, zeros past the item's end included. */
    FW_CFG_DMA_MAX = 16 << 20,
};

/* Items with numbers of their own. */
enum {
    FW_CFG_SIGNATURE = 0x00,
    FW_CFG_ID = 0x01,
    FW_CFG_RAM_SIZE = 0x03,
    FW_CFG_NO_GRAPHIC = 0x04,
    FW_CFG_CPUS = 0x05,
    FW_CFG_BOOT_MENU = 0x0e,
    FW_CFG_CPUS_MAX = 0x0f,
    FW_CFG_DIRECTORY = 0x19,
    FW_CFG_FILES = 0x20, /* the first file */
};

extern const struct device_class fw_cfg_class; /* config: NULL */

/* Forgets all items and files that were added. */
void fw_cfg_forget(struct device *device);
/* Adds an item (a copy of the bytes). -ENOSPC, -ENOMEM, -EEXIST. */
int fw_cfg_add(struct device *device, uint16_t key, const void *bytes, size_t length,
               struct error *err);
/* Adds an item that is an integer of 2, 4 or 8 bytes. */
int fw_cfg_add_integer(struct device *device, uint16_t key, uint64_t value, unsigned size,
                       struct error *err);
/* Adds a file, whose name has at most FW_CFG_NAME_SIZE - 1 characters. */
int fw_cfg_add_file(struct device *device, const char *name, const void *bytes, size_t length,
                    struct error *err);

#endif
