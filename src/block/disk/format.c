#include "block/disk/format.h"

#include <string.h>

#include "base/bytes.h"
#include "base/crc32c.h"

static const char MAGIC[8] = "LODGEDSK";
static const uint32_t TABLE_MAGIC = 0x3154444c, JOURNAL_MAGIC = 0x314a444c,
                      SNAPSHOTS_MAGIC = 0x3153444c; /* "LDT1", "LDJ1", "LDS1" */

/* Offsets in the superblock. */
enum {
    SB_VERSION = 8,
    SB_CHECKSUM = 12,
    SB_INCOMPATIBLE = 16,
    SB_COMPATIBLE = 24,
    SB_SEQUENCE = 32,
    SB_UUID = 40,
    SB_TREE = 56,
    SB_GENERATION = 88,
    SB_NEXT_SNAPSHOT = 92,
    SB_SNAPSHOTS = 96,
    SB_SNAPSHOT_COUNT = 104,
    SB_JOURNAL_BLOCKS = 108,
    SB_JOURNAL = 112,
    SB_JOURNAL_EPOCH = 120,
    SB_JOURNAL_SEQUENCE = 128,
    SB_BACKING_FORMAT = 256,
    SB_BACKING_SNAPSHOT = 384,
    SB_BACKING_PATH = 512,
};

/* In every other metadata block: magic, checksum, then the rest; contents begin at HEADER. */
enum { MAGIC_AT = 0, CHECKSUM_AT = 4, HEADER = 64 };
enum { TABLE_LEVEL = 8, TABLE_BIRTH = 12, TABLE_INDEX = 16 };
enum { JOURNAL_EPOCH = 8, JOURNAL_SEQUENCE = 16, JOURNAL_COUNT = 24, RECORD_SIZE = 16 };
enum { SNAPSHOTS_COUNT = 8, SNAPSHOTS_INDEX = 12, SNAPSHOT_SIZE = 256 };
enum {
    SNAPSHOT_TREE = 0,
    SNAPSHOT_ID = 32,
    SNAPSHOT_GENERATION = 36,
    SNAPSHOT_CREATED = 40,
    SNAPSHOT_FLAGS = 48,
    SNAPSHOT_NAME = 128,
};
enum { SNAPSHOT_HIDDEN = 1 };
enum { TREE_SIZE = 0, TREE_ROOT = 8, TREE_BACKING_LIMIT = 16, TREE_LEVELS = 24, TREE_PARENT = 28 };
enum { FIRST_BITS = 40 };

/* ---- Checksums: of the whole block, with the field itself as zero ---- */

static uint32_t checksum(const uint8_t *block, size_t at) {
    static const uint8_t zero[4];
    uint32_t crc = crc32c(0, block, at);
    crc = crc32c(crc, zero, sizeof zero);
    return crc32c(crc, block + at + sizeof zero, DISK_BLOCK - at - sizeof zero);
}

static void begin(uint8_t *block, uint32_t magic) {
    memset(block, 0, DISK_BLOCK);
    store_le32(block + MAGIC_AT, magic);
}

static void seal(uint8_t *block) {
    store_le32(block + CHECKSUM_AT, checksum(block, CHECKSUM_AT));
}

static bool sound(const uint8_t *block, uint32_t magic) {
    return load_le32(block + MAGIC_AT) == magic &&
           load_le32(block + CHECKSUM_AT) == checksum(block, CHECKSUM_AT);
}

/* ---- Trees ---- */

uint64_t disk_span(uint32_t level) {
    uint64_t span = 1;
    while (level-- > 0)
        span *= DISK_ENTRIES;
    return span;
}

uint32_t disk_levels(uint64_t size) {
    uint64_t blocks = size / DISK_BLOCK + (size % DISK_BLOCK != 0);
    uint32_t levels = 1;
    while (levels < DISK_LEVELS_MAX && disk_span(levels) < blocks)
        levels++;
    return levels;
}

