#include <fcntl.h>
#include <unistd.h>

#include "machine/firmware.h"

enum { SECTOR = 512, MBR_CODE = 440, MBR_TABLE = 446, MBR_ENTRY = 16, MBR_ENTRIES = 4 };
enum { ENTRY_TYPE = 4, ENTRY_SECTORS = 12, TYPE_EFI = 0xef, MBR_SIGNATURE = 0xaa55 };
enum { GPT_TABLE = 72, GPT_COUNT = 80, GPT_ENTRY_SIZE = 84, GPT_ENTRIES_MAX = 128 };
enum { GPT_ENTRY_MIN = 128, GPT_ENTRY_MAX = 4096, GPT_GUID_SIZE = 16 };

/* c12a7328-f81f-11d2-ba4b-00a0c93ec93b: an EFI system partition. */
static const uint8_t efi_system[GPT_GUID_SIZE] = {0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11,
                                                  0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b};

static bool read_at(int fd, uint64_t offset, void *to, size_t length) {
    return offset <= INT64_MAX && pread(fd, to, length, (off_t)offset) == (ssize_t)length;
}

static bool gpt_has_efi(int fd) {
    uint8_t header[SECTOR], type[GPT_GUID_SIZE];
    if (!read_at(fd, SECTOR, header, sizeof header) || memcmp(header, "EFI PART", 8) != 0)
        return false;
    uint64_t table = load_le64(header + GPT_TABLE);
    uint32_t count = load_le32(header + GPT_COUNT), size = load_le32(header + GPT_ENTRY_SIZE);
    if (table > INT64_MAX / SECTOR || size < GPT_ENTRY_MIN || size > GPT_ENTRY_MAX)
        return false;
    for (uint32_t i = 0; i < count && i < GPT_ENTRIES_MAX; i++)
        if (read_at(fd, table * SECTOR + (uint64_t)i * size, type, sizeof type) &&
            memcmp(type, efi_system, sizeof type) == 0)
            return true;
    return false;
}

/* What looks like a partition table: a FAT file system's first sector has a signature, too. */
static bool mbr_is_table(const uint8_t *mbr, bool *efi) {
    unsigned used = 0;
    for (unsigned i = 0; i < MBR_ENTRIES; i++) {
        const uint8_t *entry = mbr + MBR_TABLE + i * MBR_ENTRY;
        if (entry[0] & 0x7f)
            return false;
        used += entry[ENTRY_TYPE] != 0 && load_le32(entry + ENTRY_SECTORS) != 0;
        *efi |= entry[ENTRY_TYPE] == TYPE_EFI;
    }
    return used > 0;
}

static enum firmware_kind detect(int fd) {
    uint8_t mbr[SECTOR], code = 0;
    bool efi = false;
    if (!read_at(fd, 0, mbr, sizeof mbr) || load_le16(mbr + SECTOR - 2) != MBR_SIGNATURE ||
        !mbr_is_table(mbr, &efi))
        return FIRMWARE_NONE;
    if (efi || gpt_has_efi(fd))
        return FIRMWARE_OVMF;
    for (unsigned i = 0; i < MBR_CODE; i++)
        code |= mbr[i];
    return code ? FIRMWARE_SEABIOS : FIRMWARE_NONE;
}

enum firmware_kind firmware_detect(const char *disk) {
    int fd = open(disk, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return FIRMWARE_NONE;
    enum firmware_kind kind = detect(fd);
    close(fd);
    return kind;
}
