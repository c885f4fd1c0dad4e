/*
 * Which kernel modules a guest gets, and in which order they load: read from
 * the modules' own .modinfo sections, so that depmod is not needed.
 */
#ifndef LODGE_IMAGE_MODULES_H
#define LODGE_IMAGE_MODULES_H

#include "base/error.h"
#include "image/cpio.h"

/*
 * Puts the modules of tree (the directory that holds "kernel/") that the
 * default guest wants, and all that they depend on, under
 * lib/modules/RELEASE in the archive, with modules.dep and modules.alias for
 * modprobe and /etc/modules.lodge for lodge-agent. A module that this kernel
 * does not have (built in, or dropped) is left out.
 */
int modules_pack(const char *tree, const char *release, struct cpio *cpio, struct error *err);

#endif
