/* `lodge image build`: packages into a tar by mmdebstrap, from there onto a disk. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "image/build.h"
#include "image/file.h"
#include "image/guest.h"
#include "image/image.h"

/* Raise them when the same packages give another tar, the same tar another disk. */
enum { TAR_FORMAT = 1, DISK_FORMAT = 4 };
enum { ARGUMENTS = 112, VERSIONS_SIZE = 1 << 20, NEEDED_MIB = 2500 };

#define DEFAULT_SUITE  "bookworm"
#define DEFAULT_MIRROR "http://deb.debian.org/debian"
#define SECURITY       "http://deb.debian.org/debian-security"
#define KEYRING        "/usr/share/keyrings/debian-archive-keyring.gpg"

/* Without what they recommend: quick to make and to boot. */
static const char packages[] =
    "systemd-sysv,systemd-resolved,dbus,udev,kmod,iproute2,openssh-server,cloud-init,"
    "cloud-guest-utils,sudo,initramfs-tools,zstd,e2fsprogs,linux-image-cloud-amd64";

struct build {
    const struct image_recipe *recipe;
    struct disk_image *image;
    const char *suite;
    char name[IMAGE_NAME_MAX + 1];
    char include[4096]; /* packages, and those of the recipe */
    char source[3][256];
    unsigned source_count;
    char root[PATH_MAX], work[PATH_MAX], agent[PATH_MAX], tar[PATH_MAX];
    char reason[400]; /* what a program said when it failed */
    int lock;
};

/* ---- The recipe ---- */

static bool is_plain(const char *word, const char *more) {
    for (const char *p = word; *p != 0; p++)
        if (!(*p >= 'a' && *p <= 'z') && !(*p >= '0' && *p <= '9') && strchr(more, *p) == NULL)
            return false;
    return word[0] != 0 && word[0] != '-';
}

static int add_packages(struct build *build, struct error *err) {
    snprintf(build->include, sizeof build->include, "%s", packages);
    for (unsigned i = 0; i < build->recipe->include_count; i++) {
        const char *package = build->recipe->includes[i];
        size_t used = strlen(build->include);
        if (!is_plain(package, "+-.") || strlen(package) > 100)
            return error_set(err, -EINVAL, "'%.40s' is no name of a Debian package", package);
        snprintf(build->include + used, sizeof build->include - used, ",%s", package);
    }
    return 0;
}

static void add_source(struct build *build, const char *mirror, const char *suite,
                       const char *more) {
    snprintf(build->source[build->source_count++], sizeof build->source[0], "deb %s%s %s%s main",
             access(KEYRING, R_OK) == 0 ? "[signed-by=" KEYRING "] " : "", mirror, suite, more);
}

static int read_recipe(struct build *build, struct error *err) {
    const struct image_recipe *recipe = build->recipe;
    build->suite = recipe->suite != NULL ? recipe->suite : DEFAULT_SUITE;
    if (!is_plain(build->suite, "-") || strlen(build->suite) > 20)
        return error_set(err, -EINVAL, "'%.40s' is no name of a Debian suite, like " DEFAULT_SUITE,
                         build->suite);
    if (recipe->mirror != NULL &&
        (strlen(recipe->mirror) > 100 || strpbrk(recipe->mirror, " \t\n[]") != NULL ||
         strstr(recipe->mirror, ":/") == NULL))
        return error_set(err, -EINVAL, "'%.60s' is no address of a mirror, like " DEFAULT_MIRROR,
                         recipe->mirror);
    if (recipe->size % MIB(1) != 0 || (recipe->size != 0 && recipe->size < IMAGE_SIZE_MIN) ||
        recipe->size > INT64_MAX / 2)
        return error_set(err, -EINVAL, "an image has whole MiB, 1024 of them at least");
    if (recipe->name != NULL)
        snprintf(build->name, sizeof build->name, "%s", recipe->name);
    else if (strcmp(build->suite, DEFAULT_SUITE) == 0)
        strcpy(build->name, "debian");
    else
        snprintf(build->name, sizeof build->name, "debian-%.20s", build->suite);
    bool debians = recipe->mirror == NULL && strcmp(build->suite, "sid") != 0 &&
                   strcmp(build->suite, "unstable") != 0;
    add_source(build, recipe->mirror != NULL ? recipe->mirror : DEFAULT_MIRROR, build->suite, "");
    if (debians) {
        add_source(build, DEFAULT_MIRROR, build->suite, "-updates");
        add_source(build, SECURITY, build->suite, "-security");
    }
    int result = recipe->name != NULL ? image_name_check(recipe->name, err) : 0;
    return result == 0 ? add_packages(build, err) : result;
}

