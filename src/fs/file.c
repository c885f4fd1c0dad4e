/* Files that are open. */
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include "fs/private.h"

/* What of a guest's flags reaches the host. O_APPEND does with each write, O_DIRECT is the guest's.
 */
enum { OPEN_FLAGS = O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC };
/* Bytes that one COPY_FILE_RANGE copies at most: the guest asks again for the rest. */
enum { COPY_MAX = 64 << 20 };

static void drop_set_ids(int fd) {
    struct stat status;
    if (fstat(fd, &status) == 0 && (status.st_mode & (S_ISUID | S_ISGID)) != 0)
        fchmod(fd, status.st_mode & 01777);
}

static int check_flags(const struct fs *fs, uint32_t flags) {
    if ((flags & O_ACCMODE) == O_ACCMODE)
        return -EINVAL;
    if (fs->readonly && ((flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC)))
        return -EROFS;
    return 0;
}

/* Only what cannot block or have effects by being opened. */
static int open_regular(struct fs *fs, mode_t kind, int path_fd, uint32_t flags,
                        uint32_t open_flags) {
    if (!S_ISREG(kind))
        return S_ISDIR(kind) ? -EISDIR : S_ISLNK(kind) ? -ELOOP : -ENXIO;
    int fd = fs_reopen(fs, path_fd, (int)(flags & OPEN_FLAGS));
    if (fd >= 0 && (flags & O_TRUNC) && (open_flags & FUSE_OPEN_KILL_SUIDGID))
        drop_set_ids(fd);
    return fd;
}

static int answer_open(struct fs_call *call, struct fs_node *node, int fd, bool directory) {
    struct fuse_open_out *out = fs_give(call, sizeof *out);
    if (out == NULL) {
        close(fd);
        return -EINVAL;
    }
    return fs_handle_add(call->fs, node, fd, directory, &out->fh);
}

int fs_open_file(struct fs_call *call) {
    struct fuse_open_in in;
    struct fs_node *node;
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = check_flags(call->fs, in.flags);
    if (result < 0 || (result = fs_node_get(call->fs, call->header.nodeid, &node)) < 0)
        return result;
    result = open_regular(call->fs, node->kind, node->fd, in.flags, in.open_flags);
    if (result >= 0)
        result = answer_open(call, node, result, false);
    fs_node_put(call->fs, node);
    return result;
}

int fs_opendir(struct fs_call *call) {
    struct fs_node *node;
    int result = fs_node_get(call->fs, call->header.nodeid, &node);
    if (result < 0)
        return result;
    result = S_ISDIR(node->kind) ? fs_reopen(call->fs, node->fd, O_RDONLY | O_DIRECTORY) : -ENOTDIR;
    if (result >= 0)
        result = answer_open(call, node, result, true);
    fs_node_put(call->fs, node);
    return result;
}

/* ---- Creating ---- */

/* A new file, its descriptor; -EEXIST. */
static int make_new(struct fs *fs, const struct fs_node *parent, const char *name,
                    const struct fuse_create_in *in) {
    mode_t mode = fs_mode_allowed(in->mode, false);
    int flags = (int)(in->flags & OPEN_FLAGS) | O_CREAT | O_EXCL | O_NOFOLLOW | O_NONBLOCK |
                O_NOCTTY | O_CLOEXEC;
    int fd;
    do
        fd = openat(parent->fd, name, flags, mode);
    while (fd < 0 && fs_make_room(fs, errno));
    if (fd < 0)
        return errno == EMFILE ? -ENFILE : -errno;
    /* The guest's umask is in the mode; the monitor's, if it takes more away, is made good. */
    if ((mode & fs->umask) != 0)
        fchmod(fd, mode);
    return fd;
}

