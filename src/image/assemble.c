/* Puts the default guest's two files together from its packages. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image/cpio.h"
#include "image/file.h"
#include "image/guest.h"
#include "image/modules.h"

static const struct {
    const char *path;
    unsigned mode;
} directories[] = {
    {"bin", 0755}, {"dev", 0755},     {"etc", 0755},      {"lib", 0755},     {"lib/modules", 0755},
    {"mnt", 0755}, {"proc", 0755},    {"root", 0700},     {"run", 0755},     {"sbin", 0755},
    {"sys", 0755}, {"tmp", 01777},    {"usr", 0755},      {"usr/bin", 0755}, {"usr/sbin", 0755},
    {"var", 0755}, {"var/log", 0755}, {"var/tmp", 01777},
};

static const struct {
    const char *path, *text;
    unsigned mode;
} texts[] = {
    {"etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
     0644},
    {"etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n", 0644},
    {"etc/hosts", "127.0.0.1 localhost lodge\n::1 localhost\n", 0644},
    {"etc/hostname", "lodge\n", 0644},
    {"etc/profile", "export PS1='\\u@\\h:\\w\\$ '\n", 0644},
    {"etc/udhcpc.script",
     "#!/bin/sh\n"
     "case $1 in\n"
     "bound|renew)\n"
     "    ifconfig $interface $ip netmask ${subnet:-255.255.255.0}\n"
     "    for r in $router; do route add default gw $r dev $interface; done\n"
     "    for d in $dns; do echo nameserver $d; done >/etc/resolv.conf\n"
     "    ;;\n"
     "esac\n",
     0755},
};

/* ---- busybox ---- */

static int put_applets(struct cpio *cpio, const char *busybox, struct error *err) {
    static char list[32 << 10];
    const char *const argv[] = {busybox, "--list-full", NULL};
    struct program program = {.argv = argv, .output = list, .size = sizeof list};
    int result = program_run(&program, err);
    char *save = NULL;
    for (char *applet = strtok_r(list, "\n", &save); applet != NULL && result == 0;
         applet = strtok_r(NULL, "\n", &save)) {
        /* sbin/modprobe and usr/bin/env alike; lodge-agent is the init. */
        if (strcmp(applet, "sbin/init") != 0 && strcmp(applet, "bin/busybox") != 0 &&
            strcmp(applet, "linuxrc") != 0)
            result = cpio_symlink(cpio, applet, "/bin/busybox", err);
    }
    return result;
}

/* ---- The archive ---- */

static int put_skeleton(struct cpio *cpio, struct error *err) {
    int result = 0;
    for (size_t i = 0; i < sizeof directories / sizeof directories[0] && result == 0; i++)
        result = cpio_directory(cpio, directories[i].path, directories[i].mode, err);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0] && result == 0; i++)
        result = cpio_data(cpio, texts[i].path, texts[i].mode, texts[i].text, strlen(texts[i].text),
                           err);
    if (result == 0) /* until devtmpfs is mounted: where init's first lines go */
        result = cpio_device(cpio, "dev/console", 0600, 5, 1, err);
    return result;
}

static int pack(struct cpio *cpio, const char *root, const char *release, const char *agent,
                struct error *err) {
    char busybox[PATH_MAX], modules[PATH_MAX];
    snprintf(busybox, sizeof busybox, "%s/bin/busybox", root);
    snprintf(modules, sizeof modules, "%s/lib/modules/%s", root, release);
    int result = put_skeleton(cpio, err);
    if (result == 0)
        result = cpio_file(cpio, "init", 0755, agent, err);
    if (result == 0)
        result = cpio_file(cpio, "bin/busybox", 0755, busybox, err);
    if (result == 0)
        result = put_applets(cpio, busybox, err);
    if (result == 0)
        result = modules_pack(modules, release, cpio, err);
    return result == 0 ? cpio_finish(cpio, err) : result;
}

static int write_initrd(const char *path, const char *root, const char *release, const char *agent,
                        struct error *err) {
    struct cpio cpio = {.file = fopen(path, "we")};
    if (cpio.file == NULL)
        return error_set_errno(err, -errno, "%s", path);
    int result = pack(&cpio, root, release, agent, err);
    if (result == 0 && fsync(fileno(cpio.file)) < 0)
        result = error_set_errno(err, -errno, "%s", path);
    if (fclose(cpio.file) != 0 && result == 0)
        result = error_set_errno(err, -errno, "%s", path);
    return result;
}

/* ---- The packages' contents ---- */

static int unpack(const char *package, const char *root, struct error *err) {
    const char *const argv[] = {"dpkg-deb", "-x", package, root, NULL};
    struct program program = {.argv = argv};
    return program_run(&program, err);
}

/* The name of the one kernel in root/boot, "vmlinuz-RELEASE". */
static int find_release(const char *root, char release[128], struct error *err) {
    char boot[PATH_MAX];
    int result = path_join(boot, root, "boot", err);
    if (result < 0)
        return result;
    DIR *directory = opendir(boot);
    struct dirent *entry;
    release[0] = 0;
    while (directory != NULL && (entry = readdir(directory)) != NULL)
        sscanf(entry->d_name, "vmlinuz-%127s", release);
    if (directory != NULL)
        closedir(directory);
    return release[0] != 0 ? 0 : error_set(err, -ENOENT, "%s: the package has no kernel", boot);
}

static int place_kernel(const char *root, const char *release, const char *directory,
                        struct error *err) {
    char from[PATH_MAX], to[PATH_MAX];
    snprintf(from, sizeof from, "%s/boot/vmlinuz-%s", root, release);
    int result = path_join(to, directory, "vmlinuz", err);
    if (result == 0 && rename(from, to) < 0)
        result = error_set_errno(err, -errno, "%s", to);
    return result;
}

int guest_assemble(const struct guest_packages *packages, const char *agent, const char *work,
                   const char *directory, struct error *err) {
    char initrd[PATH_MAX], release[128];
    int result = path_join(initrd, directory, "initrd.cpio", err);
    if (result == 0)
        result = unpack(packages->kernel, work, err);
    if (result == 0)
        result = unpack(packages->busybox, work, err);
    if (result == 0)
        result = find_release(work, release, err);
    if (result == 0)
        result = place_kernel(work, release, directory, err);
    return result == 0 ? write_initrd(initrd, work, release, agent, err) : result;
}