/* ---- Places ---- */

static int lock_store(struct build *build, struct error *err) {
    int result = images_path(".", build->root, err);
    if (result == 0)
        result = make_directories(build->root, err);
    if (result == 0)
        result = images_path(".work", build->work, err);
    if (result == 0)
        result = agent_path(build->agent, err);
    if (result < 0)
        return result;
    build->lock = open(build->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (build->lock < 0)
        return error_set_errno(err, -errno, "%s", build->root);
    if (flock(build->lock, LOCK_EX | LOCK_NB) == 0)
        return 0;
    fprintf(stderr, "lodge: waiting for another build of an image\n");
    while (flock(build->lock, LOCK_EX) < 0)
        if (errno != EINTR || interrupt_seen())
            return error_set_errno(err, -errno, "%s", build->root);
    return 0;
}

static int make_work(const struct build *build, struct error *err) {
    struct statvfs disk;
    remove_tree(build->work);
    if (statvfs(build->root, &disk) == 0 &&
        (uint64_t)disk.f_bavail * disk.f_frsize >> 20 < NEEDED_MIB)
        return error_set(err, -ENOSPC,
                         "%s: %llu MiB are free, an image's build needs %d; make room, or set "
                         "LODGE_CACHE to another directory",
                         build->root, (unsigned long long)disk.f_bavail * disk.f_frsize >> 20,
                         NEEDED_MIB);
    return make_directories(build->work, err);
}

static int in_work(const struct build *build, const char *name, char path[PATH_MAX],
                   struct error *err) {
    return path_join(path, build->work, name, err);
}

/* ---- What programs say ---- */

/* Of what mmdebstrap tells of its steps, those that take their time. */
static bool is_progress(const char *text) {
    static const char *const steps[] = {"running apt-get", "downloading", "extracting",
                                        "installing",      "cleaning",    "creating"};
    for (size_t i = 0; i < ARRAY_SIZE(steps); i++)
        if (strncmp(text, steps[i], strlen(steps[i])) == 0)
            return true;
    return false;
}

/* mmdebstrap and apt mark information, warnings and errors; the first error is the reason. */
static void on_line(void *context, const char *line) {
    struct build *build = context;
    if (strncmp(line, "I: ", 3) == 0 && is_progress(line + 3))
        fprintf(stderr, "lodge: %s: %s\n", build->name, line + 3);
    if (strncmp(line, "E: ", 3) == 0 && build->reason[0] == 0)
        snprintf(build->reason, sizeof build->reason, "%.300s", line + 3);
}

static int run(struct build *build, const char *const *argv, struct error *err) {
    struct program program = {.argv = argv, .line = on_line, .context = build};
    build->reason[0] = 0;
    int result = program_run(&program, err);
    if (result == -ECHILD && build->reason[0] != 0)
        return error_set(err, result, "%s: %s", argv[0], build->reason);
    return result;
}

/* ---- What the packages' versions are now ---- */

static void hash_text(uint64_t *hash, const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        *hash = (*hash ^ (uint8_t)text[i]) * UINT64_C(0x100000001b3);
}

/* "Inst NAME (VERSION archive ...": name and version of each line. */
static unsigned hash_versions(uint64_t *hash, char *output) {
    char *save = NULL, name[128], version[128];
    unsigned count = 0;
    for (char *line = strtok_r(output, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save))
        if (sscanf(line, "Inst %127s (%127s", name, version) == 2) {
            hash_text(hash, name, strlen(name) + 1);
            hash_text(hash, version, strlen(version) + 1);
            count++;
        }
    return count;
}

static int write_sources(const struct build *build, const char *path, struct error *err) {
    FILE *file = fopen(path, "we");
    for (unsigned i = 0; file != NULL && i < build->source_count; i++)
        fprintf(file, "%s\n", build->source[i]);
    if (file == NULL || fclose(file) != 0)
        return error_set_errno(err, -errno, "%s", path);
    return 0;
}

/* apt on an empty system, with lists of our own: those stay, so that only news is fetched. */
struct apt_on_empty {
    char lists[PATH_MAX + 32], cache[PATH_MAX + 32], sources[PATH_MAX + 32];
    char status[PATH_MAX + 32];
};

static int make_apt(const struct build *build, struct apt_on_empty *apt, struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, build->root, ".apt/lists/partial", err);
    if (result == 0)
        result = make_directories(path, err);
    if (result == 0)
        result = path_join(path, build->root, ".apt/archives/partial", err);
    if (result == 0)
        result = make_directories(path, err);
    if (result == 0)
        result = in_work(build, "sources.list", path, err);
    if (result == 0)
        result = write_sources(build, path, err);
    snprintf(apt->sources, sizeof apt->sources, "-oDir::Etc::sourcelist=%s", path);
    if (result == 0)
        result = in_work(build, "status", path, err);
    int fd = result == 0 ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (fd >= 0)
        close(fd);
    snprintf(apt->status, sizeof apt->status, "-oDir::State::status=%s", path);
    snprintf(apt->lists, sizeof apt->lists, "-oDir::State::lists=%s/.apt/lists", build->root);
    snprintf(apt->cache, sizeof apt->cache, "-oDir::Cache=%s/.apt", build->root);
    return result;
}

