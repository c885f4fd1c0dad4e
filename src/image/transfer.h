/*
 * Images that VMs which last have in their directories (image/overlay.h), on their way to another
 * host: which one it is, and whether that host has the same. Any thread.
 */
#ifndef LODGE_IMAGE_TRANSFER_H
#define LODGE_IMAGE_TRANSFER_H

#include "image/store.h"

enum { IMAGE_HASH_TEXT = 65 }; /* with its end */

/* What overlay_keep puts into `image`; the disk is the first. NULL-terminated. */
extern const char *const image_files[];

/* SHA-256 over disk, kernel and initrd, in hexadecimal. The disk's zeroes take no time, nor do
 * files that have not changed since they were last asked about (images/.hashes.json). */
int image_hash(const struct disk_image *image, char text[IMAGE_HASH_TEXT], struct error *err);

/*
 * The links of overlay_keep into a VM's directory, from one of this host's images that has this
 * root file system and hash. 1; 0: there is none.
 */
int image_link_same(const char *root, const char *hash, const char *directory, struct error *err);

#endif
