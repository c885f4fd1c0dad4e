#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include "base/bytes.h"
#include "fs/private.h"

/* The oldest protocol that has all structures as they are used here; virtiofs began with it. */
enum { MINOR_MIN = 31, MINOR_MAX = 38 };
/* Descriptors that are left to the rest of the process, and shares that make some sense. */
enum { FDS_RESERVED = 256, FDS_MIN = 32, FDS_MAX = 1 << 16 };

/* ---- Arguments and answers ---- */

bool fs_take(struct fs_call *call, void *to, size_t size) {
    if (call->left < size)
        return false;
    memcpy(to, call->at, size);
    call->at += size;
    call->left -= size;
    return true;
}

int fs_take_text(struct fs_call *call, size_t max, const char **text) {
    const uint8_t *end = memchr(call->at, 0, call->left);
    if (end == NULL)
        return -EINVAL;
    size_t length = (size_t)(end - call->at);
    *text = (const char *)call->at;
    call->at += length + 1;
    call->left -= length + 1;
    return length <= max ? 0 : -ENAMETOOLONG;
}

int fs_take_name(struct fs_call *call, const char **name) {
    int result = fs_take_text(call, FS_NAME_MAX, name);
    if (result < 0)
        return result;
    if ((*name)[0] == 0 || strchr(*name, '/') != NULL || strcmp(*name, ".") == 0 ||
        strcmp(*name, "..") == 0)
        return -EINVAL;
    return 0;
}

void *fs_give(struct fs_call *call, size_t size) {
    if (call->out_room - call->out_length < size)
        return NULL;
    void *at = call->out + call->out_length;
    call->out_length += size;
    return memset(at, 0, size);
}

/* ---- The session ---- */

static void forget_all(struct fs *fs) {
    fs_handles_reset(fs);
    fs_nodes_reset(fs);
}

static void set_started(struct fs *fs, bool started) {
    lock_take(&fs->lock);
    fs->started = started;
    lock_release(&fs->lock);
}

static bool is_started(struct fs *fs) {
    lock_take(&fs->lock);
    bool started = fs->started;
    lock_release(&fs->lock);
    return started;
}

/*
 * What is asked for is chosen so that both sides may write: no write-back
 * cache (what the guest's write() has written is in the host's file), data
 * cached by the guest is dropped when the file's times have changed.
 */
static int fs_init(struct fs_call *call) {
    const uint32_t wanted = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES |
                            FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO |
                            FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES |
                            FUSE_HANDLE_KILLPRIV_V2;
    struct {
        uint32_t major, minor, max_readahead, flags;
    } in;
    struct fuse_init_out *out = fs_give(call, sizeof *out);
    if (!fs_take(call, &in, sizeof in) || out == NULL)
        return -EINVAL;
    out->major = FUSE_KERNEL_VERSION;
    out->minor = in.minor < MINOR_MAX ? in.minor : MINOR_MAX;
    /* A newer driver asks again, in our version. */
    if (in.major > FUSE_KERNEL_VERSION)
        return 0;
    if (in.major < FUSE_KERNEL_VERSION || in.minor < MINOR_MIN)
        return -EPROTO;
    forget_all(call->fs);
    out->max_readahead = in.max_readahead;
    out->flags = in.flags & wanted;
    out->max_background = 64;
    out->congestion_threshold = 48;
    out->max_write = FS_DATA_MAX;
    out->time_gran = 1;
    out->max_pages = FS_DATA_MAX / 4096;
    set_started(call->fs, true);
    return 0;
}

static int fs_destroy(struct fs_call *call) {
    forget_all(call->fs);
    set_started(call->fs, false);
    return 0;
}

static int fs_forget(struct fs_call *call) {
    struct fuse_forget_in in;
    if (fs_take(call, &in, sizeof in))
        fs_node_forget(call->fs, call->header.nodeid, in.nlookup);
    return 0;
}

