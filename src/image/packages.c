/* The default guest's packages, by way of the host's own apt: its sources, keys and proxies. */
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image/file.h"
#include "image/guest.h"

#define KERNEL_METAPACKAGE "linux-image-cloud-amd64"
#define BUSYBOX_PACKAGE    "busybox-static"

/* ---- Found ---- */

/* The one file that matches; the last by name when there are several. */
static int find_one(const char *directory, const char *pattern, char path[PATH_MAX],
                    struct error *err) {
    char whole[PATH_MAX];
    glob_t found;
    int result = path_join(whole, directory, pattern, err);
    if (result < 0)
        return result;
    if (glob(whole, 0, NULL, &found) != 0)
        return error_set(err, -ENOENT, "%s: not there", whole);
    snprintf(path, PATH_MAX, "%s", found.gl_pathv[found.gl_pathc - 1]);
    globfree(&found);
    return 0;
}

int packages_find(const char *directory, struct guest_packages *packages, struct error *err) {
    int result = find_one(directory, "linux-image-*-cloud-amd64_*.deb", packages->kernel, err);
    return result < 0 ? result
                      : find_one(directory, "busybox-static_*.deb", packages->busybox, err);
}

/* ---- Fetched ---- */

/* Options that keep apt off the system's own state, so that no root is needed; filled by
 * apt_options. */
struct apt {
    char lists[PATH_MAX + 32], archives[PATH_MAX + 32];
    bool own_lists;
};

enum { APT_ARGUMENTS = 16 };

static void apt_arguments(const struct apt *apt, const char *argv[APT_ARGUMENTS],
                          const char *const *words) {
    unsigned n = 0;
    argv[n++] = *words++;
    argv[n++] = "-oAPT::Sandbox::User=";
    argv[n++] = "-oDebug::NoLocking=1";
    argv[n++] = apt->archives;
    argv[n++] = isatty(STDERR_FILENO) ? "-q=0" : "-qq";
    if (apt->own_lists)
        argv[n++] = apt->lists;
    while (*words != NULL && n < APT_ARGUMENTS - 1)
        argv[n++] = *words++;
    argv[n] = NULL;
}

static int apt_run(const struct apt *apt, const char *directory, char *output, size_t size,
                   const char *const *words, struct error *err) {
    const char *argv[APT_ARGUMENTS];
    apt_arguments(apt, argv, words);
    struct program program = {.argv = argv,
                              .directory = directory,
                              .output = output,
                              .size = size,
                              .quiet = output != NULL};
    return program_run(&program, err);
}

/* The real kernel package's name: what the metapackage depends on. */
static int resolve_kernel(const struct apt *apt, char name[128], struct error *err) {
    char output[4096];
    const char *const words[] = {"apt-cache", "depends", KERNEL_METAPACKAGE, NULL};
    int result = apt_run(apt, NULL, output, sizeof output, words, err);
    if (result < 0)
        return result;
    const char *at = strstr(output, "Depends: linux-image-");
    if (at == NULL || sscanf(at, "Depends: %127s", name) != 1)
        return error_set(err, -ENOENT, "apt knows no package " KERNEL_METAPACKAGE);
    return 0;
}

static int make_apt(const char *cache, struct apt *apt, struct error *err) {
    char lists[PATH_MAX], archives[PATH_MAX];
    int result = path_join(lists, cache, "apt/lists/partial", err);
    if (result == 0)
        result = path_join(archives, cache, "apt/archives/partial", err);
    if (result == 0)
        result = make_directories(lists, err);
    if (result == 0)
        result = make_directories(archives, err);
    *apt = (struct apt){0};
    snprintf(apt->lists, sizeof apt->lists, "-oDir::State::lists=%.*s",
             (int)(strlen(lists) - strlen("/partial")), lists);
    snprintf(apt->archives, sizeof apt->archives, "-oDir::Cache=%.*s",
             (int)(strlen(archives) - strlen("/archives/partial")), archives);
    return result;
}

/* The system's package lists may be missing (containers) or old: then lists of our own. */
static int update_lists(struct apt *apt, struct error *err) {
    const char *const words[] = {"apt-get", "update", NULL};
    fprintf(stderr, "lodge: reading package lists\n");
    apt->own_lists = true;
    return apt_run(apt, NULL, NULL, 0, words, err);
}

static int download(const struct apt *apt, const char *directory, const char *kernel,
                    struct error *err) {
    const char *const words[] = {"apt-get", "download", kernel, BUSYBOX_PACKAGE, NULL};
    fprintf(stderr, "lodge: downloading %s and %s\n", kernel, BUSYBOX_PACKAGE);
    return apt_run(apt, directory, NULL, 0, words, err);
}

/* One attempt with the lists that apt has, or with lists of our own. */
static int try_fetch(const struct apt *apt, const char *directory, struct error *err) {
    char kernel[128];
    int result = resolve_kernel(apt, kernel, err);
    return result == 0 ? download(apt, directory, kernel, err) : result;
}

int packages_fetch(const char *cache, const char *directory, struct error *err) {
    struct apt apt;
    struct error reason = {0};
    int result = make_apt(cache, &apt, err);
    if (result < 0)
        return result;
    result = try_fetch(&apt, directory, &reason);
    if ((result == -ECHILD || result == -ENOENT) && (result = update_lists(&apt, &reason)) == 0)
        result = try_fetch(&apt, directory, &reason);
    if (result == -EINTR)
        return error_set(err, result, "%s", reason.text);
    if (result < 0)
        return error_set(err, result,
                         "the default guest's packages could not be fetched: %.200s; check the "
                         "network and apt's sources, or give --kernel and --initrd",
                         reason.text);
    return 0;
}