static void encode_tree(const struct disk_tree *tree, uint8_t *at) {
    store_le64(at + TREE_SIZE, tree->size);
    store_le64(at + TREE_ROOT, tree->root);
    store_le64(at + TREE_BACKING_LIMIT, tree->backing_limit);
    store_le32(at + TREE_LEVELS, tree->levels);
    store_le32(at + TREE_PARENT, tree->parent);
}

/* A root is a table's entry, or nothing; roots of zeroes there are none. */
static bool decode_tree(const uint8_t *at, struct disk_tree *tree) {
    tree->size = load_le64(at + TREE_SIZE);
    tree->root = load_le64(at + TREE_ROOT);
    tree->backing_limit = load_le64(at + TREE_BACKING_LIMIT);
    tree->levels = load_le32(at + TREE_LEVELS);
    tree->parent = load_le32(at + TREE_PARENT);
    return tree->size != 0 && tree->size <= DISK_SIZE_MAX && tree->size % 512 == 0 &&
           tree->backing_limit <= DISK_SIZE_MAX && tree->levels >= disk_levels(tree->size) &&
           tree->levels <= DISK_LEVELS_MAX && (tree->root == 0 || disk_allocated(tree->root));
}

/* ---- The superblock ---- */

bool disk_probe(const uint8_t *bytes, size_t length) {
    return length >= sizeof MAGIC && memcmp(bytes, MAGIC, sizeof MAGIC) == 0;
}

void disk_encode_superblock(const struct disk_superblock *superblock, uint8_t *block) {
    memset(block, 0, DISK_BLOCK);
    memcpy(block, MAGIC, sizeof MAGIC);
    store_le32(block + SB_VERSION, DISK_VERSION);
    store_le64(block + SB_SEQUENCE, superblock->sequence);
    memcpy(block + SB_UUID, superblock->uuid, sizeof superblock->uuid);
    encode_tree(&superblock->live, block + SB_TREE);
    store_le32(block + SB_GENERATION, superblock->generation);
    store_le32(block + SB_NEXT_SNAPSHOT, superblock->next_snapshot);
    store_le64(block + SB_SNAPSHOTS, superblock->snapshots);
    store_le32(block + SB_SNAPSHOT_COUNT, superblock->snapshot_count);
    store_le32(block + SB_JOURNAL_BLOCKS, superblock->journal_blocks);
    store_le64(block + SB_JOURNAL, superblock->journal);
    store_le64(block + SB_JOURNAL_EPOCH, superblock->journal_epoch);
    store_le64(block + SB_JOURNAL_SEQUENCE, superblock->journal_sequence);
    memcpy(block + SB_BACKING_FORMAT, superblock->backing_format,
           sizeof superblock->backing_format);
    memcpy(block + SB_BACKING_SNAPSHOT, superblock->backing_snapshot,
           sizeof superblock->backing_snapshot);
    memcpy(block + SB_BACKING_PATH, superblock->backing_path, sizeof superblock->backing_path);
    store_le32(block + SB_CHECKSUM, checksum(block, SB_CHECKSUM));
}

static bool decode_text(const uint8_t *at, char *text, size_t size) {
    memcpy(text, at, size);
    return text[size - 1] == 0;
}

static bool plausible(const struct disk_superblock *s) {
    return s->sequence != 0 && s->generation != 0 && s->generation <= DISK_GENERATION_MAX &&
           s->snapshot_count <= DISK_SNAPSHOTS_MAX &&
           (s->snapshot_count == 0) == (s->snapshots == 0) && s->snapshots <= DISK_PHYSICAL_MAX &&
           s->snapshots != 1 && s->journal >= DISK_SUPERBLOCKS && s->journal <= DISK_PHYSICAL_MAX &&
           s->journal_blocks >= DISK_JOURNAL_MIN && s->journal_blocks <= DISK_JOURNAL_MAX;
}