static int fs_batch_forget(struct fs_call *call) {
    struct fuse_batch_forget_in in;
    struct fuse_forget_one one;
    if (!fs_take(call, &in, sizeof in))
        return 0;
    for (uint32_t i = 0; i < in.count && fs_take(call, &one, sizeof one); i++)
        fs_node_forget(call->fs, one.nodeid, one.nlookup);
    return 0;
}

/* Nothing here waits for what may never come: what is under way comes to its end. */
static int fs_interrupt(struct fs_call *call) {
    return 0;
}

/* ---- Dispatch ---- */

static const struct {
    fs_operation *serve; /* NULL: -ENOSYS */
    bool changes;        /* -EROFS in a read-only share */
    bool silent;         /* has no answer */
} operations[] = {
    [FUSE_LOOKUP] = {fs_lookup},
    [FUSE_FORGET] = {fs_forget, .silent = true},
    [FUSE_GETATTR] = {fs_getattr},
    [FUSE_SETATTR] = {fs_setattr, .changes = true},
    [FUSE_READLINK] = {fs_readlink},
    [FUSE_SYMLINK] = {fs_symlink, .changes = true},
    [FUSE_MKNOD] = {fs_mknod, .changes = true},
    [FUSE_MKDIR] = {fs_mkdir, .changes = true},
    [FUSE_UNLINK] = {fs_unlink, .changes = true},
    [FUSE_RMDIR] = {fs_rmdir, .changes = true},
    [FUSE_RENAME] = {fs_rename, .changes = true},
    [FUSE_LINK] = {fs_make_link, .changes = true},
    [FUSE_OPEN] = {fs_open_file},
    [FUSE_READ] = {fs_read},
    [FUSE_WRITE] = {fs_write, .changes = true},
    [FUSE_STATFS] = {fs_statfs},
    [FUSE_RELEASE] = {fs_release},
    [FUSE_FSYNC] = {fs_fsync},
    [FUSE_SETXATTR] = {fs_setxattr, .changes = true},
    [FUSE_GETXATTR] = {fs_getxattr},
    [FUSE_LISTXATTR] = {fs_listxattr},
    [FUSE_REMOVEXATTR] = {fs_removexattr, .changes = true},
    [FUSE_FLUSH] = {fs_flush},
    [FUSE_INIT] = {fs_init},
    [FUSE_OPENDIR] = {fs_opendir},
    [FUSE_READDIR] = {fs_readdir},
    [FUSE_RELEASEDIR] = {fs_releasedir},
    [FUSE_FSYNCDIR] = {fs_fsyncdir},
    [FUSE_CREATE] = {fs_create, .changes = true},
    [FUSE_INTERRUPT] = {fs_interrupt, .silent = true},
    [FUSE_DESTROY] = {fs_destroy},
    [FUSE_BATCH_FORGET] = {fs_batch_forget, .silent = true},
    [FUSE_FALLOCATE] = {fs_fallocate, .changes = true},
    [FUSE_READDIRPLUS] = {fs_readdirplus},
    [FUSE_RENAME2] = {fs_rename2, .changes = true},
    [FUSE_LSEEK] = {fs_lseek},
    [FUSE_COPY_FILE_RANGE] = {fs_copy_file_range, .changes = true},
};

static int serve(struct fs_call *call) {
    uint32_t opcode = call->header.opcode;
    if (call->header.len != sizeof call->header + call->left)
        return -EINVAL;
    if (opcode >= ARRAY_SIZE(operations) || operations[opcode].serve == NULL)
        return -ENOSYS;
    if (opcode != FUSE_INIT && !is_started(call->fs))
        return -EIO;
    if (operations[opcode].changes && call->fs->readonly)
        return -EROFS;
    return operations[opcode].serve(call);
}

/* A WRITE's data is not in the arguments, but counts in the header's length. */
static size_t data_in(const struct fs_call *call) {
    return call->header.opcode == FUSE_WRITE ? call->message->data_length : 0;
}

