/* What files are: attributes, targets of links, extended attributes. */
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/bytes.h"
#include "fs/private.h"

/* How long a guest may go without asking again: the host's changes are seen after this at most. */
enum { VALID_SECONDS = 1 };
enum { NOBODY = 65534 };

/* ---- Answers ---- */

/* Mounts below the directory would otherwise bring the same numbers for different files. */
uint64_t fs_inode_number(const struct fs *fs, uint64_t device, uint64_t inode) {
    if (device == fs->device)
        return inode;
    return inode ^ ((device * 0x9e3779b97f4a7c15u >> 49) | 1) << 48;
}

static uint32_t guest_device(const struct statx *status) {
    uint32_t major = status->stx_rdev_major, minor = status->stx_rdev_minor;
    return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

void fs_put_attributes(const struct fs *fs, const struct statx *status, struct fuse_attr *attr) {
    *attr = (struct fuse_attr){
        .ino = fs_inode_number(fs, fs_device_of(status), status->stx_ino),
        .size = status->stx_size,
        .blocks = status->stx_blocks,
        .atime = (uint64_t)status->stx_atime.tv_sec,
        .mtime = (uint64_t)status->stx_mtime.tv_sec,
        .ctime = (uint64_t)status->stx_ctime.tv_sec,
        .atimensec = status->stx_atime.tv_nsec,
        .mtimensec = status->stx_mtime.tv_nsec,
        .ctimensec = status->stx_ctime.tv_nsec,
        .mode = status->stx_mode,
        .nlink = status->stx_nlink,
        .uid = status->stx_uid == geteuid() ? 0 : NOBODY,
        .gid = status->stx_gid == getegid() ? 0 : NOBODY,
        .rdev = guest_device(status),
        .blksize = status->stx_blksize,
    };
}

void fs_put_entry(const struct fs *fs, const struct statx *status, uint64_t id,
                  struct fuse_entry_out *entry) {
    *entry = (struct fuse_entry_out){
        .nodeid = id, .entry_valid = VALID_SECONDS, .attr_valid = VALID_SECONDS};
    fs_put_attributes(fs, status, &entry->attr);
}

static int answer_attributes(struct fs_call *call, int fd) {
    struct fuse_attr_out *out = fs_give(call, sizeof *out);
    struct statx status;
    int result = out == NULL ? -EINVAL : fs_stat(fd, "", &status);
    if (result < 0)
        return result;
    out->attr_valid = VALID_SECONDS;
    fs_put_attributes(call->fs, &status, &out->attr);
    return 0;
}

int fs_getattr(struct fs_call *call) {
    struct fuse_getattr_in in;
    struct fs_handle *handle;
    struct fs_node *node;
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    /* A file that is open may have no name any longer. */
    if ((in.getattr_flags & FUSE_GETATTR_FH) &&
        fs_handle_get(call->fs, in.fh, false, &handle) == 0) {
        int answer = answer_attributes(call, handle->fd);
        fs_handle_put(call->fs, handle);
        return answer;
    }
    int result = fs_node_get(call->fs, call->header.nodeid, &node);
    if (result < 0)
        return result;
    result = answer_attributes(call, node->fd);
    fs_node_put(call->fs, node);
    return result;
}

/* ---- Changes ---- */

/* Sticky and set-group-id are meant for directories; the latter is inherited there. */
mode_t fs_mode_allowed(mode_t mode, bool directory) {
    return mode & (directory ? 0777 | S_ISVTX | S_ISGID : 0777 | S_ISVTX);
}

/* The owner as it is shown may be set; nothing else can be. */
static int set_owner(const struct fuse_setattr_in *in, int fd) {
    struct statx status;
    int result = fs_stat(fd, "", &status);
    if (result < 0)
        return result;
    uint32_t uid = status.stx_uid == geteuid() ? 0 : NOBODY;
    uint32_t gid = status.stx_gid == getegid() ? 0 : NOBODY;
    bool same = (!(in->valid & FATTR_UID) || in->uid == uid) &&
                (!(in->valid & FATTR_GID) || in->gid == gid);
    return same ? 0 : -EPERM;
}

static int set_size(struct fs_call *call, const struct fuse_setattr_in *in,
                    const struct fs_node *node) {
    struct fs_handle *handle;
    if (in->size > INT64_MAX)
        return -EFBIG;
    if ((in->valid & FATTR_FH) && fs_handle_get(call->fs, in->fh, false, &handle) == 0) {
        int answer = ftruncate(handle->fd, (off_t)in->size) < 0 ? -errno : 0;
        fs_handle_put(call->fs, handle);
        return answer;
    }
    if (!S_ISREG(node->kind))
        return S_ISDIR(node->kind) ? -EISDIR : -EINVAL;
    int fd = fs_reopen(call->fs, node->fd, O_WRONLY);
    if (fd < 0)
        return fd;
    int result = ftruncate(fd, (off_t)in->size) < 0 ? -errno : 0;
    close(fd);
    return result;
}

static struct timespec time_of(uint32_t valid, uint32_t set, uint32_t now, uint64_t seconds,
                               uint32_t nanoseconds) {
    if (!(valid & set))
        return (struct timespec){.tv_nsec = UTIME_OMIT};
    if (valid & now)
        return (struct timespec){.tv_nsec = UTIME_NOW};
    return (struct timespec){.tv_sec = (time_t)seconds, .tv_nsec = nanoseconds};
}

static int set_times(const struct fuse_setattr_in *in, const char *link) {
    /* The special values of tv_nsec are no nanoseconds. */
    if (in->atimensec > 999999999 || in->mtimensec > 999999999)
        return -EINVAL;
    const struct timespec times[] = {
        time_of(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
        time_of(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
    };
    return utimensat(AT_FDCWD, link, times, 0) < 0 ? -errno : 0;
}

/* Set-user-id and set-group-id end when contents or owner change. */
static int kill_privileges(const char *link, const struct fs_node *node) {
    struct stat status;
    if (!S_ISREG(node->kind) || stat(link, &status) < 0 ||
        (status.st_mode & (S_ISUID | S_ISGID)) == 0)
        return 0;
    return chmod(link, status.st_mode & 01777) < 0 ? -errno : 0;
}

static int set_attributes(struct fs_call *call, const struct fuse_setattr_in *in,
                          const struct fs_node *node) {
    char link[FS_LINK_MAX];
    int result = 0;
    fs_link_of(node->fd, link);
    if (in->valid & FATTR_MODE)
        result = chmod(link, fs_mode_allowed(in->mode, S_ISDIR(node->kind))) < 0 ? -errno : 0;
    if (result == 0 && (in->valid & (FATTR_UID | FATTR_GID)))
        result = set_owner(in, node->fd);
    if (result == 0 && (in->valid & FATTR_SIZE))
        result = set_size(call, in, node);
    if (result == 0 && (in->valid & FATTR_KILL_SUIDGID))
        result = kill_privileges(link, node);
    if (result == 0 && (in->valid & (FATTR_ATIME | FATTR_MTIME)))
        result = set_times(in, link);
    return result;
}

int fs_setattr(struct fs_call *call) {
    struct fuse_setattr_in in;
    struct fs_node *node;
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = fs_node_get(call->fs, call->header.nodeid, &node);
    if (result < 0)
        return result;
    result = set_attributes(call, &in, node);
    if (result == 0)
        result = answer_attributes(call, node->fd);
    fs_node_put(call->fs, node);
    return result;
}

/* ---- Links and the file system ---- */

int fs_readlink(struct fs_call *call) {
    struct fs_node *node;
    int result = fs_node_get(call->fs, call->header.nodeid, &node);
    if (result < 0)
        return result;
    size_t room = call->out_room < PATH_MAX ? call->out_room : PATH_MAX;
    ssize_t length = readlinkat(node->fd, "", (char *)call->out, room);
    fs_node_put(call->fs, node);
    if (length < 0)
        return errno == ENOENT ? -EINVAL : -errno; /* what it says of other files */
    call->out_length = (size_t)length;
    return 0;
}

int fs_statfs(struct fs_call *call) {
    struct fuse_statfs_out *out = fs_give(call, sizeof *out);
    struct fs_node *node;
    struct statfs status;
    int result = out == NULL ? -EINVAL : fs_node_get(call->fs, call->header.nodeid, &node);
    if (result < 0)
        return result;
    result = fstatfs(node->fd, &status) < 0 ? -errno : 0;
    fs_node_put(call->fs, node);
    if (result == 0)
        out->st = (struct fuse_kstatfs){
            .blocks = status.f_blocks,
            .bfree = status.f_bfree,
            .bavail = status.f_bavail,
            .files = status.f_files,
            .ffree = status.f_ffree,
            .bsize = (uint32_t)status.f_bsize,
            .namelen = FS_NAME_MAX,
            .frsize = (uint32_t)status.f_frsize,
        };
    return result;
}

/* ---- Extended attributes ---- */

static const char user_prefix[] = "user.";

static bool is_user(const char *name) {
    return strncmp(name, user_prefix, sizeof user_prefix - 1) == 0;
}

/* Others carry rights on the host, or labels that mean something else there. */
static int take_attribute(struct fs_call *call, const char **name) {
    int result = fs_take_text(call, XATTR_NAME_MAX, name);
    return result < 0 ? result : is_user(*name) ? 0 : -EOPNOTSUPP;
}

int fs_setxattr(struct fs_call *call) {
    struct {
        uint32_t size, flags; /* without FUSE_SETXATTR_EXT there is no more */
    } in;
    struct fs_node *node;
    const char *name;
    char link[FS_LINK_MAX];
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = take_attribute(call, &name);
    if (result < 0)
        return result;
    if (in.size != call->left || in.size > XATTR_SIZE_MAX)
        return -EINVAL;
    if ((result = fs_node_get(call->fs, call->header.nodeid, &node)) < 0)
        return result;
    fs_link_of(node->fd, link);
    result = setxattr(link, name, call->at, in.size, (int)in.flags) < 0 ? -errno : 0;
    fs_node_put(call->fs, node);
    return result;
}

int fs_removexattr(struct fs_call *call) {
    struct fs_node *node;
    const char *name;
    char link[FS_LINK_MAX];
    int result = take_attribute(call, &name);
    if (result < 0 || (result = fs_node_get(call->fs, call->header.nodeid, &node)) < 0)
        return result;
    fs_link_of(node->fd, link);
    result = removexattr(link, name) < 0 ? -errno : 0;
    fs_node_put(call->fs, node);
    return result;
}

/* The answer to GETXATTR and LISTXATTR: how long it is when asked with size 0, else itself. */
static int answer_bytes(struct fs_call *call, const void *bytes, ssize_t length, uint32_t size) {
    if (length < 0)
        return -errno;
    if (size == 0) {
        struct fuse_getxattr_out *out = fs_give(call, sizeof *out);
        if (out != NULL)
            out->size = (uint32_t)length;
        return out != NULL ? 0 : -EINVAL;
    }
    void *out = length <= size ? fs_give(call, (size_t)length) : NULL;
    if (out == NULL)
        return -ERANGE;
    memcpy(out, bytes, (size_t)length);
    return 0;
}

int fs_getxattr(struct fs_call *call) {
    struct fuse_getxattr_in in;
    struct fs_node *node;
    const char *name;
    char link[FS_LINK_MAX];
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = take_attribute(call, &name);
    if (result < 0 || (result = fs_node_get(call->fs, call->header.nodeid, &node)) < 0)
        return result;
    void *value = malloc(XATTR_SIZE_MAX);
    fs_link_of(node->fd, link);
    result = value == NULL
                 ? -ENOMEM
                 : answer_bytes(call, value, getxattr(link, name, value, XATTR_SIZE_MAX), in.size);
    free(value);
    fs_node_put(call->fs, node);
    return result;
}

/* Keeps the names that the guest may ask for. */
static ssize_t filter_names(char *names, ssize_t length) {
    ssize_t kept = 0;
    for (ssize_t at = 0, step; at < length; at += step) {
        step = (ssize_t)strlen(names + at) + 1;
        if (!is_user(names + at))
            continue;
        memmove(names + kept, names + at, (size_t)step);
        kept += step;
    }
    return length < 0 ? length : kept;
}

int fs_listxattr(struct fs_call *call) {
    struct fuse_getxattr_in in;
    struct fs_node *node;
    char link[FS_LINK_MAX];
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = fs_node_get(call->fs, call->header.nodeid, &node);
    if (result < 0)
        return result;
    char *names = calloc(1, XATTR_LIST_MAX + 1);
    fs_link_of(node->fd, link);
    result =
        names == NULL
            ? -ENOMEM
            : answer_bytes(call, names, filter_names(names, listxattr(link, names, XATTR_LIST_MAX)),
                           in.size);
    free(names);
    fs_node_put(call->fs, node);
    return result;
}
