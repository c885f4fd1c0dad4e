/* The disks that a run has of an image and of cloud-init's user-data, beside those it was given,
 * and on top of these. */
#ifndef LODGE_CLI_RUN_IMAGE_H
#define LODGE_CLI_RUN_IMAGE_H

#include "cli/run.h"
#include "image/overlay.h"

struct run_image {
    struct disk_image image;
    char disk[PATH_MAX];                     /* of a VM that lasts, on top of the image's */
    struct nameless overlay, seed;           /* as that, for one run; cloud-init's */
    char kept_seed[PATH_MAX];                /* the same of a VM that has moved */
    struct nameless tops[MACHINE_DISKS_MAX]; /* of disks that are temporary */
};

/* --image: its disk becomes the config's first, and without firmware its kernel the config's. Goes
 * on waiting for a build, if there has to be one. */
int run_image_open(struct run_image *own, struct run_config *config, struct error *err);
/* The directory that the VM lasts in is another now; paths that others have change in place. */
void run_image_follow(struct run_image *own, const char *directory);
/* --disk FILE,temporary: a disk of the run's own takes what is written. */
int run_image_temporary(struct run_image *own, struct run_config *config, struct error *err);
/* The disks of a temporary clone: on top of the snapshots that its source's disks have. */
int run_image_clone(struct run_image *own, struct run_config *config, struct error *err);
/* --cloud-init: a disk behind all others, so that these have the names they have without it; the
 * one that it came with, if it has moved. */
int run_image_seed(struct run_image *own, struct run_config *config, struct error *err);
/* After the machine. */
void run_image_close(struct run_image *own);

#endif
