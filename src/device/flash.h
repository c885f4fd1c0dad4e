/*
 * Parallel NOR flash with Intel's command set (CFI primary command set 1), 8
 * bits wide, blocks of 4 KiB: what OVMF keeps its variables in. While it
 * shows its array it is memory that can be read and executed at full speed;
 * a command (any write) turns it to registers until "read array" is written.
 *
 * Commands: FFh read array, 70h read status, 50h clear status (and read
 * array), 90h read identifiers, 10h/40h program a byte, 20h D0h erase a
 * block, E8h program a buffer. Programming clears bits and never sets them;
 * erasing sets them all. Changes are written to the file as soon as the
 * array is shown again, and made durable within FLASH_SYNC_MS or when the
 * machine ends. Its state has the contents, which the file gets when that is
 * loaded.
 *
 * Sources: Intel StrataFlash data sheet (J3), 9 to 11; OVMF's driver
 * (OvmfPkg/QemuFlashFvbServicesRuntimeDxe) expects that clearing the status
 * clears "ready" as well.
 */
#ifndef LODGE_DEVICE_FLASH_H
#define LODGE_DEVICE_FLASH_H

#include "device/device.h"

enum { FLASH_BLOCK = 4096, FLASH_BUFFER = 256, FLASH_SYNC_MS = 200 };

struct flash_config {
    uint64_t gpa;            /* multiples of PAGE_SIZE, as is size */
    const uint8_t *contents; /* copied */
    size_t size;
    int fd; /* the file with the contents, the caller's; -1: changes are not kept */
};

extern const struct device_class flash_class;

/* What the array holds in a saved state, into as many bytes as the flash has. The bytes may be
 * hostile. -EINVAL, -ENOTSUP. */
int flash_read_saved(const uint8_t *state, size_t length, uint8_t *contents, size_t size,
                     struct error *err);

#endif