void fs_serve(struct fs *fs, struct fs_message *message) {
    struct fs_call call = {.fs = fs, .message = message};
    struct fuse_out_header answer = {.len = sizeof answer};
    int result = -EINVAL;
    message->out_length = message->data_filled = 0;
    if (message->in_length >= sizeof call.header) {
        memcpy(&call.header, message->in, sizeof call.header);
        call.at = message->in + sizeof call.header;
        call.left = message->in_length - sizeof call.header;
        call.out = message->out + sizeof answer;
        call.out_room = message->out_room - sizeof answer;
        call.header.len -= (uint32_t)data_in(&call);
        result = serve(&call);
    }
    if (call.header.opcode < ARRAY_SIZE(operations) && operations[call.header.opcode].silent)
        return;
    answer.unique = call.header.unique;
    answer.error = result;
    if (result == 0)
        answer.len += (uint32_t)(call.out_length + message->data_filled);
    else
        call.out_length = message->data_filled = 0;
    memcpy(message->out, &answer, sizeof answer);
    message->out_length = sizeof answer + call.out_length;
}

/* ---- Life ---- */

static int open_root(const char *path, struct error *err) {
    struct statfs status;
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, -errno, "volume %s", path);
    if (fstatfs(fd, &status) == 0 && status.f_type == PROC_SUPER_MAGIC) {
        close(fd);
        return error_set(err, -EINVAL, "volume %s: /proc has no files to share", path);
    }
    return fd;
}

int fs_check(const char *path, struct error *err) {
    int fd = open_root(path, err);
    if (fd < 0)
        return fd;
    close(fd);
    if (access(path, R_OK | X_OK) < 0)
        return error_set_errno(err, -errno, "volume %s", path);
    return 0;
}

/* What this volume may have open for nodes, with as much again for the rest. */
static unsigned share_of_fds(unsigned volumes) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return FDS_MIN;
    if (limit.rlim_cur < limit.rlim_max) {
        rlim_t before = limit.rlim_cur;
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
            limit.rlim_cur = before;
    }
    rlim_t fds = limit.rlim_cur > FDS_RESERVED ? limit.rlim_cur - FDS_RESERVED : 0;
    fds /= 2 * (rlim_t)volumes;
    return fds < FDS_MIN ? FDS_MIN : fds > FDS_MAX ? FDS_MAX : (unsigned)fds;
}

/* umask() itself cannot be asked without setting it, for all threads. */
static mode_t read_umask(void) {
    unsigned mask = 022;
    char line[128];
    FILE *status = fopen("/proc/self/status", "re");
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "Umask: %o", &mask) == 1)
            break;
    if (status != NULL)
        fclose(status);
    return (mode_t)mask & 0777;
}

/* Files are opened by what the kernel shows of this process. */
static int check_links(int root, const char *path, struct error *err) {
    char link[FS_LINK_MAX];
    fs_link_of(root, link);
    return access(link, F_OK) == 0
               ? 0
               : error_set_errno(err, -errno, "volume %s: /proc is needed to open files", path);
}

int fs_open(const char *path, bool readonly, unsigned volumes, struct fs **fs, struct error *err) {
    int root = open_root(path, err);
    if (root < 0)
        return root;
    struct fs *made = calloc(1, sizeof *made);
    if (made == NULL) {
        close(root);
        return error_set(err, -ENOMEM, "out of memory");
    }
    int result = check_links(root, path, err);
    if (result == 0)
        result = fs_nodes_init(made, root, err);
    if (result < 0) {
        free(made->buckets);
        free(made->nodes.slots);
        free(made);
        close(root);
        return result;
    }
    lock_init(&made->lock, LOCK_BACKEND, "shared directory");
    made->readonly = readonly;
    made->umask = read_umask();
    made->node_fds_max = share_of_fds(volumes);
    /* What is open keeps its node: half of the nodes can always be closed. */
    made->handles.max = made->node_fds_max / 2;
    *fs = made;
    return 0;
}

void fs_reset(struct fs *fs) {
    forget_all(fs);
    set_started(fs, false);
}

void fs_close(struct fs *fs) {
    if (fs == NULL)
        return;
    fs_handles_reset(fs);
    fs_nodes_free(fs);
    free(fs->handles.slots);
    lock_destroy(&fs->lock);
    free(fs);
}
