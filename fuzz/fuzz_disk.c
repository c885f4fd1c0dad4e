/*
 * Hostile images in lodge's format. The input is a list of changes to a good
 * image: block, offset, length, bytes. Checksums are made good again, so that
 * the fields behind them are reached. Then: check, open, read, write, flush.
 */
#include <stdlib.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "block/disk/disk.h"
#include "block/sync.h"
#include "memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { BLOCKS = 64, CHANGE = 5 };
#define DISK_SIZE MIB(1100)

static struct memory_file file, good;
static const struct disk_options writable = {.inline_commits = true,
                                             .file_limit = MEMORY_FILE_LIMIT},
                                 readonly = {.inline_commits = true, .readonly = true};

static void must(int result) {
    if (result != 0)
        abort();
}

/* Two levels of tables, a snapshot, something in the journal. */
static void make_good(void) {
    static uint8_t bytes[5 * DISK_BLOCK];
    struct disk_create create = {.size = DISK_SIZE, .journal_blocks = DISK_JOURNAL_MIN};
    struct block *disk, *below = memory_file_open(&good, bytes, 0);
    must(disk_format(below, &create, NULL));
    must(disk_open(below, NULL, &writable, &disk, NULL));
    memset(bytes, 0x11, sizeof bytes);
    must(block_write(disk, 0, bytes, sizeof bytes));
    must(block_write(disk, MIB(1000), bytes, sizeof bytes));
    must(disk_snapshot_create(disk, "one", NULL));
    must(block_write(disk, 8192, bytes, 4096));
    must(block_flush(disk));
    block_close(disk);
    must(disk_open(below, NULL, &writable, &disk, NULL));
    must(block_write(disk, MIB(3), bytes, sizeof bytes));
    must(block_flush(disk));
    /* As a crash leaves it. */
    memcpy(file.bytes, good.bytes, sizeof file.bytes);
    uint64_t length = good.block.info.size;
    block_close(disk);
    memcpy(good.bytes, file.bytes, sizeof good.bytes);
    good.block.info.size = length;
}

static void seal(uint8_t *block, size_t at) {
    static const uint8_t zero[4];
    uint32_t crc = crc32c(crc32c(0, block, at), zero, sizeof zero);
    store_le32(block + at, crc32c(crc, block + at + 4, DISK_BLOCK - at - 4));
}

static void change(const uint8_t *data, size_t size) {
    while (size >= CHANGE) {
        uint8_t *block = file.bytes + data[0] % BLOCKS * (size_t)DISK_BLOCK;
        size_t at = load_le16(data + 1) % DISK_BLOCK, length = data[3] % 32;
        length = length > size - CHANGE ? size - CHANGE : length;
        length = length > DISK_BLOCK - at ? DISK_BLOCK - at : length;
        memcpy(block + at, data + CHANGE, length);
        if ((data[4] & 1) != 0)
            seal(block, disk_probe(block, DISK_BLOCK) ? 12 : 4);
        data += CHANGE + length;
        size -= CHANGE + length;
    }
}

static void use(struct block *disk, bool write) {
    static uint8_t bytes[5 * DISK_BLOCK];
    static const uint64_t places[] = {0, 512, 8192, MIB(2), MIB(3), MIB(1000), MIB(1090)};
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        if (places[i] + sizeof bytes > disk->info.size)
            continue;
        block_read(disk, places[i], bytes, sizeof bytes);
        if (write && i % 2 == 0)
            block_write(disk, places[i] + 1024, bytes, 3 * DISK_BLOCK);
        if (write && i % 2 == 1)
            block_write_zeroes(disk, places[i], 2 * DISK_BLOCK, true);
    }
    block_flush(disk);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct disk_check check = {0};
    struct block *disk;
    if (good.block.class == NULL)
        make_good();
    log_set_level(LOG_ERROR);
    struct block *below = memory_file_open(&file, good.bytes, (size_t)good.block.info.size);
    change(data, size);
    disk_check(below, &check, NULL);
    if (disk_open(below, NULL, &readonly, &disk, NULL) == 0) {
        use(disk, false);
        block_close(disk);
    }
    if (disk_open(below, NULL, &writable, &disk, NULL) == 0) {
        use(disk, true);
        disk_snapshot_apply(disk, "one", NULL);
        use(disk, true);
        disk_snapshot_remove(disk, "one", NULL, NULL);
        block_close(disk);
    }
    return 0;
}
