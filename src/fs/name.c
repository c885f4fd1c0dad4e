/* Names in directories: found, made, removed, moved. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "fs/private.h"

/* Tells the guest of what is at `name` below a node in use. */
static int answer_entry(struct fs_call *call, const struct fs_node *parent, const char *name) {
    struct fuse_entry_out *out = fs_give(call, sizeof *out);
    struct statx status;
    uint64_t id;
    int fd;
    if (out == NULL)
        return -EINVAL;
    int result = fs_node_look(call->fs, parent, name, &fd, &status);
    if (result == 0)
        result = fs_node_enter(call->fs, parent, name, fd, &status, &id);
    if (result == 0)
        fs_put_entry(call->fs, &status, id, out);
    return result;
}

/* The request's directory, to be put back, and the next name in the request. */
static int take_place(struct fs_call *call, struct fs_node **parent, const char **name) {
    int result = fs_take_name(call, name);
    return result < 0 ? result : fs_node_get(call->fs, call->header.nodeid, parent);
}

int fs_lookup(struct fs_call *call) {
    struct fs_node *parent;
    const char *name;
    int result = take_place(call, &parent, &name);
    if (result < 0)
        return result;
    result = answer_entry(call, parent, name);
    fs_node_put(call->fs, parent);
    return result;
}

/* ---- Making ---- */

int fs_symlink(struct fs_call *call) {
    struct fs_node *parent;
    const char *name, *target;
    int result = fs_take_name(call, &name);
    if (result < 0 || (result = fs_take_text(call, PATH_MAX - 1, &target)) < 0 ||
        (result = fs_node_get(call->fs, call->header.nodeid, &parent)) < 0)
        return result;
    result = symlinkat(target, parent->fd, name) < 0 ? -errno : answer_entry(call, parent, name);
    fs_node_put(call->fs, parent);
    return result;
}

/* Sockets and FIFOs are the guest's own: on the host nobody opens them. */
static int make_file(const struct fs_call *call, const struct fs_node *parent, const char *name,
                     mode_t mode) {
    mode_t allowed = fs_mode_allowed(mode, false);
    if (S_ISFIFO(mode) || S_ISSOCK(mode))
        return mknodat(parent->fd, name, (mode & S_IFMT) | allowed, 0) < 0 ? -errno : 0;
    if (!S_ISREG(mode))
        return -EPERM;
    int fd =
        openat(parent->fd, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, allowed);
    if (fd < 0)
        return -errno;
    int result = (allowed & call->fs->umask) != 0 && fchmod(fd, allowed) < 0 ? -errno : 0;
    close(fd);
    return result;
}

int fs_mknod(struct fs_call *call) {
    struct fuse_mknod_in in;
    struct fs_node *parent;
    const char *name;
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = take_place(call, &parent, &name);
    if (result < 0)
        return result;
    result = make_file(call, parent, name, in.mode);
    if (result == 0)
        result = answer_entry(call, parent, name);
    fs_node_put(call->fs, parent);
    return result;
}

/* The guest's umask is in the mode; the monitor's, if it takes more away, is made good. */
static void restore_mode(const struct fs_call *call, const struct fs_node *parent, const char *name,
                         mode_t mode) {
    struct stat status;
    if ((mode & call->fs->umask) == 0)
        return;
    int fd = openat(parent->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    if (fstat(fd, &status) == 0 && status.st_uid == geteuid())
        fchmod(fd, (status.st_mode & S_ISGID) | mode);
    close(fd);
}

int fs_mkdir(struct fs_call *call) {
    struct fuse_mkdir_in in;
    struct fs_node *parent;
    const char *name;
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = take_place(call, &parent, &name);
    if (result < 0)
        return result;
    mode_t mode = fs_mode_allowed(in.mode, true);
    if (mkdirat(parent->fd, name, mode) < 0)
        result = -errno;
    else
        restore_mode(call, parent, name, mode);
    if (result == 0)
        result = answer_entry(call, parent, name);
    fs_node_put(call->fs, parent);
    return result;
}

int fs_make_link(struct fs_call *call) {
    struct fuse_link_in in;
    struct fs_node *parent, *node;
    const char *name;
    char link[FS_LINK_MAX];
    if (!fs_take(call, &in, sizeof in))
        return -EINVAL;
    int result = take_place(call, &parent, &name);
    if (result < 0)
        return result;
    if ((result = fs_node_get(call->fs, in.oldnodeid, &node)) == 0) {
        fs_link_of(node->fd, link);
        if (linkat(AT_FDCWD, link, parent->fd, name, AT_SYMLINK_FOLLOW) < 0)
            result = -errno;
        else
            result = answer_entry(call, parent, name);
        fs_node_put(call->fs, node);
    }
    fs_node_put(call->fs, parent);
    return result;
}

/* ---- Removing ---- */

static int remove_name(struct fs_call *call, int flags) {
    struct fs_node *parent;
    const char *name;
    int result = take_place(call, &parent, &name);
    if (result < 0)
        return result;
    result = unlinkat(parent->fd, name, flags) < 0 ? -errno : 0;
    fs_node_put(call->fs, parent);
    return result;
}

int fs_unlink(struct fs_call *call) {
    return remove_name(call, 0);
}

int fs_rmdir(struct fs_call *call) {
    return remove_name(call, AT_REMOVEDIR);
}

/* ---- Moving ---- */

static int move(struct fs_call *call, uint64_t to_id, unsigned flags) {
    struct fs *fs = call->fs;
    struct fs_node *from, *to;
    const char *old_name, *new_name;
    int result = fs_take_name(call, &old_name);
    if (result < 0 || (result = fs_take_name(call, &new_name)) < 0 ||
        (result = fs_node_get(fs, call->header.nodeid, &from)) < 0)
        return result;
    if ((result = fs_node_get(fs, to_id, &to)) == 0) {
        result = renameat2(from->fd, old_name, to->fd, new_name, flags) < 0 ? -errno : 0;
        if (result == 0)
            fs_node_moved(fs, to, new_name);
        if (result == 0 && (flags & RENAME_EXCHANGE))
            fs_node_moved(fs, from, old_name);
        fs_node_put(fs, to);
    }
    fs_node_put(fs, from);
    return result;
}

int fs_rename(struct fs_call *call) {
    struct fuse_rename_in in;
    return fs_take(call, &in, sizeof in) ? move(call, in.newdir, 0) : -EINVAL;
}

int fs_rename2(struct fs_call *call) {
    struct fuse_rename2_in in;
    if (!fs_take(call, &in, sizeof in) || (in.flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0)
        return -EINVAL;
    return move(call, in.newdir, in.flags);
}
