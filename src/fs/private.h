/*
 * The server's own structures. table.c: numbers that a guest holds; node.c:
 * what it knows of the directory; handle.c: what it has open; serve.c:
 * requests and answers; name.c, attribute.c, file.c, directory.c: operations.
 */
#ifndef LODGE_FS_PRIVATE_H
#define LODGE_FS_PRIVATE_H

#include <sys/stat.h>

#include <linux/fuse.h>

#include "base/lock.h"
#include "fs/fs.h"

enum { FS_NODES_MAX = 1 << 20, FS_BUCKETS = 1 << 16, FS_NAME_MAX = 255 };

/* ---- table.c: numbers for objects; a number that was given back is never valid again ---- */

struct fs_slot {
    void *object; /* NULL: free */
    uint32_t generation, next_free;
};

struct fs_table {
    struct fs_slot *slots;
    uint32_t used, room, max; /* slots ever used, allocated, allowed */
    uint32_t free, count;     /* first free slot + 1; objects */
};

/* The number, never 0; the first of a fresh table is 1. 0: full, or out of memory. */
uint64_t fs_table_add(struct fs_table *table, void *object);
void *fs_table_find(const struct fs_table *table, uint64_t id);
void fs_table_remove(struct fs_table *table, uint64_t id);

/* ---- node.c ---- */

/* What makes a file the same file. */
struct fs_key {
    uint64_t device, inode, mount;
    int64_t born; /* tells a reused inode number; 0: not known */
};

struct fs_node {
    struct fs_node *next; /* of its bucket */
    struct fs_key key;
    uint64_t id;
    uint64_t parent; /* number of the directory that has it as `name`, when last heard of */
    char *name;      /* NULL: the root */
    int fd;          /* O_PATH; -1: closed to save descriptors */
    mode_t kind;     /* S_IFMT */
    bool recent;     /* used since eviction last came by */
    unsigned users;  /* calls and handles that need fd */
    uint64_t lookups;
};

/* ---- handle.c ---- */

struct fs_handle {
    uint64_t id;
    struct fs_node *node; /* a user of it */
    int fd;
    bool directory;
    bool reading;   /* a directory that is being read */
    unsigned users; /* calls, and the guest until it releases the handle */
};

struct fs {
    bool readonly;
    mode_t umask;    /* the monitor's */
    uint64_t device; /* the root's */
    unsigned node_fds_max;

    struct lock lock; /* guards what follows, and nodes and handles */
    bool started;     /* INIT was answered */
    struct fs_table nodes, handles;
    struct fs_node **buckets;
    unsigned node_fds;
    uint32_t hand; /* slot that eviction looks at next */
};

/* Fills key and kind from a descriptor (name empty) or a directory's entry, not followed. */
int fs_stat(int fd, const char *name, struct statx *status);
struct fs_key fs_key_of(const struct statx *status);
uint64_t fs_device_of(const struct statx *status);

/* The node with this number, its descriptor open until fs_node_put. -ESTALE, -ENFILE. */
int fs_node_get(struct fs *fs, uint64_t id, struct fs_node **node);
void fs_node_put(struct fs *fs, struct fs_node *node);

/*
 * Finds `name` below a node in use: a new O_PATH descriptor and what it is. Calls itself again
 * after making room when descriptors are short.
 */
int fs_node_look(struct fs *fs, const struct fs_node *parent, const char *name, int *fd,
                 struct statx *status);
/*
 * The guest is told of what is at `name` below parent: one lookup more. fd is the table's then, or
 * closed. -ENFILE, -ENOMEM.
 */
int fs_node_enter(struct fs *fs, const struct fs_node *parent, const char *name, int fd,
                  const struct statx *status, uint64_t *id);
void fs_node_forget(struct fs *fs, uint64_t id, uint64_t lookups);
/* What is now at `name` below parent came there by a rename. */
void fs_node_moved(struct fs *fs, const struct fs_node *parent, const char *name);
/* Lock held: closes descriptors of nodes that nobody uses now. */
void fs_nodes_evict(struct fs *fs);
/* Closes some after an -EMFILE or -ENFILE. True: it is worth another try. */
bool fs_make_room(struct fs *fs, int error);
/* Forgets all but the root; frees even that. */
void fs_nodes_reset(struct fs *fs);
void fs_nodes_free(struct fs *fs);
int fs_nodes_init(struct fs *fs, int root_fd, struct error *err);

/* An open of what a descriptor is, whatever its name is now; flags without O_NOFOLLOW. */
int fs_reopen(struct fs *fs, int fd, int flags);
/* The name by which system calls without a descriptor reach it. */
enum { FS_LINK_MAX = 32 };
void fs_link_of(int fd, char link[FS_LINK_MAX]);

/* fd is the handle's, and closed when this fails: -ENFILE. The guest holds it. */
int fs_handle_add(struct fs *fs, struct fs_node *node, int fd, bool directory, uint64_t *id);
/* -EBADF; fs_handle_put after use. */
int fs_handle_get(struct fs *fs, uint64_t id, bool directory, struct fs_handle **handle);
void fs_handle_put(struct fs *fs, struct fs_handle *handle);
/* The guest lets go of it. */
int fs_handle_release(struct fs *fs, uint64_t id, bool directory);
/* The guest holds none any longer. */
void fs_handles_reset(struct fs *fs);

/* ---- serve.c ---- */

/* A request being served. */
struct fs_call {
    struct fs *fs;
    struct fs_message *message;
    struct fuse_in_header header;
    const uint8_t *at; /* what is left of the arguments */
    size_t left;
    uint8_t *out; /* the answer's body */
    size_t out_room, out_length;
};

/* Answers 0 or -errno. */
typedef int fs_operation(struct fs_call *call);

/* The next argument. False: the request is too short. */
bool fs_take(struct fs_call *call, void *to, size_t size);
/* The next string, ended by zero, at most `max` bytes long. -EINVAL, -ENAMETOOLONG. */
int fs_take_text(struct fs_call *call, size_t max, const char **text);
/* The next string, to be a file's name in its directory. Also -EINVAL for "." and "..". */
int fs_take_name(struct fs_call *call, const char **name);
/* Room for the next part of the answer, zeroed; NULL: the guest left too little. */
void *fs_give(struct fs_call *call, size_t size);

/* ---- Operations ---- */

void fs_put_attributes(const struct fs *fs, const struct statx *status, struct fuse_attr *attr);
void fs_put_entry(const struct fs *fs, const struct statx *status, uint64_t id,
                  struct fuse_entry_out *entry);
uint64_t fs_inode_number(const struct fs *fs, uint64_t device, uint64_t inode);
/* The mode that a file or directory made for a guest gets. */
mode_t fs_mode_allowed(mode_t mode, bool directory);

fs_operation fs_lookup, fs_symlink, fs_mknod, fs_mkdir, fs_unlink, fs_rmdir, fs_rename, fs_rename2,
    fs_make_link;
fs_operation fs_getattr, fs_setattr, fs_readlink, fs_statfs, fs_setxattr, fs_getxattr, fs_listxattr,
    fs_removexattr;
fs_operation fs_open_file, fs_create, fs_read, fs_write, fs_flush, fs_release, fs_fsync,
    fs_fallocate, fs_lseek, fs_copy_file_range;
fs_operation fs_opendir, fs_readdir, fs_readdirplus, fs_releasedir, fs_fsyncdir;

#endif
