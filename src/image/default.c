#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/bytes.h"
#include "image/file.h"
#include "image/guest.h"
#include "image/image.h"

enum { FORMAT = 4 }; /* raise it when the same parts are put together differently */

struct assembly {
    char cache[PATH_MAX], debs[PATH_MAX], root[PATH_MAX], agent[PATH_MAX];
    char work[PATH_MAX]; /* a directory of our own in the cache */
    char key[256];
    int lock;
};

/* ---- Names ---- */

/* Tells builds of the agent apart, at each start of a guest: eight bytes at a time, and what they
 * changed in the upper half is folded into the lower one, where the next product reaches all bits.
 */
static int hash_file(const char *path, uint64_t *hash, struct error *err) {
    struct file_bytes bytes;
    int result = file_read(path, &bytes, err);
    if (result < 0)
        return result;
    *hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < bytes.length; i += 8) {
        size_t left = bytes.length - i;
        *hash = (*hash ^ load_le(bytes.data + i, left < 8 ? (unsigned)left : 8)) *
                UINT64_C(0x9e3779b97f4a7c15);
        *hash ^= *hash >> 32;
    }
    file_free(&bytes);
    return 0;
}

/* "linux-image-6.1.0-1-cloud-amd64_6.1.4-1_amd64.deb" to "6.1.4-1". */
static void package_version(const char *path, char *version, size_t size) {
    const char *first = strrchr(path, '/');
    first = strchr(first != NULL ? first : path, '_');
    snprintf(version, size, "%.*s", first != NULL ? (int)strcspn(first + 1, "_") : 0,
             first != NULL ? first + 1 : "");
    for (char *p = version; *p != 0; p++)
        if (*p == '%' || *p == '/')
            *p = '-';
}

static int make_key(struct assembly *a, const struct guest_packages *packages, struct error *err) {
    char kernel[96], busybox[96];
    uint64_t agent = 0;
    int result = hash_file(a->agent, &agent, err);
    package_version(packages->kernel, kernel, sizeof kernel);
    package_version(packages->busybox, busybox, sizeof busybox);
    snprintf(a->key, sizeof a->key, "%s_%s_%016llx_%d", kernel, busybox, (unsigned long long)agent,
             FORMAT);
    return result;
}

/* ---- The cache ---- */

