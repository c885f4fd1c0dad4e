#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include "fs/private.h"

/* Directories above a node whose descriptors were closed as well: as many stack frames. */
enum { DEPTH_MAX = 128 };

/* ---- What a file is ---- */

int fs_stat(int fd, const char *name, struct statx *status) {
    int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (name[0] == 0 ? AT_EMPTY_PATH : 0);
    return statx(fd, name, flags, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, status) == 0
               ? 0
               : -errno;
}

uint64_t fs_device_of(const struct statx *status) {
    return makedev(status->stx_dev_major, status->stx_dev_minor);
}

struct fs_key fs_key_of(const struct statx *status) {
    struct fs_key key = {.device = fs_device_of(status), .inode = status->stx_ino};
    if (status->stx_mask & STATX_MNT_ID)
        key.mount = status->stx_mnt_id;
    if (status->stx_mask & STATX_BTIME)
        key.born =
            (int64_t)((uint64_t)status->stx_btime.tv_sec * 1000000000 + status->stx_btime.tv_nsec);
    return key;
}

static bool same_key(const struct fs_key *a, const struct fs_key *b) {
    return a->device == b->device && a->inode == b->inode && a->mount == b->mount &&
           a->born == b->born;
}

void fs_link_of(int fd, char link[FS_LINK_MAX]) {
    snprintf(link, FS_LINK_MAX, "/proc/self/fd/%d", fd);
}