/* The file's descriptors, for data and O_PATH: new, or what somebody else has just made. */
static int create(struct fs *fs, const struct fs_node *parent, const char *name,
                  const struct fuse_create_in *in, int *path_fd, struct statx *status) {
    int result, fd = make_new(fs, parent, name, in);
    if (fd >= 0) {
        *path_fd = fs_reopen(fs, fd, O_PATH);
        result = *path_fd < 0 ? *path_fd : fs_stat(*path_fd, "", status);
    } else {
        if (fd != -EEXIST || (in->flags & O_EXCL))
            return fd;
        if ((result = fs_node_look(fs, parent, name, path_fd, status)) < 0)
            return result;
        fd = result = open_regular(fs, status->stx_mode, *path_fd, in->flags, in->open_flags);
    }
    if (result >= 0)
        return fd;
    if (fd >= 0)
        close(fd);
    if (*path_fd >= 0)
        close(*path_fd);
    return result;
}

static int create_in(struct fs_call *call, const struct fs_node *parent, const char *name,
                     const struct fuse_create_in *in) {
    struct fuse_entry_out *entry = fs_give(call, sizeof *entry);
    struct fs_node *node;
    struct statx status;
    uint64_t id;
    int path_fd = -1;
    if (entry == NULL)
        return -EINVAL;
    int fd = create(call->fs, parent, name, in, &path_fd, &status);
    if (fd < 0)
        return fd;
    int result = fs_node_enter(call->fs, parent, name, path_fd, &status, &id);
    if (result < 0) {
        close(fd);
        return result;
    }
    fs_put_entry(call->fs, &status, id, entry);
    if ((result = fs_node_get(call->fs, id, &node)) == 0) {
        result = answer_open(call, node, fd, false);
        fs_node_put(call->fs, node);
    } else {
        close(fd);
    }
    if (result < 0)
        fs_node_forget(call->fs, id, 1);
    return result;
}

int fs_create(struct fs_call *call) {
    struct fuse_create_in in;
    struct fs_node *parent;
    const char *name;
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = fs_take_name(call, &name);
    if (result < 0 || (result = check_flags(call->fs, in.flags)) < 0 ||
        (result = fs_node_get(call->fs, call->header.nodeid, &parent)) < 0)
        return result;
    result = create_in(call, parent, name, &in);
    fs_node_put(call->fs, parent);
    return result;
}

/* ---- Data: straight between the file and the guest's memory ---- */

/* Cuts the vectors to `length` bytes in place. */
static void cut(struct fs_message *message, size_t length) {
    size_t left = length;
    unsigned n = 0;
    for (; n < message->data_count && left > 0; n++) {
        if (message->data[n].iov_len > left)
            message->data[n].iov_len = left;
        left -= message->data[n].iov_len;
    }
    message->data_count = n;
    message->data_length = length - left;
}

int fs_read(struct fs_call *call) {
    struct fs_message *message = call->message;
    struct fuse_read_in in;
    struct fs_handle *handle;
    if (!fs_take(call, &in, sizeof in) || in.offset > INT64_MAX)
        return -EINVAL;
    int result = fs_handle_get(call->fs, in.fh, false, &handle);
    if (result < 0)
        return result;
    cut(message, in.size);
    ssize_t length = preadv(handle->fd, message->data, (int)message->data_count, (off_t)in.offset);
    if (length < 0)
        result = -errno;
    else
        message->data_filled = (size_t)length;
    fs_handle_put(call->fs, handle);
    return result;
}

/* The flags say whether the writer appends now; a page that the guest writes back never does. */
static ssize_t write_data(const struct fs_handle *handle, const struct fs_message *message,
                          const struct fuse_write_in *in) {
    bool append = (in->flags & O_APPEND) && !(in->write_flags & FUSE_WRITE_CACHE);
    return pwritev2(handle->fd, message->data, (int)message->data_count, (off_t)in->offset,
                    append ? RWF_APPEND : 0);
}

int fs_write(struct fs_call *call) {
    struct fuse_write_out *out = fs_give(call, sizeof *out);
    struct fuse_write_in in;
    struct fs_handle *handle;
    if (!fs_take(call, &in, sizeof in) || out == NULL || in.offset > INT64_MAX ||
        in.size > call->message->data_length)
        return -EINVAL;
    int result = fs_handle_get(call->fs, in.fh, false, &handle);
    if (result < 0)
        return result;
    cut(call->message, in.size);
    ssize_t length = write_data(handle, call->message, &in);
    if (length < 0)
        result = -errno;
    else
        out->size = (uint32_t)length;
    if (length > 0 && (in.write_flags & FUSE_WRITE_KILL_SUIDGID))
        drop_set_ids(handle->fd);
    fs_handle_put(call->fs, handle);
    return result;
}

