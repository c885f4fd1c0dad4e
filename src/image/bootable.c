#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "image/build.h"
#include "image/file.h"

/*
 * In MiB: BIOS GRUB at 1, the EFI system partition at 2, the root at 40 to the end, which so can
 * grow. The root has number 1 all the same, as in other images of Debian.
 */
enum { MIB_SECTORS = 2048, BIOS_START = 1, BIOS_SIZE = 1, EFI_START = 2, EFI_SIZE = 38 };

#define GRUB_DIRECTORY "/usr/lib/grub"

/* Of GRUB 2's boot.img and diskboot.img: where the next stage's first sector is to be written, and
 * the room that code has before the partition table. */
enum { BOOT_CODE = 440, BOOT_KERNEL_SECTOR = 0x5c, DISKBOOT_FIRST_SECTOR = 0x1f4, SECTOR = 512 };

#define GRUB_MODULES                                                                               \
    "part_gpt", "ext2", "search", "search_fs_uuid", "normal", "linux", "configfile", "serial",     \
        "terminal", "echo", "test", "boot", "reboot", "halt", "ls", "cat"

static int run(const char *const *argv, struct error *err) {
    return program_run(&(struct program){.argv = argv, .quiet = true}, err);
}

/* ---- Files ---- */

static int write_at(const char *path, uint64_t offset, const void *data, size_t length,
                    struct error *err) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, -errno, "%s", path);
    ssize_t done = pwrite(fd, data, length, (off_t)offset);
    int result =
        done == (ssize_t)length ? 0 : error_set_errno(err, done < 0 ? -errno : -ENOSPC, "%s", path);
    close(fd);
    return result;
}

static int write_text(const char *path, const char *text, struct error *err) {
    FILE *file = fopen(path, "we");
    bool good = file != NULL && fputs(text, file) >= 0;
    if (file != NULL && fclose(file) != 0)
        good = false;
    return good ? 0 : error_set_errno(err, -errno, "%s", path);
}

/* ---- Partitions ---- */

static int partition(const char *disk, uint64_t size, const char *work, struct error *err) {
    char path[PATH_MAX], text[1024], command[PATH_MAX * 2 + 64];
    uint64_t root = BOOTABLE_ROOT_OFFSET / SECTOR;
    int result = path_join(path, work, "partitions", err);
    if (result < 0)
        return result;
    snprintf(text, sizeof text,
             "label: gpt\n"
             "14: start=%d, size=%d, type=21686148-6449-6E6F-744E-656564454649\n"
             "15: start=%d, size=%d, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n"
             "1: start=%llu, size=%llu, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n",
             BIOS_START * MIB_SECTORS, BIOS_SIZE * MIB_SECTORS, EFI_START * MIB_SECTORS,
             EFI_SIZE * MIB_SECTORS, (unsigned long long)root,
             (unsigned long long)((size - BOOTABLE_END_SPARE) / SECTOR - root));
    result = write_text(path, text, err);
    /* sfdisk takes its script from standard input alone. */
    snprintf(command, sizeof command, "exec sfdisk -q \"$1\" <\"$2\"");
    const char *const argv[] = {"sh", "-c", command, "sfdisk", disk, path, NULL};
    return result == 0 ? run(argv, err) : result;
}

/* ---- GRUB ---- */

/* Both find their menu, and what is in it, by the root's UUID. */
static int write_early(const char *work, const char *root_uuid, char path[PATH_MAX],
                       struct error *err) {
    char text[256];
    snprintf(text, sizeof text,
             "search --no-floppy --fs-uuid --set=root %s\n"
             "set prefix=($root)/boot/grub\n"
             "configfile ($root)/boot/grub/grub.cfg\n",
             root_uuid);
    int result = path_join(path, work, "early.cfg", err);
    return result == 0 ? write_text(path, text, err) : result;
}

