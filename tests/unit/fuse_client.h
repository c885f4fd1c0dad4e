/* A client that speaks FUSE straight to the server of src/fs, well or badly. */
#ifndef LODGE_TESTS_FUSE_CLIENT_H
#define LODGE_TESTS_FUSE_CLIENT_H

#include <stdlib.h>
#include <string.h>

#include <linux/fuse.h>

#include "fs/fs.h"

struct fuse_client {
    struct fs *fs;
    _Alignas(16) uint8_t in[FS_IN_MAX];
    _Alignas(16) uint8_t out[FS_OUT_MAX];
    size_t in_length, out_room;
    struct iovec data; /* of the next READ or WRITE; empty otherwise */
    struct fs_message message;
};

static inline void client_start(struct fuse_client *client, uint32_t opcode, uint64_t node) {
    struct fuse_in_header header = {.opcode = opcode, .nodeid = node, .unique = 42};
    memcpy(client->in, &header, sizeof header);
    client->in_length = sizeof header;
    client->out_room = sizeof client->out;
    client->data = (struct iovec){0};
}

static inline void client_add(struct fuse_client *client, const void *bytes, size_t length) {
    memcpy(client->in + client->in_length, bytes, length);
    client->in_length += length;
}

static inline void client_add_text(struct fuse_client *client, const char *text) {
    client_add(client, text, strlen(text) + 1);
}

static inline void client_serve(struct fuse_client *client) {
    struct iovec data = client->data;
    client->message = (struct fs_message){
        .in = client->in,
        .in_length = client->in_length,
        .data = &data,
        .data_count = data.iov_len > 0,
        .data_length = data.iov_len,
        .out = client->out,
        .out_room = client->out_room,
    };
    fs_serve(client->fs, &client->message);
}

/* Sends what was put together, with a right length; the answer's error, 0 where there is none. */
static inline int client_send(struct fuse_client *client) {
    struct fuse_in_header header;
    memcpy(&header, client->in, sizeof header);
    header.len = (uint32_t)client->in_length;
    if (header.opcode == FUSE_WRITE)
        header.len += (uint32_t)client->data.iov_len;
    memcpy(client->in, &header, sizeof header);
    client_serve(client);
    return client->message.out_length == 0 ? 0 : ((struct fuse_out_header *)client->out)->error;
}

static inline void *client_answer(struct fuse_client *client) {
    return client->out + sizeof(struct fuse_out_header);
}

static inline size_t client_answer_length(const struct fuse_client *client) {
    return client->message.out_length - sizeof(struct fuse_out_header);
}

/* ---- Requests as a good client sends them ---- */

static inline int client_init(struct fuse_client *client) {
    const struct fuse_init_in in = {.major = 7, .minor = 38, .flags = UINT32_MAX};
    client_start(client, FUSE_INIT, 0);
    client_add(client, &in, sizeof in);
    return client_send(client);
}

static inline int client_lookup(struct fuse_client *client, uint64_t parent, const char *name,
                                struct fuse_entry_out *entry) {
    client_start(client, FUSE_LOOKUP, parent);
    client_add_text(client, name);
    int error = client_send(client);
    if (error == 0)
        memcpy(entry, client_answer(client), sizeof *entry);
    return error;
}

static inline void client_forget(struct fuse_client *client, uint64_t node, uint64_t lookups) {
    const struct fuse_forget_in in = {.nlookup = lookups};
    client_start(client, FUSE_FORGET, node);
    client_add(client, &in, sizeof in);
    client_send(client);
}

static inline int client_getattr(struct fuse_client *client, uint64_t node,
                                 struct fuse_attr *attr) {
    const struct fuse_getattr_in in = {0};
    client_start(client, FUSE_GETATTR, node);
    client_add(client, &in, sizeof in);
    int error = client_send(client);
    if (error == 0)
        *attr = ((struct fuse_attr_out *)client_answer(client))->attr;
    return error;
}

static inline int client_setattr(struct fuse_client *client, uint64_t node,
                                 const struct fuse_setattr_in *in) {
    client_start(client, FUSE_SETATTR, node);
    client_add(client, in, sizeof *in);
    return client_send(client);
}

