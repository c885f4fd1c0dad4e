/* cloud-init's NoCloud data source: cloud-init's documentation, "NoCloud", "User data formats". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <yaml.h>

#include "image/file.h"
#include "image/libarchive.h"
#include "image/overlay.h"

enum { USER_DATA_MAX = 4 << 20 };

/* ---- What the file is ---- */

static const char cloud_config[] = "#cloud-config";

/* cloud-init goes by how user-data begins. */
static bool is_known(const struct file_bytes *data) {
    static const char *const starts[] = {
        cloud_config,    "#!",
        "#include",      "#cloud-boothook",
        "#part-handler", "## template: jinja",
        "Content-Type:", "MIME-Version:",
        "From ",
    };
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++)
        if (data->length >= strlen(starts[i]) &&
            strncasecmp((const char *)data->data, starts[i], strlen(starts[i])) == 0)
            return true;
    return false;
}

/* "#cloud-config", and not "#cloud-config-archive", a list, or "-jsonp". */
static bool is_cloud_config(const struct file_bytes *data) {
    size_t length = strlen(cloud_config);
    return data->length >= length && memcmp(data->data, cloud_config, length) == 0 &&
           (data->length == length || data->data[length] == '\n' || data->data[length] == '\r' ||
            data->data[length] == ' ');
}

/* cloud-init would log a mistake in the guest, and do nothing. */
static int check_yaml(const struct file_bytes *data, const char *file, struct error *err) {
    yaml_parser_t parser;
    yaml_document_t document;
    if (!yaml_parser_initialize(&parser))
        return error_set(err, -ENOMEM, "out of memory");
    yaml_parser_set_input_string(&parser, data->data, data->length);
    int result = 0;
    if (!yaml_parser_load(&parser, &document)) {
        unsigned long line = (unsigned long)parser.problem_mark.line + 1;
        result = error_set(err, -EINVAL, "--cloud-init %s, line %lu: %s", file, line,
                           parser.problem != NULL ? parser.problem : "no YAML");
    } else {
        const yaml_node_t *root = yaml_document_get_root_node(&document);
        if (root != NULL && root->type != YAML_MAPPING_NODE)
            result = error_set(err, -EINVAL,
                               "--cloud-init %s: a #cloud-config has 'key: value' lines at its top",
                               file);
        yaml_document_delete(&document);
    }
    yaml_parser_delete(&parser);
    return result;
}

static int read_user_data(const char *file, struct file_bytes *data, struct error *err) {
    int result = file_read(file, data, err);
    if (result < 0)
        return error_prefix(err, "--cloud-init");
    if (data->length == 0)
        return error_set(err, -EINVAL, "--cloud-init %s: it is empty", file);
    if (data->length > USER_DATA_MAX)
        return error_set(err, -EINVAL, "--cloud-init %s: it has more than %d MiB", file,
                         USER_DATA_MAX >> 20);
    if (!is_known(data))
        return error_set(err, -EINVAL,
                         "--cloud-init %s: the first line is not '#cloud-config', '#!' and a "
                         "shell, or another that cloud-init knows",
                         file);
    return is_cloud_config(data) ? check_yaml(data, file, err) : 0;
}

/* ---- The disk ---- */

static bool add_file(struct archive *archive, const char *name, const void *bytes, size_t length) {
    struct archive_entry *entry = la.archive_entry_new();
    if (entry == NULL)
        return false;
    la.archive_entry_set_pathname(entry, name);
    la.archive_entry_set_filetype(entry, AE_IFREG);
    la.archive_entry_set_perm(entry, 0444);
    la.archive_entry_set_size(entry, (la_int64_t)length);
    bool good = la.archive_write_header(archive, entry) == ARCHIVE_OK &&
                la.archive_write_data(archive, bytes, length) == (la_ssize_t)length;
    la.archive_entry_free(entry);
    return good;
}

static int write_disk(int fd, const struct file_bytes *user, const char *meta, struct error *err) {
    int result = libarchive_load(err);
    if (result < 0)
        return error_prefix(err, "cannot make cloud-init's disk");
    struct archive *archive = la.archive_write_new();
    bool good = archive != NULL && la.archive_write_set_format_iso9660(archive) == ARCHIVE_OK &&
                la.archive_write_set_options(archive, "iso9660:volume-id=CIDATA") == ARCHIVE_OK &&
                la.archive_write_open_fd(archive, fd) == ARCHIVE_OK &&
                add_file(archive, "meta-data", meta, strlen(meta)) &&
                add_file(archive, "user-data", user->data, user->length) &&
                la.archive_write_close(archive) == ARCHIVE_OK;
    result = good ? 0
                  : error_set(err, -EIO, "cannot make cloud-init's disk: %s",
                              archive != NULL && la.archive_error_string(archive) != NULL
                                  ? la.archive_error_string(archive)
                                  : "out of memory");
    if (archive != NULL)
        la.archive_write_free(archive);
    return result;
}

/* FNV-1a: tells files apart. */
static uint64_t hash(const struct file_bytes *data) {
    uint64_t value = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < data->length; i++)
        value = (value ^ data->data[i]) * UINT64_C(0x100000001b3);
    return value;
}

int seed_create(const char *file, const char *name, struct nameless *seed, struct error *err) {
    struct file_bytes user = {0};
    char meta[256];
    int result = read_user_data(file, &user, err);
    snprintf(meta, sizeof meta, "instance-id: %.64s-%016llx\nlocal-hostname: %.64s\n", name,
             (unsigned long long)hash(&user), name);
    if (result == 0 && (seed->fd = memfd_create("cloud-init", MFD_CLOEXEC)) < 0)
        result = error_set_errno(err, -errno, "memfd_create");
    if (result == 0) {
        snprintf(seed->path, sizeof seed->path, "/proc/self/fd/%d", seed->fd);
        result = write_disk(seed->fd, &user, meta, err);
    }
    file_free(&user);
    return result;
}

/* ---- One that came from another host ---- */

const char seed_file[] = "cloud-init.iso";

bool seed_find(const char *directory, char path[PATH_MAX]) {
    return path_join(path, directory, seed_file, NULL) == 0 && access(path, F_OK) == 0;
}

int seed_share(const char *from, const char *directory, struct error *err) {
    char path[PATH_MAX], to[PATH_MAX];
    if (!seed_find(from, path))
        return 0;
    int result = path_join(to, directory, seed_file, err);
    return result == 0 && link(path, to) < 0 ? error_set_errno(err, -errno, "%s", to) : result;
}
