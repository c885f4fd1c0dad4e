/*
 * Opening disks of any format, with everything they stand on.
 *
 * A format is what the caller says; else what the name says: *.lodge, *.qcow2,
 * nbd:// and nbd+unix:// addresses; else raw. Contents never decide: a guest
 * writes them. A raw file that looks like another format is refused until the
 * caller says which it is. What an image names as its backing has its format
 * recorded beside it.
 */
#ifndef LODGE_BLOCK_OPEN_H
#define LODGE_BLOCK_OPEN_H

#include "block/block.h"

enum block_format {
    BLOCK_FORMAT_AUTO,
    BLOCK_FORMAT_RAW,
    BLOCK_FORMAT_LODGE,
    BLOCK_FORMAT_QCOW2, /* read only */
    BLOCK_FORMAT_NBD,   /* the path is an NBD URI */
};

enum { BLOCK_CHAIN_MAX = 16 }; /* images that stand on one another */

struct block_options {
    enum block_format format;
    bool readonly;
    bool direct;          /* cache=none: past the host's page cache */
    const char *snapshot; /* of a lodge disk; readonly; NULL: the disk itself */
    bool no_backing;      /* what the image does not have itself reads as zeroes: for tools */
};

/* NULL-terminated names of enum block_format, "auto" first. */
extern const char *const block_formats[];

/*
 * One word of "FILE,word,word": readonly, format=F, cache=writeback|none, snapshot=NAME. The text
 * stays the caller's and must outlive the options. -ENOENT: no such word; -EINVAL: its value.
 */
int block_option_parse(struct block_options *options, const char *word, struct error *err);

/*
 * -ENOENT, -EACCES, -EBUSY (in use), -EINVAL (no such image, damaged, unclear format), -ENOTSUP,
 * -ELOOP (too many images on one another), …
 */
int block_open(const char *path, const struct block_options *options, struct block **block,
               struct error *err);

/* The format that block_open would take; BLOCK_FORMAT_AUTO never. -EINVAL: unclear. */
int block_find_format(const char *path, enum block_format said, enum block_format *format,
                      struct error *err);

/* A path that stands in `image`: seen from the image's directory. To be freed; NULL: no memory. */
char *block_relative_path(const char *image, const char *path);

#endif
