#include "image/transfer.h"

#include <fcntl.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "image/build.h"
#include "image/file.h"
#include "image/overlay.h"

enum { PIECE = 64 << 10 };

const char *const image_files[] = {"disk.raw", "vmlinuz", "initrd", "image.json", NULL};

/* Where the next data may be; the end: there is none. */
static uint64_t skip_hole(int fd, uint64_t offset, uint64_t size) {
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
    if (data < 0)
        return errno == ENXIO ? size : offset;
    return round_down((uint64_t)data, PIECE);
}

/* Its length, then each piece that has something in it behind its offset: holes do not matter. */
static int add_pieces(EVP_MD_CTX *sum, int fd, uint8_t *piece) {
    struct stat status;
    uint8_t number[8];
    if (fstat(fd, &status) < 0)
        return -errno;
    uint64_t size = (uint64_t)status.st_size;
    store_le64(number, size);
    EVP_DigestUpdate(sum, number, sizeof number);
    for (uint64_t at = skip_hole(fd, 0, size); at < size; at = skip_hole(fd, at + PIECE, size)) {
        ssize_t got = pread(fd, piece, PIECE, (off_t)at);
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        if (bytes_are_zero(piece, (size_t)got))
            continue;
        store_le64(number, at);
        EVP_DigestUpdate(sum, number, sizeof number);
        EVP_DigestUpdate(sum, piece, (size_t)got);
    }
    return 0;
}

static int add_file(EVP_MD_CTX *sum, const char *path, uint8_t *piece, struct error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int result = fd >= 0 ? add_pieces(sum, fd, piece) : -errno;
    if (fd >= 0)
        close(fd);
    return result < 0 ? error_set_errno(err, result, "%s", path) : 0;
}

static int add_files(EVP_MD_CTX *sum, const struct disk_image *image, uint8_t *piece,
                     struct error *err) {
    int result = add_file(sum, image->disk, piece, err);
    if (result == 0)
        result = add_file(sum, image->kernel, piece, err);
    return result == 0 ? add_file(sum, image->initrd, piece, err) : result;
}

/* ---- What was worked out before ---- */

/* Beside the images: {"KEY": "HASH"}, the latest last. */
static const char known_file[] = ".hashes.json";
enum { KNOWN_MAX = 16, KEY_MAX = 256 };

/* Files that nobody has changed: those of an image and all links to it are the same. */
static bool make_key(const struct disk_image *image, char key[KEY_MAX]) {
    const char *const paths[] = {image->disk, image->kernel, image->initrd};
    size_t used = 0;
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        struct stat status;
        if (stat(paths[i], &status) < 0)
            return false;
        used += (size_t)snprintf(key + used, KEY_MAX - used, "%llx:%llu:%lld:%lld.%09ld ",
                                 (unsigned long long)status.st_dev,
                                 (unsigned long long)status.st_ino, (long long)status.st_size,
                                 (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
        if (used >= KEY_MAX)
            return false;
    }
    return true;
}

static json_t *load_known(const char *images) {
    char path[PATH_MAX];
    json_t *known = path_join(path, images, known_file, NULL) == 0
                        ? json_load_file(path, JSON_REJECT_DUPLICATES, NULL)
                        : NULL;
    if (json_is_object(known))
        return known;
    json_decref(known);
    return json_object();
}

static bool find_known(const char *images, const char *key, char text[IMAGE_HASH_TEXT]) {
    json_t *known = load_known(images);
    const char *hash = json_string_value(json_object_get(known, key));
    bool found = hash != NULL && strlen(hash) == IMAGE_HASH_TEXT - 1;
    if (found)
        memcpy(text, hash, IMAGE_HASH_TEXT);
    json_decref(known);
    return found;
}

/* If that is not to be it is worked out again. */
static void keep_known(const char *images, const char *key, const char *hash) {
    json_t *known = load_known(images);
    void *oldest = json_object_iter(known);
    if (json_object_size(known) >= KNOWN_MAX && oldest != NULL)
        json_object_del(known, json_object_iter_key(oldest));
    json_object_set_new(known, key, json_string(hash));
    char *written = json_dumps(known, JSON_INDENT(1));
    if (written != NULL && make_directories(images, NULL) == 0)
        file_replace(images, known_file, written, strlen(written), NULL);
    free(written);
    json_decref(known);
}

/* ---- A hash ---- */

static int work_out(const struct disk_image *image, char text[IMAGE_HASH_TEXT], struct error *err) {
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    EVP_MD_CTX *sum = EVP_MD_CTX_new();
    uint8_t *piece = malloc(PIECE);
    int result;
    if (sum == NULL || piece == NULL || EVP_DigestInit_ex(sum, EVP_sha256(), NULL) != 1)
        result = error_set(err, -ENOMEM, "out of memory");
    else
        result = add_files(sum, image, piece, err);
    if (result == 0)
        EVP_DigestFinal_ex(sum, digest, &length);
    for (unsigned i = 0; i < length && i < IMAGE_HASH_TEXT / 2; i++)
        snprintf(text + (size_t)2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(sum);
    free(piece);
    return result;
}

int image_hash(const struct disk_image *image, char text[IMAGE_HASH_TEXT], struct error *err) {
    char key[KEY_MAX], images[PATH_MAX];
    bool keyed = images_path(".", images, NULL) == 0 && make_key(image, key);
    if (keyed && find_known(images, key, text))
        return 0;
    int result = work_out(image, text, err);
    if (result == 0 && keyed)
        keep_known(images, key, text);
    return result;
}

int image_link_same(const char *root, const char *hash, const char *directory, struct error *err) {
    struct disk_image *images = NULL;
    size_t count = 0;
    int result = image_list(&images, &count, err), found = 0;
    for (size_t i = 0; i < count && result == 0 && found == 0; i++) {
        char mine[IMAGE_HASH_TEXT];
        if (strcmp(images[i].root, root) != 0 || image_hash(&images[i], mine, NULL) < 0 ||
            strcmp(mine, hash) != 0)
            continue;
        result = overlay_link(&images[i], directory, err);
        found = result == 0;
    }
    free(images);
    return result < 0 ? result : found;
}