static int apt_run(struct build *build, const struct apt_on_empty *apt, char *output,
                   const char *const *words, struct error *err) {
    const char *argv[ARGUMENTS] = {"apt-get",
                                   "-qq",
                                   apt->lists,
                                   apt->cache,
                                   apt->sources,
                                   apt->status,
                                   "-oDir::Etc::sourceparts=-",
                                   "-oAPT::Sandbox::User=",
                                   "-oDebug::NoLocking=1",
                                   "-oAPT::Install-Recommends=false",
                                   "-oAcquire::Languages=none"};
    unsigned n = 11;
    while (*words != NULL && n < ARGUMENTS - 1)
        argv[n++] = *words++;
    if (output == NULL)
        return run(build, argv, err);
    return program_run(&(struct program){.argv = argv, .output = output, .size = VERSIONS_SIZE},
                       err);
}

/* The tar's key, and with it where it is or will be. */
static int find_versions(struct build *build, uint64_t *hash, struct error *err) {
    struct apt_on_empty apt;
    char words[sizeof build->include + 64], *output = malloc(VERSIONS_SIZE), *save = NULL;
    const char *list[ARGUMENTS] = {"install", "-s", "?essential", "?priority(required)", "apt"};
    static const char *const update[] = {"update", NULL};
    unsigned n = 5;
    if (output == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    snprintf(words, sizeof words, "%s", build->include);
    for (char *word = strtok_r(words, ",", &save); word != NULL && n < ARGUMENTS - 12;
         word = strtok_r(NULL, ",", &save))
        list[n++] = word;
    fprintf(stderr, "lodge: %s: reading package lists\n", build->name);
    int result = make_apt(build, &apt, err);
    if (result == 0)
        result = apt_run(build, &apt, NULL, update, err);
    if (result == 0)
        result = apt_run(build, &apt, output, list, err);
    for (unsigned i = 0; i < build->source_count; i++)
        hash_text(hash, build->source[i], strlen(build->source[i]));
    hash_text(hash, build->include, strlen(build->include));
    hash_text(hash, debian_initramfs_hook, strlen(debian_initramfs_hook));
    if (result == 0 && hash_versions(hash, output) == 0)
        result = error_set(err, -ENOENT, "apt knows none of these packages");
    free(output);
    return result < 0 && result != -EINTR
               ? error_prefix(err,
                              "Debian's packages cannot be looked up; check network and mirror")
               : result;
}

static int make_keys(struct build *build, struct error *err) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325) ^ TAR_FORMAT;
    char name[64];
    struct file_bytes agent = {0};
    int result = find_versions(build, &hash, err);
    if (result < 0)
        return result;
    snprintf(name, sizeof name, ".base/%s-%016llx.tar", build->suite, (unsigned long long)hash);
    result = path_join(build->tar, build->root, name, err);
    if (result == 0)
        result = file_read(build->agent, &agent, err);
    if (result < 0)
        return result;
    hash_text(&hash, (const char *)agent.data, agent.length);
    file_free(&agent);
    hash ^= build->image->size + DISK_FORMAT;
    snprintf(build->image->key, sizeof build->image->key, "%016llx", (unsigned long long)hash);
    return 0;
}

