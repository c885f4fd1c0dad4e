#include <stdbool.h>

#include "machine/boot.h"

/* Offsets in the file, by the names of boot.rst. */
enum {
    SETUP_SECTS = 0x1f1,
    BOOT_FLAG = 0x1fe,
    JUMP_LENGTH = 0x201,
    HEADER_MAGIC = 0x202,
    PROTOCOL_VERSION = 0x206,
    LOADFLAGS = 0x211,
    INITRD_ADDR_MAX = 0x22c,
    KERNEL_ALIGNMENT = 0x230,
    RELOCATABLE_KERNEL = 0x234,
    XLOADFLAGS = 0x236,
    CMDLINE_SIZE = 0x238,
    PAYLOAD_OFFSET = 0x248,
    PAYLOAD_LENGTH = 0x24c,
    PREF_ADDRESS = 0x258,
    INIT_SIZE = 0x260,
    HEADER_END_212 = 0x268,
};

enum { LOADED_HIGH = 1, XLF_KERNEL_64 = 1, VERSION_MIN = 0x20c, SECTOR = 512, ENTRY_64 = 0x200 };

bool bzimage_recognise(struct boot_bytes file) {
    return file.length >= PROTOCOL_VERSION + 2 && load_le16(file.data + BOOT_FLAG) == 0xaa55 &&
           memcmp(file.data + HEADER_MAGIC, "HdrS", 4) == 0;
}

static int read_header(struct bzimage *image, struct error *err) {
    const uint8_t *p = image->file.data;
    image->version = load_le16(p + PROTOCOL_VERSION);
    if (image->version < VERSION_MIN)
        return error_set(err, -ENOEXEC, "Linux boot protocol %u.%02u is too old, lodge needs 2.12",
                         image->version >> 8, image->version & 0xff);
    if (image->file.length < HEADER_END_212)
        return error_set(err, -ENOEXEC, "the file ends in the middle of its setup header");
    if (!(p[LOADFLAGS] & LOADED_HIGH))
        return error_set(err, -ENOEXEC, "a zImage, lodge boots bzImages");
    uint32_t sectors = p[SETUP_SECTS] != 0 ? p[SETUP_SECTS] : 4;
    image->setup_size = (sectors + 1) * SECTOR;
    image->header_end = HEADER_MAGIC + p[JUMP_LENGTH];
    image->relocatable = p[RELOCATABLE_KERNEL] != 0;
    image->entry_64 = (load_le16(p + XLOADFLAGS) & XLF_KERNEL_64) != 0;
    image->alignment = load_le32(p + KERNEL_ALIGNMENT);
    image->init_size = load_le32(p + INIT_SIZE);
    image->preferred = load_le64(p + PREF_ADDRESS);
    image->initrd_max = load_le32(p + INITRD_ADDR_MAX);
    image->cmdline_max = load_le32(p + CMDLINE_SIZE);
    return 0;
}

int bzimage_parse(struct boot_bytes file, struct bzimage *image, struct error *err) {
    *image = (struct bzimage){.file = file};
    int result = read_header(image, err);
    if (result < 0)
        return result;
    if (image->header_end > file.length || image->header_end > image->setup_size)
        return error_set(err, -ENOEXEC, "its setup header does not end where it may");
    if (image->setup_size + ENTRY_64 >= file.length)
        return error_set(err, -ENOEXEC, "the file is truncated: it ends before the kernel begins");
    uint64_t offset = load_le32(file.data + PAYLOAD_OFFSET);
    uint64_t length = load_le32(file.data + PAYLOAD_LENGTH);
    uint64_t kernel_size = file.length - image->setup_size;
    if (!range_within(offset, length, kernel_size))
        return error_set(
            err, -ENOEXEC,
            "the file is truncated: it holds %llu bytes of kernel, the header names %llu",
            (unsigned long long)kernel_size, (unsigned long long)(offset + length));
    image->payload = (struct boot_bytes){file.data + image->setup_size + offset, length};
    return 0;
}