static int open_cache(struct assembly *a, struct error *err) {
    int result = image_cache_path(a->cache, err);
    if (result == 0)
        result = path_join(a->debs, a->cache, "debs", err);
    if (result == 0)
        result = path_join(a->root, a->cache, "default", err);
    if (result == 0)
        result = agent_path(a->agent, err);
    if (result == 0)
        result = make_directories(a->debs, err);
    if (result == 0)
        result = make_directories(a->root, err);
    if (result < 0)
        return result;
    a->lock = open(a->cache, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (a->lock < 0)
        return error_set_errno(err, -errno, "%s", a->cache);
    while (flock(a->lock, LOCK_EX) < 0)
        if (errno != EINTR || interrupt_seen())
            return error_set_errno(err, -errno, "%s", a->cache);
    return 0;
}

/* What an assembly that was killed has left. */
static void remove_leftovers(const char *cache) {
    char path[PATH_MAX];
    if (path_join(path, cache, "work", NULL) == 0)
        remove_tree(path);
}

static int check_space(const struct assembly *a, struct error *err) {
    enum { NEEDED_MIB = 200 };
    struct statvfs disk;
    if (statvfs(a->cache, &disk) < 0)
        return 0;
    uint64_t free_mib = (uint64_t)disk.f_bavail * disk.f_frsize >> 20;
    if (free_mib >= NEEDED_MIB)
        return 0;
    return error_set(
        err, -ENOSPC,
        "%s: %llu MiB are free, the default guest's assembly needs %d; make room, or set "
        "LODGE_CACHE to another directory",
        a->cache, (unsigned long long)free_mib, NEEDED_MIB);
}

static int make_work(struct assembly *a, struct error *err) {
    remove_leftovers(a->cache);
    int space = check_space(a, err);
    if (space < 0)
        return space;
    int result = path_join(a->work, a->cache, "work", err);
    return result == 0 ? make_directories(a->work, err) : result;
}

static int work_directory(const struct assembly *a, const char *name, char path[PATH_MAX],
                          struct error *err) {
    int result = path_join(path, a->work, name, err);
    return result == 0 ? make_directories(path, err) : result;
}

/* ---- Steps ---- */

/* Downloads into a directory of its own, which then takes the old one's place. */
static int refresh_packages(struct assembly *a, struct error *err) {
    char fetched[PATH_MAX];
    struct guest_packages packages;
    int result = work_directory(a, "debs", fetched, err);
    if (result == 0)
        result = packages_fetch(a->work, fetched, err);
    if (result == 0)
        result = packages_find(fetched, &packages, err);
    if (result < 0)
        return result;
    remove_tree(a->debs);
    if (rename(fetched, a->debs) < 0)
        return error_set_errno(err, -errno, "%s", a->debs);
    return 0;
}

static int use(const struct assembly *a, struct error *err) {
    char link[PATH_MAX], current[PATH_MAX];
    int result = path_join(link, a->work, "current", err);
    if (result == 0)
        result = path_join(current, a->root, "current", err);
    if (result < 0)
        return result;
    if (symlink(a->key, link) < 0 || rename(link, current) < 0)
        return error_set_errno(err, -errno, "%s", current);
    return 0;
}

static int assemble(const struct assembly *a, const struct guest_packages *packages,
                    struct error *err) {
    char unpacked[PATH_MAX], made[PATH_MAX], final[PATH_MAX];
    int result = work_directory(a, "root", unpacked, err);
    if (result == 0)
        result = work_directory(a, "made", made, err);
    if (result == 0)
        result = path_join(final, a->root, a->key, err);
    if (result < 0)
        return result;
    fprintf(stderr, "lodge: assembling the default guest\n");
    if ((result = guest_assemble(packages, a->agent, unpacked, made, err)) < 0)
        return result;
    /* Only one guest is kept: the cache does not grow with every build of the agent. */
    remove_tree(a->root);
    if ((result = make_directories(a->root, err)) == 0 && rename(made, final) < 0)
        result = error_set_errno(err, -errno, "%s", final);
    return result == 0 ? use(a, err) : result;
}

static int fill(const struct assembly *a, const struct guest_packages *packages,
                struct image_default *image, struct error *err) {
    package_version(packages->kernel, image->version, sizeof image->version);
    char directory[PATH_MAX];
    int result = path_join(directory, a->root, a->key, err);
    if (result == 0)
        result = path_join(image->kernel, directory, "vmlinuz", err);
    return result == 0 ? path_join(image->initrd, directory, "initrd.cpio", err) : result;
}

static bool is_there(const struct image_default *image) {
    return access(image->kernel, R_OK) == 0 && access(image->initrd, R_OK) == 0;
}

static int make(struct assembly *a, bool refresh, struct image_default *image, struct error *err) {
    struct guest_packages packages;
    int result = open_cache(a, err);
    if (result < 0)
        return result;
    bool missing = packages_find(a->debs, &packages, NULL) < 0;
    if (missing || refresh) {
        if ((result = make_work(a, err)) < 0 || (result = refresh_packages(a, err)) < 0 ||
            (result = packages_find(a->debs, &packages, err)) < 0)
            return result;
    }
    if ((result = make_key(a, &packages, err)) < 0 ||
        (result = fill(a, &packages, image, err)) < 0 || is_there(image))
        return result;
    if ((result = make_work(a, err)) < 0)
        return result;
    return assemble(a, &packages, err);
}

int image_interrupted(void) {
    return interrupt_seen();
}

int image_default(bool refresh, struct image_default *image, struct error *err) {
    struct assembly *a = calloc(1, sizeof *a);
    if (a == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    a->lock = -1;
    interrupt_begin();
    int result = make(a, refresh, image, err);
    if (result == 0 && interrupt_seen() != 0)
        result = error_set(err, -EINTR, "interrupted");
    if (a->work[0] != 0)
        remove_leftovers(a->cache);
    interrupt_end();
    if (a->lock >= 0)
        close(a->lock);
    free(a);
    return result;
}
