/*
 * Booting by firmware: OVMF (UEFI) or SeaBIOS, whose files the distribution
 * packages, or another image for the same kind of machine. The image ends at
 * 4 GiB, its last 128 KiB are to be found below 1 MiB as well; UEFI's
 * variables lie in flash right below it. What firmware is to know of the
 * machine (memory, ACPI tables, boot order) it reads from the fw_cfg device.
 *
 * Files are not trusted. Control thread, no vCPU running.
 */
#ifndef LODGE_MACHINE_FIRMWARE_H
#define LODGE_MACHINE_FIRMWARE_H

#include "base/bytes.h"
#include "base/error.h"
#include "block/open.h"
#include "device/device.h"
#include "machine/config.h"

#define FIRMWARE_SIZE_MAX MIB(16)

struct firmware;

/* What the machine tells its firmware. */
struct firmware_machine {
    struct device *fw_cfg;
    uint64_t ram_below_4g, ram_above_4g;
    uint64_t plug_base, plug_size; /* where memory may be plugged in; size 0: nowhere */
    unsigned vcpus, vcpus_max;
    bool idle_states; /* processors have _CST */
    /* Open Firmware paths, a line each. NULL: the firmware has an order of its own, in variables;
     * OVMF would forget what is not in ours, entries that a guest has made among them. */
    const char *boot_order;
};

/*
 * Reads the image and, for UEFI, the variables: from the file at `variables`, which is made from
 * the package's template when it is not there; NULL: from the template alone, and changes are
 * lost. -ENOENT (the text says what to install), -EINVAL for what is no such image or variable
 * store, others of reading.
 */
int firmware_open(enum firmware_kind kind, const char *file, const char *variables,
                  struct firmware **firmware, struct error *err);
void firmware_close(struct firmware *firmware);

/* The name of the device that has the UEFI variables, as saved states have it. */
#define FIRMWARE_FLASH "flash0"

/* Puts image and flash into the machine's memory; *flash is a new device or NULL. */
int firmware_map(struct firmware *firmware, struct platform *platform, struct device **flash,
                 struct error *err);

/* At every start: what is to be found below 1 MiB. */
int firmware_start(struct firmware *firmware, struct memory *memory, struct error *err);

/* The image's size, and its CRC-32C. */
uint64_t firmware_sum(struct firmware *firmware, uint32_t *sum);
/*
 * A guest that goes on from a snapshot keeps the image that it was started by, whatever the
 * package has since: into a file that is not there yet, durably; and from there into the machine's
 * memory and this object. No vCPU has run. -EINVAL: one of another size.
 */
int firmware_keep(const struct firmware *firmware, const char *path, struct error *err);
int firmware_take(struct firmware *firmware, struct memory *memory, const char *path,
                  struct error *err);

/* UEFI, rather than a BIOS. */
bool firmware_is_uefi(const struct firmware *firmware);

/* For -v: the files. */
const char *firmware_describe(const struct firmware *firmware);

/* Fills the fw_cfg device anew (firmware_config.c). */
int firmware_configure(const struct firmware_machine *machine, struct error *err);

/*
 * Which firmware a disk's or CD's boot loader is for: OVMF when it has an EFI system partition or
 * boot entry, SeaBIOS when its first sector has code and a partition table or it has another boot
 * entry, FIRMWARE_NONE for disks without loader and what cannot be read (firmware_detect.c).
 */
enum firmware_kind firmware_detect(const char *path, const struct block_options *options);

#endif
