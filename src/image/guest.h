/* The parts of the default guest's assembly. See image.h for the rules. */
#ifndef LODGE_IMAGE_GUEST_H
#define LODGE_IMAGE_GUEST_H

#include <limits.h>

#include "base/error.h"

/* Where lodge's own program is, and the agent that belongs to it. */
int program_directory(char path[PATH_MAX], struct error *err);
int agent_path(char path[PATH_MAX], struct error *err);

/* The packages, as files. */
struct guest_packages {
    char kernel[PATH_MAX], busybox[PATH_MAX];
};

/* Finds the packages in directory; -ENOENT when one is missing. */
int packages_find(const char *directory, struct guest_packages *packages, struct error *err);
/* Downloads their newest versions into directory (of packages only), in place of older ones. */
int packages_fetch(const char *cache, const char *directory, struct error *err);

/*
 * Unpacks the packages in work and writes vmlinuz and initrd.cpio into
 * directory, both there already.
 */
int guest_assemble(const struct guest_packages *packages, const char *agent, const char *work,
                   const char *directory, struct error *err);

#endif
