/* The parts of `lodge image build`. See store.h for the rules. */
#ifndef LODGE_IMAGE_BUILD_H
#define LODGE_IMAGE_BUILD_H

#include "image/store.h"

/* images/NAME in the cache (store.c). */
int images_path(const char *name, char path[PATH_MAX], struct error *err);
/* Writes image.json. */
int image_note(const char *directory, const struct disk_image *image, struct error *err);

/*
 * debian_files.c: lodge's own files for the guest, under `directory`, as they are to lie on the
 * disk: the agent and its service, network, console, cloud-init's settings, GRUB's menu.
 */
int debian_write_files(const char *directory, const char *agent, const char *root_uuid,
                       struct error *err);
/* What initramfs-tools is to know before a kernel is installed: a shell command for a hook of
 * mmdebstrap, which is run with the root's path as $1. */
extern const char debian_initramfs_hook[];
/* Behind root=UUID=... on the kernel's command line, in GRUB's menu. */
extern const char debian_kernel_options[];

/*
 * bootable.c: a disk with GPT, GRUB for BIOS in a partition of its own, GRUB for UEFI at the
 * removable path of an EFI system partition, and room for the root file system.
 */
#define BOOTABLE_ROOT_OFFSET (UINT64_C(40) << 20)
#define BOOTABLE_END_SPARE   (UINT64_C(1) << 20) /* the second partition table's */

/* Partitions, and the two GRUBs, which look for the root by its UUID. `work` is for files of this
 * step alone. */
int bootable_make(const char *disk, uint64_t size, const char *root_uuid, const char *work,
                  struct error *err);
/* The programs and files of the host that this and the file system need; -ENOENT names what is
 * missing and what to install. */
int bootable_check(struct error *err);

#endif
