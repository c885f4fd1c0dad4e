#include "image/store.h"

#include <ctype.h>
#include <dirent.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/build.h"
#include "image/file.h"
#include "image/image.h"

int image_name_check(const char *name, struct error *err) {
    size_t length = strlen(name);
    bool good = length > 0 && length <= IMAGE_NAME_MAX && isalnum((unsigned char)name[0]);
    for (size_t i = 0; i < length && good; i++)
        good = isalnum((unsigned char)name[i]) || strchr("._-", name[i]) != NULL;
    if (good)
        return 0;
    return error_set(err, -EINVAL,
                     "'%.40s' is no name for an image: letters, digits, '.', '_' and '-', at most "
                     "%d, a letter or digit first",
                     name, IMAGE_NAME_MAX);
}

int images_path(const char *name, char path[PATH_MAX], struct error *err) {
    char cache[PATH_MAX], images[PATH_MAX];
    int result = image_cache_path(cache, err);
    if (result == 0)
        result = path_join(images, cache, "images", err);
    return result == 0 ? path_join(path, images, name, err) : result;
}

/* ---- image.json ---- */

enum { IMAGE_FORMAT = 1 };

int image_note(const char *directory, const struct disk_image *image, struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, "image.json", err);
    if (result < 0)
        return result;
    json_t *note =
        json_pack("{s:i, s:s, s:s, s:s, s:s, s:I, s:I}", "format", IMAGE_FORMAT, "suite",
                  image->suite, "key", image->key, "kernel", image->release, "root", image->root,
                  "size", (json_int_t)image->size, "made", (json_int_t)image->made);
    if (note == NULL || json_dump_file(note, path, JSON_INDENT(2)) < 0)
        result = error_set_errno(err, errno != 0 ? -errno : -ENOMEM, "%s", path);
    json_decref(note);
    return result;
}

static bool take_text(const json_t *note, const char *key, char *text, size_t size) {
    const char *value = json_string_value(json_object_get(note, key));
    if (value == NULL || strlen(value) >= size)
        return false;
    memcpy(text, value, strlen(value) + 1);
    return true;
}

static bool take_note(const json_t *note, struct disk_image *image) {
    image->size = (uint64_t)json_integer_value(json_object_get(note, "size"));
    image->made = json_integer_value(json_object_get(note, "made"));
    return json_integer_value(json_object_get(note, "format")) == IMAGE_FORMAT &&
           take_text(note, "suite", image->suite, sizeof image->suite) &&
           take_text(note, "key", image->key, sizeof image->key) &&
           take_text(note, "kernel", image->release, sizeof image->release) &&
           take_text(note, "root", image->root, sizeof image->root);
}

int image_open(const char *directory, struct disk_image *image, struct error *err) {
    char path[PATH_MAX];
    struct stat status;
    int result = path_join(path, directory, "image.json", err);
    if (result == 0)
        result = path_join(image->disk, directory, "disk.raw", err);
    if (result == 0)
        result = path_join(image->kernel, directory, "vmlinuz", err);
    if (result == 0)
        result = path_join(image->initrd, directory, "initrd", err);
    if (result < 0)
        return result;
    json_t *note = json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
    bool good = note != NULL && take_note(note, image) && stat(image->disk, &status) == 0 &&
                (uint64_t)status.st_size == image->size && access(image->kernel, R_OK) == 0 &&
                access(image->initrd, R_OK) == 0;
    json_decref(note);
    image->used = good ? (uint64_t)status.st_blocks * 512 : 0;
    return good ? 0
                : error_set(err, -EPROTO, "the image in %s is not as lodge makes it; remove it",
                            directory);
}

int image_find(const char *name, struct disk_image *image, struct error *err) {
    char directory[PATH_MAX];
    struct stat status;
    int result = image_name_check(name, err);
    *image = (struct disk_image){0};
    if (result == 0)
        result = images_path(name, directory, err);
    if (result < 0)
        return result;
    memcpy(image->name, name, strlen(name) + 1);
    if (lstat(directory, &status) < 0 || !S_ISDIR(status.st_mode))
        return error_set(err, -ENOENT,
                         "no image named '%s'; 'lodge image ls' lists them; commands come after "
                         "--: lodge run -- %s",
                         name, name);
    return image_open(directory, image, err);
}

int image_find_or_build(const char *name, struct disk_image *image, struct error *err) {
    int result = image_find(name, image, err);
    return result == -ENOENT && strcmp(name, "debian") == 0
               ? image_build(&(struct image_recipe){0}, image, err)
               : result;
}

/* ---- All of them ---- */

static int is_image(const struct dirent *entry) {
    return image_name_check(entry->d_name, NULL) == 0;
}

int image_list(struct disk_image **images, size_t *count, struct error *err) {
    char root[PATH_MAX];
    struct dirent **entries = NULL;
    int result = images_path(".", root, err);
    if (result < 0)
        return result;
    int found = scandir(root, &entries, is_image, alphasort);
    if (found < 0 && errno != ENOENT)
        return error_set_errno(err, -errno, "cannot read %s", root);
    *images = calloc((size_t)(found > 0 ? found : 0) + 1, sizeof **images);
    *count = 0;
    for (int i = 0; i < found; i++) {
        if (*images != NULL && image_find(entries[i]->d_name, &(*images)[*count], NULL) == 0)
            (*count)++;
        free(entries[i]);
    }
    free(entries);
    return *images != NULL ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* Out of the way under one name, then gone: half a directory is never seen. */
int image_remove(const char *name, struct error *err) {
    char directory[PATH_MAX], aside[PATH_MAX], hidden[IMAGE_NAME_MAX + 32];
    int result = image_name_check(name, err);
    if (result == 0)
        result = images_path(name, directory, err);
    snprintf(hidden, sizeof hidden, ".removed-%s-%d", name, (int)getpid());
    if (result == 0)
        result = images_path(hidden, aside, err);
    if (result < 0)
        return result;
    if (rename(directory, aside) < 0)
        return errno == ENOENT ? error_set(err, -ENOENT,
                                           "no image named '%s'; 'lodge image ls' lists them", name)
                               : error_set_errno(err, -errno, "cannot remove %s", directory);
    remove_tree(aside);
    return 0;
}
