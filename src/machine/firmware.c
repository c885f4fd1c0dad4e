#include "machine/firmware.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "device/flash.h"
#include "machine/layout.h"

#define OVMF_CODE    "/usr/share/OVMF/OVMF_CODE_4M.fd"
#define SEABIOS_FILE "/usr/share/seabios/bios-256k.bin"

/* A firmware volume's header (UEFI Platform Initialization specification, volume 3, 3.2.1). */
enum { VOLUME_GUID = 16, VOLUME_LENGTH = 32, VOLUME_SIGNATURE = 40, VOLUME_HEADER_LENGTH = 48 };
enum { VOLUME_HEADER_MIN = 56, STORE_FORMAT = 20, STORE_FORMATTED = 0x5a, STORE_HEALTHY = 0xfe };
enum { STORE_HEADER_SIZE = 28 };

/* The GUID of a volume with variables: fff12b8d-7696-4c8b-a985-2747075b4f50. */
static const uint8_t variables_guid[16] = {0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c,
                                           0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50};

struct bytes {
    uint8_t *data;
    size_t length;
};

struct firmware {
    struct bytes image, variables; /* variables.data NULL: none */
    int variables_fd;              /* -1: changes are not kept */
    bool summed;
    uint32_t sum; /* of the image, when it is summed */
    char description[512];
};

/* ---- Files ---- */

static int read_open(int fd, const char *path, struct bytes *bytes, struct error *err) {
    struct stat status;
    if (fstat(fd, &status) < 0)
        return error_set_errno(err, -errno, "%s", path);
    if (!S_ISREG(status.st_mode) || status.st_size < PAGE_SIZE ||
        status.st_size > (off_t)FIRMWARE_SIZE_MAX || status.st_size % PAGE_SIZE != 0)
        return error_set(err, -EINVAL,
                         "%s: no firmware file: one has a multiple of 4 KiB, up to %llu MiB", path,
                         (unsigned long long)(FIRMWARE_SIZE_MAX >> 20));
    *bytes = (struct bytes){malloc((size_t)status.st_size), (size_t)status.st_size};
    if (bytes->data == NULL) {
        error_set(err, -ENOMEM, "%s: out of memory", path);
        return -ENOMEM;
    }
    if (pread(fd, bytes->data, bytes->length, 0) != (ssize_t)bytes->length)
        return error_set(err, -EIO, "%s: cannot be read", path);
    return 0;
}

static int read_file(const char *path, struct bytes *bytes, struct error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return error_set_errno(err, -errno, "%s", path);
    int result = read_open(fd, path, bytes, err);
    close(fd);
    return result;
}

/* ---- The image ---- */

static int read_image(struct firmware *firmware, enum firmware_kind kind, const char *file,
                      struct error *err) {
    const char *path = kind == FIRMWARE_OVMF      ? OVMF_CODE
                       : kind == FIRMWARE_SEABIOS ? SEABIOS_FILE
                                                  : file;
    if (kind != FIRMWARE_FILE && access(path, F_OK) < 0)
        return error_set(err, -ENOENT,
                         "firmware: %s is not there; install it (apt install %s) or name a file "
                         "with --firmware FILE",
                         path, kind == FIRMWARE_OVMF ? "ovmf" : "seabios");
    int result = read_file(path, &firmware->image, err);
    if (result < 0)
        return error_prefix(err, "firmware");
    snprintf(firmware->description, sizeof firmware->description, "%s", path);
    return 0;
}

/* ---- Variables ---- */

/* The name of the template that belongs to an image: ..._CODE... to ..._VARS...; false: none. */
static bool template_of(const char *image, char *path, size_t size) {
    const char *name = strrchr(image, '/');
    const char *code = strstr(name != NULL ? name : image, "CODE");
    if (code == NULL)
        return false;
    int length = snprintf(path, size, "%.*sVARS%s", (int)(code - image), image, code + 4);
    /* Every flavour of code of one size takes the plain template. */
    char *flavour = strstr(path + (code - image), ".secboot");
    if (flavour != NULL && access(path, F_OK) < 0)
        memmove(flavour, flavour + 8, strlen(flavour + 8) + 1);
    return length > 0 && (size_t)length < size;
}

