/*
 * A shared directory: a server of the FUSE protocol, as the kernel's header
 * <linux/fuse.h> and Linux's virtiofs driver speak it (7.31 and later), over
 * one directory of the host.
 *
 * Confinement. Who asks is a guest, and is not trusted. The server never
 * resolves a path: it goes one name at a time, from a directory's descriptor,
 * without following symbolic links, and refuses names with '/' in them, "."
 * and "..". What the guest holds are numbers of nodes that it was led to; each
 * is an O_PATH descriptor or the name under which it was last seen below its
 * parent. So nothing that a guest sends, and no rename or link that a process
 * of the host makes meanwhile, leads out of the directory. Symbolic links are
 * text, which the guest follows by itself. Only regular files and directories
 * are ever opened, after a look at what the descriptor is. A /proc mounted in
 * the directory cannot be entered.
 *
 * Owners. No privilege is needed and none is given: everything is done as the
 * monitor's user. What belongs to that user and group belongs to root (0) in
 * the guest, everything else to nobody (65534); what the guest makes belongs
 * to the monitor's user, whoever made it in the guest. Giving a file to
 * another owner is -EPERM. Set-user-id and set-group-id bits of files are
 * never set.
 *
 * What it does not have: locks (Linux then keeps its processes' locks itself),
 * devices (-EPERM), extended attributes other than user.* (-EOPNOTSUPP),
 * DAX. A request that breaks the protocol gets an error as its answer.
 *
 * Descriptors are bounded: nodes' are closed when there are too many and
 * opened again when needed, files' are refused (-ENFILE). A node that is no
 * longer where it was is -ESTALE.
 */
#ifndef LODGE_FS_FS_H
#define LODGE_FS_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"

/* Bytes of a request's header and arguments, and of an answer other than a READ's. */
enum { FS_IN_MAX = (64 << 10) + 4096, FS_OUT_MAX = (64 << 10) + 4096 };
/* Bytes of data in one READ or WRITE that are asked for; more is answered as well. */
enum { FS_DATA_MAX = 1 << 20 };

struct fs;

/*
 * Opens a directory to be shared. `volumes`: of this process, which divide its
 * descriptors; the soft limit is raised to the hard one. -ENOENT, -ENOTDIR,
 * -EACCES; -EINVAL: the directory is one of /proc.
 */
int fs_open(const char *path, bool readonly, unsigned volumes, struct fs **fs, struct error *err);
/* As fs_open would, but leaves nothing open. */
int fs_check(const char *path, struct error *err);
/* Nobody calls any more. NULL is fine. */
void fs_close(struct fs *fs);

/* Forgets what the guest was told: it has been reset. Any thread. */
void fs_reset(struct fs *fs);

struct fs_message {
    /* The request: a copy of its header and arguments, aligned as a struct. */
    const uint8_t *in;
    size_t in_length;
    /* FUSE_WRITE's data, or the room for FUSE_READ's: guest memory. Changed by the call. */
    struct iovec *data;
    unsigned data_count;
    size_t data_length;
    /* The answer: room for at least its header. */
    uint8_t *out;
    size_t out_room;

    size_t out_length;  /* set: bytes of the answer in out; 0: the request has none */
    size_t data_filled; /* set: bytes of a READ in data, which follow those in out */
};

/* Serves one request. May wait for the host's file system. Any thread, several at a time. */
void fs_serve(struct fs *fs, struct fs_message *message);

#endif
