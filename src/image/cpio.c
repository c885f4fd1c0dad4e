#include "image/cpio.h"

#include <string.h>
#include <sys/stat.h>

#include "image/file.h"

struct entry {
    unsigned mode, links;
    size_t size;
    unsigned major, minor;
};

static int write_bytes(struct cpio *cpio, const void *data, size_t length, struct error *err) {
    if (length > 0 && fwrite(data, 1, length, cpio->file) != length)
        return error_set_errno(err, -errno, "initramfs");
    cpio->offset += length;
    return 0;
}

static int pad(struct cpio *cpio, struct error *err) {
    static const char zeros[4];
    return write_bytes(cpio, zeros, (4 - cpio->offset % 4) % 4, err);
}

static int put(struct cpio *cpio, const char *path, const struct entry *entry, const void *data,
               struct error *err) {
    char header[111];
    snprintf(header, sizeof header, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
             ++cpio->inode, entry->mode, 0, 0, entry->links, 0, (unsigned)entry->size, 0, 0,
             entry->major, entry->minor, (unsigned)strlen(path) + 1, 0);
    int result = write_bytes(cpio, header, 110, err);
    if (result == 0)
        result = write_bytes(cpio, path, strlen(path) + 1, err);
    if (result == 0)
        result = pad(cpio, err);
    if (result == 0)
        result = write_bytes(cpio, data, entry->size, err);
    return result == 0 ? pad(cpio, err) : result;
}

int cpio_directory(struct cpio *cpio, const char *path, unsigned mode, struct error *err) {
    struct entry entry = {.mode = S_IFDIR | mode, .links = 2};
    return put(cpio, path, &entry, NULL, err);
}

int cpio_symlink(struct cpio *cpio, const char *path, const char *target, struct error *err) {
    struct entry entry = {.mode = S_IFLNK | 0777, .links = 1, .size = strlen(target)};
    return put(cpio, path, &entry, target, err);
}

int cpio_device(struct cpio *cpio, const char *path, unsigned mode, unsigned major, unsigned minor,
                struct error *err) {
    struct entry entry = {.mode = S_IFCHR | mode, .links = 1, .major = major, .minor = minor};
    return put(cpio, path, &entry, NULL, err);
}

int cpio_data(struct cpio *cpio, const char *path, unsigned mode, const void *data, size_t length,
              struct error *err) {
    struct entry entry = {.mode = S_IFREG | mode, .links = 1, .size = length};
    return put(cpio, path, &entry, data, err);
}

int cpio_file(struct cpio *cpio, const char *path, unsigned mode, const char *from,
              struct error *err) {
    struct file_bytes bytes;
    int result = file_read(from, &bytes, err);
    if (result < 0)
        return result;
    result = cpio_data(cpio, path, mode, bytes.data, bytes.length, err);
    file_free(&bytes);
    return result;
}

int cpio_finish(struct cpio *cpio, struct error *err) {
    static const char zeros[512];
    struct entry entry = {.links = 1};
    cpio->inode = UINT32_MAX; /* the trailer's is 0 */
    int result = put(cpio, "TRAILER!!!", &entry, NULL, err);
    if (result == 0)
        result = write_bytes(cpio, zeros,
                             (sizeof zeros - cpio->offset % sizeof zeros) % sizeof zeros, err);
    if (result == 0 && fflush(cpio->file) != 0)
        result = error_set_errno(err, -errno, "initramfs");
    return result;
}