/* ---- Packages into a tar ---- */

/* What a crash leaves is thrown away, so dpkg need not wait for the disk; for the build alone. */
static const char no_waiting[] = "--dpkgopt=force-unsafe-io";
static const char waiting_again[] = "--customize-hook=rm \"$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap\"";

static int run_mmdebstrap(struct build *build, const char *tar, struct error *err) {
    char include[sizeof build->include + 16], hook[1024];
    snprintf(include, sizeof include, "--include=%s", build->include);
    snprintf(hook, sizeof hook, "--essential-hook=%s", debian_initramfs_hook);
    const char *argv[] = {"mmdebstrap",
                          "--variant=minbase",
                          include,
                          hook,
                          "--aptopt=Acquire::Languages \"none\"",
                          no_waiting,
                          waiting_again,
                          "--format=tar",
                          build->suite,
                          tar,
                          build->source[0],
                          build->source_count > 1 ? build->source[1] : NULL,
                          build->source_count > 2 ? build->source[2] : NULL,
                          NULL};
    fprintf(stderr, "lodge: %s: a minute or a few, as fast as packages come\n", build->name);
    return run(build, argv, err);
}

static int make_tar(struct build *build, struct error *err) {
    char made[PATH_MAX], base[PATH_MAX];
    if (access(build->tar, R_OK) == 0)
        return 0;
    int result = in_work(build, "root.tar", made, err);
    if (result == 0)
        result = path_join(base, build->root, ".base", err);
    if (result == 0)
        result = run_mmdebstrap(build, made, err);
    if (result < 0)
        return result;
    remove_tree(base); /* the last one is kept: for another agent, another size */
    result = make_directories(base, err);
    if (result == 0 && rename(made, build->tar) < 0)
        result = error_set_errno(err, -errno, "%s", build->tar);
    return result;
}

/* ---- The tar onto a disk ---- */

/* Under fakeroot: owners and modes as in the tar, without being root. */
static const char fill_script[] =
    "set -eu\n"
    "tar=$1 work=$2 made=$3 uuid=$4 offset=$5 size=$6\n"
    "mkdir \"$work/root\"\n"
    "tar -C \"$work/root\" -xpf \"$tar\" --exclude='./dev/*'\n"
    "rm -f \"$work\"/root/etc/ssh/ssh_host_* \"$work\"/root/*.old \"$work/root/etc/resolv.conf\"\n"
    "tar -C \"$work/files\" -c . | tar -C \"$work/root\" -x --no-overwrite-dir\n"
    "cp \"$work\"/root/boot/vmlinuz-* \"$made/vmlinuz\"\n"
    "cp \"$work\"/root/boot/initrd.img-* \"$made/initrd\"\n"
    "mke2fs -q -t ext4 -O ^metadata_csum_seed,^orphan_file -d \"$work/root\" -U \"$uuid\""
    " -L debian -m 1 -E \"offset=$offset,assume_storage_prezeroed=1,root_owner=0:0\""
    " \"$made/disk.raw\" \"${size}k\" || { echo E: mke2fs could not make the file system; exit 1; "
    "}\n"
    "chmod u+w \"$made\"/*\n";

static int fill(struct build *build, const char *made, struct error *err) {
    char offset[32], size[32];
    struct disk_image *image = build->image;
    snprintf(offset, sizeof offset, "%llu", (unsigned long long)BOOTABLE_ROOT_OFFSET);
    snprintf(size, sizeof size, "%llu",
             (unsigned long long)(image->size - BOOTABLE_ROOT_OFFSET - BOOTABLE_END_SPARE) >> 10);
    const char *const argv[] = {"fakeroot", "--",       "sh",        "-c", fill_script,
                                "sh",       build->tar, build->work, made, image->root,
                                offset,     size,       NULL};
    fprintf(stderr, "lodge: %s: making the disk\n", build->name);
    return run(build, argv, err);
}

static int make_uuid(char text[48], struct error *err) {
    uint8_t u[16];
    if (getrandom(u, sizeof u, 0) != (ssize_t)sizeof u)
        return error_set_errno(err, -errno, "getrandom");
    u[6] = (u[6] & 0x0f) | 0x40; /* RFC 9562, version 4 */
    u[8] = (u[8] & 0x3f) | 0x80;
    snprintf(text, 48, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0],
             u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13],
             u[14], u[15]);
    return 0;
}

