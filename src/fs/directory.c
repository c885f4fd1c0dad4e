/* Directories that are read. */
#include <dirent.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "fs/private.h"

/* Bytes of the host's entries that are looked at together. */
enum { STEP = 8 << 10 };

struct reader {
    struct fs_call *call;
    struct fs_handle *handle;
    bool plus; /* entries with attributes, each a lookup */
    size_t room;
};

static bool is_dot(const char *name) {
    return name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0));
}

/* One entry's lookup, for READDIRPLUS. Where there is none, the entry says so by its zeroes. */
static void look_up(struct reader *reader, const char *name, struct fuse_entry_out *entry) {
    struct fs *fs = reader->call->fs;
    struct statx status;
    uint64_t id;
    int fd;
    if (is_dot(name) || fs_node_look(fs, reader->handle->node, name, &fd, &status) < 0)
        return;
    if (fs_node_enter(fs, reader->handle->node, name, fd, &status, &id) == 0)
        fs_put_entry(fs, &status, id, entry);
}

/* False: no room for it. */
static bool put(struct reader *reader, const struct dirent64 *found) {
    struct fs_call *call = reader->call;
    size_t length = strlen(found->d_name);
    size_t before = reader->plus ? sizeof(struct fuse_entry_out) : 0;
    size_t size = before + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + length);
    uint8_t *at = reader->room - call->out_length < size ? NULL : fs_give(call, size);
    if (at == NULL)
        return false;
    if (reader->plus)
        look_up(reader, found->d_name, (struct fuse_entry_out *)at);
    const struct fs_node *node = reader->handle->node;
    /* What is above the directory that is shared is nobody's business. */
    bool above = node->id == FUSE_ROOT_ID && strcmp(found->d_name, "..") == 0;
    uint64_t inode = above ? node->key.inode : found->d_ino;
    *(struct fuse_dirent *)(at + before) = (struct fuse_dirent){
        .ino = fs_inode_number(call->fs, node->key.device, inode),
        .off = (uint64_t)found->d_off,
        .namelen = (uint32_t)length,
        .type = found->d_type,
    };
    memcpy(at + before + FUSE_NAME_OFFSET, found->d_name, length);
    return true;
}

/* Entries from where the handle stands until there are no more or there is no room. */
static int read_entries(struct reader *reader) {
    _Alignas(struct dirent64) char bytes[STEP];
    for (;;) {
        ssize_t length = getdents64(reader->handle->fd, bytes, sizeof bytes);
        if (length <= 0)
            return length < 0 ? -errno : 0;
        for (ssize_t at = 0; at < length;) {
            const struct dirent64 *found = (const struct dirent64 *)(bytes + at);
            if (!put(reader, found))
                return reader->call->out_length > 0 ? 0 : -EINVAL;
            at += found->d_reclen;
        }
    }
}

/* Takes the handle for one reader: its place in the directory is the descriptor's. */
static bool take_turn(struct fs *fs, struct fs_handle *handle) {
    lock_take(&fs->lock);
    bool mine = !handle->reading;
    handle->reading = true;
    lock_release(&fs->lock);
    return mine;
}

static int read_directory(struct fs_call *call, bool plus) {
    struct reader reader = {.call = call, .plus = plus};
    struct fuse_read_in in;
    if (!fs_take(call, &in, sizeof in) || in.offset > INT64_MAX)
        return -EINVAL;
    int result = fs_handle_get(call->fs, in.fh, true, &reader.handle);
    if (result < 0)
        return result;
    reader.room = in.size < call->out_room ? in.size : call->out_room;
    if (take_turn(call->fs, reader.handle)) {
        if (lseek(reader.handle->fd, (off_t)in.offset, SEEK_SET) < 0)
            result = -errno;
        else
            result = read_entries(&reader);
        /* What was told is told; the error comes again with the next call. */
        if (call->out_length > 0)
            result = 0;
        lock_take(&call->fs->lock);
        reader.handle->reading = false;
        lock_release(&call->fs->lock);
    } else {
        result = -EBUSY;
    }
    fs_handle_put(call->fs, reader.handle);
    return result;
}

int fs_readdir(struct fs_call *call) {
    return read_directory(call, false);
}

int fs_readdirplus(struct fs_call *call) {
    return read_directory(call, true);
}