static int efi_partition(const char *disk, const char *early, const char *work, struct error *err) {
    char loader[PATH_MAX], at[PATH_MAX + 16], size[16];
    int result = path_join(loader, work, "grub.efi", err);
    snprintf(at, sizeof at, "%s@@%dM", disk, EFI_START);
    snprintf(size, sizeof size, "%d", EFI_SIZE * MIB_SECTORS);
    const char *const image[] = {"grub-mkimage", "-O", "x86_64-efi", "-p",  "/boot/grub", "-c",
                                 early,          "-o", loader,       "fat", GRUB_MODULES, NULL};
    const char *const format[] = {"mformat", "-i", at,   "-T", size, "-h",  "64", "-s",
                                  "32",      "-F", "-c", "1",  "-v", "ESP", "::", NULL};
    const char *const directories[] = {"mmd", "-i", at, "::/EFI", "::/EFI/BOOT", NULL};
    const char *const copy[] = {"mcopy", "-i", at, loader, "::/EFI/BOOT/BOOTX64.EFI", NULL};
    if (result == 0)
        result = run(image, err);
    if (result == 0)
        result = run(format, err);
    if (result == 0)
        result = run(directories, err);
    return result == 0 ? run(copy, err) : result;
}

static int bios_partition(const char *disk, const char *early, const char *work,
                          struct error *err) {
    char core[PATH_MAX];
    struct file_bytes boot = {0}, image = {0};
    uint64_t start = BIOS_START * MIB_SECTORS;
    int result = path_join(core, work, "core.img", err);
    const char *const make[] = {"grub-mkimage", "-O", "i386-pc", "-p",       "/boot/grub", "-c",
                                early,          "-o", core,      "biosdisk", GRUB_MODULES, NULL};
    if (result == 0)
        result = run(make, err);
    if (result == 0)
        result = file_read(GRUB_DIRECTORY "/i386-pc/boot.img", &boot, err);
    if (result == 0)
        result = file_read(core, &image, err);
    if (result == 0 && (boot.length != SECTOR || image.length < SECTOR ||
                        image.length > BIOS_SIZE * MIB_SECTORS * SECTOR))
        result = error_set(err, -EINVAL, "this GRUB's files have other sizes than GRUB 2's");
    if (result == 0) {
        store_le64(boot.data + BOOT_KERNEL_SECTOR, start);
        store_le64(image.data + DISKBOOT_FIRST_SECTOR, start + 1);
        result = write_at(disk, 0, boot.data, BOOT_CODE, err);
    }
    if (result == 0)
        result = write_at(disk, start * SECTOR, image.data, image.length, err);
    file_free(&boot);
    file_free(&image);
    return result;
}

int bootable_make(const char *disk, uint64_t size, const char *root_uuid, const char *work,
                  struct error *err) {
    char early[PATH_MAX];
    int result = partition(disk, size, work, err);
    if (result == 0)
        result = write_early(work, root_uuid, early, err);
    if (result == 0)
        result = efi_partition(disk, early, work, err);
    return result == 0 ? bios_partition(disk, early, work, err) : result;
}

/* ---- What must be there ---- */

int bootable_check(struct error *err) {
    static const char *const needed[][2] = {
        {"apt-get", "apt"},
        {"mmdebstrap", "mmdebstrap"},
        {"fakeroot", "fakeroot"},
        {"mke2fs", "e2fsprogs"},
        {"sfdisk", "fdisk"},
        {"mformat", "mtools"},
        {"grub-mkimage", "grub-common"},
        {GRUB_DIRECTORY "/i386-pc/boot.img", "grub-pc-bin"},
        {GRUB_DIRECTORY "/x86_64-efi/kernel.img", "grub-efi-amd64-bin"},
    };
    char packages[256] = "", path[PATH_MAX];
    const char *first = NULL;
    for (size_t i = 0; i < ARRAY_SIZE(needed); i++) {
        const char *what = needed[i][0];
        if (what[0] == '/' ? access(what, R_OK) == 0 : program_find(what, path))
            continue;
        first = first != NULL ? first : what;
        size_t used = strlen(packages);
        snprintf(packages + used, sizeof packages - used, " %s", needed[i][1]);
    }
    if (first == NULL)
        return 0;
    return error_set(err, -ENOENT, "%s is not installed; images are built with it: apt install%s",
                     first, packages);
}
