/*
 * What a machine writes to instead of an image or a disk that is to stay as it is: a disk of
 * lodge's format on top of it, for one run or in the directory of a VM that lasts; and a disk for
 * cloud-init.
 *
 * Files that only this process is to see have no name: they are opened as /proc/self/fd/N, and end
 * with the process however it ends. Any thread.
 */
#ifndef LODGE_IMAGE_OVERLAY_H
#define LODGE_IMAGE_OVERLAY_H

#include "block/open.h"
#include "image/store.h"

enum { NAMELESS_PATH_MAX = 32 };

/* A file without a name. */
struct nameless {
    int fd;
    char path[NAMELESS_PATH_MAX];
};
void nameless_close(struct nameless *file);

/* An empty disk on top of another, beside the images, for one run. Its options are as for
 * block_open, whose errors these are, too. */
int overlay_temporary(const char *base, const struct block_options *options, struct nameless *file,
                      struct error *err);

/* The same under a name that is new, and to stay: on base as it was in a snapshot. */
int overlay_create(const char *base, const char *snapshot, const char *path, struct error *err);

/* The links that overlay_keep has put into one VM's directory in another's, too; there may be none.
 */
int overlay_share(const char *from, const char *directory, struct error *err);
/* In a VM's directory: `image` with links to the image's files (copies, if it lies on another file
 * system), and disk.lodge on top of them. */
int overlay_keep(const struct disk_image *image, const char *directory, struct error *err);
/* Only the links, and only the disk: of that size, on those links' disk or (own) on nothing. */
int overlay_link(const struct disk_image *image, const char *directory, struct error *err);
int overlay_empty(const char *path, uint64_t size, bool own, struct error *err);
/* What overlay_keep has put there; disk gets disk.lodge's path. */
int overlay_find(const char *directory, struct disk_image *image, char disk[PATH_MAX],
                 struct error *err);

/*
 * A disk as cloud-init's NoCloud data source wants it: ISO 9660, labelled CIDATA, with the file as
 * user-data, and meta-data that names the host and the instance. The same file under the same
 * name is the same instance, for which cloud-init does its work once.
 * -EINVAL: no user-data (empty, of no kind that cloud-init knows, YAML with a mistake; the line is
 * told); or an error of reading it.
 */
int seed_create(const char *file, const char *name, struct nameless *seed, struct error *err);

/*
 * A VM that has moved keeps the disk that it came with under this name in its directory, and its
 * clones have links to it: the file that it was made from is another host's.
 */
extern const char seed_file[];
bool seed_find(const char *directory, char path[PATH_MAX]); /* its path; false: there is none */
int seed_share(const char *from, const char *directory, struct error *err);

#endif
