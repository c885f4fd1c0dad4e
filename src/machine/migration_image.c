#include "machine/migration_image.h"

#include <stdlib.h>
#include <string.h>

#include "image/file.h"
#include "image/overlay.h"
#include "image/transfer.h"
#include "machine/migration_files.h"

enum { FILES = 4 }; /* of image_files */

/* What is no disk, a kernel, an initramfs, a note, is no larger; a disk is not either. */
#define SMALL_FILE_MAX (UINT64_C(1) << 30)
#define DISK_FILE_MAX  (UINT64_C(1) << 46)

static const char what[] = "the VM's image";

/* ---- The side that a VM leaves ---- */

static int find_files(const char *directory, struct moved_file files[FILES], uint64_t *bytes,
                      struct error *err) {
    char links[PATH_MAX];
    int result = path_join(links, directory, "image", err);
    for (unsigned i = 0; i < FILES && result == 0; i++)
        result = moved_file_find(links, image_files[i], &files[i], bytes, err);
    return result;
}

int migration_image_describe(const char *directory, json_t **about, struct error *err) {
    char links[PATH_MAX], hash[IMAGE_HASH_TEXT];
    struct moved_file files[FILES];
    struct disk_image image = {0};
    uint64_t bytes = 0;
    int result = path_join(links, directory, "image", err);
    if (result == 0)
        result = image_open(links, &image, err);
    if (result == 0)
        result = find_files(directory, files, &bytes, err);
    if (result == 0)
        result = image_hash(&image, hash, err);
    if (result != 0)
        return result;
    json_t *sizes = json_array();
    for (unsigned i = 0; i < FILES; i++)
        json_array_append_new(sizes, json_integer((json_int_t)files[i].size));
    *about = json_pack("{s:s, s:s, s:o, s:I}", "root", image.root, "hash", hash, "sizes", sizes,
                       "bytes", (json_int_t)bytes);
    return 0;
}

int migration_image_send(const char *directory, struct stream *stream, bool compress,
                         memory_sender_progress *progress, void *context, struct error *err) {
    struct moved_file files[FILES];
    const struct moved_files list = {files, FILES, what};
    json_t *answer = NULL;
    uint64_t bytes = 0;
    int result = stream_expect(stream, STREAM_IMAGE, err);
    if (result == 0)
        result = stream_json(stream, &answer, err);
    if (result < 0)
        return result;
    bool wanted = json_is_true(json_object_get(answer, "wanted"));
    json_decref(answer);
    if (!wanted)
        return 0;
    result = find_files(directory, files, &bytes, err);
    return result == 0 ? moved_files_send(&list, bytes, stream, compress, progress, context, err)
                       : result;
}

/* ---- The side that it comes to ---- */

static int strange(struct error *err) {
    return error_set(err, -EPROTO,
                     "what the other side says of the VM's image is not as lodge says it");
}

static int receive_files(const json_t *sizes, struct stream *stream, const char *directory,
                         struct error *err) {
    struct moved_file files[FILES];
    const struct moved_files list = {files, FILES, what};
    char links[PATH_MAX];
    int result = path_join(links, directory, "image", err);
    if (result == 0)
        result = make_directories(links, err);
    for (unsigned i = 0; i < FILES && result == 0; i++) {
        json_int_t size = json_integer_value(json_array_get(sizes, i));
        files[i].size = (uint64_t)size;
        result = size > 0 && (uint64_t)size <= (i == 0 ? DISK_FILE_MAX : SMALL_FILE_MAX)
                     ? path_join(files[i].path, links, image_files[i], err)
                     : strange(err);
    }
    return result == 0 ? moved_files_receive(&list, stream, err) : result;
}

int migration_image_receive(const json_t *about, uint64_t others, struct stream *stream,
                            const char *directory, struct error *err) {
    const char *root = json_string_value(json_object_get(about, "root"));
    const char *hash = json_string_value(json_object_get(about, "hash"));
    const json_t *sizes = json_object_get(about, "sizes");
    json_int_t bytes = json_integer_value(json_object_get(about, "bytes"));
    if (root == NULL || hash == NULL || json_array_size(sizes) != FILES || bytes < 0)
        return strange(err);
    int found = image_link_same(root, hash, directory, err);
    if (found == 0 && moved_files_check_room(directory, (uint64_t)bytes + others, err) < 0)
        found = -ENOSPC;
    if (found < 0)
        return found;
    int result =
        stream_send_json(stream, STREAM_IMAGE, json_pack("{s:b}", "wanted", found == 0), err);
    return result == 0 && found == 0 ? receive_files(sizes, stream, directory, err) : result;
}