static uint16_t sum16(const uint8_t *bytes, size_t length) {
    uint16_t sum = 0;
    for (size_t i = 0; i + 1 < length; i += 2)
        sum += load_le16(bytes + i);
    return sum;
}

/* Why it is no store of variables; NULL: it is one. */
static const char *what_is_wrong(const struct bytes *store) {
    const uint8_t *volume = store->data;
    uint16_t header = load_le16(volume + VOLUME_HEADER_LENGTH);
    if (memcmp(volume + VOLUME_SIGNATURE, "_FVH", 4) != 0 ||
        memcmp(volume + VOLUME_GUID, variables_guid, sizeof variables_guid) != 0)
        return "it has no store of UEFI variables";
    if (load_le64(volume + VOLUME_LENGTH) != store->length)
        return "its header tells another size than the file's";
    if (header < VOLUME_HEADER_MIN || header > PAGE_SIZE - STORE_HEADER_SIZE ||
        sum16(volume, header) != 0)
        return "its header's checksum is wrong";
    if (volume[header + STORE_FORMAT] != STORE_FORMATTED ||
        volume[header + STORE_FORMAT + 1] != STORE_HEALTHY)
        return "its variables are not marked healthy";
    return NULL;
}

static int check_store(const struct bytes *store, size_t expected, const char *path,
                       struct error *err) {
    const char *wrong = what_is_wrong(store);
    if (wrong == NULL && store->length == expected)
        return 0;
    char size[96];
    snprintf(size, sizeof size, "it has %zu KiB, this firmware wants %zu", store->length >> 10,
             expected >> 10);
    return error_set(err, -EINVAL,
                     "firmware variables: %s: %s; remove the file to begin with fresh ones", path,
                     wrong != NULL ? wrong : size);
}

/* The file appears whole or not at all, even when two begin at once. */
static int create_store(const struct bytes *template, const char *path, struct error *err) {
    char temporary[4096];
    snprintf(temporary, sizeof temporary, "%.4000s.%d", path, (int)getpid());
    int fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set_errno(err, -errno, "firmware variables: %s", path);
    int result = 0;
    if (write(fd, template->data, template->length) != (ssize_t) template->length ||
        fsync(fd) < 0 || (link(temporary, path) < 0 && errno != EEXIST))
        result = error_set_errno(err, -errno, "firmware variables: %s: cannot be made", path);
    close(fd);
    unlink(temporary);
    return result;
}

static int open_store(struct firmware *firmware, const char *path, struct error *err) {
    struct bytes template = firmware->variables;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int result = access(path, F_OK) < 0 ? create_store(&template, path, err) : 0;
    if (result < 0)
        return result;
    firmware->variables_fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (firmware->variables_fd < 0)
        return error_set_errno(err, -errno, "firmware variables: %s", path);
    if (fcntl(firmware->variables_fd, F_OFD_SETLK, &lock) < 0)
        return error_set(err, -EBUSY, "firmware variables: %s: another VM uses them", path);
    firmware->variables = (struct bytes){0};
    result = read_open(firmware->variables_fd, path, &firmware->variables, err);
    if (result == 0 && firmware->variables.data != NULL)
        result = check_store(&firmware->variables, template.length, path, err);
    free(template.data);
    return result;
}

static int read_variables(struct firmware *firmware, const char *path, struct error *err) {
    char template[512] = "";
    bool has = template_of(firmware->description, template, sizeof template) &&
               access(template, F_OK) == 0;
    if (!has && path != NULL)
        return error_set(err, -EINVAL,
                         "--firmware-vars: %s keeps no UEFI variables, or %s is not there to begin "
                         "with; leave it out",
                         firmware->description,
                         template[0] != 0 ? template : "their template beside it");
    if (!has)
        return 0;
    int result = read_file(template, &firmware->variables, err);
    if (result == 0)
        result = check_store(&firmware->variables, firmware->variables.length, template, err);
    if (result != 0)
        return result;
    size_t used = strlen(firmware->description);
    snprintf(firmware->description + used, sizeof firmware->description - used,
             path != NULL ? ", variables in %s" : ", variables not kept", path);
    return path != NULL ? open_store(firmware, path, err) : 0;
}

