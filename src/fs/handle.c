#include <stdlib.h>
#include <unistd.h>

#include "fs/private.h"

static void free_handle(struct fs *fs, struct fs_handle *handle) {
    close(handle->fd);
    fs_node_put(fs, handle->node);
    free(handle);
}

int fs_handle_add(struct fs *fs, struct fs_node *node, int fd, bool directory, uint64_t *id) {
    struct fs_handle *handle = malloc(sizeof *handle);
    if (handle == NULL) {
        close(fd);
        return -ENOMEM;
    }
    *handle = (struct fs_handle){.node = node, .fd = fd, .directory = directory, .users = 1};
    lock_take(&fs->lock);
    *id = handle->id = fs_table_add(&fs->handles, handle);
    if (*id != 0)
        node->users++;
    lock_release(&fs->lock);
    if (*id != 0)
        return 0;
    close(fd);
    free(handle);
    return -ENFILE;
}

int fs_handle_get(struct fs *fs, uint64_t id, bool directory, struct fs_handle **found) {
    lock_take(&fs->lock);
    struct fs_handle *handle = fs_table_find(&fs->handles, id);
    if (handle != NULL && handle->directory != directory)
        handle = NULL;
    if (handle != NULL)
        handle->users++;
    lock_release(&fs->lock);
    *found = handle;
    return handle != NULL ? 0 : -EBADF;
}

void fs_handle_put(struct fs *fs, struct fs_handle *handle) {
    lock_take(&fs->lock);
    bool last = --handle->users == 0;
    lock_release(&fs->lock);
    if (last)
        free_handle(fs, handle);
}

int fs_handle_release(struct fs *fs, uint64_t id, bool directory) {
    struct fs_handle *handle;
    int result = fs_handle_get(fs, id, directory, &handle);
    if (result < 0)
        return result;
    lock_take(&fs->lock);
    /* Somebody else may have been faster. */
    bool mine = handle->id != 0;
    if (mine) {
        fs_table_remove(&fs->handles, handle->id);
        handle->id = 0;
        handle->users--;
    }
    lock_release(&fs->lock);
    fs_handle_put(fs, handle);
    return mine ? 0 : -EBADF;
}

void fs_handles_reset(struct fs *fs) {
    lock_take(&fs->lock);
    for (uint32_t i = 0; i < fs->handles.used; i++) {
        struct fs_handle *handle = fs->handles.slots[i].object;
        if (handle == NULL)
            continue;
        fs_table_remove(&fs->handles, handle->id);
        handle->id = 0;
        bool last = --handle->users == 0;
        lock_release(&fs->lock);
        if (last)
            free_handle(fs, handle);
        lock_take(&fs->lock);
    }
    lock_release(&fs->lock);
}