static int make_file(const char *path, uint64_t size, struct error *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    int result =
        fd < 0 || ftruncate(fd, (off_t)size) < 0 ? error_set_errno(err, -errno, "%s", path) : 0;
    if (fd >= 0)
        close(fd);
    return result;
}

/* The kernel that is in the tar has its release in its name. */
static int find_release(struct build *build, struct error *err) {
    char pattern[PATH_MAX], output[256];
    int result = in_work(build, "root/boot", pattern, err);
    const char *const argv[] = {"sh", "-c", "cd \"$1\" && ls vmlinuz-*", "sh", pattern, NULL};
    if (result == 0)
        result = program_run(
            &(struct program){.argv = argv, .output = output, .size = sizeof output}, err);
    if (result == 0)
        snprintf(build->image->release, sizeof build->image->release, "%.*s",
                 (int)strcspn(output + strlen("vmlinuz-"), "\n"), output + strlen("vmlinuz-"));
    return result;
}

static int make_disk(struct build *build, const char *made, struct error *err) {
    char files[PATH_MAX], disk[PATH_MAX];
    struct disk_image *image = build->image;
    int result = make_uuid(image->root, err);
    if (result == 0)
        result = in_work(build, "files", files, err);
    if (result == 0)
        result = path_join(disk, made, "disk.raw", err);
    if (result == 0)
        result = debian_write_files(files, build->agent, image->root, err);
    if (result == 0)
        result = make_file(disk, image->size, err);
    if (result == 0)
        result = fill(build, made, err);
    if (result == 0)
        result = find_release(build, err);
    if (result == 0)
        result = bootable_make(disk, image->size, image->root, build->work, err);
    return result;
}

/* ---- In place ---- */

/* Whole on the host's disk first, then seen. */
static int put_in_place(struct build *build, const char *made, struct error *err) {
    char place[PATH_MAX];
    int result = path_join(place, build->root, build->name, err);
    if (result < 0)
        return result;
    if (syncfs(build->lock) < 0)
        return error_set_errno(err, -errno, "%s", made);
    if (rename(made, place) == 0)
        return 0;
    /* The older one goes away with what is left of the work. */
    if (renameat2(AT_FDCWD, made, AT_FDCWD, place, RENAME_EXCHANGE) < 0)
        return error_set_errno(err, -errno, "%s", place);
    return 0;
}

static bool is_up_to_date(const struct build *build) {
    struct disk_image there;
    return image_find(build->name, &there, NULL) == 0 && strcmp(there.key, build->image->key) == 0;
}

static int make(struct build *build, struct error *err) {
    char made[PATH_MAX];
    int result = read_recipe(build, err);
    if (result == 0)
        result = bootable_check(err);
    if (result == 0)
        result = lock_store(build, err);
    if (result == 0)
        result = make_work(build, err);
    if (result == 0)
        result = make_keys(build, err);
    if (result < 0 || is_up_to_date(build))
        return result;
    snprintf(build->image->suite, sizeof build->image->suite, "%s", build->suite);
    if ((result = make_tar(build, err)) < 0 || (result = in_work(build, "made", made, err)) < 0 ||
        (result = make_directories(made, err)) < 0 || (result = make_disk(build, made, err)) < 0)
        return result;
    build->image->made = time(NULL);
    result = image_note(made, build->image, err);
    return result == 0 ? put_in_place(build, made, err) : result;
}

int image_build(const struct image_recipe *recipe, struct disk_image *image, struct error *err) {
    struct build *build = calloc(1, sizeof *build);
    if (build == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    *image = (struct disk_image){.size = recipe->size != 0 ? recipe->size : IMAGE_SIZE_DEFAULT};
    build->recipe = recipe;
    build->image = image;
    build->lock = -1;
    mode_t mask = umask(022); /* directories of the guest's are made here */
    interrupt_begin();
    int result = make(build, err);
    if (result == 0 && interrupt_seen() != 0)
        result = error_set(err, -EINTR, "interrupted");
    if (build->lock >= 0) {
        remove_tree(build->work);
        close(build->lock);
    }
    interrupt_end();
    umask(mask);
    if (result == 0)
        result = image_find(build->name, image, err);
    free(build);
    return result;
}