/* ---- Life ---- */

int firmware_open(enum firmware_kind kind, const char *file, const char *variables,
                  struct firmware **firmware, struct error *err) {
    struct firmware *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->variables_fd = -1;
    int result = read_image(made, kind, file, err);
    if (result == 0)
        result = read_variables(made, variables, err);
    if (result < 0) {
        firmware_close(made);
        return result;
    }
    *firmware = made;
    return 0;
}

void firmware_close(struct firmware *firmware) {
    if (firmware == NULL)
        return;
    if (firmware->variables_fd >= 0)
        close(firmware->variables_fd);
    free(firmware->image.data);
    free(firmware->variables.data);
    free(firmware);
}

int firmware_map(struct firmware *firmware, struct platform *platform, struct device **flash,
                 struct error *err) {
    uint64_t base = LAYOUT_HIGH_RAM_BASE - firmware->image.length;
    int result = memory_add_rom(platform->memory, "firmware", base, firmware->image.length,
                                firmware->image.data, firmware->image.length, err);
    *flash = NULL;
    if (result < 0 || firmware->variables.data == NULL)
        return result;
    struct flash_config config = {.gpa = base - firmware->variables.length,
                                  .contents = firmware->variables.data,
                                  .size = firmware->variables.length,
                                  .fd = firmware->variables_fd};
    return device_create(&flash_class, FIRMWARE_FLASH, platform, &config, flash, err);
}

int firmware_start(struct firmware *firmware, struct memory *memory, struct error *err) {
    const struct bytes *image = &firmware->image;
    size_t length = image->length < LAYOUT_SHADOW_SIZE ? image->length : LAYOUT_SHADOW_SIZE;
    int result = memory_load(memory, LAYOUT_EXTENDED_BASE - length,
                             image->data + image->length - length, length);
    return result < 0 ? error_set(err, result, "the machine has no memory for its firmware") : 0;
}

/* ---- With snapshots ---- */

uint64_t firmware_sum(struct firmware *firmware, uint32_t *sum) {
    if (!firmware->summed)
        firmware->sum = crc32c(0, firmware->image.data, firmware->image.length);
    firmware->summed = true;
    *sum = firmware->sum;
    return firmware->image.length;
}

int firmware_keep(const struct firmware *firmware, const char *path, struct error *err) {
    const struct bytes *image = &firmware->image;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600), result = 0;
    if (fd < 0)
        return error_set_errno(err, -errno, "%s", path);
    for (size_t at = 0; at < image->length && result == 0;) {
        ssize_t done = write(fd, image->data + at, image->length - at);
        if (done < 0 && errno != EINTR)
            result = error_set_errno(err, -errno, "cannot write %s", path);
        at += done > 0 ? (size_t)done : 0;
    }
    if (result == 0 && fsync(fd) < 0)
        result = error_set_errno(err, -errno, "cannot write %s", path);
    close(fd);
    return result;
}

int firmware_take(struct firmware *firmware, struct memory *memory, const char *path,
                  struct error *err) {
    struct bytes *image = &firmware->image, taken = {0};
    int result = read_file(path, &taken, err);
    if (result == 0 && taken.length != image->length)
        result = error_set(err, -EINVAL, "%s has %zu KiB, the VM's firmware %zu", path,
                           taken.length >> 10, image->length >> 10);
    if (result == 0 && taken.data != NULL && memcmp(taken.data, image->data, image->length) != 0) {
        memcpy(image->data, taken.data, image->length);
        firmware->summed = false;
        result =
            memory_load(memory, LAYOUT_HIGH_RAM_BASE - image->length, image->data, image->length);
    }
    free(taken.data);
    return result;
}

/* UEFI's image is a firmware volume. */
bool firmware_is_uefi(const struct firmware *firmware) {
    return memcmp(firmware->image.data + VOLUME_SIGNATURE, "_FVH", 4) == 0;
}

const char *firmware_describe(const struct firmware *firmware) {
    return firmware->description;
}