int disk_decode_superblock(const uint8_t *block, struct disk_superblock *superblock,
                           struct error *err) {
    if (!disk_probe(block, DISK_BLOCK))
        return error_set(err, -EINVAL, "not a lodge disk");
    if (load_le32(block + SB_VERSION) != DISK_VERSION)
        return error_set(err, -ENOTSUP, "a lodge disk of version %u; this lodge knows version %u",
                         load_le32(block + SB_VERSION), DISK_VERSION);
    if (load_le32(block + SB_CHECKSUM) != checksum(block, SB_CHECKSUM))
        return error_set(err, -EINVAL, "the superblock is damaged");
    if (load_le64(block + SB_INCOMPATIBLE) != 0)
        return error_set(err, -ENOTSUP, "it uses features that this lodge does not know (0x%llx)",
                         (unsigned long long)load_le64(block + SB_INCOMPATIBLE));
    struct disk_superblock s = {
        .sequence = load_le64(block + SB_SEQUENCE),
        .generation = load_le32(block + SB_GENERATION),
        .next_snapshot = load_le32(block + SB_NEXT_SNAPSHOT),
        .snapshots = load_le64(block + SB_SNAPSHOTS),
        .snapshot_count = load_le32(block + SB_SNAPSHOT_COUNT),
        .journal = load_le64(block + SB_JOURNAL),
        .journal_blocks = load_le32(block + SB_JOURNAL_BLOCKS),
        .journal_epoch = load_le64(block + SB_JOURNAL_EPOCH),
        .journal_sequence = load_le64(block + SB_JOURNAL_SEQUENCE),
    };
    memcpy(s.uuid, block + SB_UUID, sizeof s.uuid);
    if (!decode_tree(block + SB_TREE, &s.live) || !plausible(&s) ||
        !decode_text(block + SB_BACKING_FORMAT, s.backing_format, sizeof s.backing_format) ||
        !decode_text(block + SB_BACKING_SNAPSHOT, s.backing_snapshot, sizeof s.backing_snapshot) ||
        !decode_text(block + SB_BACKING_PATH, s.backing_path, sizeof s.backing_path))
        return error_set(err, -EINVAL, "the superblock has fields out of range");
    *superblock = s;
    return 0;
}

/* ---- Tables ---- */

void disk_encode_table(const uint64_t entries[DISK_ENTRIES], uint32_t level, uint64_t index,
                       uint32_t birth, uint8_t *block) {
    begin(block, TABLE_MAGIC);
    store_le32(block + TABLE_LEVEL, level);
    store_le32(block + TABLE_BIRTH, birth);
    store_le64(block + TABLE_INDEX, index);
    memcpy(block + HEADER, entries, DISK_ENTRIES * sizeof entries[0]);
    seal(block);
}

int disk_decode_table(const uint8_t *block, uint32_t level, uint64_t index, uint32_t birth,
                      uint64_t entries[DISK_ENTRIES]) {
    if (!sound(block, TABLE_MAGIC) || load_le32(block + TABLE_LEVEL) != level ||
        load_le64(block + TABLE_INDEX) != index || load_le32(block + TABLE_BIRTH) != birth)
        return -EINVAL;
    memcpy(entries, block + HEADER, DISK_ENTRIES * sizeof entries[0]);
    for (unsigned i = 0; i < DISK_ENTRIES; i++)
        if (!disk_allocated(entries[i]) && entries[i] != 0 && entries[i] != DISK_ZERO)
            return -EINVAL;
    return 0;
}

/* ---- The journal ---- */

void disk_encode_journal(const struct disk_record *records, unsigned count, uint64_t epoch,
                         uint64_t sequence, uint8_t *block) {
    begin(block, JOURNAL_MAGIC);
    store_le64(block + JOURNAL_EPOCH, epoch);
    store_le64(block + JOURNAL_SEQUENCE, sequence);
    store_le32(block + JOURNAL_COUNT, count);
    for (unsigned i = 0; i < count; i++) {
        uint8_t *at = block + HEADER + i * RECORD_SIZE;
        store_le64(at, records[i].first | (uint64_t)records[i].count << FIRST_BITS);
        store_le64(at + 8, records[i].entry);
    }
    seal(block);
}

