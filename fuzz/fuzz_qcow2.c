/* Hostile qcow2 images: opened, the name of their backing read, read here and there. */
#include "base/log.h"
#include "block/qcow2.h"
#include "block/sync.h"
#include "memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct memory_file file;
    static uint8_t bytes[70000 / 512 * 512];
    struct qcow2_backing backing;
    struct block *image, *below = memory_file_open(&file, data, size);
    log_set_level(LOG_ERROR);
    qcow2_read_backing(below, &backing, NULL);
    if (qcow2_open(below, NULL, &image, NULL) != 0)
        return 0;
    for (unsigned i = 0; i < 8; i++) {
        uint64_t at = round_down(image->info.size / 8 * i, 512);
        if (range_within(at, sizeof bytes, image->info.size))
            block_read(image, at, bytes, sizeof bytes);
    }
    if (image->info.size <= sizeof bytes)
        block_read(image, 0, bytes, image->info.size);
    block_close(image);
    return 0;
}
