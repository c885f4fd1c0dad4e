#include "block/sync.h"
#include "machine/firmware.h"

enum { SECTOR = 512, MBR_CODE = 440, MBR_TABLE = 446, MBR_ENTRY = 16, MBR_ENTRIES = 4 };
enum { ENTRY_TYPE = 4, ENTRY_SECTORS = 12, TYPE_EFI = 0xef, MBR_SIGNATURE = 0xaa55 };
enum { GPT_TABLE = 72, GPT_COUNT = 80, GPT_ENTRY_SIZE = 84, GPT_ENTRIES_MAX = 128 };
enum { GPT_ENTRY_MIN = 128, GPT_ENTRY_MAX = 4096, GPT_GUID_SIZE = 16 };

/* c12a7328-f81f-11d2-ba4b-00a0c93ec93b: an EFI system partition. */
static const uint8_t efi_system[GPT_GUID_SIZE] = {0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11,
                                                  0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b};

static bool read_at(struct block *disk, uint64_t offset, void *to, size_t length) {
    return range_within(offset, length, disk->info.size) &&
           block_read(disk, offset, to, length) == 0;
}

static bool gpt_has_efi(struct block *disk) {
    uint8_t header[SECTOR], type[GPT_GUID_SIZE];
    if (!read_at(disk, SECTOR, header, sizeof header) || memcmp(header, "EFI PART", 8) != 0)
        return false;
    uint64_t table = load_le64(header + GPT_TABLE);
    uint32_t count = load_le32(header + GPT_COUNT), size = load_le32(header + GPT_ENTRY_SIZE);
    if (table > INT64_MAX / SECTOR || size < GPT_ENTRY_MIN || size > GPT_ENTRY_MAX)
        return false;
    for (uint32_t i = 0; i < count && i < GPT_ENTRIES_MAX; i++)
        if (read_at(disk, table * SECTOR + (uint64_t)i * size, type, sizeof type) &&
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

/* ---- CDs (El Torito specification 1.0; platform EFh: UEFI 2.10, 13.3.2.1) ---- */

enum { CD_SECTOR = 2048, CD_BOOT_RECORD = 17, CD_CATALOG = 0x47, CATALOG_ENTRY = 32 };
enum { CATALOG_PLATFORM = 1, CATALOG_BOOTABLE = 0x88, HEADER_MORE = 0x90, HEADER_LAST = 0x91 };

/* A section for EFI may follow the default entry, which as a rule is for a BIOS. */
static bool catalog_has_efi(const uint8_t *catalog) {
    if (catalog[CATALOG_PLATFORM] == TYPE_EFI)
        return true;
    for (unsigned at = 2 * CATALOG_ENTRY; at < CD_SECTOR; at += CATALOG_ENTRY)
        if ((catalog[at] == HEADER_MORE || catalog[at] == HEADER_LAST) &&
            catalog[at + CATALOG_PLATFORM] == TYPE_EFI)
            return true;
    return false;
}

static enum firmware_kind detect_cd(struct block *disk) {
    static const char identifier[] = "\0CD001\1EL TORITO SPECIFICATION";
    uint8_t sector[CD_SECTOR];
    if (!read_at(disk, CD_BOOT_RECORD * CD_SECTOR, sector, sizeof sector) ||
        memcmp(sector, identifier, sizeof identifier - 1) != 0)
        return FIRMWARE_NONE;
    uint64_t catalog = load_le32(sector + CD_CATALOG);
    if (!read_at(disk, catalog * CD_SECTOR, sector, sizeof sector) || sector[0] != 1)
        return FIRMWARE_NONE;
    if (catalog_has_efi(sector))
        return FIRMWARE_OVMF;
    return sector[CATALOG_ENTRY] == CATALOG_BOOTABLE ? FIRMWARE_SEABIOS : FIRMWARE_NONE;
}

static enum firmware_kind detect(struct block *disk) {
    uint8_t mbr[SECTOR], code = 0;
    bool efi = false;
    enum firmware_kind cd = detect_cd(disk); /* which may have a partition table as well */
    if (cd != FIRMWARE_NONE)
        return cd;
    if (!read_at(disk, 0, mbr, sizeof mbr) || load_le16(mbr + SECTOR - 2) != MBR_SIGNATURE ||
        !mbr_is_table(mbr, &efi))
        return FIRMWARE_NONE;
    if (efi || gpt_has_efi(disk))
        return FIRMWARE_OVMF;
    for (unsigned i = 0; i < MBR_CODE; i++)
        code |= mbr[i];
    return code ? FIRMWARE_SEABIOS : FIRMWARE_NONE;
}

enum firmware_kind firmware_detect(const char *path, const struct block_options *options) {
    struct block_options look = *options;
    struct block *disk;
    look.readonly = true;
    if (block_open(path, &look, &disk, NULL) < 0)
        return FIRMWARE_NONE;
    enum firmware_kind kind = detect(disk);
    block_close(disk);
    return kind;
}