static bool record_plausible(const struct disk_record *record) {
    uint64_t limit = DISK_SIZE_MAX / DISK_BLOCK;
    if (record->count == 0 || !range_within(record->first, record->count, limit))
        return false;
    if (!disk_allocated(record->entry))
        return record->entry == 0 || record->entry == DISK_ZERO;
    return range_within(disk_physical(record->entry), record->count, DISK_PHYSICAL_MAX);
}

int disk_decode_journal(const uint8_t *block, uint64_t epoch, uint64_t sequence,
                        struct disk_record records[DISK_RECORDS]) {
    uint32_t count = load_le32(block + JOURNAL_COUNT);
    if (!sound(block, JOURNAL_MAGIC) || load_le64(block + JOURNAL_EPOCH) != epoch ||
        load_le64(block + JOURNAL_SEQUENCE) != sequence || count > DISK_RECORDS)
        return -EINVAL;
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *at = block + HEADER + i * RECORD_SIZE;
        uint64_t first = load_le64(at);
        records[i] = (struct disk_record){.first = first & DISK_PHYSICAL_MAX,
                                          .count = (uint32_t)(first >> FIRST_BITS),
                                          .entry = load_le64(at + 8)};
        if (!record_plausible(&records[i]))
            return -EINVAL;
    }
    return (int)count;
}

/* ---- Snapshots ---- */

static unsigned in_block(unsigned count, unsigned index) {
    unsigned before = index * DISK_SNAPSHOTS_PER_BLOCK;
    unsigned left = count > before ? count - before : 0;
    return left < DISK_SNAPSHOTS_PER_BLOCK ? left : DISK_SNAPSHOTS_PER_BLOCK;
}

void disk_encode_snapshots(const struct disk_snapshot *all, unsigned count, unsigned index,
                           uint8_t *block) {
    unsigned here = in_block(count, index);
    begin(block, SNAPSHOTS_MAGIC);
    store_le32(block + SNAPSHOTS_COUNT, here);
    store_le32(block + SNAPSHOTS_INDEX, index);
    for (unsigned i = 0; i < here; i++) {
        const struct disk_snapshot *snapshot = &all[index * DISK_SNAPSHOTS_PER_BLOCK + i];
        uint8_t *at = block + HEADER + i * SNAPSHOT_SIZE;
        encode_tree(&snapshot->tree, at + SNAPSHOT_TREE);
        store_le32(at + SNAPSHOT_ID, snapshot->id);
        store_le32(at + SNAPSHOT_GENERATION, snapshot->generation);
        store_le64(at + SNAPSHOT_CREATED, snapshot->created);
        store_le32(at + SNAPSHOT_FLAGS, snapshot->hidden ? SNAPSHOT_HIDDEN : 0);
        memcpy(at + SNAPSHOT_NAME, snapshot->name, sizeof snapshot->name);
    }
    seal(block);
}

int disk_decode_snapshots(const uint8_t *block, struct disk_snapshot *all, unsigned count,
                          unsigned index) {
    unsigned here = in_block(count, index);
    if (!sound(block, SNAPSHOTS_MAGIC) || load_le32(block + SNAPSHOTS_COUNT) != here ||
        load_le32(block + SNAPSHOTS_INDEX) != index)
        return -EINVAL;
    for (unsigned i = 0; i < here; i++) {
        struct disk_snapshot *snapshot = &all[index * DISK_SNAPSHOTS_PER_BLOCK + i];
        const uint8_t *at = block + HEADER + i * SNAPSHOT_SIZE;
        snapshot->id = load_le32(at + SNAPSHOT_ID);
        snapshot->generation = load_le32(at + SNAPSHOT_GENERATION);
        snapshot->created = load_le64(at + SNAPSHOT_CREATED);
        snapshot->hidden = (load_le32(at + SNAPSHOT_FLAGS) & SNAPSHOT_HIDDEN) != 0;
        if (!decode_tree(at + SNAPSHOT_TREE, &snapshot->tree) || snapshot->id == 0 ||
            snapshot->generation == 0 ||
            !decode_text(at + SNAPSHOT_NAME, snapshot->name, sizeof snapshot->name))
            return -EINVAL;
    }
    return 0;
}