int fs_reopen(struct fs *fs, int fd, int flags) {
    char link[FS_LINK_MAX];
    int made;
    fs_link_of(fd, link);
    do
        made = open(link, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    while (made < 0 && fs_make_room(fs, errno));
    return made >= 0 ? made : errno == EMFILE ? -ENFILE : -errno;
}

/* ---- The table: lock held ---- */

static struct fs_node **bucket_of(struct fs *fs, const struct fs_key *key) {
    uint64_t hash = (key->inode ^ key->device << 40 ^ key->mount << 20) * 0x9e3779b97f4a7c15u;
    return &fs->buckets[hash >> 48 & (FS_BUCKETS - 1)];
}

static struct fs_node *find(struct fs *fs, const struct fs_key *key) {
    struct fs_node *node = *bucket_of(fs, key);
    while (node != NULL && !same_key(&node->key, key))
        node = node->next;
    return node;
}

static void set_fd(struct fs *fs, struct fs_node *node, int fd) {
    if (node->fd >= 0) {
        close(node->fd);
        fs->node_fds--;
    }
    node->fd = fd;
    if (fd >= 0)
        fs->node_fds++;
}

static void free_node(struct fs *fs, struct fs_node *node) {
    set_fd(fs, node, -1);
    free(node->name);
    free(node);
}

/* Nobody can find it any longer. */
static void unlink_node(struct fs *fs, struct fs_node *node) {
    struct fs_node **link = bucket_of(fs, &node->key);
    while (*link != node)
        link = &(*link)->next;
    *link = node->next;
    fs_table_remove(&fs->nodes, node->id);
    node->id = 0;
    if (node->users == 0)
        free_node(fs, node);
}

void fs_nodes_evict(struct fs *fs) {
    unsigned wanted = fs->node_fds_max / 8 + 1;
    for (uint32_t looked = 0; looked < 2 * fs->nodes.used && wanted > 0; looked++) {
        fs->hand = fs->hand + 1 < fs->nodes.used ? fs->hand + 1 : 0;
        struct fs_node *node = fs->nodes.slots[fs->hand].object;
        if (node == NULL || node->fd < 0 || node->users > 0 || node->name == NULL)
            continue;
        if (node->recent) {
            node->recent = false;
            continue;
        }
        set_fd(fs, node, -1);
        wanted--;
    }
}

/* Descends again to a node whose descriptor was closed: it must be what it was. */
static int open_again(struct fs *fs, struct fs_node *node, unsigned depth) {
    struct fs_node *parent = fs_table_find(&fs->nodes, node->parent);
    struct statx status;
    if (parent == NULL || parent == node || depth == DEPTH_MAX)
        return -ESTALE;
    int result = parent->fd < 0 ? open_again(fs, parent, depth + 1) : 0;
    if (result < 0)
        return result;
    int fd = openat(parent->fd, node->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == EMFILE || errno == ENFILE ? -ENFILE : -ESTALE;
    struct fs_key key;
    if (fs_stat(fd, "", &status) < 0 || (key = fs_key_of(&status), !same_key(&key, &node->key))) {
        close(fd);
        return -ESTALE;
    }
    set_fd(fs, node, fd);
    return 0;
}

static int make_open(struct fs *fs, struct fs_node *node) {
    int result = node->fd < 0 ? open_again(fs, node, 0) : 0;
    if (result == -ENFILE) {
        fs_nodes_evict(fs);
        result = open_again(fs, node, 0);
    }
    return result;
}

int fs_node_get(struct fs *fs, uint64_t id, struct fs_node **found) {
    lock_take(&fs->lock);
    struct fs_node *node = fs_table_find(&fs->nodes, id);
    int result = -ESTALE;
    if (node != NULL) {
        node->users++;
        node->recent = true;
        if ((result = make_open(fs, node)) < 0)
            node->users--;
        else if (fs->node_fds > fs->node_fds_max)
            fs_nodes_evict(fs);
    }
    lock_release(&fs->lock);
    *found = node;
    return result;
}

void fs_node_put(struct fs *fs, struct fs_node *node) {
    lock_take(&fs->lock);
    if (--node->users == 0 && node->id == 0)
        free_node(fs, node);
    lock_release(&fs->lock);
}

bool fs_make_room(struct fs *fs, int error) {
    if (error != EMFILE && error != ENFILE)
        return false;
    lock_take(&fs->lock);
    unsigned before = fs->node_fds;
    fs_nodes_evict(fs);
    bool better = fs->node_fds < before;
    lock_release(&fs->lock);
    return better;
}

/* ---- Finding and telling ---- */

/* What is mounted below the directory may be shared, too, but not this. */
static bool is_proc(int fd) {
    struct statfs status;
    return fstatfs(fd, &status) == 0 && status.f_type == PROC_SUPER_MAGIC;
}

int fs_node_look(struct fs *fs, const struct fs_node *parent, const char *name, int *fd,
                 struct statx *status) {
    int made;
    do
        made = openat(parent->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    while (made < 0 && fs_make_room(fs, errno));
    if (made < 0)
        return errno == EMFILE ? -ENFILE : -errno;
    int result = fs_stat(made, "", status);
    if (result == 0 && fs_device_of(status) != parent->key.device && is_proc(made))
        result = -EACCES;
    if (result < 0)
        close(made);
    *fd = made;
    return result;
}

static bool rename_node(struct fs_node *node, uint64_t parent, const char *name) {
    if (node->name != NULL && strcmp(node->name, name) == 0) {
        node->parent = parent;
        return true;
    }
    char *copy = strdup(name);
    if (copy == NULL)
        return false;
    free(node->name);
    node->name = copy;
    node->parent = parent;
    return true;
}

static struct fs_node *add(struct fs *fs, const struct fs_key *key, uint64_t parent,
                           const char *name) {
    struct fs_node *node = calloc(1, sizeof *node);
    if (node == NULL)
        return NULL;
    node->key = *key;
    node->fd = -1;
    if ((name == NULL || rename_node(node, parent, name)) &&
        (node->id = fs_table_add(&fs->nodes, node)) != 0) {
        struct fs_node **bucket = bucket_of(fs, key);
        node->next = *bucket;
        *bucket = node;
        return node;
    }
    free_node(fs, node);
    return NULL;
}

int fs_node_enter(struct fs *fs, const struct fs_node *parent, const char *name, int fd,
                  const struct statx *status, uint64_t *id) {
    struct fs_key key = fs_key_of(status);
    lock_take(&fs->lock);
    struct fs_node *node = find(fs, &key);
    /* The root has no name: found inside itself (a bind mount, say), it stays the root. */
    if (node == NULL)
        node = add(fs, &key, parent->id, name);
    else if (node->name != NULL)
        rename_node(node, parent->id, name);
    if (node != NULL) {
        if (node->fd < 0)
            set_fd(fs, node, fd);
        else
            close(fd);
        node->kind = status->stx_mode & S_IFMT;
        node->recent = true;
        node->lookups++;
        *id = node->id;
        if (fs->node_fds > fs->node_fds_max)
            fs_nodes_evict(fs);
    } else {
        close(fd);
    }
    lock_release(&fs->lock);
    return node != NULL ? 0 : -ENFILE;
}

void fs_node_forget(struct fs *fs, uint64_t id, uint64_t lookups) {
    lock_take(&fs->lock);
    struct fs_node *node = fs_table_find(&fs->nodes, id);
    if (node != NULL && node->name != NULL) {
        node->lookups -= lookups < node->lookups ? lookups : node->lookups;
        if (node->lookups == 0)
            unlink_node(fs, node);
    }
    lock_release(&fs->lock);
}

void fs_node_moved(struct fs *fs, const struct fs_node *parent, const char *name) {
    struct statx status;
    if (fs_stat(parent->fd, name, &status) < 0)
        return;
    struct fs_key key = fs_key_of(&status);
    lock_take(&fs->lock);
    struct fs_node *node = find(fs, &key);
    if (node != NULL && node->name != NULL)
        rename_node(node, parent->id, name);
    lock_release(&fs->lock);
}

/* ---- Life ---- */

int fs_nodes_init(struct fs *fs, int root_fd, struct error *err) {
    struct statx status;
    int result = fs_stat(root_fd, "", &status);
    if (result < 0)
        return error_set_errno(err, result, "statx");
    struct fs_key key = fs_key_of(&status);
    fs->device = key.device;
    fs->nodes.max = FS_NODES_MAX;
    fs->buckets = calloc(FS_BUCKETS, sizeof(struct fs_node *));
    struct fs_node *root = fs->buckets != NULL ? add(fs, &key, 0, NULL) : NULL;
    if (root == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    root->kind = S_IFDIR;
    root->lookups = 1;
    set_fd(fs, root, root_fd);
    return 0;
}

void fs_nodes_reset(struct fs *fs) {
    lock_take(&fs->lock);
    for (uint32_t i = 0; i < fs->nodes.used; i++) {
        struct fs_node *node = fs->nodes.slots[i].object;
        if (node != NULL && node->name != NULL)
            unlink_node(fs, node);
    }
    lock_release(&fs->lock);
}

void fs_nodes_free(struct fs *fs) {
    fs_nodes_reset(fs);
    struct fs_node *root = fs_table_find(&fs->nodes, FUSE_ROOT_ID);
    if (root != NULL)
        unlink_node(fs, root);
    free(fs->nodes.slots);
    free(fs->buckets);
}
