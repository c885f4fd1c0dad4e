/* The PVH entry: 32-bit protected mode, paging off, EBX = struct hvm_start_info. */
#include "machine/boot.h"
#include "machine/layout.h"

enum { START_MAGIC = 0x336ec578, START_SIZE = 56, MODULE_SIZE = 32, MAP_ENTRY_SIZE = 24 };
#define MODULE_AT (LAYOUT_BOOT_START_INFO + START_SIZE)
#define MAP_AT    (MODULE_AT + MODULE_SIZE)

/* Offsets in struct hvm_start_info, version 1. */
enum {
    START_VERSION = 4,
    START_MODULES = 12,
    START_MODULE_LIST = 16,
    START_CMDLINE = 24,
    START_RSDP = 32,
    START_MAP = 40,
    START_MAP_ENTRIES = 48,
};

static int write_start_info(struct memory *memory, const struct boot_info *info) {
    struct boot_range map[BOOT_MAP_MAX];
    unsigned count = boot_memory_map(memory, map);
    uint8_t block[START_SIZE + MODULE_SIZE + BOOT_MAP_MAX * MAP_ENTRY_SIZE] = {0};
    store_le32(block, START_MAGIC);
    store_le32(block + START_VERSION, 1);
    store_le64(block + START_CMDLINE, LAYOUT_BOOT_CMDLINE);
    store_le64(block + START_RSDP, info->rsdp);
    store_le64(block + START_MAP, MAP_AT);
    store_le32(block + START_MAP_ENTRIES, count);
    if (info->initrd_size != 0) {
        store_le32(block + START_MODULES, 1);
        store_le64(block + START_MODULE_LIST, MODULE_AT);
        store_le64(block + START_SIZE, info->initrd);
        store_le64(block + START_SIZE + 8, info->initrd_size);
    }
    for (unsigned i = 0; i < count; i++) {
        uint8_t *entry = block + START_SIZE + MODULE_SIZE + i * MAP_ENTRY_SIZE;
        store_le64(entry, map[i].address);
        store_le64(entry + 8, map[i].size);
        store_le32(entry + 16, map[i].type);
    }
    return memory_write(memory, LAYOUT_BOOT_START_INFO, block, sizeof block);
}

static int write_gdt(struct memory *memory) {
    static const uint64_t gdt[] = {0, 0, UINT64_C(0x00cf9b000000ffff), UINT64_C(0x00cf93000000ffff),
                                   UINT64_C(0x00008b0000000067)};
    return memory_write(memory, LAYOUT_BOOT_GDT, gdt, sizeof gdt);
}

static void set_state(uint64_t entry, struct x86_state *state) {
    static const struct x86_segment code = {
        .limit = UINT32_MAX, .selector = 0x10, .attributes = SEG_G | SEG_DB | SEG_P | SEG_S | 0xb};
    static const struct x86_segment data = {
        .limit = UINT32_MAX, .selector = 0x18, .attributes = SEG_G | SEG_DB | SEG_P | SEG_S | 0x3};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->segment[i] = i == SEG_CS ? code : data;
    state->tr = (struct x86_segment){.limit = 0x67, .selector = 0x20, .attributes = SEG_P | 0xb};
    state->ldtr = (struct x86_segment){.attributes = SEG_P | 0x2, .limit = 0xffff};
    state->gdtr = (struct x86_table){.base = LAYOUT_BOOT_GDT, .limit = 5 * 8 - 1};
    memset(state->gpr, 0, sizeof state->gpr);
    state->gpr[RBX] = LAYOUT_BOOT_START_INFO;
    state->rip = entry;
    state->rflags = FLAGS_FIXED;
    state->cr0 = CR0_PE | CR0_ET;
    state->cr3 = 0;
    state->cr4 = 0;
    state->efer = 0;
}

int pvh_prepare(struct memory *memory, const struct boot_info *info, uint64_t entry,
                struct x86_state *state, struct error *err) {
    if (entry > UINT32_MAX)
        return error_set(err, -ENOEXEC, "its PVH entry point lies above 4 GiB");
    if (write_start_info(memory, info) < 0 || write_gdt(memory) < 0)
        return error_set(err, -E2BIG, "the machine has too little memory to boot from");
    set_state(entry, state);
    return 0;
}