static inline int client_open(struct fuse_client *client, uint32_t opcode, uint64_t node,
                              uint32_t flags, uint64_t *handle) {
    const struct fuse_open_in in = {.flags = flags};
    client_start(client, opcode, node);
    client_add(client, &in, sizeof in);
    int error = client_send(client);
    if (error == 0)
        *handle = ((struct fuse_open_out *)client_answer(client))->fh;
    return error;
}

static inline int client_release(struct fuse_client *client, uint32_t opcode, uint64_t handle) {
    const struct fuse_release_in in = {.fh = handle};
    client_start(client, opcode, FUSE_ROOT_ID);
    client_add(client, &in, sizeof in);
    return client_send(client);
}

static inline int client_create(struct fuse_client *client, uint64_t parent, const char *name,
                                uint32_t mode, struct fuse_entry_out *entry, uint64_t *handle) {
    const struct fuse_create_in in = {.flags = 2 /* O_RDWR */, .mode = 0100000 | mode};
    client_start(client, FUSE_CREATE, parent);
    client_add(client, &in, sizeof in);
    client_add_text(client, name);
    int error = client_send(client);
    if (error == 0) {
        memcpy(entry, client_answer(client), sizeof *entry);
        *handle = ((struct fuse_open_out *)((uint8_t *)client_answer(client) + sizeof *entry))->fh;
    }
    return error;
}

static inline int client_mkdir(struct fuse_client *client, uint64_t parent, const char *name,
                               struct fuse_entry_out *entry) {
    const struct fuse_mkdir_in in = {.mode = 0755};
    client_start(client, FUSE_MKDIR, parent);
    client_add(client, &in, sizeof in);
    client_add_text(client, name);
    int error = client_send(client);
    if (error == 0)
        memcpy(entry, client_answer(client), sizeof *entry);
    return error;
}

static inline int client_mknod(struct fuse_client *client, uint64_t parent, const char *name,
                               uint32_t mode, struct fuse_entry_out *entry) {
    const struct fuse_mknod_in in = {.mode = mode};
    client_start(client, FUSE_MKNOD, parent);
    client_add(client, &in, sizeof in);
    client_add_text(client, name);
    int error = client_send(client);
    if (error == 0)
        memcpy(entry, client_answer(client), sizeof *entry);
    return error;
}

static inline int client_rename(struct fuse_client *client, uint64_t from, const char *old_name,
                                uint64_t to, const char *new_name, uint32_t flags) {
    const struct fuse_rename2_in in = {.newdir = to, .flags = flags};
    client_start(client, FUSE_RENAME2, from);
    client_add(client, &in, sizeof in);
    client_add_text(client, old_name);
    client_add_text(client, new_name);
    return client_send(client);
}

/* Bytes read, or the error. */
static inline ssize_t client_read(struct fuse_client *client, uint64_t handle, uint64_t offset,
                                  void *to, uint32_t size) {
    const struct fuse_read_in in = {.fh = handle, .offset = offset, .size = size};
    client_start(client, FUSE_READ, FUSE_ROOT_ID);
    client_add(client, &in, sizeof in);
    client->out_room = sizeof(struct fuse_out_header);
    client->data = (struct iovec){.iov_base = to, .iov_len = size};
    int error = client_send(client);
    return error != 0 ? error : (ssize_t)client->message.data_filled;
}

static inline ssize_t client_write(struct fuse_client *client, uint64_t handle, uint64_t offset,
                                   const void *from, uint32_t size, uint32_t flags,
                                   uint32_t write_flags) {
    const struct fuse_write_in in = {
        .fh = handle, .offset = offset, .size = size, .flags = flags, .write_flags = write_flags};
    client_start(client, FUSE_WRITE, FUSE_ROOT_ID);
    client_add(client, &in, sizeof in);
    client->data = (struct iovec){.iov_base = (void *)from, .iov_len = size};
    int error = client_send(client);
    return error != 0 ? error : (ssize_t)((struct fuse_write_out *)client_answer(client))->size;
}

#endif