/* ---- The rest ---- */

/* A close() in the guest: errors that the host's file system kept for then. */
int fs_flush(struct fs_call *call) {
    struct fuse_flush_in in;
    struct fs_handle *handle;
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = fs_handle_get(call->fs, in.fh, false, &handle);
    if (result < 0)
        return result;
    int fd = fcntl(handle->fd, F_DUPFD_CLOEXEC, 0);
    if (fd >= 0 && close(fd) < 0)
        result = -errno;
    fs_handle_put(call->fs, handle);
    return result;
}

static int release(struct fs_call *call, bool directory) {
    struct fuse_release_in in;
    return fs_take(call, &in, sizeof in) ? fs_handle_release(call->fs, in.fh, directory) : -EINVAL;
}

int fs_release(struct fs_call *call) {
    return release(call, false);
}

int fs_releasedir(struct fs_call *call) {
    return release(call, true);
}

static int synchronise(struct fs_call *call, bool directory) {
    struct fuse_fsync_in in;
    struct fs_handle *handle;
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = fs_handle_get(call->fs, in.fh, directory, &handle);
    if (result < 0)
        return result;
    if ((in.fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync : fsync)(handle->fd) < 0)
        result = -errno;
    fs_handle_put(call->fs, handle);
    return result;
}

int fs_fsync(struct fs_call *call) {
    return synchronise(call, false);
}

int fs_fsyncdir(struct fs_call *call) {
    return synchronise(call, true);
}

int fs_fallocate(struct fs_call *call) {
    const uint32_t known = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
    struct fuse_fallocate_in in;
    struct fs_handle *handle;
    if (!fs_take(call, &in, sizeof in) || in.offset > INT64_MAX || in.length > INT64_MAX)
        return -EINVAL;
    if ((in.mode & ~known) != 0)
        return -EOPNOTSUPP;
    int result = fs_handle_get(call->fs, in.fh, false, &handle);
    if (result < 0)
        return result;
    if (fallocate(handle->fd, (int)in.mode, (off_t)in.offset, (off_t)in.length) < 0)
        result = -errno;
    fs_handle_put(call->fs, handle);
    return result;
}

int fs_lseek(struct fs_call *call) {
    struct fuse_lseek_out *out = fs_give(call, sizeof *out);
    struct fuse_lseek_in in;
    struct fs_handle *handle;
    if (!fs_take(call, &in, sizeof in) || out == NULL || in.offset > INT64_MAX ||
        (in.whence != SEEK_DATA && in.whence != SEEK_HOLE))
        return -EINVAL;
    int result = fs_handle_get(call->fs, in.fh, false, &handle);
    if (result < 0)
        return result;
    off_t offset = lseek(handle->fd, (off_t)in.offset, (int)in.whence);
    if (offset < 0)
        result = -errno;
    else
        out->offset = (uint64_t)offset;
    fs_handle_put(call->fs, handle);
    return result;
}

int fs_copy_file_range(struct fs_call *call) {
    struct fuse_write_out *out = fs_give(call, sizeof *out);
    struct fuse_copy_file_range_in in;
    struct fs_handle *from, *to;
    if (!fs_take(call, &in, sizeof in) || out == NULL || in.off_in > INT64_MAX ||
        in.off_out > INT64_MAX || in.flags != 0)
        return -EINVAL;
    int result = fs_handle_get(call->fs, in.fh_in, false, &from);
    if (result < 0)
        return result;
    if ((result = fs_handle_get(call->fs, in.fh_out, false, &to)) == 0) {
        off_t in_offset = (off_t)in.off_in, out_offset = (off_t)in.off_out;
        ssize_t length = copy_file_range(from->fd, &in_offset, to->fd, &out_offset,
                                         in.len < COPY_MAX ? in.len : COPY_MAX, 0);
        if (length < 0)
            result = -errno;
        else
            out->size = (uint32_t)length;
        fs_handle_put(call->fs, to);
    }
    fs_handle_put(call->fs, from);
    return result;
}
